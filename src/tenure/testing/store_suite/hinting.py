"""Cases: follow and publish. A hint may be lost; here nothing is broken, so it comes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Death, Fenced, Hint, Limits, Sent, Submit, Topic
from tenure.testing.store_suite.appending import forged
from tenure.testing.store_suite.stage import IDLE, PATIENCE_S, awaited, expect, message, note

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tenure.testing.store_suite.stage import Stage

WANTED = Topic(Topic.WANTED)


def _of(conversation: str) -> Topic:
    return Topic(Topic.CONVERSATION, conversation)


async def _hinted(stage: Stage, topic: Topic, act: Callable[[], Awaitable[object]]) -> Hint:
    """The hint that `act` gives to who follows the topic through another handle."""
    other = await stage.another()
    async with other.follow([topic]) as hints:
        await act()
        return await awaited(hints, lambda hint: hint.topic == topic)


async def followers_hear_that_a_journal_moved(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    acts: list[Callable[[], Awaitable[object]]] = [
        lambda: stage.submit(conversation),
        lambda: writer.append(note()),
        lambda: stage.store.amend(conversation, 1, {"settings": {}}),
        lambda: writer.release(),
        lambda: stage.store.claim(stage.claiming(conversation, writer.lease.incarnation, 1)),
    ]
    for act in acts:
        hint = await _hinted(stage, _of(conversation), act)
        assert hint.conversation in (None, conversation)
        assert hint.delta is None
        assert hint.head is None or hint.head <= (await stage.record(conversation)).head


async def followers_in_the_same_process_hear_too(stage: Stage) -> None:
    conversation = await stage.conversation()
    async with stage.store.follow([_of(conversation)]) as hints:
        await stage.submit(conversation)
        await awaited(hints, lambda hint: hint.topic == _of(conversation))


async def a_command_for_nobodys_conversation_is_hinted_as_wanted(stage: Stage) -> None:
    conversation = await stage.conversation()
    await _hinted(stage, WANTED, lambda: stage.submit(conversation))
    await _hinted(stage, WANTED, lambda: stage.store.submit(stage.say("new")))


async def a_command_for_an_owner_is_hinted_to_its_node(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(settle=IDLE)
    topic = Topic(Topic.NODE, writer.lease.incarnation)
    await _hinted(stage, topic, lambda: stage.submit(writer.lease.conversation))


async def a_release_with_work_left_is_hinted_as_wanted(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation)
    await _hinted(stage, WANTED, lambda: writer.release())


async def a_burial_is_hinted_as_wanted(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation)
    await _hinted(stage, WANTED, lambda: stage.store.bury(writer.lease.incarnation, Death.EXITED))


async def the_last_that_a_store_did_is_hinted_although_it_is_closed_at_once(stage: Stage) -> None:
    """As a witness does: it buries its node and ends. A hint that is lost with it costs every takeover a sweep's period."""
    writer = await stage.owned()

    async def bury_and_close() -> None:
        async with stage.unopened() as witness:
            await witness.bury(writer.lease.incarnation, Death.EXITED)

    await _hinted(stage, WANTED, bury_and_close)


async def a_request_paper_is_hinted_to_its_node(stage: Stage) -> None:
    incarnation = await stage.node()
    topic = Topic(Topic.NODE, incarnation)
    put = stage.store.put_paper
    await _hinted(stage, topic, lambda: put("request", f"{incarnation}/drain", {"drain": True}, 0))


async def followers_hear_of_their_topics_only(stage: Stage) -> None:
    mine, other = await stage.conversation(), await stage.conversation()
    async with stage.store.follow([_of(mine)]) as hints:
        await stage.submit(other)
        await stage.submit(mine)
        hint = await anext(hints)
        assert hint.topic == _of(mine)


async def one_follower_may_follow_many_topics(stage: Stage) -> None:
    conversations = [await stage.conversation() for _ in range(5)]
    missing = {_of(conversation) for conversation in conversations} | {WANTED}
    other = await stage.another()
    async with other.follow([*missing]) as hints:
        for conversation in conversations:
            await stage.submit(conversation)
        while missing:
            hint = await awaited(hints, lambda hint: hint.topic in missing)
            missing.discard(hint.topic)


async def each_follower_has_a_stream_of_its_own(stage: Stage) -> None:
    conversation = await stage.conversation()
    async with stage.store.follow([_of(conversation)]) as one, stage.store.follow([_of(conversation)]) as other:
        await stage.submit(conversation)
        for hints in (one, other):
            await awaited(hints, lambda hint: hint.topic == _of(conversation))
    async with stage.store.follow([_of(conversation)]) as later:
        await stage.submit(conversation)
        await awaited(later, lambda hint: hint.topic == _of(conversation))


async def who_does_not_listen_is_told_what_is_newest_or_that_something_lapsed(stage: Stage) -> None:
    """Bounded: a follower that reads nothing for a long time costs nobody anything, and then still knows to look."""
    flood = 1501
    stage.store = await stage.another(Limits(unsettled=flood))
    conversation = await stage.conversation()
    async with stage.store.follow([_of(conversation)]) as hints:
        await stage.store.submit_all([Submit(conversation, message(stage.key())) for _ in range(flood)])
        head = (await stage.record(conversation)).head
        await awaited(hints, lambda hint: hint.lapsed or hint.head == head)


async def a_stream_of_hints_ends_with_its_store(stage: Stage) -> None:
    store = stage.unopened()
    await store.__aenter__()

    async def listen(hints: AsyncIterator[Hint]) -> None:
        async for _ in hints:
            pass

    async with asyncio.timeout(PATIENCE_S), store.follow([WANTED]) as hints:
        await asyncio.gather(listen(hints), store.__aexit__(None, None, None))


# publish


async def a_delta_reaches_followers_of_another_store_object(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    delta = {"text": "half a wo… 𝄞\u0000", "n": [1, None]}
    before = await stage.record(conversation)
    store = await stage.another()
    async with store.follow([_of(conversation)]) as hints:
        assert await stage.store.publish(writer.lease, delta) == Sent()
        hint = await awaited(hints, lambda hint: hint.delta is not None)
        assert (hint.delta, hint.topic, hint.conversation) == (delta, _of(conversation), conversation)
    assert await stage.unchanged(conversation, before), "a delta is not journaled"


async def deltas_come_in_order(stage: Stage) -> None:
    writer = await stage.owned()
    store = await stage.another()
    async with store.follow([_of(writer.lease.conversation)]) as hints:
        for n in range(20):
            assert await stage.store.publish(writer.lease, {"n": n}) == Sent()
        got: list[object] = []
        while 19 not in got:
            hint = await awaited(hints, lambda hint: hint.delta is not None)
            got.append(hint.delta and hint.delta["n"])
    assert got == list(range(20))


async def rule_01_a_delta_is_fenced(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    before = await stage.record(conversation)
    async with stage.store.follow([_of(conversation)]) as hints:
        for what, lease in forged(writer.lease):
            assert expect(Fenced, await stage.store.publish(lease, {"text": what})).record == before
        assert await stage.store.publish(writer.lease, {"text": "real"}) == Sent()
        hint = await awaited(hints, lambda hint: hint.delta is not None)
        assert hint.delta == {"text": "real"}, "nobody heard the refused ones"


async def publishing_needs_no_batch_number(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(note())
    for _ in range(3):
        assert await stage.store.publish(writer.lease, {}) == Sent()
    await writer.append(note())
    assert await stage.store.publish(replace(writer.lease, conversation="gone"), {}) == Fenced(None)
