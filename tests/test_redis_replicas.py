"""How many replicas there were: over a restart, and for a gateway that starts while Redis is away."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgegw.app.parts import SystemClock
from edgegw.limits.meter import BY_CODE, Meter
from edgegw.limits.redis.authority import RedisAuthority
from edgegw.limits.redis.replicas import FILE_NAME, ReplicasFile
from edgegw.limits.redis.script import shipped
from edgegw.limits.words import Mode
from edgegw.settings import parse_redis

TPM = Meter(BY_CODE["tpm"], "acme").id


def test_what_was_kept_is_read_by_the_next_one(tmp_path: Path) -> None:
    file = ReplicasFile(tmp_path)
    assert file.read() == 1
    for number in (3, 3, 12):
        file.keep(number)
        assert ReplicasFile(tmp_path).read() == number


@pytest.mark.parametrize("text", [b"", b"0", b"-4", b"many", b"4.5", b"\xff\xfe", "٤".encode(), b"9" * 30])
def test_a_file_that_says_nothing_sensible_counts_for_one(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(text)
    assert ReplicasFile(tmp_path).read() == 1


def test_a_place_that_cannot_be_written_is_told_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = ReplicasFile(tmp_path / "nowhere")
    for _ in range(3):
        file.keep(5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.system
async def test_a_gateway_that_starts_while_redis_is_away_grants_its_share_only(tmp_path: Path) -> None:
    ReplicasFile(tmp_path).keep(4)
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        authority = RedisAuthority(
            parse_redis(url), shipped(), lambda meter: 600, lambda tenant: "local", SystemClock(), "me",
            ReplicasFile(tmp_path),
        )  # fmt: skip
        await authority.start()
        offer = await authority.lease(TPM, 600, 1)
        assert (offer.granted, offer.mode) == (600 // 4, Mode.LOCAL)
        await authority.close()
    assert ReplicasFile(tmp_path).read() == 4
