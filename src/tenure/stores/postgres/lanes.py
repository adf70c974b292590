"""Group commit: a few connections, and what waits for one of them travels in one transaction.

A lane never waits for company: an idle one starts with the first item at once, and whatever has come by the time that one
is free again goes along. Each item has its own answer. Groups never wait for a row that somebody else has locked: such an
item is answered ``busy`` and goes to the patient lanes, where it waits alone, so that one stuck row holds up nobody else; and
as groups do not wait, no two of them can wait for each other. What most of a group is, plain items, is asked of a function for
many, which may leave some alone: those go along with a later group. An error that the server answers undid the whole group: each
item then goes again, by itself. An error of the connection is everybody's, and its outcome is unknown.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tenure.errors import InvalidInputError, StoreError, StoreUnavailableError
from tenure.facts import LaneFailed, to_log
from tenure.stores.postgres.link import Link, RejectedError, Statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.stores.postgres.link import Row


GROUP = 100
"""How many items travel in one transaction: bounds how long its rows are locked."""
GROUP_BYTES = 4 << 20
MANY = 4
"""From how many plain items of an operation on one statement for all of them costs less than one after the other."""
QUEUE = 2000
"""How many items wait for a set of lanes; the next caller waits before the queue."""
BUSY_TRIES = 5


@final
@dataclass(slots=True, eq=False)
class Item:
    """One request. With an `operation`, a JSON object for the function of that name, which takes several; else a statement.

    A `plain` one may be asked of the function for many (``sql/functions/many.sql``), or, if it travels by itself, with the
    statement `alone` (``sql/functions/one.sql``). Both may leave it alone.
    """

    answer: asyncio.Future[Any]
    operation: str = ""
    fields: str = ""
    conversation: str = ""
    plain: bool = False
    alone: Callable[[], Statement] | None = None
    statement: Statement | None = None
    tries: int = 0
    group: _Company | None = None


@final
@dataclass(slots=True, eq=False)
class _Company:
    """Who waits for a group that is under way. `gone` is done when all of them went away."""

    gone: asyncio.Future[None]
    waiting: int

    def leave(self) -> None:
        self.waiting -= 1
        if self.waiting == 0 and not self.gone.done():
            self.gone.set_result(None)


type Compose = Callable[[str, str, bool], Statement]
"""The statement for an operation, a JSON list of its requests, and whether it may wait for rows."""
type Batch = tuple[str, list[Item]]
"""A function, and what is asked of it in one statement."""
type Joins = Callable[[Item, Item], bool]
"""Whether an item may travel with the first of a group."""


def everybody(first: Item, item: Item) -> bool:
    """Where nobody waits for a row, all may go together."""
    return True


def same_row(first: Item, item: Item) -> bool:
    """Who waits for a row takes along only those that wait for the same one."""
    return bool(first.operation and item.operation) and first.conversation == item.conversation


@final
class Links:
    """The open connections that no lane uses at the moment. There are never more than lanes: a lane borrows one at a time."""

    def __init__(self, connect: Callable[[], Awaitable[Link]], first: Link | None = None) -> None:
        self._connect = connect
        self._idle = [first] if first is not None else []
        self._closed = False

    async def take(self) -> Link:
        """The one that was used last; a new one if there is none.

        :raises StoreUnavailableError: it cannot be made.
        """
        while self._idle:
            link = self._idle.pop()
            if link.usable:
                return link
            await link.close()
        return await self._connect()

    async def give(self, link: Link) -> None:
        """It is free again."""
        if self._closed or link.lost:
            await link.close()
        else:
            self._idle.append(link)

    async def close(self) -> None:
        """Close those that are idle, and the others when they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()


@final
class Lanes:
    """Up to `count` groups under way at once. Lanes without an `overflow` are patient: they may wait for rows."""

    def __init__(
        self,
        name: str,
        count: int,
        links: Links,
        compose: Compose,
        joins: Joins,
        *,
        overflow: Lanes | None = None,
        most: int = GROUP,
    ) -> None:
        self._name = name
        self._count = count
        self._links = links
        self._compose = compose
        self._joins = joins
        self._overflow = overflow
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._room = asyncio.Semaphore(QUEUE)
        self.under_way = 0
        """Requests that wait for a lane or for their answer."""
        self._idle: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # callers

    async def ask(
        self,
        operation: str,
        fields: str,
        conversation: str,
        *,
        plain: bool = False,
        alone: Callable[[], Statement] | None = None,
    ) -> Row:
        """One request of an operation that takes several: its row of the answer.

        :raises StoreUnavailableError: unknown outcome, or nothing was done (the message says so).
        """
        return await self._do(Item(self._loop.create_future(), operation, fields, conversation, plain, alone))

    async def run(self, statement: Statement) -> list[Row]:
        """One statement, and its rows. :raises StoreUnavailableError: as :meth:`ask`."""
        return await self._do(Item(self._loop.create_future(), statement=statement))

    async def _do(self, item: Item) -> Any:
        await self._room.acquire()
        self.under_way += 1
        try:
            self.put(item)
            return await item.answer
        except asyncio.CancelledError:
            if item.group is not None:
                item.group.leave()
            raise
        finally:
            self.under_way -= 1
            self._room.release()

    def put(self, item: Item) -> None:
        """Let it travel with the next group."""
        if self._closed:
            item.answer.set_exception(StoreUnavailableError("the store is closed; nothing was done"))
            return
        self._items.append(item)
        if self._idle:
            self._idle.pop().set()
        elif len(self._tasks) < self._count:
            task = self._loop.create_task(self._work(), name=f"tenure-postgres-{self._name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a bug of ours: the next item starts anew
            to_log(LaneFailed(repr(error)), error=error)

    async def close(self) -> None:
        """Stop; whoever still waits is told. Idempotent."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for item in self._items:
            _fail(item, StoreUnavailableError("the store was closed; nothing was done"))
        self._items.clear()

    # a lane

    async def _work(self) -> None:
        while True:
            while group := self._next_group():
                await self._travel(group)
            woken = asyncio.Event()
            self._idle.append(woken)
            try:
                await woken.wait()
            finally:
                if woken in self._idle:
                    self._idle.remove(woken)

    async def _travel(self, group: list[Item]) -> None:
        """Serve a group on a connection, and answer it, whatever happens."""
        try:
            link = await self._links.take()
            try:
                await self._serve(link, group)
            finally:
                await self._links.give(link)
        except StoreError as error:
            for item in group:
                _fail(item, error)
        except BaseException as error:
            why = "the store was closed" if isinstance(error, asyncio.CancelledError) else repr(error)
            for item in group:
                _fail(item, StoreUnavailableError(f"{why}; the outcome is unknown, repeat the request unchanged"))
            raise

    def _next_group(self) -> list[Item]:
        """What goes together now; of one conversation, one append."""
        group: list[Item] = []
        behind: list[Item] = []
        appends: set[str] = set()
        size = 0
        while self._items and len(group) < self._most and size < GROUP_BYTES:
            item = self._items.popleft()
            if item.answer.done():  # its caller went away before it began: not done, like a request that was lost
                continue
            stays = bool(group) and not self._joins(group[0], item)
            if stays or (item.operation == "append" and item.conversation in appends):
                behind.append(item)
                continue
            if item.operation == "append":
                appends.add(item.conversation)
            group.append(item)
            size += len(item.fields)
        self._items.extendleft(reversed(behind))
        return group

    async def _serve(self, link: Link, group: list[Item]) -> None:
        company = _Company(self._loop.create_future(), len(group))
        for item in group:
            item.group = company
        try:
            answers = await self._transact(link, group, company.gone)
        except RejectedError as error:
            await self._apart(link, group, error)
            return
        for item, answer in answers:
            if not item.answer.done():
                self._take(item, answer)

    async def _transact(self, link: Link, group: list[Item], gone: asyncio.Future[None]) -> list[tuple[Item, Any]]:
        """One transaction for all; what it answered to each."""
        patient = self._overflow is None
        if len(group) == 1 and group[0].plain and group[0].alone is not None and not patient:
            (found,) = await link.run(group[0].alone(), gone=gone)
            return [(group[0], found[0] if found else _LEFT_ALONE)]
        batches = _batches(group, MANY if not patient else len(group) + 1)
        statements: list[Statement] = []
        for function, items in batches:
            requests = ",".join([f'{{"item":{n},{item.fields[1:]}' for n, item in enumerate(items)])
            statements.append(self._compose(function, f"[{requests}]", patient))
        single = [item for item in group if item.statement is not None]
        statements += [item.statement for item in single if item.statement is not None]
        rows = await link.run(*statements, gone=gone)
        answers: list[tuple[Item, Any]] = []
        for (_, items), found in zip(batches, rows, strict=False):
            answered = {row[0]: row for row in found}
            answers += [(item, answered.get(n, _LEFT_ALONE)) for n, item in enumerate(items)]
        answers += zip(single, rows[len(batches) :], strict=True)
        return answers

    def _take(self, item: Item, answer: Any) -> None:
        if not item.operation or (answer is not _LEFT_ALONE and answer[1] != "busy"):
            item.answer.set_result(answer)
            return
        if answer is _LEFT_ALONE:
            item.plain = False
            self.put(item)
            return
        item.tries += 1
        if item.tries > BUSY_TRIES:
            _fail(
                item,
                StoreUnavailableError(f"conversation {item.conversation} is changed all the time; nothing was done"),
            )
        else:
            (self._overflow or self).put(item)

    async def _apart(self, link: Link, group: list[Item], error: RejectedError) -> None:
        """Everything was undone: each goes again by itself, in the patient lanes; one alone is told why."""
        if len(group) == 1:
            _fail(group[0], _told(error))
        elif self._overflow is not None:
            for item in group:
                self._overflow.put(item)
        else:
            for item in group:
                if not item.answer.done():
                    await self._serve(link, [item])


_LEFT_ALONE = (-1, "left alone")
"""In place of an answer: the function for many, or for one, did nothing about it."""


def _batches(group: Sequence[Item], many: int) -> list[Batch]:
    """What is asked of which function: of that for many, one plain item per conversation, if there are so `many` of them."""
    batches: list[Batch] = []
    for operation in dict.fromkeys(item.operation for item in group if item.operation):
        items = [item for item in group if item.operation == operation]
        plain = {item.conversation: item for item in reversed(items) if item.plain}
        if len(plain) >= many:
            batches.append((f"{operation}_many", list(plain.values())))
            items = [item for item in items if plain.get(item.conversation) is not item]
        if items:
            batches.append((operation, items))
    return batches


def _told(error: RejectedError) -> Exception:
    if error.bad_value:
        return InvalidInputError("request", f"PostgreSQL cannot keep it: {error}", "shorten or correct it")
    if error.waited:
        return StoreUnavailableError(
            f"the row was locked for too long by another session: {error}; nothing was done, repeat the request"
        )
    return StoreUnavailableError(f"the server refused the statement: {error}; nothing was done")


def _fail(item: Item, error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)
