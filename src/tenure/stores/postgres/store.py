"""The port on PostgreSQL: what each operation is, and where it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from tenure.abc import FenceQuery, Limits, Store
from tenure.errors import StoreUnavailableError
from tenure.facts import StatementsSlow, StoreWeakens, to_log
from tenure.stores.postgres.address import parse_url
from tenure.stores.postgres.examination import examined
from tenure.stores.postgres.fitness import examine
from tenure.stores.postgres.hints import Follower, Hints
from tenure.stores.postgres.lanes import Lanes, Links, everybody, same_row
from tenure.stores.postgres.link import Link
from tenure.stores.postgres.reading import Reads
from tenure.stores.postgres.registry import Registry
from tenure.stores.postgres.schema import prepare, search_path
from tenure.stores.postgres.text import stored
from tenure.stores.postgres.writing import Writes, composer

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


SWIFT, PATIENT, READERS, TELLERS, LISTENERS = 2, 2, 2, 1, 1
"""What goes on at once in one store object, a connection each at most; what comes one at a time needs one or two."""
READS_AT_ONCE = 10

FENCE = """
SELECT 1 FROM "{schema}".conversations WHERE id = %s AND NOT deleted AND owner = %s AND epoch = %s AND token = %s FOR SHARE
"""
"""For transactions of other people's, whose search path is their own: `append` judges by the same comparison."""


@final
class PostgresStore(Store):
    """A store on the PostgreSQL that the URL names; see :mod:`tenure.stores.postgres.address` for its grammar.

    `clock` replaces the server's own time, for tests.

    :raises InvalidInputError: the URL names no server, or has a part that nobody knows.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, limits: Limits | None = None) -> None:
        self._url = url
        self.address = parse_url(url)
        self.limits = limits or Limits()
        self.weakened: tuple[str, ...] = ()
        """Which promises the server's settings weaken, and what to set; known once it is open."""
        self._clock = clock
        self._is_sibling = False
        self._opened: _Opened | None = None

    @property
    def url(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - read only is meant
        """How another process opens the same store. May hold a password: never print it."""
        return self._url

    def __repr__(self) -> str:
        return f"PostgresStore({self.address})"

    def sibling(self) -> PostgresStore:
        other = PostgresStore(self.url, clock=self._clock, limits=self.limits)
        other._is_sibling = True
        return other

    @property
    def under_way(self) -> int:
        return 0 if self._opened is None else sum(lanes.under_way for lanes in self._opened.lanes)

    async def examine(self) -> Sequence[Finding]:
        link = await self._connect()
        try:
            return await examined(link, self.address)
        finally:
            await link.close()

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this store is open already; sibling() makes another way to it")
        link = await self._connect()
        try:
            self.weakened = await examine(link, self.address)
            await prepare(link, self.address)
        except BaseException:
            await link.close()
            raise
        self._opened = self._put_together(link)
        for sentence in () if self._is_sibling else self.weakened:
            to_log(StoreWeakens(str(self.address), sentence))
        return self

    async def _connect(self) -> Link:
        return await Link.connect(self.address, search_path(self.address.schema))

    async def _connect_to_read(self) -> Link:
        """Reading locks nothing, so it may take as long as its caller waits."""
        path = search_path(self.address.schema)
        return await Link.connect(self.address, path, statement_s=self.address.timeout_s)

    def _put_together(self, link: Link) -> _Opened:
        channel = f"tenure:{self.address.schema}"
        compose = composer(self._given, self.limits, channel)
        writing, reading = Links(self._connect, link), Links(self._connect_to_read)
        patient = Lanes("patient", PATIENT, writing, compose, same_row)
        swift = Lanes("swift", SWIFT, writing, compose, everybody, overflow=patient)
        tellers = Lanes("tell", TELLERS, writing, compose, everybody)
        readers = Lanes("read", READERS, reading, compose, everybody, most=READS_AT_ONCE)
        hints = Hints(self._connect, tellers, channel, self.address.timeout_s)
        return _Opened(
            (swift, patient, readers, tellers),
            (writing, reading),
            hints,
            Writes(swift, patient, tellers, hints, limits=self.limits, clock=self._given),
            Reads(readers, limits=self.limits, clock=self._given),
            Registry(patient, hints, self._given),
        )

    async def __aexit__(self, *exc: object) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.hints.close()
            for lanes in opened.lanes:
                await lanes.close()
            for links in opened.links:
                await links.close()

    def _given(self) -> list[float] | None:
        """A test's clock as the functions take it; null where the server's own counts."""
        return None if self._clock is None else [self._clock.boottime().boot_s, self._clock.now().unix_s]

    @property
    def _parts(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailableError(f"the store at {self.address} is not open; use it with 'async with'")
        return self._opened

    # nodes

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        if self.address.statement_s >= ttl_s / 2:
            to_log(StatementsSlow(self.address.statement_s, ttl_s))
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
        return await self._parts.writes.each(self._parts.writes.claim, requests)

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
        return await self._parts.reads.wanted(me, agents, cursor, limit)

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
        return await self._parts.registry.put_paper(kind, id, document, version)

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        return await self._parts.reads.get_paper(kind, id)

    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        return await self._parts.reads.list_papers(kind, prefix, limit)

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        return await self._parts.registry.remove_paper(kind, id, version)

    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        return await self._parts.reads.refusals(conversation, limit)

    def fence_query(self, lease: Lease) -> FenceQuery:
        """For a transaction of any driver in the same database: it locks the conversation's row, which a claim waits for
        and which waits for a claim under way. At *repeatable read* and above it fails as a conflict instead, if there was
        one since the snapshot. Its role needs ``SELECT`` on the table, and ``UPDATE`` on one column, for the lock."""
        sql = FENCE.strip().format(schema=self.address.schema)
        return FenceQuery(lease, sql, (stored(lease.conversation), lease.incarnation, lease.epoch, lease.token))


@final
@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists while the store is open."""

    lanes: tuple[Lanes, ...]
    links: tuple[Links, ...]
    hints: Hints
    writes: Writes
    reads: Reads
    registry: Registry
