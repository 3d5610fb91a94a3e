"""What a store of content promises, held against both databases; and real gateways that keep it in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from postgres_rig import Database, PostgresHouse
from rig import Answer, Gateway, Simulator, StartGateway, ask, eventually, providers

from edgegw.cli import main
from edgegw.clock import ManualClock, uuid7
from edgegw.content import postgres as postgres_module
from edgegw.content import sqlite as sqlite_module
from edgegw.content.place import content_store
from edgegw.content.record import Content
from edgegw.content.store import Chosen, ContentStore
from edgegw.ledger.store import RejectedError, StoreError
from edgegw.settings import parse_postgres

pytestmark = pytest.mark.system

BASE_NS = 1_700_000_000_000_000_000
WAIT_S = 15.0
Open = Callable[[], ContentStore]


@pytest.fixture(params=["sqlite", "postgres"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens stores of one database, and closes them."""
    opened: list[ContentStore] = []
    postgres = request.param == "postgres"
    place = parse_postgres(request.getfixturevalue("postgres").dsn) if postgres else tmp_path / "books.db"

    def open_() -> ContentStore:
        opened.append(content_store(place, ManualClock().wall_ns))
        return opened[-1]

    yield open_
    for store in opened:
        await store.close()


def content(number: int, tenant: str = "t", size: int = 100) -> Content:
    """The one with a higher number is put down later."""
    id_ = uuid7(BASE_NS, number)
    reply = bytes([number % 256]) * (size - 6)
    return Content(id_, tenant, BASE_NS + number, "openai_chat", True, b"\x00asked", False, reply, True)


async def there(store: ContentStore, *contents: Content) -> list[bool]:
    return [await store.find(each.request_id) is not None for each in contents]


async def test_what_is_written_is_found(open_store: Open) -> None:
    store = open_store()
    contents = [content(number, "Łódź & sons") for number in range(5)]
    await store.write(contents)
    assert [await store.find(each.request_id) for each in contents] == contents
    assert await store.find(uuid7(BASE_NS, 99)) is None


async def test_what_is_written_twice_is_there_once_and_stays_as_it_was(open_store: Open) -> None:
    store = open_store()
    first, second = content(1), content(2)
    await store.write([first])
    await store.write([msgspec.structs.replace(first, reply=b"another"), second, second])
    assert await store.find(first.request_id) == first
    assert await store.delete(Chosen(tenant="t")) == 2


async def test_a_row_that_no_column_holds_is_refused_with_all_that_came_with_it(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(RejectedError):
        await store.write([content(1), msgspec.structs.replace(content(2), stored_ns=1 << 70)])
    assert await there(store, content(1)) == [False]
    await store.write([content(1)])
    assert await there(store, content(1)) == [True]


async def test_what_is_too_old_goes(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    contents = [content(number) for number in range(600)]
    await store.write(contents)
    trims = await trim_all(store, BASE_NS + 590, 1 << 30)
    assert sum(trims) == 590
    assert max(trims) <= max(sqlite_module.PORTION_ROWS, postgres_module.PORTION_ROWS)
    assert await there(store, *contents[588:592]) == [False, False, True, True]


async def test_what_is_too_much_goes_and_no_more_the_oldest_first(open_store: Open) -> None:
    store = open_store()
    contents = [content(number, size=1000 + number) for number in range(600)]
    await store.write(contents[300:])
    await store.write(contents[:300])
    bytes_max = sum(each.size for each in contents[450:]) + 5
    assert sum(await trim_all(store, 0, bytes_max)) == 450
    assert await there(store, *contents[448:452]) == [False, False, True, True]
    assert await store.trim(0, bytes_max) == 0


async def test_several_who_trim_at_once_take_no_more_than_one(open_store: Open) -> None:
    stores = [open_store() for _ in range(3)]
    contents = [content(number, size=1000) for number in range(200)]
    await stores[0].write(contents)
    for _ in range(10):
        results = await asyncio.gather(*(store.trim(0, 50_000) for store in stores), return_exceptions=True)
        assert all(isinstance(each, int | StoreError) for each in results)
    assert await there(stores[0], *contents[149:151]) == [False, True]


async def trim_all(store: ContentStore, before_ns: int, bytes_max: int) -> list[int]:
    trims = []
    while trimmed := await store.trim(before_ns, bytes_max):
        trims.append(trimmed)
    return trims


async def test_what_is_chosen_is_deleted_and_nothing_else(open_store: Open) -> None:
    store = open_store()
    contents = [content(number, "ab"[number % 2]) for number in range(1000)]
    await store.write(contents)
    assert await store.delete(Chosen(contents[7].request_id, "a")) == 0
    assert await store.delete(Chosen(contents[7].request_id)) == 1
    assert await store.delete(Chosen(tenant="b", before_ns=BASE_NS + 100)) == 49
    assert await store.delete(Chosen(tenant="a")) == 500
    assert await there(store, contents[99], contents[101], contents[100]) == [False, True, False]
    assert await store.delete(Chosen(before_ns=BASE_NS + 2000)) == 450


# -- real gateways --


def settings(simulator: Simulator, database: Database) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {"sim-*": {"targets": ["sim/*"]}},
        "limits": {"tokens_per_minute": 100_000_000},
        "storage": {"database_url": database.dsn},
        "tenants": {"acme": {"capture": "all"}},
    }


def chat(gateway: Gateway, tenant: str, text: str, **fields: Any) -> tuple[bytes, Answer]:
    body = {"model": "sim-tokens-8", "messages": [{"role": "user", "content": text}], "metadata": {"tenant": tenant}}
    sent = json.dumps(body | fields).encode()
    answer = ask(gateway.url, "POST", "/v1/chat/completions", sent)
    assert answer.status == 200
    return sent, answer


def kept(database: Database, answer: Answer) -> tuple[bytes, bytes]:
    id_ = answer.headers["x-request-id"]
    both = "encode(request, 'hex') AS a, encode(reply, 'hex') AS b"
    query = f"SELECT {both} FROM request_contents WHERE request_id = '{id_}'"

    def look() -> list[dict[str, Any]]:
        return database.rows(query) if database.value("SELECT to_regclass('request_contents')::text") else []

    (row,) = eventually(f"content of {id_}", look, bool, WAIT_S)
    return bytes.fromhex(row["a"]), bytes.fromhex(row["b"])


def files(gateway: Gateway) -> int:
    """Requests whose content waits."""
    found = [data for path, data in gateway.written("content").items() if path.suffix == ".msgpack"]
    return sum(len(msgspec.msgpack.decode(data)) for data in found)


def test_content_in_postgresql(postgres: Database, simulator: Simulator, gateway: StartGateway) -> None:
    """Kept and shown; of who is off there is nothing; deleted for good."""
    running = gateway(settings(simulator, postgres))
    canary = "canary-of-nobody-4711"
    _, other = chat(running, "beta", canary)
    for stream in (False, True):
        sent, answer = chat(running, "acme", "hello", stream=stream)
        assert kept(postgres, answer) == (sent, answer.body)
    query = f"SELECT count(*) FROM requests WHERE id = '{other.headers['x-request-id']}'"
    eventually("its row", lambda: postgres.value(query), lambda rows: rows == 1, WAIT_S)
    assert canary not in postgres.do("SELECT convert_from(request, 'UTF8') FROM request_contents")
    assert canary.encode() not in b"".join(running.written().values())

    config = ["--config", str(running.state_dir.parent / "edgegw.yaml")]
    shown = CliRunner().invoke(main, ["content", "show", *config, answer.headers["x-request-id"]])
    assert shown.exit_code == 0, shown.output
    assert '"content": "hello"' in shown.output
    assert '"finish_reason"' in shown.output
    by_url = CliRunner().invoke(main, ["content", "delete", "--db", postgres.dsn, answer.headers["x-request-id"]])
    assert by_url.output == "deleted the content of 1 request\n"
    deleted = CliRunner().invoke(main, ["content", "delete", *config, "--tenant", "acme"])
    assert deleted.output == "deleted the content of 1 request\n"
    assert postgres.value("SELECT count(*) FROM request_contents") == 0
    refused = CliRunner().invoke(main, ["content", "show", *config, "no-id"])
    assert refused.exit_code == 1


def test_postgresql_killed_and_the_control_process_as_well(
    postgreses: PostgresHouse, simulator: Simulator, gateway: StartGateway
) -> None:
    server = postgreses.server()
    database = server.database()
    running = gateway(settings(simulator, database))
    sent, answer = chat(running, "acme", "before")
    assert kept(database, answer) == (sent, answer.body)
    server.kill()
    answers = [chat(running, "acme", f"meanwhile {number}", stream=bool(number % 2)) for number in range(10)]

    def details() -> dict[str, Any]:
        found = ask(running.admin_url, "GET", "/readyz").json["content"]
        assert isinstance(found, dict)
        return found

    eventually("it says so", details, lambda found: found["state"] == "failing", WAIT_S)
    eventually("files wait", lambda: files(running), lambda count: count == 10, WAIT_S)
    os.kill(running.control_pid(), signal.SIGKILL)
    server.start()
    for sent, answer in answers:
        assert kept(database, answer) == (sent, answer.body)
    eventually("no file waits", lambda: files(running), lambda count: count == 0, WAIT_S)
    assert database.value("SELECT count(*) FROM request_contents") == 11
    database.cut()
    sent, answer = chat(running, "acme", "after its connections were cut")
    assert kept(database, answer) == (sent, answer.body)
