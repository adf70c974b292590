"""Agents of the real SDK on nodes of this process, with a scripted model: one file, as the import takes seconds."""

import asyncio
import contextlib
import json
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import tenure
from tenure.abc import Creation, Submit
from tenure.config import Config
from tenure.errors import InvalidInputError
from tenure.journal import Command, Delivery, Event
from tenure.loops import openhands_loop
from tenure.loops.openhands import OpenHandsLoop
from tenure.loops.openhands.live import INTERRUPTED, WORKSPACE_LOST
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.model_server import ModelServer

pytestmark = [
    pytest.mark.blocking_ok,  # a conversation has an event loop of its own, in a thread of its own, and blocks it
    pytest.mark.timeout(300),  # most of it is the import, on machines that do other things, too
    pytest.mark.filterwarnings("ignore"),  # the SDK and its libraries warn of each other
]
C = "11111111-2222-4333-8444-555555555555"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
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
            tenure.Node(MemoryStore(self.disk), {"openhands": self.loop}, config=made)
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


async def test_a_conversation_goes_on_elsewhere_with_its_whole_context(world: World, monkeypatch: Any):
    monkeypatch.setenv("A_TOKEN", "tok-8472-secret")
    first = await world.node("first", allow_env="A_TOKEN")
    settings = {
        "llm": {"model": "openai/scripted", "base_url": world.model.url, "num_retries": 0},
        "credentials": {"TOKEN": "env:A_TOKEN"},
    }
    await world.create(first, settings)
    await world.say(first, "work [script:shell]")
    await world.done(1)
    [place] = (world.folder / "all" / "workspaces").iterdir()
    assert (place / "answer").read_text() == "42\n"
    assert [e["value"] for e in world.told("ConversationStateUpdateEvent")] == ["running", "finished"]
    second = await world.node("second", allow_env="A_TOKEN")
    await first.drain()
    await world.say(second, "thanks [script:default]")
    await world.done(2)

    said = world.context()
    assert [role for role, _ in said] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert str(place) in said[2][1] and said[4][1] == "It is 42." and said[5][1].endswith("thanks [script:default]")
    assert world.told("MessageEvent")[-1]["llm_message"]["content"][0]["text"] == "Hello."
    journal = json.dumps([e.as_json() for e in world.events()]) + json.dumps(str(world.disk.conversations[C]))
    assert "tok-8472" not in journal, "no value of a credential is journaled, not even what a tool printed"
    assert len({e["id"] for e in [*world.told("MessageEvent"), *world.told("ActionEvent")]}) == 5
    assert len(world.events("openhands.workspace")) == 1


async def test_a_deposed_owner_runs_nothing_more_and_its_successor_says_what_was_cut(world: World, caplog: Any):
    first, second = await world.node("first"), await world.node("second")
    await world.create(first, world.settings())
    await first.maybe_start_agent_loop(C)
    await world.say(first, "go [script:three]")
    await world.until(lambda: sorted(world.happened()) == ["a", "b", "c"])
    await second.take_over(C, world.disk.conversations[C].row.record.epoch)
    await world.done(1)
    world.gate.touch()  # the tools of the deposed owner return only now

    assert sorted(world.happened()) == ["a", "b", "c"], "none of them ran twice"
    errors = world.told("AgentErrorEvent")
    assert [e["error"] for e in errors] == [INTERRUPTED] * 3
    assert {e["tool_call_id"] for e in errors} == {e["tool_call_id"] for e in world.told("ActionEvent")}
    assert [e["kind"] for e in (world.told("ObservationEvent"))] == []
    assert world.context() == [
        ("user", "go [script:three]"),
        ("assistant", "+call_2_0+call_2_1+call_2_2"),
        *[("tool", INTERRUPTED)] * 3,
    ]
    assert world.told("MessageEvent")[-1]["llm_message"]["content"][0]["text"] == "All of them."
    assert [e.epoch for e in world.events("claimed")] == [1, 2]
    assert {e.epoch for e in world.events("openhands.event")[-3:]} == {2}
    await world.until(lambda: sum(t.name == f"openhands-{C}" for t in threading.enumerate()) == 1)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [], "its end is nobody's error"


async def test_a_drain_waits_for_the_tools_and_keeps_each_result(world: World):
    first = await world.node("first")
    await world.create(first, world.settings())
    await world.say(first, "go [script:three]")
    await world.until(lambda: len(world.happened()) == 3)
    leaving = asyncio.create_task(first.drain())
    await world.until(lambda: first.draining)
    world.gate.touch()
    await leaving
    assert len(world.told("ObservationEvent")) == 3 and world.events("call_interrupted") == []
    await world.node("second")
    await world.done(1)
    assert world.told("AgentErrorEvent") == [] and len(world.happened()) == 3
    assert [text for role, text in world.context() if role == "tool"] == ["did a", "did b", "did c"]


async def test_an_approval_is_awaited_through_a_takeover_and_given_once(world: World):
    first, second = await world.node("first"), await world.node("second")
    await world.create(first, world.settings(confirmation_policy={"kind": "AlwaysConfirm"}))
    await first.maybe_start_agent_loop(C)
    await world.say(first, "go [script:one]")
    await world.done(1)
    assert world.happened() == [] and len(world.events("openhands.awaited")) == 1
    assert world.disk.conversations[C].row.record.agent_status == "waiting_for_confirmation"
    await second.take_over(C, world.disk.conversations[C].row.record.epoch)
    await world.command(second, "run")
    await world.done(2)
    assert world.happened() == ["one"] and world.told("AgentErrorEvent") == []
    said = [("user", "go [script:one]"), ("assistant", "+call_2_0"), ("tool", "did one")]
    assert world.context() == said, "what was approved after a takeover is part of what the model is told"

    await world.say(first, "again [script:one]")
    await world.done(3)
    await world.command(first, "confirm", accept=False, reason="not today")
    await world.done(4)
    await world.command(first, "run")
    await world.done(5)
    assert world.happened() == ["one"]
    assert [e["rejection_reason"] for e in world.told("UserRejectObservation")] == ["not today"]


async def test_an_interrupt_ends_the_run_in_the_sdks_own_words(world: World):
    node = await world.node("only")
    await world.create(node, world.settings())
    await world.say(node, "go [script:slow]")
    await world.until(lambda: world.happened() == ["slow"])
    await world.command(node, "interrupt", Delivery.NOW)
    await world.until(lambda: world.told("InterruptEvent") or world.events("call_interrupted"))
    world.gate.touch()
    assert (await world.done(1)).kind == "turn_interrupted"
    await world.say(node, "and now [script:default]")
    await world.done(2)
    assert world.happened() == ["slow"], "what was cut is not run again by the next turn"
    assert len(world.told("AgentErrorEvent")) == 1


async def test_a_lost_workspace_is_said_to_the_journal_and_to_the_agent(world: World):
    first = await world.node("first", workspaces=str(world.folder / "here"))
    await world.create(first, world.settings())
    await world.say(first, "hi")
    await world.done(1)
    await first.drain()
    second = await world.node("second", workspaces=str(world.folder / "there"))
    await world.say(second, "still there? [script:default]")
    await world.done(2)
    known, lost = (e.body for e in world.events("openhands.workspace"))
    assert known["lost"] is None and lost["lost"] == known["name"] and "there" in str(lost["path"])
    assert WORKSPACE_LOST in "".join(text for _, text in world.context())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"llm": {"model": "m", "api_key": "sk-in-clear"}}, "settings.agent.llm.api_key"),
        ({"llm": {"model": "m", "api_key": "$KEY"}}, "settings.llm.api_key"),
        ({"llm": {"model": "m", "temperature": "hot"}}, "settings.llm.temperature"),
        ({"llm": {"model": "m"}, "max_iterations": 0}, "settings.max_iterations"),
        ({"llm": {"model": "m"}, "confirmation_policy": {"kind": "Perhaps"}}, "settings.confirmation_policy"),
        ({"agent": {"llm": {"model": "m"}, "tools": [{"name": "task_tool_set"}]}}, "settings.agent.tools"),
        ({"agent": {"llm": {"model": "m"}, "tools": [{"name": "nope"}]}}, "settings.agent.tools"),
        ({"agent": {"kind": "ACPAgent"}}, "settings.agent.kind"),
        ({}, "settings.llm"),
    ],
)
def test_settings_that_are_no_good_are_refused_before_anything_is_claimed(
    loop: OpenHandsLoop, settings: dict[str, Any], field: str, monkeypatch: Any
):
    monkeypatch.delenv("LLM_MODEL", raising=False)
    with pytest.raises(InvalidInputError) as refused:
        loop.check(settings)
    assert refused.value.field == field and "sk-in-clear" not in str(refused.value)
