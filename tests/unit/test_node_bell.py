"""A bell does what an event does, for any number who wait, and keeps nothing for those who went away."""

import asyncio

from tenure.node.bell import Bell


async def test_everybody_who_waits_goes_on():
    bell = Bell()
    waiting = [asyncio.create_task(bell.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    bell.set()
    await asyncio.gather(*waiting)
    assert bell.is_set()


async def test_a_bell_that_has_rung_holds_nobody_up():
    bell = Bell()
    bell.set()
    async with asyncio.timeout(0.5):
        await bell.wait()


async def test_a_bell_that_was_cleared_is_waited_for_again():
    bell = Bell()
    bell.set()
    bell.clear()
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    bell.set()
    await waiting


async def test_who_went_away_is_forgotten_and_the_others_are_heard():
    bell = Bell()
    gone, stays = asyncio.create_task(bell.wait()), asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    gone.cancel()
    bell.set()  # before the one that was cancelled has run
    await stays
    await asyncio.wait([gone])
    assert gone.cancelled()
    bell.clear()
    late = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late])
    assert bell._waiters == []
