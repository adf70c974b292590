"""Agents of the real SDK on nodes of this process, with a scripted model: one file, as the import takes seconds."""

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
from openhands_world import MARKS, C, World

from tenure.abc import Submit
from tenure.errors import InvalidInputError
from tenure.journal import TURN_ENDS, Command, Delivery
from tenure.loops.openhands import OpenHandsLoop
from tenure.loops.openhands.live import HALTS, INTERRUPTED, WORKSPACE_LOST
from tenure.loops.openhands.projection import Projection
from tenure.loops.openhands.settings import _REFUSED  # pyright: ignore[reportPrivateUsage]
from tenure.server.watch import read
from tenure.stores.memory import MemoryStore

pytestmark = MARKS


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


@pytest.mark.parametrize(
    ("kind", "delivery", "body"), [("pause", Delivery.NOW, {}), ("interrupt", Delivery.NOW, {HALTS: True})]
)
async def test_runs_that_wait_end_before_they_begin(world: World, kind: str, delivery: Delivery, body: dict[str, Any]):
    node = await world.node("only")
    await world.create(node, world.settings())
    await world.say(node, "go [script:slow]")
    await world.until(lambda: world.happened() == ["slow"])
    await world.say(node, "and this [script:default]")
    await world.command(node, kind, delivery, **body)
    await world.command(node, "run")
    world.gate.touch()
    await world.done(3)
    ends = [e.kind for e in world.events() if e.kind in TURN_ENDS]
    assert ends == ["turn_interrupted" if kind == "interrupt" else "turn_completed", "turn_completed", "turn_completed"]
    starts = [e.seq for e in world.events("turn_started")]
    said = [
        e.seq
        for e in world.events("openhands.event")
        if e.body["kind"] == "MessageEvent" and e.body["source"] == "agent"
    ]
    assert len(said) == 1 and said[0] > starts[2], "the run that was asked for later is the one that answers"


async def test_a_pause_between_two_owners_is_kept(world: World):
    first = await world.node("first")
    await world.create(first, world.settings())
    await world.say(first, "hi")
    await world.done(1)
    await first.drain()
    store, asked = MemoryStore(world.disk), len(world.model.requests)
    for kind, delivery in (("run", Delivery.TURN), ("pause", Delivery.NOW)):
        await store.submit(Submit(C, Command(kind, {}, f"late-{kind}", delivery)))
    await store.submit(
        Submit(C, Command("message", {"text": "there? [script:default]", "run": False}, "m", Delivery.TURN))
    )
    second = await world.node("second")
    await world.done(3)
    assert len(world.model.requests) == asked, "what was asked for before the pause did not begin"
    await world.command(second, "run")
    await world.done(4)
    assert len(world.model.requests) == asked + 1


async def test_a_failure_outside_of_a_run_is_told_as_an_error_until_the_next_turn(world: World):
    node = await world.node("only")
    await world.create(node, world.settings())
    await world.say(node, "hi")
    await world.done(1)
    await node.submit(Submit(C, Command("message", {"content": [{"type": "image"}]}, "bad", Delivery.TURN)))
    await world.until(lambda: world.events("turn_failed"))
    seen = Projection()
    told = seen.take(await read(node.store, C, 0, 1000))
    assert (told[-1]["kind"], seen.execution_status) == ("ConversationErrorEvent", "error")
    assert "image_urls" in told[-1]["detail"]
    from_snapshot = Projection()
    from_snapshot.record = seen.record
    assert from_snapshot.execution_status == "error", "also where the snapshot leaps over the turn"
    await node.submit(
        Submit(C, Command("message", {"text": "sorry [script:bad]", "run": False}, "good", Delivery.TURN))
    )
    await world.until(lambda: len(world.events("turn_completed")) == 2)
    seen.take(await read(node.store, C, seen.seq, 1000))
    assert seen.execution_status == "idle"

    world.model.scripts = {"bad": [{"error": {"status": 400}}]}
    await world.command(node, "run")
    await world.until(lambda: len(world.events("turn_failed")) == 2)
    told = seen.take(await read(node.store, C, seen.seq, 1000))
    assert seen.execution_status == "error"
    assert [one["kind"] for one in told].count("ConversationErrorEvent") == 1, "what the SDK has told is told once"


async def test_a_setting_that_is_taken_back_holds_no_longer(world: World):
    node = await world.node("only")
    strict = {
        "confirmation_policy": {"kind": "AlwaysConfirm"},
        "security_analyzer": {"kind": "LLMSecurityAnalyzer"},
        "stuck_detection": False,
    }
    await world.create(node, world.settings(**strict))
    await world.say(node, "hi")
    await world.done(1)

    def base() -> dict[str, Any]:
        return {name: snapshot().get(name) for name in strict}

    def snapshot() -> dict[str, Any]:
        kept: Any = world.disk.conversations[C].snapshot
        return kept.loop["base"]

    assert base() == strict
    record = world.disk.conversations[C].row.record
    await node.store.amend(C, record.version, {"settings": node.check("openhands", world.settings())})
    await world.say(node, "go [script:one]")
    await world.done(2)
    assert world.happened() == ["one"], "nobody was asked"
    assert base() == {
        "confirmation_policy": {"kind": "NeverConfirm"},
        "security_analyzer": None,
        "stuck_detection": True,
    }


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


async def test_a_repository_brings_no_command_of_its_own_into_the_server(world: World):
    place = world.folder / "cloned"
    plugin = place / ".openhands" / "plugins" / "kind"
    for folder in (".plugin", "hooks"):
        (plugin / folder).mkdir(parents=True)
    (plugin / ".plugin" / "plugin.json").write_text('{"name": "kind", "version": "1.0.0", "description": "kind"}')
    hook = [{"matcher": "*", "hooks": [{"type": "command", "command": f"touch {world.folder}/hooked"}]}]
    (plugin / "hooks" / "hooks.json").write_text(json.dumps({"SessionStart": hook, "UserPromptSubmit": hook}))
    skill = place / ".openhands" / "skills" / "helpful" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text(f"---\nname: helpful\ndescription: helps\n---\nHere: !`touch {world.folder}/skilled; echo done`\n")
    world.model.scripts = {
        "default": [{"calls": [{"name": "invoke_skill", "arguments": {"name": "helpful"}}]}, {"text": "I see."}]
    }
    node = await world.node("only", allow_folder=str(world.folder))
    settings = world.settings(working_dir=str(place))
    settings["agent"]["agent_context"] = {"load_project_skills": True}
    await world.create(node, settings)
    await world.say(node, "go")
    await world.done(1)
    assert "not run here" in world.context()[-1][1], "the skill is told, its command is not run"
    assert {file.name for file in world.folder.iterdir()} & {"hooked", "skilled"} == set()


MARKETPLACE = {"name": "m", "source": "/nowhere", "auto_load": True}
LOOKED_UP = {"kind": "LookupSecret", "url": "http://127.0.0.1:9/x", "headers": {"Authorization": "sk-in-clear"}}


def of_agent(**parts: Any) -> dict[str, Any]:
    return {"agent": {"llm": {"model": "m"}, **parts}}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"llm": {"model": "m", "extra_headers": {"X-Key": "sk-in-clear"}}}, "settings.llm.extra_headers.X-Key"),
        ({"llm": {"model": "m", "extra_headers": {"X-Key": "$NO"}}}, "settings.llm.extra_headers.X-Key"),
        (
            {"llm": {"model": "m", "litellm_extra_body": {"a": [{"api_key": "sk-in-clear"}]}}},
            "settings.llm.litellm_extra_body.a.0.api_key",
        ),
        (of_agent(agent_context={"secrets": {"A": "sk-in-clear"}}), "settings.agent.agent_context.secrets.A"),
        (
            of_agent(agent_context={"secrets": {"A": {"kind": "StaticSecret", "value": "sk-in-clear"}}}),
            "settings.agent.agent_context.secrets.A.value",
        ),
        (of_agent(agent_context={"secrets": {"A": LOOKED_UP}}), "settings.agent.agent_context.secrets.A"),
        (
            of_agent(agent_context={"registered_marketplaces": [MARKETPLACE]}),
            "settings.agent.agent_context.registered_marketplaces",
        ),
        (of_agent(mcp_config={"x": {"command": "x", "args": []}}), "settings.agent.mcp_config"),
        ({"llm": {"model": "m", "api_key": "sk-in-clear"}}, "settings.agent.llm.api_key"),
        ({"llm": {"model": "m", "api_key": "$KEY"}}, "settings.llm.api_key"),
        ({"llm": {"model": "m", "temperature": "hot"}}, "settings.llm.temperature"),
        ({"llm": {"model": "m"}, "max_iterations": 0}, "settings.max_iterations"),
        ({"llm": {"model": "m"}, "confirmation_policy": {"kind": "Perhaps"}}, "settings.confirmation_policy"),
        *((of_agent(tools=[{"name": name}]), "settings.agent.tools") for name in (*_REFUSED, "nope")),
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


def test_what_is_refused_names_its_reason_and_what_a_provider_wants_besides_keys_is_taken(loop: OpenHandsLoop):
    for name in _REFUSED:
        with pytest.raises(InvalidInputError, match="is not taken"):
            loop.check(of_agent(tools=[{"name": name}]))
    told = {"headers": {"X-Key": "$KEY"}, "provider": {"order": ["one"]}, "max_tokens": 7, "api_key": "$KEY"}
    context = {"secrets": {"A": "$KEY"}}
    llm = {"model": "m", "litellm_extra_body": told, "extra_headers": {"X-Key": "$KEY"}}
    loop.check({"agent": {"llm": llm, "agent_context": context}, "credentials": {"KEY": "vault:KEY"}})
