"""Which paths exist, which methods they take, and what is refused from the head of a request alone.

Pure. A request that is refused here has not had its body read.
"""

from __future__ import annotations

from edgegw.errors import GatewayError
from edgegw.http.request import Request

CHAT_COMPLETIONS = b"/v1/chat/completions"
MODELS = b"/v1/models"

SERVER = b"*"  # the server as a whole, to OPTIONS (RFC 9110 9.3.7)

ENDPOINTS: dict[bytes, tuple[bytes, ...]] = {
    CHAT_COMPLETIONS: (b"POST", b"OPTIONS"),
    MODELS: (b"GET", b"HEAD", b"OPTIONS"),
    SERVER: (b"GET", b"HEAD", b"POST", b"OPTIONS"),
}


def gate(request: Request) -> None:
    """Raises GatewayError 404, 405 (with Allow) or 415."""
    if request.method not in ENDPOINTS.get(request.path, ()) or b"content-encoding" in request.headers:
        check(request, ENDPOINTS)


def methods_field(path: bytes) -> bytes:
    """The header line that answers OPTIONS."""
    return b"allow: %b\r\n" % b", ".join(ENDPOINTS[path])


def check(request: Request, endpoints: dict[bytes, tuple[bytes, ...]]) -> None:
    methods = endpoints.get(request.path)
    if methods is None:
        known = ", ".join(path.decode() for path in endpoints if path != SERVER)
        raise GatewayError("not_found", f"There is nothing at this path. What exists: {known}.")
    if request.method not in methods:
        allow = b", ".join(methods)
        raise GatewayError(
            "method_not_allowed",
            f"This path takes {allow.decode()}, not {request.method.decode('latin-1')}.",
            headers=((b"allow", allow),),
        )
    coding = request.headers.get(b"content-encoding")
    if coding and coding.lower() != b"identity":
        raise GatewayError(
            "unsupported_media",
            "A compressed request body is not supported.",
            param="content-encoding",
            headers=((b"accept-encoding", b"identity"),),  # RFC 9110 12.5.3
        )
