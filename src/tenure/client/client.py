"""The client: one or several addresses of one cluster, and what may be asked of it."""

from __future__ import annotations

import asyncio
import random
import secrets
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, final
from urllib.parse import quote

import httpx

from tenure import errors
from tenure.client.replies import (
    Conversation,
    LoopInfo,
    NodeInfo,
    Sent,
    StartProgress,
    UnreachableError,
    conversation_of,
    loop_info_of,
    may_pass,
    node_of,
    refusal,
    start_progress_of,
)
from tenure.client.stream import FIRST_PAUSE_S, Ask, Stream
from tenure.conversation import TenureSpan
from tenure.errors import TenureError
from tenure.journal import Event, Json, JsonObject

if TYPE_CHECKING:
    from tenure.conversation import Status

LONGEST_PAUSE_S = 5.0
ANSWER_S = 10.0
"""How long a node may take, beside what it was asked to wait."""
COPY_S = 300.0
"""How long the past of a copy may take to be written."""
SILENCE_S = 40.0
"""A stream that says nothing for this long is dead: the server comments every 15 s."""


@final
class Client:
    """A way to the cluster, through one or several of its nodes.

    :param user_id: act for this user; without one, for the operator.
    :param patience_s: how long to go on asking while no node, or no store, answers.
    :param transport: for tests, or for a proxy of one's own.

    Methods raise the errors of :mod:`tenure.errors` that the server had; :class:`ProblemError` for any other refusal;
    :class:`UnreachableError` when patience has ended.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        user_id: str | None = None,
        patience_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.urls = [url.rstrip("/") for url in ([base_urls] if isinstance(base_urls, str) else base_urls)]
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise errors.InvalidInputError("base_urls", "must be URLs with http or https", "give those of the nodes")
        self.user_id = user_id
        self.patience_s = patience_s
        self._rng = rng or random.Random()
        self._at = 0
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        secure = any(url.startswith("https:") for url in self.urls)  # reading certificates takes its time
        self._http = httpx.AsyncClient(headers=headers, limits=limits, transport=transport, verify=secure)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for stream in list(self._streams):
            await stream.aclose()
        await self._http.aclose()

    # conversations

    async def create(
        self,
        id: str | None = None,
        *,
        agent: str | None = None,
        settings: JsonObject | None = None,
        message: str | JsonObject | None = None,
        key: str | None = None,
        title: str | None = None,
        metadata: JsonObject | None = None,
        policy: str | None = None,
    ) -> Conversation:
        """Create a conversation, and send its first message in the same step; one that exists and fits is found.

        Without an id, one is derived from the user and the key, so that a repetition makes no second one.
        """
        given = {
            "id": id, "agent": agent, "settings": settings, "message": message, "title": title,
            "metadata": metadata, "policy": policy, "key": key,
        }  # fmt: skip
        if key is None and not (isinstance(message, Mapping) and "key" in message):
            given["key"] = _new_key()
        body = {name: value for name, value in given.items() if value is not None}
        return conversation_of((await self._ask("POST", "/conversations", body=body, of=id or "")).json())

    async def get(self, conversation_id: str) -> Conversation:
        """What a conversation does, and who owns it."""
        return conversation_of((await self._ask("GET", path_of(conversation_id), of=conversation_id)).json())

    async def conversations(
        self, *, status: Status | str | None = None, owner: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Conversation]:
        """All conversations in order of creation, page by page, up to `limit`."""
        cursor, left = None, limit
        while left is None or left > 0:
            params = {"status": status, "owner": owner, "cursor": cursor, "limit": min(left or 1000, 1000)}
            page = (await self._ask("GET", "/conversations", params=params)).json()
            for shape in page["conversations"][:left]:
                yield conversation_of(shape)
            left = None if left is None else left - len(page["conversations"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def patch(self, conversation_id: str, *, version: int | None = None, **changes: Json) -> Conversation:
        """Change ``title``, ``metadata`` or ``settings``; with `version`, only that version."""
        body = changes if version is None else {**changes, "version": version}
        answer = await self._ask(
            "PATCH", path_of(conversation_id), body=body, of=conversation_id, again=version is None
        )
        return conversation_of(answer.json())

    async def delete(self, conversation_id: str) -> None:
        """Delete it for good; deleting twice is fine."""
        await self._ask("DELETE", path_of(conversation_id), of=conversation_id)

    # the event stream, out and in

    async def export(self, conversation_id: str) -> AsyncGenerator[str]:
        """The lines of an export, one after the other, up to the head that the first names; without line ends.

        :raises UnreachableError: it was cut before its end; begin anew.
        """
        query = {} if self.user_id is None else {"user_id": self.user_id}
        path, deadline, pause_s = f"{path_of(conversation_id)}/export", self.now() + self.patience_s, FIRST_PAUSE_S
        line = ""
        while True:
            url, timeout = self.urls[self._at] + path, httpx.Timeout(ANSWER_S, read=SILENCE_S)
            try:
                async with self._http.stream("GET", url, params=query, timeout=timeout) as answer:
                    if not answer.is_success:
                        await answer.aread()
                        raise refusal(answer, conversation_id)
                    async for line in answer.aiter_lines():
                        yield line
                if not line.startswith('{"end":'):
                    raise httpx.RemoteProtocolError("the export was cut before its end")
                return
            except (httpx.TransportError, TenureError) as error:
                passes = isinstance(error, httpx.TransportError) or may_pass(error)
                if line or not passes or self.now() >= deadline:
                    raise error if isinstance(error, TenureError) else UnreachableError(self.urls, error) from error
            pause_s = await self.next_node(pause_s)

    async def import_(
        self,
        lines: bytes,
        id: str | None = None,
        *,
        agent: str | None = None,
        rerun: bool = False,
        key: str | None = None,
    ) -> Conversation:
        """Make a new conversation whose past is this export, as it was written. Nothing of it runs again, except with
        `rerun` what it left unanswered, or else its last message.

        :raises InvalidInputError: a line is not as it must be; names it.
        """
        params = {"id": id, "agent": agent, "rerun": "true" if rerun else None}
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key or _new_key()}
        answer = await self._ask(
            "POST", "/conversations/import", content=lines, headers=headers, params=params, of=id or "", wait_s=COPY_S
        )
        return conversation_of(answer.json())

    async def fork(
        self,
        conversation_id: str,
        at: int | None = None,
        *,
        id: str | None = None,
        rerun: bool = False,
        key: str | None = None,
    ) -> Conversation:
        """Make a new conversation whose past is this one's up to the seq `at`, or to its head.

        ``raw["vault"]`` names the secrets that the copy does not have: set those that it needs.
        """
        given = {"at": at, "id": id, "rerun": rerun or None, "key": key or _new_key()}
        body = {name: value for name, value in given.items() if value is not None}
        path = f"{path_of(conversation_id)}/fork"
        answer = await self._ask("POST", path, body=body, of=conversation_id, wait_s=COPY_S)
        return conversation_of(answer.json())

    # commands

    async def send(
        self,
        conversation_id: str,
        text: str | None = None,
        *,
        content: Json = None,
        key: str | None = None,
        wait_s: float | None = None,
    ) -> Sent:
        """Send a message. With `wait_s`, wait so long for its turn to end, on whichever node."""
        parts = {"text": text, "content": content}
        return await self._command(conversation_id, "messages", parts, key, wait_s)

    async def interrupt(self, conversation_id: str, *, key: str | None = None, wait_s: float | None = None) -> Sent:
        """End the open turn."""
        return await self._command(conversation_id, "interrupt", {}, key, wait_s)

    async def stop(
        self, conversation_id: str, *, queue: bool = False, key: str | None = None, wait_s: float | None = None
    ) -> Sent:
        """Stop it until a start; with `queue`, refuse also the messages that wait."""
        return await self._command(conversation_id, "stop", {"queue": queue or None}, key, wait_s)

    async def answer(
        self,
        conversation_id: str,
        answer: Json,
        *,
        ask: str | None = None,
        key: str | None = None,
        wait_s: float | None = None,
    ) -> Sent:
        """Answer what a turn waits for."""
        return await self._command(conversation_id, "answer", {"ask": ask}, key, wait_s, always={"answer": answer})

    async def start(
        self, conversation_id: str, *, here: bool = False, key: str | None = None, wait_s: float = 15
    ) -> LoopInfo:
        """Ask for a live loop, whoever owns it, and wait so long for it. With `here`, at the node that is asked, or not
        at all.

        :raises ConversationOwnedElsewhereError: `here`, and another node owns it.
        """
        body, path = {"key": key or _new_key()}, f"{path_of(conversation_id)}/start"
        params = {"here": "true"} if here else {"wait_s": wait_s}
        asked_to_wait_s = 120 if here else wait_s
        answer = await self._ask(
            "POST", path, body=body, params=params, of=conversation_id, wait_s=asked_to_wait_s, again=not here
        )
        return loop_info_of(answer.json(), ready=answer.status_code == 200)

    async def start_progress(self, conversation_id: str) -> StartProgress:
        """How the start of a conversation does, on whichever node: the step and since when, why the last try failed."""
        answer = await self._ask("GET", f"{path_of(conversation_id)}/start", of=conversation_id)
        return start_progress_of(answer.json())

    async def takeover(self, conversation_id: str, *, epoch: int | None = None) -> LoopInfo:
        """Make the node that is asked the owner, by force. With `epoch`, only from the owner of that epoch.

        :raises ConversationOwnedElsewhereError: somebody else claimed it meanwhile; with `epoch`, since that one.
        :raises CommandRefusedError: so it was, and nobody owns it any more.
        """
        path, body = f"{path_of(conversation_id)}/takeover", {} if epoch is None else {"epoch": epoch}
        answer = await self._ask("POST", path, body=body, of=conversation_id, wait_s=120, again=False)
        return loop_info_of(answer.json(), ready=True)

    async def _command(
        self,
        conversation_id: str,
        route: str,
        parts: Mapping[str, Json],
        key: str | None,
        wait_s: float | None,
        always: Mapping[str, Json] | None = None,
    ) -> Sent:
        key = key or _new_key()
        body = {name: value for name, value in parts.items() if value is not None} | {"key": key, **(always or {})}
        path, deadline = f"{path_of(conversation_id)}/{route}", self.now() + (wait_s or 0)
        while True:
            left_s = max(0.0, min(60.0, deadline - self.now()))
            params = {"wait_s": None if wait_s is None else round(left_s, 3)}
            answer = await self._ask("POST", path, body=body, params=params, of=conversation_id, wait_s=left_s)
            shape = answer.json()
            if wait_s is None or answer.status_code == 200 or self.now() >= deadline:
                return Sent(
                    conversation_id,
                    key,
                    shape["seq"],
                    shape["duplicate"],
                    shape["settled"],
                    shape.get("outcome"),
                    tuple(Event.from_json(event) for event in shape.get("events", ())),
                )
            if left_s > 1:  # it ended before its time: the node shuts down
                await self.next_node(FIRST_PAUSE_S)

    # the journal

    async def events(
        self, conversation_id: str, after: int = 0, *, kinds: Sequence[str] = (), limit: int | None = None
    ) -> AsyncGenerator[Event]:
        """The journal as it stands, from `after` on, page by page, up to `limit` events."""
        left = limit
        while left is None or left > 0:
            params = {"after": after, "kind": list(kinds), "limit": min(left or 1000, 1000)}
            path = f"{path_of(conversation_id)}/events"
            page = (await self._ask("GET", path, params=params, of=conversation_id)).json()
            for shape in page["events"]:
                yield Event.from_json(shape)
            left = None if left is None else left - len(page["events"])
            if page["next_after"] >= page["last_seq"]:
                return
            after = page["next_after"]

    async def timeline(self, conversation_id: str) -> list[TenureSpan]:
        """Who owned it, oldest first: from when to when, why it moved, and whose late writes were refused."""
        found: list[TenureSpan] = []
        after: int | None = 0
        while after is not None:
            path, params = f"{path_of(conversation_id)}/timeline", {"after": after}
            page = (await self._ask("GET", path, params=params, of=conversation_id)).json()
            found += map(TenureSpan.from_json, page["tenures"])
            after = page["next_after"]
        return found

    def stream(self, conversation_id: str, after: str | int = 0) -> Stream:
        """The journal from a cursor on, as it grows, for ever: ``async for item in client.stream(id)``.

        `after` is a seq, or the :attr:`Stream.cursor` of an earlier stream.
        """
        return self._opened(Stream(self, conversation_id, str(after)))

    def stream_turn(
        self, conversation_id: str, text: str | None = None, *, content: Json = None, key: str | None = None
    ) -> Stream:
        """Send a message and follow its turn, deltas included, up to its end."""
        body = {"text": text, "content": content, "key": key or _new_key()}
        message = {name: value for name, value in body.items() if value is not None}
        return self._opened(Stream(self, conversation_id, "0", message))

    def _opened(self, stream: Stream) -> Stream:
        self._streams.add(stream)
        return stream

    # the vault

    async def secrets(self, conversation_id: str) -> list[Mapping[str, Json]]:
        """What the conversation's vault holds: name, version and key id of each, never a value."""
        path = f"{path_of(conversation_id)}/vault"
        return (await self._ask("GET", path, of=conversation_id)).json()["secrets"]

    async def put_secret(self, conversation_id: str, name: str, value: str) -> int:
        """Keep a secret, or replace it; its version."""
        path = f"{path_of(conversation_id)}/vault/{quoted(name)}"
        return (await self._ask("PUT", path, body={"value": value}, of=conversation_id)).json()["version"]

    async def remove_secret(self, conversation_id: str, name: str) -> None:
        """Erase a secret; erasing it twice is fine."""
        await self._ask("DELETE", f"{path_of(conversation_id)}/vault/{quoted(name)}", of=conversation_id)

    async def rotate(self, cursor: str | None = None, limit: int = 100) -> Mapping[str, Any]:
        """Seal a page of conversations' secrets anew under the first key; go on with ``next_cursor``."""
        params = {"cursor": cursor, "limit": limit}
        return (await self._ask("POST", "/vault/rotate", params=params, wait_s=60)).json()

    # the cluster

    async def nodes(self) -> list[NodeInfo]:
        """The nodes that are not buried, oldest first."""
        return [node_of(shape) for shape in (await self._ask("GET", "/nodes")).json()]

    async def drain(self, node: str) -> int:
        """Ask a node to hand over and leave; how many incarnations of it were asked."""
        return (await self._ask("POST", f"/nodes/{quoted(node)}/drain")).json()["asked"]

    # asking

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        of: str = "",
        wait_s: float = 0,
        again: bool = True,
    ) -> httpx.Response:
        """Ask one node after the other until one answers. `again`: asking twice does what asking once does."""
        query = {k: v for k, v in {"user_id": self.user_id, **(params or {})}.items() if v is not None}
        if path.startswith(("/nodes", "/vault")):
            query.pop("user_id", None)
        timeout = httpx.Timeout(ANSWER_S, read=ANSWER_S + wait_s)
        deadline, pause_s = self.now() + self.patience_s, FIRST_PAUSE_S
        while True:
            url = self.urls[self._at]
            try:
                answer = await self._http.request(
                    method, url + path, json=body, content=content, headers=headers, params=query, timeout=timeout
                )
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if not (again or unsent) or self.now() >= deadline:
                    raise UnreachableError(self.urls, error) from error
            else:
                if answer.is_success:
                    return answer
                error = refusal(answer, of)
                if not (again and may_pass(error)) or self.now() >= deadline:
                    raise error
            pause_s = await self.next_node(pause_s)

    @asynccontextmanager
    async def connect(self, conversation_id: str, ask: Ask) -> AsyncGenerator[httpx.Response]:
        """Open a stream at the present node.

        :raises TenureError: what the server refused it with.
        """
        method, route = ("GET", "stream") if ask.message is None else ("POST", "messages")
        url = f"{self.urls[self._at]}{path_of(conversation_id)}/{route}"
        params = {"user_id": self.user_id, "until": ask.until}
        async with self._http.stream(
            method,
            url,
            headers={"Accept": "text/event-stream"} | ({"Last-Event-ID": ask.cursor} if ask.message is None else {}),
            params={name: value for name, value in params.items() if value is not None},
            json=ask.message,
            timeout=httpx.Timeout(ANSWER_S, read=SILENCE_S),
        ) as response:
            if not response.is_success:
                await response.aread()
                raise refusal(response, conversation_id)
            yield response

    async def next_node(self, pause_s: float) -> float:
        """Turn to the next address; pause when all had their turn. The next pause."""
        self._at = (self._at + 1) % len(self.urls)
        if self._at == 0 or len(self.urls) == 1:
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.5))
            return min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()


def _new_key() -> str:
    return secrets.token_hex(16)


def quoted(name: str) -> str:
    return quote(name, safe="")


def path_of(conversation_id: str) -> str:
    return f"/conversations/{quoted(conversation_id)}"
