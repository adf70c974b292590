"""Target 2: what a beat costs, whatever the node holds."""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tenure.abc import Granted, Load
from tenure.cli.bench import peers
from tenure.cli.bench.places import option, redis_link
from tenure.cli.bench.results import Bound, Curve, Figure
from tenure.cli.bench.sampling import MeasureFailedError, in_turn, median, profiled
from tenure.cli.bench.stage import FAR_S, hold, names, opened, parts, register, waits
from tenure.cli.collecting import collect_seldom
from tenure.lease import Timing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.abc import Store
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.stage import Part, Stage

PEERS_HOLD = 1_000
OFTEN = 4
"""Times the rounds of other rows: a beat is short, and what is asked is whether medians differ."""
NOISE = 1.2
"""Medians of interleaved rounds of the very same work differ by so much on a machine that does other things as well."""
BARE = "redis: CPU per bare SET PX"

type Work = Callable[[], Awaitable[object]]


async def measure(stage: Stage, row: Row) -> None:
    """An incarnation for each number of held conversations, all on one store; each beats in turn, beside a bare
    ``SET key PX`` of the same client."""
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        beats: dict[int, Work] = {}
        fill: dict[str, Part] = {
            f"{held:,} held": partial(_hold, store=store, held=held, beats=beats) for held in stage.amount.held
        }
        await parts(replace(stage, ends_at=time.monotonic() + stage.left_s / 2), row, fill)
        if not beats:
            return
        named = {f"{place.kind}: CPU of the node per beat, {held:,} held": beat for held, beat in beats.items()}
        floor = {BARE: await _bare(stack, url)} if place.kind == "redis" else {}
        counts = [await _commands(place, beat) for beat in beats.values()]
        collect_seldom()  # as a node does, and so that none pays for what another one holds
        many = max(1, stage.amount.single // 4)
        works = {name: partial(_cpu_us, work, many) for name, work in (floor | named).items()}
        for name, cpu in (await in_turn(OFTEN * stage.amount.rounds, works, warm=1, within_s=stage.left_s / 3)).items():
            row.figures.append(Figure.of(name, "floor" if name in floor else "ours", "µs", cpu))
        most = list(named)[-1]
        row.beside(most, BARE)
        row.profiles[
            f"time of this process, {most.replace('CPU of the node per beat', 'beats')} (own time of functions)"
        ] = await profiled(lambda: _cpu_us(beats[max(beats)], stage.amount.single))
        points = [(held, row.middle(name)) for held, name in zip(beats, named, strict=True)]
        row.curves.append(
            Curve("heartbeat.svg", "CPU per heartbeat", "conversations held", "µs of CPU", {place.kind: points})
        )
        _judge(row, points, counts)
        if place.kind == "redis":
            await parts(stage, row, {"peers": partial(_peers, stack=stack, url=url, row=row, beats=beats)})


async def _hold(stage: Stage, store: Store, held: int, beats: dict[int, Work]) -> None:
    """An incarnation that holds so many, and its beat."""
    me, numbers = await register(store), itertools.count()
    await hold(store, me, names(f"held-{held}", held))

    async def renew() -> None:
        beat = next(numbers)
        if not isinstance(await store.renew(me, beat, f"beat-{beat}", FAR_S, Load(0)), Granted):
            raise MeasureFailedError("a renewal was refused")

    beats[held] = renew


async def _bare(stack: AsyncExitStack, url: str) -> Work:
    link = await stack.enter_async_context(redis_link(url))
    key = f"{option(url, 'prefix')}:floor"
    return lambda: link.ask(("SET", key, "alive", "PX", 3000))


async def _cpu_us(work: Callable[[], Awaitable[object]], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        await work()
    return (time.process_time() - began) / count * 1e6


async def _commands(place: Place, work: Callable[[], Awaitable[object]]) -> object:
    """What the server did for one beat, by its own count; null where it does not count for us alone."""
    if place.server is None:
        return None
    place.server.forget_calls()
    await work()
    return {name: n for name, n in place.server.calls().items() if not name.startswith(("config", "info"))}


async def _peers(stage: Stage, stack: AsyncExitStack, url: str, row: Row, beats: dict[int, Work]) -> None:
    """Renewing a lock for each conversation, and one beat of ours that stands for as many."""
    count = min(PEERS_HOLD, stage.amount.held[-1])
    beat = beats.get(count) or next(iter(beats.values()))
    ours = f"redis: a beat with {count:,} held"

    async def once() -> float:
        return median(await waits(beat, OFTEN))

    theirs = await peers.renewals(stack, url, count, row.missing)
    for name, took in (
        await in_turn(stage.amount.rounds, {ours: once} | theirs, warm=1, within_s=stage.left_s / 2)
    ).items():
        row.figures.append(Figure.of(name, "ours" if name == ours else "peer", "ms", took))
    row.ahead(ours, list(theirs), less=True)


def _judge(row: Row, points: Sequence[tuple[float, float]], counts: Sequence[object]) -> None:
    least, most = min(cpu for _, cpu in points), max(cpu for _, cpu in points)
    share = most / 1e6 / Timing.of_ttl(3.0).beat_s
    same = all(one == counts[0] for one in counts)
    commands = "" if counts[0] is None else f"; commands at the server per beat: {counts[0]}, the same for each: {same}"
    row.bounds += [
        Bound(
            f"flat: medians of interleaved rounds within {NOISE - 1:.0%}, and the same commands",
            f"{least:.0f} to {most:.0f} µs{commands}",
            most <= NOISE * least and same,
        ),
        Bound("< 0.1 % of a core, at the default ttl", f"{share:.3%}", share < 0.001),
    ]
