"""Whose exchanges are kept: the mode of each tenant, and the dice of those that are sampled. Pure."""

from __future__ import annotations

from edgegw.settings import CaptureMode, Settings

# An id's last 32 bits are dice (clock.uuid7): as good as a hash of it, and the same in every process.
_DICE_DIGITS = 8
_DICE_SIDES = 1 << 32


class Choice:
    """What the settings say. `any`: somebody is captured at all."""

    __slots__ = ("_below", "_mode", "_modes", "any")

    def __init__(self, settings: Settings) -> None:
        capture = settings.capture
        self._mode: CaptureMode = capture.mode
        self._modes = {name: tenant.capture for name, tenant in settings.tenants.items() if tenant.capture is not None}
        self._below = round(capture.sample * _DICE_SIDES)
        self.any = any(mode != "off" for mode in (self._mode, *self._modes.values()))

    def mode(self, tenant: str, exchange_id: str) -> CaptureMode:
        """`off`, `errors` or `all` for one exchange: `sampled` has become one of them."""
        mode = self._modes.get(tenant, self._mode)
        if mode == "sampled":
            return "all" if int(exchange_id[-_DICE_DIGITS:], 16) < self._below else "off"
        return mode
