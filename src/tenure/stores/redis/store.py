"""The port on Redis: what each operation is, and where it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from tenure.abc import Limits, Store, Verdict
from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.facts import StoreWeakens, to_log
from tenure.stores.redis.address import parse_url
from tenure.stores.redis.examination import SCHEMA, examined, layout_finding
from tenure.stores.redis.fitness import examine
from tenure.stores.redis.hints import Follower, Hints
from tenure.stores.redis.keys import NODES, Keyspace
from tenure.stores.redis.reading import Reads
from tenure.stores.redis.registry import Registry
from tenure.stores.redis.replies import MICROSECONDS, MILLISECONDS
from tenure.stores.redis.servers import Lane, Servers
from tenure.stores.redis.sweep import Sweep
from tenure.stores.redis.writing import Writes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

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
        Stale,
        Submit,
        Submitted,
        Topic,
        Unknown,
        Wanted,
    )
    from tenure.clock import Clock
    from tenure.conversation import Record
    from tenure.journal import JsonObject
    from tenure.lease import Epoch, IncarnationId, Lease


PARTITIONS = 64


@final
class RedisStore(Store):
    """A store on the Redis or Valkey that the URL names; see :mod:`tenure.stores.redis.address` for its grammar.

    `clock` replaces the server's own time, for tests. `partitions` counts at the first use of a store only.

    :raises InvalidInputError: the URL names no server, or has a part that we do not know.
    """

    def __init__(
        self, url: str, *, clock: Clock | None = None, limits: Limits | None = None, partitions: int = PARTITIONS
    ) -> None:
        self._url = url
        self.address = parse_url(url)
        self.limits = limits or Limits()
        self.weakened: tuple[str, ...] = ()
        """Which promises the servers' settings weaken, and what to set; known once it is open."""
        self._clock = clock
        self._partitions = partitions
        self._is_sibling = False
        self._opened: _Opened | None = None

    @property
    def url(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - read only is meant
        """How another process opens the same store. May hold a password: never print it."""
        return self._url

    def __repr__(self) -> str:
        return f"RedisStore({self.address})"

    def sibling(self) -> RedisStore:
        other = RedisStore(self.url, clock=self._clock, limits=self.limits, partitions=self._partitions)
        other._is_sibling = True
        return other

    @property
    def under_way(self) -> int:
        return 0 if self._opened is None else self._opened.servers.under_way

    async def examine(self) -> Sequence[Finding]:
        servers = Servers(self.address)
        try:
            return await examined(servers)
        finally:
            await servers.close()

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this store is open already; sibling() makes another way to it")
        servers = Servers(self.address)
        try:
            self.weakened = await examine(servers)
            self._opened = self._put_together(servers, await self._keyspace(servers))
            servers.opened = True
        except BaseException:
            await servers.close()
            raise
        for sentence in () if self._is_sibling else self.weakened:
            to_log(StoreWeakens(str(self.address), sentence))
        return self

    async def _keyspace(self, servers: Servers) -> Keyspace:
        """The partitions are fixed by whoever uses the store first."""
        key = Keyspace(self.address.prefix, 1).store
        await servers.get(
            NODES, ("HSETNX", key, "partitions", self._partitions), ("HSETNX", key, "schema", SCHEMA), lane=Lane.WRITES
        )
        ((partitions, schema),) = await servers.get(NODES, ("HMGET", key, "partitions", "schema"), lane=Lane.WRITES)
        layout = layout_finding(str(self.address), int(schema), int(partitions))
        if layout.verdict is Verdict.BROKEN:
            raise StoreUnfitError(layout.sentence)
        return Keyspace(self.address.prefix, int(partitions))

    def _put_together(self, servers: Servers, keyspace: Keyspace) -> _Opened:
        # Channels are common to all databases of a server, keys are not.
        channel = f"{self.address.prefix}@{self.address.db}:"
        registry = Registry(servers, keyspace, channel, self._given)
        writes = Writes(servers, keyspace, registry, channel=channel, limits=self.limits, given=self._given)
        reads = Reads(servers, keyspace, registry, limits=self.limits, given=self._given, saw=writes.saw)
        return _Opened(
            servers,
            registry,
            writes,
            reads,
            Sweep(servers, keyspace, registry, self._given),
            Hints(servers, channel, self.address.timeout_s),
        )

    async def __aexit__(self, *exc: object) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.hints.close()
            await opened.servers.close()

    def _given(self) -> str:
        """A test's clock as the scripts take it; '' where the server's own counts."""
        if self._clock is None:
            return ""
        now, at = self._clock.boottime().boot_s * MICROSECONDS, self._clock.now().unix_s * MILLISECONDS
        return f"{round(now)} {round(at)}"

    @property
    def _parts(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailableError(f"the store at {self.address} is not open; use it with 'async with'")
        return self._opened

    # nodes

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        return await self._parts.registry.register(incarnation, about, ttl_s)

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        return await self._parts.registry.renew(incarnation, beat, nonce, ttl_s, load)

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        return await self._parts.registry.bury(incarnation, why)

    async def nodes(self) -> list[NodeRecord]:
        return await self._parts.registry.nodes()

    # conversations

    async def submit_all(self, requests: Sequence[Submit]) -> list[Submitted]:
        return await self._parts.writes.each(self._parts.writes.submit, requests)

    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        return await self._parts.writes.claim_all(requests)

    async def append_all(self, requests: Sequence[Append]) -> list[AppendResult]:
        for request in requests:
            self.limits.insist(request)
        return await self._parts.writes.each(self._parts.writes.append, requests)

    async def release_all(self, requests: Sequence[Release]) -> list[ReleaseResult]:
        for request in requests:
            self.limits.insist(request.batch)
        return await self._parts.writes.each(self._parts.writes.release, requests)

    async def submit(self, request: Submit) -> Submitted:
        return await self._parts.writes.submit(request)

    async def claim(self, request: Claim) -> Claimed:
        return await self._parts.writes.claim(request)

    async def append(self, request: Append) -> AppendResult:
        self.limits.insist(request)
        return await self._parts.writes.append(request)

    async def release(self, request: Release) -> ReleaseResult:
        self.limits.insist(request.batch)
        return await self._parts.writes.release(request)

    async def delete(self, conversation: str, expected_epoch: Epoch, by: str) -> Deleted | Stale | Unknown:
        return await self._parts.writes.delete(conversation, expected_epoch)

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        return await self._parts.writes.amend(conversation, version, changes)

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        return await self._parts.sweep.wanted(me, agents, cursor, limit)

    async def read(
        self, conversation: str, after: int = 0, limit: int = 1000, *, kinds: Sequence[str] = (), snapshot: bool = False
    ) -> Reading | Deleted | Unknown:
        return await self._parts.reads.read(conversation, after, limit, kinds, snapshot=snapshot)

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        return await self._parts.reads.records(conversations)

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        return await self._parts.reads.list(filters, cursor, limit)

    # hints and deltas

    @asynccontextmanager
    async def follow(self, topics: Sequence[Topic]) -> AsyncGenerator[AsyncIterator[Hint]]:
        hints, follower = self._parts.hints, Follower(topics)
        try:
            await hints.add(follower)
            yield follower.hints()
        finally:
            hints.remove(follower)

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        return await self._parts.writes.publish(lease, delta)

    # the vault, the papers, the refusals

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        return await self._parts.writes.seal(conversation, name, ciphertext, version)

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        return await self._parts.reads.unseal(conversation, name)

    async def names(self, conversation: str) -> Sequence[Sealed]:
        return await self._parts.reads.names(conversation)

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        return await self._parts.writes.forget(conversation, name, version)

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        return await self._parts.writes.put_paper(kind, id, document, version)

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        return await self._parts.reads.get_paper(kind, id)

    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        return await self._parts.reads.list_papers(kind, prefix, limit)

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        return await self._parts.writes.remove_paper(kind, id, version)

    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        return await self._parts.reads.refusals(conversation, limit)


@final
@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists while the store is open."""

    servers: Servers
    registry: Registry
    writes: Writes
    reads: Reads
    sweep: Sweep
    hints: Hints
