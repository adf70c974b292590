"""The long cable, between two sockets in place of two devices."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tenure.testing.wire import Way, Wire

PATIENCE_S = 10.0


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
    """What the two networks hold; a wire gets the other halves."""
    pairs = {name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for name in ("inner", "outer")}
    for _, far in pairs.values():
        far.setblocking(False)

    def device(_: Wire, name: str, undo: contextlib.ExitStack) -> int:
        descriptor = os.dup(pairs[name][1].fileno())
        undo.callback(os.close, descriptor)
        return descriptor

    monkeypatch.setattr(Wire, "_device", device)
    yield {name: near for name, (near, _) in pairs.items()}
    for pair in pairs.values():
        for end in pair:
            end.close()


@pytest.fixture
def wire(ends: dict[str, socket.socket]) -> Iterator[Wire]:
    with Wire("inner", "outer") as one:
        yield one


def arrived(end: socket.socket, patience_s: float = PATIENCE_S) -> bytes | None:
    readable, _, _ = select.select([end], [], [], patience_s)
    return end.recv(1 << 16) if readable else None


def test_packets_go_both_ways_whole_and_in_order(wire: Wire, ends: dict[str, socket.socket]):
    for number in range(100):
        ends["inner"].send(b"out %d" % number)
        ends["outer"].send(b"in %d" % number)
    assert [arrived(ends["outer"]) for _ in range(100)] == [b"out %d" % n for n in range(100)]
    assert [arrived(ends["inner"]) for _ in range(100)] == [b"in %d" % n for n in range(100)]
    assert (wire.carried, wire.lost) == (200, 0)


def test_what_is_late_is_late_one_way_and_nothing_afterwards(wire: Wire, ends: dict[str, socket.socket]):
    with wire.late(0.3, Way.OUT):
        sent = time.monotonic()
        ends["inner"].send(b"late")
        ends["outer"].send(b"soon")
        assert arrived(ends["inner"]) == b"soon"
        assert arrived(ends["outer"]) == b"late"
        assert time.monotonic() - sent >= 0.3
    assert wire.delay_s == {Way.OUT: 0.0, Way.IN: 0.0}


def test_what_is_lost_never_arrives_and_the_other_way_is_open(wire: Wire, ends: dict[str, socket.socket]):
    with wire.lossy(1.0, Way.OUT):
        ends["inner"].send(b"lost")
        ends["outer"].send(b"heard")
        assert arrived(ends["inner"]) == b"heard"
        assert arrived(ends["outer"], 0.05) is None
    ends["inner"].send(b"heard again")
    assert arrived(ends["outer"]) == b"heard again"
    assert wire.lost == 1


def test_a_share_is_lost(wire: Wire, ends: dict[str, socket.socket]):
    with wire.lossy(0.5):
        for _ in range(400):
            ends["inner"].send(b"x")
        ends["inner"].send(b"x")
        deadline = time.monotonic() + PATIENCE_S
        while wire.carried + wire.lost < 401 and time.monotonic() < deadline:
            arrived(ends["outer"], 0.01)
    assert wire.carried + wire.lost == 401
    assert 100 < wire.lost < 300


def test_it_ends_with_packets_under_way(ends: dict[str, socket.socket]):
    with Wire("inner", "outer") as one, one.late(60):
        ends["inner"].send(b"never")
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE_S / 2
