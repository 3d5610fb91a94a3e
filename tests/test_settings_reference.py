"""The page that is made from the tables of the settings, and what else repeats them: the environment's example, and
what a reload refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from edgegw.app import plan
from edgegw.cli import main
from edgegw.logs import Log
from edgegw.settings import Address, Settings, load_text, reference
from edgegw.settings.environment import PROVIDERS, VARIABLES
from edgegw.settings.fields import PRESETS, ROOT, SERVER
from edgegw.settings.reference import default_of, field_of
from edgegw.settings.specs import Field, Section, inner

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "settings-reference.md"


def sections(section: Section = ROOT) -> Iterator[Section]:
    yield section
    for field in section.fields:
        below = inner(field.spec)
        if isinstance(below, Section):
            yield from sections(below)


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["reference"])
    assert printed.exit_code == 0
    assert printed.output == reference()
    assert PAGE.read_text("utf-8") == printed.output, "make reference"


def test_each_section_stands_in_it_once_with_all_its_settings() -> None:
    tables = re.findall(r"^\| key \|.*\n\|---.*\n((?:\|.*\n)+)", reference(), re.MULTILINE)
    told = [tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) for table in tables]
    known = {id(section): section for section in sections()}.values()
    assert told == [tuple(field.key for field in section.fields) for section in known]


def test_no_cell_of_a_table_is_missing_or_broken() -> None:
    heads = ""
    for line in reference().splitlines():
        if not line.startswith("|"):
            heads = ""
            continue
        heads = heads or line
        assert line.count("|") == heads.count("|"), line
        assert line.startswith("|---") or line.split("|")[-2].strip() or "kind" in heads, f"no words: {line}"


@pytest.mark.parametrize("words", [
    "| `listen` | address such as `127.0.0.1:8080` | `127.0.0.1:8080` | Where clients are served. Variables: "
    "`EDGEGW_HOST`, `PORT`. Needs a restart. |",
    "| `drain_timeout` | duration from 0s to 24h | `60s` |",
    "| `allow_unauthenticated` | true or false | `false` |",
    "| `targets` | list like `[provider/model]` | required |",
    "| `tokens_per_minute` | whole number from 1 to 1000000000000 | `50000` |",
    "| `keys` | mapping of [tenants.NAME.keys.KEY](#tenantsnamekeyskey), or its `digest` alone | |",
    "| `PORT` | the port of `server.listen` | whatever the file says | `8080` |",
])  # fmt: skip
def test_what_a_row_says(words: str) -> None:
    assert f"\n{words}" in reference()


# -- what else says it --


def commented() -> dict[str, tuple[str, list[str]]]:
    """Of each variable in .env.example: the comment above it, and the values that are shown."""
    found: dict[str, tuple[str, list[str]]] = {}
    for paragraph in (HOUSE / ".env.example").read_text("utf-8").split("\n\n"):
        lines = [line.removeprefix("# ") for line in paragraph.splitlines()]
        shown = [match for line in lines if (match := re.fullmatch(r"([A-Z_]+)=(.*)", line))]
        said = " ".join(line for line in lines if not re.fullmatch(r"[A-Z_]+=.*", line))
        for match in shown:
            found.setdefault(match[1], (said, []))[1].append(match[2])
    return found


def test_the_example_of_the_environment_says_the_same() -> None:
    told = commented()
    known = {variable.name for variable in VARIABLES}
    known |= {name for each in PROVIDERS for name in (each.key, each.base_url)}
    assert told.keys() == known | {"EDGEGW_CONFIG"}
    for variable in VARIABLES:
        comment, values = told[variable.name]
        assert field_of(variable).doc in comment, variable.name
        assert default_of(variable) in ("", *values), variable.name
    for each in PROVIDERS:
        assert told[each.base_url][1] == [PRESETS[each.name].base_url]
        assert told[each.key][1] == [""], "no key stands there"


def another(value: Any) -> Any:
    """One that is not the default."""
    match value:
        case Address():
            return Address(value.host, value.port + 100)
        case str():
            return value + "-2"
        case _:
            return value + 1


@pytest.mark.parametrize("field", SERVER.fields, ids=lambda field: field.key)
def test_a_restart_is_said_where_a_reload_is_refused(field: Field) -> None:
    settings = load_text("version: 1\nproviders: {a: {kind: openai, api_key: k}}\ndefault: {targets: [a/b]}\n", {})

    def fixed(settings: Settings) -> tuple[object, ...]:
        return plan(settings, lambda: settings, Log(1, as_json=True)).fixed()

    other = {field.attribute: another(getattr(settings.server, field.attribute))}
    changed = replace(settings, server=replace(settings.server, **other))
    assert field.restart == (fixed(changed) != fixed(settings))


def test_everything_but_the_server_takes_a_reload() -> None:
    others = (section for section in sections() if section is not SERVER)
    assert [field.key for section in others for field in section.fields if field.restart] == []
