"""A seed's life of a cluster: who asks for what, what goes wrong and when, and whether the promises were kept.

``run(seed)`` is a pure function. It draws a scenario, lets clients work while faults fall on servers, network, store
and runtimes, heals everything, waits until the cluster is at rest, lets every server leave, and judges the history.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

from tenure.abc import (
    Accepted,
    Creation,
    Duplicate,
    Reading,
    Refused,
    Submit,
)
from tenure.errors import ConversationOwnedElsewhereError, ProvisioningError, StoreError, TenureError
from tenure.journal import Command, Delivery, JsonObject, Policy
from tenure.testing.backing import MemoryBacking
from tenure.testing.checker import Guarantee, Violation, check
from tenure.testing.cluster import Member, SimCluster, listening, seeded_chance
from tenure.testing.faults import Conditions
from tenure.testing.history import Attempt, Grant, History, Look, Start, Unread
from tenure.testing.simagent import Plant, Step, script
from tenure.testing.simloop import SimDeadlockError, SimLoop, SimTimeoutError, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tenure.testing.backing import Backing
    from tenure.testing.simloop import LoopClock

PATIENCE_S = 4.0
"""How long a client waits for one answer."""
LIMIT_S = 240.0
"""The virtual time in which a healed cluster must have come to rest."""

THEMES: dict[str, tuple[str, ...]] = {
    "calm": (),
    "crashes": ("kill", "kill", "kill", "drain"),
    "freezes": ("pause", "pause", "slow", "kill"),
    "network": ("cut", "cut", "cut_requests", "cut_replies", "stall_store", "lag"),
    "slow replies": ("lag", "lag", "lag", "kill"),
    "takeovers": ("take_over", "take_over", "take_over", "pause"),
    "leaving": ("drain", "drain", "kill", "pause"),
    "runtimes": ("provider", "provider", "kill", "pause"),
    "operators": ("take_over", "take_over", "stop", "delete", "kill", "pause"),
    "clocks": ("step_wall", "step_wall_store", "pause", "kill", "cut"),
    "store clock": ("step_store_clock", "pause", "kill", "step_wall_store"),
    "everything": (
        "kill",
        "pause",
        "slow",
        "cut",
        "cut_requests",
        "cut_replies",
        "lag",
        "stall_store",
        "drain",
        "provider",
        "take_over",
        "stop",
        "delete",
        "step_wall",
    ),
    "fail-over": ("fail_over", "fail_over", "fail_over", "pause", "kill", "drain"),
}
"""What can happen in a scenario of each theme; a word that stands twice is twice as likely."""


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed stands for. ``Scenario.of(seed)``, or by hand."""

    seed: int
    theme: str
    nodes: int
    conversations: int
    clients: int
    asks_each: int
    faults: int
    active_s: float
    settings: dict[str, Any]
    conditions: Conditions
    outlives_nodes: bool
    drift: float
    """How much faster or slower than true the servers' clocks may run."""
    mixed: bool
    """The first conversation is for an agent that only the first server has."""

    @classmethod
    def of(cls, seed: int, theme: str | None = None) -> Scenario:
        """The scenario of a seed; `theme` null takes them in turn."""
        rng = random.Random(f"scenario {seed}")
        theme = theme if theme is not None else list(THEMES)[seed % len(THEMES)]
        ttl_s = rng.choice([0.8, 1.5, 3.0])
        bad = theme not in ("calm", "clocks") and rng.random() < 0.7
        return cls(
            seed=seed,
            theme=theme,
            nodes=rng.randint(2, 4),
            conversations=rng.randint(1, 4),
            clients=rng.randint(2, 4),
            asks_each=rng.randint(3, 7),
            faults=rng.randint(3, 12) if THEMES[theme] else 0,
            active_s=rng.uniform(4.0, 12.0),
            settings={
                "ttl_s": ttl_s,
                "sweep_s": rng.choice([0.3, 1.0]),
                "idle_s": rng.choice([0.3, 1.0, 4.0]),
                "drain_s": rng.choice([0.5, 3.0]),
                "start_timeout_s": 3.0,
                "turn_timeout_s": 60.0,
                "backoff_s": 0.2,
                "reap_s": rng.choice([1.0, 4.0]),
                "capacity": rng.choice([4, 1000]),
            },
            conditions=_conditions(rng, ttl_s) if bad else Conditions(),
            outlives_nodes=rng.random() < 0.5,
            drift=0.02,
            mixed=rng.random() < 0.2,
        )


def _conditions(rng: random.Random, ttl_s: float) -> Conditions:
    def maybe(most: float) -> float:
        return rng.uniform(0, most) if rng.random() < 0.6 else 0.0

    return Conditions(
        delay_s=(0.0005, rng.choice([0.003, 0.02, 0.08 * ttl_s])),
        stall=maybe(0.03),
        lose_request=maybe(0.05),
        lose_reply=maybe(0.08),
        late_copy=maybe(0.15),
        lose_hint=maybe(0.5),
    )


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed."""

    scenario: Scenario
    violations: list[Violation]
    timeline: list[str]
    history: History
    digest: str
    virtual_s: float
    steps: int

    @property
    def ok(self) -> bool:
        return not self.violations

    def report(self) -> str:
        """The timeline, what was broken, and the command that shows it again."""
        s = self.scenario
        return "\n".join(
            [
                f"seed {s.seed} ({s.theme}): {s.nodes} servers, {s.conversations} conversations, {s.settings}",
                f"    {s.conditions}",
                *self.timeline,
                "",
                *map(str, self.violations),
                "",
                f"replay: TENURE_SIM_SEED={s.seed} .venv/bin/pytest tests/simulation/test_seeds.py",
            ]
        )


def run(scenario: Scenario | int, stored_in: Callable[[LoopClock], Backing] = MemoryBacking) -> Outcome:
    """Live a scenario and judge it. Two runs of one seed agree on every step (``digest``), also on different stores."""
    given = Scenario.of(scenario) if isinstance(scenario, int) else scenario
    rng = random.Random(f"life {given.seed} {given.theme}")
    life: list[_Life] = []
    errors: list[str] = []
    virtual_s, steps = 0.0, 0

    async def main(loop: SimLoop) -> None:
        nonlocal virtual_s, steps
        life.append(_Life(loop, rng, given, stored_in))
        try:
            await life[0].live()
        finally:
            life[0].recorder.closed = True
            life[0].cluster.backing.close()
            errors.extend(loop.errors)
            virtual_s, steps = loop.time(), loop.steps

    with seeded_chance(rng), listening(errors, unless=lambda: not life or life[0].recorder.closed):
        try:
            simulate(main, limit_s=given.active_s + LIMIT_S * 3)
        except (SimDeadlockError, SimTimeoutError) as stuck:
            errors.append(str(stuck))
    recorder = life[0].cluster.recorder
    violations = [*life[0].broken, *check(recorder.history)]
    failed = list(dict.fromkeys(errors))[:10]
    violations += [Violation(Guarantee.TAKEOVER, "", "something failed that must not", (e,)) for e in failed]
    digest = f"{recorder.digest} {steps}"
    return Outcome(given, violations, recorder.timeline, recorder.history, digest, virtual_s, steps)


@final
class _Life:
    """One run of a scenario."""

    def __init__(
        self, loop: SimLoop, rng: random.Random, scenario: Scenario, stored_in: Callable[[LoopClock], Backing]
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.scenario = scenario
        self.broken: list[Violation] = []
        plant = Plant(rng, outlives_nodes=scenario.outlives_nodes)
        self.cluster = SimCluster(
            loop,
            rng,
            settings=dict(scenario.settings),
            conditions=replace(scenario.conditions),
            plant=plant,
            stored_in=stored_in,
        )
        self.recorder = self.cluster.recorder
        self.conversations = [f"c{number}" for number in range(scenario.conversations)]
        self.policies = {c: rng.choice(list(Policy)) for c in self.conversations}
        self.agents = dict.fromkeys(self.conversations, "sim") | ({"c0": "rare"} if scenario.mixed else {})
        self.healed = False

    async def live(self) -> None:
        scenario, rng = self.scenario, self.rng
        for number in range(scenario.nodes):
            rate = 1 + rng.uniform(-scenario.drift, scenario.drift)
            agents = ("sim", "rare") if number == 0 else ("sim",)
            self.cluster.start(self.cluster.add(f"n{number}", agents, rate))
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(Client(self, f"u{number}").live()) for number in range(scenario.clients)]
            person = group.create_task(Client(self, "person").answer())
            await self._suffer()
            self.cluster.heal()
            self.healed = True
            await asyncio.wait(clients)
            rested = await self._come_to_rest()
            person.cancel()
        if rested:
            await self._look_everywhere()
            await self._leave()
        self.recorder.finish(quiescent=rested)

    async def _suffer(self) -> None:
        """The faults of the scenario, at their times."""
        kinds = THEMES[self.scenario.theme]
        times = sorted(self.rng.uniform(0.3, self.scenario.active_s) for _ in range(self.scenario.faults))
        for at in times:
            await asyncio.sleep(at - self.loop.time())
            strike(self, self.rng.choice(kinds))
        await asyncio.sleep(max(0.0, self.scenario.active_s - self.loop.time()))

    async def _come_to_rest(self) -> bool:
        """Wait until nothing is left to do, and see that nothing is done when there is nothing to do."""
        until = self.loop.time() + LIMIT_S
        rest_s = float(self.scenario.settings["idle_s"]) * 1.5 + 3.0
        since = self.loop.time()
        grants = len(self.recorder.history.of(Grant))
        while True:
            restless = self.recorder.restless()
            if restless:
                since = self.loop.time()
                grants = len(self.recorder.history.of(Grant))
                if since > until:
                    what = f"not at rest {LIMIT_S:.0f} s after all was healed"
                    self.broken.append(Violation(Guarantee.TAKEOVER, "", what, tuple(restless)))
                    return False
            elif self.loop.time() - since > rest_s:
                break
            await asyncio.sleep(0.25)
        idle_claims = self.recorder.history.of(Grant)[grants:]
        if len(idle_claims) > len(self.conversations):  # one each may have been under way
            what = f"{len(idle_claims)} claims in {rest_s:.1f} s in which there was nothing to do"
            self.broken.append(Violation(Guarantee.TAKEOVER, "", what, tuple(map(repr, idle_claims[:6]))))
        return True

    async def _look_everywhere(self) -> None:
        """Every server can show every conversation (G8)."""
        for member in self.cluster.members:
            for conversation in self.recorder.shadows:
                await look(self, member, conversation, must=True)

    async def _leave(self) -> None:
        self.recorder.note("everybody leaves")
        try:
            await self.cluster.shut_down(LIMIT_S)
        except TimeoutError:
            left = [str(m.process) for m in self.cluster.members if m.process is not None and not m.process.dead]
            self.broken.append(Violation(Guarantee.TAKEOVER, "", "servers did not leave", tuple(left)))
        if self.recorder.history.excused("rewound"):
            return
        backing = self.cluster.backing
        for name in backing.names():
            stored = backing.get(name)
            owner = stored.record.owner if stored is not None else None
            if owner is not None and not backing.is_dead(owner.incarnation):
                what = f"still owned by {owner.address} after every server has left"
                self.broken.append(Violation(Guarantee.TAKEOVER, name, what))


def strike(life: _Life, kind: str) -> None:
    """Let one fault of this kind happen, to whom it may."""
    rng, cluster = life.rng, life.cluster
    member = rng.choice(cluster.members)
    ttl_s = float(life.scenario.settings["ttl_s"])
    match kind:
        case "kill":
            cluster.kill(member, rng.choice([0.1, 0.5, 3.0]), witness=rng.random() < 0.5)
        case "pause":
            cluster.pause(member, rng.uniform(0.1, 3.0) * ttl_s)
        case "slow":
            cluster.slow(member, rng.uniform(0.0005, 0.008), rng.uniform(0.5, 2.0) * ttl_s)
        case "cut":
            cluster.cut(member, rng.uniform(0.1, 3.0) * ttl_s)
        case "cut_requests":
            cluster.cut(member, rng.uniform(0.1, 3.0) * ttl_s, replies=False)
        case "cut_replies":
            cluster.cut(member, rng.uniform(0.1, 3.0) * ttl_s, requests=False)
        case "lag":
            cluster.lag(member, rng.choice([0.2, 0.6]) * rng.random() * ttl_s, rng.uniform(0.5, 2.0) * ttl_s)
        case "stall_store":
            cluster.stall_store(rng.uniform(0.1, 2.0) * ttl_s)
        case "drain":
            cluster.drain(member)
        case "provider":
            trouble(life, rng.uniform(0.5, 4.0))
        case "step_wall" | "step_wall_store":
            cluster.step_wall(member if kind == "step_wall" else None, rng.choice([-3600.0, 3600.0, 0.5]))
        case "step_store_clock":
            cluster.step_store_clock(rng.choice([-3600.0, -ttl_s, ttl_s / 2, 2 * ttl_s]))
        case "fail_over":
            cluster.fail_over(rng.choice([0.05, 0.3, 1.0]) * rng.random())
        case _:
            operator = Client(life, "operator")
            asked = operator.ask_for(kind, rng.choice(life.conversations))
            life.loop.create_task(asked)


def trouble(life: _Life, seconds: float) -> None:
    """The provider fails, or hangs, for a while."""
    plant, rng = life.cluster.plant, life.rng
    plant.fails, plant.hangs = rng.uniform(0.2, 1.0), rng.choice([0.0, 0.1])
    plant.fails_for_good = rng.choice([0.0, 0.0, 0.3])
    life.recorder.note(f"runtimes fail for {seconds:.1f} s ({plant.fails:.0%}, {plant.hangs:.0%} hang)")

    def mend() -> None:
        plant.fails = plant.hangs = 0.0

    life.loop.call_later(seconds, mend)


async def look(life: _Life, member: Member, conversation: str, *, must: bool = False) -> None:
    """Read a journal through a server."""
    node, process, now = member.node, member.process, life.loop.time
    if node is None or process is None:
        if must:
            life.recorder.history.add(Unread(conversation, member.name, now(), "the server is not there"))
        return
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await process.call(node.store.read(conversation))
    except (StoreError, TimeoutError, ProcessLookupError) as error:
        if must:
            life.recorder.history.add(Unread(conversation, process.name, now(), repr(error)))
        return
    if isinstance(answer, Reading):
        shown = tuple((int(e.seq), e.epoch, e.kind) for e in answer.events)
        life.recorder.history.add(Look(conversation, process.name, now(), shown))


@final
class Client:
    """Somebody outside of the cluster, who asks any server and asks again when there is no answer."""

    def __init__(self, life: _Life, name: str) -> None:
        self.life = life
        self.name = name
        self._asked = 0

    @property
    def _rng(self) -> random.Random:
        return self.life.rng

    async def live(self) -> None:
        """Ask for this and that, until there were enough."""
        scenario = self.life.scenario
        pace_s = scenario.active_s / scenario.asks_each
        for _ in range(scenario.asks_each):
            await asyncio.sleep(self._rng.uniform(0, 2 * pace_s))
            what = self._rng.choices(
                ["message", "burst", "start", "start_here", "interrupt", "stop", "look", "amend"],
                [12, 2, 2, 4, 1, 0.6, 3, 1],
            )[0]
            await self.ask_for(what, self._rng.choice(self.life.conversations))

    async def answer(self) -> None:
        """Answer what any conversation waits for."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.3, 1.5))
            for name, shadow in list(self.life.recorder.shadows.items()):
                turn = shadow.fold.turn
                if turn is not None and turn.ask is not None and not shadow.deleted and not shadow.fold.stopped:
                    await self.submit(name, "answer", {"ask": turn.ask, "answer": "yes"}, Delivery.NOW)

    async def ask_for(self, what: str, conversation: str) -> None:
        """One wish."""
        match what:
            case "message":
                await self.submit(conversation, "message", {"text": self._script()}, Delivery.TURN)
            case "burst":
                for _ in range(3):
                    await self.submit(conversation, "message", {"text": script(["emit"])}, Delivery.TURN)
            case "start":
                await self.submit(conversation, "start", {}, Delivery.NOW)
            case "interrupt":
                await self.submit(conversation, "interrupt", {}, Delivery.NOW)
            case "stop":
                await self.submit(conversation, "stop", {"queue": self._rng.random() < 0.5}, Delivery.NOW)
                await asyncio.sleep(self._rng.uniform(0, 3))
                if self._rng.random() < 0.8:
                    await self.submit(conversation, "start", {}, Delivery.NOW)
            case "look":
                await look(self.life, self._rng.choice(self.life.cluster.members), conversation)
            case _:
                await self._operate(what, conversation)

    async def _operate(self, what: str, conversation: str) -> None:
        member = self._rng.choice(self.life.cluster.members)
        node, process = member.node, member.process
        if node is None or process is None:
            return
        if what == "start_here":
            await self._start(member, conversation, node.maybe_start_agent_loop(conversation))
            return
        stored = self.life.cluster.backing.get(conversation)
        if stored is None:
            return
        record = stored.record
        if what == "take_over":
            await self._start(member, conversation, node.take_over(conversation, record.epoch))
            return
        work: Coroutine[Any, Any, Any]
        if what == "delete":
            self.life.recorder.note(f"{conversation} is to be deleted")
            work = node.store.delete(conversation, record.epoch, self.name)
        else:
            work = node.store.amend(conversation, record.version, {"title": what, "settings": {"n": self._asked}})
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.call(work)
        except (StoreError, TimeoutError, ProcessLookupError):
            return

    async def _start(self, member: Member, conversation: str, work: Coroutine[Any, Any, Any]) -> None:
        process, started = member.process, self.life.loop.time()
        assert process is not None, "it was asked"
        outcome, epoch, owner = "no", None, None
        try:
            async with asyncio.timeout(PATIENCE_S * 2):
                info = await process.call(work)
            outcome, epoch = ("here", info.epoch) if info.here else ("moved on", None)
        except ConversationOwnedElsewhereError as elsewhere:
            outcome, epoch, owner = "elsewhere", elsewhere.owner.epoch, elsewhere.owner.incarnation
        except ProvisioningError:
            outcome = "provisioning"
        except (TenureError, TimeoutError, ProcessLookupError) as error:
            outcome = type(error).__name__
        self.life.recorder.history.add(
            Start(conversation, process.name, started, self.life.loop.time(), outcome, epoch, owner)
        )

    async def submit(self, conversation: str, kind: str, body: JsonObject, delivery: Delivery) -> None:
        """Submit under one key until there is an answer."""
        self._asked += 1
        key = f"{self.name}-{self._asked}-{self.life.loop.time():.3f}"
        create = Creation(default_agent=self.life.agents[conversation], policy=self.life.policies[conversation])
        request = Submit(conversation, Command(kind, body, key, delivery), create)
        for _ in range(200):
            ready = [member for member in self.life.cluster.members if member.ready]
            if ready:
                attempt = await self._attempt(self._rng.choice(ready), request, key, kind)
                self.life.recorder.attempt(attempt)
                if attempt.outcome != "no-answer":
                    return
            await asyncio.sleep(self._rng.uniform(0.1, 0.6))

    async def _attempt(self, member: Member, request: Submit, key: str, kind: str) -> Attempt:
        node, process = member.node, member.process
        assert node is not None, "it is ready"
        assert process is not None, "it is ready"
        started = self.life.loop.time()
        outcome, seq, reason = "refused", None, ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await process.call(node.submit(request))
            match answer:
                case Accepted(seq=seq):
                    outcome = "accepted"
                case Duplicate(seq=seq):
                    outcome = "duplicate"
                case Refused(reason=reason):
                    pass
                case other:
                    reason = type(other).__name__
        except (StoreError, TimeoutError, ProcessLookupError) as error:
            outcome, reason = "no-answer", type(error).__name__
        ended = self.life.loop.time()
        return Attempt(self.name, request.conversation, kind, key, started, ended, outcome, seq, reason)

    def _script(self) -> str:
        """What a message tells the agent to do."""
        rng = self._rng
        ttl_s = float(self.life.scenario.settings["ttl_s"])

        def step() -> Step:
            long_s = rng.choice([0.02, 0.2, ttl_s, 2 * ttl_s])
            choices: list[Callable[[], Step]] = [
                lambda: ["call", rng.uniform(0, long_s), False],
                lambda: ["call", rng.uniform(0, long_s), True],
                lambda: ["emit"],
                lambda: ["sleep", rng.uniform(0, 0.3)],
                lambda: ["ask"],
                lambda: ["fail"],
            ]
            return rng.choices(choices, [6, 3, 4, 2, 0.4, 0.4])[0]()

        return script(*(step() for _ in range(rng.randint(1, 4))))
