"""What the pages say is what the code does: tables, settings, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from settings_cases import KEYS, NOW_NS, unmasked

from edgegw import client_ids, gateway, relay, retry
from edgegw.breaker import BreakerPolicy
from edgegw.cli import main
from edgegw.dialects import anthropic_request, openai_chat_request
from edgegw.errors import KINDS, Source
from edgegw.exchange import RetryPolicy
from edgegw.settings import describe, load_text, warnings
from edgegw.simulator.rules import WORDS
from edgegw.telemetry import export, names, semconv
from edgegw.telemetry.family import Family

HOUSE = Path(__file__).parent.parent
PAGES = [HOUSE / "README.md", HOUSE / "load" / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def page(name: str) -> str:
    return (HOUSE / name).read_text("utf-8")


def section(text: str, title: str) -> str:
    """From a heading to the next one of any level."""
    return re.split(r"^#+ ", text.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of the tables in a text that begin with a `word`, without the back quotes."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


# -- dialects --


def test_what_reaches_anthropic() -> None:
    """Every field with a fate of its own is in a table, and every level of effort."""
    text = page("docs/anthropic.md")

    def fields(title: str) -> list[set[str]]:
        tables = section(text, title).split("Refused when")
        return [{name for row in rows(part) for name in re.findall(r"[a-z_]+", row[0])} for part in tables]

    assert fields("The request") == [set(openai_chat_request.CARRIED), set(openai_chat_request.SEMANTIC)]
    efforts = {row[0]: row[2] for row in rows(section(text, "Effort"))}
    assert efforts == {"none": "nothing", **{effort: str(n) for effort, n in anthropic_request.BUDGETS.items()}}


# -- errors and streams --


def test_the_table_of_errors() -> None:
    text = page("docs/errors.md")
    for title, source in (
        ("The request", Source.CLIENT),
        ("The gateway", Source.GATEWAY),
        ("The provider", Source.UPSTREAM),
    ):
        told = {row[0]: (int(row[1]), row[2], row[3] or None) for row in rows(section(text, title))}
        assert told == {
            kind.name: (kind.status, kind.type, kind.code) for kind in KINDS.values() if kind.source is source
        }
    assert all(row[4] for row in rows(text))


def test_the_errors_in_the_readme() -> None:
    known = {(kind.status, kind.code) for kind in KINDS.values()}
    told = re.findall(r"^\| (\d+) \| ((?:`\w+`,? ?)+)", section(page("README.md"), "What is guaranteed"), re.MULTILINE)
    assert {(int(status), code) for status, codes in told for code in _SPAN.findall(codes)} <= known
    assert len(told) >= 6


def test_what_is_tried_after_a_failure() -> None:
    words = {"same target": retry.Action.RETRY_SAME, "next target": retry.Action.NEXT_TARGET}
    told = {
        kind: (tuple(words[each] for each in order.split(", ") if each != "nothing"), counts == "yes")
        for kind, order, counts in rows(section(page("docs/streams.md"), "Before the commit: what is tried next"))
        if kind in KINDS
    }
    assert told == {
        kind: (verdict.order, verdict.health is retry.Health.ILL)
        for kind, verdict in retry.VERDICTS.items()
        if KINDS[kind].source is Source.UPSTREAM
    }


def test_what_the_books_say_after_the_commit() -> None:
    told = dict(rows(section(page("docs/streams.md"), "After the commit: what the books say")))
    assert told == gateway.STATES_AFTER_COMMIT


def test_the_numbers_of_gate_retries_and_breaker() -> None:
    text = page("docs/streams.md")
    policy, breaker, budget = RetryPolicy(), BreakerPolicy(), retry.RetryBudget()
    while budget.allows():
        budget.opened(retry=True)
    for said in (
        f"| {relay.GATE_EVENTS_MAX} events |",
        f"| {relay.GATE_BYTES_MAX // 1024} KiB |",
        f"| {relay.GATE_WAIT_S:g} s |",
        f"| {policy.attempts} | `retry.attempts` |",
        f"| {policy.attempts_max} | `retry.attempts_max` |",
        f"up to {policy.base_s * 1000:g} ms, then twice that, … | `retry.base` |",
        f"| {policy.cap_s:g} s | `retry.cap` |",
        f"| {policy.retry_after_max_s:g} s | `retry.retry_after_max` |",
        f"a fifth of its live attempts, at least {budget.retries} |",
        f"- {breaker.failures_in_a_row} failures in a row",
        f"failures in half of at least {breaker.calls_min} attempts within {breaker.window_s:g} s",
        f"a pause of {breaker.pause_s:g} s",
        f"up to {breaker.pause_max_s:g} s",
    ):
        assert said in text
    assert breaker.failures_share == 0.5
    assert breaker.jitter == 0.25


# -- the ledger --


def test_the_names_of_sessions_and_users() -> None:
    lines = {line.split("`")[1]: line for line in page("docs/ledger.md").splitlines() if line.startswith("| `")}
    for column, headers, fields in (
        ("session_id", client_ids.SESSION_HEADERS, client_ids.SESSION_FIELDS),
        ("user_id", client_ids.USER_HEADERS, client_ids.USER_FIELDS),
    ):
        assert _SPAN.findall(lines[column]) == [column, *(header.decode() for header in headers), *fields]


# -- settings --


@pytest.mark.parametrize("name", ["README.md", "docs/settings.md"])
def test_the_settings_that_are_shown_can_be_used(name: str) -> None:
    examples = [text for language, text in _FENCE.findall(page(name)) if language == "yaml"]
    assert examples
    for text in examples:
        settings = load_text(text, KEYS)
        assert warnings(settings, NOW_NS) == []
        assert load_text(unmasked(describe(settings)), {}).use_cases == settings.use_cases


def test_the_defaults_in_the_reference_are_those_in_force() -> None:
    # Of keys that stand in several sections, every default has to be in one of their tables.
    told: dict[str, set[str]] = {}
    for row in rows(page("docs/settings-reference.md")):
        told.setdefault(row[0], set()).add(row[2].strip("`"))
    in_force = describe(
        load_text("version: 1\nproviders: {a: {kind: openai, api_key: k}}\ndefault: {targets: [a/b]}\n", {})
    )
    shown = re.findall(r'^ +(\w+): "?([^"\n]+)"?$', in_force, re.MULTILINE)
    apart = {"kind", "base_url", "api_key", "targets"}
    assert [(key, value) for key, value in shown if key not in apart and value not in told[key]] == []
    assert len(shown) > 40


# -- the simulator, metrics --


def test_every_word_of_the_simulator() -> None:
    told = rows(section(page("docs/simulator.md"), "Faults in the model's name"))
    words = {re.sub(r"-[A-Z]+$", "", row[0]) for row in told} - {"400` … `599"}
    assert words == WORDS.keys()


def test_every_option_of_the_simulator() -> None:
    told = rows(page("docs/simulator.md").partition("## Paths")[0])
    defaults = {option: str(each.default) for each in main.commands["simulate"].params for option in each.opts}
    assert {row[0]: row[2] for row in told} == defaults | {"--rules": "none", "--log": "none"}


def test_every_metric_that_is_named_exists() -> None:
    families = {family.name for family in vars(names).values() if isinstance(family, Family)}
    families |= {family.name for family in names.WORKER_GAUGES.values()}
    named = {
        word
        for path in PAGES
        for word in re.findall(r"\bedgegw_\w+", path.read_text("utf-8"))
        if not word.startswith(names.WORKER_GAUGE_PREFIX)
    }
    assert named <= families


def test_the_page_of_metrics_is_the_table_of_names() -> None:
    families = [family for family in vars(names).values() if isinstance(family, Family)]
    families += names.WORKER_GAUGES.values()
    table = [row for row in rows(page("docs/metrics.md")) if row[0].startswith(("edgegw_", "gen_ai_"))]
    told = {name: (kind, labels, text) for name, kind, labels, text in table}
    assert len(told) == len(table)
    assert told == {each.name: (each.type, "`, `".join(each.labels), each.help) for each in families}


def test_every_attribute_of_a_span_is_in_the_page_on_traces() -> None:
    told = set(_SPAN.findall(page("docs/traces.md")))
    named = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    assert named - told <= {semconv.SCHEMA_URL, semconv.SCOPE}
    dotted = {
        word for word in told if re.fullmatch(r"(?:gen_ai|edgegw|http|url|server|error|session|user)\.[a-z_.]+", word)
    }
    assert dotted <= named


def test_every_reason_for_a_span_that_is_dropped() -> None:
    told = [row[0] for row in rows(section(page("docs/traces.md"), "When the collector is away"))]
    assert sorted(told) == sorted(re.findall(r"^    (\w+) +\w", export.__doc__ or "", re.MULTILINE))


# -- commands and links --


def commands(text: str) -> Iterator[list[str]]:
    """The words behind each `edgegw` in code, spans and blocks alike."""
    code = [body for _, body in _FENCE.findall(text)] + _SPAN.findall(_FENCE.sub("", text))
    for line in "\n".join(code).splitlines():
        for found in re.finditer(r"(?<![\w./-])(?:\.venv/bin/)?edgegw (?=[a-z])([^#|;…]*)", line):
            yield shlex.split(found[1], posix=True)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_that_is_named_exists(path: Path) -> None:
    for name, *words in commands(path.read_text("utf-8")):
        assert name in main.commands, f"edgegw {name}"
        known = options(name)
        group = main.commands[name]
        if isinstance(group, click.Group) and words:
            assert words[0] in group.commands, f"edgegw {name} {words[0]}"
            known = options(name, words[0])
        assert [word for word in words if word.startswith("-") and word not in known] == [], f"edgegw {name}"


def options(command: str, below: str | None = None) -> set[str]:
    found = main.commands[command]
    if below is not None:
        assert isinstance(found, click.Group)
        found = found.commands[below]
    return {option for each in found.params if isinstance(each, click.Option) for option in each.opts}


def test_the_commands_in_the_readme_are_all_of_them_with_their_own_options() -> None:
    table = rows(section(page("README.md"), "Commands"))
    assert {row[0].split()[1] for row in table} == main.commands.keys()
    for name, what in table:
        named = {span.split()[0] for span in _SPAN.findall(what) if span.startswith("--")}
        assert named <= options(*name.split()[1:]), name


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", page("Makefile"), re.MULTILINE))
    named = {
        word for path in PAGES for word in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = _FENCE.sub("", path.read_text("utf-8"))
    assert [link for link in _LINK.findall(text) if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_into_a_page_lead_to_a_heading(path: Path) -> None:
    text = _FENCE.sub("", path.read_text("utf-8"))
    for name, anchor in re.findall(r"\]\(([\w./-]*)#([^)]*)\)", text):
        there = (path.parent / name if name else path).read_text("utf-8")
        assert anchor in anchors(there), f"{name}#{anchor}"


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    """Modules and files of this repository, as pages write them: from the top, or from edgegw/ or load/."""
    spans = _SPAN.findall(_FENCE.sub("", path.read_text("utf-8")))
    named = [
        span for span in spans if re.fullmatch(r"[a-z_/]+\.(?:py|sh)|(?:sql|docs|load|edgegw|tests)/[\w./]*", span)
    ]
    tops = (HOUSE, HOUSE / "edgegw", HOUSE / "load", HOUSE / "tests")
    assert [name for name in named if not any((top / name).exists() for top in tops)] == []
