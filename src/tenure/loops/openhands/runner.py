"""A thread with an event loop of its own, for one conversation: what blocks there blocks nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


@final
class Work:
    """What a runner was given. `ended` belongs to whoever gave it, and tells when it really has ended, and how."""

    def __init__(self, there: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        self._here = asyncio.get_running_loop()
        self._there = there
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self.ended: asyncio.Future[None] = self._here.create_future()
        there.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        """Ask it to end; it may take its time."""
        self._there.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())

    def _start(self) -> None:
        """With threads of its own for what it calls aside (the SDK's steps): they end with it, and cost an idle one nothing."""
        self._threads = ThreadPoolExecutor()
        self._there.set_default_executor(self._threads)
        self._task = self._there.create_task(self._work)
        self._task.add_done_callback(self._tell)

    def _tell(self, task: asyncio.Task[None]) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        with contextlib.suppress(RuntimeError):  # the node's event loop is closed: nobody waits any more
            self._here.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            self.ended.cancel()
        else:
            self.ended.set_exception(error)
            self.ended.exception()  # who was cut does not ask for it


@final
class Runner:
    """Does what it is given in its thread. A daemon: it does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended: Future[None] = Future()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def begin(self, work: Coroutine[Any, Any, None]) -> Work:
        """Start it there; from an event loop."""
        return Work(self._loop, work)

    def leave(self, last: Callable[[], None]) -> None:
        """Cancel what is there, do `last`, and end. Does not wait; what blocks delays it."""
        asyncio.run_coroutine_threadsafe(self._leave(last), self._loop)

    async def left(self) -> None:
        """Return when it has ended, after :meth:`leave`."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    async def _leave(self, last: Callable[[], None]) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            last()
        finally:
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        finally:
            self._ended.set_result(None)
