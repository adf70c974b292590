"""The provider for tests of a node: honest by itself, and at each step as bad as it is told to be."""

import asyncio
from typing import Any

import pytest

from tenure.abc import Ran, RuntimeFailure, RuntimeSpec
from tenure.testing.provider import Fail, FaultyProvider, Hang, Lie, Machine, Slow
from tenure.testing.simloop import SimLoop, simulate

SPEC = RuntimeSpec("s.c.e1", "s.c", "c")


def quiet(step: str) -> None:
    """Nobody watches."""


async def test_without_faults_it_keeps_the_contract():
    machine = Machine(answer=lambda command, stdin: Ran(0, f"{command}:{stdin}", ""))
    provider, other = FaultyProvider(machine), FaultyProvider(machine)
    runtime = await provider.provision(SPEC, quiet)
    await provider.configure(runtime, {"A": "b"})
    assert (await runtime.run("ls", stdin="x")).stdout == "ls:x"
    await runtime.write("a", "1")
    assert await runtime.read("a") == b"1" and machine.credentials == {"s.c.e1": {"A": "b"}}
    with pytest.raises(FileNotFoundError):
        await runtime.read("b")
    assert await provider.attach(SPEC) is not None
    assert await other.attach(SPEC) is None, "its processes belong to another node"
    assert await other.list() == [("s.c.e1", "c")]
    await other.discard("s.c.e1")
    with pytest.raises(RuntimeFailure, match="is gone"):
        await runtime.run("ls")
    assert await provider.attach(SPEC) is None and machine.workspaces == {"s.c": {"a": b"1"}}
    await other.discard("s.c.e1", "s.c")
    assert machine.workspaces == {}
    assert [step for step, _ in machine.log] == ["provision", "configure", "run", "write", "discard", "discard"]


async def test_a_runtime_may_outlive_its_node():
    machine = Machine()
    await FaultyProvider(machine, outlives_node=True).provision(SPEC, quiet)
    other = FaultyProvider(machine, outlives_node=True)
    assert await other.attach(SPEC) is not None
    other.kill_now()
    assert machine.standing and other.killed == 1


async def test_the_end_of_trust_ends_what_is_its_own():
    machine = Machine()
    one, two = FaultyProvider(machine), FaultyProvider(machine)
    await one.provision(SPEC, quiet)
    await two.provision(RuntimeSpec("s.d.e1", "s.d", "d"), quiet)
    one.kill_now()
    assert list(machine.standing) == ["s.d.e1"]


def do(provider: FaultyProvider, step: str) -> Any:
    """The step on a runtime that stands."""

    async def all_of_it() -> Any:
        runtime = await provider.provision(SPEC, quiet)
        provider.machine.workspaces["s.c"]["a"] = b"1"
        provider.machine.log.clear()
        match step:
            case "provision":
                return await provider.provision(RuntimeSpec("s.c.e2", "s.c", "c"), quiet)
            case "configure":
                return await provider.configure(runtime, {"A": "b"})
            case "attach":
                return await provider.attach(SPEC)
            case "discard":
                return await provider.discard("s.c.e1", "s.c")
            case "list":
                return await provider.list()
            case "read":
                return await runtime.read("a")
            case "write":
                return await runtime.write("a", "2")
            case _:
                return await runtime.run("ls")

    return all_of_it()


WRITING = ["provision", "configure", "discard", "run", "write"]
READING = ["attach", "list", "read"]


@pytest.fixture
def provider() -> FaultyProvider:
    return FaultyProvider()


def skip_own(provider: FaultyProvider, step: str, *faults: Any) -> None:
    """`do` provisions once itself."""
    provider.will(step, *([Slow(0)] if step == "provision" else []), *faults)


@pytest.mark.parametrize("step", WRITING + READING)
async def test_each_step_can_fail_before_it_is_done(provider: FaultyProvider, step: str):
    skip_own(provider, step, Fail("no room", permanent=True))
    with pytest.raises(RuntimeFailure) as failed:
        await do(provider, step)
    assert (failed.value.reason, failed.value.step, failed.value.permanent) == ("no room", step, True)
    assert provider.machine.log == []
    await do(provider, step)  # honest again


@pytest.mark.parametrize("step", WRITING)
async def test_each_step_can_lose_its_reply(provider: FaultyProvider, step: str):
    skip_own(provider, step, Fail("timed out", after=True))
    with pytest.raises(RuntimeFailure, match="timed out"):
        await do(provider, step)
    assert [done for done, _ in provider.machine.log] == [step]


@pytest.mark.parametrize("step", WRITING + READING)
async def test_each_step_can_hang_until_it_is_let_go(provider: FaultyProvider, step: str):
    skip_own(provider, step, Hang())
    work = asyncio.ensure_future(do(provider, step))
    await provider.reached(step, 2 if step == "provision" else 1)
    assert not work.done() and provider.machine.log == []
    provider.let_go()
    await work
    assert [done for done, _ in provider.machine.log] == ([step] if step in WRITING else [])


async def test_what_hangs_can_be_cancelled(provider: FaultyProvider):
    provider.always("provision", Hang())
    work = asyncio.ensure_future(provider.provision(SPEC, quiet))
    await provider.reached("provision")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    provider.let_go()
    assert provider.machine.standing == {}
    provider.always("provision", None)
    await provider.provision(SPEC, quiet)


@pytest.mark.parametrize("step", WRITING + READING)
def test_each_step_can_be_slow(step: str):
    async def main(loop: SimLoop) -> float:
        provider = FaultyProvider()
        skip_own(provider, step, Slow(90))
        await do(provider, step)
        return loop.time()

    assert simulate(main) == pytest.approx(90)


@pytest.mark.parametrize("step", WRITING)
async def test_each_step_can_lie_that_it_was_done(provider: FaultyProvider, step: str):
    skip_own(provider, step, Lie())
    await do(provider, step)
    assert provider.machine.log == []
    assert "s.c.e1" in provider.machine.standing and "s.c.e2" not in provider.machine.standing


async def test_what_is_asked_can_be_answered_with_a_lie(provider: FaultyProvider):
    for step, lie in (("attach", None), ("list", [])):
        provider.will(step, Lie())
        assert await do(provider, step) == lie
    provider.will("read", Lie())
    with pytest.raises(FileNotFoundError):
        await do(provider, "read")
    provider.will("attach", Lie())
    ghost = await provider.attach(RuntimeSpec("never.made", "w", "c"))
    assert ghost is not None
    with pytest.raises(RuntimeFailure, match="is gone"):
        await ghost.run("ls")


def test_only_steps_have_faults(provider: FaultyProvider):
    with pytest.raises(AssertionError, match="the steps are"):
        provider.will("explode", Fail())
    with pytest.raises(AssertionError, match="the steps are"):
        provider.always("explode", Fail())
