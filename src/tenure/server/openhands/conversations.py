"""A conversation's life under the SDK's paths: create, show, find, change, delete."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, assert_never, cast, final

from fastapi import Request, Response

from tenure.abc import Accepted, Creation, Deleted, Filters, Stale, Submit, Unknown
from tenure.errors import InvalidInputError, UnknownConversationError
from tenure.journal import Delivery
from tenure.loops.openhands.requests import secret_value
from tenure.loops.openhands.settings import names_in
from tenure.node import sealing
from tenure.server.commands import accepted
from tenure.server.judging import checked
from tenure.server.openhands.commands import message_body
from tenure.server.openhands.place import TRIES, Place, body_of, conversation_id
from tenure.server.openhands.refusals import refuse_fields
from tenure.server.problems import Problem
from tenure.server.wire import json_reply
from tenure.vault import Secret

if TYPE_CHECKING:
    from tenure.conversation import Record
    from tenure.journal import Json, JsonObject
    from tenure.loops.openhands.projection import Projection

SUCCESS: Mapping[str, Json] = {"success": True}
MOST_IDS = 100


@final
class SdkConversations:
    """The routes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.node = place.node

    async def create(self, request: Request) -> Response:
        """201 for a new conversation, 200 for one that is there already, as it is; its secrets are in the vault then.

        Repeating it with an id is safe: a creation that was cut off is finished.
        """
        body = await body_of(request)
        refuse_fields(body)
        name, loop = next(iter(self.place.loops.items()))
        wanted = body.get("conversation_id")
        conversation = str(uuid.uuid4()) if wanted is None else _uuid(wanted)
        asked = await loop.asked(body)
        creation = Creation(
            agent=name,
            default_agent=self.node.default_agent,
            user_id=_text(body, "user_id"),
            settings=await checked(self.node, name, asked.settings),
            title=_text(body, "title"),
            metadata={"tags": _tags(body)} if body.get("tags") else None,
        )
        if asked.secrets:
            sealing.insist_on_keys(self.node.keys)  # before anything is created that could not be finished
        created = await self._created(conversation, creation)
        await self._seal_missing(conversation, asked.secrets)
        first = body.get("initial_message")
        if isinstance(first, dict):  # under a key of its own: once, however often the request is repeated
            told = message_body(cast("dict[str, Any]", first))
            await self.place.submit(conversation, "message", told, Delivery.TURN, "initial-message")
        return await self._reply(201 if created else 200, conversation)

    async def _created(self, conversation: str, creation: Creation) -> bool:
        try:
            await self.place.record(conversation)
        except UnknownConversationError:
            result = accepted(conversation, await self.node.submit(Submit(conversation, None, creation)))
            return isinstance(result, Accepted) and result.created
        return False

    async def _seal_missing(self, conversation: str, values: Mapping[str, str]) -> None:
        """What the settings refer to and the vault does not have yet."""
        if not values:
            return
        there = {one.name for one in await self.node.store.names(conversation)}
        for name, value in values.items():
            if name not in there:
                await sealing.put(self.node.store, self.node.keys, conversation, name, Secret(value))

    async def show(self, request: Request) -> Response:
        """The conversation and its state, whoever owns it."""
        record = await self.place.record(request.path_params["id"])
        return await self._reply(200, record.conversation)

    async def _reply(self, status: int, conversation: str) -> Response:
        seen = await self.place.projection(conversation)
        return json_reply(status, await self._info(seen))

    async def _info(self, seen: Projection) -> dict[str, Json]:
        return info(self.place, seen, await self.place.agent(seen))

    async def some(self, request: Request) -> Response:
        """Those that the query names, in its order; null for one that is not there."""
        ids = request.query_params.getlist("ids")
        if not 1 <= len(ids) <= MOST_IDS:
            raise InvalidInputError("ids", f"must name 1 to {MOST_IDS} conversations", "use /search for all")
        found: list[Json] = []
        for one in ids:
            try:
                record = await self.place.record(one)
                found.append(await self._info(await self.place.projection(record.conversation)))
            except UnknownConversationError:
                found.append(None)
        return json_reply(200, found)

    async def search(self, request: Request) -> Response:
        """A page of OpenHands conversations, oldest first; it may be short: only a null `next_page_id` is the end."""
        limit = number(request, "limit", 100, 100)
        try:
            page = await self.node.store.list(Filters(), request.query_params.get("page_id"), limit)
        except (ValueError, OverflowError):
            raise InvalidInputError("page_id", "is none of this server's", "use next_page_id") from None
        ours = [r for r in page.items if r.agent in self.place.loops and _is_uuid(r.conversation)]
        items = [await self._info(await self.place.projection(record.conversation)) for record in ours]
        return json_reply(200, {"items": items, "next_page_id": page.cursor})

    async def change(self, request: Request) -> Response:
        """Title and tags."""
        record, body = await self.place.record(request.path_params["id"]), await body_of(request)

        async def changes(now: Record) -> JsonObject:
            named: dict[str, Json] = {"title": _text(body, "title")} if "title" in body else {}
            if body.get("tags") is not None:
                named["metadata"] = {**now.metadata, "tags": _tags(body)}
            return named

        if not await changes(record):
            raise InvalidInputError("body", "names nothing to change", "give title or tags")
        await self.place.amend(record, changes)
        return json_reply(200, SUCCESS)

    async def delete(self, request: Request) -> Response:
        """Delete it for good."""
        record = await self.place.record(request.path_params["id"])
        for _ in range(TRIES):
            result = await self.node.store.delete(record.conversation, record.epoch, "operator")
            match result:
                case Deleted():
                    self.node.forget(record.conversation, record.epoch)
                    return json_reply(200, SUCCESS)
                case Stale(record):
                    continue
                case Unknown():
                    raise UnknownConversationError(record.conversation)
                case _:
                    assert_never(result)
        raise Problem(503, "busy", "Others are always faster", "it was claimed again and again; repeat it")

    # --- settings ---------------------------------------------------------------------------------------------------

    async def set_policy(self, request: Request) -> Response:
        """From the next turn on."""
        return await self._set(request, "confirmation_policy", (await body_of(request)).get("policy"))

    async def set_analyzer(self, request: Request) -> Response:
        """From the next turn on."""
        return await self._set(request, "security_analyzer", (await body_of(request)).get("security_analyzer"))

    async def _set(self, request: Request, name: str, value: Json) -> Response:
        record = await self.place.record(request.path_params["id"])

        async def changes(now: Record) -> JsonObject:
            settings = {key: kept for key, kept in now.settings.items() if key != name}
            if value is not None:
                settings[name] = value
            return {"settings": await checked(self.node, now.agent, settings)}

        await self.place.amend(record, changes)
        return json_reply(200, SUCCESS)

    async def set_secrets(self, request: Request) -> Response:
        """Into the vault; the settings name them, and the next turn has them.

        A value that is replaced stands under another name in the vault than the one before: so a new reference tells
        the owner, and who reads the old one meanwhile finds it. What the agent's models use is not replaced in passing.
        """
        record, body = await self.place.record(request.path_params["id"]), await body_of(request)
        given = body.get("secrets")
        if not isinstance(given, dict):
            raise InvalidInputError("secrets", "must be an object of names and values", "correct it")
        values = {name: secret_value(name, one) for name, one in cast("dict[str, Any]", given).items()}
        for name in values.keys() & names_in([record.settings.get("agent"), record.settings.get("llm")]):
            remedy = "choose another name; tenure vault put changes the agent's own"
            raise InvalidInputError(f"secrets.{name}", "is a key of the conversation's agent", remedy)
        credentials: dict[str, Json] = dict(cast("Mapping[str, Json]", record.settings.get("credentials") or {}))
        for name, value in values.items():
            kept = name if credentials.get(name) != f"vault:{name}" else f"{name}.next"
            await sealing.put(self.node.store, self.node.keys, record.conversation, kept, Secret(value))
            credentials[name] = f"vault:{kept}"
        named = {name: credentials[name] for name in values}

        async def changes(now: Record) -> JsonObject:
            before = cast("Mapping[str, Json]", now.settings.get("credentials") or {})
            settings = {**now.settings, "credentials": {**before, **named}}
            return {"settings": await checked(self.node, now.agent, settings)}

        if values:
            await self.place.amend(record, changes)
        return json_reply(200, SUCCESS)


def info(place: Place, seen: Projection, agent: JsonObject | None) -> dict[str, Json]:
    """A ConversationInfo, with ours: `tenure` says which working folder the conversation has."""
    record = seen.record
    assert record is not None, "read before it is told"
    asked = record.settings.get("working_dir")
    used = asked is not None and place.node.provider.named_folder(record.settings) is not None
    return {**seen.info(agent), "tenure": {"working_dir": {"asked": asked, "used": used}, "epoch": record.epoch}}


def number(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query.

    :raises InvalidInputError: none, or out of bounds.
    """
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= most:
        raise InvalidInputError(name, f"must be 1 to {most}", "correct it")
    return int(text)


def _uuid(value: object) -> str:
    try:
        return conversation_id(str(value))
    except UnknownConversationError:
        raise InvalidInputError("conversation_id", "must be a UUID", "leave it out for a new one") from None


def _is_uuid(text: str) -> bool:
    try:
        return conversation_id(text) == text
    except UnknownConversationError:
        return False


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        raise InvalidInputError(name, "must be 1 to 256 printable characters", "correct it")
    return value


def _tags(body: Mapping[str, Any]) -> dict[str, Json]:
    tags = body.get("tags")
    if not isinstance(tags, dict) or len(cast("dict[str, Any]", tags)) > 100:
        raise InvalidInputError("tags", "must be an object of at most 100 texts", "correct it")
    told = cast("dict[str, Any]", tags)
    if not all(isinstance(value, str) and len(value) <= 256 for value in told.values()):
        raise InvalidInputError("tags", "must have texts of at most 256 characters", "correct it")
    return told
