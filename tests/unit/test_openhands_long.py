"""A conversation of many thousands of events, with the real SDK on a real store: what is asked of the store, counted."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import openhands_world
import pytest

import tenure
from tenure.abc import About, Append, Appended, Claim, Creation, Held, Reading, Reason, Release, Snapshot, Submit
from tenure.clock import SystemClock
from tenure.config import Config
from tenure.conversation import Fold, Settle, fold
from tenure.journal import Draft, Event
from tenure.lease import new_incarnation, new_token
from tenure.loops.openhands import OpenHandsLoop
from tenure.loops.openhands.store import EVENT
from tenure.stores.sqlite import SqliteStore

pytestmark = openhands_world.MARKS
C = openhands_world.C
LONG = 5000
BATCH = 200
SETTINGS = {
    "agent": {
        "llm": {"model": "openai/scripted", "base_url": "http://127.0.0.1:9/v1", "api_key": "no-key"},
        "tools": [],
    }
}


@dataclass
class Asked:
    """What the loop and its tenure have asked of the store since this was last emptied."""

    reads: int = 0
    events: int = 0
    appends: int = 0
    bytes: int = 0


class Counted(SqliteStore):
    """The store of one node, and what is asked of it for the conversation."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked = Asked()

    async def read(self, *given: Any, **named: Any) -> Any:
        answer = await super().read(*given, **named)
        self.asked.reads += 1
        self.asked.events += len(answer.events) if isinstance(answer, Reading) else 0
        return answer

    async def append(self, request: Append) -> Any:
        self.asked.appends += 1
        state = request.snapshot.loop if request.snapshot is not None else None
        self.asked.bytes += len(json.dumps([[draft.as_json() for draft in request.drafts], state]))
        return await super().append(request)


class Yard:
    """Nodes on one file, and somebody who looks at it."""

    def __init__(self, folder: Path, loop: OpenHandsLoop, stack: AsyncExitStack, eye: SqliteStore) -> None:
        self.folder, self.loop, self.stack, self.eye = folder, loop, stack, eye
        self.said = self.seq = 0

    async def node(self, name: str) -> tuple[tenure.Node, Counted]:
        store = Counted(str(self.eye.url))
        config = Config(node=name, witness=False, sweep_s=0.05, drain_s=0.0, workspaces=str(self.folder / "all"))
        return await self.stack.enter_async_context(tenure.Node(store, {"openhands": self.loop}, config=config)), store

    async def say(self, node: tenure.Node, store: Counted) -> Asked:
        """A message that is only recorded; what it cost, from the store's side."""
        store.asked, self.said = Asked(), self.said + 1
        await node.send(C, {"text": "Remember this.", "run": False}, key=f"k{self.said}")
        async with asyncio.timeout(openhands_world.PATIENCE_S):
            while not any(event.kind == "turn_completed" for event in await self.news()):
                await asyncio.sleep(0.01)
        return store.asked

    async def news(self) -> Sequence[Event]:
        """What was journaled since this was last asked."""
        reading = await self.eye.read(C, self.seq, 1000)
        assert isinstance(reading, Reading)
        self.seq = max([self.seq, *(event.seq for event in reading.events)])
        return reading.events

    async def grow(self, events: int) -> None:
        """So many messages more, as a former owner has left them."""
        reading = await self.eye.read(C, 0, 1000, snapshot=True)
        assert isinstance(reading, Reading) and reading.snapshot is not None and reading.snapshot.loop is not None
        whole = await self.eye.read(C, 0, 1000)
        assert isinstance(whole, Reading)
        told = [dict(event.body) for event in whole.events if event.kind == EVENT]
        message = next(body for body in told if body["kind"] == "MessageEvent")
        ids = [reading.snapshot.loop["base"]["leaf_event_id"], *(str(uuid.uuid4()) for _ in range(events))]  # type: ignore[index]
        bodies = [{**message, "id": own, "parent_id": parent} for parent, own in pairwise(ids)]
        base = {**reading.snapshot.loop["base"], "leaf_event_id": ids[-1]}  # type: ignore[dict-item]
        state = {"length": len(told) + events, "base": base}
        await self._append([Draft(EVENT, body) for body in bodies], state)

    async def _append(self, drafts: list[Draft], state: Any) -> None:
        [record] = await self.eye.records([C])
        assert record is not None
        me, now = new_incarnation(), SystemClock().now()
        await self.eye.register(me, About("hand", "http://hand", 1, ("by-hand",), now), 60)
        held = await self.eye.claim(Claim(C, me, new_token(), record.epoch, "hand", "http://hand", "wanted"))
        assert isinstance(held, Held)
        self.seq = 0
        known, number = fold(Fold(), await self.news()), 0
        for start in range(0, len(drafts), BATCH):
            part, number = tuple(drafts[start : start + BATCH]), number + 1
            snapshot = Snapshot(known.seq, known.as_json(), state)
            answer = await self.eye.append(Append(held.lease, number, known.seq, part, None, snapshot))
            assert isinstance(answer, Appended), answer
            known = fold(known, await self.news())
        settle = Settle(runnable=False)
        await self.eye.release(Release(Append(held.lease, number + 1, known.seq, (), settle), Reason.DRAINED))


@pytest.fixture
async def yard(tmp_path: Path, loop: OpenHandsLoop) -> AsyncIterator[Yard]:
    async with AsyncExitStack() as stack:
        eye = await stack.enter_async_context(SqliteStore(f"sqlite:///{tmp_path}/tenure.db"))
        yield Yard(tmp_path, loop, stack, eye)


async def test_takeover_reads_the_journal_once_and_an_append_costs_the_same_at_any_age(yard: Yard):
    first, store = await yard.node("first")
    await first.submit(Submit(C, None, Creation(agent="openhands", settings=first.check("openhands", SETTINGS))))
    await yard.say(first, store)
    young = await yard.say(first, store)
    await first.drain()
    await yard.grow(LONG)

    second, store = await yard.node("second")
    takeover = await yard.say(second, store)
    events = yard.seq
    assert events > LONG
    assert LONG <= takeover.events < events + 500, "every event once, and what came after the fold's snapshot"
    assert takeover.reads < 100, "by the thousand"
    old = await yard.say(second, store)
    assert old.appends == young.appends and max(old.reads, old.events) <= 10, f"{young} and {old}"
    assert abs(old.bytes - young.bytes) < 200, f"{young.bytes} bytes at 10 events, {old.bytes} at {events}"
    assert takeover.bytes < 3 * young.bytes, "the whole state is journaled once more at most"
    reading = await yard.eye.read(C, 0, 1, snapshot=True)
    assert isinstance(reading, Reading) and reading.snapshot is not None and reading.snapshot.loop is not None
    assert set(reading.snapshot.loop) == {"length", "base"} and reading.snapshot.loop["length"] > LONG  # type: ignore[operator]
