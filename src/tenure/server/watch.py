"""Looking at one conversation until something is there: what streams and waiting requests stand on.

Hints may be lost and are never believed: whoever is told to look reads the journal from its own cursor, and looks every
so often also when nobody tells. So a stream has no gap and no duplicate, on any node, whoever owns the conversation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never, final

from tenure.abc import Deleted, Hint, Reading, Topic, Unknown
from tenure.errors import ConversationDeletedError, StoreUnavailableError, UnknownConversationError
from tenure.journal import (
    TURN_ENDS,
    CommandSettled,
    Event,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    read_body,
)
from tenure.server.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tenure.abc import Store
    from tenure.conversation import Record

SETTLING = ("command_settled", *sorted(TURN_ENDS))
"""The kinds that settle commands."""

_LONGEST_PAUSE_S = 2.0


@final
class Watch:
    """Hints about one conversation, kept until somebody looks; bounded, the oldest go first."""

    def __init__(self, store: Store, conversation: str, *, moves: bool = False) -> None:
        self.store = store
        self.topic = Topic(Topic.CONVERSATION, conversation)
        self.moves = moves
        """Its reader can go on at another node, and loses nothing by it."""
        self._hints: deque[Hint] = deque(maxlen=256)
        self._stirred = asyncio.Event()
        self._following = asyncio.Event()
        self._shut = asyncio.Event()

    @property
    def closed(self) -> bool:
        """The node shuts down: no more waiting."""
        return self._shut.is_set()

    async def listen(self) -> None:
        """Gather hints for as long as it is not cancelled, through every outage of the store."""
        pause = 0.05
        while True:
            try:
                async with self.store.follow([self.topic]) as hints:
                    self._following.set()
                    self._keep(Hint(self.topic, lapsed=True))
                    async for hint in hints:
                        pause = 0.05
                        self._keep(hint)
            except StoreUnavailableError:
                pass
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause)

    async def following(self, timeout_s: float) -> None:
        """Return when hints come in; in an outage, when `timeout_s` have passed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._following.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Wake whoever waits, for the last time."""
        self._shut.set()
        self._stirred.set()

    async def shut(self) -> None:
        """Return when the watch was closed."""
        await self._shut.wait()

    def _keep(self, hint: Hint) -> None:
        if len(self._hints) == self._hints.maxlen:
            self._hints.popleft()
            hint = Hint(hint.topic, lapsed=True)
        self._hints.append(hint)
        self._stirred.set()

    async def next(self, timeout_s: float) -> Sequence[Hint]:
        """What came since the last look, in order; empty when `timeout_s` have passed or the watch was closed."""
        if not self.closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._stirred.wait()
            except TimeoutError:
                return ()
            self._stirred.clear()
        came = tuple(self._hints)
        self._hints.clear()
        return came


@final
@dataclass(slots=True)
class Watches:
    """All that is watched through one app, so that a shutdown can end it."""

    store: Store
    most: int
    closed: bool = False
    _open: set[Watch] = field(default_factory=set[Watch])

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every stream and every wait, now and from now on."""
        self.closed = True
        for watch in self._open:
            watch.close()

    async def see_off(self, within_s: float) -> None:
        """Send the readers who can move elsewhere, one after the other, while everything here still answers: they have a place by
        the time that the turns which they watch have one, and do not all come at once. Who comes after that may stay to the end."""
        moving = [watch for watch in self._open if watch.moves]
        for watch in moving:
            watch.close()
            await asyncio.sleep(within_s / len(moving))

    def _admit(self) -> None:
        if len(self._open) >= self.most:
            remedy = "close some, or ask another node"
            raise Problem(
                503, "too-many-streams", "Too many streams", f"this node has {self.most} open; {remedy}",
                retry_after_s=1, limit=f"at most {self.most} at a time", remedy=remedy,
            )  # fmt: skip

    @asynccontextmanager
    async def watch(self, conversation: str, *, moves: bool = False) -> AsyncGenerator[Watch]:
        """Watch a conversation from now on. `moves`: the reader can be sent elsewhere; see :meth:`see_off`.

        :raises Problem: as many are open as this node takes.
        """
        self._admit()
        watch = Watch(self.store, conversation, moves=moves)
        if self.closed:
            watch.close()
        self._open.add(watch)
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(watch.listen())
                try:
                    yield watch
                finally:
                    listening.cancel()
        except BaseExceptionGroup as found:
            if len(found.exceptions) == 1:
                raise found.exceptions[0] from None  # one error is itself
            raise
        finally:
            self._open.discard(watch)


# --- reading --------------------------------------------------------------------------------------------------------


async def find(store: Store, conversation: str, user_id: str | None = None) -> Record:
    """The record, for whoever may see it.

    :raises UnknownConversationError: there is none, or it is another user's. :raises ConversationDeletedError: deleted.
    """
    [record] = await store.records([conversation])
    if record is None or (user_id is not None and record.user_id != user_id):
        raise UnknownConversationError(conversation)
    if record.deleted:
        raise ConversationDeletedError(conversation)
    return record


async def read(
    store: Store,
    conversation: str,
    after: int,
    limit: int,
    kinds: Sequence[str] = (),
    user_id: str | None = None,
    *,
    snapshot: bool = False,
) -> Reading:
    """A page of a journal, for whoever may see it; with its `snapshot` as :meth:`Store.read` gives it.

    :raises UnknownConversationError: there is none, or it is another user's. :raises ConversationDeletedError: deleted.
    """
    reading = await store.read(conversation, after, min(limit, store.limits.page), kinds=kinds, snapshot=snapshot)
    match reading:
        case Reading():
            if user_id is not None and reading.record.user_id != user_id:
                raise UnknownConversationError(conversation)
            return reading
        case Unknown():
            raise UnknownConversationError(conversation)
        case Deleted():
            await find(store, conversation, user_id)  # another user's tombstone is unknown
            raise ConversationDeletedError(conversation)
        case _:
            assert_never(reading)


async def epoch_at(store: Store, conversation: str, seq: int) -> int:
    """The epoch in force at `seq`: of the last entry up to there that has one. Looks backwards, a few events at a time."""
    high = seq
    while high > 0:
        low = max(0, high - 50)
        reading = await read(store, conversation, low, high - low)
        for event in reversed(reading.events):
            if event.epoch is not None and event.seq <= seq:
                return event.epoch
        high = low
    return 0


def outcome_of(event: Event, command: int) -> str | None:
    """How this event settles the command; null if it does not."""
    body = read_body(event)
    match body:
        case CommandSettled() if body.command == command:
            return body.outcome
        case TurnCompleted() | TurnFailed() | TurnInterrupted() if command in body.commands:
            return event.kind.removeprefix("turn_")
        case _:
            return None


@final
@dataclass(slots=True)
class Settlement:
    """The search for the one event that settles a command; goes on where it stopped."""

    store: Store
    conversation: str
    command: int
    event: Event | None = None
    outcome: str = ""
    _after: int = 0

    async def found(self) -> bool:
        """Whether it stands in the journal by now."""
        after = max(self._after, self.command)
        while self.event is None:
            reading = await read(self.store, self.conversation, after, 100, SETTLING)
            for event in reading.events:
                outcome = outcome_of(event, self.command)
                if outcome is not None:
                    self.event, self.outcome = event, outcome
                    return True
                after = self._after = event.seq
            if len(reading.events) < min(100, self.store.limits.page):
                self._after = max(after, reading.record.head)
                return False
        return True

    async def wait(self, watch: Watch, timeout_s: float, poll_s: float) -> bool:
        """Whether it came in time. A store that does not answer for a while costs time, nothing else."""
        try:
            async with asyncio.timeout(timeout_s):
                while not watch.closed:
                    try:
                        if await self.found():
                            return True
                    except StoreUnavailableError:
                        pass
                    await watch.next(poll_s)
        except TimeoutError:
            pass
        return self.event is not None
