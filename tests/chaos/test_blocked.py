"""A blocked event loop costs nothing but its own process's time; a blocked interpreter is a freeze."""

from __future__ import annotations

from world import world

TTL_S = 2.0


async def test_c22_a_loop_blocked_for_longer_than_the_ttl_keeps_its_lease(tmp_path, store):
    async with world(tmp_path, store, ttl_s=TTL_S) as one:
        first, second = one.node("first"), one.node("second")
        await first.start()
        await one.create("blocked", first)
        await one.http.post(f"{first.url}/conversations/blocked/start", params={"here": "true"}, json={})
        await second.start()
        sent = await one.send("blocked", "stand still", first, block_s=3 * TTL_S)
        await one.event("blocked", "turn_started")
        other = await one.send_new("other", "go on", second)
        await one.answered("other", other)
        assert not [e for e in await one.events("blocked") if e.kind == "turn_completed"], "it still stands"
        await one.answered("blocked", sent)
        claims = [e.epoch for e in await one.events("blocked") if e.kind == "claimed"]
        assert claims == [1], "three ttls without the event loop, and the lease was kept"
        assert "event loop is blocked" in first.log
        await one.quiescent()
        await one.judge()


async def test_c22_an_interpreter_that_pauses_for_longer_than_the_ttl_is_frozen(tmp_path, store):
    async with world(tmp_path, store, ttl_s=TTL_S) as one:
        first, second = one.node("first"), one.node("second")
        await first.start()
        await one.create("c", first)
        await one.http.post(f"{first.url}/conversations/c/start", params={"here": "true"}, json={})
        await second.start()
        await one.send("c", "hold everything", second, hold_gil_s=2.5 * TTL_S)
        taken = await one.event("c", "claimed", count=2)
        assert taken.body["node"] == "second"
        await one.quiescent()
        await one.judge()
