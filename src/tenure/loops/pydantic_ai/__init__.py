"""The loop ``pydantic-ai``: agents of Pydantic AI, whose replies and calls stand in the fenced journal.

``--agent pydantic-ai:module:agent`` names an ``Agent``, or a function of a :class:`Workplace` that makes one for a
conversation (with a model that uses the conversation's credentials, say), alone or with its deps. Tools of an agent
without deps of its own find the :class:`Workplace` in ``ctx.deps``.

==========================  ==========================================================================================
``pydantic_ai.messages``    the model's reply with the request that it answers: ``{"from", "messages"}``, as the
                            library's own adapter writes them; journaled before a tool starts or anybody hears of it
``call_started``, …         one call of a tool, through the fence before it runs and when its outcome is there
``reply``                   the run's output: ``{"text"}``, and ``"output"`` where that is no text
==========================  ==========================================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast, final

from tenure.abc import AgentLoop
from tenure.errors import InvalidInputError
from tenure.journal import canonical
from tenure.loops.pydantic_ai.workplace import Workplace
from tenure.vault import credentials

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pydantic_ai import Agent

    from tenure.abc import LiveLoop, Place
    from tenure.journal import JsonObject

    type Made = Agent[Any, Any] | tuple[Agent[Any, Any], object]
    type Make = Callable[[Workplace], Made]

__all__ = ["PydanticAILoop", "Workplace", "load"]

SETTINGS_LIMIT: Final = 256 << 10
"""Settings of a conversation have at most so many bytes of JSON."""


@final
class PydanticAILoop(AgentLoop):
    """Runs an agent once per turn. On a resumed turn it runs again from the top, and what is journaled is not done again.

    :param agent: an ``Agent``, or a function of a :class:`Workplace` that makes one, alone or with its deps.
    :raises InvalidInputError: naming `agent`: the extra ``tenure[pydantic-ai]`` is not installed, or it is neither.
    """

    def __init__(self, agent: Agent[Any, Any] | Make) -> None:
        insist_on_extra()
        self._make = _maker(agent)

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
            raise InvalidInputError("settings", f"has {size} bytes, at most {SETTINGS_LIMIT}", "keep data in messages")
        if not isinstance(settings.get("stream", False), bool):
            raise InvalidInputError("settings.stream", "must be true or false", "leave it out for false")
        credentials(settings)
        return settings

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        from tenure.loops.pydantic_ai.live import LivePydanticAI

        workplace = Workplace(place)
        agent, deps = self._make(workplace)
        yield LivePydanticAI(agent, deps)


def insist_on_extra() -> None:
    """:raises InvalidInputError: naming `agent`: the library is not installed here."""
    if importlib.util.find_spec("pydantic_ai") is None:
        raise InvalidInputError(
            "agent", "Pydantic AI is not installed here", "pip install 'tenure[pydantic-ai]' on every node"
        )


def load(target: str) -> PydanticAILoop:
    """The loop of what ``module:agent`` names. Modules are looked for in the current folder, too.

    :raises InvalidInputError: naming `agent`: nothing is found there, or it is no agent.
    """
    insist_on_extra()
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise InvalidInputError("agent", f"{target[:200]!r} names no agent", "write pydantic-ai:module:agent")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        problem = f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        raise InvalidInputError("agent", problem, "mend or install it") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidInputError("agent", f"module {module_name!r} has no {path!r}", "check its name") from None
    return PydanticAILoop(found)


def _maker(agent: Any) -> Callable[[Workplace], tuple[Agent[Any, Any], object]]:
    from pydantic_ai import Agent

    if isinstance(agent, Agent):
        ready = cast("Agent[Any, Any]", agent)
        return lambda workplace: (ready, workplace)
    if not callable(agent):
        remedy = "name an Agent, or a function of a Workplace that makes one"
        raise InvalidInputError("agent", f"{agent!r} is no agent of Pydantic AI", remedy)
    make = agent

    def made(workplace: Workplace) -> tuple[Agent[Any, Any], object]:
        got: Any = make(workplace)
        found, deps = cast("tuple[Any, object]", got) if isinstance(got, tuple) else (got, workplace)
        if not isinstance(found, Agent):
            raise InvalidInputError(
                "agent", f"{make!r} made {type(found).__name__}", "return an Agent, or (agent, deps)"
            )
        return cast("Agent[Any, Any]", found), deps

    return made
