"""What a client of the SDK is told of a journal: pure, without the SDK."""

from typing import Any

import pytest
from journals import Journal

from tenure.abc import Reading, Snapshot
from tenure.clock import Instant
from tenure.conversation import Record
from tenure.journal import (
    Delivery,
    Draft,
    LoopStarted,
    StartFailed,
    Stopped,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from tenure.loops.openhands.projection import HIDDEN, Projection, hidden, sdk_event
from tenure.loops.openhands.store import EVENT

AT = Instant(1_800_000_000.25)
RUNS = [("run", {}), ("message", {"text": "x"}), ("message", {"text": "x", "run": True}), ("confirm", {"accept": True})]
RECORDS = [("message", {"text": "x", "run": False}), ("confirm", {"accept": False}), ("pause", {})]


def asked(journal: Journal, kind: str, body: dict[str, Any]) -> int:
    return journal.ask(kind, Delivery.NOW if kind == "pause" else Delivery.TURN, **body).seq


def seen(journal: Journal, base: dict[str, Any] | None = None, **record: Any) -> Projection:
    made = Record(conversation="c", head=journal.seq, created_at=AT, updated_at=AT, **record)
    projection = Projection()
    loop = {"length": 0, "base": base} if base is not None else None
    projection.take(Reading(tuple(journal.events), made, Snapshot(0, None, loop)))
    return projection


@pytest.mark.parametrize(("kind", "body"), RUNS)
def test_it_runs_from_the_command_to_the_end_of_its_turn_whoever_owns_it(kind: str, body: dict[str, Any]):
    journal = Journal()
    assert seen(journal).execution_status == "idle"
    command = asked(journal, kind, body)
    idle = {"execution_status": "idle"}
    assert seen(journal, idle).execution_status == "running", "nobody has taken it up yet"
    journal.write(LoopStarted("l"), TurnStarted((command,)), turn="t")
    assert seen(journal, {"execution_status": "running"}).execution_status == "running"
    journal.claim("takeover")
    assert seen(journal, {"execution_status": "error"}).execution_status == "running", "between two owners"
    before = seen(journal).ended
    journal.write(TurnCompleted((command,)), turn="t")
    after = seen(journal, {"execution_status": "finished"})
    assert (after.execution_status, after.ended - before) == ("finished", 1)


@pytest.mark.parametrize(("kind", "body"), RECORDS)
def test_what_is_only_recorded_does_not_run(kind: str, body: dict[str, Any]):
    journal = Journal()
    asked(journal, kind, body)
    assert seen(journal, {"execution_status": "finished"}).execution_status == "finished"


@pytest.mark.parametrize(
    ("end", "status"),
    [(TurnInterrupted, "paused"), (TurnFailed, "error"), (TurnCompleted, "idle")],
)
def test_a_run_that_was_cut_before_it_could_say_how_it_stands(end: Any, status: str):
    journal = Journal()
    command = asked(journal, "run", {})
    rest = {TurnFailed: ("timeout",), TurnInterrupted: (1,)}.get(end, ())
    journal.write(TurnStarted((command,)), end((command,), *rest), turn="t")
    assert seen(journal, {"execution_status": "running"}).execution_status == status


def test_a_stopped_one_is_paused_and_one_that_failed_for_good_is_an_error():
    journal = Journal()
    command = asked(journal, "run", {})
    assert seen(journal, failed=True).execution_status == "error"
    journal.write(Stopped(command))
    assert seen(journal).execution_status == "paused"


def test_the_sdks_events_are_told_as_they_stand_and_the_cores_failures_in_its_words():
    journal = Journal()
    said = {"kind": "MessageEvent", "id": "m1", "timestamp": "2026-01-01T00:00:00", "source": "user"}
    command = asked(journal, "run", {})
    journal.write(TurnStarted((command,)), Draft(EVENT, said), Draft("openhands.workspace", {"name": "w"}), turn="t")
    journal.write(TurnFailed((command,), "abandoned", {"owners_lost": 3}), turn="t")
    journal.write(StartFailed("image", "no such image", permanent=True), StartFailed("image", "not yet"))
    told = [one for event in journal.events if (one := sdk_event(event)) is not None]
    assert told[0] == said and [one["kind"] for one in told[1:]] == ["ConversationErrorEvent"] * 2
    assert [one["code"] for one in told[1:]] == ["turn_abandoned", "start_failed"]
    again = [sdk_event(event) for event in journal.events]
    assert told == [one for one in again if one is not None], "under ids that stay"


def test_names_of_credentials_are_hidden_and_other_texts_are_not():
    agent = {"llm": {"api_key": "$KEY", "model": "m"}, "tools": [{"params": {"x": "$OTHER"}}]}
    assert hidden(agent, {"KEY": "vault:KEY"}) == {
        "llm": {"api_key": HIDDEN, "model": "m"},
        "tools": [{"params": {"x": "$OTHER"}}],
    }


def test_a_full_state_has_an_id_and_a_time_of_its_own():
    projection = seen(Journal(), {"execution_status": "idle"}, title="T", metadata={"tags": {"a": "b"}})
    one, two = projection.full_state(None, AT), projection.full_state(None, AT)
    assert one["id"] != two["id"] and one["timestamp"] == "2027-01-15T08:00:00.250000"
    assert one["value"]["title"] == "T" and one["value"]["tags"] == {"a": "b"}
