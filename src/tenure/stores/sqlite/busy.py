"""Waiting for the write lock: first come, first served within a process; by trying again between processes.

SQLite's lock has no queue, and its own waiting is the same for everybody and never lets a late comer in. So only one
thread of a process tries at a time, at random moments, and whoever has more to do leaves the lock alone for a moment
that is long enough to be hit (:func:`courtesy`): a heartbeat gets through beside a node that writes without pause.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, final
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONGEST_PAUSE_S = 0.01
SHORTEST_PAUSE_S = 0.002
COURTESY = 0.1
"""The part of the time that the lock was held for which it is then left alone."""


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds the lock, so that trying again is the answer."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def persist[T](attempt: Callable[[], T], timeout_s: float, waited_s: float = 0.0) -> T:
    """Repeat an attempt while the database is busy, with pauses of random length, for up to `timeout_s` in all.

    The pauses grow at first, for the sake of the others, and shrink again with the time that was waited (of which
    `waited_s` lies before the call): who waits longest tries most often.

    :raises sqlite3.OperationalError: still busy after that time, or any other error at once.
    """
    chance = random.Random()
    since, longest = time.perf_counter() - waited_s, 0.001
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            waited_s = time.perf_counter() - since
            if not is_busy(error) or waited_s >= timeout_s:
                raise
        time.sleep(chance.uniform(0.0002, longest))
        longest = min(longest * 1.5, max(LONGEST_PAUSE_S * (1 - 2 * waited_s / timeout_s), SHORTEST_PAUSE_S))


def courtesy(held_s: float) -> None:
    """Leave the lock alone for a while after having held it, so that others find it free."""
    time.sleep(min(held_s * COURTESY, LONGEST_PAUSE_S))


@final
class Gate:
    """Lets one thread at a time through, in the order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def enter(self, timeout_s: float) -> bool:
        """Wait for our turn; whether it came in time. Afterwards :meth:`leave` is due."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout_s):
            return True
        with self._lock:
            if turn not in self._waiting:  # it was given to us at the last moment
                return True
            self._waiting.remove(turn)
            return False

    def leave(self) -> None:
        """It is the next one's turn."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


_gates: WeakValueDictionary[Path, Gate] = WeakValueDictionary()
_gates_lock = threading.Lock()


def gate_of(path: Path) -> Gate:
    """The one gate that this process has before the database's write lock."""
    with _gates_lock:
        return _gates.setdefault(path, Gate())
