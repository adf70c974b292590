"""Agents of the real SDK on nodes of one process, with a scripted model: what the tests of them share."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import tenure
from tenure.abc import Creation, Submit
from tenure.config import Config
from tenure.journal import Command, Delivery, Event
from tenure.loops import openhands_loop
from tenure.loops.openhands import OpenHandsLoop
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.model_server import ModelServer
from tenure.vault import Keys

MARKS = [
    pytest.mark.blocking_ok,  # a conversation has an event loop of its own, in a thread of its own, and blocks it
    pytest.mark.timeout(300),  # most of it is the import, on machines that do other things, too
    pytest.mark.filterwarnings("ignore"),  # the SDK and its libraries warn of each other
]
C = "11111111-2222-4333-8444-555555555555"
PATIENCE_S = 60.0
SEALING = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
"""A key of the vault."""


@pytest.fixture(scope="session")
def loop() -> OpenHandsLoop:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = openhands_loop(["openhands_tools"])
        asyncio.run(loop.ready())
    assert isinstance(loop, OpenHandsLoop)
    return loop


class World:
    """Nodes on one disk, a model that says what its scripts say, and what tools have left in a file."""

    def __init__(self, folder: Path, loop: OpenHandsLoop, model: ModelServer) -> None:
        self.folder, self.loop, self.model = folder, loop, model
        self.disk = Disk()
        self.effects, self.gate = folder / "effects", folder / "gate"
        self.stack = contextlib.AsyncExitStack()
        model.scripts = {
            "default": [{"text": "Hello."}],
            "one": [self.calls("one"), {"text": "Done."}],
            "slow": [self.calls("slow", until=str(self.gate)), {"text": "So it goes."}],
            "three": [self.calls("a", "b", "c", until=str(self.gate)), {"text": "All of them."}],
            "shell": [
                {"calls": [{"name": "terminal", "arguments": {"command": "echo $((6*7)) > answer; pwd; echo $TOKEN"}}]},
                {"calls": [{"name": "finish", "arguments": {"message": "It is 42."}}]},
            ],
        }

    def calls(self, *lines: str, until: str = "") -> dict[str, Any]:
        act = [{"effects": str(self.effects), "line": line, "until": until} for line in lines]
        return {"calls": [{"name": "act", "arguments": one} for one in act]}

    def settings(self, tools: tuple[str, ...] = ("act",), **more: Any) -> dict[str, Any]:
        llm = {"model": "openai/scripted", "base_url": self.model.url, "num_retries": 0, "api_key": "no-key"}
        agent = {"llm": llm, "tools": [{"name": name} for name in tools], "tool_concurrency_limit": 3}
        return {"agent": agent, **more}

    async def node(self, name: str, **config: Any) -> tenure.Node:
        """A node; the workspaces of all are in one folder, unless it says otherwise."""
        told = {"workspaces": str(self.folder / "all"), "idle_s": 60.0, "drain_s": 0.0, **config}
        made = Config(node=name, witness=False, sweep_s=0.05, **told)
        return await self.stack.enter_async_context(
            tenure.Node(MemoryStore(self.disk), {"openhands": self.loop}, config=made, keys=Keys([SEALING]))
        )

    async def create(self, node: tenure.Node, settings: dict[str, Any]) -> None:
        await node.submit(Submit(C, None, Creation(agent="openhands", settings=node.check("openhands", settings))))

    async def say(self, node: tenure.Node, text: str) -> None:
        await node.send(C, text, key=f"k{len(self.disk.conversations[C].events)}")

    async def command(self, node: tenure.Node, kind: str, delivery: Delivery = Delivery.TURN, **body: Any) -> None:
        await node.submit(Submit(C, Command(kind, body, f"k{len(self.events())}", delivery)))

    def events(self, kind: str = "") -> list[Event]:
        return [e for e in self.disk.conversations[C].events if kind in ("", e.kind)]

    def told(self, kind: str) -> list[Any]:
        """Events of the SDK."""
        return [e.body for e in self.events("openhands.event") if e.body["kind"] == kind]

    def happened(self) -> list[str]:
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                await asyncio.sleep(0.01)

    async def done(self, turns: int) -> Event:
        """The end of the last of so many turns."""
        kinds = ("turn_completed", "turn_failed", "turn_interrupted")
        await self.until(lambda: sum(e.kind in kinds for e in self.events()) >= turns)
        end = [e for e in self.events() if e.kind in kinds][-1]
        assert end.kind != "turn_failed", end.body
        return end

    def context(self) -> list[tuple[str, str]]:
        """What the model was told last, without the system's part: role and text."""
        return [(m["role"], text_of(m)) for m in self.model.requests[-1]["messages"][1:]]


def text_of(message: Any) -> str:
    content = message.get("content") or ""
    said = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return said + "".join(f"+{call['id']}" for call in message.get("tool_calls") or ())


@pytest.fixture
async def world(tmp_path: Path, loop: OpenHandsLoop) -> AsyncIterator[World]:
    async with ModelServer({}) as model:
        world = World(tmp_path, loop, model)
        async with world.stack:
            yield world
