"""What the event loop says when no connection can be accepted, for want of descriptors or memory: once, and it tries again.

CPython's loop (3.12 and 3.13; later ones were not looked at) says it once for each place of the socket's queue: uvicorn's has 2,048, which made as many
tracebacks, a megabyte of log, while everything else waited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenure import facts

if TYPE_CHECKING:
    import asyncio

EXHAUSTED = "socket.accept() out of system resource"
"""The loop's own words; it tries again a second later."""
PERIOD_S = 0.9


def tell_once(loop: asyncio.AbstractEventLoop, told: facts.Facts) -> None:
    """Tell of connections that cannot be accepted in one line for each try; anything else as before."""
    quiet_until_s = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until_s
        if context.get("message") != EXHAUSTED:
            loop.default_exception_handler(context)
        elif loop.time() >= quiet_until_s:
            quiet_until_s = loop.time() + PERIOD_S
            told.tell(facts.ConnectionsUnaccepted(str(context.get("exception"))))

    loop.set_exception_handler(handle)
