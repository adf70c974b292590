"""Deltas on their way out: buffered, merged, published one at a time, dropped rather than waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Fenced
from tenure.node.reasons import reason_of

if TYPE_CHECKING:
    from tenure.journal import JsonObject
    from tenure.node.tenure import Tenure


BUFFERED = 256
MERGED_CHARS = 4096
PAUSE_S = 0.02


@final
class Deltas:
    """A bounded buffer between an agent that streams and a store that publishes."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure
        self._waiting: deque[JsonObject] = deque(maxlen=BUFFERED)
        self._handed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def hand(self, body: JsonObject) -> None:
        """Take one; the oldest falls out when nobody keeps up. Text joins the text before it."""
        last: JsonObject = self._waiting[-1] if self._waiting else {}
        if set(last) == set(body) == {"text"} and len(str(last["text"])) < MERGED_CHARS:
            self._waiting[-1] = {"text": f"{last['text']}{body['text']}"}
        else:
            self._waiting.append(body)
        self._handed.set()

    async def publish(self) -> None:
        """Publish for as long as the loop lives."""
        while True:
            await self._handed.wait()
            self._handed.clear()
            while self._waiting:
                await self._send(self._waiting.popleft())
            await asyncio.sleep(PAUSE_S)

    async def _send(self, body: JsonObject) -> None:
        tenure = self._tenure
        if tenure.mask is not None:
            body = tenure.mask.object(body)
        try:
            answer = await tenure.means.store.publish(tenure.lease, body)
        except Exception as error:  # a store that is away, a body that is no JSON: the next one may go
            tenure.means.facts.tell(facts.DeltaDropped(tenure.conversation_id, reason_of(error)))
            return
        if isinstance(answer, Fenced):
            tenure.refused("publish")
            tenure.lose("another claim is in force")
