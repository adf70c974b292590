"""``tenure bench --store``: a server of the user's own is measured, whatever its URL says besides, and is left as it was."""

import postgres_servers
import psycopg
import pytest
import redis_servers

from tenure.cli.bench.places import places
from tenure.cli.bench.running import Asked, run
from tenure.cli.bench.stage import TINY
from tenure.errors import InvalidInputError

pytestmark = pytest.mark.blocking_ok  # it measures, and serves nobody
REDIS = next(iter(redis_servers.BINARIES.values()))


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
