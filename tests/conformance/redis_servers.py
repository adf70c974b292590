"""Real Redis servers for a whole run: started when a test needs one first, ended with the run.

Tests on one server are kept apart by the prefix of their keys.
"""

import atexit
import contextlib
import itertools
import tempfile
from functools import cache
from pathlib import Path

from tenure.stores.redis import RedisStore
from tenure.testing.servers import RedisCluster, RedisSentinel, RedisServer, redis_binaries
from tenure.testing.store_suite import Factory

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
