"""What the scripts answer, as values of the port."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tenure.abc import About, Appended, Death, Load, NodeRecord, Paper, Refusal, Sealed, Snapshot
from tenure.clock import Instant
from tenure.conversation import Record, TurnState
from tenure.errors import Owner
from tenure.journal import Delivery, Event, Policy, Seq
from tenure.lease import Epoch, IncarnationId, Lease, Token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tenure.journal import JsonObject
    from tenure.stores.redis.link import Reply

MICROSECONDS = 1_000_000
MILLISECONDS = 1_000


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [one.decode() for one in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def instant(milliseconds: str | bytes) -> Instant:
    """A moment of wall time as the store keeps it."""
    return Instant(int(milliseconds) / MILLISECONDS)


_POLICIES: dict[bytes, Policy] = {one.value.encode(): one for one in Policy}
_TURNS: dict[bytes, TurnState] = {one.value.encode(): one for one in TurnState}


def _object(text: bytes | None) -> JsonObject:
    """Most conversations have none."""
    return {} if text is None or text == b"{}" else json.loads(text)


def record_of(shown: Sequence[Reply]) -> Record:
    """The record out of what a script shows: the store's now, then the hash, in which what is 0 or false is not there; behind
    it, where the script has changed the record, what it has set, and which fields are gone."""
    now, flat, *changes = shown
    hash: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
    if changes:
        set, gone = changes
        hash.update(zip(set[::2], set[1::2], strict=True))
        for field in gone:
            hash.pop(field, None)
    get = hash.get

    def text(field: bytes) -> str | None:
        value = get(field)
        return None if value is None else value.decode()

    epoch, token = Epoch(int(get(b"epoch", 0))), text(b"token")
    left = int(hash[b"not_before"]) - int(now) if b"not_before" in hash else 0
    return Record(
        conversation=hash[b"conversation"].decode(),
        user_id=text(b"user_id"),
        agent=text(b"agent") or "",
        settings=_object(get(b"settings")),
        policy=_POLICIES[get(b"policy", b"enqueue")],
        title=text(b"title"),
        metadata=_object(get(b"metadata")),
        version=int(get(b"version", 0)),
        epoch=epoch,
        owner=_owner(hash, epoch),
        token=None if token is None else Token(token),
        head=int(get(b"head", 0)),
        last_command=int(get(b"last_command", 0)),
        last_start=int(get(b"last_start", 0)),
        unsettled=int(get(b"unsettled", 0)),
        turn=_TURNS[get(b"turn", b"none")],
        started=get(b"started") == b"1",
        wanted=get(b"wanted") == b"1",
        retry_in_s=left / MICROSECONDS if left > 0 else None,
        lost=int(get(b"lost", 0)),
        failures=int(get(b"failures", 0)),
        stopped=get(b"stopped") == b"1",
        failed=get(b"failed") == b"1",
        deleted=get(b"deleted") == b"1",
        agent_status=text(b"agent_status"),
        created_at=instant(get(b"created_at", b"0")),
        updated_at=instant(get(b"updated_at", b"0")),
    )


def created_no_of(shown: Sequence[Reply]) -> int:
    """The creation number of a conversation that a script has just created."""
    _, _, set, _ = shown
    return int(set[set.index(b"created_no") + 1])


def _owner(hash: dict[bytes, bytes], epoch: Epoch) -> Owner | None:
    owner = hash.get(b"owner")
    if owner is None:
        return None
    since = instant(hash.get(b"owner_since", b"0"))
    node, address = hash[b"owner_node"].decode(), hash[b"owner_address"].decode()
    return Owner(node, IncarnationId(owner.decode()), address, epoch, since)


def appended_of(result: bytes) -> Appended:
    """The answer to a batch, as the record keeps it for a repeat."""
    first, count, head, last_command, at = result.split()
    return Appended(int(first), int(count), int(head), int(last_command), instant(at))


ENTRY = 7
"""An entry of a journal: id, kind, at, epoch, body, rest, delivery."""


def events_of(flat: Sequence[bytes]) -> Iterator[Event]:
    """The events of ``read``."""
    for start in range(0, len(flat), ENTRY):
        id, kind, at, epoch, body, rest, delivery = flat[start : start + ENTRY]
        more: dict[str, Any] = json.loads(rest) if rest != b"{}" else {}
        yield Event(
            seq=Seq(int(id.rpartition(b"-")[2])),
            epoch=Epoch(int(epoch)) if epoch else None,
            kind=kind.decode(),
            at=instant(at),
            body=json.loads(body),
            turn=more.get("turn"),
            opens=tuple(more.get("opens", ())),
            closes=tuple(more.get("closes", ())),
            key=more.get("key"),
            delivery=Delivery(delivery.decode()) if delivery else None,
        )


def snapshot_of(reply: Sequence[bytes | None] | None) -> Snapshot | None:
    """The snapshot of ``read``, if there is one."""
    if reply is None:
        return None
    seq, fold, loop = reply
    return Snapshot(
        int(seq or 0), None if fold is None else json.loads(fold), None if loop is None else json.loads(loop)
    )


def refusal_of(conversation: str, entry: bytes) -> Refusal:
    """A line of the log of refused writes."""
    at, operation, epoch, who = entry.split(b" ", 3)
    length, _, rest = who.partition(b":")
    incarnation, token = rest[: int(length)].decode(), rest[int(length) :].decode()
    lease = Lease(conversation, IncarnationId(incarnation), Epoch(int(epoch)), Token(token))
    return Refusal(instant(at), lease, operation.decode())


def node_of(incarnation: str, flat: Sequence[bytes], now: int) -> tuple[int, NodeRecord]:
    """A node, and its place in the order of registration."""
    hash = _pairs(flat)
    about: dict[str, Any] = json.loads(hash["about"])
    record = NodeRecord(
        IncarnationId(incarnation),
        About(
            about["node"],
            about["address"],
            about["capacity"],
            tuple(about["agents"]),
            Instant(about["started_at"]),
        ),
        Load(int(hash.get("owned", 0)), hash.get("draining") == "1"),
        int(hash["beat"]),
        (int(hash["expires"]) - now) / MICROSECONDS,
        "dead" in hash,
    )
    return int(hash["number"]), record


def death_of(word: bytes) -> Death | None:
    """What a node was buried for; null if its particulars are gone, or an earlier version wrote them."""
    try:
        return Death(word.decode())
    except ValueError:
        return None


def paper_of(kind: str, id: str, kept: bytes) -> Paper:
    """A paper, kept as "<version> <document>"."""
    version, _, document = kept.partition(b" ")
    return Paper(kind, id, json.loads(document), int(version))


def sealed_of(name: str, kept: bytes) -> Sealed:
    """A secret, kept as "<version> <ciphertext>"."""
    version, _, ciphertext = kept.partition(b" ")
    return Sealed(name, ciphertext, int(version))
