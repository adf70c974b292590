"""The node's tests that bear the name of a counterexample (C1 to C24), once more on the real stores, in virtual time.

What they ask of the store alone is asked of every store by the shipped suite, under the same names.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenure.testing import real_stores
from tenure.testing.backing import Backing
from tenure.testing.postgres import PostgresServer
from tenure.testing.servers import RedisServer, redis_binary
from tenure.testing.simloop import LoopClock

type StoredIn = Callable[[LoopClock], Backing]

UNIT = Path(__file__).parents[1] / "unit"
sys.path.insert(0, str(UNIT))

pytestmark = pytest.mark.blocking_ok  # the store answers while virtual time stands still


def counterexamples() -> Iterator[Callable[..., None]]:
    """Those in virtual time that look into no memory disk."""
    for file in sorted(UNIT.glob("test_node_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, test in vars(module).items():
            if re.match(r"test_c\d+_", name) and hasattr(test, "on_memory_alone") and not test.on_memory_alone:
                yield test


TESTS = list(counterexamples())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def stored_in(request: pytest.FixtureRequest, tmp_path: Path) -> StoredIn:
    """A store that is empty for each test."""
    if request.param == "sqlite":
        return real_stores.sqlite(tmp_path)
    if request.param == "postgres":
        return real_stores.postgres(request.getfixturevalue("database"))
    return real_stores.redis(request.getfixturevalue("server"))


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__.removeprefix("test_"))
def test_a_counterexample(test: Callable[..., None], stored_in: StoredIn):
    missing = [name for name in inspect.signature(test).parameters if name != "stored_in"]
    assert missing == [], "a test that takes more than a cluster is not for here"
    test(stored_in=stored_in)


def test_they_are_many():
    names = {int(number) for test in TESTS for number in re.findall(r"c(\d+)_", test.__name__)}
    assert names >= {1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20, 21, 24}
