"""What an attempt used: the provider's own count, else ours of what was seen of its answer, marked so.

Counted by us are answers whose provider did not say (a server without usage, a stream that was broken off), or said
only half of it. Nothing is: a refusal, a connection that failed, an error in a 200 before any content. That is what
nobody bills.

Knows no dialect and no socket; asked once per attempt, and does nothing when the provider has said all.
"""

from __future__ import annotations

from msgspec import structs

from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage
from edgegw.leg import Leg
from edgegw.tokens import TokenEstimator

# The answer was on its way when this happened: the provider had read the prompt. Other faults before any content are
# its way of saying no.
_UNDER_WAY = frozenset({"upstream_cut", "upstream_stalled", "upstream_timeout"})


def used(
    said: Usage | None,
    whole: bool,
    leg: Leg,
    fault: UpstreamFault | None,
    estimator: TokenEstimator,
    model: str,
    body: bytes,
) -> Usage | None:
    """`said` by the provider; None when it said nothing. `whole`: the answer is, so that what was said is final.
    `body`: the client's request. None when nothing was used that anybody bills."""
    if said is not None and whole and not said.estimated:
        return said
    if not 200 <= leg.status < 300 or leg.status == 204:
        return said
    if fault is not None and not leg.answered and fault.kind not in _UNDER_WAY:
        return said
    heard = said or Usage()
    output = heard.output
    if not whole or said is None or not output:
        output = max(output, estimator.answer_tokens(model, *leg.volume()))
    return structs.replace(
        heard, input=heard.input or estimator.prompt_tokens(model, body), output=output, estimated=True
    )
