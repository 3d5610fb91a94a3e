"""The command line: each command's way, and what it says and exits with when it cannot go it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from ledger_traces import (
    JOURNAL_ID,
    WALL_NS,
    a_batch,
    conclude,
    make_exchange,
    open_journal,
    play,
    ship_all,
    sqlite_store,
)
from postgres_rig import Database
from rig import REPOSITORY, ask, eventually, free_port
from settings_cases import BASE

from edgegw import __version__, demo
from edgegw.cli import main
from edgegw.clock import ManualClock
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import Checkpoint
from edgegw.settings import load_text, parse_postgres

PROGRAM = [sys.executable, "-m", "edgegw"]
WAIT_S = 20.0
SETTINGS_VARIABLES = re.compile(r"EDGEGW_|OPENAI_|ANTHROPIC_|(PORT|REDIS_URL|DATABASE_URL|TOKENS_PER_MINUTE)$")

BROKEN = """\
version: 1
server: {wrkers: 2}
providers: {a: {kind: opneai}}
use_cases: {x: {targets: [b/c]}}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, and an environment that says nothing about settings."""
    for name in list(os.environ):
        if SETTINGS_VARIABLES.match(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process; what is left of it is ended."""
    command = [*PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def line_of(stream: IO[str] | None) -> str:
    """The next line of a process, which says one at a time and then waits for us."""
    assert stream is not None
    assert select.select([stream], [], [], WAIT_S)[0], f"nothing said within {WAIT_S:g} s"
    return stream.readline()


@pytest.fixture
def busy_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.fixture
async def db(place: Path) -> Path:
    """Six requests, two of them refused and two answered at the second try, where a gateway would keep them."""
    journal = open_journal(place / ".edgegw")
    for number in range(6):
        if number in (2, 4):
            refused = make_exchange(number, tenant="other")
            conclude(refused)
            journal.end(refused)
        else:
            play(journal, number, failures=number % 2)
    journal.close()
    store = sqlite_store(place / ".edgegw" / "edgegw.db")
    await ship_all(place / ".edgegw", store)
    await store.close()
    return place / ".edgegw" / "edgegw.db"


# -- the whole --


def all_commands() -> dict[str, click.Command]:
    """By what one types, those below a group as well."""
    found: dict[str, click.Command] = {}
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": each for below, each in command.commands.items()}
        else:
            found[name] = command
    return found


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_every_option_says_what_it_is(name: str) -> None:
    options = [option for option in all_commands()[name].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []
    asked = run(*name.split(), "-h")
    assert asked.exit_code == 0
    assert asked.output.startswith(f"Usage: main {name} [OPTIONS]")


def test_the_list_of_commands_is_not_cut_short() -> None:
    for group in ([], ["keys"]):
        assert "..." not in run(*group, "--help").output.partition("Commands:")[2]
    listed = run("--help").output
    assert all(f"  {name} " in listed for name in main.commands)


def test_version_and_unknown_commands() -> None:
    assert run("--version").output == f"edgegw, version {__version__}\n"
    unknown = run("sevre")
    assert (unknown.exit_code, "No such command 'sevre'" in unknown.stderr) == (2, True)


# -- settings --


def test_check_prints_what_is_in_force_and_no_key(place: Path) -> None:
    (place / "edgegw.yaml").write_text(BASE)
    of_the_file = run("check")
    assert (of_the_file.exit_code, of_the_file.stderr) == (0, "")
    assert of_the_file.stdout.startswith("# from edgegw.yaml\n")
    assert load_text(of_the_file.stdout, {}).providers == load_text(BASE, {}).providers

    (place / "edgegw.yaml").unlink()
    of_the_environment = CliRunner(env={"OPENAI_API_KEY": "sk-very-secret"}).invoke(main, ["check"])
    assert yaml.safe_load(of_the_environment.stdout)["providers"]["openai"]["api_key"] == "***"
    assert "sk-very-secret" not in of_the_environment.output


def test_which_settings_are_read(place: Path) -> None:
    for name in ("here", "told", "asked"):
        (place / f"{name}.yaml").write_text(BASE)
    (place / "here.yaml").rename(place / "edgegw.yaml")
    told = {"EDGEGW_CONFIG": "told.yaml"}
    sources = [
        CliRunner(env=env).invoke(main, ["check", *arguments]).stdout.splitlines()[0]
        for env, arguments in (({}, []), (told, []), (told, ["--config", "asked.yaml"]))
    ]
    assert sources == ["# from edgegw.yaml", "# from told.yaml", "# from asked.yaml"]


@pytest.mark.parametrize("command", ["check", "serve", "requests", "attempts", "usage", "tail"])
def test_all_mistakes_at_once_and_exit_2(place: Path, command: str) -> None:
    (place / "bad.yaml").write_text(BROKEN)
    refused = run(command, "-c", "bad.yaml")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert [line.split(": ")[:2] for line in refused.stderr.splitlines()] == [
        ["bad.yaml:2:10", "server.wrkers"],
        ["bad.yaml:3:23", "providers.a.kind"],
        ["bad.yaml:4:27", "use_cases.x.targets[0]"],
    ]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_missing_file(command: str) -> None:
    refused = run(command, "-c", "nowhere.yaml")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "nowhere.yaml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("command", ["check", "serve"])
def test_without_a_key_it_says_what_to_do(command: str) -> None:
    refused = run(command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "OPENAI_API_KEY" in refused.stderr
    assert "ANTHROPIC_API_KEY" in refused.stderr
    assert "edgegw demo" in refused.stderr


def test_what_is_hardly_meant_is_a_warning(place: Path) -> None:
    (place / "edgegw.yaml").write_text(BASE.replace("127.0.0.1:1", "models.example"))
    checked = run("check")
    assert checked.exit_code == 0
    assert checked.stderr.startswith("warning: providers.local.base_url: http:// to another machine")
    assert yaml.safe_load(checked.stdout)["version"] == 1


def test_schema_is_a_json_schema() -> None:
    schema = json.loads(run("schema").output)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"server", "providers", "use_cases", "models", "default", "limits", "storage"} <= schema["properties"].keys()


# -- rows --


def test_requests_as_a_table_the_latest_last(db: Path) -> None:
    listed = run("requests")
    head, *rows = listed.stdout.splitlines()
    assert (listed.exit_code, head.split()[:3]) == (0, ["TIME", "(UTC)", "TENANT"])
    assert [row.split()[-1] for row in rows] == [make_exchange(number).id for number in range(6)]


def test_requests_as_json_and_chosen(db: Path) -> None:
    def numbers(*arguments: str) -> list[int]:
        listed = run("requests", "--json", *arguments)
        assert listed.exit_code == 0, listed.output
        known = {make_exchange(number).id: number for number in range(6)}
        return [known[json.loads(line)["id"]] for line in listed.stdout.splitlines()]

    assert numbers() == [0, 1, 2, 3, 4, 5]
    assert numbers("--limit", "2") == [4, 5]
    assert numbers("--tenant", "other") == numbers("--state", "refused") == [2, 4]
    assert numbers("--tenant", "nobody") == numbers("--since", "1m") == []
    begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(WALL_NS // 10**9))
    assert numbers("--since", begun) == [0, 1, 2, 3, 4, 5]


def test_attempts_in_the_order_of_their_requests(db: Path) -> None:
    rows = [json.loads(line) for line in run("attempts", "--json").stdout.splitlines()]
    expected = [(0, 1), (1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2)]
    assert [(row["request_id"], row["number"]) for row in rows] == [(make_exchange(n).id, at) for n, at in expected]
    one = run("attempts", "--request", make_exchange(3).id)
    assert [row.split()[3] for row in one.stdout.splitlines()[1:]] == ["1", "2"]


def test_rows_chosen_by_what_they_hold(db: Path) -> None:
    def count(command: str, *arguments: str) -> int:
        listed = run(command, "--csv", *arguments)
        assert listed.exit_code == 0, listed.output
        return len(listed.stdout.splitlines()) - 1

    assert count("requests", "--provider", "anthropic", "--status", "200") == 3
    assert count("requests", "--use-case", "support_summary", "--until", "1m") == 6
    assert count("requests", "--error", "model_not_found") == count("tail", "--state", "refused") == 2
    nobody = ("--session", "--user", "--key", "--model")
    assert [count("requests", option, "nobody") for option in nobody] == [0, 0, 0, 0]
    assert count("attempts", "--kind", "fallback") == count("tail", "--attempts", "--error", "upstream_error") == 3
    assert count("attempts", "--tenant", "other") == 0
    refused = run("tail", "--attempts", "--state", "complete")
    assert (refused.exit_code, "--state is for requests" in refused.stderr) == (2, True)


def test_usage_as_a_table_with_its_total_and_the_hours_it_is_of(db: Path) -> None:
    begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(WALL_NS // 10**9))
    told = run("usage", "--since", begun, "--until", begun, "--by", "tenant,day")
    assert told.exit_code == 0, told.output
    span, head, *rows = told.stdout.splitlines()
    assert span == "requests that began from 2025-06-15 15:00 until 2025-06-15 16:00 UTC, whole hours"
    assert head.split()[:4] == ["TENANT", "DAY", "REQUESTS", "FAILED"]
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["acme", "other", "total"]
    assert [row[-12:-9] for row in cells[:2]] == [["2025-06-15", "4", "0"], ["2025-06-15", "2", "2"]]
    assert cells[2][1:5] == ["-", "6", "2", "7"]
    assert cells[2][-3] == "$0"


def test_usage_for_programs(db: Path) -> None:
    since = ("--since", "2025-06-15")
    lines = [json.loads(line) for line in run("usage", "--json", "--by", "provider,hour", *since).stdout.splitlines()]
    assert {(line["provider"], line["hour"], line["requests"], line["input_tokens"]) for line in lines} == {
        ("openai", "2025-06-15T15:00Z", 1, 10),
        ("anthropic", "2025-06-15T15:00Z", 3, 30),
        ("", "2025-06-15T15:00Z", 2, 0),
    }
    table = run("usage", "--csv", "--by", "tenant", *since)
    assert table.stdout.splitlines()[0].startswith("tenant,requests,failed,attempts,input_tokens")
    assert "whole hours" in table.stderr
    assert table.stdout.splitlines()[1].startswith("acme,4,0,7,40")


def test_usage_by_what_nobody_knows_says_what_there_is() -> None:
    refused = run("usage", "--by", "colour")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "not among tenant, use_case, key, provider, model, day, hour: colour" in refused.stderr


def test_rows_of_a_postgresql(postgres: Database) -> None:
    async def write() -> None:
        store = PostgresStore(
            parse_postgres(postgres.dsn), migrations("postgres"), ManualClock(wall_ns=WALL_NS), JOURNAL_ID
        )
        await store.write(a_batch(range(3)), Checkpoint())
        await store.close()

    asyncio.run(write())
    listed = run("requests", "--db", postgres.dsn, "--json")
    assert (listed.exit_code, len(listed.stdout.splitlines())) == (0, 3), listed.output
    named = CliRunner(env={"DATABASE_URL": postgres.dsn}).invoke(main, ["attempts", "--csv"])
    assert (named.exit_code, len(named.stdout.splitlines())) == (0, 4), named.output
    summed = run("usage", "--db", postgres.dsn, "--since", "2025-06-01", "--by", "day,tenant")
    assert summed.stdout.splitlines()[-1].split()[:3] == ["total", "-", "3"], summed.output
    wrong = run("requests", "--db", "postgresql://me:s3cret@/")
    assert (wrong.exit_code, "s3cret" in wrong.output, "--db" in wrong.stderr) == (2, False, True)


def test_rows_need_no_settings_but_a_file(db: Path) -> None:
    db.rename("elsewhere.db")
    assert len(run("requests", "--db", "elsewhere.db").stdout.splitlines()) == 7


@pytest.mark.parametrize("keys", [{}, {"OPENAI_API_KEY": ""}, {"ANTHROPIC_API_KEY": "k"}])
def test_rows_need_no_key_and_are_where_the_environment_says(db: Path, keys: dict[str, str]) -> None:
    def listed(**environ: str) -> Result:
        return CliRunner(env=keys | environ).invoke(main, ["requests"])

    moved = db.parent.rename("state")
    assert "no ledger at .edgegw/edgegw.db" in listed().stderr
    assert len(listed(EDGEGW_STATE_DIR="state").stdout.splitlines()) == 7
    (moved / "edgegw.db").rename("rows.db")
    assert len(listed(DATABASE_URL="sqlite:///rows.db").stdout.splitlines()) == 7
    wrong = listed(DATABASE_URL="mysql://h/d")
    assert (wrong.exit_code, "DATABASE_URL" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", ["requests", "attempts", "usage", "tail", "tail -f"])
def test_rows_that_cannot_be_read(place: Path, command: str) -> None:
    missing = run(*command.split())
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.startswith("Error: no ledger at .edgegw/edgegw.db")
    (place / "text.db").write_text("not a database")
    broken = run(*command.split(), "--db", "text.db")
    assert (broken.exit_code, broken.stderr) == (
        1,
        "Error: cannot read the ledger at text.db: file is not a database\n",
    )


@pytest.mark.parametrize("command", ["requests", "attempts"])
@pytest.mark.parametrize(
    "option",
    [
        *(("--since", "yesterday"), ("--since", "5 m"), ("--until", "10:00"), ("--limit", "0"), ("--limit", "many")),
        *(("--request", "7"), ("--status", "two hundred"), ("--json", "--csv")),
    ],
)
def test_options_that_mean_nothing(db: Path, command: str, option: tuple[str, str]) -> None:
    refused = run(command, *option)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert option[0] in refused.stderr
    assert option[1] in refused.stderr


def test_follow_goes_on_with_what_comes_until_it_is_interrupted(db: Path) -> None:
    with process("tail", "-f", "--json", "--limit", "1") as follower:
        assert json.loads(line_of(follower.stdout))["id"] == make_exchange(5).id
        with closing(sqlite3.connect(db)) as books, books:
            columns = [row[1] for row in books.execute("PRAGMA table_info(requests)") if row[1] != "id"]
            names = ", ".join(columns)
            books.execute(f"INSERT INTO requests (id, {names}) SELECT 'late', {names} FROM requests LIMIT 1")
        assert json.loads(line_of(follower.stdout))["id"] == "late"
        follower.send_signal(signal.SIGINT)
        assert (follower.wait(WAIT_S), follower.communicate()[1]) == (0, "")


@pytest.mark.parametrize("options", [(), ("--json",), ("-f",)])
def test_a_reader_that_has_seen_enough_gets_no_traceback(db: Path, options: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen([*PROGRAM, "tail", *options], stdout=writing, stderr=subprocess.PIPE, text=True) as lister:
        os.close(writing)
        assert lister.communicate(timeout=WAIT_S)[1] == ""
    assert lister.returncode == 1


# -- the simulator --


def test_simulate_until_it_is_told_to_go() -> None:
    with process("simulate", "--port", "0", "--seed", "7") as simulator:
        said = line_of(simulator.stdout)
        url = re.match(r"simulator on (http://127\.0\.0\.1:\d+) ", said)
        assert url is not None, said
        answer = ask(url[1], "GET", "/simulator/help")
        assert (answer.status, b"error-event" in answer.body) == (200, True)
        simulator.terminate()
        assert (simulator.wait(WAIT_S), simulator.communicate()) == (0, ("", ""))


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--latency", "soon"), "not a duration (50ms, 2s, 1m): 'soon'"),
        (("--pace", "-1s"), "not a duration (50ms, 2s, 1m): '-1s'"),
        (("--rules", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory"),
        (("--rules", "rules.yaml"), "rules.yaml: rule 1"),
        (("--port", "70000"), "0<=x<=65535"),
        (("--tokens", "0"), "x>=1"),
    ],
)
def test_simulate_with_what_cannot_be(place: Path, option: tuple[str, str], complaint: str) -> None:
    (place / "rules.yaml").write_text("- {fault: cut-3, fualt: 1}\n")
    refused = run("simulate", *option)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert complaint in refused.stderr


def test_simulate_on_a_busy_port(busy_port: int) -> None:
    refused = run("simulate", "--port", str(busy_port))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == f"Error: cannot listen on 127.0.0.1:{busy_port}: another program listens there\n"


# -- the gateway --


def settings_on(place: Path, listen: int, admin: int) -> None:
    server = {"listen": f"127.0.0.1:{listen}", "admin": f"127.0.0.1:{admin}"}
    (place / "edgegw.yaml").write_text(json.dumps({**yaml.safe_load(BASE), "server": server}))


def test_serve_on_a_busy_port(place: Path, busy_port: int) -> None:
    settings_on(place, busy_port, free_port())
    with process("serve") as gateway:
        assert gateway.wait(WAIT_S) == 1
        said = gateway.communicate()[1]
    assert said.endswith(f"edgegw: cannot listen on 127.0.0.1:{busy_port}: another program listens there\n")


@pytest.mark.system
def test_serve_says_where_and_stops_when_told(place: Path) -> None:
    listen, admin = free_port(), free_port()
    settings_on(place, listen, admin)
    with process("serve") as gateway:
        assert line_of(gateway.stderr) == (
            f"edgegw {__version__}: clients on http://127.0.0.1:{listen}, probes and metrics on "
            f"http://127.0.0.1:{admin}, 1 worker, settings from edgegw.yaml\n"
        )
        eventually("a ready gateway", lambda: ready(admin), bool, WAIT_S)
        gateway.terminate()
        assert (gateway.wait(WAIT_S), gateway.communicate()) == (0, ("", ""))


def ready(admin: int) -> bool:
    try:
        return ask(f"http://127.0.0.1:{admin}", "GET", "/readyz").status == 200
    except OSError:
        return False


# -- the demo --


@pytest.mark.system
def test_the_demo_shows_the_fallback_and_ends(busy_port: int) -> None:
    with process("demo", "--once", "--port", str(busy_port)) as tour:
        said, complained = tour.communicate(timeout=WAIT_S)
    assert (tour.returncode, complained) == (0, "")
    assert said.startswith(f"Port {busy_port} is taken; the gateway gets another one.\n")
    requests, attempts = said.partition("\n4. ")[2].split("\n\n")[1:3]
    assert [re.split(r" {2,}", row)[5] for row in requests.splitlines()[1:]] == ["complete"] * 3
    shown = [re.split(r" {2,}", row)[2:7] for row in attempts.splitlines()[1:]]
    assert [[number, kind, *target] for number, kind, _tenant, *target in shown] == [
        ["1", "primary", "primary/gpt-5-mini", "200"],
        ["1", "primary", "primary/gpt-5", "200"],
        ["1", "primary", "primary/sim-500", "500"],
        ["2", "retry", "primary/sim-500", "500"],
        ["3", "fallback", "second/claude-haiku-4-5", "200"],
    ]
    assert "x-edgegw-provider: second\n" in said


def test_the_demo_tells_why_a_gateway_did_not_start(place: Path) -> None:
    log = place / "log"
    log.write_text("its last words")
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait(WAIT_S)
    with pytest.raises(demo.DemoError, match="its last words"):
        demo._wait_until_ready(free_port(), [dead], log)


def test_what_the_demo_shows_is_what_a_shell_would_send() -> None:
    body = {"model": "smart", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    shown = demo._curl(8080, body)
    echoed = subprocess.run(
        ["sh", "-c", shown.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True
    )
    options, url, flag, *data = echoed.stdout.splitlines()
    assert (options, url, flag) == ("-sN", "localhost:8080/v1/chat/completions", "-d")
    assert json.loads("".join(data)) == body
