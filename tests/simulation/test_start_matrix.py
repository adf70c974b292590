"""Every step of a start × whatever befalls it, in virtual time: one runtime or none, the claim free or live, the reason
readable, no runtime of a living peer touched, nothing left behind after one period of the reaper.

On memory each cell, always; on SQLite, Redis and PostgreSQL a few, and each of them with ``TENURE_START_MATRIX=whole``.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from node_support import Agent, C, Cluster, Member, Proceed, StoredIn, in_virtual_time, until, writes

from tenure.abc import Place
from tenure.conversation import Fold
from tenure.node.progress import KIND
from tenure.testing import real_stores
from tenure.testing.backing import MemoryBacking
from tenure.testing.postgres import PostgresServer
from tenure.testing.provider import Die, Fail, FaultyProvider, Hang, Lie, Machine
from tenure.testing.servers import RedisServer, redis_binary

PROVIDER = {"fails": Fail("no room on host 7"), "loses-its-reply": Fail("timed out", after=True), "hangs": Hang()}
PROVIDER |= {"lies": Lie(), "dies": Die()}
NODE = ("killed", "frozen", "drained", "caller-gone")
STEPS = ("attach", "discard", "provision", "ready", "configure")
REQUESTS: dict[str, tuple[str, Callable[..., bool]]] = {
    "claim": ("claim_all", lambda *_: True),
    "name": ("append_all", writes("runtime_requested")),
    "live": ("append_all", writes("loop_started")),
}
"""What a start asks of its store; each is caught on its way there (``sent``) and on its way back (``done``)."""

type Cell = tuple[str, str]

CELLS: list[Cell] = [(step, what) for step in STEPS for what in (*PROVIDER, *NODE)]
CELLS += [("loop", what) for what in ("fails", "hangs", *NODE)]
CELLS += [("list", what) for what in (*PROVIDER, "killed", "frozen", "drained")]
CELLS += [(f"{name}-{way}", what) for name in REQUESTS for way in ("sent", "done") for what in NODE]
A_FEW: list[Cell] = [("attach", "killed"), ("discard", "frozen"), ("provision", "drained"), ("configure", "fails")]
A_FEW += [("claim-done", "caller-gone"), ("name-sent", "frozen"), ("list", "lies")]
"""Each fate once, for every store in every run."""
WHOLE = os.environ.get("TENURE_START_MATRIX") == "whole"
REAL = ("sqlite", "redis", "postgres")

NEIGHBOUR = "neighbour"
TTL_S, REAP_S, START_S = 1.0, 5.0, 4.0

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


async def add(
    cluster: Cluster, machine: Machine, name: str, agent: Agent | None = None
) -> tuple[Member, FaultyProvider]:
    provider = FaultyProvider(machine, outlives_node=True)
    member = await cluster.add(
        name, agent, provider=provider, reap_s=REAP_S, start_timeout_s=START_S, backoff_s=0.2  # type: ignore[arg-type]
    )  # fmt: skip
    return member, provider


async def a_neighbour(cluster: Cluster, machine: Machine) -> tuple[str, FaultyProvider]:
    """The runtime of a living peer, and the peer's provider."""
    peer, provider = await add(cluster, machine, "peer")
    await peer.start(NEIGHBOUR)
    return str(cluster.fold(NEIGHBOUR).runtime), provider


async def before(cluster: Cluster, machine: Machine, step: str) -> None:
    """An owner that left its runtime behind: to be attached, or, if it is gone as well, to be discarded."""
    if step in ("attach", "discard"):
        former, provider = await add(cluster, machine, "former")
        await former.start()
        former.kill()
        if step == "discard":
            provider.lose(str(cluster.fold().runtime))
        await asyncio.sleep(2 * TTL_S)


async def until_there(
    cluster: Cluster, machine: Machine, cell: Cell
) -> tuple[Member, Obstacle, "asyncio.Task[object]"]:
    """A node that has begun the start and come to the step, where it meets what the cell has for it."""
    step, what = cell
    opening = Opening(what)
    node, provider = await add(cluster, machine, "node", Agent(on_open=opening) if step == "loop" else None)
    name, _, way = step.partition("-")
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


def reasons(cluster: Cluster, cell: Cell) -> None:
    """A failure of the provider or the loop is told once, with its step and its words; no other fate is one."""
    step, what = cell
    failed = [(e.body["step"], str(e.body["reason"])) for e in cluster.events("start_failed")]
    said = {"fails": "no room on host 7", "loses-its-reply": "timed out", "hangs": "no answer within 4 s"}.get(what)
    if said is not None:
        where = "boot" if cell == ("provision", "hangs") else step
        said = "RuntimeError: the model is not there" if cell == ("loop", "fails") else said
        assert failed == [(where, said)]
    elif what in ("drained", "caller-gone") or step.partition("-")[0] in REQUESTS:
        assert failed == [], "nothing has failed"


@in_virtual_time
async def one_runtime_or_none(cluster: Cluster, cell: Cell) -> None:
    """One cell of the matrix, of a step of the start itself."""
    step, what = cell
    machine = Machine(log=Watched(cluster))
    neighbour, _ = await a_neighbour(cluster, machine)
    await before(cluster, machine, step)
    async with asyncio.timeout(START_S):
        node, obstacle, caller = await until_there(cluster, machine, cell)
    said = await cluster.say()
    await befall(what, node, obstacle, caller)
    await until(lambda: cluster.settled(said), 90)
    await asyncio.sleep(2.5 * REAP_S)
    await judge(cluster, machine, cluster.fold(), neighbour)
    reasons(cluster, cell)


@in_virtual_time
async def a_round_of_the_reaper(cluster: Cluster, cell: Cell) -> None:
    """Something is left behind to be reaped, and the node that looks for it meets its fate while it looks."""
    machine, what = Machine(log=Watched(cluster)), cell[1]
    neighbour, others = await a_neighbour(cluster, machine)
    others.always("list", Lie())  # the peer sees nothing yet
    node, provider = await add(cluster, machine, "node")
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


MATRIX = [("memory", cell) for cell in CELLS]
MATRIX += [(store, cell) for store in REAL for cell in (CELLS if WHOLE else A_FEW)]


@pytest.mark.parametrize(("store", "cell"), MATRIX, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_a_start_ends_with_one_runtime_or_none(cell: Cell, stored_in: StoredIn):
    play = a_round_of_the_reaper if cell[0] == "list" else one_runtime_or_none
    play(cell=cell, stored_in=stored_in)


def test_each_fate_is_met_on_every_store():
    assert {what for _, what in A_FEW} >= set(NODE) | {"fails", "lies"}
    assert set(A_FEW) <= set(CELLS)
