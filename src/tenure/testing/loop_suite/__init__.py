"""The contract of :class:`tenure.abc.AgentLoop`, as cases. Every loop passes all of them.

For a loop of your own, with pytest and pytest-asyncio::

    pytest.register_assert_rewrite("tenure.testing.loop_suite")   # before the import: failures show their values

    from tenure.testing.loop_suite import CASES, Trial, exercise

    class MyTrial(Trial):
        loop = MyLoop(...)
        ...

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_loop(case):
        await exercise(case, MyTrial)

A :class:`Trial` says how your agent is made to call its tool, and what it was told; the tool is the suite's. A case is
named after what it shows. Journals are lists here, judged by the strict fold of :mod:`tenure.conversation`; owners come
and go without a node, so that one can be lost at each append.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from tenure.testing.loop_suite import cases
from tenure.testing.loop_suite.trial import TOLD_UNKNOWN, Bench, Trial, Trying

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

type Case = Callable[[Trying], Coroutine[Any, Any, None]]

CASES: Final[tuple[Case, ...]] = tuple(
    one
    for name, one in vars(cases).items()
    if inspect.iscoroutinefunction(one) and one.__module__ == cases.__name__ and not name.startswith("_")
)
"""Every case, in the order of the story."""


async def exercise(case: Case, trial: Callable[[], Trial]) -> None:
    """Play one case on the loop that the trial tries.

    :raises AssertionError: the loop breaks its contract; the case's name says which sentence.
    """
    trying = Trying(trial())
    try:
        await case(trying)
    finally:
        trying.end()


__all__ = ["CASES", "TOLD_UNKNOWN", "Bench", "Case", "Trial", "Trying", "exercise"]
