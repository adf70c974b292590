"""Outages: a crash, silence. And what is counted: connections, round trips."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import postgres_servers
import pytest
from postgres_servers import eventually

from tenure.abc import Accepted, Appended, Duplicate, Granted, Held, Load, Repeated, Submit, Topic
from tenure.errors import StoreUnavailableError
from tenure.stores.postgres.link import Link, Statement
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import CREATION, Writer, expect, message, note

LONG_S = 600.0
OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenure'"


@pytest.fixture(**postgres_servers.EACH, scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Nobody else's: it is crashed, and its connections are counted."""
    with PostgresServer(request.param) as server:
        yield server


@pytest.fixture
async def stage(server: PostgresServer) -> AsyncIterator[Stage]:
    url = server.url(schema=postgres_servers.schema(), timeout_s=20, statement_s=10)
    async with postgres_servers.stage_on(url) as stage:
        yield stage


async def persist(writer: Writer, *texts: str) -> int:
    """Append as an owner does: an unknown outcome is repeated unchanged until it is answered. How often it was unknown."""
    unknown = 0
    for text in texts:
        batch = writer.batch(note(text))
        while True:
            try:
                answer = await writer.store.append(batch)
            except StoreUnavailableError:
                unknown += 1
                await asyncio.sleep(0.01)
                continue
            done = answer.result if isinstance(answer, Repeated) else expect(Appended, answer)
            writer.number, writer.seen = writer.number + 1, done.head
            break
    return unknown


async def test_a_crash_of_the_server_loses_nothing_that_was_accepted(server: PostgresServer, stage: Stage):
    writer = Writer(stage.store, await _held(stage))
    await persist(writer, "before")
    await asyncio.to_thread(server.kill)
    with pytest.raises(StoreUnavailableError):
        await stage.store.append(writer.batch(note("meanwhile")))
    await asyncio.to_thread(server.start)
    await persist(writer, "after")
    assert [e.text for e in await stage.journal(writer.lease.conversation) if e.kind == "note"] == ["before", "after"]


async def test_who_gives_up_on_a_silent_connection_leaves_it_to_nobody(server: PostgresServer, stage: Stage):
    """The heartbeat's next attempt does not queue up behind the one that got no answer."""
    incarnation = await stage.node(ttl_s=LONG_S)
    before = {pid for (pid,) in server.ask(OURS)}
    async with stage.store.sibling() as heart:
        expect(Granted, await heart.renew(incarnation, 0, "a", LONG_S, Load()))
        (pid,) = {pid for (pid,) in server.ask(OURS)} - before
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await heart.renew(incarnation, 1, "b", LONG_S, Load())
            async with asyncio.timeout(10):
                assert await heart.renew(incarnation, 1, "b", LONG_S, Load()) == Granted(2)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_silent_server_is_an_unknown_outcome_in_time(server: PostgresServer, stage: Stage):
    async with postgres_servers.stage_on(f"{stage.store.url}".replace("timeout_s=20", "timeout_s=1")) as hasty:
        await hasty.store.nodes()
        server.freeze()
        try:
            with pytest.raises(StoreUnavailableError, match="within 1 s"):
                await hasty.store.nodes()
        finally:
            server.thaw()
        await hasty.store.nodes()


# a session that is ended in mid-flight: before it has written anything, and after the commit, before the answer

WAITING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
STEPS = ["append", "submit", "claim", "renew"]


async def asked(stage: Stage, held: Held, step: str) -> Callable[[], Awaitable[object]]:
    """A request that is repeated unchanged."""
    store, lease = stage.store, held.lease
    batch, say = Writer(store, held).batch(note("once")), Submit(lease.conversation, message("k"))
    claim = stage.claiming(lease.conversation, lease.incarnation, 1)
    requests: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: store.append(batch),
        "submit": lambda: store.submit(say),
        "claim": lambda: store.claim(claim),
        "renew": lambda: store.renew(lease.incarnation, 0, "nonce", LONG_S, Load()),
    }
    return requests[step]


@pytest.mark.parametrize("step", STEPS)
async def test_a_session_that_is_ended_in_mid_flight_has_done_nothing(server: PostgresServer, stage: Stage, step: str):
    held = await _held(stage)
    repeat = await asked(stage, held, step)
    schema = stage.store.address.schema  # type: ignore[attr-defined]
    with server.connect() as session:
        session.execute("BEGIN")
        session.execute(f"SELECT FROM {schema}.conversations FOR UPDATE")
        session.execute(f"SELECT FROM {schema}.nodes FOR UPDATE")
        under_way = asyncio.ensure_future(repeat())
        await eventually(
            lambda: server.ask(WAITING), lambda ended: ended == [(True,)], "one session waits, and is ended"
        )
        with pytest.raises(StoreUnavailableError, match="repeat the request unchanged"):
            await under_way
        session.execute("ROLLBACK")
    assert type(await repeat()) in (Appended, Accepted, Held, Granted)
    kinds = {"append": ["note"], "submit": ["message"], "claim": ["claimed"], "renew": []}[step]
    assert await stage.kinds(held.lease.conversation) == ["created", "claimed", *kinds], "once"


@pytest.mark.parametrize("step", STEPS)
async def test_an_answer_that_is_lost_after_the_commit_is_given_again(
    stage: Stage, step: str, monkeypatch: pytest.MonkeyPatch
):
    held = await _held(stage)
    repeat = await asked(stage, held, step)
    run = Link.run

    async def lost(self: Link, *statements: Statement, **how: object) -> None:
        await run(self, *statements, **how)  # type: ignore[arg-type]
        await self.close()
        raise StoreUnavailableError("the connection fell")

    with monkeypatch.context() as patch:
        patch.setattr(Link, "run", lost)
        with pytest.raises(StoreUnavailableError, match="fell"):
            await repeat()
    first = await repeat()
    assert type(first) in (Repeated, Duplicate, Held, Granted)
    assert await repeat() == first
    kinds = {"append": ["note"], "submit": ["message"], "claim": ["claimed"], "renew": []}[step]
    assert await stage.kinds(held.lease.conversation) == ["created", "claimed", *kinds], "once"


# counted


def counted_connections(patch: pytest.MonkeyPatch) -> list[int]:
    """How many connections were open or being made, after each that began."""
    open_: set[int] = set()
    numbers, counts = itertools.count(), list[int]()
    connect, close = Link.connect, Link.close

    async def connecting(*where: Any, **how: Any) -> Link:
        open_.add(number := next(numbers))
        counts.append(len(open_))
        try:
            link = await connect(*where, **how)
        except BaseException:
            open_.discard(number)
            raise
        link.number = number  # type: ignore[attr-defined]
        return link

    async def closing(self: Link) -> None:
        await close(self)
        open_.discard(getattr(self, "number", -1))

    patch.setattr(Link, "connect", connecting)
    patch.setattr(Link, "close", closing)
    return counts


async def test_connections_are_bounded(server: PostgresServer, monkeypatch: pytest.MonkeyPatch):
    counts = counted_connections(monkeypatch)
    async with postgres_servers.stage_on(
        server.url(schema=postgres_servers.schema(), timeout_s=20, statement_s=10)
    ) as stage:
        store, held = stage.store, await _held(stage)
        async with store.sibling() as heart, store.follow([Topic(Topic.WANTED)]):
            answers = await asyncio.gather(
                store.submit_all([Submit(f"c{i}", message("k"), CREATION) for i in range(200)]),
                *(store.read(f"c{i}") for i in range(100)),
                *(store.publish(held.lease, {"n": i}) for i in range(100)),
                *(heart.nodes() for _ in range(20)),
            )
    assert all(isinstance(one, Accepted) for one in answers[0])
    assert 5 <= max(counts) <= 10, (
        "five to write and tell, two to read, one to listen; the heartbeat's store has at most two"
    )


async def test_the_heartbeat_has_a_connection_that_nothing_else_can_hold_up(server: PostgresServer, stage: Stage):
    """Every session of the node's store is stuck; its lease is renewed all the same."""
    held = await _held(stage)
    store, incarnation, writer = stage.store, held.lease.incarnation, Writer(stage.store, held)

    def everything() -> list[asyncio.Task[Any]]:
        """As much as all lanes can have under way, and more."""
        some: list[Awaitable[Any]] = [store.append(writer.batch(note()))]
        some += [store.submit(Submit(f"c{i}", message("k"), CREATION)) for i in range(20)]
        some += [store.read(f"c{i}") for i in range(20)] + [store.nodes() for _ in range(5)]
        some += [store.publish(held.lease, {"n": i}) for i in range(5)]
        return [asyncio.ensure_future(one) for one in some]

    async with store.follow([Topic(Topic.WANTED)]), AsyncExitStack() as stack:
        await asyncio.gather(*everything())
        stuck = [pid for (pid,) in server.ask(OURS)]
        heart = await stack.enter_async_context(store.sibling())
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)
        try:
            waiting = everything()
            for beat in range(3):
                async with asyncio.timeout(10):
                    assert await heart.renew(incarnation, beat, f"n{beat}", LONG_S, Load()) == Granted(beat + 1)
            assert not all(one.done() for one in waiting)
        finally:
            for pid in stuck:
                os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*waiting)


async def test_round_trips(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []
    run = Link.run

    async def counted(self: Link, *statements: Statement, **how: object):
        if not any("tell(" in one.sql for one in statements):
            sent.append(len(statements))
        return await run(self, *statements, **how)  # type: ignore[arg-type]

    held = await _held(stage)
    incarnation = held.lease.incarnation
    writer = Writer(stage.store, held)
    async with stage.store.sibling() as heart:
        await heart.nodes()
        await stage.store.submit_all([Submit(f"w{i}", message("k"), CREATION) for i in range(3)])
        await stage.store.wanted(incarnation, ["agent"], None, 10)
        monkeypatch.setattr(Link, "run", counted)
        await stage.store.claim(stage.claiming("new", incarnation, create=CREATION))
        await writer.append(note(), note())
        await stage.store.submit(Submit("new", message("k")))
        await stage.store.read("new", snapshot=True)
        await stage.store.wanted(incarnation, ["agent"], None, 10)
        await heart.renew(incarnation, 0, "n", LONG_S, Load())
        await writer.release()
    assert sent == 7 * [1], "one each: start, append, message, wake-up (read), sweep, heartbeat, release"


async def test_no_write_notifies(server: PostgresServer, stage: Stage):
    """NOTIFY takes a lock of the whole database at commit: whoever writes must not."""
    texts = server.ask(
        "SELECT proname, prosrc FROM pg_proc WHERE pronamespace::regnamespace::text LIKE 't%%' AND prosrc LIKE '%%pg_notify%%'"
    )
    assert {name for name, _ in texts} == {"publish", "tell"}


async def _held(stage: Stage) -> Held:
    conversation = await stage.conversation()
    incarnation = await stage.node(ttl_s=LONG_S)
    return expect(Held, await stage.store.claim(stage.claiming(conversation, incarnation)))


async def test_an_idle_store_asks_nothing(server: PostgresServer, stage: Stage):
    await stage.node()
    await eventually(
        lambda: server.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure' AND state = 'active'"
        ),
        lambda rows: rows == [(0,)],
        "nothing runs",
    )
