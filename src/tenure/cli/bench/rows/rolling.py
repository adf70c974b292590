"""Target 7: three nodes are restarted one after the other, while people watch their conversations."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from tenure.abc import Reading
from tenure.cli.bench.agents import EFFECTS, STEP_S, STEPPING
from tenure.cli.bench.results import Bound, Figure
from tenure.cli.bench.sampling import MeasureFailedError, quantile, shares, upper
from tenure.cli.bench.stage import opened
from tenure.client import Client
from tenure.clock import SystemClock
from tenure.journal import TURN_ENDS, Event
from tenure.testing.processes import NodeProcess, NodeProcesses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.cli.bench.results import Row
    from tenure.cli.bench.stage import Stage

NODES = ("a", "b", "c")
BETWEEN_S = 0.5
WARM_S, QUIET_S = 2.0, 6.0
"""Until all streams are live; how long nobody restarts anything, for comparison."""
LAST_S, RESTART_S = 60.0, 12.0
"""What the end of a process, or of a turn, gets at most; what a restart takes at most on a machine that is not too busy."""
TTL_S, DRAIN_S = 30.0, 1.0
"""With this ttl, a wait for one would be seen."""
READY = ("runtime_ready", "runtime_attached")
PARTS = (
    "the turn's last event → released",
    "released → claimed by the heir",
    "claimed → its runtime is ready",
    "runtime ready → its loop has started",
    "loop started → the turn's next event",
    "written → seen by the viewer",
)


@final
class Viewer:
    """Somebody who sends messages to one conversation and watches it: what was seen, and when, and the longest silence within
    a turn: without any event of the turn itself."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.seen: list[int] = []
        self.seen_at: dict[int, float] = {}
        self.sent = 0
        self.longest_s = 0.0
        self._moved: float | None = None
        self._ended = asyncio.Event()
        self._clock = SystemClock()

    async def watch(self) -> None:
        async with self.client.stream(self.name) as stream:
            async for item in stream:
                if isinstance(item, Event):
                    self._note(item)

    def _note(self, event: Event) -> None:
        self.seen.append(event.seq)
        self.seen_at.setdefault(event.seq, self._clock.now().unix_s)
        if event.turn is None:
            return
        now = time.monotonic()
        if self._moved is not None:
            self.longest_s = max(self.longest_s, now - self._moved)
        self._moved = now
        if event.kind in TURN_ENDS:
            self._moved = None
            self._ended.set()

    def forget(self) -> float:
        """The longest silence so far, in milliseconds; from now on it is counted anew."""
        longest, self.longest_s = self.longest_s * 1000, 0.0
        return longest

    async def talk(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self._ended.clear()
            await self.client.send(self.name, f"message {self.sent}", key=f"{self.name}-{self.sent}")
            self.sent += 1
            async with asyncio.timeout(LAST_S):
                await self._ended.wait()
            await asyncio.sleep(BETWEEN_S)


@final
@dataclass(frozen=True, slots=True)
class HandOver:
    """One conversation that changed its owner within a turn: milliseconds of each part of the silence, in its order."""

    parts: dict[str, float]

    @property
    def whole(self) -> float:
        return sum(self.parts.values())


async def measure(stage: Stage, row: Row) -> None:
    """On one store: how silent the streams are while nobody restarts anything; what the journals hold after all have been
    restarted, and what the viewers saw of them."""
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tenure-bench-", ignore_cleanup_errors=True))
        )
        store = await stack.enter_async_context(opened(url))
        nodes = stack.enter_context(NodeProcesses())
        for name in NODES:
            nodes.add(_node(name, url, folder))
        await nodes.start()
        viewers = await _viewers(stage, stack, nodes)
        quiet, quiet_until = await _live_through(stage, nodes, viewers, row)
        journals: dict[str, Sequence[Event]] = {}
        for one in viewers:
            answer = await store.read(one.name, 0, 100_000)
            journals[one.name] = answer.events if isinstance(answer, Reading) else ()
        await _judge(row, viewers, journals, folder / "effects.jsonl")
    _gaps(row, place.kind, quiet, viewers)
    _lags(row, place.kind, viewers, journals, quiet_until)
    _hand_overs(row, place.kind, viewers, journals)


def _node(name: str, url: str, folder: Path) -> NodeProcess:
    """As a user starts it, with the store's URL in the environment: it may hold a password."""
    options = ["--ttl-s", str(TTL_S), "--drain-s", str(DRAIN_S), "--workspaces", str(folder / name)]
    environ = {"TENURE_STORE": url, EFFECTS: str(folder / "effects.jsonl")}
    return NodeProcess(name, store="", folder=folder, agents=[STEPPING], options=options, environ=environ)


async def _viewers(stage: Stage, stack: AsyncExitStack, nodes: NodeProcesses) -> list[Viewer]:
    urls = [node.url for node in nodes]
    viewers: list[Viewer] = []
    for number in range(stage.amount.streams):
        turned = urls[number % 3 :] + urls[: number % 3]
        client = await stack.enter_async_context(Client(turned))
        viewers.append(Viewer(client, f"rolling-{number}"))
        await client.create(viewers[-1].name, key=viewers[-1].name)
    return viewers


async def _live_through(
    stage: Stage, nodes: NodeProcesses, viewers: list[Viewer], row: Row
) -> tuple[list[float], float]:
    """Milliseconds of the longest silence of each stream before the first restart, and when that was, in seconds since 1970;
    afterwards the viewers have the later silences."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(one.watch()) for one in viewers]
        talks = [group.create_task(one.talk(over)) for one in viewers]
        await asyncio.sleep(WARM_S)
        for one in viewers:
            one.forget()
        await asyncio.sleep(min(QUIET_S, stage.left_s / 5))
        quiet, quiet_until = [one.forget() for one in viewers], SystemClock().now().unix_s
        for node in nodes:
            if stage.left_s < RESTART_S:
                row.missing[f"the restart of node {node.name}, and of those behind it"] = "no time left"
                break
            node.drain()
            await node.ended(LAST_S)
            await node.start()
            await asyncio.sleep(WARM_S / 2)
        over.set()
        await asyncio.wait(talks)
        await asyncio.sleep(WARM_S / 2)  # what stands at the end of the journals reaches the viewers
        for task in watching:
            task.cancel()
    return quiet, quiet_until


def _gaps(row: Row, kind: str, quiet: list[float], viewers: list[Viewer]) -> None:
    gaps = [one.longest_s * 1000 for one in viewers]
    mine, floor = (
        f"{kind}: longest silence of a stream within a turn, all restarted",
        f"{kind}: the same, nobody restarted",
    )
    row.figures += [
        Figure.of_waits(mine, "ours", "ms", gaps),
        Figure.of_waits(floor, "floor", "ms", quiet),
        Figure.of(f"{kind}: one step of the agent", "floor", "ms", [STEP_S * 1000]),
    ]
    row.beside(mine, floor)
    found = f"{upper(gaps)} streams; nobody restarted: {upper(quiet)}"
    row.bounds.append(Bound("longest gap p99 < 1 s", found, quantile(gaps, 0.99) < 1000))


async def _judge(row: Row, viewers: list[Viewer], journals: dict[str, Sequence[Event]], effects: Path) -> None:
    ends, restarted, cut, missing = Counter[str](), 0, 0, 0
    for one in viewers:
        events = journals[one.name]
        ends.update(event.kind for event in events if event.kind in TURN_ENDS)
        restarted += sum(event.kind == "call_restarted" for event in events)
        cut += sum(event.kind == "call_interrupted" for event in events)
        upto = max((event.seq for event in events if event.kind in TURN_ENDS), default=0)
        missing += len({event.seq for event in events if event.seq <= upto} - set(one.seen))
    doubled = sum(len(one.seen) - len(set(one.seen)) for one in viewers)
    sent = sum(one.sent for one in viewers)
    calls = Counter(map(_key, await asyncio.to_thread(_lines, effects)))
    if not calls:
        raise MeasureFailedError("no step had an effect")
    twice = sum(times - 1 for times in calls.values())
    dropped = sent - ends["turn_completed"]
    row.bounds += [
        Bound("0 turns dropped", f"{dropped} of {sent:,} ({_others(ends)})", dropped == 0),
        Bound(
            "0 calls doubled", f"{twice} of {calls.total():,} effects ({restarted} restarted, {cut} cut)", twice == 0
        ),
        Bound(
            "0 events missing or doubled at a client", f"{missing} missing, {doubled} doubled", not missing + doubled
        ),
    ]


def _others(ends: Counter[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in ends.most_common()) or "no turn ended"


def _lags(row: Row, kind: str, viewers: list[Viewer], journals: dict[str, Sequence[Event]], quiet_until: float) -> None:
    """From any event's place in the journal to the viewer: what the machine's load does, and what reconnecting does."""
    lags: dict[bool, list[float]] = {True: [], False: []}
    for one in viewers:
        for event in journals[one.name]:
            if event.seq in one.seen_at:
                lags[event.at.unix_s < quiet_until].append((one.seen_at[event.seq] - event.at.unix_s) * 1000)
    for quiet, when in ((True, "nobody restarts"), (False, "from the first restart on")):
        if lags[quiet]:
            name = f"{kind}: any event, written → seen by the viewer, {when}"
            row.figures.append(Figure.of_waits(name, "ours", "ms", lags[quiet]))


def _hand_overs(row: Row, kind: str, viewers: list[Viewer], journals: dict[str, Sequence[Event]]) -> None:
    """Which part of a hand-over is what, by the store's clock; the last part by that of this process, on the same machine."""
    found = [over for one in viewers for over in hand_overs(journals[one.name], one.seen_at)]
    if not found:
        row.missing["the parts of a hand-over"] = "no conversation changed its owner within a turn"
        return
    for part in found[0].parts:
        name = f"{kind}: of a hand-over, {part}"
        row.figures.append(Figure.of_waits(name, "ours", "ms", [over.parts[part] for over in found]))
    row.figures.append(Figure.of_waits(f"{kind}: a hand-over, all of it", "ours", "ms", [over.whole for over in found]))
    slowest = sorted(found, key=lambda over: over.whole)[-max(1, len(found) // 10) :]
    for which, some in (("all", found), ("the slowest tenth", slowest)):
        sums = {part: sum(over.parts[part] for over in some) for part in found[0].parts}
        row.profiles[f"time of a hand-over within a turn, {which} of {len(found)} (sums of its parts)"] = shares(sums)


def hand_overs(events: Sequence[Event], seen_at: dict[int, float]) -> list[HandOver]:
    """Those of one journal that happened within a turn, from the last event of the turn to the next one at the viewer."""
    found: list[HandOver] = []
    for at, event in enumerate(events):
        if event.kind != "released":
            continue
        before = next((one for one in reversed(events[:at]) if one.turn is not None), None)
        behind = events[at + 1 :]
        after = next((one for one in behind if one.turn is not None), None)
        if (
            before is None
            or after is None
            or before.kind in TURN_ENDS
            or after.turn != before.turn
            or after.seq not in seen_at
        ):
            continue
        marks = [before, event]
        for kinds in (("claimed",), READY, ("loop_started",)):
            marks.append(next((one for one in behind if one.kind in kinds and one.seq < after.seq), marks[-1]))
        times = [one.at.unix_s for one in (*marks, after)] + [seen_at[after.seq]]
        steps = zip(PARTS, itertools.pairwise(times), strict=True)
        found.append(HandOver({part: max(0.0, (end - start) * 1000) for part, (start, end) in steps}))
    return found


def _lines(effects: Path) -> list[str]:
    return effects.read_text(encoding="utf-8").splitlines() if effects.exists() else []


def _key(line: str) -> str:
    """What names one call."""
    told = json.loads(line)
    return f"{told['conversation']} {told['key']}"
