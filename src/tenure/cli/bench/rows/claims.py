"""Target 1: claims per second, singly and in batches, beside a script that claims and nothing else."""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from tenure.cli.bench import peers
from tenure.cli.bench.places import option, redis_link
from tenure.cli.bench.results import Bound, Figure
from tenure.cli.bench.sampling import in_turn, profiled
from tenure.cli.bench.stage import bury, claim, hold, names, opened, parts, rate, register

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.abc import Store
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.sampling import Contestant
    from tenure.cli.bench.stage import Part, Stage

FLOOR_CLAIM = """
if redis.call('HGET', KEYS[1], 'owner') then return 0 end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'token', ARGV[2])
redis.call('ZADD', KEYS[2], epoch, KEYS[1])
return epoch
"""
"""The least that a claim can be: owner, token, epoch, and an index of what is owned. No journal, no record, no hint."""
BATCH = 200
ONE, MANY = 1, 50


async def measure(stage: Stage, row: Row) -> None:
    """Redis beside its floor and the lock libraries; the other stores by themselves."""
    works: dict[str, Part] = {}
    for place in sorted(stage.places.values(), key=lambda place: place.kind != "redis"):
        works[f"{place.kind}: claims"] = partial(_on_redis if place.kind == "redis" else _on, place=place, row=row)
    await parts(stage, row, works)


async def _on(stage: Stage, place: Place, row: Row) -> None:
    async with place.space() as url, opened(url) as store:
        ours = await _ours(store, place.kind)
        for name, values in (
            await in_turn(stage.amount.rounds, _timed(stage, ours), warm=1, within_s=stage.left_s / 2)
        ).items():
            row.figures.append(Figure.of(name, "ours", "per s", values))


type Claims = dict[str, tuple[Callable[[], Awaitable[object]], int, int]]
"""What is done, by how many tasks, and for how many claims it counts."""


def _timed(stage: Stage, claims: Claims) -> dict[str, Contestant]:
    def one(work: Callable[[], Awaitable[object]], tasks: int, each: int) -> Contestant:
        return lambda: rate(work, tasks, stage.amount.seconds, each)

    return {name: one(*how) for name, how in claims.items()}


async def _ours(store: Store, label: str) -> Claims:
    me, numbers = await register(store), itertools.count()

    async def singly() -> None:
        await store.claim(claim(f"one-{next(numbers)}", me))

    async def together() -> None:
        await store.claim_all([claim(f"batch-{next(numbers)}", me) for _ in range(BATCH)])

    return {
        f"{label}: claim, 1 task": (singly, ONE, 1),
        f"{label}: claim, {MANY} tasks": (singly, MANY, 1),
        f"{label}: claims, {BATCH} together": (together, ONE, BATCH),
    }


async def _on_redis(stage: Stage, place: Place, row: Row) -> None:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        link = await stack.enter_async_context(redis_link(url))
        prefix, numbers = f"{option(url, 'prefix')}:floor", itertools.count()
        (digest,) = await link.ask(("SCRIPT", "LOAD", FLOOR_CLAIM))

        def words() -> tuple[object, ...]:
            return ("EVALSHA", digest, 2, f"{prefix}:{next(numbers)}", f"{prefix}:index", "owner", "token")

        async def singly() -> None:
            await link.ask(words())

        async def together() -> None:
            await link.ask(*(words() for _ in range(BATCH)))

        floor: Claims = {
            "redis: raw EVALSHA, 1 task": (singly, ONE, 1),
            f"redis: raw EVALSHA, {MANY} tasks": (singly, MANY, 1),
            f"redis: raw EVALSHA, {BATCH} together": (together, ONE, BATCH),
        }
        ours = await _ours(store, "redis")
        theirs = await peers.locks(stack, url, row.missing, stage.amount.seconds)
        contestants = _timed(stage, floor) | _timed(stage, ours) | theirs
        found = await in_turn(stage.amount.rounds, contestants, warm=1, within_s=stage.left_s / 3)
        for name, values in found.items():
            role = "floor" if name in floor else "ours" if name in ours else "peer"
            row.figures.append(Figure.of(name, role, "per s", values))
        for mine, least in zip(ours, floor, strict=True):
            row.beside(mine, least)
        single = row.middle("redis: claim, 1 task") / row.middle("redis: raw EVALSHA, 1 task")
        row.bounds.append(Bound("singly ≥ 95 % of raw EVALSHA", f"{single:.0%}", single >= 0.95))
        row.ahead("redis: claim, 1 task", [name for name in theirs if "thread" in name])
        row.ahead(f"redis: claim, {MANY} tasks", [name for name in theirs if "tasks" in name])
        behind: dict[str, Part] = {
            "redis: takeover claims": partial(_takeover, store=store, row=row),
            "redis: profiles": partial(_profiles, ours=ours, row=row),
        }
        await parts(stage, row, behind)


async def _profiles(stage: Stage, ours: Claims, row: Row) -> None:
    for name, (work, tasks, _) in ours.items():
        again = partial(rate, work, tasks, stage.amount.seconds / 2)
        row.profiles[f"time of this process, {name} (own time of functions)"] = await profiled(again)


async def _takeover(stage: Stage, store: Store, row: Row) -> None:
    """Claims of what a dead node owned, in batches, as the sweep makes them."""
    values: list[float] = []
    count = max(BATCH, int(2000 * stage.amount.seconds)) if stage.amount.name != "tiny" else 5
    for number in range(stage.amount.rounds):
        dead, heir = await register(store), await register(store)
        ids = names(f"dead-{number}", count)
        await hold(store, dead, ids)
        await bury(store, dead)
        began = time.monotonic()
        for start in range(0, count, BATCH):
            await store.claim_all([claim(name, heir, 1, create=False) for name in ids[start : start + BATCH]])
        values.append(count / (time.monotonic() - began))
    row.figures.append(Figure.of("redis: takeover claims, 200 together", "ours", "per s", values))
    batch = row.middle("redis: takeover claims, 200 together")
    row.bounds.append(Bound("≥ 50,000 per s in batches", f"{batch:,.0f} per s", batch >= 50_000))
