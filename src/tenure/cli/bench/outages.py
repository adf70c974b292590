"""What is no death of a node: a partition from its store, a store that starts anew, an event loop that is blocked."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tenure.abc import Submit
from tenure.cli.bench.node_child import BLOCKS, STAYS
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Figure
from tenure.cli.bench.sampling import in_thread, quantile, upper
from tenure.cli.bench.stage import create, message, opened
from tenure.testing.proxy import Proxy, Way

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row

BURIED_S = 20.0
BLOCKED_S = 2.0
"""Times the ttl."""


async def partitions(place: Place, trials: int, ttl_s: float, row: Row) -> None:
    """The owner of an open turn and its witness cannot reach the store, nor it them: milliseconds to the live loop of another."""
    took: list[float] = []
    for number in range(trials):
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(place.space())
            store = await stack.enter_async_context(opened(url))
            parts = urlsplit(url)
            assert parts.port is not None, "a server of our own has a port"
            proxy = await stack.enter_async_context(Proxy(parts.port))
            beyond = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))))
            how: dict[str, Any] = {"tell": "live", "ttl_s": ttl_s, "witness": True, "kill": True}
            owner = await stack.enter_async_context(child_node(beyond, node="owner", **how))
            name = f"{STAYS}-{number}"
            await create(store, [name], text=STAYS)
            await owner.until(lambda owner=owner, name=name: name in owner.told["live"], "it is live")
            heir = await stack.enter_async_context(child_node(url, node="heir", **how))
            at = time.monotonic()
            for way in Way:
                proxy.hold(way)
            await heir.until(lambda heir=heir, name=name: name in heir.told["live"], "it is live elsewhere")
            took.append((heir.told["live"][name] - at) * 1000)
            await proxy.heal()
            owner.kill()  # its witness finds it buried, and ends
            await _all_dead_but(store, "heir")
    row.figures.append(
        Figure.of_waits(f"{place.kind}: owner cut off from the store → live elsewhere", "ours", "ms", took)
    )
    met = quantile(took, 0.99) < (ttl_s + 0.5) * 1000
    row.bounds.append(Bound(f"{place.kind}: partition p99 < ttl + 0.5 s", upper(took), met))


async def _all_dead_but(store: Store, node: str) -> None:
    async with asyncio.timeout(BURIED_S):
        while any(one.about.node != node and not one.dead for one in await store.nodes()):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


async def store_restarts(place: Place, trials: int, ttl_s: float, row: Row) -> None:
    """The store ends and starts anew: milliseconds from the moment in which it answers again to the end of the next turn."""
    server = place.server
    assert server is not None, "only a server of our own is restarted"
    took: list[float] = []
    async with place.space() as url, child_node(url, tell="turn", ttl_s=ttl_s, kill=True) as node:
        async with opened(url) as store:
            await create(store, ["kept"], text="hello")
        await node.until(lambda: node.counts["turn"] >= 1, "it is live")
        for number in range(trials):
            turns = node.counts["turn"]
            await in_thread(lambda: (server.stop(), server.start()))  # both, whatever happens: others need it
            at = time.monotonic()
            async with opened(url) as store:
                await store.submit(Submit("kept", message(f"after-{number}")))
                await node.until(lambda turns=turns: node.counts["turn"] > turns, "it has answered")
            took.append((node.told["turn"]["kept"] - at) * 1000)
    row.figures.append(
        Figure.of_waits(f"{place.kind}: store restarted, answering again → a message is answered", "ours", "ms", took)
    )
    met = quantile(took, 0.99) < (ttl_s + 0.5) * 1000
    text = f"{place.kind}: restart of the store, from its first answer to that of a message p99 < ttl + 0.5 s"
    row.bounds.append(Bound(text, upper(took), met))


async def blocked_loops(place: Place, ttl_s: float, row: Row) -> None:
    """The owner's event loop stands for twice the ttl: it stays the owner, since the heartbeat has a thread of its own."""
    async with place.space() as url, opened(url) as store, AsyncExitStack() as stack:
        how: dict[str, Any] = {"tell": "live,turn", "ttl_s": ttl_s, "kill": True}
        owner = await stack.enter_async_context(child_node(url, node="owner", **how))
        await create(store, ["blocked"], text="hello")
        await owner.until(lambda: owner.counts["turn"] >= 1, "it is live")
        await stack.enter_async_context(child_node(url, node="other", **how))
        [before] = await store.records(["blocked"])
        await store.submit(Submit("blocked", message("block", f"{BLOCKS} {BLOCKED_S * ttl_s}")))
        await owner.until(lambda: owner.counts["turn"] >= 2, "its loop goes on")
        [after] = await store.records(["blocked"])
    kept = before is not None and after is not None and before.epoch == after.epoch
    text = f"{place.kind}: an event loop blocked for {BLOCKED_S * ttl_s:g} s costs no lease"
    row.bounds.append(Bound(text, "the same owner" if kept else "another owner", kept))
