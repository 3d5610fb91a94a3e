"""What Dockerfile and docker-compose.yml say, read as Docker reads them, as far as they use it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rig import REPOSITORY

_EXPRESSION = re.compile(r"\$\{(\w+)(?::-([^${}]*))?\}")
_DURATION = re.compile(r"(\d+)(ms|s|m)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0}


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """With `${NAME}` and `${NAME:-default}` replaced in all texts, as docker compose does it; nothing else is used."""
    if isinstance(value, dict):
        return {key: interpolated(below, environ) for key, below in value.items()}
    if isinstance(value, list):
        return [interpolated(below, environ) for below in value]
    if not isinstance(value, str):
        return value
    text = _EXPRESSION.sub(lambda found: environ.get(found[1]) or found[2] or "", value)
    assert "$" not in text, f"an expression that is not understood here: {value}"
    return text


def seconds(duration: str) -> float:
    found = _DURATION.fullmatch(duration)
    assert found, duration
    return int(found[1]) * _UNITS_S[found[2]]


def compose(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    document = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
    read = interpolated({key: value for key, value in document.items() if not key.startswith("x-")}, environ or {})
    assert isinstance(read, dict)
    return read


@dataclass
class Stage:
    """Of a Dockerfile: its instructions, and what the last of some said."""

    base: str
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [rest for name, rest in self.instructions if name == instruction][-1]

    def command(self, instruction: str) -> list[str]:
        """In exec form; JSONDecodeError when it is for a shell."""
        words = json.loads(self.last(instruction))
        assert isinstance(words, list)
        return words


def stages(path: Path = REPOSITORY / "Dockerfile") -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append(Stage(rest))
        elif found:
            found[-1].instructions.append((name, rest.strip()))
            if name in ("ENV", "LABEL"):
                pairs = dict(word.split("=", 1) for word in shlex.split(rest))
                (found[-1].env if name == "ENV" else found[-1].labels).update(pairs)
    return found
