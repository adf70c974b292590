"""What the measurements share: how much is measured, where, and conversations by the thousand."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

from tenure.abc import About, Append, Appended, Claim, Creation, Death, Held, Reading, Reason, Release, Snapshot, Submit
from tenure.cli.bench.sampling import MeasureFailedError
from tenure.clock import SystemClock
from tenure.conversation import Fold, Settle, fold
from tenure.errors import TenureError
from tenure.journal import Command, Delivery, Draft
from tenure.lease import UNCLAIMED, IncarnationId, new_incarnation, new_token
from tenure.stores import open_store
from tenure.testing.processes import NodeEndedError, ServerFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from tenure.abc import Store
    from tenure.cli.bench.places import Kind, Place
    from tenure.cli.bench.results import Row

AGENT = "bench"
FAR_S = 3600.0
PARTS = 0.9
"""The share of its time in which something is done: what hangs is given up while there is time to say so."""
GENEROUS = 3.0
"""How much more than its share of a row's time a part may take."""
FAILURES = (MeasureFailedError, TenureError, NodeEndedError, ServerFailedError, TimeoutError, OSError)
"""What ends a measurement, and no other one."""
TOGETHER = 200
"""Requests that are handed to a store at once, when what is measured is something else."""


@final
@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured. The tiny one only shows that everything runs; its numbers mean nothing."""

    name: str
    total_s: float
    """For all rows together, which share it by their weight: what a row leaves is for those behind it."""
    limit_s: float
    """For a row; a measurement that takes longer hangs."""
    piece_s: float
    """For a part of a row: what it has not done by then is said to be missing, and the row goes on."""
    fill_s: float
    """For filling a store or a node: what stands by then is what is measured, and its number is said."""
    rounds: int
    seconds: float
    """Of each contestant in a round, where it works for a time."""
    single: int
    """Operations of a round, where each is timed."""
    trials: int
    """Deaths of a node, which are over in a moment."""
    slow_trials: int
    """Faults of each kind that a ttl ends, and starts of a node."""
    watched_s: float
    """Of a node that does nothing."""
    rest_s: float
    """How long nobody talks before the memory of what rests is looked at; a loop keeps its history for 30 s."""
    wakings: int
    """Of each conversation of some age."""
    held: tuple[int, ...]
    stored: tuple[int, ...]
    dead: tuple[int, ...]
    """Conversations of a dead node."""
    resident: int
    traced: int
    """Conversations of a node whose memory is looked into, which makes it slow."""
    history: tuple[int, ...]
    streams: int
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    """Rows that are measured only if they are asked for by name, and why."""


FULL = Amount(
    name="full", total_s=float("inf"), limit_s=1200, piece_s=300, fill_s=90, rounds=5, seconds=2.0, single=500, trials=20,
    slow_trials=5, watched_s=10, rest_s=32, wakings=9, held=(0, 1_000, 10_000, 100_000), stored=(0, 1_000, 10_000, 100_000),
    dead=(10, 1_000, 10_000), resident=10_000, traced=300, history=(10, 100, 1_000, 10_000), streams=100,
)  # fmt: skip
QUICK = Amount(
    name="quick", total_s=265, limit_s=120, piece_s=60, fill_s=10, rounds=3, seconds=0.25, single=100, trials=2, slow_trials=1,
    watched_s=4, rest_s=0, wakings=3, held=(0, 1_000, 10_000), stored=(0, 10_000), dead=(10, 1_000), resident=300, traced=100,
    history=(10, 100, 1_000), streams=20,
    left_out={"openhands": "not in quick amounts: servers with the SDK take a minute to start; --only openhands measures it"},
)  # fmt: skip
TINY = Amount(
    name="tiny", total_s=float("inf"), limit_s=600, piece_s=240, fill_s=60, rounds=1, seconds=0.02, single=3, trials=1, slow_trials=1,
    watched_s=0.4, rest_s=0, wakings=1, held=(0, 5), stored=(0, 5), dead=(3,), resident=5, traced=3, history=(3, 10), streams=6,
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """One run: the places by kind, and how much is asked of them."""

    places: Mapping[Kind, Place]
    amount: Amount
    ends_at: float = float("inf")
    """When the row is to be done, in monotonic seconds: its parts share what time is left."""

    @property
    def left_s(self) -> float:
        """What is left of the row's time."""
        return max(0.0, self.ends_at - time.monotonic())


type Part = Callable[[Stage], Awaitable[object]]
"""A part of a row, given the stage with the part's own end."""


async def parts(stage: Stage, row: Row, works: Mapping[str, Part]) -> None:
    """Do the parts of a row, one after the other; what cannot be measured, or takes too long, is said on the page, and the others
    go on. They share the time that is left: none may take much more than its share, and what it leaves is for the others."""
    for number, (what, work) in enumerate(works.items()):
        share_s = stage.left_s * min(1.0, GENEROUS / (len(works) - number))
        limit_s = min(stage.amount.piece_s, share_s)
        try:
            async with asyncio.timeout(limit_s):
                await work(replace(stage, ends_at=time.monotonic() + PARTS * limit_s))
        except FAILURES as error:
            row.missing[what] = str(error).partition("\n")[0] or f"not done within {limit_s:.0f} s"


@final
class Writer:
    """A held conversation, and the next batch of its journal."""

    def __init__(self, store: Store, held: Held) -> None:
        self.store = store
        self.lease = held.lease
        self._number = 0
        self._head = held.record.head

    async def append(self, *drafts: Draft, settle: Settle | None = None) -> None:
        answer = await self.store.append(Append(self.lease, self._number + 1, self._head, drafts, settle))
        if not isinstance(answer, Appended):
            raise MeasureFailedError(f"the store answered {answer!r} to an append")
        self._number += 1
        self._head = answer.head

    def farewell(self, snapshot: Snapshot | None = None) -> Release:
        """Its release, as an idle conversation is passivated."""
        idle = Settle(runnable=False, started=True)
        return Release(Append(self.lease, self._number + 1, self._head, (), idle, snapshot), Reason.IDLE)

    async def snapshot(self) -> Snapshot:
        """What a node leaves of a conversation with some past when it passivates it."""
        answer = await self.store.read(self.lease.conversation, 0, self.store.limits.page)
        if not isinstance(answer, Reading):
            raise MeasureFailedError(f"the store answered {answer!r} to a reading")
        return Snapshot(self._head, fold(Fold(), answer.events).as_json())


def note(size: int = 200) -> Draft:
    """An event of about so many bytes."""
    return Draft("note", {"text": "x" * size})


def message(key: str, text: str = "hello") -> Command:
    return Command("message", {"text": text}, key, Delivery.TURN)


def claim(conversation: str, me: IncarnationId, epoch: int = UNCLAIMED, *, create: bool = True) -> Claim:
    return Claim(
        conversation, me, new_token(), type(UNCLAIMED)(epoch) if epoch else UNCLAIMED, "bench", "http://bench", "start",
        create=Creation(default_agent=AGENT) if create else None,
    )  # fmt: skip


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Store]:
    """The store, open."""
    async with open_store(url) as store:
        yield store


async def register(store: Store) -> IncarnationId:
    """A new incarnation that nobody buries for an hour."""
    me = new_incarnation()
    about = About("bench", "http://bench", 1_000_000, (AGENT,), SystemClock().now())
    await store.register(me, about, FAR_S)
    return me


async def hold(store: Store, me: IncarnationId, names: Sequence[str]) -> list[Writer]:
    """Create and claim conversations."""
    held: list[Writer] = []
    for start in range(0, len(names), TOGETHER):
        for answer in await store.claim_all([claim(name, me) for name in names[start : start + TOGETHER]]):
            if not isinstance(answer, Held):
                raise MeasureFailedError(f"the store answered {answer!r} to a claim")
            held.append(Writer(store, answer))
    return held


async def create(store: Store, names: Sequence[str], *, text: str | None = None, within_s: float | None = None) -> int:
    """Create conversations; with `text`, each with a message that waits. How many there are, after `within_s` at most."""
    began = time.monotonic()
    for start in range(0, len(names), TOGETHER):
        if within_s is not None and time.monotonic() - began > within_s:
            return start
        part = names[start : start + TOGETHER]
        command = None if text is None else message("first", text)
        await store.submit_all([Submit(name, command, Creation(agent=AGENT)) for name in part])
    return len(names)


async def passivate(writers: Sequence[Writer], *, old: bool = False) -> None:
    """Let go of them as a node does; of `old` ones it leaves a snapshot."""
    for start in range(0, len(writers), TOGETHER):
        part = writers[start : start + TOGETHER]
        farewells = [writer.farewell(await writer.snapshot() if old else None) for writer in part]
        await part[0].store.release_all(farewells)


async def bury(store: Store, me: IncarnationId) -> float:
    """The incarnation has died; when, in monotonic seconds."""
    at = time.monotonic()
    await store.bury(me, Death.EXITED)
    return at


def names(what: str, count: int) -> list[str]:
    return [f"{what}-{number}" for number in range(count)]


async def rate(work: Callable[[], Awaitable[object]], tasks: int, seconds: float, each: int = 1) -> float:
    """How often per second `tasks` of them get `work` done, once each at least; it counts for `each`."""
    done = 0
    end = time.monotonic() + seconds

    async def repeat() -> None:
        nonlocal done
        while True:
            await work()
            done += each
            if time.monotonic() >= end:
                return

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(repeat())
    return done / (time.monotonic() - began)


async def waits(work: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """How many milliseconds each of so many took, one after the other."""
    took: list[float] = []
    for _ in range(count):
        before = time.monotonic()
        await work()
        took.append((time.monotonic() - before) * 1000)
    return took
