"""A cluster in virtual time: real nodes, a real protocol, a simulated world around them.

:class:`SimCluster` runs :class:`tenure.node.Node` itself, one in each simulated process, on one store behind
faulty links. Everything that can befall a node is a method here and a line of the timeline. What to do to it, and when,
is decided elsewhere: by a test, or from a seed (:mod:`tenure.testing.scenario`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final
from unittest import mock

from tenure.abc import Death
from tenure.config import Config
from tenure.errors import StoreError
from tenure.node import Node
from tenure.testing import history
from tenure.testing.backing import MemoryBacking
from tenure.testing.faults import Conditions, FaultyStore, Link
from tenure.testing.recorder import Recorder
from tenure.testing.simagent import Plant, SimAgent, SimProvider
from tenure.testing.simloop import LoopClock

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator

    from tenure.lease import IncarnationId
    from tenure.testing.backing import Backing
    from tenure.testing.simloop import SimLoop, SimProcess

RESTART_S = 0.3
"""How long after its end the supervisor of a server starts it again."""


@final
@dataclass(slots=True)
class Member:
    """A server of the cluster: a name that stays, and one process after another."""

    name: str
    link: Link
    clock: LoopClock
    agents: tuple[str, ...]
    lives: int = 0
    process: SimProcess | None = None
    node: Node | None = None
    """Present once it has registered."""
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    down_on_purpose: bool = False

    @property
    def up(self) -> bool:
        """Its process runs, maybe frozen."""
        return self.process is not None and not self.process.dead

    @property
    def ready(self) -> bool:
        """It can be asked something."""
        return self.up and self.node is not None


@final
class SimCluster:
    """The servers, their store and their world. Use within :func:`tenure.testing.simloop.simulate`."""

    def __init__(
        self,
        loop: SimLoop,
        rng: random.Random,
        *,
        settings: dict[str, Any],
        conditions: Conditions,
        plant: Plant,
        stored_in: Callable[[LoopClock], Backing] = MemoryBacking,
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.conditions = conditions
        self.plant = plant
        self.store_clock = LoopClock(loop, boot_s=5000.0)
        self.backing = stored_in(self.store_clock)
        self.store_process = loop.process("store")
        self.recorder = Recorder(loop, self.backing)
        self.recorder.trusts = self._trusts
        self.members: list[Member] = []
        self._settings = settings
        self._healed = False
        self._ended = False

    def note(self, what: str) -> None:
        self.recorder.note(what)

    # --- servers ----------------------------------------------------------------------------------------------------

    def add(self, name: str, agents: tuple[str, ...] = ("sim",), rate: float = 1.0) -> Member:
        """A new server, not yet started. `rate` is how fast its boot time runs."""
        member = Member(name, Link(self.conditions), LoopClock(self.loop, rate=rate), agents)
        self.members.append(member)
        return member

    def start(self, member: Member) -> None:
        """Start the server's next process, unless one runs."""
        if member.up or self._ended:
            return
        member.lives += 1
        member.node, member.leave, member.down_on_purpose = None, asyncio.Event(), False
        member.process = process = self.loop.process(f"sim://{member.name}.{member.lives}")
        self.note(f"{process.name} starts")
        task = process.spawn(self._serve(member, process))
        task.add_done_callback(lambda task: self._exited(member, process, task))

    async def _serve(self, member: Member, process: SimProcess) -> None:
        store = self._store_of(member)
        config = Config(node=member.name, address=process.name, witness=False, **self._settings)
        agent = SimAgent(self.recorder, self.rng, config.timing.stop_budget_s * 0.8)
        node = Node(
            store,
            dict.fromkeys(member.agents, agent),
            provider=SimProvider(self.plant, self.recorder),
            config=config,
            clock=member.clock,
            rng=self.rng,
            threaded=False,
        )
        async with node:
            member.node = node
            leave = asyncio.ensure_future(member.leave.wait())
            drained = asyncio.ensure_future(node.drained.wait())
            stuck = asyncio.ensure_future(node.stuck.wait())
            await asyncio.wait([leave, drained, stuck], return_when=asyncio.FIRST_COMPLETED)
            if node.stuck.is_set():
                self.loop.call_soon(self.kill, member, context=Context())
                await asyncio.Event().wait()

    def _store_of(self, member: Member) -> FaultyStore:
        return FaultyStore(
            self.backing.connect(),
            self.rng,
            member.link,
            host=self.backing,
            served_in=self.store_process.context(),
            observer=self.recorder.observe,
        )

    def _exited(self, member: Member, process: SimProcess, task: asyncio.Task[None]) -> None:
        """The server's process ended by itself: drained, or it could not start."""
        error = None if task.cancelled() else task.exception()
        self.note(f"{process.name} ended: {error!r}" if error else f"{process.name} ended")
        if error is not None and not isinstance(error, StoreError):
            self.loop.errors.append(f"{process.name} ended with {error!r}")
        if self.recorder.alive(process):
            self.loop.errors.append(f"{process.name} ended, its loops did not: {self.recorder.alive(process)}")
        self._bring_down(member, process)
        if not member.down_on_purpose:
            self.loop.call_later(RESTART_S, self.start, member, context=Context())

    def _bring_down(self, member: Member, process: SimProcess) -> None:
        self.recorder.killed(process)
        self.plant.lose(process)
        process.kill()
        if member.process is process:
            member.node = None

    def kill(self, member: Member, restart_s: float = RESTART_S, *, witness: bool = False) -> None:
        """kill -9; a new process starts after `restart_s`. With a witness the store knows of it within milliseconds."""
        process, node = member.process, member.node
        if process is None or process.dead:
            return
        self.note(f"{process.name} is killed" + (", seen by its witness" if witness else ""))
        incarnation = None if node is None else _incarnation(node)
        if incarnation is not None:
            self.recorder.history.add(history.Death(incarnation, self.loop.time()))
        self._bring_down(member, process)
        if witness and incarnation is not None:
            self.loop.call_later(self.rng.uniform(0.001, 0.01), self._bury, incarnation, context=Context())
        self.loop.call_later(restart_s, self.start, member, context=Context())

    def _bury(self, incarnation: IncarnationId) -> None:
        host, observer = self.backing, self.recorder.observe
        store = FaultyStore(host.connect(), self.rng, Link(), host=host, observer=observer)
        self.store_process.spawn(store.bury(incarnation, Death.EXITED))

    def pause(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        process = member.process
        if process is None or process.dead or process.paused:
            return
        self.note(f"{process.name} is frozen for {seconds:.2f} s")
        self.recorder.frozen(process)
        process.pause()
        self.loop.call_later(seconds, self.resume, process, context=Context())

    def resume(self, process: SimProcess) -> None:
        """SIGCONT."""
        if process.paused and not process.dead:
            self.note(f"{process.name} is thawed")
            process.resume()
            if not process.gap_s:
                self.recorder.thawed(process)

    def slow(self, member: Member, gap_s: float, seconds: float) -> None:
        """Starve the process for `seconds`."""
        process = member.process
        if process is None or process.dead or process.gap_s:
            return
        self.note(f"{process.name} is starved for {seconds:.2f} s, {gap_s * 1000:.1f} ms a step")
        self.recorder.frozen(process)
        process.slow(gap_s)
        self.loop.call_later(seconds, self.fed, process, context=Context())

    def fed(self, process: SimProcess) -> None:
        """No longer starved."""
        if process.gap_s and not process.dead:
            process.slow(0.0)
            if not process.paused:
                self.recorder.thawed(process)

    def drain(self, member: Member) -> None:
        """SIGTERM: the server hands over and leaves; a new process starts afterwards."""
        if member.ready and member.process is not None:
            self.note(f"{member.process.name} is asked to drain")
            member.leave.set()

    def step_wall(self, member: Member | None, seconds: float) -> None:
        """Somebody sets the wall clock of a server, or of the store."""
        self.note(f"the wall clock of {member.name if member else 'the store'} is set by {seconds:+.0f} s")
        (member.clock if member else self.store_clock).step_wall(seconds)

    def _trusts(self, incarnation: str) -> bool:
        """Whether a process that can act believes in this incarnation's lease."""
        for member in self.members:
            node, process = member.node, member.process
            if node is not None and process is not None and not process.paused and not process.gap_s:
                if _incarnation(node) == incarnation and not any("no lease" in why for why in node.readiness()):
                    return True
        return False

    # --- the store and the way to it --------------------------------------------------------------------------------

    def cut(self, member: Member, seconds: float, *, requests: bool = True, replies: bool = True) -> None:
        """Cut the server from its store, or one way only."""
        ways = "both ways" if requests and replies else "requests" if requests else "replies"
        self.note(f"{member.name} is cut from the store for {seconds:.2f} s ({ways})")
        member.link.cut(requests=requests, replies=replies)
        self.loop.call_later(seconds, self.mend, member, context=Context())

    def lag(self, member: Member, back_s: float, seconds: float) -> None:
        """Replies to the server take `back_s`; after `seconds` its requests are lost, while what was answered arrives."""
        self.note(f"replies to {member.name} take {back_s:.2f} s for {seconds:.2f} s, then its requests are lost")
        member.link.conditions = replace(self.conditions, back_s=(back_s * 0.9, back_s))

        def end() -> None:
            if not self._healed:
                member.link.conditions = self.conditions
                self.cut(member, seconds, replies=False)

        self.loop.call_later(seconds, end, context=Context())

    def mend(self, member: Member) -> None:
        """The server's link is whole again."""
        if member.link.requests_cut or member.link.replies_cut:
            self.note(f"{member.name} reaches the store again")
            member.link.mend()

    def stall_store(self, seconds: float) -> None:
        """The store stands still, and then executes what has come meanwhile."""
        if not self.store_process.paused:
            self.note(f"the store stands still for {seconds:.2f} s")
            self.store_process.pause()
            self.loop.call_later(seconds, self.unstall_store, context=Context())

    def unstall_store(self) -> None:
        if self.store_process.paused:
            self.note("the store goes on")
            self.store_process.resume()

    def step_store_clock(self, seconds: float) -> None:
        """The clock that grants leases jumps."""
        self.note(f"the store's clock jumps by {seconds:+.2f} s")
        self.recorder.excuse("store-clock")
        self.store_clock.step_boot(seconds)

    def fail_over(self, lag_s: float) -> None:
        """The store becomes what it is now, `lag_s` later: what it acknowledges meanwhile is gone."""
        self.note(f"from now on the replica of the store lags behind, for {lag_s:.2f} s")
        replica = self.backing.image()

        def promote() -> None:
            self.note("THE STORE FAILS OVER to its replica")
            replica.promote()
            self.recorder.rewound()

        self.loop.call_later(lag_s, promote, context=Context())

    # --- the end ----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults: links whole and calm, everybody awake and up, runtimes to be had."""
        self.note("all is healed")
        self._healed = True
        self.unstall_store()
        self.plant.fails = self.plant.hangs = 0.0
        for member in self.members:
            self.mend(member)
            member.link.conditions = Conditions()
            if member.process is not None:
                self.fed(member.process)
                self.resume(member.process)
            self.start(member)

    async def shut_down(self, patience_s: float) -> list[str]:
        """Drain every server; what did not end in time."""
        self._ended = True
        for member in self.members:
            member.down_on_purpose = True
            self.drain(member)
        async with asyncio.timeout(patience_s):
            for member in self.members:
                if member.process is not None and not member.process.dead:
                    await asyncio.wait([member.process.ended])
        return []


def _incarnation(node: Node) -> IncarnationId | None:
    try:
        return node.incarnation
    except Exception:
        return None


@contextmanager
def seeded_chance(rng: random.Random) -> Generator[None]:
    """Take the identities that the node draws by itself (incarnations, tokens) from the seed as well."""
    with mock.patch.object(secrets, "token_hex", lambda nbytes=32: rng.randbytes(nbytes).hex()):
        yield


class _Ear(logging.Handler):
    """Hears what the node logs with an exception that is not the store's silence."""

    def __init__(self, heard: list[str], unless: Callable[[], bool]) -> None:
        super().__init__(logging.ERROR)
        self._heard = heard
        self._unless = unless

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, StoreError) and not self._unless():
            self._heard.append(f"{record.getMessage()}: {error!r}")


@contextmanager
def listening(heard: list[str], unless: Callable[[], bool]) -> Generator[None]:
    """Collect unexpected errors from the log, `unless` the run is over, and keep everything else quiet."""
    log = logging.getLogger("tenure")
    ear = _Ear(heard, unless)
    before = log.level, log.propagate
    log.addHandler(ear)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.level, log.propagate = before
