"""Group commit: one thread with one connection; what waits for it travels in one transaction.

A lane never waits for company: an idle one starts with the first job at once, and whatever has arrived by the time
that it holds the lock goes along. Each job has its own answer. A job that fails by itself (bad input) is taken out and
the others are done again without it; an error of the database is everybody's, and its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, final

from tenure.errors import StoreError, StoreUnavailableError
from tenure.stores.sqlite.busy import Gate, courtesy, is_busy, persist
from tenure.stores.sqlite.fitness import lock_holder
from tenure.stores.sqlite.thread import AwaitableThread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = 200
"""How many requests travel in one writing transaction: bounds how long the write lock is held."""
QUEUE = 2000
"""How many jobs wait for a lane; the next caller waits before the queue."""

_BAD_VALUE = (
    ValueError,
    OverflowError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
)
"""What is raised when SQLite cannot take a value: the fault of the one job that brought it."""


class Unit(Protocol):
    """A unit of work on a connection of its own, made and used in the lane's thread only."""

    def begin(self, *, durable: bool) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


type Job[U: Unit, R] = Callable[[U], R]


@final
@dataclass(slots=True, eq=False)
class _Item:
    job: Job[Any, Any]
    weight: int
    durable: bool
    answer: asyncio.Future[Any]


class _JobFailed(Exception):
    def __init__(self, item: _Item, error: Exception) -> None:
        self.item = item
        self.error = error


@final
class Lane[U: Unit]:
    """The jobs of one event loop, done in order in one thread. `open_unit` is called in that thread."""

    def __init__(
        self, name: str, open_unit: Callable[[], U], path: Path, timeout_s: float, gate: Gate | None = None
    ) -> None:
        self._open_unit = open_unit
        self._gate = gate  # before the write lock; reading needs none, and gains nothing from company
        self._most = GROUP if gate else 1
        self._path = path
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(QUEUE)
        self.under_way = 0
        """Jobs that wait or are done just now; of the event loop."""
        self._thread = AwaitableThread(name, self._run)
        self._closed = False
        # Below: the thread's own.
        self._unit: U | None = None
        self._held: _Item | None = None
        self._last = False

    async def do[R](self, job: Job[U, R], *, weight: int = 1, durable: bool = True) -> R:
        """Run the job in a transaction, maybe with others, and return its result once that is committed.

        `durable` says that it must survive a power cut; `weight` how many requests it stands for.

        :raises StoreUnavailableError: an error of the database; the outcome is unknown.
        """
        await self._room.acquire()
        self.under_way += 1
        if self._closed:
            self._leave()
            raise StoreUnavailableError(f"the store {self._path} is closed; nothing was done")
        self._thread.start()
        item = _Item(job, weight, durable, self._loop.create_future())
        self._queue.put(item)
        return cast("R", await item.answer)

    async def close(self) -> None:
        """Do what waits, then end the thread and its connection; idempotent."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._thread.ended()

    def _run(self) -> None:
        while self._held is not None or not self._last:
            first, self._held = self._held or self._queue.get(), None
            if first is None:
                break
            self._serve([first])
        self._close_unit()

    def _serve(self, group: list[_Item]) -> None:
        """Do what waits, and answer."""
        self._join(group)
        if self._gate is None:
            self._answer(self._persist(group))
            return
        arrived = time.perf_counter()
        if not self._gate.enter(self._timeout_s):
            self._answer(self._unanswered(group, TimeoutError("its other threads did not get through either")))
            return
        entered = time.perf_counter()
        try:
            answers = self._persist(group, entered - arrived)
        finally:
            self._gate.leave()
        self._answer(answers)
        if self._held is not None or not self._queue.empty():
            courtesy(time.perf_counter() - entered)

    def _persist(self, group: list[_Item], waited_s: float = 0.0, *, alone: bool = False) -> list[tuple[_Item, Any]]:
        """An answer for each: try until it is done, without those that fail by themselves."""
        failed: list[tuple[_Item, Any]] = []
        while True:
            try:
                return failed + persist(lambda: self._attempt(group, alone=alone), self._timeout_s, waited_s)
            except _JobFailed as one:
                group.remove(one.item)
                failed.append((one.item, one.error))
            except _BAD_VALUE as error:  # seen only when all was written: whose value it is, each alone will show
                if alone:
                    return [(item, error) for item in group]
                return failed + [answer for item in group for answer in self._persist([item], waited_s, alone=True)]
            except Exception as error:
                self._close_unit()
                self._join(group)  # whoever came meanwhile would wait as long again
                return failed + self._unanswered(group, error)

    def _join(self, group: list[_Item], *, durable: bool = True) -> None:
        """Let in who waits, up to the size of a group; a transaction that is not durable takes nothing that must be."""
        weight = sum(item.weight for item in group)
        while weight < self._most and self._held is None and not self._last:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._last = True
            elif item.durable and not durable:
                self._held = item
            else:
                group.append(item)
                weight += item.weight

    def _attempt(self, group: list[_Item], *, alone: bool) -> list[tuple[_Item, Any]]:
        """One transaction: begin, decide, commit. Nothing is awaited and nobody is called back in between."""
        if all(item.answer.cancelled() for item in group):
            return [(item, None) for item in group]  # nobody waits for it any more
        unit = self._unit
        if unit is None:
            unit = self._unit = self._open_unit()
        durable = any(item.durable for item in group)
        try:
            unit.begin(durable=durable)
            if not alone:
                self._join(group, durable=durable)
            answers = [(item, _do(item, unit)) for item in group]
            unit.commit()
        except BaseException:
            unit.rollback()
            raise
        return answers

    def _unanswered(self, group: list[_Item], error: Exception) -> list[tuple[_Item, Any]]:
        if isinstance(error, StoreError):
            return [(item, error) for item in group]
        reason = str(error)
        if is_busy(error):
            holder = lock_holder(self._path)
            by = f" by process {holder}" if holder else ""
            reason = f"it was locked for {self._timeout_s:g} s{by}; if that process is frozen, thaw or kill it"
        text = f"the store {self._path} did not answer: {reason}; repeat the request unchanged"
        return [(item, StoreUnavailableError(text)) for item in group]

    def _answer(self, answers: list[tuple[_Item, Any]]) -> None:
        self._thread.call_soon(self._hand_out, answers)

    def _leave(self) -> None:
        self.under_way -= 1
        self._room.release()

    def _hand_out(self, answers: list[tuple[_Item, Any]]) -> None:
        for item, answer in answers:
            self._leave()
            if item.answer.done():  # cancelled
                continue
            if isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)

    def _close_unit(self) -> None:
        """After an error the connection is not trusted: the next transaction opens a new one."""
        if self._unit is not None:
            with suppress(sqlite3.Error):
                self._unit.close()
            self._unit = None


def _do(item: _Item, unit: Unit) -> Any:
    if item.answer.cancelled():  # its caller went away before it began: not done, like a request that was lost
        return None
    try:
        return item.job(unit)
    except _BAD_VALUE as error:
        raise _JobFailed(item, error) from error
    except sqlite3.Error:
        raise
    except Exception as error:
        raise _JobFailed(item, error) from error
