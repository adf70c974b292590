"""Cases: opening, closing, siblings. What one way to the store wrote, every other sees, and it stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tenure.abc import Accepted, Granted, Limits, Load
from tenure.testing.store_suite.stage import TTL_S, expect, only

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.lease import IncarnationId
    from tenure.testing.store_suite.stage import Stage


async def another_process_sees_what_this_one_wrote(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation, text="from here")
    other = await stage.another()
    assert await stage.journal(writer.lease.conversation, other) == await stage.journal(writer.lease.conversation)
    assert await other.records([writer.lease.conversation]) == [await stage.record(writer.lease.conversation)]
    assert [n.incarnation for n in await other.nodes()] == [writer.lease.incarnation]


async def what_was_accepted_stays_when_every_handle_is_closed(stage: Stage) -> None:
    async with stage.unopened() as first:
        accepted = expect(Accepted, await first.submit(stage.say("c", "to be kept", key="k")))
    await stage.store.__aexit__(None, None, None)
    async with stage.unopened() as second:
        assert await second.records(["c"]) == [accepted.record]
        assert [e.text for e in await stage.journal("c", second) if e.is_command] == ["to be kept"]
        stage.store = await stage.another()


async def closing_is_idempotent(stage: Stage) -> None:
    store = await stage.another()
    await store.__aexit__(None, None, None)
    await store.__aexit__(None, None, None)
    assert await stage.store.records(["none"]) == [None], "another handle goes on"


async def the_limits_are_those_that_were_given(stage: Stage) -> None:
    limits = Limits(event_bytes=1234, unsettled=7, refusals=3)
    assert (await stage.another(limits)).limits == limits
    assert stage.unopened(limits).sibling().limits == limits


async def a_sibling_is_unopened_and_leads_to_the_same_store(stage: Stage) -> None:
    conversation = await stage.conversation()
    async with stage.store.sibling() as sibling:
        assert sibling is not stage.store
        expect(Accepted, await sibling.submit(stage.say(conversation)))
    assert await stage.kinds(conversation) == ["created", "message"], "a closed sibling takes nothing with it"
    await stage.submit(conversation)


async def a_sibling_serves_the_heartbeat_in_a_thread_of_its_own(stage: Stage) -> None:
    incarnation = await stage.node()
    sibling = stage.store.sibling()
    beats = await asyncio.to_thread(lambda: asyncio.run(_beat(sibling, incarnation)))
    assert beats == 3
    node = only(await stage.store.nodes())
    assert (node.beat, node.load.owned) == (3, 2)


async def _beat(sibling: Store, incarnation: IncarnationId) -> int:
    beat = 0
    async with sibling:
        for owned in range(3):
            granted = await sibling.renew(incarnation, beat, f"nonce {beat}", TTL_S, Load(owned))
            beat = expect(Granted, granted).beat
    return beat
