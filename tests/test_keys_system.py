"""Keys with real processes: a gateway, the command line beside it, official SDKs, and processes that are killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import anthropic
import openai
import pytest
from rig import REPOSITORY, Answer, Gateway, Row, Simulator, StartGateway, eventually, providers

pytestmark = pytest.mark.system

WITHIN_S = 1.0  # what is promised of a change, once the command has ended; measured in one test
WAIT_S = 15.0
FIXED = "a-key-of-the-settings"
OTHERS = "a-key-of-somebody-else"


def digest(credential: str) -> str:
    return f"sha256:{sha256(credential.encode()).hexdigest()}"


def settings(simulator: Simulator, **more: Any) -> dict[str, Any]:
    return {
        "auth": "keys",
        "providers": providers(simulator),
        "models": {
            "smart": {"targets": ["sim/gpt-5-mini"]},
            "private": {"targets": ["claude/claude-haiku-4-5"]},
            "gpt-*": {"targets": ["sim/*"]},
        },
        "use_cases": {"summary": {"targets": ["sim/gpt-5-mini"]}, "hidden": {"targets": ["sim/gpt-5"]}},
        "default": {"targets": ["sim/gpt-5-mini"]},
        "limits": {"tokens_per_minute": 10_000_000},
        "tenants": {
            "fixed": {"keys": {"ci": digest(FIXED)}},
            "others": {"keys": {"own": digest(OTHERS)}, "limits": {"tokens_per_minute": 7_777_777}},
            "narrow": {"allow": {"routes": ["summary", "smart"], "models": ["gpt-5*"]}},
        },
        **more,
    }


@dataclass(slots=True)
class House:
    """A gateway and what its operator types."""

    gateway: Gateway
    db: str | None = None  # where keys are, if not in the state directory

    def keys(self, *arguments: str) -> str:
        """What `edgegw keys …` prints."""
        command = [
            sys.executable,
            "-m",
            "edgegw",
            "keys",
            *arguments,
            "--db",
            self.db or str(self.gateway.state_dir / "edgegw.db"),
        ]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def create(self, tenant: str, *arguments: str) -> str:
        """A key that every worker knows."""
        credential = self.keys("create", "--tenant", tenant, *arguments)
        self.in_force(credential, 200)
        return credential

    def id_of(self, credential: str) -> str:
        listed = [json.loads(line) for line in self.keys("list", "--json").splitlines()]
        (id_,) = [key["id"] for key in listed if key["prefix"] == credential[:12]]
        assert isinstance(id_, str)
        return id_

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own: without `authorization` there is none."""
        connection = http.client.HTTPConnection(urlsplit(self.gateway.url).netloc, timeout=WAIT_S)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, None if body is None else json.dumps(body), named)
            reply = connection.getresponse()
            return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def chat(self, credential: str, model: str | None = "smart", **fields: Any) -> Answer:
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
        if model is not None:
            body["model"] = model
        return self.ask("POST", "/v1/chat/completions", body, authorization=f"Bearer {credential}")

    def status(self, credential: str) -> int:
        return self.ask("GET", "/v1/models", authorization=f"Bearer {credential}").status

    def in_force(self, credential: str, status: int, within_s: float = WAIT_S) -> None:
        """Every worker answers so: connections are spread over them by chance, so several in a row must agree."""
        eventually(
            f"{status} from all workers",
            lambda: {self.status(credential) for _ in range(12)},
            lambda seen: seen == {status},
            within_s,
        )


@pytest.fixture(scope="module")
def house(simulator: Simulator, module_gateways: StartGateway) -> House:
    return House(module_gateways(settings(simulator, server={"workers": 2})))


# -- using them --


def test_the_openai_sdk_with_a_key(house: House, simulator: Simulator) -> None:
    simulator.reset()
    key = house.create("acme", "--name", "sdk")
    with openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=key, max_retries=0) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(model="smart", messages=[{"role": "user", "content": "Hi"}])
        assert raw.parse().choices[0].message.content
        row = house.gateway.row(raw.headers["x-request-id"])
        assert (row["tenant"], row["key_id"], row["state"]) == ("acme", house.id_of(key), "complete")
        assert {model.id for model in sdk.models.list()} >= {"smart", "private"}
        stream = sdk.chat.completions.create(model="smart", messages=[{"role": "user", "content": "Hi"}], stream=True)
        assert list(stream)[-1].choices[0].finish_reason == "stop"
    with openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key="egw_wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as refused:
            sdk.chat.completions.create(model="smart", messages=[{"role": "user", "content": "Hi"}])
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            sdk.models.list()
    seen = json.dumps(simulator.seen("gpt-5-mini"))
    assert len(simulator.seen("gpt-5-mini")) == 2, "who was refused reached no provider"
    assert key not in seen
    assert "egw_" not in seen


def test_the_anthropic_sdk_with_a_key_in_either_header(house: House) -> None:
    """Which of the two an `api_key` becomes differs between versions of the SDK (2.12 has it as Bearer), and a base
    client of one's own may add the other."""
    key = house.create("acme")
    for headers in ({}, {"x-api-key": key}, {"x-api-key": key, "authorization": f"Bearer {key}"}):
        with anthropic.Anthropic(
            base_url=house.gateway.url, api_key=key, max_retries=0, default_headers=headers
        ) as sdk:
            answer = sdk.get("/v1/models", cast_to=object)
        assert isinstance(answer, dict)
        assert answer["object"] == "list"
    assert house.ask("GET", "/v1/models", x_api_key=key).status == 200


def test_how_it_is_refused(house: House) -> None:
    key = house.create("acme")
    for headers, told in (
        ({}, "Send it as"),
        ({"authorization": f"Basic {key}"}, "holds no key"),
        ({"authorization": f"Bearer {key}", "x_api_key": FIXED}, "different keys"),
        ({"x_api_key": key[:-1]}, "not valid"),
    ):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            refused = house.ask(method, path, {"model": "smart"} if method == "POST" else None, **headers)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.error["code"] == "invalid_api_key"
            assert told in refused.error["message"]
            row = house.gateway.row(refused.headers["x-request-id"])
            assert (row["tenant"], row["key_id"], row["error_kind"], row["attempts"]) == ("", None, "unauthorized", 0)
    both = house.ask("HEAD", "/v1/models", authorization=f"Bearer {key}", x_api_key=key)
    assert (both.status, both.body) == (200, b"")
    assert house.ask("HEAD", "/v1/models").status == 401
    assert house.ask("GET", "/nowhere").status == 404


def test_a_stranger_cannot_make_us_take_a_body(house: House) -> None:
    """The refusal comes at the head: nothing of the body was sent, and nothing of it is asked for."""
    host, port = urlsplit(house.gateway.url).netloc.split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\nexpect: 100-continue\r\n"
    for key in (b"", b"x-api-key: egw_wrong\r\n"):
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            client.sendall(head + key + b"\r\n")
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer
        assert b"100 Continue" not in answer


def test_a_row_has_the_tenant_of_a_valid_key_whatever_its_body(house: House) -> None:
    refused = house.ask("POST", "/v1/chat/completions", ["no object"], authorization=f"Bearer {FIXED}")
    assert refused.status == 400
    row = house.gateway.row(refused.headers["x-request-id"])
    assert (row["tenant"], row["key_id"]) == ("fixed", "fixed.ci")


# -- for whom, and where to --


def test_whom_a_key_acts_for(house: House) -> None:
    plain = house.create("acme")
    trusted = house.create("acme", "--acts-for", "beta")
    anybody = house.create("acme", "--acts-for", "*")

    def named(credential: str, tenant: str) -> Answer:
        return house.chat(credential, metadata={"tenant": tenant})

    assert named(plain, "acme").status == 200
    for credential, tenant in ((trusted, "beta"), (anybody, "whoever"), (anybody, "others")):
        answer = named(credential, tenant)
        assert answer.status == 200
        row = house.gateway.row(answer.headers["x-request-id"])
        assert (row["tenant"], row["key_id"]) == (tenant, house.id_of(credential))
    refusals = [named(plain, tenant) for tenant in ("others", "nobody")] + [named(trusted, "others")]
    assert {refused.status for refused in refusals} == {403}
    assert {refused.body for refused in refusals} == {refusals[0].body}, "whether it exists is told nobody"
    assert (refusals[0].error["code"], refusals[0].error["param"]) == ("forbidden", "metadata.tenant")
    by_header = house.ask("GET", "/v1/models", authorization=f"Bearer {plain}", x_edgegw_tenant="others")
    assert (by_header.status, by_header.error["param"]) == (403, "x-edgegw-tenant")
    assert house.ask("GET", "/v1/models", authorization=f"Bearer {trusted}", x_edgegw_tenant="beta").status == 200


def test_what_a_tenant_may_use(house: House, simulator: Simulator) -> None:
    key = house.create("narrow")
    by_use_case = house.chat(key, None, metadata={"use_case": "summary"})
    assert [by_use_case.status, *(house.chat(key, model).status for model in ("smart", "gpt-5-mini"))] == [200] * 3
    simulator.reset()
    for model, use_case, param in (
        ("private", "none", "model"),
        ("sim/gpt-5-mini", "none", "model"),
        ("gpt-4", "none", "model"),
        ("does-not-exist", "none", "model"),
        (None, "none", "model"),
        ("gpt-5-mini", "hidden", "metadata.use_case"),
    ):
        refused = house.chat(key, model, metadata={"use_case": use_case})
        assert (refused.status, refused.error["code"]) == (403, "model_not_allowed"), (model, use_case)
        assert (refused.error["type"], refused.error["param"]) == ("permission_error", param)
        assert "Allowed routes: summary, smart. Allowed models: gpt-5*." in refused.error["message"]
        assert "x-edgegw-route" not in refused.headers
        row = house.gateway.row(refused.headers["x-request-id"])
        assert (row["tenant"], row["state"], row["route"]) == ("narrow", "refused", None)
    assert simulator.stats()["requests"] == 0
    listed = house.ask("GET", "/v1/models", authorization=f"Bearer {key}").json["data"]
    assert [model["id"] for model in listed] == ["smart"]


# -- their lives --


def test_a_key_is_in_force_and_revoked_within_a_second(house: House) -> None:
    took_s: list[float] = []

    def within(credential: str, status: int) -> None:
        started_s = time.monotonic()
        house.in_force(credential, status)
        took_s.append(time.monotonic() - started_s)

    for _ in range(4):
        key = house.keys("create", "--tenant", "acme")
        within(key, 200)
        house.keys("revoke", key[:12])
        within(key, 401)
    assert statistics.median(took_s) <= WITHIN_S, took_s
    house.in_force(FIXED, 200)


def test_a_connection_that_is_kept_is_asked_for_its_key_with_every_request(house: House) -> None:
    key = house.create("acme")
    body = json.dumps({"model": "smart", "messages": [{"role": "user", "content": "Hi"}]})
    connection = http.client.HTTPConnection(urlsplit(house.gateway.url).netloc, timeout=WAIT_S)

    def status() -> int:
        connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})
        with connection.getresponse() as reply:
            reply.read()
            return reply.status

    with contextlib.closing(connection):
        assert [status() for _ in range(3)] == [200, 200, 200]
        house.keys("revoke", key[:12])
        eventually("its end", status, lambda status: status == 401, WITHIN_S + 1)


def test_a_successor_and_the_grace_of_the_old_one(house: House) -> None:
    old = house.create("acme", "--name", "web")
    new = house.keys("rotate", house.id_of(old), "--grace", "3s")
    rotated_s = time.monotonic()
    house.in_force(new, 200)
    assert house.status(old) == 200
    eventually("the end of the grace", lambda: house.status(old), lambda status: status == 401, 5)
    assert time.monotonic() - rotated_s > 1.5
    house.in_force(old, 401)
    house.in_force(new, 200)


def test_a_key_expires_by_itself(house: House) -> None:
    key = house.keys("create", "--tenant", "acme", "--expires", "4s")
    house.in_force(key, 200)
    eventually("its end", lambda: house.status(key), lambda status: status == 401, 6)
    house.in_force(key, 401)


def test_the_limits_of_a_key(house: House) -> None:
    key = house.create("acme", "--requests-per-minute", "2")
    answers = [house.chat(key) for _ in range(4)]
    assert [answer.status for answer in answers].count(200) == 2
    (refused, _) = [answer for answer in answers if answer.status != 200]
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert house.id_of(key) in refused.error["message"]


def test_the_limits_of_a_key_are_changed_while_it_is_in_use(house: House) -> None:
    key = house.create("acme", "--requests-per-minute", "2")
    assert [house.chat(key).status for _ in range(3)] == [200, 200, 429]
    house.keys("limit", key[:12], "--requests-per-minute", "4", "--tokens-per-day", "100000")
    eventually("the new limit", lambda: house.chat(key).status, lambda status: status == 200, WITHIN_S + 1)
    assert [house.chat(key).status for _ in range(2)] == [200, 429], "what was used stays used"
    house.keys("limit", key[:12], "--none", "requests-per-minute")
    eventually("no limit", lambda: house.chat(key).status, lambda status: status == 200, WITHIN_S + 1)
    assert all(house.chat(key).status == 200 for _ in range(5))


# -- processes that come and go --


@pytest.fixture
def own(simulator: Simulator, gateway: StartGateway) -> House:
    """A gateway for a test that kills parts of it."""
    return House(gateway(settings(simulator, server={"workers": 2})))


def kill(pid: int, what: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, what)


def test_a_reload_keeps_the_keys_of_the_database_and_takes_those_of_the_file(own: House) -> None:
    key, gone = own.create("acme"), own.create("acme")
    own.keys("revoke", gone[:12])
    own.in_force(gone, 401)
    file = own.gateway.state_dir.parent / "edgegw.yaml"
    changed = json.loads(file.read_text())
    changed["tenants"]["fixed"]["keys"] = {"next": digest("another-key")}
    file.write_text(json.dumps(changed))
    before = set(own.gateway.worker_pids())
    kill(own.gateway.pid, signal.SIGHUP)
    answers = []
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s and own.status("another-key") != 200:
        answers.append(own.status(key))
    own.in_force("another-key", 200)
    assert not before & set(own.gateway.worker_pids())
    own.in_force(FIXED, 401)
    assert set(answers) <= {200}, "the new workers know the keys before they serve"
    own.in_force(key, 200)
    own.in_force(gone, 401)
    late = own.keys("create", "--tenant", "acme")
    own.in_force(late, 200)


def test_without_the_control_process_workers_go_on_and_then_follow_again(own: House) -> None:
    key, doomed = own.create("acme"), own.create("acme")
    control = own.gateway.control_pid()
    kill(control, signal.SIGSTOP)  # as good as gone, and not replaced
    own.keys("revoke", doomed[:12])
    for credential in (key, doomed, FIXED):
        assert {own.status(credential) for _ in range(10)} == {200}
    kill(control)
    own.in_force(doomed, 401)  # by the next one
    assert own.gateway.control_pid() != control
    own.in_force(key, 200)
    late = own.keys("create", "--tenant", "acme")
    own.in_force(late, 200)


def test_a_control_process_killed_again_and_again_costs_no_answer(own: House) -> None:
    key = own.create("acme")
    for _ in range(3):
        kill(eventually("a control process", own.gateway.control_pid, bool, WAIT_S))
        assert {own.status(key) for _ in range(10)} == {200}
        assert {own.status("egw_unknown") for _ in range(10)} == {401}


def test_a_new_worker_does_not_call_a_key_unknown_before_it_knows_them_all(own: House) -> None:
    key = own.create("acme")
    control = own.gateway.control_pid()
    kill(control, signal.SIGSTOP)
    for pid in own.gateway.worker_pids():
        kill(pid)
    own.in_force(FIXED, 200)  # the settings' keys are known at once
    for credential in (key, "egw_unknown"):
        refused = own.chat(credential)
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert "being loaded" in refused.error["message"]
    assert own.ask("GET", "/v1/models").status == 401
    kill(control, signal.SIGCONT)
    own.in_force(key, 200)
    own.in_force("egw_unknown", 401)


def test_a_database_that_cannot_be_read_is_told_and_survived(own: House) -> None:
    key = own.create("acme")
    readyz = own.gateway.admin_url

    def state() -> str:
        connection = http.client.HTTPConnection(urlsplit(readyz).netloc, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            told = json.loads(connection.getresponse().read())["keys"]["state"]
            assert isinstance(told, str)
            return told

    assert state() == "ok"
    with contextlib.closing(sqlite3.connect(own.gateway.state_dir / "edgegw.db", isolation_level=None)) as rude:
        rude.execute("ALTER TABLE api_keys RENAME TO elsewhere")
        eventually("it to be told", state, lambda told: told == "failing", WAIT_S)
        own.in_force(key, 200)
        own.in_force("egw_unknown", 401)
        rude.execute("ALTER TABLE elsewhere RENAME TO api_keys")
    eventually("it to be well again", state, lambda told: told == "ok", WAIT_S)
    assert own.gateway.running.said.count("keys cannot be read") == 1
    late = own.keys("create", "--tenant", "acme")
    own.in_force(late, 200)


# -- isolation --


CANARIES = 12


@pytest.fixture
def crowded(simulator: Simulator, gateway: StartGateway) -> tuple[House, dict[str, str]]:
    """Tenants with a canary in their name, key, route and limit, each known by nobody else; and their keys."""
    names = [f"canary{number:02d}x" for number in range(CANARIES)]
    own = settings(simulator, server={"workers": 2})
    own["models"] = {f"{name}-model": {"targets": [f"sim/{name}-upstream"]} for name in names}
    own["use_cases"] = {f"{name}-case": {"targets": ["sim/gpt-5-mini"]} for name in names}
    own["tenants"] = {
        name: {
            "limits": {"tokens_per_minute": 1_000_003 + number},
            "allow": {"routes": [f"{name}-model", f"{name}-case", "default"]},
            "keys": {f"{name}-key": digest(f"{name}-credential")},
        }
        for number, name in enumerate(names)
    }
    return House(gateway(own)), {name: f"{name}-credential" for name in names}


def test_nothing_of_one_tenant_appears_for_another(crowded: tuple[House, dict[str, str]]) -> None:
    house, keys = crowded
    dice = random.Random(7)
    names = list(keys)
    asked: dict[str, list[str]] = {name: [] for name in names}
    statuses: set[int] = set()
    for _ in range(300):
        me, other = dice.sample(names, 2)
        wishes: list[Mapping[str, Any]] = [
            {"model": f"{me}-model"},
            {"model": None, "metadata": {"use_case": f"{me}-case", "tenant": me}},
            {"model": None},
            {"model": None, "messages": []},
            {"model": "no-such-model"},
            # What names another one is repeated to who named it, and only what was named.
            {"model": f"{other}-model"},
            {"model": None, "metadata": {"use_case": f"{other}-case"}},
            {"model": None, "metadata": {"tenant": other}},
        ]
        wish = dice.choice(wishes)
        answer = house.chat(keys[me], **wish)
        statuses.add(answer.status)
        asked[me].append(answer.headers["x-request-id"])
        told = f"{answer.headers} {answer.body.decode()}"
        for word in re.findall(r"canary\S+?(?=\")", json.dumps(wish)):
            told = told.replace(word, "")
        foreign = [name for name in names if name != me and name in told]
        assert foreign == [], f"{me} was told of {foreign} when it asked for {wish}"
        limit = answer.headers.get("x-ratelimit-limit-tokens", "none")
        assert limit in ("none", str(1_000_003 + names.index(me))), "another's limit"
    assert statuses == {200, 400, 403}
    for name in names:
        listed = house.ask("GET", "/v1/models", x_api_key=keys[name]).json["data"]
        assert [model["id"] for model in listed] == [f"{name}-model"]
    rows = house.gateway.rows("requests", lambda rows: len(rows) >= sum(map(len, asked.values())))
    by_id: dict[str, Row] = {row["id"]: row for row in rows}
    for name, ids in asked.items():
        assert {(by_id[id_]["tenant"], by_id[id_]["key_id"]) for id_ in ids} == {(name, f"{name}.{name}-key")}
    assert not [row for row in rows if row["tenant"] not in names]


def test_nothing_that_was_written_holds_a_key_or_its_digest(own: House) -> None:
    key = own.create("acme")
    for credential in (key, FIXED, key[:-1] + "x"):
        own.chat(credential)
    own.gateway.rows("requests", lambda rows: len(rows) >= 3)
    code, said = own.gateway.stop()
    assert code == 0
    written = said.encode()
    database = b""
    for path in own.gateway.state_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name.startswith("edgegw.db"):
                database += content
            else:
                written += content
    for credential in (key, FIXED):
        hashed = sha256(credential.encode())
        assert credential.encode() not in written + database
        assert hashed.hexdigest().encode() not in written + database
        assert hashed.digest() not in written
