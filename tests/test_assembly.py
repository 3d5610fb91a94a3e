"""What a row says that no record does: whose an attempt is, what it cost, and what a request came to."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import OTHER, TARGET, WALL_NS, conclude, finish, make_attempt, make_exchange

from edgegw.exchange import Target, Usage
from edgegw.ledger.assembly import INTERRUPTED, Assembler, unpriced
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_end, encode_try
from edgegw.ledger.record import AttemptRecord, End, Record, decoder
from edgegw.ledger.store import Checkpoint, OpenState, Position

DECODE = decoder()
KNOWN = {TARGET.model: 7, OTHER.model: 11}  # micro-dollars per token of output


def price(record: AttemptRecord) -> None:
    if record.model in KNOWN:
        record.cost_usd_micro = KNOWN[record.model] * (record.output_tokens or 0)
        record.price_version = f"test {record.model}"


class Story:
    """An exchange as its worker writes it down: the records, each once."""

    def __init__(self, number: int = 1) -> None:
        self.exchange = make_exchange(number)
        self.exchange.key_id = "acme.ci"
        self.records: list[Record] = []

    def attempt(self, model: str = TARGET.model, *, output: int | None = 20, error: str | None = None) -> Story:
        """Another attempt, begun and written when it is over. `output` None: it used nothing."""
        target = TARGET if model == TARGET.model else OTHER
        attempt = make_attempt(self.exchange, "primary" if not self.exchange.attempts else "fallback", target)
        if model not in KNOWN:
            attempt.target = Target(target.provider, model)
        first = len(self.exchange.attempts) == 1
        self._note((encode_begin if first else encode_try)(self.exchange, attempt, 1))
        finish(attempt, error=error)
        attempt.usage = None if output is None else Usage(10, output)
        attempt.first_token_s = 0.2 if output else None
        attempt.upstream_model = f"{model}-served"
        self._note(encode_attempt(self.exchange, attempt, 1))
        return self

    def begun(self) -> Story:
        """An attempt that is still under way."""
        attempt = make_attempt(self.exchange, "fallback" if self.exchange.attempts else "primary")
        first = len(self.exchange.attempts) == 1
        self._note((encode_begin if first else encode_try)(self.exchange, attempt, 1))
        return self

    def end(self) -> Story:
        conclude(self.exchange)
        self._note(encode_end(self.exchange, 1))
        return self

    def _note(self, payload: bytes) -> None:
        self.records.append(DECODE(payload))


def assembled(story: Story, cuts: list[int] | None = None) -> tuple[list[End], list[AttemptRecord]]:
    """The rows; the control process dies at each cut and the next goes on from the checkpoint."""
    requests: list[End] = []
    attempts: list[AttemptRecord] = []
    assembler = Assembler(Checkpoint(), price)
    remembered: dict[str, OpenState] = {}
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.Decoder(OpenState).decode
    edges = [0, *sorted(cuts or []), len(story.records)]
    for start, end in pairwise(edges):
        assembler.add("life", story.records[start:end])
        batch, checkpoint = assembler.take({})
        requests += batch.requests
        attempts += batch.attempts
        remembered.update({id_: OpenState.of(exchange) for id_, exchange in checkpoint.opened.items()})
        for id_ in checkpoint.closed:
            remembered.pop(id_)
        again = {id_: decode(encode(state)).opened("life") for id_, state in remembered.items()}
        assembler = Assembler(Checkpoint({"life": Position()}, again), price)
    return requests, attempts


def test_an_attempt_belongs_to_whom_its_request_does() -> None:
    _, (attempt,) = assembled(Story().attempt().end())
    assert (attempt.tenant, attempt.use_case, attempt.key_id) == ("acme", "support_summary", "acme.ci")


_tried = st.tuples(st.sampled_from([*KNOWN, "nobody-knows"]), st.none() | st.integers(0, 99))


@given(
    st.lists(_tried, min_size=1, max_size=4),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_a_request_costs_what_its_attempts_cost(tries: list[tuple[str, int | None]], cuts: list[int]) -> None:
    """Wherever the control process dies in between; unknown as a whole when any part is."""
    story = Story()
    for model, output in tries:
        story.attempt(model, output=output, error=None if output is not None else "upstream_error")
    (request,), attempts = assembled(story.end(), cuts)
    costs = [0 if output is None else KNOWN[model] * output if model in KNOWN else None for model, output in tries]
    assert [attempt.cost_usd_micro for attempt in attempts] == costs
    assert request.cost_usd_micro == (None if None in costs else sum(cost or 0 for cost in costs))
    priced = [attempt.price_version for attempt in attempts if attempt.price_version]
    assert request.price_version == (priced[-1] if priced else None)
    assert request.model_served == f"{tries[-1][0]}-served"


@pytest.mark.parametrize("cuts", [[], [1], [2], [3]])
def test_the_first_token_of_a_request_is_that_of_its_last_attempt(cuts: list[int]) -> None:
    """Counted from the request's arrival: the attempts before are in it."""
    story = Story().attempt(output=None, error="upstream_error").attempt()
    first, second = story.exchange.attempts
    second_began_us = (second.started_ns - story.exchange.started_ns) // 1000
    (request,), _ = assembled(story.end(), cuts)
    assert request.first_token_us == second_began_us + 200_000
    assert first.first_token_s is None


def test_a_request_without_a_token_has_no_first_one() -> None:
    (request,), _ = assembled(Story().attempt(output=None, error="upstream_error").end())
    assert (request.first_token_us, request.cost_usd_micro, request.price_version) == (None, 0, None)


def test_a_refused_request_costs_nothing() -> None:
    (request,), attempts = assembled(Story().end())
    assert (request.state, request.cost_usd_micro, request.model_served, attempts) == ("refused", 0, None, [])


def test_an_end_whose_beginning_is_lost_is_not_free() -> None:
    story = Story().attempt().end()
    story.records = story.records[-1:]
    (request,), _ = assembled(story)
    assert request.attempts == 1
    assert request.cost_usd_micro is None


def test_of_an_attempt_whose_worker_died_nobody_knows_what_it_cost() -> None:
    assembler = Assembler(Checkpoint(), price)
    assembler.add("life", Story().attempt(output=None, error="upstream_error").begun().records)
    added = assembler.end_life("life", WALL_NS + 5_000_000_000)
    attempt, request = added
    assert isinstance(attempt, AttemptRecord)
    assert isinstance(request, End)
    assert (attempt.error_kind, attempt.cost_usd_micro, attempt.tenant) == (INTERRUPTED, None, "acme")
    assert (request.state, request.attempts, request.cost_usd_micro) == (INTERRUPTED, 2, None)


@pytest.mark.parametrize("cut", range(7))
def test_a_request_whose_worker_died_used_what_its_finished_attempts_did(cut: int) -> None:
    """All of them, also when the control process died in between."""
    story = Story().attempt(output=3).attempt(output=None, error="upstream_error")
    story.attempt(OTHER.model, output=5).begun()
    assembler = Assembler(Checkpoint(), price)
    assembler.add("life", story.records[:cut])
    _, checkpoint = assembler.take({})
    states = {id_: OpenState.of(exchange) for id_, exchange in checkpoint.opened.items()}
    decode = msgspec.msgpack.Decoder(OpenState).decode
    opened = {id_: decode(msgspec.msgpack.encode(state)).opened("life") for id_, state in states.items()}
    assembler = Assembler(Checkpoint({"life": Position()}, opened), price)
    assembler.add("life", story.records[cut:])
    attempt, request = assembler.end_life("life", WALL_NS + 5_000_000_000)
    assert isinstance(attempt, AttemptRecord)
    assert isinstance(request, End)
    assert (attempt.input_tokens, request.input_tokens, request.output_tokens) == (None, 20, 8)
    assert (request.attempts, request.cost_usd_micro) == (4, None)


def test_a_request_whose_worker_died_after_its_last_attempt_costs_what_that_did() -> None:
    assembler = Assembler(Checkpoint(), price)
    assembler.add("life", Story().attempt(output=3).records)
    (request,) = assembler.end_life("life", WALL_NS + 5_000_000_000)
    assert isinstance(request, End)
    assert (request.state, request.output_tokens, request.cost_usd_micro) == (INTERRUPTED, 3, 21)
    assert request.model_served == f"{TARGET.model}-served"
    assert request.first_token_us is not None


def test_a_price_that_knows_none_leaves_all_unknown() -> None:
    assembler = Assembler(Checkpoint(), unpriced)
    assembler.add("life", Story().attempt().end().records)
    batch, _ = assembler.take({})
    assert [row.cost_usd_micro for row in batch.attempts] == [None]
    assert [row.cost_usd_micro for row in batch.requests] == [None]
