"""Every step of a start × whatever befalls it, in virtual time: one runtime or none, the claim free or live, the reason
readable, no runtime of a living peer touched, nothing left behind after one period of the reaper.

On memory each cell, always, with runtimes that outlive their node and with those that do not. Of SQLite, Redis and PostgreSQL
each plays a third of the cells, another one each, and with ``TENURE_START_MATRIX=whole`` all of them.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from node_support import Agent, C, Cluster, Member, Proceed, StoredIn, in_virtual_time, until, writes

from tenure.abc import Place
from tenure.conversation import Fold
from tenure.node import credentials as node_credentials
from tenure.node.progress import KIND
from tenure.testing import real_stores
from tenure.testing.backing import MemoryBacking
from tenure.testing.postgres import PostgresServer
from tenure.testing.provider import Die, Fail, FaultyProvider, Hang, Lie, Machine
from tenure.testing.servers import RedisServer, redis_binary
from tenure.vault import CredentialError, Obtained, Secret

PROVIDER = {"fails": Fail("no room on host 7"), "loses-its-reply": Fail("timed out", after=True), "hangs": Hang()}
PROVIDER |= {"lies": Lie(), "dies": Die()}
NODE = ("killed", "frozen", "drained", "caller-gone")
STEPS = ("attach", "discard", "provision", "ready", "configure")
REQUESTS: dict[str, tuple[str, Callable[..., bool]]] = {
    "claim": ("claim_all", lambda *_: True),
    "name": ("append_all", writes("runtime_requested")),
    "live": ("append_all", writes("loop_started")),
    "failed": ("release_all", writes("start_failed")),
}
"""What a start asks of its store; each is caught on its way there (``sent``) and on its way back (``done``)."""

type Cell = tuple[str, str]
"""A step, and what befalls the start there."""
type Kind = Literal["outlives", "ends"]
"""Whether runtimes live on without their node."""

CELLS: list[Cell] = [(step, what) for step in STEPS for what in (*PROVIDER, *NODE)]
CELLS += [("loop", what) for what in ("fails", "hangs", *NODE)]
CELLS += [("credentials", what) for what in ("fails", "hangs", *NODE)]
CELLS += [("list", what) for what in (*PROVIDER, "killed", "frozen", "drained")]
CELLS += [(f"{name}-{way}", what) for name in REQUESTS for way in ("sent", "done") for what in NODE]
WHOLE = os.environ.get("TENURE_START_MATRIX") == "whole"
REAL = ("sqlite", "redis", "postgres")


def share(store: str) -> list[Cell]:
    """The cells that a real store plays in every run: each is one store's, and each store has something of each step and
    each fate."""
    steps = list(dict.fromkeys(step for step, _ in CELLS))
    fates = (*NODE, *PROVIDER)
    return [c for c in CELLS if REAL[(steps.index(c[0]) + fates.index(c[1])) % len(REAL)] == store]


NEIGHBOUR = "neighbour"
TTL_S, REAP_S, START_S = 1.0, 5.0, 4.0
PERIOD_S = 1.2 * REAP_S + 0.5
"""A period of the reaper with its jitter, and the round itself."""

pytestmark = pytest.mark.blocking_ok  # a real store answers while virtual time stands still


# --- what stands in the way -----------------------------------------------------------------------------------------


class Obstacle(Protocol):
    """Something that a start waits for until it is let go."""

    def let_go(self) -> None: ...


class Opening:
    """The first opening of a loop fails, or waits to be let go; later ones are as usual."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.reached = asyncio.Event()
        self.gone_on = asyncio.Event()

    def let_go(self) -> None:
        self.gone_on.set()

    async def __call__(self, place: Place) -> None:
        if self.reached.is_set():
            return
        self.reached.set()
        if self.what == "fails":
            raise RuntimeError("the model is not there")
        await self.gone_on.wait()


class Obtaining(Opening):
    """Where the values of credentials come from: as an opening, once it is armed."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.armed = False

    async def obtain(self, *_: object) -> Obtained:
        if self.armed and not self.reached.is_set():
            self.reached.set()
            if self.what == "fails":
                raise CredentialError("env:TOKEN", "is not set on this node", "set it")
            await self.gone_on.wait()
        return Obtained(Secret("the value of the token"), None)


class Request:
    """A request that stays under way until it is let go: before the store has it, or its answer."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.reached = asyncio.Event()
        self.gone_on = asyncio.Event()

    def let_go(self) -> None:
        self.gone_on.set()

    async def __call__(self, proceed: Proceed) -> Any:
        answer = await proceed() if self.way == "done" else None
        self.reached.set()
        await self.gone_on.wait()
        return answer if self.way == "done" else await proceed()


async def befall(what: str, node: Member, obstacle: Obstacle, caller: "asyncio.Task[object]") -> None:
    match what:
        case "killed":
            node.kill()
        case "frozen":
            assert node.process is not None
            node.process.pause()
            await asyncio.sleep(3 * TTL_S)  # somebody else has it by now
            obstacle.let_go()
            node.process.resume()
        case "drained":
            leaving = asyncio.ensure_future(node.leave(1))
            await asyncio.sleep(0.5)
            obstacle.let_go()
            await leaving
        case "caller-gone":
            caller.cancel()
            await asyncio.sleep(0.5)
            obstacle.let_go()
        case _:
            pass  # the provider's own fault, or the loop's


# --- the stage ------------------------------------------------------------------------------------------------------


WITH_CREDENTIALS = {"credentials": {"TOKEN": "env:TOKEN"}}


async def add(
    cluster: Cluster, machine: Machine, name: str, agent: Agent | None = None, *, kind: Kind
) -> tuple[Member, FaultyProvider]:
    provider = FaultyProvider(machine, outlives_node=kind == "outlives")
    settings = {"reap_s": REAP_S, "start_timeout_s": START_S, "backoff_s": 0.2, "allow_env": "TOKEN"}
    member = await cluster.add(name, agent, provider=provider, **settings)  # type: ignore[arg-type]
    return member, provider


async def a_neighbour(cluster: Cluster, machine: Machine, kind: Kind) -> tuple[str, FaultyProvider]:
    """The runtime of a living peer, and the peer's provider."""
    peer, provider = await add(cluster, machine, "peer", kind=kind)
    await peer.start(NEIGHBOUR)
    return str(cluster.fold(NEIGHBOUR).runtime), provider


async def before(cluster: Cluster, machine: Machine, step: str, kind: Kind) -> None:
    """An owner that left its runtime behind: to be attached, or, if it is gone as well, to be discarded."""
    if step in ("attach", "discard", "credentials"):
        former, provider = await add(cluster, machine, "former", kind=kind)
        await former.start(settings=WITH_CREDENTIALS if step == "credentials" else None)  # type: ignore[arg-type]
        former.kill()
        if step == "discard":
            provider.lose(str(cluster.fold().runtime))
        await asyncio.sleep(2 * TTL_S)


async def until_there(
    cluster: Cluster, machine: Machine, cell: Cell, kind: Kind, obtaining: Obtaining
) -> tuple[Member, Obstacle, "asyncio.Task[object]"]:
    """A node that has begun the start and come to the step, where it meets what the cell has for it."""
    step, what = cell
    opening = Opening(what)
    agent = Agent(on_open=opening) if step == "loop" else None
    node, provider = await add(cluster, machine, "node", agent, kind=kind)
    name, _, way = step.partition("-")
    if name == "failed":
        provider.will("configure", Fail("no room on host 7"))
    if name in REQUESTS:
        request = Request(way)
        operation, when = REQUESTS[name]
        node.rig.once(operation, request, when)
        caller = node.starting()
        await request.reached.wait()
        return node, request, caller
    if step == "loop":
        caller = node.starting()
        await opening.reached.wait()
        return node, opening, caller
    if step == "credentials":
        obtaining.armed = True
        caller = node.starting()
        await obtaining.reached.wait()
        return node, obtaining, caller
    provider.will(step, PROVIDER.get(what, Hang()))
    caller = node.starting()
    await provider.reached(step)
    return node, provider, caller


# --- what must be true ----------------------------------------------------------------------------------------------


class Watched(list[tuple[str, str]]):
    """What a machine has done. A runtime is destroyed after the journal has called it retired, and never before."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.rash: list[str] = []

    def append(self, done: tuple[str, str]) -> None:
        super().append(done)
        step, name = done
        if step == "discard" and name not in self.cluster.fold().retired:
            self.rash.append(name)


async def judge(cluster: Cluster, machine: Machine, fold: Fold, neighbour: str) -> None:
    ours = {name for name, spec in machine.standing.items() if spec.conversation == C}
    assert ours <= {fold.runtime}, f"left behind: {ours}, the journal's is {fold.runtime}"
    assert isinstance(machine.log, Watched)
    assert machine.log.rash == [], "only what the journal calls retired by then is destroyed, so no living peer's"
    assert neighbour in machine.standing
    owner = cluster.record().owner
    assert owner is None or not cluster.dead(owner.incarnation), "the claim is free or live"
    assert await cluster.store.list_papers(KIND) == [], "no step is shown of a start that is over"


SAID = {"fails": "no room on host 7", "loses-its-reply": "timed out", "hangs": f"no answer within {START_S:g} s"}
SAID_INSTEAD = {
    ("loop", "fails"): "RuntimeError: the model is not there",
    ("credentials", "fails"): "TOKEN: env:TOKEN: is not set on this node; set it",
}


def reasons(cluster: Cluster, cell: Cell) -> None:
    """A failure is told once, with its step and its words, and no other fate is one: what a node meets is no failure of
    the start, and who lies, or loses a runtime without a word, has told of none."""
    step, what = cell
    failed = [(e.body["step"], e.body["reason"]) for e in cluster.events("start_failed")]
    name, _, way = step.partition("-")
    if name == "failed":  # told, unless its node was dead or no longer the owner before the store had heard of it
        untold = way == "sent" and what in ("killed", "frozen")
        assert failed == ([] if untold else [("configure", SAID["fails"])])
    elif what in SAID:
        where = "boot" if cell == ("provision", "hangs") else step
        assert failed == [(where, SAID_INSTEAD.get(cell, SAID[what]))]
    else:
        assert failed == []


def spared(cluster: Cluster, cell: Cell, kind: Kind) -> None:
    """A living runtime that a takeover only failed to get at, or was kept from, is still the one (0064)."""
    if kind == "outlives" and (cell[0] == "credentials" or (cell[0] == "attach" and cell[1] not in ("lies", "dies"))):
        assert len(cluster.events("runtime_requested")) == 1


@in_virtual_time
async def one_runtime_or_none(cluster: Cluster, cell: Cell, kind: Kind, obtaining: Obtaining) -> None:
    """One cell of the matrix, of a step of the start itself."""
    step, what = cell
    machine = Machine(log=Watched(cluster))
    neighbour, _ = await a_neighbour(cluster, machine, kind)
    await before(cluster, machine, step, kind)
    async with asyncio.timeout(START_S):
        node, obstacle, caller = await until_there(cluster, machine, cell, kind, obtaining)
    said = await cluster.say()
    await befall(what, node, obstacle, caller)
    await until(lambda: cluster.settled(said), 90)
    await asyncio.sleep(PERIOD_S)
    await judge(cluster, machine, cluster.fold(), neighbour)
    reasons(cluster, cell)
    spared(cluster, cell, kind)


@in_virtual_time
async def a_round_of_the_reaper(cluster: Cluster, cell: Cell, kind: Kind, obtaining: Obtaining) -> None:
    """Something is left behind to be reaped, and the node that looks for it meets its fate while it looks."""
    machine, what = Machine(log=Watched(cluster)), cell[1]
    neighbour, others = await a_neighbour(cluster, machine, kind)
    others.always("list", Lie())  # the peer sees nothing yet
    node, provider = await add(cluster, machine, "node", kind=kind)
    provider.will("configure", Fail("no room on host 7"))
    provider.will("discard", Lie())
    provider.will("list", PROVIDER.get(what, Hang()))
    caller = node.starting()
    await until(lambda: cluster.events("start_failed"))
    left = str(cluster.events("runtime_requested")[0].body["name"])
    assert left in machine.standing, "the teardown lied"
    async with asyncio.timeout(4 * REAP_S):
        await provider.reached("list")
    await befall(what, node, provider, caller)
    others.always("list", None)
    said = await cluster.say()
    await until(lambda: cluster.settled(said) and left not in machine.standing, 60 + 4 * REAP_S)
    await judge(cluster, machine, cluster.fold(), neighbour)
    assert [e.body["reason"] for e in cluster.events("start_failed")] == ["no room on host 7"], "and no other start"


# --- where ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def stored_in(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> StoredIn:
    """A store that is empty for each cell."""
    match store:
        case "sqlite":
            return real_stores.sqlite(tmp_path)
        case "redis":
            return real_stores.redis(request.getfixturevalue("server"))
        case "postgres":
            return real_stores.postgres(request.getfixturevalue("database"))
        case _:
            return MemoryBacking


MATRIX: list[tuple[str, Kind, Cell]] = [("memory", kind, cell) for kind in ("outlives", "ends") for cell in CELLS]
MATRIX += [(store, "outlives", cell) for store in REAL for cell in (CELLS if WHOLE else share(store))]


@pytest.mark.parametrize(
    ("store", "kind", "cell"), MATRIX, ids=lambda part: part if isinstance(part, str) else "-".join(part)
)
def test_a_start_ends_with_one_runtime_or_none(
    cell: Cell, kind: Kind, stored_in: StoredIn, monkeypatch: pytest.MonkeyPatch
):
    obtaining = Obtaining(cell[1])
    monkeypatch.setattr(node_credentials, "obtain", obtaining.obtain)
    play = a_round_of_the_reaper if cell[0] == "list" else one_runtime_or_none
    play(cell=cell, kind=kind, obtaining=obtaining, stored_in=stored_in)


def test_each_step_and_each_fate_is_met_on_every_store():
    steps, fates = ({cell[part] for cell in CELLS} for part in (0, 1))
    for store in REAL:
        assert {step for step, _ in share(store)} == steps
        assert {what for _, what in share(store)} == fates
    assert sorted(cell for store in REAL for cell in share(store)) == sorted(CELLS), "each on one of them"
