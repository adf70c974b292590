"""A long cable between two networks of this kernel: its packets pass through this process, which delays and loses them.

Each end is a TUN device (``Documentation/networking/tuntap.rst`` of Linux): what the kernel sends into one is read here as
IP packets, and written to the other when its time has come. To both sides it is a slow, lossy network, with the kernel's own
TCP on either side of it: retransmissions, back-off and all.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from typing import TYPE_CHECKING, Self, final

if TYPE_CHECKING:
    from collections.abc import Generator

DEVICE = "/dev/net/tun"
SET_INTERFACE = 0x400454CA
"""``TUNSETIFF``."""
IP_PACKETS = 0x0001 | 0x1000
"""``IFF_TUN | IFF_NO_PI``: packets as they are, without a header of the device's."""
PACKET = 1 << 16
UNDER_WAY = 10_000
"""Packets that are on their way at once; what comes beyond is lost, as in a switch whose buffer is full."""
END_S = 5.0


class Way(enum.Enum):
    """A direction, seen from inside of the namespace."""

    OUT = "out"
    IN = "in"


@final
class Wire:
    """``with Wire("inner", "outer") as wire``: two devices of these names, joined by this process.

    :raises OSError: there is no TUN here, or no right to it.
    """

    def __init__(self, inner: str, outer: str, *, seed: int = 1) -> None:
        self.delay_s = dict.fromkeys(Way, 0.0)
        """How long each packet is under way."""
        self.loss = dict.fromkeys(Way, 0.0)
        """The share of packets that never arrive."""
        self.carried = 0
        self.lost = 0
        self._names = (inner, outer)
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._close = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            inner, outer = (self._device(name, undo) for name in self._names)
            ours, theirs = os.pipe()
            undo.callback(os.close, ours)
            carrier = threading.Thread(target=self._carry, args=(inner, outer, ours), name="wire", daemon=True)
            carrier.start()
            undo.callback(carrier.join, END_S)
            undo.callback(os.close, theirs)
            self._close = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._close.close()

    def _device(self, name: str, undo: contextlib.ExitStack) -> int:
        device = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK)
        undo.callback(os.close, device)
        fcntl.ioctl(device, SET_INTERFACE, struct.pack("16sH22x", name.encode(), IP_PACKETS))
        return device

    # --- faults -----------------------------------------------------------------------------------------------------

    def late(self, delay_s: float, *ways: Way) -> contextlib.AbstractContextManager[None]:
        """While the block runs, each packet that goes these ways (both, if none is named) takes so long."""
        return _changed(self.delay_s, dict.fromkeys(ways or Way, delay_s))

    def lossy(self, share: float, *ways: Way) -> contextlib.AbstractContextManager[None]:
        """While the block runs, this share of the packets that go these ways (both, if none is named) is lost."""
        return _changed(self.loss, dict.fromkeys(ways or Way, share))

    # --- carrying ---------------------------------------------------------------------------------------------------

    def _carry(self, inner: int, outer: int, end: int) -> None:
        ways = {inner: (Way.OUT, outer), outer: (Way.IN, inner)}
        with select.epoll() as poll:
            for readable in (*ways, end):
                poll.register(readable, select.EPOLLIN)
            while True:
                pause_s = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else -1
                for readable, _ in poll.poll(pause_s):
                    if readable == end:
                        return
                    self._take(readable, *ways[readable])
                self._deliver()

    def _take(self, device: int, way: Way, target: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(device, PACKET):
                if len(self._under_way) >= UNDER_WAY or self._rng.random() < self.loss[way]:
                    self.lost += 1
                else:
                    due = time.monotonic() + self.delay_s[way]
                    heapq.heappush(self._under_way, (due, next(self._numbers), target, packet))

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._under_way)
            with contextlib.suppress(OSError):  # an interface that is down takes nothing
                os.write(target, packet)
                self.carried += 1


@contextlib.contextmanager
def _changed(values: dict[Way, float], new: dict[Way, float]) -> Generator[None]:
    before = dict(values)
    values.update(new)
    try:
        yield
    finally:
        values.update(before)
