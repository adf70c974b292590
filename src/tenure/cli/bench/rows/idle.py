"""Target 5: what a conversation costs while nothing happens to it, and how fast it wakes."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING

from tenure.abc import Submit
from tenure.cli.bench.node_child import WRITES
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure
from tenure.cli.bench.sampling import in_turn, median, quantile, shares
from tenure.cli.bench.stage import create, hold, message, names, note, opened, parts, passivate, register

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.sampling import Shares
    from tenure.cli.bench.stage import Part, Stage

EVENTS = 100
START = 250
PASSIVATED_S = 1.0
SETTLED_S = 2.0
WARM = 100
JITTER = 1.2 / 0.8
MORE = 10
"""A step between nothing and all is watched only if all is so many times as much."""
STALL_MS = 50


async def measure(stage: Stage, row: Row) -> None:
    """Bytes in the store, bytes in the node, milliseconds from a message to a live loop, commands of an idle node."""
    redis = stage.places.get("redis")
    works: dict[str, Part] = {}
    if redis is not None and redis.server is not None:
        works["bytes per passivated conversation"] = partial(_stored, place=redis, row=row)
    else:
        row.missing["bytes per passivated conversation, commands while idle"] = "counted on a Redis of our own only"
    first = redis or next(iter(stage.places.values()))
    works["resident"] = partial(_resident, place=first, row=row)
    works["memory of a node, looked into"] = partial(_traced, place=first, row=row)
    for place in stage.places.values():
        works[f"{place.kind}: wake-up"] = partial(_wake, place=place, row=row)
    works["wake-up of old conversations"] = partial(_long, place=first, row=row)
    await parts(stage, row, works)


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
    ]
    row.bounds.append(Bound("passivated < 300 B, in the store", f"{let_go:,.0f} B", let_go < 300))


async def _resident(stage: Stage, place: Place, row: Row) -> None:
    """One node that comes to hold ever more, live and idle, of a store in which many more lie: its memory by the kernel's count,
    what it asks of the server while nothing happens by the server's."""
    count, points, stalls = stage.amount.resident, list[tuple[float, float]](), list[float]()
    async with place.space() as url, opened(url) as store:
        wanted = stage.amount.stored[-1]
        stored = await create(store, names("stored", wanted), within_s=stage.amount.fill_s)
        if stored < wanted:
            row.missing[f"{wanted:,} stored beside the resident ones"] = f"cut: {stored:,} in {stage.amount.fill_s:g} s"
        async with child_node(url, tell="turn", capacity=2 * count + 100, kill=True) as node:
            warm = min(count, WARM)
            watch = partial(_watch, stage, place, node, row, points, stalls)
            await watch(0)
            await _fill(stage, store, node, 0, warm)
            if stage.amount.resident > MORE * warm:
                await watch(warm)
            await node.ask("collect", "collected")
            before = node.resident_bytes
            held = await _fill(stage, store, node, warm, count)
            await _rest(stage, node)
            await node.ask("collect", "collected")
            each = (node.resident_bytes - before) / max(1, held - warm)
            await watch(held)
    if held < count:
        row.missing[f"{count:,} resident"] = f"cut: {held:,} in {stage.amount.fill_s:g} s"
    row.figures.append(
        Figure.of(f"node: resident, live and idle, {held:,} of them, {stored:,} more stored", "ours", "B", [each])
    )
    row.bounds.append(Bound("resident < 6 KB", f"{each / 1000:.1f} KB each of {held:,}", each < 6000))
    text = f"no sweep blocks the loop of an idle node: longest stall < {STALL_MS} ms"
    found = f"{max(stalls):.0f} ms with up to {held:,} owned and {stored:,} more stored"
    row.bounds.append(Bound(text, found, max(stalls) < STALL_MS))
    if points:
        _judge_traffic(row, points)


async def _traced(stage: Stage, place: Place, row: Row) -> None:
    """What one more conversation costs a node, by the interpreter's own count of what was taken and is still held."""
    count = stage.amount.traced
    resident = await _memory(stage, place, tell="turn", idle_s=3600.0)
    row.figures.append(_each("node: resident, by the interpreter's count", resident, count))
    row.profiles[f"memory of a node per resident conversation, {count} of them (by the file that took it)"] = shares(
        resident
    )
    passivated = await _memory(stage, place, tell="released", idle_s=PASSIVATED_S)
    row.figures.append(_each("node: passivated, by the interpreter's count", passivated, count))


def _each(what: str, found: dict[str, int], count: int) -> Figure:
    return Figure.of(f"{what}, {count} of them", "ours", "B", [sum(found.values()) / count])


async def _memory(stage: Stage, place: Place, tell: str, idle_s: float) -> dict[str, int]:
    """Bytes by file that conversations leave behind in a node, once all of them have come as far as the fact `tell`."""
    count, warm = stage.amount.traced, min(stage.amount.traced, WARM)
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell=tell, idle_s=idle_s, capacity=2 * count + 2 * WARM, kill=True) as node:
            await create(store, names("warm", warm), text="hello")
            await node.until(lambda: node.counts[tell] >= warm, "the first are there")
            await node.trace()
            await create(store, names("traced", count), text="hello")
            await node.until(lambda: len(node.told[tell]) >= warm + count, "all are there")
            await _rest(stage, node)
            return await node.traced()


async def _rest(stage: Stage, node: ChildNode) -> None:
    rested = time.monotonic() + SETTLED_S + stage.amount.rest_s
    await node.until(lambda: time.monotonic() > rested, "what was begun is done, and nobody talks")


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
    stage: Stage,
    place: Place,
    node: ChildNode,
    row: Row,
    points: list[tuple[float, float]],
    stalls: list[float],
    owned: int,
) -> None:
    """Commands per second at the server, if it is one of our own, and the worst stall of the loop, while nothing happens."""
    settled = time.monotonic() + SETTLED_S
    await node.until(lambda: time.monotonic() > settled, "what was begun is done")
    await node.worst_stall_s()
    if place.server is not None:
        place.server.forget_calls()
    began = time.monotonic()
    await node.until(lambda: time.monotonic() > began + stage.amount.watched_s, "the watch is over")
    label = f"{owned:,} owned and idle"
    if place.server is not None:
        calls = {n: c for n, c in place.server.calls().items() if not n.startswith(("config", "info"))}
        points.append((owned, sum(calls.values()) / (time.monotonic() - began)))
        row.figures.append(Figure.of(f"redis: commands per second, {label}", "ours", "per s", [points[-1][1]]))
    stalls.append(await node.worst_stall_s() * 1000)
    row.figures.append(Figure.of(f"node: longest stall of the loop, {label}", "ours", "ms", stalls[-1:]))


def _judge_traffic(row: Row, points: list[tuple[float, float]]) -> None:
    """Flat: what many cost beyond what none cost is less than the jitter of the sweep's period, by either sign."""
    most, least = max(y for _, y in points), min(y for _, y in points)
    row.curves.append(
        Curve("idle.svg", "Store commands while idle", "conversations owned", "commands per second", {"redis": points})
    )
    found = f"{least:.0f} to {most:.0f} commands per s for {points[0][0]:,.0f} to {points[-1][0]:,.0f} owned"
    row.bounds.append(Bound("idle traffic flat, within the jitter of ± 20 %", found, most <= JITTER * least))


async def _wake(stage: Stage, place: Place, row: Row) -> None:
    """From the submission of a message to a passivated conversation with a journal of 100 events to its live loop: of a message
    that comes to the node that wakes it, and of one that another process accepted."""
    count = min(stage.amount.single // 5 + 1, 100)
    looked = count // 2
    async with place.space() as url, opened(url) as store:
        writers = await hold(store, await register(store), names("asleep", 2 * count + looked))
        for writer in writers:
            await writer.append(*(note() for _ in range(EVENTS)))
        await passivate(writers, old=True)
        here, heard = list[float](), list[float]()
        async with child_node(url, tell="live,turn", capacity=3 * count + 10) as node:
            for number, name in enumerate(names("asleep", 2 * count)):
                began = time.monotonic()
                if number < count:
                    await node.send(name, "wake")
                else:
                    await store.submit(Submit(name, message("wake")))
                await node.until(lambda number=number: node.counts["turn"] > number, "it has answered")
                (here if number < count else heard).append((node.told["live"][name] - began) * 1000)
            profile: Shares = []
            async with node.profiled(profile):
                for number in range(2 * count, 2 * count + looked):
                    await node.send(f"asleep-{number}", "wake")
                    await node.until(lambda number=number: node.counts["turn"] > number, "it has answered")
    row.profiles[f"time of the node, {place.kind}: wake-ups with the turn behind them (own time of functions)"] = (
        profile
    )
    label = f"{place.kind}: wake-up with {EVENTS} events, to a live loop"
    p50 = quantile(here, 0.5)
    row.figures.append(Figure.of_waits(f"{label}, of a message to its node", "ours", "ms", here))
    row.figures.append(Figure.of_waits(f"{label}, heard of by a hint", "ours", "ms", heard))
    row.bounds.append(Bound(f"wake-up < 5 ms on {place.kind}, p50", f"{p50:.1f} ms", p50 < 5))


async def _long(stage: Stage, place: Place, row: Row) -> None:
    """Wake-ups of conversations of every age in turn, whose journals a node has written, snapshots and all."""
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell="live,turn,released", idle_s=PASSIVATED_S, kill=True) as node:
            keys = itertools.count()

            async def wake(name: str) -> float:
                await node.until(lambda: name in node.told["released"], "it is passivated")
                node.told["released"].pop(name)
                node.told["turn"].pop(name)
                began = time.monotonic()
                await store.submit(Submit(name, message(f"wake-{next(keys)}")))
                await node.until(lambda: name in node.told["turn"], "it has answered")
                return (node.told["live"][name] - began) * 1000

            for length in stage.amount.history:
                await create(store, [f"old-{length}"], text=f"{WRITES} {length}")
            works = {f"{length}": (lambda length=length: wake(f"old-{length}")) for length in stage.amount.history}
            found = await in_turn(stage.amount.wakings, works, warm=1, within_s=stage.left_s / 2)
    points = [(float(length), median(took)) for length, took in found.items()]
    for length, took in found.items():
        row.figures.append(
            Figure.of(f"{place.kind}: wake-up behind {int(length):,} events, by a hint", "ours", "ms", took)
        )
    series = {place.kind: points}
    row.curves.append(Curve("history.svg", "Wake-up, by the length of the history", "events before it", "ms", series))
    least, most = min(y for _, y in points), max(y for _, y in points)
    found_text = f"{least:.1f} to {most:.1f} ms, medians of wake-ups in turn"
    row.bounds.append(Bound("wake-up constant in the age of a conversation", found_text, most < 2 * least))
