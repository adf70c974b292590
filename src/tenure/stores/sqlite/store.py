"""The port on one SQLite file: what each operation is, and where it runs.

Writes go to one thread that groups them into transactions, reads to another, hints come from a third. Nothing here
blocks the event loop, and nothing is shared with another store object, not even with a sibling.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Self, final
from urllib.parse import quote

from tenure.abc import FenceQuery, Limits, Store
from tenure.errors import InvalidInputError, StoreUnavailableError
from tenure.stores.sqlite import registry, statements
from tenure.stores.sqlite.boot import HostClock
from tenure.stores.sqlite.busy import gate_of
from tenure.stores.sqlite.examination import examined
from tenure.stores.sqlite.file import StoreFile, parse_url
from tenure.stores.sqlite.hints import Follower, Hints
from tenure.stores.sqlite.lane import GROUP, Lane
from tenure.stores.sqlite.transaction import Transaction
from tenure.stores.sqlite.view import View

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

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

TIMEOUT_S = 10.0
"""How long an operation waits for the file's lock, all tries together: 160 writers at once need a few seconds."""


@final
class SqliteStore(Store):
    """A store in the SQLite file that the URL names: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    ``?timeout_s=2`` (or the argument) bounds how long an operation waits for the lock that another process holds; after
    that it raises :class:`~tenure.errors.StoreUnavailableError`. `clock` and `boot` are the store's idea of time, for
    tests; by default the host's boot time and boot id.

    :raises InvalidInputError: the URL names no file, or has a parameter that we do not know.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        limits: Limits | None = None,
        timeout_s: float | None = None,
        boot: str | None = None,
    ) -> None:
        self.path, parameters = parse_url(url)
        self.limits = limits or Limits()
        self._clock = clock
        self._boot = boot
        self._timeout_s = _timeout(parameters) if timeout_s is None else timeout_s
        self._checkpoints = True
        self._opened: _Opened | None = None
        wait = "" if self._timeout_s == TIMEOUT_S else f"?timeout_s={self._timeout_s:g}"
        self.url: str | None = (
            f"sqlite:///{quote(os.fsencode(self.path))}{wait}"  # absolute: another process may run elsewhere
        )

    def sibling(self) -> SqliteStore:
        assert self.url is not None
        other = SqliteStore(self.url, clock=self._clock, limits=self.limits, boot=self._boot)
        other._checkpoints = False  # a heartbeat does not wait for the housekeeping of others
        return other

    @property
    def place(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - known once it is open
        """The file, as the kernel of this boot knows it: a copy is another file."""
        return self._parts.file.place

    def lies_at(self, place: str) -> bool:
        return self._parts.file.lies_at(place)

    @property
    def under_way(self) -> int:
        return 0 if self._opened is None else self._opened.writes.under_way + self._opened.views.under_way

    async def examine(self) -> Sequence[Finding]:
        return await asyncio.to_thread(examined, self.path)

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this store is open already; sibling() makes another way to it")
        self._opened = self._open()
        try:
            await self._opened.views.do(lambda _: None)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    def _open(self) -> _Opened:
        file = StoreFile(self.path, self._boot)
        hints = Hints(file)

        def transaction() -> Transaction:
            clock = self._clock or HostClock()
            return Transaction(file, clock, self.limits, checkpoints=self._checkpoints, on_commit=hints.nudge)

        def view() -> View:
            return View(file, self._clock or HostClock(), self.limits)

        return _Opened(
            file,
            Lane("write", transaction, self.path, self._timeout_s, gate_of(self.path)),
            Lane("read", view, self.path, self._timeout_s),
            hints,
        )

    async def __aexit__(self, *exc: object) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.hints.close()
            await opened.writes.close()
            await opened.views.close()

    @property
    def _parts(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailableError(f"the store {self.path} is not open; use it with 'async with'")
        return self._opened

    async def _write[R](self, job: Callable[[Transaction], R], *, durable: bool = True) -> R:
        return await self._parts.writes.do(job, durable=durable)

    async def _read[R](self, job: Callable[[View], R]) -> R:
        return await self._parts.views.do(job)

    async def _each[Q, R](self, decide: Callable[[Transaction, Q], R], requests: Sequence[Q]) -> list[R]:
        """A result per request, in order; a long list takes several transactions."""
        writes = self._parts.writes
        if len(requests) == 1:
            (request,) = requests
            return [await writes.do(lambda tx: decide(tx, request))]
        parts = [
            writes.do(lambda tx, some=some: [decide(tx, request) for request in some], weight=len(some))
            for some in batched(requests, GROUP)
        ]
        return [result for some in await asyncio.gather(*parts) for result in some]

    # nodes

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        return await self._write(lambda tx: registry.register(tx, incarnation, about, ttl_s))

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        return await self._write(
            lambda tx: registry.renew(tx, incarnation, beat, nonce, ttl_s, load),
            durable=False,  # a power cut ends the boot, and the boot ends the lease
        )

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        return await self._write(lambda tx: registry.bury(tx, incarnation, why))

    async def nodes(self) -> list[NodeRecord]:
        return await self._read(View.nodes)

    # conversations

    async def submit_all(self, requests: Sequence[Submit]) -> list[Submitted]:
        return await self._each(Transaction.submit, requests)

    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        return await self._each(Transaction.claim, requests)

    async def append_all(self, requests: Sequence[Append]) -> list[AppendResult]:
        for request in requests:
            self.limits.insist(request)
        return await self._each(Transaction.append, requests)

    async def release_all(self, requests: Sequence[Release]) -> list[ReleaseResult]:
        for request in requests:
            self.limits.insist(request.batch)
        return await self._each(Transaction.release, requests)

    async def delete(self, conversation: str, expected_epoch: Epoch, by: str) -> Deleted | Stale | Unknown:
        return await self._write(lambda tx: tx.delete(conversation, expected_epoch))

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        return await self._write(lambda tx: tx.amend(conversation, version, changes))

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        return await self._read(lambda view: view.wanted(me, agents, cursor, limit))

    async def read(
        self, conversation: str, after: int = 0, limit: int = 1000, *, kinds: Sequence[str] = (), snapshot: bool = False
    ) -> Reading | Deleted | Unknown:
        return await self._read(lambda view: view.read(conversation, after, limit, kinds, snapshot=snapshot))

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        return await self._read(lambda view: view.records(conversations))

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        return await self._read(lambda view: view.list(filters, cursor, limit))

    # hints and deltas

    @asynccontextmanager
    async def follow(self, topics: Sequence[Topic]) -> AsyncGenerator[AsyncIterator[Hint]]:
        hints, follower = self._parts.hints, Follower(topics)
        try:
            await hints.add(follower)
            yield follower
        finally:
            await hints.remove(follower)

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        return await self._write(lambda tx: tx.publish(lease, delta), durable=False)

    # the vault, the papers, the refusals

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        return await self._write(lambda tx: registry.seal(tx, conversation, name, ciphertext, version))

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        return await self._read(lambda view: view.unseal(conversation, name))

    async def names(self, conversation: str) -> Sequence[Sealed]:
        return await self._read(lambda view: view.names(conversation))

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        return await self._write(lambda tx: registry.forget(tx, conversation, name, version))

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        return await self._write(lambda tx: registry.put_paper(tx, kind, id, document, version))

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        return await self._read(lambda view: view.get_paper(kind, id))

    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        return await self._read(lambda view: view.list_papers(kind, prefix, limit))

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        return await self._write(lambda tx: registry.remove_paper(tx, kind, id, version))

    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        return await self._read(lambda view: view.refusals(conversation, limit))

    def fence_query(self, lease: Lease) -> FenceQuery:
        """For a transaction of another connection to the same file. It begins with ``BEGIN IMMEDIATE``: then nobody
        commits a claim before it ends. A deferred one fails as busy instead, if somebody did."""
        return FenceQuery(lease, statements.FENCE, (lease.conversation, lease.incarnation, lease.epoch, lease.token))


@final
@dataclass(frozen=True, slots=True)
class _Opened:
    """What exists while the store is open."""

    file: StoreFile
    writes: Lane[Transaction]
    views: Lane[View]
    hints: Hints


def _timeout(parameters: dict[str, str]) -> float:
    unknown = sorted(parameters.keys() - {"timeout_s"})
    if unknown:
        raise InvalidInputError("store", f"sqlite has no parameter {unknown[0]!r}", "leave it out; it knows timeout_s")
    try:
        timeout_s = float(parameters.get("timeout_s", TIMEOUT_S))
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s <= 3600:
        raise InvalidInputError("store", f"timeout_s={parameters['timeout_s']!r}", "give seconds between 0 and 3600")
    return timeout_s
