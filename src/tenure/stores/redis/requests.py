"""Requests of the port as arguments of the scripts: canonical JSON texts, their sizes judged here, their digests."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tenure.abc import Death, TooLarge
from tenure.journal import Claimed, Created, Json, JsonObject, Policy, Released, canonical, digest, draft
from tenure.stores.redis.replies import MICROSECONDS
from tenure.stores.redis.scripts import script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Append, Claim, Creation, Limits, Release, Snapshot, Written
    from tenure.conversation import Settle
    from tenure.journal import Command, Draft
    from tenure.lease import IncarnationId, Lease
    from tenure.stores.redis.keys import ConversationKeys, PartitionKeys
    from tenure.stores.redis.scripts import Argument, Share

type Arguments = dict[str, str]

CREATION: tuple[str, ...] = (
    "event", "asked_agent", "agent", "user_id", "asked_settings", "settings", "settings_digest", "policy", "title",
    "metadata", "create_wanted", "seen", "event_large",
)  # fmt: skip
"""What a conversation is created with, in the order that ``claim`` takes it."""
NOTHING_TO_CREATE: Arguments = dict.fromkeys(CREATION, "")
DIGEST_OF_NOTHING = digest({})


def indexes(partition: PartitionKeys) -> Arguments:
    """The keys that a change of a record may also change."""
    return {"wanted": partition.wanted, "owners": partition.owners, "named": partition.named}


def nullable(text: str | None) -> str:
    """A text that may be null: '' is null."""
    return "" if text is None else f"={text}"


def flag(value: bool) -> str:
    return "1" if value else "0"


def microseconds(seconds: float) -> str:
    return str(round(seconds * MICROSECONDS))


def creation_arguments(creation: Creation | None, seen: int, limits: Limits) -> tuple[Arguments, TooLarge | None]:
    """What a conversation would be created with; `seen` is the highest creation number that this process has seen."""
    if creation is None:
        return NOTHING_TO_CREATE, None
    agent = creation.agent or creation.default_agent
    settings: JsonObject = creation.settings if creation.settings is not None else {}
    settings_digest = digest(settings) if settings else DIGEST_OF_NOTHING
    policy = creation.policy or Policy.ENQUEUE
    event = canonical(draft(Created(agent, creation.user_id, settings, policy.value)).body)
    large = _too_large(0, event, limits)
    arguments = {
        "event": event if large is None else "{}",
        "asked_agent": nullable(creation.agent),
        "agent": agent,
        "user_id": nullable(creation.user_id),
        "asked_settings": nullable(None if creation.settings is None else settings_digest),
        "settings": canonical(settings) if settings else "{}",
        "settings_digest": settings_digest,
        "policy": policy.value,
        "title": nullable(creation.title),
        "metadata": canonical(creation.metadata) if creation.metadata else "{}",
        "create_wanted": flag(creation.wanted),
        "seen": str(seen),
        "event_large": flag(large is not None),
    }
    return arguments, large


def command_arguments(command: Command | None, limits: Limits) -> tuple[Arguments, TooLarge | None]:
    """A client's command; a null one has the kind ''."""
    if command is None:
        return dict.fromkeys(("kind", "key", "digest", "body", "rest", "delivery", "large"), ""), None
    body = canonical(command.body)
    large = _too_large(0, body, limits)
    arguments = {
        "kind": command.kind,
        "key": command.key,
        "digest": command.digest(),
        "body": body if large is None else "{}",
        "rest": canonical({"key": command.key}),
        "delivery": command.delivery.value,
        "large": flag(large is not None),
    }
    return arguments, large


def claim_share(
    request: Claim, keys: ConversationKeys, register: str | None, common: Arguments, creation: Arguments, *, dead: bool
) -> Share:
    """A claim attempt, to travel with those of others. `register` is null where that key lives elsewhere; `dead`: the claimant is
    known to be; `common` is what all shares are given."""
    partition = keys.partition
    names = (
        keys.lock, keys.journal, keys.epochs, partition.wanted, partition.owners, partition.named, partition.created,
    )  # fmt: skip
    arguments: list[str] = [
        request.conversation, request.incarnation, request.token, str(request.expected_epoch), request.node, request.address,
        _claimed_body(request.incarnation, request.node, request.address, request.why, request.forced, request.death),
        flag(request.forced), str(request.floor), flag(dead),
        *(creation[name] for name in CREATION),
    ]  # fmt: skip
    return script("claim").share(**common, keys=names if register is None else (*names, register), claims=arguments)


@functools.lru_cache(maxsize=256)
def _claimed_body(
    incarnation: IncarnationId, node: str, address: str, why: str, forced: bool, death: Death | None
) -> str:
    """That of the event; the script puts ``previous`` behind it. The same for all that a sweep claims of one owner."""
    body = Claimed(incarnation, node, address, why, forced, death=None if death is None else death.value)
    return canonical({name: value for name, value in draft(body).body.items() if name != "previous"})


def lease_arguments(lease: Lease, limits: Limits) -> Arguments:
    """What the fence compares, and how many refusals are kept."""
    return {
        "incarnation": lease.incarnation,
        "epoch": str(lease.epoch),
        "token": lease.token,
        "refusals_limit": str(limits.refusals),
    }


def plain_share(
    batch: Append, written: Written, keys: ConversationKeys, common: Arguments, limits: Limits
) -> Share | None:
    """An owner's batch as most are: events and nothing else; null if it is another. `common` is what all shares are given."""
    if batch.settle is not None or batch.snapshot is not None:
        return None
    lease = batch.lease
    arguments: list[str] = [
        lease.incarnation, str(lease.epoch), lease.token, str(batch.number), str(batch.seen), written.digest,
        str(len(batch.drafts)),
    ]  # fmt: skip
    for one, body in zip(batch.drafts, written.bodies, strict=True):
        if one.delivery is not None or _too_large(0, body, limits):
            return None
        arguments += (one.kind, body, _rest(one))
    return script("append_many").share(**common, keys=(keys.lock, keys.journal), batches=arguments)


def batch_arguments(
    batch: Append, written: Written, limits: Limits
) -> tuple[Arguments, Sequence[Argument], TooLarge | None]:
    """An owner's batch: its arguments, its events, and the first of these that is too large; then none is sent."""
    events: list[Argument] = []
    large: TooLarge | None = None
    for index, (one, body) in enumerate(zip(batch.drafts, written.bodies, strict=True)):
        large = large or _too_large(index, body, limits)
        events += (one.kind, body, _rest(one))
    arguments = {
        **lease_arguments(batch.lease, limits),
        "number": str(batch.number),
        "seen": str(batch.seen),
        "digest": written.digest,
        "large": flag(large is not None),
        **_settle_arguments(batch.settle),
        **_snapshot_arguments(batch.snapshot if large is None else None),
    }
    return arguments, events if large is None else (), large


def _settle_arguments(settle: Settle | None) -> Arguments:
    if settle is None:
        names = ("settle", "runnable", "settled", "turn", "turn_ended", "started", "stopped", "failed", "agent_status")
        return dict.fromkeys(names, "")
    return {
        "settle": "1",
        "runnable": flag(settle.runnable),
        "settled": " ".join(map(str, settle.settled)),
        "turn": settle.turn.value,
        "turn_ended": flag(settle.turn_ended),
        "started": flag(settle.started),
        "stopped": flag(settle.stopped),
        "failed": flag(settle.failed),
        "agent_status": nullable(settle.agent_status),
    }


def _snapshot_arguments(snapshot: Snapshot | None) -> Arguments:
    if snapshot is None:
        return {"snapshot_seq": "", "fold": "", "loop": ""}
    return {
        "snapshot_seq": str(snapshot.seq),
        "fold": "" if snapshot.fold is None else canonical(snapshot.fold),
        "loop": "" if snapshot.loop is None else canonical(snapshot.loop),
    }


def farewell_arguments(request: Release) -> Arguments:
    """What a release has beside its batch."""
    released = draft(Released(request.batch.lease.incarnation, request.reason.value))
    return {
        "body": canonical(released.body),
        "failed_start": flag(request.reason.value == "failed"),
        "retry_in": "" if request.retry_in_s is None else microseconds(request.retry_in_s),
    }


def _rest(one: Draft) -> str:
    """The envelope of an event, without what the store adds; mostly empty. Before that of a recorded command: its
    delivery, its digest, and its key with the length, since no script decodes JSON."""
    if one.turn is None and not one.opens and not one.closes and one.delivery is None:
        return "{}"
    parts: dict[str, Json] = {}
    if one.turn is not None:
        parts["turn"] = one.turn
    if one.opens:
        parts["opens"] = list(one.opens)
    if one.closes:
        parts["closes"] = list(one.closes)
    if one.delivery is not None:
        of = digest({"kind": one.kind, "body": one.body})
        key = one.key or ""
        return f"{one.delivery.value} {of} {len(key.encode())} {key}{canonical({'key': key})}"
    return canonical(parts)


def _too_large(index: int, body: str, limits: Limits) -> TooLarge | None:
    if 4 * len(body) <= limits.event_bytes:  # no character takes more
        return None
    size = len(body.encode())
    return TooLarge(index, size, limits.event_bytes) if size > limits.event_bytes else None


def conversation_keys(keys: ConversationKeys, *names: str) -> Arguments:
    """Those of a conversation's own keys."""
    return {name: getattr(keys, name) for name in names}
