"""Whose exchanges are kept, and whose are told to a collector: the mode of each tenant, and the dice of those that are
sampled. Pure.

To keep and to tell are two things. `capture.mode` is about keeping alone; whether anything is told is said from outside
the settings (OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT). What a tenant says of its own goes for both: who is
`off` is neither kept nor told.
"""

from __future__ import annotations

from edgegw.settings import CaptureMode, Settings

# An id's last 32 bits are dice (clock.uuid7): as good as a hash of it, and the same in every process.
_DICE_DIGITS = 8
_DICE_SIDES = 1 << 32


class Choice:
    """What the settings say. `tells`: content is told to a collector at all. `any`: somebody is captured."""

    __slots__ = ("_below", "_mode", "_modes", "any", "keeps", "tells")

    def __init__(self, settings: Settings, *, tells: bool = False) -> None:
        capture = settings.capture
        self._mode: CaptureMode = capture.mode
        self._modes = {name: tenant.capture for name, tenant in settings.tenants.items() if tenant.capture is not None}
        self._below = round(capture.sample * _DICE_SIDES)
        self.keeps = any(mode != "off" for mode in (self._mode, *self._modes.values()))
        self.tells = tells
        self.any = self.keeps or tells

    def mode(self, tenant: str, exchange_id: str) -> CaptureMode:
        """What is kept of one exchange: `off`, `errors` or `all`; `sampled` has become one of them."""
        return self._settled(self._modes.get(tenant, self._mode), exchange_id)

    def telling(self, tenant: str, exchange_id: str) -> CaptureMode:
        """What is told of it, in the same words."""
        return self._settled(self._modes.get(tenant, "all"), exchange_id) if self.tells else "off"

    @property
    def refusing(self) -> list[str]:
        """The tenants of whom nothing is told."""
        return [name for name, mode in self._modes.items() if mode == "off"]

    def _settled(self, mode: CaptureMode, exchange_id: str) -> CaptureMode:
        if mode == "sampled":
            return "all" if int(exchange_id[-_DICE_DIGITS:], 16) < self._below else "off"
        return mode
