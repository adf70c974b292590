"""Every step of a start × whatever befalls it, in virtual time: one runtime or none, the claim free or live, the reason
readable, no runtime of a living peer touched, nothing left behind after one period of the reaper."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from node_support import Agent, C, Cluster, Member, in_virtual_time, until

from tenure.abc import Place
from tenure.conversation import Fold
from tenure.testing import real_stores
from tenure.testing.provider import Die, Fail, FaultyProvider, Hang, Lie, Machine
from tenure.testing.servers import RedisServer, redis_binary

STEPS = ("attach", "discard", "provision", "ready", "configure")
PROVIDER = {"fails": Fail("no room on host 7"), "loses-its-reply": Fail("timed out", after=True), "hangs": Hang()}
PROVIDER |= {"lies": Lie(), "dies": Die()}
NODE = ("killed", "frozen", "drained", "caller-gone")
ON_REAL_STORES = [("attach", "killed"), ("attach", "drained"), ("discard", "frozen"), ("provision", "killed")]
ON_REAL_STORES += [("provision", "frozen"), ("configure", "drained")]
"""Each fate and each step, not each pair: a cell costs a second there. To a store, `ready` is `provision`."""
NEIGHBOUR = "neighbour"
TTL_S, REAP_S, START_S = 1.0, 5.0, 4.0


async def add(
    cluster: Cluster, machine: Machine, name: str, agent: Agent | None = None
) -> tuple[Member, FaultyProvider]:
    provider = FaultyProvider(machine, outlives_node=True)
    member = await cluster.add(
        name, agent, provider=provider, reap_s=REAP_S, start_timeout_s=START_S, backoff_s=0.2  # type: ignore[arg-type]
    )  # fmt: skip
    return member, provider


async def before(cluster: Cluster, machine: Machine, step: str) -> None:
    """An owner that left its runtime behind: to be attached, or, if it is gone as well, to be discarded."""
    if step in ("attach", "discard"):
        former, provider = await add(cluster, machine, "former")
        await former.start()
        former.kill()
        if step == "discard":
            provider.lose(str(cluster.fold().runtime))
        await asyncio.sleep(2 * TTL_S)


async def befall(what: str, node: Member, provider: "FaultyProvider | Opening", caller: "asyncio.Task[object]") -> None:
    match what:
        case "killed":
            node.kill()
        case "frozen":
            assert node.process is not None
            node.process.pause()
            await asyncio.sleep(3 * TTL_S)  # somebody else has it by now
            provider.let_go()
            node.process.resume()
        case "drained":
            leaving = asyncio.ensure_future(node.leave(1))
            await asyncio.sleep(0.5)
            provider.let_go()
            await leaving
        case "caller-gone":
            caller.cancel()
            await asyncio.sleep(0.5)
            provider.let_go()
        case _:
            pass  # the provider's own fault


def discarded(machine: Machine) -> set[str]:
    return {name for step, name in machine.log if step == "discard"}


def judge(cluster: Cluster, machine: Machine, fold: Fold, neighbour: str) -> None:
    ours = {name for name, spec in machine.standing.items() if spec.conversation == C}
    assert ours <= {fold.runtime}, f"left behind: {ours}, the journal's is {fold.runtime}"
    assert discarded(machine) <= set(fold.retired), "only what the journal calls retired is destroyed"
    assert neighbour in machine.standing and neighbour not in discarded(machine), "a living peer's"
    owner = cluster.record().owner
    assert owner is None or not cluster.dead(owner.incarnation), "the claim is free or live"


async def a_neighbour(cluster: Cluster, machine: Machine) -> tuple[str, FaultyProvider]:
    """The runtime of a living peer, and the peer's provider."""
    peer, provider = await add(cluster, machine, "peer")
    await peer.start(NEIGHBOUR)
    return str(cluster.fold(NEIGHBOUR).runtime), provider


async def one_runtime_or_none(cluster: Cluster, step: str, what: str) -> None:
    """One cell of the matrix."""
    machine = Machine()
    neighbour, _ = await a_neighbour(cluster, machine)
    await before(cluster, machine, step)
    node, provider = await add(cluster, machine, "node")
    provider.will(step, PROVIDER.get(what, Hang()))
    caller = node.starting()
    await provider.reached(step)
    said = await cluster.say()
    await befall(what, node, provider, caller)
    await until(lambda: cluster.settled(said), 90)
    await asyncio.sleep(2.5 * REAP_S)
    fold = cluster.fold()
    judge(cluster, machine, fold, neighbour)
    failed = cluster.events("start_failed")
    if what in ("fails", "hangs", "loses-its-reply"):
        reason = {"fails": "no room on host 7", "loses-its-reply": "timed out", "hangs": "no answer within 4 s"}[what]
        assert [str(e.body["reason"]) for e in failed] == [reason]
        assert failed[0].body["step"] == ("boot" if (step, what) == ("provision", "hangs") else step), "where it was"
    if what == "drained":
        assert failed == [], "leaving is no failure"


CELL = in_virtual_time(one_runtime_or_none)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", [*PROVIDER, *NODE])
def test_a_start_ends_with_one_runtime_or_none(step: str, what: str):
    CELL(step=step, what=what)


# --- the loop's own step, and the reaper's --------------------------------------------------------------------------


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


@pytest.mark.parametrize("what", ["fails", "hangs", *NODE])
@in_virtual_time
async def test_a_loop_that_does_not_open_leaves_one_runtime_or_none(cluster: Cluster, what: str):
    machine, opening = Machine(), Opening(what)
    neighbour, _ = await a_neighbour(cluster, machine)
    agent = Agent(on_open=opening)
    node, _ = await add(cluster, machine, "node", agent)
    caller = node.starting()
    await opening.reached.wait()
    said = await cluster.say()
    await befall(what, node, opening, caller)
    await until(lambda: cluster.settled(said), 90)
    await asyncio.sleep(2.5 * REAP_S)
    judge(cluster, machine, cluster.fold(), neighbour)
    failed = [(e.body["step"], e.body["reason"]) for e in cluster.events("start_failed")]
    reason = {"fails": "the model is not there", "hangs": "no answer within 4 s"}.get(what)
    assert len(failed) == (1 if reason else 0), failed
    if reason:
        assert failed[0][0] == "loop" and reason in str(failed[0][1])


@pytest.mark.parametrize("what", [*PROVIDER, "killed", "frozen", "drained"])
@in_virtual_time
async def test_a_list_that_goes_wrong_costs_the_reaper_a_round(cluster: Cluster, what: str):
    """Something is left behind to be reaped, and the node that looks for it meets its fate while it looks."""
    machine = Machine()
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
    await provider.reached("list")
    await befall(what, node, provider, caller)
    others.always("list", None)
    said = await cluster.say()
    await until(lambda: cluster.settled(said) and left not in machine.standing, 60 + 4 * REAP_S)
    judge(cluster, machine, cluster.fold(), neighbour)
    assert [e.body["reason"] for e in cluster.events("start_failed")] == ["no room on host 7"], "and no other start"


# --- what befalls a node, on real stores ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary()) as server:
        yield server


@pytest.mark.blocking_ok  # the store answers while virtual time stands still
@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize(("step", "what"), ON_REAL_STORES)
def test_a_start_on_a_real_store(step: str, what: str, store: str, request: pytest.FixtureRequest, tmp_path: Path):
    stored_in = (
        real_stores.sqlite(tmp_path) if store == "sqlite" else real_stores.redis(request.getfixturevalue("server"))
    )
    CELL(step=step, what=what, stored_in=stored_in)
