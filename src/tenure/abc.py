"""The contracts: :class:`Store`, :class:`AgentLoop`, :class:`RuntimeProvider`. All that an extension author reads.

What a store promises
=====================
Each operation is one atomic step on one conversation (or one incarnation): it happens wholly or not at all, and what
it answers was true at that step. Lists are for travelling together (group commit): a result per item, in order, and
one item that is refused never fails the others. A store that loses what it acknowledged breaks G4, not G2: the token
still keeps two owners from writing.

What a store does not promise: that a hint arrives, that a delta is kept, that a page of a list is full.

Every operation may raise :class:`~tenure.errors.StoreUnavailableError`: its outcome is then unknown, and the caller
repeats it *unchanged* (same token, same key, same number) until it is answered. Results that mean "no" are values, not
exceptions: match them exhaustively.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, final, runtime_checkable

from tenure.journal import Command, Delivery, Draft, Event, Json, JsonObject, Policy, digest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tenure.clock import Instant
    from tenure.conversation import Record, Settle
    from tenure.lease import Epoch, IncarnationId, Lease, Token

# --- nodes ----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Load:
    """What a renewal says of the node: conversations held, and whether it is leaving."""

    owned: int = 0
    draining: bool = False


@final
@dataclass(frozen=True, slots=True)
class About:
    """Who registers. `agents` are the names that the node can run; `capacity` how many conversations it holds."""

    node: str
    address: str
    capacity: int
    agents: tuple[str, ...]
    started_at: Instant


@final
@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A registered incarnation as the store has it. `expires_in_s` may be negative: expired, not yet buried."""

    incarnation: IncarnationId
    about: About
    load: Load
    beat: int
    expires_in_s: float
    dead: bool


@final
@dataclass(frozen=True, slots=True)
class Granted:
    """Registered or renewed: the lease runs for a ttl from now, by the store's clock. `beat` goes into the next."""

    beat: int


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """Not done, and nothing was changed. `reason` is a slug: ``registered-before``, ``conversation-stopped``,
    ``too-many-unsettled``, ``turn-open``, ``conversation-exists``, ``settings-missing``."""

    reason: str
    record: Record | None = None


@final
@dataclass(frozen=True, slots=True)
class Dead:
    """The incarnation is buried, expired or unknown to the register: it will never own anything again."""


class Death(enum.StrEnum):
    """Why an incarnation is buried."""

    EXPIRED = "expired"
    """Its lease ran out, judged by the store under the lock that renewal takes."""
    RETIRED = "retired"
    """By itself, after everything was released or given up."""
    EXITED = "exited"
    """Proof by the kernel that the process has ended. A connection that fell is none."""


@final
@dataclass(frozen=True, slots=True)
class Buried:
    """Dead for good."""


@final
@dataclass(frozen=True, slots=True)
class Alive:
    """Not buried: the lease runs for `expires_in_s` more."""

    expires_in_s: float


# --- conversations: requests ----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Creation:
    """What a conversation is created with, in the same step as its first command or claim.

    `agent` and `settings` may be null, meaning "the default" and "none": then they match whatever exists already.
    """

    agent: str | None = None
    default_agent: str = ""
    user_id: str | None = None
    settings: JsonObject | None = None
    policy: Policy | None = None
    title: str | None = None
    metadata: JsonObject | None = None

    def fits(self, record: Record) -> bool:
        """Whether an existing conversation is the one that was asked for (otherwise 409)."""
        return (
            record.user_id == self.user_id
            and self.agent in (None, record.agent)
            and (self.settings is None or digest(self.settings) == digest(record.settings))
        )


@final
@dataclass(frozen=True, slots=True)
class Submit:
    """A client's command; with `create`, also the conversation. A null command only creates."""

    conversation: str
    command: Command | None
    create: Creation | None = None


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A claim attempt. `expected_epoch` is the epoch that the caller saw, 0 for a conversation that is not there yet.

    `token` is new for each attempt and the same for each repetition of it. `floor` raises the epoch above what a
    former life of a restored store may have granted.
    """

    conversation: str
    incarnation: IncarnationId
    token: Token
    expected_epoch: Epoch
    node: str
    address: str
    why: str
    forced: bool = False
    create: Creation | None = None
    floor: int = 0


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The core's fold and the loop's own state after `seq`; each replaces its last one if it is not null."""

    seq: int
    fold: JsonObject | None = None
    loop: JsonObject | None = None

    def as_json(self) -> dict[str, Json]:
        return {"seq": self.seq, "fold": self.fold, "loop": self.loop}


@final
@dataclass(frozen=True, slots=True)
class Append:
    """An owner's batch. `number` is the last batch's + 1 (the first of a claim is 1); `seen` the last seq it read."""

    lease: Lease
    number: int
    seen: int
    drafts: tuple[Draft, ...]
    settle: Settle | None = None
    snapshot: Snapshot | None = None

    def digest(self) -> str:
        """Recognises a repeat: over the request as sent, lease aside."""
        return digest(
            {
                "seen": self.seen,
                "drafts": [d.as_json() for d in self.drafts],
                "settle": self.settle and self.settle.as_json(),
                "snapshot": self.snapshot and self.snapshot.as_json(),
            }
        )


class Reason(enum.StrEnum):
    """Why an owner lets go."""

    IDLE = "idle"
    DRAINED = "drained"
    STOPPED = "stopped"
    FAILED = "failed"
    FORCED = "forced"


@final
@dataclass(frozen=True, slots=True)
class Release:
    """The last append of a lease: its events, then ``released``. `retry_in_s` counts from the store's now."""

    batch: Append
    reason: Reason
    retry_in_s: float | None = None

    def digest(self) -> str:
        return digest({"batch": self.batch.digest(), "reason": self.reason.value, "retry_in_s": self.retry_in_s})


# --- conversations: results -----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Accepted:
    """Durable. `seq` is the command's (for a null command: the head). `created`: by this very step."""

    seq: int
    record: Record
    created: bool = False


@final
@dataclass(frozen=True, slots=True)
class Duplicate:
    """Accepted before, at `seq`, whatever became of it. (For a null command: the conversation was there already.)"""

    seq: int
    record: Record


@final
@dataclass(frozen=True, slots=True)
class KeyReused:
    """The key stands at `seq` with another kind or body. Nothing was changed."""

    seq: int


@final
@dataclass(frozen=True, slots=True)
class Deleted:
    """The conversation is deleted; its id is never used again. `epoch` is its last."""

    epoch: Epoch


@final
@dataclass(frozen=True, slots=True)
class Unknown:
    """No such conversation, and nothing asked to create it."""


@final
@dataclass(frozen=True, slots=True)
class Held:
    """Claimed (or claimed before with the same token). `record.head` counts the ``claimed`` event."""

    lease: Lease
    record: Record
    created: bool = False


@final
@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A live incarnation owns it. Nothing was changed."""

    record: Record


@final
@dataclass(frozen=True, slots=True)
class Stale:
    """The epoch (or version) is not the one that the caller saw. Nothing was changed; the record says what is."""

    record: Record


@final
@dataclass(frozen=True, slots=True)
class Appended:
    """Durable. The batch's events stand at `first` … in a row; `head` and `last_command` are those after it."""

    first: int
    count: int
    head: int
    last_command: int
    at: Instant


@final
@dataclass(frozen=True, slots=True)
class Repeated:
    """This very batch was applied before; `result` is what the first one was told."""

    result: Appended


@final
@dataclass(frozen=True, slots=True)
class Fenced:
    """Nothing was written: the conversation is no longer the caller's. It must stop. Null record: no such one."""

    record: Record | None


@final
@dataclass(frozen=True, slots=True)
class TooLarge:
    """Nothing was written: event `index` of the batch has `bytes`, more than `limit`."""

    index: int
    bytes: int
    limit: int


@final
@dataclass(frozen=True, slots=True)
class ReleasedNow:
    """Let go. `wanted`: somebody should own it. `repeated`: it had been let go by this very release before."""

    wanted: bool
    head: int
    repeated: bool = False


@final
@dataclass(frozen=True, slots=True)
class Amended:
    """Changed; the record has the next version."""

    record: Record


@final
@dataclass(frozen=True, slots=True)
class Sent:
    """Handed to whoever follows; it may be lost."""


type Submitted = Accepted | Duplicate | KeyReused | Refused | Deleted | Unknown | TooLarge
type Claimed = Held | Elsewhere | Stale | Dead | Deleted | Unknown | Refused
type AppendResult = Appended | Repeated | Fenced | TooLarge
type ReleaseResult = ReleasedNow | Fenced | TooLarge


# --- reading --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """A conversation for which something can be done, and which nobody alive but me owns."""

    conversation: str
    epoch: Epoch
    owner: IncarnationId | None
    token: Token | None
    agent: str


@final
@dataclass(frozen=True, slots=True)
class Page[T]:
    """A piece of a list. `cursor` is null at the end; a page may be short, the cursor always advances."""

    items: tuple[T, ...]
    cursor: str | None


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """Events after the asked seq, and the record of the same moment."""

    events: tuple[Event, ...]
    record: Record
    snapshot: Snapshot | None = None
    """The last snapshot, if the reading was asked to start from it; `events` then follow it."""


@final
@dataclass(frozen=True, slots=True)
class Filters:
    """Which conversations to list. `owner` is a node's name or an incarnation; deleted ones are never listed."""

    user_id: str | None = None
    owner: str | None = None
    agent: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Topic:
    """What to be told of: ``wanted`` (something became wanted; subject is empty), ``conversation`` (its journal moved, or a
    delta), ``node`` (a paper for an incarnation, or a command for what it owns)."""

    kind: str
    subject: str = ""

    WANTED: ClassVar[str] = "wanted"
    CONVERSATION: ClassVar[str] = "conversation"
    NODE: ClassVar[str] = "node"


@final
@dataclass(frozen=True, slots=True)
class Hint:
    """Something may have happened: look. Only `delta` carries content, and only for as long as it lasts.

    `lapsed` means that hints may have been lost (a reconnect): look at everything.
    """

    topic: Topic
    conversation: str | None = None
    head: int | None = None
    delta: JsonObject | None = None
    lapsed: bool = False


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that the store refused, for the timeline of who tried what."""

    at: Instant
    lease: Lease
    operation: str


@final
@dataclass(frozen=True, slots=True)
class Paper:
    """A small document of the cluster, changed by compare-and-swap on its version."""

    kind: str
    id: str
    document: JsonObject
    version: int


@final
@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret of a conversation's vault: ciphertext only."""

    name: str
    ciphertext: bytes
    version: int


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What a store accepts. Counted in bytes of canonical JSON."""

    event_bytes: int = 1 << 20
    snapshot_bytes: int = 8 << 20
    unsettled: int = 100
    page: int = 1000
    batch_events: int = 1000
    refusals: int = 100
    """How many refused writes are kept per conversation."""


# --- the store ------------------------------------------------------------------------------------------------------


class Store(abc.ABC):
    """Where conversations live. An async context manager; used from one event loop.

    Implementations: memory (the reference), SQLite; Redis and PostgreSQL follow. All pass one conformance suite,
    ``tenure.testing.store_suite``. A method earns its place here by being atomic.
    """

    url: str | None
    """How another process opens the same store; null if none can. May hold a password: never print it."""
    limits: Limits

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
        loop; wanted unchanged; ``claimed`` is journaled at the new epoch.
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
        """Conversations in order of creation (an index that never moves), deleted ones left out."""

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


# --- runtimes -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """What to provision. `name` is unique per store, conversation and epoch; `workspace` per store and conversation."""

    name: str
    workspace: str
    conversation: str
    settings: JsonObject = field(default_factory=dict[str, Json])


@final
@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in a runtime did. Output is cut at a limit, from the middle, and says so in `truncated`."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool = False
    timed_out: bool = False

    def as_json(self) -> dict[str, Json]:
        return {
            "exit_code": self.exit_code,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "truncated": self.truncated,
            "timed_out": self.timed_out,
        }


@runtime_checkable
class Runtime(Protocol):
    """The place where tools run: a workspace of files and the processes of one epoch."""

    name: str

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        """Run a command in the workspace: a string through the shell, a sequence as it is."""
        ...

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        """The content of a file of the workspace.

        :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, or the file is larger.
        """
        ...

    async def write(self, path: str, content: bytes | str) -> None:
        """Write a file of the workspace, making its folders."""
        ...

    @property
    def path(self) -> Path | None:
        """The workspace as a path of this machine, or null if it is elsewhere."""
        ...


class RuntimeFailure(Exception):
    """A provider says no, with its own reason. `permanent`: trying again as it is will not help. `step` names where."""

    def __init__(self, reason: str, *, step: str = "provision", permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.permanent = permanent


class RuntimeProvider(abc.ABC):
    """Makes runtimes. Everything is idempotent by name; the name is journaled before :meth:`provision` is called.

    Only the runtime that the journal calls current is ever attached; only what the journal calls discarded, lost or
    superseded, or what belongs to a deleted conversation, is ever destroyed (rule 14).
    """

    kind: str
    outlives_node: bool = False
    """Whether a runtime lives on without the node that provisioned it, so that another one can attach to it."""

    @abc.abstractmethod
    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        """Make the runtime, or find the one of that name; return when it answers. `progress` names each step.

        :raises RuntimeFailure: with the provider's own reason.
        """

    @abc.abstractmethod
    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        """Give the runtime its credentials; idempotent. Values go nowhere else.

        :raises RuntimeFailure: with the provider's own reason, never with a value.
        """

    @abc.abstractmethod
    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        """The living runtime of that name, or null if it is gone for good.

        :raises RuntimeFailure: it could not be found out.
        """

    @abc.abstractmethod
    async def discard(self, name: str, workspace: str | None = None) -> None:
        """Destroy the runtime's processes; with `workspace` also its files. Gone already is fine.

        :raises RuntimeFailure: it may still be there.
        """

    @abc.abstractmethod
    async def list(self) -> Sequence[tuple[str, str]]:
        """(name, conversation) of every runtime of this store that the provider has; for the reaper."""

    def kill_now(self) -> None:  # noqa: B027 - optional
        """Kill the process groups of this node's runtimes, at once and from any thread: trust has ended. Default: none."""


# --- agent loops ----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A message as an agent sees it."""

    text: str
    content: Json
    seq: int
    key: str | None


class Turn(Protocol):
    """One turn, as an agent loop sees it. Every method that writes goes through the fence.

    After the loss of the conversation each of them raises :class:`~tenure.errors.OwnershipLostError`.
    """

    @property
    def id(self) -> str:
        """The turn's name, the same in every attempt."""
        ...

    @property
    def conversation_id(self) -> str: ...

    @property
    def commands(self) -> tuple[Event, ...]:
        """The commands that this turn settles."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages among them."""
        ...

    @property
    def past(self) -> tuple[Event, ...]:
        """What this turn has journaled in earlier attempts, in order; empty in the first."""
        ...

    @property
    def settings(self) -> JsonObject: ...

    @property
    def runtime(self) -> Runtime: ...

    @property
    def epoch(self) -> int: ...

    @property
    def attempt(self) -> int:
        """1, and one more with each owner that takes the turn over."""
        ...

    @property
    def resumed(self) -> bool: ...

    @property
    def lost(self) -> bool:
        """Whether the conversation is no longer ours. Looks at no store; the fence does."""
        ...

    async def history(self, after: int = 0) -> Sequence[Event]:
        """The journal before this turn and after the seq `after`, oldest first."""
        ...

    async def journal(self, drafts: Sequence[Draft], state: JsonObject | None = None) -> Appended:
        """Append events of this turn; `state` replaces the loop's part of the snapshot. Returns when durable.

        :raises OwnershipLostError: refused: stop at once. :raises JournalError: the events break the rules of calls.
        :raises InvalidInputError: an event is too large, or has a kind of the core that loops may not write.
        """
        ...

    def journal_blocking(self, drafts: Sequence[Draft], timeout_s: float, state: JsonObject | None = None) -> Appended:
        """The same from a thread; not from the event loop.

        :raises TimeoutError: no answer in time; the outcome is unknown and the tenure is over.
        """
        ...

    async def ask(self, ask: str, body: Json) -> Json:
        """Wait for a person's ``answer``, under the name `ask`. The conversation may be passivated meanwhile: then
        this is cancelled, and a later owner resumes the turn with the answer in :attr:`past`."""
        ...

    def delta(self, body: JsonObject) -> None:
        """Hand something ephemeral to whoever watches; may be dropped, never blocks."""
        ...


class LiveLoop(Protocol):
    """A loop of one conversation, alive from phase 3 to passivation."""

    async def turn(self, turn: Turn) -> None:
        """Do a turn. Returning completes it; raising fails it, and the conversation takes the next message.

        May be cancelled: by ``interrupt`` and ``stop``, by drain, by the loss of the conversation.
        """
        ...

    async def now(self, command: Event) -> Json:
        """Take a command that does not wait, maybe during :meth:`turn`; the result is the answer to it.

        :raises NotImplementedError: the loop has no use for it: it is settled as refused.
        """
        ...


class Place(Protocol):
    """What a loop gets when it is opened: the conversation that it serves, held by this node."""

    @property
    def conversation_id(self) -> str: ...
    @property
    def settings(self) -> JsonObject: ...
    @property
    def epoch(self) -> int: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def state(self) -> JsonObject | None:
        """The loop's own part of the last snapshot."""
        ...

    async def history(self, after: int = 0) -> Sequence[Event]:
        """The journal after the seq `after` up to now, oldest first."""
        ...

    def report_status(self, word: str | None) -> None:
        """The loop's own word for its state (``agent_status``); goes out with the next append."""
        ...


class AgentLoop(abc.ABC):
    """The code that turns commands into events. One per agent name; opened once per tenure."""

    commands: Mapping[str, Delivery] = {}
    """Kinds of commands beyond the core's that this loop takes, each with its fixed delivery."""
    turn_timeout_s: float | None = None
    """How long a turn may last; null: the node's setting."""

    @abc.abstractmethod
    def check(self, settings: JsonObject) -> JsonObject:
        """The settings as they are stored, checked at creation.

        :raises InvalidInputError: names the field, the limit and the remedy.
        """

    @abc.abstractmethod
    def open(self, place: Place) -> AbstractAsyncContextManager[LiveLoop]:
        """Bring the loop to life for one conversation; left at passivation, drain or loss."""

    async def ready(self) -> None:  # noqa: B027 - optional
        """Return when the loop can be opened (imports done); ``/readyz`` waits for it. Default: at once."""


type AgentFunction = Callable[..., Awaitable[object]]
"""``async def agent(turn)``: see ``tenure.loops.function``."""
