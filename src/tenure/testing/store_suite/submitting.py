"""Cases: submit. What is accepted is durable, stands once, and wakes somebody; what is refused changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import (
    Accepted,
    Creation,
    Deleted,
    Duplicate,
    KeyReused,
    Limits,
    Reason,
    Refused,
    Submit,
    TooLarge,
    Unknown,
)
from tenure.conversation import Settle, TurnState
from tenure.journal import Command, Created, Delivery, Policy, canonical, read_body
from tenure.lease import Epoch
from tenure.testing.store_suite.stage import AGENT, CREATION, IDLE, OPEN, command, expect, message, note

if TYPE_CHECKING:
    from tenure.journal import Json
    from tenure.testing.store_suite.stage import Stage

SETTINGS: dict[str, Json] = {"model": "m", "nested": {"list": [1, 2.5, None, True]}}

AWKWARD: dict[str, Json] = {
    "text": "𝄞 👩‍👩‍👧 \u0000 \u001f \u007f \u2028 \ufeff \U0010ffff é e\u0301 'quoted' \"quoted\" \\ %s {} ;--",
    "": "an empty name",
    "NUL \u0000 in a name": "",
    "numbers": [0, -1, 2**53 + 1, 2**63, -(2**70), 0.1, 1e300, 5e-324, -0.5],
    "deep": [[[[[[{"a": {"b": [{}, [], ""]}}]]]]]],
    "constants": [True, False, None],
}

# creation


async def a_conversation_is_created_with_its_first_command(stage: Stage) -> None:
    creation = Creation(
        AGENT, user_id="user", settings=SETTINGS, policy=Policy.STEER, title="a title", metadata={"a": 1}
    )
    accepted = expect(Accepted, await stage.store.submit(Submit("c", message("k", "first"), creation)))
    record = accepted.record
    assert (accepted.seq, accepted.created, record.head, record.last_command, record.unsettled) == (2, True, 2, 2, 1)
    assert (record.agent, record.user_id, record.settings) == (AGENT, "user", SETTINGS)
    assert (record.policy, record.title, record.metadata) == (Policy.STEER, "a title", {"a": 1})
    assert (record.epoch, record.owner, record.wanted, record.version) == (0, None, True, 1)
    created, first = await stage.journal("c")
    assert read_body(created) == Created(AGENT, "user", SETTINGS, "steer")
    assert (created.epoch, created.is_command, created.at) == (None, False, stage.clock.now())
    assert (first.seq, first.kind, first.text, first.key, first.epoch) == (2, "message", "first", "k", None)
    assert record == await stage.record("c")


async def a_null_command_only_creates(stage: Stage) -> None:
    accepted = expect(Accepted, await stage.store.submit(Submit("c", None, CREATION)))
    assert (accepted.seq, accepted.created, accepted.record.wanted, accepted.record.unsettled) == (1, True, False, 0)
    again = expect(Duplicate, await stage.store.submit(Submit("c", None, CREATION)))
    assert (again.seq, again.record) == (1, accepted.record)
    assert await stage.kinds("c") == ["created"]


async def what_nobody_created_is_unknown(stage: Stage) -> None:
    assert await stage.store.submit(Submit("c", message("k"))) == Unknown()
    assert await stage.store.submit(Submit("c", None)) == Unknown()
    assert await stage.store.records(["c"]) == [None]


async def the_default_agent_is_used_when_none_is_named(stage: Stage) -> None:
    conversation = await stage.conversation(Creation(default_agent="the default"))
    record = await stage.record(conversation)
    assert (record.agent, record.settings, record.metadata, record.user_id) == ("the default", {}, {}, None)
    assert record.policy is Policy.ENQUEUE


async def a_creation_that_fits_finds_the_conversation(stage: Stage) -> None:
    conversation = await stage.conversation(Creation(AGENT, user_id="user", settings=SETTINGS))
    for fitting in (
        Creation(user_id="user"),
        Creation(default_agent="another default", user_id="user"),
        Creation(AGENT, user_id="user", settings=dict(reversed(SETTINGS.items()))),
    ):
        accepted = expect(Accepted, await stage.store.submit(Submit(conversation, message(stage.key()), fitting)))
        assert not accepted.created


async def a_creation_that_does_not_fit_is_refused(stage: Stage) -> None:
    conversation = await stage.conversation(Creation(AGENT, user_id="user", settings=SETTINGS))
    before = await stage.record(conversation)
    for other in (
        Creation(AGENT, user_id="another user", settings=SETTINGS),
        Creation(AGENT, user_id=None, settings=SETTINGS),
        Creation("another agent", user_id="user"),
        Creation(user_id="user", settings={}),
    ):
        for asked in (message("k"), None):
            refused = expect(Refused, await stage.store.submit(Submit(conversation, asked, other)))
            assert refused.reason == "conversation-exists"
    assert await stage.unchanged(conversation, before)


async def of_many_that_create_one_conversation_one_does(stage: Stage) -> None:
    stores = await stage.several(6)
    answers = await asyncio.gather(*(s.submit(stage.say("c")) for s in stores))
    accepted = [expect(Accepted, answer) for answer in answers]
    assert sorted(a.created for a in accepted) == 5 * [False] + [True]
    assert await stage.kinds("c") == ["created", *6 * ["message"]]


# what acceptance means


async def rule_06_submit_always_sets_wanted(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=IDLE)
    assert not (await stage.record(writer.lease.conversation)).wanted
    for kind in ("message", "start", "interrupt", "answer", "stop"):
        accepted = await stage.submit(writer.lease.conversation, kind)
        assert accepted.record.wanted, f"a {kind} wakes somebody"
        await writer.append(settle=replace(IDLE, settled=(accepted.seq,)), seen=accepted.seq)
        assert not (await stage.record(writer.lease.conversation)).wanted


async def an_accepted_command_stands_at_the_head_without_an_epoch(stage: Stage) -> None:
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    stage.clock.advance(1)
    accepted = await stage.submit(writer.lease.conversation, text="from any node, whoever owns it")
    after = accepted.record
    assert accepted.seq == before.head + 1 == after.head == after.last_command
    assert (after.unsettled, after.updated_at) == (before.unsettled + 1, stage.clock.now())
    assert (after.owner, after.epoch, after.token) == (before.owner, before.epoch, before.token)
    event = (await stage.journal(writer.lease.conversation))[-1]
    assert (event.epoch, event.delivery, event.at) == (None, Delivery.TURN, stage.clock.now())


async def a_kind_that_only_a_loop_knows_is_journaled_as_it_was_sent(stage: Stage) -> None:
    conversation = await stage.conversation()
    for delivery in Delivery:
        asked = Command("condense", {"depth": 3}, stage.key(), delivery)
        expect(Accepted, await stage.store.submit(Submit(conversation, asked)))
        event = (await stage.journal(conversation))[-1]
        assert (event.kind, event.body, event.delivery) == ("condense", {"depth": 3}, delivery)


async def any_text_and_any_number_is_kept_unchanged(stage: Stage) -> None:
    key, creation = (
        "k-𝄞" * 250,
        Creation(AGENT, user_id="user 名前", settings=AWKWARD, title="títle 👍", metadata=AWKWARD),
    )
    asked = replace(message(key), body=AWKWARD)
    expect(Accepted, await stage.store.submit(Submit("c", asked, creation)))
    _, event = await stage.journal("c", await stage.another())
    assert (canonical(event.body), event.key) == (canonical(AWKWARD), key)
    record = await stage.record("c")
    assert canonical(record.settings) == canonical(record.metadata) == canonical(AWKWARD)
    assert (record.user_id, record.title) == ("user 名前", "títle 👍")
    assert isinstance(await stage.store.submit(Submit("c", asked, creation)), Duplicate)


# keys


async def rule_18_the_same_key_is_the_same_command(stage: Stage) -> None:
    conversation = await stage.conversation()
    asked = Submit(conversation, message("k", "once"))
    first = expect(Accepted, await stage.store.submit(asked))
    for create in (None, CREATION):
        again = expect(Duplicate, await (await stage.another()).submit(replace(asked, create=create)))
        assert (again.seq, again.record) == (first.seq, first.record)
    assert await stage.kinds(conversation) == ["created", "message"]


async def rule_18_a_key_lives_as_long_as_the_journal(stage: Stage) -> None:
    """A copy of a command that comes late, after its settlement, a release and a takeover, is recognised."""
    conversation = await stage.conversation()
    asked = Submit(conversation, message("k", "once"))
    first = expect(Accepted, await stage.store.submit(asked))
    writer = await stage.claim(conversation, await stage.node())
    await writer.append(settle=replace(IDLE, settled=(first.seq,)))
    assert expect(Duplicate, await stage.store.submit(asked)).seq == first.seq
    await writer.release()
    assert expect(Duplicate, await stage.store.submit(asked)).seq == first.seq
    await stage.claim(conversation, await stage.node())
    before = await stage.record(conversation)
    assert expect(Duplicate, await stage.store.submit(asked)).seq == first.seq
    assert await stage.unchanged(conversation, before), "a duplicate wakes nobody"
    assert not before.wanted


async def rule_18_the_same_key_with_another_body_is_refused(stage: Stage) -> None:
    conversation = await stage.conversation()
    one, other = message("k", "one"), command("interrupt", "k", {"text": "one"})
    first = expect(Accepted, await stage.store.submit(Submit(conversation, one)))
    for reused in (message("k", "two"), other):
        assert await stage.store.submit(Submit(conversation, reused)) == KeyReused(first.seq)
    assert await stage.unchanged(conversation, first.record)
    conversation = await stage.conversation()
    first = expect(Accepted, await stage.store.submit(Submit(conversation, other)))
    assert await stage.store.submit(Submit(conversation, one)) == KeyReused(first.seq), "the kind counts as well"


async def a_key_belongs_to_its_conversation(stage: Stage) -> None:
    one, other = await stage.conversation(), await stage.conversation()
    for conversation in (one, other):
        expect(Accepted, await stage.store.submit(Submit(conversation, message("k", conversation))))


async def of_many_that_submit_one_key_one_is_accepted(stage: Stage) -> None:
    conversation, stores = await stage.conversation(), await stage.several(6)
    answers = await asyncio.gather(*(s.submit(Submit(conversation, message("k"))) for s in stores))
    seqs = {answer.seq for answer in answers if isinstance(answer, Accepted | Duplicate)}
    assert sorted(type(a).__name__ for a in answers) == ["Accepted", *5 * ["Duplicate"]]
    assert seqs == {2}
    assert await stage.kinds(conversation) == ["created", "message"]


# refusals


async def a_message_to_a_stopped_conversation_is_refused_until_a_start(stage: Stage) -> None:
    writer = await stage.owned()
    stop = await stage.submit(writer.lease.conversation, "stop")
    settled = Settle(runnable=False, settled=(stop.seq,), stopped=True)
    await writer.append(settle=settled, seen=stop.seq)
    before = await stage.record(writer.lease.conversation)
    asked = Submit(writer.lease.conversation, message("k"))
    refused = expect(Refused, await stage.store.submit(asked))
    assert refused.reason == "conversation-stopped"
    assert await stage.unchanged(writer.lease.conversation, before)
    start = await stage.submit(writer.lease.conversation, "start")
    assert not start.record.stopped
    expect(Accepted, await stage.store.submit(asked))


async def what_needs_no_turn_is_accepted_while_stopped(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=Settle(runnable=False, stopped=True))
    for kind in ("stop", "interrupt", "answer"):
        assert (await stage.submit(writer.lease.conversation, kind)).record.stopped


async def more_unsettled_commands_than_the_limit_are_refused(stage: Stage) -> None:
    stage.store = await stage.another(Limits(unsettled=3))
    writer = await stage.owned()
    first, *_ = [await stage.submit(writer.lease.conversation) for _ in range(3)]
    before = await stage.record(writer.lease.conversation)
    asked = Submit(writer.lease.conversation, message("one too many"))
    refused = expect(Refused, await stage.store.submit(asked))
    assert refused.reason == "too-many-unsettled"
    assert await stage.unchanged(writer.lease.conversation, before)
    await writer.append(settle=Settle(runnable=True, settled=(first.seq,)))
    expect(Accepted, await stage.store.submit(asked))
    assert isinstance(await stage.store.submit(Submit(writer.lease.conversation, message("again"))), Refused)


async def a_stop_is_taken_at_the_limit(stage: Stage) -> None:
    stage.store = await stage.another(Limits(unsettled=1))
    conversation = await stage.conversation()
    await stage.submit(conversation)
    assert isinstance(await stage.store.submit(Submit(conversation, command("interrupt", "k"))), Refused)
    await stage.submit(conversation, "stop")


async def reject_refuses_messages_during_a_turn(stage: Stage) -> None:
    conversation = await stage.conversation(Creation(AGENT, policy=Policy.REJECT))
    await stage.submit(conversation)
    writer = await stage.claim(conversation, await stage.node())
    for turn in (TurnState.OPEN, TurnState.WAITING):
        await writer.append(settle=replace(OPEN, turn=turn))
        before = await stage.record(conversation)
        refused = expect(Refused, await stage.store.submit(Submit(conversation, message("k"))))
        assert refused.reason == "turn-open"
        assert await stage.unchanged(conversation, before)
    await stage.submit(conversation, "answer")
    await writer.append(settle=IDLE)
    expect(Accepted, await stage.store.submit(Submit(conversation, message("k"))))


async def other_policies_take_messages_during_a_turn(stage: Stage) -> None:
    expected = {Policy.ENQUEUE: Delivery.TURN, Policy.INTERRUPT: Delivery.TURN, Policy.STEER: Delivery.NOW}
    for policy, delivery in expected.items():
        conversation = await stage.conversation(Creation(AGENT, policy=policy))
        await stage.submit(conversation)
        assert (await stage.journal(conversation))[-1].delivery is Delivery.TURN, "no turn is open yet"
        writer = await stage.claim(conversation, await stage.node())
        await writer.append(settle=OPEN)
        await stage.submit(conversation)
        assert (await stage.journal(conversation))[-1].delivery is delivery


async def rule_18_a_refusal_does_not_burn_the_key(stage: Stage) -> None:
    """What was refused under a key may be sent again, and so may something else."""
    conversation = await stage.conversation(Creation(AGENT, policy=Policy.REJECT))
    writer = await stage.claim(conversation, await stage.node())
    await writer.append(settle=OPEN)
    assert isinstance(await stage.store.submit(Submit(conversation, message("k", "refused"))), Refused)
    await writer.append(settle=Settle(runnable=False, stopped=True))
    assert isinstance(await stage.store.submit(Submit(conversation, message("k", "refused as well"))), Refused)
    await stage.submit(conversation, "start")
    expect(Accepted, await stage.store.submit(Submit(conversation, message("k", "another text"))))


async def a_duplicate_is_recognised_before_anything_is_refused(stage: Stage) -> None:
    stage.store = await stage.another(Limits(unsettled=1))
    conversation = await stage.conversation(Creation(AGENT, policy=Policy.REJECT))
    first = expect(Accepted, await stage.store.submit(Submit(conversation, message("k"))))
    again = Submit(conversation, message("k"))
    assert isinstance(await stage.store.submit(again), Duplicate), "at the limit"
    writer = await stage.claim(conversation, await stage.node())
    await writer.append(settle=OPEN)
    assert isinstance(await stage.store.submit(again), Duplicate), "during a turn"
    await writer.append(settle=Settle(runnable=False, stopped=True))
    assert expect(Duplicate, await stage.store.submit(again)).seq == first.seq, "while stopped"
    assert await stage.store.submit(Submit(conversation, message("k", "other"))) == KeyReused(first.seq)


async def a_command_that_is_too_large_is_refused(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    conversation = await stage.conversation()
    before = await stage.record(conversation)
    fits = message("k", "é" * ((1000 - len('{"text":""}')) // 2))
    over = replace(fits, body={"text": f"{fits.body['text']}é"})
    size = len(canonical(over.body).encode())
    assert await stage.store.submit(Submit(conversation, over)) == TooLarge(0, size, 1000)
    assert await stage.unchanged(conversation, before)
    expect(Accepted, await stage.store.submit(Submit(conversation, fits)))


async def settings_that_are_too_large_create_nothing(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    large = Creation(AGENT, settings={"text": "x" * 1000})
    assert isinstance(await stage.store.submit(Submit("c", message("k"), large)), TooLarge)
    assert await stage.store.records(["c"]) == [None]


# start


async def a_start_while_one_is_unsettled_is_that_one(stage: Stage) -> None:
    writer = await stage.owned()
    first = await stage.submit(writer.lease.conversation, "start")
    again = Submit(writer.lease.conversation, command("start", "another key"))
    assert expect(Duplicate, await stage.store.submit(again)).seq == first.seq
    other = await stage.submit(writer.lease.conversation, "interrupt")
    await writer.append(settle=replace(IDLE, settled=(other.seq,)), seen=other.seq)
    assert expect(Duplicate, await stage.store.submit(again)).seq == first.seq, "another command was settled"
    await writer.append(settle=replace(IDLE, settled=(first.seq,)))
    assert expect(Accepted, await stage.store.submit(again)).seq > first.seq, "settled: a new one is a new one"


async def rule_15_start_clears_what_holds_a_conversation_back(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await stage.submit(conversation)
    settle = Settle(runnable=True, turn=TurnState.OPEN, stopped=True)
    await stage.store.release(writer.farewell(settle=settle, reason=Reason.FAILED, retry_in_s=60.0))
    for _ in range(2):  # two owners that did not release
        await stage.claim(conversation, await stage.node(), forced=True)
    held_back = await stage.record(conversation)
    assert (held_back.stopped, held_back.failures, held_back.lost, held_back.retry_in_s) == (True, 1, 1, 60.0)
    start = await stage.submit(conversation, "start")
    after = start.record
    assert (after.stopped, after.failures, after.lost, after.retry_in_s) == (False, 0, 0, None)
    assert after.last_start == start.seq


async def only_a_start_clears_the_back_off(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    failed = writer.farewell(settle=Settle(runnable=True), reason=Reason.FAILED, retry_in_s=60.0)
    await stage.store.release(failed)
    after = (await stage.submit(conversation)).record
    assert (after.failures, after.retry_in_s, after.last_start) == (1, 60.0, 0)
    assert await stage.sweep(None) == {}
    await stage.submit(conversation, "start")
    assert list(await stage.sweep(None)) == [conversation]


async def any_later_command_clears_failed(stage: Stage) -> None:
    writer = await stage.owned()
    failed = writer.farewell(settle=Settle(runnable=False, failed=True), reason=Reason.FAILED)
    await stage.store.release(failed)
    assert (await stage.record(writer.lease.conversation)).failed
    after = (await stage.submit(writer.lease.conversation)).record
    assert (after.failed, after.wanted) == (False, True)


# lists and tombstones


async def commands_travel_together(stage: Stage) -> None:
    """A result per item, in order; what is refused fails none of the others."""
    one, other = await stage.conversation(), await stage.conversation()
    answers = await stage.store.submit_all(
        [
            Submit(one, message("k1")),
            Submit("nobody's", message("k")),
            Submit(other, message("k1")),
            Submit(one, message("k2")),
            Submit(one, message("k1", "another text")),
            Submit(one, message("k1")),
            Submit("new", message("k"), CREATION),
        ]
    )
    assert [type(answer) for answer in answers] == [
        Accepted,
        Unknown,
        Accepted,
        Accepted,
        KeyReused,
        Duplicate,
        Accepted,
    ]
    assert [answer.seq for answer in answers if not isinstance(answer, Unknown | Refused | Deleted | TooLarge)] == [
        2,
        2,
        3,
        2,
        2,
        2,
    ]
    assert await stage.kinds(one) == ["created", "message", "message"]
    assert await stage.store.submit_all([]) == []


async def rule_04_a_deleted_id_is_never_used_again(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(note())
    gone = expect(Deleted, await stage.store.delete(conversation, Epoch(1), "user"))
    for request in (stage.say(conversation), Submit(conversation, message("k")), Submit(conversation, None, CREATION)):
        assert await stage.store.submit(request) == gone == Deleted(Epoch(2))
    assert await stage.store.read(conversation) == gone
