"""Target 3: from the end of an owner to the moment in which another node's loop goes on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

from tenure.abc import Claim, Held
from tenure.cli.bench import outages
from tenure.cli.bench.node_child import STAYS
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.results import Bound, Curve, Figure
from tenure.cli.bench.sampling import MeasureFailedError, quantile, upper
from tenure.cli.bench.stage import TOGETHER, bury, claim, create, names, opened, parts, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.abc import Store
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.sampling import Shares
    from tenure.cli.bench.stage import Part, Stage
    from tenure.lease import IncarnationId

TTL_S = 3.0
MANY = 10_000
STALL_MS = 50
STALLS = {
    "claims": "no sweep blocks the heir's loop: longest stall during the claims",
    "starts behind them": "nor do the starts: longest stall during them",
}


async def measure(stage: Stage, row: Row) -> None:
    """Thousands of a dead node, on one store; single conversations on every store by every fault."""
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    works: dict[str, Part] = {f"{place.kind}: kill -9": partial(_crashes, place=place, row=row)}
    thousands = Thousands()
    for count in stage.amount.dead:
        works[f"{count:,} of a dead node"] = partial(_many, place=place, row=row, count=count, found=thousands)
    works["profile of the heir"] = partial(_profile, place=place, row=row)
    for one in stage.places.values():
        works.setdefault(f"{one.kind}: kill -9", partial(_crashes, place=one, row=row))
        if one is place or stage.amount.name == "full":
            works[f"{one.kind}: SIGSTOP"] = partial(_freezes, place=one, row=row)
            works[f"{one.kind}: host lost"] = partial(_without_witness, place=one, row=row)
    few = stage.amount.slow_trials
    if place.server is not None:
        works["partitions"] = lambda _: outages.partitions(place, few, TTL_S, row)
        works["restart of the store"] = lambda _: outages.store_restarts(place, few, TTL_S, row)
    else:
        row.missing["partitions, restart of the store"] = "done to a Redis of our own only"
    works["blocked event loop"] = lambda _: outages.blocked_loops(place, TTL_S, row)
    await parts(stage, row, works)
    _judge_thousands(row, thousands)


async def _crashes(stage: Stage, place: Place, row: Row) -> None:
    took = await _in_a_row(place, stage.amount.trials, lambda node: node.kill(), witness=True)
    row.figures.append(Figure.of_waits(f"{place.kind}: kill -9 → live elsewhere", "ours", "ms", took))
    p99, found = quantile(took, 0.99), f"{quantile(took, 0.5):.0f} ms p50, {upper(took)}"
    row.bounds += [
        Bound(f"{place.kind}: crash p99 < 250 ms on one host", found, p99 < 250),
        Bound(
            f"{place.kind}: crash < 1 s through the store alone: the heir has nothing else from the witness",
            found,
            p99 < 1000,
        ),
    ]


async def _freezes(stage: Stage, place: Place, row: Row) -> None:
    def freeze(node: ChildNode) -> float:
        at = time.monotonic()
        os.kill(node.pid, signal.SIGSTOP)
        return at

    took = await _in_a_row(place, stage.amount.slow_trials, freeze, witness=True)
    row.figures.append(Figure.of_waits(f"{place.kind}: SIGSTOP → live elsewhere", "ours", "ms", took))
    met = quantile(took, 0.99) < (TTL_S + 0.5) * 1000
    row.bounds.append(Bound(f"{place.kind}: freeze p99 < ttl + 0.5 s", upper(took), met))


async def _without_witness(stage: Stage, place: Place, row: Row) -> None:
    """As when the whole host dies: nobody is left who could tell, so the ttl decides, as it does of a freeze."""
    took = await _in_a_row(place, stage.amount.slow_trials, lambda node: node.kill(), witness=False)
    row.figures.append(
        Figure.of_waits(f"{place.kind}: host lost, the ttl decides → live elsewhere", "ours", "ms", took)
    )
    met = quantile(took, 0.99) < (TTL_S + 0.5) * 1000
    row.bounds.append(Bound(f"{place.kind}: host lost with its witness, p99 < ttl + 0.5 s", upper(took), met))


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


@final
@dataclass(slots=True)
class Thousands:
    """What became of a dead node's conversations: points of (how many, seconds), and the heir's stalls in milliseconds."""

    claimed: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    live: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    stalls: dict[str, list[float]] = field(default_factory=lambda: {when: list[float]() for when in STALLS})


def _judge_thousands(row: Row, found: Thousands) -> None:
    if not found.claimed:
        return
    series = {"all claimed": found.claimed, "all live": found.live}
    row.curves.append(Curve("takeover.svg", "Takeover of a dead node", "conversations of it", "seconds", series))
    most, took = found.claimed[-1]
    met = took < 2 if most == MANY else None
    row.bounds.append(Bound("10,000 of a dead node claimed within 2 s", f"{took:.2f} s for {most:,.0f}", met))
    for when, text in STALLS.items():
        if worst := max(found.stalls[when], default=0.0):
            row.bounds.append(
                Bound(f"{text} < {STALL_MS} ms", f"{worst:.0f} ms with up to {most:,.0f}", worst < STALL_MS)
            )


async def _many(stage: Stage, place: Place, row: Row, count: int, found: Thousands) -> None:
    """A node dies that held so many, each with a message that waits; one other node is left."""
    label = f"{place.kind}: {count:,} of a dead node"
    async with place.space() as url, opened(url) as store:
        dead = await _holding(store, count)
        async with child_node(url, tell="claimed,live", capacity=2 * count + 10, kill=True) as heir:
            await heir.worst_stall_s()
            at = await bury(store, dead)
            await heir.until(lambda: heir.counts["claimed"] >= count, "all are claimed")
            found.claimed.append((count, max(heir.told["claimed"].values()) - at))
            row.figures.append(Figure.of(f"{label}, all claimed", "ours", "s", [found.claimed[-1][1]]))
            worst = [await heir.worst_stall_s() * 1000]
            try:
                await heir.until(
                    lambda: heir.counts["live"] >= count, "all are live", min(stage.amount.fill_s, stage.left_s)
                )
            except MeasureFailedError:
                there = f"{heir.counts['live']:,} after {time.monotonic() - at:.0f} s"
                row.missing[f"{label}, all live"] = f"cut: {there}"
            else:
                found.live.append((count, max(heir.told["live"].values()) - at))
                row.figures.append(Figure.of(f"{label}, all live", "ours", "s", [found.live[-1][1]]))
            worst.append(await heir.worst_stall_s() * 1000)
    for stall, when in zip(worst, STALLS, strict=True):
        found.stalls[when].append(stall)
        row.figures.append(
            Figure.of(f"{label}, longest stall of the heir's loop during the {when}", "ours", "ms", [stall])
        )


async def _holding(store: Store, count: int) -> IncarnationId:
    """An incarnation that holds so many, each with a message that waits."""
    dead, ids = await register(store), names("dead", count)
    await create(store, ids, text="hello")
    for start in range(0, count, TOGETHER):
        requests: list[Claim] = [claim(name, dead, create=False) for name in ids[start : start + TOGETHER]]
        if not all(isinstance(answer, Held) for answer in await store.claim_all(requests)):
            raise MeasureFailedError("a claim was refused")
    return dead


async def _profile(stage: Stage, place: Place, row: Row) -> None:
    """The heir once more, looked into, which makes it slower: nothing of this run is a figure."""
    count = stage.amount.traced
    how: dict[str, Any] = {"tell": "claimed,live", "capacity": 2 * count + 10, "kill": True}
    async with place.space() as url, opened(url) as store:
        dead = await _holding(store, count)
        async with child_node(url, **how) as heir:
            claims: Shares = []
            starts: Shares = []
            async with heir.profiled(claims):
                await bury(store, dead)
                await heir.until(lambda: heir.counts["claimed"] >= count, "all are claimed")
            async with heir.profiled(starts):
                await heir.until(lambda: heir.counts["live"] >= count, "all are live")
    label = f"time of the heir of {count:,}"
    row.profiles[f"{label}, until all are claimed (own time of functions)"] = claims
    row.profiles[f"{label}, from then on until all are live (own time of functions)"] = starts
