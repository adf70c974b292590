"""The faults of a FaultyStore, one at a time; and without any it passes the suite that every store passes."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tenure.abc import About, Accepted, Claim, Creation, Dead, Duplicate, Elsewhere, Granted, Hint, Load, Submit, Topic
from tenure.clock import Instant
from tenure.errors import StoreUnavailableError
from tenure.journal import Command, Delivery
from tenure.lease import Epoch, IncarnationId, Token
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.backing import Replica
from tenure.testing.faults import Conditions, FaultyStore, Link
from tenure.testing.simloop import LoopClock, SimLoop, simulate
from tenure.testing.store_suite import CASES, Case, exercise

C1 = "c1"


class Bench:
    """A memory store, and a faulty way to it."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.seen: list[tuple[str, float]] = []
        self.server = loop.process("store")
        self.plain = MemoryStore(clock=LoopClock(loop))
        self.link = Link()
        self.store = FaultyStore(
            self.plain, random.Random(1), self.link, served_in=self.server.context(), observer=self.observe
        )

    def observe(self, operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        self.seen.append((operation, self.loop.time()))

    async def submit(self, key: str) -> object:
        return await self.store.submit(message(key))


def message(key: str) -> Submit:
    return Submit(C1, Command("message", {"text": key}, key, Delivery.TURN), Creation(default_agent="a"))


def bench(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main(loop: SimLoop) -> None:
        await body(Bench(loop))
        assert loop.errors == []

    simulate(main)


def journaled(store: MemoryStore) -> list[str]:
    return [e.key for e in store.disk.conversations[C1].events if e.key is not None]


def test_a_healthy_link_only_takes_time():
    async def body(b: Bench) -> None:
        assert isinstance(await b.submit("k1"), Accepted)
        assert 0 < b.loop.time() < 0.01
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_a_lost_request_is_not_executed():
    async def body(b: Bench) -> None:
        b.link.conditions = Conditions(lose_request=1.0, timeout_s=0.5)
        with pytest.raises(StoreUnavailableError, match="submit_all"):
            await b.submit("k1")
        assert b.loop.time() == 0.5
        assert b.plain.disk.conversations == {}

    bench(body)


def test_a_lost_reply_looks_the_same_but_it_is_executed():
    async def body(b: Bench) -> None:
        b.link.conditions = Conditions(lose_reply=1.0)
        with pytest.raises(StoreUnavailableError):
            await b.submit("k1")
        assert journaled(b.plain) == ["k1"]
        b.link.conditions = Conditions()
        assert isinstance(await b.submit("k1"), Duplicate)

    bench(body)


def test_a_late_copy_executes_again_and_reads_have_none():
    async def body(b: Bench) -> None:
        b.link.conditions = Conditions(late_copy=1.0, copy_after_s=(2.0, 3.0))
        await b.submit("k1")
        await b.store.records([C1])
        await asyncio.sleep(10)
        assert [operation for operation, _ in b.seen] == ["submit_all", "records", "submit_all"]
        assert 2 <= b.seen[-1][1] <= 3.1
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_a_cut_link_and_a_mended_one():
    async def body(b: Bench) -> None:
        b.link.cut()
        with pytest.raises(StoreUnavailableError):
            await b.submit("k1")
        assert b.seen == []
        b.link.mend()
        assert isinstance(await b.submit("k1"), Accepted)

    bench(body)


def test_a_link_that_is_cut_one_way():
    async def body(b: Bench) -> None:
        b.link.cut(requests=False)
        with pytest.raises(StoreUnavailableError):
            await b.submit("k1")
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_a_store_that_stands_still_executes_afterwards():
    async def body(b: Bench) -> None:
        b.server.pause()
        with pytest.raises(StoreUnavailableError):
            await b.submit("k1")
        assert b.seen == []
        b.server.resume()
        await asyncio.sleep(1)
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_what_a_killed_process_had_sent_is_executed():
    async def body(b: Bench) -> None:
        node = b.loop.process("n1")
        b.link.conditions = Conditions(delay_s=(0.2, 0.3))
        node.spawn(b.submit("k1"))
        await asyncio.sleep(0.1)
        node.kill()
        await asyncio.sleep(1)
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_a_frozen_process_finds_the_answer_that_came_meanwhile():
    async def body(b: Bench) -> None:
        node = b.loop.process("n1")
        asked = node.spawn(b.submit("k1"))
        await asyncio.sleep(0)
        node.pause()
        await asyncio.sleep(60)
        node.resume()
        assert isinstance(await asked, Accepted)
        assert b.loop.time() >= 60

    bench(body)


def test_a_caller_that_is_cancelled_leaves_its_request_under_way():
    async def body(b: Bench) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.submit("k1"), 0.0001)
        await asyncio.sleep(1)
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_an_error_of_the_store_reaches_the_caller():
    async def body(b: Bench) -> None:
        bad = Submit(C1, Command("message", {"x": float("nan")}, "k1", Delivery.TURN), Creation())
        with pytest.raises(ValueError, match="JSON"):
            await b.store.submit(bad)

    bench(body)


async def collect(b: Bench, hints: list[Hint]) -> None:
    async with b.store.follow([Topic(Topic.CONVERSATION, C1)]) as stream:
        async for hint in stream:
            hints += [hint]


def test_hints_arrive_are_lost_and_lapse():
    async def body(b: Bench) -> None:
        hints: list[Hint] = []
        b.loop.process("n1").spawn(collect(b, hints))
        await asyncio.sleep(0.1)
        await b.submit("k1")
        await asyncio.sleep(0.1)
        b.link.conditions = Conditions(lose_hint=1.0)
        await b.submit("k2")
        await asyncio.sleep(0.1)
        b.link.conditions = Conditions()
        b.link.cut()
        await b.plain.submit(message("k3"))
        await asyncio.sleep(0.1)
        b.link.mend()
        await b.submit("k4")
        await asyncio.sleep(0.1)
        assert [(h.head, h.lapsed) for h in hints] == [(2, False), (5, True)]

    bench(body)


def test_a_hint_reaches_its_follower_though_the_one_who_caused_it_is_frozen():
    async def body(b: Bench) -> None:
        hints: list[Hint] = []
        b.loop.process("n1").spawn(collect(b, hints))
        await asyncio.sleep(0.1)
        other = b.loop.process("n2")
        other.spawn(b.submit("k1"))
        await asyncio.sleep(0)
        other.pause()
        await asyncio.sleep(1)
        assert [h.head for h in hints] == [2]

    bench(body)


def test_a_fail_over_takes_the_store_back():
    async def body(b: Bench) -> None:
        about = About("n1", "sim://n1", 10, ("a",), Instant(0.0))
        one, two = IncarnationId("i1"), IncarnationId("i2")
        await b.store.register(one, about, 3.0)
        await b.submit("k1")
        replica = Replica(b.plain.disk)
        await b.store.register(two, about, 3.0)
        await b.store.claim(Claim(C1, two, Token("t"), Epoch(0), "n1", "sim://n1", "start"))
        await b.submit("k2")
        replica.promote()
        assert journaled(b.plain) == ["k1"]
        assert isinstance(await b.store.renew(two, 0, "x", 3.0, Load()), Dead)
        assert isinstance(await b.store.renew(one, 0, "x", 3.0, Load()), Granted)
        await b.submit("k3")
        replica.promote()
        assert journaled(b.plain) == ["k1"]

    bench(body)


def test_all_of_it_is_a_function_of_the_seed():
    def trace(seed: int) -> list[tuple[str, float]]:
        async def main(loop: SimLoop) -> list[tuple[str, float]]:
            seen: list[tuple[str, float]] = []
            weather = Conditions(lose_request=0.2, lose_reply=0.2, late_copy=0.3, stall=0.2)
            store = FaultyStore(
                MemoryStore(clock=LoopClock(loop)),
                random.Random(seed),
                Link(weather),
                observer=lambda operation, arguments, result: seen.append((operation, loop.time())),
            )
            for number in range(30):
                try:
                    await store.submit(message(f"k{number}"))
                except StoreUnavailableError:
                    seen.append(("lost", loop.time()))
            return seen

        return simulate(main)

    assert trace(7) == trace(7)
    assert trace(7) != trace(8)


def test_elsewhere_needs_no_luck():
    """The port's values pass through unchanged."""

    async def body(b: Bench) -> None:
        about = About("n1", "sim://n1", 10, ("a",), Instant(0.0))
        for name in ("i1", "i2"):
            await b.store.register(IncarnationId(name), about, 3.0)
        await b.submit("k1")
        await b.store.claim(Claim(C1, IncarnationId("i1"), Token("t1"), Epoch(0), "n1", "x", "start"))
        second = await b.store.claim(Claim(C1, IncarnationId("i2"), Token("t2"), Epoch(1), "n2", "x", "start"))
        assert isinstance(second, Elsewhere)

    bench(body)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_on_a_healthy_link_it_is_a_store_like_any_other(case: Case):
    disk, rng = Disk(), random.Random(1)
    at_once = Conditions(delay_s=(0.0, 0.0), timeout_s=60.0)
    await exercise(case, lambda clock, limits: FaultyStore(MemoryStore(disk, clock, limits), rng, Link(at_once)))
