"""The loop ``function``: any ``async def agent(turn)`` is an agent; see :class:`FunctionTurn` for what it is given."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast, final, overload

from tenure.abc import AgentFunction, AgentLoop
from tenure.errors import InvalidInputError, LoopError
from tenure.journal import canonical
from tenure.loops.function.turn import FunctionTurn
from tenure.vault import credentials

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tenure.abc import LiveLoop, Place, Turn
    from tenure.journal import Event, Json, JsonObject

SETTINGS_LIMIT: Final = 256 << 10
"""Settings of a conversation have at most so many bytes of JSON."""
HISTORY_KEPT_S: Final = 30.0
"""So long after a turn its history is kept for the next one: a quick talk reads nothing twice, a slow one keeps no memory."""

type Check = Callable[[JsonObject], JsonObject]


@final
class FunctionLoop(AgentLoop):
    """Runs a coroutine function once per turn, and again from the top when the turn is resumed.

    :param check: judges a conversation's settings at creation, beyond what every agent's settings must be.
    :param call_timeout_s: how long a call may take that does not say it itself.
    :raises InvalidInputError: the agent is no ``async def`` with one parameter.
    """

    def __init__(self, agent: AgentFunction, *, check: Check | None = None, call_timeout_s: float = 600.0) -> None:
        self.agent = _checked(agent)
        self._check = check
        self._call_timeout_s = call_timeout_s

    def check(self, settings: JsonObject) -> JsonObject:
        """The settings, if they are a JSON object of at most :data:`SETTINGS_LIMIT` bytes with valid references.

        :raises InvalidInputError: names the field, the limit and the remedy.
        """
        if not isinstance(cast("Any", settings), dict):
            raise InvalidInputError("settings", "must be a JSON object", "write {} for none")
        try:
            size = len(canonical(settings).encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("settings", f"is no JSON ({error})", "use plain JSON values") from None
        if size > SETTINGS_LIMIT:
            raise InvalidInputError(
                "settings", f"has {size} bytes, at most {SETTINGS_LIMIT}", "keep large data in files or messages"
            )
        credentials(settings)
        return settings if self._check is None else self._check(settings)

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        live = LiveFunction(self.agent, self._call_timeout_s)
        try:
            yield live
        finally:
            live.forget()


@final
class LiveFunction:
    """A function agent, alive for one conversation."""

    def __init__(self, agent: AgentFunction, call_timeout_s: float) -> None:
        self._agent = agent
        self._call_timeout_s = call_timeout_s
        self._history: list[Event] = []
        self._forgetting: asyncio.TimerHandle | None = None

    async def turn(self, turn: Turn) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        try:
            await self._turn(turn)
        finally:
            self._forgetting = asyncio.get_running_loop().call_later(HISTORY_KEPT_S, self.forget)

    def forget(self) -> None:
        """Keep no history: nobody talks with it just now, and the next turn reads it anew."""
        self._history = []
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    async def _turn(self, turn: Turn) -> None:
        seen = self._history[-1].seq if self._history else 0
        self._history.extend(await turn.history(seen))
        mine = FunctionTurn(turn, History(self._history), call_timeout_s=self._call_timeout_s)
        try:
            await self._agent(mine)
            mine.finish()
        except SystemExit as error:  # it would end the node, and every other conversation with it
            raise LoopError(f"the agent raised SystemExit({error.code!r}); raise an exception, or return") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise LoopError("the agent awaited something that was cancelled") from None
        finally:
            mine.abandon()

    async def now(self, command: Event) -> Json:
        raise NotImplementedError("a function takes commands turn by turn")


@final
class History(Sequence["Event"]):
    """The first events of a growing list: later turns add to the list, and not to this."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events
        self._length = len(events)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> Event: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Event]: ...
    def __getitem__(self, at: int | slice) -> Event | Sequence[Event]:
        places = range(self._length)[at]
        return self._events[places] if isinstance(places, int) else [self._events[place] for place in places]


def load(target: str) -> AgentFunction:
    """The function that ``module:function`` names. Modules are looked for in the current folder, too.

    :raises InvalidInputError: naming `agent`: no such module or function, it fails while it is imported, or it is no agent.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise InvalidInputError("agent", f"{target[:200]!r} names no function", "write module:function")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidInputError(
            "agent", f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}", "mend or install it"
        ) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidInputError("agent", f"module {module_name!r} has no {path!r}", "check its name") from None
    return _checked(found)


def _checked(agent: Any) -> AgentFunction:
    name = getattr(agent, "__qualname__", repr(agent))
    if not (inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))):  # noqa: B004
        raise InvalidInputError(
            "agent",
            f"{name} is no `async def`",
            "write `async def agent(turn)`, and give blocking code to `await turn.call(name, fn)`: it gets a thread",
        )
    try:
        inspect.signature(agent).bind(None)
    except TypeError as error:
        raise InvalidInputError(
            "agent", f"{name} cannot take a turn: {error}", "write `async def agent(turn)`"
        ) from None
    return agent
