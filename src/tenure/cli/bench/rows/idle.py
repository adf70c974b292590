"""Target 5: what a conversation costs while nothing happens to it, and how fast it wakes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tenure.abc import Submit
from tenure.cli.bench.node_child import WRITES
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.sampling import median, quantile
from tenure.cli.bench.stage import create, hold, message, names, note, opened, passivate, piece, register

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.stage import Stage

EVENTS = 100
WATCHED_S = 10.0
START = 250
PASSIVATED_S = 1.0
SETTLED_S = 2.0
WARM = 100
JITTER = 1.2 / 0.8
WAKINGS = 5


async def measure(stage: Stage) -> Row:
    """Bytes in the store, bytes in the node, milliseconds from a message to a live loop, commands of an idle node."""
    row = Row("idle")
    redis = stage.places.get("redis")
    if redis is not None and redis.server is not None:
        await piece(stage, row, "bytes per passivated conversation", _stored(stage, redis, row))
    else:
        row.missing["bytes per passivated conversation, commands while idle"] = "counted on a Redis of our own only"
    await piece(stage, row, "resident", _resident(stage, redis or next(iter(stage.places.values())), row))
    for place in stage.places.values():
        await piece(stage, row, f"{place.kind}: wake-up", _wake(stage, place, row))
    old = _long(stage, redis or next(iter(stage.places.values())), row)
    await piece(stage, row, "wake-up of old conversations", old)
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
    """One node that comes to hold ever more, live and idle: its memory by the kernel's count, what it asks of the server
    while nothing happens by the server's."""
    count, points = stage.amount.resident, list[tuple[float, float]]()
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell="turn", capacity=2 * count + 100, kill=True) as node:
            warm = min(count, WARM)
            await _watch(stage, place, node, 0, row, points)
            await _fill(stage, store, node, 0, warm)
            await _watch(stage, place, node, warm, row, points)
            await node.ask("collect", "collected")
            before = node.resident_bytes
            held = await _fill(stage, store, node, warm, count)
            await node.ask("collect", "collected")
            each = (node.resident_bytes - before) / max(1, held - warm)
            await _watch(stage, place, node, held, row, points)
    if held < count:
        row.missing[f"{count:,} resident"] = f"cut: {held:,} in {stage.amount.fill_s:g} s"
    row.figures.append(Figure.of(f"node: resident, live and idle, {held:,} of them", "ours", "B", [each]))
    row.bounds.append(Bound("resident < 6 KB", f"{each / 1000:.1f} KB", each < 6000))
    if points:
        _judge_traffic(row, points)


async def _fill(stage: Stage, store: Store, node: ChildNode, begin: int, end: int) -> int:
    """Create conversations until the node holds so many, each through with a turn; how many it was in the given time."""
    began = time.monotonic()
    ids = names("resident", end)
    for start in range(begin, end, START):
        if time.monotonic() - began > stage.amount.fill_s:
            return start
        upto = min(start + START, end)
        await create(store, ids[start:upto], text="hello")
        await node.until(lambda upto=upto: node.counts["turn"] >= upto, "all are idle")
    return end


async def _watch(
    stage: Stage, place: Place, node: ChildNode, owned: int, row: Row, points: list[tuple[float, float]]
) -> None:
    """Commands per second at the server while nothing happens."""
    if place.server is None:
        return
    watched_s = min(WATCHED_S, 20 * stage.amount.seconds)
    settled = time.monotonic() + SETTLED_S
    await node.until(lambda: time.monotonic() > settled, "what was begun is done")
    await node.worst_stall_s()
    place.server.forget_calls()
    began = time.monotonic()
    await node.until(lambda: time.monotonic() > began + watched_s, "the watch is over")
    calls = {n: c for n, c in place.server.calls().items() if not n.startswith(("config", "info"))}
    points.append((owned, sum(calls.values()) / (time.monotonic() - began)))
    stall = await node.worst_stall_s() * 1000
    label = f"{owned:,} owned and idle"
    row.figures.append(Figure.of(f"redis: commands per second, {label}", "ours", "per s", [points[-1][1]]))
    row.figures.append(Figure.of(f"node: longest stall of the loop, {label}", "ours", "ms", [stall]))


def _judge_traffic(row: Row, points: list[tuple[float, float]]) -> None:
    """Flat: what many cost beyond what none cost is less than the jitter of the sweep's period, by either sign."""
    most, least = max(y for _, y in points), min(y for _, y in points)
    row.curves.append(
        Curve("idle.svg", "Store commands while idle", "conversations owned", "commands per s", {"redis": points})
    )
    found = f"{least:.0f} to {most:.0f} commands per s for {points[0][0]:,.0f} to {points[-1][0]:,.0f} owned"
    row.bounds.append(Bound("idle traffic flat, within the jitter of ± 20 %", found, most <= JITTER * least))


async def _wake(stage: Stage, place: Place, row: Row) -> None:
    """From the submission of a message to a passivated conversation with a journal of 100 events to its live loop: of a message
    that comes to the node that wakes it, and of one that another process accepted."""
    count = min(stage.amount.single // 5 + 1, 100)
    async with place.space() as url, opened(url) as store:
        writers = await hold(store, await register(store), names("asleep", 2 * count))
        for writer in writers:
            await writer.append(*(note() for _ in range(EVENTS)))
        await passivate(writers)
        here, heard = list[float](), list[float]()
        async with child_node(url, tell="live,turn", capacity=2 * count + 10) as node:
            for number, name in enumerate(names("asleep", 2 * count)):
                began = time.monotonic()
                if number < count:
                    await node.send(name, "wake")
                else:
                    await store.submit(Submit(name, message("wake")))
                await node.until(lambda number=number: node.counts["turn"] > number, "it has answered")
                (here if number < count else heard).append((node.told["live"][name] - began) * 1000)
    label = f"{place.kind}: wake-up with {EVENTS} events, to a live loop"
    p50 = quantile(here, 0.5)
    row.figures.append(Figure.of_waits(f"{label}, of a message to its node", "ours", "ms", here))
    row.figures.append(Figure.of_waits(f"{label}, heard of by a hint", "ours", "ms", heard))
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
