"""Cases: claim. A compare-and-swap on the epoch; at most one lease is held, and epochs only rise."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import (
    Appended,
    Creation,
    Dead,
    Death,
    Deleted,
    Elsewhere,
    Fenced,
    Held,
    Limits,
    Refused,
    Stale,
    Unknown,
)
from tenure.conversation import TurnState
from tenure.journal import Claimed, Created, Draft, read_body
from tenure.lease import Epoch, new_token
from tenure.testing.store_suite.stage import AGENT, CREATION, IDLE, OPEN, TTL_S, Writer, expect, note, only

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage


# the first claim


async def a_claim_makes_the_lease_and_says_so_in_the_journal(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    await stage.submit(conversation)
    before = await stage.record(conversation)
    stage.clock.advance(1)
    request = stage.claiming(conversation, incarnation)
    held = expect(Held, await stage.store.claim(request))
    lease, record = held.lease, held.record
    assert (lease.conversation, lease.incarnation, lease.epoch) == (conversation, incarnation, 1)
    assert (lease.token, held.created) == (request.token, False)
    assert record.owner is not None
    assert (record.owner.incarnation, record.owner.node) == (incarnation, request.node)
    assert (record.owner.address, record.owner.epoch, record.owner.since) == (request.address, 1, stage.clock.now())
    assert (record.epoch, record.token, record.started) == (1, request.token, False)
    assert record.head == before.head + 1, "head counts `claimed`"
    event = (await stage.journal(conversation))[-1]
    assert read_body(event) == Claimed(incarnation, request.node, request.address, "test")
    assert (event.seq, event.epoch, event.is_command, event.at) == (record.head, 1, False, stage.clock.now())


async def claimed_is_no_command_and_leaves_wanted_alone(stage: Stage) -> None:
    for commands in (0, 1):
        conversation = await stage.conversation()
        for _ in range(commands):
            await stage.submit(conversation)
        before = await stage.record(conversation)
        after = (await stage.claim(conversation, await stage.node())).lease
        record = await stage.record(conversation)
        assert after.epoch == record.epoch == 1
        assert (record.wanted, record.last_command) == (bool(commands), before.last_command)
        assert (record.unsettled, record.version) == (before.unsettled, before.version)


async def rule_04_a_claim_with_create_creates_in_the_same_step(stage: Stage) -> None:
    incarnation = await stage.node()
    creation = Creation(AGENT, user_id="user", settings={"a": 1}, title="t")
    held = expect(Held, await stage.store.claim(stage.claiming("c", incarnation, create=creation)))
    assert (held.created, held.lease.epoch, held.record.settings, held.record.head) == (True, 1, {"a": 1}, 2)
    created, claimed = await stage.journal("c")
    assert read_body(created) == Created(AGENT, "user", {"a": 1})
    assert (created.epoch, claimed.epoch, claimed.kind) == (None, 1, "claimed")
    assert not held.record.wanted


async def a_claim_without_create_creates_nothing(stage: Stage) -> None:
    assert await stage.store.claim(stage.claiming("c", await stage.node())) == Unknown()
    assert await stage.store.records(["c"]) == [None]


async def a_claim_whose_creation_does_not_fit_is_refused(stage: Stage) -> None:
    conversation = await stage.conversation(Creation(AGENT, user_id="user"))
    before, incarnation = await stage.record(conversation), await stage.node()
    for other in (Creation(AGENT, user_id="another"), Creation("another agent", user_id="user")):
        refused = expect(Refused, await stage.store.claim(stage.claiming(conversation, incarnation, create=other)))
        assert refused.reason == "conversation-exists"
    assert await stage.unchanged(conversation, before)
    fits = stage.claiming(conversation, incarnation, create=Creation(user_id="user"))
    assert not expect(Held, await stage.store.claim(fits)).created


async def a_claim_whose_settings_are_too_large_creates_nothing(stage: Stage) -> None:
    stage.store = await stage.another(Limits(event_bytes=1000))
    large = Creation(AGENT, settings={"text": "x" * 1000})
    request = stage.claiming("c", await stage.node(), create=large)
    assert expect(Refused, await stage.store.claim(request)).reason == "settings-too-large"
    assert await stage.store.records(["c"]) == [None]


# compare and swap


async def g1_a_live_owner_keeps_what_it_holds(stage: Stage) -> None:
    writer, other = await stage.owned(), await stage.node()
    before = await stage.record(writer.lease.conversation)
    for expected in (0, 1, 2):
        elsewhere = await stage.store.claim(stage.claiming(writer.lease.conversation, other, expected))
        owner = expect(Elsewhere, elsewhere).record.owner
        assert owner is not None
        assert (owner.incarnation, owner.epoch) == (writer.lease.incarnation, 1)
    assert await stage.unchanged(writer.lease.conversation, before)
    await writer.append(note())


async def rule_10_an_expired_owner_that_nobody_buried_counts_as_alive(stage: Stage) -> None:
    writer = await stage.owned()
    stage.clock.advance(2 * TTL_S)
    request = stage.claiming(writer.lease.conversation, await stage.node(), 1)
    assert isinstance(await stage.store.claim(request), Elsewhere)
    await stage.store.bury(writer.lease.incarnation, Death.EXPIRED)
    assert expect(Held, await stage.store.claim(request)).lease.epoch == 2


async def rule_02_a_claim_needs_the_epoch_that_the_caller_saw(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.release()
    conversation, other = writer.lease.conversation, await stage.node()
    before = await stage.record(conversation)
    for expected in (0, 2, 7):
        stale = expect(Stale, await stage.store.claim(stage.claiming(conversation, other, expected)))
        assert stale.record == before, "the record says what the next try needs"
    assert await stage.unchanged(conversation, before)
    assert expect(Held, await stage.store.claim(stage.claiming(conversation, other, 1))).lease.epoch == 2


async def rule_02_a_repeated_claim_gets_the_same_lease(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    request = stage.claiming(conversation, incarnation)
    first = expect(Held, await stage.store.claim(request))
    again = expect(Held, await (await stage.another()).claim(request))
    assert (again.lease, again.record) == (first.lease, first.record)
    writer = Writer(stage.store, first)
    done = await writer.append(note())
    late = expect(Held, await stage.store.claim(request))
    assert (late.lease, late.record.head) == (first.lease, done.head), "also when the owner has already written"
    assert (await stage.kinds(conversation)).count("claimed") == 1, "a repeat journals nothing"
    assert isinstance(await stage.store.append(writer.batch(note())), Appended), "and begins no new batch numbers"


async def rule_02_a_repeated_claim_with_create_creates_once(stage: Stage) -> None:
    request = stage.claiming("c", await stage.node(), create=CREATION)
    first = expect(Held, await stage.store.claim(request))
    again = expect(Held, await stage.store.claim(request))
    assert (again.lease, again.record) == (first.lease, first.record)
    assert await stage.kinds("c") == ["created", "claimed"]


async def c2_mine_with_another_token_is_a_new_claim(stage: Stage) -> None:
    """The reply of a claim was lost and the attempt given up: the next one must not be stuck, nor adopt the old lease."""
    writer = await stage.owned()
    renewed = await stage.claim(writer.lease.conversation, writer.lease.incarnation)
    assert (renewed.lease.epoch, renewed.lease.token != writer.lease.token) == (2, True)
    assert isinstance(await stage.store.append(writer.batch(note())), Fenced)
    await renewed.append(note())


async def c2_batches_are_counted_anew_after_a_claim(stage: Stage) -> None:
    """The old lease's batch 1 is not recognised in the new lease's batch 1, even if both say the same."""
    writer = await stage.owned()
    await writer.append(note("the same"), seen=1)
    renewed = await stage.claim(writer.lease.conversation, writer.lease.incarnation)
    assert isinstance(await stage.store.append(renewed.batch(note("the same"), seen=1)), Appended)
    assert (await stage.kinds(writer.lease.conversation)).count("note") == 2


async def c3_late_copy_of_a_claim(stage: Stage) -> None:
    """n0 claims, a copy stays under way; it releases and claims again: the copy must not depose the running loop."""
    conversation, incarnation = await stage.conversation(), await stage.node()
    late = stage.claiming(conversation, incarnation)
    await Writer(stage.store, expect(Held, await stage.store.claim(late))).release()
    writer = await stage.claim(conversation, incarnation)
    before = await stage.record(conversation)
    assert isinstance(await stage.store.claim(late), Stale)
    assert await stage.unchanged(conversation, before)
    await writer.append(note())


async def c3_late_copy_of_a_claim_after_a_release(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    late = stage.claiming(conversation, incarnation)
    await Writer(stage.store, expect(Held, await stage.store.claim(late))).release()
    assert isinstance(await stage.store.claim(late), Stale), "nobody waits for this claim any more"
    assert (await stage.record(conversation)).owner is None


async def c3_late_copy_of_a_forced_takeover(stage: Stage) -> None:
    """It must not depose the very owner that it had made, after that one has passivated and started again."""
    writer, other = await stage.owned(), await stage.node()
    late = stage.claiming(writer.lease.conversation, other, 1, forced=True)
    await Writer(stage.store, expect(Held, await stage.store.claim(late))).release()
    again = await stage.claim(writer.lease.conversation, other)
    assert isinstance(await stage.store.claim(late), Stale)
    await again.append(note())


async def c1_a_token_identifies_only_with_its_incarnation(stage: Stage) -> None:
    writer, other = await stage.owned(), await stage.node()
    conversation = writer.lease.conversation
    request = stage.claiming(conversation, other, 1, token=writer.lease.token)
    assert isinstance(await stage.store.claim(request), Elsewhere), "who knows the token of another's lease has none"
    await writer.append(note())


# takeover


async def rule_10_a_buried_owner_is_replaced(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(settle=IDLE)
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    successor = await stage.claim(conversation, await stage.node())
    record = await stage.record(conversation)
    assert (successor.lease.epoch, record.started, record.wanted) == (2, False, False)
    claimed = read_body((await stage.journal(conversation))[-1])
    assert isinstance(claimed, Claimed)
    assert (claimed.previous, claimed.forced) == (writer.lease.incarnation, False)
    assert isinstance(await stage.store.append(writer.batch(note())), Fenced)


async def a_claim_says_how_the_owner_before_ended(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    request = stage.claiming(writer.lease.conversation, await stage.node(), expected_epoch=Epoch(1))
    expect(Held, await stage.store.claim(replace(request, death=Death.EXITED)))
    claimed = read_body((await stage.journal(writer.lease.conversation))[-1])
    assert isinstance(claimed, Claimed) and claimed.death == "exited"


async def a_takeover_by_force_deposes_a_live_owner(stage: Stage) -> None:
    writer, other = await stage.owned(), await stage.node()
    conversation = writer.lease.conversation
    stale = stage.claiming(conversation, other, 0, forced=True)
    assert isinstance(await stage.store.claim(stale), Stale), "with the epoch that it saw, and no other"
    successor = await stage.claim(conversation, other, forced=True)
    assert successor.lease.epoch == 2
    claimed = read_body((await stage.journal(conversation))[-1])
    assert isinstance(claimed, Claimed)
    assert (claimed.previous, claimed.forced) == (writer.lease.incarnation, True)
    assert isinstance(await stage.store.append(writer.batch(note())), Fenced)
    assert isinstance(await stage.store.claim(stage.claiming(conversation, writer.lease.incarnation, 2)), Elsewhere)


async def c7_a_claim_of_the_dead_leaves_nothing_behind(stage: Stage) -> None:
    """Refused where the store can tell; where it cannot, the sweep finds the conversation all the same."""
    conversation, incarnation = await stage.conversation(), await stage.node()
    await stage.submit(conversation)
    await stage.store.bury(incarnation, Death.EXITED)
    answer = await stage.store.claim(stage.claiming(conversation, incarnation))
    assert isinstance(answer, Dead | Held)
    me = await stage.node()
    found = (await stage.sweep(me))[conversation]
    again = stage.claiming(conversation, me, found.epoch)
    assert isinstance(await stage.store.claim(again), Held), "in one round trip, with the epoch that the sweep saw"


# epochs


async def rule_04_the_epoch_survives_release(stage: Stage) -> None:
    conversation, incarnation = await stage.conversation(), await stage.node()
    for epoch in range(1, 5):
        writer = await stage.claim(conversation, incarnation)
        assert writer.lease.epoch == epoch
        await writer.release()
        assert (await stage.record(conversation)).epoch == epoch


async def rule_04_the_epoch_survives_deletion(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    assert await stage.store.delete(conversation, Epoch(1), "user") == Deleted(Epoch(2))
    for create in (None, CREATION):
        request = stage.claiming(conversation, await stage.node(), 2, create=create, forced=True)
        assert await stage.store.claim(request) == Deleted(Epoch(2))
    record = await stage.record(conversation)
    assert (record.epoch, record.deleted, record.owner) == (2, True, None)


async def rule_04_the_floor_raises_the_epoch(stage: Stage) -> None:
    """A store restored from a backup must not grant an epoch of its former life again."""
    conversation, incarnation = await stage.conversation(), await stage.node()
    held = expect(Held, await stage.store.claim(stage.claiming(conversation, incarnation, floor=41)))
    assert (held.lease.epoch, held.record.epoch) == (42, 42)
    lower = await stage.store.claim(stage.claiming(conversation, incarnation, 42, floor=10))
    assert expect(Held, lower).lease.epoch == 43
    assert [e.epoch for e in await stage.journal(conversation) if e.kind == "claimed"] == [42, 43]


# counting lost owners


async def rule_15_lost_counts_owners_that_did_not_release_during_a_turn(stage: Stage) -> None:
    conversation = await stage.conversation()
    for lost in range(3):
        writer = await stage.claim(conversation, await stage.node())
        assert (await stage.record(conversation)).lost == lost
        await writer.append(settle=OPEN)
        await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    last = await stage.claim(conversation, await stage.node())
    assert (await stage.record(conversation)).lost == 3
    await last.append(settle=OPEN)
    assert (await stage.record(conversation)).lost == 3, "a batch that ends no turn leaves it"
    await last.append(settle=replace(IDLE, turn_ended=True))
    assert (await stage.record(conversation)).lost == 0


async def rule_15_lost_counts_owners_that_had_not_started_their_loop(stage: Stage) -> None:
    """A start that kills its node is a poison, too."""
    writer = await stage.owned()
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    await stage.claim(writer.lease.conversation, await stage.node())
    assert (await stage.record(writer.lease.conversation)).lost == 1


async def rule_15_releases_and_idle_owners_are_not_lost(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(settle=OPEN)
    await writer.release(settle=replace(OPEN, started=False))
    idle = await stage.claim(conversation, await stage.node())
    assert (await stage.record(conversation)).lost == 0, "a release in the middle of a turn is none"
    for turn in (TurnState.NONE, TurnState.WAITING):
        await idle.append(settle=replace(IDLE, turn=turn))
        await stage.store.bury(idle.lease.incarnation, Death.EXITED)
        idle = await stage.claim(conversation, await stage.node())
        assert (await stage.record(conversation)).lost == 0, "nothing was cut"


async def rule_15_a_turn_taken_by_force_counts_as_lost(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=OPEN)
    await stage.claim(writer.lease.conversation, await stage.node(), forced=True)
    assert (await stage.record(writer.lease.conversation)).lost == 1


# many at once


async def g1_of_many_that_claim_at_once_one_holds(stage: Stage) -> None:
    conversation, stores = await stage.conversation(), await stage.several(8)
    claims = [stage.claiming(conversation, await stage.node()) for _ in stores]
    answers = await asyncio.gather(*(s.claim(c) for s, c in zip(stores, claims, strict=True)))
    held = only(answer for answer in answers if isinstance(answer, Held))
    assert all(isinstance(answer, Held | Elsewhere) for answer in answers)
    record = await stage.record(conversation)
    assert (record.token, record.epoch) == (held.lease.token, 1)
    assert await stage.kinds(conversation) == ["created", "claimed"]


async def g1_of_many_that_create_and_claim_at_once_one_holds(stage: Stage) -> None:
    stores = await stage.several(8)
    claims = [stage.claiming("c", await stage.node(), create=CREATION) for _ in stores]
    answers = await asyncio.gather(*(s.claim(c) for s, c in zip(stores, claims, strict=True)))
    assert sorted(type(answer).__name__ for answer in answers) == [*7 * ["Elsewhere"], "Held"]
    assert await stage.kinds("c") == ["created", "claimed"]


async def g1_of_many_that_take_over_at_once_one_holds(stage: Stage) -> None:
    writer, stores = await stage.owned(), await stage.several(8)
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    for forced in (False, True):
        epoch = (await stage.record(writer.lease.conversation)).epoch
        claims = [stage.claiming(writer.lease.conversation, await stage.node(), epoch, forced=forced) for _ in stores]
        answers = await asyncio.gather(*(s.claim(c) for s, c in zip(stores, claims, strict=True)))
        assert len([answer for answer in answers if isinstance(answer, Held)]) == 1
    assert (await stage.record(writer.lease.conversation)).epoch == 3


async def one_claim_sent_many_times_is_one_claim(stage: Stage) -> None:
    conversation, stores = await stage.conversation(), await stage.several(6)
    request = stage.claiming(conversation, await stage.node(), token=new_token())
    answers = await asyncio.gather(*(s.claim(request) for s in stores))
    assert len({expect(Held, answer).lease for answer in answers}) == 1
    assert await stage.kinds(conversation) == ["created", "claimed"]


async def claims_travel_together(stage: Stage) -> None:
    """A takeover of all that a dead node held: a result per item, in order."""
    elsewhere, me = await stage.owned(), await stage.node()
    free = [await stage.conversation() for _ in range(2)]
    answers = await stage.store.claim_all(
        [
            stage.claiming(free[0], me),
            stage.claiming("nobody's", me),
            stage.claiming(elsewhere.lease.conversation, me, 1),
            stage.claiming(free[1], me, 5),
            stage.claiming("new", me, create=CREATION),
            stage.claiming(free[1], me),
        ]
    )
    assert [type(answer) for answer in answers] == [Held, Unknown, Elsewhere, Stale, Held, Held]
    assert [a.lease.conversation for a in answers if isinstance(a, Held)] == [free[0], "new", free[1]]
    assert await stage.store.claim_all([]) == []


async def a_claim_leaves_other_conversations_alone(stage: Stage) -> None:
    other = await stage.owned()
    before = await stage.record(other.lease.conversation)
    await stage.claim(await stage.conversation(), other.lease.incarnation)
    assert await stage.unchanged(other.lease.conversation, before)
    await other.append(Draft("note", {}))
