"""What runs a conversation's turns: ``load_loop`` picks one, ``parse_agents`` reads ``--agent``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import AgentFunction, AgentLoop
    from tenure.config import Config

LOOPS = ("function", "scripted", "openhands", "pydantic-ai")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load_loop(spec: str, config: Config | None = None) -> AgentLoop:
    """The loop that ``LOOP[:TARGET]`` names: ``scripted``, ``openhands`` or ``openhands:MODULE,…`` (which register tools),
    ``pydantic-ai:module:agent``, ``function:module:function``, or, short for the latter, ``module:function`` where
    `module` is no name of a loop.

    :raises InvalidInputError: naming `agent`: no such loop, or its target cannot be loaded.
    """
    name, colon, target = spec.partition(":")
    if name == "scripted":
        if colon:
            raise InvalidInputError("agent", "scripted takes no target", "write scripted; scripts are settings")
        return scripted_loop(config)
    if name == "openhands":
        return openhands_loop([module for module in target.split(",") if module])
    if name == "pydantic-ai":
        from tenure.loops.pydantic_ai import load as load_agent

        return load_agent(target)
    if not colon:
        raise InvalidInputError(
            "agent", f"no loop is called {spec[:200]!r}", f"use {', '.join(LOOPS)}, or module:function"
        )
    from tenure.loops.function import load

    return function_loop(load(target if name == "function" else spec), config)


def function_loop(agent: AgentFunction, config: Config | None = None) -> AgentLoop:
    """The loop that runs ``async def agent(turn)``.

    :raises InvalidInputError: naming `agent`: it is no such function.
    """
    from tenure.loops.function import FunctionLoop

    return FunctionLoop(agent) if config is None else FunctionLoop(agent, call_timeout_s=config.call_timeout_s)


def scripted_loop(config: Config | None = None) -> AgentLoop:
    """The loop that does what a script says, for demos and tests: a function agent like any other."""
    from tenure.loops import scripted
    from tenure.loops.function import FunctionLoop

    if config is None:
        return FunctionLoop(scripted.agent, check=scripted.check)
    return FunctionLoop(scripted.agent, check=scripted.check, call_timeout_s=config.call_timeout_s)


def openhands_loop(modules: Sequence[str] = ()) -> AgentLoop:
    """The loop of OpenHands agents; `modules` register tools beyond the SDK's.

    :raises InvalidInputError: naming `agent`: the extra ``tenure[openhands]`` is not installed.
    """
    from tenure.loops.openhands import OpenHandsLoop

    return OpenHandsLoop(modules)


def parse_agents(specs: Sequence[str], config: Config | None = None) -> dict[str, AgentLoop]:
    """What ``--agent [NAME=]LOOP[:TARGET]`` asks for, by name, in order: the first is a conversation's default.

    Without NAME, a loop goes by its own name, and a function by the function's: ``bots:pirate`` is ``pirate``.

    :raises InvalidInputError: naming `agent`: a name twice or out of bounds, or as :func:`load_loop`.
    """
    agents: dict[str, AgentLoop] = {}
    for spec in specs:
        name, equals, loop = spec.partition("=")
        if not equals:
            name, loop = _own_name(spec), spec
        if not NAME.fullmatch(name):
            raise InvalidInputError(
                "agent", f"{name[:80]!r} is no name of an agent", "use letters, digits, ., _ and -, at most 64"
            )
        if name in agents:
            raise InvalidInputError("agent", f"{name!r} is given twice", f"give one another name: other={loop}")
        agents[name] = load_loop(loop, config)
    return agents


def _own_name(spec: str) -> str:
    return "openhands" if spec.partition(":")[0] == "openhands" else re.split(r"[:.]", spec)[-1]
