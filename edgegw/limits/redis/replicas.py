"""How many replicas there were, kept in a file: a gateway that starts while Redis is away has to know its share.

Written when the number changes, so hardly ever. Without a file, and with one that cannot be read, a gateway takes
itself to be the only one until Redis says more.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

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
