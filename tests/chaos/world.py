"""Real nodes on one store, clients that retry with the same key, and the judgement over what they left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from backings import BACKINGS, Backing
from chaos_clock import Steps

from tenure.abc import Store
from tenure.conversation import Record
from tenure.errors import StoreError
from tenure.journal import TURN_ENDS, Event
from tenure.stores import open_store
from tenure.testing import checker
from tenure.testing.history import Attempt, Effect, History, Journal
from tenure.testing.netns import Namespace
from tenure.testing.processes import NodeProcess, NodeProcesses, free_port
from tenure.testing.proxy import Proxy

NODESIDE = Path(__file__).parent / "nodeside"
PATIENCE_S = 60.0
"""How long anything may take on a noisy machine before it counts as never. Never the measure of a promise."""


PROBE_S, PROBES = 0.5, 20


class World:
    """A cluster of processes in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        backing: Backing,
        store: Store,
        *,
        ttl_s: float = 2.0,
        drain_s: float = 5.0,
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.backing = backing
        self.store = store
        """The judge's own way to the store."""
        self.ttl_s = ttl_s
        self.patience_s = PATIENCE_S
        self.effects_file = folder / "effects.jsonl"
        self.effects_file.touch()
        self.nodes = NodeProcesses()
        self.history = History()
        self.conversations: set[str] = set()
        self._options = ("--ttl-s", str(ttl_s), "--drain-s", str(drain_s), *options)
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self.http = httpx.AsyncClient(trust_env=False, timeout=10)
        self.fronts: dict[str, Proxy] = {}
        """The ways from clients to nodes that can fail: of those nodes that were given one."""
        self.asking: set[asyncio.Task[Any]] = set()

    def node(
        self, name: str, *, options: tuple[str, ...] = (), place: Namespace | None = None, **environ: str
    ) -> NodeProcess:
        """A node of this world, not yet started; in a network of its own, if it is given one."""
        path = os.pathsep.join(filter(None, [str(NODESIDE), os.environ.get("PYTHONPATH")]))
        port = free_port()
        seen = {
            "PYTHONPATH": path,
            "CHAOS_EFFECTS": str(self.effects_file),
            "CHAOS_CLOCK": str(self.clock_file(name)),
            "CHAOS_STORE": self.backing.url,
            "CHAOS_ADDRESS": f"http://{place.inside if place else '127.0.0.1'}:{port}",
        }
        where: dict[str, Any] = {"host": place.inside, "prefix": place.prefix} if place else {}
        store = self.backing.url_for(name)
        if place is not None:
            options = (*options, "--host", place.inside, "--insecure")
            store = store.replace("127.0.0.1", place.host)
        Steps(self.clock_file(name)).set()
        return self.nodes.add(
            NodeProcess(
                name,
                store=store,
                folder=self.folder,
                agents=["chaos_agent:agent"],
                options=[*self._options, *options],
                environ=seen | environ,
                cwd=NODESIDE,
                port=port,
                **where,
            )
        )

    def clock_file(self, name: str) -> Path:
        """Where a node's clocks are stepped: see :class:`chaos_clock.Steps`."""
        return self.folder / f"{name}.clock"

    async def parted_node(self, name: str, **how: Any) -> NodeProcess:
        """A node whose ways to its clients and to its store (where that is another process) can fail."""
        await self.backing.way(name)
        node = self.node(name, **how)
        self.fronts[name] = await self._stack.enter_async_context(Proxy(node.port))
        return node

    def url_of(self, node: NodeProcess) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.fronts[node.name].port}" if node.name in self.fronts else node.url

    async def close(self) -> None:
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)
        await self.http.aclose()
        await self._stack.aclose()

    # --- clients ----------------------------------------------------------------------------------------------------

    def key(self) -> str:
        return f"k{next(self._numbers)}"

    def fresh(self, prefix: str) -> str:
        """A conversation that does not exist yet."""
        return f"{prefix}-{next(self._numbers)}"

    def ask(self, what: Coroutine[Any, Any, Any]) -> None:
        """Let a client ask on its own; :meth:`answers` waits for all of them."""
        task = asyncio.create_task(what)
        self.asking.add(task)

    async def answers(self) -> None:
        """What was asked on its own has been answered."""
        asked, self.asking = self.asking, set()
        await asyncio.gather(*asked)

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
        deadline = time.monotonic() + self.patience_s
        for node in itertools.cycle(nodes or list(self.nodes)):
            assert time.monotonic() < deadline, f"nobody answered POST {path}"
            if not node.running or node.frozen:
                await asyncio.sleep(0.02)
                continue
            try:
                reply = await self.http.post(f"{self.url_of(node)}{path}", json=body)
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
        """The journal, from the store itself."""
        found: list[Event] = []
        while True:
            reading = await self.store.read(conversation, len(found))
            if not getattr(reading, "events", ()):
                return found
            found.extend(reading.events)

    async def freeze(self, node: NodeProcess) -> None:
        """SIGSTOP, while the store takes writes: one inside of a transaction of an embedded store stalls everybody
        (C15), which is not what a test means that asks for a frozen owner."""
        for _ in range(PROBES):
            node.freeze()
            with contextlib.suppress(TimeoutError, StoreError):
                async with asyncio.timeout(PROBE_S):
                    paper = await self.store.get_paper("chaos", "probe")
                    await self.store.put_paper("chaos", "probe", {}, 0 if paper is None else paper.version)
                    return
            node.thaw()
            await asyncio.sleep(0.05)
        raise AssertionError(f"{node.name} was inside of a transaction whenever it was looked at")

    async def until(self, what: Callable[[], Any], describe: str) -> Any:
        """Poll until `what` (a coroutine function) gives something true."""
        deadline = time.monotonic() + self.patience_s
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

    async def quiescent(self, conversations: set[str] | None = None) -> int:
        """Everything that was accepted is settled; how often that took a new ``start``.

        A conversation that has lost too many owners while it was started has failed for good (decision 0003): by
        design it rests, with its messages, until somebody asks again. Here somebody does.
        """
        ids = sorted(self.conversations if conversations is None else conversations)
        again = 0

        async def restless() -> list[tuple[str, Record | None]]:
            found = zip(ids, await self.records(ids), strict=True)
            return [(name, r) for name, r in found if r is None or r.unsettled or r.wanted or r.failed]

        async def rest() -> bool:
            nonlocal again
            left = await restless()
            for name in [name for name, record in left if record is not None and record.failed]:
                again += 1
                await self.post(f"/conversations/{name}/start?wait_s=0", {"key": self.key()})
            return not left

        try:
            await self.until(rest, "rest")
        except AssertionError as error:
            told = [await self.described(name) for name, _ in await restless()]
            raise AssertionError("\n".join([str(error), *told])) from None
        return again

    async def described(self, conversation: str) -> str:
        """What the store says of one conversation: its record, whether its owner lives, its last events."""
        [record] = await self.records([conversation])
        if record is None:
            return f"{conversation}: no record"
        living = {n.incarnation: n.expires_in_s for n in await self.store.nodes() if not n.dead}
        alive = "nobody" if record.owner is None else living.get(record.owner.incarnation, "dead")
        lines = [f"{conversation}: {record}", f"    owner expires in: {alive}"]
        lines += [
            f"    {e.seq} e{e.epoch} {e.kind} {e.turn or ''} {e.body}" for e in (await self.events(conversation))[-5:]
        ]
        return "\n".join(lines)

    async def records(self, ids: list[str]) -> list[Record | None]:
        """In portions that every store takes."""
        found: list[Record | None] = []
        for start in range(0, len(ids), 50):
            found += await self.store.records(ids[start : start + 50])
        return found

    # --- the judgement ----------------------------------------------------------------------------------------------

    def effects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.effects_file.read_text().splitlines() if line]

    async def judge(self) -> None:
        """Every promise, read from the journals and from the file of side effects."""
        await self.collect()
        violations = [str(v) for v in checker.check(self.history) if not _about_unrecorded(v)]
        assert not violations, "\n".join(violations + self.doubled())
        assert not self.doubled()

    async def collect(self) -> None:
        """Add to the history what stands in the store and in the file of side effects."""
        conversations = sorted(self.conversations)
        for conversation, record in zip(conversations, await self.records(conversations), strict=True):
            assert record is not None, f"{conversation} was created and is gone"
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
                conversation, call = effect["conversation"], effect["key"].rpartition("/")[2]
                process, at = effect["address"], effect["at"]
                self.history.add(Effect(conversation, call, effect["key"], effect["epoch"], process, at))

    def doubled(self) -> list[str]:
        """Calls that may run once and ran more often."""
        ran = Counter(e["key"] for e in self.effects() if e["tool"] == "work")
        return [f"not idempotent, and ran {n} times: {key}" for key, n in ran.items() if n > 1]


def _about_unrecorded(violation: checker.Violation) -> bool:
    """Only the calls named `work` leave traces of the kind that the checker counts."""
    return "finished and never ran" in violation.what and "'work'" not in " ".join(violation.evidence)


@asynccontextmanager
async def world(
    folder: Path, store: str, *, small_disk: bool = False, host: str = "", **how: Any
) -> AsyncIterator[World]:
    """A world on the store of this name."""
    backing = BACKINGS[store](folder, small_disk=small_disk, host=host)
    async with backing.up(), open_store(backing.url) as opened:
        one = World(folder, backing, opened, **how)
        with one.nodes:
            try:
                yield one
            finally:
                await one.close()
