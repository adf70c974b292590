"""A network that can fail, in the kernel: a namespace of its own for a process, and a cable between it and this machine.

Needs Linux, ``ip`` and the right to make namespaces (:func:`possible` says so). A one-way partition is made at the link
layer: whoever sends believes another hardware address, so that the packets leave and nobody takes them. Nothing is refused
and nothing is reset, as when a switch drops packets; after the heal TCP sends them again.

With ``long=True`` the cable is a :class:`tenure.testing.wire.Wire`: its packets pass through this process, which can delay
and lose them, as ``netem`` does where a kernel has it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Self, final

from tenure.testing.wire import Way, Wire

if TYPE_CHECKING:
    from collections.abc import Generator

NOBODY = "02:00:00:00:00:fe"
"""A hardware address that no interface has."""
TIMEOUT_S = 10.0
_numbers = itertools.count(1)


@cache
def possible(*, long: bool = False) -> bool:
    """Whether this process may make namespaces and cables, and long ones."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with Namespace(long=long):
            return True
    except (subprocess.SubprocessError, OSError):
        return False


@final
class Namespace:
    """``with Namespace() as place``: start processes with ``place.prefix``; they reach this machine as ``place.host``.

    :param long: with a cable through this process, :attr:`wire`.
    :raises subprocess.CalledProcessError: the kernel or the rights do not allow it.
    :raises OSError: the same, of a long one.
    """

    def __init__(self, *, long: bool = False) -> None:
        number = next(_numbers)
        self.name = f"tenure-{os.getpid()}-{number}"
        self._outer, self._inner = f"tn{os.getpid() % 100000}o{number}", f"tn{os.getpid() % 100000}i{number}"
        net = f"10.{99 + number // 250}.{number % 250}"
        self.host, self.inside = f"{net}.1", f"{net}.2"
        self._wire = Wire(self._inner, self._outer, seed=number) if long else None

    @property
    def wire(self) -> Wire:
        """The long cable."""
        assert self._wire is not None, "ask for a long one"
        return self._wire

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that is to run inside."""
        return ("ip", "netns", "exec", self.name)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            _ip("netns", "add", self.name)
            undo.callback(self._remove)
            if self._wire is None:
                _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
            else:
                self._wire.__enter__()
                _ip("link", "set", self._inner, "netns", self.name)
            _ip("addr", "add", f"{self.host}/24", "dev", self._outer)
            _ip("link", "set", self._outer, "up")
            self._in("addr", "add", f"{self.inside}/24", "dev", self._inner)
            self._in("link", "set", self._inner, "up")
            self._in("link", "set", "lo", "up")
            undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._wire is not None:
            self._wire.__exit__()
        else:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "del", self._outer)
        _ip("netns", "del", self.name)

    # --- faults -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def partition(self, *ways: Way) -> Generator[None]:
        """While the block runs, nothing arrives that goes these ways."""
        if self._wire is not None:
            with self._wire.lossy(1.0, *ways):
                yield
            return
        try:
            for way in ways:
                self._neighbour(way, "replace", "lladdr", NOBODY, "nud", "permanent")
            yield
        finally:
            for way in ways:
                self._neighbour(way, "del")

    @contextlib.contextmanager
    def unplugged(self) -> Generator[None]:
        """While the block runs, there is no link."""
        _ip("link", "set", self._outer, "down")
        try:
            yield
        finally:
            _ip("link", "set", self._outer, "up")

    def _neighbour(self, way: Way, verb: str, *rest: str) -> None:
        if way is Way.OUT:
            self._in("neigh", verb, self.host, "dev", self._inner, *rest)
        else:
            _ip("neigh", verb, self.inside, "dev", self._outer, *rest)

    def _in(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=TIMEOUT_S)
