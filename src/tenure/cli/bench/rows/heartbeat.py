"""Target 2: what a beat costs, whatever the node holds."""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from tenure.abc import Granted, Load
from tenure.cli.bench import peers
from tenure.cli.bench.places import option, redis_link
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.sampling import MeasureFailedError, in_turn
from tenure.cli.bench.stage import FAR_S, hold, names, opened, register
from tenure.lease import Timing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.cli.bench.places import Place
    from tenure.cli.bench.stage import Stage

PEERS_HOLD = 1_000


async def measure(stage: Stage) -> Row:
    """Renewals one after the other, with ever more conversations held; beside a bare ``SET key PX`` of the same client."""
    row = Row("heartbeat")
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        me, beats = await register(store), itertools.count()

        async def renew() -> None:
            beat = next(beats)
            if not isinstance(await store.renew(me, beat, f"beat-{beat}", FAR_S, Load(0)), Granted):
                raise MeasureFailedError("a renewal was refused")

        points: list[tuple[float, float]] = []
        counts: list[object] = []
        holding = 0
        for held in stage.amount.held:
            await hold(store, me, names("held", held)[holding:])
            holding = held
            cpu = [await _cpu_us(renew, stage.amount.single) for _ in range(stage.amount.rounds)]
            row.figures.append(Figure.of(f"{place.kind}: CPU of the node per beat, {held:,} held", "ours", "µs", cpu))
            points.append((held, row.figures[-1].middle))
            counts.append(await _commands(place, renew))
        row.curves.append(Curve("heartbeat.svg", "CPU per heartbeat", "conversations held", "µs", {place.kind: points}))
        if place.kind == "redis":
            await _floor_and_peers(stage, stack, url, row)
    _judge(row, points, counts)
    return row


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


async def _floor_and_peers(stage: Stage, stack: AsyncExitStack, url: str, row: Row) -> None:
    link = await stack.enter_async_context(redis_link(url))
    key = f"{option(url, 'prefix')}:floor"

    async def bare() -> None:
        await link.ask(("SET", key, "alive", "PX", 3000))

    values = [await _cpu_us(bare, stage.amount.single) for _ in range(stage.amount.rounds)]
    row.figures.append(Figure.of("redis: CPU per bare SET PX", "floor", "µs", values))
    row.beside(f"redis: CPU of the node per beat, {stage.amount.held[-1]:,} held", "redis: CPU per bare SET PX")
    theirs = await peers.renewals(stack, url, min(PEERS_HOLD, stage.amount.held[-1]), row.missing)
    for name, took in (await in_turn(stage.amount.rounds, theirs)).items():
        row.figures.append(Figure.of(name, "peer", "ms", took))


def _judge(row: Row, points: Sequence[tuple[float, float]], counts: Sequence[object]) -> None:
    most = max(cpu for _, cpu in points)
    share = most / 1e6 / Timing.of_ttl(3.0).beat_s
    commands = "" if counts[0] is None else f"; commands at the server per beat: {counts[0]}, the same for each"
    flat = most <= 1.5 * min(cpu for _, cpu in points) and all(one == counts[0] for one in counts)
    row.bounds += [
        Bound("flat", f"{min(c for _, c in points):.0f} to {most:.0f} µs{commands}", flat),
        Bound("< 0.1 % of a core, at the default ttl", f"{share:.3%}", share < 0.001),
    ]
