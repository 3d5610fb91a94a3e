"""From records to rows: which exchanges are open, and what becomes of those whose worker died.

`Assembler.add` takes the records of all lives in their order, `take` gives the rows and the changes of the checkpoint
since the last `take`. What is open survives in the checkpoint (`OpenExchange`), so that segments can be deleted while a
long stream goes on.

What a record cannot know is filled in here: an attempt's tenant and cost, and of a request what its attempts came to.
So whoever is told of a record as an observer is told of it after `add`.

Pure: knows no file, no clock, no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy

from edgegw.exchange import Usage
from edgegw.ledger.record import VERSION, AttemptRecord, Begin, End, Record, Try
from edgegw.ledger.store import Batch, Checkpoint, OpenExchange, Position

INTERRUPTED = "interrupted"

# Sets `cost_usd_micro` and `price_version` of an attempt whose tokens were counted; leaves them None where no price is
# known.
Price = Callable[[AttemptRecord], None]


def unpriced(record: AttemptRecord) -> None:
    """A Price that knows none."""


class Assembler:
    __slots__ = ("_batch", "_checkpoint", "_open", "_price", "_touched")

    def __init__(self, remembered: Checkpoint, price: Price) -> None:
        self._price = price
        self._open: dict[str, OpenExchange] = dict(remembered.opened)
        for exchange in self._open.values():
            exchange.stored = True
        self._touched: dict[str, OpenExchange] = {}
        self._batch = Batch()
        self._checkpoint = Checkpoint()

    @property
    def open(self) -> int:
        """How many exchanges have begun and not ended."""
        return len(self._open)

    def open_now(self) -> dict[str, OpenExchange]:
        """What is open, as copies: for another assembler that goes on from here."""
        return {id_: copy(exchange) for id_, exchange in self._open.items()}

    @property
    def rows(self) -> int:
        """That the next `take` will give."""
        return self._batch.rows

    @property
    def due(self) -> bool:
        """There are rows, or lives to forget: the next `take` is worth a transaction."""
        return bool(self._batch.requests or self._batch.attempts or self._checkpoint.ended)

    @property
    def oldest(self) -> AttemptRecord | End | None:
        """The first record that is to become a row."""
        if self._batch.attempts:
            return self._batch.attempts[0]
        return self._batch.requests[0] if self._batch.requests else None

    def add(self, life: str, records: Iterable[Record]) -> None:
        """Records of one life, in their order."""
        self._batch.begin(life)
        opened = self._open
        touched = self._touched
        attempts = self._batch.attempts
        requests = self._batch.requests
        for record in records:
            if type(record) is Begin:
                id_ = record.id
                opened[id_] = touched[id_] = OpenExchange(life, record, record)
            elif type(record) is End:
                requests.append(record)
                exchange = self._close(record.id)
                _complete_request(record, exchange)
            elif type(record) is AttemptRecord:
                attempts.append(record)
                exchange = opened.get(record.request_id)
                self._complete_attempt(record, exchange)
                if exchange is not None:
                    exchange.flight = None
                    exchange.last = record
                    touched[record.request_id] = exchange
            elif type(record) is Try:
                exchange = opened.get(record.id)
                if exchange is not None:
                    exchange.before, exchange.last = _used_so_far(exchange), None
                    exchange.flight = record
                    touched[record.id] = exchange

    def end_life(self, life: str, wall_ns: int) -> list[Record]:
        """The life is over and wholly read: what it left open is closed as interrupted, at `wall_ns`, the last moment
        that is known of it. Returns the records that this adds, for observers."""
        added: list[Record] = []
        self._batch.begin(life)
        for exchange in [exchange for exchange in self._open.values() if exchange.life == life]:
            used = _used_so_far(exchange)
            if exchange.flight is not None:
                exchange.last = interrupted_attempt(exchange.begin, exchange.flight, wall_ns)
                self._complete_attempt(exchange.last, exchange)
                self._batch.attempts.append(exchange.last)
                added.append(exchange.last)
            row = interrupted_request(exchange, used, wall_ns)
            _complete_request(row, exchange)
            self._batch.requests.append(row)
            added.append(row)
            self._close(row.id)
        return added

    def forget_life(self, life: str) -> None:
        """Its directory is gone: the checkpoint need not speak of it any more (from the next `take` on)."""
        self._checkpoint.ended.append(life)

    def take(self, positions: dict[str, Position]) -> tuple[Batch, Checkpoint]:
        """What has come together since the last time, with the positions that it brings us to."""
        batch, checkpoint = self._batch, self._checkpoint
        checkpoint.positions = positions
        checkpoint.opened = self._touched
        for exchange in self._touched.values():
            exchange.stored = True
        self._batch, self._checkpoint, self._touched = Batch(), Checkpoint(), {}
        return batch, checkpoint

    def _complete_attempt(self, record: AttemptRecord, exchange: OpenExchange | None) -> None:
        """What it cost, and whose it is. Nobody bills an attempt of which no token came back; of one whose worker died
        nobody knows."""
        if record.input_tokens is not None:
            self._price(record)
        elif record.error_kind != INTERRUPTED:
            record.cost_usd_micro = 0
        if exchange is None:
            return
        begin = exchange.begin
        record.tenant, record.use_case, record.key_id = begin.tenant, begin.use_case, begin.key_id
        if record.cost_usd_micro is None or exchange.cost_usd_micro is None:
            exchange.cost_usd_micro = None
        else:
            exchange.cost_usd_micro += record.cost_usd_micro
        exchange.price_version = record.price_version or exchange.price_version

    def _close(self, id_: str) -> OpenExchange | None:
        exchange = self._open.pop(id_, None)
        if exchange is not None:
            self._touched.pop(id_, None)
            if exchange.stored:
                self._checkpoint.closed.append(id_)
        return exchange


def _complete_request(record: End, exchange: OpenExchange | None) -> None:
    """What its attempts came to. Without a begin no provider was asked, and nothing spent."""
    if exchange is None:
        record.cost_usd_micro = 0 if not record.attempts else None
        return
    record.cost_usd_micro, record.price_version = exchange.cost_usd_micro, exchange.price_version
    last = exchange.last
    if last is not None:
        record.model_served = last.upstream_model
        if last.first_token_us is not None:
            record.first_token_us = max(0, last.started_ns - record.started_ns) // 1000 + last.first_token_us


def interrupted_attempt(begin: Begin, flight: Begin | Try, wall_ns: int) -> AttemptRecord:
    """The row of an attempt that was under way when its worker died: nothing is known but that it started."""
    started_ns = flight.attempt_started_ns if isinstance(flight, Begin) else flight.started_ns
    return AttemptRecord(
        version=VERSION,
        seq=0,
        request_id=begin.id,
        number=flight.number,
        kind=flight.kind,
        provider=flight.provider,
        model=flight.model,
        started_ns=started_ns,
        status=0,
        error_kind=INTERRUPTED,
        retry_reason=flight.retry_reason if isinstance(flight, Try) else None,
        first_byte_us=None,
        first_token_us=None,
        duration_us=max(0, wall_ns - started_ns) // 1000,
        input_tokens=None,
        output_tokens=None,
        cached_tokens=None,
        cache_write_tokens=None,
        reasoning_tokens=None,
        estimated=False,
        finish_reason=None,
        upstream_request_id=None,
        upstream_model=None,
        reused=False,
    )


def _used_so_far(exchange: OpenExchange) -> Usage | None:
    """By the attempts that are finished; None when none of them used anything."""
    last, before = exchange.last, exchange.before
    if last is None or last.input_tokens is None:
        return before
    used = Usage(
        last.input_tokens,
        last.output_tokens or 0,
        last.cached_tokens or 0,
        last.cache_write_tokens or 0,
        last.reasoning_tokens or 0,
        last.estimated,
    )
    return used if before is None else before + used


def interrupted_request(exchange: OpenExchange, used: Usage | None, wall_ns: int) -> End:
    """The row of a request whose worker died. What its client was told is not known (status 0); what its finished
    attempts `used` is."""
    begin, last = exchange.begin, exchange.last
    return End(
        version=VERSION,
        seq=0,
        id=begin.id,
        started_ns=begin.started_ns,
        tenant=begin.tenant,
        use_case=begin.use_case,
        route=begin.route,
        dialect=begin.dialect,
        model_asked=begin.model_asked,
        stream=begin.stream,
        state=INTERRUPTED,
        status=0,
        error_kind=INTERRUPTED,
        attempts=0 if last is None else last.number,
        provider=None if last is None else last.provider,
        model=None if last is None else last.model,
        input_tokens=None if used is None else used.input,
        output_tokens=None if used is None else used.output,
        cached_tokens=None if used is None else used.cached,
        cache_write_tokens=None if used is None else used.cache_write,
        reasoning_tokens=None if used is None else used.reasoning,
        estimated=used is not None and used.estimated,
        first_byte_us=None,
        duration_us=max(0, wall_ns - begin.started_ns) // 1000,
        overhead_us=0,
        bytes_in=begin.bytes_in,
        bytes_out=0,
        key_id=begin.key_id,
        trace=begin.trace,
    )
