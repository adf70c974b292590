"""Every step of a start × whatever befalls it, in virtual time: one runtime or none, the claim free or live, the reason
readable, no runtime of a living peer touched, nothing left behind after one period of the reaper."""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from node_support import C, Cluster, Member, in_virtual_time, until

from tenure.conversation import Fold
from tenure.testing.provider import Die, Fail, FaultyProvider, Hang, Lie, Machine

STEPS = ("attach", "discard", "provision", "ready", "configure")
PROVIDER = {"fails": Fail("no room on host 7"), "loses-its-reply": Fail("timed out", after=True), "hangs": Hang()}
PROVIDER |= {"lies": Lie(), "dies": Die()}
NODE = ("killed", "frozen", "drained", "caller-gone")
NEIGHBOUR = "neighbour"
TTL_S, REAP_S, START_S = 1.0, 5.0, 4.0


async def add(cluster: Cluster, machine: Machine, name: str) -> tuple[Member, FaultyProvider]:
    provider = FaultyProvider(machine, outlives_node=True)
    member = await cluster.add(
        name, provider=provider, reap_s=REAP_S, start_timeout_s=START_S, backoff_s=0.2  # type: ignore[arg-type]
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


async def befall(what: str, node: Member, provider: FaultyProvider, caller: "asyncio.Task[object]") -> None:
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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", [*PROVIDER, *NODE])
@in_virtual_time
async def test_a_start_ends_with_one_runtime_or_none(cluster: Cluster, step: str, what: str):
    machine = Machine()
    peer, _ = await add(cluster, machine, "peer")
    await peer.start(NEIGHBOUR)
    neighbour = str(cluster.fold(NEIGHBOUR).runtime)
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
