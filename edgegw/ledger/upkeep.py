"""What is to be done with the books now and then, beside the writing: old rows deleted, partitions made and dropped.

The task of the control process that has it done, at its start and then every hour. What cannot be done is done later;
the books go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgegw.clock import Clock
from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError

KEEP_EVERY_S = 3600.0
# After a failure; a database that comes back should not wait for the hour.
KEEP_AGAIN_S = 60.0

_log = logging.getLogger(__name__)


class Upkeep(Protocol):
    """One thing that is to be done. It may be cancelled at any time, and is begun again at the next start."""

    async def keep(self, now_ns: int) -> None:
        """Once, as of Unix time `now_ns`. Raises what a Store does (store.py)."""


@dataclass(slots=True)
class UpkeepTally:
    """For metrics and /readyz. `failing` is the latest complaint, None when all was done."""

    errors: int = 0
    failing: str | None = None


class Upkeeper:
    """`run` until cancelled. Each `Upkeep` is done whatever becomes of the others."""

    def __init__(self, upkeeps: Sequence[Upkeep], clock: Clock) -> None:
        self._upkeeps = tuple(upkeeps)
        self._clock = clock
        self.tally = UpkeepTally()

    async def run(self) -> None:
        while True:
            done = await self.keep()
            await asyncio.sleep(KEEP_EVERY_S if done else KEEP_AGAIN_S)

    async def keep(self) -> bool:
        """Everything once; whether all of it was done."""
        complaints = [complaint for each in self._upkeeps if (complaint := await self._complaint(each)) is not None]
        tally = self.tally
        tally.errors += len(complaints)
        if complaints and tally.failing is None:
            _log.warning("the upkeep of the ledger fails, and is tried again: %s", complaints[0])
        if tally.failing is not None and not complaints:
            _log.warning("the upkeep of the ledger is done again")
        tally.failing = complaints[0] if complaints else None
        return not complaints

    async def _complaint(self, upkeep: Upkeep) -> str | None:
        try:
            await upkeep.keep(self._clock.wall_ns())
        except (StoreError, RejectedError, SchemaTooNewError) as error:
            return str(error)
        except Exception as error:
            if self.tally.failing is None:
                _log.exception("a defect in the upkeep of the ledger")
            return repr(error)
        return None
