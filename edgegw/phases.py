"""The named points of a request's life at which a decision of policy is made: today `admit`, who is asking.

Each is a plain function of values. Later points (route, attempt, chunk, attempt_end, end) and plugins join here.
"""

from __future__ import annotations

from edgegw.dialects.base import Ask

# The tenant of requests that name none: one app beside its sidecar should not have to.
DEFAULT_TENANT = "default"


def admit(ask: Ask) -> str:
    """The tenant that a request counts for. Without keys it is who it says it is: `metadata.tenant`."""
    return ask.tenant or DEFAULT_TENANT
