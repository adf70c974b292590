"""How many requests wait in a store object: what ``tenure_queue_depth`` tells of it."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis_servers

from tenure.stores import open_store
from tenure.testing.postgres import PostgresServer
from tenure.testing.servers import RedisServer

MANY = 5


@contextmanager
def on_sqlite(folder: Path) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """A store's URL, what makes it hold its answers back, and what lets it go on."""
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as other:
        yield (
            f"sqlite:///{folder}/store.db",
            lambda: other.execute("BEGIN IMMEDIATE"),
            lambda: other.execute("ROLLBACK"),
        )


@contextmanager
def on_redis(folder: Path) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    with RedisServer(redis_servers.folder()) as server:
        yield server.url(), server.freeze, server.thaw


@contextmanager
def on_postgres(folder: Path) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    with PostgresServer() as server:
        yield server.url(), server.freeze, server.thaw


@pytest.mark.blocking_ok  # signals to servers, and another's transaction
@pytest.mark.parametrize("on", [on_sqlite, on_redis, on_postgres])
async def test_requests_are_counted_while_they_wait(on, tmp_path: Path):
    with on(tmp_path) as (url, hold, let_go):
        store = open_store(url)
        assert store.under_way == 0, "not open yet"
        async with store:
            hold()
            asked = [asyncio.ensure_future(store.put_paper("kind", f"id-{n}", {}, 0)) for n in range(MANY)]
            async with asyncio.timeout(20):
                while store.under_way < MANY:
                    await asyncio.sleep(0.005)
            assert store.under_way == MANY
            let_go()
            assert None not in await asyncio.gather(*asked)
            assert store.under_way == 0
