"""What a case plays on: one store, opened as often as processes would, a clock that stands still, nodes and writers."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self, final

from tenure.abc import (
    About,
    Accepted,
    Append,
    Appended,
    Claim,
    Creation,
    Filters,
    Granted,
    Held,
    Limits,
    Reading,
    Reason,
    Release,
    ReleasedNow,
    Store,
    Submit,
    Wanted,
)
from tenure.conversation import Fold, Settle, TurnState, fold
from tenure.errors import InvalidInputError
from tenure.journal import CORE_COMMANDS, Command, Draft, Event, Rehydrated, Rehydrating
from tenure.lease import Epoch, IncarnationId, Lease, Token, new_incarnation, new_token
from tenure.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Sequence

    from tenure.abc import Hint
    from tenure.clock import Clock
    from tenure.conversation import Record
    from tenure.journal import JsonObject

type Factory = Callable[[Clock, Limits], Store]
"""Makes another, unopened way to the *same* store, as another process would open it. `clock` is the store's clock."""

type Case = Callable[[Stage], Coroutine[None, None, None]]
"""One sentence of the contract, as a coroutine function."""

TTL_S = 3.0
PATIENCE_S = 20.0
"""How long a case waits for what must come; what comes, comes much sooner."""

AGENT = "agent"
CREATION = Creation(default_agent=AGENT)
IDLE = Settle(runnable=False, started=True)
"""A live loop without work."""
OPEN = Settle(runnable=True, started=True, turn=TurnState.OPEN)
"""A live loop in the middle of a turn."""


@contextmanager
def refused(field: str, *parts: str) -> Generator[None]:
    """What is done inside is refused, by a message that names the field and the parts."""
    try:
        yield
    except InvalidInputError as error:
        assert error.field == field, error
        assert all(part in str(error) for part in parts), error
        assert error.remedy, "it says what to do"
    else:
        raise AssertionError(f"{field} {' '.join(parts)}: it was accepted")


def expect[T](kind: type[T], result: object) -> T:
    """The result, which must be of this kind."""
    assert isinstance(result, kind), f"expected {kind.__name__}, the store answered {result!r}"
    return result


def only[T](some: Iterable[T]) -> T:
    """The one that there is; there must be exactly one."""
    found = list(some)
    assert len(found) == 1, f"expected one, found {found}"
    return found[0]


def note(text: str = "note") -> Draft:
    """An event of a loop: the core keeps it and judges nothing about it."""
    return Draft("note", {"text": text})


def message(key: str, text: str = "hello") -> Command:
    return command("message", key, {"text": text})


def command(kind: str, key: str, body: JsonObject | None = None) -> Command:
    """A command of the core."""
    return Command(kind, body or {}, key, CORE_COMMANDS[kind])


async def awaited(hints: AsyncIterator[Hint], suits: Callable[[Hint], bool]) -> Hint:
    """The first hint that suits; what comes before it is passed over."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for hint in hints:
                if suits(hint):
                    return hint
    except TimeoutError:
        raise AssertionError(f"no such hint within {PATIENCE_S:g} s") from None
    raise AssertionError("the stream of hints ended before such a hint")


@final
class Writer:
    """An owner as a case plays it: it holds a lease, and counts its batches and what it has seen."""

    def __init__(self, store: Store, held: Held) -> None:
        self.store = store
        self.lease: Lease = held.lease
        self.number = 0
        self.seen = held.record.head

    def batch(self, *drafts: Draft, settle: Settle | None = None, seen: int | None = None) -> Append:
        """The next batch, not yet sent."""
        return Append(self.lease, self.number + 1, self.seen if seen is None else seen, drafts, settle)

    async def append(self, *drafts: Draft, settle: Settle | None = None, seen: int | None = None) -> Appended:
        """Write the next batch; it must be taken."""
        done = expect(Appended, await self.store.append(self.batch(*drafts, settle=settle, seen=seen)))
        self.number += 1
        self.seen = done.head if seen is None else self.seen
        return done

    def farewell(
        self,
        *drafts: Draft,
        settle: Settle | None = None,
        reason: Reason = Reason.IDLE,
        retry_in_s: float | None = None,
        seen: int | None = None,
    ) -> Release:
        """The release, not yet sent."""
        settle = settle or Settle(runnable=False)
        return Release(self.batch(*drafts, settle=settle, seen=seen), reason, retry_in_s)

    async def release(self, settle: Settle | None = None, reason: Reason = Reason.IDLE) -> ReleasedNow:
        """Let go; it must be taken."""
        return expect(ReleasedNow, await self.store.release(self.farewell(settle=settle, reason=reason)))


@final
class Stage:
    """One case's store, nodes and conversations. Names are given in order: ``c1``, ``c2`` …, ``k1``, ``k2`` …"""

    def __init__(self, factory: Factory, clock: ManualClock, handles: AsyncExitStack) -> None:
        self.clock = clock
        self._factory = factory
        self._handles = handles
        self._names = itertools.count(1)
        self._keys = itertools.count(1)
        self._nodes = itertools.count(1)
        self.store: Store

    @classmethod
    @asynccontextmanager
    async def opened(cls, factory: Factory) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as handles:
            stage = cls(factory, ManualClock(), handles)
            stage.store = await stage.another()
            yield stage

    # ways to the store

    def unopened(self, limits: Limits | None = None) -> Store:
        """Another way to the same store, as another process has it."""
        return self._factory(self.clock, limits or Limits())

    async def another(self, limits: Limits | None = None) -> Store:
        """The same, opened, until the case is over."""
        return await self._handles.enter_async_context(self.unopened(limits))

    async def several(self, count: int) -> list[Store]:
        return [await self.another() for _ in range(count)]

    # requests

    def key(self) -> str:
        return f"k{next(self._keys)}"

    def say(self, conversation: str, text: str = "hello", key: str | None = None) -> Submit:
        """A message, not yet sent, that creates its conversation if need be."""
        return Submit(conversation, message(key or self.key(), text), CREATION)

    def claiming(
        self,
        conversation: str,
        incarnation: IncarnationId,
        expected_epoch: int = 0,
        *,
        forced: bool = False,
        token: Token | None = None,
        create: Creation | None = None,
        floor: int = 0,
    ) -> Claim:
        """A claim attempt, not yet sent."""
        return Claim(
            conversation,
            incarnation,
            token or new_token(),
            Epoch(expected_epoch),
            node=f"node-{incarnation}",
            address=f"http://{incarnation}",
            why="test",
            forced=forced,
            create=create,
            floor=floor,
        )

    # what a case begins with

    async def node(self, name: str | None = None, *, ttl_s: float = TTL_S) -> IncarnationId:
        """A registered incarnation."""
        incarnation = new_incarnation()
        expect(Granted, await self.store.register(incarnation, self.about(name), ttl_s))
        return incarnation

    def about(self, name: str | None = None) -> About:
        name = name or f"n{next(self._nodes)}"
        return About(name, f"http://{name}:8400", 10, (AGENT, "another agent"), self.clock.now())

    async def conversation(self, creation: Creation = CREATION) -> str:
        """A new conversation without a command."""
        name = f"c{next(self._names)}"
        expect(Accepted, await self.store.submit(Submit(name, None, creation)))
        return name

    async def submit(self, conversation: str, kind: str = "message", text: str = "hello") -> Accepted:
        """A command that must be taken."""
        asked = command(kind, self.key(), {"text": text})
        return expect(Accepted, await self.store.submit(Submit(conversation, asked)))

    async def claim(self, conversation: str, incarnation: IncarnationId, *, forced: bool = False) -> Writer:
        """A claim with the epoch that the record shows; it must be granted."""
        record = await self.record(conversation)
        request = self.claiming(conversation, incarnation, record.epoch, forced=forced)
        return Writer(self.store, expect(Held, await self.store.claim(request)))

    async def owned(self) -> Writer:
        """A new conversation, held by a new node."""
        return await self.claim(await self.conversation(), await self.node())

    # what a case looks at

    async def record(self, conversation: str) -> Record:
        (record,) = await self.store.records([conversation])
        assert record is not None, f"the store has no record of {conversation}"
        return record

    async def journal(self, conversation: str, store: Store | None = None) -> list[Event]:
        """All events, read in pieces."""
        events: list[Event] = []
        while True:
            piece = expect(Reading, await (store or self.store).read(conversation, len(events)))
            events.extend(piece.events)
            if not piece.events:
                return events

    async def kinds(self, conversation: str) -> list[str]:
        return [event.kind for event in await self.journal(conversation)]

    async def sweep(self, me: IncarnationId | None, agents: Sequence[str] = (AGENT,)) -> dict[str, Wanted]:
        """All that :meth:`Store.wanted` says, in pieces, by conversation."""
        found: list[Wanted] = []
        cursor: str | None = None
        while True:
            page = await self.store.wanted(me, agents, cursor, 100)
            found.extend(page.items)
            cursor = page.cursor
            if cursor is None:
                assert len({w.conversation for w in found}) == len(found), "a sweep shows each conversation once"
                return {w.conversation: w for w in found}

    async def listed(
        self, filters: Filters | None = None, limit: int = 100, store: Store | None = None
    ) -> list[Record]:
        """All that :meth:`Store.list` says, in pages of `limit`."""
        found: list[Record] = []
        cursor: str | None = None
        cursors: set[str] = set()
        while True:
            page = await (store or self.store).list(filters or Filters(), cursor, limit)
            assert len(page.items) <= limit, "a page has at most `limit` items"
            found.extend(page.items)
            cursor = page.cursor
            if cursor is None:
                return found
            assert cursor not in cursors, "the cursor always advances"
            cursors.add(cursor)

    async def unchanged(self, conversation: str, before: Record) -> bool:
        """Whether record and journal are those of `before`; what is left of time limits aside."""
        return timeless(await self.record(conversation)) == timeless(before)

    async def judge(self, conversations: Iterable[str] | None = None) -> None:
        """The strict fold takes every journal, and each record says what its journal says."""
        for record in await self.listed():
            if conversations is None or record.conversation in conversations:
                judge(record, await self.journal(record.conversation))


def timeless(record: Record) -> Record:
    """The record without what passes while nothing happens."""
    owner = record.owner and replace(record.owner, expires_in_s=None)
    return replace(record, owner=owner, retry_in_s=None)


def recorded(events: Sequence[Event]) -> range:
    """The seqs of the past of a copy: from ``rehydrating`` to ``rehydrated``, or to the end if it is not whole."""
    first = next((event.seq for event in events if event.kind == Rehydrating.kind), 0)
    last = next((event.seq for event in events if event.kind == Rehydrated.kind), len(events) + 1)
    return range(first, last) if first else range(0)


def judge(record: Record, events: Sequence[Event]) -> Fold:
    """The journal's meaning; it has no gap, no foreign epoch, each key once, and agrees with the record."""
    state = fold(Fold(), events)
    commands = [event for event in events if event.is_command]
    past = recorded(events)
    keys = [event.key for event in commands]
    assert len(set(keys)) == len(keys), f"a key stands twice in the journal of {record.conversation}: {keys}"
    assert all(event.epoch is None for event in commands), "a command has no epoch"
    assert state.seq == record.head, "head is the seq of the last event"
    assert state.epoch == record.epoch, "the record's epoch is the last that was claimed"
    assert state.owned == (record.owner is not None), "the journal misses no owner and no release"
    accepted = [event.seq for event in commands if event.seq not in past]
    assert record.last_command == (accepted[-1] if accepted else 0), "recorded commands were not accepted here"
    return state
