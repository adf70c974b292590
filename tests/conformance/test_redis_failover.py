"""A store that moves under its users: fail-overs behind Sentinel, slots of a Cluster that change hands, servers that go away."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import redis_servers
from redis_servers import eventually

from tenure.abc import (
    Accepted,
    Appended,
    Dead,
    Death,
    Duplicate,
    Elsewhere,
    Granted,
    Held,
    Load,
    Repeated,
    Submit,
    Topic,
)
from tenure.errors import StoreUnavailableError
from tenure.stores.redis import RedisStore
from tenure.stores.redis.keys import Keyspace, slot_of
from tenure.testing.servers import RedisCluster, RedisSentinel, RedisServer, until
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import AGENT, CREATION, IDLE, Writer, awaited, expect, message, note

BINARIES = {"params": redis_servers.BINARIES.values(), "ids": redis_servers.BINARIES.keys()}
LONG_S = 600.0


@pytest.fixture(**BINARIES)
def sentinel(request: pytest.FixtureRequest) -> Iterator[RedisSentinel]:
    with RedisSentinel(redis_servers.folder(), binary=request.param) as sentinel:
        yield sentinel


@pytest.fixture(**BINARIES)
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    with RedisCluster(redis_servers.folder(), binary=request.param) as cluster:
        yield cluster


@pytest.fixture
async def behind(sentinel: RedisSentinel) -> AsyncIterator[Stage]:
    async with redis_servers.stage_on(sentinel.url(timeout_s=2)) as stage:
        yield stage


@pytest.fixture
async def across(cluster: RedisCluster) -> AsyncIterator[Stage]:
    async with redis_servers.stage_on(cluster.url(timeout_s=2)) as stage:
        yield stage


async def insisting(stage: Stage, writer: Writer, text: str) -> None:
    """Append, repeated unchanged until it is answered."""
    batch = writer.batch(note(text))
    answer = await eventually(lambda: stage.store.append(batch), lambda _: True, "an answer")
    done = answer.result if isinstance(answer, Repeated) else expect(Appended, answer)
    writer.number, writer.seen = batch.number, done.head


async def sent(stage: Stage, conversation: str, key: str) -> int:
    """Submit, repeated unchanged until it is answered; the seq."""
    asked = Submit(conversation, message(key))
    answer = await eventually(lambda: stage.store.submit(asked), lambda _: True, "an answer")
    assert isinstance(answer, Accepted | Duplicate)
    return answer.seq


# Sentinel


async def test_a_failover_under_load(sentinel: RedisSentinel, behind: Stage):
    """The primary is killed under clients and an owner; whoever repeats is answered, and everything stands once.

    What was accepted until then has reached the replica: without ``?wait`` nothing else is promised.
    """
    writer = await behind.owned()
    conversation, me = writer.lease.conversation, writer.lease.incarnation
    topic = Topic(Topic.CONVERSATION, conversation)
    acked: dict[str, int] = {}
    halfway, killed = asyncio.Barrier(4), asyncio.Event()

    async def client(number: int) -> None:
        for i in range(20):
            if i == 10:
                await halfway.wait()
                await killed.wait()
            acked[f"{number}-{i}"] = await sent(behind, conversation, f"{number}-{i}")

    async def owner() -> None:
        for i in range(20):
            if i == 10:
                await halfway.wait()
                await killed.wait()
            await insisting(behind, writer, f"{i}")

    async def fate() -> None:
        await halfway.wait()
        await asyncio.to_thread(sentinel.primary.replicated_by, sentinel.replica)
        await asyncio.to_thread(sentinel.primary.kill)
        killed.set()

    async with behind.store.follow([topic]) as hints:
        await asyncio.gather(client(1), client(2), owner(), fate())
        await awaited(hints, lambda hint: hint.lapsed)
        assert sentinel.primary_port() == sentinel.replica.port
        await insisting(behind, writer, "heard")
        head = writer.seen
        await awaited(hints, lambda hint: hint.head is not None and hint.head >= head)
    events = await behind.journal(conversation)
    assert {e.key: e.seq for e in events if e.is_command} == acked
    assert [e.text for e in events if e.kind == "note"] == [*(f"{i}" for i in range(20)), "heard"]
    assert await behind.store.renew(me, 0, "nonce", LONG_S, Load()) == Granted(1), "its lease went along"


async def test_a_primary_that_is_demoted_alive(sentinel: RedisSentinel, behind: Stage):
    """It still answers, as a replica: what it says is of no use, and the store finds the new one."""
    writer = await behind.owned()
    sentinel.primary.replicated_by(sentinel.replica)
    until(lambda: sentinel.ask("SENTINEL", "FAILOVER", sentinel.SERVICE) == b"OK", "Sentinel fails over")
    sentinel.failed_over()
    until(lambda: sentinel.primary.say("ROLE")[0] == b"slave", "the old primary follows the new one")
    await insisting(behind, writer, "after")
    assert (await behind.kinds(writer.lease.conversation))[-1] == "note"
    assert sentinel.replica.info("commandstats").keys() >= {"cmdstat_xadd"}
    async with RedisStore(sentinel.url()) as another:
        assert await another.records([writer.lease.conversation]) == [await behind.record(writer.lease.conversation)]


async def test_a_replica_that_takes_no_writes_is_left_for_the_primary(sentinel: RedisSentinel, behind: Stage):
    """READONLY on a connection that stays: a demotion that cut nobody off."""
    writer = await behind.owned()
    primary = sentinel.primary
    primary.told("REPLICAOF", "127.0.0.1", sentinel.replica.port)
    with pytest.raises(StoreUnavailableError, match=r"READONLY|fell|primary"):
        await behind.store.append(writer.batch(note("x")))
    primary.told("REPLICAOF", "NO", "ONE")
    sentinel.replica.told("REPLICAOF", "127.0.0.1", primary.port)
    await insisting(behind, writer, "after")


async def test_sentinel_that_knows_no_such_service(sentinel: RedisSentinel):
    with pytest.raises(StoreUnavailableError, match="does not know 'another'"):
        await RedisStore(sentinel.url().replace("/tenure/", "/another/")).__aenter__()


async def test_one_sentinel_of_several_is_enough(sentinel: RedisSentinel):
    url = sentinel.url().replace("redis+sentinel://", "redis+sentinel://127.0.0.1:1,")
    async with redis_servers.stage_on(url) as stage:
        await (await stage.owned()).append(note())


# Cluster


def slot(conversation: str) -> int:
    return slot_of(Keyspace("tenure", 64).conversation(conversation).tag)


async def spread(stage: Stage, cluster: RedisCluster) -> dict[RedisServer, Writer]:
    """A conversation on each server, all of one node."""
    incarnation = await stage.node(ttl_s=LONG_S)
    found: dict[RedisServer, Writer] = {}
    for n in range(1000):
        server = cluster.owner_of(slot(f"spread {n}"))
        if server not in found:
            request = stage.claiming(f"spread {n}", incarnation, create=CREATION)
            found[server] = Writer(stage.store, expect(Held, await stage.store.claim(request)))
        if len(found) == len(cluster.servers):
            return found
    raise AssertionError("no conversation on some server")


async def test_one_group_spans_the_cluster(cluster: RedisCluster, across: Stage):
    writers = await spread(across, cluster)
    answers = await across.store.append_all([writer.batch(note()) for writer in writers.values()])
    assert all(isinstance(answer, Appended) for answer in answers)
    names = {writer.lease.conversation for writer in writers.values()}
    assert {record.conversation for record in await across.listed()} == names
    assert {record and record.conversation for record in await across.store.records(sorted(names))} == names
    for name in names:
        await across.submit(name)
    (me,) = {writer.lease.incarnation for writer in writers.values()}
    assert (await across.sweep(me)).keys() == names
    await across.store.bury(me, Death.EXITED)
    other = await across.node(ttl_s=LONG_S)
    claims = [across.claiming(one.conversation, other, one.epoch) for one in (await across.sweep(other)).values()]
    assert all(isinstance(answer, Held) for answer in await across.store.claim_all(claims))


async def test_any_server_of_a_cluster_is_a_way_in(cluster: RedisCluster):
    """A plain redis:// URL; what it leads to says what it is."""
    for server in cluster.servers:
        async with redis_servers.stage_on(server.url(prefix=redis_servers.prefix())) as stage:
            conversations = [await stage.conversation() for _ in range(12)]
            assert all(await stage.store.records(conversations))
            assert len({cluster.owner_of(slot(conversation)).port for conversation in conversations}) > 1


async def test_a_slot_that_moves_under_its_owner(cluster: RedisCluster, across: Stage):
    """Every request is done once, where its keys are.

    In the middle (TRYAGAIN) a server refuses whatever needs several keys of the slot: writes wait for the end of the move.
    """
    writers = await spread(across, cluster)
    (source, writer), (target, _), *_ = writers.items()
    conversation = writer.lease.conversation
    moving = slot(conversation)
    target.told("CLUSTER", "SETSLOT", moving, "IMPORTING", cluster.id_of(source))
    source.told("CLUSTER", "SETSLOT", moving, "MIGRATING", cluster.id_of(target))
    keys = [key.decode() for key in source.told("CLUSTER", "GETKEYSINSLOT", moving, 1000)]
    before = await across.record(conversation)
    for key in keys:
        source.told("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        with pytest.raises(StoreUnavailableError, match="being moved"):
            await across.store.append(writer.batch(note("in the middle"), settle=IDLE))
        assert await across.record(conversation) == before, "ASK leads to where the record is"
    for server in cluster.servers:
        server.told("CLUSTER", "SETSLOT", moving, "NODE", cluster.id_of(target))
    await writer.append(note("after"))
    assert [e.text for e in await across.journal(conversation) if e.kind == "note"] == ["after"]
    assert (await across.listed())[0].conversation in {w.lease.conversation for w in writers.values()}


async def test_a_server_that_goes_away_takes_its_slots_only_for_a_while(cluster: RedisCluster, across: Stage):
    writers = await spread(across, cluster)
    for server in cluster.servers:
        server.told("CONFIG", "SET", "cluster-require-full-coverage", "no")
        server.told("CONFIG", "SET", "appendfsync", "always")
    gone, writer = list(writers.items())[-1]
    await writer.append(note("before"))
    gone.kill()
    with pytest.raises(StoreUnavailableError):
        await across.store.append(writer.batch(note("during")))
    for server, other in writers.items():
        if server is not gone:
            await insisting(across, other, "elsewhere")
    gone.start()
    await insisting(across, writer, "after")
    notes = [e.text for e in await across.journal(writer.lease.conversation) if e.kind == "note"]
    assert notes in (["before", "after"], ["before", "during", "after"])


async def test_a_late_claim_of_the_dead_is_found_by_the_sweep(across: Stage):
    """Its nodes live in another slot, so it may be granted; rule 7 makes that harmless."""
    conversation, dead = await across.conversation(), await across.node(ttl_s=LONG_S)
    await across.submit(conversation)
    warm = across.claiming(await across.conversation(), dead)
    expect(Held, await across.store.claim(warm))
    await (await across.another()).bury(dead, Death.EXITED)
    late = await across.store.claim(across.claiming(conversation, dead))
    assert isinstance(late, Held | Dead)
    other = await across.node(ttl_s=LONG_S)
    found = (await across.sweep(other))[conversation]
    held = expect(Held, await across.store.claim(across.claiming(conversation, other, found.epoch)))
    assert held.record.token != (late.lease.token if isinstance(late, Held) else None)
    again = await (await across.another()).claim(across.claiming(warm.conversation, other, 1))
    assert isinstance(again, Held), "who did not know of the death looks once more"


async def test_a_claim_never_takes_from_a_live_owner(across: Stage):
    writer = await across.owned()
    await writer.append(settle=IDLE)
    for store in (across.store, await across.another()):
        request = across.claiming(writer.lease.conversation, await across.node(), 1)
        assert isinstance(await store.claim(request), Elsewhere)
        assert isinstance(await store.claim(replace(request, expected_epoch=request.expected_epoch)), Elsewhere)
    assert await across.sweep(await across.node(), [AGENT]) == {}
