"""Cases: the past of a copy. Recorded commands stand in a batch; a creation may be wanted from its first moment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Appended, Death, Duplicate, Fenced, Held, KeyReused, ReleasedNow, Repeated, Submit
from tenure.conversation import Settle
from tenure.journal import CommandSettled, Delivery, Draft, Rehydrated, Rehydrating, draft
from tenure.testing.store_suite.stage import CREATION, Writer, expect, message, note

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage

UNFINISHED = Settle(runnable=True)


def said(key: str, text: str = "hello", delivery: Delivery = Delivery.TURN) -> Draft:
    """A message of the past."""
    return Draft("message", {"text": text}, key=key, delivery=delivery)


async def _copy(stage: Stage, conversation: str = "copy") -> Writer:
    """A conversation whose past is being written."""
    creation = replace(CREATION, wanted=True)
    request = stage.claiming(conversation, await stage.node(), create=creation)
    writer = Writer(stage.store, expect(Held, await stage.store.claim(request)))
    await writer.append(draft(Rehydrating("d", "original", 9)), settle=UNFINISHED)
    return writer


async def what_is_created_wanted_is_swept_once_its_creator_is_dead(stage: Stage) -> None:
    incarnation, another = await stage.node(), await stage.node()
    request = stage.claiming("c", incarnation, create=replace(CREATION, wanted=True))
    assert expect(Held, await stage.store.claim(request)).record.wanted
    assert not await stage.sweep(another), "its creator lives"
    await stage.store.bury(incarnation, Death.EXITED)
    assert list(await stage.sweep(another)) == ["c"]


async def a_recorded_command_stands_like_any_other_and_nobody_waits_for_it(stage: Stage) -> None:
    writer = await _copy(stage)
    before = await stage.record("copy")
    done = await writer.append(said("a"), note(), said("b", delivery=Delivery.NOW), settle=UNFINISHED)
    first, between, second = (await stage.journal("copy"))[-3:]
    assert (first.seq, first.epoch, first.kind, first.key) == (done.first, None, "message", "a")
    assert (first.delivery, first.text, between.epoch) == (Delivery.TURN, "hello", writer.lease.epoch)
    assert (second.delivery, second.key, second.epoch) == (Delivery.NOW, "b", None)
    record = await stage.record("copy")
    assert (record.last_command, record.unsettled) == (before.last_command, before.unsettled) == (0, 0)
    assert record.wanted, "as the batch settled it"


async def the_key_of_a_recorded_command_stands_for_it(stage: Stage) -> None:
    writer = await _copy(stage)
    awkward = 'k "\\é/'
    done = await writer.append(said(awkward), draft(CommandSettled(4, "refused")), settle=UNFINISHED)
    again = await stage.store.submit(Submit("copy", message(awkward)))
    assert expect(Duplicate, again).seq == done.first
    assert await stage.store.submit(Submit("copy", message(awkward, "other"))) == KeyReused(done.first)
    assert (await stage.record("copy")).head == done.head


async def a_batch_with_recorded_commands_is_repeated_and_fenced_like_any_other(stage: Stage) -> None:
    writer = await _copy(stage)
    batch = writer.batch(said("a"), settle=UNFINISHED)
    result = expect(Appended, await stage.store.append(batch))
    assert await stage.store.append(batch) == Repeated(result)
    other = replace(batch, drafts=(said("a", "other"),))
    expect(Fenced, await stage.store.append(other))
    late = Writer(stage.store, Held(writer.lease, await stage.record("copy")))
    late.number = 2
    await stage.claim("copy", await stage.node(), forced=True)
    expect(Fenced, await stage.store.append(late.batch(said("z"), settle=UNFINISHED)))
    assert not [event for event in await stage.journal("copy") if event.key == "z"]


async def a_past_that_is_whole_is_released_unwanted(stage: Stage) -> None:
    writer = await _copy(stage)
    done = await writer.append(said("a"), settle=UNFINISHED)
    end = (draft(Rehydrated("d", 9, 1)), draft(CommandSettled(done.first, "refused")))
    released = expect(ReleasedNow, await stage.store.release(writer.farewell(*end)))
    assert not released.wanted
    record = await stage.record("copy")
    assert (record.owner, record.wanted, record.unsettled) == (None, False, 0)
    accepted = await stage.submit("copy")
    assert accepted.seq == record.head + 1
    assert (await stage.record("copy")).unsettled == 1
