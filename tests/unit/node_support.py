"""A small cluster for the node's tests: real nodes on one memory disk, most often in virtual time.

In virtual time a node lives in a simulated process, so that it can be killed (no ``finally`` runs) and frozen, a
passivation after five minutes takes no time, and nothing is left to the machine. A test of threads uses real time.
"""

import asyncio
import functools
import inspect
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, cast

from tenure.abc import (
    AgentLoop,
    Claim,
    Creation,
    LiveLoop,
    Place,
    Ran,
    Runtime,
    RuntimeProvider,
    RuntimeSpec,
    Store,
    Submit,
    Turn,
)
from tenure.clock import Clock, SystemClock
from tenure.config import Config
from tenure.conversation import Fold, Record, Status, fold, status
from tenure.errors import StoreUnavailableError
from tenure.journal import (
    TURN_ENDS,
    CallFinished,
    CallStarted,
    Command,
    Delivery,
    Draft,
    Event,
    Json,
    JsonObject,
    Policy,
    draft,
)
from tenure.lease import IncarnationId, new_token
from tenure.node import Node
from tenure.stores.memory import Disk, MemoryStore
from tenure.testing.backing import Backing, MemoryBacking
from tenure.testing.faults import FaultyStore
from tenure.testing.simloop import LoopClock, SimLoop, SimProcess, simulate

C = "c1"
"""The conversation of a test that needs only one."""

PATIENCE_S = 20.0

type StoredIn = Callable[[LoopClock], Backing]


async def until[T](what: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Poll until it is true, and return what it was; fails the test at the deadline."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not (found := what()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {patience_s:g} s: {inspect.getsource(what).strip()}")
        await asyncio.sleep(0.01)
    return found


def in_virtual_time[**P](
    test: Callable[..., Coroutine[Any, Any, None]], *, limit_s: float = 36000.0
) -> Callable[..., None]:
    """Run ``test(cluster, …)`` in virtual time; whatever a callback or a forgotten task raised fails it."""
    parameters = list(inspect.signature(test).parameters.values())

    @functools.wraps(test)
    def run(*args: Any, stored_in: StoredIn = MemoryBacking, **kwargs: Any) -> None:
        async def main(loop: SimLoop) -> None:
            clock = LoopClock(loop)
            backing = stored_in(clock)
            try:
                async with Cluster(clock, loop, backing) as cluster:
                    await test(cluster, *args, **kwargs)
            finally:
                backing.close()
            if loop.errors:
                raise AssertionError(loop.errors)

        simulate(main, limit_s)

    del run.__wrapped__  # pytest would look behind it
    run.on_memory_alone = _looks_at_the_disk(test)  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(parameters[1:])
    return run


def _looks_at_the_disk(test: Callable[..., Any]) -> bool:
    """Whether a test looks into the memory store, or changes its clock."""
    return any(word in inspect.getsource(test) for word in ("cluster.disk", "rewind(", "store.clock"))


# --- the store, with a hand on it -----------------------------------------------------------------------------------

type Proceed = Callable[[], Awaitable[Any]]
type Intervention = Callable[[Proceed], Awaitable[Any]]


async def lose_the_request(proceed: Proceed) -> Any:
    """The store never hears of it, and the caller cannot know."""
    raise StoreUnavailableError("no answer (the request was lost)")


async def lose_the_reply(proceed: Proceed) -> Any:
    """The store does it, and the caller cannot know."""
    await proceed()
    raise StoreUnavailableError("no answer (the reply was lost)")


def held_until(event: asyncio.Event) -> Intervention:
    """The request stays under way until the event; then it is executed and answered."""

    async def wait(proceed: Proceed) -> Any:
        await event.wait()
        return await proceed()

    return wait


def answered_after(event: asyncio.Event) -> Intervention:
    """Executed at once; the answer stays under way until the event."""

    async def wait(proceed: Proceed) -> Any:
        answer = await proceed()
        await event.wait()
        return answer

    return wait


@dataclass
class Rig:
    """What happens to the requests of one node. `down`: every request is lost from now on."""

    down: bool = False
    deaf: bool = False
    """Hints do not arrive."""
    latency_s: float = 0.0005
    slow: dict[str, float] = field(default_factory=dict)
    """More latency for one operation, each way."""
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    """Each request that was sent, in order."""
    _rules: list[tuple[str, Callable[[tuple[Any, ...]], bool], Intervention, bool]] = field(default_factory=list)

    def once(self, operation: str, action: Intervention, when: Callable[..., bool] = lambda *_: True) -> None:
        """The next such request meets this."""
        self._rules.append((operation, lambda args: when(*args), action, True))

    def always(self, operation: str, action: Intervention, when: Callable[..., bool] = lambda *_: True) -> None:
        """Each such request meets this, until :meth:`heal`."""
        self._rules.append((operation, lambda args: when(*args), action, False))

    def heal(self) -> None:
        self.down = self.deaf = False
        self._rules.clear()
        self.slow.clear()

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)

    async def through(self, operation: str, args: tuple[Any, ...], execute: Proceed) -> Any:
        self.calls.append((operation, args))
        latency_s = self.slow.get(operation, self.latency_s)
        await asyncio.sleep(latency_s)
        if self.down:
            raise StoreUnavailableError("no answer (the store is down)")
        for rule in self._rules:
            name, matches, action, only_once = rule
            if name == operation and matches(args):
                if only_once:
                    self._rules.remove(rule)
                answer = await action(execute)
                break
        else:
            answer = await execute()
        await asyncio.sleep(latency_s)
        return answer


def writes(kind: str) -> Callable[[Sequence[Any]], bool]:
    """Whether a list of appends or releases writes an event of this kind."""

    def check(requests: Sequence[Any]) -> bool:
        return any(d.kind == kind for r in requests for d in (r.batch if hasattr(r, "batch") else r).drafts)

    return check


OPERATIONS = (
    "register renew bury nodes submit_all claim_all append_all release_all delete amend wanted read records list"
    " publish put_paper get_paper list_papers remove_paper"
).split()


class RiggedStore(MemoryStore):  # type: ignore[misc] - final, for everybody but this hand
    """The memory store as one node sees it through its rig. Its heartbeat's sibling has a rig of its own."""

    def __init__(self, disk: Disk, clock: Clock, rig: Rig, beats: Rig) -> None:
        super().__init__(disk, clock)
        self.rig = rig
        self.beats = beats

    def sibling(self) -> "RiggedStore":
        return RiggedStore(self.disk, self.clock, self.beats, self.beats)

    @asynccontextmanager
    async def follow(self, topics: Any) -> AsyncGenerator[Any]:
        async with super().follow(topics) as hints:

            async def heard() -> AsyncGenerator[Any]:
                async for hint in hints:
                    if not self.rig.deaf:
                        yield hint

            yield heard()


def _rigged(operation: str) -> Callable[..., Awaitable[Any]]:
    async def through(self: RiggedStore, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(MemoryStore, operation)
        return await self.rig.through(operation, args, lambda: plain(self, *args, **kwargs))

    return through


for _operation in OPERATIONS:
    setattr(RiggedStore, _operation, _rigged(_operation))


class RiggedRealStore(FaultyStore):  # type: ignore[misc] - final, for everybody but this hand
    """The same hand on a real store, which runs each operation to its end while virtual time stands still."""

    def __init__(self, backing: Backing, rig: Rig, beats: Rig) -> None:
        super().__init__(backing.connect(), random.Random(0), host=backing)
        self.backing = backing
        self.rig = rig
        self.beats = beats

    def sibling(self) -> "RiggedRealStore":
        return RiggedRealStore(self.backing, self.beats, self.beats)

    async def _ask(self, operation: Any, *arguments: Any, changes: bool = True, **options: Any) -> Any:
        async def execute() -> Any:
            result = self.backing.run(operation(*arguments, **options))
            self.backing.stepped(operation.__name__, arguments, result)
            return result

        return await self.rig.through(operation.__name__, arguments, execute)

    async def _carry(self, hints: Any) -> AsyncGenerator[Any]:
        async for hint in hints:
            if not self.rig.deaf:
                yield hint


# --- an agent and a provider whose every step a test decides --------------------------------------------------------


async def reply(turn: Turn) -> None:
    """The plainest agent: one event of its own per message."""
    await turn.journal([Draft("reply", {"to": [m.seq for m in turn.messages]})])


async def call(turn: Turn, name: str, *, idempotent: bool = False, work: Awaitable[Any] | None = None) -> Json:
    """One tool call, journaled before and after; a finished one of an earlier attempt is not run again."""
    name = f"{turn.id}.{name}"
    for event in turn.past:
        if event.kind == "call_finished" and event.body["call"] == name:
            if inspect.iscoroutine(work):
                work.close()
            return event.body["result"]
    try:
        await turn.journal([draft(CallStarted(name, name, idempotent, key=name))])
    except BaseException:
        if inspect.iscoroutine(work):
            work.close()
        raise
    result = await work if work is not None else None
    await turn.journal([draft(CallFinished(name, result))])
    return result


@dataclass
class Agent(AgentLoop):
    """An agent of one function per turn; it knows which of its loops live."""

    on_turn: Callable[[Turn], Awaitable[None]] = reply
    on_now: Callable[[Event], Awaitable[Json]] | None = None
    on_open: Callable[[Place], Awaitable[None]] | None = None
    on_close: Callable[[], Awaitable[None]] | None = None
    opened: list[tuple[str, int]] = field(default_factory=list)
    """(conversation, epoch) of each loop that was opened."""
    alive: list[tuple[str, int]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    heard: list[Event] = field(default_factory=list)
    commands: Mapping[str, Delivery] = field(default_factory=lambda: {"pause": Delivery.NOW})
    turn_timeout_s: float | None = None

    def check(self, settings: JsonObject) -> JsonObject:
        return settings

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        if self.on_open is not None:
            await self.on_open(place)
        which = (place.conversation_id, place.epoch)
        self.opened.append(which)
        self.alive.append(which)
        try:
            yield _Live(self, place)
            if self.on_close is not None:
                await self.on_close()
        finally:
            self.alive.remove(which)


@dataclass
class _Live:
    agent: Agent
    place: Place

    async def turn(self, turn: Turn) -> None:
        self.agent.turns.append(turn)
        await self.agent.on_turn(turn)

    async def now(self, command: Event) -> Json:
        self.agent.heard.append(command)
        if self.agent.on_now is None:
            raise NotImplementedError
        return await self.agent.on_now(command)


@dataclass
class FakeRuntime:
    name: str
    path: None = None

    async def run(self, command: Any, *, timeout_s: float | None = None, stdin: str | None = None) -> Ran:
        return Ran(0, "", "")

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        return b""

    async def write(self, path: str, content: bytes | str) -> None:
        return None


@dataclass
class Provider(RuntimeProvider):
    """Runtimes in a dictionary. `at` holds what happens at a step: a coroutine function, most often one that fails."""

    at: dict[str, Callable[[str], Awaitable[None]]] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    """name → conversation of each runtime that stands; shared by the nodes of a cluster."""
    log: list[tuple[str, str]] = field(default_factory=list)
    outlives_node: bool = False
    kind: str = "fake"
    killed: int = 0

    async def _step(self, step: str, name: str) -> None:
        self.log.append((step, name))
        await asyncio.sleep(0.001)
        if step in self.at:
            await self.at[step](name)

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        progress("boot")
        await self._step("provision", spec.name)
        self.standing[spec.name] = spec.conversation
        return FakeRuntime(spec.name)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        await self._step("configure", runtime.name)

    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        await self._step("attach", spec.name)
        return FakeRuntime(spec.name) if spec.name in self.standing else None

    async def discard(self, name: str, workspace: str | None = None) -> None:
        await self._step("discard", name)
        self.standing.pop(name, None)

    async def list(self) -> Sequence[tuple[str, str]]:
        return list(self.standing.items())

    def kill_now(self) -> None:
        self.killed += 1

    def did(self, step: str) -> Sequence[str]:
        return [name for what, name in self.log if what == step]


def failing(error: BaseException) -> Callable[[str], Awaitable[None]]:
    """A step that fails."""

    async def fail(name: str) -> None:
        raise error

    return fail


# --- the cluster ----------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """One node of the cluster, its rig, and the process that it lives in (none in real time)."""

    node: Node
    agent: Agent
    provider: Provider
    rig: Rig
    beats: Rig
    process: SimProcess | None
    stop: asyncio.Event
    life: asyncio.Future[None]

    async def ask[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run it inside the node's process."""
        return await (self.process.call(work) if self.process is not None else work)

    async def start(self, conversation: str = C, settings: JsonObject | None = None, user_id: str | None = None) -> Any:
        return await self.ask(self.node.maybe_start_agent_loop(conversation, settings, user_id))

    def starting(self, conversation: str = C, **more: Any) -> asyncio.Task[Any]:
        """A start that need not be awaited."""
        task = asyncio.ensure_future(self.start(conversation, **more))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def leave(self, deadline_s: float | None = None) -> None:
        await self.ask(self.node.drain(deadline_s))

    def kill(self) -> None:
        """kill -9, with no witness."""
        assert self.process is not None, "only in virtual time"
        self.process.kill()

    @property
    def incarnation(self) -> IncarnationId:
        return self.node.incarnation

    def tenure(self, conversation: str = C) -> Any:
        """The tenure in the node's table, ended ones included; null if there is none."""
        incarnation = self.node._incarnation
        return incarnation and incarnation.table.get(conversation)

    @property
    def live(self) -> list[str]:
        """The conversations whose loop is open here."""
        return sorted(c for c, _ in self.agent.alive)


class Cluster:
    """Nodes on one store, and a client that writes to it directly. In real time it is a memory disk."""

    def __init__(self, clock: Clock | None = None, loop: SimLoop | None = None, backing: Backing | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.loop = loop
        self.backing = backing if backing is not None else MemoryBacking(cast("LoopClock", self.clock))
        self.store: Store = self.rigged(Rig(latency_s=0), Rig(latency_s=0))
        self.members: list[Member] = []
        self.standing: dict[str, str] = {}
        self._keys = 0
        self._stack = AsyncExitStack()

    @property
    def disk(self) -> Disk:
        """What only a memory store lets a test look into."""
        assert isinstance(self.backing, MemoryBacking), "this test is about the memory store"
        return self.backing.disk

    def rigged(self, rig: Rig, beats: Rig) -> Any:
        """A way to the store with a hand on it."""
        if isinstance(self.backing, MemoryBacking):
            return RiggedStore(self.disk, self.clock, rig, beats)
        return RiggedRealStore(self.backing, rig, beats)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for member in self.members:
            if member.process is None or not (member.process.dead or member.process.paused):
                member.rig.heal()
                member.beats.heal()
                member.stop.set()
                await asyncio.wait([member.life], timeout=60)
                assert member.life.done(), "the node does not end"
                member.life.result()

    async def add(
        self, name: str = "", agent: Agent | None = None, provider: Provider | None = None, **settings: Any
    ) -> Member:
        """A node that has registered. Settings are its config's; `agents` may name others than the one."""
        name = name or f"n{len(self.members) + 1}"
        agent = agent or Agent()
        provider = provider or Provider(standing=self.standing)
        agents = settings.pop("agents", {"echo": agent})
        threaded = settings.pop("threaded", self.loop is None)
        tracer_provider = settings.pop("tracer_provider", None)
        rig, beats = Rig(), Rig()
        config = Config(**{"node": name, "address": f"test://{name}", "ttl_s": 1.0, "sweep_s": 0.2, **settings})
        process = self.loop.process(name) if self.loop is not None else None
        node = Node(
            self.rigged(rig, beats),
            agents,
            provider=provider,
            config=config,
            clock=self.clock,
            rng=random.Random(len(self.members)),
            threaded=threaded,
            tracer_provider=tracer_provider,
        )
        ready, stop = asyncio.Event(), asyncio.Event()

        async def live() -> None:
            async with node:
                ready.set()
                await stop.wait()

        life = process.spawn(live()) if process is not None else asyncio.ensure_future(live())
        member = Member(node, agent, provider, rig, beats, process, stop, life)
        self.members.append(member)
        registered = asyncio.ensure_future(ready.wait())
        await asyncio.wait([life, registered], return_when=asyncio.FIRST_COMPLETED)
        registered.cancel()
        if life.done():
            life.result()
        return member

    # --- what a client does -----------------------------------------------------------------------------------------

    async def create(self, conversation: str = C, **more: Any) -> None:
        await self.store.submit(Submit(conversation, None, Creation(default_agent="echo", **more)))

    async def command(self, kind: str, conversation: str = C, via: Member | None = None, **body: Any) -> int:
        """Submit a command straight to the store, or through a node; its seq."""
        self._keys += 1
        turn = kind in ("message", "run")
        asked = Command(kind, body, f"k{self._keys}", Delivery.TURN if turn else Delivery.NOW)
        request = Submit(conversation, asked, Creation(default_agent="echo") if kind == "message" else None)
        answer = await (self.store.submit(request) if via is None else via.ask(via.node.submit(request)))
        return answer.seq

    async def say(self, text: str = "hi", conversation: str = C, via: Member | None = None) -> int:
        return await self.command("message", conversation, via, text=text)

    async def claim_as(self, incarnation: str, conversation: str = C, *, forced: bool = False, epoch: int = 0) -> Any:
        """A claim of somebody who is no node of the test."""
        return await self.store.claim(
            Claim(conversation, IncarnationId(incarnation), new_token(), epoch, incarnation, "test://x", "x", forced)
        )

    # --- what stands in the store -----------------------------------------------------------------------------------

    def record(self, conversation: str = C) -> Record:
        found = self.backing.get(conversation)
        assert found is not None, f"{conversation} does not exist"
        return found.record

    def journal(self, conversation: str = C) -> list[Event]:
        found = self.backing.get(conversation)
        return list(found.events) if found else []

    def kinds(self, conversation: str = C) -> list[str]:
        return [e.kind for e in self.journal(conversation)]

    def events(self, kind: str, conversation: str = C) -> list[Event]:
        return [e for e in self.journal(conversation) if e.kind == kind]

    def fold(self, conversation: str = C) -> Fold:
        """The meaning of the whole journal; raises if it breaks a rule."""
        return fold(Fold(), self.journal(conversation))

    def owner(self, conversation: str = C) -> str | None:
        """The name of the node that the record names."""
        found = self.backing.get(conversation)
        owner = found.record.owner if found else None
        return owner.node if owner else None

    def answered(self, member: Member, conversation: str = C) -> bool:
        """Whether the member that owns it has heard the answer to each of its appends."""
        return member.tenure(conversation).fold.seq == len(self.journal(conversation))

    def settled(self, seq: int, conversation: str = C) -> bool:
        """Whether the command's effect stands in the journal."""
        return any(
            e.body["command"] == seq
            if e.kind == "command_settled"
            else e.kind in TURN_ENDS and seq in cast("list[int]", e.body["commands"])
            for e in reversed(self.journal(conversation))
        )

    def status(self, conversation: str = C) -> Status:
        owner = self.record(conversation).owner
        alive = owner is not None and not self.backing.is_dead(owner.incarnation)
        return status(self.record(conversation), owner_alive=alive)

    def dead(self, incarnation: IncarnationId) -> bool:
        return self.backing.is_dead(incarnation)


def of(events: Iterable[Event], part: str) -> list[Json]:
    """One part of each body."""
    return [e.body[part] for e in events]


__all__ = [
    "PATIENCE_S",
    "Agent",
    "C",
    "Cluster",
    "FakeRuntime",
    "Member",
    "Policy",
    "Provider",
    "Rig",
    "RiggedStore",
    "answered_after",
    "call",
    "failing",
    "held_until",
    "in_virtual_time",
    "lose_the_reply",
    "lose_the_request",
    "of",
    "reply",
    "until",
    "writes",
]
