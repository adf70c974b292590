"""Requests as the functions in ``sql/`` take them: one JSON object each, whose documents are text inside of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tenure.clock import Instant
from tenure.journal import Claimed as ClaimedBody
from tenure.journal import Draft, Json, JsonObject, digest, draft
from tenure.journal import Released as ReleasedBody
from tenure.stores import rules
from tenure.stores.postgres.text import json_text, stored

if TYPE_CHECKING:
    from tenure.abc import Append, Claim, Creation, Limits, Release, Submit, Written
    from tenure.lease import Lease

type Fields = dict[str, Json]

_NO_TIME = Instant(0.0)
PAYLOAD_BYTES = 7000
"""How much of a delta fits into one notification: PostgreSQL takes less than 8000 bytes."""


def submit_fields(request: Submit, limits: Limits) -> Fields:
    """:raises ValueError: text or a number that JSON does not have."""
    command = request.command
    fields: Fields = {"id": stored(request.conversation), "creates": request.create is not None}
    if command is not None:
        fields |= {
            "kind": stored(command.kind),
            "body": json_text(command.body),
            "key": stored(command.key),
            "delivery": command.delivery.value,
            "digest": command.digest(),
        }
    return fields | _creation(request.create, limits)


def _creation(create: Creation | None, limits: Limits) -> Fields:
    if create is None:
        return {}
    row, created = rules.create("", create, _NO_TIME)
    record = row.record
    return {
        "creation": {
            "user_id": stored(create.user_id),
            "agent": stored(create.agent),
            "default_agent": stored(create.default_agent),
            "settings": None if create.settings is None else json_text(create.settings),
            "settings_digest": digest(record.settings),
            "policy": record.policy.value,
            "title": stored(record.title),
            "metadata": json_text(record.metadata),
            "wanted": record.wanted,
            "body": json_text(created.body),
            "large": _large((Draft(created.kind, created.body),), limits),
        }
    }


def _large(drafts: tuple[Draft, ...], limits: Limits) -> str | None:
    large = rules.oversize(drafts, limits)
    return None if large is None else json_text([large.index, large.bytes, large.limit])


def claim_fields(request: Claim, limits: Limits) -> Fields:
    """:raises ValueError: text or a number that JSON does not have."""
    body = draft(ClaimedBody(request.incarnation, request.node, request.address, request.why, request.forced)).body
    return {
        "id": stored(request.conversation),
        "incarnation": request.incarnation,
        "token": request.token,
        "expected_epoch": request.expected_epoch,
        "node": stored(request.node),
        "address": stored(request.address),
        "body": json_text({name: value for name, value in body.items() if name not in ("previous", "death")}),
        "death": request.death and request.death.value,
        "forced": request.forced,
        "floor": request.floor,
        "creates": request.create is not None,
        **_creation(request.create, limits),
    }


def append_fields(request: Append, limits: Limits, written: Written | None = None) -> Fields:
    """What is not set is left out: the function takes it for null. `written`: the batch as text, if it is made already.

    :raises ValueError: text or a number that JSON does not have.
    """
    lease, drafts = request.lease, request.drafts
    written = written or request.written()
    fields: Fields = {
        "id": stored(lease.conversation),
        "incarnation": lease.incarnation,
        "epoch": lease.epoch,
        "token": lease.token,
        "number": request.number,
        "seen": request.seen,
        "digest": written.digest,
        "count": len(drafts),
    }
    if (large := rules.oversized(written.bodies, limits)) is not None:
        fields["large"] = json_text([large.index, large.bytes, large.limit])
    if len(drafts) == 1 and _is_plain(drafts[0]):
        fields |= _draft(drafts[0], written.bodies[0])
    elif drafts:
        fields["drafts"] = [_draft(one, body) for one, body in zip(drafts, written.bodies, strict=True)]
        fields["recorded"] = any(one.delivery is not None for one in drafts)
    if (settle := request.settle) is not None:
        shape = settle.as_json()
        shape["turn_state"] = shape.pop("turn")
        fields |= shape | {"settles": True, "agent_status": stored(settle.agent_status)}
    if (snapshot := request.snapshot) is not None:
        fields |= {"snaps": True, "snapshot_seq": snapshot.seq}
        fields |= {
            name: json_text(part)
            for name, part in (("fold", snapshot.fold), ("loop_state", snapshot.loop))
            if part is not None
        }
    return fields


def is_plain_submit(request: Submit) -> bool:
    """What the function for many takes, here and below."""
    return request.command is not None and request.create is None and request.command.kind not in ("start", "stop")


def is_plain_claim(request: Claim) -> bool:
    return request.create is None and not request.forced


def is_plain_append(fields: Fields) -> bool:
    return "kind" in fields and fields.keys().isdisjoint(("large", "settles", "snaps"))


_OF_A_PLAIN_APPEND = ("id", "incarnation", "epoch", "token", "number", "seen", "digest", "kind", "body", "turn")


def values_of(fields: Fields) -> tuple[Json, ...]:
    """A plain append as the function for one takes it."""
    return tuple([fields.get(name) for name in _OF_A_PLAIN_APPEND])


def _is_plain(one: Draft) -> bool:
    """It opens and closes no calls, and is no command: a batch of one such event is the most frequent."""
    return not one.opens and not one.closes and one.delivery is None


def _draft(one: Draft, body: str) -> Fields:
    fields: Fields = {"kind": stored(one.kind), "body": body}
    if one.turn is not None:
        fields["turn"] = stored(one.turn)
    if one.opens:
        fields["opens"] = json_text(list(one.opens))
    if one.closes:
        fields["closes"] = json_text(list(one.closes))
    if one.delivery is not None:
        of = digest({"kind": one.kind, "body": one.body})
        fields |= {"key": stored(one.key), "delivery": one.delivery.value, "digest": of}
    return fields


def release_fields(request: Release, limits: Limits) -> Fields:
    """:raises ValueError: text or a number that JSON does not have."""
    body = draft(ReleasedBody(request.batch.lease.incarnation, request.reason.value)).body
    written = request.batch.written()
    return {
        **append_fields(request.batch, limits, written),
        "digest": request.digest(written),
        "farewell": json_text(body),
        "reason": request.reason.value,
        "retry_in_s": request.retry_in_s,
    }


def lease_fields(lease: Lease) -> Fields:
    """The proof of ownership."""
    return {
        "id": stored(lease.conversation),
        "incarnation": lease.incarnation,
        "epoch": lease.epoch,
        "token": lease.token,
    }


def change_fields(changes: JsonObject) -> Fields:
    """What :meth:`Store.amend` is to change."""
    fields: Fields = {}
    if "title" in changes:
        title = changes["title"]
        fields |= {"titles": True, "title": stored(title) if isinstance(title, str) else None}
    if "metadata" in changes:
        fields["metadata"] = json_text(changes["metadata"])
    if "settings" in changes:
        settings = changes["settings"]
        fields["settings"], fields["settings_digest"] = json_text(settings), digest(settings)
        fields["body"] = json_text({"settings": settings})
    return fields


def pieces(text: str) -> list[str]:
    """A text of ASCII in parts of at most :data:`PAYLOAD_BYTES`."""
    return ["".join(some) for some in itertools.batched(text, PAYLOAD_BYTES)]
