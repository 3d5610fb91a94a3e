"""Content on real gateways: every mode, every end, and nothing of those who are not captured; processes killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from killing import kill_under_load
from rig import Answer, Gateway, Simulator, StartGateway, ask, eventually, providers

pytestmark = pytest.mark.system

WAIT_S = 15.0
ONCE = {"attempts": 1, "attempts_max": 1}
TENANTS = {"acme": {"capture": "all"}, "faulty": {"capture": "errors"}, "quiet": {"capture": "off"}}


def settings(simulator: Simulator, **capture: Any) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {"sim-*": {"targets": ["sim/*"], "retry": ONCE}},
        "limits": {"tokens_per_minute": 100_000_000},
        "server": {"workers": 2},
        "tenants": TENANTS,
        **({"capture": capture} if capture else {}),
    }


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway) -> Gateway:
    return module_gateways(settings(simulator))


def chat(gateway: Gateway, tenant: str, model: str, text: str, **fields: Any) -> tuple[bytes, Answer]:
    """What was sent, and what came back."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "metadata": {"tenant": tenant}, **fields}
    sent = json.dumps(body).encode()
    return sent, ask(gateway.url, "POST", "/v1/chat/completions", sent)


def kept(gateway: Gateway, request_id: str) -> tuple[bytes, bytes, int, int]:
    """The content of one request, as soon as it is there."""

    def look() -> list[Any]:
        return contents(
            gateway,
            "SELECT request, reply, request_cut, reply_cut FROM request_contents WHERE request_id = ?",
            request_id,
        )

    found: tuple[bytes, bytes, int, int] = eventually(f"content of {request_id}", look, bool, WAIT_S)[0]
    return found


def contents(gateway: Gateway, query: str, *values: object) -> list[Any]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{gateway.state_dir}/edgegw.db?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()
    except sqlite3.OperationalError:
        return []  # not made yet, or locked for this moment


def everything(gateway: Gateway) -> bytes:
    """All that the gateway has written anywhere: rows, logs, journals, files that wait, what it said, its figures."""
    written = b"".join(gateway.written().values())
    metrics = ask(gateway.admin_url, "GET", "/metrics").body + ask(gateway.admin_url, "GET", "/readyz").body
    return written + gateway.running.said.encode() + metrics


def files(gateway: Gateway) -> list[Path]:
    return [path for path in gateway.written("content") if path.suffix == ".msgpack"]


def waiting(gateway: Gateway) -> int:
    """Requests whose content waits in files."""
    return sum(len(msgspec.msgpack.decode(path.read_bytes())) for path in files(gateway))


def until_shipped(gateway: Gateway) -> None:
    eventually("no file waits", lambda: files(gateway), lambda found: not found, WAIT_S)


# -- modes and ends --


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_what_was_asked_and_answered_is_kept(running: Gateway, stream: bool) -> None:
    sent, answer = chat(running, "acme", "sim-tokens-24", "how are you", stream=stream)
    assert answer.status == 200
    assert kept(running, answer.headers["x-request-id"]) == (sent, answer.body, 0, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_translated_answer_is_kept_as_the_client_saw_it(running: Gateway, stream: bool) -> None:
    sent, answer = chat(running, "acme", "claude/good", "how are you", stream=stream)
    assert answer.status == 200
    assert kept(running, answer.headers["x-request-id"]) == (sent, answer.body, 0, 0)


@pytest.mark.parametrize("tenant", ["acme", "faulty"])
@pytest.mark.parametrize(
    ("model", "fields", "status", "state"),
    [
        ("no-such-model", {}, 404, "refused"),
        ("sim-500", {}, 502, "failed"),
        ("sim-500", {"stream": True}, 502, "failed"),
        ("sim-cut-5", {"stream": True}, 200, None),
        ("sim-error-event-5-slow-10ms", {"stream": True}, 200, None),
    ],
)
def test_what_went_wrong_is_kept(
    running: Gateway, tenant: str, model: str, fields: dict[str, Any], status: int, state: str | None
) -> None:
    sent, answer = chat(running, tenant, model, "what goes wrong", **fields)
    assert answer.status == status
    row = running.row(answer.headers["x-request-id"])
    assert row["state"] != "complete"
    assert state in (None, row["state"])
    assert kept(running, row["id"]) == (sent, answer.body, 0, 0)
    assert b'"error"' in answer.body


def test_errors_alone_are_kept_of_whom_only_errors_are(running: Gateway) -> None:
    canary = "canary-complete-1"
    _, answer = chat(running, "faulty", "sim-tokens-24", canary)
    assert answer.status == 200
    _, failed = chat(running, "faulty", "sim-500-tokens-2", "another")
    kept(running, failed.headers["x-request-id"])
    assert not contents(running, "SELECT 1 FROM request_contents WHERE request_id = ?", answer.headers["x-request-id"])
    assert canary.encode() not in everything(running)


@pytest.mark.parametrize("tenant", ["quiet", "nobody-said-anything"])
def test_of_a_tenant_that_is_off_nothing_is_written_anywhere(running: Gateway, tenant: str) -> None:
    canary = f"canary-{tenant}-4711"
    answers = [
        chat(running, tenant, model, canary, stream=stream)[1]
        for stream in (False, True)
        for model in ("sim-tokens-24", "sim-500-tokens-3", "no-such-model", "sim-cut-5-tokens-9", "claude/good")
    ]
    assert canary.encode() in answers[0].body  # the simulator says it again
    ask(running.url, "POST", "/v1/chat/completions", b'{"metadata": {"tenant": "acme"}, ' + canary.encode())
    marker, shown = chat(running, "acme", "sim-tokens-24", "after it")
    kept(running, shown.headers["x-request-id"])
    for answer in answers:
        running.row(answer.headers["x-request-id"])
    assert canary.encode() not in everything(running)
    assert b"after it" in marker


def test_a_client_that_leaves_has_left_what_it_was_sent(running: Gateway) -> None:
    body = json.dumps(
        {
            "model": "sim-slow-50ms-tokens-1000",
            "stream": True,
            "messages": [{"role": "user", "content": "leaving soon"}],
            "metadata": {"tenant": "faulty"},
        }
    ).encode()
    with connected(running) as sock:
        sock.sendall(post(body))
        heard = b""
        while heard.count(b"data: ") < 3:
            heard += sock.recv(65536)
    head = heard.partition(b"\r\n\r\n")[0].lower()
    request_id = head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    prompt, reply, _, _ = kept(running, request_id)
    assert prompt == body
    assert reply.count(b"data: ") >= 3
    assert running.row(request_id)["state"] == "client_gone"


def test_a_client_of_http_1_0_reads_no_chunks(running: Gateway) -> None:
    body = json.dumps(
        {
            "model": "sim-tokens-24",
            "stream": True,
            "messages": [{"role": "user", "content": "old"}],
            "metadata": {"tenant": "acme"},
        }
    ).encode()
    heard = b""
    with connected(running) as sock:
        sock.sendall(post(body, version="1.0"))
        while data := sock.recv(65536):
            heard += data
    head, _, reply = heard.partition(b"\r\n\r\n")
    request_id = head.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    assert kept(running, request_id) == (body, reply, 0, 0)
    assert reply.endswith(b"data: [DONE]\n\n")


def test_two_requests_on_one_connection_are_not_mixed_up(running: Gateway) -> None:
    """The second is of a tenant that is off."""
    texts = {"acme": "canary-first-77", "quiet": "canary-second-77"}
    heard = b""
    with connected(running) as sock:
        for number, (tenant, text) in enumerate(texts.items(), 1):
            body = {
                "model": "sim-tokens-24",
                "messages": [{"role": "user", "content": text}],
                "metadata": {"tenant": tenant},
            }
            sock.sendall(post(json.dumps(body).encode()))
            while heard.count(b'"total_tokens"') < number:
                heard += sock.recv(65536)
    ids = [part.partition(b"\r\n")[0].decode() for part in heard.lower().split(b"x-request-id: ")[1:]]
    assert texts["acme"].encode() in kept(running, ids[0])[1]
    running.row(ids[1])
    assert texts["quiet"].encode() not in everything(running)


def post(body: bytes, version: str = "1.1") -> bytes:
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=10) as sock:
        yield sock


def test_what_is_too_long_is_cut(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway(settings(simulator, mode="all", body_max="1KiB"))
    sent, answer = chat(running, "other", "sim-tokens-400", "x" * 5000, stream=True)
    prompt, reply, prompt_cut, reply_cut = kept(running, answer.headers["x-request-id"])
    assert (prompt, prompt_cut, reply_cut) == (sent[:1024], 1, 1)
    assert answer.body.startswith(reply)
    assert 900 < len(reply) <= 1024


def test_a_request_that_is_larger_than_what_may_be_pending_is_kept_as_far_as_it_goes(running: Gateway) -> None:
    sent, answer = chat(running, "acme", "sim-tokens-24", "x" * 9_000_000)
    assert answer.status == 200
    assert kept(running, answer.headers["x-request-id"]) == (sent[: 64 * 1024], answer.body, 1, 0)


def test_a_sample_is_a_sample(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway(settings(simulator, mode="sampled", sample="50%"))
    answers = [chat(running, "other", "sim-tokens-24", "hello")[1] for _ in range(40)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    expected = {id_ for id_ in ids if int(id_[-8:], 16) < 1 << 31}

    def look() -> set[str]:
        return {id_ for (id_,) in contents(running, "SELECT request_id FROM request_contents")}

    assert 5 < len(expected) < 35
    assert eventually("the sample", look, lambda found: len(found) >= len(expected), WAIT_S) == expected


def test_a_tenant_that_is_switched_off_stops_at_the_reload(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway(settings(simulator))
    _, answer = chat(running, "acme", "sim-tokens-24", "before")
    kept(running, answer.headers["x-request-id"])
    file = running.state_dir.parent / "edgegw.yaml"
    file.write_text(json.dumps({**running.settings, "tenants": {}}))
    workers = running.worker_pids()
    os.kill(running.pid, signal.SIGHUP)
    gone = lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists()]  # noqa: E731
    eventually("the old workers are gone", gone, lambda left: not left, WAIT_S)
    canary = "canary-after-reload"
    for _ in range(4):
        _, answer = chat(running, "acme", "sim-tokens-24", canary)
        running.row(answer.headers["x-request-id"])
    assert canary.encode() not in everything(running)


# -- when things break --


@pytest.fixture
def captured(simulator: Simulator, gateway: StartGateway) -> Gateway:
    return gateway(settings(simulator, waiting="1MiB"))


def test_the_database_away_and_back(captured: Gateway) -> None:
    sent, answer = chat(captured, "acme", "sim-tokens-24", "before")
    kept(captured, answer.headers["x-request-id"])
    with contextlib.closing(sqlite3.connect(f"{captured.state_dir}/edgegw.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        sent, answer = chat(captured, "acme", "sim-tokens-24", "canary-meanwhile")
        assert answer.status == 200
        details = eventually(
            "failing is told",
            lambda: ask(captured.admin_url, "GET", "/readyz").json["content"],
            lambda found: found["state"] == "failing",
            WAIT_S,
        )
        assert details["waiting"] == 1
        assert len(files(captured)) == 1
        other.execute("ROLLBACK")
    assert kept(captured, answer.headers["x-request-id"])[:2] == (sent, answer.body)
    until_shipped(captured)
    assert "canary" not in captured.running.said


def test_the_control_process_killed(captured: Gateway) -> None:
    """Frozen, so that files wait; killed; the next one ships them, once each."""
    pid = captured.control_pid()
    os.kill(pid, signal.SIGSTOP)
    answers = [
        chat(captured, "acme", "sim-tokens-24", f"number {number}", stream=bool(number % 2)) for number in range(20)
    ]
    eventually("files wait", lambda: waiting(captured), lambda found: found == 20, WAIT_S)
    os.kill(pid, signal.SIGKILL)
    for sent, answer in answers:
        assert kept(captured, answer.headers["x-request-id"])[:2] == (sent, answer.body)
    until_shipped(captured)
    assert contents(captured, "SELECT count(*) FROM request_contents") == [(20,)]


def test_a_worker_killed(captured: Gateway) -> None:
    """What had ended before is kept; of what was open nothing, and the file is whole or not there."""
    sent, answer = chat(captured, "acme", "sim-tokens-24", "ended")
    kept(captured, answer.headers["x-request-id"])
    body = {
        "model": "sim-slow-50ms-tokens-1000",
        "stream": True,
        "messages": [{"role": "user", "content": "open when it died"}],
        "metadata": {"tenant": "acme"},
    }
    with connected(captured) as sock:
        sock.sendall(post(json.dumps(body).encode()))
        heard = b""
        while heard.count(b"data: ") < 2:
            heard += sock.recv(65536)
        for pid in captured.worker_pids():
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass
    request_id = heard.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    assert captured.row(request_id)["state"] == "interrupted"
    sent, answer = after(captured)
    assert kept(captured, answer.headers["x-request-id"])[:2] == (sent, answer.body)
    assert not contents(captured, "SELECT 1 FROM request_contents WHERE request_id = ?", request_id)
    assert b"open when it died" not in everything(captured)


def test_processes_killed_under_load(captured: Gateway) -> None:
    """Workers and control process, again and again: whatever is kept is what the client was sent, and all of what was
    answered outside the deaths is kept."""
    heard: dict[str, tuple[bytes, bytes]] = {}

    def one(client: int, turn: int) -> None:
        sent, answer = chat(captured, "acme", "sim-tokens-24", f"{client}-{turn}", stream=bool(turn % 2))
        heard[answer.headers["x-request-id"]] = sent, answer.body

    kill_under_load(captured, one, deaths=8)
    until_shipped(captured)
    found = {id_: both for id_, *both in contents(captured, "SELECT request_id, request, reply FROM request_contents")}
    whole = {id_: list(both) for id_, both in heard.items() if id_ in found and found[id_] == list(both)}
    different = [id_ for id_ in heard if id_ in found and id_ not in whole]
    assert different == []
    missing = len(heard) - len(whole)
    assert missing <= 8 * 8  # what workers had just ended when they were killed: some milliseconds' worth
    metrics = ask(captured.admin_url, "GET", "/metrics").body.decode()
    assert "edgegw_content_lost_total 0\n" in metrics


def after(gateway: Gateway) -> tuple[bytes, Answer]:
    """A request as soon as somebody serves again."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            return chat(gateway, "acme", "sim-tokens-24", "after it")
        except OSError:
            if time.monotonic() > until_s:
                raise


def test_more_than_may_wait_is_dropped_and_no_request_with_it(captured: Gateway) -> None:
    """A half of 1 MiB for each of two workers, 68 KiB for each exchange."""
    pid = captured.control_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        answers = [chat(captured, "acme", "sim-tokens-2", "x" * 70_000)[1] for _ in range(30)]
        assert {answer.status for answer in answers} == {200}
        size = eventually(
            "files wait",
            lambda: sum(path.stat().st_size for path in files(captured)),
            lambda found: found > 500_000,
            WAIT_S,
        )
        assert size <= 1 << 20
    finally:
        os.kill(pid, signal.SIGCONT)
    until_shipped(captured)
    stored = eventually(
        "stored",
        lambda: contents(captured, "SELECT count(*) FROM request_contents")[0][0],
        lambda found: found > 0,
        WAIT_S,
    )

    def dropped() -> float:
        text = ask(captured.admin_url, "GET", "/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("edgegw_content_dropped{")]
        return sum(float(line.split()[-1]) for line in lines)

    eventually("what was dropped is counted", dropped, lambda found: found + stored == 30, WAIT_S)
    sent, answer = chat(captured, "acme", "sim-tokens-24", "there is room again")
    assert kept(captured, answer.headers["x-request-id"])[0] == sent


def test_stopping_ships_what_is_there(captured: Gateway) -> None:
    ids = {chat(captured, "acme", "sim-tokens-24", "the last ones")[1].headers["x-request-id"] for _ in range(10)}
    assert captured.stop()[0] == 0
    assert {id_ for (id_,) in contents(captured, "SELECT request_id FROM request_contents")} == ids
    assert files(captured) == []
