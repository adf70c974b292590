"""The fence that a store lends: in a program's own transaction, with its own driver, beside the store's tables."""

import asyncio
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import postgres_servers
import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from node_support import Agent, Provider

from tenure.abc import FenceQuery
from tenure.config import Config
from tenure.errors import NodeUnavailableError, OwnershipLostError
from tenure.node import Node
from tenure.stores import open_store

pytestmark = pytest.mark.blocking_ok  # the program's own database calls are its own business


class Database(ABC):
    """A database that holds a store, and a table ``mine`` of a program's own."""

    url: str
    begins: tuple[str, ...]
    """How transactions may begin."""

    @abstractmethod
    def connected(self) -> Any:
        """A connection of the program's own, in autocommit; a context manager that closes it."""

    def table(self) -> None:
        """Once the store is open: its tables come first."""
        with self.connected() as mine:
            mine.execute("CREATE TABLE mine (line INTEGER PRIMARY KEY, text TEXT)")

    @contextmanager
    def transaction(self, fence: FenceQuery, begin: str = "") -> Iterator[Any]:
        """What a program does: the fence first, then its own work, all or none."""
        with self.connected() as mine:
            mine.execute(begin or self.begins[0])
            try:
                fence.insist(mine.execute(fence.sql, fence.parameters).fetchone())
                yield mine
            except BaseException:
                mine.execute("ROLLBACK")
                raise
            mine.execute("COMMIT")

    def write(self, fence: FenceQuery, text: str, begin: str = "") -> None:
        with self.transaction(fence, begin) as mine:
            self.add(mine, text)

    def add(self, mine: Any, text: str) -> None:
        mine.execute(f"INSERT INTO mine SELECT coalesce(max(line), 0) + 1, '{text}' FROM mine")

    def written(self) -> list[str]:
        with self.connected() as mine:
            return [text for (text,) in mine.execute("SELECT text FROM mine ORDER BY line").fetchall()]


class Sqlite(Database):
    begins = ("BEGIN IMMEDIATE", "BEGIN")

    def __init__(self, folder: Path) -> None:
        self.file = folder / "both.db"
        self.url = f"sqlite:///{self.file}"

    def connected(self) -> Any:
        return closing(sqlite3.connect(self.file, timeout=10, isolation_level=None))


class Postgres(Database):
    begins = ("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE")

    def __init__(self, binaries: Path) -> None:
        self.server = postgres_servers.shared_server(binaries)
        self.schema = postgres_servers.schema()
        self.url = self.server.url(schema=self.schema)
        self.server.ask(f"CREATE SCHEMA {self.schema}_mine")

    def connected(self) -> Any:
        options = f"-c search_path={self.schema}_mine"
        return psycopg.connect(self.server.url(), autocommit=True, connect_timeout=10, options=options)


DATABASES = [pytest.param(Sqlite, id="sqlite")]
DATABASES += [
    pytest.param(lambda folder, binaries=binaries: Postgres(binaries), id=name)
    for name, binaries in postgres_servers.BINARIES.items()
]


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return request.param(tmp_path)


@pytest.fixture(params=DATABASES[1:])
def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> Postgres:
    return request.param(tmp_path)


@asynccontextmanager
async def node_on(database: Database, name: str) -> AsyncIterator[Node]:
    config = Config(node=name, address=f"http://{name}", ttl_s=10, sweep_s=0.1, drain_s=1, witness=False)
    async with Node(open_store(database.url), {"echo": Agent()}, provider=Provider(), config=config) as node:
        yield node


@asynccontextmanager
async def two_nodes(database: Database) -> AsyncIterator[tuple[Node, Node]]:
    async with node_on(database, "n1") as one, node_on(database, "n2") as two:
        database.table()
        yield one, two


async def take_over(node: Node, epoch: int) -> None:
    """The claim moves; the node has no such agent, and lets go."""
    with pytest.raises(NodeUnavailableError):
        await node.take_over("c", epoch)


async def test_a_zombies_transaction_writes_nothing(database: Database):
    async with two_nodes(database) as (one, two):
        with pytest.raises(OwnershipLostError):
            async with one.hold("c", agent="mine") as lease:
                fence = lease.fence()
                for begin in database.begins:
                    database.write(fence, "as the owner", begin)
                await take_over(two, lease.epoch)
                for begin in database.begins:
                    with pytest.raises(OwnershipLostError, match="records another lease"):
                        database.write(fence, "as a zombie", begin)
        async with two.hold("c") as newer:
            assert newer.epoch > lease.epoch
            last = newer.fence()
            database.write(last, "as the next owner")
        with pytest.raises(OwnershipLostError):
            database.write(last, "after it")
    assert database.written() == ["as the owner"] * len(database.begins) + ["as the next owner"]


async def test_a_takeover_waits_for_the_transaction_that_was_fenced(database: Database):
    """Whoever passed the fence commits before the next claim, however slow it is: nothing falls in between."""
    async with two_nodes(database) as (one, two):
        with pytest.raises(OwnershipLostError):
            async with one.hold("c", agent="mine") as lease:
                with database.transaction(lease.fence()) as mine:
                    taking = asyncio.ensure_future(take_over(two, lease.epoch))
                    done, _ = await asyncio.wait([taking], timeout=0.5)
                    assert not done, "the lock keeps the claim out"
                    database.add(mine, "in time")
                await taking
    assert database.written() == ["in time"]


async def test_under_takeovers_each_line_is_of_the_owner_of_its_epoch(database: Database):
    """Real threads write as fast as they can while the ownership moves: epochs in the table never fall."""
    async with two_nodes(database) as (one, two):
        zombies = []

        def hammer(fence: FenceQuery) -> int:
            wrote = 0
            while True:
                try:
                    database.write(fence, str(fence.lease.epoch))
                except OwnershipLostError:
                    return wrote
                except psycopg.errors.UniqueViolation:
                    continue  # a line of the one who went before, committed after this one had counted
                wrote += 1

        for turn in range(6):
            node = (one, two)[turn % 2]
            async with node.hold("c", agent="mine") as lease:
                zombies.append(asyncio.ensure_future(asyncio.to_thread(hammer, lease.fence())))
                while not (lines := database.written()) or lines[-1] != str(lease.epoch):
                    await asyncio.sleep(0.01)
        counts = await asyncio.gather(*zombies)
    epochs = [int(text) for text in database.written()]
    assert epochs == sorted(epochs) and len(set(epochs)) == 6 and sum(counts) == len(epochs)


# --- what is PostgreSQL's own ---------------------------------------------------------------------------------------


async def test_a_claim_that_is_under_way_is_waited_for_and_then_refuses(postgres: Postgres):
    """The takeover comes first, and is not yet committed when the zombie asks: its fence waits, and sees the new owner."""
    async with two_nodes(postgres) as (one, two):
        with pytest.raises(OwnershipLostError):
            async with one.hold("c", agent="mine") as lease:
                fence = lease.fence()
                with postgres.connected() as other:
                    other.execute("BEGIN")
                    other.execute(f"UPDATE {postgres.schema}.conversations SET title = 'held' WHERE id = 'c'")
                    taking = asyncio.ensure_future(take_over(two, lease.epoch))
                    await postgres_servers.blocked(postgres.server)
                    zombie = asyncio.ensure_future(asyncio.to_thread(postgres.write, fence, "as a zombie"))
                    await postgres_servers.eventually(lambda: waiting(postgres), lambda n: n == 2, "both wait")
                    other.execute("COMMIT")
                await taking
                with pytest.raises(OwnershipLostError, match="records another lease"):
                    await zombie
    assert postgres.written() == []


def waiting(postgres: Postgres) -> int:
    ((count,),) = postgres.server.ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    return count


async def test_a_snapshot_from_before_the_takeover_is_a_conflict_not_a_row(postgres: Postgres):
    async with two_nodes(postgres) as (one, two):
        with pytest.raises(OwnershipLostError):
            async with one.hold("c", agent="mine") as lease:
                fence = lease.fence()
                with postgres.connected() as mine:
                    mine.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    mine.execute("SELECT count(*) FROM mine")
                    await take_over(two, lease.epoch)
                    with pytest.raises(psycopg.errors.SerializationFailure):
                        mine.execute(fence.sql, fence.parameters)  # type: ignore[arg-type]


async def test_a_role_of_ones_own_with_numbered_placeholders(postgres: Postgres):
    """No more rights than the page says; and the form that asyncpg takes."""
    async with node_on(postgres, "n1") as one:
        role = f"{postgres.schema}_program"
        postgres.server.ask(f"CREATE ROLE {role}")
        postgres.server.ask(f"GRANT USAGE ON SCHEMA {postgres.schema} TO {role}")
        postgres.server.ask(
            f"GRANT SELECT (id, deleted, owner, epoch, token), UPDATE (title) ON {postgres.schema}.conversations TO {role}"
        )
        async with one.hold("c", agent="mine") as lease:
            fence = lease.fence()
            with postgres.connected() as mine:
                mine.execute(f"SET ROLE {role}")
                row = psycopg.RawCursor(mine).execute(fence.numbered, fence.parameters).fetchone()
                fence.insist(row)
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    mine.execute(f"UPDATE {postgres.schema}.conversations SET epoch = 9")
