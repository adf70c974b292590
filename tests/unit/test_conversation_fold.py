"""The fold: what a journal means, and which journals break the rules of their kind."""

from dataclasses import replace

import pytest
from journals import AT, Journal

from tenure.conversation import Fold, OpenCall, TurnState, checked, fold, settlement
from tenure.errors import JournalError
from tenure.journal import (
    CallFinished,
    CallInterrupted,
    CallRestarted,
    CallStarted,
    Claimed,
    CommandSettled,
    Delivery,
    Draft,
    Event,
    LoopStarted,
    Policy,
    Released,
    RuntimeAttached,
    RuntimeDiscarded,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    Seq,
    SettingsChanged,
    StartFailed,
    Stopped,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    TurnWaiting,
    draft,
)
from tenure.lease import Epoch


def in_turn() -> Journal:
    """created, claimed, message (3), turn_started on it: turn t3."""
    return Journal().ask().write(TurnStarted((3,)), turn="t3")


# what it means


def test_created_says_whose_and_how():
    state = Journal(Policy.STEER, claimed=False).fold
    assert (state.agent, state.user_id, state.settings, state.policy) == ("agent", "user", {"a": 1}, Policy.STEER)
    assert (state.seq, state.epoch, state.owned) == (1, 0, False)


def test_settings_change_for_the_next_turn():
    assert Journal().unowned(SettingsChanged({"b": 2})).fold.settings == {"b": 2}


def test_a_claim_and_a_release():
    journal = Journal()
    assert (journal.fold.epoch, journal.fold.owned) == (1, True)
    journal.write(LoopStarted("agent"))
    assert journal.fold.started
    journal.write(Released("n", "idle"))
    assert (journal.fold.epoch, journal.fold.owned, journal.fold.started) == (1, False, False)
    journal.claim()
    assert (journal.fold.epoch, journal.fold.owned, journal.fold.started) == (2, True, False)


def test_a_takeover_needs_no_release():
    journal = Journal().write(LoopStarted("agent")).claim()
    assert (journal.fold.epoch, journal.fold.owned, journal.fold.started) == (2, True, False)


def test_a_claim_may_skip_epochs():
    journal = Journal()
    journal.epoch = 41
    assert journal.claim().fold.epoch == 42


@pytest.mark.parametrize(("why", "asked"), [("start", True), ("forced", True), ("wanted", False)])
def test_who_claims_by_request_is_asked_to_start(why: str, asked: bool):
    assert Journal(claimed=False).claim(why).fold.asked_to_start == asked


def test_a_start_asks_until_the_release():
    journal = Journal().ask("start")
    assert journal.fold.asked_to_start
    assert not journal.write(Released("n", "idle")).fold.asked_to_start


def test_a_start_that_waits_at_the_claim_asks_too():
    assert Journal(claimed=False).ask("start").claim().fold.asked_to_start
    assert not Journal(claimed=False).ask("start").claim().write(CommandSettled(2, "done")).claim().fold.asked_to_start


def test_commands_wait_in_order_or_are_urgent():
    journal = Journal().ask().ask("interrupt").ask().ask("pause").ask("run", Delivery.TURN)
    state = journal.fold
    assert [c.seq for c in state.queue] == [3, 5, 7]
    assert [c.seq for c in state.urgent] == [4, 6]
    assert list(state.pending) == [3, 4, 5, 6, 7]


def test_a_turn_takes_its_commands_and_settles_them():
    journal = Journal().ask().ask().ask()
    state = journal.write(TurnStarted((3, 5)), turn="t3").fold
    assert state.turn is not None
    assert (state.turn.id, state.turn.seq, state.turn.commands, state.turn.attempt) == ("t3", 6, (3, 5), 1)
    assert ([c.seq for c in state.queue], state.turn_state) == ([4], TurnState.OPEN)
    state = journal.write(TurnCompleted((5, 3)), turn="t3").fold
    assert (list(state.pending), state.turn, state.turn_state) == ([4], None, TurnState.NONE)


@pytest.mark.parametrize(
    "end", [TurnCompleted((3,)), TurnFailed((3,), "error"), TurnInterrupted((3,), None, "drained")]
)
def test_every_end_of_a_turn_settles(end: TurnCompleted | TurnFailed | TurnInterrupted):
    state = in_turn().write(end, turn="t3").fold
    assert (state.turn, state.pending) == (None, {})


def test_a_steered_message_is_urgent_while_the_turn_is_open():
    journal = in_turn().ask("message", Delivery.NOW)
    assert ([c.seq for c in journal.fold.urgent], journal.fold.queue) == ([5], [])
    journal.write(TurnCompleted((3,)), turn="t3")
    assert ([c.seq for c in journal.fold.queue], journal.fold.urgent) == ([5], []), "it waits like any other then"


def test_waiting_and_resuming():
    journal = in_turn().write(TurnWaiting("name?", {"q": 1}, "2026-01-01T00:00:00Z"), turn="t3")
    turn = journal.fold.turn
    assert turn is not None
    assert (turn.ask, turn.until, turn.waiting) == ("name?", "2026-01-01T00:00:00Z", True)
    assert journal.fold.turn_state is TurnState.WAITING
    turn = journal.write(TurnResumed(2, "name?", "Ann", 9), turn="t3").fold.turn
    assert turn is not None
    assert (turn.attempt, turn.ask, turn.until, turn.waiting) == (2, None, None, False)


def test_calls_open_and_close_whatever_the_kind():
    journal = in_turn().write(CallStarted("c1", "f", idempotent=True, key="k"), turn="t3")
    journal.write(Draft("tool", {}, "t3", opens=("c2", "c3")), Draft("result", {}, "t3", closes=("c2",)))
    turn = journal.fold.turn
    assert turn is not None
    assert turn.calls == {"c1": OpenCall("c1", "f", True, "k", 1), "c3": OpenCall("c3", "tool")}
    assert (turn.closed, turn.retryable) == ({"c2"}, False)
    journal.write(CallRestarted("c1", 2), turn="t3")
    turn = journal.fold.turn
    assert turn is not None
    assert turn.calls["c1"] == OpenCall("c1", "f", True, "k", 2)


def test_a_turn_is_retryable_while_every_call_is_idempotent():
    journal = in_turn().write(CallStarted("c1", "f", idempotent=True), CallFinished("c1"), turn="t3")
    assert journal.fold.turn
    assert journal.fold.turn.retryable
    journal.write(CallStarted("c2", "f"), CallFinished("c2"), turn="t3")
    assert journal.fold.turn
    assert not journal.fold.turn.retryable, "also when it has finished"


def test_stopped_until_a_start():
    journal = Journal().ask("stop").write(Stopped(3), CommandSettled(3, "done"))
    assert journal.fold.stopped
    assert not journal.ask("start").fold.stopped


def test_a_stop_does_not_win_over_a_later_start():
    journal = Journal().ask("stop").ask("start").write(Stopped(3))
    assert not journal.fold.stopped


def test_runtimes_are_current_once():
    journal = Journal().write(RuntimeRequested("r1"))
    assert (journal.fold.runtime, journal.fold.runtime_ready, journal.fold.retired) == ("r1", False, ())
    assert journal.write(RuntimeReady("r1")).fold.runtime_ready
    journal.write(RuntimeRequested("r2"))
    assert (journal.fold.runtime, journal.fold.runtime_ready, journal.fold.retired) == ("r2", False, ("r1",))
    assert journal.write(RuntimeAttached("r2")).fold.runtime_ready
    journal.write(RuntimeLost("r2", "gone"), RuntimeRequested("r3"), RuntimeDiscarded("r3"))
    assert (journal.fold.runtime, journal.fold.runtime_ready) == (None, False)
    assert journal.fold.retired == ("r1", "r2", "r3")


def test_foreign_kinds_mean_nothing_and_are_kept_out_of_the_way():
    journal = Journal()
    before = journal.fold
    journal.write(Draft("anything", {"x": 1}), StartFailed("provision", "no"))
    assert journal.fold == replace(before, seq=4)


@pytest.mark.parametrize(
    ("journal", "runnable"),
    [
        (Journal(), False),
        (Journal().ask(), True),
        (Journal().ask("pause"), True),
        (in_turn(), True),
        (in_turn().write(TurnWaiting("a"), turn="t3"), False),
        (in_turn().write(TurnWaiting("a"), turn="t3").ask(), False),
        (in_turn().write(TurnWaiting("a"), turn="t3").ask("answer"), True),
        (Journal().ask().ask("stop").write(Stopped(4), CommandSettled(4, "done")), False),
        (Journal().ask().ask("stop").write(Stopped(4)), True),
    ],
    ids=["rest", "a message", "urgent", "a turn", "waiting", "behind it", "answered", "stopped", "stop not settled"],
)
def test_runnable_means_that_something_can_be_done(journal: Journal, runnable: bool):
    assert journal.fold.runnable == runnable


def test_fold_does_not_change_what_it_is_given():
    before = in_turn().write(CallStarted("c", "f"), turn="t3").fold
    shape = before.as_json()
    more = Journal().ask().write(TurnStarted((3,)), CallStarted("c", "f"), turn="t3")
    more.write(CallFinished("c"), TurnCompleted((3,)), turn="t3").ask().write(RuntimeRequested("r"))
    fold(before, more.events[5:])
    assert before.as_json() == shape


def test_a_fold_goes_on_where_another_ended():
    journal = in_turn().write(CallStarted("c", "f"), turn="t3").ask().claim()
    for cut in range(journal.seq + 1):
        assert fold(fold(Fold(), journal.events[:cut]), journal.events[cut:]) == journal.fold


# what it refuses

REFUSED: dict[str, tuple[Journal, str]] = {
    "an event of an older epoch": (
        Journal().claim().write(Draft("x")),
        "is of epoch 1, the journal is at 2",
    ),
    "an event of an epoch that was not claimed": (Journal().write(Draft("x")), "is of epoch 7"),
    "an owner's event after the release": (Journal().write(Released("n", "idle"), Draft("x")), "is of epoch 1"),
    "a claim of the epoch that is there": (Journal().claim(), "claims epoch 1, the journal is at 1"),
    "a turn inside a turn": (in_turn().ask().write(TurnStarted((5,)), turn="t5"), "starts a turn inside turn t3"),
    "a turn on a command that is not there": (Journal().write(TurnStarted((9,)), turn="t9"), r"on commands \[9\]"),
    "a turn on a settled command": (
        Journal().ask().write(CommandSettled(3, "done")).write(TurnStarted((3,)), turn="t3"),
        r"commands \[3\] that do not wait",
    ),
    "a turn without a name": (Journal().ask().write(TurnStarted((3,))), "that do not wait"),
    "an end without a turn": (
        Journal().ask().write(TurnCompleted((3,)), turn="t3"),
        "needs turn t3, which is not open",
    ),
    "an end of another turn": (in_turn().write(TurnCompleted((3,)), turn="t4"), "needs turn t4, which is not open"),
    "an end that settles less": (
        Journal().ask().ask().write(TurnStarted((3, 4)), TurnCompleted((3,)), turn="t3"),
        r"settles \(3,\), its turn has \(3, 4\)",
    ),
    "an end that settles more": (in_turn().ask().write(TurnCompleted((3, 5)), turn="t3"), "its turn has"),
    "an end over an open call": (
        in_turn().write(CallStarted("c", "f"), TurnCompleted((3,)), turn="t3"),
        r"ends turn t3 over the open calls \['c'\]",
    ),
    "waiting without a turn": (Journal().write(TurnWaiting("a"), turn="t3"), "needs turn t3"),
    "resuming without a turn": (Journal().write(TurnResumed(2), turn="t3"), "needs turn t3"),
    "a call without a turn": (Journal().write(CallStarted("c", "f"), turn="t3"), "needs turn t3"),
    "a call opened twice": (
        in_turn().write(CallStarted("c", "f"), CallStarted("c", "f"), turn="t3"),
        "opens call c a second time",
    ),
    "a call opened after its end": (
        in_turn().write(CallStarted("c", "f"), CallFinished("c"), CallStarted("c", "f"), turn="t3"),
        "opens call c a second time",
    ),
    "two outcomes of a call": (
        in_turn().write(CallStarted("c", "f"), CallFinished("c"), CallInterrupted("c"), turn="t3"),
        "closes call c, which is not open: one outcome per call",
    ),
    "an outcome of no call": (in_turn().write(CallFinished("c"), turn="t3"), "closes call c, which is not open"),
    "a foreign kind that closes no call": (in_turn().write(Draft("x", {}, "t3", closes=("c",))), "closes call c"),
    "a restart of no call": (in_turn().write(CallRestarted("c", 2), turn="t3"), "restarts call c, which is not open"),
    "a restart of a call that has ended": (
        in_turn().write(CallStarted("c", "f", idempotent=True), CallFinished("c"), CallRestarted("c", 2), turn="t3"),
        "restarts call c, which is not open",
    ),
    "a command settled twice": (
        Journal().ask().write(CommandSettled(3, "done"), CommandSettled(3, "done")),
        "settles command 3, which is not pending: once each",
    ),
    "a command settled that is none": (Journal().write(CommandSettled(2, "done")), "settles command 2"),
    "a turn's command settled apart, then again by its end": (
        in_turn().write(CommandSettled(3, "done"), TurnCompleted((3,)), turn="t3"),
        "settles command 3, which is not pending",
    ),
    "a runtime requested twice": (
        Journal().write(RuntimeRequested("r"), RuntimeRequested("r")),
        "requests runtime r a second time",
    ),
    "a retired runtime requested again": (
        Journal().write(RuntimeRequested("r"), RuntimeLost("r"), RuntimeRequested("r")),
        "requests runtime r a second time",
    ),
    "a runtime that is not the current one": (
        Journal().write(RuntimeRequested("r1"), RuntimeRequested("r2"), RuntimeReady("r1")),
        "speaks of runtime r1, the current one is r2",
    ),
    "a discarded runtime attached": (
        Journal().write(RuntimeRequested("r"), RuntimeDiscarded("r"), RuntimeAttached("r")),
        "speaks of runtime r, the current one is None",
    ),
}


def tampered(name: str, journal: Journal) -> list[Event]:
    """The last event's epoch, where no journal of ours could say it."""
    epochs = {"an event of an older epoch": 1, "an event of an epoch that was not claimed": 7}
    epochs["a claim of the epoch that is there"] = 1
    *before, last = journal.events
    return [*before, replace(last, epoch=Epoch(epochs[name]))] if name in epochs else journal.events


@pytest.mark.parametrize("name", REFUSED)
def test_a_journal_that_breaks_the_rules_is_refused_at_that_event(name: str):
    journal, problem = REFUSED[name]
    events = tampered(name, journal)
    with pytest.raises(JournalError, match=rf"^event {len(events)} .*{problem}"):
        fold(Fold(), events)
    fold(Fold(), events[:-1])


@pytest.mark.parametrize("seq", [1, 2, 4])
def test_a_gap_or_a_repetition_is_refused(seq: int):
    event = Draft("x").stored(seq, Epoch(1), AT)
    with pytest.raises(JournalError, match=rf"event {seq} follows 2: .* read it anew"):
        fold(Journal().fold, [event])


def test_an_owners_event_without_a_claim_is_refused():
    with pytest.raises(JournalError, match="event 2 is of epoch 0"):
        fold(Journal(claimed=False).fold, [Draft("x").stored(2, Epoch(0), AT)])


def test_a_claim_without_an_epoch_is_refused():
    claimed = draft(Claimed("n", "n", "", "why")).stored(3, None, AT)
    with pytest.raises(JournalError, match="claims epoch None"):
        fold(Journal().fold, [claimed])


# judged before it is written


def test_checked_judges_drafts_at_the_folds_epoch():
    state = in_turn().fold
    after = checked(state, [draft(CallStarted("c", "f"), "t3"), draft(CallFinished("c"), "t3")])
    assert (after.seq, after.turn and after.turn.closed) == (6, {"c"})
    with pytest.raises(JournalError):
        checked(state, [draft(TurnCompleted(()), "t3")])
    assert state == in_turn().fold


def test_settlement_says_what_the_fold_says():
    before = in_turn().ask("interrupt").fold
    drafts = [draft(TurnInterrupted((3,), 5, "interrupted"), "t3"), draft(CommandSettled(5, "done"))]
    told = settlement(before, checked(before, drafts), drafts, "busy")
    assert (told.runnable, told.settled, told.turn, told.turn_ended) == (False, (3, 5), TurnState.NONE, True)
    assert (told.started, told.stopped, told.failed, told.agent_status) == (False, False, False, "busy")


def test_settlement_of_a_stop():
    before = Journal().write(LoopStarted("agent")).ask("stop").fold
    drafts = [draft(Stopped(4)), draft(CommandSettled(4, "done"))]
    told = settlement(before, checked(before, drafts), drafts)
    assert (told.runnable, told.settled, told.stopped, told.started) == (False, (4,), True, True)


def test_an_event_is_kept_whole_in_a_snapshot():
    event = Event(Seq(3), None, "message", AT, {"text": "𝄞\u0000"}, key="k", delivery=Delivery.TURN)
    state = fold(Journal().fold, [event])
    assert Fold.from_json(state.as_json()).pending == {3: event}
