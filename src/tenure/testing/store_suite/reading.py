"""Cases: read, records, list. Reading needs no claim, and is possible whoever owns the conversation, also the dead."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Accepted, Creation, Deleted, Filters, Limits, Reading, Submit, Unknown
from tenure.lease import Epoch
from tenure.testing.store_suite.stage import AGENT, IDLE, PATIENCE_S, expect, note, refused

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage


# read


async def a_reading_is_in_order_and_carries_the_record_of_its_moment(stage: Stage) -> None:
    writer = await stage.owned()
    await stage.submit(writer.lease.conversation)
    await writer.append(*(note(f"{i}") for i in range(5)))
    reading = expect(Reading, await stage.store.read(writer.lease.conversation))
    assert [e.seq for e in reading.events] == list(range(1, reading.record.head + 1))
    assert reading.record == await stage.record(writer.lease.conversation)
    assert (reading.record.head, reading.snapshot) == (8, None)


async def a_reading_begins_after_a_seq_and_ends_at_a_limit(stage: Stage) -> None:
    writer = await stage.owned()
    await writer.append(*(note(f"{i}") for i in range(8)))  # seq 3 to 10

    async def seqs(after: int, limit: int) -> list[int]:
        reading = expect(Reading, await stage.store.read(writer.lease.conversation, after, limit))
        assert reading.record.head == 10, "whatever part was asked for"
        return [e.seq for e in reading.events]

    assert await seqs(0, 3) == [1, 2, 3]
    assert await seqs(3, 3) == [4, 5, 6]
    assert await seqs(8, 100) == [9, 10]
    assert await seqs(10, 100) == await seqs(11, 100) == await seqs(10_000, 1) == []


async def a_reading_takes_no_more_than_the_stores_page(stage: Stage) -> None:
    stage.store = await stage.another(Limits(page=5))
    writer = await stage.owned()
    await writer.append(*(note(f"{i}") for i in range(8)))
    reading = expect(Reading, await stage.store.read(writer.lease.conversation, 0, 1000))
    assert [e.seq for e in reading.events] == [1, 2, 3, 4, 5]


async def a_reading_may_be_of_some_kinds(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    for i in range(3):
        await stage.submit(conversation, text=f"{i}")
        await writer.append(note(f"{i}"))

    async def read(limit: int, after: int, *kinds: str) -> list[tuple[int, str]]:
        reading = expect(Reading, await stage.store.read(conversation, after, limit, kinds=kinds))
        return [(e.seq, e.kind) for e in reading.events]

    assert await read(100, 0, "note") == [(4, "note"), (6, "note"), (8, "note")]
    assert await read(2, 4, "note", "message") == [(5, "message"), (6, "note")]
    assert await read(1, 2, "note") == [(4, "note")], "the limit counts what is asked for"
    assert await read(100, 0, "none", "") == []


async def reading_never_needs_a_claim(stage: Stage) -> None:
    conversation = await stage.conversation()
    assert isinstance(await stage.store.read(conversation), Reading)
    assert await stage.store.read("nobody's") == Unknown()
    await stage.store.delete(conversation, Epoch(0), "user")
    assert await stage.store.read(conversation) == Deleted(Epoch(1))


# records


async def records_come_in_the_order_asked(stage: Stage) -> None:
    one, gone, other = [await stage.conversation() for _ in range(3)]
    await stage.store.delete(gone, Epoch(0), "user")
    asked = [other, "nobody's", gone, one, other]
    found = await stage.store.records(asked)
    assert [record and record.conversation for record in found] == [other, None, gone, one, other]
    assert [record and record.deleted for record in found] == [False, None, True, False, False]
    assert await stage.store.records([]) == []


async def records_are_those_of_many_conversations_at_once(stage: Stage) -> None:
    names = [await stage.conversation() for _ in range(120)]
    assert [record and record.conversation for record in await stage.store.records(names)] == names


# list


async def _some(stage: Stage) -> tuple[list[str], list[str]]:
    """Six conversations of the users a and b in turn, and their agents."""
    agents = ["one", "one", "two", "two", "one", "one"]
    names = [await stage.conversation(Creation(agent, user_id="ab"[i % 2])) for i, agent in enumerate(agents)]
    return names, agents


async def a_list_refuses_a_cursor_that_is_none_of_its_own(stage: Stage) -> None:
    await stage.conversation()
    for foreign in (
        "",
        "x",
        "-",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1_0",
        "1.0",
        "1-",
        "1-2-3",
        "\u00b2",
        "\u0663",
        "9" * 30,
        "\0",
        "\ud800",
    ):
        with refused("cursor", "is none of ours"):
            await stage.store.list(Filters(), foreign, 10)


async def a_list_runs_in_order_of_creation(stage: Stage) -> None:
    names = [await stage.conversation() for _ in range(12)]  # c10 sorts before c2: order is not that of names
    stage.clock.step(wall_s=-3600.0)
    names.append(await stage.conversation())
    await stage.submit(names[3])
    await stage.claim(names[5], await stage.node())
    assert [r.conversation for r in await stage.listed()] == names, "and neither a change nor the wall clock moves it"
    assert (await stage.listed())[3] == await stage.record(names[3])


async def a_list_is_read_in_pages(stage: Stage) -> None:
    names = [await stage.conversation() for _ in range(7)]
    for limit in (1, 2, 3, 7, 8):
        assert [r.conversation for r in await stage.listed(limit=limit)] == names
    assert await (await stage.another()).list(Filters(user_id="nobody"), None, 3) == (
        replace(await stage.store.list(Filters(), None, 3), items=(), cursor=None)
    )


async def a_list_shows_what_was_created_while_it_was_read(stage: Stage) -> None:
    names = [await stage.conversation() for _ in range(4)]
    first = await stage.store.list(Filters(), None, 2)
    await stage.store.delete(names[0], Epoch(0), "user")
    await stage.store.delete(names[2], Epoch(0), "user")
    names.append(await stage.conversation())
    rest: list[str] = []
    cursor = first.cursor
    while cursor is not None:
        page = await stage.store.list(Filters(), cursor, 2)
        rest += [r.conversation for r in page.items]
        cursor = page.cursor
    assert ([r.conversation for r in first.items], rest) == (names[:2], names[3:])


async def a_list_leaves_the_deleted_out(stage: Stage) -> None:
    names = [await stage.conversation() for _ in range(5)]
    for name in (names[0], names[2], names[4]):
        await stage.store.delete(name, Epoch(0), "user")
    for limit in (1, 2, 10):
        assert [r.conversation for r in await stage.listed(limit=limit)] == [names[1], names[3]]


async def a_list_is_filtered(stage: Stage) -> None:
    names, agents = await _some(stage)

    async def listed(filters: Filters) -> list[str]:
        found = [r.conversation for r in await stage.listed(filters)]
        assert [r.conversation for r in await stage.listed(filters, limit=1)] == found
        return found

    assert await listed(Filters(user_id="a")) == names[::2]
    assert await listed(Filters(agent="two")) == [n for n, a in zip(names, agents, strict=True) if a == "two"] != []
    both = [n for n, a in zip(names[1::2], agents[1::2], strict=True) if a == "one"]
    assert await listed(Filters(user_id="b", agent="one")) == both != []
    assert await listed(Filters(user_id="")) == await listed(Filters(agent="none")) == []


async def a_list_is_filtered_by_owner(stage: Stage) -> None:
    """By a node's name, or by one incarnation of it."""
    names = [await stage.conversation() for _ in range(4)]
    first, second = await stage.node(), await stage.node()
    writer = await stage.claim(names[0], first)
    await stage.claim(names[1], second)
    await writer.append(settle=IDLE)
    await (await stage.claim(names[2], first)).release()
    for owner in (first, f"node-{first}"):
        assert [r.conversation for r in await stage.listed(Filters(owner=owner))] == [names[0]]
    await stage.claim(names[0], second, forced=True)
    assert await stage.listed(Filters(owner=first)) == []
    assert [r.conversation for r in await stage.listed(Filters(owner=second))] == names[:2]
    assert await stage.listed(Filters(owner="nobody")) == []


async def concurrent_creations_are_listed_once_each(stage: Stage) -> None:
    """A list that is read while many create shows all that was accepted before, and nothing twice."""
    stores = await stage.several(4)
    accepted: list[str] = []

    async def create(n: int) -> None:
        for i in range(10):
            answer = expect(Accepted, await stores[n].submit(stage.say(f"c{n}-{i}")))
            accepted.append(answer.record.conversation)

    async def look() -> None:
        while len(accepted) < 40:
            before = set(accepted)
            names = [r.conversation for r in await stage.listed(limit=7)]
            assert len(set(names)) == len(names)
            assert before <= set(names)
            await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(look(), *(create(n) for n in range(len(stores))))
    names = [r.conversation for r in await stage.listed()]
    assert sorted(names) == sorted(accepted)
    assert [r.conversation for r in await stage.listed(limit=3)] == names


async def a_list_shows_each_user_their_own(stage: Stage) -> None:
    for user in ("a", "b", None, ""):
        creation = Creation(AGENT, user_id=user)
        expect(Accepted, await stage.store.submit(Submit(f"of-{user}", None, creation)))
    assert [r.conversation for r in await stage.listed(Filters(user_id="a"))] == ["of-a"]
    assert [r.conversation for r in await stage.listed(Filters(user_id=""))] == ["of-"]
    assert len(await stage.listed()) == 4
