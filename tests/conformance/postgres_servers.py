"""Real PostgreSQL servers for a whole run: started when a test needs one first, ended with the run.

Tests on one server are kept apart by the schema of their tables; making one costs more than emptying it, so a case of the
suite takes one that an earlier case left, and empties it.
"""

import atexit
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from tenure.stores.postgres import PostgresStore
from tenure.testing.postgres import PostgresServer, postgres_binaries
from tenure.testing.store_suite import Factory, Stage

BINARIES = postgres_binaries()
NEWEST = next(reversed(BINARIES.values()))
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
