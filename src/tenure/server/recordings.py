"""The event stream, out and in: export, import, fork. Export needs no claim; what comes in is judged before there is one."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, cast, final

from fastapi import Query, Request, Response

from tenure.abc import Creation
from tenure.conversation import Export, read_events, read_export
from tenure.errors import InvalidInputError, TenureError
from tenure.facts import ExportCut
from tenure.journal import Policy
from tenure.node import Copy
from tenure.server.problems import Problem
from tenure.server.stream import reader_leaves, until_one_ends
from tenure.server.strict import read_json, the_key, the_user, too_large
from tenure.server.watch import find, read
from tenure.server.wire import (
    Bounds,
    ConversationId,
    Fork,
    ForUser,
    InPath,
    KeyHeader,
    Name,
    NewConversation,
    derived_id,
    event_text,
    one_reply,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Sequence
    from concurrent.futures import Executor

    from starlette.types import Receive, Scope, Send

    from tenure.conversation import Recording
    from tenure.journal import Json
    from tenure.node import Node
    from tenure.server.conversations import Conversations

LINES = "application/x-ndjson"
CHUNK = 100
"""Events that an export holds in memory at a time."""

type NewId = Annotated[ConversationId | None, Query(description="The copy's id; else derived from user and key.")]
type Rerun = Annotated[bool, Query(description="Send again what the past left unanswered, or else its last message.")]
type Of = Annotated[Name | None, Query(description="The copy's agent, if its name differs here.")]


@final
class Recordings:
    """The routes by which a conversation leaves and comes in."""

    def __init__(self, node: Node, conversations: Conversations, bounds: Bounds) -> None:
        self.node = node
        self.store = node.store
        self.conversations = conversations
        self.bounds = bounds
        self.exporting: set[Lines] = set()
        """The exports under way; as many as the bounds say."""
        self.coming_in = 0
        """The imports, replays and forks under way; as many as the bounds say."""

    async def export(self, conversation: InPath, user_id: ForUser = None) -> Response:
        """The whole journal as JSON lines with checksums, up to the head that the first line names; from any node."""
        first = await read(self.store, conversation, 0, CHUNK, (), user_id)
        sealed = [one.name for one in await self.store.names(conversation)]
        self._admit()
        return Lines(self._lines(conversation, Export(first.record, sealed)), conversation, self)

    def _admit(self) -> None:
        """:raises Problem: as many exports are under way as this node takes."""
        if len(self.exporting) >= self.bounds.exports:
            raise _too_many("exports", "writes", self.bounds.exports)

    @contextmanager
    def _one_more(self) -> Generator[None]:
        """Room for one recording that comes in.

        :raises Problem: as many are under way as this node takes.
        """
        if self.coming_in >= self.bounds.imports:
            raise _too_many("imports", "takes in", self.bounds.imports)
        self.coming_in += 1
        try:
            yield
        finally:
            self.coming_in -= 1

    async def _lines(self, conversation: str, export: Export) -> AsyncIterator[str]:
        yield export.first()
        seq = 0
        while seq < export.head:
            part = await read(self.store, conversation, seq, min(CHUNK, export.head - seq))
            if not part.events:
                return  # deleted or rewound meanwhile: the missing end says so
            yield "\n".join(map(export.event, part.events))
            seq = part.events[-1].seq
        yield export.last()

    async def take_in(
        self, request: Request, id: NewId = None, agent: Of = None, rerun: Rerun = False,
        user_id: ForUser = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """An export, as it was written, becomes the past of a new conversation. Nothing of it runs again.

        Refused before anything is claimed if a line is not as it must be. Repeating it with the same key or id is safe.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != LINES:
            remedy = f"send the header Content-Type: {LINES}"
            raise Problem(
                415, "unsupported-media-type", "The body is no export", f"the content type is {kind[:64]!r}; {remedy}",
                field="content-type", limit=LINES, remedy=remedy,
            )  # fmt: skip
        with self._one_more():
            lines = (await self._body(request)).removesuffix(b"\n").split(b"\n")
            recording = await self._judged(request, lambda: self._read(lines))
            return await self._copy(recording, id, user_id, key, agent, rerun)

    async def replayed(self, request: Request, body: NewConversation, user: str | None, key: str | None) -> Response:
        """``POST /conversations`` with `replay`."""
        replay = body.replay
        assert replay is not None, "only called with one"
        for name in ("message", "settings", "policy"):
            if getattr(body, name) is not None:
                raise InvalidInputError(
                    name, "comes with the recording", "leave it out, and change the copy afterwards"
                )
        if (replay.events is None) == (replay.lines is None):
            raise InvalidInputError("replay", "needs either events or lines", "give one of them")
        with self._one_more():
            if replay.lines is not None:
                lines = [json.dumps(line).encode() for line in replay.lines]
                recording = await self._judged(request, lambda: self._read(lines))
            else:
                events, about = replay.events or [], replay.conversation or {}
                recording = await self._judged(
                    request, lambda: read_events(events, about, event_bytes=self.store.limits.event_bytes)
                )
            return await self._copy(recording, body.id, user, key, body.agent, body.rerun, body)

    async def fork(
        self, request: Request, conversation: InPath, body: Fork, user_id: ForUser = None, key: KeyHeader = None
    ) -> Response:
        """A new conversation whose past is this one's up to `at` (default: its head). The original goes on as before.

        Settings are copied as they were there. Secrets of the vault are not: the reply lists their names in `vault`.
        """
        user = the_user(user_id, body.user_id)
        record = await find(self.store, conversation, user)
        at = record.head if body.at is None else body.at
        if not 1 <= at <= record.head:
            raise InvalidInputError("at", f"must lie in 1 to {record.head}, the head", "name a seq of the journal")
        about: dict[str, Json] = {
            "id": conversation,
            "agent": record.agent,
            "agent_status": record.agent_status if at == record.head else None,
            "title": record.title,
            "metadata": record.metadata,
        }
        with self._one_more():
            lines = await self._journal(conversation, at)
            recording = await self._judged(
                request,
                lambda: read_events(map(json.loads, lines), about, event_bytes=self.store.limits.event_bytes),
            )
            owner = user if user is not None else record.user_id
            sealed = [one.name for one in await self.store.names(conversation)]
            key = the_key(body.key, key)
            return await self._copy(recording, body.id, owner, key, body.agent, body.rerun, body, sealed)

    async def _journal(self, conversation: str, at: int) -> list[str]:
        """The events up to `at` as texts, within the limit for a recording."""
        texts: list[str] = []
        size = 0
        while len(texts) < at:
            part = await read(self.store, conversation, len(texts), min(CHUNK, at - len(texts)))
            if not part.events:
                raise InvalidInputError("at", "the journal was rewound meanwhile", "read it anew")
            texts += map(event_text, part.events)
            size += sum(len(text) for text in texts[-len(part.events) :])
            if size > self.bounds.recording_bytes:
                raise too_large("at", f"the past is larger than {self.bounds.recording_bytes} bytes")
        return texts

    # --- parts ------------------------------------------------------------------------------------------------------

    def _read(self, lines: list[bytes]) -> Recording:
        return read_export(lines, event_bytes=self.store.limits.event_bytes, parse=read_json)

    async def _body(self, request: Request) -> bytes:
        limit = self.bounds.recording_bytes
        data, chunks = bytearray(), request.stream()
        while True:
            try:
                async with asyncio.timeout(self.bounds.slow_s):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                remedy = "send it again, on a faster line"
                raise Problem(
                    408, "body-too-slow", "The body stopped", f"nothing came for {self.bounds.slow_s:g} s; {remedy}",
                    field="body", limit=f"at most {self.bounds.slow_s:g} s between two parts", remedy=remedy,
                ) from None  # fmt: skip
            if chunk is None:
                return bytes(data)
            data += chunk
            if len(data) > limit:
                raise too_large("body", f"at most {limit} bytes (the node's `recording_bytes`)")

    async def _judged(self, request: Request, judge: Callable[[], Recording]) -> Recording:
        """In a thread: a long recording takes its time, and the event loop has streams to serve."""
        beside = cast("Executor", request.app.state.large_bodies)
        return await asyncio.get_running_loop().run_in_executor(beside, judge)

    async def _copy(
        self, recording: Recording, id: str | None, user: str | None, key: str | None, agent: str | None, rerun: bool,
        named: NewConversation | Fork | None = None, sealed: Sequence[str] | None = None,
    ) -> Response:  # fmt: skip
        title, metadata = (None, None) if named is None else (named.title, named.metadata)
        agent = agent or recording.agent
        await self.conversations.checked(agent, recording.settings)
        creation = Creation(
            agent=agent,
            user_id=user,
            settings=recording.settings,
            policy=Policy(recording.policy),
            title=title if title is not None else recording.title,
            metadata=metadata if metadata is not None else recording.metadata,
        )
        conversation = id or derived_id(user, key)
        done = await self.node.rehydrate(Copy(conversation, recording, creation, rerun))
        shape = await self.conversations.shape(done.record, alone=True)
        if sealed is not None:
            shape["vault"] = sealed
        return one_reply(201 if done.created else 200, shape)


def _too_many(what: str, does: str, most: int) -> Problem:
    remedy = "try again in a moment, or ask another node"
    return Problem(
        503, f"too-many-{what}", f"Too many {what}", f"this node {does} {most} just now; {remedy}",
        retry_after_s=1, limit=f"at most {most} at a time", remedy=remedy,
    )  # fmt: skip


@final
class Lines(Response):
    """A reply that is written line by line, no faster than it is read."""

    media_type = LINES

    def __init__(self, lines: AsyncIterator[str], conversation: str, room: Recordings) -> None:
        name = f'attachment; filename="{conversation}.ndjson"'
        headers = {"Cache-Control": "no-store", "Content-Disposition": name}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._lines = lines
        self._conversation = conversation
        self._facts = room.node.facts
        self._slow_s = room.bounds.slow_s
        self._under_way = room.exporting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._under_way.add(self)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_one_ends(self._write(send), reader_leaves(receive))
        finally:
            self._under_way.discard(self)

    async def _write(self, send: Send) -> None:
        try:
            async for text in self._lines:
                async with asyncio.timeout(self._slow_s):
                    await send({"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": True})
        except (TenureError, TimeoutError) as error:
            self._facts.tell(ExportCut(self._conversation, str(error) or "it was read too slowly"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
