"""`edgegw healthcheck`: asks a gateway's admin port how it is. For containers, whose health checks are commands.

Such a command runs every few seconds beside the gateway, so this is a socket and a few lines, and knows nothing of what
a gateway is made of.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

# Of the local machine, where a probe answers within a millisecond. A loop that is busy for longer than this is ill.
TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 64 * 1024
_SHOWN_BYTES_MAX = 500
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # who listens everywhere is asked here


class UnhealthyError(Exception):
    """Not well, or not to be asked; in words."""


def local_url(host: str, port: int) -> str:
    """Of who listens at that address of this machine."""
    host = _HERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ask(url: str, path: str, timeout_s: float = TIMEOUT_S) -> str:
    """What the probe at `path` says, when it says that all is well; UnhealthyError otherwise. Of `url` counts where it
    leads, and its own path when it has one. ValueError when it is not an http URL."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError
    host, port, path = parts.hostname, parts.port or 80, parts.path.rstrip("/") or path
    request = f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(request.encode("ascii"))
            answer = _read(connection)
    except OSError as error:
        raise UnhealthyError(f"{url}: {error.strerror or error}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    version, _, status = head.partition(b"\r\n")[0].partition(b" ")
    said = body[:_SHOWN_BYTES_MAX].decode("utf-8", "replace").strip()
    if not version.startswith(b"HTTP/1."):
        raise UnhealthyError(f"{url}: no HTTP answer")
    if status[:3] != b"200":
        raise UnhealthyError(f"{url}{path}: {status[:3].decode('ascii', 'replace')} {said}")
    return said


def _read(connection: socket.socket) -> bytes:
    """Until it is closed; the timeout is for each piece."""
    answer = bytearray()
    while len(answer) < _ANSWER_BYTES_MAX and (piece := connection.recv(_ANSWER_BYTES_MAX)):
        answer += piece
    return bytes(answer)
