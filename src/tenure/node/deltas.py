"""Deltas on their way out: buffered, merged, published one at a time, dropped rather than waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Fenced
from tenure.journal import JsonObject
from tenure.node.reasons import reason_of

if TYPE_CHECKING:
    from tenure.node.tenure import Tenure


BUFFERED = 256
MERGED_CHARS = 4096
PAUSE_S = 0.02


@final
class Deltas:
    """A bounded buffer between an agent that streams and a store that publishes. Costs nothing before the first delta:
    of thousands of conversations that are held, few stream."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure
        self._closed = False
        self._stream: tuple[deque[JsonObject], asyncio.Event, asyncio.Task[None]] | None = None

    def __len__(self) -> int:
        return 0 if self._stream is None else len(self._stream[0])

    def hand(self, body: JsonObject) -> None:
        """Take one; the oldest falls out when nobody keeps up. Text joins the text before it."""
        if self._closed:
            return
        waiting, handed, _ = self._stream = self._stream or self._begin()
        last: JsonObject = waiting[-1] if waiting else {}
        if set(last) == set(body) == {"text"} and len(str(last["text"])) < MERGED_CHARS:
            waiting[-1] = {"text": f"{last['text']}{body['text']}"}
        else:
            waiting.append(body)
        handed.set()

    def close(self) -> tuple[asyncio.Task[None], ...]:
        """Take no more; what runs of it, to be ended with the loop."""
        self._closed = True
        return () if self._stream is None else (self._stream[2],)

    def _begin(self) -> tuple[deque[JsonObject], asyncio.Event, asyncio.Task[None]]:
        waiting, handed = deque[JsonObject](maxlen=BUFFERED), asyncio.Event()
        return waiting, handed, self._tenure.means.tasks.start(self._publish(waiting, handed), "deltas")

    async def _publish(self, waiting: deque[JsonObject], handed: asyncio.Event) -> None:
        """Publish for as long as the loop lives."""
        while True:
            await handed.wait()
            handed.clear()
            while waiting:
                await self._send(waiting.popleft())
            await asyncio.sleep(PAUSE_S)

    async def _send(self, body: JsonObject) -> None:
        tenure = self._tenure
        if tenure.mask is not None:
            body = tenure.mask.object(body)
        try:
            answer = await tenure.means.store.publish(tenure.lease, body)
        except Exception as error:  # a store that is away, a body that is no JSON: the next one may go
            tenure.means.facts.tell(facts.DeltaDropped(tenure.conversation_id, reason_of(error, tenure.masked)))
            return
        if isinstance(answer, Fenced):
            tenure.refused("publish")
            tenure.lose("another claim is in force")
