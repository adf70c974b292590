"""A record that was lost while its journal was not: made anew from what the journal says.

That happens to stores that were evicted or restored in part. What the journal says is all there: epoch, head, owner, settings,
pending commands. What it does not say starts anew: title, metadata, counters; the lease's token, so that whoever held it is
fenced and claims again. The conversation is wanted: its next owner finds out what is to be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.conversation import Fold, fold
from tenure.errors import JournalError, StoreError
from tenure.journal import Claimed, canonical, digest, read_body
from tenure.lease import new_token
from tenure.stores.redis.replies import MILLISECONDS, events_of
from tenure.stores.redis.scripts import script
from tenure.stores.redis.servers import Lane

if TYPE_CHECKING:
    from tenure.journal import Event
    from tenure.stores.redis.keys import ConversationKeys
    from tenure.stores.redis.link import Command, Reply
    from tenure.stores.redis.servers import Servers

PIECE = 500
"""Entries and keys that are read or written at once."""


async def rebuild(servers: Servers, keys: ConversationKeys, conversation: str) -> None:
    """Write the record, unless somebody has meanwhile, or the journal has moved; look again either way.

    :raises StoreError: the journal is broken as well.
    """
    events, last = await _journal(servers, keys)
    if not events:
        return
    try:
        state = fold(Fold(), events)
    except JournalError as error:
        raise StoreError(
            f"the record of conversation {conversation} is lost, and its journal cannot be read: {error}; "
            "restore the store from a backup"
        ) from error
    await _put_keys(servers, keys, events)
    epoch, _, seq = last.partition("-")
    fields = _fields(conversation, state, events, int(epoch))
    places = await _places(servers, keys, conversation)
    partition = keys.partition
    call = script("rebuild").call(
        lock=keys.lock,
        journal=keys.journal,
        wanted=partition.wanted,
        owners=partition.owners,
        named=partition.named,
        created=partition.created,
        epoch=epoch,
        seq=seq,
        places=len(places),
        fields=[*places, *(text for field in fields.items() for text in field)],
    )
    await servers.run(keys.tag, call)


async def _journal(servers: Servers, keys: ConversationKeys) -> tuple[list[Event], str]:
    """All events, and the id of the last entry."""
    events: list[Event] = []
    last = ""
    while True:
        start = f"({last}" if last else "-"
        (piece,) = await servers.get(keys.tag, ("XRANGE", keys.journal, start, "+", "COUNT", PIECE))
        if not piece:
            return events, last
        flat: list[Reply] = []
        for id, fields in piece:
            flat += (id, *fields[1::2])
            last = id.decode()
        events += events_of(flat)


async def _put_keys(servers: Servers, keys: ConversationKeys, events: list[Event]) -> None:
    commands: list[Command] = [
        ("HSETNX", keys.keys, event.key, f"{event.seq} {digest({'kind': event.kind, 'body': event.body})}")
        for event in events
        if event.key is not None
    ]
    for start in range(0, len(commands), PIECE):
        await servers.get(keys.tag, *commands[start : start + PIECE], lane=Lane.WRITES)


async def _places(servers: Servers, keys: ConversationKeys, conversation: str) -> list[bytes]:
    """Where the lost record still stands among the wanted: by its id at the end, which a longer id may share."""
    (wanted,) = await servers.get(keys.tag, ("ZRANGE", keys.partition.wanted, 0, -1))
    return [place for place in wanted if conversation_in(place) == conversation]


def conversation_in(place: bytes) -> str:
    """The conversation that stands at a place of ``wanted`` (see ``place`` in ``lua/shared/record.lua``)."""
    rest = place
    for _ in range(2):  # owner, agent
        length, _, rest = rest.partition(b":")
        rest = rest[int(length) :]
    length, _, rest = rest.partition(b" ")[2].partition(b":")  # behind end of back-off and epoch: the token
    return rest[int(length) :].decode()


def _fields(conversation: str, state: Fold, events: list[Event], epoch: int) -> dict[str, str | int]:
    commands = [event.seq for event in events if event.is_command]
    starts = [event.seq for event in events if event.is_command and event.kind == "start"]
    fields: dict[str, str | int | None] = {
        "conversation": conversation,
        "user_id": state.user_id,
        "agent": state.agent,
        "settings": canonical(state.settings),
        "settings_digest": digest(state.settings),
        "policy": state.policy.value,
        "metadata": "{}",
        "version": 1,
        "epoch": epoch,
        "head": state.seq,
        "last_command": commands[-1] if commands else 0,
        "last_start": starts[-1] if starts else 0,
        "unsettled": len(state.pending),
        "turn": state.turn_state.value,
        "wanted": 1,
        "stopped": int(state.stopped),
        "open_start": next((seq for seq, command in state.pending.items() if command.kind == "start"), 0),
        "created_at": round(events[0].at.unix_s * MILLISECONDS),
        "updated_at": round(events[-1].at.unix_s * MILLISECONDS),
        **(_owner(events) if state.owned else {}),
    }
    return {field: value for field, value in fields.items() if value not in (None, 0)}


def _owner(events: list[Event]) -> dict[str, str | int]:
    event = next(event for event in reversed(events) if event.kind == Claimed.kind)
    body = read_body(event)
    assert isinstance(body, Claimed), "of that kind"
    return {
        "owner": body.incarnation,
        "owner_node": body.node,
        "owner_address": body.address,
        "owner_since": round(event.at.unix_s * MILLISECONDS),
        "token": new_token(),
    }
