"""Target 4: from a message that any node takes to the moment in which its owner has read it, durable in between."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tenure.abc import Submit
from tenure.cli.bench.nodes import child_node
from tenure.cli.bench.places import conninfo, option, redis_link
from tenure.cli.bench.results import Bound, Figure, Row
from tenure.cli.bench.sampling import quantile
from tenure.cli.bench.stage import create, message, opened

if TYPE_CHECKING:
    from tenure.cli.bench.nodes import ChildNode
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.stage import Stage

LIMITS_MS = {"redis": 0.5, "postgres": 1.5}
TALK = "talk"


async def measure(stage: Stage) -> Row:
    """This process takes the message, another one owns the conversation; both read the same monotonic clock."""
    row = Row("message")
    for kind, place in stage.places.items():
        floor: list[float] = []
        if kind == "redis":
            floor = await _redis_floor(place, stage.amount.single)
        elif kind == "postgres":
            floor = await _postgres_floor(place, stage.amount.single)
        values = await _ours(place, stage.amount.single)
        name = f"{kind}: message → owner"
        row.figures.append(Figure.of_waits(name, "ours", "ms", values))
        if floor:
            what = "XADD → XREAD BLOCK" if kind == "redis" else "INSERT, NOTIFY → LISTEN, SELECT"
            row.figures.append(Figure.of_waits(f"{kind}: {what}", "floor", "ms", floor))
            row.beside(name, f"{kind}: {what}")
        if kind in LIMITS_MS:
            found = f"{quantile(values, 0.5):.2f} ms p50, {quantile(values, 0.99):.2f} ms p99"
            limit = LIMITS_MS[kind]
            row.bounds.append(Bound(f"< {limit:g} ms over {kind}, p50", found, quantile(values, 0.5) < limit))
    return row


async def _ours(place: Place, count: int) -> list[float]:
    async with place.space() as url, opened(url) as store:
        async with child_node(url, tell="read,turn") as node:
            await create(store, [TALK], text="first")
            await node.until(lambda: node.counts["turn"] == 1, "the first turn ended")
            return [await _one(store, node, number) for number in range(count)]


async def _one(store: Any, node: ChildNode, number: int) -> float:
    before, turns = node.counts["read"], node.counts["turn"]
    began = time.monotonic()
    await store.submit(Submit(TALK, message(f"m{number}")))
    await node.until(lambda: node.counts["read"] > before and node.counts["turn"] > turns, "its turn ended")
    return (node.told["read"][TALK] - began) * 1000


async def _redis_floor(place: Place, count: int) -> list[float]:
    """One connection writes to a stream, another one waits for it."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        writer = await stack.enter_async_context(redis_link(url))
        reader = await stack.enter_async_context(redis_link(url))
        key, took = f"{option(url, 'prefix')}:floor", list[float]()
        for _ in range(count):
            waiting = asyncio.ensure_future(reader.ask(("XREAD", "BLOCK", 10000, "STREAMS", key, "$")))
            await asyncio.sleep(0.002)  # until it waits at the server
            began = time.monotonic()
            await writer.ask(("XADD", key, "*", "body", "x" * 200))
            await waiting
            took.append((time.monotonic() - began) * 1000)
        return took


async def _postgres_floor(place: Place, count: int) -> list[float]:
    """One connection inserts and notifies, another one listens and reads the row."""
    import psycopg

    async with place.space() as url, AsyncExitStack() as stack:
        schema, plain = option(url, "schema"), conninfo(url)
        connect: Any = psycopg.AsyncConnection.connect
        writer = await stack.enter_async_context(await connect(plain, autocommit=True))
        reader = await stack.enter_async_context(await connect(plain, autocommit=True))
        await writer.execute(f"CREATE SCHEMA {schema}")
        await writer.execute(f"CREATE TABLE {schema}.floor (id bigserial PRIMARY KEY, body text)")
        await reader.execute(f"LISTEN {schema}")
        took: list[float] = []
        for _ in range(count):
            began = time.monotonic()
            await writer.execute(
                f"WITH one AS (INSERT INTO {schema}.floor (body) VALUES (%s) RETURNING id) "
                f"SELECT pg_notify('{schema}', id::text) FROM one",
                ("x" * 200,),
            )
            for notice in [one async for one in reader.notifies(timeout=10, stop_after=1)]:
                await reader.execute(f"SELECT body FROM {schema}.floor WHERE id = %s", (int(notice.payload),))
            took.append((time.monotonic() - began) * 1000)
        return took
