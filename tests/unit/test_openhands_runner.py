"""The thread of one conversation: what it was given there has threads of its own, and leaves none behind."""

import asyncio
import threading

from tenure.loops.openhands.runner import Runner


async def test_an_idle_conversation_keeps_one_thread_however_often_it_worked():
    names: list[str] = []

    async def aside() -> None:
        names.append(await asyncio.to_thread(lambda: threading.current_thread().name))

    before = set(threading.enumerate())
    runner = Runner("openhands-runner-test")
    for _ in range(2):
        await runner.begin(aside()).ended
    assert len(names) == 2 and "openhands-runner-test" not in names
    async with asyncio.timeout(20):
        while {t.name for t in set(threading.enumerate()) - before} != {"openhands-runner-test"}:
            await asyncio.sleep(0.01)
    runner.leave(lambda: None)
    await runner.left()
