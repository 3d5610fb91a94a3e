"""Which requests are told, to whoever exports spans or writes lines.

`Spans` is an observer of the shipper. Attempts are kept until the End of their request comes, which every request has,
also one whose worker died; then it is decided whether anybody wants to see it, and if so the request goes to the sinks
as a `Told`. What its spans say is wording.py's. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from edgegw.content.record import Content
from edgegw.ledger.record import STRING_BYTES_MAX, AttemptRecord, End, Record
from edgegw.trace import Keeping, Parent, Sampler, own_trace_id, parent_of

# Requests that have a finished attempt and go on: those being retried right now. The oldest gives way.
OPEN_MAX = 4096


class Told(msgspec.Struct, gc=False):
    """A request that is over, and its attempts in order. `parent`: the client's span, if it named one. `content`: what
    was asked and answered, where that is told."""

    end: End
    attempts: list[AttemptRecord]
    parent: Parent | None
    trace_id: str
    content: Content | None = None


class Spans:
    """Observes records. `slow_us`: requests that took longer are told in any case."""

    def __init__(self, sampler: Sampler, slow_us: int, sinks: Sequence[Callable[[Told], None]]) -> None:
        self._keeping = Keeping(sampler, slow_us)
        self._sinks = tuple(sinks)
        self._open: dict[str, list[AttemptRecord]] = {}
        self.forgotten = 0  # attempts whose request was open for too long

    def observe(self, records: Iterable[Record]) -> None:
        """Each record once, completed by the assembler; attempts before the End of their request."""
        last: AttemptRecord | None = None  # mostly its End comes next, and it need not be kept
        for record in records:
            if type(record) is AttemptRecord:
                if last is not None:
                    self._keep(last)
                last = record
            elif type(record) is End:
                attempts = self._open.pop(record.id, None) if self._open else None
                if last is not None:
                    if last.request_id == record.id:
                        attempts = [last] if attempts is None else [*attempts, last]
                    else:
                        self._keep(last)
                    last = None
                self._end(record, attempts)
        if last is not None:
            self._keep(last)

    def _keep(self, attempt: AttemptRecord) -> None:
        attempts = self._open.get(attempt.request_id)
        if attempts is not None:
            attempts.append(attempt)
            return
        if len(self._open) >= OPEN_MAX:
            self.forgotten += len(self._open.pop(next(iter(self._open))))
        self._open[attempt.request_id] = [attempt]

    def _end(self, end: End, attempts: list[AttemptRecord] | None) -> None:
        """Whether anybody wants to see it is decided first: most are not told, where only a share is."""
        parent = None if end.trace is None else parent_of(end.trace, STRING_BYTES_MAX)
        if parent is None:
            trace_id, sampled = own_trace_id(end.id), None
        else:
            trace_id, sampled = parent.trace_id, parent.sampled
        if self._keeping.keeps(trace_id, sampled, end):
            told = Told(end, attempts or [], parent, trace_id)
            for sink in self._sinks:
                sink(told)
