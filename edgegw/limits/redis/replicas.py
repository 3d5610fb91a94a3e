"""How many replicas there are: asked of Redis by each beat, and kept in a file, since a gateway that starts while Redis
is away has to know its share.

The file is written when the number changes, so hardly ever. Without a file, and with one that cannot be read, a gateway
takes itself to be the only one until Redis says more.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

from edgegw.limits.redis.keys import REPLICAS
from edgegw.limits.redis.script import Answer
from edgegw.limits.redis.tab import Order

FILE_NAME = "replicas"
REPLICAS_MAX = 100_000  # no fleet is larger: a file that says more is none of ours

logger = logging.getLogger("edgegw.limits")


class ReplicasFile:
    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._kept = 0

    def read(self) -> int:
        """The number that was last written, at least 1."""
        try:
            text = self._path.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return 1
        number = int(text) if text.isascii() and text.isdigit() else 1
        return number if 1 <= number <= REPLICAS_MAX else 1

    def keep(self, number: int) -> None:
        """Writes it down if it is news. Never raises: it is asked for only after a restart in a bad moment."""
        if number == self._kept:
            return
        self._kept = number
        new = self._path.with_suffix(".new")
        try:
            new.write_text(str(number), "ascii")
            os.replace(new, self._path)
        except OSError as error:
            logger.warning("the number of replicas cannot be kept: %s", error)


class Beat(Order):
    """This replica is here, or leaves; answered by how many there are."""

    __slots__ = ("_seen",)

    tab = None

    def __init__(self, seen: deque[int], leaves: bool) -> None:
        super().__init__("beat", REPLICAS, a=int(leaves))
        self._seen = seen

    def answered(self, answer: Answer) -> None:
        self._seen.append(answer.granted)

    def refused(self) -> None: ...

    def lost(self) -> None: ...
