"""A Redis server in virtual time: takes real commands on virtual connections, and answers with the port of the script.

Replicas can be cut off from it, it can be away for all, slow, or come back without its data. What it is asked is
counted, and recorded for replay.py if somebody wants to.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import hiredis

from load.limits_simulation.loop import UNIX_AT_START_S, VirtualLoop
from load.limits_simulation.store import ANSWERS, ARGUMENTS, Store
from load.limits_simulation.wire import End, connect

ONE_WAY_S = 0.0004  # between two machines of one region; half of a round trip
JITTER_S = 0.0002  # mean of what is added to it
LOST_S = 0.2  # a packet that was lost is sent again after the least retransmission time of TCP
RETRANSMIT_S = 1.0  # after a partition what was held back comes within so long
HOLD_BACK_MAX_S = 3600.0  # "for as long as we know"


@dataclass(slots=True)
class Recorded:
    """One call of the script: the server's time, keys, ARGV, and what the port answered."""

    now_us: int
    keys: list[bytes]
    arguments: list[bytes]
    answers: list[int]


class VirtualRedis:
    def __init__(self, loop: VirtualLoop, dice: random.Random, record_max: int = 0) -> None:
        self.store = Store()
        self.calls = 0
        self.operations: Counter[str] = Counter()
        self.up = True
        self.slow_s = 0.0  # added to every message
        self.lost = 0.0  # share of the packets
        self.recorded: list[Recorded] = []
        self._record_max = record_max
        self._loop = loop
        self._dice = dice
        self._cut_until_s: dict[str, float] = {}
        self._clients: dict[Client, str] = {}

    # -- faults --

    def cut(self, replica: str, seconds: float) -> None:
        """Nothing passes between it and us for so long; what is sent meanwhile arrives afterwards."""
        self._cut_until_s[replica] = self._loop.time() + seconds

    def stop(self, keep_data: bool = True) -> None:
        """Killed: connections break, and none is accepted."""
        self.up = False
        for client in list(self._clients):
            client.end()
        if not keep_data:
            self.store.forget()

    def start(self) -> None:
        self.up = True

    # -- connections --

    async def accept(self, replica: str, protocol: asyncio.Protocol) -> End:
        """A connection from a replica. Raises ConnectionRefusedError, or waits as a SYN does that nobody answers."""
        await asyncio.sleep(2 * self.delay(replica))
        if not self.up:
            raise ConnectionRefusedError("nobody listens")
        client = Client(self)
        self._clients[client] = replica
        return connect(self._loop, protocol, client, lambda: self.delay(replica))

    def delay(self, replica: str) -> float:
        dice = self._dice
        delay_s = ONE_WAY_S + dice.expovariate(1 / JITTER_S)
        if self.lost and dice.random() < self.lost:
            delay_s += LOST_S
        if self._cut_until_s:
            held_s = self._cut_until_s.get(replica, 0.0) - self._loop.time()
            if held_s > 0:
                delay_s += held_s + dice.random() * RETRANSMIT_S
        return delay_s + self.slow_s

    def left(self, client: Client) -> None:
        self._clients.pop(client, None)

    def answer(self, command: list[bytes]) -> bytes:
        if command[0] not in (b"EVALSHA", b"EVAL"):
            return b"+OK\r\n"
        number = int(command[2])
        keys, arguments = command[3 : 3 + number], command[3 + number :]
        now_us = UNIX_AT_START_S * 1_000_000 + round(self._loop.time() * 1e6)
        answers = self.store.call(now_us, keys, arguments)
        self.calls += 1
        for at in range(1, len(arguments), ARGUMENTS):
            self.operations[arguments[at].decode()] += 1
            if arguments[at] == b"take" and answers[at // 2] == 0:
                self.operations["take in vain"] += 1
        if len(self.recorded) < self._record_max:
            self.recorded.append(Recorded(now_us, keys, arguments, answers))
        return b"*%d\r\n" % (ANSWERS * number) + b"".join(b":%d\r\n" % answer for answer in answers)


class Client(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, redis: VirtualRedis) -> None:
        self._redis = redis
        self._reader = hiredis.Reader()
        self._transport: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, End)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self._transport.write(self._redis.answer(command))

    def connection_lost(self, exc: Exception | None) -> None:
        self._redis.left(self)

    def end(self) -> None:
        assert self._transport is not None
        self._transport.close()
