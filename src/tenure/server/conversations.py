"""Conversations as such: create, list, show, change, delete, read. None of it needs a claim or a living owner (G8)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, assert_never, final

from fastapi import Header, Query, Request, Response

from tenure.abc import Accepted, Amended, Creation, Deleted, Duplicate, Filters, Stale, Submit, Unknown
from tenure.conversation import TELLING, Status, timeline
from tenure.errors import ConversationDeletedError, InvalidInputError, UnknownConversationError
from tenure.journal import Command, Delivery, JsonObject, canonical
from tenure.server.commands import accepted
from tenure.server.failures import failure_of
from tenure.server.judging import checked
from tenure.server.problems import Problem
from tenure.server.recordings import Recordings
from tenure.server.stream import EventStream, Place
from tenure.server.strict import the_key, the_user, too_large
from tenure.server.watch import Watches, epoch_at, find, read
from tenure.server.wire import (
    Bounds,
    Changes,
    Cursor,
    ForUser,
    InPath,
    KeyHeader,
    Name,
    NewConversation,
    PageLimit,
    conversation_shape,
    derived_id,
    event_text,
    json_reply,
    one_reply,
)

if TYPE_CHECKING:
    from tenure.conversation import Record
    from tenure.journal import Event, Json
    from tenure.node import Node

TRIES = 5
"""How often a compare-and-swap is tried again when somebody else was faster."""
CHUNK = 50
"""Events read at a time, so that a page of large ones ends early."""

type ListCursor = Annotated[str | None, Query(max_length=300, pattern=r"^[\x21-\x7e]+$")]
type After = Annotated[
    Cursor, Query(description="`seq`, or `seq:epoch`: 409 `rewound` if another epoch is in force there.")
]
type AfterSeq = Annotated[int, Query(ge=0, lt=10**15, description="`next_after` of the page before.")]
type Kinds = Annotated[list[Name], Query(max_length=50, description="Only these kinds; may be repeated.")]
type Words = Annotated[
    Name | None, Query(description="In the id, the title, the user or the agent; upper and lower case alike.")
]
type Until = Annotated[int | None, Query(ge=1, lt=10**15, description="The seq of a command.")]
type ETag = Annotated[str | None, Header(alias="If-Match", pattern=r'^(\*|"?[0-9]{1,15}"?)$')]
type LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^([0-9]{1,15}(:[0-9]{1,15})?)?$")]


@final
class Conversations:
    """The routes of a conversation's life and of its journal."""

    def __init__(self, node: Node, watches: Watches, bounds: Bounds) -> None:
        self.node = node
        self.store = node.store
        self.watches = watches
        self.bounds = bounds
        self.recordings = Recordings(node, self, bounds)

    async def create(
        self, request: Request, body: NewConversation, user_id: ForUser = None, key: KeyHeader = None
    ) -> Response:
        """Create a conversation, and send its first message in the same step. Repeating it is safe.

        201 when it is new, 200 when this user has it already with the same (or no) settings, else 409. With `replay`, a
        recorded stream becomes its past, and nothing of it runs again.
        """
        user = the_user(user_id, body.user_id)
        key = the_key(body.key, body.message and body.message.key, key)
        if body.replay is not None:
            return await self.recordings.replayed(request, body, user, key)
        if body.rerun:
            raise InvalidInputError("rerun", "needs a replay", "leave it out")
        conversation = body.id or derived_id(user, key)
        creation = Creation(
            agent=body.agent,
            default_agent=self.node.default_agent,
            user_id=user,
            settings=await self.checked(body.agent or self.node.default_agent, body.settings),
            policy=body.policy,
            title=body.title,
            metadata=body.metadata,
        )
        command = None
        if body.message is not None:
            message = body.message.command_body()
            command = Command("message", message, key or secrets.token_hex(16), Delivery.TURN)
        result = accepted(conversation, await self.node.submit(Submit(conversation, command, creation)))
        new = isinstance(result, Accepted) and result.created
        shape = await self.shape(result.record, alone=True)
        if command is not None:
            shape |= {"seq": result.seq, "duplicate": isinstance(result, Duplicate)}
        return one_reply(201 if new else 200, shape)

    async def list(
        self,
        user_id: ForUser = None,
        status: Status | None = None,
        owner: Name | None = None,
        agent: Name | None = None,
        search: Words = None,
        limit: PageLimit = 100,
        cursor: ListCursor = None,
    ) -> Response:
        """Conversations in order of creation. A page may be short, even empty; only a null cursor is the end."""
        try:
            page = await self.store.list(Filters(user_id, owner, agent), cursor, limit)
        except (ValueError, OverflowError):
            raise InvalidInputError("cursor", "is none of this store's", "use next_cursor of the last page") from None
        shapes = [await self.shape(record) for record in page.items]
        shown = [
            shape
            for shape in shapes
            if status in (None, shape["status"])
            and (owner is None or shape["owner"] is not None)
            and (search is None or _holds(shape, search.casefold()))
        ]
        return json_reply(200, {"conversations": shown, "next_cursor": page.cursor})

    async def show(self, conversation: InPath, user_id: ForUser = None) -> Response:
        """A conversation: what it does, and who owns it, if somebody alive does."""
        return one_reply(200, await self.shape(await find(self.store, conversation, user_id), alone=True))

    async def change(
        self, conversation: InPath, body: Changes, user_id: ForUser = None, if_match: ETag = None
    ) -> Response:
        """Change title, metadata or settings (for the next turn). With `version` or ``If-Match``, only that version."""
        changes = body.named()
        expected = _version(body.version, if_match)
        record = await find(self.store, conversation, the_user(user_id, body.user_id))
        if body.settings is not None:
            changes = {**changes, "settings": await self.checked(record.agent, body.settings)}
        for _ in range(TRIES):
            if expected not in (None, record.version):
                break
            result = await self.store.amend(conversation, record.version, changes)
            match result:
                case Amended(record):
                    return one_reply(200, await self.shape(record, alone=True))
                case Stale(record):
                    continue
                case Deleted():
                    raise ConversationDeletedError(conversation)
                case Unknown():
                    raise UnknownConversationError(conversation)
                case _:
                    assert_never(result)
        raise _stale("version", f"is {record.version} by now", 412 if expected is not None else 409)

    async def delete(self, conversation: InPath, user_id: ForUser = None) -> Response:
        """Delete it for good; its id is never used again. Deleting twice is fine."""
        try:
            record = await find(self.store, conversation, user_id)
        except ConversationDeletedError:
            return Response(status_code=204)
        for _ in range(TRIES):
            result = await self.store.delete(conversation, record.epoch, user_id or "operator")
            match result:
                case Deleted():
                    self.node.forget(conversation, record.epoch)
                    return Response(status_code=204)
                case Stale(record):
                    continue
                case Unknown():
                    raise UnknownConversationError(conversation)
                case _:
                    assert_never(result)
        raise _stale("epoch", f"moved on while deleting, to {record.epoch}", 409)

    # --- the journal ------------------------------------------------------------------------------------------------

    async def events(
        self, conversation: InPath, user_id: ForUser = None,
        after: After = "0", limit: PageLimit = 100, kind: Kinds = [],  # noqa: B006 - declared, not shared
    ) -> Response:  # fmt: skip
        """A page of the journal. A page may be short; there is more while `next_after` is below `last_seq`."""
        place = Place.parse(after)
        if place.cursor_epoch is not None:
            await self._refuse_rewound(conversation, place, user_id)
        texts: list[str] = []
        size, seq, head, more = 0, place.after, 0, True
        while more and len(texts) < limit:
            part = min(CHUNK, limit - len(texts), self.store.limits.page)
            reading = await read(self.store, conversation, seq, part, kind, user_id)
            head = reading.record.head
            for event in reading.events:
                texts.append(event_text(event))
                size, seq = size + len(texts[-1]), event.seq
                if size >= self.bounds.page_bytes:
                    break
            else:
                if len(reading.events) < part:
                    seq = max(seq, head)  # also past what the filter left out
            more = size < self.bounds.page_bytes and len(reading.events) == part
        return json_reply(200, {"last_seq": head, "next_after": seq}, texts)

    async def _refuse_rewound(self, conversation: str, place: Place, user_id: str | None) -> None:
        head = (await find(self.store, conversation, user_id)).head
        if place.after <= head and await epoch_at(self.store, conversation, place.after) == place.cursor_epoch:
            return
        remedy = "read the journal anew, from 0"
        raise Problem(
            409, "rewound", "The store was rewound", f"the journal at {place.after} is not what it was; {remedy}",
            field="after", limit="must be a cursor of this journal", remedy=remedy, last_seq=head,
        )  # fmt: skip

    async def timeline(
        self, conversation: InPath, user_id: ForUser = None, after: AfterSeq = 0, limit: PageLimit = 100
    ) -> Response:
        """Who owned it, from when to when, why it moved, and which late writes of whom were refused."""
        events: list[Event] = []
        left, seq, more = (limit + 1) * len(TELLING), after, True
        reading = await read(self.store, conversation, seq, 0, TELLING, user_id)
        while more and left > 0:
            part = min(left, self.store.limits.page)
            reading = await read(self.store, conversation, seq, part, TELLING, user_id)
            events += reading.events
            left, more = left - part, len(reading.events) == part
            seq = events[-1].seq if events else seq
        refusals = await self.store.refusals(conversation)
        told = timeline(events, [(r.at, r.lease.incarnation, r.lease.epoch, r.operation) for r in refusals])
        _, owner = await self.node.describe(reading.record)
        return json_reply(
            200,
            {
                "tenures": [one.as_json() for one in told[:limit]],
                "owner": owner and owner.as_json(),
                "last_seq": reading.record.head,
                # The one behind the page was read to know how the last one of the page ended.
                "next_after": told[limit].seq - 1 if len(told) > limit else None,
            },
        )

    async def stream(
        self, conversation: InPath, user_id: ForUser = None,
        after: After = "0", until: Until = None, last_event_id: LastEventId = None,
    ) -> Response:  # fmt: skip
        """The journal from a cursor on, as it grows, with deltas. ``Last-Event-ID`` wins over `after`: it is newer.

        With `until`, up to the event that settles that command.
        """
        place = Place.parse(last_event_id or after)
        place.until = until

        async def start() -> Place:
            await find(self.store, conversation, user_id)
            return place

        return EventStream(self.watches, self.bounds, conversation, start)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def shape(self, record: Record, *, alone: bool = False) -> dict[str, Json]:
        status, owner = await self.node.describe(record)
        shape = conversation_shape(record, status, owner)
        if not alone:
            return shape
        return {**shape, "settings": record.settings, "failure": await failure_of(self.store, record)}

    async def checked(self, agent: str, settings: JsonObject | None) -> JsonObject | None:
        """The settings as the agent keeps them. In a mixed fleet the agent may be known to other nodes only.

        :raises InvalidInputError: nobody alive knows the agent, or it refuses the settings. :raises Problem: too large.
        """
        limit = self.store.limits.event_bytes - 1000  # they stand in an event, beside other things
        if settings is not None and len(canonical(settings).encode()) > limit:
            raise too_large("settings", f"at most {limit} bytes of JSON")
        here = self.node.agents.get(agent)
        if settings is not None:
            settings = await checked(self.node, agent, settings)
        if here is not None:
            return settings
        living = (await self.node.living()).values()
        known = {name for one in living if not one.dead for name in one.about.agents} | set(self.node.agents)
        if agent not in known:
            raise InvalidInputError(
                "agent", f"no node runs it (known: {', '.join(sorted(known))})", "name one of these"
            )
        return settings


def _holds(shape: dict[str, Json], words: str) -> bool:
    return any(words in str(shape[part] or "").casefold() for part in ("id", "title", "user_id", "agent"))


def _version(in_body: int | None, if_match: str | None) -> int | None:
    in_header = None if if_match in (None, "*") else int(if_match.strip('"'))
    if in_body is not None and in_header not in (None, in_body):
        raise InvalidInputError("version", "the body and the header If-Match differ", "give one version")
    return in_header if in_body is None else in_body


def _stale(field: str, limit: str, status: int) -> Problem:
    remedy = "read the conversation again, then decide"
    title = "Somebody else was faster"
    return Problem(status, "stale", title, f"{field} {limit}; {remedy}", field=field, limit=limit, remedy=remedy)
