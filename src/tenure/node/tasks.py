"""The node's task group: the one place that starts tasks, keeps them alive and hears of their end.

A background task is *supervised*: whatever it raises is logged and it starts again, with a back-off and jitter. A task
that dies in silence is the commonest way in which clusters stop recovering.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, final

from tenure import facts
from tenure.errors import StoreUnavailableError

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from tenure.facts import Facts

STORE_PAUSE_S = 2.0
"""How long at most somebody who works without end lets a store rest that did not answer, before jitter."""


@final
class Tasks:
    """Tasks that end with their owner, or before. Strong references; no exception goes unheard."""

    def __init__(self, rng: random.Random, told: Facts) -> None:
        self._rng = rng
        self._facts = told
        self._running: dict[asyncio.Task[Any], None] = {}  # in order: a set of tasks has none that a seed can repeat

    def start[T](self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task whose end somebody awaits; if nobody does, its exception is logged."""
        task = asyncio.create_task(work, name=name)
        self._running[task] = None
        task.add_done_callback(self._ended)
        return task

    def supervise(self, work: Callable[[], Awaitable[None]], name: str, pause_s: float) -> asyncio.Task[None]:
        """Keep `work` running: restarted after any exception, loudly, after about `pause_s` and ever longer.

        Not ever longer for a store that is away: nothing of the node is of use until it is asked again.
        """

        async def keep() -> None:
            failures = 0
            while True:
                started = asyncio.get_running_loop().time()
                longest_s = math.inf
                try:
                    await work()
                except StoreUnavailableError as error:
                    self._facts.tell(facts.StoreAwaited(name, str(error)))
                    longest_s = max(pause_s, STORE_PAUSE_S)
                except Exception:
                    self._facts.tell(facts.TaskFailed(name), traced=True)
                ran_s = asyncio.get_running_loop().time() - started
                failures = 0 if ran_s > 20 * pause_s else min(failures + 1, 6)
                await asyncio.sleep(min(pause_s * 2**failures, longest_s) * self._rng.uniform(0.25, 0.75))

        return self.start(keep(), name)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._facts.tell(facts.TaskEnded(task.get_name(), repr(error)))

    async def cancel(self, patience_s: float) -> None:
        """Cancel what still runs and wait until it has ended; what ignores it is named and left behind."""
        running = [t for t in self._running if t is not asyncio.current_task()]
        if stuck := await ended(running, patience_s):
            self._facts.tell(facts.TasksStuck("when the node was closed", ", ".join(t.get_name() for t in stuck)))


async def ended(tasks: Iterable[asyncio.Task[Any]], patience_s: float) -> list[asyncio.Task[Any]]:
    """Cancel the tasks and wait for their end; those that have not ended after `patience_s`."""
    running = [t for t in tasks if not t.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=patience_s)
    return [t for t in running if not t.done()]


async def settled[T](task: asyncio.Future[T]) -> T:
    """Wait for work that must not be cancelled with its caller: a start, an append under way (rule 3)."""
    return await asyncio.shield(task)
