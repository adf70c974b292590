"""Waiting for the write lock: in order within a process, with patience but not for ever between processes."""

import itertools
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tenure.stores.sqlite import busy
from tenure.stores.sqlite.busy import Gate, gate_of, is_busy, persist


def waiting(gate: Gate, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(gate._waiting) != count:  # pyright: ignore[reportPrivateUsage]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_comes_first_goes_first():
    gate, order = Gate(), list[int]()

    def pass_through(number: int) -> None:
        assert gate.enter(20)
        order.append(number)
        gate.leave()

    assert gate.enter(20)
    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        waiting(gate, number)
    gate.leave()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4]
    assert gate.enter(0), "it is open again"


def test_who_gives_up_is_not_waited_for():
    gate = Gate()
    assert gate.enter(0)
    assert not gate.enter(0.01)
    gate.leave()
    assert gate.enter(0)


def test_a_process_has_one_gate_per_database(tmp_path: Path):
    gate = gate_of(tmp_path / "a.db")
    assert gate_of(tmp_path / "a.db") is gate
    assert gate_of(tmp_path / "b.db") is not gate


@pytest.fixture
def locked(tmp_path: Path):
    """A connection, and another one to the same database that holds its write lock."""
    with (
        closing(sqlite3.connect(tmp_path / "t.db", timeout=0, isolation_level=None)) as mine,
        closing(sqlite3.connect(tmp_path / "t.db", timeout=0, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        yield mine, other


def test_a_lock_that_is_let_go_is_taken(locked: tuple[sqlite3.Connection, sqlite3.Connection]):
    mine, other = locked
    tries = itertools.count(1)

    def attempt() -> int:
        if (tried := next(tries)) == 5:
            other.execute("ROLLBACK")
        mine.execute("BEGIN IMMEDIATE")
        return tried

    assert persist(attempt, 20) == 5


def test_a_lock_that_stays_is_given_up(locked: tuple[sqlite3.Connection, sqlite3.Connection]):
    mine, _ = locked
    with pytest.raises(sqlite3.OperationalError) as refused:
        persist(lambda: mine.execute("BEGIN IMMEDIATE"), 0.05)
    assert is_busy(refused.value)
    with pytest.raises(sqlite3.OperationalError):
        persist(lambda: mine.execute("BEGIN IMMEDIATE"), 20, waited_s=20)


def test_another_error_is_nobodys_lock():
    tries = itertools.count(1)
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            persist(lambda: (next(tries), connection.execute("SELECT * FROM missing")), 20)
    assert next(tries) == 2


def test_who_has_waited_long_tries_more_often(monkeypatch: pytest.MonkeyPatch):
    """The pauses of one whose time is almost up are short; those of a patient one grow."""
    longest: list[float] = []

    class Chance:
        def uniform(self, _: float, upper: float) -> float:
            longest.append(upper)
            return 0.0

    class Busy(sqlite3.OperationalError):
        sqlite_errorcode = sqlite3.SQLITE_BUSY

    def attempt() -> None:
        if len(longest) < 12:
            raise Busy

    monkeypatch.setattr(busy.random, "Random", Chance)
    persist(attempt, 1000)
    patient, longest[:] = longest[:], []
    persist(attempt, 1000, waited_s=900)
    assert patient[:5] == sorted(patient[:5])
    assert patient[-1] > busy.LONGEST_PAUSE_S * 0.9
    assert longest[-1] == busy.SHORTEST_PAUSE_S
