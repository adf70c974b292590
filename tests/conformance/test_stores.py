"""Every case of the shipped suite, on every store of this package."""

from collections.abc import Callable
from pathlib import Path

import postgres_servers
import pytest
import redis_servers

from tenure.abc import Dead, Death
from tenure.lease import new_incarnation
from tenure.stores.memory import Disk, MemoryStore
from tenure.stores.sqlite import SqliteStore
from tenure.testing.store_suite import CASES, Case, Factory, Stage, exercise


def memory(_: Path) -> Factory:
    disk = Disk()
    return lambda clock, limits: MemoryStore(disk, clock, limits)


def sqlite(folder: Path) -> Factory:
    return lambda clock, limits: SqliteStore(f"sqlite:///{folder}/tenure.db", clock=clock, limits=limits)


def redis(binary: Path) -> Callable[[Path], Factory]:
    return lambda _: redis_servers.on(redis_servers.shared_server(binary))


def redis_cluster(binary: Path) -> Callable[[Path], Factory]:
    return lambda _: redis_servers.on(redis_servers.shared_cluster(binary))


def postgres(binaries: Path) -> Callable[[Path], Factory]:
    return lambda _: postgres_servers.on(postgres_servers.shared_server(binaries))


STORES = [pytest.param(memory, id="memory"), pytest.param(sqlite, id="sqlite")]
for _name, _binary in redis_servers.BINARIES.items():
    STORES += [pytest.param(redis(_binary), id=_name), pytest.param(redis_cluster(_binary), id=f"{_name}-cluster")]
for _name, _binary in postgres_servers.BINARIES.items():
    STORES.append(pytest.param(postgres(_binary), id=_name))


every_store = pytest.mark.parametrize("store", STORES)


@every_store
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_store(case: Case, store: Callable[[Path], Factory], tmp_path: Path):
    await exercise(case, store(tmp_path))


@pytest.mark.parametrize("store", [one for one in STORES if not str(one.id).endswith("-cluster")])
async def test_these_stores_can_tell_that_a_claimant_is_dead(store: Callable[[Path], Factory], tmp_path: Path):
    """The contract leaves it to the store; the suite only asks that such a claim leaves nothing behind (C7).

    A Redis Cluster keeps nodes and conversations apart, so there a claim may come late.
    """

    async def case(stage: Stage) -> None:
        conversation, incarnation = await stage.conversation(), await stage.node()
        assert await stage.store.claim(stage.claiming(conversation, new_incarnation())) == Dead()
        await stage.store.bury(incarnation, Death.EXITED)
        assert await stage.store.claim(stage.claiming(conversation, incarnation)) == Dead()
        assert await stage.kinds(conversation) == ["created"]

    await exercise(case, store(tmp_path))


def test_each_case_has_a_name_of_its_own():
    names = [case.__name__ for case in CASES]
    assert len(set(names)) == len(names) > 200
