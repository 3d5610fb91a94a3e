"""What `edgegw content` does: shows what is kept of a request, and deletes content for good.

It works on the database itself, whether a gateway runs on it or not. Deleting also reaches what waits in the state
directory, and holds up the shipper of a running gateway meanwhile, so that nothing slips through between the two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgegw.content.answer import reply_text, request_text
from edgegw.content.files import CONTENT_DIR, TOLD_DIR, Trays, write_whole
from edgegw.content.place import content_store
from edgegw.content.record import Content
from edgegw.content.store import Chosen, ContentStore
from edgegw.keys.place import Place
from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError
from edgegw.ledger.tables import moment

# A shipper holds the files for one transaction.
HOLD_WAIT_S = 10.0
HOLD_POLL_S = 0.02

T = TypeVar("T")


class ContentCommandError(Exception):
    """The command cannot be done; the message is for whoever typed it."""


def show(place: Place, request_id: str, *, raw: bool, as_json: bool) -> Iterator[str]:
    """The prompt and the answer of one request. Raises ContentCommandError."""
    content = _with_store(place, lambda store: store.find(request_id))
    if content is None:
        raise ContentCommandError(f"no content is kept of request {request_id}")
    return _json_line(content) if as_json else _lines(content, raw)


def delete(place: Place, state_dir: Path | None, chosen: Chosen) -> int:
    """Deletes the chosen content, also what waits in `state_dir`; how many requests it was of. Raises
    ContentCommandError."""
    all_ = [] if state_dir is None else [Trays(state_dir, name) for name in (CONTENT_DIR, TOLD_DIR)]
    with ExitStack() as stack:
        waiting: set[str] = set()
        for trays in all_:
            if trays.there:
                stack.enter_context(_held(trays))
                waiting |= _delete_waiting(trays, chosen)
        return len(waiting) + _with_store(place, lambda store: store.delete(chosen))


def _delete_waiting(trays: Trays, chosen: Chosen) -> set[str]:
    """Whose it was. Files hold what others left as well: that stays."""
    decode = msgspec.msgpack.Decoder(list[Content]).decode
    deleted: set[str] = set()
    for path in trays.all():
        with suppress(FileNotFoundError, msgspec.DecodeError):
            found = decode(path.read_bytes())
            left = [content for content in found if not chosen.fits(content)]
            if not left:
                path.unlink()
            elif len(left) < len(found):
                write_whole(str(path), msgspec.msgpack.encode(left))
            deleted |= {content.request_id for content in found if chosen.fits(content)}
    return deleted


@contextmanager
def _held(trays: Trays) -> Iterator[None]:
    until_s = time.monotonic() + HOLD_WAIT_S
    while True:
        with trays.held() as held:
            if held:
                yield
                return
        if time.monotonic() > until_s:
            raise ContentCommandError("the gateway holds the files that wait; its database may be stuck. Try again")
        time.sleep(HOLD_POLL_S)


def _lines(content: Content, raw: bool) -> Iterator[str]:
    yield f"request {content.request_id}  tenant {content.tenant}  kept {moment(content.stored_ns)} (UTC)"
    yield f"--- prompt, {_size(content.request, content.request_cut)}"
    yield content.request.decode("utf-8", "replace") if raw else request_text(content)
    yield f"--- answer, {_size(content.reply, content.reply_cut)}{', streamed' if content.stream else ''}"
    yield content.reply.decode("utf-8", "replace") if raw else reply_text(content)


def _size(body: bytes, cut: bool) -> str:
    return f"{len(body)} bytes{', cut here' if cut else ''}"


def _json_line(content: Content) -> Iterator[str]:
    told = msgspec.structs.asdict(content)
    del told["chunked"]
    told["request"] = content.request.decode("utf-8", "replace")
    told["reply"] = content.reply.decode("utf-8", "replace")
    yield msgspec.json.encode(told).decode()


def _with_store(place: Place, work: Callable[[ContentStore], Coroutine[Any, Any, T]]) -> T:
    if isinstance(place, Path) and not place.exists():
        raise ContentCommandError(f"there is no database {place}")

    async def run() -> T:
        store = content_store(place, time.time_ns)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except (StoreError, RejectedError, SchemaTooNewError) as error:
        raise ContentCommandError(str(error)) from None
