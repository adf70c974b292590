"""``tenure doctor`` on more than one server, behind what stands in between, and on servers that read only or are slow."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import postgres_servers
import pytest
import redis_servers
from postgres_pooler import Pooler

from tenure.abc import Finding, Verdict
from tenure.cli.doctor.examination import exit_of, findings_of
from tenure.cli.exits import Exit
from tenure.lease import Timing
from tenure.stores import open_store
from tenure.stores.postgres import link
from tenure.testing.postgres import PostgresServer
from tenure.testing.proxy import Proxy
from tenure.testing.servers import RedisCluster, RedisSentinel, RedisServer, redis_binary, until

TIMING = Timing()
FINE, RISKY, BROKEN = Verdict.FINE, Verdict.RISKY, Verdict.BROKEN


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def broken_in(found: list[Finding]) -> list[str]:
    return [finding.name for finding in found if finding.verdict is BROKEN]


# Redis, of several servers


@pytest.fixture
def cluster() -> RedisCluster:
    return redis_servers.shared_cluster(redis_binary())


@pytest.fixture
def sentinel() -> RedisSentinel:
    return redis_servers.shared_sentinel(redis_binary())


@contextmanager
def told(server: RedisServer, setting: str, value: str) -> Iterator[None]:
    """The server has this setting, until the end of the block."""
    before = server.told("CONFIG", "GET", setting)[1]
    server.told("CONFIG", "SET", setting, value)
    try:
        yield
    finally:
        server.told("CONFIG", "SET", setting, before.decode())


async def test_a_cluster_is_tried_and_every_primary_looked_at(cluster: RedisCluster):
    url = cluster.url(prefix=redis_servers.prefix())
    found = await findings_of(url, TIMING)
    assert exit_of(found) is Exit.OK, found
    assert by_name(found)["zombie"].verdict is FINE
    assert by_name(found)["replication"].verdict is RISKY, "a Cluster fails over, and nobody waits"
    assert sum(finding.name == "clock" for finding in found) == len(cluster.servers) == 3
    waiting = await findings_of(cluster.url(prefix=redis_servers.prefix(), wait=1), TIMING)
    assert (broken_in(waiting), exit_of(waiting)) == (["replication"] * 3, Exit.FAILED), "no primary has a replica"
    for server in cluster.servers:  # whichever it is
        with told(server, "maxmemory-policy", "allkeys-lru"):
            found = await findings_of(url, TIMING)
        assert broken_in(found) == ["eviction"]
        assert f":{server.port} evicts" in by_name(found)["eviction"].what
        assert exit_of(found) is Exit.FAILED
    with told(cluster.servers[-1], "appendonly", "no"):
        assert "appendonly is off" in [finding.what for finding in await findings_of(url, TIMING)]


async def test_each_primary_of_a_cluster_has_its_own_users(cluster: RedisCluster):
    prefix = redis_servers.prefix()
    for server in cluster.servers:
        server.told("ACL", "SETUSER", prefix, "on", ">geheim", "~*", "&*", "+@all")
    url = cluster.url(prefix=prefix).replace("://", f"://{prefix}:geheim@")
    assert exit_of(await findings_of(url, TIMING)) is Exit.OK
    cluster.servers[-1].told("ACL", "SETUSER", prefix, "-zadd")
    found = await findings_of(url, TIMING)
    assert broken_in(found) == ["permissions"]
    assert f"may not run ZADD on keys that begin with {prefix}: (127.0.0.1:{cluster.servers[-1].port})" in str(found)


async def test_behind_a_sentinel_the_primary_is_looked_at(sentinel: RedisSentinel):
    url = sentinel.url(prefix=redis_servers.prefix())
    found = await findings_of(url, TIMING)
    assert exit_of(found) is Exit.OK, found
    assert by_name(found)["zombie"].verdict is FINE
    assert "the best replica is" in by_name(found)["replication"].what
    waiting = by_name(await findings_of(sentinel.url(prefix=redis_servers.prefix(), wait=1), TIMING))
    assert waiting["replication"].verdict is FINE
    assert waiting["zombie"].verdict is FINE
    with told(sentinel.primary, "maxmemory-policy", "volatile-ttl"):
        assert exit_of(await findings_of(url, TIMING)) is Exit.FAILED


async def test_a_sentinel_that_knows_no_such_primary_or_is_gone(sentinel: RedisSentinel):
    for url in (sentinel.url().replace("/tenure", "/nobody"), "redis+sentinel://127.0.0.1:1/tenure"):
        assert exit_of(await findings_of(url, TIMING)) in (Exit.FAILED, Exit.UNAVAILABLE)


# PostgreSQL, as it is set


@pytest.fixture
def postgres() -> PostgresServer:
    return postgres_servers.shared_server(postgres_servers.NEWEST)


async def test_a_postgres_that_syncs_nothing_that_writes_half_pages_and_that_reads_only():
    with PostgresServer(postgres_servers.NEWEST, options={"full_page_writes": "off"}) as server:
        found = await findings_of(server.url(), TIMING)
        assert by_name(found)["persistence"].verdict is RISKY
        assert by_name(found)["zombie"].verdict is FINE
        assert exit_of(found) is Exit.OK
        _reloaded(server, "fsync", "off")
        found = await findings_of(server.url(), TIMING)
        assert broken_in(found) == ["persistence"]
        assert by_name(found)["persistence"].remedy == "set fsync=on"
        assert exit_of(found) is Exit.FAILED
        _reloaded(server, "fsync", "on")
        _reloaded(server, "default_transaction_read_only", "on")
        found = await findings_of(server.url(), TIMING)
        assert exit_of(found) is Exit.UNAVAILABLE
        assert "read-only" in found[-1].what


async def test_a_standby_and_what_its_primary_may_lose():
    with PostgresServer(postgres_servers.NEWEST) as primary, ExitStack() as started:
        standby = PostgresServer(postgres_servers.NEWEST)
        primary.stop()
        standby.follow(primary)
        primary.start()
        started.enter_context(standby)
        until(lambda: primary.ask("SELECT state FROM pg_stat_replication") == [("streaming",)], "it follows")
        found = await findings_of(primary.url(), TIMING)
        asynchronous = by_name(found)["replication"]
        assert (asynchronous.verdict, exit_of(found)) == (RISKY, Exit.OK)
        assert "bytes behind" in asynchronous.what
        assert "synchronous_standby_names" in asynchronous.remedy
        _reloaded(primary, "synchronous_standby_names", "*")
        found = await findings_of(primary.url(), TIMING)
        assert (by_name(found)["replication"].verdict, by_name(found)["zombie"].verdict) == (FINE, FINE)
        found = await findings_of(standby.url(), TIMING)
        assert exit_of(found) is Exit.UNAVAILABLE
        assert "read-only" in found[-1].what or "standby" in found[-1].what
        _reloaded(primary, "synchronous_standby_names", "")


def _reloaded(server: PostgresServer, setting: str, value: str) -> None:
    server.ask(f"ALTER SYSTEM SET {setting} = '{value}'")
    server.ask("SELECT pg_reload_conf()")
    until(lambda: server.ask(f"SHOW {setting}") == [(value,)], f"it has {setting} = {value}")


async def test_synchronous_commit_off_is_set_right_or_broken(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch):
    url = postgres.url(schema=postgres_servers.schema())
    with postgres_servers.console(postgres, "public"):
        postgres.ask("CREATE ROLE hasty LOGIN SUPERUSER")
    postgres.ask("ALTER ROLE hasty SET synchronous_commit = off")
    assert exit_of(await findings_of(url.replace("tenure@", "hasty@"), TIMING)) is Exit.OK, "the store sets it itself"
    swallowed = link._SET_UP.replace("'remote_apply' THEN 'remote_apply' ELSE 'on' END", "'x' THEN 'on' ELSE 'off' END")
    monkeypatch.setattr(link, "_SET_UP", swallowed)  # as where something in between swallows what the store sets
    found = await findings_of(url, TIMING)
    assert broken_in(found) == ["fitness"]
    assert "keeps synchronous_commit at 'off'" in found[-1].what
    assert exit_of(found) is Exit.FAILED


@pytest.mark.parametrize(("mode", "code"), [("transaction", Exit.FAILED), ("session", Exit.OK)])
async def test_behind_a_pooler(postgres: PostgresServer, mode: str, code: Exit):
    async with Pooler(postgres.port, mode=mode) as pooler:
        url = postgres.url(schema=postgres_servers.schema()).replace(f":{postgres.port}/", f":{pooler.port}/")
        found = await findings_of(url, TIMING)
    assert exit_of(found) is code, found
    if code is Exit.FAILED:
        assert "pool_mode = transaction" in found[-1].what
        assert "connect to PostgreSQL itself" in found[-1].remedy
    else:
        assert by_name(found)["zombie"].verdict is FINE


# slow


async def test_a_slow_postgres_is_a_risk_for_a_short_lease(postgres: PostgresServer):
    async with Proxy(postgres.port) as proxy:
        proxy.delay(0.02)
        url = postgres.url(schema=postgres_servers.schema()).replace(f":{postgres.port}/", f":{proxy.port}/")
        found = await findings_of(url, Timing.of_ttl(0.2))
    assert by_name(found)["latency"].verdict is RISKY
    assert exit_of(found) is Exit.OK


async def test_a_slow_file_is_a_risk_for_a_short_lease(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/store.db"
    async with open_store(url):
        pass
    with hogging(tmp_path / "store.db"):
        found = await findings_of(url, Timing.of_ttl(0.2))
    assert by_name(found)["latency"].verdict is RISKY
    assert exit_of(found) is Exit.OK


@contextmanager
def hogging(path: Path) -> Iterator[None]:
    """Another process's transactions, of 60 ms each, one after the other."""
    over = threading.Event()

    def hog() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
            while not over.is_set():
                connection.execute("BEGIN IMMEDIATE")
                over.wait(0.06)
                connection.execute("ROLLBACK")
                over.wait(0.002)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
