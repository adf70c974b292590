"""How rows, events and nodes stand in columns."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tenure.abc import Appended
from tenure.clock import Instant
from tenure.conversation import Record, TurnState
from tenure.errors import Owner
from tenure.journal import Delivery, Event, Policy, Seq, compact
from tenure.lease import Epoch
from tenure.stores.rules import Row

if TYPE_CHECKING:
    from tenure.journal import Json

type Columns = tuple[Any, ...]


def text_of(value: Json) -> str:
    """JSON as it is stored: the order of keys is kept.

    :raises ValueError: a float that JSON does not have. :raises TypeError: no JSON.
    """
    return compact(value)


def row_columns(row: Row) -> Columns:
    """All columns of a conversation, in the order of ``statements.ROW``."""
    record, owner = row.record, row.record.owner
    return (
        record.conversation,
        record.user_id,
        record.agent,
        text_of(record.settings),
        record.policy.value,
        record.title,
        text_of(record.metadata),
        record.version,
        record.epoch,
        *((owner.incarnation, owner.node, owner.address, owner.since.unix_s) if owner else (None, None, None, None)),
        record.token,
        record.head,
        record.last_command,
        record.last_start,
        record.unsettled,
        record.turn.value,
        record.started,
        record.wanted,
        row.not_before or 0.0,
        record.lost,
        record.failures,
        record.stopped,
        record.failed,
        record.deleted,
        record.agent_status,
        record.created_at.unix_s,
        record.updated_at.unix_s,
        row.number,
        row.digest,
        _result_text(row.result),
        row.released_epoch,
        row.released_token,
        row.released_digest,
        row.open_start,
    )


def advance_columns(row: Row) -> Columns:
    """The columns of ``statements.ADVANCE_CONVERSATION``."""
    record = row.record
    return (
        record.head,
        record.last_command,
        record.last_start,
        record.unsettled,
        record.turn.value,
        record.started,
        record.wanted,
        row.not_before or 0.0,
        record.lost,
        record.failures,
        record.stopped,
        record.failed,
        record.agent_status,
        record.updated_at.unix_s,
        row.number,
        row.digest,
        _result_text(row.result),
        row.open_start,
    )


def move_columns(row: Row) -> Columns:
    """The columns of ``statements.MOVE_CONVERSATION``."""
    return (row.record.head, row.record.updated_at.unix_s, row.number, row.digest, _result_text(row.result))


_MORE_OF_THE_RECORD = attrgetter(
    "last_command", "last_start", "unsettled", "turn", "started", "wanted", "lost", "failures", "stopped", "failed", "agent_status",
)  # fmt: skip
_MORE_OF_THE_ROW = attrgetter("not_before", "open_start")


def only_moves(before: Row, after: Row) -> bool:
    """Of two rows that :func:`only_advances` finds alike: whether :func:`move_columns` hold everything in which they differ."""
    return _MORE_OF_THE_RECORD(before.record) == _MORE_OF_THE_RECORD(after.record) and (
        _MORE_OF_THE_ROW(before) == _MORE_OF_THE_ROW(after)
    )


def only_advances(before: Record, after: Record) -> bool:
    """Whether :func:`advance_columns` hold everything in which the two differ."""
    return (
        after.owner is before.owner
        and after.token == before.token
        and after.epoch == before.epoch
        and after.version == before.version
        and after.deleted == before.deleted
    )


def row_of(columns: Columns) -> Row:
    """:func:`row_columns` read back."""
    (
        conversation, user_id, agent, settings, policy, title, metadata, version, epoch, owner, node, address, since, token,
        head, last_command, last_start, unsettled, turn, started, wanted, not_before, lost, failures, stopped, failed,
        deleted, agent_status, created_at, updated_at, number, digest, result, released_epoch, released_token,
        released_digest, open_start,
    ) = columns  # fmt: skip
    record = Record(
        conversation=conversation,
        user_id=user_id,
        agent=agent,
        settings=json.loads(settings),
        policy=Policy(policy),
        title=title,
        metadata=json.loads(metadata),
        version=version,
        epoch=epoch,
        owner=None if owner is None else Owner(node, owner, address, epoch, Instant(since)),
        token=token,
        head=head,
        last_command=last_command,
        last_start=last_start,
        unsettled=unsettled,
        turn=TurnState(turn),
        started=bool(started),
        wanted=bool(wanted),
        lost=lost,
        failures=failures,
        stopped=bool(stopped),
        failed=bool(failed),
        deleted=bool(deleted),
        agent_status=agent_status,
        created_at=Instant(created_at),
        updated_at=Instant(updated_at),
    )
    return Row(
        record,
        number,
        digest,
        _result_of(result),
        released_epoch,
        released_token,
        released_digest,
        open_start,
        not_before or None,
    )


def _result_text(result: Appended | None) -> str | None:
    if result is None:
        return None
    return f"[{result.first},{result.count},{result.head},{result.last_command},{result.at.unix_s!r}]"


def _result_of(text: str | None) -> Appended | None:
    if text is None:
        return None
    first, count, head, last_command, at = json.loads(text)
    return Appended(first, count, head, last_command, Instant(at))


def event_columns(conversation: int, event: Event, body: str | None = None) -> Columns:
    """The columns of ``statements.INSERT_EVENT``; `conversation` is its creation number, `body` the text if there is one."""
    return (
        conversation,
        event.seq,
        event.epoch,
        event.kind,
        event.at.unix_s,
        text_of(event.body) if body is None else body,
        event.turn,
        text_of(event.opens) if event.opens else None,
        text_of(event.closes) if event.closes else None,
        event.key,
        event.delivery and event.delivery.value,
    )


def event_of(columns: Columns) -> Event:
    """An event out of ``statements.EVENTS``."""
    seq, epoch, kind, at, body, turn, opens, closes, key, delivery = columns
    return Event(
        Seq(seq),
        None if epoch is None else Epoch(epoch),
        kind,
        Instant(at),
        json.loads(body),
        turn,
        _names(opens),
        _names(closes),
        key,
        None if delivery is None else Delivery(delivery),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(json.loads(text))
