"""A state machine for one tenure: whatever clients, the agent, a rival and the store do, in any order, the journal is
well-formed, each command is settled once, a lease that is over writes nothing, and nothing that can be done is forgotten.

The node is the real one, in virtual time; hypothesis chooses what happens next and shrinks what fails.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tenure.abc import (
    About,
    Accepted,
    AgentLoop,
    Append,
    AppendResult,
    Claim,
    Creation,
    Death,
    Duplicate,
    Held,
    LiveLoop,
    Place,
    Reading,
    Reason,
    Release,
    RuntimeProvider,
    RuntimeSpec,
    Submit,
    Turn,
)
from tenure.config import Config
from tenure.conversation import Fold, fold, plan, settlement
from tenure.errors import StoreUnavailableError
from tenure.journal import (
    TURN_ENDS,
    CallFinished,
    CallStarted,
    Command,
    CommandSettled,
    Delivery,
    Draft,
    Event,
    Json,
    Policy,
    draft,
)
from tenure.lease import IncarnationId, new_incarnation, new_token
from tenure.node import Node
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.simloop import LoopClock, SimLoop

CONVERSATION = "c"


class Fickle(MemoryStore):
    """A store whose next appends are executed although no reply comes (`mute`), or do not arrive (`deaf`)."""

    def __init__(self, disk: Disk, clock: Any) -> None:
        super().__init__(disk, clock)
        self.mute = self.deaf = 0

    async def append_all(self, requests) -> list[AppendResult]:
        if self.deaf:
            self.deaf -= 1
            raise StoreUnavailableError("did not arrive")
        answers = await super().append_all(requests)
        if self.mute:
            self.mute -= 1
            raise StoreUnavailableError("no reply")
        return answers


class Nowhere(RuntimeProvider):
    """Runtimes that are nothing but their names."""

    kind = "none"

    async def provision(self, spec: RuntimeSpec, progress) -> Any:
        return _Runtime(spec.name)

    async def configure(self, runtime, credentials) -> None:
        return None

    async def attach(self, spec: RuntimeSpec) -> None:
        return None

    async def discard(self, name: str, workspace: str | None = None) -> None:
        return None

    async def list(self):
        return []


class _Runtime:
    path = None

    def __init__(self, name: str) -> None:
        self.name = name


class Puppet(AgentLoop):
    """An agent that does what the machine says, one order at a time."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[str] = asyncio.Queue()
        self.ran: Counter[str] = Counter()

    def check(self, settings):
        return settings

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        yield self

    async def now(self, command: Event) -> Json:
        if command.kind == "message":
            raise NotImplementedError
        return {"heard": command.kind}

    async def turn(self, turn: Turn) -> None:
        number = sum(len(e.opens) for e in turn.past)
        open_calls = {c for e in turn.past for c in e.opens} - {c for e in turn.past for c in e.closes}
        assert not open_calls, "a call that was cut has its outcome before the turn goes on"
        while True:
            match await self.orders.get():
                case "call":
                    call = f"{turn.id}.c{number}"
                    number += 1
                    await turn.journal([draft(CallStarted(call, "tool", key=call))])
                    self.ran[call] += 1
                    await asyncio.sleep(0.2)
                    await turn.journal([draft(CallFinished(call, "ok"))])
                case "emit":
                    await turn.journal([Draft("said", {"n": number})])
                case "ask":
                    if not any(e.kind == "turn_resumed" and e.body.get("ask") for e in turn.past):
                        await turn.ask(f"{turn.id}.a", "well?")
                case "raise":
                    raise RuntimeError("the agent failed")
                case _:
                    return


class TenureMachine(RuleBasedStateMachine):
    """One node, one conversation, a rival incarnation that claims by the store's own means."""

    @initialize(policy=st.sampled_from(list(Policy)), seed=st.integers(0, 9))
    def begin(self, policy: Policy, seed: int) -> None:
        self.loop = SimLoop()
        self.clock = LoopClock(self.loop)
        self.disk = Disk()
        self.store = Fickle(self.disk, self.clock)
        self.puppet = Puppet()
        self.keys: dict[str, int] = {}
        self.rivals: list[IncarnationId] = []
        self.over: list[Any] = []
        config = Config(node="n", ttl_s=2.0, idle_s=3.0, sweep_s=0.5, drain_s=0.1, backoff_s=0.1, lost_limit=1000)
        self.node = Node(
            self.store,
            {"puppet": self.puppet},
            provider=Nowhere(),
            config=config,
            clock=self.clock,
            rng=random.Random(seed),
            threaded=False,
        )
        self.run(self.node.__aenter__())
        create = Creation(default_agent="puppet", policy=policy)
        self.run(self.node.submit(Submit(CONVERSATION, None, create)))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work, limit_s=600)

    def let(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["message", "message", "message", "start", "stop", "interrupt", "answer", "poke"]))
    def command(self, kind: str) -> None:
        delivery = Delivery.TURN if kind == "message" else Delivery.NOW
        key = f"k{len(self.keys)}"
        result = self.run(self.node.submit(Submit(CONVERSATION, Command(kind, {"text": key}, key, delivery))))
        if isinstance(result, Accepted):
            self.keys[key] = result.seq

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def command_again(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.keys)))
        [event] = [e for e in self.journal() if e.key == key]
        command = Command(event.kind, event.body, key, Delivery.NOW)
        result = self.run(self.node.submit(Submit(CONVERSATION, command)))
        assert isinstance(result, Duplicate) and result.seq == self.keys[key]

    @rule(order=st.sampled_from(["call", "call", "emit", "ask", "raise", "end", "end"]))
    def agent(self, order: str) -> None:
        self.puppet.orders.put_nowait(order)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.25, 1.0, 4.0]))
    def time(self, seconds: float) -> None:
        self.let(seconds)

    @rule(times=st.integers(1, 3), lost=st.booleans())
    def trouble(self, times: int, lost: bool) -> None:
        if lost:
            self.store.deaf = times
        else:
            self.store.mute = times

    @rule()
    def start_here(self) -> None:
        async def start() -> None:
            try:
                async with asyncio.timeout(5):
                    await self.node.maybe_start_agent_loop(CONVERSATION)
            except Exception:
                return  # owned elsewhere, stopped again, let go: all are answers

        self.run(start())

    @rule(lets_go=st.booleans())
    def rival(self, lets_go: bool) -> None:
        """A rival deposes whoever owns it, and either releases properly or dies."""
        lease = self.run(self.rob())
        if lease is not None and lets_go:
            self.run(self.let_go(lease))
        elif lease is not None:
            self.run(self.store.bury(lease.incarnation, Death.EXITED))

    async def rob(self) -> Any:
        me = new_incarnation()
        await self.store.register(me, About("rival", "", 1, ("puppet",), self.clock.now()), 3600)
        [record] = await self.store.records([CONVERSATION])
        old = record.token and (record.epoch, record.token, record.owner.incarnation)
        claim = Claim(CONVERSATION, me, new_token(), record.epoch, "rival", "", "forced", forced=True)
        answer = await self.store.claim(claim)
        if not isinstance(answer, Held):
            return None
        if old:
            self.over.append(old)
        return answer.lease

    async def let_go(self, lease: Any) -> None:
        reading = await self.store.read(CONVERSATION)
        before = fold(Fold(), reading.events)
        todo = plan(before).repairs
        after = fold(before, (d.stored(before.seq + 1 + i, lease.epoch, self.clock.now()) for i, d in enumerate(todo)))
        batch = Append(lease, 1, before.seq, todo, settlement(before, after, todo))
        await self.store.release(Release(batch, Reason.IDLE))

    # --- what must hold ---------------------------------------------------------------------------------------------

    def reading(self) -> Reading:
        """Journal and record of one moment."""
        reading = self.run(self.store.read(CONVERSATION))
        assert isinstance(reading, Reading)
        return reading

    def journal(self) -> tuple[Event, ...]:
        return self.reading().events

    @invariant()
    def well_formed(self) -> None:
        if not hasattr(self, "disk"):
            return
        reading = self.reading()
        events, record = reading.events, reading.record
        state = fold(Fold(), events)  # strict: one open turn, one outcome per call, each command settled once
        epochs = [e.epoch for e in events if e.kind == "claimed"]
        assert epochs == sorted(set(epochs))
        assert {e.key: e.seq for e in events if e.key and e.key.startswith("k")} == self.keys, (
            "accepted once each, and nothing else"
        )
        assert record.unsettled == len(state.pending)
        assert record.wanted or not state.runnable or record.failed, "work is left, and nobody wants it"
        assert all(n == 1 for n in self.puppet.ran.values()), "a call ran twice"

    @invariant()
    def what_is_over_writes_nothing(self) -> None:
        for epoch, _, incarnation in getattr(self, "over", []):
            events = self.journal()
            successor = next(e.seq for e in events if e.kind == "claimed" and e.epoch > epoch)
            assert not [e for e in events if e.epoch == epoch and e.seq > successor], incarnation

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        try:
            self.in_the_end_all_is_settled()
        finally:
            self.run(self.node.__aexit__(None, None, None))
            self.loop.close()

    def in_the_end_all_is_settled(self) -> None:
        self.store.mute = self.store.deaf = 0
        for _ in range(60):
            self.puppet.orders.put_nowait("end")
            self.let(1.0)
            [record] = self.run(self.store.records([CONVERSATION]))
            if not record.wanted:
                break
        events = self.journal()
        state = fold(Fold(), events)
        settled = Counter(
            seq
            for e in events
            for seq in (
                e.body["commands"]
                if e.kind in TURN_ENDS
                else [e.body["command"]]
                if e.kind == CommandSettled.kind
                else []
            )
        )
        assert all(n == 1 for n in settled.values())
        waits = state.stopped or (state.turn is not None and state.turn.waiting)
        left = [c.seq for c in state.pending.values()]
        assert waits or not left, f"never settled: {left}"


TenureMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTenure = TenureMachine.TestCase
