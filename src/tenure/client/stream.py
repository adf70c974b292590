"""A stream that keeps its cursor: cut anywhere, it goes on at another node."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, final

import httpx

from tenure.client.replies import Delta, RewoundError, UnreachableError, may_pass
from tenure.errors import ConversationDeletedError, TenureError
from tenure.journal import Event, JsonObject

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractAsyncContextManager

FIRST_PAUSE_S = 0.1


@final
@dataclass(frozen=True, slots=True)
class Ask:
    """What to open: the journal behind `cursor`, up to the settlement of command `until` if that is named; or, with
    `message`, the turn of that message."""

    cursor: str
    until: int | None = None
    message: JsonObject | None = None


class Way(Protocol):
    """What a stream needs of its client: a connection to one of the nodes, and the next one when that fails."""

    urls: list[str]
    patience_s: float

    def connect(self, conversation_id: str, ask: Ask) -> AbstractAsyncContextManager[httpx.Response]: ...

    async def next_node(self, pause_s: float) -> float: ...

    def now(self) -> float: ...


@final
@dataclass(frozen=True, slots=True)
class Said:
    """One server-sent event."""

    event: str
    data: Any
    id: str | None = None


async def said(response: httpx.Response) -> AsyncIterator[Said]:
    """The events of a stream. Lines end at a newline only: a text may hold what Unicode calls one."""
    rest = b""
    parts: dict[str, str] = {}
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.decode().rstrip("\r").partition(": ")
            if name in ("event", "data", "id"):
                parts[name] = value
            elif not name and "data" in parts:
                yield Said(parts.get("event", "message"), json.loads(parts["data"]), parts.get("id"))
                parts = {}


@final
class Stream:
    """What happens in a conversation, in order: events without gap or duplicate, deltas in between.

    Iterate over it; leave it with ``async with`` or :meth:`aclose`. It reconnects by itself, to another node if need be,
    and goes on behind its :attr:`cursor`, which can be kept and handed to a later one.

    :raises RewoundError: the store lost what was seen. :raises ConversationDeletedError: deleted.
    :raises UnreachableError: nobody answered for as long as the client has patience.
    """

    def __init__(self, way: Way, conversation_id: str, cursor: str, message: JsonObject | None = None) -> None:
        self.cursor = cursor
        """``seq:epoch`` of the last event that was given out."""
        self._way = way
        self._conversation_id = conversation_id
        self._message = message
        self._command: int | None = None
        """The message's seq, as soon as it is known: from then on its turn is read from the journal."""
        self._items: AsyncGenerator[Event | Delta] | None = None
        self._over = False
        self._cut = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Delta:
        if self._over:
            raise StopAsyncIteration
        self._items = self._items or self._follow()
        try:
            return await anext(self._items)
        except asyncio.CancelledError:
            self._items = None  # a caller that lost patience may come back: the cursor knows where
            raise
        except BaseException:
            self._over = True
            raise

    async def aclose(self) -> None:
        """Let go of the connection. Nothing that runs is cancelled by it."""
        self._over = True
        if self._items is not None:
            await self._items.aclose()

    async def _follow(self) -> AsyncGenerator[Event | Delta]:
        way = self._way
        deadline: float | None = None  # patience is counted from the first failure: silence is none
        pause_s = FIRST_PAUSE_S
        while True:
            self._cut = False
            message = self._message if self._command is None else None
            try:
                async with way.connect(self._conversation_id, Ask(self.cursor, self._command, message)) as response:
                    async for one in said(response):
                        item = self._take(one)
                        deadline, pause_s = None, FIRST_PAUSE_S
                        if item is not None:
                            yield item
                if self._message is not None and not self._cut:
                    return
            except (httpx.TransportError, TenureError) as error:
                if isinstance(error, TenureError) and not may_pass(error):
                    raise
                if deadline is None:
                    deadline = way.now() + way.patience_s
                elif way.now() >= deadline:
                    raise UnreachableError(way.urls, error) from error
            pause_s = await way.next_node(pause_s)

    def _take(self, one: Said) -> Event | Delta | None:
        """What is new in it; null if nothing is.

        :raises httpx.RemoteProtocolError: something is missing: connect again.
        """
        if one.id is None:
            return self._take_aside(one)
        seq, before = int(one.id.partition(":")[0]), int(self.cursor.partition(":")[0])
        if seq <= before:
            return None
        if self._message is not None and self._command is None:
            self._command = seq
        elif seq != before + 1:
            raise httpx.RemoteProtocolError(f"event {seq} came behind {before}")
        self.cursor = one.id
        return Event.from_json(one.data)

    def _take_aside(self, one: Said) -> Delta | None:
        match one.event:
            case "delta":
                return Delta(one.data)
            case "rewound":
                raise RewoundError(self._conversation_id, one.data["last_seq"], one.data["epoch"])
            case "deleted":
                raise ConversationDeletedError(self._conversation_id)
            case _:
                self._cut = True  # "closing": the node leaves
                return None
