"""Where Redis can be: behind a password, TLS, a unix socket, sentinels that fail over, a cluster that moves slots."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from redis_rig import HOST, House, Redis, certificates
from test_redis_authority import level, meter, replicas, told
from test_redis_away import BACK_WITHIN_S, until, watched

from edgegw.limits.meter import BY_CODE, Meter
from edgegw.limits.redis.keys import hash_slot, meter_key
from edgegw.limits.words import Mode

pytestmark = pytest.mark.system

# All that our user needs; docs/limits.md shows the same line.
RIGHTS = (
    "~edgegw:* resetchannels -@all +eval +evalsha +time +hmget +hset +hdel +hgetall +del +pexpire +expire +expireat"
    " +zadd +zrem +zremrangebyscore +zcard +client|setname +ping"
)


async def test_a_user_with_few_rights_and_a_password_that_needs_quoting(redises: House) -> None:
    password = "p@ss/w:rd?#%"
    redis = redises.redis()
    redis.do("ACL", "SETUSER", "gateway", "on", f">{password}", *RIGHTS.split())
    url = f"redis://gateway:{quote(password, safe='')}@{HOST}:{redis.port}"
    async with replicas(url, 2) as (one, other):
        for code in ("tpm", "rpm", "par", "day", "month"):
            assert (await one.lease(meter(code), 100, 100)).mode == Mode.EXACT, one.authority.status()
            one.give_back(meter(code), 600)
            one.spent(meter(code), 30)
            await other.lease(meter(code), 1, 1)
        await asyncio.sleep(1.1)
        assert (one.state, one.authority.tally.failures) == ("exact", {})
        assert one.authority.status()["replicas"] == 2


@pytest.mark.parametrize(("login", "word"), [("", "NOAUTH"), (":wrong@", "WRONGPASS"), (":right@", None)])
async def test_a_password(redises: House, login: str, word: str | None) -> None:
    redis = redises.redis("--requirepass", "right", login=("right",))
    async with replicas(f"redis://{login}{HOST}:{redis.port}") as (one,):
        offer = await one.lease(meter(), 1, 1)
        status = one.authority.status()
        assert offer.mode == (Mode.LOCAL if word else Mode.EXACT)
        assert word is None or word in str(status["reasons"])
        assert "right" not in str(status)
        assert "wrong" not in str(status)


async def test_a_database_of_its_own_and_a_unix_socket(redises: House, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    redis = redises.redis("--unixsocket", str(path))
    for url in (f"redis://{HOST}:{redis.port}/3", f"unix://{path}?db=3"):
        async with replicas(url) as (one,):
            await one.lease(meter("day"), 100, 100)
    client = redis.client()
    client.do("SELECT", 3)
    assert client.do("HGET", meter_key(Meter(BY_CODE["day"], "acme")), "used") == b"200"
    client.close()


async def test_tls_is_checked_for_authority_and_name(redises: House, tmp_path: Path) -> None:
    arguments, ca = certificates(tmp_path)
    redis = Redis(tmp_path / "tls", (*arguments, "--port", "0"))
    redis.arguments = (*redis.arguments, "--tls-port", str(redis.port))
    redis.start()
    try:
        for host, trust, mode in (
            ("localhost", f"?ca={ca}", Mode.EXACT),
            (HOST, f"?ca={ca}", Mode.LOCAL),  # the certificate is for another name
            ("localhost", "", Mode.LOCAL),  # and not of an authority that the system trusts
        ):
            async with replicas(f"rediss://{host}:{redis.port}{trust}") as (one,):
                assert (await one.lease(meter(), 1, 1)).mode == mode, one.authority.status()
    finally:
        redis.end()


# -- sentinels --


async def test_a_failover(redises: House) -> None:
    """The master is killed. From the promotion on it takes less than two seconds, and nobody waits meanwhile."""
    fleet = await asyncio.to_thread(redises.sentinels)
    which = meter("day")
    async with replicas(fleet.url, 2) as (one, other), watched(one):
        one.limits[which] = other.limits[which] = 10_000
        assert (await one.lease(which, 1_000, 1_000)).mode == Mode.EXACT
        assert fleet.master.do("WAIT", 1, 1000) == 1
        fleet.master.kill()
        await until(lambda: one.state == "away", 0.2)
        await asyncio.to_thread(fleet.wait_promoted)
        await until(lambda: one.state == other.state == "exact", BACK_WITHIN_S)
        assert (await other.lease(which, 500, 500)).remaining == 8_500, "what was used is remembered"


async def test_a_planned_failover(redises: House) -> None:
    """The old master goes on taking writes for a while; we leave it when the sentinels say so."""
    fleet = await asyncio.to_thread(redises.sentinels)
    which = meter("day")
    async with replicas(fleet.url, 2) as (one, other), watched(one):
        one.limits[which] = other.limits[which] = 10_000
        assert (await one.lease(which, 1_000, 1_000)).mode == Mode.EXACT
        fleet.sentinels[0].do("SENTINEL", "FAILOVER", "mymaster")
        await asyncio.to_thread(fleet.wait_promoted)
        await until(lambda: _clients(fleet.replica) == 2, BACK_WITHIN_S)
        await until(lambda: one.state == other.state == "exact", 0.5)
        assert (await other.lease(which, 500, 500)).remaining == 8_500
        assert one.authority.tally.failures.keys() <= {"switched", "connection"}


async def test_a_sentinel_that_hangs_or_knows_nothing_is_not_waited_for(redises: House) -> None:
    fleet = redises.sentinels()
    fleet.sentinels[0].signal(signal.SIGSTOP)
    fleet.sentinels[1].do("SENTINEL", "REMOVE", "mymaster")
    async with replicas(fleet.url) as (one,):
        assert one.state == "exact"


def _clients(redis: Redis) -> int:
    return str(redis.do("CLIENT", "LIST")).count("name=edgegw")


# -- a cluster --


def tenant_of(nodes: list[Redis], number: int) -> str:
    """A tenant that node `number` counts."""
    names = (f"tenant-{name}" for name in range(10_000))
    return next(name for name in names if 3 * hash_slot(meter_key(Meter(BY_CODE["day"], name))) // 16384 == number)


async def test_a_cluster(redises: House) -> None:
    """Every node counts its tenants; one that is stopped takes only those away; and slots may move."""
    nodes = await asyncio.to_thread(redises.cluster)
    url = f"redis+cluster://{HOST}:{nodes[0].port},{HOST}:{nodes[1].port}"
    tenants = [tenant_of(nodes, number) for number in range(3)]
    async with replicas(url, 2) as (one, other):
        for tenant in tenants:
            for code in ("day", "par"):
                assert (await one.lease(meter(code, tenant), 200, 200)).mode == Mode.EXACT
                assert (await other.lease(meter(code, tenant), 100, 100)).remaining == 300
        assert [node.do("DBSIZE") > 0 for node in nodes] == [True] * 3
        await asyncio.sleep(1.1)
        assert one.authority.status()["replicas"] == 2
        assert one.authority.tally.failures.keys() <= {"noscript"}

        # All meters of a tenant are in one call; tenants of different slots are not.
        before = sum(node.evalsha_calls() for node in nodes)
        asks = [one.lease(meter(code, tenant), 1, 1) for tenant in tenants for code in ("tpm", "day", "par")]
        await asyncio.gather(*asks)
        assert sum(node.evalsha_calls() for node in nodes) - before in (3, 4, 5), "and perhaps a heartbeat"

        nodes[2].signal(signal.SIGSTOP)
        modes = [(await one.lease(meter("day", tenant), 1, 1)).mode for tenant in tenants]
        assert modes == [Mode.EXACT, Mode.EXACT, Mode.LOCAL]
        assert one.state == "away"
        nodes[2].signal(signal.SIGCONT)
        await until(lambda: one.state == "exact", 10)
        await told()
        assert await level(one, meter("day", tenants[2])) == 600 - 200 - 100 - 2

        await asyncio.to_thread(lambda: _half_moved(nodes, tenants[0], "day")())
        offer = await one.lease(meter("day", tenants[0]), 1, 1)
        assert (offer.mode, offer.remaining) == (Mode.EXACT, 600 - 303), "MOVED is followed at once"
        assert one.authority.tally.failures["moved"] == 1
        assert (await one.lease(meter("day", tenants[0]), 1, 1)).remaining == 600 - 304
        assert one.authority.tally.failures["moved"] == 1, "and remembered"


async def test_a_slot_on_its_way(redises: House) -> None:
    """Half moved: one of a tenant's keys is still here, others are there (ASK), and both are in one call (TRYAGAIN)."""
    nodes = await asyncio.to_thread(redises.cluster)
    tenant = tenant_of(nodes, 0)
    codes = ("day", "par", "month")
    async with replicas(f"redis+cluster://{HOST}:{nodes[0].port}") as (one,):
        for code in codes:
            await one.lease(meter(code, tenant), 100, 100)
        finish = _half_moved(nodes, tenant, "par")
        offers = await asyncio.gather(*(one.lease(meter(code, tenant), 10, 10) for code in codes))
        assert [(offer.mode, offer.remaining) for offer in offers] == [(Mode.EXACT, 490)] * 3
        assert {"tryagain", "ask"} <= one.authority.tally.failures.keys()
        finish()
        offers = await asyncio.gather(*(one.lease(meter(code, tenant), 10, 10) for code in codes))
        assert [(offer.mode, offer.remaining) for offer in offers] == [(Mode.EXACT, 480)] * 3
        assert one.authority.tally.absences == 0


def _half_moved(nodes: list[Redis], tenant: str, code: str) -> Callable[[], None]:
    """The slot of a tenant of node 0 is on its way to node 1, and of its keys only that of `code` is there. Returns
    what ends the move."""
    source, target = nodes[0], nodes[1]
    slot = hash_slot(meter_key(Meter(BY_CODE[code], tenant)))
    ids = [node.do("CLUSTER", "MYID") for node in nodes]
    target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    source.do("MIGRATE", HOST, target.port, meter_key(Meter(BY_CODE[code], tenant)), 0, 1000)

    def finish() -> None:
        for key in source.do("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.do("MIGRATE", HOST, target.port, key, 0, 1000)
        for node in (target, source, nodes[2]):
            node.do("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    return finish


async def test_a_server_of_a_cluster_taken_for_a_single_one_says_so(redises: House) -> None:
    nodes = await asyncio.to_thread(redises.cluster)
    async with replicas(f"redis://{HOST}:{nodes[0].port}") as (one,):
        assert (await one.lease(meter("day", tenant_of(nodes, 2)), 1, 1)).mode == Mode.LOCAL
        assert "CROSSSLOT" in str(one.authority.status().get("reasons")), one.authority.status()


async def test_a_cluster_that_is_not_there(redises: House) -> None:
    redis = redises.redis()
    redis.kill()
    async with replicas(f"redis+cluster://{HOST}:{redis.port}") as (one,):
        assert (await one.lease(meter(), 1, 1)).mode == Mode.LOCAL
        assert one.state == "away"
        assert one.authority.away_s > 0.9
