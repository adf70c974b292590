"""OpenHands' own files in and out: trajectories and persistence directories, with the real SDK at both ends."""

import asyncio
import importlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openhands_world import MARKS, C, World

import tenure
from tenure.abc import Creation, Limits
from tenure.conversation import Export, read_export
from tenure.errors import InvalidInputError
from tenure.journal import Policy
from tenure.loops.openhands import trajectories
from tenure.loops.openhands.projection import HIDDEN
from tenure.node import Copy

pytestmark = MARKS
COPY = "22222222-2222-4333-8444-555555555555"


async def exported(world: World, node: tenure.Node, conversation: str = C) -> list[str]:
    """The lines of an export of the conversation as it stands."""
    reading = await node.store.read(conversation, 0, 1000)
    assert reading is not None
    export = Export(reading.record, [])
    return [export.first(), *map(export.event, reading.events), export.last()]


async def imported(node: tenure.Node, lines: bytes, conversation: str = COPY) -> None:
    """What the server does with them."""
    recording = read_export(lines.removesuffix(b"\n").split(b"\n"), event_bytes=Limits().event_bytes)
    settings = node.check("openhands", recording.settings)
    creation = Creation(agent="openhands", settings=settings, policy=Policy(recording.policy), title=recording.title)
    await node.rehydrate(Copy(conversation, recording, creation, rerun=False))


async def goes_on(world: World, node: tenure.Node, conversation: str = COPY) -> list[str]:
    """What the model is told with one more message."""
    before = len(world.model.requests)
    await node.send(conversation, "and now?", key="one-more")
    async with asyncio.timeout(60):
        while True:
            ends = [e for e in world.disk.conversations[conversation].events if e.kind.startswith("turn_")]
            if len(world.model.requests) > before and ends[-1].kind in ("turn_completed", "turn_failed"):
                break
            await asyncio.sleep(0.01)
    assert ends[-1].kind == "turn_completed", ends[-1].body
    return [text for _, text in world.context()]


async def worked(world: World) -> tuple[tenure.Node, list[dict[str, Any]]]:
    """A conversation in which a tool has run, and its events."""
    node = await world.node("a")
    await world.create(node, world.settings())
    await world.say(node, "go [script:one]")
    await world.done(1)
    return node, [dict(e.body) for e in world.events("openhands.event")]


async def test_a_trajectory_goes_round_and_the_copy_goes_on_with_its_past(world: World):
    node, events = await worked(world)
    told = trajectories.trajectory_of(await exported(world, node))
    assert told == events
    data = json.dumps(told).encode()
    assert trajectories.is_trajectory(data)
    lines = trajectories.as_export(trajectories.read_trajectory(data), agent="openhands", settings=world.settings())
    await imported(node, lines)
    assert trajectories.trajectory_of(await exported(world, node, COPY)) == events
    known = await goes_on(world, node)
    assert known[0].startswith("go ") and any("did one" in one for one in known) and known[-1] == "and now?"
    assert world.happened() == ["one"], "nothing of the past runs again"
    kinds = [e.body["kind"] for e in world.disk.conversations[COPY].events if e.kind == "openhands.event"]
    assert kinds.count("SystemPromptEvent") == 1


async def test_an_exported_directory_is_opened_by_the_sdk_and_what_it_writes_comes_back(world: World, tmp_path: Path):
    node, events = await worked(world)
    folder = tmp_path / "stock" / uuid.UUID(C).hex
    for name, text in trajectories.directory_of(await exported(world, node)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    sdk: Any = importlib.import_module("openhands.sdk")
    llm = sdk.LLM(model="openai/scripted", base_url=world.model.url, api_key="k", num_retries=0, usage_id="agent")
    agent = sdk.Agent(llm=llm, tools=[sdk.Tool(name="act")])
    local: Any = importlib.import_module("openhands.sdk.conversation.impl.local_conversation").LocalConversation

    def there() -> list[str]:
        conversation = local(
            agent=agent, workspace=str(tmp_path), persistence_dir=str(tmp_path / "stock"), conversation_id=uuid.UUID(C),
            visualizer=None, delete_on_close=False,
        )  # fmt: skip
        before = [event.id for event in conversation.state.events]
        conversation.send_message("once more")
        conversation.run()
        conversation.close()
        return before

    assert (await asyncio.to_thread(there))[: len(events)] == [event["id"] for event in events]
    assert any("did one" in text for _, text in world.context()), "the SDK's own conversation knows the past"

    back, settings = trajectories.read_directory(folder)
    assert [event["id"] for event in back][: len(events)] == [event["id"] for event in events] and len(back) > len(
        events
    )
    assert settings["credentials"] == {"LLM_API_KEY": "vault:LLM_API_KEY"} and HIDDEN not in json.dumps(settings)
    settings |= world.settings()
    del settings["credentials"]
    await imported(node, trajectories.as_export(back, agent="openhands", settings=settings))
    known = await goes_on(world, node)
    assert "once more" in known and known[-1] == "and now?"


async def test_an_action_without_outcome_gets_its_error_in_the_copy(world: World):
    node, events = await worked(world)
    cut = events[: next(at for at, e in enumerate(events) if e["kind"] == "ActionEvent") + 1]
    await imported(node, trajectories.as_export(cut, agent="openhands", settings=world.settings()))
    known = await goes_on(world, node)
    assert any("interrupted" in one for one in known) and world.happened() == ["one"]


async def test_keys_are_names_in_settings_and_masked_in_a_directory(world: World):
    node = await world.node("a")
    settings = world.settings()
    settings["agent"]["llm"]["api_key"] = "$TOKEN"
    await world.create(node, {**settings, "credentials": {"TOKEN": "vault:TOKEN"}})
    lines = await exported(world, node)
    with pytest.raises(InvalidInputError, match="no event of OpenHands'"):
        trajectories.directory_of(lines)
    past = trajectories.as_export(
        [MESSAGE], agent="openhands", settings=json.loads(lines[0])["conversation"]["settings"]
    )
    base = json.loads(trajectories.directory_of(past.decode().splitlines())["base_state.json"])
    assert base["agent"]["llm"]["api_key"] == HIDDEN and "credentials" not in base
    nameless = trajectories.as_export([MESSAGE], agent="openhands", settings={})
    with pytest.raises(InvalidInputError, match=r"settings\.agent"):
        trajectories.directory_of(nameless.decode().splitlines())


# --- what is refused ------------------------------------------------------------------------------------------------

MESSAGE = {
    "kind": "MessageEvent", "id": "m1", "source": "user", "timestamp": "2026-01-01T00:00:00",
    "llm_message": {"role": "user", "content": [{"type": "text", "text": "hello"}]},
}  # fmt: skip

BAD: dict[str, tuple[Any, str, str]] = {
    "no JSON": (b"[{", "file", "is not JSON"),
    "no object": ([MESSAGE, 7], "[1]", "must be a JSON object"),
    "before the SDK": ([{"action": "message"}], "[0]", "before its SDK"),
    "unknown kind": ([MESSAGE, {**MESSAGE, "kind": "PartyEvent"}], "[1].kind", "no event of the SDK's log"),
    "no id": ([{**MESSAGE, "id": None}], "[0].id", "must be the event's id"),
    "twice": ([MESSAGE, MESSAGE], "[1].id", "stands at [0] already"),
    "no time": ([{**MESSAGE, "timestamp": "soon"}], "[0].timestamp", "ISO 8601"),
    "nobody speaks": ([{**MESSAGE, "source": "agent"}], "events", "no message of a user"),
    "no items": ([{"items": 3}], "[0].items", "must be a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_trajectory_is_refused_with_its_place(case: str):
    content, field, says = BAD[case]
    with pytest.raises(InvalidInputError) as refused:
        trajectories.read_trajectory(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert refused.value.field == field and says in str(refused.value)


def without_base(folder: Path) -> None:
    (folder / "base_state.json").unlink()


def without_agent(folder: Path) -> None:
    (folder / "base_state.json").write_text("{}")


def with_a_gap(folder: Path) -> None:
    (folder / "events" / "event-00000-m1.json").rename(folder / "events" / "event-00001-m1.json")


def renamed(folder: Path) -> None:
    (folder / "events" / "event-00000-m1.json").rename(folder / "events" / "event-00000-m2.json")


def empty(folder: Path) -> None:
    (folder / "events" / "event-00000-m1.json").unlink()


@pytest.mark.parametrize(
    ("break_it", "field"),
    [
        (without_base, "base_state.json"),
        (without_agent, "base_state.json: agent"),
        (with_a_gap, "events/event-00001-m1.json"),
        (renamed, "events/event-00000-m2.json: id"),
        (empty, "events"),
    ],
)
def test_a_bad_directory_is_refused_with_its_file(break_it: Callable[[Path], None], field: str, tmp_path: Path):
    (tmp_path / "events").mkdir()
    (tmp_path / "base_state.json").write_text(json.dumps({"agent": {"llm": {"api_key": HIDDEN}}}))
    (tmp_path / "events" / "event-00000-m1.json").write_text(json.dumps(MESSAGE))
    events, settings = trajectories.read_directory(tmp_path)
    assert len(events) == 1 and settings["agent"] == {"llm": {"api_key": "$LLM_API_KEY"}}
    break_it(tmp_path)
    with pytest.raises(InvalidInputError) as refused:
        trajectories.read_directory(tmp_path)
    assert refused.value.field == field


def test_pages_of_a_server_are_one_trajectory_and_states_of_sockets_are_left_out():
    state = {**MESSAGE, "id": "s", "kind": "ConversationStateUpdateEvent", "key": "full_state"}
    pages = [{"items": [MESSAGE, state]}, {"items": [{**MESSAGE, "id": "m2"}], "next_page_id": None}]
    data = json.dumps(pages).encode()
    assert [one["id"] for one in trajectories.read_trajectory(data)] == ["m1", "m2"]
    assert trajectories.is_trajectory(json.dumps(pages[0]).encode())
    assert not trajectories.is_trajectory(b'{"format": 1, "conversation": {}}')


def test_a_long_directory_is_read_in_order_and_its_secrets_stay_behind(tmp_path: Path):
    events = tmp_path / "events"
    events.mkdir()
    for number in (0, 99_999, 100_000):
        (events / f"event-{number:05d}-m{number}.json").write_text(json.dumps({**MESSAGE, "id": f"m{number}"}))
    llm = {"model": "m", "api_key": "gAAA", "aws_secret_access_key": "gAAA-aws", "aws_session_token": HIDDEN}
    agent = {"kind": "Agent", "llm": llm, "agent_context": {"secrets": {"A": "gAAA-context"}}}
    (tmp_path / "base_state.json").write_text(json.dumps({"agent": agent}))
    with pytest.raises(InvalidInputError, match="number 1 must stand") as refused:
        trajectories.read_directory(tmp_path)
    assert "event-99999" in str(refused.value.field), "which follows event 0 here, not event-100000"
    for number in (99_999, 100_000):
        (events / f"event-{number:05d}-m{number}.json").unlink()
    _, settings = trajectories.read_directory(tmp_path)
    told = json.dumps(settings)
    assert "gAAA" not in told and HIDDEN not in told and settings["credentials"] == {"LLM_API_KEY": "vault:LLM_API_KEY"}
