"""The control process's end of the channel: hears the workers and asks the authority for them.

One link per worker. What a link does beyond passing words on: it remembers what its worker holds (`Holdings`), and
gives that back when the worker dies. Knows no bucket and no limit: the authority does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegw.channel import HELLO_WITHIN_S, VERSION, ChannelError, Hello, JournalIs, Link, Message, Ready, Shares
from edgegw.limits import tally
from edgegw.limits.authority import Authority
from edgegw.limits.holdings import Holdings
from edgegw.limits.words import GiveBack, Recall, Spent, Want

WANTS_MAX = 10_000  # asked by one worker and not yet answered; a worker asks once per tenant, and has as many tenants

logger = logging.getLogger("edgegw.channel")


class ChannelServer:
    """The control process's end. `sock` listens already and belongs to the supervisor: it is used, never closed.

    `epoch` tells this control process from its predecessors (Unix nanoseconds of its start will do). `state_dir` is
    where the workers keep their tallies.
    """

    def __init__(self, sock: socket.socket, authority: Authority, epoch: int, state_dir: Path) -> None:
        self.authority = authority
        self.epoch = epoch
        self.state_dir = state_dir
        self.links: set[ControlLink] = set()  # that said hello
        self.slow_readers = 0  # cut off so far
        self.on_joined: list[Callable[[ControlLink], None]] = []  # called with each worker that has said hello
        self.on_left: list[Callable[[ControlLink], None]] = []  # called with each of them when it has gone
        self._sock = sock
        self._accepted: set[ControlLink] = set()
        self._server: asyncio.AbstractServer | None = None

    @property
    def workers(self) -> list[tuple[int, int]]:
        """Slot and process id of each worker that is connected (two of a slot during a reload)."""
        return sorted((link.hello.slot, link.hello.pid) for link in self.links if link.hello is not None)

    @property
    def shares(self) -> int:
        """Among how many a limit is shared while we are away: our workers, as often as there are replicas like us."""
        return len(self.links) * self.authority.replicas

    def unspent(self) -> Counter[str]:
        """What all workers together hold at this moment, by meter."""
        unspent: Counter[str] = Counter()
        for link in self.links:
            unspent.update(link.holdings.unspent())
        return unspent

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await loop.create_unix_server(
            lambda: ControlLink(loop, self), sock=self._sock.dup(), backlog=socket.SOMAXCONN, **options
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        gone = [link.gone for link in self._accepted]
        for link in list(self._accepted):
            link.close()
        if gone:
            await asyncio.wait(gone, timeout=HELLO_WITHIN_S)

    def joined(self, link: ControlLink) -> None:
        tally.sweep(self.state_dir)
        self.links.add(link)
        link.shares_told = self.shares
        link.send(Ready(self.epoch, self.shares))
        for other in self.links - {link}:
            other.tell_shares()
        for handler in self.on_joined:
            handler(link)

    def left(self, link: ControlLink) -> None:
        self._accepted.discard(link)
        if link in self.links:
            self.links.discard(link)
            for other in self.links:
                other.tell_shares()
            for handler in self.on_left:
                handler(link)

    def accepted(self, link: ControlLink) -> None:
        self._accepted.add(link)


class ControlLink(Link):
    """What the control process knows of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: ChannelServer) -> None:
        super().__init__(loop)
        self._server = server
        self._authority = server.authority
        self.holdings = Holdings(None)
        self._answering: set[asyncio.Task[None]] = set()
        self._patience = loop.call_later(HELLO_WITHIN_S, self.cut, "a worker did not say hello")
        self._hear: dict[type[Any], Callable[[Any], None]] = {
            Want: self._want,
            GiveBack: self._give_back,
            Spent: self._spent,
            Recall: self._recall,
            JournalIs: self._journal_is,
        }
        self.journal: JournalIs | None = None  # as the worker said last
        self.hello: Hello | None = None
        self.gone: asyncio.Future[None] = loop.create_future()
        self._room = asyncio.Event()
        self._room.set()
        self.shares_told = 0

    def opened(self) -> None:
        self._server.accepted(self)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def room(self) -> None:
        """Until the worker has read (most of) what was sent to it. For who has more to say than fits UNREAD_BYTES_MAX.
        Cancelled, or for ever, when it is gone."""
        await asyncio.sleep(0)  # what was sent in this turn is written at its end
        await self._room.wait()

    def heard(self, message: Message) -> None:
        if type(message) is Hello:
            self._greet(message)
        elif self.hello is None or type(message) not in self._hear:
            raise ChannelError(f"an unexpected {type(message).__name__}")
        else:
            try:
                self._hear[type(message)](message)
            except (ValueError, IndexError) as error:  # of no meter, or of a place that the tally has not
                raise ChannelError(f"{message!r} makes no sense: {error}") from error

    def lost(self) -> None:
        """What a worker that died still held goes back; a worker that left in peace holds nothing."""
        self._patience.cancel()
        self._server.left(self)
        for meter, amount in self.holdings.returned().items():
            self._authority.give_back(meter, amount)
        self.gone.set_result(None)

    def tell_shares(self) -> None:
        """When it is news to the worker."""
        if self.shares_told != self._server.shares:
            self.shares_told = self._server.shares
            self.send(Shares(self.shares_told))

    def slow(self) -> None:
        self._server.slow_readers += 1
        super().slow()

    def _greet(self, hello: Hello) -> None:
        self._patience.cancel()
        if hello.version != VERSION:
            raise ChannelError(f"worker {hello.pid} speaks version {hello.version}, we speak {VERSION}")
        self.hello = hello
        self.holdings = Holdings(tally.read(tally.path(self._server.state_dir, hello.slot, hello.pid)))
        self._server.joined(self)

    def _want(self, want: Want) -> None:
        self.holdings.asked(want.meter, want.place)
        if len(self._answering) >= WANTS_MAX:
            raise ChannelError(f"more than {WANTS_MAX} wants unanswered")
        task = self._loop.create_task(self._answer(want))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, want: Want) -> None:
        try:
            offer = await self._authority.lease(want.meter, want.amount, want.need)
        except Exception:
            logger.exception("the authority failed")  # no answer: the worker goes on by itself
            return
        if self._transport is None:
            self._authority.give_back(want.meter, offer.granted)
        else:
            self.holdings.leased(want.meter, offer.granted)
            self.tell_shares()  # replicas come and go
            self.send(offer)

    def _give_back(self, message: GiveBack) -> None:
        self.holdings.leased(message.meter, -message.leased)
        if message.amount:
            self._authority.give_back(message.meter, message.amount)

    def _spent(self, message: Spent) -> None:
        self._authority.spent(message.meter, message.amount)

    def _journal_is(self, message: JournalIs) -> None:
        self.journal = message

    def _recall(self, message: Recall) -> None:
        self._authority.recall(message.meter, message.level)
