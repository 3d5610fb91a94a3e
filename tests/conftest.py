"""What all tests share: the loop that the product runs on, and the processes of the rig."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop
from postgres_rig import module_postgreses, postgres, postgreses, shared_postgres
from redis_rig import module_redises, redis, redises, shared_redis
from rig import gateway, memory, module_gateways, simulator

__all__ = [
    "gateway",
    "module_gateways",
    "module_postgreses",
    "module_redises",
    "postgres",
    "postgreses",
    "redis",
    "redises",
    "shared_postgres",
    "shared_redis",
    "simulator",
]


# `make check` says --hypothesis-profile=quick: a law that is broken is mostly so within some examples, and `make test`
# tries the full number. No deadlines: how long an example takes tells of the machine, not of the law.
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=30)
hypothesis.settings.load_profile("full")


QUICK = "not system"


def pytest_configure(config: pytest.Config) -> None:
    """Quick tests write some thousand files, and a good part of their time was waiting for the disk."""
    if config.getoption("markexpr") == QUICK and (place := memory()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))


def pytest_collection_finish() -> None:
    """What was collected stays: each look through all objects would look through some thousand tests and their code."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m "not system"`, modules that are for real processes as a whole are not even imported: some load SDKs."""
    if config.getoption("markexpr") != QUICK or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.system\n" in collection_path.read_text("utf-8") or None
