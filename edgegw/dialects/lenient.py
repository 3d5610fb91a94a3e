"""What a provider sends that is nearly right: JSON that only lenient parsers take, and counts that are no counts.

Every reader reads strictly first; this is for what was refused there. So nothing here need be fast, and nothing here
decides what a reply means.
"""

from __future__ import annotations

import json
import re

from edgegw.exchange import TOKENS_MAX

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


def strict_json(data: bytes) -> bytes | None:
    """The same document as strict parsers take it; None when there is none in `data`, or one that is too deep.

    Servers in JavaScript cut a text in the middle of an emoji and escape both halves (`"\\ud83d"`); servers in Python
    write `NaN` and `Infinity`. Clients take both, msgspec takes neither. They become U+FFFD and null, bytes that are no
    UTF-8 U+FFFD as well.
    """
    try:
        document = json.loads(data.decode("utf-8", "replace"), parse_constant=lambda constant: None)
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return _HALF_OF_A_PAIR.sub("\ufffd", text).encode()


def tokens(told: object) -> int | None:
    """A number of tokens as a provider told it; None when it is none: no number, below 0, or more than there can be.

    What is charged, priced and written down comes from here: a provider's slip must not become somebody's credit.
    """
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told <= TOKENS_MAX:
        return None
    return int(told)
