"""Cases: wanted. Whoever is needed is found by looking, whatever hint was lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Accepted, Creation, Death, Held, Reason, Submit
from tenure.conversation import Settle
from tenure.lease import Epoch
from tenure.testing.store_suite.stage import AGENT, IDLE, TTL_S, expect, message, only

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage, Writer


async def _at_rest(stage: Stage) -> Writer:
    """An owner with a live loop and nothing to do."""
    writer = await stage.owned()
    await writer.append(settle=IDLE)
    return writer


async def rule_07_the_unowned_are_wanted(stage: Stage) -> None:
    conversation, at_rest = await stage.conversation(), await stage.conversation()
    await stage.submit(conversation)
    for me in (None, await stage.node()):
        found = only((await stage.sweep(me)).values())
        assert (found.conversation, found.epoch, found.owner, found.token) == (conversation, 0, None, None)
        assert found.agent == AGENT
    assert not (await stage.record(at_rest)).wanted


async def rule_07_the_dead_owners_are_wanted(stage: Stage) -> None:
    writer, me = await stage.owned(), await stage.node()
    await stage.submit(writer.lease.conversation)
    assert await stage.sweep(me) == {}, "its owner lives"
    stage.clock.advance(2 * TTL_S)
    assert await stage.sweep(me) == {}, "expired is not yet dead"
    await stage.store.bury(writer.lease.incarnation, Death.EXPIRED)
    for who in (None, me):
        found = only((await stage.sweep(who)).values())
        assert (found.owner, found.token, found.epoch) == (writer.lease.incarnation, writer.lease.token, 1)
    request = stage.claiming(found.conversation, me, found.epoch)
    expect(Held, await stage.store.claim(request))
    assert (await stage.record(found.conversation)).token == request.token


async def rule_07_mine_are_wanted(stage: Stage) -> None:
    """So that a node finds what the store calls its own while its table does not hold that lease."""
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation)
    found = only((await stage.sweep(writer.lease.incarnation)).values())
    assert (found.owner, found.token) == (writer.lease.incarnation, writer.lease.token)
    assert await stage.sweep(None) == {}, "nobody: only what nobody alive owns"
    assert await stage.sweep(await stage.node()) == {}


async def c7_message_to_a_live_idle_owner(stage: Stage) -> None:
    """The hint was lost, and the sweep looked at the unowned and the dead only: stuck."""
    writer = await _at_rest(stage)
    assert await stage.sweep(writer.lease.incarnation) == {}
    await stage.submit(writer.lease.conversation)
    assert writer.lease.conversation in await stage.sweep(writer.lease.incarnation)


async def c7_message_after_its_owner_died_idle(stage: Stage) -> None:
    """The cluster looked ("nothing wanted there"), forgot the dead node, and then the message came: stuck."""
    writer, me = await _at_rest(stage), await stage.node()
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    assert await stage.sweep(me) == {}
    await stage.submit(writer.lease.conversation)
    for _ in range(2):  # there is no list that is passed once
        assert writer.lease.conversation in await stage.sweep(me)


async def what_is_at_rest_is_not_wanted(stage: Stage) -> None:
    await stage.conversation()
    writer = await _at_rest(stage)
    await stage.store.bury(writer.lease.incarnation, Death.EXITED)
    gone = await stage.conversation()
    await stage.submit(gone)
    await stage.store.delete(gone, Epoch(0), "user")
    assert await stage.sweep(await stage.node()) == {}


async def wanted_is_asked_by_agent(stage: Stage) -> None:
    for agent in ("one", "two", "three"):
        expect(Accepted, await stage.store.submit(Submit(agent, message("k"), Creation(agent))))
    assert list(await stage.sweep(None, ["two"])) == ["two"]
    assert sorted(await stage.sweep(None, ["one", "three", "none"])) == ["one", "three"]
    assert await stage.sweep(None, []) == {}
    assert await stage.sweep(None, ["none"]) == {}


async def back_off_holds_for_the_owner_and_for_others(stage: Stage) -> None:
    writer, me = await stage.owned(), await stage.node()
    farewell = writer.farewell(settle=Settle(runnable=True), reason=Reason.FAILED, retry_in_s=5.0)
    await stage.store.release(farewell)
    assert await stage.sweep(me) == {}
    claimed = await stage.claim(writer.lease.conversation, me)
    assert await stage.sweep(me) == {}
    await stage.store.bury(me, Death.EXITED)
    assert await stage.sweep(None) == {}, "a takeover is no reason to hurry"
    stage.clock.advance(5.0)
    assert list(await stage.sweep(None)) == [claimed.lease.conversation]


async def a_sweep_is_read_in_pages(stage: Stage) -> None:
    conversations: set[str] = set()
    for _ in range(7):
        conversations.add(name := await stage.conversation())
        await stage.submit(name)
        await stage.conversation()  # at rest, in between
    me, dead = await stage.node(), await stage.node()
    for name in sorted(conversations)[:2]:
        await stage.claim(name, me)
    for name in sorted(conversations)[2:4]:
        await stage.claim(name, dead)
    await stage.store.bury(dead, Death.EXITED)
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        page = await stage.store.wanted(me, [AGENT], cursor, 2)
        assert len(page.items) <= 2
        found += [one.conversation for one in page.items]
        cursor, pages = page.cursor, pages + 1
        assert pages < 50, "the cursor always advances"
    assert (len(found), set(found)) == (7, conversations)


async def a_sweep_goes_on_while_its_finds_are_claimed(stage: Stage) -> None:
    """What is taken while the pages are read must not hide what stands behind it."""
    names = [await stage.conversation() for _ in range(6)]
    for name in names:
        await stage.submit(name)
    me, other = await stage.node(), await stage.node()
    claimed: list[str] = []
    cursor: str | None = None
    first = True
    while first or cursor is not None:
        first = False
        page = await stage.store.wanted(me, [AGENT], cursor, 2)
        for one in page.items:
            expect(Held, await stage.store.claim(stage.claiming(one.conversation, other, one.epoch)))
            claimed.append(one.conversation)
        cursor = page.cursor
    assert sorted(claimed) == sorted(names)


async def a_claim_takes_what_others_swept(stage: Stage) -> None:
    conversation = await stage.conversation()
    command = await stage.submit(conversation)
    writer = await stage.claim(conversation, await stage.node())
    assert await stage.sweep(await stage.node()) == {}
    assert (await stage.record(conversation)).wanted, "it stays wanted until its owner has settled"
    await writer.append(settle=replace(IDLE, settled=(command.seq,)), seen=command.seq)
    assert await stage.sweep(writer.lease.incarnation) == {}
