"""``tenure bench``: every row of it is measured, in tiny amounts; and with ``--store`` a server of the user's own is, whatever its
URL says besides, and is left as it was."""

import importlib
import os
from pathlib import Path

import postgres_servers
import psycopg
import pytest
import redis_servers

from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.places import Place, places
from tenure.cli.bench.results import Row
from tenure.cli.bench.running import Asked, run
from tenure.cli.bench.stage import TINY, Stage
from tenure.cli.bench.targets import BY_KEY
from tenure.errors import InvalidInputError
from tenure.testing.servers import RedisServer

pytestmark = pytest.mark.blocking_ok  # it measures, and serves nobody
REDIS = next(iter(redis_servers.BINARIES.values()))

QUICK_ROWS = ("claims", "heartbeat", "message", "idle", "append", "startup")
"""The others start, kill and restart nodes by the dozen, or load the SDK: ``make chaos`` measures them as well."""
ROWS = tuple(BY_KEY) if os.environ.get("TENURE_BENCH_ROWS") == "all" else QUICK_ROWS
PROFILED = ("claims", "heartbeat", "takeover", "message", "idle", "append", "rolling", "openhands")
PEERS = "not installed here"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", ROWS)
async def test_every_row_is_measured_and_judged_and_says_where_its_time_goes(key: str, tmp_path: Path):
    with RedisServer(tmp_path) as server:
        version = server.info("server")["redis_version"]
        row = Row(key)
        place = Place("redis", server.url(), version, server)
        await importlib.import_module(f"tenure.cli.bench.rows.{key}").measure(Stage({"redis": place}, TINY), row)
        assert server.told("KEYS", "bench_*") == [], "its spaces are gone"
    assert {what: why for what, why in row.missing.items() if PEERS not in why} == {}
    assert row.figures
    assert all(figure.samples > 0 for figure in row.figures)
    assert row.bounds
    assert all(bound.found for bound in row.bounds)
    assert bool(row.profiles) == (key in PROFILED)
    assert all(parts for parts in row.profiles.values())


async def test_a_stores_url_is_in_no_list_of_processes(tmp_path: Path):
    async with child_node(f"sqlite:///{tmp_path}/geheim.db") as node:
        told = Path(f"/proc/{node.pid}/cmdline").read_bytes()
    assert b"node_child" in told
    assert b"geheim" not in told


async def measured(url: str) -> None:
    said: list[str] = []
    found = await run(Asked(url, TINY, ("append",), None, "tenure bench"), said.append)
    assert list(found) == ["append"], said
    roles = {figure.role for figure in found["append"].figures}
    assert roles == {"ours", "floor"}, "peers that make tables of their own stay away"
    assert all(figure.middle > 0 for figure in found["append"].figures)


async def test_a_redis_of_the_users_own_is_left_as_it_was():
    server = redis_servers.shared_server(REDIS)
    before = set(server.told("KEYS", "*"))
    await measured(server.url(prefix="theirs", timeout_s=20))
    assert set(server.told("KEYS", "*")) == before


async def test_a_postgres_of_the_users_own_is_left_as_it_was():
    server = postgres_servers.shared_server(postgres_servers.NEWEST)

    def schemas() -> set[object]:
        with psycopg.connect(server.url(connect_timeout=20)) as connection:
            return set(connection.execute("SELECT nspname FROM pg_namespace").fetchall())

    before = schemas()
    await measured(server.url(schema="theirs", connect_timeout=20))
    assert schemas() == before


async def test_one_server_of_a_cluster_is_refused():
    cluster = redis_servers.shared_cluster(REDIS)
    with pytest.raises(InvalidInputError, match="belongs to a Cluster"):
        async with places(cluster.servers[0].url()):
            pass
