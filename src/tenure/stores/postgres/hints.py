"""Hints: LISTEN on one connection for everybody who follows anything here, NOTIFY on another for what happens here.

A transaction that notifies takes a lock of the whole database while it commits, so none of the writes does. What they have to
tell gathers while the last telling is under way, and goes out in one transaction that writes nothing: at most one per
:data:`SLICE_S`. Followers of the same store object are told at once. All stores of one schema share one channel.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, LiteralString, cast, final

from tenure.abc import Hint, Topic
from tenure.errors import StoreError
from tenure.facts import HintsEnded, HintsFailed, HintsLost, to_log
from tenure.stores.postgres.link import Link, Statement
from tenure.stores.postgres.requests import PAYLOAD_BYTES, pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from tenure.journal import Json, JsonObject
    from tenure.stores.postgres.lanes import Lanes

QUEUE = 1000
"""How many hints wait for one follower; then the oldest is dropped and the next one says so."""
SLICE_S = 0.005
LAST_WORDS_S = 0.5
"""How long a store that is closed may take to tell what happened last."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
type _Name = tuple[str, str]
"""A topic's kind and subject: a tuple is found in a dict in a tenth of the time."""
UNFINISHED = 100
"""How many deltas may be waiting for their other pieces."""


@final
class Follower:
    """One stream of hints: bounded, the oldest go first, and what comes next says so."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.topics = frozenset(topics)
        self._hints: deque[Hint] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def hand(self, hint: Hint) -> None:
        if len(self._hints) == QUEUE:
            self._hints.popleft()
            self._hints[0] = replace(self._hints[0], lapsed=True)
        self._hints.append(hint)
        self._arrived.set()

    def close(self) -> None:
        """The stream ends after what has arrived."""
        self._closed = True
        self._arrived.set()

    async def hints(self) -> AsyncIterator[Hint]:
        while True:
            while self._hints:
                yield self._hints.popleft()
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()


@final
class Hints:
    """Everybody who follows through one store object, and what is told to the others."""

    def __init__(self, connect: Callable[[], Awaitable[Link]], say: Lanes, channel: str, timeout_s: float) -> None:
        self.channel = channel
        self._connect = connect
        self._say = say
        self._timeout_s = timeout_s
        self._rng = random.Random()
        self._me = secrets.token_hex(4)
        self._deltas = 0
        self._loop = asyncio.get_running_loop()
        self._followers: dict[_Name, list[Follower]] = {}
        self._listening = asyncio.Event()
        self._lapsed = False
        self._listener: asyncio.Task[None] | None = None
        self._untold: dict[_Name, tuple[str | None, int | None]] = {}
        self._teller: asyncio.Task[None] | None = None
        self._unfinished: dict[str, list[str]] = {}

    # following

    async def add(self, follower: Follower) -> None:
        """From now on the follower hears; in an outage, from its end on, and is then told that it missed something."""
        for topic in follower.topics:
            self._followers.setdefault((topic.kind, topic.subject), []).append(follower)
        if self._listener is None:
            # Its own task: it goes on for as long as the store is open, whoever followed first.
            self._listener = self._loop.create_task(self._listen(), name="tenure-postgres-hints")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._listening.wait()
        except TimeoutError:
            self._lapsed = True

    def remove(self, follower: Follower) -> None:
        for topic in follower.topics:
            name = (topic.kind, topic.subject)
            others = self._followers.get(name, [])
            if follower in others:
                others.remove(follower)
            if not others:
                self._followers.pop(name, None)

    async def close(self) -> None:
        """End every stream, and the connection. What has happened until now is still told: a witness buries, and ends."""
        for followers in list(self._followers.values()):
            for follower in followers:
                follower.close()
        if self._teller is not None:
            await asyncio.wait([self._teller], timeout=LAST_WORDS_S)
        for task in (self._listener, self._teller):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._listener = self._teller = None

    async def _listen(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._listen_once()
            except StoreError as error:
                to_log(HintsEnded(str(error)))
            except Exception as error:  # a bug, or a message that nobody should have sent
                to_log(HintsFailed(repr(error)), error=error)
            was_listening = self._listening.is_set()
            self._listening.clear()
            self._lapsed = True
            pause_s = FIRST_PAUSE_S if was_listening else min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1))

    async def _listen_once(self) -> None:
        """Connect, and listen until the connection ends."""
        link = await self._connect()
        try:
            await link.run(Statement(cast("LiteralString", f'LISTEN "{self.channel}"')))
            self._listening.set()
            if self._lapsed:
                self._lapsed = False
                for name in list(self._followers):
                    topic = Topic(*name)
                    self._hand(Hint(topic, _conversation(topic), lapsed=True))
            while True:
                async for payload in link.notifications(self._timeout_s):
                    self._hear(payload)
                await link.run(Statement("SELECT 1"))  # a sign of life
        finally:
            await link.close()

    def _hear(self, payload: str) -> None:
        me, what, *rest = json.loads(payload)
        if me == self._me:
            return
        match what, rest:
            case "hints", [told]:
                for kind, subject, conversation, head in told:
                    self._hand(Hint(Topic(kind, subject), conversation, head))
            case "delta", [number, part, parts, text]:
                self._hear_piece(f"{me} {number}", part, parts, text)
            case _:
                pass  # of another release

    def _hear_piece(self, name: str, part: int, parts: int, text: str) -> None:
        """The pieces of a delta come in order; if one was lost, so is the delta."""
        had = self._unfinished.pop(name, [])
        if len(had) != part:
            return
        if part + 1 < parts:
            self._unfinished[name] = [*had, text]
            if len(self._unfinished) > UNFINISHED:
                self._unfinished.pop(next(iter(self._unfinished)))
            return
        conversation, delta = json.loads("".join([*had, text]))
        self.hand_delta(conversation, delta)

    def hand_delta(self, conversation: str, delta: JsonObject) -> None:
        """To those who follow here."""
        self._hand(Hint(Topic(Topic.CONVERSATION, conversation), conversation, delta=delta))

    def _hand(self, hint: Hint) -> None:
        for follower in self._followers.get((hint.topic.kind, hint.topic.subject), ()):
            follower.hand(hint)

    # telling

    def tell(self, topics: Iterable[Topic], conversation: str | None = None, head: int | None = None) -> None:
        """Something happened and is committed: whoever follows may look. To other processes it goes with the next slice."""
        for topic in topics:
            name = (topic.kind, topic.subject)
            self._untold[name] = (conversation, head)
            if name in self._followers:
                self._hand(Hint(topic, conversation or _conversation(topic), head))
        if self._teller is None or self._teller.done():
            self._teller = self._loop.create_task(self._tell_all(), name="tenure-postgres-tell")

    async def _tell_all(self) -> None:
        while self._untold:
            told, self._untold = self._untold, {}
            hints: list[Json] = [[*name, *about] for name, about in told.items()]
            try:
                statement = Statement("SELECT tell(%s, %s::text[])", (self.channel, self._payloads(hints)))
                await self._say.run(statement)
            except StoreError as error:
                to_log(HintsLost(str(error)))
            await asyncio.sleep(SLICE_S)

    def _payloads(self, hints: list[Json]) -> list[str]:
        """As many notifications as they need: each holds less than 8000 bytes."""
        text = json.dumps([self._me, "hints", hints], separators=(",", ":"))
        if len(text) <= PAYLOAD_BYTES or len(hints) == 1:
            return [text] if len(text) < 7999 else []
        half = len(hints) // 2
        return self._payloads(hints[:half]) + self._payloads(hints[half:])

    def payloads_of(self, conversation: str, delta: JsonObject) -> list[str]:
        """A delta as notifications. No two are equal: PostgreSQL folds equal ones of a transaction into one."""
        self._deltas += 1
        parts = pieces(json.dumps([conversation, delta], separators=(",", ":")))
        return [
            json.dumps([self._me, "delta", self._deltas, part, len(parts), text], separators=(",", ":"))
            for part, text in enumerate(parts)
        ]


def _conversation(topic: Topic) -> str | None:
    return topic.subject if topic.kind == Topic.CONVERSATION else None
