"""Journals against checkpoints and rows: what is shipped is in the rows as it was written, what is not is not.

A row and the checkpoint that covers it are written in one transaction, and a segment is deleted only when that is done.
So within one view of the database the rows end where the checkpoint does, and of what the journal still has before
that place every row must be there. Which row a record makes is not said again here: the Assembler says it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgegw.ledger.assembly import Assembler, unpriced
from edgegw.ledger.books import Books
from edgegw.ledger.questions import YES_OR_NO, Question, Row, Table
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, AttemptRecord, Begin, End
from edgegw.ledger.segment import HEADER_BYTES
from edgegw.ledger.store import Batch, Checkpoint, Position
from edgegw.ledger.verify.findings import Kind, Report
from edgegw.ledger.verify.kept import Found, Kept

IDS_PER_QUESTION = 500
# What a price list said at the time is not asked again; that parts add up is looked at among the rows.
_NOT_COMPARED = frozenset({"cost_usd_micro", "price_version"})
# Known only to whoever has seen the exchange begin.
_OF_THE_BEGIN = frozenset({"tenant", "use_case", "key_id", "model_served", "first_token_us"})


@dataclass(slots=True)
class Standing:
    """What the database says of the journals, in one view. `positions` and `open_lives` are of one journal, the latter
    by the ids of exchanges; `damaged` are of all: how, by journal and life."""

    positions: dict[str, Position] = field(default_factory=dict)
    open_lives: dict[str, str] = field(default_factory=dict)
    open_ids: frozenset[str] = frozenset()
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Doubt:
    """What would be wrong if nothing moved: a life whose rows, or whose end, are ahead of its checkpoint. It is a
    finding when the checkpoint has not reached `seq` (or the life is still there) after a while."""

    life: str
    seq: int
    kind: Kind
    where: str
    what: str


async def read_standing(books: Books, journal: str) -> Standing:
    """As the database has it now."""
    standing = Standing()
    places = ("segment", '"offset"', "seq", "wall_ns", "gaps", "torn", "unreadable")
    text = f"SELECT journal, life, ended, {', '.join(places)} FROM checkpoints ORDER BY journal, life"
    for row in await books.rows(Question(text)):
        numbers = [_number(row[name.strip('"')]) for name in places]
        position = Position(*numbers)
        life = str(row["life"])
        if position.damaged:
            standing.damaged[f"{row['journal'] or journal}/{life}"] = (
                f"{position.gaps} records never seen, {position.torn} places torn, {position.unreadable} unreadable"
            )
        if row["journal"] in (journal, "") and not row["ended"]:
            standing.positions[life] = position
    everybody: set[str] = set()
    for row in await books.rows(Question("SELECT id, life, journal FROM open_exchanges")):
        everybody.add(str(row["id"]))
        if row["journal"] in (journal, ""):
            standing.open_lives[str(row["id"])] = str(row["life"])
    standing.open_ids = frozenset(everybody)
    return standing


class Lives:
    """`set_aside`: keys of rows that no database took, which nobody has to find; `first_id`: older rows may be gone."""

    def __init__(
        self,
        books: Books,
        report: Report,
        standing: Standing,
        set_aside: Collection[tuple[object, object]],
        first_id: str,
    ) -> None:
        self._books = books
        self._report = report
        self._standing = standing
        self._set_aside = set_aside
        self._first_id = first_id
        self.doubts: list[Doubt] = []

    async def check(self, root: Path, names: Sequence[str]) -> None:
        """All lives of a journal: those of these names, whose directories are below `root`, and those of which only
        the checkpoint is left."""
        for name in names:
            await self._check_life(root / name)
        gone = self._standing.positions.keys() | set(self._standing.open_lives.values())
        for life in sorted(gone - set(names)):
            left_open = sum(1 for of in self._standing.open_lives.values() if of == life)
            if left_open:
                what = f"its directory is gone, and {left_open} exchanges of it are open"
                self.doubts.append(Doubt(life, -1, "open exchange", f"life {life}", what))
            else:
                self._report.notes.append(f"life {life} is wholly shipped and deleted; the next start will forget it")
        for where, how in self._standing.damaged.items():
            self._report.found("damaged life", f"life {where}", how)
        await self._check_open()

    async def _check_open(self) -> None:
        """Whoever has a row has ended."""
        ids = sorted(self._standing.open_ids)
        for row in await self._fetch("requests", "id", ids, ("id",)):
            self._report.found("open exchange", f"request {row['id']}", "has its row, and is remembered as open")

    async def _check_life(self, directory: Path) -> None:
        name = directory.name
        at = self._standing.positions.get(name, Position())
        kept = Kept(directory, lambda kind, what: self._report.found(kind, f"life {name}", what))
        replay = _Replay(name, self._standing.open_lives)
        place_told = False
        for portion in kept.read():
            shipped = [found for found in portion if found.record.seq <= at.seq]
            waiting = [found for found in portion if found.record.seq > at.seq]
            self._report.compared["shipped"] += len(shipped)
            self._report.compared["waiting"] += len(waiting)
            if not place_told and (misplaced := _misplaced(at, portion)):
                self._report.found("checkpoint", f"life {name}", misplaced)
                place_told = True
            if shipped:
                await self._compare(name, replay.rows_of(shipped), replay)
            if waiting:
                await self._check_ahead(name, waiting)
        self._report.compared["lives"] += 1
        if kept.moved_on:
            return
        if kept.over and name not in self._standing.positions:
            self._report.notes.append(f"life {name} is over and has no checkpoint: all of it will be read again")
            self.doubts = [doubt for doubt in self.doubts if doubt.life != name]
        self._check_reach(name, at, kept)
        await self._check_begun(name, at, replay)

    def _check_reach(self, name: str, at: Position, kept: Kept) -> None:
        """The checkpoint lies within what the journal has, and nothing is missing between the two."""
        if kept.first > at.seq + 1:
            what = f"stands at record {at.seq}, the journal begins with record {kept.first}"
            self._report.found("checkpoint", f"life {name}", what)
        if kept.last >= at.seq or (kept.last == 0 and at.offset <= HEADER_BYTES):  # in a segment without records yet
            return
        if kept.over and name not in self._standing.open_lives.values():
            self._report.notes.append(
                f"life {name} is wholly shipped and half deleted; the next start will do the rest"
            )
        else:
            what = f"stands at record {at.seq}, the journal ends with record {kept.last}"
            self._report.found("checkpoint", f"life {name}", what)

    async def _check_begun(self, name: str, at: Position, replay: _Replay) -> None:
        """What has begun before the checkpoint and not ended is remembered, or was closed with its life."""
        left = {id_ for id_ in replay.begun if id_ not in self._standing.open_lives}
        for id_ in sorted(replay.ended):
            self._report.found("open exchange", f"request {id_}", f"is remembered as open; life {name} has its end")
        if not left:
            return
        batch = replay.ended_with_life(at.wall_ns)
        batch.requests = [end for end in batch.requests if end.id in left]
        batch.attempts = [attempt for attempt in batch.attempts if attempt.request_id in left]
        await self._compare(name, batch, replay)

    async def _compare(self, life: str, batch: Batch, replay: _Replay) -> None:
        """Each of these rows is there, with these values."""
        requests = {end.id: end for end in batch.requests}
        rows = await self._fetch("requests", "id", list(requests), REQUEST_COLUMNS)
        there: dict[object, Row] = {row["id"]: row for row in rows}
        for id_, end in requests.items():
            where = f"request {id_} of life {life}, record {end.seq}"
            self._compare_row(end, (id_, None), REQUEST_COLUMNS, there.get(id_), replay.knows(id_), where)
        attempts = {(attempt.request_id, attempt.number): attempt for attempt in batch.attempts}
        ids = list({id_: None for id_, _ in attempts})
        found = await self._fetch("provider_attempts", "request_id", ids, ATTEMPT_COLUMNS)
        tried: dict[tuple[object, object], Row] = {(row["request_id"], row["number"]): row for row in found}
        for key, attempt in attempts.items():
            where = f"attempt {key[1]} of request {key[0]} of life {life}, record {attempt.seq}"
            self._compare_row(attempt, key, ATTEMPT_COLUMNS, tried.get(key), replay.knows(key[0]), where)
        replay.forget_ended()

    def _compare_row(
        self,
        record: End | AttemptRecord,
        key: tuple[str, int | None],
        columns: Sequence[str],
        row: Row | None,
        begin_known: bool,
        where: str,
    ) -> None:
        if row is None:
            if key not in self._set_aside and key[0] >= self._first_id:
                self._report.found("row missing", where, "is shipped and has no row")
            return
        left_out = _NOT_COMPARED if begin_known else _NOT_COMPARED | (_OF_THE_BEGIN & _filled_in(record))
        wrong = [
            f"{name} is {row[name]!r}, was written as {value!r}"
            for name in columns
            if name not in left_out and row[name] != (value := self._held(getattr(record, name)))
        ]
        if wrong:
            self._report.found("row changed", where, "; ".join(wrong))

    def _held(self, value: object) -> object:
        """As the database holds it: a text of PostgreSQL has a mark in the place of a NUL (postgres/store.py)."""
        if isinstance(value, str) and self._books.dialect == "postgres":
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return value

    async def _check_ahead(self, life: str, waiting: list[Found]) -> None:
        """Rows of what is not shipped are not there."""
        seqs = {found.record.id: found.record.seq for found in waiting if isinstance(found.record, End)}
        for row in await self._fetch("requests", "id", list(seqs), ("id",)):
            self._doubt_ahead(life, seqs[str(row["id"])], f"request {row['id']}")
        tries = {
            (found.record.request_id, found.record.number): found.record.seq
            for found in waiting
            if isinstance(found.record, AttemptRecord)
        }
        ids = list({id_: None for id_, _ in tries})
        for row in await self._fetch("provider_attempts", "request_id", ids, ("request_id", "number")):
            seq = tries.get((str(row["request_id"]), _number(row["number"])))
            if seq is not None:
                self._doubt_ahead(life, seq, f"attempt {row['number']} of request {row['request_id']}")

    def _doubt_ahead(self, life: str, seq: int, of: str) -> None:
        at = self._standing.positions.get(life, Position()).seq
        what = f"has its row, and is record {seq} of a journal that is shipped up to record {at}"
        self.doubts.append(Doubt(life, seq, "rows ahead", f"{of} of life {life}", what))

    async def _fetch(self, table: Table, key: str, ids: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """Rows of these ids."""
        rows: list[Row] = []
        for some in _portions(ids):
            marks = ", ".join("?" * len(some))
            text = f"SELECT {', '.join(columns)} FROM {table} WHERE {key} IN ({marks})"
            rows += await self._books.rows(Question(text, tuple(some), YES_OR_NO))
        return rows


class _Replay:
    """The records of a life once more: what rows they make, what has `begun` and not ended, and what has `ended` of
    that which is remembered as open."""

    def __init__(self, life: str, remembered: Collection[str]) -> None:
        self._life = life
        self._remembered = remembered
        self._assembler = Assembler(Checkpoint(), unpriced)
        self.begun: set[str] = set()
        self.ended: set[str] = set()
        self._known_until_compared: set[str] = set()

    def rows_of(self, shipped: list[Found]) -> Batch:
        for found in shipped:
            record = found.record
            if isinstance(record, Begin):
                self.begun.add(record.id)
            elif isinstance(record, End):
                if record.id in self._remembered:
                    self.ended.add(record.id)
                if record.id in self.begun:
                    self.begun.remove(record.id)
                    self._known_until_compared.add(record.id)
        self._assembler.add(self._life, [found.record for found in shipped])
        batch, _ = self._assembler.take({})
        return batch

    def ended_with_life(self, wall_ns: int) -> Batch:
        self._assembler.end_life(self._life, wall_ns)
        batch, _ = self._assembler.take({})
        return batch

    def knows(self, id_: str) -> bool:
        """Its begin was among the records."""
        return id_ in self.begun or id_ in self._known_until_compared

    def forget_ended(self) -> None:
        self._known_until_compared.clear()


def _filled_in(record: End | AttemptRecord) -> frozenset[str]:
    """What the Assembler fills in from the begin and from other attempts."""
    if isinstance(record, End):
        return frozenset({"model_served", "first_token_us"})
    return frozenset({"tenant", "use_case", "key_id"})


def _misplaced(at: Position, portion: list[Found]) -> str:
    """The place of a checkpoint and its sequence number are those of one record; what is wrong, if anything."""
    here = (at.segment, at.offset)
    for found in portion:
        seq, place = found.record.seq, found.place
        if seq <= at.seq and (place.segment, place.stop) > here:
            return f"stands at record {at.seq} and before record {seq} (segment {at.segment}, offset {at.offset})"
        if seq > at.seq and (place.segment, place.start) < here:
            return f"stands at record {at.seq} and behind record {seq} (segment {at.segment}, offset {at.offset})"
    return ""


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_QUESTION):
        yield ids[start : start + IDS_PER_QUESTION]


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
