"""Claims first: what a sweep claimed begins a few at a time, once the sweep has claimed what it found.

A node that inherits thousands of conversations could begin all of them at once: each would wait for each, the claims that
are still to be made for all of them, and one turn of the event loop would take half a second. So the first step behind a
claim, to read and fold the journal, is taken by a few at a time, and while a sweep goes through several pages by none. What
follows is not held up: a slow provider keeps nobody waiting. Nor is anybody who asked for a start.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

AT_ONCE = 16
CLAIMS_FIRST_S = 2.0
"""So long a sweep is waited for; a store that answers slowly holds up nothing for longer."""


@final
class Pace:
    """The gate of one node. In the event loop only."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)
        self._free = asyncio.Event()
        self._free.set()

    def hold_back(self) -> None:
        """Nobody passes: a sweep has more to claim."""
        self._free.clear()

    def let_on(self) -> None:
        """The sweep is through, however it ended."""
        self._free.set()

    @asynccontextmanager
    async def passed(self) -> AsyncGenerator[None]:
        """In turn, a few at a time."""
        async with self._room:
            if not self._free.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLAIMS_FIRST_S):
                        await self._free.wait()
            yield
