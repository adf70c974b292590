"""Target 6: the fenced append, beside the same append without a fence, at one writer and at many."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from tenure.cli.bench import peers
from tenure.cli.bench.places import conninfo, option, redis_link
from tenure.cli.bench.results import Bound, Curve, Figure
from tenure.cli.bench.sampling import in_thread, in_turn, median, profiled
from tenure.cli.bench.stage import hold, names, note, opened, parts, register, waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.abc import Store
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row
    from tenure.cli.bench.sampling import Contestant
    from tenure.cli.bench.stage import Part, Stage, Writer

WRITERS = (1, 16, 200)
TIMED, FILLED, WARM = 300, 200, 10
NOISE = 1.25
"""Medians of interleaved appends of the very same work differ by so much, a disk among what they wait for."""
BODY = "x" * 200
ASKED = {"redis": {200: 40_000}, "postgres": {16: 6_000, 200: 25_000}, "sqlite": {200: 20_000}}

UNFENCED_LUA = """
local head = redis.call('HINCRBY', KEYS[1], 'head', 1)
local now = redis.call('TIME')
redis.call('XADD', KEYS[2], head .. '-0', 'kind', 'note', 'at', now[1], 'body', ARGV[1])
redis.call('PUBLISH', KEYS[1], head)
return head
"""
UNFENCED_SQL = """
WITH moved AS (UPDATE {s}.heads SET head = head + 1 WHERE id = %s RETURNING id, head)
INSERT INTO {s}.events SELECT id, head, now(), 'note', %s FROM moved
"""


async def measure(stage: Stage, row: Row) -> None:
    """Each store by itself: ours, its floor and the peers that use such a store in turn; then the cost against the length
    of the history."""
    curve: dict[str, list[tuple[float, float]]] = {}
    works: dict[str, Part] = {}
    for place in stage.places.values():
        works[f"{place.kind}: append"] = partial(_on, place=place, row=row)
        works[f"{place.kind}: history"] = partial(_history, place=place, row=row, curve=curve)
    await parts(stage, row, works)
    if curve:
        row.curves.append(
            Curve("append.svg", "An append, by the length of the history", "events before it", "ms", curve)
        )


async def _on(stage: Stage, place: Place, row: Row) -> None:
    floors = {"redis": _redis_floor, "postgres": _postgres_floor, "sqlite": _sqlite_floor}[place.kind]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        store = await stack.enter_async_context(opened(url))
        ours = await _ours(store, place.kind, stage.amount.seconds)
        floor = await floors(stack, place, stage.amount.seconds)
        theirs = await _peers(stage, stack, place, row)
        found = await in_turn(stage.amount.rounds, floor | ours | theirs, warm=1, within_s=stage.left_s / 2)
        for name, values in found.items():
            role = "floor" if name in floor else "ours" if name in ours else "peer"
            row.figures.append(Figure.of(name, role, "per s", values))
        for name in (f"{place.kind}: append, {WRITERS[0]} writers", f"{place.kind}: append, {WRITERS[-1]} writers"):
            row.profiles[f"time of this process, {name} (own time of functions)"] = await profiled(ours[name])
    for count in WRITERS:
        mine, least = f"{place.kind}: append, {count} writers", f"{place.kind}: unfenced, {count} writers"
        row.beside(mine, least)
        part = row.middle(mine) / row.middle(least)
        row.bounds.append(Bound(f"{mine} ≥ 90 % of unfenced", f"{part:.0%}", part >= 0.9))
        if (asked := ASKED[place.kind].get(count)) is not None:
            found_rate = row.middle(mine)
            row.bounds.append(Bound(f"{mine} ≥ {asked:,} per s", f"{found_rate:,.0f} per s", found_rate >= asked))
    row.ahead(f"{place.kind}: append, {WRITERS[0]} writers", list(theirs))


async def _peers(stage: Stage, stack: AsyncExitStack, place: Place, row: Row) -> dict[str, Contestant]:
    """Those that keep their steps in a store of this kind; one writer each, as ours beside them."""
    if place.kind == "redis":
        return {}
    if place.is_users:
        row.missing["DBOS, LangGraph"] = "they would make tables of their own in your store"
        return {}
    url = await stack.enter_async_context(place.space())
    postgres, sqlite = (url, None) if place.kind == "postgres" else (None, url)
    return await peers.steps(stack, postgres, sqlite, row.missing, stage.amount.seconds)


async def _ours(store: Store, label: str, seconds: float) -> dict[str, Contestant]:
    held = await hold(store, await register(store), names(f"{label}-writer", WRITERS[-1]))
    event = note(len(BODY))

    def by(count: int) -> Contestant:
        return lambda: _all_at_once([lambda one=one: one.append(event) for one in held[:count]], seconds)

    return {f"{label}: append, {count} writers": by(count) for count in WRITERS}


async def _all_at_once(works: list[Callable[[], Awaitable[object]]], seconds: float) -> float:
    """Each repeated in a task of its own, once at least; how often per second one of them gets done."""
    done, end = 0, time.monotonic() + seconds

    async def repeat(work: Callable[[], Awaitable[object]]) -> None:
        nonlocal done
        while True:
            await work()
            done += 1
            if time.monotonic() >= end:
                return

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(repeat(work))
    return done / (time.monotonic() - began)


async def _redis_floor(stack: AsyncExitStack, place: Place, seconds: float) -> dict[str, Contestant]:
    url = await stack.enter_async_context(place.space())
    link = await stack.enter_async_context(redis_link(url))
    prefix = option(url, "prefix")
    (digest,) = await link.ask(("SCRIPT", "LOAD", UNFENCED_LUA))

    def writer(number: int) -> Callable[[], Awaitable[object]]:
        words = ("EVALSHA", digest, 2, f"{prefix}:h{number}", f"{prefix}:j{number}", BODY)
        return lambda: link.ask(words)

    writers = [writer(number) for number in range(WRITERS[-1])]
    return {
        f"redis: unfenced, {count} writers": lambda count=count: _all_at_once(writers[:count], seconds)
        for count in WRITERS
    }


async def _postgres_floor(stack: AsyncExitStack, place: Place, seconds: float) -> dict[str, Contestant]:
    """A connection for each of up to 16 writers; 200 share those 16."""
    import psycopg

    url = await stack.enter_async_context(place.space())
    schema, plain = option(url, "schema"), conninfo(url)
    connect: Any = psycopg.AsyncConnection.connect
    lines = [await stack.enter_async_context(await connect(plain, autocommit=True)) for _ in range(WRITERS[1])]
    await lines[0].execute(f"CREATE SCHEMA {schema}")
    await lines[0].execute(f"CREATE TABLE {schema}.heads (id bigint PRIMARY KEY, head bigint NOT NULL)")
    await lines[0].execute(
        f"CREATE TABLE {schema}.events (id bigint, seq bigint, at timestamptz, kind text, body text, PRIMARY KEY (id, seq))"
    )
    await lines[0].execute(f"INSERT INTO {schema}.heads SELECT n, 0 FROM generate_series(0, {WRITERS[-1]}) n")
    statement = UNFENCED_SQL.format(s=schema)

    def writer(number: int) -> Callable[[], Awaitable[object]]:
        return lambda: lines[number % len(lines)].execute(statement, (number, BODY), prepare=True)

    writers = [writer(number) for number in range(WRITERS[-1])]
    return {
        f"postgres: unfenced, {count} writers": lambda count=count: _all_at_once(writers[:count], seconds)
        for count in WRITERS
    }


async def _sqlite_floor(stack: AsyncExitStack, place: Place, seconds: float) -> dict[str, Contestant]:
    """Durable transactions of one writer, each of so many rows as there are writers: the best that a group can do."""
    url = await stack.enter_async_context(place.space())
    db = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    stack.callback(db.close)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE heads (id INTEGER PRIMARY KEY, head INTEGER NOT NULL)")
    db.execute("CREATE TABLE events (id INTEGER, seq INTEGER, at REAL, kind TEXT, body TEXT, PRIMARY KEY (id, seq))")
    db.executemany("INSERT INTO heads VALUES (?, 0)", [(number,) for number in range(WRITERS[-1])])
    heads = itertools.count(1)

    def repeat(count: int) -> float:
        done, began = 0, time.monotonic()
        while not done or time.monotonic() < began + seconds:
            seq = next(heads)
            db.execute("BEGIN IMMEDIATE")
            for number in range(count):
                db.execute("UPDATE heads SET head = head + 1 WHERE id = ?", (number,))
                db.execute("INSERT INTO events VALUES (?, ?, ?, 'note', ?)", (number, seq, 0.0, BODY))
            db.execute("COMMIT")
            done += count
        return done / (time.monotonic() - began)

    return {
        f"sqlite: unfenced, {count} writers": lambda count=count: in_thread(partial(repeat, count)) for count in WRITERS
    }


async def _history(stage: Stage, place: Place, row: Row, curve: dict[str, list[tuple[float, float]]]) -> None:
    """How long one append takes behind ever more events: conversations of each length, an append to each in turn."""
    async with place.space() as url, opened(url) as store:
        lengths = stage.amount.history
        writers = await hold(store, await register(store), names("long", len(lengths)))
        event = note(len(BODY))
        for writer, length in zip(writers, lengths, strict=True):
            for start in range(0, length, FILLED):
                await writer.append(*(event for _ in range(min(FILLED, length - start))))

        def once(writer: Writer) -> Contestant:
            async def timed() -> float:
                return (await waits(lambda: writer.append(event), 1))[0]

            return timed

        contestants = {f"{length}": once(writer) for writer, length in zip(writers, lengths, strict=True)}
        found = await in_turn(min(TIMED, 2 * stage.amount.single), contestants, warm=WARM, within_s=stage.left_s / 2)
    for length, took in found.items():
        row.figures.append(
            Figure.of_waits(f"{place.kind}: an append behind {int(length):,} events", "ours", "ms", took)
        )
    points = [(float(length), median(took)) for length, took in found.items()]
    curve[place.kind] = points
    least, most = min(y for _, y in points), max(y for _, y in points)
    text = f"{place.kind}: constant in the history: medians of appends in turn within {NOISE - 1:.0%}"
    row.bounds.append(Bound(text, f"{least:.2f} to {most:.2f} ms", most <= NOISE * least))
