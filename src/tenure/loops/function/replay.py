"""The part of a turn that is in the journal already: each step of the agent is matched with what was recorded of it.

The agent runs again from the top. A *step* is what it does to the journal: a call, an emit, an ask. As long as the
journal holds steps, the agent must make the same ones in the same order; outcomes (a call's result, an answer) are
given back in the order in which they were recorded. So branches of an agent that run at once (``asyncio.gather``)
interleave as they did the first time: a branch goes on only when the outcome that it had waited for stood in the
journal at that place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.errors import TurnDivergedError
from tenure.journal import (
    CORE_KINDS,
    CallFinished,
    CallInterrupted,
    CallStarted,
    Foreign,
    Json,
    JsonObject,
    TurnResumed,
    TurnWaiting,
    read_body,
)
from tenure.vault import alike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.journal import Event

PATIENCE_S = 30.0
"""How long a branch of the agent waits for another one to make the step that stands before its own."""

_replay: ContextVar[Replay | None] = ContextVar("tenure_replay", default=None)
"""Inherited by the tasks that an agent starts: its branches."""


@final
@dataclass(frozen=True, slots=True)
class CallStep:
    """``await turn.call(name, …)``. Null arguments: they are no JSON and are not compared."""

    name: str
    idempotent: bool
    arguments: Json

    def matches(self, event: Event) -> bool:
        body = read_body(event)
        return (
            isinstance(body, CallStarted)
            and (body.name, body.idempotent) == (self.name, self.idempotent)
            and (None in (body.arguments, self.arguments) or alike(body.arguments, self.arguments))
        )

    def __str__(self) -> str:
        return f"{'idempotent ' if self.idempotent else ''}call {self.name!r} {_short(self.arguments)}"


@final
@dataclass(frozen=True, slots=True)
class EmitStep:
    """``await turn.emit(kind, body)``."""

    kind: str
    body: JsonObject

    def matches(self, event: Event) -> bool:
        return event.kind == self.kind and event.kind not in CORE_KINDS and alike(event.body, self.body)

    def __str__(self) -> str:
        return f"emit {self.kind!r} {_short(self.body)}"


@final
@dataclass(frozen=True, slots=True)
class AskStep:
    """``await turn.ask(question)``."""

    question: Json

    def matches(self, event: Event) -> bool:
        body = read_body(event)
        return isinstance(body, TurnWaiting) and alike(body.body, self.question)

    def __str__(self) -> str:
        return f"ask {_short(self.question)}"


type Step = CallStep | EmitStep | AskStep


@final
class Replay:
    """Walks through the past of a turn as the agent makes its steps. Made in the task that runs the agent."""

    def __init__(self, turn: str, past: Sequence[Event]) -> None:
        self._turn = turn
        self._ahead = deque(_told_by_the_agent(past))
        loop = asyncio.get_running_loop()
        named = (name for event in self._ahead if (name := _closes(event)))
        self._outcomes: dict[str, asyncio.Future[Event]] = {name: loop.create_future() for name in named}
        self._moved = asyncio.Event()
        _replay.set(self)

    @property
    def done(self) -> bool:
        """Whether everything that was recorded has been made again: from here on the turn is new."""
        return not self._ahead

    async def step(self, step: Step) -> Event | None:
        """What the journal holds of this step; null when it holds no more steps, so this one is new.

        :raises TurnDivergedError: the journal holds another step at this place.
        """
        while self._ahead and not step.matches(self._ahead[0]):
            if not await self._another_moves():
                raise TurnDivergedError(self._turn, _described(self._ahead[0]), str(step))
        return self._advance() if self._ahead else None

    async def outcome(self, name: str) -> Event | None:
        """The recorded outcome of a call or an ask, when all that was recorded before it was made; null: there is none.

        :raises TurnDivergedError: no branch of the agent makes the step that stands before the outcome.
        """
        outcome = self._outcomes.get(name)
        if outcome is None:
            return None
        while not outcome.done():
            if not await self._another_moves():
                raise TurnDivergedError(self._turn, _described(self._ahead[0]), f"nothing but wait for {name}")
        return outcome.result()

    def finish(self) -> None:
        """The agent has returned.

        :raises TurnDivergedError: the journal holds more steps.
        """
        if self._ahead:
            raise TurnDivergedError(self._turn, _described(self._ahead[0]), "nothing more")

    def _advance(self) -> Event:
        event = self._ahead.popleft()
        while self._ahead and (name := _closes(self._ahead[0])):
            self._outcomes[name].set_result(self._ahead.popleft())
        self._moved.set()
        self._moved = asyncio.Event()
        return event

    async def _another_moves(self) -> bool:
        """Wait for another branch to make a step; false when there is none, or none came."""
        here = asyncio.current_task()
        if not any(task.get_context().get(_replay) is self for task in asyncio.all_tasks() if task is not here):
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._moved.wait()
        except TimeoutError:
            return False
        return True


def _told_by_the_agent(past: Sequence[Event]) -> list[Event]:
    """The steps and their outcomes: without what the core tells, and each ask once however often it was waited for."""
    told: list[Event] = []
    asked: set[str] = set()
    for event in past:
        match read_body(event):
            case CallStarted() | CallFinished() | CallInterrupted():
                told.append(event)
            case TurnWaiting(ask) if ask not in asked:
                asked.add(ask)
                told.append(event)
            case TurnResumed(ask=ask) if ask in asked:
                told.append(event)
            case Foreign() if not event.is_command:
                told.append(event)
            case _:
                pass
    return told


def _closes(event: Event) -> str | None:
    """The name of the call or ask whose outcome the event is; null if it is a step."""
    match read_body(event):
        case CallFinished(call) | CallInterrupted(call):
            return call
        case TurnResumed(ask=ask):
            return ask
        case _:
            return None


def _described(event: Event) -> str:
    match read_body(event):
        case CallStarted() as body:
            return str(CallStep(body.name, body.idempotent, body.arguments))
        case TurnWaiting() as body:
            return str(AskStep(body.body))
        case _:
            return str(EmitStep(event.kind, event.body))


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
