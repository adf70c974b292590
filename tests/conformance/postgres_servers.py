"""Real PostgreSQL servers for a whole run: started when a test needs one first, ended with the run.

Tests on one server are kept apart by the schema of their tables; making one costs more than emptying it, so a case of the
suite takes one that an earlier case left, and empties it.
"""

import asyncio
import atexit
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg

from tenure.stores.postgres import PostgresStore
from tenure.stores.postgres.schema import search_path
from tenure.testing.postgres import PostgresServer, postgres_binaries
from tenure.testing.store_suite import Factory, Stage
from tenure.testing.store_suite.stage import PATIENCE_S

BINARIES = postgres_binaries()
"""All that are here: both that the wheel carries."""
OLDEST, NEWEST = (list(BINARIES.values())[place] for place in (0, -1))
EACH = {"params": BINARIES.values(), "ids": BINARIES.keys()}
"""For fixtures: once on every version."""
_RUN = contextlib.ExitStack()
atexit.register(_RUN.close)
_SCHEMAS = (f"t{number}" for number in itertools.count(1))

_EMPTY = """
SET search_path = suite;
DELETE FROM nodes; DELETE FROM conversations; DELETE FROM events; DELETE FROM keys; DELETE FROM snapshots;
DELETE FROM vault; DELETE FROM papers; DELETE FROM refusals
"""


def schema() -> str:
    """Tables that no other test has."""
    return next(_SCHEMAS)


@cache
def shared_server(binaries: Path) -> PostgresServer:
    """The server of this version that tests share which do it no harm."""
    return _RUN.enter_context(PostgresServer(binaries))


def on(server: PostgresServer) -> Factory:
    """A store that is empty now, as the suite opens it."""
    if server.ask("SELECT to_regclass('suite.meta') IS NOT NULL") == [(True,)]:
        with server.connect() as connection:
            connection.execute(_EMPTY)
    url = server.url(schema="suite")
    return lambda clock, limits: PostgresStore(url, clock=clock, limits=limits)


@asynccontextmanager
async def stage_on(url: str) -> AsyncIterator[Stage]:
    """Nodes, writers and a store on a server's own time."""
    async with Stage.opened(lambda clock, limits: PostgresStore(url, limits=limits)) as stage:
        yield stage


@contextlib.contextmanager
def console(server: PostgresServer, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of a test's own that calls the store's functions, and commits when the test says so."""
    with server.connect() as connection:
        connection.execute(cast("LiteralString", f"SET search_path = {search_path(schema)}"))
        yield connection


async def eventually[R](look: Callable[[], R], suits: Callable[[R], bool], what: str) -> R:
    """Look again until it suits."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not suits(seen := look()):
                await asyncio.sleep(0.01)
            return seen
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}") from None


async def blocked(server: PostgresServer, sessions: int = 1) -> None:
    """Wait until so many wait for a lock."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    await eventually(lambda: server.ask(statement)[0][0], lambda count: count >= sessions, "a session waits for a lock")
