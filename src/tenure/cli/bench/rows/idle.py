"""Target 5: what a conversation costs while nothing happens to it, and how fast it wakes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tenure.abc import Submit
from tenure.cli.bench.node_child import WRITES
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.sampling import median, quantile
from tenure.cli.bench.stage import create, hold, message, names, note, opened, passivate, register

if TYPE_CHECKING:
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.stage import Stage

EVENTS = 100
WATCHED_S = 10.0
START = 250
PASSIVATED_S = 1.0
WAKINGS = 5


async def measure(stage: Stage) -> Row:
    """Bytes in the store, bytes in the node, milliseconds from a message to a live loop, commands of an idle node."""
    row = Row("idle")
    redis = stage.places.get("redis")
    if redis is not None and redis.server is not None:
        await _stored(stage, redis, row)
        await _traffic(stage, redis, row)
    else:
        row.missing["bytes per passivated conversation"] = "counted on a Redis of our own only"
    await _resident(stage, redis or next(iter(stage.places.values())), row)
    for place in stage.places.values():
        await _wake(stage, place, row)
    await _long(stage, redis or next(iter(stage.places.values())), row)
    return row


async def _stored(stage: Stage, place: Place, row: Row) -> None:
    """By the server's own count of its memory."""
    assert place.server is not None
    used, count = lambda: int(place.server.info("memory")["used_memory"]), stage.amount.resident  # type: ignore[union-attr]
    async with place.space() as url, opened(url) as store:
        me = await register(store)
        await create(store, names("warm", 10))
        before = used()
        await create(store, names("bare", count))
        bare = (used() - before) / count
        before = used()
        await passivate(await hold(store, me, names("passivated", count)))
        let_go = (used() - before) / count
    row.figures += [
        Figure.of("redis: stored, created and never run", "ours", "B", [bare]),
        Figure.of(
            "redis: stored, passivated, its journal (created, claimed, released) included", "ours", "B", [let_go]
        ),
        Figure.of("node: passivated", "ours", "B", [0.0]),
    ]
    row.bounds.append(Bound("passivated < 300 B", f"{let_go:,.0f} B in the store, 0 B in the node", let_go < 300))


async def _resident(stage: Stage, place: Place, row: Row) -> None:
    """By the kernel's count of the node's memory, with every loop live and idle."""
    count = stage.amount.resident
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell="turn", capacity=2 * count + 100, kill=True) as node:
            await create(store, names("warm", min(count, 50)), text="hello")
            await node.until(lambda: node.counts["turn"] >= min(count, 50), "it is warm")
            await node.ask("collect", "collected")
            before, warm = node.resident_bytes, node.counts["turn"]
            for start in range(0, count, START):
                part = names("resident", count)[start : start + START]
                await create(store, part, text="hello")
                upto = warm + start + len(part)
                await node.until(lambda upto=upto: node.counts["turn"] >= upto, "all are idle")
            await node.ask("collect", "collected")
            each = (node.resident_bytes - before) / count
    row.figures.append(Figure.of(f"node: resident, live and idle, {count:,} of them", "ours", "B", [each]))
    row.bounds.append(Bound("resident < 6 KB", f"{each / 1000:.1f} KB", each < 6000))


async def _traffic(stage: Stage, place: Place, row: Row) -> None:
    """Commands per second at the server while a node holds so many, and nothing happens."""
    assert place.server is not None
    points: list[tuple[float, float]] = []
    watched_s = min(WATCHED_S, 20 * stage.amount.seconds)
    for owned in (0, *(100, stage.amount.resident)[: 1 if stage.amount.name == "tiny" else 2]):
        async with place.space() as url, opened(url) as store:
            async with child_node(url, tell="turn", capacity=owned + 100, kill=True) as node:
                await create(store, names("owned", owned), text="hello")
                await node.until(lambda owned=owned, node=node: node.counts["turn"] >= owned, "all are idle")
                await node.worst_stall_s()
                place.server.forget_calls()
                began = time.monotonic()
                await node.until(lambda began=began: time.monotonic() > began + watched_s, "the watch is over")
                calls = {n: c for n, c in place.server.calls().items() if not n.startswith(("config", "info"))}
                points.append((owned, sum(calls.values()) / (time.monotonic() - began)))
                stall = await node.worst_stall_s() * 1000
        row.figures.append(
            Figure.of(f"redis: commands per second, {owned:,} owned and idle", "ours", "per s", [points[-1][1]])
        )
        row.figures.append(
            Figure.of(f"node: longest stall of the loop, {owned:,} owned and idle", "ours", "ms", [stall])
        )
    most, least = max(y for _, y in points), min(y for _, y in points)
    row.curves.append(
        Curve("idle.svg", "Store commands while idle", "conversations owned", "commands per s", {"redis": points})
    )
    row.bounds.append(Bound("idle traffic flat", f"{least:.0f} to {most:.0f} commands per s", most < 1.3 * least))


async def _wake(stage: Stage, place: Place, row: Row) -> None:
    """From the submission of a message to a passivated conversation with a journal of 100 events to its live loop."""
    count = min(stage.amount.single // 5 + 1, 100)
    ids = names("asleep", count)
    async with place.space() as url, opened(url) as store:
        writers = await hold(store, await register(store), ids)
        for writer in writers:
            await writer.append(*(note() for _ in range(EVENTS)))
        await passivate(writers)
        async with child_node(url, tell="claimed,live,turn", capacity=count + 10) as node:
            took: list[float] = []
            for number, name in enumerate(ids):
                began = time.monotonic()
                await store.submit(Submit(name, message("wake")))
                await node.until(lambda number=number: node.counts["turn"] > number, "it has answered")
                took.append((node.told["live"][name] - began) * 1000)
    p50 = quantile(took, 0.5)
    row.figures.append(
        Figure.of_waits(f"{place.kind}: wake-up with {EVENTS} events, to a live loop", "ours", "ms", took)
    )
    row.bounds.append(Bound(f"wake-up < 5 ms on {place.kind}, p50", f"{p50:.1f} ms", p50 < 5))


async def _long(stage: Stage, place: Place, row: Row) -> None:
    """Wake-ups of ever older conversations, whose journal a node has written, snapshots and all."""
    points: list[tuple[float, float]] = []
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell="live,turn,released", idle_s=PASSIVATED_S) as node:
            for length in stage.amount.history:
                name, took = f"old-{length}", list[float]()
                await create(store, [name], text=f"{WRITES} {length}")
                for number in range(1, WAKINGS + 1):
                    await node.until(lambda name=name: name in node.told["released"], "it is passivated")
                    node.told["released"].pop(name)
                    began, turns = time.monotonic(), node.counts["turn"]
                    await store.submit(Submit(name, message(f"wake-{number}")))
                    await node.until(lambda turns=turns: node.counts["turn"] > turns, "it has answered")
                    took.append((node.told["live"][name] - began) * 1000)
                points.append((length, median(took)))
    row.curves.append(
        Curve("history.svg", "Wake-up, by the length of the history", "events before it", "ms", {place.kind: points})
    )
    least, most = min(y for _, y in points), max(y for _, y in points)
    row.bounds.append(
        Bound("wake-up constant in the age of a conversation", f"{least:.1f} to {most:.1f} ms", most < 2 * least)
    )
