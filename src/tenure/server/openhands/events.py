"""The SDK's events of a conversation, read from its journal on any node.

A page is named by the place of its first event in the journal: ``next_page_id`` is such a place, and an event's own id
is taken too, as the SDK's own server takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, final

from fastapi import Request, Response

from tenure.clock import Instant
from tenure.errors import InvalidInputError
from tenure.loops.openhands.projection import TOLD_KINDS, sdk_event, stamp
from tenure.server.openhands.conversations import number
from tenure.server.openhands.place import Place
from tenure.server.problems import Problem
from tenure.server.watch import read
from tenure.server.wire import json_reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tenure.journal import Event, Json, JsonObject

MOST = 100
LOOKED_AT = 2000
"""Events that one request looks at: with a rare filter a page may be short, and says where to go on."""
PART = 100
NEWEST_FIRST = "TIMESTAMP_DESC"
_FILTERS = {"kind", "source", "body", "timestamp__gte", "timestamp__lt"}
_KNOWN = {"page_id", "limit", "sort_order", *_FILTERS}


@final
@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a search asks for, of an SDK event."""

    kind: str | None = None
    source: str | None = None
    body: str | None = None
    timestamp__gte: str | None = None
    timestamp__lt: str | None = None

    def fits(self, event: Mapping[str, Any]) -> bool:
        return (
            (self.kind is None or self.kind.rpartition(".")[2] == event["kind"])
            and (self.source is None or self.source == event["source"])
            and (self.body is None or self.body.casefold() in "\n".join(_texts(event)).casefold())
            and (self.timestamp__gte is None or event["timestamp"] >= self.timestamp__gte)
            and (self.timestamp__lt is None or event["timestamp"] < self.timestamp__lt)
        )


@final
class SdkEvents:
    """The routes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.store = place.node.store

    async def search(self, request: Request) -> Response:
        """A page of events, oldest or newest first."""
        for name in request.query_params:
            if name not in _KNOWN:
                known = ", ".join(sorted(_KNOWN))
                raise InvalidInputError(name[:64], f"is no parameter of this route (known: {known})", "leave it out")
        record = await self.place.record(request.path_params["id"])
        limit, order = number(request, "limit", MOST, MOST), request.query_params.get("sort_order", "TIMESTAMP")
        if order not in ("TIMESTAMP", NEWEST_FIRST):
            raise InvalidInputError("sort_order", f"must be TIMESTAMP or {NEWEST_FIRST}", "correct it")
        back = order == NEWEST_FIRST
        wanted = _Wanted(**{name: _time(name, text) for name, text in request.query_params.items() if name in _FILTERS})
        first = await self._first(record.conversation, request.query_params.get("page_id"), record.head, back)
        items: list[JsonObject] = []
        looked, next_page = 0, None
        async for event in self._from(record.conversation, first, back, record.head):
            if len(items) == limit or looked == LOOKED_AT:
                next_page = str(event.seq)
                break
            looked += 1
            told = sdk_event(event)
            if told is not None and wanted.fits(told):
                items.append(told)
        return json_reply(200, {"items": items, "next_page_id": next_page})

    async def count(self, request: Request) -> Response:
        """How many there are, as a number."""
        record, count = await self.place.record(request.path_params["id"]), 0
        async for event in self._from(record.conversation, 1, False, record.head):
            count += sdk_event(event) is not None
        return json_reply(200, count)

    async def one(self, request: Request) -> Response:
        """The event of that id."""
        record, name = await self.place.record(request.path_params["id"]), request.path_params["event"]
        found = await self._find(record.conversation, name, record.head)
        if found is None:
            remedy = "look at …/events/search"
            raise Problem(404, "unknown-event", "Unknown event", f"event: {name[:64]!r} is not here; {remedy}")
        return json_reply(200, sdk_event(found))

    async def _first(self, conversation: str, page: str | None, head: int, back: bool) -> int:
        if page is None:
            return head if back else 1
        if page.isascii() and page.isdigit() and len(page) <= 15:
            return int(page)
        found = await self._find(conversation, page, head)
        if found is None:
            raise InvalidInputError("page_id", "is no event of the conversation", "use next_page_id")
        return found.seq

    async def _find(self, conversation: str, name: str, head: int) -> Event | None:
        """From the end: who asks for one event has mostly seen it just now."""
        async for event in self._from(conversation, head, True, head):
            told = sdk_event(event)
            if told is not None and told["id"] == name:
                return event
        return None

    async def _from(self, conversation: str, first: int, back: bool, head: int) -> AsyncIterator[Event]:
        """Events that may be told, from the place `first` on, forwards or backwards; up to `head`."""
        at = min(first, head) if back else first
        while 0 < at <= head:
            low = max(0, at - PART) if back else at - 1
            reading = await read(self.store, conversation, low, PART, TOLD_KINDS)
            events = [e for e in reading.events if e.seq <= (at if back else head)]
            for event in reversed(events) if back else events:
                yield event
            if back:
                at = low
            elif len(reading.events) < min(PART, self.store.limits.page):
                return
            else:
                at = reading.events[-1].seq + 1


def _time(name: str, text: str) -> str:
    """A time of the query as events have it: UTC, without a zone."""
    if not name.startswith("timestamp"):
        return text
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise InvalidInputError(name, "is no time", "write 2026-01-31T09:30:00") from None
    return stamp(Instant((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _texts(value: Json) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for part in value.values():
                yield from _texts(part)
        case list():
            for part in value:
                yield from _texts(part)
        case _:
            return
