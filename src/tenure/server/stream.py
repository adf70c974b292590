"""A journal as server-sent events, as it grows: gap-free, without duplicates, resumable on any node.

Journal entries carry the id ``seq:epoch``, the epoch in force there. What has no id does not move the cursor:
``delta`` (ephemeral), ``rewound`` (the store lost what the cursor had seen: read anew), ``deleted``, ``closing`` (this
node leaves: resume elsewhere). After the last three the stream ends.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from starlette.responses import Response

from tenure.errors import ConversationDeletedError, StoreUnavailableError, UnknownConversationError
from tenure.facts import ReaderCut, to_log
from tenure.server.watch import Settlement, Watch, Watches, epoch_at, outcome_of, read
from tenure.server.wire import Bounds, event_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from tenure.abc import Hint
    from tenure.journal import Event, Json

PAGE = 32
"""Events read at a time: what a slow reader can hold in this process."""
_LINE_ENDS = {0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"}
"""What many a client takes for the end of a line; within JSON they have another form."""
LAST_WORDS_S = 1.0
"""What a reader gets to take the end of its stream when the node shuts down."""


def sse(event: str, data: str, id: str | None = None) -> bytes:
    """One event on the wire. `data` is a line of JSON."""
    name = event.replace("\r", " ").replace("\n", " ")
    lines = f"event: {name}\ndata: {data.translate(_LINE_ENDS)}\n\n"
    return (lines if id is None else f"id: {id}\n{lines}").encode()


@final
@dataclass(slots=True)
class Place:
    """Where a reader stands: it has seen `after`. `cursor_epoch` is what its cursor says was in force there; another
    epoch in the journal means that the store was rewound. With `until`, it reads to the settlement of that command."""

    after: int
    cursor_epoch: int | None = None
    until: int | None = None
    announced: bool = False
    """Hints of what comes next are on their way: follow them, so that deltas keep their place between the events."""

    @classmethod
    def parse(cls, cursor: str) -> Place:
        """Read ``seq`` or ``seq:epoch``."""
        seq, _, epoch = cursor.partition(":")
        return cls(int(seq), int(epoch) if epoch else None)


class _Over(Exception):
    """The stream has said its last word, or there is nobody left to hear it."""


@final
class EventStream(Response):
    """The reply that streams. `start` runs when hints come in already, before the reply begins: it may still refuse."""

    media_type = "text/event-stream"

    def __init__(
        self, watches: Watches, bounds: Bounds, conversation: str, start: Callable[[], Awaitable[Place]]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.watches = watches
        self.bounds = bounds
        self.conversation = conversation
        self.start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.watches.watch(self.conversation, moves=True) as watch:
            await watch.following(self.bounds.poll_s)
            await watch.next(0)  # to follow is a reason to look; everything is looked at anyway
            place = await self.start()
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            reader = _Reader(send, self.bounds, watch, place)
            await until_one_ends(reader.tell_all(), reader_leaves(receive), _time_is_up(watch))


async def until_one_ends(*parts: Awaitable[None]) -> None:
    """Run them at once, and end all with the first that ends."""

    async def run(part: Awaitable[None]) -> None:
        await part

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(part)) for part in parts]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def reader_leaves(receive: Receive) -> None:
    """Return when nobody reads any more."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _time_is_up(watch: Watch) -> None:
    await watch.shut()
    await asyncio.sleep(LAST_WORDS_S)


@final
@dataclass(slots=True)
class _Reader:
    """One reader, and what it was told. What it has not taken is not read on: slow, it costs one page for a while."""

    send: Send
    bounds: Bounds
    watch: Watch
    place: Place
    epoch: int | None = None
    """In force at `place.after`; null while nobody has looked."""
    looked_at: float = 0.0
    wrote_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def tell_all(self) -> None:
        """Tell everything in order, for as long as the reader stays and the node does."""
        pause_s, hints = 0.1, ()
        try:
            await self._write(b"retry: 1000\n\n")
            if self.place.announced:
                self.looked_at = self._now()
                hints = await self.watch.next(self.bounds.poll_s)
            while not self.watch.closed:
                wait_s = self.bounds.poll_s
                try:
                    await self._tell(hints)
                    pause_s = 0.1
                except StoreUnavailableError:
                    wait_s = pause_s = min(2 * pause_s, 2.0)
                silent_s = self._now() - self.wrote_at
                if silent_s >= self.bounds.comment_s:
                    await self._write(b": still here\n\n")
                    silent_s = 0.0
                hints = await self.watch.next(min(wait_s, self.bounds.comment_s - silent_s))
            await self._end("closing", {"reason": "this node shuts down: resume at another"})
        except _Over:
            return

    async def _tell(self, hints: Sequence[Hint]) -> None:
        for hint in hints:
            if hint.delta is not None:
                await self._write(sse("delta", json.dumps(hint.delta, ensure_ascii=False)))
            elif hint.lapsed or hint.head is None:
                await self._catch_up()
            elif hint.head > self.place.after:
                await self._catch_up(hint.head)  # and no further: what was said in passing has its place
        if not hints or self._now() - self.looked_at >= self.bounds.poll_s:
            await self._catch_up()

    async def _catch_up(self, to: int | None = None) -> None:
        """Read to the head, or to `to`. A hint is only a reason to look; the cursor alone says what is new."""
        self.looked_at = self._now() if to is None else self.looked_at
        most = min(PAGE, self.watch.store.limits.page)
        while to is None or to > self.place.after:
            limit = most if to is None else min(most, to - self.place.after)
            try:
                reading = await read(self.watch.store, self.watch.topic.subject, self.place.after, limit)
                head, epoch = reading.record.head, int(reading.record.epoch)
                if self.epoch is None and self.place.after <= head:
                    self.epoch = await epoch_at(self.watch.store, self.watch.topic.subject, self.place.after)
                    await self._end_if_settled_before()
            except ConversationDeletedError:
                await self._end("deleted", {"id": self.watch.topic.subject})
            except UnknownConversationError:
                await self._end("rewound", {"last_seq": 0, "epoch": 0})
            else:
                if head < self.place.after or self.place.cursor_epoch not in (None, self.epoch):
                    await self._end("rewound", {"last_seq": head, "epoch": epoch})
                for event in reading.events:
                    await self._tell_event(event, head, epoch)
                if len(reading.events) < limit:
                    return

    async def _end_if_settled_before(self) -> None:
        """A reader that was cut behind the very last event must not wait for another one."""
        if self.place.until is None:
            return
        settlement = Settlement(self.watch.store, self.watch.topic.subject, self.place.until)
        if await settlement.found() and settlement.event is not None and settlement.event.seq <= self.place.after:
            await self._write(b"", last=True)
            raise _Over

    async def _tell_event(self, event: Event, head: int, epoch: int) -> None:
        assert self.epoch is not None, "located before it is told"
        if event.epoch is not None and event.epoch < self.epoch:
            await self._end("rewound", {"last_seq": head, "epoch": epoch})
        self.epoch = self.epoch if event.epoch is None else int(event.epoch)
        self.place = Place(event.seq, None, self.place.until)
        last = self.place.until is not None and outcome_of(event, self.place.until) is not None
        await self._write(sse(event.kind, event_text(event), f"{event.seq}:{self.epoch}"), last=last)
        if last:
            raise _Over

    async def _end(self, event: str, body: dict[str, Json]) -> None:
        """Say the last word.

        :raises _Over: always.
        """
        await self._write(sse(event, json.dumps(body)), last=True)
        raise _Over

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        """:raises _Over: the reader is gone, or has taken nothing for too long."""
        try:
            async with asyncio.timeout(self.bounds.slow_s):
                await self.send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            to_log(ReaderCut(self.watch.topic.subject, self.bounds.slow_s))
            raise _Over from None
        except OSError:
            raise _Over from None
        self.wrote_at = self._now()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
