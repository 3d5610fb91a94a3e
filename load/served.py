"""The books against what a provider says it has served and what clients say they have seen, request by request.

A gateway tells its provider who asks (`x-client-request-id`) and keeps what the provider calls each request
(`upstream_request_id`), so the simulator's log and the rows can be laid side by side:

- lost: a request that reached the provider, or that a client has a reply of, and no row; a try without its row;
- duplicated: two rows for what was one try, or a try that nobody served and that is said to be good;
- wrong: a whole answer that is not `complete` in the books, other tokens than the provider's.

Pure: lines, replies and rows in, findings out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

# How a request may have ended when its client did not see all of an answer that the provider has written.
CUT_SHORT = frozenset({"interrupted", "drained", "client_gone", "client_slow"})


@dataclass(frozen=True, slots=True)
class Line:
    """Of the simulator's log."""

    id: str
    request: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    whole: bool

    @property
    def silent(self) -> bool:
        """Not a byte of an answer was sent. The gateway may then have asked again within the same try: that is how one
        finds out that a connection which was kept is not there any more."""
        return self.status in (0, 200) and not self.whole and self.prompt_tokens == self.completion_tokens == 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client has seen, at least the head of it. `tokens`: what the reply itself said was used."""

    request: str
    status: int
    whole: bool
    tokens: tuple[int, int] | None


@dataclass(slots=True)
class Findings:
    """`what`: the first of each kind, in words."""

    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    what: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.lost or self.duplicated or self.wrong)

    def add(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.what) < 20:
            self.what.append(f"{kind}: {what}")


@dataclass(slots=True)
class Sums:
    """Tokens of the prompts and the answers: what the provider counted of tries whose row has the provider's usage,
    each answer once, and what those rows say."""

    counted: set[str] = field(default_factory=set)
    served: tuple[int, int] = (0, 0)
    booked: tuple[int, int] = (0, 0)

    def add(self, line: Line, row: Row) -> None:
        if line.id not in self.counted:
            self.counted.add(line.id)
            self.served = (self.served[0] + line.prompt_tokens, self.served[1] + line.completion_tokens)
        self.booked = (self.booked[0] + row["input_tokens"], self.booked[1] + row["output_tokens"])


def compare(
    lines: Iterable[Line],
    replies: Iterable[Reply],
    requests: Sequence[Row],
    attempts: Sequence[Row],
    *,
    full: bool = False,
) -> tuple[Findings, Sums]:
    """`full`: the journal had no room for a while, and refusals for want of it (503) need no row."""
    findings, sums = Findings(), Sums()
    rows = {row["id"]: row for row in requests}
    tries: dict[str, list[Row]] = defaultdict(list)
    for row in attempts:
        tries[row["request_id"]].append(row)
    served: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        served[line.request].append(line)
    if len(rows) != len(requests):
        findings.add("duplicated", f"{len(requests) - len(rows)} requests have two rows")
    for id_ in served.keys() | tries.keys() | rows.keys():
        if id_ not in rows:
            findings.add("lost", f"{id_} was served {len(served[id_])} times and has no row")
            continue
        _one_request(findings, rows[id_], served[id_], tries[id_], sums)
    for reply in replies:
        if reply.status == 503 and full and reply.request not in rows:
            continue
        _one_reply(findings, reply, rows.get(reply.request), tries[reply.request])
    if sums.booked != sums.served:
        findings.add("wrong", f"{sums.booked} tokens are in the rows, {sums.served} were served")
    return findings, sums


def _one_request(findings: Findings, row: Row, served: list[Line], tries: list[Row], sums: Sums) -> None:
    id_ = row["id"]
    numbers = sorted(one["number"] for one in tries)
    if numbers != list(range(1, row["attempts"] + 1)):
        kind = "lost" if len(numbers) < row["attempts"] else "duplicated"
        findings.add(kind, f"{id_} has {row['attempts']} tries, and rows of {numbers}")
    named = Counter(one["upstream_request_id"] for one in tries if one["upstream_request_id"])
    for name, count in named.items():
        if count > 1:
            findings.add("duplicated", f"{id_}: {name} is in {count} rows")
    by_id = {line.id: line for line in served}
    nameless = [one for one in tries if not one["upstream_request_id"]]
    unnamed = [line for line in served if line.id not in named and not line.silent]
    if len(unnamed) > len(nameless):
        findings.add("lost", f"{id_} was served {len(served)} times and has {len(tries)} tries")
    for one in nameless:
        if one["error_kind"] is None:
            findings.add("wrong", f"{id_} try {one['number']} is good, and nobody knows by whom")
    for one in tries:
        line = by_id.get(one["upstream_request_id"] or "")
        if one["upstream_request_id"] and line is None:
            findings.add("duplicated", f"{id_} try {one['number']}: {one['upstream_request_id']} was never served")
        elif line is not None:
            _one_try(findings, row, one, line, sums)


def _one_try(findings: Findings, row: Row, one: Row, line: Line, sums: Sums) -> None:
    where = f"{row['id']} try {one['number']}"
    counted = one["input_tokens"] is not None and not one["estimated"]
    if counted:
        sums.add(line, one)
        if (one["input_tokens"], one["output_tokens"]) != (line.prompt_tokens, line.completion_tokens):
            findings.add(
                "wrong",
                f"{where}: {one['input_tokens']} + {one['output_tokens']} tokens, served were "
                f"{line.prompt_tokens} + {line.completion_tokens}",
            )
    elif line.whole and one["error_kind"] is None and row["state"] not in CUT_SHORT:
        findings.add("wrong", f"{where}: a whole answer without its usage, and the request is {row['state']}")
    if one["error_kind"] is None and row["state"] == "complete" and not line.whole:
        findings.add("wrong", f"{where} is good, and its answer was never whole")
    if one["status"] and one["status"] != line.status:
        findings.add("wrong", f"{where} has status {one['status']}, served was {line.status}")


def _one_reply(findings: Findings, reply: Reply, row: Row | None, tries: list[Row]) -> None:
    if row is None:
        findings.add("lost", f"{reply.request}: a client has a reply ({reply.status}), and there is no row")
        return
    if reply.whole and reply.status == 200:
        if row["state"] != "complete":
            findings.add("wrong", f"{reply.request}: a client has the whole answer, the row is {row['state']}")
        elif reply.tokens is not None:
            last = max(tries, key=lambda one: int(one["number"]))  # the request's are the sum of all of its tries
            if reply.tokens != (last["input_tokens"], last["output_tokens"]):
                findings.add("wrong", f"{reply.request}: a client was told {reply.tokens}, the row has others")
    if reply.whole and reply.status != row["status"]:
        findings.add("wrong", f"{reply.request}: a client was told {reply.status}, the row says {row['status']}")
