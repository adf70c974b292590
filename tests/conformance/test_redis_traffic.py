"""What goes over the wire, counted by the server: round trips, and work that does not grow with what is stored or held."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace

import pytest
import redis_servers

import tenure
from tenure import facts
from tenure.abc import Append, Appended, Death, Fenced, Filters, Held, Load, Reading, Reason, Repeated
from tenure.config import Config
from tenure.conversation import Settle
from tenure.errors import StoreUnavailableError
from tenure.lease import Epoch, IncarnationId, Token
from tenure.node.claimer import Claimer
from tenure.stores.redis.scripts import Call, Share, all_scripts, joined, script
from tenure.stores.redis.servers import Servers
from tenure.testing.provider import FaultyProvider, Machine
from tenure.testing.servers import RedisServer, Watched
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import AGENT, CREATION, IDLE, OPEN, expect, note

LONG_S = 600.0
PATIENCE_S = 60.0


@pytest.fixture(params=redis_servers.BINARIES.values(), ids=redis_servers.BINARIES.keys(), scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Nobody else's, so that every count is ours."""
    with RedisServer(redis_servers.folder(), binary=request.param) as server:
        yield server


@pytest.fixture
async def stage(server: RedisServer) -> AsyncIterator[Stage]:
    async with redis_servers.stage_on(server.url(prefix=redis_servers.prefix())) as stage:
        yield stage


# one round trip


async def test_a_claim_of_a_new_conversation(server: RedisServer, stage: Stage):
    incarnation = await stage.node()
    server.forget_calls()
    with Watched(server) as seen:
        expect(Held, await stage.store.claim(stage.claiming("new", incarnation, create=CREATION)))
    assert seen.commands == ["EVALSHA"]
    calls = server.calls()
    assert calls["evalsha"] == 1
    assert not calls.keys() & {"eval", "script", "script|load", "multi", "watch"}


async def test_a_takeover(server: RedisServer, stage: Stage):
    writer, other = await stage.owned(), await stage.node()
    await (await stage.another()).bury(writer.lease.incarnation, Death.EXITED)
    with Watched(server) as seen:
        expect(Held, await stage.store.claim(stage.claiming(writer.lease.conversation, other, 1)))
    assert seen.commands == ["EVALSHA"]


async def test_an_append(server: RedisServer, stage: Stage):
    writer = await stage.owned()
    server.forget_calls()
    with Watched(server) as seen:
        await writer.append(note(), note(), settle=OPEN)
    assert seen.commands == ["EVALSHA"]
    assert (server.calls()["evalsha"], server.calls()["xadd"]) == (1, 2)


async def test_every_other_write_and_a_reading(server: RedisServer, stage: Stage):
    writer = await stage.owned()
    conversation = writer.lease.conversation
    with Watched(server) as seen:
        await stage.submit(conversation)
        await stage.store.publish(writer.lease, {"text": "…"})
        await stage.store.seal(conversation, "name", b"x", 0)
        await stage.store.amend(conversation, 1, {"title": "t"})
        await stage.store.put_paper("kind", "id", {}, 0)
        await stage.store.read(conversation, 1, snapshot=True)
        await writer.release()
        await stage.store.delete(conversation, Epoch(1), "user")
    assert seen.commands == 8 * ["EVALSHA"]


# work that does not grow


async def test_a_heartbeat_does_not_grow_with_what_is_held(server: RedisServer, stage: Stage):
    incarnation = await stage.node(ttl_s=LONG_S)

    async def beat(number: int) -> dict[str, int]:
        server.forget_calls()
        await stage.store.renew(incarnation, number, f"nonce {number}", LONG_S, Load(owned=number))
        return {name: calls for name, calls in server.calls().items() if not name.startswith(("config", "info"))}

    holding_nothing = await beat(0)
    claims = [stage.claiming(f"held {n}", incarnation, create=CREATION) for n in range(300)]
    assert all(isinstance(answer, Held) for answer in await stage.store.claim_all(claims))
    assert await beat(1) == holding_nothing == {"evalsha": 1, "hmget": 1, "time": 1, "hset": 1}


async def test_an_idle_sweep_does_not_grow_with_what_is_stored(server: RedisServer, stage: Stage):
    me = await stage.node(ttl_s=LONG_S)

    async def sweep() -> tuple[list[str], dict[str, int]]:
        server.forget_calls()
        with Watched(server) as seen:
            await stage.store.nodes()
            assert (await stage.store.wanted(me, [AGENT], None, 64)).items == ()
        indexes = {name: calls for name, calls in server.calls().items() if name[0] in "zhx"}
        return sorted(seen.commands), indexes

    empty = await sweep()
    assert empty[0] == sorted(["ZRANGE", "TIME", "ZUNION", "HGETALL", "EVALSHA", "ZRANGE"])
    for n in range(100):
        await stage.conversation()
        held = expect(Held, await stage.store.claim(stage.claiming(f"held {n}", me, create=CREATION)))
        await stage.store.append(Append(held.lease, 1, held.record.head, (), IDLE))
    assert await sweep() == empty
    await stage.submit(conversation := await stage.conversation())
    backed_off = await stage.claim(conversation, me)
    farewell = backed_off.farewell(settle=Settle(runnable=True), reason=Reason.FAILED, retry_in_s=LONG_S)
    await stage.store.release(farewell)
    assert (await sweep())[0] == empty[0], "what is not due is not fetched"


async def test_a_list_costs_its_page(server: RedisServer, stage: Stage):
    for _ in range(200):
        await stage.conversation()
    server.forget_calls()
    page = await stage.store.list(Filters(), None, 10)
    assert (len(page.items), server.calls()["hgetall"]) == (10, 10)
    assert server.calls()["zrangebyscore"] == 64, "one look at each partition"


async def test_reading_on_costs_what_is_new(server: RedisServer, stage: Stage):
    """However long the journal is, and however many owners it had."""
    writer = await stage.owned()
    conversation = writer.lease.conversation
    for _ in range(20):
        await writer.append(*(note() for _ in range(50)))
        await writer.release(settle=Settle(runnable=False))
        writer = await stage.claim(conversation, writer.lease.incarnation)
    head = (await stage.record(conversation)).head
    for after in (0, 1, head // 2, head - 10):
        server.forget_calls()
        reading = expect(Reading, await stage.store.read(conversation, after, 10))
        assert [e.seq for e in reading.events] == list(range(after + 1, after + 11))
        calls = server.calls()
        assert (calls["evalsha"], calls["xrange"], calls["zrevrangebyscore"]) == (1, 1, 1)


# a whole node


CONSOLE = {"config", "info", "hscan"}
"""What the test itself asks, and no store."""
BEAT = {"evalsha": 1, "hmget": 1, "time": 1, "hset": 1}
SWEEP = {
    **{"evalsha": 2, "zrangebylex": 1},  # papers for this node; a look at the partitions
    **{"zcard": 64, "time": 2, "zunion": 1},
    **{"zrange": 2, "hgetall": 1},  # who lives, twice: judged first, then looked past
}
"""With one node, and nothing that is wanted."""


async def echo(turn):
    await turn.emit("reply", {"text": turn.messages[-1].text})


class Observed:
    """A node that sweeps only when hastened, and what its server was asked, by the server's own statistics."""

    def __init__(self, server: RedisServer, node: tenure.Node, prefix: str) -> None:
        self.node = node
        self.resting = asyncio.Event()
        self._server = server
        self._prefix = prefix

    def _beat(self) -> int:
        """How often the server has renewed the node."""
        key = f"{self._prefix}:{{nodes}}:node:{self.node.incarnation}"
        _, (_, beat) = self._server.told("HSCAN", key, 0, "MATCH", "beat", "COUNT", 100)
        return int(beat)

    def _look(self) -> tuple[Counter[str], int]:
        """The statistics at an instant between two beats."""
        while True:
            beat, calls = self._beat(), self._server.calls()
            if beat == self._beat():
                return Counter({name: n for name, n in calls.items() if name.partition("|")[0] not in CONSOLE}), beat

    def forget(self) -> None:
        self._before, self._beat_before = self._look()

    @property
    def beats(self) -> int:
        """How many there were since."""
        return self._beat() - self._beat_before

    @property
    def asked(self) -> dict[str, int]:
        """What was asked since, apart from the beats, and from the listener's sign of life (one in some seconds)."""
        calls, beat = self._look()
        calls.subtract(self._before)
        calls.subtract({name: each * (beat - self._beat_before) for name, each in BEAT.items()})
        return {name: n for name, n in calls.items() if n and name != "ping"}

    async def sweep(self) -> None:
        """One, from its beginning to its rest."""
        claimer = self.node._claimer
        assert claimer is not None
        self.resting.clear()
        claimer.hasten()
        await self.rest()

    async def rest(self) -> None:
        """The sweep is over, and nothing hastens another."""
        async with asyncio.timeout(PATIENCE_S):
            await self.resting.wait()


type Opened = Callable[[float], AbstractAsyncContextManager[Observed]]


@pytest.fixture
def observed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A node that passivates what is idle for so long."""

    @asynccontextmanager
    async def opened(idle_s: float) -> AsyncIterator[Observed]:
        prefix = redis_servers.prefix()
        config = Config(node="observed", ttl_s=1.5, sweep_s=15, idle_s=idle_s, reap_s=LONG_S, witness=False)
        url, provider = server.url(prefix=prefix), FaultyProvider(Machine())
        one = Observed(server, tenure.Node(url, {"echo": echo}, provider=provider, config=config), prefix)

        def pause(claimer: Claimer) -> float:
            if not claimer._hinted.is_set():
                one.resting.set()
            return LONG_S

        monkeypatch.setattr(Claimer, "_pause_s", pause)
        async with one.node:
            await one.rest()
            assert one.node.readiness() == [], "nothing is left that hastens a sweep"
            one.forget()
            yield one

    return opened


async def test_a_start_by_a_node(observed: Opened):
    """New, by hand, to its live loop: a claim, a reading, an append that asks for the runtime, one that all is ready."""
    async with observed(LONG_S) as one:
        info = await one.node.maybe_start_agent_loop("new", {})
        assert (info.epoch, info.here) == (1, True)
        asked = one.asked
        assert asked["evalsha"] == 4
        assert not asked.keys() & {"eval", "script", "script|load", "multi", "watch"}


async def test_a_release_by_a_node(observed: Opened):
    """A start, which idles for a moment, is let go with one more."""
    async with observed(0.1) as one:
        released = asyncio.ensure_future(one.node.facts.until(facts.Released))
        await one.node.maybe_start_agent_loop("new", {})
        assert (await asyncio.wait_for(released, PATIENCE_S)).reason == "idle"
        assert one.asked["evalsha"] == 4 + 1


@pytest.mark.timeout(180)
async def test_an_idle_node_asks_the_same_whatever_it_owns(observed: Opened):
    """Per heartbeat, and per sweep: with no loop, with ten and with a hundred that live here and wait."""
    async with observed(LONG_S) as one:
        for owned in (0, 10, 100):
            for number in range(one.node.owned, owned):
                await one.node.maybe_start_agent_loop(f"idle {number}", {})
            assert one.node.owned == owned
            await one.sweep()  # hints of what was started have been heard
            one.forget()
            while one.beats < 6:
                await one.node.facts.until(facts.Renewed)
            assert one.asked == {}, "nothing but beats, none of which costs more"
            for number in (1, 2, 3):
                await one.sweep()
                assert one.asked == {name: number * each for name, each in SWEEP.items()}, f"with {owned} owned"


# travelling together


@asynccontextmanager
async def proxy(server: RedisServer) -> AsyncIterator[tuple[int, list[int]]]:
    """A way to the server on which every write is seen: its port, and how many bytes came at once."""
    sizes: list[int] = []

    async def passed_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection("127.0.0.1", server.port)

        async def forth() -> None:
            while data := await client.read(1 << 20):
                sizes.append(len(data))
                to_upstream.write(data)
            to_upstream.close()

        async def back() -> None:
            while data := await upstream.read(1 << 20):
                to_client.write(data)
            to_client.close()

        with suppress(OSError):
            await asyncio.gather(forth(), back())

    async with await asyncio.start_server(passed_on, "127.0.0.1", 0, limit=1 << 22) as listening:
        yield listening.sockets[0].getsockname()[1], sizes


async def test_what_is_asked_at_once_travels_together(server: RedisServer):
    async with proxy(server) as (port, sizes):
        url = f"redis://127.0.0.1:{port}/0?prefix={redis_servers.prefix()}"
        async with redis_servers.stage_on(url) as stage:
            writers = [await stage.owned() for _ in range(40)]
            sizes.clear()
            answers = await asyncio.gather(*(stage.store.append(writer.batch(note())) for writer in writers))
            assert all(isinstance(answer, Appended) for answer in answers)
            assert len(sizes) <= 4, f"40 appends of as many tasks came in {len(sizes)} pieces"


async def test_plain_batches_of_many_are_one_call_and_each_has_its_answer(server: RedisServer, stage: Stage):
    """One that settles, one with another's token and one that is repeated go by themselves, and fail nobody else."""
    writers = [await stage.owned() for _ in range(8)]
    repeated = writers[1].batch(note("again"))
    first = expect(Appended, await stage.store.append(repeated))
    batches = [writer.batch(note(f"note {n}"), note("…")) for n, writer in enumerate(writers)]
    batches[0], batches[1] = replace(batches[0], settle=OPEN), repeated
    batches[2] = replace(batches[2], lease=replace(batches[2].lease, token=Token("forged")))
    server.forget_calls()
    answers = await stage.store.append_all(batches)
    assert server.calls()["evalsha"] == 1 + 3
    assert [type(answer) for answer in answers] == [Appended, Repeated, Fenced, *5 * [Appended]]
    assert expect(Repeated, answers[1]).result == first
    for writer in writers[3:]:
        kinds = [event.kind for event in expect(Reading, await stage.store.read(writer.lease.conversation)).events]
        assert kinds == ["created", "claimed", "note", "note"]


# the same request twice, and a server that has forgotten the scripts


class Unsent:
    """Requests that are held back: what would have gone over the wire."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    async def of(self, act: Awaitable[object]) -> tuple[str | int, ...]:
        """The command of a request, which is not sent."""
        seen: list[tuple[str | int, ...]] = []

        async def held_back(_: Servers, tag: str, call: Call, *rest: object, durable: bool = True) -> None:
            seen.append(call.command())
            raise StoreUnavailableError("held back")

        async def stays(_: Servers, tag: str, share: Share) -> None:
            await held_back(_, tag, joined([share]))

        with self._monkeypatch.context() as patched:
            patched.setattr(Servers, "run", held_back)
            patched.setattr(Servers, "join", stays)
            with pytest.raises(StoreUnavailableError):
                await act
        (command,) = seen
        return command


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> Unsent:
    return Unsent(monkeypatch)


async def test_a_duplicate_evalsha_changes_nothing(server: RedisServer, stage: Stage, unsent: Unsent):
    """Token and epoch, key, number and digest, beat: each script recognises its own repetition."""
    writer = await stage.owned()
    conversation, me = writer.lease.conversation, writer.lease.incarnation

    async def twice(act: Awaitable[object]) -> list[bytes]:
        command = await unsent.of(act)
        first = server.told(*command)
        before = await stage.record(conversation), await stage.journal(conversation)
        second = server.told(*command)
        assert (await stage.record(conversation), await stage.journal(conversation)) == before
        # A script for many answers each: here it was asked by one.
        return [(answer[0] if isinstance(answer[0], list) else answer)[0] for answer in (first, second)]

    store = stage.store
    assert await twice(store.renew(me, 0, "nonce", LONG_S, Load())) == [b"granted", b"granted"]
    assert await twice(stage.submit(conversation)) == [b"accepted", b"duplicate"]
    assert await twice(store.append(writer.batch(note(), settle=OPEN))) == [b"appended", b"repeated"]
    writer.number, writer.seen = 1, 4
    assert await twice(store.release(writer.farewell())) == [b"released", b"released"]
    assert await twice(store.claim(stage.claiming(conversation, me, 1))) == [b"held", b"held"]
    assert await twice(store.amend(conversation, 1, {"settings": {"a": 1}})) == [b"amended", b"stale"]
    assert await twice(store.bury(me, Death.EXITED)) == [b"buried", b"buried"]
    (node,) = await store.nodes()
    assert (node.incarnation, node.beat) == (IncarnationId(me), 1)
    command = await unsent.of(store.delete(conversation, Epoch(2), "user"))
    assert [server.told(*command) for _ in range(2)] == 2 * [[b"deleted", b"3"]]


@pytest.mark.usefixtures("stage")  # somebody was here before
async def test_a_connection_brings_the_scripts_that_the_server_lacks_and_no_other(server: RedisServer):
    """Before 7.0 each one that is sent goes to the append-only file and to the replicas: 180 KB for each connection."""

    async def opened() -> tuple[int, list[int]]:
        before = int(server.info("persistence")["aof_current_size"])
        async with redis_servers.stage_on(server.url(prefix=redis_servers.prefix())) as another:
            await another.node()
        grown = int(server.info("persistence")["aof_current_size"]) - before
        return grown, server.told("SCRIPT", "EXISTS", *(one.sha for one in all_scripts()))

    texts = sum(len(one.text) for one in all_scripts())
    grown, known = await opened()
    assert grown < texts / 5 and all(known)
    server.told("SCRIPT", "FLUSH")
    _, known = await opened()
    assert all(known)


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server: RedisServer, stage: Stage):
    writers = [await stage.owned() for _ in range(10)]
    server.told("SCRIPT", "FLUSH")
    answers = await stage.store.append_all([writer.batch(note()) for writer in writers])
    assert all(isinstance(answer, Appended) for answer in answers)
    for writer in writers:
        assert (await stage.kinds(writer.lease.conversation)).count("note") == 1


@pytest.mark.parametrize("settle", [OPEN, None], ids=["append", "append_many"])
async def test_noscript_in_the_middle_of_a_pipeline_leaves_no_gap(
    server: RedisServer, stage: Stage, unsent: Unsent, settle: Settle | None
):
    """The first batch meets NOSCRIPT, the second finds the script loaded: the exact numbers refuse it (C4)."""
    writer = await stage.owned()
    first = await unsent.of(stage.store.append(writer.batch(note("one"), settle=settle)))
    second = await unsent.of(stage.store.append(replace(writer.batch(note("two"), settle=settle), number=2)))
    server.told("SCRIPT", "FLUSH")
    assert str(server.say(*first)).startswith("NOSCRIPT")
    server.told("SCRIPT", "LOAD", script("append" if settle else "append_many").text)
    answers = [server.say(*one)[0] for one in (second, first, second)]
    if settle:
        assert answers == [b"fenced", b"appended", b"appended"]
    else:
        assert [bool(answer) for answer in answers] == [False, True, True], "left alone, then done"
    notes = [e.text for e in await stage.journal(writer.lease.conversation) if e.kind == "note"]
    assert notes == ["one", "two"]
