"""Where answers are put together from pieces, and what is bounded: nothing is lost or shown twice at a seam."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import redis_servers

from tenure.abc import Appended, Death, Filters, Held, Hint, Reading, Sent, Snapshot, Submit, Topic
from tenure.errors import InvalidInputError
from tenure.journal import Event
from tenure.lease import Epoch
from tenure.stores.redis import hints, link, reading, writing
from tenure.stores.redis.hints import Follower
from tenure.testing.servers import RedisServer, redis_binary, until
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import AGENT, CREATION, PATIENCE_S, Writer, awaited, expect, note


@pytest.fixture
def server() -> RedisServer:
    return redis_servers.shared_server(redis_binary())


@pytest.fixture
def prefix() -> str:
    return redis_servers.prefix()


@pytest.fixture
async def stage(server: RedisServer, prefix: str) -> AsyncIterator[Stage]:
    async with redis_servers.stage_on(server.url(prefix=prefix)) as stage:
        yield stage


async def test_a_long_reading_is_put_together_from_pieces(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    writer = await stage.owned()
    await writer.append(*(note(f"{n}" * 10) for n in range(300)))
    whole = await stage.journal(writer.lease.conversation)
    for most_bytes, most_entries in ((1, 1000), (500, 1000), (1 << 20, 1), (1 << 20, 7)):
        monkeypatch.setattr(reading, "READ_BYTES", most_bytes)
        monkeypatch.setattr(reading, "READ_ENTRIES", most_entries)
        found = expect(Reading, await stage.store.read(writer.lease.conversation, 5, 250))
        assert list(found.events) == whole[5:255]


async def test_kinds_are_looked_for_beyond_one_piece(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Two rare events, far apart: a page is short only at the end of the journal."""
    monkeypatch.setattr(reading, "READ_ENTRIES", 50)
    writer = await stage.owned()
    rare = replace(note("rare"), kind="rare")
    await writer.append(rare, *(note() for _ in range(400)), rare, *(note() for _ in range(400)))
    read = stage.store.read
    found = expect(Reading, await read(writer.lease.conversation, 0, 10, kinds=["rare"]))
    assert [e.seq for e in found.events] == [3, 404]
    assert found.record.head == 804
    assert expect(Reading, await read(writer.lease.conversation, 404, 10, kinds=["rare"])).events == ()


async def test_a_snapshot_of_the_loop_alone(stage: Stage):
    """Without a fold there is nothing to start behind."""
    writer = await stage.owned()
    batch = replace(writer.batch(note()), snapshot=Snapshot(3, None, {"l": 1}))
    expect(Appended, await stage.store.append(batch))
    found = expect(Reading, await stage.store.read(writer.lease.conversation, snapshot=True))
    assert (found.snapshot, [e.seq for e in found.events]) == (Snapshot(0, None, {"l": 1}), [1, 2, 3])


async def test_a_filter_that_matches_few_gives_short_pages(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "LISTED", 30)
    for n in range(150):
        creation = replace(CREATION, user_id="rare" if n in (3, 140) else "other")
        await stage.store.submit(Submit(f"{n}", None, creation))
    pages: list[list[str]] = []
    cursor: str | None = None
    while cursor is not None or not pages:
        page = await stage.store.list(Filters(user_id="rare"), cursor, 10)
        pages.append([record.conversation for record in page.items])
        cursor = page.cursor
        assert len(pages) < 50
    assert [name for page in pages for name in page] == ["3", "140"]
    assert len(pages) > 1


async def test_what_is_deleted_costs_a_list_nothing(server: RedisServer, stage: Stage, prefix: str):
    names = [await stage.conversation() for _ in range(20)]
    for name in names:
        await stage.store.delete(name, Epoch(0), "user")
    assert server.told("KEYS", f"{prefix}:*:created") == []
    assert await stage.listed() == []


async def test_every_index_is_empty_when_nothing_is_owned_or_wanted(server: RedisServer, stage: Stage, prefix: str):
    writers = [await stage.owned() for _ in range(10)]
    for writer in writers:
        await stage.submit(writer.lease.conversation)
    for n, writer in enumerate(writers):
        if n % 2:
            await stage.store.delete(writer.lease.conversation, Epoch(1), "user")
        else:
            writer.seen = (await stage.record(writer.lease.conversation)).head
            await writer.release()
    for index in ("wanted", "owners", "named"):
        assert server.told("KEYS", f"{prefix}:{{*}}:{index}") == []


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1-2", "[]", '["a", 1]', "null"])
async def test_a_strange_cursor_is_refused(stage: Stage, cursor: str):
    with pytest.raises(InvalidInputError, match="none of ours"):
        await stage.store.list(Filters(), cursor, 10)
    with pytest.raises(InvalidInputError, match="none of ours"):
        await stage.store.wanted(None, ["agent"], cursor, 10)


async def test_a_sweep_of_many_owners_and_agents_in_small_pages(stage: Stage):
    expected: set[str] = set()
    dead = [await stage.node() for _ in range(3)]
    for n in range(60):
        agent = f"agent {n % 3}"
        name = f"{n}"
        creation = replace(CREATION, agent=agent)
        await stage.store.submit(replace(stage.say(name), create=creation))
        if n % 4:
            expect(Held, await stage.store.claim(stage.claiming(name, dead[n % 3])))
        if agent != "agent 2":
            expected.add(name)
    for one in dead:
        await stage.store.bury(one, Death.EXITED)
    for limit in (1, 7, 64):
        found: list[str] = []
        cursor: str | None = None
        first = True
        while first or cursor is not None:
            page = await stage.store.wanted(None, ["agent 1", "agent 0", "agent 0"], cursor, limit)
            assert len(page.items) <= limit
            found += [one.conversation for one in page.items]
            cursor, first = page.cursor, False
        assert sorted(found) == sorted(expected)


async def test_a_delta_that_is_too_large_is_lost(stage: Stage):
    writer = await stage.owned()
    topic = Topic(Topic.CONVERSATION, writer.lease.conversation)
    async with stage.store.follow([topic]) as stream:
        large = {"text": "x" * writing.DELTA_BYTES}
        assert await stage.store.publish(writer.lease, large) == Sent()
        assert await stage.store.publish(writer.lease, {"n": 1}) == Sent()
        hint = await awaited(stream, lambda hint: hint.delta is not None)
        assert hint.delta == {"n": 1}


async def test_a_thousand_streams_share_one_connection(server: RedisServer, stage: Stage, prefix: str):
    conversation = await stage.conversation()
    channel = f"{prefix}@0:conversation:{conversation}"

    def listening() -> int:
        return len(server.told("CLIENT", "LIST", "TYPE", "pubsub").splitlines())

    before = listening()
    async with AsyncExitStack() as streams, asyncio.timeout(PATIENCE_S):
        subjects = [*(f"other {n}" for n in range(999)), conversation]
        topics = [Topic(Topic.CONVERSATION, subject) for subject in subjects]
        opened = [await streams.enter_async_context(stage.store.follow([topic])) for topic in topics]
        assert listening() == before + 1
        await stage.submit(conversation)
        await awaited(opened[-1], lambda hint: hint.head is not None)
        assert server.told("PUBSUB", "NUMSUB", channel)[1] == 1
    await asyncio.sleep(0)
    until(lambda: server.told("PUBSUB", "NUMSUB", channel)[1] == 0, "nobody listens for what nobody follows")


async def test_a_follower_that_does_not_read_is_told_that_it_missed_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hints, "QUEUE", 3)
    topic = Topic(Topic.WANTED)
    follower = Follower([topic])
    for n in range(5):
        follower.hand(Hint(topic, head=n))
    follower.close()
    got = [hint async for hint in follower.hints()]
    assert [(hint.head, hint.lapsed) for hint in got] == [(2, True), (3, False), (4, False)]


# the work of one script: the server does nothing else meanwhile (PROTOCOL section 5; decision 0161)


class Counted:
    """A server of one's own, and what the scripts did that were run while something was asked."""

    def __init__(self, server: RedisServer, stage: Stage) -> None:
        self.stage = stage
        self._server = server

    async def scripts[R](self, asked: Awaitable[R]) -> tuple[R, int, dict[str, int]]:
        """The answer, how many scripts it took, and how often they called each command."""
        self._server.forget_calls()
        answer = await asked
        calls = self._server.calls()
        scripts = calls.pop("evalsha")
        return answer, scripts, {name: n for name, n in calls.items() if not name.startswith(("config", "info"))}


@pytest.fixture
def own() -> Iterator[RedisServer]:
    with RedisServer(redis_servers.folder()) as server:
        yield server


@pytest.fixture
async def counted(own: RedisServer) -> AsyncIterator[Counted]:
    async with redis_servers.stage_on(own.url()) as stage:
        yield Counted(own, stage)


async def long_journal(stage: Stage) -> Writer:
    writer = await stage.owned()
    for _ in range(3):
        await writer.append(*(note() for _ in range(900)))
    return writer


async def test_the_largest_reading_is_a_thousand_entries_a_script(counted: Counted):
    """In ten pieces; and as much where nothing matches: the next script goes on."""
    read, conversation = counted.stage.store.read, (await long_journal(counted.stage)).lease.conversation
    most = counted.stage.store.limits.page
    answer, scripts, calls = await counted.scripts(read(conversation, 5, most))
    assert len(expect(Reading, answer).events) == most == reading.READ_ENTRIES == 1000
    assert (scripts, calls["xrange"]) == (1, 10)
    assert sum(calls.values()) <= 10 + 5
    answer, scripts, calls = await counted.scripts(read(conversation, 0, most, kinds=["rare"]))
    assert expect(Reading, answer).events == ()
    assert (scripts, calls["xrange"]) == (3, 28), "2,702 entries"
    assert sum(calls.values()) <= 28 + scripts * 5


async def test_smaller_readings_are_more_scripts(counted: Counted, monkeypatch: pytest.MonkeyPatch):
    conversation = (await long_journal(counted.stage)).lease.conversation
    for entries, many in ((500, 2), (100, 10)):
        monkeypatch.setattr(reading, "READ_ENTRIES", entries)
        answer, scripts, calls = await counted.scripts(counted.stage.store.read(conversation, 5, 1000))
        assert len(expect(Reading, answer).events) == 1000
        assert (scripts, calls["xrange"]) == (many, 10), f"{entries // 100} pieces each"
    monkeypatch.setattr(reading, "READ_BYTES", 1)
    _, scripts, calls = await counted.scripts(counted.stage.store.read(conversation, 5, 1000))
    assert scripts == calls["xrange"] == 10, "a piece is never cut"


async def test_the_largest_append_is_a_command_an_event(counted: Counted):
    writer, most = await counted.stage.owned(), counted.stage.store.limits.batch_events
    batch = writer.batch(*(note() for _ in range(most)))
    _, scripts, calls = await counted.scripts(counted.stage.store.append(batch))
    assert (scripts, calls["xadd"]) == (1, most)
    assert sum(calls.values()) <= most + 10
    with pytest.raises(InvalidInputError, match=f"{most + 1} in one batch"):
        await counted.stage.store.append(writer.batch(*(note() for _ in range(most + 1))))


async def test_joined_appends_are_a_hundred_a_script(counted: Counted, monkeypatch: pytest.MonkeyPatch):
    writers = [await counted.stage.owned() for _ in range(250)]

    async def append_all(number: int, events: int = 1) -> tuple[int, dict[str, int]]:
        batches = [replace(one.batch(*(note() for _ in range(events)), seen=0), number=number) for one in writers]
        answers, scripts, calls = await counted.scripts(counted.stage.store.append_all(batches))
        assert all(isinstance(answer, Appended) for answer in answers)
        return scripts, calls

    scripts, calls = await append_all(1)
    assert link.TOGETHER == 100
    assert scripts == 3
    assert sum(calls.values()) <= 250 * 4 + scripts, "each: look, write, keep, tell"
    monkeypatch.setattr(link, "TOGETHER", 10)
    assert (await append_all(2))[0] == 25
    monkeypatch.undo()
    scripts, calls = await append_all(3, events=100)
    assert calls["xadd"] == 250 * 100
    most = link.TOGETHER_BYTES // (3 * link.ARGUMENT_BYTES) + 100
    assert scripts >= calls["xadd"] / most, "those of many events are fewer in a script"


async def test_a_look_is_at_each_partition_once_and_at_none_that_is_empty(counted: Counted):
    store, me = counted.stage.store, await counted.stage.node()

    async def swept(*agents: str) -> dict[str, int]:
        _, scripts, calls = await counted.scripts(store.wanted(me, agents, None, 1))
        assert scripts == 1
        return calls

    assert sum((await swept(AGENT)).values()) <= 64 + 2, "the partitions, who lives, what time it is"
    for number in range(400):
        await store.submit(counted.stage.say(f"wanted {number}"))
    for agents in ([AGENT], [AGENT, "other", "more"]):
        calls = await swept(*agents)
        partitions = calls["zcard"]
        assert partitions == 64
        assert calls["zlexcount"] == 64 * len(agents)
        assert sum(calls.values()) <= 64 * (2 + len(agents)) + 2 + 2, "however much is wanted"


async def test_what_rests_takes_what_it_holds(server: RedisServer, stage: Stage, prefix: str):
    """A stream makes room for 4 KB at once: a million conversations at rest would take 4 GB for nothing."""

    async def stored(writer: Writer) -> tuple[int, list[Event]]:
        """The bytes of a conversation at rest, all of its keys together, and its journal."""
        conversation = writer.lease.conversation
        await writer.release()
        keys = server.told("KEYS", f"{prefix}:*:{conversation}:*")
        return sum(server.told("MEMORY", "USAGE", key.decode()) for key in keys), await stage.journal(conversation)

    short, long = await stage.owned(), await stage.owned()
    for _ in range(101):
        await long.append(note())
    before = Counter(server.calls())
    taken, journal = await stored(short)
    assert taken < 2000
    assert [event.kind for event in journal] == ["created", "claimed", "released"]
    assert Counter(server.calls()) - before >= Counter(restore=1)
    before = Counter(server.calls())
    _, journal = await stored(long)
    assert len(journal) == 104
    assert "restore" not in Counter(server.calls()) - before, "work without end is not worth it"
    again = await stage.claim(short.lease.conversation, await stage.node(ttl_s=60))
    await again.append(note())
    assert (await stage.journal(short.lease.conversation))[-1].kind == "note"


async def test_who_may_not_restore_keeps_a_journal_as_it_is(server: RedisServer, prefix: str):
    server.told("ACL", "SETUSER", "frugal", "reset", "on", ">x", "~*", "&*", "+@all", "-restore", "-dump")
    url = server.url(prefix=prefix).replace("redis://", "redis://frugal:x@")
    async with redis_servers.stage_on(url) as stage:
        writer = await stage.owned()
        await writer.release()
        assert (await stage.kinds(writer.lease.conversation)) == ["created", "claimed", "released"]
