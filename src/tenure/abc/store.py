"""The Store port."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Self

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from tenure.abc.findings import Finding
    from tenure.abc.limits import Limits
    from tenure.abc.values import (
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
        FenceQuery,
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
        Submit,
        Submitted,
        Topic,
        Unknown,
        Wanted,
    )
    from tenure.conversation import Record
    from tenure.journal import JsonObject
    from tenure.lease import Epoch, IncarnationId, Lease


# --- the store ------------------------------------------------------------------------------------------------------


class Store(abc.ABC):
    """Where conversations live. An async context manager; used from one event loop.

    Implementations: memory (the reference), SQLite, Redis, PostgreSQL. All pass one conformance suite,
    ``tenure.testing.store_suite``. A method earns its place here by being atomic.
    """

    url: str | None
    """How another process opens the same store; null if none can. May hold a password: never print it."""
    limits: Limits
    place: str = ""
    """What tells this store, once open, from a copy of it that lies elsewhere; empty where nobody makes copies."""

    def lies_at(self, place: str) -> bool:
        """Whether this store, once open, is the one that was at `place` when it said so, and no copy."""
        return place == self.place

    @abc.abstractmethod
    async def __aenter__(self) -> Self:
        """Open: connect, migrate, probe.

        :raises StoreUnfitError: the store cannot keep its contract here, with the reason and the remedy.
        """

    @abc.abstractmethod
    async def __aexit__(self, *exc: object) -> None:
        """Close; idempotent. What was accepted stays."""

    @abc.abstractmethod
    def sibling(self) -> Store:
        """Another, unopened way to the same store that shares no connection, queue or pool with this one.

        The heartbeat and the witness use one each, in a thread or process of their own.
        """

    @property
    def under_way(self) -> int:
        """How many requests wait in this object for their turn or their answer; 0 where nothing ever waits."""
        return 0

    async def examine(self) -> Sequence[Finding]:
        """What there is to fear of this store, for ``tenure doctor``: called before it is opened. Changes nothing.

        Server and settings only; whether its operations do as they say, their caller tries. None: nothing was looked at.

        :raises StoreUnavailableError: it does not answer. :raises StoreUnfitError: it does not let us in.
        """
        return ()

    # nodes

    @abc.abstractmethod
    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        """Make the incarnation known and alive for `ttl_s` from the store's now, beat 0.

        Refused (``registered-before``) if it was ever registered: an incarnation has one life. The trace stays at
        least as long as a conversation names it.
        """

    @abc.abstractmethod
    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        """Extend the lease to now + `ttl_s`, and answer ``Granted(beat + 1)``.

        Granted only if the incarnation is registered, not buried, not expired, and `beat` is the stored one; or, as
        the repetition of a renewal whose answer was lost, the one before with the same `nonce`. Anything else is Dead
        (a second copy of this process renews, or the time is up), for good.
        """

    @abc.abstractmethod
    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        """Mark the incarnation dead for good.

        ``expired``: only if its lease has run out, judged under the lock that renewal takes; what is left is first
        clamped to its ttl, should the store's clock have stepped back. ``retired`` and ``exited``: at once. Unknown is not dead: an
        incarnation that was never registered is ``Alive(inf)``, and stays so. Idempotent.
        """

    @abc.abstractmethod
    async def nodes(self) -> list[NodeRecord]:
        """Every incarnation that is not dead, and the dead that a conversation still names; oldest first."""

    # conversations

    @abc.abstractmethod
    async def submit_all(self, requests: Sequence[Submit]) -> list[Submitted]:
        """Journal clients' commands. Not fenced; any node may, for any conversation, whoever owns it.

        For each, in one step: deleted → Deleted; not there and no `create` → Unknown; there and `create` does not fit
        → Refused ``conversation-exists``; key known → Duplicate (same digest) or KeyReused; a message to a stopped
        conversation → Refused ``conversation-stopped``; unsettled at its limit → Refused ``too-many-unsettled``; policy
        ``reject`` and an open or waiting turn → Refused ``turn-open``; too large → TooLarge. A refusal does not burn the key.

        Otherwise: the record is created if need be (journal: ``created``, epoch null), the command stands at head + 1
        (epoch null; under ``steer`` with an open turn its delivery is ``now``), `last_command` := its seq,
        `unsettled` + 1, `failed` := false, wanted := true, always. A ``start`` also clears stopped, lost, failures, the
        back-off, and sets `last_start`; a ``start`` while one is unsettled is answered as a Duplicate of that one.
        """

    @abc.abstractmethod
    async def claim_all(self, requests: Sequence[Claim]) -> list[Claimed]:
        """Make the incarnation the owner: a compare-and-swap on the epoch that the caller saw.

        Deleted → Deleted. Owner and token are the request's already: the same answer again (Held, nothing journaled).
        Claimant dead, where the store can tell → Dead. Not there: with `create` created in the same step (``created``
        is journaled first), else Unknown. Owner is another incarnation that is not buried, and not `forced`
        → Elsewhere (an expired one that nobody has buried counts as alive: bury first). Epoch differs → Stale.

        Otherwise epoch := max(record's, the journal's highest, floor) + 1; owner and token are the request's; batch
        number 0; started false; `lost` + 1 if the last owner did not release and a turn was open or it had not started its
        loop; wanted unchanged (of a new one: as the creation says); ``claimed`` is journaled at the new epoch.
        """

    @abc.abstractmethod
    async def append_all(self, requests: Sequence[Append]) -> list[AppendResult]:
        """Append each batch to the journal of its leased conversation, all of its events or none.

        Applied only if, in one atomic step, the store finds that

        - the conversation is not deleted, and the record's owner, epoch *and* token equal the lease's, and
        - ``number`` is the last one + 1, and ``seen`` is not beyond the head (else the store was rewound).

        The last number with the same digest is ``Repeated``, with the first result: a caller that lost the reply
        sends the same batch again, unchanged. Anything else is ``Fenced``: nothing was written (it is counted among the refusals), and the
        caller must stop. Expiry is not checked: while nobody has claimed, no other owner can exist.

        With `settle`: wanted := runnable or last_command > seen; `unsettled` goes down by the settled; turn, started
        and agent_status as given; stopped := true only if no ``start`` came after `seen`; the end of a turn sets lost and
        failures to 0. A snapshot replaces the last one, part by part.

        A draft with a `delivery` is a recorded command, the past of a copy: journaled with its key and without an epoch,
        and from then on the key stands for it; `last_command`, `unsettled` and wanted do not hear of it.

        :raises InvalidInputError: one of them has more events or a larger snapshot than :class:`~tenure.abc.Limits` says;
            nothing of the list was written. (An event that is too large is ``TooLarge``, its own answer.)
        """

    @abc.abstractmethod
    async def release_all(self, requests: Sequence[Release]) -> list[ReleaseResult]:
        """Let go: the last append of the lease (same number, digest and `seen`), then ``released`` is journaled.

        Owner and token are cleared; nothing of the lease is accepted afterwards, except this very release again
        (``ReleasedNow.repeated``). With ``settle.failed``: failed := true, unless a command came after `seen`. Reason ``failed`` raises
        `failures` (and the back-off runs for `retry_in_s`, by the store's clock); with ``settle.failed``, `lost` starts at 0 again.
        """

    async def submit(self, request: Submit) -> Submitted:
        """One of :meth:`submit_all`."""
        return (await self.submit_all([request]))[0]

    async def claim(self, request: Claim) -> Claimed:
        """One of :meth:`claim_all`."""
        return (await self.claim_all([request]))[0]

    async def append(self, request: Append) -> AppendResult:
        """One of :meth:`append_all`."""
        return (await self.append_all([request]))[0]

    async def release(self, request: Release) -> ReleaseResult:
        """One of :meth:`release_all`."""
        return (await self.release_all([request]))[0]

    @abc.abstractmethod
    async def delete(self, conversation: str, expected_epoch: Epoch, by: str) -> Deleted | Stale | Unknown:
        """Erase journal, keys, snapshot and vault; the record stays for ever, with its epoch + 1, deleted, unowned.

        Stale if the epoch is another one. Deleted before: the same answer.
        """

    @abc.abstractmethod
    async def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        """Change ``title``, ``metadata`` or ``settings`` (each optional) by compare-and-swap on the version.

        Settings also append ``settings_changed`` (epoch null). last_command and wanted stay as they are.
        """

    @abc.abstractmethod
    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        """Wanted conversations of these agents, back-off over, that nobody owns, a buried one owns, or I own.

        Work is proportional to the answer, never to what is stored. Null `me`: only what nobody alive owns.
        """

    @abc.abstractmethod
    async def read(
        self, conversation: str, after: int = 0, limit: int = 1000, *, kinds: Sequence[str] = (), snapshot: bool = False
    ) -> Reading | Deleted | Unknown:
        """Up to `limit` events after `after` in order, with the record of the same moment; from the primary.

        With `kinds`, only those. With `snapshot`, start behind the last snapshot if it is further than `after`.
        """

    @abc.abstractmethod
    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        """The records, in the order asked; null where there is none. Tombstones are records with `deleted`."""

    @abc.abstractmethod
    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        """Conversations in order of creation (an index that never moves), deleted ones left out.

        :raises InvalidInputError: the `cursor` is none that this store has given.
        """

    # hints and deltas

    @abc.abstractmethod
    def follow(self, topics: Sequence[Topic]) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """Hints about these topics from the moment of entering on; bounded, lossy, coalesced. Ends only with the store.

        After a lost connection the stream goes on by itself, with a ``lapsed`` hint.
        """

    @abc.abstractmethod
    async def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        """Hand a delta to whoever follows the conversation, on every node. Fenced like an append; never stored for good."""

    # the vault, the papers, the refusals

    @abc.abstractmethod
    async def seal(
        self, conversation: str, name: str, ciphertext: bytes, version: int
    ) -> Sealed | Stale | Deleted | Unknown:
        """Keep a ciphertext under `name`; `version` is the one that is replaced, 0 for a new name. Result: the new one."""

    @abc.abstractmethod
    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        """The ciphertext, or null."""

    @abc.abstractmethod
    async def names(self, conversation: str) -> Sequence[Sealed]:
        """All that the conversation's vault holds, by name."""

    @abc.abstractmethod
    async def forget(self, conversation: str, name: str, version: int) -> bool:
        """Erase the secret if its version is still this one; whether it is gone now."""

    @abc.abstractmethod
    async def put_paper(self, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
        """Write if the stored version is `version` (0: none is there); the new paper, or null if it is another.

        A paper of the kind ``request`` whose id begins with an incarnation and ``/`` is also a hint to that node.
        """

    @abc.abstractmethod
    async def get_paper(self, kind: str, id: str) -> Paper | None:
        """The paper, or null."""

    @abc.abstractmethod
    async def list_papers(self, kind: str, prefix: str = "", limit: int = 1000) -> Sequence[Paper]:
        """Papers of a kind whose id begins with `prefix`, by id."""

    @abc.abstractmethod
    async def remove_paper(self, kind: str, id: str, version: int) -> bool:
        """Remove if the version is still this one; whether it is gone now."""

    @abc.abstractmethod
    async def refusals(self, conversation: str, limit: int = 100) -> Sequence[Refusal]:
        """The last refused writes, newest first; a bounded log of its own, never in the journal."""

    # the fence, lent

    def fence_query(self, lease: Lease) -> FenceQuery:
        """The fence as a query for somebody's own transaction in the same database; no I/O.

        Run first in the transaction, it gives one row if the lease is held (not deleted; owner, epoch and token equal),
        else none; and from then until the transaction's end no claim, release or deletion of the conversation commits:
        by the write lock (SQLite), or by a lock on its row (PostgreSQL: ``SELECT 1 … FOR SHARE``).

        :raises InvalidInputError: this store has no tables, or not in a database that others can use.
        """
        remedy = "use SQLite or PostgreSQL for both, or have your storage compare lease.epoch"
        raise InvalidInputError("store", f"{type(self).__name__} has no tables beside which yours could be", remedy)
