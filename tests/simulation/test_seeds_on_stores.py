"""The same seeds on real stores, in virtual time: whatever is executed, a real SQLite file or server does it.

``TENURE_SIM_STORE_SEEDS`` says how many for each store; ``TENURE_SIM_SEED`` replays a single one.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenure.testing import real_stores
from tenure.testing.backing import Backing
from tenure.testing.postgres import PostgresServer
from tenure.testing.scenario import THEMES, Scenario, run
from tenure.testing.servers import RedisServer, redis_binary
from tenure.testing.simloop import LoopClock

type StoredIn = Callable[[LoopClock], Backing]

SEEDS = int(os.environ.get("TENURE_SIM_STORE_SEEDS", len(THEMES)))
ONE = os.environ.get("TENURE_SIM_SEED")
CHUNK = 2
STORES = ("sqlite", "redis", "postgres")

pytestmark = pytest.mark.blocking_ok  # the store answers while virtual time stands still


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that only this module uses: each run empties it."""
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL that only this module uses."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=STORES)
def stored_in(request: pytest.FixtureRequest, tmp_path: Path) -> StoredIn:
    """A store that is empty for each run."""
    if request.param == "sqlite":
        return real_stores.sqlite(tmp_path)
    if request.param == "postgres":
        return real_stores.postgres(request.getfixturevalue("database"))
    return real_stores.redis(request.getfixturevalue("server"))


def chunks() -> list[range]:
    """The seeds in pieces that several processes can share."""
    if ONE is not None:
        return [range(int(ONE), int(ONE) + 1)]
    return [range(first, min(first + CHUNK, SEEDS)) for first in range(0, SEEDS, CHUNK)]


@pytest.mark.parametrize("seeds", chunks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_the_guarantee_holds(stored_in: StoredIn, seeds: range, request: pytest.FixtureRequest):
    for seed in seeds:
        outcome = run(seed, stored_in)
        again = f"TENURE_SIM_SEED={seed} .venv/bin/pytest '{request.node.nodeid.partition('[')[0]}'"
        assert outcome.ok, f"\n{outcome.report()}\non this store: {again}"


def test_every_theme_is_lived_on_every_store():
    lived = {Scenario.of(seed).theme for seed in range(SEEDS)}
    assert lived == set(THEMES) or ONE is not None or "TENURE_SIM_STORE_SEEDS" in os.environ


def test_a_seed_repeats_every_step(stored_in: StoredIn):
    first, second = (run(4, stored_in) for _ in range(2))
    assert first.digest == second.digest


def test_the_store_was_asked(stored_in: StoredIn):
    opened: list[Backing] = []

    def watched(clock: LoopClock) -> Backing:
        opened.append(stored_in(clock))
        return opened[0]

    outcome = run(0, watched)
    assert outcome.ok
    assert type(opened[0].connect()).__name__ in ("SqliteStore", "RedisStore", "PostgresStore")
    assert opened[0].names()
