"""What the functions in ``sql/`` answer, as values of the port."""

from __future__ import annotations

from typing import Any

from tenure.abc import (
    About,
    Accepted,
    Amended,
    Appended,
    AppendResult,
    Claim,
    Claimed,
    Dead,
    Deleted,
    Duplicate,
    Elsewhere,
    Fenced,
    Held,
    KeyReused,
    Load,
    NodeRecord,
    Paper,
    Refusal,
    Refused,
    ReleasedNow,
    ReleaseResult,
    Repeated,
    Sealed,
    Stale,
    Submitted,
    TooLarge,
    Unknown,
)
from tenure.clock import Instant
from tenure.conversation import Record, TurnState
from tenure.errors import Owner
from tenure.journal import Delivery, Event, Policy, Seq
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.stores.postgres.text import document, original

type Row = tuple[Any, ...]

ANSWER = "item, outcome, detail, wanted, record"
"""The columns of the SQL type ``answer``, in the order in which they are taken here."""


def record_of(text: str) -> Record:
    """What the SQL function ``shown`` made."""
    (
        id,
        user_id,
        agent,
        settings,
        policy,
        title,
        metadata,
        version,
        epoch,
        owner,
        owner_node,
        owner_address,
        owner_since,
        token,
        head,
        last_command,
        last_start,
        unsettled,
        turn,
        started,
        wanted,
        retry_in_s,
        lost,
        failures,
        stopped,
        failed,
        deleted,
        agent_status,
        created_at,
        updated_at,
    ) = document(text)
    holder = None
    if owner is not None:
        since = Instant(float(owner_since))
        holder = Owner(original(owner_node), IncarnationId(owner), original(owner_address), Epoch(epoch), since)
    return Record(
        conversation=original(id),
        user_id=original(user_id),
        agent=original(agent),
        settings=settings,
        policy=Policy(policy),
        title=original(title),
        metadata=metadata,
        version=version,
        epoch=Epoch(epoch),
        owner=holder,
        token=token,
        head=head,
        last_command=last_command,
        last_start=last_start,
        unsettled=unsettled,
        turn=TurnState(turn),
        started=started,
        wanted=wanted,
        retry_in_s=retry_in_s,
        lost=lost,
        failures=failures,
        stopped=stopped,
        failed=failed,
        deleted=deleted,
        agent_status=original(agent_status),
        created_at=Instant(float(created_at)),
        updated_at=Instant(float(updated_at)),
    )


def event_of(row: Row) -> Event:
    """An event's columns."""
    seq, epoch, kind, at, body, turn, opens, closes, key, delivery = row
    return Event(
        Seq(seq),
        None if epoch is None else Epoch(epoch),
        original(kind),
        Instant(at),
        body,
        original(turn),
        tuple(opens or ()),
        tuple(closes or ()),
        original(key),
        None if delivery is None else Delivery(delivery),
    )


def submitted_of(row: Row) -> Submitted:
    _, outcome, detail, _, record = row
    told: list[Any] = document(detail) if detail else []
    match outcome:
        case "accepted":
            return Accepted(told[0], record_of(record), created=told[1])
        case "duplicate":
            return Duplicate(told[0], record_of(record))
        case "key_reused":
            return KeyReused(told[0])
        case "refused":
            return Refused(told[0], record_of(record))
        case "deleted":
            return Deleted(Epoch(told[0]))
        case "unknown":
            return Unknown()
        case "large":
            return TooLarge(*told)
        case _:
            raise strange("submit", row)


def claimed_of(request: Claim, row: Row) -> Claimed:
    _, outcome, detail, _, record = row
    told: list[Any] = document(detail) if detail else []
    match outcome:
        case "held":
            held = record_of(record)
            lease = Lease(request.conversation, request.incarnation, held.epoch, request.token)
            return Held(lease, held, created=told[0])
        case "elsewhere":
            return Elsewhere(record_of(record))
        case "stale":
            return Stale(record_of(record))
        case "dead":
            return Dead()
        case "deleted":
            return Deleted(Epoch(told[0]))
        case "unknown":
            return Unknown()
        case "refused":
            return Refused(told[0], record and record_of(record))
        case _:
            raise strange("claim", row)


def appended_of(row: Row) -> AppendResult:
    match row[1]:
        case "appended":
            return _result(row[2])
        case "repeated":
            return Repeated(_result(row[2]))
        case "fenced":
            return fenced_of(row)
        case "large":
            return TooLarge(*document(row[2]))
        case _:
            raise strange("append", row)


def _result(detail: str) -> Appended:
    first, count, head, last_command, at = document(detail)
    return Appended(first, count, head, last_command, Instant(float(at)))


def released_of(row: Row) -> ReleaseResult:
    match row[1]:
        case "released":
            wanted, head, repeated = document(row[2])
            return ReleasedNow(wanted, head, repeated)
        case "fenced":
            return fenced_of(row)
        case "large":
            return TooLarge(*document(row[2]))
        case _:
            raise strange("release", row)


def fenced_of(row: Row) -> Fenced:
    return Fenced(None if row[4] is None else record_of(row[4]))


def changed_of(row: Row) -> Amended | Stale | Deleted | Unknown:
    """What ``amend`` and ``delete_conversation`` answer."""
    match row[1]:
        case "amended":
            return Amended(record_of(row[4]))
        case "stale":
            return Stale(record_of(row[4]))
        case "deleted":
            return Deleted(Epoch(document(row[2])[0]))
        case "unknown":
            return Unknown()
        case _:
            raise strange("a change", row)


def node_of(row: Row) -> NodeRecord:
    incarnation, node, address, capacity, agents, started_at, owned, draining, beat, expires_in_s, dead = row
    about = About(original(node), original(address), capacity, tuple(agents), Instant(started_at))
    return NodeRecord(IncarnationId(incarnation), about, Load(owned, draining), beat, expires_in_s, dead)


def sealed_of(row: Row) -> Sealed:
    name, ciphertext, version = row
    return Sealed(original(name), bytes(ciphertext), version)


def paper_of(kind: str, row: Row) -> Paper:
    id, document, version = row
    return Paper(kind, original(id), document, version)


def refusal_of(conversation: str, row: Row) -> Refusal:
    at, incarnation, epoch, token, operation = row
    return Refusal(Instant(at), Lease(conversation, IncarnationId(incarnation), Epoch(epoch), Token(token)), operation)


def strange(operation: str, answer: object) -> AssertionError:
    return AssertionError(f"{operation} answered {answer!r}, which it never does")
