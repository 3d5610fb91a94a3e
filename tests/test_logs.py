"""How the gateway speaks: lines for machines and for people, who speaks, and that no secret is among the words."""

from __future__ import annotations

import ast
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rig import Simulator, StartGateway, chat, eventually, providers

from edgegw import logs
from edgegw.logs import Log, Role, Wanted, read
from edgegw.settings import Secret
from edgegw.settings.load import load_text


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        os.close(fd)


def said(pipe: tuple[int, int], record: logging.LogRecord, *, as_json: bool = True, role: Role | None = None) -> str:
    log = Log(pipe[1], as_json=as_json)
    log.role = role or log.role
    log.emit(record)
    return os.read(pipe[0], 1 << 20).decode()


def record(message: object, *args: object, level: int = logging.WARNING, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("edgegw.test").makeRecord(
        "edgegw.test", level, __file__, 1, message, args, extra.pop("exc_info", None), extra=extra
    )
    made.created = 1_764_098_913.157
    return made


def failure() -> Any:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return type(error), error, error.__traceback__


@pytest.mark.parametrize(
    ("environ", "terminal", "wanted"),
    [
        ({}, False, Wanted("INFO", "json")),
        ({}, True, Wanted("INFO", "text")),
        ({"LOG_LEVEL": " debug", "LOG_FORMAT": "TEXT"}, False, Wanted("DEBUG", "text")),
        ({"LOG_LEVEL": "", "LOG_FORMAT": ""}, True, Wanted("INFO", "text")),
        ({"LOG_FORMAT": "json"}, True, Wanted("INFO", "json")),
    ],
)
def test_what_is_wanted(environ: dict[str, str], terminal: bool, wanted: Wanted) -> None:
    assert read(environ, terminal=terminal) == wanted


def test_a_typing_error_stops_nothing() -> None:
    wanted = read({"LOG_LEVEL": "loud", "LOG_FORMAT": "xml"}, terminal=True)
    assert (wanted.level, wanted.format) == ("INFO", "text")
    assert [complaint.partition(":")[0] for complaint in wanted.complaints] == ["LOG_LEVEL", "LOG_FORMAT"]


def test_a_line_for_machines(pipe: tuple[int, int]) -> None:
    about: dict[str, Any] = {"request_id": "0198", "trace_id": "ab" * 16}
    line = said(pipe, record("%d ü \n\x1b[31m", 5, **about), role=Role("worker", 3))
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "ts": datetime.fromtimestamp(1_764_098_913.157, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "level": "WARNING",
        "logger": "edgegw.test",
        "message": "5 ü \n\x1b[31m",
        "pid": os.getpid(),
        "role": "worker",
        "slot": 3,
        **about,
    }


def test_a_line_for_people(pipe: tuple[int, int]) -> None:
    line = said(pipe, record("five %s", "words"), as_json=False, role=Role("worker", 3))
    assert line == f"{logs.stamp(1_764_098_913.157)} WARNING worker3 edgegw.test: five words\n"


def test_a_line_for_people_names_the_request(pipe: tuple[int, int]) -> None:
    about: dict[str, Any] = {"request_id": "0198", "trace_id": "ab" * 16}
    line = said(pipe, record("internal error", exc_info=failure(), **about), as_json=False)
    assert " edgegw.test: internal error (request 0198)\nTraceback" in line


def test_a_traceback_is_one_field(pipe: tuple[int, int]) -> None:
    read_back = json.loads(said(pipe, record("it failed", exc_info=failure())))
    assert (read_back["message"], read_back["role"]) == ("it failed", "supervisor")
    assert read_back["exception"].startswith("Traceback (most recent call last):")
    assert read_back["exception"].endswith("ValueError: two\nlines")
    for_people = said(pipe, record("it failed", exc_info=failure()), as_json=False)
    assert for_people.endswith("ValueError: two\nlines\n")


def test_a_message_that_cannot_be_made_is_told_all_the_same(pipe: tuple[int, int]) -> None:
    assert said(pipe, record("%d", "five")) == "WARNING edgegw.test: '%d' (TypeError in the log)\n"
    assert json.loads(said(pipe, record("\ud800")).encode("utf-8", "replace"))


def test_nobody_reads_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    Log(writing, as_json=True).emit(record("unheard"))


def test_nobody_waits_for_a_reader_that_is_slow(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1], as_json=True)
    for number in range(400):  # far more than a pipe holds; without a reader this would be the end
        log.emit(record("x" * 1000, level=number))
    heard = os.read(pipe[0], 1 << 20).splitlines()
    assert 20 < len(heard) < 400
    assert all(json.loads(line)["message"] == "x" * 1000 for line in heard)
    log.emit(record("again"))
    again, unsaid = (json.loads(line)["message"] for line in os.read(pipe[0], 1 << 20).splitlines())
    assert (again, unsaid) == ("again", f"{400 - len(heard)} lines of the log found nobody who read them")


def test_a_long_traceback_is_cut_and_stays_json(pipe: tuple[int, int]) -> None:
    long = record("y")
    long.stack_info = "z" * 100_000
    assert json.loads(said(pipe, long))["exception"] == "z" * (logs.LINE_BYTES_MAX // 4)


def test_all_loggers_speak_through_it(pipe: tuple[int, int]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.start(Wanted("WARNING", "json"), pipe[1])
        logging.getLogger("edgegw.a").info("not said")
        logging.getLogger("asyncio").error("said")
        assert json.loads(os.read(pipe[0], 1 << 16))["logger"] == "asyncio"
    finally:
        root.handlers[:] = before
        root.setLevel(level)


# Which modules log, and about what. What is about one request, or a record of one, has its ids.
ABOUT_REQUESTS = {"gateway", "attempts", "ledger/telling", "content/courier"}
ABOUT_BOTH = {"ledger/journal", "ledger/shipper"}
ABOUT_THE_GATEWAY = {
    *("app/__init__", "app/telemetry", "channel", "channel_server", "content/shipper", "control/process", "keys/feed"),
    *("ledger/adoption", "ledger/postgres/upkeep", "ledger/sqlite_retention", "ledger/syncing", "ledger/upkeep"),
    *("limits/memory_file", "limits/redis/authority", "limits/redis/replicas", "supervisor"),
    *("telemetry/export", "telemetry/metric_export"),
}


def test_what_is_logged_about_a_request_has_its_ids() -> None:
    package = Path(logs.__file__).parent
    calls: dict[str, list[bool]] = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger" | "_log")), keywords=keywords):
                    name = path.relative_to(package).with_suffix("").as_posix()
                    calls.setdefault(name, []).append(any(keyword.arg == "extra" for keyword in keywords))
    assert calls.keys() == ABOUT_REQUESTS | ABOUT_BOTH | ABOUT_THE_GATEWAY
    assert [name for name, ids in calls.items() if name in ABOUT_REQUESTS and not all(ids)] == []
    assert [name for name, ids in calls.items() if name in ABOUT_BOTH and not any(ids)] == []


CANARY = "sk-canary-0123456789"
SETTINGS = f"""
version: 1
providers:
  a:
    kind: openai-compatible
    base_url: https://provider.example/v1
    api_key: {CANARY}
    headers: {{x-key: {CANARY}}}
    proxy: http://user:{CANARY}@proxy.example:3128
default: {{targets: [a/b]}}
storage:
  redis_url: redis://:{CANARY}@redis.example/0
  database_url: postgresql://user:{CANARY}@db.example/books
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_no_way_of_logging_shows_a_secret(pipe: tuple[int, int], as_json: bool) -> None:
    settings = load_text(SETTINGS, {})
    secret = Secret(CANARY)
    shown = [
        secret,
        settings,
        settings.providers,
        settings.providers["a"],
        settings.storage,
        {"key": secret},
        [settings],
    ]
    for value in shown:
        for made in (
            record("%s", value),
            record("%r", value),
            record(f"{value}"),
            record(value),
            record("it is", request_id=value, trace_id=secret),
        ):
            line = said(pipe, made, as_json=as_json)
            assert CANARY not in line
            assert "in the log" not in line, "it was formatted"


@pytest.mark.system
def test_what_a_gateway_says_is_json_line_by_line(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway({"providers": providers(simulator), "models": {"good": {"targets": ["sim/good"]}}})
    answer = chat(running.url, "good")

    def lines() -> list[dict[str, Any]]:
        """The first one, on stderr, says to whoever typed the command where the gateway listens."""
        return [json.loads(line) for line in running.running.said.splitlines()[1:]]

    def told() -> list[dict[str, Any]]:
        return [line for line in lines() if line["logger"] == "edgegw.request"]

    (request,) = eventually("the request's line", told, bool, 15)
    row = running.row(answer.headers["x-request-id"])
    assert (request["request_id"], request["trace_id"]) == (row["id"], row["id"].replace("-", ""))
    assert (request["tenant"], request["route"], request["model"]) == (row["tenant"], "model:good", "good")
    assert (request["state"], request["status"], request["input_tokens"]) == ("complete", 200, row["input_tokens"])
    os.kill(running.pid, 1)  # SIGHUP: a reload is told
    eventually("a reload", lines, lambda seen: any(each["message"] == "reloading" for each in seen), 15)
    assert running.stop()[0] == 0
    (reloading,) = [line for line in lines() if line["message"] == "reloading"]
    assert (reloading["role"], reloading["pid"], reloading["level"]) == ("supervisor", running.pid, "INFO")
