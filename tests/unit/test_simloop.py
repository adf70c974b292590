"""Virtual time, and processes that are frozen, killed and starved."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tenure.testing.simloop import (
    LoopClock,
    SimDeadlockError,
    SimLoop,
    SimProcess,
    SimTimeoutError,
    running_process,
    simulate,
)


def in_process(body: Callable[[SimLoop, SimProcess, list[str]], Awaitable[None]]) -> list[str]:
    """Run ``body(loop, process, said)`` outside of the process, and return what was said."""
    said: list[str] = []

    async def main(loop: SimLoop) -> None:
        await body(loop, loop.process("n1"), said)

    simulate(main)
    return said


async def count(loop: SimLoop, said: list[str], *, every_s: float = 1.0) -> None:
    try:
        for number in range(5):
            said.append(f"{number} at {loop.time():g}")
            await asyncio.sleep(every_s)
    finally:
        said.append("finally")


def test_time_jumps_and_timers_come_in_order():
    async def main(loop: SimLoop) -> list[float]:
        seen: list[float] = []

        async def wait(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(loop.time())

        async with asyncio.TaskGroup() as group:
            for seconds in (3600.0, 0.5, 60.0):
                group.create_task(wait(seconds))
        return seen

    assert simulate(main, limit_s=4000) == [0.5, 60.0, 3600.0]


def test_timeouts_of_asyncio_work():
    async def main(loop: SimLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3)
        return loop.time()

    assert simulate(main) == 5.0


def test_a_deadlock_is_an_error_that_names_the_paused():
    async def main(loop: SimLoop) -> None:
        process = loop.process("n1")
        process.pause()
        await process.call(asyncio.sleep(1))

    with pytest.raises(SimDeadlockError, match="n1"):
        simulate(main)


def test_a_loop_that_never_waits_is_an_error():
    async def main(loop: SimLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimDeadlockError, match="stands still"):
        simulate(main)


def test_the_virtual_time_is_bounded():
    async def main(loop: SimLoop) -> None:
        await asyncio.sleep(100)

    with pytest.raises(SimTimeoutError):
        simulate(main, limit_s=10)


def test_a_paused_process_is_late_but_in_order():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        task = process.spawn(count(loop, said))
        await asyncio.sleep(1.5)
        process.pause()
        await asyncio.sleep(10)
        process.resume()
        await task

    assert in_process(body) == ["0 at 0", "1 at 1", "2 at 11.5", "3 at 12.5", "4 at 13.5", "finally"]


def test_what_was_held_runs_before_what_is_newer():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        async def say(word: str) -> None:
            said.append(word)

        async def say_later() -> None:
            loop.call_later(1, said.append, "old")

        await process.call(say_later())
        process.pause()
        await asyncio.sleep(2)
        process.resume()
        await process.call(say("new"))

    assert in_process(body) == ["old", "new"]


def test_a_killed_process_runs_no_finally():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        process.spawn(count(loop, said))
        await asyncio.sleep(1.5)
        process.kill()
        await asyncio.sleep(10)
        said.append("after")

    assert in_process(body)[:3] == ["0 at 0", "1 at 1", "after"]


def test_a_caller_learns_of_the_kill():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        loop.call_later(1, process.kill)
        with pytest.raises(ProcessLookupError):
            await process.call(asyncio.sleep(5))
        with pytest.raises(ProcessLookupError):
            await process.call(asyncio.sleep(5))
        said.append(f"{loop.time():g}")

    assert in_process(body) == ["1"]


def test_a_paused_process_can_be_killed():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        process.spawn(count(loop, said))
        await asyncio.sleep(0.5)
        process.pause()
        await asyncio.sleep(2)
        process.kill()
        process.resume()
        await asyncio.sleep(2)
        said.append("after")

    assert in_process(body)[:2] == ["0 at 0", "after"]


def test_a_finally_that_awaits_does_not_outlive_the_run():
    async def stubborn() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            await asyncio.sleep(1)

    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        async with asyncio.timeout(50):
            process.spawn(stubborn())
            await asyncio.sleep(1)
            process.kill()
            said.append("done")

    assert in_process(body) == ["done"]  # and no warning, which would be an error


def test_a_slow_process_takes_its_time_between_callbacks():
    async def body(loop: SimLoop, process: SimProcess, said: list[str]) -> None:
        process.slow(0.25)
        await process.call(count(loop, said))
        assert loop.time() >= 5 * 1.25

    assert in_process(body)[0] == "0 at 0.25"


def test_tasks_inherit_the_process():
    async def main(loop: SimLoop) -> None:
        process = loop.process("n1")
        found: list[SimProcess | None] = []

        async def child() -> None:
            await asyncio.sleep(1)
            found.append(running_process())

        async def parent() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())

        await process.call(parent())
        assert found == [process]
        assert running_process() is None

    simulate(main)


def test_errors_of_callbacks_are_kept_but_not_those_of_the_dead():
    async def fail() -> None:
        raise ValueError("bad")

    async def main(loop: SimLoop) -> list[str]:
        process = loop.process("n1")
        process.spawn(fail())
        loop.call_soon(int, "x")
        await asyncio.sleep(1)
        process.kill()
        return loop.errors

    errors = simulate(main)
    assert len(errors) == 2
    assert "never retrieved" in " ".join(errors)


def test_there_are_no_threads():
    async def main(loop: SimLoop) -> None:
        await asyncio.to_thread(int)

    with pytest.raises(RuntimeError, match="thread"):
        simulate(main)


def test_clocks_run_at_their_rate_and_only_the_wall_is_stepped_back():
    async def main(loop: SimLoop) -> None:
        clock = LoopClock(loop, rate=1.5)
        boot, wall = clock.boottime(), clock.now()
        await asyncio.sleep(10)
        assert clock.boottime() - boot == pytest.approx(15)
        assert clock.now().unix_s - wall.unix_s == pytest.approx(10)
        clock.step_wall(-3600)
        assert clock.now() < wall
        assert clock.boottime() > boot

    simulate(main)
