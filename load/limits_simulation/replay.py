"""The port of the script held against the script itself: recorded calls, again, in a real Redis; every answer compared.

The script goes by Redis's clock. Here it gets the time that was recorded: the one line that asks for the time is
replaced by one that takes it from the last two arguments, and the program refuses to run when that is not the only
change. Keys that expire by the server's own clock while the replay runs do not matter: none does within a minute.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis

from edgegw.limits.bucket import MICROS_PER_S
from edgegw.limits.redis.script import shipped
from load.limits_simulation.redis import Recorded
from load.limits_simulation.store import ANSWERS, ARGUMENTS

ASKS_TIME = b"local clock = redis.call('TIME')\n"
TAKES_TIME = b"local clock = {ARGV[#ARGV - 1], ARGV[#ARGV]}\n"
AT_ONCE = 200  # calls sent before their answers are read
START_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Difference:
    call: int
    operation: list[bytes]
    port: list[int]
    script: list[int]


@dataclass(frozen=True, slots=True)
class Comparison:
    calls: int
    operations: int
    differences: list[Difference]


def compare(recorded: list[Recorded]) -> Comparison:
    """Raises FileNotFoundError without a redis-server here, ValueError for a script that cannot be given a time."""
    differences: list[Difference] = []
    operations = 0
    with real_redis() as ask:
        [sha] = ask([(b"SCRIPT", b"LOAD", timed(shipped().text))])
        for start in range(0, len(recorded), AT_ONCE):
            calls = recorded[start : start + AT_ONCE]
            for number, (call, reply) in enumerate(zip(calls, ask(_command(sha, call) for call in calls), strict=True)):
                if not isinstance(reply, list):
                    raise ValueError(f"the script failed: {reply!r}")
                operations += len(call.keys)
                differences += _differences(start + number, call, reply)
    return Comparison(len(recorded), operations, differences)


def timed(text: bytes) -> bytes:
    """The script with its time as an argument. Raises ValueError when it asks for the time in another way, or twice."""
    if text.count(ASKS_TIME) != 1 or text.count(b"'TIME'") != 1:
        raise ValueError("reserve.lua asks for the time in a way that is not known here")
    return text.replace(ASKS_TIME, TAKES_TIME)


def _command(sha: object, call: Recorded) -> tuple[Any, ...]:
    seconds, micros = divmod(call.now_us, MICROS_PER_S)
    return (b"EVALSHA", sha, len(call.keys), *call.keys, *call.arguments, seconds, micros)


def _differences(number: int, call: Recorded, reply: list[int]) -> Iterator[Difference]:
    if reply == call.answers:
        return
    for at in range(len(call.keys)):
        port, script = (found[ANSWERS * at : ANSWERS * (at + 1)] for found in (call.answers, reply))
        if port != script:
            arguments = call.arguments[1 + ARGUMENTS * at : 1 + ARGUMENTS * (at + 1)]
            yield Difference(number, [call.keys[at], call.arguments[0], *arguments], port, script)


@contextmanager
def real_redis() -> Iterator[Redis]:
    """A server of our own, on a unix socket in a directory that goes with it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            redis = Redis(path)
            yield redis
            redis.close()
        finally:
            process.kill()
            process.wait()


class Redis:
    """Commands in, replies out."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._reader = hiredis.Reader()
        ends_s = time.monotonic() + START_WITHIN_S
        while True:
            try:
                self._socket.connect(str(path))
                return
            except OSError:
                if time.monotonic() > ends_s:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        self._socket.close()

    def __call__(self, commands: Iterable[tuple[Any, ...]]) -> list[object]:
        packed = [hiredis.pack_command(command) for command in commands]
        self._socket.sendall(b"".join(packed))
        replies: list[object] = []
        while len(replies) < len(packed):
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(1 << 16))
            else:
                replies.append(reply)
        return replies
