"""A store that goes on, is set back to a backup, and is made safe: no epoch of the former life is granted again, and whoever
held a lease then is refused."""

import asyncio
import copy
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import postgres_servers
import pytest
import redis_servers

from tenure.abc import Append, Fenced, Load, Reading, Submit
from tenure.clock import Deadline, Instant, SystemClock
from tenure.config import Config
from tenure.conversation import Fold, Settle, TurnState, fold, read_events
from tenure.errors import StoreUnfitError
from tenure.journal import TurnStarted, draft
from tenure.loops import function_loop
from tenure.loops.function import FunctionTurn
from tenure.node import Copy, Node
from tenure.node.restoration import MARK, floor_of, raise_epochs
from tenure.runtimes.process import ProcessProvider
from tenure.stores.memory import Disk, MemoryStore
from tenure.stores.postgres import PostgresStore
from tenure.stores.redis import RedisStore
from tenure.stores.sqlite import SqliteStore
from tenure.testing.servers import RedisServer
from tenure.testing.store_suite.stage import CREATION, Stage, Writer, expect, message, note


class Memory:
    def __init__(self, folder: Path) -> None:
        self.disk = Disk()

    def store(self):
        return MemoryStore(self.disk)

    def back_up(self) -> None:
        disk = self.disk
        self.saved = Disk()
        self.saved.nodes = copy.deepcopy(disk.nodes)
        self.saved.conversations = copy.deepcopy(disk.conversations)
        self.saved.papers = copy.deepcopy(disk.papers)

    def restore(self) -> None:
        self.disk = self.saved

    def close(self) -> None: ...


class Sqlite:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "tenure.db"

    def store(self):
        return SqliteStore(f"sqlite:///{self.file}")

    def back_up(self) -> None:
        with sqlite3.connect(self.file) as one, sqlite3.connect(self.file.with_suffix(".saved")) as other:
            one.backup(other)
        one.close()
        other.close()

    def restore(self) -> None:
        for one in self.file.parent.glob(f"{self.file.name}*"):
            one.unlink()
        shutil.copy(self.file.with_suffix(".saved"), self.file)

    def close(self) -> None: ...


class Redis:
    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder = redis_servers.folder()
        self.server = RedisServer(self.folder, binary=binary).start()
        self.saved = folder / "saved"

    def store(self):
        return RedisStore(self.server.url())

    def back_up(self) -> None:
        self.server.stop()
        shutil.copytree(self.folder, self.saved)
        self.server.start()

    def restore(self) -> None:
        self.server.stop()
        for one in self.folder.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        shutil.copytree(self.saved, self.folder, dirs_exist_ok=True)
        self.server.start()

    def close(self) -> None:
        self.server.__exit__()


class Postgres:
    def __init__(self, folder: Path, binaries: Path) -> None:
        self.server = postgres_servers.shared_server(binaries)
        self.schema = postgres_servers.schema()
        self.saved = folder / "dump.sql"

    def store(self):
        return PostgresStore(self.server.url(schema=self.schema))

    def back_up(self) -> None:
        self._run("pg_dump", f"--file={self.saved}", f"--schema={self.schema}*")

    def restore(self) -> None:
        schemas = self.server.ask("SELECT nspname FROM pg_namespace WHERE nspname ~ %s", f"^{self.schema}(_|$)")
        for (schema,) in schemas:
            self.server.ask(f'DROP SCHEMA "{schema}" CASCADE')
        self._run("psql", f"--file={self.saved}", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1")

    def _run(self, program: str, *arguments: str) -> None:
        command = [self.server.binaries / program, f"--dbname={self.server.url()}", *arguments]
        subprocess.run(command, check=True, timeout=60)

    def close(self) -> None: ...


STORES: list = [pytest.param(Memory, id="memory"), pytest.param(Sqlite, id="sqlite")]
for _name, _binary in redis_servers.BINARIES.items():
    STORES.append(pytest.param(lambda folder, binary=_binary: Redis(folder, binary), id=_name))
for _name, _binaries in postgres_servers.BINARIES.items():
    STORES.append(pytest.param(lambda folder, binaries=_binaries: Postgres(folder, binaries), id=_name))


@pytest.fixture(params=STORES)
def kept(request: pytest.FixtureRequest, tmp_path: Path):
    one = request.param(tmp_path)
    yield one
    one.close()


class Later:
    """A minute later, for people."""

    def now(self) -> Instant:
        return Instant(SystemClock().now().unix_s + 60)

    def boottime(self) -> Deadline:
        return SystemClock().boottime()


async def a_claim(stage: Stage, conversation: str) -> Writer:
    return await stage.claim(conversation, await stage.node(ttl_s=0.1), forced=True)


async def on(kept, work: Callable) -> None:
    """Play on the store as it is now."""
    async with kept.store() as store:
        stage = Stage(lambda clock, limits: kept.store(), None, None)  # type: ignore[arg-type] - one store, no clock
        stage.store = store
        stage.clock = SystemClock()  # type: ignore[assignment]
        await work(stage)


@pytest.mark.blocking_ok
async def test_after_a_restore_no_epoch_is_granted_twice_and_zombies_are_refused(kept):
    zombies: dict[str, list[Append]] = {}
    former: dict[str, int] = {}

    async def before(stage: Stage) -> None:
        for name in ("held", "idle", "busy"):
            await stage.store.submit(Submit(name, None, CREATION))
        holder = await a_claim(stage, "held")
        zombies["held"] = [holder.batch(note("late"))]
        idle = await a_claim(stage, "idle")
        await idle.release()
        await stage.submit("busy")
        busy = await a_claim(stage, "busy")
        await busy.append(draft(TurnStarted((2,)), "t2"), settle=Settle(True, turn=TurnState.OPEN, started=True))
        zombies["busy"] = [busy.batch(note("late"))]

    async def former_life(stage: Stage) -> None:
        for name in ("held", "idle", "busy"):
            zombies.setdefault(name, [])
            for _ in range(3):
                writer = await a_claim(stage, name)
                zombies[name].append(writer.batch(note("late")))
            former[name] = writer.lease.epoch

    async def afterwards(stage: Stage) -> None:
        assert [(await stage.record(name)).epoch for name in former] == [1, 1, 1], "the store was set back"
        done = await raise_epochs(stage.store, SystemClock())
        assert done.conversations == 3
        for name, batches in zombies.items():
            for batch in batches:
                assert isinstance(await stage.store.append(batch), Fenced), name
            record = await stage.record(name)
            assert record.epoch > done.floor > former[name]
            assert (record.owner, record.wanted) == (None, name == "busy")
            assert (await a_claim(stage, name)).lease.epoch > record.epoch
            reading = expect(Reading, await stage.store.read(name))
            fold(Fold(), reading.events)
        accepted = await stage.store.submit(Submit("idle", message("new")))
        assert accepted.record.wanted  # type: ignore[union-attr]
        again = await raise_epochs(stage.store, Later())
        assert again.floor > done.floor

    await on(kept, before)
    kept.back_up()
    await on(kept, former_life)
    kept.restore()
    await on(kept, afterwards)


@pytest.mark.blocking_ok
async def test_what_was_created_after_the_backup_never_has_an_epoch_again_that_it_had(kept, tmp_path: Path):
    """Ids that are derived from keys come back. Whatever creates or claims one then: its epoch, its runtimes' names and its
    fencing token are new."""
    former: dict[str, Append] = {}
    names = ("claimed", "sent", "copied")

    async def former_life(stage: Stage) -> None:
        for name in names:
            await stage.store.submit(Submit(name, None, CREATION))
            writer = await a_claim(stage, name)
            former[name] = writer.batch(note("late"))

    async def echo(turn: FunctionTurn) -> None:
        await turn.emit("reply", {})

    async def afterwards(stage: Stage) -> None:
        assert await stage.store.records(names) == [None] * len(names), "the store was set back"
        raised = await raise_epochs(stage.store, SystemClock())
        agents = {"echo": function_loop(echo)}
        async with Node(kept.store(), agents, provider=ProcessProvider(tmp_path / "runtimes")) as node:
            async with node.hold("claimed", agent="mine") as lease:
                assert lease.epoch > raised.floor
            kept_journal = expect(Reading, await stage.store.read("kept")).events
            recording = read_events([e.as_json() for e in kept_journal], {}, event_bytes=1 << 20)
            await node.rehydrate(Copy("copied", recording, replace(CREATION, agent="echo")))
            await node.submit(Submit("sent", message("hello"), replace(CREATION, agent="echo")))
            async with asyncio.timeout(30):
                while (await stage.record("sent")).unsettled:
                    await asyncio.sleep(0.01)
        for name in names:
            assert (await stage.record(name)).epoch > raised.floor > former[name].lease.epoch, name
            assert isinstance(await stage.store.append(former[name]), Fenced)
            fold(Fold(), expect(Reading, await stage.store.read(name)).events)
        again = await raise_epochs(stage.store, Later())
        assert await floor_of(stage.store) == again.floor > raised.floor

    async def before(stage: Stage) -> None:
        await stage.store.submit(Submit("kept", message("hi"), CREATION))
        assert await floor_of(stage.store) == 0

    await on(kept, before)
    kept.back_up()
    await on(kept, former_life)
    kept.restore()
    await on(kept, afterwards)


@pytest.mark.blocking_ok
async def test_a_living_node_is_in_the_way_and_nothing_was_changed(tmp_path: Path):
    kept = Memory(tmp_path)

    async def play(stage: Stage) -> None:
        incarnation = await stage.node(ttl_s=0.2)
        await stage.store.submit(Submit("c", None, CREATION))

        async def live() -> None:
            beat = 0
            while True:
                beat = (await stage.store.renew(incarnation, beat, f"n{beat}", 0.2, Load())).beat  # type: ignore[union-attr]
                await asyncio.sleep(0.02)

        life = asyncio.create_task(live())
        with pytest.raises(StoreUnfitError, match="is alive"):
            await raise_epochs(stage.store, SystemClock())
        life.cancel()
        assert (await stage.record("c")).epoch == 0
        assert await stage.store.get_paper(*MARK) is None

    await on(kept, play)


async def test_no_node_starts_while_epochs_are_raised_and_a_cut_one_is_done_again():
    disk, agents, nowhere = Disk(), {"scripted": cast("Any", None)}, cast("Any", None)
    async with MemoryStore(disk) as store:
        await store.put_paper(*MARK, {"floor": 1}, 0)
        with pytest.raises(StoreUnfitError, match="tenure restored"):
            async with Node(MemoryStore(disk), agents, provider=nowhere, config=Config(), threaded=False):
                pass
        await raise_epochs(store, SystemClock())
        assert await store.get_paper(*MARK) is None
