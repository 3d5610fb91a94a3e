"""Rows for people and programs: tables that a terminal survives, JSON that is exact, CSV that is no formula."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.ledger import tables
from edgegw.ledger.questions import BY, Row, Table
from edgegw.ledger.tables import COLUMNS, day, duration, hour, moment, money, printable
from edgegw.ledger.usage import SUMS

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def a_row(**fields: object) -> Row:
    """A row of either table, with all that a table shows of it."""
    names = ("id", "request_id", "tenant", "use_case", "route", "provider", "model", "state", "error_kind", "kind")
    texts: Row = dict.fromkeys((*names, "retry_reason", "finish_reason", "upstream_request_id"), "x")
    counts = ("started_ns", "number", "status", "attempts", "input_tokens", "output_tokens", "first_byte_us")
    numbers: Row = dict.fromkeys((*counts, "first_token_us", "duration_us", "overhead_us", "cost_usd_micro"), 1)
    return texts | numbers | {"estimated": False} | fields


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (None, "-"),
        (0, "0us"),
        (999, "999us"),
        (1000, "1.0ms"),
        (9_949, "9.9ms"),
        (9_950, "10ms"),
        (812_400, "812ms"),
        (999_499, "999ms"),
        (999_500, "1.00s"),
        (4_310_000, "4.31s"),
        (59_994_999, "59.99s"),
        (59_995_000, "1m00s"),
        (725_000_000, "12m05s"),
    ],
)
def test_durations_are_said_as_people_say_them(us: int | None, expected: str) -> None:
    assert duration(us) == expected


def test_moments_are_utc_to_the_millisecond() -> None:
    assert moment(1_750_000_000_123_456_789) == "2025-06-15 15:06:40.123"
    assert moment(2**63 - 1) == "2262-04-11 23:47:16.854"
    assert moment(10**30) == moment(-1) == moment(None) == "-"
    assert (hour(486_111), day(486_111 // 24)) == ("2025-06-15 15:00", "2025-06-15")


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        (None, "-"),
        (0, "$0"),
        (1, "$0.000001"),
        (9_999, "$0.009999"),
        (12_300, "$0.0123"),
        (12_345, "$0.0123"),
        (99_990_000, "$99.9900"),
        (123_456_789, "$123.46"),
        (-12_300, "-$0.0123"),
    ],
)
def test_money_is_exact_below_a_cent_and_short_above(micro: int | None, expected: str) -> None:
    assert money(micro) == expected


@pytest.mark.parametrize("table", ["requests", "provider_attempts"])
def test_what_is_estimated_says_so(table: Table) -> None:
    head, line = tables.table(COLUMNS[table], [a_row(estimated=True, input_tokens=7, cost_usd_micro=12_300)])
    assert "COST" in head
    assert "~7" in line
    assert "~$0.0123" in line
    _, line = tables.table(COLUMNS[table], [a_row(estimated=True, cost_usd_micro=None, input_tokens=None)])
    assert "~$" not in line


@pytest.mark.parametrize("table", ["requests", "provider_attempts"])
def test_a_table_fits_its_terminal_and_keeps_what_matters(table: Table) -> None:
    rows = [a_row(tenant="t" * n, model="m" * n, id="i" * 36, request_id="i" * 36) for n in range(1, 60)]
    for width in (80, 100, 132, 200, 400):
        lines = list(tables.table(COLUMNS[table], rows, width))
        assert max(map(len, lines)) <= width
        assert "STATUS" in lines[0]
        assert "TOOK" in lines[0]
    assert len(list(tables.table(COLUMNS[table], rows, 1))) == len(rows) + 1
    assert len(list(tables.table(COLUMNS[table], [], 80))) == 1


def test_a_cell_that_is_too_long_is_cut_visibly() -> None:
    for width in (80, 132):
        _, line = tables.table(COLUMNS["requests"], [a_row(tenant="x" * 300, error_kind="x" * 300)], width)
        assert len(line) <= width
        assert "…" in line


def test_a_table_of_sums_has_what_it_is_summed_by_and_the_cost() -> None:
    row: Row = {name: 3 for name in SUMS} | {name: "" for name in BY}  # noqa: C420
    row |= {"day": 20254, "hour": 486_111, "tenant": "acme", "cost_usd_micro": 12_300}
    head, line = tables.table(tables.usage_columns(tuple(BY)), [row])
    assert head.split()[:8] == ["TENANT", "USE", "CASE", "KEY", "PROVIDER", "MODEL", "DAY", "HOUR"]
    assert line.split()[:7] == ["acme", "-", "-", "-", "-", "2025-06-15", "2025-06-15"]
    assert line.split()[-3:] == ["$0.0123", "3", "3"]
    (told,) = tables.with_times([row])
    assert told == row | {"day": "2025-06-15", "hour": "2025-06-15T15:00Z"}


@given(TEXT)
def test_no_name_reaches_the_terminal_as_anything_but_text(name: str) -> None:
    assert printable(name).isprintable()
    if name.isprintable():
        assert printable(name) == name
    for table in ("requests", "provider_attempts"):
        assert all(line.isprintable() for line in tables.table(COLUMNS[table], [a_row(tenant=name, model=name)], 150))


def test_escape_sequences_of_clients_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\n\\u202ec"


@given(TEXT)
def test_json_is_exact_and_prints(name: str) -> None:
    (line,) = tables.json_lines([{"tenant": name, "n": 2**63 - 1, "none": None, "yes": True}])
    assert json.loads(line) == {"tenant": name, "n": 2**63 - 1, "none": None, "yes": True}
    assert line.isprintable()


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_csv_is_read_back_cell_by_cell(rows: list[tuple[str, str]]) -> None:
    lines = tables.csv_lines(("a", "b"), [{"a": a, "b": b} for a, b in rows])
    text = "\r\n".join((tables.csv_head(("a", "b")), *lines)) + "\r\n"
    head, *found = csv.reader(io.StringIO(text, newline=""))
    assert head == ["a", "b"]
    assert [tuple(cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@\t\r") else cell for cell in row)
            for row in found] == rows  # fmt: skip


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"])
def test_no_cell_of_a_client_is_a_formula(name: str) -> None:
    (line,) = tables.csv_lines(("tenant", "tokens"), [{"tenant": name, "tokens": -1}])
    ((cell, tokens),) = csv.reader(io.StringIO(line, newline=""))
    assert (cell, tokens) == (f"'{name}", "-1")


def test_csv_of_nothing_yes_and_no() -> None:
    (line,) = tables.csv_lines(("a", "b", "c"), [{"a": None, "b": True, "c": False}])
    assert line == ",true,false"
