"""Where the demo plays: nodes as processes on one store, clients that know no node by heart, and what was seen."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import httpx

from tenure.cli.demo.screen import DRAIN_S, TTL_S, Screen
from tenure.cli.demo.verdict import Fault
from tenure.journal import Event
from tenure.testing.history import Attempt, History, Look, Start, Unread
from tenure.testing.processes import NodeProcess, NodeProcesses

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


HTTP_TIMEOUT_S = 3.0
"""Past it a node counts as frozen, and the next one is asked, with the same key."""
PATIENCE_S = 60.0
"""How long the demo waits for anything before it goes on, and says so."""
STEPS = 4
STEP_S = 0.3


@final
@dataclass(slots=True)
class Stage:
    """Everything that the scenes share."""

    store: str
    agents: tuple[str, ...]
    folder: Path
    nodes: NodeProcesses
    http: httpx.AsyncClient
    screen: Screen
    history: History = field(default_factory=History)
    faults: list[Fault] = field(default_factory=list[Fault])
    rng: random.Random = field(default_factory=random.Random)
    broken: list[str] = field(default_factory=list[str])
    """What no journal can show: a node that did not leave as it should, a wait in vain."""
    storm_ended: float = 0.0

    @property
    def scripted(self) -> bool:
        """The demo's own agent, which leaves a file of side effects."""
        return self.agents == ("scripted",)

    @property
    def effects_file(self) -> Path:
        return self.folder / "effects.jsonl"

    @property
    def workspaces(self) -> Path:
        return self.folder / "runtimes"

    def build(self, number: int) -> None:
        """The nodes, not yet started."""
        options = ["--ttl-s", f"{TTL_S:g}", "--drain-s", f"{DRAIN_S:g}", "--sweep-s", "0.5"]
        options += ["--workspaces", str(self.workspaces)]
        for place in range(1, number + 1):
            self.nodes.add(
                NodeProcess(f"n{place}", store=self.store, folder=self.folder, agents=self.agents, options=options)
            )
            self.screen.nodes[f"n{place}"] = "starting"

    async def start(self, node: NodeProcess) -> None:
        """Start a node (again) and wait until it is ready."""
        self.screen.nodes[node.name] = "starting"
        await node.start()
        self.screen.nodes[node.name] = "up"

    def reachable(self) -> list[NodeProcess]:
        """Nodes in any order. A client does not know which of them live; it finds out."""
        nodes = list(self.nodes)
        self.rng.shuffle(nodes)
        return nodes

    # --- asking -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        nodes: Sequence[NodeProcess],
        body: dict[str, Any] | None = None,
        timeout_s: float = HTTP_TIMEOUT_S,
    ) -> httpx.Response:
        """One request, repeated unchanged at one of the nodes after the other until somebody answers.

        :raises TimeoutError: nobody did.
        """
        async with asyncio.timeout(PATIENCE_S):
            for node in itertools.cycle(nodes):
                try:
                    reply = await self.http.request(method, f"{node.url}{path}", json=body, timeout=timeout_s)
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
                    continue
                if reply.status_code not in (429, 503):
                    return reply
                await asyncio.sleep(0.05)
        raise AssertionError("there is at least one node")

    async def create(self, node: NodeProcess, conversation: str, settings: dict[str, Any] | None = None) -> None:
        """Create it through this node; whoever comes second finds it there."""
        if settings is None:
            settings = {"effects": str(self.effects_file)} if self.scripted else {}
        body = {"id": conversation, "settings": settings}
        reply = await self.ask("POST", "/conversations", [node], body, PATIENCE_S)
        if reply.status_code not in (200, 201):
            self.broken.append(f"{conversation} could not be created through {node.name}: {reply.text}")

    async def start_loop(self, node: NodeProcess, conversation: str, *, here: bool) -> None:
        """Ask this node to run the conversation (here, or wherever), and note what it says."""
        began = time.time()
        path = f"/conversations/{conversation}/start{'?here=true' if here else ''}"
        reply = await self.ask("POST", path, [node], timeout_s=PATIENCE_S)
        told: dict[str, Any] = reply.json()
        owner: dict[str, Any] = told.get("owner") or {}
        outcome = "no"
        if reply.status_code == 200 and owner:
            outcome = "here" if told["here"] else "elsewhere"
        elif reply.status_code == 409 and owner:
            outcome = "elsewhere"
        elif reply.status_code >= 300:
            self.broken.append(f"start of {conversation} through {node.name}: {reply.status_code} {reply.text}")
        epoch: int | None = told.get("epoch", owner.get("epoch"))
        self.history.add(Start(conversation, node.url, began, time.time(), outcome, epoch, owner.get("incarnation")))

    async def send(
        self, conversation: str, number: int, nodes: Sequence[NodeProcess] = (), body: dict[str, Any] | None = None
    ) -> int:
        """A message under a key of its own, at any node, with that key again until it is accepted; its seq."""
        key = f"{conversation}-m{number}"
        body = {"key": key} | (body or self._work(number))
        began = time.time()
        reply = await self.ask("POST", f"/conversations/{conversation}/messages", nodes or self.reachable(), body)
        told = reply.json()
        accepted = reply.status_code in (200, 202)
        outcome = "refused" if not accepted else "duplicate" if told["duplicate"] else "accepted"
        self.history.add(
            Attempt(
                "demo", conversation, "message", key, began, time.time(), outcome, told.get("seq"), reply.reason_phrase
            )
        )
        if not accepted:
            self.broken.append(f"message {key} was refused: {reply.text}")
        return int(told.get("seq", 0))

    async def journal(self, conversation: str, node: NodeProcess) -> list[Event]:
        """The whole journal as this node tells it."""
        events: list[Event] = []
        while True:
            path = f"/conversations/{conversation}/events?limit=1000&after={len(events)}"
            reply = await self.ask("GET", path, [node], timeout_s=PATIENCE_S)
            if reply.status_code != 200:
                self.history.add(Unread(conversation, node.url, time.time(), reply.text))
                return events
            page = reply.json()
            events += [Event.from_json(shape) for shape in page["events"]]
            if len(events) >= page["last_seq"] or not page["events"]:
                shown = tuple((int(e.seq), e.epoch, e.kind) for e in events)
                self.history.add(Look(conversation, node.url, time.time(), shown))
                return events

    def _work(self, number: int) -> dict[str, Any]:
        """Work in the runtime, in steps long enough to be killed in; another agent than ours gets words."""
        text = f"message {number}"
        if not self.scripted:
            return {"text": text}
        work = f"sleep {STEP_S:g}; echo {text} >> work.txt; wc -l < work.txt"
        steps = [*({"run": work} for _ in range(STEPS)), {"reply": "{text}: work.txt has {output} lines"}]
        return {"text": text, "content": {"script": steps}}
