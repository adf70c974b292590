"""Single scenes, played by hand on a simulated cluster: how long a takeover takes, and what a zombie achieves."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from tenure.abc import Accepted, Creation, Submit
from tenure.journal import Command, Delivery
from tenure.lease import Timing
from tenure.testing.checker import check
from tenure.testing.cluster import Member, SimCluster, seeded_chance
from tenure.testing.faults import Conditions
from tenure.testing.history import Effect, Grant, History, Write
from tenure.testing.simagent import Plant, Step, script
from tenure.testing.simloop import SimLoop, simulate

TTL_S = 3.0
MOMENT_S = 0.3
"""A few round trips, the jitter of hints and the time that a runtime takes, in virtual time."""


class Scene:
    """Three servers, one conversation."""

    def __init__(self, loop: SimLoop) -> None:
        rng = random.Random(7)
        settings = {"ttl_s": TTL_S, "sweep_s": 1.0, "idle_s": 60.0, "drain_s": 1.0}
        plant = Plant(rng, takes_s=(0.01, 0.02))
        self.loop = loop
        self.cluster = SimCluster(loop, rng, settings=settings, conditions=Conditions(), plant=plant)
        self.history = self.cluster.recorder.history
        self._sent = 0

    async def begin(self) -> None:
        for name in ("n0", "n1", "n2"):
            self.cluster.start(self.cluster.add(name))
        await self.until(lambda: all(member.ready for member in self.cluster.members))

    async def send(self, *steps: Step, through: int = 0) -> int:
        """A message; its seq."""
        self._sent += 1
        command = Command("message", {"text": script(*steps)}, f"k{self._sent}", Delivery.TURN)
        member = self.cluster.members[through]
        assert member.node is not None and member.process is not None
        answer = await member.process.call(member.node.submit(Submit("c1", command, Creation(default_agent="sim"))))
        assert isinstance(answer, Accepted)
        return answer.seq

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(120):
            while not what():
                await asyncio.sleep(0.001)

    def kinds(self) -> list[str]:
        shadow = self.cluster.recorder.shadows.get("c1")
        return [event.kind for event in shadow.events] if shadow else []

    @property
    def grants(self) -> list[Grant]:
        return self.history.of(Grant)

    @property
    def owner(self) -> Member:
        return next(m for m in self.cluster.members if m.process and m.process.name == self.grants[-1].process)

    async def in_a_call(self, seconds: float = 60.0) -> Member:
        """A message whose call is under way, on its owner."""
        await self.send(["call", seconds, False])
        await self.until(lambda: "call_started" in self.kinds())
        return self.owner

    async def taken_over(self) -> float:
        """Wait for the next claim; how long it took."""
        before, since = len(self.grants), self.loop.time()
        await self.until(lambda: len(self.grants) > before)
        return self.loop.time() - since


def play(scene: Callable[[Scene], Awaitable[None]]) -> History:
    """Play a scene; whatever happens in it breaks no promise."""
    histories: list[History] = []

    async def main(loop: SimLoop) -> None:
        stage = Scene(loop)
        histories.append(stage.history)
        await stage.begin()
        await scene(stage)
        stage.cluster.recorder.finish(quiescent=False)
        assert loop.errors == []

    with seeded_chance(random.Random(7)):
        simulate(main)
    assert check(histories[0]) == []
    return histories[0]


def test_a_killed_owner_is_followed_within_its_ttl():
    async def scene(s: Scene) -> None:
        s.cluster.kill(await s.in_a_call(), restart_s=60)
        assert TTL_S * 0.8 < await s.taken_over() < TTL_S + MOMENT_S
        await s.until(lambda: "turn_completed" in s.kinds())
        assert "call_interrupted" in s.kinds()

    play(scene)


def test_a_killed_owner_with_a_witness_is_followed_at_once():
    async def scene(s: Scene) -> None:
        s.cluster.kill(await s.in_a_call(), restart_s=60, witness=True)
        assert await s.taken_over() < MOMENT_S

    play(scene)


def test_a_drained_owner_is_followed_without_waiting_for_any_ttl():
    async def scene(s: Scene) -> None:
        await s.send(["sleep", 0.6], ["emit"])  # handed over at a step boundary, or done before the deadline
        await s.until(lambda: "turn_started" in s.kinds())
        since = s.loop.time()
        s.cluster.drain(s.owner)
        await s.until(lambda: "released" in s.kinds())
        assert s.loop.time() - since < 1.0 + MOMENT_S
        await s.until(lambda: "turn_completed" in s.kinds())
        assert s.loop.time() - since < 1.6 + 2 * MOMENT_S

    play(scene)


def test_a_frozen_owner_finds_itself_fenced():
    async def scene(s: Scene) -> None:
        owner = await s.in_a_call(seconds=1.0)
        s.cluster.pause(owner, 4 * TTL_S)
        assert await s.taken_over() < TTL_S + MOMENT_S
        await s.until(lambda: "turn_completed" in s.kinds())
        await asyncio.sleep(4 * TTL_S)  # thawed by now: its call acts late, its result is refused
        assert [write.epoch for write in s.history.of(Write)] == sorted(w.epoch for w in s.history.of(Write))
        assert len(s.history.of(Effect)) <= 1
        assert s.kinds().count("call_interrupted") == 1

    play(scene)


def test_an_owner_that_is_cut_off_stops_before_it_is_followed():
    async def scene(s: Scene) -> None:
        owner = await s.in_a_call()
        process, since = owner.process, s.loop.time()
        assert process is not None
        s.cluster.cut(owner, 5 * TTL_S)
        await s.until(lambda: not s.cluster.recorder.alive(process))
        stopped_s = s.loop.time() - since
        assert stopped_s < TTL_S - Timing.of_ttl(TTL_S).margin_s
        assert stopped_s + await s.taken_over() < TTL_S + MOMENT_S

    play(scene)


def test_an_idle_conversation_of_a_dead_owner_is_woken_by_its_next_message():
    async def scene(s: Scene) -> None:
        await s.send(["emit"])
        await s.until(lambda: "turn_completed" in s.kinds())
        s.cluster.kill(s.owner, restart_s=60)
        await asyncio.sleep(5 * TTL_S)
        assert len(s.grants) == 1  # free, and nobody's
        living = next(i for i, member in enumerate(s.cluster.members) if member.ready)
        await s.send(["emit"], through=living)
        assert await s.taken_over() < MOMENT_S

    play(scene)


def test_a_store_that_stands_still_costs_no_conversation_that_outlives_it():
    async def scene(s: Scene) -> None:
        await s.in_a_call(seconds=2.0)
        s.cluster.stall_store(TTL_S / 3)
        await s.until(lambda: "turn_completed" in s.kinds())
        assert len(s.grants) == 1

    play(scene)
