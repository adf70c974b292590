"""Agents of Pydantic AI as loops: what the suite for loops does not ask."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests, ModelRetry, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

import tenure
from tenure.config import Config
from tenure.errors import InvalidInputError
from tenure.loops import load_loop
from tenure.loops.pydantic_ai import PydanticAILoop, Workplace
from tenure.loops.pydantic_ai.journaling import ERROR_CHARS
from tenure.loops.pydantic_ai.messages import INTERRUPTED, MESSAGES
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.loop_suite.stage import Conversation, Fuse, StagePlace
from tenure.testing.model_server import ModelServer

PATIENCE_S = 30.0


class Desk:
    """An agent whose model calls its tools once, all of them, and then says what they said."""

    def __init__(self, *names: str, output: Any = str) -> None:
        self.names = names
        self.asked = 0
        self.agent: Agent[Any, Any] = Agent(FunctionModel(self.reply), deps_type=Any, output_type=output)

    def reply(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked += 1
        told = [str(part.content) for part in messages[-1].parts if part.part_kind == "tool-return"]
        if told or not self.names:
            return ModelResponse([TextPart(" ".join(told) or "hello")])
        return ModelResponse([ToolCallPart(name, {}, f"{name}-1") for name in self.names])

    async def owners(self, conversation: Conversation, fuse: Fuse | None = None) -> None:
        """One owner until its fuse burns, and the next until the turn ends."""
        loop = PydanticAILoop(self.agent)
        conversation.message("go")
        assert fuse is None or not await conversation.owner(loop, fuse)
        assert await conversation.owner(loop)


async def test_what_a_tool_raises_is_masked_before_it_is_cut():
    def leak() -> None:
        raise ModelRetry("x" * (ERROR_CHARS - 5) + "hunter2-hunter2")

    desk, conversation = Desk("look"), Conversation()
    conversation.credentials = {"TOKEN": "hunter2-hunter2"}
    desk.agent.tool_plain(name="look")(leak)
    await desk.owners(conversation)
    [finished] = [e for e in conversation.events if e.kind == "call_finished"]
    assert str(finished.body["error"]).count("x") == ERROR_CHARS - 5 and "hunt" not in str(finished.body)


async def test_what_the_model_has_said_is_not_asked_for_again():
    desk = Desk("look")
    desk.agent.tool_plain(name="look")(lambda: "seen")
    for at in range(4):  # the first reply, the call, its outcome, the second reply
        desk.asked, conversation = 0, Conversation()
        await desk.owners(conversation, Fuse(at, written=True))
        paid = sum(e.kind == MESSAGES for e in conversation.events)
        assert desk.asked == paid == 2, f"owner lost at append {at}: {conversation.kinds()}"
        assert [e.body["text"] for e in conversation.events if e.kind == "reply"] in (["seen"], [INTERRUPTED])


async def test_a_tool_that_may_run_again_does_so_under_the_same_key():
    desk, keys = Desk("pay"), []

    @desk.agent.tool(name="pay", metadata={"idempotent": True})
    async def pay(ctx: RunContext[Workplace]) -> str:
        keys.append(ctx.deps.idempotency_key)
        return "paid"

    conversation = Conversation()
    await desk.owners(conversation, Fuse(2))  # the reply, the call, and not its outcome
    assert len(keys) == 2 and len(set(keys)) == 1
    assert "call_restarted" in conversation.kinds()
    assert conversation.emitted("reply")[0]["text"] == "paid"


async def test_what_a_tool_raises_for_the_model_is_the_same_after_a_takeover():
    desk, tries = Desk("look"), []

    @desk.agent.tool_plain(name="look")
    def look() -> str:
        tries.append(1)
        raise ModelRetry("the lamp is out")

    def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        told = [str(p.content) for p in messages[-1].parts if p.part_kind == "retry-prompt"]
        return ModelResponse([TextPart(told[0])]) if told else desk.reply(messages, info)

    desk.agent.model = FunctionModel(reply)
    conversation = Conversation()
    await desk.owners(conversation, Fuse(3))  # behind the call's outcome
    assert tries == [1] and "the lamp is out" in conversation.emitted("reply")[0]["text"]


async def test_a_person_approves_or_refuses_what_needs_it_and_an_answer_outlives_its_owner():
    desk, done = Desk("delete", "keep", output=[str, DeferredToolRequests]), []
    for name in desk.names:
        desk.agent.tool_plain(name=name, requires_approval=True)(lambda name=name: done.append(name) or f"{name} done")
    conversation = Conversation(answers=[{"delete-1": False, "keep-1": True}])
    await desk.owners(conversation, Fuse(4))
    waiting = next(e for e in conversation.events if e.kind == "turn_waiting")
    assert [one["call"] for one in waiting.body["body"]["approve"]] == ["delete-1", "keep-1"]
    assert done == ["keep"]
    assert "keep done" in conversation.emitted("reply")[0]["text"]


async def test_text_is_shown_as_it_comes_and_replies_are_streamed_once():
    agent: Agent[Any, str] = Agent(TestModel(custom_output_text="one two three"))
    conversation = Conversation(settings={"stream": True})
    conversation.message("go")
    assert await conversation.owner(PydanticAILoop(agent))
    assert "".join(str(one["text"]) for one in conversation.deltas) == "one two three"
    assert len(conversation.deltas) > 1 and len(conversation.emitted("reply")) == 1


async def test_an_agent_of_a_real_client_library_asks_the_model_over_http():
    script = [{"calls": [{"name": "look", "arguments": {}}]}, {"text": "A lamp."}]
    async with ModelServer({"default": script}) as model:
        provider = OpenAIProvider(base_url=model.url, api_key="no-key")
        agent: Agent[Any, str] = Agent(OpenAIChatModel("scripted", provider=provider))
        agent.tool_plain(name="look")(lambda: "lamp")
        conversation = Conversation()
        conversation.message("What is there?")
        assert await conversation.owner(PydanticAILoop(agent))
        assert conversation.emitted("reply")[0]["text"] == "A lamp."
        assert [m["role"] for m in model.requests[-1]["messages"]] == ["user", "assistant", "tool"]
        await provider.client.close()


async def test_on_nodes_a_cut_tool_is_told_to_be_unknown_and_not_run_again():
    desk, began, gate = Desk("build"), asyncio.Event(), asyncio.Event()
    runs: list[str] = []

    @desk.agent.tool(name="build")
    async def build(ctx: RunContext[Workplace]) -> str:
        runs.append(ctx.deps.conversation_id)
        began.set()
        await gate.wait()
        return "built"

    disk, loops = Disk(), {"desk": PydanticAILoop(desk.agent)}

    def node(name: str) -> tenure.Node:
        return tenure.Node(MemoryStore(disk), loops, config=Config(node=name, witness=False, drain_s=0.0, sweep_s=0.05))

    async with asyncio.timeout(PATIENCE_S), node("b") as heir, node("a") as first:
        await first.send("c1", "go")
        await began.wait()
        record = disk.conversations["c1"].row.record
        assert record.owner is not None
        other = heir if record.owner.node == "a" else first
        await other.take_over("c1", record.epoch)
        while not [e for e in disk.conversations["c1"].events if e.kind == "turn_completed"]:
            await asyncio.sleep(0.01)
    events = disk.conversations["c1"].events
    assert runs == ["c1"] and [e.body["text"] for e in events if e.kind == "reply"] == [INTERRUPTED]


# --- loading --------------------------------------------------------------------------------------------------------

MODULE = """
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

agent = Agent(TestModel(custom_output_text="loaded"))

def made(workplace):
    return Agent(TestModel(custom_output_text=workplace.conversation_id)), {"of": "mine"}

number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_pydantic_agents.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_pydantic_agents", raising=False)
    return "my_pydantic_agents"


@pytest.mark.parametrize(("name", "says"), [("agent", "loaded"), ("made", "conv")])
async def test_an_agent_or_what_makes_one_is_loaded_by_its_name(module: str, name: str, says: str):
    conversation = Conversation()
    conversation.message("go")
    assert await conversation.owner(load_loop(f"pydantic-ai:{module}:{name}"))
    assert conversation.emitted("reply")[0]["text"] == says


WRONG: dict[str, tuple[str, str]] = {
    "no name": ("pydantic-ai", "write pydantic-ai:module:agent"),
    "no agent in it": ("pydantic-ai:MODULE:nobody", "has no 'nobody'"),
    "no module": ("pydantic-ai:not_there_at_all:agent", "cannot be imported"),
    "a number": ("pydantic-ai:MODULE:number", "is no agent of Pydantic AI"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_agent_is_refused_with_its_remedy(case: str, module: str):
    spec, says = WRONG[case]
    with pytest.raises(InvalidInputError) as refused:
        load_loop(spec.replace("MODULE", module))
    assert refused.value.field == "agent" and says in str(refused.value)


def test_without_the_extra_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch):
    find: Callable[..., Any] = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pydantic_ai" else find(name))
    with pytest.raises(InvalidInputError, match=r"pip install 'tenure\[pydantic-ai\]'"):
        load_loop("pydantic-ai:anything:agent")


@pytest.mark.parametrize("settings", [[], {"stream": "yes"}, {"credentials": {"A": "in clear"}}, {"x": "y" * 300_000}])
def test_settings_that_are_no_good_are_refused_with_the_field(settings: Any):
    with pytest.raises(InvalidInputError) as refused:
        PydanticAILoop(Agent(TestModel())).check(settings)
    assert refused.value.field.startswith("settings")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "pydantic-ai.md"


async def test_the_pages_agents_run():
    lamps, made = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    there: dict[str, Any] = {"__name__": "lamps"}
    exec(compile(lamps, str(PAGE), "exec"), there)
    exec(compile(made, str(PAGE), "exec"), there)
    conversation = Conversation(credentials={"OPENAI_API_KEY": "no-key"})
    conversation.message("Is the lamp in the hall on?")
    with there["agent"].override(model=TestModel(seed=1)):
        assert await conversation.owner(PydanticAILoop(there["agent"]))
    assert [e.body["name"] for e in conversation.events if e.kind == "call_started"] == ["is_on", "switch"]
    agent, deps = there["made"](Workplace(StagePlace(conversation)))  # type: ignore[arg-type]
    assert isinstance(agent, Agent) and deps == {"of": "mine"}
    await agent.model.client.close()
