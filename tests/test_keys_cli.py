"""`edgegw keys`: what is shown once, what is listed, and what it says and exits with when it cannot do it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from settings_cases import BASE

from edgegw.cli import main
from edgegw.keys.command import end_ns
from edgegw.settings import load_text

CREDENTIAL = re.compile(r"egw_[A-Za-z0-9_-]{43}")
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, whose state directory is `.edgegw`, and an environment that says nothing."""
    for name in list(os.environ):
        if re.match(r"EDGEGW_|OPENAI_|ANTHROPIC_|(PORT|REDIS_URL|DATABASE_URL|TOKENS_PER_MINUTE)$", name):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], input=given)


def listed(*arguments: str) -> list[dict[str, Any]]:
    result = run("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def create(*arguments: str) -> tuple[str, dict[str, Any]]:
    """The credential, and what is listed of its key."""
    result = run("create", *arguments)
    assert result.exit_code == 0, result.output
    credential = result.stdout.rstrip("\n")
    (key,) = [key for key in listed() if key["prefix"] == credential[:12]]
    assert key["id"] in result.stderr
    return credential, key


def digest_in(db: Path, key_id: str) -> bytes:
    with closing(sqlite3.connect(db)) as connection:
        (digest,) = connection.execute("SELECT digest FROM api_keys WHERE id = ?", (key_id,)).fetchone()
    assert isinstance(digest, bytes)
    return digest


def test_a_key_is_shown_once_and_kept_nowhere(place: Path) -> None:
    credential, key = create("--tenant", "acme")
    assert CREDENTIAL.fullmatch(credential)
    expected = {"tenant": "acme", "name": "", "expires": None, "revoked": None, "state": "active"}
    assert {name: key[name] for name in expected} == expected
    assert (key["acts_for"], key["limits"]) == ([], {})
    digest = digest_in(place / ".edgegw" / "edgegw.db", key["id"])
    assert digest == sha256(credential.encode()).digest()
    shown = run("list").output + run("list", "--json").output
    assert credential not in shown
    assert digest.hex() not in shown
    assert credential[:12] in shown


def test_all_that_a_key_can_be_given() -> None:
    _, key = create(
        *("-t", "acme", "--name", "ci", "--expires", "2099-01-01", "--acts-for", "beta", "--acts-for", "*"),
        *("--tokens-per-minute", "1", "--requests-per-minute", "2", "--concurrent-requests", "3"),
        *("--tokens-per-day", "4", "--tokens-per-month", "5"),
    )
    assert (key["name"], key["expires"], key["acts_for"]) == ("ci", "2099-01-01T00:00:00Z", ["beta", "*"])
    assert list(key["limits"].values()) == [1, 2, 3, 4, 5]


def test_limits_are_changed_one_by_one() -> None:
    _, key = create("-t", "acme", "--tokens-per-minute", "10", "--tokens-per-day", "20")
    said = run(
        "limit", key["id"], "--tokens-per-minute", "11", "--requests-per-minute", "5", "--none", "tokens-per-day"
    )
    assert said.output == f"{key['id']} of tenant acme: tokens_per_minute: 11, requests_per_minute: 5\n"
    (changed,) = listed()
    assert changed == key | {"limits": {"tokens_per_minute": 11, "requests_per_minute": 5}}
    said = run("limit", key["id"], "--none", "tokens-per-minute", "--none", "requests-per-minute")
    assert said.output == f"{key['id']} of tenant acme: no limits of its own\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 1, "say which limit"),
        (("--none", "tokens"), 2, "not a limit (tokens-per-minute, requests-per-minute"),
        (("--none", "tokens-per-day", "--tokens-per-day", "5"), 2, "is given as well"),
        (("--tokens-per-day", "0"), 2, "not in the range"),
    ],
)
def test_limits_that_cannot_be_changed_so(arguments: tuple[str, ...], code: int, words: str) -> None:
    _, key = create("-t", "acme")
    said = run("limit", key["id"], *arguments)
    assert (said.exit_code, words in said.output) == (code, True), said.output


def test_the_table_and_whose_keys_it_shows() -> None:
    create("-t", "beta", "--name", "web")
    create("-t", "acme")
    head, *rows = run("list").stdout.splitlines()
    assert re.split(r" {2,}", head) == ["ID", "TENANT", "NAME", "PREFIX", "CREATED (UTC)", "EXPIRES (UTC)", "STATE"]
    assert [re.split(r" {2,}", row)[1:3] for row in rows] == [["acme", "-"], ["beta", "web"]]
    assert [key["tenant"] for key in listed("--tenant", "beta")] == ["beta"]
    assert listed("--tenant", "gamma") == []


def test_a_key_is_revoked_by_id_by_prefix_or_by_itself() -> None:
    for way in ("id", "prefix", "key"):
        credential, key = create("-t", "acme")
        which = {"id": key["id"], "prefix": key["prefix"], "key": credential}[way]
        assert run("revoke", which).output == f"{key['id']} of tenant acme is revoked\n"
        again = run("revoke", which)
        assert (again.exit_code, again.output) == (0, f"{key['id']} of tenant acme was revoked before\n")
    assert [key["state"] for key in listed()] == ["revoked"] * 3


def test_a_key_that_is_not_there() -> None:
    create("-t", "acme")
    for which, shown in (
        ("key_nope", "key_nope"),
        ("egw_12345678", "egw_12345678"),
        ("egw_" + "s" * 43, "egw_ssssssss…"),
    ):
        for command in ("revoke", "rotate"):
            refused = run(command, which)
            assert (refused.exit_code, refused.stdout) == (1, "")
            assert refused.stderr == f"Error: no such key: {shown} (`edgegw keys list` shows ids and prefixes)\n"


def test_a_successor_has_the_same_place_and_the_old_one_a_grace() -> None:
    _, old = create("-t", "acme", "--name", "ci", "--acts-for", "beta", "--tokens-per-day", "9")
    before_ns = time.time_ns()
    result = run("rotate", old["prefix"], "--grace", "2h")
    assert result.exit_code == 0
    assert CREDENTIAL.fullmatch(result.stdout.rstrip("\n"))
    by_id = {key["id"]: key for key in listed()}
    successor = next(key for id_, key in by_id.items() if id_ != old["id"])
    same = ("tenant", "name", "acts_for", "limits", "expires")
    assert {name: successor[name] for name in same} == {name: old[name] for name in same}
    ended = by_id[old["id"]]
    assert (ended["state"], successor["state"]) == ("active", "active")
    expires_ns = end_ns(ended["expires"], 0)
    assert expires_ns is not None
    assert abs(expires_ns - before_ns - 2 * HOUR_NS) < 60 * 10**9


def test_a_successor_lives_as_long_as_the_old_one_was_to() -> None:
    _, old = create("-t", "acme", "--expires", "1h")
    assert run("rotate", old["id"]).exit_code == 0  # a grace of 24h does not prolong the old one
    expiries = {key["id"]: end_ns(key["expires"], 0) or 0 for key in listed()}
    assert all(abs(expires_ns - time.time_ns() - HOUR_NS) < 60 * 10**9 for expires_ns in expiries.values())
    other = run("rotate", old["id"], "--expires", "2099-01-01")
    assert "expires: 2099-01-01 00:00:00 UTC" in other.stderr


def test_no_successor_for_a_key_that_is_over() -> None:
    _, key = create("-t", "acme")
    run("revoke", key["id"])
    refused = run("rotate", key["id"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == f"Error: {key['id']} was revoked: create a new one instead\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create"], "Missing option '--tenant'"),
        (["create", "-t", ""], "--tenant: must be 1 to 256 visible characters"),
        (["create", "-t", "a\x1fb"], "--tenant: must be"),
        (["create", "-t", "a", "--name", "n" * 65], "--name: must be 1 to 64"),
        (["create", "-t", "a", "--acts-for", ""], "--acts-for: must be"),
        (["create", "-t", "a", *["--acts-for", "b"] * 17], "--acts-for: a key acts for at most 16 tenants"),
        (["create", "-t", "a", "--expires", "soon"], "--expires: not a time"),
        (["create", "-t", "a", "--expires", "2001-01-01"], "--expires: is over already"),
        (["create", "-t", "a", "--expires", "999999w"], "--expires: is more than a hundred years"),
        (["create", "-t", "a", "--tokens-per-day", "0"], "1<=x<="),
        (["revoke"], "Missing argument 'ID|PREFIX'"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], complaint: str, place: Path) -> None:
    refused = run(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert complaint.partition(": ")[0] in refused.stderr
    assert complaint.partition(": ")[2] in refused.stderr
    assert not (place / ".edgegw").exists()


def test_a_grace_that_is_none() -> None:
    _, key = create("-t", "acme")
    refused = run("rotate", key["id"], "--grace", "2099-01-01")
    assert (refused.exit_code, "not a span of time" in refused.stderr) == (2, True)


@pytest.mark.parametrize("command", [["list"], ["revoke", "key_1"], ["rotate", "key_1"]])
def test_without_a_database(command: list[str], place: Path) -> None:
    refused = run(*command)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no database at .edgegw/edgegw.db" in refused.stderr
    assert not (place / ".edgegw").exists()


def test_a_database_that_is_none(place: Path) -> None:
    (place / "x.db").write_bytes(b"no database at all " * 100)
    for command in (["list"], ["create", "-t", "a"]):
        refused = run(*command, "--db", "x.db")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "Error: the keys cannot be reached: x.db: file is not a database" in refused.stderr


def test_where_the_keys_are(place: Path) -> None:
    (place / "edgegw.yaml").write_text(f"{BASE}\nstorage: {{database_url: 'sqlite:///mine.db'}}\n")
    create("-t", "acme")
    assert (place / "mine.db").is_file()
    assert run("list", "--db", "other.db").exit_code == 1
    (place / "edgegw.yaml").write_text("version: 2\n")
    assert run("list").exit_code == 2


def test_a_digest_for_the_settings() -> None:
    made = run("hash", given="my-own-key\n")
    assert (made.exit_code, made.stdout) == (0, f"sha256:{sha256(b'my-own-key').hexdigest()}\n")
    settings = load_text(f"{BASE}\ntenants: {{acme: {{keys: {{ci: '{made.stdout.strip()}'}}}}}}\n", {})
    assert settings.tenants["acme"].keys["ci"].digest == sha256(b"my-own-key").digest()
    for given in ("", "\n", "two words\n", "é\n", "x" * 513):
        refused = run("hash", given=given)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith("Error: a key ")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (None, None),
        ("90s", 190 * 10**9),
        ("2w", (100 + 1_209_600) * 10**9),
        ("1970-01-02", 86_400 * 10**9),
        ("1970-01-02T01:00", 90_000 * 10**9),
        ("1970-01-02T01:00+01:00", 86_400 * 10**9),
    ],
)
def test_times(text: str | None, ns: int | None) -> None:
    assert end_ns(text, 100 * 10**9) == ns
