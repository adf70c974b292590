"""Cases: delete and amend, both by compare-and-swap."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Amended, Deleted, Fenced, Sealed, Snapshot, Stale, Unknown
from tenure.journal import SettingsChanged, read_body
from tenure.lease import Epoch, Token
from tenure.testing.store_suite.stage import IDLE, OPEN, expect, note, only
from tenure.testing.store_suite.submitting import AWKWARD

if TYPE_CHECKING:
    from tenure.journal import JsonObject
    from tenure.testing.store_suite.stage import Stage


async def deleting_erases_all_but_the_record(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await stage.submit(conversation)
    batch = writer.batch(note(), settle=replace(OPEN, agent_status="busy"))
    await stage.store.append(replace(batch, snapshot=Snapshot(1, {"f": 1})))
    expect(Sealed, await stage.store.seal(conversation, "name", b"ciphertext", 0))
    assert await stage.store.delete(conversation, Epoch(1), "user") == Deleted(Epoch(2))
    record = await stage.record(conversation)
    assert (record.deleted, record.epoch, record.owner, record.token) == (True, 2, None, None)
    assert (record.wanted, record.head, record.unsettled, record.settings) == (False, 0, 0, {})
    assert await stage.store.read(conversation, snapshot=True) == Deleted(Epoch(2))
    assert (await stage.store.unseal(conversation, "name"), list(await stage.store.names(conversation))) == (None, [])


async def rule_04_a_tombstone_stays_and_keeps_its_epoch(stage: Stage) -> None:
    conversation = await stage.conversation()
    assert await stage.store.delete(conversation, Epoch(0), "user") == Deleted(Epoch(1))
    before = await stage.record(conversation)
    for expected in (0, 1, 2, 7):
        assert await stage.store.delete(conversation, Epoch(expected), "user") == Deleted(Epoch(1)), "the same answer"
    assert await stage.record(conversation) == before
    assert await stage.listed() == []
    assert await stage.sweep(None) == {}


async def deleting_needs_the_epoch_that_the_caller_saw(stage: Stage) -> None:
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation)
    for expected in (0, 2):
        stale = expect(Stale, await stage.store.delete(writer.lease.conversation, Epoch(expected), "user"))
        assert stale.record == before
    assert await stage.unchanged(writer.lease.conversation, before)
    assert await stage.store.delete("nobody's", Epoch(0), "user") == Unknown()


async def rule_01_a_deleted_conversation_is_held_by_nobody(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    await writer.append(note())
    await stage.store.delete(conversation, Epoch(1), "user")
    for epoch, token in ((1, writer.lease.token), (2, writer.lease.token), (2, Token(""))):
        writer.lease = replace(writer.lease, epoch=Epoch(epoch), token=token)
        for number in (1, 2):
            late = replace(writer.batch(note(), seen=0), number=number)
            assert isinstance(await stage.store.append(late), Fenced)
            assert isinstance(await stage.store.release(replace(writer.farewell(), batch=late)), Fenced)
        assert isinstance(await stage.store.publish(writer.lease, {}), Fenced)
    assert (await stage.record(conversation)).head == 0


async def a_released_conversation_that_was_deleted_repeats_no_release(stage: Stage) -> None:
    writer = await stage.owned()
    farewell = writer.farewell()
    await stage.store.release(farewell)
    await stage.store.delete(writer.lease.conversation, Epoch(1), "user")
    assert isinstance(await stage.store.release(farewell), Fenced)


# amend


async def title_and_metadata_change_by_compare_and_swap(stage: Stage) -> None:
    conversation = await stage.conversation()
    before = await stage.record(conversation)
    stage.clock.advance(1)
    amended = expect(Amended, await stage.store.amend(conversation, 1, {"title": "t"})).record
    assert (amended.title, amended.metadata, amended.version) == ("t", before.metadata, 2)
    amended = expect(Amended, await stage.store.amend(conversation, 2, {"metadata": AWKWARD})).record
    assert (amended.title, amended.metadata, amended.version) == ("t", AWKWARD, 3)
    amended = expect(Amended, await stage.store.amend(conversation, 3, {"title": None, "metadata": {}})).record
    assert (amended.title, amended.metadata, amended.version) == (None, {}, 4)
    assert (amended.head, amended.updated_at) == (before.head, stage.clock.now())
    assert amended == await stage.record(conversation)
    assert await stage.kinds(conversation) == ["created"], "neither stands in the journal"


async def an_old_version_changes_nothing(stage: Stage) -> None:
    conversation = await stage.conversation()
    expect(Amended, await stage.store.amend(conversation, 1, {"title": "first"}))
    before = await stage.record(conversation)
    for version in (0, 1, 3):
        stale = expect(Stale, await stage.store.amend(conversation, version, {"title": "late", "settings": {"a": 1}}))
        assert stale.record == before
    assert await stage.unchanged(conversation, before)


async def settings_also_stand_in_the_journal(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    command = await stage.submit(conversation)
    await writer.append(settle=IDLE, seen=command.seq)
    changes: JsonObject = {"settings": {"model": "m 名"}}
    before = await stage.record(conversation)
    after = expect(Amended, await stage.store.amend(conversation, 1, changes)).record
    assert (after.settings, after.head, after.version) == (changes["settings"], before.head + 1, 2)
    assert (after.last_command, after.wanted, after.unsettled) == (before.last_command, False, before.unsettled)
    assert (after.owner, after.epoch) == (before.owner, before.epoch)
    event = (await stage.journal(conversation))[-1]
    assert read_body(event) == SettingsChanged({"model": "m 名"})
    assert (event.epoch, event.is_command, event.seq) == (None, False, after.head)
    await writer.append(note())


async def amending_needs_a_conversation(stage: Stage) -> None:
    assert await stage.store.amend("nobody's", 1, {"title": "t"}) == Unknown()
    conversation = await stage.conversation()
    await stage.store.delete(conversation, Epoch(0), "user")
    assert await stage.store.amend(conversation, 1, {"title": "t"}) == Deleted(Epoch(1))


async def of_many_that_amend_one_version_one_does(stage: Stage) -> None:
    conversation, stores = await stage.conversation(), await stage.several(6)
    answers = await asyncio.gather(*(s.amend(conversation, 1, {"settings": {"by": i}}) for i, s in enumerate(stores)))
    amended = only(answer for answer in answers if isinstance(answer, Amended))
    assert all(isinstance(answer, Amended | Stale) for answer in answers)
    assert amended.record == await stage.record(conversation)
    assert await stage.kinds(conversation) == ["created", "settings_changed"]
