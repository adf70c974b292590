"""Hints: what followers are told of changes that any process made.

A thread asks ``PRAGMA data_version`` (microseconds, no disk) every few milliseconds, more rarely while it is quiet, and
at once after a write of its own store object. Only when something changed does it read what: every change has a number,
so the work is proportional to what changed. It runs only while somebody follows.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections import deque
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, final

from tenure.abc import Hint, Topic
from tenure.errors import StoreError
from tenure.facts import HintsEnded, HintsFailed, to_log
from tenure.stores.sqlite import statements as sql
from tenure.stores.sqlite.busy import is_busy
from tenure.stores.sqlite.thread import AwaitableThread
from tenure.stores.sqlite.transaction import SIGNALS_KEPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tenure.stores.sqlite.file import StoreFile

QUEUE = 1000
"""How many hints wait for one follower; then the oldest is dropped and the next one says so."""
BRISK_S = 0.002
QUIET_S = 0.02


@final
class Follower:
    """One stream of hints. Filled by the poller's thread, read in the event loop; neither waits for the other."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.topics = frozenset(topics)
        self._loop = asyncio.get_running_loop()
        self._hints: deque[Hint] = deque(maxlen=QUEUE)
        self._arrived = asyncio.Event()
        self._lapsed = False
        self._told = False
        self._closed = False

    def hand(self, hint: Hint) -> None:
        """From the poller's thread."""
        if len(self._hints) == QUEUE:
            self._lapsed = True  # before the oldest goes: the next look comes after both
        self._hints.append(hint)
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._told = False
        self._arrived.set()

    def close(self) -> None:
        """The stream ends after what has arrived."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Hint]:
        return self

    async def __anext__(self) -> Hint:
        """The next hint. May be cancelled and asked again: nothing is lost, and the stream goes on."""
        while not self._hints:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            if not self._hints:
                await self._arrived.wait()
        hint = self._hints.popleft()
        if self._lapsed:
            self._lapsed = False
            hint = replace(hint, lapsed=True)
        return hint


@final
class Hints:
    """Everybody who follows one store object, and the thread that looks for them while there is anybody."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._followers: dict[Topic, tuple[Follower, ...]] = {}
        self._poller: Poller | None = None

    async def add(self, follower: Follower) -> None:
        """From now on the follower hears of changes."""
        for topic in follower.topics:
            self._followers[topic] = (*self._followers.get(topic, ()), follower)
        if self._poller is None:
            self._poller = Poller(self._file, self._followers)
        await self._poller.watching.wait()

    async def remove(self, follower: Follower) -> None:
        for topic in follower.topics:
            rest = tuple(other for other in self._followers.get(topic, ()) if other is not follower)
            if rest:
                self._followers[topic] = rest
            else:
                self._followers.pop(topic, None)
        if not self._followers and self._poller is not None:
            poller, self._poller = self._poller, None
            await poller.close()

    def nudge(self) -> None:
        """There is something new: look now. From any thread."""
        poller = self._poller
        if poller is not None:
            poller.nudge()

    async def close(self) -> None:
        """End every stream and the thread."""
        for followers in list(self._followers.values()):
            for follower in followers:
                follower.close()
        if self._poller is not None:
            await self._poller.close()


@final
class Poller:
    """The thread that sees what others wrote. Tuples in `followers` are replaced, never changed, so it may read along."""

    def __init__(self, file: StoreFile, followers: dict[Topic, tuple[Follower, ...]]) -> None:
        self.watching = asyncio.Event()
        self._file = file
        self._followers = followers
        self._nudged = threading.Event()
        self._closing = False
        self._seen: int | None = None
        self._thread = AwaitableThread("poll", self._run)
        self._thread.start()

    def nudge(self) -> None:
        self._nudged.set()

    async def close(self) -> None:
        self._closing = True
        self._nudged.set()
        await self._thread.ended()

    def _run(self) -> None:
        while not self._closing:
            # After an error (no room, say) the connection is not trusted: open another and tell that hints lapsed.
            try:
                with closing(self._file.open()) as connection:
                    self._watch(connection)
            except (sqlite3.Error, OSError, StoreError) as error:
                to_log(HintsEnded(str(error)))
            except Exception as error:  # a bug: hints are a favour, but their end would be noticed too late
                to_log(HintsFailed(repr(error)), error=error)
            if not self._closing:
                self._let_in()  # looking will say what is wrong
                self._tell_lapsed()
                self._nudged.wait(1.0)
                self._nudged.clear()

    def _watch(self, connection: sqlite3.Connection) -> None:
        version, pause = -1, BRISK_S
        while not self._closing:
            try:
                (now,) = connection.execute(sql.DATA_VERSION).fetchone()
                if now != version:
                    self._look(connection)
                    version, pause = now, BRISK_S
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
            self._let_in()
            self._file.check()
            if self._nudged.wait(pause):
                self._nudged.clear()
            else:
                pause = min(pause * 1.2, QUIET_S)

    def _look(self, connection: sqlite3.Connection) -> None:
        """Read what changed since the last look, in order, and hand it out."""
        connection.execute("BEGIN")
        try:
            changes = connection.execute(sql.COUNTERS).fetchone()[0]
            since, self._seen = self._seen, changes
            if since is None or since == changes:
                return
            if not 0 <= changes - since <= SIGNALS_KEPT:
                self._tell_lapsed()
                return
            found = [(change, self._of_signal(*rest)) for change, *rest in connection.execute(sql.SIGNALS, (since,))]
            for change, *rest in connection.execute(sql.CHANGED, (since,)):
                found += [(change, hint) for hint in self._of_conversation(*rest)]
        finally:
            connection.execute("ROLLBACK")
        for _, hint in sorted(found, key=lambda one: one[0]):
            self._hand(hint)

    @staticmethod
    def _of_signal(topic: str, subject: str, delta: str | None) -> Hint:
        conversation = subject if topic == Topic.CONVERSATION else None
        return Hint(Topic(topic, subject), conversation, delta=json.loads(delta) if delta else None)

    @staticmethod
    def _of_conversation(id: str, head: int, wanted: int, owner: str | None) -> list[Hint]:
        topics = [Topic(Topic.CONVERSATION, id)]
        if wanted:
            topics.append(Topic(Topic.NODE, owner) if owner else Topic(Topic.WANTED))
        return [Hint(topic, id, head) for topic in topics]

    def _hand(self, hint: Hint) -> None:
        for follower in self._followers.get(hint.topic, ()):
            follower.hand(hint)

    def _tell_lapsed(self) -> None:
        for topic in list(self._followers):
            self._hand(Hint(topic, topic.subject if topic.kind == Topic.CONVERSATION else None, lapsed=True))

    def _let_in(self) -> None:
        if not self.watching.is_set():
            self._thread.call_soon(self.watching.set)
