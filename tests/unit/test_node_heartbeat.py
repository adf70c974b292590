"""Trust: anchored to the start of the attempt, given up for good, in a thread of its own that no agent code holds up."""

import asyncio
import contextlib
import errno
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Provider,
    Rig,
    RiggedStore,
    answered_after,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    until,
)

from tenure.abc import About, Death, Load, Turn
from tenure.clock import Clock, Instant
from tenure.config import Config
from tenure.errors import NodeUnavailableError, StoreUnavailableError
from tenure.journal import Draft
from tenure.lease import IncarnationId, Timing
from tenure.node import Node
from tenure.node.heartbeat import Heartbeat, LoopWatch
from tenure.stores.memory import Disk
from tenure.testing.simloop import LoopClock

ME = IncarnationId("me")
TIMING = Timing(ttl_s=3.0, margin_s=0.3, stop_budget_s=0.5, beat_s=0.5)


class Beating:
    """A heartbeat on its own, and what it said."""

    def __init__(self, cluster: Cluster, *, disk: Disk | None = None) -> None:
        self.rig = Rig()
        self.clock: Clock = cluster.clock
        self.said: list[tuple[float, str]] = []
        self.store = (
            RiggedStore(disk, cluster.clock, self.rig, self.rig) if disk else cluster.rigged(self.rig, self.rig)
        )
        self.heartbeat = Heartbeat(
            self.store,
            ME,
            About("n", "test://n", 1, ("echo",), Instant(0.0)),
            timing=TIMING,
            clock=cluster.clock,
            rng=random.Random(1),
            load=Load,
            stop=lambda why: self.said.append((self.now(), "stop")),
            lost=lambda why: self.said.append((self.now(), "lost")),
        )
        self.started_at = 0.0

    def now(self) -> float:
        return self.clock.boottime().boot_s

    async def start(self) -> "Beating":
        self.started_at = self.now()
        await self.heartbeat.start(threaded=False, spawn=lambda work, name: asyncio.ensure_future(work))
        return self

    @property
    def words(self) -> list[str]:
        return [what for _, what in self.said]

    def confirmed(self) -> float:
        window = self.heartbeat.window
        assert window is not None
        return window.confirmed.boot_s - self.started_at


# --- the window -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_trust_counts_from_the_start_of_the_attempt_never_from_the_reply(cluster: Cluster):
    beating = Beating(cluster)
    beating.rig.slow["register"] = 0.3
    await beating.start()
    assert beating.confirmed() == 0.0
    beating.rig.slow["renew"] = 0.25
    await until(lambda: beating.rig.count("renew"))
    sent_at = beating.now() - beating.started_at
    await until(lambda: beating.confirmed() > 0)
    assert beating.confirmed() == pytest.approx(sent_at, abs=0.02)
    await beating.heartbeat.retire()


@in_virtual_time
async def test_a_renewal_that_took_two_transmissions_counts_from_the_first(cluster: Cluster):
    """The first one may be the one that the store granted: it has counted its ttl from there."""
    beating = await Beating(cluster).start()
    beating.rig.once("renew", lose_the_reply)
    await until(lambda: beating.rig.count("renew") == 2)
    first, second = (args for name, args in beating.rig.calls if name == "renew")
    assert first[:3] == second[:3]  # the same beat and nonce: a repetition
    await until(lambda: beating.confirmed() > 0)
    assert beating.confirmed() == pytest.approx(0.5, abs=0.02)
    await until(lambda: beating.rig.count("renew") == 3)
    assert beating.words == []
    await beating.heartbeat.retire()


@in_virtual_time
async def test_failed_renewals_with_time_left_stop_nothing(cluster: Cluster):
    beating = await Beating(cluster).start()
    for _ in range(4):
        beating.rig.once("renew", lose_the_request)
    await asyncio.sleep(10)
    assert beating.words == []
    assert beating.heartbeat.trusts()
    assert beating.confirmed() > 9
    await beating.heartbeat.retire()


@in_virtual_time
async def test_renewals_stay_under_their_time_limit(cluster: Cluster):
    """Rule 17: one that hangs is given up in time to try again before trust ends."""
    beating = await Beating(cluster).start()
    never = asyncio.Event()
    beating.rig.once("renew", held_until(never))
    await asyncio.sleep(10)
    assert beating.words == []
    assert beating.heartbeat.trusts()
    assert beating.confirmed() > 9
    assert TIMING.call_timeout_s <= (TIMING.ttl_s - TIMING.margin_s) / 4
    await beating.heartbeat.retire()


@in_virtual_time
async def test_it_stops_at_stop_at_and_is_lost_at_trusted_until(cluster: Cluster):
    beating = await Beating(cluster).start()
    beating.rig.down = True
    await until(lambda: "lost" in beating.words)
    assert beating.words == ["stop", "lost"]
    stop, lost = (at - beating.started_at for at, _ in beating.said)
    assert stop == pytest.approx(3.0 - 0.3 - 0.5, abs=0.05)
    assert lost == pytest.approx(3.0 - 0.3, abs=0.05)
    assert not beating.heartbeat.trusts()
    await beating.heartbeat.retire()


@in_virtual_time
async def test_c11_given_up_means_no_further_renewal(cluster: Cluster):
    """Replies are lost, requests are executed: who has stopped its loops must not keep its lease alive."""
    beating = await Beating(cluster).start()
    beating.rig.always("renew", lose_the_reply)
    await until(lambda: "stop" in beating.words)
    beating.rig.heal()
    renewals = beating.rig.count("renew")
    await asyncio.sleep(5)
    assert beating.rig.count("renew") == renewals
    assert beating.words == ["stop", "lost"]
    assert [n.expires_in_s > 0 for n in await cluster.store.nodes()] == [False]
    await beating.heartbeat.retire()
    assert cluster.dead(ME)


@in_virtual_time
async def test_after_a_loss_it_retires_only_when_it_is_told_that_the_loops_have_ended(cluster: Cluster):
    beating = await Beating(cluster).start()
    beating.rig.always("renew", lose_the_request)
    await until(lambda: "lost" in beating.words)
    await asyncio.sleep(1)
    assert beating.rig.count("bury") == 0
    await beating.heartbeat.retire()
    assert cluster.dead(ME)


@in_virtual_time
async def test_the_buried_hears_of_it_at_its_next_beat(cluster: Cluster):
    beating = await Beating(cluster).start()
    await cluster.store.bury(ME, Death.EXITED)
    await until(lambda: beating.words == ["stop", "lost"], 0.6)
    assert not beating.heartbeat.trusts()
    await beating.heartbeat.retire()


@in_virtual_time
async def test_c24_a_copy_of_the_process_that_renews_is_refused(cluster: Cluster):
    """A cloned machine: the beat of one copy is not the other's."""
    beating = await Beating(cluster).start()
    await until(lambda: beating.rig.count("renew") == 2)
    await asyncio.sleep(0.1)
    (me,) = await cluster.store.nodes()
    beat = me.beat
    await cluster.store.renew(ME, beat, "of the clone", 3.0, Load())
    await until(lambda: beating.words == ["stop", "lost"])
    await beating.heartbeat.retire()


@in_virtual_time
async def test_c23_a_store_whose_clock_jumps_ahead_ends_it_and_nothing_else_does(cluster: Cluster):
    assert cluster.loop is not None
    clock = LoopClock(cluster.loop, boot_s=50_000.0)
    beating = Beating(cluster)
    beating.store.clock = clock
    beating.rig.latency_s = 0
    await beating.start()
    await asyncio.sleep(5)
    assert beating.words == []
    clock.step_wall(-7200)
    await asyncio.sleep(2)
    assert beating.words == []  # wall time decides nothing
    clock.step_boot(3600)
    await until(lambda: beating.words == ["stop", "lost"], 1)
    await beating.heartbeat.retire()


# --- registration and retirement ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_registration_that_is_refused_or_not_answered_is_an_error_and_leaves_nothing(cluster: Cluster):
    refused = Beating(cluster)
    await cluster.store.register(ME, About("n", "a", 1, (), Instant(0.0)), 60)
    with pytest.raises(StoreUnavailableError, match="refused"):
        await refused.start()
    hung = Beating(cluster, disk=Disk())
    hung.rig.always("register", held_until(asyncio.Event()))
    with pytest.raises(StoreUnavailableError, match="in time"):
        await hung.start()
    for one in (refused, hung):
        assert not one.heartbeat.trusts()
        await one.heartbeat.retire()
        assert one.rig.count("renew") == 0


@in_virtual_time
async def test_it_retires_once_and_renews_no_more(cluster: Cluster):
    beating = await Beating(cluster).start()
    await asyncio.sleep(1)
    await asyncio.gather(beating.heartbeat.retire(), beating.heartbeat.retire())
    assert cluster.dead(ME)
    assert not beating.heartbeat.trusts()
    renewals = beating.rig.count("renew")
    await asyncio.sleep(5)
    await beating.heartbeat.retire()
    assert beating.rig.count("renew") == renewals
    assert beating.words == []
    assert beating.rig.count("bury") == 1


@in_virtual_time
async def test_one_that_is_told_to_leave_before_it_began_never_registers(cluster: Cluster):
    beating = Beating(cluster)
    await beating.heartbeat.retire()
    with pytest.raises(StoreUnavailableError):
        await beating.start()
    assert await cluster.store.nodes() == []


@in_virtual_time
async def test_a_waiter_that_goes_away_harms_nobody(cluster: Cluster):
    beating = Beating(cluster)
    under_way = asyncio.Event()
    beating.rig.once("register", held_until(under_way))
    starting = asyncio.ensure_future(beating.start())
    await until(lambda: beating.rig.count("register"))
    starting.cancel()
    under_way.set()
    await until(beating.heartbeat.trusts)
    beating.rig.once("bury", answered_after(stuck := asyncio.Event()))
    retiring = asyncio.ensure_future(beating.heartbeat.retire())
    await until(lambda: cluster.dead(ME))
    retiring.cancel()
    stuck.set()
    await beating.heartbeat.retire()
    assert beating.words == []


@in_virtual_time
async def test_retirement_is_bounded_when_the_store_does_not_answer(cluster: Cluster):
    beating = await Beating(cluster).start()
    beating.rig.always("bury", held_until(asyncio.Event()))
    before = asyncio.get_running_loop().time()
    await beating.heartbeat.retire()
    assert asyncio.get_running_loop().time() - before < TIMING.ttl_s


@in_virtual_time
async def test_an_error_that_nobody_foresaw_ends_trust(cluster: Cluster):
    async def fail(proceed: Any) -> Any:
        raise RuntimeError("a bug")

    beating = await Beating(cluster).start()
    beating.rig.once("renew", fail)
    await until(lambda: beating.words == ["lost"])
    assert not beating.heartbeat.trusts()
    await beating.heartbeat.retire()


# --- in threads, in real time ---------------------------------------------------------------------------------------


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("tenure-")}


@pytest.mark.blocking_ok  # what is tested is an agent that blocks the event loop
async def test_c22_blocked_event_loop():
    """It costs neither the lease nor a turn; it is reported, with the stack that blocks."""

    async def block(turn: Turn) -> None:
        time.sleep(1.6)
        await turn.journal([Draft("reply", {})])

    async with Cluster() as cluster:
        node = await cluster.add(agent=Agent(on_turn=block), ttl_s=1.0, blocked_loop_s=0.2)
        other = await cluster.add(capacity=0)
        old = node.incarnation
        said = await cluster.say(via=node)
        await until(lambda: cluster.settled(said))
        assert node.incarnation == old
        assert cluster.record().epoch == 1
        assert cluster.events("reply")[0].epoch == 1
        watch = node.node._watch
        assert watch is not None
        assert watch.stalls >= 1
        assert other.node.readiness() == []


@pytest.mark.blocking_ok  # as above
async def test_c22_the_children_die_when_trust_ends_whatever_the_event_loop_does():
    """Renewals are lost while an agent blocks the loop: the heartbeat's thread kills by itself, and the loop stops after."""
    killed_at: list[float] = []
    killer: list[str] = []

    class Deadly(Provider):
        def kill_now(self) -> None:
            killed_at.append(time.monotonic())
            killer.append(threading.current_thread().name)
            raise RuntimeError("and even if that fails")

    blocked: list[float] = []
    refused: list[str] = []

    async def block(turn: Turn) -> None:
        node.beats.down = True
        time.sleep(2.0)
        blocked.append(time.monotonic())
        assert turn.lost
        try:
            await turn.journal([Draft("late", {})])
        finally:
            refused.append("refused")

    async with Cluster() as cluster:
        provider = Deadly(standing=cluster.standing)
        node = await cluster.add(agent=Agent(on_turn=block), provider=provider, ttl_s=1.0, blocked_loop_s=60)
        old = node.incarnation
        await cluster.say(via=node)
        await until(lambda: refused)
        node.agent.on_turn = Agent().on_turn
        node.beats.down = False
        assert killed_at[0] < blocked[0]
        assert killer[0] == "tenure-heartbeat"
        await until(lambda: cluster.events("turn_completed"))
        assert cluster.events("late") == []
        assert node.incarnation != old


async def test_no_thread_outlives_its_node():
    before = threads()
    async with Cluster() as cluster:
        await cluster.add(ttl_s=1.0)
        assert "tenure-heartbeat" in threads()
    await until(lambda: threads() <= before)


async def test_no_thread_is_left_of_a_node_that_could_not_be_opened():
    before = threads()
    async with Cluster() as cluster:
        disk = cluster.disk
        rig, beats = Rig(), Rig()
        under_way = asyncio.Event()
        beats.always("register", held_until(under_way))
        node = Node(
            RiggedStore(disk, cluster.clock, rig, beats),
            {"echo": Agent()},
            provider=Provider(),
            config=Config(node="n", ttl_s=1.0),
        )
        opening = asyncio.ensure_future(node.__aenter__())
        await until(lambda: beats.count("register"))
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        await until(lambda: threads() <= before)
        assert [n for n in await cluster.store.nodes() if not n.dead] == []


async def test_a_node_whose_drain_fails_leaves_no_thread_and_no_lease():
    before = threads()
    cluster = Cluster()
    node = await cluster.add(ttl_s=1.0)
    old = node.incarnation

    async def broken(deadline_s: float | None = None) -> None:
        raise RuntimeError("a bug")

    node.node.drain = broken  # type: ignore[method-assign]
    node.stop.set()
    await asyncio.wait([node.life], timeout=20)
    assert isinstance(node.life.exception(), RuntimeError)
    await until(lambda: threads() <= before)
    assert cluster.dead(old)


def test_c24_a_forked_child_holds_nothing():
    """A copy of the process has equal leases; in the child they are given up before any of its code runs."""

    async def main() -> int:
        async with Cluster() as cluster:
            node = await cluster.add(ttl_s=5.0)
            await node.start()
            tenure = node.tenure()
            assert not tenure.lost
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: it is what people do
                child = os.fork()
            if child == 0:
                os._exit(0 if tenure.lost and not node.node._incarnation.trusts() else 1)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert not tenure.lost  # here it goes on
            assert (await node.start()).here
            return os.waitstatus_to_exitcode(status)

    assert asyncio.run(main()) == 0


@pytest.fixture
def reports() -> Iterator[list[str]]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keep = Keep()
    logging.getLogger("tenure.loop").addHandler(keep)
    yield said
    logging.getLogger("tenure.loop").removeHandler(keep)


async def test_a_heartbeat_that_finds_no_descriptors_is_no_end_of_the_node(monkeypatch: pytest.MonkeyPatch):
    """Its event loop takes some. A node that waited for a registration that never comes would not come back (found by chaos)."""
    here, failed, make = threading.get_ident(), list[int](), asyncio.events.new_event_loop

    def sometimes_none() -> asyncio.AbstractEventLoop:
        if threading.get_ident() != here and len(failed) < 2:
            failed.append(errno.EMFILE)
            raise OSError(errno.EMFILE, "Too many open files")
        return make()

    monkeypatch.setattr(asyncio.events, "new_event_loop", sometimes_none)
    async with Cluster() as cluster:
        node = await cluster.add(ttl_s=1.0)
        await until(lambda: node.node.readiness() == [])
        assert failed == [errno.EMFILE] * 2
        said = await cluster.say(via=node)
        await until(lambda: cluster.settled(said))


@pytest.mark.blocking_ok  # a watch over a blocked loop needs one
async def test_a_blocked_event_loop_is_reported_once_with_its_stack(reports: list[str]):
    watch = LoopWatch(asyncio.get_running_loop(), 0.05)
    watch.start()
    await asyncio.sleep(0.2)
    assert watch.stalls == 0
    time.sleep(0.5)
    await asyncio.sleep(0.2)
    watch.end()
    assert watch.stalls == 1
    assert "test_a_blocked_event_loop_is_reported_once" in reports[0]
    assert "asyncio.to_thread" in reports[0]


@in_virtual_time
async def test_a_node_without_a_lease_starts_nothing(cluster: Cluster):
    node = await cluster.add()
    node.beats.down = True
    await until(lambda: node.node._incarnation.given_up)  # type: ignore[union-attr]
    assert any("no lease" in reason for reason in node.node.readiness())
    with pytest.raises(NodeUnavailableError):
        await node.start()
    assert cluster.disk.conversations.get(C) is None
