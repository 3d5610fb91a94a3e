"""Tables for people and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(headings, *lines, strict=True)]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (headings, ["-" * width for width in widths], *lines)
    ]
    return "\n".join(padded)
