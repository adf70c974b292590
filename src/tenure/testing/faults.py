"""A store behind a bad network: :class:`FaultyStore`.

What a store's client must live with, and each of it from one source of chance:

- a request takes its time, and so does its reply;
- a request is lost, or its reply is, and the caller cannot tell which: ``StoreUnavailableError`` after a time-out;
- a copy of a request stays under way and is executed long afterwards;
- the link is cut, both ways or one way only; the store itself stands still, and executes later what came meanwhile;
- hints are lost, late, or lapse;
- a fail-over takes the store back to an older copy of itself (:class:`~tenure.testing.backing.Replica`), which no store promises to survive
  unharmed: what it had acknowledged may be gone, yet two owners must still not write.

The store's side of a request runs in a context of its own: freezing or killing the caller does not touch what is
already under way. Works on any event loop; it is meant for :mod:`tenure.testing.simloop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from contextvars import Context
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
    Store,
    Submit,
    Submitted,
    Topic,
    Unknown,
    Wanted,
)
from tenure.errors import StoreUnavailableError
from tenure.testing.backing import at_once

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence

    from tenure.conversation import Record
    from tenure.journal import JsonObject
    from tenure.lease import Epoch, IncarnationId, Lease
    from tenure.testing.backing import Backing

type Observer = Callable[[str, tuple[Any, ...], Any], None]
"""Told, right after the atomic step, of each execution: the operation, its arguments, its result."""


@final
@dataclass(slots=True)
class Conditions:
    """How a link behaves while it is not cut. Chances lie between 0 and 1, times are pairs of least and most seconds."""

    delay_s: tuple[float, float] = (0.0005, 0.003)
    """One way."""
    back_s: tuple[float, float] | None = None
    """The way back, if it takes another time."""
    stall: float = 0.0
    """The chance that a request or reply takes `stall_s` instead."""
    stall_s: tuple[float, float] = (0.1, 2.0)
    lose_request: float = 0.0
    lose_reply: float = 0.0
    late_copy: float = 0.0
    """The chance that a request that changes something is executed once more, after `copy_after_s`."""
    copy_after_s: tuple[float, float] = (0.01, 8.0)
    lose_hint: float = 0.0
    timeout_s: float = 1.0
    """After this time without an answer the caller gets ``StoreUnavailableError``, as from a real client."""


@final
@dataclass(slots=True)
class Link:
    """The way from one process to the store: its conditions, and whether it is cut."""

    conditions: Conditions = field(default_factory=Conditions)
    requests_cut: bool = False
    replies_cut: bool = False

    def cut(self, *, requests: bool = True, replies: bool = True) -> None:
        """Cut the link; one way only if the other is false."""
        self.requests_cut, self.replies_cut = requests, replies

    def mend(self) -> None:
        """The link is whole again. What was lost stays lost."""
        self.requests_cut = self.replies_cut = False


@final
class FaultyStore(Store):
    """A store as one process sees it through its :class:`Link`.

    `host` runs its operations; without one, `inner` is a memory store, which never waits. `served_in` is the context in which the store's side runs (a simulated process of the store's own);
    `observer` hears of each execution, late copies included.
    """

    def __init__(
        self,
        inner: Store,
        rng: random.Random,
        link: Link | None = None,
        *,
        host: Backing | None = None,
        served_in: Context | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.inner = inner
        self._host = host
        self._shared = host is not None and host.shared
        self.link = link if link is not None else Link()
        self.url = None
        self.limits = inner.limits
        self._rng = rng
        self._served_in = served_in if served_in is not None else Context()
        self._observer = observer

    async def __aenter__(self) -> Self:
        if not self._shared:
            await self.inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._shared:
            await self.inner.__aexit__(*exc)

    def sibling(self) -> FaultyStore:
        """Another connection over the same link."""
        inner = self.inner if self._shared else self.inner.sibling()
        host, served_in, observer = self._host, self._served_in, self._observer
        return FaultyStore(inner, self._rng, self.link, host=host, served_in=served_in, observer=observer)

    # the wire

    async def _ask[R](
        self, operation: Callable[..., Coroutine[Any, Any, R]], *arguments: Any, changes: bool = True, **options: Any
    ) -> R:
        """Send a request and wait for its answer; :raises StoreUnavailableError: none came, the outcome is unknown."""
        loop = asyncio.get_running_loop()
        conditions, chance = self.link.conditions, self._rng.random
        answer: asyncio.Future[R] = loop.create_future()
        request = _Request(operation, arguments, options, answer)
        lost, copied = chance() < conditions.lose_request, chance() < conditions.late_copy
        there = self._delay_s()
        if not lost:
            loop.call_later(there, self._serve, request, context=self._served_in)
        if changes and copied:
            later = there + self._rng.uniform(*conditions.copy_after_s)
            loop.call_later(later, self._serve, replace(request, answer=None), context=self._served_in)
        patience = loop.call_later(conditions.timeout_s, _give_up, request)
        try:
            return await answer
        finally:
            patience.cancel()

    def _delay_s(self, *, back: bool = False) -> float:
        conditions = self.link.conditions
        usual = conditions.back_s if back and conditions.back_s is not None else conditions.delay_s
        stalls = self._rng.random() < conditions.stall
        return self._rng.uniform(*(conditions.stall_s if stalls else usual))

    def _serve(self, request: _Request) -> None:
        """The request reached the store. Runs on the store's side, whatever became of the caller."""
        if self.link.requests_cut:
            return
        result, error = None, None
        try:
            work = request.operation(*request.arguments, **request.options)
            result = at_once(work) if self._host is None else self._host.run(work)
        except Exception as raised:
            error = raised
        if self._host is not None and error is None:
            self._host.stepped(request.operation.__name__, request.arguments, result)
        if self._observer is not None and error is None:
            self._observer(request.operation.__name__, request.arguments, result)
        lost = self._rng.random() < self.link.conditions.lose_reply
        if request.answer is None or lost:
            return
        back = self._delay_s(back=True)
        asyncio.get_running_loop().call_later(back, self._deliver, request, result, error, context=self._served_in)

    def _deliver(self, request: _Request, result: Any, error: Exception | None) -> None:
        answer = request.answer
        if answer is None or answer.done() or self.link.replies_cut:
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)

    # nodes

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        return await self._ask(self.inner.register, incarnation, about, ttl_s)

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        return await self._ask(self.inner.renew, incarnation, beat, nonce, ttl_s, load)

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        return await self._ask(self.inner.bury, incarnation, why)

    async def nodes(self) -> list[NodeRecord]:
        return await self._ask(self.inner.nodes, changes=False)

    # conversations

    async def submit_all(self, requests: Sequence[Submit]) -> list[Submitted]:
        return await self._ask(self.inner.submit_all, tuple(requests))

    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        return await self._ask(self.inner.claim_all, tuple(requests))

    async def append_all(self, requests: Sequence[Append]) -> list[AppendResult]:
        return await self._ask(self.inner.append_all, tuple(requests))

    async def release_all(self, requests: Sequence[Release]) -> list[ReleaseResult]:
        return await self._ask(self.inner.release_all, tuple(requests))

    async def delete(self, conversation: str, expected_epoch: Epoch, by: str) -> Deleted | Stale | Unknown:
        return await self._ask(self.inner.delete, conversation, expected_epoch, by)

    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        return await self._ask(self.inner.amend, conversation, version, changes)

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        return await self._ask(self.inner.wanted, me, tuple(agents), cursor, limit, changes=False)

    async def read(
        self, conversation: str, after: int = 0, limit: int = 1000, *, kinds: Sequence[str] = (), snapshot: bool = False
    ) -> Reading | Deleted | Unknown:
        return await self._ask(
            self.inner.read, conversation, after, limit, kinds=tuple(kinds), snapshot=snapshot, changes=False
        )

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        return await self._ask(self.inner.records, tuple(conversations), changes=False)

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        return await self._ask(self.inner.list, filters, cursor, limit, changes=False)

    # hints and deltas

    @asynccontextmanager
    async def follow(self, topics: Sequence[Topic]) -> AsyncGenerator[AsyncIterator[Hint]]:
        host = self._host
        following = host.follow(topics) if host is not None and self._shared else self.inner.follow(tuple(topics))
        async with following as hints:
            yield self._carry(hints)

    async def _carry(self, hints: AsyncIterator[Hint]) -> AsyncIterator[Hint]:
        """Hints as they arrive; after a cut the next one says that some have lapsed, a lost one goes unsaid."""
        lapsed = False
        async for hint in hints:
            await asyncio.sleep(self._delay_s())
            if self.link.replies_cut:
                lapsed = True
            elif self._rng.random() >= self.link.conditions.lose_hint:
                yield replace(hint, lapsed=hint.lapsed or lapsed)
                lapsed = False

    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        return await self._ask(self.inner.publish, lease, delta)

    # the vault, the papers, the refusals

    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        return await self._ask(self.inner.seal, conversation, name, ciphertext, version)

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        return await self._ask(self.inner.unseal, conversation, name, changes=False)

    async def names(self, conversation: str) -> Sequence[Sealed]:
        return await self._ask(self.inner.names, conversation, changes=False)

    async def forget(self, conversation: str, name: str, version: int) -> bool:
        return await self._ask(self.inner.forget, conversation, name, version)

    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        return await self._ask(self.inner.put_paper, kind, id, document, version)

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        return await self._ask(self.inner.get_paper, kind, id, changes=False)

    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        return await self._ask(self.inner.list_papers, kind, prefix, limit, changes=False)

    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        return await self._ask(self.inner.remove_paper, kind, id, version)

    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        return await self._ask(self.inner.refusals, conversation, limit, changes=False)


@final
@dataclass(frozen=True, slots=True)
class _Request:
    """Something under way to the store. A null answer is a late copy's: nobody waits for it."""

    operation: Callable[..., Coroutine[Any, Any, Any]]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    answer: asyncio.Future[Any] | None


def _give_up(request: _Request) -> None:
    if request.answer is not None and not request.answer.done():
        request.answer.set_exception(
            StoreUnavailableError(
                f"{request.operation.__name__}: no answer from the store in time; repeat it unchanged"
            )
        )
