"""``tenure doctor`` against stores that are broken on purpose, and beside a node that lives."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import postgres_servers
import pytest
import redis_servers
from typer.testing import CliRunner

import tenure
from tenure.abc import Append, Appended, AppendResult, Fenced, Filters, Finding, Turn, Verdict, clock_finding
from tenure.cli.doctor.examination import exit_of, findings_of
from tenure.cli.doctor.latency import latency_finding, quantile
from tenure.cli.exits import Exit
from tenure.cli.tree import tree
from tenure.clock import Instant, SystemClock
from tenure.config import Config
from tenure.errors import StoreUnfitError
from tenure.lease import Timing
from tenure.stores import open_store
from tenure.stores.memory import MemoryStore
from tenure.stores.postgres import fitness as postgres_fitness
from tenure.stores.redis import examination as redis_examination
from tenure.stores.redis import fitness
from tenure.stores.redis.address import Endpoint
from tenure.stores.redis.servers import Servers
from tenure.stores.sqlite import examination as sqlite_examination
from tenure.testing.postgres import PostgresServer
from tenure.testing.processes import free_port
from tenure.testing.proxy import Proxy
from tenure.testing.servers import RedisServer, redis_binary, until

RUN = CliRunner(env=dict.fromkeys(("TENURE_STORE", "TENURE_TTL_S")))
TIMING = Timing()


async def examined(url: str) -> dict[str, Finding]:
    """What the store's own package says, by name, without opening it."""
    return {finding.name: finding for finding in await open_store(url).examine()}


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


async def made(path: Path) -> Path:
    async with open_store(sqlite_url(path)):
        return path


# the whole of it


@pytest.fixture
def redis() -> RedisServer:
    return redis_servers.shared_server(redis_binary())


@pytest.fixture
async def stores(redis: RedisServer, tmp_path: Path) -> AsyncIterator[list[str]]:
    postgres = postgres_servers.shared_server(postgres_servers.NEWEST)
    yield [
        sqlite_url(tmp_path / "store.db"),
        redis.url(prefix=redis_servers.prefix()),
        postgres.url(schema=postgres_servers.schema()),
    ]


async def test_a_store_without_faults_has_nothing_broken_and_nothing_is_left_of_the_doctor(stores: list[str]):
    for url in stores:
        found = await findings_of(url, TIMING)
        names = [finding.name for finding in found]
        assert exit_of(found) is Exit.OK, found
        assert {"reachability", "version", "eviction", "persistence", "replication", "clock", "schema"} <= {*names}
        assert names[-2:] == ["latency", "zombie"]
        assert found[-1].verdict is Verdict.FINE
        async with open_store(url) as store:
            assert (await store.list(Filters(), None, 10)).items == ()
            assert await store.nodes() == []


@pytest.mark.parametrize("number", range(3), ids=["sqlite", "redis", "postgres"])
async def test_beside_a_living_node_nothing_is_disturbed(stores: list[str], number: int):
    async def agent(turn: Turn) -> None:
        await turn.emit("reply", {"text": turn.messages[-1].text})

    url = stores[number]
    async with tenure.Node(store=url, agents={"echo": agent}, config=Config(store=url, witness=False)) as node:
        await node.send("c1", "before")
        assert [event.kind async for event in node.events("c1", until="turn_completed")]
        async with open_store(url) as store:
            (before,) = await store.records(["c1"])
            assert exit_of(await findings_of(url, TIMING)) is Exit.OK
            assert await store.records(["c1"]) == [before], "its journal, owner and epoch are as they were"
            assert [record.conversation for record in (await store.list(Filters(), None, 10)).items] == ["c1"]
            assert before is not None
            assert [one.incarnation for one in await store.nodes()] == [before.owner and before.owner.incarnation]
        await node.send("c1", "after")
        later = [event async for event in node.events("c1", before.head, until="turn_completed")]
        assert [event.body["text"] for event in later if event.kind == "reply"] == ["after"]
        assert {event.epoch for event in later if event.epoch is not None} == {before.epoch}, "nobody took it over"


@pytest.mark.blocking_ok  # the command is a process of its own
def test_the_command_says_it_to_people_and_to_programs(tmp_path: Path):
    url = sqlite_url(tmp_path / "store.db")
    said = RUN.invoke(tree, ["doctor", "--store", url, "--json"])
    assert said.exit_code == Exit.OK, said.output
    document = json.loads(said.stdout)
    assert document["ok"] is True
    assert {tuple(finding) for finding in document["findings"]} == {("name", "verdict", "what", "why", "remedy")}
    (tmp_path / "store.db").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    said = RUN.invoke(tree, ["doctor", "--store", url])
    assert said.exit_code == Exit.FAILED
    assert "broken" in said.stdout
    assert "mend: name another file" in said.stdout
    assert RUN.invoke(tree, ["doctor", "--store", "gopher://x"]).exit_code == Exit.USAGE


@pytest.mark.blocking_ok
def test_unreachable_is_an_exit_code_of_its_own():
    said = RUN.invoke(tree, ["doctor", "--store", f"redis://:geheim@127.0.0.1:{free_port()}/0", "--json"])
    assert said.exit_code == Exit.UNAVAILABLE
    assert "geheim" not in said.output
    (finding,) = json.loads(said.stdout)["findings"]
    assert (finding["name"], finding["verdict"]) == ("reachability", "broken")


async def test_a_store_that_takes_a_zombies_write_is_broken(monkeypatch: pytest.MonkeyPatch):
    honest = MemoryStore.append_all

    async def gullible(self: MemoryStore, requests: Sequence[Append]) -> list[AppendResult]:
        done = await honest(self, requests)
        taken = Appended(first=1, count=1, head=1, last_command=0, at=Instant(0))
        return [taken if isinstance(one, Fenced) else one for one in done]

    monkeypatch.setattr(MemoryStore, "append_all", gullible)
    found = await findings_of("memory:", TIMING)
    assert found[-1].verdict is Verdict.BROKEN
    assert "late append of a frozen owner was accepted" in found[-1].what
    assert exit_of(found) is Exit.FAILED


# latency


def test_latency_is_judged_by_the_slowest_of_a_hundred_against_a_quarter_of_the_lease():
    assert quantile([1, 2, 3, 4], 0.5) == 2
    assert quantile(range(1, 201), 0.99) == 198
    room = (TIMING.ttl_s - TIMING.margin_s) / 4
    assert latency_finding([0.001, room], TIMING).verdict is Verdict.FINE
    slow = latency_finding([0.001, room * 2], TIMING)
    assert slow.verdict is Verdict.RISKY
    assert "TENURE_TTL_S to 7 or more" in slow.remedy, "6.05 s would just do"


async def test_a_slow_server_is_a_risk_for_a_short_lease(redis: RedisServer):
    async with Proxy(redis.port) as proxy:
        proxy.delay(0.025)
        url = redis.url(prefix=redis_servers.prefix()).replace(f":{redis.port}", f":{proxy.port}")
        found = {finding.name: finding for finding in await findings_of(url, Timing.of_ttl(0.2))}
    assert found["latency"].verdict is Verdict.RISKY, "50 ms and more, where a lease leaves room for 45"
    assert found["zombie"].verdict is Verdict.FINE


# SQLite


@pytest.mark.parametrize(("schema", "says"), [(0, "older Tenure"), (2, "newer Tenure")])
async def test_a_file_of_another_release(tmp_path: Path, schema: int, says: str):
    path = await made(tmp_path / "store.db")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET schema = ?", (schema,))
    connection.close()
    found = await findings_of(sqlite_url(path), TIMING)
    assert [(one.name, says in one.what) for one in found if one.verdict is Verdict.BROKEN] == [("schema", True)]
    with pytest.raises(StoreUnfitError, match=says):
        await made(path)


AS_NOBODY = """
import asyncio, json, os, sys, tempfile
from tenure.cli.doctor.examination import exit_of, findings_of
from tenure.lease import Timing
if os.geteuid() == 0:  # whom no mode stops
    with tempfile.TemporaryDirectory() as folder:  # once before, for what that imports
        assert not exit_of(asyncio.run(findings_of(f"sqlite:///{folder}/store.db", Timing())))
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
found = asyncio.run(findings_of(sys.argv[1], Timing()))
print(json.dumps([finding.as_json() for finding in found]))
sys.exit(exit_of(found))
"""


@pytest.mark.blocking_ok  # who examines is a process of another user
def test_a_file_that_cannot_be_written():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o777)
        path = asyncio.run(made(Path(folder) / "store.db"))
        path.chmod(0o444)
        command = [sys.executable, "-c", AS_NOBODY, sqlite_url(path)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == Exit.FAILED, said.stderr
    found = json.loads(said.stdout)
    assert [one["name"] for one in found if one["verdict"] == "broken"] == ["permissions"]
    assert found[-1]["what"] == "not tried"


async def test_a_folder_that_is_not_there_and_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nowhere = (await examined(sqlite_url(tmp_path / "none" / "store.db")))["place"]
    assert (nowhere.verdict, nowhere.remedy[:9]) == (Verdict.BROKEN, "create it")
    monkeypatch.setattr(sqlite_examination, "MIND_FREE", shutil.disk_usage(tmp_path).total * 2)
    assert (await examined(sqlite_url(tmp_path / "store.db")))["space"].verdict is Verdict.RISKY


# Redis


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that a test may set as it likes."""
    with RedisServer(redis_servers.folder(), binary=redis_binary(), options={"appendfsync": "always"}) as server:
        yield server


async def test_a_redis_that_is_set_wrongly(own: RedisServer):
    assert {one.verdict for one in (await examined(own.url())).values()} == {Verdict.FINE}
    own.told("CONFIG", "SET", "appendfsync", "everysec")
    assert (await examined(own.url()))["persistence"].verdict is Verdict.RISKY
    own.told("CONFIG", "SET", "appendonly", "no")
    without = await findings_of(own.url(), TIMING)
    (persistence,) = (one for one in without if one.name == "persistence")
    assert (persistence.what, persistence.remedy) == ("appendonly is off", "set appendonly yes")
    assert (persistence.verdict, exit_of(without)) == (Verdict.RISKY, Exit.OK), "a risk is for people to weigh"
    assert without[-1].verdict is Verdict.FINE, "and all the rest was tried"
    own.told("FLUSHALL")
    own.told("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    evicting = await findings_of(own.url(), TIMING)
    assert [one.name for one in evicting if one.verdict is Verdict.BROKEN] == ["eviction"]
    assert exit_of(evicting) is Exit.FAILED
    assert own.told("DBSIZE") == 0, "nothing was tried, and nothing written"


async def test_a_redis_whose_snapshot_failed_and_one_that_is_nearly_full(own: RedisServer):
    (own.folder / f"{own.port}.rdb").mkdir()  # where the snapshot should go
    own.told("BGSAVE")
    until(lambda: own.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails")
    failed = (await examined(own.url()))["health"]
    assert (failed.verdict, "snapshot" in failed.what) == (Verdict.RISKY, True)
    (own.folder / f"{own.port}.rdb").rmdir()
    own.told("BGSAVE")
    until(lambda: own.info("persistence")["rdb_last_bgsave_status"] == "ok", "the next one does not")
    assert (await examined(own.url()))["health"].verdict is Verdict.FINE
    own.told("CONFIG", "SET", "maxmemory", int(int(own.info("memory")["used_memory"]) * 1.08))
    full = (await examined(own.url()))["health"]
    assert (full.verdict, "of its maxmemory" in full.what, exit_of([full])) == (Verdict.RISKY, True, Exit.OK)


@pytest.mark.parametrize(
    ("said", "broken"), [({"redis_version": "6.0.16"}, "version"), ({"aof_last_write_status": "err"}, "health")]
)
async def test_a_redis_that_is_too_old_and_one_whose_disk_is_full(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], broken: str
):
    """What no server at hand is: its own word for it is put into its mouth."""
    honest = fitness.info

    async def info(servers: Servers, endpoint: Endpoint) -> dict[str, str]:
        return await honest(servers, endpoint) | said

    monkeypatch.setattr(fitness, "info", info)
    found = await findings_of(redis.url(prefix=redis_servers.prefix()), TIMING)
    assert ([one.name for one in found if one.verdict is Verdict.BROKEN], exit_of(found)) == ([broken], Exit.FAILED)


async def test_a_postgres_and_an_sqlite_that_are_too_old(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres_fitness, "OLDEST_SERVER", 99)
    monkeypatch.setattr(sqlite_examination, "OLDEST_SQLITE", (99, 0, 0))
    for url in (postgres.url(schema=postgres_servers.schema()), sqlite_url(tmp_path / "store.db")):
        found = await findings_of(url, TIMING)
        assert ([one.name for one in found if one.verdict is Verdict.BROKEN], exit_of(found)) == (
            ["version"],
            Exit.FAILED,
        )


@pytest.mark.parametrize(
    ("offset_s", "uncertain_s", "verdict", "says"),
    [
        (0.4, 0.0, Verdict.FINE, "0.400 s ahead of"),
        (0.6, 0.2, Verdict.FINE, "± 0.200 s"),
        (0.6, 0.05, Verdict.RISKY, "0.600 s ahead of"),
        (-7200.0, 0.001, Verdict.RISKY, "7200.000 s behind"),
    ],
)
def test_clocks_are_apart_when_that_is_certain(offset_s: float, uncertain_s: float, verdict: Verdict, says: str):
    finding = clock_finding(offset_s, uncertain_s, "the clock of db")
    assert (finding.name, finding.verdict) == ("clock", verdict)
    assert says in finding.what
    assert finding.remedy == ("run NTP on both machines" if verdict is Verdict.RISKY else "")
    assert exit_of([finding]) is Exit.OK


async def test_a_redis_whose_clock_is_off(redis: RedisServer, monkeypatch: pytest.MonkeyPatch):
    class Behind(SystemClock):  # type: ignore[misc] - final, for everybody but this test
        def now(self) -> Instant:
            return Instant(super().now().unix_s - 60)

    monkeypatch.setattr(redis_examination, "SystemClock", Behind)
    off = (await examined(redis.url(prefix=redis_servers.prefix())))["clock"]
    assert (off.verdict, "s ahead of this machine's" in off.what) == (Verdict.RISKY, True)


async def test_a_replica_and_what_its_primary_may_lose(own: RedisServer):
    alone = await findings_of(own.url(wait=1), TIMING)
    (hopeless,) = (one for one in alone if one.verdict is Verdict.BROKEN)
    assert (hopeless.name, exit_of(alone)) == ("replication", Exit.FAILED)
    assert hopeless.what.startswith("wait=1, 0 replicas connected")
    assert hopeless.remedy == "attach a replica, or drop ?wait= from the store's URL"
    options = {"replicaof": f"127.0.0.1 {own.port}"}
    with RedisServer(redis_servers.folder(), binary=redis_binary(), options=options) as replica:
        until(lambda: replica.info("replication").get("master_link_status") == "up", "it follows")
        found = await examined(replica.url())
        assert found["role"].verdict is Verdict.BROKEN
        assert found["persistence"].verdict is Verdict.RISKY
        asynchronous = (await examined(own.url()))["replication"]
        assert asynchronous.verdict is Verdict.RISKY
        assert "bytes behind" in asynchronous.what
        assert (await examined(own.url(wait=1)))["replication"].verdict is Verdict.FINE
        assert (await examined(own.url(wait=2)))["replication"].what.startswith("wait=2, 1 replicas connected")


async def test_a_redis_user_who_may_not_do_all(own: RedisServer):
    own.told(
        "ACL", "SETUSER", "app", "on", ">geheim", "~tenure:*", "resetchannels", "&tenure@*", "+@all", "-zadd", "-xrange"
    )
    url = own.url().replace("redis://", "redis://app:geheim@")
    found = await findings_of(url, TIMING)
    (refused,) = (one for one in found if one.verdict is Verdict.BROKEN)
    assert refused.name == "permissions"
    assert "may not run ZADD, XRANGE" in refused.what
    assert refused.remedy.endswith("+zadd +xrange")
    own.told("ACL", "SETUSER", "app", "+@all")
    assert (await examined(url))["permissions"].verdict is Verdict.FINE
    assert (await examined(url + "?prefix=other"))["permissions"].verdict is Verdict.BROKEN, "other keys"
    assert own.told("DBSIZE") == 0, "asking leaves nothing behind"
    own.told("ACL", "SETUSER", "app", "resetpass", ">another")
    assert exit_of(await findings_of(url, TIMING)) is Exit.FAILED


@pytest.mark.parametrize(("schema", "says"), [(0, "older than"), (2, "newer than")])
async def test_a_redis_of_another_release(redis: RedisServer, schema: int, says: str):
    prefix = redis_servers.prefix()
    url = redis.url(prefix=prefix)
    async with open_store(url):
        assert (await examined(url))["schema"].what == "layout 1, 64 partitions"
    redis.told("HSET", f"{prefix}:{{nodes}}:store", "schema", schema)
    found = await findings_of(url, TIMING)
    (layout,) = (one for one in found if one.verdict is Verdict.BROKEN)
    assert (layout.name, exit_of(found)) == ("schema", Exit.FAILED)
    assert says in layout.what
    with pytest.raises(StoreUnfitError, match=says):
        await open_store(url).__aenter__()


# PostgreSQL


@pytest.fixture
def postgres() -> PostgresServer:
    return postgres_servers.shared_server(postgres_servers.NEWEST)


async def test_postgres_tables_of_another_release(postgres: PostgresServer):
    schema = postgres_servers.schema()
    url = postgres.url(schema=schema)
    assert "is not there yet" in (await examined(url))["schema"].what
    async with open_store(url):
        assert (await examined(url))["schema"].what == "migrated to 1, with the functions of this release"
    with postgres_servers.console(postgres, schema) as console:
        console.execute("UPDATE meta SET schema = 0")
        console.commit()
        older = (await examined(url))["schema"]
        assert (older.verdict, older.what) == (Verdict.RISKY, "migrated to 0; this release needs 1")
        tried = await findings_of(url, TIMING)
        assert (tried[-1].name, tried[-1].what, exit_of(tried)) == ("zombie", "not tried", Exit.OK)
        assert "under the nodes that live on it" in tried[-1].why
        assert postgres.ask(f"SELECT schema FROM {schema}.meta") == [(0,)], "a look migrates nothing"
        console.execute("UPDATE meta SET schema = 9, oldest = 9")
        console.commit()
        newer = (await examined(url))["schema"]
        assert (newer.verdict, newer.remedy) == (Verdict.BROKEN, "upgrade this node, or name another schema")


async def test_a_postgres_role_who_may_not_do_all(postgres: PostgresServer):
    schema = postgres_servers.schema()
    postgres.ask("CREATE ROLE guest LOGIN")
    url = postgres.url(schema=schema).replace("tenure@", "guest@")
    may_not_make = (await examined(url))["permissions"]
    assert (may_not_make.verdict, may_not_make.remedy[:24]) == (Verdict.BROKEN, "GRANT CREATE ON DATABASE")
    async with open_store(postgres.url(schema=schema)):
        may_not_write = (await examined(url))["permissions"]
    assert may_not_write.verdict is Verdict.BROKEN
    assert "may not read and write conversations, events, keys, meta" in may_not_write.what
    assert exit_of(await findings_of(url, TIMING)) is Exit.FAILED
