"""Looking up a credential: who is found, for how long, and that a refusal tells nothing, not even by its time."""

from __future__ import annotations

import time
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.keys.making import make_key
from edgegw.keys.table import CREDENTIAL_BYTES_MAX, NEVER_NS, Key, KeyTable, digest_of, is_label, settings_keys
from edgegw.settings import KeySettings, OwnLimits, TenantSettings

NOW_NS = 1_800_000_000 * 10**9
TIMING_ROUNDS = 1_500
LOOKUPS_PER_ROUND = 20
TIMING_TRIES = 5  # a machine that is busy with something else may spoil some


def key(credential: bytes, id_: str = "key_1", **fields: object) -> Key:
    return Key(id_, digest_of(credential), "acme", **fields)  # type: ignore[arg-type]


def test_a_key_is_found_by_its_whole_credential_alone() -> None:
    table = KeyTable()
    table.put(key(b"egw_secret"))
    found = table.find(b"egw_secret", NOW_NS)
    assert found is not None
    assert (found.id, found.tenant) == ("key_1", "acme")
    for other in (b"", b"egw_secre", b"egw_secret ", b"EGW_SECRET", digest_of(b"egw_secret"), bytes(32)):
        assert table.find(other, NOW_NS) is None


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_no_other_bytes_open_the_door(mine: bytes, other: bytes) -> None:
    table = KeyTable()
    table.put(key(mine))
    assert (table.find(mine, NOW_NS) is not None) is (len(mine) <= CREDENTIAL_BYTES_MAX)
    assert other == mine or table.find(other, NOW_NS) is None


@pytest.mark.parametrize(
    ("expires_ns", "revoked_ns", "ends_ns"),
    [(None, None, NEVER_NS), (NOW_NS, None, NOW_NS), (None, 5, 5), (NOW_NS, 5, 5), (5, NOW_NS, 5)],
)
def test_a_key_is_valid_until_the_first_of_its_ends(
    expires_ns: int | None, revoked_ns: int | None, ends_ns: int
) -> None:
    table = KeyTable()
    table.put(key(b"k", expires_ns=expires_ns, revoked_ns=revoked_ns))
    assert table.find(b"k", ends_ns - 1) is not None
    assert table.find(b"k", ends_ns) is None
    assert len(table) == 1


def test_a_changed_key_replaces_what_it_was() -> None:
    table = KeyTable()
    assert table.put(key(b"old", limits=OwnLimits(requests_per_minute=1))) is None
    old = table.put(key(b"new"))
    assert old is not None
    assert old.limits.requests_per_minute == 1
    assert table.find(b"old", NOW_NS) is None
    assert table.find(b"new", NOW_NS) is not None
    table.put(key(b"new", revoked_ns=1))
    assert table.find(b"new", NOW_NS) is None


def test_keys_that_are_not_retained_are_gone() -> None:
    table = KeyTable()
    for number in range(4):
        table.put(key(b"%d" % number, f"key_{number}"))
    assert [gone.id for gone in table.retain({"key_0", "key_2"})] == ["key_1", "key_3"]
    assert [table.find(b"%d" % number, NOW_NS) is not None for number in range(4)] == [True, False, True, False]


def test_the_settings_have_the_last_word_about_their_keys() -> None:
    acme = TenantSettings(
        name="acme",
        keys={"ci": KeySettings(name="ci", digest=digest_of(b"shared"), expires_ns=9, acts_for=("beta",))},
    )
    (fixed,) = settings_keys({"acme": acme})
    assert (fixed.id, fixed.tenant, fixed.expires_ns, fixed.acts_for) == ("acme.ci", "acme", 9, ("beta",))
    table = KeyTable([fixed])
    table.put(key(b"shared", expires_ns=None))
    assert table.find(b"shared", 8) == fixed
    assert table.find(b"shared", 9) is None
    table.put(key(b"other"))  # the same id goes to another credential
    assert table.retain(()) != []
    assert table.find(b"shared", 8) == fixed
    assert table.find(b"other", 8) is None


def test_whom_a_key_may_act_for() -> None:
    assert [key(b"k", acts_for=("beta",)).may_act_for(name) for name in ("acme", "beta", "gamma", "*")] == [
        True,
        True,
        False,
        False,
    ]
    assert key(b"k", acts_for=("*",)).may_act_for("anybody")


def test_what_a_new_key_is() -> None:
    made, credential = make_key("acme", "ci", NOW_NS, None, (), OwnLimits())
    assert (len(credential), credential[:4], made.prefix) == (47, "egw_", credential[:12])
    assert made.digest == digest_of(credential.encode())
    assert made.id.startswith("key_")
    assert credential not in repr(made)
    assert len({make_key("a", "", 0, None, (), OwnLimits())[1] for _ in range(100)}) == 100


@pytest.mark.parametrize(("text", "good"), [("acme", True), ("", False), (" a", False), ("a\x1f", False), ("é", True)])
def test_names(text: str, good: bool) -> None:
    assert is_label(text) is good


def test_unknown_expired_and_revoked_take_the_same_time() -> None:
    """Medians of many short, interleaved rounds within 5 %, in a table of 10,000 keys."""
    table = KeyTable()
    for number in range(10_000):
        credential = b"egw_%043d" % number
        ended = {1: {"expires_ns": 5}, 2: {"revoked_ns": 5}}.get(number % 3, {})
        table.put(key(credential, f"key_{number}", **ended))
    kinds = {"expired": b"egw_%043d" % 4_999, "revoked": b"egw_%043d" % 5_000, "unknown": b"egw_%043d" % 10_001}
    assert [table.find(credential, NOW_NS) for credential in kinds.values()] == [None] * 3
    apart = min(_apart(table, kinds) for _ in range(TIMING_TRIES))
    assert apart <= 0.05


def _apart(table: KeyTable, kinds: dict[str, bytes]) -> float:
    """How far the medians are apart, as a share of the least."""
    spent: dict[str, list[int]] = {kind: [] for kind in kinds}
    order = list(kinds)
    find, now = table.find, time.perf_counter_ns
    for _ in range(TIMING_ROUNDS):
        order.append(order.pop(0))
        for kind in order:
            credential = kinds[kind]
            started_ns = now()
            for _ in range(LOOKUPS_PER_ROUND):
                find(credential, NOW_NS)
            spent[kind].append(now() - started_ns)
    medians = [median(figures) for figures in spent.values()]
    return max(medians) / min(medians) - 1
