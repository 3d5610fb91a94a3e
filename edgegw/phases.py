"""The named points of a request's life at which a decision of policy is made: who is asking, and where it may go.

Each is a plain function of values. Later points (attempt, chunk, attempt_end, end) and plugins join here.
"""

from __future__ import annotations

from edgegw.access import Access
from edgegw.dialects.base import Ask
from edgegw.exchange import Route
from edgegw.http.request import Request
from edgegw.routing import Router


def admit(access: Access, request: Request, ask: Ask) -> str:
    """The tenant that a request counts for. Without keys it is who it says; with keys, whom its key lets it be."""
    return access.tenant(request, ask.tenant)


def route(access: Access, router: Router, tenant: str, ask: Ask) -> Route:
    """Where a request goes, if its tenant may go there."""
    return access.route(router, tenant, ask.use_case, ask.model)
