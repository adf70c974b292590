"""Real Redis servers for a whole run: started when a test needs one first, ended with the run.

Tests on one server are kept apart by the prefix of their keys.
"""

import asyncio
import atexit
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from tenure.errors import StoreUnavailableError
from tenure.stores.redis import RedisStore
from tenure.testing.servers import RedisCluster, RedisSentinel, RedisServer, redis_binaries
from tenure.testing.store_suite import Factory, Stage
from tenure.testing.store_suite.stage import PATIENCE_S

BINARIES = redis_binaries()
_RUN = contextlib.ExitStack()
atexit.register(_RUN.close)
_PREFIXES = (f"t{number}" for number in itertools.count(1))


def prefix() -> str:
    """Keys that no other test has."""
    return next(_PREFIXES)


def folder() -> Path:
    """For the files of one server, until the run is over."""
    return Path(_RUN.enter_context(tempfile.TemporaryDirectory(prefix="tenure-redis-")))


@cache
def shared_server(binary: Path) -> RedisServer:
    """The server of this binary that tests share which do it no harm."""
    return _RUN.enter_context(RedisServer(folder(), binary=binary))


@cache
def shared_cluster(binary: Path) -> RedisCluster:
    """Three primaries that tests share which do them no harm."""
    return _RUN.enter_context(RedisCluster(folder(), binary=binary))


@cache
def shared_sentinel(binary: Path) -> RedisSentinel:
    """A primary, a replica, a Sentinel, none of which fails."""
    return _RUN.enter_context(RedisSentinel(folder(), binary=binary))


def on(server: RedisServer | RedisCluster | RedisSentinel) -> Factory:
    """A store that is empty now, as the suite opens it."""
    url = server.url(prefix=prefix())
    return lambda clock, limits: RedisStore(url, clock=clock, limits=limits)


@asynccontextmanager
async def stage_on(url: str) -> AsyncIterator[Stage]:
    """Nodes, writers and a store on a server's own time."""
    async with Stage.opened(lambda clock, limits: RedisStore(url, limits=limits)) as stage:
        yield stage


async def eventually[R](look: Callable[[], Awaitable[R]], suits: Callable[[R], bool], what: str) -> R:
    """Look again until it suits; an outage meanwhile is one more reason to look again."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    if suits(seen := await look()):
                        return seen
                except StoreUnavailableError:
                    pass
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}") from None
