"""The contract of :class:`tenure.abc.Store`, as cases. Every store passes all of them; none is skipped.

For a store of your own, with pytest and pytest-asyncio::

    pytest.register_assert_rewrite("tenure.testing.store_suite")   # before the import: failures show their values

    from tenure.testing.store_suite import CASES, exercise

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_store(case, tmp_path):
        await exercise(case, lambda clock, limits: MyStore(tmp_path, clock=clock, limits=limits))

The factory is called once for each process that a case plays: every call gives another, unopened way to the *same* store,
which is empty when the case begins. Time does not pass by itself: the store takes it from `clock`, and the case moves it.

A case is named after what it shows: ``rule_05_…`` a rule of the protocol, ``c4_…`` a counterexample that was found against an
earlier text of it, any other name a sentence of the contract's docstrings. After each case the strict fold of
:mod:`tenure.conversation` judges every journal that it left behind.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tenure.testing.store_suite import (
    appending,
    changing,
    claiming,
    handles,
    hinting,
    keeping,
    nodes,
    races,
    reading,
    rehydrating,
    releasing,
    submitting,
    sweeping,
)
from tenure.testing.store_suite.stage import Case, Factory, Stage

if TYPE_CHECKING:
    from types import ModuleType


def _cases(room: ModuleType) -> list[Case]:
    """The public coroutine functions of a module, in the order in which they stand there."""
    return [
        one
        for name, one in vars(room).items()
        if inspect.iscoroutinefunction(one) and one.__module__ == room.__name__ and not name.startswith("_")
    ]


ROOMS: tuple[ModuleType, ...] = (
    handles,
    nodes,
    submitting,
    claiming,
    appending,
    releasing,
    rehydrating,
    changing,
    sweeping,
    reading,
    hinting,
    keeping,
    races,
)

CASES: tuple[Case, ...] = tuple(case for room in ROOMS for case in _cases(room))
"""Every case, in the order of the story."""


async def exercise(case: Case, factory: Factory) -> None:
    """Play one case on the store that the factory opens, then judge every journal in it.

    :raises AssertionError: the store breaks its contract; the case's name says which sentence.
    """
    async with Stage.opened(factory) as stage:
        await case(stage)
        await stage.judge()


__all__ = ["CASES", "ROOMS", "Case", "Factory", "Stage", "exercise"]
