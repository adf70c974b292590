"""Real nodes on one SQLite file, clients that retry with the same key, and the judgement over what they left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tenure.journal import TURN_ENDS, Event
from tenure.stores import open_store
from tenure.testing import checker
from tenure.testing.history import Attempt, Effect, History, Journal
from tenure.testing.processes import NodeProcess, NodeProcesses

NODESIDE = Path(__file__).parent / "nodeside"
PATIENCE_S = 60.0
"""How long anything may take on a noisy machine before it counts as never. Never the measure of a promise."""


class World:
    """A cluster of processes in a folder of its own."""

    def __init__(
        self, folder: Path, *, ttl_s: float = 2.0, drain_s: float = 5.0, options: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.store_url = f"sqlite:///{folder}/tenure.db"
        self.effects_file = folder / "effects.jsonl"
        self.effects_file.touch()
        self.nodes = NodeProcesses()
        self.history = History()
        self.conversations: set[str] = set()
        self._options = ("--ttl-s", str(ttl_s), "--drain-s", str(drain_s), *options)
        self._numbers = itertools.count(1)
        self.http = httpx.AsyncClient(trust_env=False, timeout=10)

    def node(self, name: str, *, options: tuple[str, ...] = (), **environ: str) -> NodeProcess:
        """A node of this world, not yet started."""
        path = os.pathsep.join(filter(None, [str(NODESIDE), os.environ.get("PYTHONPATH")]))
        return self.nodes.add(
            NodeProcess(
                name,
                store=self.store_url,
                folder=self.folder,
                agents=["chaos_agent:agent"],
                options=[*self._options, *options],
                environ={"PYTHONPATH": path, "CHAOS_EFFECTS": str(self.effects_file), **environ},
                cwd=NODESIDE,
            )
        )

    # --- clients ----------------------------------------------------------------------------------------------------

    def key(self) -> str:
        return f"k{next(self._numbers)}"

    async def create(self, conversation: str, *nodes: NodeProcess) -> None:
        self.conversations.add(conversation)
        await self.post("/conversations", {"id": conversation}, *nodes)

    async def send(
        self, conversation: str, text: str, *nodes: NodeProcess, key: str | None = None, **order: Any
    ) -> dict[str, Any]:
        """A message, repeated under one key at one node after the other until it is answered."""
        key = key or self.key()
        body = {"text": text, "key": key} | ({"content": order} if order else {})
        started = time.monotonic()
        answer = await self.post(f"/conversations/{conversation}/messages", body, *nodes)
        self.history.add(
            Attempt(
                client=key,
                conversation=conversation,
                kind="message",
                key=key,
                started=started,
                ended=time.monotonic(),
                outcome="duplicate" if answer["duplicate"] else "accepted",
                seq=answer["seq"],
            )
        )
        return answer

    async def send_new(self, conversation: str, text: str, *nodes: NodeProcess) -> dict[str, Any]:
        """The first message of a conversation, which creates it."""
        await self.create(conversation, *nodes)
        return await self.send(conversation, text, *nodes)

    async def post(self, path: str, body: dict[str, Any], *nodes: NodeProcess) -> dict[str, Any]:
        """POST to whoever answers; outages and departing nodes cost a retry, anything else is an error."""
        deadline = time.monotonic() + PATIENCE_S
        for node in itertools.cycle(nodes or list(self.nodes)):
            assert time.monotonic() < deadline, f"nobody answered POST {path}"
            if not node.running or node.frozen:
                await asyncio.sleep(0.02)
                continue
            try:
                reply = await self.http.post(f"{node.url}{path}", json=body)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if reply.status_code in (429, 503):
                await asyncio.sleep(0.05)
                continue
            assert reply.status_code < 300, f"{path}: {reply.status_code} {reply.text}"
            return reply.json()
        raise AssertionError("no nodes")

    async def get(self, path: str, node: NodeProcess) -> Any:
        reply = await self.http.get(f"{node.url}{path}")
        assert reply.status_code == 200, f"{path}: {reply.status_code} {reply.text}"
        return reply.json()

    async def events(self, conversation: str) -> list[Event]:
        """The journal, from the file itself."""
        async with open_store(self.store_url) as store:
            found: list[Event] = []
            while True:
                reading = await store.read(conversation, len(found))
                if not getattr(reading, "events", ()):
                    return found
                found.extend(reading.events)

    async def until(self, what: Callable[[], Any], describe: str) -> Any:
        """Poll until `what` (a coroutine function) gives something true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = await what()
            if found:
                return found
            assert time.monotonic() < deadline, f"waited in vain for {describe}"
            await asyncio.sleep(0.03)

    async def event(self, conversation: str, kind: str, *, after: int = 0, count: int = 1) -> Event:
        """The `count`-th event of a kind behind `after`, as soon as it stands in the journal."""

        async def look() -> Event | None:
            found = [e for e in await self.events(conversation) if e.kind == kind and e.seq > after]
            return found[count - 1] if len(found) >= count else None

        return await self.until(look, f"{count} × {kind} in {conversation}")

    async def answered(self, conversation: str, sent: dict[str, Any]) -> Event:
        """The end of the very turn that took the message."""

        async def look() -> Event | None:
            events = await self.events(conversation)
            return next((e for e in events if e.kind in TURN_ENDS and sent["seq"] in e.body["commands"]), None)

        return await self.until(look, f"the end of the turn on {sent['seq']} in {conversation}")

    async def quiescent(self, conversations: set[str] | None = None) -> None:
        """Everything that was accepted is settled."""
        async with open_store(self.store_url) as store:
            ids = sorted(self.conversations if conversations is None else conversations)

            async def rest() -> bool:
                return all(r is not None and r.unsettled == 0 and not r.wanted for r in await store.records(ids))

            await self.until(rest, f"rest in {ids}")

    # --- the judgement ----------------------------------------------------------------------------------------------

    def effects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.effects_file.read_text().splitlines() if line]

    async def judge(self) -> None:
        """Every promise, read from the journals and from the file of side effects."""
        async with open_store(self.store_url) as store:
            for conversation in sorted(self.conversations):
                [record] = await store.records([conversation])
                assert record is not None
                self.history.add(
                    Journal(
                        conversation=conversation,
                        events=tuple(await self.events(conversation)),
                        epoch=record.epoch,
                        owner=record.owner and record.owner.incarnation,
                        wanted=record.wanted,
                        stopped=record.stopped,
                        failed=record.failed,
                    )
                )
        for effect in self.effects():
            if effect["tool"] == "work":
                call = effect["key"].rpartition("/")[2]
                self.history.add(
                    Effect(
                        conversation=effect["conversation"],
                        call=call,
                        key=effect["key"],
                        epoch=0,
                        process=str(effect["pid"]),
                        at=0.0,
                    )
                )
        violations = [v for v in checker.check(self.history) if not _about_unrecorded(v)]
        assert not violations, "\n".join(str(v) for v in violations)
        doubled = {k: n for k, n in Counter(e["key"] for e in self.effects() if e["tool"] == "work").items() if n > 1}
        assert not doubled, f"not idempotent, and ran more than once: {doubled}"


def _about_unrecorded(violation: checker.Violation) -> bool:
    """Only the calls named `work` leave traces of the kind that the checker counts."""
    return "finished and never ran" in violation.what and "'work'" not in " ".join(violation.evidence)


@asynccontextmanager
async def world(folder: Path, **how: Any) -> AsyncIterator[World]:
    one = World(folder, **how)
    with one.nodes:
        try:
            yield one
        finally:
            await one.http.aclose()
