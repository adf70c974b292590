"""Clocks that a test moves."""

from __future__ import annotations

from typing import final

from tenure.clock import Deadline, Instant

A_NEW_YEAR = 1_767_225_600.0
"""2026-01-01T00:00:00Z: where tests begin, so that a failure shows the same times in every run."""


@final
class ManualClock:
    """A :class:`~tenure.clock.Clock` that stands still until it is told to move. May be read from any thread."""

    def __init__(self, unix_s: float = A_NEW_YEAR, boot_s: float = 1000.0) -> None:
        self._unix_s = unix_s
        self._boot_s = boot_s

    def now(self) -> Instant:
        """Wall time, as fine as its text (milliseconds)."""
        return Instant(round(self._unix_s, 3))

    def boottime(self) -> Deadline:
        """Boot time, exact."""
        return Deadline(self._boot_s)

    def advance(self, seconds: float) -> None:
        """Time passes, on both clocks.

        :raises ValueError: time does not pass backwards; that is a :meth:`step`.
        """
        if seconds < 0:
            raise ValueError(f"advance by {seconds:g} s: time does not pass backwards; use step()")
        self._unix_s += seconds
        self._boot_s += seconds

    def step(self, *, wall_s: float = 0.0, boot_s: float = 0.0) -> None:
        """A clock jumps without time having passed: set by hand, or restored with the machine. May be negative."""
        self._unix_s += wall_s
        self._boot_s += boot_s
