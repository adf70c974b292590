"""Two kinds of time, kept apart by their types.

An :class:`Instant` is wall time: for people, in journals and on screens. It may jump, repeat and disagree
between machines, so nothing is decided by it. A :class:`Deadline` is boot time: it never goes back, it runs on
while the machine sleeps, and it means nothing on another machine. Trust in a lease is measured by deadlines only.

Neither may *extend* what the store granted: the store's clock grants, the node's clock may only shorten.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, final


@final
@dataclass(frozen=True, slots=True, order=True)
class Instant:
    """A moment of wall time in seconds since 1970-01-01T00:00:00Z. For people; never compared to a Deadline."""

    unix_s: float

    def isoformat(self) -> str:
        """The moment in UTC as RFC 3339 with milliseconds, e.g. ``2026-01-31T09:30:00.250Z``."""
        return datetime.fromtimestamp(self.unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @classmethod
    def parse(cls, text: str) -> Instant:
        """Read :meth:`isoformat` back.

        :raises ValueError: the text is no RFC 3339 time.
        """
        return cls(datetime.fromisoformat(text).timestamp())


@final
@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A moment of this machine's boot time, in seconds since boot; suspended time counts."""

    boot_s: float

    def __add__(self, seconds: float) -> Deadline:
        return Deadline(self.boot_s + seconds)

    def __sub__(self, earlier: Deadline) -> float:
        """Seconds from `earlier` to this one; negative if this one is earlier."""
        return self.boot_s - earlier.boot_s


class Clock(Protocol):
    """Where time comes from. Passed in, so that a test can hold it."""

    def now(self) -> Instant:
        """Wall time, for people."""
        ...

    def boottime(self) -> Deadline:
        """Boot time, for deadlines."""
        ...


@final
class SystemClock:
    """The machine's clocks: ``CLOCK_REALTIME`` and ``CLOCK_BOOTTIME`` (monotonic time where there is no boot time).

    A pause by a hypervisor is invisible to both; only the fence in the store sees it.
    """

    _BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> Instant:
        return Instant(round(time.time(), 3))  # as fine as its text, so that a stored one equals it

    def boottime(self) -> Deadline:
        return Deadline(time.clock_gettime(self._BOOT))
