"""One connection to a PostgreSQL, made when it is needed: the shell of every store that is kept there.

Work is done one piece at a time. Whatever goes wrong, or is cancelled, the connection is given up, and with it a
transaction that was open; the next piece makes a new one. Nothing is expected of a session from one transaction to the
next (no prepared statements, no settings, no locks), so a pooler that shares sessions between transactions may stand in
between.

asyncpg's exceptions stop here: what fails now is a StoreError, what no repetition mends (a value that no column holds)
a RejectedError. Knows no table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar
from urllib.parse import urlencode

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError
from edgegw.settings import PostgresAddress

# For one statement. The server is told the same, so that what we gave up does not go on there.
COMMAND_TIMEOUT_S = 30.0
# The wait for a lock that somebody else holds, and how long the server keeps a transaction of a client that is silent.
LOCK_TIMEOUT_S = 20.0
SILENCE_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 2.0

# SQLSTATE classes of rows that are not taken, whenever they are sent: data exceptions, limits of a row. No value of
# ours violates a constraint: when one complains it is the schema that is not as we left it (a partition is gone, a
# column was added by hand), and rows wait.
_REJECTING = ("22", "54")

BEGIN = (
    # Each statement sees what was committed before it, whatever is the rule for others there.
    "BEGIN ISOLATION LEVEL READ COMMITTED; "
    f"SET LOCAL statement_timeout = '{COMMAND_TIMEOUT_S:.0f}s'; "
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:.0f}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{SILENCE_TIMEOUT_S:.0f}s'; "
    "SET LOCAL client_min_messages = warning; "
    # The journal forgets what is committed: that must outlive the server, whatever is the rule for others there.
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_T = TypeVar("_T")


class Postgres:
    """`opened` is called with every new session before any work is done over it."""

    def __init__(self, address: PostgresAddress, opened: Callable[[Session], Awaitable[object]] | None = None) -> None:
        self._address = address
        self._opened = opened
        self._session: Session | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[Session], Awaitable[_T]]) -> _T:
        """What `work` returns; a transaction is its own to begin (BEGIN) and to commit. Raises StoreError,
        RejectedError, SchemaTooNewError."""
        async with self._turn:
            try:
                return await work(await self._connected())
            except (StoreError, RejectedError, SchemaTooNewError):
                self._give_up()
                raise
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                self._give_up()
                raise _meant(error)(f"PostgreSQL {self._address.place}: {_words(error)}") from error
            except (OSError, TimeoutError) as error:
                self._give_up()
                raise StoreError(f"PostgreSQL {self._address.place}: {_words(error)}") from error
            except (ValueError, OverflowError) as error:
                # What asyncpg could not encode.
                self._give_up()
                raise RejectedError(f"PostgreSQL {self._address.place}: {error}") from error
            except BaseException:
                self._give_up()
                raise

    async def close(self) -> None:
        """Wait for what is under way, and say goodbye."""
        async with self._turn:
            session, self._session = self._session, None
            if session is None:
                return
            try:
                await session.close(timeout=CLOSE_TIMEOUT_S)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                session.terminate()

    async def _connected(self) -> Session:
        if self._session is not None and not self._session.is_closed():
            return self._session
        address = self._address
        session = self._session = await asyncpg.connect(
            f"postgresql://?{urlencode(address.tls_options)}",
            host=[host for host, _ in address.hosts],
            port=[port for _, port in address.hosts],
            user=address.username,
            password=None if address.password is None else address.password.reveal(),
            database=address.database,
            timeout=address.connect_timeout_s,
            command_timeout=COMMAND_TIMEOUT_S,
            statement_cache_size=0,
            server_settings={"application_name": address.application_name},
            target_session_attrs=SessionAttribute(address.target_session_attrs),
        )
        if self._opened is not None:
            await self._opened(session)
        return session

    def _give_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.terminate()


def _meant(error: Exception) -> type[StoreError] | type[RejectedError]:
    if isinstance(error, asyncpg.PostgresError):
        return RejectedError if (error.sqlstate or "")[:2] in _REJECTING else StoreError
    return RejectedError if isinstance(error, asyncpg.DataError | ValueError) else StoreError


def _words(error: BaseException) -> str:
    """Without PostgreSQL's DETAIL, which shows the values of a row."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
