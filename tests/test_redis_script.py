"""The script that counts, run by a real Redis at times of our choosing: it agrees with the shapes in memory (bucket.py)
to the last part of a token, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_rig import Client, Redis

from edgegw.limits.bucket import PARTS, Bucket, stock, window_end
from edgegw.limits.meter import BY_CODE, NO_LIMIT, Meter
from edgegw.limits.redis.keys import hash_slot, meter_key, probe_tag
from edgegw.limits.redis.script import Answer, Operation, What, answers, refusal, room_in_s, shape_of, shipped

pytestmark = pytest.mark.system

# The clock of the server, so that windows written in a test's future do not expire at once.
NOW_S = 2_000_000_000
LIMITS = st.sampled_from([0, 1, 7, 60, 50_000, 10_000_000, 2_000_000_000, 59_999_999_999_999, NO_LIMIT])
KEY = b"edgegw:{t}:x"


class Virtual:
    """The shipped script, with its clock taken from the arguments instead of from TIME."""

    def __init__(self, client: Client) -> None:
        text = shipped().text
        assert text.count(b"redis.call('TIME')") == 1
        self.client = client
        self.text = text.replace(b"redis.call('TIME')", b"{ARGV[#ARGV - 1], ARGV[#ARGV]}")
        self.now_us = NOW_S * 1_000_000

    def run(self, *operations: Operation, replica: str = "r1") -> list[Answer]:
        arguments: list[Any] = [len(operations), *(one.key for one in operations), replica]
        for one in operations:
            arguments += (one.what, one.shape, one.limit, one.a, one.b, one.held)
        reply = self.client.do("EVAL", self.text, *arguments, *divmod(self.now_us, 1_000_000))
        return answers(reply, len(operations))

    def one(self, what: What, code: str, limit: int, a: int, b: int = 0, held: int = 0, replica: str = "r1") -> Answer:
        shape = shape_of(BY_CODE[code])
        return self.run(Operation(what, KEY, shape, limit, a, b, held), replica=replica)[0]

    def jump(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


@pytest.fixture
def virtual(redis: Redis) -> Iterator[Virtual]:
    client = redis.client()
    yield Virtual(client)
    client.close()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 90_000_000),  # microseconds until then
        st.sampled_from(["take", "take", "topup", "give", "charge", "drain", "limit"]),
        st.floats(0.0, 1.5),  # of the limit
        st.integers(-3, 3),  # and a few tokens
    ),
    min_size=1,
    max_size=25,
)
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def both_do(virtual: Virtual, code: str, limit: int, steps: list[tuple[int, str, float, int]]) -> None:
    """The same in Redis and in memory, step by step."""
    virtual.client.do("FLUSHALL")
    virtual.now_us = NOW_S * 1_000_000
    twin = stock(BY_CODE[code], limit, virtual.now_us / 1e6)
    has = 0  # slots of the replica
    for pause_us, action, share, more in steps:
        virtual.now_us += pause_us
        now_s, tokens = virtual.now_us / 1e6, max(0, int(share * limit) + more)
        granted = 0
        if action == "limit":
            limit = [1, 60, 59_999_999_999_999, 777_777, limit, 0, NO_LIMIT][more + 3]
            twin.resize(limit, now_s)
            answer = virtual.one("take", code, limit, 0, 0)
        elif action in ("take", "topup"):
            need = tokens // 2 if action == "take" else 0
            granted = twin.take_between(need, tokens, now_s)
            answer = virtual.one("take", code, limit, need, tokens)
            has += granted
        elif action == "drain":
            before = twin.level(now_s)
            twin.drain(tokens, now_s)
            answer = virtual.one("drain", code, limit, tokens)
            granted = max(0, min(before, tokens))
            has += granted
        else:
            tokens = -tokens if action == "charge" else min(tokens, has) if code == "par" else tokens
            twin.give(tokens, now_s)
            answer = virtual.one("give", code, limit, tokens)
            has -= tokens
        assert (answer.granted, answer.level) == (granted, twin.level(now_s)), (action, tokens)
        if isinstance(twin, Bucket):
            assert answer.rest == twin._level % PARTS
        if action == "give" and tokens:
            assert twin.full(now_s) == (virtual.client.do("EXISTS", KEY) == 0), "a full one leaves no key behind"
        need = max(1, limit // 2)
        room_s = room_in_s(twin.shape, need, limit, answer)
        at_s = twin.room_at(need, now_s)
        assert room_s is None if at_s == float("inf") else room_s == pytest.approx(at_s - now_s, rel=1e-9, abs=2e-6)


@SHARED
@given(limit=LIMITS, steps=STEPS)
def test_what_refills_is_counted_as_in_memory(virtual: Virtual, limit: int, steps: Any) -> None:
    """To the last part, with limits up to NO_LIMIT, and debts."""
    both_do(virtual, "tpm", limit, steps)


@SHARED
@given(code=st.sampled_from(["day", "month"]), limit=LIMITS, steps=STEPS, pause_s=st.integers(0, 40 * 86_400))
def test_windows_are_counted_as_in_memory(virtual: Virtual, code: str, limit: int, steps: Any, pause_s: int) -> None:
    first = steps[0]
    both_do(virtual, code, limit, [*steps[:5], (pause_s * 1_000_000, *first[1:]), *steps[5:]])


@SHARED
@given(limit=LIMITS, steps=STEPS)
def test_slots_of_one_replica_are_counted_as_in_memory(virtual: Virtual, limit: int, steps: Any) -> None:
    both_do(virtual, "par", min(limit, 10**14), steps)


@pytest.mark.parametrize("looks", [1, 7, 1000])
def test_looking_often_changes_nothing(virtual: Virtual, looks: int) -> None:
    """Also when every look writes (a token is taken and given back)."""
    virtual.one("take", "tpm", 777_777, 777_777, 777_777)
    for _ in range(looks):
        virtual.now_us += 7_000_001 // looks
        virtual.one("drain", "tpm", 777_777, 1)
        virtual.one("give", "tpm", 777_777, 1)
    elapsed_us = looks * (7_000_001 // looks)
    answer = virtual.one("take", "tpm", 777_777, 0)
    assert answer.level * PARTS + answer.rest == elapsed_us * 777_777


def test_every_day_and_month_of_four_centuries_ends_as_the_calendar_says(virtual: Virtual) -> None:
    for year in range(2034, 2434, 7):
        for month in range(1, 13):
            for day in (1, 28, 30 if month != 2 else 27):
                at = datetime(year, month, day, 23, 59, 59, 999_999, tzinfo=UTC)
                virtual.now_us = round(at.timestamp() * 1e6)
                for code in ("day", "month"):
                    ends_s = window_end(virtual.now_us / 1e6, code == "month")
                    assert virtual.one("take", code, 5, 0).rest == round(ends_s * 1e6) - virtual.now_us, at


def test_time_that_runs_backwards_refills_nothing(virtual: Virtual) -> None:
    virtual.one("take", "tpm", 60, 60, 60)
    for seconds, level in ((-30, -1), (29, -2), (2, -2), (10, 7)):
        virtual.jump(seconds)
        assert virtual.one("give", "tpm", 60, -1).level == level


def test_the_clock_of_another_server_stops_nobody(virtual: Virtual) -> None:
    """After a failover to one that is an hour behind, the refill goes on at once."""
    virtual.one("take", "tpm", 60, 60, 60)
    virtual.jump(-3600)
    assert virtual.one("give", "tpm", 60, -1).level == -1
    virtual.jump(30)
    assert virtual.one("take", "tpm", 60, 0).level == 29


# -- slots of several replicas --


def test_slots_of_a_replica_that_died_are_free_again(virtual: Virtual) -> None:
    for replica in ("r1", "r2", "r3"):
        assert virtual.one("take", "par", 9, 3, 3, replica=replica).granted == 3
    assert virtual.one("take", "par", 9, 1, 1).granted == 0
    for _ in range(3):
        virtual.jump(5)
        virtual.one("touch", "par", 9, 3, replica="r2")
    assert virtual.one("take", "par", 9, 1, 9, held=0, replica="r4").granted == 6, "r1 and r3 were silent for 15 s"
    fields = virtual.client.do("HKEYS", KEY)
    assert {field for field in fields if field.startswith(b"has:")} == {b"has:r2", b"has:r4"}


def test_who_was_taken_for_dead_has_its_slots_again_at_its_next_word(virtual: Virtual) -> None:
    virtual.one("take", "par", 4, 2, 2, replica="r1")
    virtual.jump(20)
    assert virtual.one("take", "par", 4, 1, 4, replica="r2").granted == 4
    assert virtual.one("take", "par", 4, 1, 1, held=2, replica="r1") == Answer(0, -2, 0), "six of four are in use"
    assert virtual.one("give", "par", 4, 1, held=2, replica="r1").level == -1
    assert virtual.one("give", "par", 4, 4, held=4, replica="r2").level == 3


def test_what_a_replica_says_it_has_counts(virtual: Virtual) -> None:
    """An answer that was lost, or a Redis that forgot: the next touch mends it, upwards and downwards."""
    virtual.one("take", "par", 10, 6, 6)
    virtual.one("take", "par", 10, 2, 2, replica="r2")
    assert virtual.one("touch", "par", 10, 1).level == 7
    assert virtual.one("touch", "par", 10, 9).level == -1
    virtual.client.do("FLUSHALL")
    assert virtual.one("touch", "par", 10, 9, held=9).level == 1
    assert virtual.one("give", "par", 10, 1, held=2, replica="r2").level == 0


def test_a_replica_gives_back_no_slots_of_others(virtual: Virtual) -> None:
    virtual.one("take", "par", 4, 3, 3)
    assert virtual.one("give", "par", 4, 3, replica="r2").level == 1


def test_replicas_are_those_who_were_heard_within_five_seconds(virtual: Virtual) -> None:
    beat = Operation("beat", b"edgegw:replicas")
    assert [virtual.run(beat, replica=replica)[0].granted for replica in ("r1", "r2", "r1")] == [1, 2, 2]
    virtual.jump(5)
    assert virtual.run(beat)[0].granted == 2
    virtual.jump(1)
    assert virtual.run(beat, replica="r3")[0].granted == 2, "r2 is gone"
    assert virtual.run(Operation("beat", b"edgegw:replicas", a=1), replica="r1")[0].granted == 1


# -- a call --


def test_operations_of_a_call_see_each_other_in_their_order(virtual: Virtual) -> None:
    take = Operation("take", KEY, b"R", 100, 60, 60)
    back = Operation("give", KEY, b"R", 100, 30)
    other = Operation("take", b"edgegw:{t}:y", b"D", 5, 9, 9)
    told = virtual.run(take, take, back, take, other)
    assert [(answer.granted, answer.level) for answer in told] == [(60, 40), (0, 40), (0, 70), (60, 10), (0, 5)]


def test_what_somebody_else_put_under_our_name_stops_nobody(virtual: Virtual) -> None:
    virtual.client.do("SET", KEY, "mine")
    other = b"edgegw:{t}:y"
    told = virtual.run(Operation("take", KEY, b"R", 9, 1, 1), Operation("take", other, b"R", 9, 1, 1))
    assert [answer.granted for answer in told] == [1, 1]


@pytest.mark.parametrize(("code", "limit", "used", "least_s", "most_s"), [
    ("tpm", 60, 30, 29, 91), ("tpm", 60, 600, 599, 661), ("tpm", 1, 1_000_000, 31 * 86_400, 32 * 86_400),
    ("tpm", 0, 5, 3600, 2 * 86_400), ("par", 5, 2, 14, 30),
])  # fmt: skip
def test_every_key_expires(virtual: Virtual, code: str, limit: int, used: int, least_s: int, most_s: int) -> None:
    virtual.one("give", code, limit, -used)
    assert least_s <= virtual.client.do("PTTL", KEY) / 1000 <= most_s


def test_windows_expire_after_their_end(virtual: Virtual) -> None:
    virtual.one("take", "day", 5, 1, 1)
    ends_s = window_end(NOW_S, monthly=False)
    assert ends_s <= virtual.client.do("EXPIRETIME", KEY) <= ends_s + 60


# -- keys, slots, words --


def test_all_meters_of_a_tenant_lie_in_one_slot_whatever_it_is_called() -> None:
    for tenant in ("acme", "a{b}c", "}{", "grüße 東京", "a:b", "{}"):
        keys = [
            meter_key(Meter(BY_CODE[code], tenant, scope, name))  # type: ignore[arg-type]
            for code, scope, name in (("tpm", "", ""), ("par", "key", "k:{1}"), ("day", "model", "sim/*"))
        ]
        assert len(set(keys)) == 3
        assert len({hash_slot(key) for key in keys}) == 1
        assert all(key.startswith(b"edgegw:{") and key.count(b"{") == key.count(b"}") == 1 for key in keys)


def test_a_probe_lies_where_it_should() -> None:
    assert hash_slot(probe_tag({77}) + b"x") == 77


@pytest.mark.parametrize(("message", "kind"), [
    ("NOSCRIPT No matching script. Please use EVAL.", "noscript"),
    ("MOVED 3999 127.0.0.1:6381", "moved"),
    ("READONLY You can't write against a read only replica. script: 123, on @user_script:1.", "readonly"),
    ("ERR Error running script (call to f_12ab): @user_script:12: @user_script: 12: -OOM command not", "oom"),
    ("OOM command not allowed when used memory > 'maxmemory'. script: ab, on @user_script:4.", "oom"),
    ("LOADING Redis is loading the dataset in memory", "loading"),
    ("ERR The user executing the script can't run this command or subcommand script: 12", "noperm"),
    ("ERR unknown command", "other"),
])  # fmt: skip
def test_a_refusal_is_known_by_its_word(message: str, kind: str) -> None:
    assert refusal(message) == kind
