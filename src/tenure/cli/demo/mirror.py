"""A live conversation as somebody sees it who only follows its stream, from whichever node answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure.journal import TURN_ENDS, Claimed, Event, Released, read_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.cli.demo.screen import Screen


@final
class Mirror:
    """The journal so far: who owns it, whether a turn is open, what is settled.

    :param hear: is told each event, once.
    """

    def __init__(self, conversation: str, screen: Screen, hear: Callable[[Event], None] = lambda _: None) -> None:
        self.conversation = conversation
        self.events: list[Event] = []
        self.owner: Claimed | None = None
        self.turn: str | None = None
        self.calls: set[str] = set()
        self.done = 0
        """How many calls of the open turn have their outcome."""
        self.settled: set[int] = set()
        self.flaws: list[str] = []
        self._screen = screen
        self._hear = hear
        screen.row(conversation)
        self._moved = asyncio.Event()

    @property
    def in_mid_call(self) -> bool:
        """A tool runs at this moment."""
        return self.owner is not None and self.turn is not None and bool(self.calls)

    def absorb(self, event: Event) -> None:
        """The next event of the stream; a gap or a repetition is a flaw."""
        if event.seq != len(self.events) + 1:
            self.flaws.append(f"{self.conversation}: the stream told {event.seq} after {len(self.events)}")
            return
        self.events.append(event)
        self.calls |= set(event.opens)
        self.calls -= set(event.closes)
        self.done = 0 if event.kind == "turn_started" else self.done + len(event.closes)
        match read_body(event):
            case Claimed() as claimed:
                self.owner = claimed
            case Released():
                self.owner = None
            case _:
                pass
        if event.kind == "turn_started":
            self.turn = event.turn
        elif event.kind in TURN_ENDS:
            self.turn = None
            self.settled.update(int(str(seq)) for seq in event.body["commands"])  # type: ignore[union-attr]
        self._show(event)
        self._hear(event)
        self._moved.set()
        self._moved = asyncio.Event()

    def _show(self, event: Event) -> None:
        row = self._screen.row(self.conversation)
        row.owner = self._screen.owners[self.conversation] = self.owner.node if self.owner is not None else None
        row.epoch = event.epoch or row.epoch
        row.event = event.kind
        row.sent += event.kind == "message"
        row.answered = len(self.settled)

    async def until(self, what: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until it is so; false if it takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                while not what():
                    await self._moved.wait()
        except TimeoutError:
            return what()
        return True
