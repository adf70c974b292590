"""The rules of the store as pure functions: a row before, a request, a row after.

The stores that decide in Python (memory, SQLite) share them, inside their own atomic step; the others restate them in
their own language and are held to the same conformance suite. Nothing here reads a clock, a network or a disk.

Each function returns a :class:`Step`. A step without a row changes nothing; its result says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast, final

from tenure.abc import (
    Accepted,
    Amended,
    Append,
    Appended,
    AppendResult,
    Claim,
    Claimed,
    Creation,
    Dead,
    Deleted,
    Duplicate,
    Elsewhere,
    Fenced,
    Filters,
    Held,
    KeyReused,
    Limits,
    Reason,
    Refused,
    Release,
    ReleasedNow,
    ReleaseResult,
    Repeated,
    Stale,
    Submit,
    Submitted,
    TooLarge,
    Unknown,
)
from tenure.conversation import Record, Settle, TurnState
from tenure.errors import InvalidInputError, Owner
from tenure.journal import Claimed as ClaimedBody
from tenure.journal import (
    Command,
    Created,
    Delivery,
    Draft,
    Event,
    JsonObject,
    Policy,
    Seq,
    SettingsChanged,
    canonical,
    draft,
)
from tenure.journal import Released as ReleasedBody
from tenure.lease import Epoch, Lease, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.clock import Instant

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8."""
NUMBER = re.compile(r"[0-9]{1,18}")
"""A number of a cursor: within 63 bits, and of no alphabet but ASCII."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """The record with what only the store needs: the last batch, the last release, the unsettled ``start``."""

    record: Record
    number: int = 0
    digest: str | None = None
    result: Appended | None = None
    released_epoch: int = 0
    released_token: Token | None = None
    released_digest: str | None = None
    open_start: int | None = None
    not_before: float | None = None
    """The end of the back-off by the store's clock."""


@cache
def _parts(kind: type[Any]) -> tuple[Callable[[Any], tuple[Any, ...]], dict[str, Callable[[Any, Any], None]]]:
    names = [one.name for one in fields(kind)]
    return attrgetter(*names), {name: getattr(kind, name).__set__ for name in names}


def replace[T](one: T, **changes: Any) -> T:
    """``dataclasses.replace`` for records and rows, in half the time: a quarter of an append was spent in it.

    It looks at the kind of each field once instead of each time. For classes with slots that have nothing to check when made.
    """
    values, setters = _parts(type(one))
    new = object.__new__(type(one))
    for write, value in zip(setters.values(), values(one), strict=True):
        write(new, value)
    for name, value in changes.items():
        setters[name](new, value)
    return new


@final
@dataclass(frozen=True, slots=True)
class Step[R]:
    """What an operation does: the row and events to write (none: nothing), and the answer."""

    result: R
    row: Row | None = None
    events: tuple[Event, ...] = ()
    refused: Lease | None = field(default=None)
    """The lease whose write was refused, for the log of refusals."""
    bodies: tuple[str, ...] = ()
    """The first events' bodies as text, as far as a rule has made it."""


def shown(row: Row, store_now: float) -> Record:
    """The record as an answer carries it: the back-off as what is left of it."""
    if row.not_before is None or row.not_before <= store_now:
        return row.record
    return replace(row.record, retry_in_s=row.not_before - store_now)


def holds(row: Row, lease: Lease) -> bool:
    """Whether the lease is held: owner, epoch and token all equal, and not deleted (rule 1)."""
    record = row.record
    return (
        not record.deleted
        and record.owner is not None
        and record.owner.incarnation == lease.incarnation
        and record.epoch == lease.epoch
        and record.token == lease.token
    )


def oversize(drafts: tuple[Draft, ...], limits: Limits) -> TooLarge | None:
    """The first event that is larger than the store takes."""
    return oversized([canonical(one.body) for one in drafts], limits)


def oversized(bodies: Sequence[str], limits: Limits) -> TooLarge | None:
    """The same, of bodies that are text already."""
    for index, body in enumerate(bodies):
        if BYTES_OF_A_CHARACTER * len(body) > limits.event_bytes and (size := len(body.encode())) > limits.event_bytes:
            return TooLarge(index, size, limits.event_bytes)
    return None


def list_place(cursor: str | None) -> int:
    """The place behind which a page of a list begins, in a store that numbers conversations; 0 is the beginning.

    :raises InvalidInputError: the cursor is none of ours.
    """
    if cursor is None:
        return 0
    if not NUMBER.fullmatch(cursor):
        raise foreign(cursor)
    return int(cursor)


def foreign(cursor: str) -> InvalidInputError:
    """A cursor that no page has given."""
    return InvalidInputError(
        "cursor", f"{cursor!r} is none of ours", "pass on the cursor of the page before, unchanged"
    )


def create(conversation: str, creation: Creation, now: Instant) -> tuple[Row, Event]:
    """A new conversation and its first event."""
    agent = creation.agent or creation.default_agent
    settings: JsonObject = creation.settings if creation.settings is not None else {}
    policy = creation.policy or Policy.ENQUEUE
    record = Record(
        conversation=conversation,
        user_id=creation.user_id,
        agent=agent,
        settings=settings,
        policy=policy,
        title=creation.title,
        metadata=creation.metadata if creation.metadata is not None else {},
        head=1,
        wanted=creation.wanted,
        created_at=now,
        updated_at=now,
    )
    event = draft(Created(agent, creation.user_id, settings, policy.value)).stored(1, None, now)
    return Row(record), event


# --- submit ---------------------------------------------------------------------------------------------------------


def submit(
    row: Row | None,
    request: Submit,
    known: tuple[int, str] | None,
    *,
    now: Instant,
    store_now: float,
    limits: Limits,
) -> Step[Submitted]:
    """A client's command. `known` is the seq and digest that its key stands for already."""
    command = request.command
    if command is not None:
        large = oversize((Draft(command.kind, command.body),), limits)
        if large is not None:
            return Step(large)
    if row is None:
        if request.create is None:
            return Step(Unknown())
        return _submit_new(request, now, limits)
    record = shown(row, store_now)
    if record.deleted:
        return Step(Deleted(record.epoch))
    if request.create is not None and not request.create.fits(record):
        return Step(Refused("conversation-exists", record))
    if command is None:
        return Step(Duplicate(record.head, record))
    if known is not None:
        seq, digest = known
        return Step(Duplicate(seq, record) if digest == command.digest() else KeyReused(seq))
    if command.kind == "start" and row.open_start is not None:
        return Step(Duplicate(row.open_start, record))
    refusal = _refusal(record, command, limits)
    if refusal is not None:
        return Step(Refused(refusal, record))
    after, event = _accept(row, command, now)
    return Step(Accepted(event.seq, shown(after, store_now)), after, (event,))


def _submit_new(request: Submit, now: Instant, limits: Limits) -> Step[Submitted]:
    assert request.create is not None, "only called to create"
    row, created = create(request.conversation, request.create, now)
    large = oversize((Draft(created.kind, created.body),), limits)
    if large is not None:
        return Step(large)
    if request.command is None:
        return Step(Accepted(row.record.head, row.record, created=True), row, (created,))
    after, event = _accept(row, request.command, now)
    return Step(Accepted(event.seq, after.record, created=True), after, (created, event))


def _refusal(record: Record, command: Command, limits: Limits) -> str | None:
    if command.delivery is Delivery.TURN and record.stopped:
        return "conversation-stopped"
    if record.unsettled >= limits.unsettled and command.kind != "stop":
        return "too-many-unsettled"
    if command.kind == "message" and record.policy is Policy.REJECT and record.turn is not TurnState.NONE:
        return "turn-open"
    return None


def _accept(row: Row, command: Command, now: Instant) -> tuple[Row, Event]:
    record = row.record
    seq = record.head + 1
    steers = command.kind == "message" and record.policy is Policy.STEER and record.turn is not TurnState.NONE
    delivery = Delivery.NOW if steers else command.delivery
    event = Event(Seq(seq), None, command.kind, now, command.body, key=command.key, delivery=delivery)
    after = replace(
        record,
        head=seq,
        last_command=seq,
        unsettled=record.unsettled + 1,
        wanted=True,
        failed=False,
        updated_at=now,
    )
    if command.kind != "start":
        return replace(row, record=after), event
    after = replace(after, stopped=False, lost=0, failures=0, last_start=seq)
    return replace(row, record=after, open_start=seq, not_before=None), event


# --- claim ----------------------------------------------------------------------------------------------------------


def claim(
    row: Row | None,
    request: Claim,
    *,
    claimant_dead: bool,
    owner_dead: bool,
    journal_epoch: int,
    now: Instant,
    store_now: float,
    limits: Limits,
) -> Step[Claimed]:
    """A claim attempt. `owner_dead` is whether the recorded owner was buried; `journal_epoch` the highest written."""
    created: tuple[Event, ...] = ()
    if row is None:
        if request.create is None:
            return Step(Unknown())
        if claimant_dead:
            return Step(Dead())
        row, event = create(request.conversation, request.create, now)
        large = oversize((Draft(event.kind, event.body),), limits)
        if large is not None:
            return Step(Refused("settings-too-large"))
        created = (event,)
    record = row.record
    if record.deleted:
        return Step(Deleted(record.epoch))
    owner = record.owner
    mine = owner is not None and owner.incarnation == request.incarnation
    if mine and record.token == request.token:
        lease = Lease(record.conversation, request.incarnation, record.epoch, request.token)
        return Step(Held(lease, shown(row, store_now)))
    if claimant_dead:
        return Step(Dead())
    if not created and request.create is not None and not request.create.fits(record):
        return Step(Refused("conversation-exists", shown(row, store_now)))
    if owner is not None and not mine and not owner_dead and not request.forced:
        return Step(Elsewhere(shown(row, store_now)))
    if record.epoch != request.expected_epoch:
        return Step(Stale(shown(row, store_now)))
    after, claimed = _grant(row, request, journal_epoch, now)
    lease = Lease(record.conversation, request.incarnation, after.record.epoch, request.token)
    return Step(Held(lease, shown(after, store_now), created=bool(created)), after, (*created, claimed))


def _grant(row: Row, request: Claim, journal_epoch: int, now: Instant) -> tuple[Row, Event]:
    record = row.record
    epoch = Epoch(max(record.epoch, journal_epoch, request.floor) + 1)
    unreleased = record.owner is not None
    cut = unreleased and (record.turn is TurnState.OPEN or not record.started)
    body = ClaimedBody(
        incarnation=request.incarnation,
        node=request.node,
        address=request.address,
        why=request.why,
        forced=request.forced,
        previous=record.owner.incarnation if record.owner else None,
        death=request.death.value if record.owner and request.death else None,
    )
    event = draft(body).stored(record.head + 1, epoch, now)
    after = replace(
        record,
        epoch=epoch,
        owner=Owner(request.node, request.incarnation, request.address, epoch, now),
        token=request.token,
        head=event.seq,
        started=False,
        lost=record.lost + (1 if cut else 0),
        updated_at=now,
    )
    return replace(row, record=after, number=0, digest=None, result=None), event


# --- append and release ---------------------------------------------------------------------------------------------


def append(row: Row | None, request: Append, *, now: Instant, store_now: float, limits: Limits) -> Step[AppendResult]:
    """An owner's batch, through the fence."""
    if row is None:
        return Step(Fenced(None), refused=request.lease)
    if not holds(row, request.lease):
        return Step(Fenced(shown(row, store_now)), refused=request.lease)
    written = request.written()
    digest = written.digest
    if request.number == row.number and row.number > 0 and digest == row.digest and row.result is not None:
        return Step(Repeated(row.result))
    if request.number != row.number + 1 or request.seen > row.record.head:
        return Step(Fenced(shown(row, store_now)), refused=request.lease)
    large = oversized(written.bodies, limits)
    if large is not None:
        return Step(large)
    after, events, result = _write(row, request, digest, now)
    return Step(result, after, events, bodies=written.bodies)


def _write(row: Row, request: Append, digest: str, now: Instant) -> tuple[Row, tuple[Event, ...], Appended]:
    record = row.record
    first = record.head + 1
    events = tuple(d.stored(first + i, request.lease.epoch, now) for i, d in enumerate(request.drafts))
    head = record.head + len(events)
    result = Appended(first, len(events), head, record.last_command, now)
    after = replace(record, head=head, updated_at=now if events else record.updated_at)
    open_start = row.open_start
    if request.settle is not None:
        after = _settle(after, request.settle, request.seen)
        open_start = None if open_start in request.settle.settled else open_start
    written = replace(row, record=after, number=request.number, digest=digest, result=result, open_start=open_start)
    return written, events, result


def _settle(record: Record, settle: Settle, seen: int) -> Record:
    return replace(
        record,
        wanted=settle.runnable or record.last_command > seen,
        unsettled=record.unsettled - len(settle.settled),
        turn=settle.turn,
        started=settle.started,
        stopped=(record.last_start <= seen) if settle.stopped else record.stopped,
        failed=record.last_command <= seen if settle.failed else record.failed,
        lost=0 if settle.turn_ended or settle.failed else record.lost,
        failures=0 if settle.turn_ended else record.failures,
        agent_status=settle.agent_status if settle.agent_status is not None else record.agent_status,
    )


def release(
    row: Row | None, request: Release, *, now: Instant, store_now: float, limits: Limits
) -> Step[ReleaseResult]:
    """The last append of a lease; afterwards nothing of it is accepted but its own repetition."""
    lease = request.batch.lease
    if row is None:
        return Step(Fenced(None), refused=lease)
    text = request.batch.written()
    digest = request.digest(text)
    repeated = (
        row.record.owner is None
        and not row.record.deleted
        and row.record.epoch == row.released_epoch == lease.epoch
        and row.released_token == lease.token
        and row.number == request.batch.number
        and row.released_digest == digest
    )
    if repeated:
        return Step(ReleasedNow(row.record.wanted, row.record.head, repeated=True))
    fresh = request.batch.number == row.number + 1 and request.batch.seen <= row.record.head
    if not holds(row, lease) or not fresh:
        return Step(Fenced(shown(row, store_now)), refused=lease)
    large = oversized(text.bodies, limits)
    if large is not None:
        return Step(large)
    written, events, _ = _write(row, request.batch, digest, now)
    record = written.record
    last = draft(ReleasedBody(lease.incarnation, request.reason.value)).stored(record.head + 1, lease.epoch, now)
    failed = request.reason is Reason.FAILED
    after = replace(
        record,
        head=last.seq,
        owner=None,
        token=None,
        started=False,
        failures=record.failures + 1 if failed else record.failures,
        updated_at=now,
    )
    started_since = record.last_start > request.batch.seen
    backs_off = request.retry_in_s is not None and not started_since
    row_after = replace(
        written,
        record=after,
        released_epoch=lease.epoch,
        released_token=lease.token,
        released_digest=digest,
        not_before=store_now + request.retry_in_s if backs_off and request.retry_in_s is not None else None,
    )
    return Step(ReleasedNow(after.wanted, after.head), row_after, (*events, last), bodies=text.bodies)


# --- the rest -------------------------------------------------------------------------------------------------------


def delete(row: Row, expected_epoch: Epoch, *, now: Instant, store_now: float) -> Step[Deleted | Stale]:
    """The tombstone: epoch + 1, nobody's, for ever (rule 4). The store erases everything beside it."""
    record = row.record
    if record.deleted:
        return Step(Deleted(record.epoch))
    if record.epoch != expected_epoch:
        return Step(Stale(shown(row, store_now)))
    epoch = Epoch(record.epoch + 1)
    tombstone = Record(
        conversation=record.conversation,
        user_id=record.user_id,
        agent=record.agent,
        epoch=epoch,
        deleted=True,
        created_at=record.created_at,
        updated_at=now,
    )
    return Step(Deleted(epoch), Row(tombstone))


def amend(
    row: Row | None, version: int, changes: JsonObject, *, now: Instant, store_now: float
) -> Step[Amended | Stale | Deleted | Unknown]:
    """Title, metadata, settings, by compare-and-swap; settings also stand in the journal."""
    if row is None:
        return Step(Unknown())
    record = row.record
    if record.deleted:
        return Step(Deleted(record.epoch))
    if record.version != version:
        return Step(Stale(shown(row, store_now)))
    after = replace(record, version=version + 1, updated_at=now)
    events: tuple[Event, ...] = ()
    if "title" in changes:
        after = replace(after, title=cast("str | None", changes["title"]))
    if "metadata" in changes:
        after = replace(after, metadata=cast("JsonObject", changes["metadata"]))
    if "settings" in changes:
        settings = cast("JsonObject", changes["settings"])
        after = replace(after, settings=settings, head=record.head + 1)
        events = (draft(SettingsChanged(settings)).stored(after.head, None, now),)
    written = replace(row, record=after)
    return Step(Amended(shown(written, store_now)), written, events)


def listed(record: Record, filters: Filters) -> bool:
    """Whether a list with these filters shows the conversation."""
    owner = record.owner
    return (
        not record.deleted
        and filters.user_id in (None, record.user_id)
        and filters.agent in (None, record.agent)
        and (filters.owner is None or (owner is not None and filters.owner in (owner.node, owner.incarnation)))
    )
