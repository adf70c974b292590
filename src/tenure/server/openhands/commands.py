"""What a client of the SDK asks of a conversation, handed to the journal: nobody has to own it, and nobody is asked who does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from fastapi import Request, Response

from tenure.errors import InvalidInputError
from tenure.journal import CORE_COMMANDS, Delivery
from tenure.loops.openhands.live import HALTS
from tenure.server.openhands.place import Place, body_of
from tenure.server.wire import json_reply, text_of

if TYPE_CHECKING:
    from tenure.journal import Json, JsonObject

_PASSED_OVER = {"enable_truncation"}
"""A field of former releases that the SDK still takes."""
KEY = "Idempotency-Key"
"""The SDK's client sends none, others may: the same key is the same command, on every node."""


@final
class SdkCommands:
    """The routes."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def send(self, request: Request) -> Response:
        """A message: recorded, and with ``run`` the agent runs then."""
        return await self._submit(request, "message", message_body(await body_of(request)), Delivery.TURN)

    async def run(self, request: Request) -> Response:
        """The agent runs, behind what was sent before. Never "running already": that would lose a message sent meanwhile."""
        record = await self.place.record(request.path_params["id"])
        if record.stopped:  # Tenure's word, which the SDK does not have; who asks for a run wants one
            await self.place.submit(record.conversation, "start", {}, CORE_COMMANDS["start"])
        return await self._submit(request, "run", {}, Delivery.TURN)

    async def pause(self, request: Request) -> Response:
        """The run ends after its present step."""
        return await self._submit(request, "pause", {}, Delivery.NOW)

    async def interrupt(self, request: Request) -> Response:
        """The run ends now, and so do those that wait behind it."""
        return await self._submit(request, "interrupt", {HALTS: True}, CORE_COMMANDS["interrupt"])

    async def confirm(self, request: Request) -> Response:
        """What waits for a person is approved, and runs; or it is rejected."""
        body = await body_of(request)
        accept, reason = body.get("accept"), body.get("reason")
        if not isinstance(accept, bool):
            raise InvalidInputError("accept", "must be true or false", "give it")
        told: dict[str, Json] = {"accept": accept}
        if isinstance(reason, str):
            told["reason"] = reason
        return await self._submit(request, "confirm", told, Delivery.TURN)

    async def _submit(self, request: Request, kind: str, body: JsonObject, delivery: Delivery) -> Response:
        record = await self.place.record(request.path_params["id"])
        key = request.headers.get(KEY, "")
        if len(key) > 256 or not key.isprintable():
            raise InvalidInputError(KEY, "must be at most 256 printable characters", "shorten it")
        seq = await self.place.submit(record.conversation, kind, body, delivery, key)
        return json_reply(200, {"success": True, "seq": seq})


def message_body(body: Mapping[str, Any]) -> dict[str, Json]:
    """The ``message`` command that a ``SendMessageRequest`` is.

    :raises InvalidInputError: names the field.
    """
    if body.get("role", "user") != "user":
        raise InvalidInputError("role", "must be user", "only users send messages")
    given = body.get("content")
    content: Json = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(content, list) or not content:
        raise InvalidInputError("content", "must be a list of parts", 'send [{"type": "text", "text": "…"}]')
    for at, part in enumerate(content):
        _insist_on_part(f"content[{at}]", part)
    run, sender = body.get("run", False), body.get("sender")
    if not isinstance(run, bool):
        raise InvalidInputError("run", "must be true or false", "leave it out for false")
    told: dict[str, Json] = {"text": text_of(content), "content": content, "run": run}
    if isinstance(sender, str):
        told["sender"] = sender
    return told


def _insist_on_part(where: str, part: Json) -> None:
    """A part as the SDK's models take it: it is judged here, as there it would fail the turn."""
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "image"):
        raise InvalidInputError(where, "must be a text or an image", "correct it")
    kind = str(part["type"])
    if kind == "text" and not isinstance(part.get("text"), str):
        raise InvalidInputError(f"{where}.text", "must be text", 'send {"type": "text", "text": "…"}')
    urls = part.get("image_urls")
    if kind == "image" and not (isinstance(urls, list) and all(isinstance(url, str) for url in urls)):
        raise InvalidInputError(f"{where}.image_urls", "must be a list of URLs", "correct it")
    if not isinstance(part.get("cache_prompt", False), bool):
        raise InvalidInputError(f"{where}.cache_prompt", "must be true or false", "leave it out")
    for name in part.keys() - {"type", "cache_prompt", "text" if kind == "text" else "image_urls"} - _PASSED_OVER:
        if kind == "text":
            raise InvalidInputError(f"{where}.{name[:64]}", "is no field of a text", "leave it out")
