"""The reference: every operation of the port, in the memory of one process. For tests and simulation.

What is stored lives in a :class:`Disk`; every store made on the same disk sees the same conversations, from any
thread. It keeps its whole contract but one: nothing survives the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, final

from tenure.abc import (
    About,
    Alive,
    Amended,
    Append,
    AppendResult,
    Buried,
    Claim,
    Claimed,
    Dead,
    Death,
    Deleted,
    Fenced,
    Filters,
    Finding,
    Granted,
    Hint,
    Limits,
    Load,
    NodeRecord,
    Page,
    Paper,
    Reading,
    Refusal,
    Refused,
    Release,
    ReleaseResult,
    Sealed,
    Sent,
    Snapshot,
    Stale,
    Store,
    Submit,
    Submitted,
    Topic,
    Unknown,
    Wanted,
    risky,
)
from tenure.clock import Clock, SystemClock
from tenure.journal import Event, JsonObject, digest
from tenure.lease import Epoch, IncarnationId, Lease
from tenure.stores import rules
from tenure.stores.rules import Row, Step

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Sequence

    from tenure.conversation import Record


@final
@dataclass(slots=True)
class _Node:
    about: About
    load: Load
    ttl_s: float
    expires: float
    beat: int = 0
    nonce: str = ""
    death: Death | None = None

    @property
    def dead(self) -> bool:
        return self.death is not None


@final
@dataclass(slots=True)
class _Conversation:
    created_no: int
    row: Row
    events: list[Event] = field(default_factory=list[Event])
    keys: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    snapshot: Snapshot | None = None
    vault: dict[str, Sealed] = field(default_factory=dict[str, Sealed])
    refusals: deque[Refusal] = field(default_factory=lambda: deque[Refusal](maxlen=100))

    def copy(self) -> _Conversation:
        return replace(
            self,
            events=list(self.events),
            keys=dict(self.keys),
            vault=dict(self.vault),
            refusals=deque(self.refusals, self.refusals.maxlen),
        )


@final
@dataclass(slots=True)
class Follower:
    """One who follows some topics."""

    topics: frozenset[Topic]
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Hint | None]
    """What is to be told; null is the end of the stream."""

    def hand(self, hint: Hint) -> None:
        if self.queue.full():
            self.queue.get_nowait()
            hint = replace(hint, lapsed=True)
        self.queue.put_nowait(hint)

    def end(self) -> None:
        if self.queue.full():
            self.queue.get_nowait()
        self.queue.put_nowait(None)

    async def hints(self) -> AsyncIterator[Hint]:
        """What it is told, until :meth:`end`."""
        while (hint := await self.queue.get()) is not None:
            yield hint


@final
class Followers:
    """Who is told of what, each on the event loop on which it waits."""

    def __init__(self) -> None:
        self._all: list[Follower] = []

    def __len__(self) -> int:
        return len(self._all)

    def tell(
        self,
        topics: Iterable[Topic],
        conversation: str | None = None,
        head: int | None = None,
        delta: JsonObject | None = None,
    ) -> None:
        """A hint for everybody who follows one of these. From any thread."""
        for topic in topics:
            hint = Hint(topic, conversation, head, delta)
            for follower in tuple(self._all):
                if topic in follower.topics:
                    follower.loop.call_soon_threadsafe(follower.hand, hint)

    @contextmanager
    def follow(self, topics: Sequence[Topic]) -> Generator[Follower]:
        """From here on it is told."""
        follower = Follower(frozenset(topics), asyncio.get_running_loop(), asyncio.Queue(1000))
        self._all.append(follower)
        try:
            yield follower
        finally:
            self._all.remove(follower)


@final
@dataclass
class Disk:
    """What several memory stores share: their contents, and one lock around each atomic step."""

    nodes: dict[IncarnationId, _Node] = field(default_factory=dict[IncarnationId, _Node])
    conversations: dict[str, _Conversation] = field(default_factory=dict[str, _Conversation])
    papers: dict[tuple[str, str], Paper] = field(default_factory=dict[tuple[str, str], Paper])
    followers: Followers = field(default_factory=Followers)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def copy(self) -> Disk:
        """The contents at this moment, on a disk of their own: cheap, and nobody follows it."""
        return Disk(
            nodes={name: replace(node) for name, node in self.nodes.items()},
            conversations={name: one.copy() for name, one in self.conversations.items()},
            papers=dict(self.papers),
        )


@final
class MemoryStore(Store):
    """A store in memory. `disk` is what it shares with others; `clock` its own idea of time (the store's clock)."""

    def __init__(self, disk: Disk | None = None, clock: Clock | None = None, limits: Limits | None = None) -> None:
        self.url = None
        self.disk = disk or Disk()
        self.clock = clock or SystemClock()
        self.limits = limits or Limits()
        self._following: list[Follower] = []

    async def examine(self) -> Sequence[Finding]:
        what = "it lives in one process, and ends with it"
        return [risky("persistence", what, "nothing that is accepted outlives a restart", "use it for tests only")]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for follower in self._following:
            follower.end()

    def sibling(self) -> MemoryStore:
        return MemoryStore(self.disk, self.clock, self.limits)

    def _now(self) -> float:
        return self.clock.boottime().boot_s

    # nodes

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        with self.disk.lock:
            if incarnation in self.disk.nodes:
                return Refused("registered-before")
            self.disk.nodes[incarnation] = _Node(about, Load(), ttl_s, self._now() + ttl_s)
            return Granted(0)

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        with self.disk.lock:
            node = self.disk.nodes.get(incarnation)
            now = self._now()
            if node is None or node.dead or now >= node.expires:
                return Dead()
            if beat == node.beat:
                node.beat, node.nonce = beat + 1, nonce
            elif not (beat == node.beat - 1 and nonce == node.nonce):
                return Dead()
            node.expires, node.ttl_s, node.load = now + ttl_s, ttl_s, load
            return Granted(node.beat)

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        with self.disk.lock:
            node = self.disk.nodes.get(incarnation)
            if node is None:
                return Alive(float("inf"))
            if node.dead:
                return Buried(node.death)
            now = self._now()
            node.expires = min(node.expires, now + node.ttl_s)
            if why is Death.EXPIRED and now < node.expires:
                return Alive(node.expires - now)
            node.death = why
            self.disk.followers.tell([Topic(Topic.WANTED), Topic(Topic.NODE, incarnation)])
            return Buried(why)

    async def nodes(self) -> list[NodeRecord]:
        with self.disk.lock:
            named = {c.row.record.owner.incarnation for c in self.disk.conversations.values() if c.row.record.owner}
            now = self._now()
            return [
                NodeRecord(i, n.about, n.load, n.beat, n.expires - now, n.dead)
                for i, n in self.disk.nodes.items()
                if not n.dead or i in named
            ]

    # conversations

    def _row(self, conversation: str) -> Row | None:
        found = self.disk.conversations.get(conversation)
        return found.row if found else None

    def _keep(self, conversation: str, step: Step[Any], refused_as: str = "") -> None:
        found = self.disk.conversations.get(conversation)
        if step.refused is not None and found is not None:
            found.refusals.appendleft(Refusal(self.clock.now(), step.refused, refused_as))
        if step.row is None:
            return
        if found is None:
            found = _Conversation(len(self.disk.conversations) + 1, step.row)
            found.refusals = deque(maxlen=self.limits.refusals)
            self.disk.conversations[conversation] = found
        found.row = step.row
        found.events.extend(step.events)
        for event in step.events:
            if event.key is not None:
                found.keys[event.key] = (event.seq, digest({"kind": event.kind, "body": event.body}))
        record = step.row.record
        topics = [Topic(Topic.CONVERSATION, conversation)]
        if record.wanted:
            topics.append(Topic(Topic.NODE, record.owner.incarnation) if record.owner else Topic(Topic.WANTED))
        self.disk.followers.tell(topics, conversation, record.head)

    async def submit_all(self, requests: Sequence[Submit]) -> list[Submitted]:
        return [self._submit(request) for request in requests]

    def _submit(self, request: Submit) -> Submitted:
        with self.disk.lock:
            found = self.disk.conversations.get(request.conversation)
            known = found.keys.get(request.command.key) if found and request.command else None
            step = rules.submit(
                found.row if found else None,
                request,
                known,
                now=self.clock.now(),
                store_now=self._now(),
                limits=self.limits,
            )
            self._keep(request.conversation, step)
            return step.result

    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        return [self._claim(request) for request in requests]

    def _dead(self, incarnation: IncarnationId) -> bool:
        node = self.disk.nodes.get(incarnation)
        return node is not None and node.dead

    def _claim(self, request: Claim) -> Claimed:
        with self.disk.lock:
            found = self.disk.conversations.get(request.conversation)
            owner = found.row.record.owner if found else None
            step = rules.claim(
                found.row if found else None,
                request,
                claimant_dead=request.incarnation not in self.disk.nodes or self._dead(request.incarnation),
                owner_dead=owner is not None and self._dead(owner.incarnation),
                journal_epoch=max((e.epoch or 0 for e in found.events), default=0) if found else 0,
                now=self.clock.now(),
                store_now=self._now(),
                limits=self.limits,
            )
            self._keep(request.conversation, step)
            return step.result

    async def append_all(self, requests: Sequence[Append]) -> list[AppendResult]:
        for request in requests:
            self.limits.insist(request)
        return [self._append(request) for request in requests]

    def _append(self, request: Append) -> AppendResult:
        with self.disk.lock:
            conversation = request.lease.conversation
            step = rules.append(
                self._row(conversation), request, now=self.clock.now(), store_now=self._now(), limits=self.limits
            )
            self._keep(conversation, step, "append")
            if step.row is not None:
                self._keep_snapshot(conversation, request.snapshot)
            return step.result

    def _keep_snapshot(self, conversation: str, new: Snapshot | None) -> None:
        if new is None:
            return
        found = self.disk.conversations[conversation]
        old = found.snapshot or Snapshot(0)
        found.snapshot = Snapshot(
            old.seq if new.fold is None else new.seq,
            old.fold if new.fold is None else new.fold,
            old.loop if new.loop is None else new.loop,
        )

    async def release_all(self, requests: Sequence[Release]) -> list[ReleaseResult]:
        for request in requests:
            self.limits.insist(request.batch)
        return [self._release(request) for request in requests]

    def _release(self, request: Release) -> ReleaseResult:
        with self.disk.lock:
            conversation = request.batch.lease.conversation
            step = rules.release(
                self._row(conversation), request, now=self.clock.now(), store_now=self._now(), limits=self.limits
            )
            self._keep(conversation, step, "release")
            if step.row is not None:
                self._keep_snapshot(conversation, request.batch.snapshot)
            return step.result

    async def delete(self, conversation: str, expected_epoch: Epoch, by: str) -> Deleted | Stale | Unknown:
        with self.disk.lock:
            found = self.disk.conversations.get(conversation)
            if found is None:
                return Unknown()
            step = rules.delete(found.row, expected_epoch, now=self.clock.now(), store_now=self._now())
            if step.row is not None:
                found.events.clear()
                found.keys.clear()
                found.vault.clear()
                found.snapshot = None
                self._keep(conversation, step)
            return step.result

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        with self.disk.lock:
            step = rules.amend(self._row(conversation), version, changes, now=self.clock.now(), store_now=self._now())
            self._keep(conversation, step)
            return step.result

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        with self.disk.lock:
            now = self._now()
            found: list[Wanted] = []
            for name in sorted(self.disk.conversations):
                row = self.disk.conversations[name].row
                record, owner = row.record, row.record.owner
                if cursor is not None and name <= cursor:
                    continue
                if not record.wanted or record.deleted or record.agent not in agents:
                    continue
                if row.not_before is not None and row.not_before > now:
                    continue
                if owner is None or owner.incarnation == me or self._dead(owner.incarnation):
                    incarnation = owner.incarnation if owner else None
                    found.append(Wanted(name, record.epoch, incarnation, record.token, record.agent))
                if len(found) == limit:
                    return Page(tuple(found), name)
            return Page(tuple(found), None)

    async def read(
        self, conversation: str, after: int = 0, limit: int = 1000, *, kinds: Sequence[str] = (), snapshot: bool = False
    ) -> Reading | Deleted | Unknown:
        with self.disk.lock:
            found = self.disk.conversations.get(conversation)
            if found is None:
                return Unknown()
            if found.row.record.deleted:
                return Deleted(found.row.record.epoch)
            start = found.snapshot if snapshot else None
            if start is not None and start.fold is not None and start.seq > after:
                after = start.seq
            events = (e for e in found.events[after:] if not kinds or e.kind in kinds)
            some = tuple(e for _, e in zip(range(min(limit, self.limits.page)), events, strict=False))
            return Reading(some, rules.shown(found.row, self._now()), start)

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        with self.disk.lock:
            rows = [self._row(c) for c in conversations]
            return [row and rules.shown(row, self._now()) for row in rows]

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        with self.disk.lock:
            after = rules.list_place(cursor)
            found: list[Record] = []
            last = after
            for one in self.disk.conversations.values():
                if one.created_no <= after:
                    continue
                if len(found) == limit:
                    return Page(tuple(found), str(last))
                last = one.created_no
                if rules.listed(one.row.record, filters):
                    found.append(rules.shown(one.row, self._now()))
            return Page(tuple(found), None)

    # hints and deltas

    @asynccontextmanager
    async def follow(self, topics: Sequence[Topic]) -> AsyncGenerator[AsyncIterator[Hint]]:
        with self.disk.followers.follow(topics) as follower:
            self._following.append(follower)
            try:
                yield follower.hints()
            finally:
                self._following.remove(follower)

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        with self.disk.lock:
            row = self._row(lease.conversation)
            if row is None or not rules.holds(row, lease):
                if row is not None:
                    self._keep(lease.conversation, Step(None, refused=lease), "publish")
                return Fenced(row and row.record)
            self.disk.followers.tell([Topic(Topic.CONVERSATION, lease.conversation)], lease.conversation, delta=delta)
            return Sent()

    # the vault, the papers, the refusals

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        with self.disk.lock:
            found = self.disk.conversations.get(conversation)
            if found is None:
                return Unknown()
            if found.row.record.deleted:
                return Deleted(found.row.record.epoch)
            old = found.vault.get(name)
            if (old.version if old else 0) != version:
                return Stale(found.row.record)
            found.vault[name] = Sealed(name, ciphertext, version + 1)
            return found.vault[name]

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        found = self.disk.conversations.get(conversation)
        return found.vault.get(name) if found else None

    async def names(self, conversation: str) -> Sequence[Sealed]:
        found = self.disk.conversations.get(conversation)
        return [found.vault[name] for name in sorted(found.vault)] if found else []

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        with self.disk.lock:
            found = self.disk.conversations.get(conversation)
            old = found.vault.get(name) if found else None
            if found is not None and old is not None and old.version == version:
                del found.vault[name]
            return found is None or name not in found.vault

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        with self.disk.lock:
            old = self.disk.papers.get((kind, id))
            if (old.version if old else 0) != version:
                return None
            paper = self.disk.papers[kind, id] = Paper(kind, id, document, version + 1)
            if kind == "request":
                self.disk.followers.tell([Topic(Topic.NODE, id.partition("/")[0])])
            return paper

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        return self.disk.papers.get((kind, id))

    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        with self.disk.lock:
            found = sorted(key for key in self.disk.papers if key[0] == kind and key[1].startswith(prefix))
            return [self.disk.papers[key] for key in found[:limit]]

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        with self.disk.lock:
            old = self.disk.papers.get((kind, id))
            if old is not None and old.version == version:
                del self.disk.papers[kind, id]
            return (kind, id) not in self.disk.papers

    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        found = self.disk.conversations.get(conversation)
        return list(found.refusals)[:limit] if found else []
