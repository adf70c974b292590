"""The table of statuses: every combination of what it looks at, against the table of the design, row by row."""

import itertools

import pytest

from tenure.clock import Instant
from tenure.conversation import Record, Status, TurnState, status
from tenure.errors import Owner
from tenure.lease import Epoch, IncarnationId

NEVER = Instant(0.0)


def record(
    *,
    stopped: bool = False,
    failed: bool = False,
    started: bool = False,
    wanted: bool = False,
    turn: TurnState = TurnState.NONE,
) -> Record:
    return Record(
        conversation="c",
        stopped=stopped,
        failed=failed,
        started=started,
        wanted=wanted,
        turn=turn,
        created_at=NEVER,
        updated_at=NEVER,
    )


def by_the_table(one: Record, alive: bool) -> Status:
    """DESIGN's table from the top, with what docs/decisions/0004 adds: who waits shows `waiting`, owned or not."""
    rows = [
        (one.stopped, Status.STOPPED),
        (one.failed and not alive, Status.FAILED),
        (one.turn is TurnState.WAITING and not one.wanted, Status.WAITING),
        (not alive and (one.wanted or one.turn is TurnState.OPEN), Status.QUEUED),
        (alive and not one.started, Status.STARTING),
        (alive and one.turn is TurnState.OPEN, Status.RUNNING),
        (alive and one.wanted, Status.QUEUED),
        (True, Status.IDLE),
    ]
    return next(word for applies, word in rows if applies)


def test_every_combination_has_the_word_of_the_table():
    words: set[Status] = set()
    for stopped, failed, started, wanted, alive in itertools.product([False, True], repeat=5):
        for turn in TurnState:
            one = record(stopped=stopped, failed=failed, started=started, wanted=wanted, turn=turn)
            assert status(one, owner_alive=alive) is by_the_table(one, alive), (one, alive)
            words.add(status(one, owner_alive=alive))
    assert words == {*Status}


@pytest.mark.parametrize(
    ("one", "alive", "word"),
    [
        (record(stopped=True, failed=True, turn=TurnState.OPEN, wanted=True), True, "stopped"),
        (record(failed=True), False, "failed"),
        (record(failed=True), True, "starting"),
        (record(wanted=True), False, "queued"),
        (record(turn=TurnState.OPEN), False, "queued"),
        (record(turn=TurnState.OPEN, wanted=True, started=True), False, "queued"),
        (record(wanted=True), True, "starting"),
        (record(started=True, turn=TurnState.WAITING), True, "waiting"),
        (record(turn=TurnState.WAITING), False, "waiting"),
        (record(turn=TurnState.WAITING, wanted=True), False, "queued"),
        (record(started=True, turn=TurnState.OPEN, wanted=True), True, "running"),
        (record(started=True), True, "idle"),
        (record(started=True, wanted=True), True, "queued"),
        (record(), False, "idle"),
        (record(started=True), False, "idle"),
    ],
)
def test_the_rows_that_people_ask_about(one: Record, alive: bool, word: str):
    assert status(one, owner_alive=alive).value == word


def test_nothing_runs_without_a_living_owner():
    for stopped, failed, started, wanted in itertools.product([False, True], repeat=4):
        for turn in TurnState:
            one = record(stopped=stopped, failed=failed, started=started, wanted=wanted, turn=turn)
            assert status(one, owner_alive=False) not in (Status.RUNNING, Status.STARTING)


def test_an_owner_is_told_in_one_shape():
    owner = Owner("n", IncarnationId("i"), "http://n", Epoch(3), Instant(1.5), 2.00049)
    assert owner.as_json() == {
        "node": "n",
        "incarnation": "i",
        "address": "http://n",
        "epoch": 3,
        "since": "1970-01-01T00:00:01.500Z",
        "expires_in_s": 2.0,
    }
    assert Owner("n", IncarnationId("i"), "", Epoch(1), NEVER).as_json()["expires_in_s"] is None
