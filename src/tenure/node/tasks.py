"""The node's task group: the one place that starts tasks, keeps them alive and hears of their end.

A background task is *supervised*: whatever it raises is logged and it starts again, with a back-off and jitter. A task
that dies in silence is the commonest way in which clusters stop recovering.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, final

from tenure.errors import StoreUnavailableError

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

log = logging.getLogger("tenure.node")


@final
class Tasks:
    """Tasks that end with their owner, or before. Strong references; no exception goes unheard."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._running: dict[asyncio.Task[Any], None] = {}  # in order: a set of tasks has none that a seed can repeat

    def start[T](self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task whose end somebody awaits; if nobody does, its exception is logged."""
        task = asyncio.create_task(work, name=name)
        self._running[task] = None
        task.add_done_callback(self._ended)
        return task

    def supervise(self, work: Callable[[], Awaitable[None]], name: str, pause_s: float) -> asyncio.Task[None]:
        """Keep `work` running: restarted after any exception, loudly, after about `pause_s` and ever longer."""

        async def keep() -> None:
            failures = 0
            while True:
                started = asyncio.get_running_loop().time()
                try:
                    await work()
                except StoreUnavailableError as error:
                    log.warning("%s waits for the store: %s", name, error)
                except Exception:
                    log.exception("background task failed, starting it again", extra={"task": name})
                ran_s = asyncio.get_running_loop().time() - started
                failures = 0 if ran_s > 20 * pause_s else min(failures + 1, 6)
                await asyncio.sleep(pause_s * 2**failures * self._rng.uniform(0.25, 0.75))

        return self.start(keep(), name)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("task ended with %r", error, extra={"task": task.get_name()})

    async def cancel(self, patience_s: float) -> None:
        """Cancel what still runs and wait until it has ended; what ignores it is named and left behind."""
        running = [t for t in self._running if t is not asyncio.current_task()]
        if stuck := await ended(running, patience_s):
            log.critical("tasks that ignore their cancellation: %s", [t.get_name() for t in stuck])


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
