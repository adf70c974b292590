"""A recording becomes the past of a new conversation: whole or not at all, once, at whichever node, and nothing runs again."""

import asyncio
import json
from dataclasses import replace

import pytest
from node_support import Agent, C, Cluster, call, in_virtual_time, reply, until, writes

from tenure.abc import Creation
from tenure.conversation import Export, meaning_of, past_of, read_events, read_export
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    InvalidInputError,
    ProvisioningError,
)
from tenure.journal import CallFinished, CallStarted, Draft, draft
from tenure.node import Copy
from tenure.node.rehydration import BATCH_EVENTS

COPY = "copy"
EVENT_BYTES = 1 << 20


async def talk(turn):
    await call(turn, "look", idempotent=True)
    await reply(turn)


def exported(cluster: Cluster, conversation: str = C, upto: int | None = None) -> list[bytes]:
    export = Export(cluster.record(conversation))
    events = cluster.journal(conversation)[:upto]
    return [line.encode() for line in (export.first(), *map(export.event, events), export.last())]


def copy_of(cluster: Cluster, conversation: str = C, to: str = COPY, *, rerun: bool = False, user: str | None = None):
    recording = read_export(exported(cluster, conversation), event_bytes=EVENT_BYTES)
    return Copy(to, recording, Creation(recording.agent, user_id=user, settings=recording.settings), rerun)


async def conversed(cluster: Cluster, messages: int = 3) -> None:
    """A conversation with some turns, settled and released."""
    member = await cluster.add(agent=Agent(talk), idle_s=1.0)
    for _ in range(messages):
        seq = await cluster.say(via=member)
        await until(lambda seq=seq: cluster.settled(seq))
    await until(lambda: cluster.record().owner is None)


def past(cluster: Cluster, conversation: str) -> list:
    return past_of(cluster.journal(conversation))


def meaning(cluster: Cluster, conversation: str) -> dict:
    return meaning_of(cluster.fold(conversation), cluster.journal(conversation))


@in_virtual_time
async def test_a_copy_has_the_whole_past_and_nothing_runs(cluster: Cluster):
    await conversed(cluster)
    (member,) = cluster.members
    turns = len(member.agent.turns)
    record = (await member.ask(member.node.rehydrate(copy_of(cluster)))).record
    assert (record.conversation, record.owner, record.wanted, record.unsettled) == (COPY, None, False, 0)
    assert past(cluster, COPY) == past(cluster, C)
    assert meaning(cluster, COPY) == meaning(cluster, C)
    assert cluster.kinds(COPY)[:3] == ["created", "claimed", "rehydrating"]
    assert cluster.kinds(COPY)[-2:] == ["rehydrated", "released"]
    await asyncio.sleep(60)
    assert len(member.agent.turns) == turns
    assert "runtime_requested" not in cluster.kinds(COPY)


@in_virtual_time
async def test_a_copy_goes_on_and_its_loop_sees_the_past_as_history(cluster: Cluster):
    await conversed(cluster)
    (member,) = cluster.members
    await member.ask(member.node.rehydrate(copy_of(cluster)))
    seen: list = []

    async def look(turn):
        seen.extend(await turn.history())
        await talk(turn)

    member.agent.on_turn = look
    seq = await cluster.say("go on", COPY, via=member)
    await until(lambda: cluster.settled(seq, COPY))
    assert past_of(seen)[: len(past(cluster, C))] == past(cluster, C)
    names = [e.turn for e in cluster.events("turn_started", COPY)]
    assert len(set(names)) == len(names), "no turn of the copy has the name of one of the original"
    assert names[-1] == f"t{seq}r1"
    again = copy_of(cluster, COPY, "copy of the copy")
    await member.ask(member.node.rehydrate(again))
    assert past(cluster, "copy of the copy") == past(cluster, COPY)
    assert cluster.fold("copy of the copy").generation == 2


@in_virtual_time
async def test_what_the_past_leaves_open_is_closed_in_the_copy_and_only_there(cluster: Cluster):
    gate = asyncio.Event()

    async def stuck(turn):
        await turn.journal([draft(CallStarted("a", "send mail", key="a"))])
        await gate.wait()
        await turn.journal([draft(CallFinished("a"))])

    member = await cluster.add(agent=Agent(stuck))
    first, second = await cluster.say("one", via=member), await cluster.say("two", via=member)
    await until(lambda: cluster.events("call_started"))
    before = past(cluster, C)
    await member.ask(member.node.rehydrate(copy_of(cluster)))
    copied = cluster.kinds(COPY)
    assert copied[copied.index("rehydrated") :] == [
        "rehydrated", "call_interrupted", "turn_interrupted", "command_settled", "released",
    ]  # fmt: skip
    assert past(cluster, COPY)[: len(before)] == before
    state = cluster.fold(COPY)
    assert (state.turn, state.pending) == (None, {})
    assert cluster.events("command_settled", COPY)[0].body["body"] == {"reason": "copied"}
    gate.set()
    await until(lambda: cluster.settled(first) and cluster.settled(second))


@in_virtual_time
async def test_rerun_sends_what_was_left_unanswered_once_more(cluster: Cluster):
    gate = asyncio.Event()
    member = await cluster.add(agent=Agent(lambda turn: gate.wait()))
    await cluster.say("one", via=member)
    await cluster.say("two", via=member)
    await until(lambda: cluster.events("turn_started"))
    copy = copy_of(cluster, rerun=True)
    member.agent.on_turn = talk
    await member.ask(member.node.rehydrate(copy))
    await member.ask(member.node.rehydrate(copy))
    await until(lambda: cluster.record(COPY).unsettled == 0 and len(cluster.events("turn_completed", COPY)) == 2)
    texts = [e.text for e in cluster.events("message", COPY)]
    assert texts == ["one", "two", "one", "two"]
    gate.set()


@in_virtual_time
async def test_rerun_without_anything_unanswered_sends_the_last_message(cluster: Cluster):
    await conversed(cluster, 2)
    (member,) = cluster.members
    await member.ask(member.node.rehydrate(copy_of(cluster, rerun=True)))
    await until(lambda: len(cluster.events("turn_completed", COPY)) == 3)


@in_virtual_time
async def test_a_stopped_past_stays_stopped_and_does_not_rerun(cluster: Cluster):
    await conversed(cluster, 1)
    (member,) = cluster.members
    await cluster.command("stop", via=member)
    await until(lambda: cluster.record().stopped and cluster.record().owner is None)
    with pytest.raises(InvalidInputError, match="stopped"):
        await member.ask(member.node.rehydrate(copy_of(cluster, rerun=True)))
    assert COPY not in cluster.disk.conversations
    await member.ask(member.node.rehydrate(copy_of(cluster)))
    assert cluster.record(COPY).stopped


@pytest.mark.parametrize("open_calls", [998, 999])
@in_virtual_time
async def test_what_leaves_more_open_than_one_step_can_close_is_refused(cluster: Cluster, open_calls: int):
    """The end of the past and an end for all that is open are one batch: a copy that is whole has nothing open."""
    gate = asyncio.Event()

    async def many(turn):
        for start in range(0, open_calls, 500):
            names = range(start, min(start + 500, open_calls))
            await turn.journal([draft(CallStarted(f"c{n}", "look", key=f"c{n}")) for n in names])
        await gate.wait()

    member = await cluster.add(agent=Agent(many))
    await cluster.say(via=member)
    await until(lambda: len(cluster.events("call_started")) == open_calls)
    copy = copy_of(cluster)
    if open_calls == 998:
        await member.ask(member.node.rehydrate(copy))
        assert cluster.kinds(COPY).count("call_interrupted") == 998 and cluster.fold(COPY).turn is None
    else:
        with pytest.raises(InvalidInputError, match="leaves 1000 things open, at most 999") as refused:
            await member.ask(member.node.rehydrate(copy))
        assert refused.value.field == "replay" and COPY not in cluster.disk.conversations
    gate.set()


@in_virtual_time
async def test_a_command_that_the_copys_agent_does_not_declare_is_refused(cluster: Cluster):
    takes, knows_less = Agent(talk), Agent(talk, commands={})
    member = await cluster.add(agent=takes, agents={"echo": takes, "less": knows_less}, idle_s=1.0)
    first = await cluster.say(via=member)
    second = await cluster.command("pause", via=member)
    await until(lambda: cluster.settled(first) and cluster.settled(second) and cluster.record().owner is None)
    copy = copy_of(cluster)
    less = replace(copy, creation=replace(copy.creation, agent="less"))
    with pytest.raises(InvalidInputError) as refused:
        await member.ask(member.node.rehydrate(less))
    line = 1 + cluster.events("pause")[0].seq
    assert refused.value.field == f"line {line}: kind"
    assert refused.value.problem == (
        "'pause' is no command of this agent (it takes message, start, stop, interrupt, answer)"
    )
    assert COPY not in cluster.disk.conversations
    await member.ask(member.node.rehydrate(copy))
    assert [e.kind for e in cluster.journal(COPY) if e.is_command] == ["message", "pause"]
    assert cluster.events("reply", COPY), "kinds of loops are kept, whoever knows them"


@in_virtual_time
async def test_the_same_request_twice_at_once_and_later_is_one_copy(cluster: Cluster):
    await conversed(cluster)
    one, other = cluster.members[0], await cluster.add()
    copy = copy_of(cluster)
    records = await asyncio.gather(
        *(member.ask(member.node.rehydrate(copy)) for member in (one, one, other)),
    )
    assert {done.record.conversation for done in records} == {COPY}
    await other.ask(other.node.rehydrate(copy))
    assert past(cluster, COPY) == past(cluster, C)
    assert cluster.kinds(COPY).count("rehydrated") == 1


@in_virtual_time
async def test_another_recording_or_user_under_the_same_id_is_refused(cluster: Cluster):
    await conversed(cluster)
    (member,) = cluster.members
    copy = copy_of(cluster)
    await member.ask(member.node.rehydrate(copy))
    shorter = [e.as_json() for e in cluster.journal()][:-3]
    other = read_events(shorter, {}, event_bytes=EVENT_BYTES)
    for wrong in (
        Copy(COPY, other, copy.creation),
        Copy(COPY, copy.recording, Creation("echo", user_id="another")),
        Copy(C, copy.recording, copy.creation),
    ):
        with pytest.raises(ConversationExistsError):
            await member.ask(member.node.rehydrate(wrong))


async def long_talk(turn):
    for number in range(60):
        await turn.journal([Draft("said", {"n": number})])


async def long_conversation(cluster: Cluster) -> None:
    """One whose past takes several batches."""
    member = await cluster.add(agent=Agent(long_talk), idle_s=1.0)
    for _ in range(4):
        seq = await cluster.say(via=member)
        await until(lambda seq=seq: cluster.settled(seq))
    await until(lambda: cluster.record().owner is None)
    assert len(past(cluster, C)) > 2 * BATCH_EVENTS
    member.kill()


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4])
@in_virtual_time
async def test_a_copy_whose_node_died_is_finished_by_the_same_request_elsewhere(cluster: Cluster, batch: int):
    await long_conversation(cluster)
    first, second = await cluster.add(), await cluster.add()
    writes_seen = 0

    def nth(requests) -> bool:
        nonlocal writes_seen
        writes_seen += 1
        return writes_seen > batch

    reached = asyncio.Event()

    async def die_here(proceed):
        reached.set()
        await asyncio.Event().wait()

    first.rig.always("append_all", die_here, nth)
    copy = copy_of(cluster)
    asyncio.ensure_future(first.ask(first.node.rehydrate(copy))).add_done_callback(
        lambda t: t.cancelled() or t.exception()
    )
    await reached.wait()
    first.kill()
    unfinished = cluster.record(COPY)
    assert unfinished.wanted, "the sweep finds it"
    await until(lambda: cluster.record(COPY).owner is None, 60)
    assert "runtime_requested" not in cluster.kinds(COPY)
    await second.ask(second.node.rehydrate(copy))
    assert past(cluster, COPY) == past(cluster, C)
    assert cluster.kinds(COPY).count("rehydrating") == 1
    assert not cluster.record(COPY).wanted


@in_virtual_time
async def test_a_copy_that_nobody_finishes_is_never_run_and_is_deleted_in_the_end(cluster: Cluster):
    await long_conversation(cluster)
    slow = {"ttl_s": 60.0, "sweep_s": 30.0}  # an hour has fewer heartbeats
    first, second = await cluster.add(**slow), await cluster.add(**slow)
    reached = asyncio.Event()

    async def die_here(proceed):
        reached.set()
        await asyncio.Event().wait()

    first.rig.once("append_all", die_here, writes("rehydrated"))
    task = asyncio.ensure_future(first.ask(first.node.rehydrate(copy_of(cluster))))
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    await reached.wait()
    first.kill()
    await until(lambda: cluster.events("start_failed", COPY), 300)
    with pytest.raises(ProvisioningError, match="not whole"):
        await second.start(COPY)
    await asyncio.sleep(3700)
    await until(lambda: cluster.record(COPY).deleted, 600)
    assert not second.agent.opened
    with pytest.raises(ConversationDeletedError):
        await second.ask(second.node.rehydrate(copy_of(cluster)))


@in_virtual_time
async def test_who_is_disturbed_while_writing_keeps_nothing(cluster: Cluster):
    await long_conversation(cluster)
    member = await cluster.add()

    async def disturb(proceed):
        await cluster.say("in between", COPY)
        return await proceed()

    member.rig.once("append_all", disturb, writes("turn_completed"))
    with pytest.raises(CommandRefusedError, match="another id"):
        await member.ask(member.node.rehydrate(copy_of(cluster)))
    assert cluster.record(COPY).deleted


def test_lines_are_plain_json_and_each_names_the_next():
    cluster = Cluster()

    async def make() -> list[bytes]:
        await cluster.create()
        return exported(cluster)

    lines = asyncio.run(make())
    first, event, end = map(json.loads, lines)
    assert (first["format"], first["head"], first["conversation"]["id"]) == (1, 1, C)
    assert event["event"]["kind"] == "created"
    assert end["end"] == {"events": 1}
