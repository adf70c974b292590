"""The words of the Store port: requests, results, and what is read. Values only."""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, ClassVar, final

from tenure.errors import OwnershipLostError
from tenure.journal import Command, Draft, Event, Json, JsonObject, Policy, compact, digest

if TYPE_CHECKING:
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
    ``too-many-unsettled``, ``turn-open``, ``conversation-exists``, ``settings-too-large`` (by the store's limit; the
    record is null then, as nothing was created)."""

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
    """Dead for good. `why`: what it was first buried for; null where that is no longer known."""

    why: Death | None = field(default=None, compare=False)


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
    wanted: bool = False
    """Wanted from its first moment: if its first owner dies before it has written anything, somebody looks."""

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
    death: Death | None = None
    """How the owner ended that this claim follows, as far as the claimant knows; it goes into ``claimed``."""


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

    def written(self) -> Written:
        """The batch as text, once for everything that is made of it.

        :raises ValueError: a float that JSON does not have, or text that is not valid Unicode.
        """
        bodies = tuple([compact(one.body) for one in self.drafts])
        parts = [f"{self.seen} {len(bodies)}"]
        for one, body in zip(self.drafts, bodies, strict=True):
            envelope = ""
            if one.turn is not None or one.opens or one.closes or one.delivery is not None:
                envelope = compact([one.turn, one.opens, one.closes, one.key, one.delivery])
            parts.append(f"{len(one.kind)} {len(envelope)} {len(body)} {one.kind}{envelope}{body}")
        settle = None if self.settle is None else self.settle.as_json()
        snapshot = None if self.snapshot is None else self.snapshot.as_json()
        if settle is not None or snapshot is not None:
            parts.append(compact([settle, snapshot]))
        return Written(bodies, hashlib.sha256("\n".join(parts).encode()).hexdigest())

    def digest(self) -> str:
        """Recognises a repeat: over the request as sent, lease aside."""
        return self.written().digest


@final
@dataclass(frozen=True, slots=True)
class Written:
    """A batch as text: the body of each draft as JSON, its keys in the order that they have; and what recognises a repeat.

    Only who sent a batch repeats it, so the digest is nobody's but this version's: it is made of the texts that are stored.
    """

    bodies: tuple[str, ...]
    digest: str


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

    def digest(self, written: Written | None = None) -> str:
        """As that of its batch, which may be `written` already."""
        of = (written or self.batch.written()).digest
        return digest({"batch": of, "reason": self.reason.value, "retry_in_s": self.retry_in_s})


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
class FenceQuery:
    """The fence for a transaction of one's own: run `sql` with `parameters` first in it, hand the row to :meth:`insist`.

    Its placeholders are those of the store's own driver: ``?`` (sqlite3), ``%s`` (psycopg).
    """

    lease: Lease
    sql: str
    parameters: tuple[str | int, ...]

    @property
    def numbered(self) -> str:
        """The same with ``$1``, ``$2`` …, as asyncpg and ``PREPARE`` want it."""
        numbers = count(1)
        return re.sub(r"\?|%s", lambda _: f"${next(numbers)}", self.sql)

    def insist(self, row: object) -> None:
        """Go on only if there was a row: roll back otherwise, and stop.

        :raises OwnershipLostError: the lease is no longer held; nothing that the transaction wrote may be committed.
        """
        if row is None:
            why = "the store records another lease"
            raise OwnershipLostError(self.lease.conversation, self.lease.epoch, why)
