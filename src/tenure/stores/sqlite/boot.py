"""The store's clock: the host's boot time, and which boot it is counted from.

Wall time may be set by anybody; boot time may not. It means nothing after the next boot, so the store remembers the
boot's id, and a new one ends every lease and every back-off of the old (:mod:`tenure.stores.sqlite.file`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, final

from tenure.clock import Deadline, SystemClock

if TYPE_CHECKING:
    from tenure.clock import Instant

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")


def boot_id() -> str:
    """The kernel's name for the running boot, the same in all its containers.

    Empty where the kernel has none: then a lease of an earlier boot ends a ttl after somebody first tries to bury it,
    because ``bury`` clamps what is left.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def boottime_offset() -> float:
    """How many seconds this process's time namespace adds to the host's boot time; 0 outside of one."""
    try:
        lines = _OFFSETS.read_text().splitlines()
    except OSError:
        return 0.0
    for line in lines:
        clock, seconds, nanoseconds = line.split()
        if clock == "boottime":
            return int(seconds) + int(nanoseconds) / 1e9
    return 0.0


@final
class HostClock:
    """The machine's clocks, with the host's boot time also in a container that has a time namespace of its own."""

    def __init__(self) -> None:
        self._machine = SystemClock()
        self._offset = boottime_offset()

    def now(self) -> Instant:
        return self._machine.now()

    def boottime(self) -> Deadline:
        return self._machine.boottime() + -self._offset
