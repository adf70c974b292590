"""Target 7: three nodes are restarted one after the other, while people watch their conversations."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, final

from tenure.cli.bench.results import Bound, Figure, Row
from tenure.cli.bench.sampling import quantile
from tenure.cli.bench.stage import opened
from tenure.client import Client
from tenure.journal import TURN_ENDS, Event
from tenure.testing.processes import NodeProcess, NodeProcesses

if TYPE_CHECKING:
    from tenure.abc import Store
    from tenure.cli.bench.stage import Stage

NODES = ("a", "b", "c")
STEPS = 4
STEP_S = 0.2
BETWEEN_S = 0.5
WARM_S = 1.0
LAST_S = 60.0
TTL_S, DRAIN_S = 30.0, 1.0
"""With this ttl, a wait for one would be seen."""


@final
class Viewer:
    """Somebody who sends messages to one conversation and watches it; what was seen, and the longest silence of an open turn."""

    def __init__(self, client: Client, name: str, effects: Path) -> None:
        self.client = client
        self.name = name
        self.seen: list[int] = []
        self.sent = 0
        self.longest_s = 0.0
        self._open = False
        self._ended = asyncio.Event()
        script = [step for number in range(STEPS) for step in ({"sleep_s": STEP_S}, {"run": f"echo {number}"})]
        self._settings = {"script": script, "effects": str(effects)}

    async def create(self) -> None:
        await self.client.create(self.name, settings=self._settings, key=self.name)  # type: ignore[arg-type]

    async def watch(self) -> None:
        moved = time.monotonic()
        async with self.client.stream(self.name) as stream:
            async for item in stream:
                if not isinstance(item, Event):
                    continue
                self.seen.append(item.seq)
                now = time.monotonic()
                if item.kind == "message":
                    self._open = True
                elif self._open:
                    self.longest_s = max(self.longest_s, now - moved)
                moved = now
                if item.kind in TURN_ENDS:
                    self._open = False
                    self._ended.set()

    async def talk(self, over: asyncio.Event) -> None:
        while not over.is_set():
            self._ended.clear()
            await self.client.send(self.name, f"message {self.sent}", key=f"{self.name}-{self.sent}")
            self.sent += 1
            async with asyncio.timeout(LAST_S):
                await self._ended.wait()
            await asyncio.sleep(BETWEEN_S)


async def measure(stage: Stage) -> Row:
    """On one store: what the journals hold afterwards, and what the viewers saw of them."""
    row = Row("rolling")
    place = stage.places.get("redis") or next(iter(stage.places.values()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(place.space())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenure-bench-")))
        store = await stack.enter_async_context(opened(url))
        nodes = stack.enter_context(NodeProcesses())
        for name in NODES:
            nodes.add(
                NodeProcess(
                    name, store=url, folder=folder, agents=["scripted"],
                    options=["--ttl-s", str(TTL_S), "--drain-s", str(DRAIN_S), "--workspaces", str(folder / name)],
                )
            )  # fmt: skip
        await nodes.start()
        viewers = await _live_through(stage, stack, nodes, folder / "effects.jsonl")
        await _judge(row, place.kind, store, viewers, folder / "effects.jsonl")
    return row


async def _live_through(stage: Stage, stack: AsyncExitStack, nodes: NodeProcesses, effects: Path) -> list[Viewer]:
    urls = [node.url for node in nodes]
    viewers: list[Viewer] = []
    for number in range(stage.amount.streams):
        turned = urls[number % 3 :] + urls[: number % 3]
        client = await stack.enter_async_context(Client(turned))
        viewers.append(Viewer(client, f"rolling-{number}", effects))
        await viewers[-1].create()
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(one.watch()) for one in viewers]
        talks = [group.create_task(one.talk(over)) for one in viewers]
        await asyncio.sleep(WARM_S)
        for node in nodes:
            node.drain()
            await node.ended(LAST_S)
            await node.start()
            await asyncio.sleep(WARM_S)
        over.set()
        await asyncio.wait(talks)
        await asyncio.sleep(WARM_S)  # what stands at the end of the journals reaches the viewers
        for task in watching:
            task.cancel()
    return viewers


async def _judge(row: Row, kind: str, store: Store, viewers: list[Viewer], effects: Path) -> None:
    from tenure.abc import Reading

    ends, restarted, missing = Counter[str](), 0, 0
    for one in viewers:
        answer = await store.read(one.name, 0, 100_000)
        events = answer.events if isinstance(answer, Reading) else ()
        ends.update(event.kind for event in events if event.kind in TURN_ENDS)
        restarted += sum(event.kind == "call_restarted" for event in events)
        upto = max((event.seq for event in events if event.kind in TURN_ENDS), default=0)
        missing += len({event.seq for event in events if event.seq <= upto} - set(one.seen))
    doubled = sum(len(one.seen) - len(set(one.seen)) for one in viewers)
    sent = sum(one.sent for one in viewers)
    calls = Counter(map(_key, await asyncio.to_thread(_lines, effects)))
    twice = sum(times - 1 for times in calls.values())
    gaps = [one.longest_s * 1000 for one in viewers]
    row.figures.append(Figure.of_waits(f"{kind}: longest silence within a turn, per stream", "ours", "ms", gaps))
    row.figures.append(Figure.of(f"{kind}: one step of the agent", "floor", "ms", [STEP_S * 1000]))
    p99 = quantile(gaps, 0.99)
    dropped = sent - ends["turn_completed"]
    row.bounds += [
        Bound("0 turns dropped", f"{dropped} of {sent:,}", dropped == 0),
        Bound("0 calls doubled", f"{twice} of {calls.total():,} ({restarted} restarted)", twice == 0),
        Bound(
            "0 events missing or doubled at a client", f"{missing} missing, {doubled} doubled", not missing + doubled
        ),
        Bound("longest gap p99 < 1 s", f"{p99:,.0f} ms of {len(viewers)} streams", p99 < 1000),
    ]


def _lines(effects: Path) -> list[str]:
    return effects.read_text(encoding="utf-8").splitlines() if effects.exists() else []


def _key(line: str) -> str:
    """What names one call."""
    told = json.loads(line)
    return f"{told['conversation']} {told['key']}"
