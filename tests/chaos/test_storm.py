"""Many starts of many conversations at many nodes, at once: one loop each."""

from __future__ import annotations

import asyncio
from collections import Counter

from world import world


async def test_a_storm_of_starts_runs_one_loop_each(tmp_path, store):
    async with world(tmp_path, store) as one:
        for name in ("a", "b", "c"):
            one.node(name)
        await one.nodes.start()
        nodes = list(one.nodes)
        ids = [f"storm-{i}" for i in range(12)]
        one.conversations.update(ids)
        for conversation in ids:
            await one.post("/conversations", {"id": conversation}, nodes[0])

        async def start(conversation: str, node, n: int) -> tuple[int, str, int | None]:
            here = {"here": "true"} if n % 2 else {}
            reply = await one.http.post(
                f"{node.url}/conversations/{conversation}/start", params=here, json={}, timeout=60
            )
            body = reply.json()
            return reply.status_code, body.get("code", ""), body.get("epoch")

        answers = await asyncio.gather(*(start(c, node, n) for c in ids for node in nodes for n in range(4)))
        told = Counter((status, code) for status, code, _ in answers)
        assert set(told) <= {(200, ""), (202, ""), (409, "conversation-owned-elsewhere")}, told
        await asyncio.gather(*(one.send(c, f"to {c}", *nodes) for c in ids))
        await one.quiescent()
        for conversation in ids:
            claims = [e for e in await one.events(conversation) if e.kind == "claimed"]
            assert [e.epoch for e in claims] == [1], f"{conversation}: one claim, one loop"
            assert len([e for e in await one.events(conversation) if e.kind == "loop_started"]) == 1
        await one.judge()
