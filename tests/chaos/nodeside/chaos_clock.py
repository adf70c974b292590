"""Clocks of a node that can be stepped from outside: two numbers in a file that the process maps into its memory.

Wall time (for people) and boot time (for deadlines) are stepped apart. What is stepped is :class:`tenure.clock.SystemClock`,
the one place from which a node takes its time; the kernel's own timers run on.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from tenure.clock import Deadline, Instant, SystemClock

SHAPE = struct.Struct("<dd")


class Steps:
    """Outside: sets the steps, in seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def set(self, *, wall_s: float = 0.0, boot_s: float = 0.0) -> None:
        """In place, never by another file: the node has this one mapped."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(SHAPE.pack(wall_s, boot_s))


def install(file: Path) -> None:
    """Inside: from now on both clocks go by the file."""
    with file.open("r+b") as opened:
        steps = mmap.mmap(opened.fileno(), SHAPE.size)
    now, boottime = SystemClock.now, SystemClock.boottime

    def stepped_now(self: SystemClock) -> Instant:
        return Instant(round(now(self).unix_s + SHAPE.unpack_from(steps)[0], 3))

    def stepped_boottime(self: SystemClock) -> Deadline:
        return boottime(self) + SHAPE.unpack_from(steps)[1]

    SystemClock.now, SystemClock.boottime = stepped_now, stepped_boottime  # type: ignore[method-assign]
