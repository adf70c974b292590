"""Target 8: a node's start, however much is stored."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure
from tenure.cli.bench.sampling import in_turn
from tenure.cli.bench.stage import create, names, opened, parts

if TYPE_CHECKING:
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.stage import Stage

STARTS = 3
NOISE = 1.2
"""Medians of a few starts on a machine that does other things as well: judged by their CPU, shown by the clock, too."""


async def measure(stage: Stage, row: Row) -> None:
    """Seconds from the birth of the process to its readiness, and its memory then."""
    curve: dict[str, list[tuple[float, float]]] = {}
    works = {kind: partial(_on, place=place, row=row, curve=curve) for kind, place in stage.places.items()}
    await parts(stage, row, works)
    if curve:
        title = "Start of a node, from the birth of its process to its readiness"
        row.curves.append(Curve("startup.svg", title, "conversations stored", "seconds", curve))


async def _on(stage: Stage, place: Place, row: Row, curve: dict[str, list[tuple[float, float]]]) -> None:
    memory: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        urls: dict[int, str] = {}
        for count in stage.amount.stored:
            url = await stack.enter_async_context(place.space())
            async with opened(url) as store:
                urls[await create(store, names("stored", count), within_s=stage.amount.fill_s)] = url
        stored = tuple(urls)

        async def start(name: str, url: str) -> float:
            began = time.monotonic()
            async with child_node(url, whole=True) as node:
                memory.setdefault(name, []).append(node.resident_bytes / 1e6)
                cpu.setdefault(name, []).append(node.cpu_s)
                return node.told["ready"][None] - began

        by_name = {f"{place.kind}: start, {count:,} stored": url for count, url in urls.items()}
        found = await in_turn(
            min(STARTS, stage.amount.slow_trials),
            {name: (lambda name=name, url=url: start(name, url)) for name, url in by_name.items()},
            within_s=stage.left_s / 2,
        )
    for name, values in found.items():
        row.figures.append(Figure.of(name, "ours", "s", values))
        row.figures.append(Figure.of(name.replace("start", "CPU of the start"), "ours", "s", cpu[name]))
        row.figures.append(Figure.of(name.replace("start", "memory at the start"), "ours", "MB", memory[name]))
    if stored[-1] < stage.amount.stored[-1]:
        row.missing[f"{place.kind}: {stage.amount.stored[-1]:,} stored"] = (
            f"cut: {stored[-1]:,} in {stage.amount.fill_s:g} s"
        )
    for what, unit in (("CPU of the start", "s"), ("memory at the start", "MB")):
        least, most = (row.middle(f"{place.kind}: {what}, {count:,} stored") for count in (stored[0], stored[-1]))
        text = f"{place.kind}: {what} with {stored[-1]:,} stored equals that with an empty store"
        row.bounds.append(Bound(text, f"{most:.2f} {unit} beside {least:.2f} {unit}", most <= NOISE * least))
    curve[place.kind] = [(count, row.middle(f"{place.kind}: start, {count:,} stored")) for count in stored]
