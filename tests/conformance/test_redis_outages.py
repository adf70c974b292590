"""What happens to a server, and what becomes of the promises: PROTOCOL section 5, line by line, on real servers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis_servers
from redis_servers import eventually

import tenure
from tenure import facts
from tenure.abc import (
    Alive,
    Appended,
    Buried,
    Claim,
    Claimed,
    Dead,
    Death,
    Duplicate,
    Elsewhere,
    Fenced,
    Filters,
    Granted,
    Held,
    Load,
    Reading,
    Repeated,
    Stale,
    Submit,
    Topic,
    Unknown,
)
from tenure.config import Config
from tenure.conversation import Fold, TurnState, fold
from tenure.errors import StoreError, StoreUnavailableError
from tenure.journal import Event, read_body
from tenure.lease import new_incarnation
from tenure.stores.redis import RedisStore, rebuild
from tenure.testing.provider import FaultyProvider, Machine
from tenure.testing.servers import Console, RedisServer, until
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import AGENT, CREATION, OPEN, Writer, awaited, expect, message, note

SHORT_S = 0.5
"""A ttl that a test can outlive."""


@pytest.fixture(params=redis_servers.BINARIES.values(), ids=redis_servers.BINARIES.keys())
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    options = {"appendfsync": "always", "lua-time-limit": "50"}
    with RedisServer(redis_servers.folder(), binary=request.param, options=options) as server:
        yield server


@pytest.fixture
async def stage(server: RedisServer) -> AsyncIterator[Stage]:
    async with redis_servers.stage_on(server.url(timeout_s=2)) as stage:
        yield stage


def later_than(seconds: float) -> None:
    """Let a ttl pass: here time itself is what is tested."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, "time passes")


async def expired(stage: Stage, incarnation: str) -> None:
    """The lease has run out, by the server's clock."""
    await eventually(
        stage.store.nodes,
        lambda nodes: any(n.incarnation == incarnation and n.expires_in_s <= 0 for n in nodes),
        "the lease runs out",
    )


async def owned(stage: Stage, ttl_s: float) -> Writer:
    """A conversation with a message and an open turn, held by a node with this ttl."""
    conversation = await stage.conversation()
    await stage.submit(conversation)
    writer = await stage.claim(conversation, await stage.node(ttl_s=ttl_s))
    await writer.append(note("before"), settle=OPEN)
    return writer


# a script that takes longer than the ttl


async def test_a_script_longer_than_the_ttl(server: RedisServer, stage: Stage):
    """Renewals are told BUSY, which decides nothing; afterwards every lease has run out, and every node is dead."""
    writer = await owned(stage, SHORT_S)
    me = writer.lease.incarnation
    with Console(server.port) as console:
        console.send("EVAL", "while true do end", 0)
        await eventually(lambda: asyncio.to_thread(server.say, "PING"), lambda said: "BUSY" in str(said), "it is busy")
        with pytest.raises(StoreUnavailableError, match="BUSY"):
            await stage.store.renew(me, 0, "nonce", SHORT_S, Load())
        with pytest.raises(StoreUnavailableError, match="BUSY"):
            await stage.store.append(writer.batch(note("meanwhile")))
        later_than(SHORT_S)
        server.told("SCRIPT", "KILL")
    renewed = await eventually(
        lambda: stage.store.renew(me, 0, "nonce", SHORT_S, Load()), lambda _: True, "the server answers again"
    )
    assert renewed == Dead()
    assert expect(Held, await _taken_over(stage, writer)).lease.epoch == 2
    assert isinstance(await stage.store.append(writer.batch(note("late"))), Fenced)


async def _taken_over(stage: Stage, writer: Writer) -> object:
    """The sweep of another node: judged and buried first, claimed second."""
    other = await stage.node(ttl_s=60)
    assert await stage.store.bury(writer.lease.incarnation, Death.EXPIRED) == Buried()
    (found,) = (await stage.store.wanted(other, [AGENT], None, 10)).items
    assert (found.conversation, found.owner) == (writer.lease.conversation, writer.lease.incarnation)
    return await stage.store.claim(stage.claiming(found.conversation, other, found.epoch))


# a server that was away


@pytest.mark.parametrize("crash", [False, True], ids=["stop", "kill -9"])
async def test_a_restart_after_longer_than_the_ttl(server: RedisServer, stage: Stage, crash: bool):
    """Every incarnation is dead, every conversation is there, and each node registers anew."""
    writers = [await owned(stage, SHORT_S) for _ in range(3)]
    before = [(await stage.record(w.lease.conversation), await stage.journal(w.lease.conversation)) for w in writers]
    if crash:
        server.kill()
    else:
        server.stop()
    with pytest.raises(StoreUnavailableError):
        await stage.store.records(["any"])
    later_than(SHORT_S)
    server.start()
    after = [(await stage.record(w.lease.conversation), await stage.journal(w.lease.conversation)) for w in writers]
    assert after == before
    for writer in writers:
        me = writer.lease.incarnation
        assert await stage.store.renew(me, 0, "nonce", SHORT_S, Load()) == Dead()
        assert await stage.store.bury(me, Death.EXPIRED) == Buried()
    assert await stage.store.register(writers[0].lease.incarnation, stage.about(), 60) != Granted(0), "once, ever"
    new = await stage.node(ttl_s=60)
    found = await stage.store.wanted(new, [AGENT], None, 10)
    claims = [stage.claiming(one.conversation, new, one.epoch) for one in found.items]
    assert [expect(Held, one).lease.epoch for one in await stage.store.claim_all(claims)] == [2, 2, 2]


async def test_a_restart_within_the_ttl_costs_nothing(server: RedisServer, stage: Stage):
    writer = await owned(stage, 60)
    server.kill()
    server.start()
    beat = await eventually(
        lambda: stage.store.renew(writer.lease.incarnation, 0, "nonce", 60, Load()), lambda _: True, "an answer"
    )
    assert beat == Granted(1)
    await writer.append(note("after"))


async def test_a_refused_connection_fails_at_once(server: RedisServer, stage: Stage):
    """A client that repeats by itself would outlast the ttl: here the caller judges."""
    server.stop()
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreUnavailableError, match=r"no connection|fell|lost"):
            await stage.store.renew(new_incarnation(), 0, "nonce", 1, Load())
    assert time.monotonic() - started < 2.0


async def test_a_frozen_server_is_an_unknown_outcome(server: RedisServer):
    """The request may be done when the server thaws: repeated unchanged, it is answered as a repetition."""
    async with redis_servers.stage_on(server.url(timeout_s=0.3)) as stage:
        writer = await stage.owned()
        batch = writer.batch(note("once"))
        server.freeze()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.3 s.*unchanged"):
            await stage.store.append(batch)
        server.thaw()
        answer = await eventually(lambda: stage.store.append(batch), lambda _: True, "an answer")
        assert isinstance(answer, Appended | Repeated)
        assert (await stage.kinds(writer.lease.conversation)).count("note") == 1


async def test_who_gives_up_on_a_dead_way_takes_another(server: RedisServer):
    """A heartbeat's attempts are shorter than the store's patience; the next one must not stand behind a dead connection."""
    swallowed: list[bytes] = []
    dead = False

    async def passed_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        swallows = False
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", server.port)

        async def forth() -> None:
            nonlocal swallows
            while data := await client.read(1 << 16):
                swallows = swallows or dead
                if swallows:
                    swallowed.append(data)
                else:
                    to_upstream.write(data)
            to_upstream.close()

        async def back() -> None:
            while data := await upstream.read(1 << 16):
                to_client.write(data)
            to_client.close()

        await asyncio.gather(forth(), back(), return_exceptions=True)

    async with await asyncio.start_server(passed_on, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with redis_servers.stage_on(f"redis://127.0.0.1:{port}/0?timeout_s=60") as stage:
            incarnation = await stage.node(ttl_s=60)
            dead = True
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await stage.store.renew(incarnation, 0, "nonce", 60, Load())
            assert swallowed
            dead = False
            async with asyncio.timeout(10):
                assert await stage.store.renew(incarnation, 0, "nonce", 60, Load()) == Granted(1)


async def test_followers_are_told_that_hints_lapsed(server: RedisServer, stage: Stage):
    writer = await stage.owned()
    topic = Topic(Topic.CONVERSATION, writer.lease.conversation)
    async with stage.store.follow([topic]) as hints:
        server.kill()
        server.start()
        lapsed = await awaited(hints, lambda hint: hint.lapsed)
        assert (lapsed.topic, lapsed.conversation) == (topic, writer.lease.conversation)
        await eventually(lambda: stage.store.append(writer.batch(note())), lambda _: True, "an answer")
        await awaited(hints, lambda hint: hint.head is not None)


async def test_following_during_an_outage(server: RedisServer):
    """The stream is there at once or soon, and goes on by itself when the server is back."""
    async with redis_servers.stage_on(server.url(timeout_s=0.2)) as stage:
        conversation = await stage.conversation()
        topic = Topic(Topic.CONVERSATION, conversation)
        server.stop()
        async with stage.store.follow([topic]) as hints:
            server.start()
            await awaited(hints, lambda hint: hint.lapsed)
            await eventually(lambda: stage.submit(conversation), lambda _: True, "an answer")
            await awaited(hints, lambda hint: hint.head is not None)


async def test_a_listener_that_is_cut_off_listens_anew(server: RedisServer, stage: Stage):
    conversation = await stage.conversation()
    topic = Topic(Topic.CONVERSATION, conversation)
    async with stage.store.follow([topic]) as hints:
        assert server.told("CLIENT", "KILL", "TYPE", "pubsub") == 1
        await awaited(hints, lambda hint: hint.lapsed)
        await stage.submit(conversation)
        await awaited(hints, lambda hint: hint.head is not None)


async def test_a_server_without_memory_takes_nothing_and_loses_nothing(server: RedisServer, stage: Stage):
    writer = await stage.owned()
    before = await stage.record(writer.lease.conversation), await stage.journal(writer.lease.conversation)
    server.told("CONFIG", "SET", "maxmemory", "1")
    for act in (stage.store.append(writer.batch(note())), stage.store.submit(stage.say("new"))):
        with pytest.raises(StoreUnavailableError, match="OOM"):
            await act
    assert await stage.store.records(["new"]) == [None]
    server.told("CONFIG", "SET", "maxmemory", "0")
    after = await stage.record(writer.lease.conversation), await stage.journal(writer.lease.conversation)
    assert after == before
    await writer.append(note())


# a clock that was set back


async def test_the_order_of_creation_outlives_a_clock_that_was_set_back(server: RedisServer, stage: Stage):
    """What was created while the server's clock was ahead: who has seen it creates behind it, in any partition."""
    before = await stage.conversation()
    (index,) = [key.decode() for key in server.told("KEYS", "*:created")]
    ahead = int(server.told("ZSCORE", index, before)) + 3600 * 10**6
    server.told("ZADD", index, ahead, before)
    later = await stage.another()
    assert [r.conversation for r in await stage.listed(store=later)] == [before]
    names = [f"after {n}" for n in range(20)]
    for name in names:
        await later.submit(Submit(name, None, CREATION))
    assert [r.conversation for r in await stage.listed()] == [before, *names]


async def test_a_partition_never_creates_behind_its_last(server: RedisServer):
    """Whoever has seen nothing of it."""
    async with RedisStore(server.url(), partitions=1) as first, RedisStore(server.url()) as fresh:
        await first.submit(Submit("before", None, CREATION))
        server.told("ZADD", "tenure:{0}:created", 10**15 * 5, "before")
        await fresh.submit(Submit("after", None, CREATION))
        page = await first.list(Filters(), None, 10)
        assert [record.conversation for record in page.items] == ["before", "after"]


async def test_a_lease_does_not_live_longer_when_the_clock_is_set_back(server: RedisServer, stage: Stage):
    me = await stage.node(ttl_s=SHORT_S)
    server.told("HINCRBY", f"tenure:{{nodes}}:node:{me}", "expires", 3600 * 10**6)
    alive = expect(Alive, await stage.store.bury(me, Death.EXPIRED))
    assert alive.expires_in_s <= SHORT_S
    await expired(stage, me)
    assert await stage.store.bury(me, Death.EXPIRED) == Buried()


# nodes that find their server again after longer than the ttl


class Resuming:
    """Nodes of one server, the turns that they run, and each claim that they try."""

    TTL_S = 1.5

    def __init__(self, url: str) -> None:
        self.going_on = asyncio.Event()
        """Until then every turn waits in its middle."""
        self.waiting = 0
        self.tried: list[Claim] = []
        self.nodes = [self._node(url, f"n{number}") for number in range(3)]

    def _node(self, url: str, name: str) -> tenure.Node:
        config = Config(node=name, ttl_s=self.TTL_S, sweep_s=0.3, lost_limit=100, witness=False)
        provider = FaultyProvider(Machine())
        node = tenure.Node(url, {"agent": self._turn}, provider=provider, config=config)
        claim_all = node.store.claim_all

        async def seen(claims: Sequence[Claim]) -> Sequence[Claimed]:
            self.tried += claims
            return await claim_all(claims)

        node.store.claim_all = seen
        return node

    async def _turn(self, turn: Any) -> None:
        self.waiting += 1
        await self.going_on.wait()
        await turn.emit("reply", {"to": turn.messages[-1].seq})


async def test_nodes_come_back_after_longer_than_the_ttl_without_a_storm(server: RedisServer):
    """Every incarnation is dead at once, and its successor claims what is left: who is late tries each epoch once, in vain."""
    names = [f"c{number}" for number in range(30)]
    async with AsyncExitStack() as stack:
        cluster = Resuming(server.url())
        nodes = [await stack.enter_async_context(node) for node in cluster.nodes]
        for number, name in enumerate(names):
            node = nodes[number % len(nodes)]
            await node.maybe_start_agent_loop(name, {})
            await node.send(name, "go on when the store is back", key="k")
        await _until(lambda: cluster.waiting >= len(names))
        before = {node.incarnation for node in nodes}
        given_up = [asyncio.ensure_future(node.facts.until(facts.GaveUp)) for node in nodes]
        server.kill()
        await asyncio.gather(*given_up)
        await asyncio.to_thread(later_than, cluster.TTL_S)
        cluster.tried.clear()
        cluster.going_on.set()
        await asyncio.to_thread(server.start)
        await _until(lambda: all(node.present and node.present.trusts() for node in nodes))
        assert not before & {node.incarnation for node in nodes}, "each registers anew"
        for name in names:
            async with asyncio.timeout(60):
                _ = [event async for event in nodes[0].events(name, until="turn_completed")]
        journals = {name: [event async for event in _whole(nodes[0], name)] for name in names}
        granted = 0
        for name, events in journals.items():
            claims = [event.epoch for event in events if event.kind == "claimed"]
            assert claims == sorted(set(claims)) and len(claims) >= 2, f"{name}: {claims}"
            assert [e.body["to"] for e in events if e.kind == "reply"] == [m.seq for m in events if m.kind == "message"]
            assert fold(Fold(), events).turn is None
            granted += len(claims) - 1
        tried = {(claim.incarnation, claim.conversation, claim.expected_epoch) for claim in cluster.tried}
        tokens = {claim.token for claim in cluster.tried}
        assert len(tokens) == len(tried), "nobody tries an epoch twice, but to repeat what was not answered"
        assert granted <= len(tried) <= len(nodes) * granted


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


async def _whole(node: tenure.Node, conversation: str) -> AsyncIterator[Event]:
    reading = expect(Reading, await node.store.read(conversation))
    for event in reading.events:
        yield event


# a server that was wiped


async def test_a_wiped_server_creates_nothing_from_a_lease(server: RedisServer, stage: Stage):
    writer = await owned(stage, 60)
    conversation = writer.lease.conversation
    server.told("FLUSHALL")
    assert await stage.store.append(writer.batch(note(), settle=OPEN)) == Fenced(None)
    assert await stage.store.release(writer.farewell()) == Fenced(None)
    assert await stage.store.publish(writer.lease, {}) == Fenced(None)
    assert await stage.store.submit(Submit(conversation, message("k"))) == Unknown()
    assert await stage.store.records([conversation]) == [None]
    assert server.told("KEYS", f"*{conversation}*") == []


async def test_after_a_wipe_the_token_keeps_two_owners_apart(server: RedisServer, stage: Stage):
    """The epoch is granted again, and batch numbers begin anew: only the token tells the leases apart."""
    old = await owned(stage, 60)
    conversation = old.lease.conversation
    server.told("FLUSHALL")
    assert await stage.store.renew(old.lease.incarnation, 0, "nonce", 60, Load()) == Dead()
    request = stage.claiming(conversation, await stage.node(ttl_s=60), create=CREATION)
    new = Writer(stage.store, expect(Held, await stage.store.claim(request)))
    assert new.lease.epoch == old.lease.epoch == 1
    for number in (1, 2, 3):
        late = replace(old.batch(note("late"), seen=0), number=number)
        assert isinstance(await stage.store.append(late), Fenced)
    await new.append(note("real"))
    assert [e.text for e in await stage.journal(conversation) if e.kind == "note"] == ["real"]


async def test_a_node_that_the_register_has_lost_is_dead_once_it_renews(server: RedisServer, stage: Stage):
    """The slot of the nodes went back to before it registered; what it owns elsewhere must not be stuck with it."""
    writer = await owned(stage, 60)
    me = writer.lease.incarnation
    server.told("DEL", "tenure:{nodes}:register", "tenure:{nodes}:living", f"tenure:{{nodes}}:node:{me}")
    other = await stage.node(ttl_s=60)
    request = stage.claiming(writer.lease.conversation, other, 1)
    assert await stage.store.bury(me, Death.EXPIRED) == Alive(float("inf")), "unknown is not dead"
    assert isinstance(await stage.store.claim(request), Elsewhere)
    assert await stage.store.renew(me, 0, "nonce", 60, Load()) == Dead()
    assert expect(Held, await stage.store.claim(request)).lease.epoch == 2


async def test_who_was_never_registered_claims_nothing(server: RedisServer, stage: Stage):
    """Its conversations could be taken from it by nobody: unknown is not dead."""
    for create in (None, CREATION):
        assert await stage.store.claim(stage.claiming("new", new_incarnation(), create=create)) in (Dead(), Unknown())
    assert await stage.store.records(["new"]) == [None]


# a record that was lost, with its journal left


async def at_epoch(stage: Stage, epoch: int) -> Writer:
    conversation = await stage.conversation()
    await stage.submit(conversation)
    incarnation = await stage.node(ttl_s=60)
    for _ in range(epoch - 1):
        await (await stage.claim(conversation, incarnation)).release()
    writer = await stage.claim(conversation, incarnation)
    assert writer.lease.epoch == epoch
    return writer


def lose_record(server: RedisServer, conversation: str) -> None:
    (name,) = server.told("KEYS", f"*:{conversation}:conversation_lock")
    assert server.told("DEL", name.decode()) == 1


async def test_a_lost_record_continues_the_journals_epoch(server: RedisServer, stage: Stage):
    old = await at_epoch(stage, 8)
    conversation = old.lease.conversation
    await old.append(note("of epoch 8"))
    journal = await stage.journal(conversation)
    lose_record(server, conversation)
    assert await stage.store.append(old.batch(note("late"))) == Fenced(None), "an append never makes a record"
    other = await stage.node(ttl_s=60)
    refused = await stage.store.claim(stage.claiming(conversation, other, 0, create=CREATION))
    assert isinstance(refused, Elsewhere | Stale), "the journal says epoch 8, and whose"
    await stage.store.bury(old.lease.incarnation, Death.EXITED)
    held = expect(Held, await stage.store.claim(stage.claiming(conversation, other, 8, create=CREATION)))
    assert (held.lease.epoch, held.created) == (9, False)
    after = await stage.journal(conversation)
    assert after[: len(journal)] == journal
    assert [(e.kind, e.epoch, e.seq) for e in after[len(journal) :]] == [("claimed", 9, len(journal) + 1)]
    assert isinstance(await stage.store.append(old.batch(note("late"))), Fenced)
    await Writer(stage.store, held).append(note("of epoch 9"))


async def test_a_lost_record_is_made_anew_from_its_journal(server: RedisServer, stage: Stage):
    conversation = "kept"
    creation = replace(CREATION, user_id="user", settings={"model": "m", "n": [2**60, 0.1]})
    first = stage.say(conversation, "first", key="k")
    await stage.store.submit(replace(first, create=creation))
    await stage.submit(conversation, "start")
    writer = await stage.claim(conversation, await stage.node(ttl_s=60))
    await stage.store.amend(conversation, 1, {"settings": {"model": "another"}})
    started = replace(note(), kind="turn_started", body={"commands": [2], "attempt": 1}, turn="t")
    await writer.append(started, settle=OPEN)
    before = await stage.record(conversation)
    lose_record(server, conversation)
    after = expect(Reading, await stage.store.read(conversation)).record
    assert after == replace(before, token=after.token, started=False, version=1, updated_at=after.updated_at)
    assert after.token not in (None, before.token), "whoever held it claims again"
    assert (after.wanted, after.turn, after.unsettled) == (True, TurnState.OPEN, 2)
    assert isinstance(await stage.store.append(writer.batch(note("late"))), Fenced)
    again = await stage.store.submit(replace(first, create=None))
    assert expect(Duplicate, again).seq == 2, "keys live as long as the journal"
    (found,) = (await stage.store.wanted(writer.lease.incarnation, [AGENT], None, 10)).items
    assert (found.conversation, found.epoch, found.token) == (conversation, 1, after.token), "once, as it is now"
    assert isinstance(await stage.store.claim(stage.claiming(conversation, writer.lease.incarnation, 1)), Held)
    assert [r.conversation for r in await stage.listed()] == [conversation]
    assert server.told("ZSCORE", _index(server, "named"), writer.lease.incarnation) == b"1"


def _index(server: RedisServer, name: str) -> str:
    (key,) = server.told("KEYS", f"tenure:{{*}}:{name}")
    return key.decode()


@pytest.mark.parametrize("what", ["submit", "claim", "read"])
async def test_whoever_asks_first_finds_the_record_again(server: RedisServer, stage: Stage, what: str):
    conversation = await stage.conversation()
    first = await stage.submit(conversation)
    lose_record(server, conversation)
    if what == "submit":
        assert (await stage.submit(conversation)).seq == first.seq + 1
    elif what == "claim":
        expect(Held, await stage.store.claim(stage.claiming(conversation, await stage.node(ttl_s=60))))
    else:
        assert expect(Reading, await stage.store.read(conversation)).record.head == first.seq


async def test_a_lost_record_that_was_found_again_meanwhile_stays_as_it_is(
    server: RedisServer, stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    """Who read the journal before a command came must not write what it meant then."""
    conversation = await stage.conversation()
    first = await stage.submit(conversation)
    lose_record(server, conversation)
    places = rebuild._places

    async def slowly(*of: Any) -> list[bytes]:
        found = await places(*of)
        monkeypatch.setattr(rebuild, "_places", places)
        await stage.submit(conversation)
        return found

    monkeypatch.setattr(rebuild, "_places", slowly)
    record = expect(Reading, await stage.store.read(conversation)).record
    assert (record.head, record.last_command, record.unsettled) == (first.seq + 1, first.seq + 1, 2)


async def test_a_lost_record_with_a_broken_journal_is_refused(server: RedisServer, stage: Stage):
    """Better no owner than one that believes half a journal."""
    conversation = await stage.conversation()
    await stage.submit(conversation)
    await stage.submit(conversation)
    lose_record(server, conversation)
    (journal,) = server.told("KEYS", f"*:{conversation}:journal")
    assert server.told("XDEL", journal.decode(), "0-2") == 1
    with pytest.raises(StoreError, match=r"journal cannot be read.*backup"):
        await stage.store.claim(stage.claiming(conversation, await stage.node(ttl_s=60), create=CREATION))
    assert await stage.store.records([conversation]) == [None]


async def test_the_journal_itself_refuses_an_older_epoch(server: RedisServer, stage: Stage):
    """The record went back behind its journal (a partial restore): the stream's ids are the fence that is left."""
    writer = await at_epoch(stage, 2)
    conversation = writer.lease.conversation
    (lock,) = server.told("KEYS", f"*:{conversation}:conversation_lock")
    saved = [part.decode() for part in server.told("HGETALL", lock.decode())]
    await writer.release()
    newer = await stage.claim(conversation, writer.lease.incarnation)
    await newer.append(note("of epoch 3"))
    server.told("DEL", lock.decode())
    server.told("HSET", lock.decode(), *saved)
    journal = await stage.journal(conversation)
    assert isinstance(await stage.store.append(writer.batch(note("of epoch 2"))), Fenced)
    assert isinstance(await stage.store.release(writer.farewell()), Fenced)
    assert await stage.journal(conversation) == journal
    accepted = await stage.submit(conversation)
    assert accepted.seq == journal[-1].seq + 1, "a command is journaled all the same, behind what stands there"
    held = expect(Held, await stage.store.claim(stage.claiming(conversation, writer.lease.incarnation, 2)))
    assert (held.lease.epoch, held.record.head) == (4, accepted.seq + 1)
    assert read_body((await stage.journal(conversation))[-1]).kind == "claimed"


# a fail-over to a replica that was behind


async def test_a_failover_to_a_stale_replica(server: RedisServer, tmp_path: Path):
    """Accepted writes are lost and an epoch is granted twice: cursors show the rewound journal, and G2 holds by the token."""
    replica_options = {"replicaof": f"127.0.0.1 {server.port}", "repl-diskless-sync-delay": "0"}
    with RedisServer(tmp_path, binary=server.binary, options=replica_options) as replica:
        until(lambda: replica.info("replication").get("master_link_status") == "up", "it follows")
        async with redis_servers.stage_on(server.url()) as stage:
            conversation = await stage.conversation()
            behind, lost = await stage.node(ttl_s=60), await stage.node(ttl_s=60)
            writer = await stage.claim(conversation, behind)
            await writer.append(note("kept"))
            server.replicated_by(replica)
            replica.told("REPLICAOF", "NO", "ONE")  # from here on it is behind
            await writer.append(note("lost"))
            await writer.append(note("lost as well"))
            await writer.release()
            zombie = await stage.claim(conversation, lost)
            await zombie.append(note("of the epoch that is granted twice"))
            seen = await stage.journal(conversation)
        server.kill()
        async with redis_servers.stage_on(replica.url()) as stage:
            rewound = await stage.journal(conversation)
            assert rewound == seen[: len(rewound)]
            record = await stage.record(conversation)
            assert record.head < seen[-1].seq, "a cursor is beyond the head: that is how a reader sees it"
            stale = replace(writer.batch(note("on")), number=3)
            assert isinstance(await stage.store.append(stale), Fenced), "a gap"
            unread = replace(writer.batch(note("on"), seen=seen[-1].seq), number=2)
            assert isinstance(await stage.store.append(unread), Fenced), "beyond the head"
            await stage.store.bury(behind, Death.EXITED)
            successor = await stage.claim(conversation, await stage.node(ttl_s=60))
            assert successor.lease.epoch == zombie.lease.epoch == 2, "granted twice"
            for number in (1, 2):
                late = replace(zombie.batch(note("zombie"), seen=0), number=number)
                assert isinstance(await stage.store.append(late), Fenced), "the token keeps G2"
            await successor.append(note("real"))
            now = await stage.journal(conversation)
            assert [e.text for e in now if e.kind == "note"] == ["kept", "real"]
            changed = {e.seq for e in now} & {e.seq for e in seen if e not in now}
            assert changed, "another event stands at a seq that was read before"
        async with served(replica.url()) as http:
            beyond, elsewhere = f"{seen[-1].seq}:2", f"{min(changed)}:1"
            assert seen[-1].seq > now[-1].seq >= min(changed), (
                "one beyond the head, one where an owner of epoch 2 has written"
            )
            for cursor in (beyond, elsewhere):
                told = await http.get(f"/conversations/{conversation}/events", params={"after": cursor})
                assert (told.status_code, told.json()["code"]) == (409, "rewound"), cursor
                stream = await http.get(f"/conversations/{conversation}/stream", headers={"Last-Event-ID": cursor})
                assert "event: rewound" in stream.text, "explicit, not silence; and the stream is at its end"
            told = await http.get(f"/conversations/{conversation}/events", params={"after": f"{rewound[-1].seq}:1"})
            assert [e["seq"] for e in told.json()["events"]] == [e.seq for e in now[len(rewound) :]], (
                "what was kept goes on"
            )


@asynccontextmanager
async def served(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server on this store that takes no conversation."""
    config = Config(node="reader", capacity=0, witness=False)
    async with tenure.Node(url, {"other": echo}, provider=FaultyProvider(Machine()), config=config) as node:
        app = httpx.ASGITransport(app=tenure.create_app(node))
        async with httpx.AsyncClient(transport=app, base_url="http://node", timeout=30) as http:
            yield http


async def echo(turn: Any) -> None:
    await turn.emit("reply", {"text": turn.messages[-1].text})


# waiting for replicas


async def test_wait_holds_an_answer_back_until_a_replica_has_it(server: RedisServer, tmp_path: Path):
    replica_options = {"replicaof": f"127.0.0.1 {server.port}", "repl-diskless-sync-delay": "0"}
    with RedisServer(tmp_path, binary=server.binary, options=replica_options) as replica:
        until(lambda: replica.info("replication").get("master_link_status") == "up", "it follows")
        async with redis_servers.stage_on(server.url(wait=1, timeout_s=1)) as stage:
            writer = await stage.owned()
            others = [await stage.owned() for _ in range(5)]
            server.forget_calls()
            answers = await stage.store.append_all([one.batch(note()) for one in others])
            assert all(isinstance(answer, Appended) for answer in answers)
            assert server.calls()["wait"] == 1, "one wait for all that travel together"
            replica.freeze()
            batch = writer.batch(note("once"))
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="1 replicas must have a write, 0 confirmed"):
                    await stage.store.append(batch)
            assert await stage.store.renew(writer.lease.incarnation, 0, "n", 60, Load()) == Granted(1), (
                "a beat waits for none"
            )
            assert (await stage.record(writer.lease.conversation)).head == 3, "nor does a reading"
            replica.thaw()
            answer = await eventually(lambda: stage.store.append(batch), lambda _: True, "an answer")
            assert isinstance(answer, Repeated)
