"""How the journals of our workers are, as the control process knows it: what they say, and what is on disk.

A journal without room cannot say so in its own records, so workers say it over the channel. A gateway of which every
worker refuses new requests is not ready: it would answer 503 to everything, and another replica may do better. Where
all share the cause (one database that is away for longer than their journals last), all are taken out, and nobody is
worse off than with our 503s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgegw.channel import JournalIs
from edgegw.channel_server import ChannelServer, ControlLink
from edgegw.ledger.life import JOURNAL_DIR
from edgegw.ledger.room import bytes_on_disk, trouble_of
from edgegw.ledger.syncing import Syncer
from edgegw.settings import JournalSettings
from edgegw.telemetry.metrics import Figure

_TROUBLES = ("full", "failing")  # from bad to worse
_UNHEARD = JournalIs("ok", "", False, 0, 0, 0, 0)


class Journals:
    """For /readyz and /metrics. Counts go on over the deaths of workers, from the start of the control process."""

    def __init__(
        self, channel: ChannelServer, state_dir: Path, settings: JournalSettings, syncer: Syncer | None
    ) -> None:
        self._channel = channel
        self._root = state_dir / JOURNAL_DIR
        self._settings = settings
        self._syncer = syncer
        self._dropped = self._dropped_refusals = self._lost = self._unsynced = 0  # by workers that are gone
        channel.on_left.append(self._left)

    def _left(self, link: ControlLink) -> None:
        said = link.journal
        if said is not None:
            self._dropped += said.dropped
            self._dropped_refusals += said.dropped_refusals
            self._lost += said.lost
            self._unsynced += said.unsynced

    def _said(self) -> list[JournalIs]:
        return [link.journal for link in self._channel.links if link.journal is not None]

    @property
    def refusing(self) -> bool:
        """No worker takes a new request for want of a journal."""
        said = self._said()
        return bool(said) and all(journal.refusing for journal in said)

    def bytes(self) -> int:
        """On disk; 0 while it cannot be looked at."""
        try:
            return bytes_on_disk(self._root)
        except OSError:
            return 0

    def dropped(self) -> Figure:
        said = self._said()
        return {
            ("exchange",): self._dropped + sum(journal.dropped for journal in said),
            ("refusal",): self._dropped_refusals + sum(journal.dropped_refusals for journal in said),
        }

    def lost(self) -> int:
        return self._lost + sum(journal.lost for journal in self._said())

    def sync_errors(self) -> Figure:
        return {
            ("round",): 0 if self._syncer is None else self._syncer.errors,
            ("wait",): self._unsynced + sum(journal.unsynced for journal in self._said()),
        }

    def troubled(self) -> Figure:
        states = [journal.state for journal in self._said()]
        return {(state,): states.count(state) for state in _TROUBLES}

    def details(self) -> dict[str, Any]:
        """The worst of what the workers say."""
        said = self._said()
        worst = max(said, key=lambda journal: ("ok", *_TROUBLES).index(journal.state), default=_UNHEARD)
        state, reason, occupied = worst.state, worst.reason, 0
        if state == "ok" and self._syncer is not None and self._syncer.trouble is not None:
            state, reason = self._syncer.trouble.state, self._syncer.trouble.reason
        try:
            occupied = bytes_on_disk(self._root)
        except OSError as error:
            state, reason = "failing", reason or trouble_of(error).reason
        told = {
            "state": state,
            "policy": self._settings.when_full,
            "sync": self._settings.sync,
            "bytes": occupied,
            "bytes_max": self._settings.bytes_max,
            "dropped": self._dropped + sum(journal.dropped for journal in said),
            "dropped_refusals": self._dropped_refusals + sum(journal.dropped_refusals for journal in said),
            "lost_records": self.lost(),
        }
        return told | {"reason": reason} if reason else told
