"""How a fact is told: to the log, to who listens on its node, and to tests that wait for it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

DEBUG, INFO, WARNING, ERROR, CRITICAL = (
    logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that happened. `says` is filled with the fields."""

    event: ClassVar[str] = ""
    level: ClassVar[int] = INFO
    says: ClassVar[str] = ""

    def parts(self) -> Mapping[str, Any]:
        """The fields by name, those that are null left out."""
        values = ((part.name, getattr(self, part.name)) for part in dataclasses.fields(self))
        return {name: value for name, value in values if value is not None}

    def text(self) -> str:
        """The sentence for people."""
        return self.says.format(**{part.name: getattr(self, part.name) for part in dataclasses.fields(self)})


def to_log(fact: Fact, *, traced: bool = False, error: BaseException | None = None) -> None:
    """One record of the logger ``tenure.<first word of the event>``; with where `error` came from, or (`traced`) the
    error under way."""
    log = logging.getLogger(f"tenure.{fact.event.partition('.')[0]}")
    if log.isEnabledFor(fact.level):
        # The sentence is no template any more: a "%" in it is its own.
        log.log(fact.level, "%s", fact.text(), exc_info=error or traced, extra={"event": fact.event, **fact.parts()})


@final
class Facts:
    """Where the facts of one node are told. From any thread; a listener must be quick, and may not raise."""

    def __init__(self, *listeners: Callable[[Fact], None]) -> None:
        self._listeners = list(listeners)
        self._awaited: list[tuple[type[Fact], Mapping[str, Any], asyncio.Future[Fact]]] = []
        self._hand = threading.Lock()

    def listen(self, listener: Callable[[Fact], None]) -> None:
        """Hear every fact from now on."""
        self._listeners.append(listener)

    @contextmanager
    def heard_by(self, listener: Callable[[Fact], None]) -> Generator[None]:
        """Let it hear every fact until the end of the block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def tell(self, fact: Fact, *, traced: bool = False) -> None:
        """It happened. `traced`: an error is being dealt with, and the log shows where it came from."""
        to_log(fact, traced=traced)
        for listener in tuple(self._listeners):
            listener(fact)
        if self._awaited:
            self._signal(fact)

    async def until(self, kind: type[Fact], **parts: Any) -> Fact:
        """Wait for the next fact of this kind with these parts: what a test waits for instead of sleeping."""
        heard: asyncio.Future[Fact] = asyncio.get_running_loop().create_future()
        one = (kind, parts, heard)
        with self._hand:
            self._awaited.append(one)
        try:
            return await heard
        finally:
            with self._hand:
                self._awaited.remove(one)

    def _signal(self, fact: Fact) -> None:
        with self._hand:
            awaited = list(self._awaited)
        for kind, parts, heard in awaited:
            if isinstance(fact, kind) and all(getattr(fact, name, None) == value for name, value in parts.items()):
                heard.get_loop().call_soon_threadsafe(_set, heard, fact)


def _set(heard: asyncio.Future[Fact], fact: Fact) -> None:
    if not heard.done():
        heard.set_result(fact)
