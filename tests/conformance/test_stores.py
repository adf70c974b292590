"""Every case of the shipped suite, on every store of this package."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.store_suite import CASES, Case, Factory, exercise


def memory(_: Path) -> Factory:
    disk = Disk()
    return lambda clock, limits: MemoryStore(disk, clock, limits)


def sqlite(folder: Path) -> Factory:
    from tenure.stores.sqlite import SqliteStore

    return lambda clock, limits: SqliteStore(f"sqlite:///{folder}/tenure.db", clock=clock, limits=limits)


STORES = [memory, sqlite]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_store(case: Case, store: Callable[[Path], Factory], tmp_path: Path):
    await exercise(case, store(tmp_path))
