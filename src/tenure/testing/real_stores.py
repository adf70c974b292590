"""The real stores that a simulation can be kept in: how each is opened afresh, and how it is taken back to a copy.

Another store is a function like these: it gives :class:`~tenure.testing.backing.RealBacking` a way to open an empty
store on the simulation's clock, and one to copy it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, final

from tenure.stores.postgres import PostgresStore
from tenure.stores.redis import RedisStore
from tenure.stores.sqlite import SqliteStore
from tenure.testing.backing import RealBacking
from tenure.testing.servers import Console

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenure.testing.backing import Backing
    from tenure.testing.postgres import PostgresServer
    from tenure.testing.servers import RedisServer
    from tenure.testing.simloop import LoopClock

COPIES = 15
"""The databases of a Redis server beside the one in use: as many fail-overs can be under way at once."""


TABLES = ("nodes", "conversations", "events", "keys", "snapshots", "vault", "papers", "refusals")
"""What PostgreSQL holds beside the version of its layout."""


def sqlite(folder: Path) -> Callable[[LoopClock], Backing]:
    """A new file in the folder for each run."""
    numbers = count(1)

    def open_one(clock: LoopClock) -> Backing:
        path = folder / f"simulation-{next(numbers)}.db"
        return RealBacking(
            clock, lambda clock: SqliteStore(f"sqlite:///{path}", clock=clock), lambda: SqliteImage(path)
        )

    return open_one


def redis(server: RedisServer) -> Callable[[LoopClock], Backing]:
    """A server that nobody else uses; it is emptied for each run."""
    numbers = count()

    def open_one(clock: LoopClock) -> Backing:
        server.told("FLUSHALL")
        return RealBacking(
            clock,
            lambda clock: RedisStore(server.url(), clock=clock),
            lambda: RedisImage(server, 1 + next(numbers) % COPIES),
        )

    return open_one


def postgres(server: PostgresServer) -> Callable[[LoopClock], Backing]:
    """A schema of a server; it is emptied for each run."""
    numbers = count(1)

    def open_one(clock: LoopClock) -> Backing:
        if server.ask("SELECT to_regclass('simulation.meta') IS NOT NULL") == [(True,)]:
            for table in TABLES:
                server.ask(f"DELETE FROM simulation.{table}")
        return RealBacking(
            clock,
            lambda clock: PostgresStore(server.url(schema="simulation"), clock=clock),
            lambda: PostgresImage(server, f"image{next(numbers)}"),
        )

    return open_one


@final
class SqliteImage:
    """A copy of a database, page by page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(path)) as live:
            live.backup(self._kept)

    def promote(self) -> None:
        with closing(self._kept), closing(sqlite3.connect(self._path)) as live:
            self._kept.backup(live)


@final
class RedisImage:
    """A copy of all keys in another database of the same server."""

    def __init__(self, server: RedisServer, number: int) -> None:
        self._server = server
        self._number = number
        self._copy(0, number)

    def promote(self) -> None:
        self._copy(self._number, 0)

    def _copy(self, origin: int, target: int) -> None:
        with Console(self._server.port, self._server.password) as console:
            console.say("SELECT", target)
            console.say("FLUSHDB")
            console.say("SELECT", origin)
            for key in console.say("KEYS", "*"):
                copied = console.say("COPY", key.decode(), key.decode(), "DB", target)
                assert copied == 1, copied


@final
class PostgresImage:
    """A copy of all tables in another schema of the same database."""

    def __init__(self, server: PostgresServer, schema: str) -> None:
        self._server = server
        self._schema = schema
        server.ask(f"CREATE SCHEMA {schema}")
        for table in TABLES:
            server.ask(f"CREATE UNLOGGED TABLE {schema}.{table} AS TABLE simulation.{table}")

    def promote(self) -> None:
        steps = [
            f"DELETE FROM simulation.{table}; "
            f"INSERT INTO simulation.{table} OVERRIDING SYSTEM VALUE TABLE {self._schema}.{table}"
            for table in TABLES
        ]
        self._server.ask("; ".join(steps))  # one message, one transaction
        self._server.ask(f"DROP SCHEMA {self._schema} CASCADE")
