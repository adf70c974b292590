"""One connection to the server: what is asked in one call travels in one round trip and is one transaction.

Nothing is ever sent twice from here: who gets no answer in time is told that the outcome is unknown, and the connection is
given up. An error that the server answers is another thing: then nothing was done (:class:`RejectedError`).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Self, cast, final

import psycopg
from psycopg import errors

from tenure.errors import StoreUnavailableError, StoreUnfitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tenure.stores.postgres.address import Address

type Row = tuple[Any, ...]

MIGRATION_S = 60.0

# Each finds its rows one by one through an index: a plan that was made while a table was small must not go through all of it
# when it has grown.
_SET_UP = """
SELECT set_config('search_path', %s, false), set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false), set_config('jit', 'off', false),
    set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
_LOOK = "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('synchronous_commit')"

_ENDINGS = ("08", "57P", "25006")
"""Errors after which a connection is of no use: it fell, the server goes down, it has become a standby."""
_BAD_VALUES = ("22", "54")
_LOGIN_REFUSED = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "server does not support SSL",
    "certificate verify failed",
    "does not match host name",
)
"""What a person must change. Not whatever has to do with TLS: a server that goes down answers its first message with an error."""


@final
@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and its parameters."""

    sql: LiteralString
    parameters: tuple[object, ...] = ()


class RejectedError(Exception):
    """The server answered with an error: the whole transaction was undone.

    `waited`: it was for a lock, or for too long; `bad_value`: what was sent cannot be kept.
    """

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(first_line(error))
        self.waited = isinstance(error, errors.LockNotAvailable | errors.QueryCanceled | errors.DeadlockDetected)
        self.bad_value = (error.sqlstate or "").startswith(_BAD_VALUES)


def first_line(error: BaseException) -> str:
    """An error in one line, for messages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@final
class Link:
    """A connection, from :meth:`connect` to :meth:`close`; one caller at a time. Once it is lost it stays lost."""

    def __init__(self, connection: psycopg.AsyncConnection[Row], address: Address) -> None:
        self._connection = connection
        self._address = address
        self.pooled = False
        """Something stands between us and the server, and names another backend than the one that answers."""

    @classmethod
    async def connect(cls, address: Address, search_path: str, *, statement_s: float | None = None) -> Self:
        """Connect and set up: where the names lead, how long the server works for us, that commits are durable.

        :raises StoreUnavailableError: nobody answers there in time, or only a standby.
        :raises StoreUnfitError: the server refuses the login, or does not take our settings.
        """
        try:
            async with asyncio.timeout(address.timeout_s):
                connection = await psycopg.AsyncConnection.connect(
                    address.conninfo,
                    autocommit=True,
                    prepare_threshold=None,
                    application_name="tenure",
                    client_encoding="UTF8",
                    tcp_user_timeout=str(round(address.timeout_s * 1000)),
                )
        except TimeoutError:
            raise StoreUnavailableError(
                f"{address} did not accept a connection within {address.timeout_s:g} s"
            ) from None
        except psycopg.Error as error:
            raise _no_connection(address, error) from None
        link = cls(connection, address)
        try:
            await link._set_up(search_path, statement_s or address.statement_s)
        except RejectedError as error:
            await link.close()
            raise StoreUnfitError(f"{address} does not take the store's settings: {error}") from None
        except BaseException:
            await link.close()
            raise
        return link

    async def _set_up(self, search_path: str, statement_s: float) -> None:
        """:raises StoreUnfitError: something keeps synchronous_commit off."""
        statement = f"{round(statement_s * 1000)}ms"
        lock = f"{round(statement_s * 1000 * 2 / 3)}ms"
        _, ((pid, standby, durable),) = await self.run(
            Statement(_SET_UP, (search_path, statement, lock, statement)), Statement(_LOOK)
        )
        if standby:
            raise StoreUnavailableError(
                f"{self._address} is a standby: everything is read from and written to the primary"
            )
        if durable not in ("on", "remote_apply"):
            raise StoreUnfitError(
                f"{self._address} keeps synchronous_commit at {durable!r} although the store sets it: an accepted write could "
                "be lost in a crash; let this role set synchronous_commit, and connect to the server itself"
            )
        self.pooled = pid != self._connection.info.backend_pid
        if not self.pooled:
            self._connection.prepare_threshold = 0  # each at its first use

    @property
    def lost(self) -> bool:
        """It is known to be closed."""
        return self._connection.closed

    @property
    def usable(self) -> bool:
        """It is open, and the server has not said goodbye while nobody listened."""
        if self._connection.closed:
            return False
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    async def run(
        self, *statements: Statement, timeout_s: float | None = None, gone: asyncio.Future[None] | None = None
    ) -> list[list[Row]]:
        """All of the statements in one transaction, and their rows. `gone` is done when nobody waits for them any more.

        :raises RejectedError: the server refused one, and undid all. :raises StoreUnavailableError: the outcome is unknown.
        """
        timeout_s = timeout_s or self._address.timeout_s
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        # A task of its own, as the driver's own way out of a cancellation would first ask the server; it sends at once.
        task = asyncio.Task(self._run(statements, over), loop=loop, eager_start=True)
        overdue = False
        try:
            await _either(over, gone, timeout_s)
            overdue = not task.done()
            if overdue:
                self._cut()  # the driver's own way out would first ask the server, which may be what does not answer
            return await task
        except psycopg.Error as error:
            state = error.sqlstate or ""
            if state and not overdue and not self._connection.closed and not state.startswith(_ENDINGS):
                raise RejectedError(error) from None
            await self.close()
            why = f"no answer within {timeout_s:g} s" if overdue else first_line(error)
            raise StoreUnavailableError(f"{self._address}: {why}; repeat the request unchanged") from None
        except BaseException:
            self._cut()
            with suppress(psycopg.Error):
                await asyncio.shield(task)
            raise

    async def _run(self, statements: Sequence[Statement], over: asyncio.Future[None]) -> list[list[Row]]:
        """`over` is done with it: whoever waits for a task itself wakes up a turn of the loop later."""
        try:
            return await self._execute(statements)
        finally:
            _end(over)

    async def _execute(self, statements: Sequence[Statement]) -> list[list[Row]]:
        connection = self._connection
        if len(statements) == 1:
            cursors = [await connection.execute(statements[0].sql, statements[0].parameters)]
        else:
            async with connection.pipeline():  # up to its end it is one transaction
                cursors = [await connection.execute(one.sql, one.parameters) for one in statements]
        # Not `description`, which makes an object for each column.
        return [await one.fetchall() if one.pgresult and one.pgresult.nfields else [] for one in cursors]

    async def script(self, text: str) -> None:
        """Several statements in one text, without parameters; for migrations.

        :raises RejectedError: one was refused.
        """
        try:
            async with asyncio.timeout(MIGRATION_S):
                await self._connection.execute(cast("LiteralString", text), prepare=False)
        except psycopg.Error as error:
            if error.sqlstate and not self._connection.closed:
                raise RejectedError(error) from error
            raise StoreUnavailableError(f"{self._address}: {first_line(error)}") from None

    async def notifications(self, timeout_s: float) -> AsyncIterator[str]:
        """The payloads of what is notified, until nothing came for that long.

        :raises StoreUnavailableError: the connection fell.
        """
        try:
            async for one in self._connection.notifies(timeout=timeout_s):
                yield one.payload
        except psycopg.Error as error:
            raise StoreUnavailableError(f"{self._address}: {first_line(error)}") from None

    def _cut(self) -> None:
        """End the conversation with the server at once; whatever waits for it is told that the connection fell."""
        if not self._connection.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as own:
                own.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Idempotent."""
        with suppress(psycopg.Error):
            await self._connection.close()


async def _either(over: asyncio.Future[None], gone: asyncio.Future[None] | None, timeout_s: float) -> None:
    """Wait until the first is done, or the other one, or for so long."""
    late = over.get_loop().call_later(timeout_s, _end, over)

    def end(_: asyncio.Future[None]) -> None:
        _end(over)

    if gone is not None:
        gone.add_done_callback(end)
    try:
        await over
    finally:
        late.cancel()
        if gone is not None:
            gone.remove_done_callback(end)


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _no_connection(address: Address, error: psycopg.Error) -> StoreUnavailableError | StoreUnfitError:
    said = first_line(error)
    if any(words in str(error) for words in _LOGIN_REFUSED):
        return StoreUnfitError(
            f"{address} refused the login: {said}; correct the store's URL, or create the role or database"
        )
    return StoreUnavailableError(f"no connection to {address}: {said}")
