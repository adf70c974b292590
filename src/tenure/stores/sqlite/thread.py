"""A thread that an event loop can wait for."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable


@final
class AwaitableThread:
    """A daemon thread of one event loop: :meth:`ended` waits for its end without blocking the loop."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._ends = asyncio.Event()
        self._thread = threading.Thread(target=self._start, name=f"tenure-sqlite-{name}", daemon=True)
        self._started = False

    def start(self) -> None:
        """Start it, once; later calls do nothing."""
        if not self._started:
            self._started = True
            self._thread.start()

    def _start(self) -> None:
        try:
            self._run()
        finally:
            self.call_soon(self._ends.set)

    def call_soon[*A](self, call: Callable[[*A], object], *arguments: *A) -> None:
        """From the thread: do this in the event loop; if that is closed, nobody waits for it."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    async def ended(self) -> None:
        """Return when the thread is gone (at once if it was never started)."""
        if not self._started:
            return
        await self._ends.wait()
        while self._thread.is_alive():  # noqa: ASYNC110 - it has said so already; only its last instructions are left
            await asyncio.sleep(0)
