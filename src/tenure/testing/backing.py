"""What a simulated cluster is stored in: memory, or a real store that is asked in virtual time.

A :class:`RealBacking` runs each operation of a real store (SQLite, Redis, a third) to its end, on an event loop of its
own, while the simulation stands still; the store's clock is the simulation's. So the faults, the clients and the checker
of a seed are the same as on memory, and what executes the requests is the real thing. After each step it reads back what
the step has changed: the recorder judges by that, and hints are made from it, since the store's own come in real time.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

from tenure.abc import Append, Buried, Paper, Reading, Release, Sent, Topic
from tenure.stores.memory import Disk, Followers, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence

    from tenure.abc import Hint, Store
    from tenure.conversation import Record
    from tenure.journal import Event, JsonObject
    from tenure.testing.simloop import LoopClock


@final
@dataclass(slots=True)
class Stored:
    """A conversation as the store holds it. (Of a deleted one the events are gone.)"""

    record: Record
    events: list[Event] = field(default_factory=list["Event"])


class Image(Protocol):
    """A copy of the whole store at one moment."""

    def promote(self) -> None:
        """The store is this copy from now on: whatever came later is lost."""
        ...


class Backing(Protocol):
    """Where a simulated cluster keeps its conversations."""

    shared: bool
    """All servers use one open store; else each has its own way to it."""

    def connect(self) -> Store:
        """A way to the store."""
        ...

    def run[R](self, work: Coroutine[Any, Any, R]) -> R:
        """Run an operation of the store to its end, as one step of the simulation."""
        ...

    def stepped(self, operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        """An operation was executed."""
        ...

    def follow(self, topics: Sequence[Topic]) -> Any:
        """As :meth:`tenure.abc.Store.follow`, of a store that is shared."""
        ...

    def names(self) -> list[str]:
        """Every conversation there is or was."""
        ...

    def get(self, conversation: str) -> Stored | None:
        """The conversation at this moment."""
        ...

    def is_dead(self, incarnation: str) -> bool:
        """Whether the incarnation is buried."""
        ...

    def image(self) -> Image:
        """A copy of the whole store."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


@final
class MemoryBacking:
    """The reference store, which never waits."""

    shared = False

    def __init__(self, clock: LoopClock) -> None:
        self.disk = Disk()
        self._clock = clock

    def connect(self) -> Store:
        return MemoryStore(self.disk, self._clock)

    def run[R](self, work: Coroutine[Any, Any, R]) -> R:
        return at_once(work)

    def stepped(self, operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Nothing to do: it can be looked into."""

    def follow(self, topics: Sequence[Topic]) -> Any:
        raise AssertionError("each server follows on its own way to the store")

    def names(self) -> list[str]:
        return list(self.disk.conversations)

    def get(self, conversation: str) -> Stored | None:
        one = self.disk.conversations.get(conversation)
        return one and Stored(one.row.record, one.events)

    def is_dead(self, incarnation: str) -> bool:
        return any(name == incarnation and node.dead for name, node in self.disk.nodes.items())

    def image(self) -> Image:
        return Replica(self.disk)

    def close(self) -> None:
        """Nothing to do: it is collected."""


@final
class Replica:
    """A copy of a memory disk. Followers stay connected through a fail-over to it; they are told nothing."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kept = disk.copy()

    def promote(self) -> None:
        again = self._kept.copy()
        self._disk.nodes = again.nodes
        self._disk.conversations = again.conversations
        self._disk.papers = again.papers


@final
class RealBacking:
    """A real store. `open_store` makes it, not yet opened, with the clock that it is to go by; `image` copies it."""

    shared = True

    def __init__(
        self,
        clock: LoopClock,
        open_store: Callable[[LoopClock], Store],
        image: Callable[[], Image] | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._image = image
        self._held: dict[str, Stored] = {}
        self._dead: set[str] = set()
        self._followers = Followers()
        self.store = open_store(clock)
        self.run(self.store.__aenter__())

    def run[R](self, work: Coroutine[Any, Any, R]) -> R:
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return self._loop.run_until_complete(work)
        finally:
            asyncio._set_running_loop(outer)

    def stepped(self, operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Read back what the step has touched, and tell who follows."""
        match operation, result:
            case "bury", Buried():
                if arguments[0] not in self._dead:
                    self._dead.add(arguments[0])
                    self._followers.tell([Topic(Topic.WANTED), Topic(Topic.NODE, arguments[0])])
            case "put_paper", Paper():
                self._paper(arguments[0], arguments[1])
            case "publish", Sent():
                lease, delta = arguments
                self._published(lease.conversation, delta)
            case "submit_all" | "claim_all" | "append_all" | "release_all", _:
                for request in arguments[0]:
                    self._look(_conversation(request))
            case "delete" | "amend", _:
                self._look(arguments[0])
            case _:
                pass

    def _paper(self, kind: str, id: str) -> None:
        if kind == "request":
            self._followers.tell([Topic(Topic.NODE, id.partition("/")[0])])

    def _published(self, conversation: str, delta: JsonObject) -> None:
        self._followers.tell([Topic(Topic.CONVERSATION, conversation)], conversation, delta=delta)

    def _look(self, conversation: str) -> None:
        """What the store says of it now; a change of it is hinted at, as the memory store does."""
        before = self._held.get(conversation)
        events = before.events if before is not None else []
        answer = self.run(self.store.read(conversation, len(events)))
        if isinstance(answer, Reading):
            while len(events) + len(answer.events) < answer.record.head:
                more = self.run(self.store.read(conversation, len(events) + len(answer.events)))
                assert isinstance(more, Reading), "nothing happens in between"
                answer = Reading((*answer.events, *more.events), answer.record)
            record = answer.record
            events.extend(answer.events)
        else:
            (found,) = self.run(self.store.records([conversation]))
            if found is None:
                return
            record = found
            events.clear()
        self._held[conversation] = Stored(record, events)
        if before is None or before.record != record:
            self._tell(record)

    def _tell(self, record: Record) -> None:
        topics = [Topic(Topic.CONVERSATION, record.conversation)]
        if record.wanted:
            topics.append(Topic(Topic.NODE, record.owner.incarnation) if record.owner else Topic(Topic.WANTED))
        self._followers.tell(topics, record.conversation, record.head)

    @asynccontextmanager
    async def follow(self, topics: Sequence[Topic]) -> AsyncGenerator[AsyncIterator[Hint]]:
        with self._followers.follow(topics) as follower:
            yield follower.hints()

    def connect(self) -> Store:
        return self.store

    def names(self) -> list[str]:
        return list(self._held)

    def get(self, conversation: str) -> Stored | None:
        return self._held.get(conversation)

    def is_dead(self, incarnation: str) -> bool:
        return incarnation in self._dead

    def image(self) -> Image:
        assert self._image is not None, "this store is not made for a fail-over"
        return _Rewinding(self, self._image())

    def rewound(self) -> None:
        """The store is an older copy of itself: read everything anew."""
        names, self._held = list(self._held), {}
        for name in names:
            self._look(name)
        self._dead &= {str(node.incarnation) for node in self.run(self.store.nodes()) if node.dead}

    def close(self) -> None:
        self.run(self.store.__aexit__(None, None, None))
        self._loop.close()


@final
class _Rewinding:
    """An image whose promotion the backing takes notice of."""

    def __init__(self, backing: RealBacking, image: Image) -> None:
        self._backing = backing
        self._image = image

    def promote(self) -> None:
        self._image.promote()
        self._backing.rewound()


def _conversation(request: Any) -> str:
    match request:
        case Append():
            return request.lease.conversation
        case Release():
            return request.batch.lease.conversation
        case _:
            return str(request.conversation)


def at_once[R](work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine of the memory store, which never waits: each of its operations is one step."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError("an operation of the memory store waited: it would not be atomic here")
