"""Blocking code in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def in_thread[T](name: str, work: Callable[[], T]) -> T:
    """Run `work` in a new daemon thread, with the caller's context variables.

    Not in the loop's executor: its few threads serve the files and the store of every conversation, and a call may
    block for hours. A daemon, so that it does not keep the process from ending. If the caller is cancelled the thread
    goes on, and what it returns is dropped.
    """
    host = asyncio.get_running_loop()
    result: asyncio.Future[T] = host.create_future()
    context = contextvars.copy_context()

    def tell(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # pyright: ignore[reportArgumentType] - null only beside an error
        elif isinstance(
            error, StopIteration | KeyboardInterrupt
        ):  # a future cannot carry the one, nor a task the other
            result.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(work)
        except BaseException as raised:  # whatever it is, it belongs to the call
            error = raised
        try:
            host.call_soon_threadsafe(tell, value, error)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return

    threading.Thread(target=run, name=name, daemon=True).start()
    return await result
