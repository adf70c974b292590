"""Target 3: from the end of an owner to the moment in which another node's loop goes on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tenure.abc import Claim, Held
from tenure.cli.bench import outages
from tenure.cli.bench.node_child import STAYS
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.sampling import MeasureFailedError, quantile
from tenure.cli.bench.stage import TOGETHER, bury, claim, create, names, opened, piece, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.abc import Store
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.stage import Stage

TTL_S = 3.0
MANY = 10_000


async def measure(stage: Stage) -> Row:
    """Single conversations on every store by every fault; then thousands of a dead node, on one."""
    row = Row("takeover")
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    few = max(1, stage.amount.trials // 4)
    for one in stage.places.values():
        await piece(stage, row, f"{one.kind}: kill -9", _crashes(stage, one, row))
        if one is place or stage.amount.name == "full":
            await piece(stage, row, f"{one.kind}: SIGSTOP", _freezes(stage, one, row))
            await piece(stage, row, f"{one.kind}: host lost", _without_witness(stage, one, row))
    if place.server is not None:
        await piece(stage, row, "partitions", outages.partitions(place, few, TTL_S, row))
        await piece(stage, row, "restart of the store", outages.store_restarts(place, few, TTL_S, row))
    else:
        row.missing["partitions, restart of the store"] = "done to a Redis of our own only"
    await piece(stage, row, "blocked event loop", outages.blocked_loops(place, TTL_S, row))
    await _thousands(stage, place, row)
    return row


async def _crashes(stage: Stage, place: Place, row: Row) -> None:
    took = await _in_a_row(place, stage.amount.trials, lambda node: node.kill(), witness=True)
    row.figures.append(Figure.of_waits(f"{place.kind}: kill -9 → live elsewhere", "ours", "ms", took))
    p99 = quantile(took, 0.99)
    found = f"{quantile(took, 0.5):.0f} ms p50, {p99:.0f} ms p99 of {len(took)}"
    row.bounds.append(Bound(f"{place.kind}: crash p99 < 250 ms", found, p99 < 250))


async def _freezes(stage: Stage, place: Place, row: Row) -> None:
    def freeze(node: ChildNode) -> float:
        at = time.monotonic()
        os.kill(node.pid, signal.SIGSTOP)
        return at

    took = await _in_a_row(place, max(1, stage.amount.trials // 4), freeze, witness=True)
    row.figures.append(Figure.of_waits(f"{place.kind}: SIGSTOP → live elsewhere", "ours", "ms", took))
    p99 = quantile(took, 0.99)
    limit = (TTL_S + 0.5) * 1000
    row.bounds.append(Bound(f"{place.kind}: freeze p99 < ttl + 0.5 s", f"{p99:,.0f} ms of {len(took)}", p99 < limit))


async def _without_witness(stage: Stage, place: Place, row: Row) -> None:
    """As when the whole host dies: nobody is left who could tell."""
    took = await _in_a_row(place, max(1, stage.amount.trials // 4), lambda node: node.kill(), witness=False)
    row.figures.append(
        Figure.of_waits(f"{place.kind}: host lost, the ttl decides → live elsewhere", "ours", "ms", took)
    )


async def _in_a_row(place: Place, trials: int, end: Callable[[ChildNode], float], *, witness: bool) -> list[float]:
    """Milliseconds from the end of the owner of a conversation in the middle of a turn to the live loop of its heir, who is
    the next owner to end."""
    took: list[float] = []
    how: dict[str, Any] = {"tell": "claimed,live", "ttl_s": TTL_S, "witness": witness}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        owner = await stack.enter_async_context(child_node(url, node="owner", **how))
        for number in range(trials):
            name = f"{STAYS}-{number}"
            await create(store, [name], text=STAYS)
            await owner.until(lambda owner=owner, name=name: name in owner.told["live"], "it is live")
            heir = await stack.enter_async_context(child_node(url, node=f"heir-{number}", **how))
            at = end(owner)
            await heir.until(lambda heir=heir, name=name: name in heir.told["live"], "it is live elsewhere")
            took.append((heir.told["live"][name] - at) * 1000)
            await _forget(store, name)
            owner.kill()  # if it was only frozen
            owner = heir
    return took


async def _forget(store: Store, name: str) -> None:
    """A conversation that has served: deleted, so that the next owner does not hold it, too."""
    record = (await store.records([name]))[0]
    if record is not None:
        await store.delete(name, record.epoch, "bench")


async def _thousands(stage: Stage, place: Place, row: Row) -> None:
    """A node dies that held so many, each with a message that waits; one other node is left."""
    claimed, live = list[tuple[float, float]](), list[tuple[float, float]]()
    for count in stage.amount.dead:
        await piece(stage, row, f"{count:,} of a dead node", _many(stage, place, row, count, claimed, live))
    row.curves.append(
        Curve(
            "takeover.svg", "Takeover of a dead node", "conversations", "s", {"all claimed": claimed, "all live": live}
        )
    )
    most, took = claimed[-1] if claimed else (0, 0.0)
    met = took < 2 if most == MANY else None
    row.bounds.append(Bound("10,000 of a dead node claimed within 2 s", f"{took:.2f} s for {most:,.0f}", met))


async def _many(
    stage: Stage,
    place: Place,
    row: Row,
    count: int,
    claimed: list[tuple[float, float]],
    live: list[tuple[float, float]],
) -> None:
    label = f"{place.kind}: {count:,} of a dead node"
    async with place.space() as url, opened(url) as store:
        dead, ids = await register(store), names("dead", count)
        await create(store, ids, text="hello")
        for start in range(0, count, TOGETHER):
            requests: list[Claim] = [claim(name, dead, create=False) for name in ids[start : start + TOGETHER]]
            if not all(isinstance(answer, Held) for answer in await store.claim_all(requests)):
                raise MeasureFailedError("a claim was refused")
        async with child_node(url, tell="claimed,live", capacity=2 * count + 10, kill=True) as heir:
            await heir.worst_stall_s()
            at = await bury(store, dead)
            await heir.until(lambda: heir.counts["claimed"] >= count, "all are claimed")
            claimed.append((count, max(heir.told["claimed"].values()) - at))
            row.figures.append(Figure.of(f"{label}, all claimed", "ours", "s", [claimed[-1][1]]))
            stalls = [await heir.worst_stall_s() * 1000]
            try:
                await heir.until(lambda: heir.counts["live"] >= count, "all are live", stage.amount.fill_s)
            except MeasureFailedError:
                there = f"{heir.counts['live']:,} after {time.monotonic() - at:.0f} s"
                row.missing[f"{label}, all live"] = f"cut: {there}"
            else:
                live.append((count, max(heir.told["live"].values()) - at))
                row.figures.append(Figure.of(f"{label}, all live", "ours", "s", [live[-1][1]]))
            stalls.append(await heir.worst_stall_s() * 1000)
    for stall, when in zip(stalls, ("claims", "starts behind them"), strict=True):
        row.figures.append(
            Figure.of(f"{label}, longest stall of the heir's loop during the {when}", "ours", "ms", [stall])
        )
