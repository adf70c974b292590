"""Tools for tests, known to nodes by ``--agent openhands:openhands_tools``: it leaves a line in a file, and then waits.

``act`` adds ``line`` to ``effects``; where there is ``until``, it goes on when that file exists. When it returns, the line
stands in ``effects`` with ``.returned`` behind its name, too. ``errand`` does what :data:`ERRANDS` says, in this process.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from openhands.sdk.tool import Action, DeclaredResources, Observation, ToolDefinition, ToolExecutor, register_tool
from pydantic import Field

PATIENCE_S = 60.0
ERRANDS: list[Callable[[str], str]] = []
"""The last of them is what ``errand`` calls with its line."""


class ActAction(Action):
    effects: str = Field(description="the file")
    line: str = Field(description="what is added to it")
    until: str = Field(default="", description="the file that is waited for")


class ActObservation(Observation):
    pass


class ActExecutor(ToolExecutor[ActAction, ActObservation]):
    def __call__(self, action: ActAction, conversation: Any = None) -> ActObservation:
        _add(action.effects, action.line)
        deadline = time.monotonic() + PATIENCE_S
        while action.until and not Path(action.until).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        _add(f"{action.effects}.returned", action.line)
        return ActObservation.from_text(f"did {action.line}")


def _add(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


class ActTool(ToolDefinition[ActAction, ActObservation]):
    def declared_resources(self, action: Action) -> DeclaredResources:
        return DeclaredResources(keys=(), declared=True)

    @classmethod
    def create(cls, conv_state: Any = None, **params: Any) -> Sequence[Self]:
        return [
            cls(
                description="Adds a line to a file.",
                action_type=ActAction,
                observation_type=ActObservation,
                executor=ActExecutor(),
            )
        ]


class ErrandAction(Action):
    line: str = Field(description="what is to be done")


class ErrandObservation(Observation):
    pass


class ErrandExecutor(ToolExecutor[ErrandAction, ErrandObservation]):
    def __call__(self, action: ErrandAction, conversation: Any = None) -> ErrandObservation:
        return ErrandObservation.from_text(ERRANDS[-1](action.line))


class ErrandTool(ToolDefinition[ErrandAction, ErrandObservation]):
    def declared_resources(self, action: Action) -> DeclaredResources:
        return DeclaredResources(keys=(), declared=True)

    @classmethod
    def create(cls, conv_state: Any = None, **params: Any) -> Sequence[Self]:
        return [
            cls(
                description="Runs an errand.",
                action_type=ErrandAction,
                observation_type=ErrandObservation,
                executor=ErrandExecutor(),
            )
        ]


register_tool("act", ActTool)
register_tool("errand", ErrandTool)
