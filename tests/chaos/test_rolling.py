"""A rolling restart of every node under load: every turn goes on, nothing waits for a ttl."""

from __future__ import annotations

import asyncio

from world import world


async def test_a_rolling_restart_under_load_loses_and_doubles_nothing(tmp_path, store):
    async with world(tmp_path, store, ttl_s=30.0, drain_s=0.5) as one:  # with this ttl, waiting for one would be seen
        for name in ("a", "b", "c"):
            one.node(name)
        await one.nodes.start()
        ids = [f"load-{i}" for i in range(9)]
        for conversation in ids:
            await one.create(conversation)
        rolling = True

        async def talk(conversation: str) -> int:
            sent = 0
            while rolling or sent < 3:
                answer = await one.send(conversation, f"{conversation} {sent}", between_s=0.4)
                await one.answered(conversation, answer)
                sent += 1
            return sent

        talks = [asyncio.create_task(talk(c)) for c in ids]
        for node in one.nodes:
            await asyncio.sleep(0.5)
            node.drain()
            assert await node.ended(30) == 0, "a clean exit, with turns open and streams of work"
            await node.start()
        rolling = False
        sent = sum(await asyncio.gather(*talks))
        await one.quiescent()
        journals = [await one.events(c) for c in ids]
        ends = [e.kind for j in journals for e in j if e.kind in ("turn_completed", "turn_failed", "turn_interrupted")]
        assert ends == ["turn_completed"] * sent, "no turn ends because of a shutdown"
        assert not [e for j in journals for e in j if e.kind == "claimed" and e.body["previous"]], "all were released"
        await one.judge()
