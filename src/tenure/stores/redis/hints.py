"""Hints: one connection that listens, for everybody who follows anything through this store object.

It is made when somebody follows first, and made anew whenever it falls or falls silent; then everybody is told that hints may
have been lost. Channels are plain ones: every server of a Cluster passes them on, so one connection hears all.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, final

from tenure.abc import Hint, Topic
from tenure.errors import StoreError
from tenure.facts import HintsEnded, HintsFailed, to_log
from tenure.stores.redis.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tenure.stores.redis.servers import Servers


QUEUE = 1000
"""How many hints wait for one follower; then the oldest is dropped and the next one says so."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


@final
class Follower:
    """One stream of hints: bounded, the oldest go first, and what comes next says so."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.topics = frozenset(topics)
        self.listening = asyncio.Event()
        """Every topic of it is listened to."""
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
    """Everybody who follows through one store object, and what they listen with."""

    def __init__(self, servers: Servers, channel: str, timeout_s: float) -> None:
        self._servers = servers
        self._channel = channel
        self._rng = random.Random()
        self._timeout_s = timeout_s
        self._followers: dict[Topic, list[Follower]] = {}
        self._confirmed: set[Topic] = set()
        self._lapsed: set[Topic] = set()
        """Topics whose followers have missed something, and are told once they are listened to again."""
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None

    async def add(self, follower: Follower) -> None:
        """From now on the follower hears; in an outage, from its end on, and is then told that it missed something."""
        new = [topic for topic in follower.topics if topic not in self._followers]
        for topic in follower.topics:
            self._followers.setdefault(topic, []).append(follower)
        if self._task is None:
            # Its own task: it goes on for as long as the store is open, whoever followed first.
            self._task = asyncio.get_running_loop().create_task(self._listen(), name="tenure-redis-hints")
        elif self._listener is not None:
            self._listener.subscribe(map(self._channel_of, new))
        self._check(follower)
        try:
            async with asyncio.timeout(self._timeout_s):
                await follower.listening.wait()
        except TimeoutError:
            self._lapsed |= follower.topics - self._confirmed

    def remove(self, follower: Follower) -> None:
        gone: list[Topic] = []
        for topic in follower.topics:
            others = self._followers.get(topic, [])
            if follower in others:
                others.remove(follower)
            if not others and self._followers.pop(topic, None) is not None:
                gone.append(topic)
        self._confirmed.difference_update(gone)
        self._lapsed.difference_update(gone)
        if self._listener is not None:
            self._listener.unsubscribe(map(self._channel_of, gone))

    async def close(self) -> None:
        """End every stream, and the connection."""
        for followers in list(self._followers.values()):
            for follower in followers:
                follower.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # listening

    async def _listen(self) -> None:
        pause_s, attempts = FIRST_PAUSE_S, 0
        while True:
            try:
                await self._listen_once(attempts)
                pause_s = FIRST_PAUSE_S
            except StoreError as error:
                to_log(HintsEnded(str(error)))
                self._servers.forget()
            except Exception as error:  # a bug, or a message that nobody should have sent
                to_log(HintsFailed(repr(error)), error=error)
            attempts += 1
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _listen_once(self, attempts: int) -> None:
        """Connect, and listen until the connection ends."""
        endpoints = await self._servers.primaries()
        listener = Listener(
            endpoints[attempts % len(endpoints)], self._timeout_s, hear=self._hear, confirmed=self._on_confirmed
        )
        try:
            await listener.connect(self._servers.address)
            self._listener = listener
            listener.subscribe(map(self._channel_of, self._followers))
            await listener.ended.wait()
            to_log(HintsEnded(str(listener.why)))
        finally:
            self._listener = None
            self._confirmed.clear()
            self._lapsed |= self._followers.keys()
            listener.close()

    def _on_confirmed(self, channel: bytes) -> None:
        topic = self._topic_of(channel)
        if topic not in self._followers:  # nobody follows it any more
            return
        self._confirmed.add(topic)
        if topic in self._lapsed:
            self._lapsed.discard(topic)
            self._hand(Hint(topic, _conversation(topic), lapsed=True))
        for follower in self._followers[topic]:
            self._check(follower)

    def _check(self, follower: Follower) -> None:
        if follower.topics <= self._confirmed:
            follower.listening.set()

    def _hear(self, channel: bytes, payload: bytes) -> None:
        topic = self._topic_of(channel)
        if payload.startswith(b"+"):
            self._hand(Hint(topic, topic.subject, delta=json.loads(payload[1:])))
            return
        head, _, conversation = payload.decode().partition(" ")
        self._hand(Hint(topic, conversation or _conversation(topic), int(head) if head else None))

    def _hand(self, hint: Hint) -> None:
        for follower in self._followers.get(hint.topic, ()):
            follower.hand(hint)

    def _channel_of(self, topic: Topic) -> str:
        return f"{self._channel}{topic.kind}{f':{topic.subject}' if topic.subject else ''}"

    def _topic_of(self, channel: bytes) -> Topic:
        kind, _, subject = channel.decode().removeprefix(self._channel).partition(":")
        return Topic(kind, subject)


def _conversation(topic: Topic) -> str | None:
    return topic.subject if topic.kind == Topic.CONVERSATION else None
