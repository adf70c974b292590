"""Target 4: from a message that any node takes to the moment in which its owner has read it, durable in between."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from tenure.abc import Submit
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.places import conninfo, option, redis_link
from tenure.cli.bench.results import Bound, Figure
from tenure.cli.bench.sampling import in_turn, profiled, quantile, upper
from tenure.cli.bench.stage import create, message, opened, parts, waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.abc import Store
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.sampling import Shares
    from tenure.cli.bench.stage import Stage

LIMITS_MS = {"redis": 0.5, "postgres": 1.5}
FLOORS = {"redis": "XADD → XREAD BLOCK", "postgres": "INSERT, NOTIFY → LISTEN, SELECT"}
TALK = "talk"
WARM, PROFILED_MESSAGES = 5, 100


type Once = Callable[[], Awaitable[float]]
"""One message: the milliseconds that it took."""


async def measure(stage: Stage, row: Row) -> None:
    """This process takes the message, another one owns the conversation; both read the same monotonic clock. A message of the
    floor and one of ours in turn."""
    await parts(stage, row, {kind: partial(_on, place=place, row=row) for kind, place in stage.places.items()})


async def _on(stage: Stage, place: Place, row: Row) -> None:
    name, floors = f"{place.kind}: message → owner", {"redis": _redis_floor, "postgres": _postgres_floor}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        node = await stack.enter_async_context(child_node(url, tell="read,turn"))
        await create(store, [TALK], text="first")
        await node.until(lambda: node.counts["turn"] == 1, "the first turn ended")
        durable, numbers = list[float](), itertools.count()
        ours: dict[str, Once] = {name: lambda: _one(store, node, next(numbers), durable)}
        floor: dict[str, Once] = {}
        if (make := floors.get(place.kind)) is not None:
            floor[f"{place.kind}: {FLOORS[place.kind]}"] = await make(stack, place)
        for what, took in (
            await in_turn(stage.amount.single, floor | ours, warm=WARM, within_s=stage.left_s / 2)
        ).items():
            row.figures.append(Figure.of_waits(what, "floor" if what in floor else "ours", "ms", took))
            if what == name:
                _judge(row, place.kind, took)
        row.figures.append(
            Figure.of_waits(f"{place.kind}: of it, until the store has answered the writer", "ours", "ms", durable)
        )
        for what in floor:
            row.beside(name, what)
        if place.kind in LIMITS_MS:
            await _profile(stage, row, node, name, lambda: _one(store, node, next(numbers), durable))


def _judge(row: Row, kind: str, took: list[float]) -> None:
    if (limit := LIMITS_MS.get(kind)) is not None:
        p50 = quantile(took, 0.5)
        row.bounds.append(Bound(f"< {limit:g} ms over {kind}, p50", f"{p50:.2f} ms p50, {upper(took)}", p50 < limit))


async def _profile(stage: Stage, row: Row, node: ChildNode, name: str, once: Once) -> None:
    """Both ends: the writer is this process, the owner is the other one."""
    owner: Shares = []
    async with node.profiled(owner):
        writer = await profiled(lambda: waits(once, min(PROFILED_MESSAGES, stage.amount.single)))
    row.profiles[f"time of the writer, {name}, with the turn behind it (own time of functions)"] = writer
    row.profiles[f"time of the owner, {name}, with the turn behind it (own time of functions)"] = owner


async def _one(store: Store, node: ChildNode, number: int, durable: list[float]) -> float:
    before, turns = node.counts["read"], node.counts["turn"]
    began = time.monotonic()
    await store.submit(Submit(TALK, message(f"m{number}")))
    durable.append((time.monotonic() - began) * 1000)
    await node.until(lambda: node.counts["read"] > before and node.counts["turn"] > turns, "its turn ended")
    return (node.told["read"][TALK] - began) * 1000


async def _redis_floor(stack: AsyncExitStack, place: Place) -> Once:
    """One connection writes to a stream, another one waits for it."""
    url = await stack.enter_async_context(place.space())
    writer = await stack.enter_async_context(redis_link(url))
    reader = await stack.enter_async_context(redis_link(url))
    key = f"{option(url, 'prefix')}:floor"

    async def once() -> float:
        waiting = asyncio.ensure_future(reader.ask(("XREAD", "BLOCK", 10000, "STREAMS", key, "$")))
        await asyncio.sleep(0.002)  # until it waits at the server
        began = time.monotonic()
        await writer.ask(("XADD", key, "*", "body", "x" * 200))
        await waiting
        return (time.monotonic() - began) * 1000

    return once


async def _postgres_floor(stack: AsyncExitStack, place: Place) -> Once:
    """One connection inserts and notifies, another one listens and reads the row."""
    import psycopg

    url = await stack.enter_async_context(place.space())
    schema, plain = option(url, "schema"), conninfo(url)
    connect: Any = psycopg.AsyncConnection.connect
    writer = await stack.enter_async_context(await connect(plain, autocommit=True))
    reader = await stack.enter_async_context(await connect(plain, autocommit=True))
    await writer.execute(f"CREATE SCHEMA {schema}")
    await writer.execute(f"CREATE TABLE {schema}.floor (id bigserial PRIMARY KEY, body text)")
    await reader.execute(f"LISTEN {schema}")

    async def once() -> float:
        began = time.monotonic()
        await writer.execute(
            f"WITH one AS (INSERT INTO {schema}.floor (body) VALUES (%s) RETURNING id) "
            f"SELECT pg_notify('{schema}', id::text) FROM one",
            ("x" * 200,),
        )
        for notice in [one async for one in reader.notifies(timeout=10, stop_after=1)]:
            await reader.execute(f"SELECT body FROM {schema}.floor WHERE id = %s", (int(notice.payload),))
        return (time.monotonic() - began) * 1000

    return once
