"""Waiting for a lock that somebody else holds."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds the lock, so that trying again is the answer."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def persist[T](attempt: Callable[[], T], timeout_s: float) -> T:
    """Repeat an attempt while the database is busy, with growing pauses of random length, up to `timeout_s` of them.

    SQLite's own waiting is not used: its pauses are the same for everybody, and some of its locks do not wait at all.

    :raises sqlite3.OperationalError: still busy after that time, or any other error at once.
    """
    chance = random.Random()
    waited, longest = 0.0, 0.001
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or waited >= timeout_s:
                raise
        pause = chance.uniform(0.0002, longest)
        time.sleep(pause)
        waited, longest = waited + pause, min(longest * 1.5, 0.02)
