"""How a dialect's reader complains about a client's request: each complaint names the field, nothing else differs."""

from __future__ import annotations

from edgegw.errors import GatewayError


def unsupported(path: str, reason: str = "") -> GatewayError:
    """The field is right, but the provider's dialect has no way to say it. `reason` begins with its own punctuation."""
    message = f"'{path}' cannot be carried to the provider of this model{reason}."
    return GatewayError("unsupported_parameter", message, param=path)


def wrong_type(path: str, wanted: str) -> GatewayError:
    return GatewayError("invalid_type", f"'{path}' must be {wanted}.", param=path)


def wrong_value(path: str, complaint: str) -> GatewayError:
    return GatewayError("invalid_value", f"'{path}' {complaint}.", param=path)
