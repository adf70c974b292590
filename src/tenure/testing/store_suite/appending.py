"""Cases: append. The fence, the numbers, what a settle tells the record, and snapshots."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import (
    Append,
    Appended,
    Death,
    Fenced,
    Limits,
    Reading,
    Reason,
    Release,
    Repeated,
    Snapshot,
    TooLarge,
)
from tenure.conversation import Settle, TurnState
from tenure.journal import Draft, canonical
from tenure.lease import Epoch, Lease, Token, new_incarnation, new_token
from tenure.testing.store_suite.stage import IDLE, OPEN, TTL_S, expect, note, only, refused
from tenure.testing.store_suite.submitting import AWKWARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tenure.testing.store_suite.stage import Stage


def forged(lease: Lease) -> Iterator[tuple[str, Lease]]:
    """Leases that are almost this one."""
    yield "an older epoch", replace(lease, epoch=Epoch(lease.epoch - 1))
    yield "a newer epoch: equal, never at least", replace(lease, epoch=Epoch(lease.epoch + 1))
    yield "another token", replace(lease, token=new_token())
    yield "an empty token", replace(lease, token=Token(""))
    yield "another incarnation", replace(lease, incarnation=new_incarnation())


# what is applied


async def a_batch_stands_at_the_head_in_a_row(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    command = await stage.submit(conversation)
    stage.clock.advance(1)
    drafts = (
        Draft("opening", {"a": 1}, "t1", opens=("call 1", "call 2")),
        Draft("closing", {"b": [2]}, "t1", closes=("call 1",)),
        note(),
    )
    started = Draft("turn_started", {"commands": [command.seq], "attempt": 1}, "t1")
    done = await writer.append(started, *drafts, seen=command.seq)
    assert (done.first, done.count) == (command.seq + 1, 4)
    assert (done.head, done.last_command, done.at) == (command.seq + 4, command.seq, stage.clock.now())
    events = (await stage.journal(conversation))[-4:]
    assert [e.seq for e in events] == [*range(done.first, done.head + 1)]
    assert all((e.epoch, e.at, e.key, e.delivery) == (1, stage.clock.now(), None, None) for e in events)
    assert [Draft(e.kind, e.body, e.turn, e.opens, e.closes) for e in events] == [started, *drafts]
    record = await stage.record(conversation)
    assert (record.head, record.updated_at) == (done.head, stage.clock.now())


async def a_batch_without_settle_tells_the_record_nothing(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation)
    await writer.append(settle=replace(OPEN, agent_status="busy"))
    before = await stage.record(writer.lease.conversation)
    done = await writer.append(note())
    after = await stage.record(writer.lease.conversation)
    assert replace(after, head=before.head) == before
    assert after.head == done.head == before.head + 1


async def a_batch_may_carry_no_event(stage: Stage) -> None:
    writer = await stage.owned()
    head = (await stage.record(writer.lease.conversation)).head
    done = await writer.append(settle=OPEN)
    assert (done.count, done.head) == (0, head)
    assert (await stage.record(writer.lease.conversation)).turn is TurnState.OPEN
    assert isinstance(await stage.store.append(writer.batch(note())), Appended), "it counts as a batch"


async def an_append_says_which_commands_came_meanwhile(stage: Stage) -> None:
    writer = await stage.owned()
    unseen = await stage.submit(writer.lease.conversation)
    done = await writer.append(note())
    assert (done.first, done.last_command) == (unseen.seq + 1, unseen.seq)


async def events_keep_any_text_and_any_number(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(Draft("note \u0000 𝄞", AWKWARD, None))
    event = (await stage.journal(writer.lease.conversation, await stage.another()))[-1]
    assert (event.kind, canonical(event.body)) == ("note \u0000 𝄞", canonical(AWKWARD))


# the fence


async def rule_01_an_append_needs_the_lease_that_is_held(stage: Stage) -> None:
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    for what, lease in forged(writer.lease):
        fenced = expect(Fenced, await stage.store.append(replace(writer.batch(note(), settle=OPEN), lease=lease)))
        assert fenced.record == before, what
        assert await stage.unchanged(writer.lease.conversation, before), what
    await writer.append(note())


async def rule_01_nothing_is_accepted_after_release(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(note())
    late = writer.batch(note("late"), settle=OPEN)
    await writer.release()
    before = await stage.record(writer.lease.conversation)
    for number in (1, 2, 3, 4):
        assert isinstance(await stage.store.append(replace(late, number=number)), Fenced)
    for _, lease in forged(writer.lease):
        assert isinstance(await stage.store.append(replace(late, lease=lease, number=1)), Fenced)
    assert isinstance(await stage.store.publish(writer.lease, {"text": "late"}), Fenced)
    assert await stage.unchanged(writer.lease.conversation, before)


async def c1_late_append_after_release(stage: Stage) -> None:
    """An append without an answer, the task is cancelled, the owner releases; then the late append executes."""
    writer = await stage.owned()
    late = writer.batch(note("late"))
    await writer.release()
    assert isinstance(await stage.store.append(late), Fenced), "the epoch is still the current one: that is no fence"
    assert (await stage.kinds(writer.lease.conversation))[-1] == "released"


async def c1_the_token_fences_where_the_epoch_repeats(stage: Stage) -> None:
    """A store that lost a claim grants its epoch again: only the token tells the two leases apart."""
    writer = await stage.owned()
    lost = replace(writer.lease, token=new_token())
    assert isinstance(await stage.store.append(Append(lost, 1, writer.seen, (note(),))), Fenced)
    assert isinstance(await stage.store.append(Append(lost, 2, writer.seen, (note(),))), Fenced)
    await writer.append(note())


async def g2_a_zombie_is_refused_everything(stage: Stage) -> None:
    zombie = await stage.owned()
    conversation = zombie.lease.conversation
    await zombie.append(note())
    await stage.store.bury(zombie.lease.incarnation, Death.EXITED)
    successor = await stage.claim(conversation, await stage.node())
    before = await stage.record(conversation)
    for number in (0, 1, 2, 3):
        late = replace(zombie.batch(note(), settle=OPEN), number=number)
        assert isinstance(await stage.store.append(late), Fenced)
        assert isinstance(await stage.store.release(replace(zombie.farewell(), batch=late)), Fenced)
    assert isinstance(await stage.store.publish(zombie.lease, {}), Fenced)
    assert await stage.unchanged(conversation, before)
    await successor.append(note())


async def an_append_never_creates_a_conversation(stage: Stage) -> None:
    """The store was wiped under its owner."""
    writer = await stage.owned()
    lease = replace(writer.lease, conversation="gone")
    assert await stage.store.append(Append(lease, 1, 0, (note(),), OPEN)) == Fenced(None)
    assert await stage.store.records(["gone"]) == [None]


async def expiry_is_not_checked_while_nobody_has_claimed(stage: Stage) -> None:
    writer = await stage.owned()
    stage.clock.advance(2 * TTL_S)
    await writer.append(note("expired"))
    await stage.store.bury(writer.lease.incarnation, Death.EXPIRED)
    await writer.append(note("buried, and still nobody else's"))


# numbers


async def rule_05_the_next_batch_is_the_last_one_plus_one(stage: Stage) -> None:
    writer = await stage.owned()
    for count in range(3):
        before = await stage.record(writer.lease.conversation)
        for wrong in (-1, 0, count + 2, count + 3):
            assert isinstance(await stage.store.append(replace(writer.batch(note()), number=wrong)), Fenced)
        assert await stage.unchanged(writer.lease.conversation, before)
        await writer.append(note())


async def rule_05_a_repeated_batch_gets_the_first_answer(stage: Stage) -> None:
    writer = await stage.owned()
    batch = writer.batch(note("one"), note("two"), settle=OPEN)
    first = expect(Appended, await stage.store.append(batch))
    assert await stage.store.append(batch) == Repeated(first)
    await stage.submit(writer.lease.conversation)
    stage.clock.advance(1)
    assert await (await stage.another()).append(batch) == Repeated(first), "whatever has come since"
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 2


async def rule_05_the_next_number_with_the_same_content_is_another_batch(stage: Stage) -> None:
    writer = await stage.owned()
    for _ in range(2):
        assert isinstance(await stage.store.append(writer.batch(note("the same"), seen=0)), Appended)
        writer.number += 1
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 2


async def rule_05_a_repeat_has_no_effect_of_its_own(stage: Stage) -> None:
    writer = await stage.owned()
    one = await stage.submit(writer.lease.conversation)
    batch = writer.batch(settle=replace(IDLE, settled=(one.seq,)), seen=one.seq)
    expect(Appended, await stage.store.append(batch))
    await stage.submit(writer.lease.conversation)
    before = await stage.record(writer.lease.conversation)
    assert isinstance(await stage.store.append(batch), Repeated)
    assert await stage.unchanged(writer.lease.conversation, before)
    assert (before.wanted, before.unsettled) == (True, 1)


async def c4_the_same_number_with_another_content(stage: Stage) -> None:
    """The outcome of batch 1 is unknown, and the owner decides anew: it must not be told that this was written."""
    writer = await stage.owned()
    command = await stage.submit(writer.lease.conversation)
    batch = writer.batch(note("one"), settle=OPEN, seen=command.seq)
    expect(Appended, await stage.store.append(batch))
    before = await stage.record(writer.lease.conversation)
    for other in (
        replace(batch, drafts=(note("two"),)),
        replace(batch, drafts=()),
        replace(batch, drafts=(*batch.drafts, note("two"))),
        replace(batch, drafts=(replace(note("one"), turn="t1"),)),
        replace(batch, settle=None),
        replace(batch, settle=IDLE),
        replace(batch, seen=command.seq - 1),
        replace(batch, snapshot=Snapshot(1, {"a": 1})),
    ):
        assert isinstance(await stage.store.append(other), Fenced)
    assert await stage.unchanged(writer.lease.conversation, before)


async def c4_gap_in_batch_numbers(stage: Stage) -> None:
    """A fail-over lost batch 1: batch 2 must not land in a journal without it."""
    writer = await stage.owned()
    assert isinstance(await stage.store.append(replace(writer.batch(note()), number=2)), Fenced)
    await writer.append(note())
    assert isinstance(await stage.store.append(replace(writer.batch(note()), number=3)), Fenced)
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 1


async def c4_late_copy_of_an_old_batch(stage: Stage) -> None:
    writer = await stage.owned()
    old = writer.batch(note("one"))
    await writer.append(note("one"))
    await writer.append(note("two"))
    assert isinstance(await stage.store.append(old), Fenced), "only the last one is recognised"
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 2


async def c4_two_copies_of_one_lease(stage: Stage) -> None:
    """A cloned machine, a forked process: batch n of the copy collides with batch n of the original."""
    writer, stores = await stage.owned(), await stage.several(6)
    batches = [writer.batch(note(f"copy {i}")) for i in range(len(stores))]
    answers = await asyncio.gather(*(s.append(b) for s, b in zip(stores, batches, strict=True)))
    assert sorted(type(answer).__name__ for answer in answers) == ["Appended", *5 * ["Fenced"]]
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 1


async def one_batch_sent_many_times_is_one_batch(stage: Stage) -> None:
    writer, stores = await stage.owned(), await stage.several(6)
    batch = writer.batch(note())
    answers = await asyncio.gather(*(s.append(batch) for s in stores))
    assert sorted(type(answer).__name__ for answer in answers) == ["Appended", *5 * ["Repeated"]]
    first = only(answer for answer in answers if isinstance(answer, Appended))
    assert all(answer.result == first for answer in answers if isinstance(answer, Repeated))
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 1


async def rule_05_a_rewound_store_is_noticed(stage: Stage) -> None:
    """`seen` beyond the head: what this owner has read is not in the journal any more."""
    writer = await stage.owned()
    head = (await stage.record(writer.lease.conversation)).head
    assert isinstance(await stage.store.append(writer.batch(note(), seen=head + 1)), Fenced)
    await writer.append(note(), seen=head)
    await writer.append(note(), seen=0)
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 2


# what a settle tells the record


async def rule_06_wanted_is_runnable_or_an_unseen_command(stage: Stage) -> None:
    for runnable in (False, True):
        for unseen in (False, True):
            writer = await stage.owned()
            command = await stage.submit(writer.lease.conversation)
            seen = command.seq - 1 if unseen else command.seq
            await writer.append(note(), settle=Settle(runnable=runnable), seen=seen)
            assert (await stage.record(writer.lease.conversation)).wanted == (runnable or unseen)


async def c7_a_message_that_arrives_while_the_turn_ends(stage: Stage) -> None:
    """The append that ends the turn must not clear `wanted` for a message that its owner has not read."""
    writer = await stage.owned()
    first = await stage.submit(writer.lease.conversation)
    ending = writer.batch(note(), settle=replace(IDLE, settled=(first.seq,), turn_ended=True), seen=first.seq)
    await stage.submit(writer.lease.conversation, text="just before it")
    expect(Appended, await stage.store.append(ending))
    record = await stage.record(writer.lease.conversation)
    assert (record.wanted, record.unsettled) == (True, 1)
    assert writer.lease.conversation in await stage.sweep(writer.lease.incarnation)


async def c9_what_a_turn_settles_is_a_list(stage: Stage) -> None:
    """A stop that is settled out of order settles no message before it."""
    writer = await stage.owned()
    commands = [await stage.submit(writer.lease.conversation, kind) for kind in ("message", "message", "stop")]
    await writer.append(settle=Settle(runnable=True, settled=(commands[-1].seq,)), seen=commands[-1].seq)
    record = await stage.record(writer.lease.conversation)
    assert (record.unsettled, record.wanted) == (2, True)


async def c10_a_turn_that_waits_is_not_wanted(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=Settle(runnable=False, turn=TurnState.WAITING, started=True))
    record = await stage.record(writer.lease.conversation)
    assert (record.wanted, record.turn) == (False, TurnState.WAITING)
    assert (await stage.submit(writer.lease.conversation, "answer")).record.wanted, "any later command wakes it"


async def settle_sets_turn_and_started_and_keeps_agent_status(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=replace(OPEN, agent_status="thinking"))
    record = await stage.record(writer.lease.conversation)
    assert (record.turn, record.started, record.agent_status) == (TurnState.OPEN, True, "thinking")
    await writer.append(settle=Settle(runnable=False))
    record = await stage.record(writer.lease.conversation)
    assert (record.turn, record.started, record.agent_status) == (TurnState.NONE, False, "thinking")
    await writer.append(settle=Settle(runnable=False, agent_status=""))
    assert (await stage.record(writer.lease.conversation)).agent_status == ""


async def stopped_takes_effect_unless_a_start_came_unseen(stage: Stage) -> None:
    stop = Settle(runnable=False, stopped=True)
    writer = await stage.owned()
    start = await stage.submit(writer.lease.conversation, "start")
    await writer.append(settle=stop, seen=start.seq - 1)
    assert not (await stage.record(writer.lease.conversation)).stopped, "the start came after what the owner had read"
    await writer.append(settle=stop, seen=start.seq)
    assert (await stage.record(writer.lease.conversation)).stopped
    await writer.append(settle=IDLE)
    assert (await stage.record(writer.lease.conversation)).stopped, "only a start ends it"


async def rule_15_the_end_of_a_turn_sets_lost_and_failures_to_0(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await stage.store.release(writer.farewell(settle=Settle(runnable=True), reason=Reason.FAILED))
    cut = await stage.claim(conversation, await stage.node())
    await cut.append(settle=OPEN)
    writer = await stage.claim(conversation, await stage.node(), forced=True)
    record = await stage.record(conversation)
    assert (record.lost, record.failures) == (1, 1)
    await writer.append(note(), settle=replace(IDLE, turn_ended=True))
    record = await stage.record(conversation)
    assert (record.lost, record.failures) == (0, 0)


# sizes, snapshots, lists


async def an_event_that_is_too_large_writes_nothing(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    fits, over = note("x" * (1000 - len('{"text":""}'))), note("é" * 500)
    size = len(canonical(over.body).encode())
    batch = writer.batch(note(), fits, over, settle=OPEN)
    assert await stage.store.append(batch) == TooLarge(2, size, 1000)
    assert await stage.unchanged(writer.lease.conversation, before)
    assert isinstance(await stage.store.append(replace(batch, drafts=(fits, fits))), Appended), "its number is free"


async def more_events_or_a_larger_snapshot_than_the_limits_are_refused_by_name(stage: Stage) -> None:
    stage.store = await stage.another(Limits(batch_events=3, snapshot_bytes=100))
    writer, other = await stage.owned(), await stage.owned()
    before = await stage.record(writer.lease.conversation)
    small, large = Snapshot(2, {"a": "x" * 42}, {"b": "y" * 42}), Snapshot(2, {"a": "x" * 42}, {"b": "é" * 22})
    batch = writer.batch(note(), note(), note(), settle=OPEN)
    for wrong, *told in (
        (replace(batch, drafts=(*batch.drafts, note())), "events", "4", "limit of 3"),
        (replace(batch, snapshot=large), "state", "102 bytes", "limit of 100"),
    ):
        with refused(*told):
            await stage.store.append_all([other.batch(note()), wrong])
        with refused(*told):
            await stage.store.release(Release(wrong, Reason.IDLE))
    assert await stage.unchanged(writer.lease.conversation, before)
    assert isinstance(await stage.store.append(other.batch(note())), Appended), "nothing of the list was written"
    assert isinstance(await stage.store.append(replace(batch, snapshot=small)), Appended), (
        "at the limit; its number is free"
    )


async def a_snapshot_replaces_the_last_one_part_by_part(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation

    async def snap(snapshot: Snapshot) -> Snapshot | None:
        expect(Appended, await stage.store.append(replace(writer.batch(note()), snapshot=snapshot)))
        writer.number += 1
        return expect(Reading, await stage.store.read(conversation, snapshot=True)).snapshot

    assert expect(Reading, await stage.store.read(conversation, snapshot=True)).snapshot is None
    assert await snap(Snapshot(3, {"f": 1}, {"l": 1})) == Snapshot(3, {"f": 1}, {"l": 1})
    assert await snap(Snapshot(4, {"f": 2}, None)) == Snapshot(4, {"f": 2}, {"l": 1})
    assert await snap(Snapshot(5, None, {"l": 2})) == Snapshot(4, {"f": 2}, {"l": 2}), "the fold is that of seq 4"
    assert await snap(Snapshot(6, None, {})) == Snapshot(4, {"f": 2}, {}), "empty is not null"
    assert await snap(Snapshot(7, {"text": "𝄞\u0000"}, None)) == Snapshot(7, {"text": "𝄞\u0000"}, {})


async def a_reading_starts_behind_the_snapshot(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(note("one"), note("two"))
    batch = replace(writer.batch(note("three")), snapshot=Snapshot(writer.seen + 1, {"f": 1}, {"l": 1}))
    done = expect(Appended, await stage.store.append(batch))
    await stage.submit(conversation, text="after it")
    reading = expect(Reading, await stage.store.read(conversation, snapshot=True))
    assert (reading.snapshot, [e.text for e in reading.events]) == (batch.snapshot, ["after it"])
    assert reading.record.head == done.head + 1
    plain = expect(Reading, await stage.store.read(conversation))
    assert (plain.snapshot, len(plain.events)) == (None, done.head + 1)
    last = expect(Reading, await stage.store.read(conversation, done.head + 1, snapshot=True))
    assert last.events == (), "what the caller has is further than the snapshot"


async def a_refused_batch_leaves_the_snapshot(stage: Stage) -> None:
    writer = await stage.owned()
    good = replace(writer.batch(note()), snapshot=Snapshot(3, {"f": 1}))
    expect(Appended, await stage.store.append(good))
    for number, lease in ((3, writer.lease), (2, replace(writer.lease, token=new_token()))):
        bad = Append(lease, number, 0, (), None, Snapshot(1, {"f": "bad"}))
        assert isinstance(await stage.store.append(bad), Fenced)
    reading = expect(Reading, await stage.store.read(writer.lease.conversation, snapshot=True))
    assert reading.snapshot == good.snapshot


async def rule_17_one_fenced_batch_fails_no_other(stage: Stage) -> None:
    writers = [await stage.owned() for _ in range(4)]
    batches = [writer.batch(note(f"batch {i}"), settle=OPEN) for i, writer in enumerate(writers)]
    batches[1] = replace(batches[1], lease=replace(batches[1].lease, token=new_token()))
    batches[2] = replace(batches[2], lease=replace(batches[2].lease, conversation="gone"))
    answers = await stage.store.append_all(batches)
    assert [type(answer) for answer in answers] == [Appended, Fenced, Fenced, Appended]
    for writer, batch, answer in zip(writers, batches, answers, strict=True):
        notes = [e.text for e in await stage.journal(writer.lease.conversation) if e.kind == "note"]
        assert notes == ([batch.drafts[0].body["text"]] if isinstance(answer, Appended) else [])
    assert await stage.store.append_all([]) == []


async def rule_17_one_large_batch_fails_no_other(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    writers = [await stage.owned() for _ in range(3)]
    batches = [writer.batch(note("x" * (2000 if i == 1 else 1))) for i, writer in enumerate(writers)]
    answers = await stage.store.append_all(batches)
    assert [type(answer) for answer in answers] == [Appended, TooLarge, Appended]


async def batches_of_many_conversations_travel_at_once(stage: Stage) -> None:
    """Groups in opposite orders: no deadlock, and every answer belongs to its request."""
    writers, stores = [await stage.owned() for _ in range(8)], await stage.several(2)
    for turn in range(4):
        forward = [w.batch(note(f"{turn}")) for w in writers[::2]]
        backward = [w.batch(note(f"{turn}")) for w in reversed(writers[1::2])]
        answers = await asyncio.gather(stores[0].append_all(forward), stores[1].append_all(backward))
        assert all(isinstance(answer, Appended) for group in answers for answer in group)
        for writer in writers:
            writer.number += 1
