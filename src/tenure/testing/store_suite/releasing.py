"""Cases: release. The last append of a lease; what is left of it is one answer to its own repetition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Appended, Death, Fenced, Limits, Reading, Reason, ReleasedNow, Snapshot, TooLarge
from tenure.conversation import Settle, TurnState
from tenure.journal import Released, read_body
from tenure.lease import new_token
from tenure.testing.store_suite.appending import forged
from tenure.testing.store_suite.stage import IDLE, OPEN, expect, note

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage, Writer

RUNNABLE = Settle(runnable=True)
AT_REST = Settle(runnable=False)


async def a_release_clears_the_owner_and_says_so_in_the_journal(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(settle=OPEN)
    stage.clock.advance(1)
    farewell = writer.farewell(note("last words"), settle=IDLE, reason=Reason.DRAINED)
    done = expect(ReleasedNow, await stage.store.release(farewell))
    record = await stage.record(conversation)
    assert (record.owner, record.token, record.started, record.epoch) == (None, None, False, 1)
    assert (done.wanted, done.head, done.repeated) == (False, record.head, False)
    words, released = (await stage.journal(conversation))[-2:]
    assert words.text == "last words"
    assert read_body(released) == Released(writer.lease.incarnation, "drained"), (
        "it comes after the release's own events"
    )
    assert (released.epoch, released.seq, released.at) == (1, record.head, stage.clock.now())
    assert (record.last_command, record.turn, record.updated_at) == (0, TurnState.NONE, stage.clock.now())


async def every_reason_is_journaled(stage: Stage) -> None:
    for reason in Reason:
        writer = await stage.owned()
        await writer.release(reason=reason)
        released = read_body((await stage.journal(writer.lease.conversation))[-1])
        assert released == Released(writer.lease.incarnation, reason.value)


async def rule_01_a_release_needs_the_lease_that_is_held(stage: Stage) -> None:
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    farewell = writer.farewell(note())
    for what, lease in forged(writer.lease):
        bad = replace(farewell, batch=replace(farewell.batch, lease=lease))
        assert isinstance(await stage.store.release(bad), Fenced), what
        assert await stage.unchanged(writer.lease.conversation, before), what
    gone = replace(farewell.batch, lease=replace(writer.lease, conversation="gone"))
    assert await stage.store.release(replace(farewell, batch=gone)) == Fenced(None)
    await writer.release()


async def c8_release_is_numbered(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(note(), settle=OPEN)
    before = await stage.record(writer.lease.conversation)
    farewell = writer.farewell(settle=AT_REST)
    for number in (-1, 0, 1, 3):
        bad = replace(farewell, batch=replace(farewell.batch, number=number))
        assert isinstance(await stage.store.release(bad), Fenced)
    assert await stage.unchanged(writer.lease.conversation, before)
    await writer.release()


async def c8_release_over_a_rewound_journal(stage: Stage) -> None:
    """The owner passivates with seen = 5, the store has lost the end of the turn: `wanted` must not be cleared."""
    writer = await stage.owned()
    await writer.append(settle=OPEN)
    before = await stage.record(writer.lease.conversation)
    farewell = writer.farewell(settle=AT_REST, seen=before.head + 1)
    assert isinstance(await stage.store.release(farewell), Fenced)
    assert await stage.unchanged(writer.lease.conversation, before)
    assert before.wanted


async def rule_05_a_repeated_release_gets_the_same_answer(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell(note(), settle=RUNNABLE, reason=Reason.FAILED, retry_in_s=5.0)
    first = expect(ReleasedNow, await stage.store.release(farewell))
    before = await stage.record(writer.lease.conversation)
    again = await (await stage.another()).release(farewell)
    assert again == replace(first, repeated=True)
    assert await stage.unchanged(writer.lease.conversation, before), "and journals nothing, and counts no failure"
    assert before.failures == 1


async def only_this_very_release_is_repeated(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell(note(), settle=RUNNABLE)
    expect(ReleasedNow, await stage.store.release(farewell))
    before = await stage.record(writer.lease.conversation)
    for other in (
        replace(farewell, reason=Reason.DRAINED),
        replace(farewell, retry_in_s=1.0),
        replace(farewell, batch=replace(farewell.batch, number=farewell.batch.number + 1)),
        replace(farewell, batch=replace(farewell.batch, drafts=())),
        replace(farewell, batch=replace(farewell.batch, settle=AT_REST)),
        replace(farewell, batch=replace(farewell.batch, lease=replace(writer.lease, token=new_token()))),
    ):
        assert isinstance(await stage.store.release(other), Fenced)
    assert await stage.unchanged(writer.lease.conversation, before)


async def c8_late_copy_of_a_release_after_the_next_claim(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    for _ in range(2):
        writer = await stage.claim(conversation, incarnation)
        farewell = writer.farewell()
        expect(ReleasedNow, await stage.store.release(farewell))
        again = await stage.claim(conversation, incarnation)
        before = await stage.record(conversation)
        assert isinstance(await stage.store.release(farewell), Fenced), "it would take the claim from its new owner"
        assert await stage.unchanged(conversation, before)
        await again.release()
        assert isinstance(await stage.store.release(farewell), Fenced), "nor is it the last release any more"


async def rule_05_release_is_the_last_append(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell(note())
    expect(ReleasedNow, await stage.store.release(farewell))
    writer.number += 1
    for late in (farewell.batch, writer.batch(note())):
        assert isinstance(await stage.store.append(late), Fenced)
    assert isinstance(await stage.store.release(writer.farewell()), Fenced)
    assert isinstance(await stage.store.publish(writer.lease, {}), Fenced)


async def c7_a_release_in_the_middle_of_a_turn_leaves_it_wanted(stage: Stage) -> None:
    """Work is left although no command came after what the owner has seen."""
    writer = await stage.owned()
    command = await stage.submit(writer.lease.conversation)
    settle = Settle(runnable=True, turn=TurnState.OPEN)
    farewell = writer.farewell(settle=settle, reason=Reason.DRAINED, seen=command.seq)
    assert expect(ReleasedNow, await stage.store.release(farewell)).wanted
    found = await stage.sweep(None)
    assert (found[writer.lease.conversation].epoch, found[writer.lease.conversation].owner) == (1, None)


async def c7_a_message_that_arrives_before_the_release_is_not_lost(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell(settle=AT_REST)
    await stage.submit(writer.lease.conversation)
    assert expect(ReleasedNow, await stage.store.release(farewell)).wanted
    assert writer.lease.conversation in await stage.sweep(None)


async def rule_06_a_release_with_nothing_to_do_is_not_wanted(stage: Stage) -> None:
    writer = await stage.owned()
    command = await stage.submit(writer.lease.conversation)
    farewell = writer.farewell(settle=replace(AT_REST, settled=(command.seq,)), seen=command.seq)
    assert not expect(ReleasedNow, await stage.store.release(farewell)).wanted
    assert await stage.sweep(None) == {}


# failed starts


async def _fail(stage: Stage, writer: Writer, retry_in_s: float | None = None, settle: Settle = RUNNABLE) -> None:
    farewell = writer.farewell(settle=settle, reason=Reason.FAILED, retry_in_s=retry_in_s)
    expect(ReleasedNow, await stage.store.release(farewell))


async def rule_15_failures_count_failed_starts_only(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    for failures in range(3):
        assert (await stage.record(conversation)).failures == failures
        await _fail(stage, await stage.claim(conversation, incarnation))
    for reason in (Reason.DRAINED, Reason.IDLE, Reason.STOPPED, Reason.FORCED):
        await (await stage.claim(conversation, incarnation)).release(reason=reason)
    assert (await stage.record(conversation)).failures == 3


async def rule_15_the_back_off_is_judged_by_the_store(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await _fail(stage, writer, retry_in_s=10.0)
    assert (await stage.record(conversation)).retry_in_s == 10.0
    assert await stage.sweep(None) == {}
    stage.clock.step(wall_s=1000.0)
    assert await stage.sweep(None) == {}, "wall time decides nothing"
    stage.clock.advance(8.0)
    assert (await stage.record(conversation)).retry_in_s == 2.0
    assert await stage.sweep(None) == {}
    stage.clock.advance(2.0)
    assert conversation in await stage.sweep(None)
    assert (await stage.record(conversation)).retry_in_s is None


async def a_release_without_back_off_ends_the_last_one(stage: Stage) -> None:
    writer = await stage.owned()
    await _fail(stage, writer, retry_in_s=1000.0)
    again = await stage.claim(writer.lease.conversation, writer.lease.incarnation)
    await again.release(settle=RUNNABLE, reason=Reason.DRAINED)
    assert writer.lease.conversation in await stage.sweep(None)


async def a_start_that_came_unseen_is_not_backed_off(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell(settle=RUNNABLE, reason=Reason.FAILED, retry_in_s=1000.0)
    await stage.submit(writer.lease.conversation, "start")
    expect(ReleasedNow, await stage.store.release(farewell))
    assert writer.lease.conversation in await stage.sweep(None)


async def failed_for_good_unless_a_command_came_unseen(stage: Stage) -> None:
    for unseen in (False, True):
        writer = await stage.owned()
        farewell = writer.farewell(settle=Settle(runnable=False, failed=True), reason=Reason.FAILED)
        if unseen:
            await stage.submit(writer.lease.conversation)
        done = expect(ReleasedNow, await stage.store.release(farewell))
        record = await stage.record(writer.lease.conversation)
        assert (record.failed, record.wanted, done.wanted) == (not unseen, unseen, unseen)


async def rule_15_failed_for_good_starts_lost_anew(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    writer = await stage.claim(writer.lease.conversation, await stage.node())
    assert (await stage.record(writer.lease.conversation)).lost == 1
    await _fail(stage, writer, settle=Settle(runnable=False, failed=True))
    record = await stage.record(writer.lease.conversation)
    assert (record.lost, record.failures, record.failed) == (0, 1, True)


async def a_release_may_stop_and_settle(stage: Stage) -> None:
    writer = await stage.owned()
    stop = await stage.submit(writer.lease.conversation, "stop")
    settle = Settle(runnable=False, settled=(stop.seq,), stopped=True)
    farewell = writer.farewell(note(), settle=settle, reason=Reason.STOPPED, seen=stop.seq)
    expect(ReleasedNow, await stage.store.release(farewell))
    record = await stage.record(writer.lease.conversation)
    assert (record.stopped, record.unsettled, record.wanted) == (True, 0, False)


# sizes, snapshots, lists


async def a_release_that_is_too_large_lets_go_of_nothing(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    answer = expect(TooLarge, await stage.store.release(writer.farewell(note(), note("x" * 1000))))
    assert (answer.index, answer.limit) == (1, 1000)
    assert await stage.unchanged(writer.lease.conversation, before)
    await writer.release()


async def a_release_may_carry_a_snapshot(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell()
    snapshot = Snapshot(writer.seen, {"f": 1}, {"l": 2})
    expect(
        ReleasedNow,
        await stage.store.release(replace(farewell, batch=replace(farewell.batch, snapshot=snapshot))),
    )
    reading = expect(Reading, await stage.store.read(writer.lease.conversation, snapshot=True))
    assert (reading.snapshot, [e.kind for e in reading.events]) == (snapshot, ["released"])


async def rule_17_releases_travel_together(stage: Stage) -> None:
    writers = [await stage.owned() for _ in range(3)]
    farewells = [writer.farewell(note()) for writer in writers]
    farewells[1] = replace(farewells[1], batch=replace(farewells[1].batch, number=7))
    answers = await stage.store.release_all(farewells)
    assert [type(answer) for answer in answers] == [ReleasedNow, Fenced, ReleasedNow]
    owners = [(await stage.record(writer.lease.conversation)).owner for writer in writers]
    assert [owner is None for owner in owners] == [True, False, True]
    assert isinstance(await stage.store.append(writers[1].batch(note())), Appended)
    assert await stage.store.release_all([]) == []
