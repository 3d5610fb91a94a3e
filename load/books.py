"""The books of a gateway as plain rows, whichever database they are in, and what else says whether they are right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from load.processes import REPOSITORY, Database, Gateway
from load.served import Line, Row

_T = TypeVar("_T")


async def in_thread(call: Callable[[], _T]) -> _T:
    return await asyncio.to_thread(call)


@dataclass(slots=True)
class Books:
    """Rows of a database, of either kind."""

    file: Path
    database: Database | None

    def rows(self, query: str) -> list[Row]:
        if self.database is not None:
            return self.database.rows(query)
        with contextlib.closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def all(self) -> tuple[list[Row], list[Row]]:
        """Requests, and their tries."""
        requests = self.rows("SELECT id, state, status, attempts, input_tokens, output_tokens FROM requests")
        attempts = self.rows(
            "SELECT request_id, number, status, error_kind, input_tokens, output_tokens, estimated, "
            "upstream_request_id FROM provider_attempts"
        )
        return requests, attempts

    def sums_differ(self) -> list[str]:
        """What usage_hours says and the rows do not, in all."""
        names = "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_usd_micro"
        sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
        by = "tenant, model"
        counted = self.rows(f"SELECT {by}, count(*) AS attempts, {sums} FROM provider_attempts GROUP BY {by}")
        summed = self.rows(
            f"SELECT {by}, sum(attempts) AS attempts, {sums} FROM usage_hours WHERE attempts > 0 GROUP BY {by}"
        )
        requests = self.rows("SELECT count(*) AS requests FROM requests")
        asked = self.rows("SELECT coalesce(sum(requests), 0) AS requests FROM usage_hours")
        there, said = ({str(row) for row in rows} for rows in (counted + requests, summed + asked))
        return [f"rows: {row}" for row in there - said] + [f"sums: {row}" for row in said - there]


def lines_of(log: Path) -> list[Line]:
    """Of the simulator's log."""
    names = "id", "client_request_id", "status", "prompt_tokens", "completion_tokens", "whole"
    found = [json.loads(line) for line in log.read_bytes().splitlines()]
    return [Line(*(one[name] for name in names)) for one in found]


def verify(gateway: Gateway) -> str:
    """What the gateway's own check has to say; nothing when all is right."""
    command = [sys.executable, "-m", "edgegw", "ledger", "verify", "--config", "edgegw.yaml"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    asked = subprocess.run(command, cwd=gateway.state_dir.parent, env=env, capture_output=True, text=True)
    return "" if asked.returncode == 0 else f"exit code {asked.returncode}: {asked.stdout}{asked.stderr}"
