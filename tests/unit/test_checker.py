"""Each kind of violation, planted and found; and a sound history in which nothing is found."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenure.clock import Instant
from tenure.conversation import Fold, fold
from tenure.journal import (
    CallFinished,
    CallInterrupted,
    CallStarted,
    Claimed,
    CommandSettled,
    Core,
    Created,
    Delivery,
    Event,
    LoopStarted,
    Released,
    RuntimeDiscarded,
    RuntimeReady,
    RuntimeRequested,
    Seq,
    StartFailed,
    TurnCompleted,
    TurnStarted,
    draft,
)
from tenure.lease import Epoch
from tenure.testing.checker import Guarantee, check, main
from tenure.testing.history import (
    Attempt,
    Burial,
    Death,
    Effect,
    Entry,
    Excuse,
    Forgotten,
    Frozen,
    Grant,
    History,
    Journal,
    Look,
    Span,
    Start,
    Teardown,
    Unread,
    Write,
)

NOW = Instant(1.8e9)
N1, N2 = "sim://n1.1", "sim://n2.1"


class Writer:
    """Writes a journal event by event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def command(self, kind: str, key: str) -> int:
        delivery = Delivery.TURN if kind == "message" else Delivery.NOW
        seq = len(self.events) + 1
        self.events.append(Event(Seq(seq), None, kind, NOW, {"text": key}, key=key, delivery=delivery))
        return seq

    def event(self, epoch: int | None, body: Core, turn: str | None = None) -> None:
        stored = draft(body, turn).stored(len(self.events) + 1, None if epoch is None else Epoch(epoch), NOW)
        self.events.append(stored)


def claimed(process: str, incarnation: str, previous: str | None = None) -> Claimed:
    return Claimed(incarnation, process, process, "wanted", previous=previous)


def sound() -> History:
    """n1 owns c1 and dies in a call; n2 buries it, takes over, marks the call, answers, and lets go."""
    w = Writer()
    w.event(None, Created("sim"))
    first = w.command("message", "k1")  # 2
    w.event(1, claimed(N1, "i1"))
    w.event(1, RuntimeRequested("r1"))
    w.event(1, RuntimeReady("r1"))
    w.event(1, LoopStarted("sim"))
    w.event(1, TurnStarted((first,)), "t2")
    w.event(1, CallStarted("t2.0", "tool", key="t2.0"), "t2")
    w.event(1, CallFinished("t2.0"), "t2")
    w.event(1, CallStarted("t2.1", "tool", key="t2.1"), "t2")
    second = w.command("message", "k2")  # 11
    w.event(2, claimed(N2, "i2", "i1"))
    w.event(2, CallInterrupted("t2.1"), "t2")
    w.event(2, TurnCompleted((first,)), "t2")
    w.event(2, TurnStarted((second,)), "t11")
    w.event(2, TurnCompleted((second,)), "t11")
    w.event(2, Released("i2", "idle"))
    return History(
        [
            Attempt("a", "c1", "message", "k1", 0.0, 0.5, "no-answer"),
            Attempt("a", "c1", "message", "k1", 0.6, 0.7, "duplicate", seq=2),
            Grant("c1", 1, "x1", "i1", N1, None, False, 1.0),
            Start("c1", N1, 0.9, 1.5, "here", epoch=1),
            Start("c1", N2, 1.6, 1.7, "elsewhere", epoch=1, owner="i1"),
            Span("c1", 1, N1, 1.5, 3.0),
            Write("c1", 1, "x1", 4, 3, False, 1.2),
            Effect("c1", "t2.0", "t2.0", 1, N1, 2.0),
            Effect("c1", "t2.1", "t2.1", 1, N1, 2.5),
            Attempt("a", "c1", "message", "k2", 2.6, 2.7, "accepted", seq=11),
            Attempt("b", "c1", "message", "k3", 2.6, 2.7, "refused", reason="too-many-unsettled"),
            Look("c1", N2, 2.8, ((1, None, "created"), (3, 1, "claimed"))),
            Burial("i1", "expired", 5.0),
            Grant("c1", 2, "x2", "i2", N2, "i1", False, 5.5),
            Span("c1", 2, N2, 5.6, 7.0),
            Write("c1", 2, "x2", 13, 5, True, 7.0),
            Journal("c1", tuple(w.events), epoch=2),
        ]
    )


def journal_of(history: History) -> Journal:
    return history.of(Journal)[0]


def with_events(history: History, events: Sequence[Event], **changes: Any) -> History:
    """The history with another journal, whose events are numbered anew."""
    numbered = tuple(replace(event, seq=Seq(place)) for place, event in enumerate(events, 1))
    history.entries[-1] = replace(journal_of(history), events=numbered, **changes)
    return history


def changed(history: History, kind: type[Entry], number: int = 0, **changes: Any) -> History:
    """The history with the `number`-th entry of a kind changed."""
    places = [place for place, entry in enumerate(history.entries) if isinstance(entry, kind)]
    history.entries[places[number]] = dataclasses.replace(history.entries[places[number]], **changes)
    return history


def found(history: History) -> set[Guarantee]:
    return {violation.guarantee for violation in check(history)}


def test_nothing_is_wrong_with_a_sound_history():
    history = sound()
    fold(Fold(), journal_of(history).events)
    assert check(history) == []


def test_a_history_survives_its_lines():
    history = sound()
    again = History.parse(history.lines())
    assert again == history
    assert check(again) == []


# --- planted ----------------------------------------------------------------------------------------------------------


def drop(history: History, kind: type[Entry], number: int = 0) -> History:
    places = [place for place, entry in enumerate(history.entries) if isinstance(entry, kind)]
    del history.entries[places[number]]
    return history


def events_of(history: History) -> list[Event]:
    return list(journal_of(history).events)


def an_epoch_twice(h: History) -> History:
    events = events_of(h)
    events[11] = replace(events[11], epoch=Epoch(1))
    return with_events(h, events)


def a_grant_over_the_living(h: History) -> History:
    return drop(h, Burial)


def a_grant_twice(h: History) -> History:
    return changed(h, Grant, 1, epoch=1)


def the_record_behind_its_journal(h: History) -> History:
    return changed(h, Journal, epoch=1)


def a_zombie_writes(h: History) -> History:
    events = events_of(h)
    events.insert(12, replace(events[8], kind="note", opens=(), closes=(), turn=None))
    return with_events(h, events)


def a_write_after_the_release(h: History) -> History:
    return with_events(h, [*events_of(h), replace(events_of(h)[5], epoch=Epoch(2))])


def a_write_with_another_token(h: History) -> History:
    return changed(h, Write, 1, token="x1")


def a_second_release(h: History) -> History:
    h.entries.insert(-1, h.of(Write)[1])
    return h


def two_loops_under_one_epoch(h: History) -> History:
    h.entries.append(Span("c1", 2, N1, 6.0, 6.5))
    return h


def two_loops_on_one_process(h: History) -> History:
    h.entries.append(Span("c1", 1, N2, 6.0, None))
    return h


def a_loop_without_a_claim(h: History) -> History:
    return changed(h, Span, 1, process=N1)


def here_but_it_is_not(h: History) -> History:
    return changed(h, Start, 0, process=N2)


def elsewhere_but_wrong(h: History) -> History:
    return changed(h, Start, 1, owner="i2")


def a_key_twice(h: History) -> History:
    return with_events(h, [*events_of(h), events_of(h)[10]])


def an_accepted_key_is_gone(h: History) -> History:
    return with_events(h, [e for e in events_of(h) if e.key != "k2"])


def a_client_was_told_another_place(h: History) -> History:
    return changed(h, Attempt, 1, seq=3)


def a_refused_key_is_there(h: History) -> History:
    return changed(changed(h, Attempt, 0, outcome="refused"), Attempt, 1, outcome="refused", seq=None)


def out_of_order(h: History) -> History:
    return changed(changed(h, Attempt, 1, started=3.0, ended=3.1), Attempt, 0, started=2.9, ended=3.0)


def never_settled(h: History) -> History:
    events = events_of(h)
    return with_events(h, [*events[:14], events[16]], wanted=True)


def settled_twice(h: History) -> History:
    w = Writer()
    w.event(2, CommandSettled(2, "done"))
    return with_events(h, [*events_of(h)[:16], *w.events, events_of(h)[16]])


def work_after_a_failed_start(h: History) -> History:
    w = Writer()
    w.event(1, StartFailed("provision", "no space"))
    events = events_of(h)
    return with_events(h, [*events[:5], *w.events, *events[5:]])


def _failed_start(h: History, *then: Core) -> History:
    w = Writer()
    w.event(None, Created("sim"))
    w.event(1, claimed(N1, "i1"))
    w.event(1, RuntimeRequested("r1"))
    w.event(1, StartFailed("provision", "no space"))
    for body in then:
        w.event(1, body)
    return History([Start("c1", N1, 0.0, 1.0, "provisioning"), Journal("c1", tuple(w.events), epoch=1)])


def a_runtime_outlives_its_failed_start(h: History) -> History:
    return _failed_start(h, Released("i1", "failed"))


def a_failed_start_is_not_released(h: History) -> History:
    return changed(_failed_start(h), Journal, owner="i1")


def a_failed_start_without_a_reason(h: History) -> History:
    h.entries.insert(0, Start("c1", N1, 0.0, 0.1, "provisioning"))
    return h


def a_call_without_outcome(h: History) -> History:
    return with_events(h, [*events_of(h)[:12]], wanted=True)


def a_call_with_two_outcomes(h: History) -> History:
    events = events_of(h)
    return with_events(h, [*events[:9], events[8], *events[9:]])


def a_call_that_ran_twice(h: History) -> History:
    h.entries.insert(-1, Effect("c1", "t2.1", "t2.1", 2, N2, 6.0))
    return h


def a_call_that_never_ran(h: History) -> History:
    return drop(h, Effect)


def test_a_call_that_raised_may_not_have_acted():
    h = drop(sound(), Effect)  # that of the call that has finished
    assert found(h) == {Guarantee.KNOWN_FATE}
    error = {"error": {"type": "OSError", "text": "Too many open files"}}
    events = [replace(e, body=e.body | error) if e.kind == "call_finished" else e for e in events_of(h)]
    assert found(with_events(h, events)) == set()


def a_call_that_nobody_knows(h: History) -> History:
    return changed(h, Effect, 0, call="t2.9")


def a_call_with_another_key(h: History) -> History:
    return changed(h, Effect, 0, key="other")


def a_call_under_a_foreign_epoch(h: History) -> History:
    return changed(h, Effect, 1, process=N2)


def somebody_was_shown_something_else(h: History) -> History:
    return changed(h, Look, shown=((1, None, "created"), (3, 1, "released")))


def somebody_could_not_read(h: History) -> History:
    h.entries.insert(-1, Unread("c1", N1, 3.0, "UnknownConversationError"))
    return h


def a_gap(h: History) -> History:
    events = events_of(h)
    h.entries[-1] = replace(journal_of(h), events=tuple(events[:4] + events[5:]))
    return h


def work_was_forgotten(h: History) -> History:
    h.entries.insert(-1, Forgotten("c1", 11, 5.0))
    return h


def work_is_forgotten_at_the_end(h: History) -> History:
    events = events_of(h)
    return with_events(h, [*events[:14], events[16]], quiescent=False)


def a_loop_after_the_burial(h: History) -> History:
    return changed(h, Span, 0, ended=5.1)


def a_call_after_the_burial(h: History) -> History:
    return changed(h, Effect, 1, at=5.1)


def buried_and_full_of_trust(h: History) -> History:
    return changed(h, Burial, trusted=True)


def the_current_runtime_destroyed(h: History) -> History:
    h.entries.insert(-1, Teardown("c1", "r1", N1, True, 6.0))
    return h


def a_command_before_its_time(h: History) -> History:
    return changed(h, Attempt, 2, started=5.6, ended=5.8)  # k2 stands before the second claim, granted at 5.5


def a_command_after_its_time(h: History) -> History:
    return changed(h, Attempt, 2, started=0.8, ended=0.9)  # k2 stands after the first claim, granted at 1.0


def an_owner_of_the_past(h: History) -> History:
    return changed(h, Start, 1, started=6.0, ended=6.1)  # epoch 1, after epoch 2 had been granted


def an_owner_of_the_future(h: History) -> History:
    return changed(h, Start, 1, started=0.1, ended=0.2)  # epoch 1, before it was granted


def a_claim_after_its_answer(h: History) -> History:
    return changed(h, Grant, 0, at=1.55)  # it ran here at 1.5 already


PLANTED: list[tuple[Callable[[History], History], Guarantee]] = [
    (an_epoch_twice, Guarantee.ONE_OWNER),
    (a_grant_over_the_living, Guarantee.ONE_OWNER),
    (a_grant_twice, Guarantee.ONE_OWNER),
    (the_record_behind_its_journal, Guarantee.ONE_OWNER),
    (a_zombie_writes, Guarantee.ONE_WRITER),
    (a_write_after_the_release, Guarantee.ONE_WRITER),
    (a_write_with_another_token, Guarantee.ONE_WRITER),
    (a_second_release, Guarantee.ONE_WRITER),
    (two_loops_under_one_epoch, Guarantee.IDEMPOTENT_START),
    (two_loops_on_one_process, Guarantee.IDEMPOTENT_START),
    (a_loop_without_a_claim, Guarantee.IDEMPOTENT_START),
    (here_but_it_is_not, Guarantee.IDEMPOTENT_START),
    (elsewhere_but_wrong, Guarantee.IDEMPOTENT_START),
    (a_key_twice, Guarantee.ACCEPTED_IS_KEPT),
    (an_accepted_key_is_gone, Guarantee.ACCEPTED_IS_KEPT),
    (a_client_was_told_another_place, Guarantee.ACCEPTED_IS_KEPT),
    (a_refused_key_is_there, Guarantee.ACCEPTED_IS_KEPT),
    (out_of_order, Guarantee.ACCEPTED_IS_KEPT),
    (settled_twice, Guarantee.ACCEPTED_IS_KEPT),
    (never_settled, Guarantee.TAKEOVER),
    (work_after_a_failed_start, Guarantee.FAIL_SAFE_START),
    (a_runtime_outlives_its_failed_start, Guarantee.FAIL_SAFE_START),
    (a_failed_start_is_not_released, Guarantee.FAIL_SAFE_START),
    (a_failed_start_without_a_reason, Guarantee.FAIL_SAFE_START),
    (a_call_without_outcome, Guarantee.KNOWN_FATE),
    (a_call_with_two_outcomes, Guarantee.KNOWN_FATE),
    (a_call_that_ran_twice, Guarantee.KNOWN_FATE),
    (a_call_that_never_ran, Guarantee.KNOWN_FATE),
    (a_call_that_nobody_knows, Guarantee.KNOWN_FATE),
    (a_call_with_another_key, Guarantee.KNOWN_FATE),
    (a_call_under_a_foreign_epoch, Guarantee.KNOWN_FATE),
    (somebody_was_shown_something_else, Guarantee.ALWAYS_READABLE),
    (somebody_could_not_read, Guarantee.ALWAYS_READABLE),
    (a_command_before_its_time, Guarantee.ORDER),
    (a_command_after_its_time, Guarantee.ORDER),
    (an_owner_of_the_past, Guarantee.ORDER),
    (an_owner_of_the_future, Guarantee.ORDER),
    (a_claim_after_its_answer, Guarantee.ORDER),
    (a_gap, Guarantee.JOURNAL),
    (work_was_forgotten, Guarantee.WANTED),
    (work_is_forgotten_at_the_end, Guarantee.WANTED),
    (a_loop_after_the_burial, Guarantee.TRUST),
    (a_call_after_the_burial, Guarantee.TRUST),
    (buried_and_full_of_trust, Guarantee.TRUST),
    (the_current_runtime_destroyed, Guarantee.RUNTIMES),
]


@pytest.mark.parametrize(("plant", "guarantee"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_what_is_planted_is_found(plant: Callable[[History], History], guarantee: Guarantee):
    assert guarantee in found(plant(sound()))


def test_every_guarantee_has_a_plant():
    assert {guarantee for _, guarantee in PLANTED} == set(Guarantee)


def test_what_overlaps_may_have_happened_in_either_order():
    overlapping = changed(sound(), Start, 1, started=5.4, ended=5.6)  # epoch 2 was granted in between
    assert found(overlapping) == set()


def test_an_order_of_any_length_is_judged_without_a_search():
    h = sound()
    h.entries[:0] = [
        Attempt("z", "c1", "message", "k1", n / 1e4, n / 1e4, "duplicate", seq=2) for n in range(7000, 9000)
    ]
    assert Guarantee.ORDER not in found(h)


# --- what is no violation ------------------------------------------------------------------------------------------------


def test_a_forced_takeover_may_be_over_the_living():
    assert found(changed(drop(sound(), Burial), Grant, 1, forced=True)) == set()


def test_a_frozen_process_is_fenced_not_blamed():
    history = a_call_after_the_burial(sound())
    history.entries.append(Frozen(N1, 2.4, 5.05))
    assert found(history) == set()


def test_a_clean_failed_start():
    history = _failed_start(sound(), RuntimeDiscarded("r1"), Released("i1", "failed"))
    assert found(history) == set()


def test_an_idempotent_call_may_run_twice():
    history = a_call_that_ran_twice(sound())
    events = events_of(history)
    events[9] = replace(events[9], body={**events[9].body, "idempotent": True})
    assert found(with_events(history, events)) == set()


def test_after_a_lossy_fail_over_only_the_fence_is_promised():
    history = an_accepted_key_is_gone(sound())
    history.entries.insert(0, Excuse("rewound", 4.0))
    assert Guarantee.ACCEPTED_IS_KEPT not in found(history)
    assert Guarantee.ONE_WRITER in found(a_zombie_writes(sound()))


def test_a_late_copy_of_a_refused_submission_may_be_accepted():
    history = a_refused_key_is_there(sound())
    history.entries.insert(0, Excuse("late-submission", 0.0, key="k1"))
    assert found(history) == set()


# --- how long a takeover took -----------------------------------------------------------------------------------------


def late(history: History, within_s: float) -> list[str]:
    return [v.what for v in check(history, within_s) if v.guarantee is Guarantee.TAKEOVER]


def with_death(at: float) -> History:
    history = sound()
    history.entries.insert(0, Death("i1", at))
    return history


def test_a_takeover_of_an_open_turn_is_judged_from_the_burial_or_the_death_that_was_recorded():
    assert late(sound(), 0.5) == []
    assert late(sound(), 0.4) == ["epoch 2 was granted 0.500 s after i1 had died with work left"]
    assert late(with_death(3.5), 2.0) == []
    assert late(with_death(3.5), 1.9) == ["epoch 2 was granted 2.000 s after i1 had died with work left"]
    assert check(with_death(3.5)) == [], "not judged without a bound"


def test_a_takeover_after_a_lossy_fail_over_is_not_judged():
    history = sound()
    history.entries.insert(0, Excuse("rewound", 0.0))
    assert late(history, 0.0) == []


def idle_when_its_owner_died(recorded: bool) -> History:
    """The turn is over before the death at 5.0; a message comes at 60.0, and its claim at 60.2."""
    w = Writer()
    w.event(None, Created("sim"))
    first = w.command("message", "k1")  # 2
    w.event(1, claimed(N1, "i1"))
    w.event(1, LoopStarted("sim"))
    w.event(1, TurnStarted((first,)), "t2")
    w.event(1, TurnCompleted((first,)), "t2")
    second = w.command("message", "k2")  # 7
    w.event(2, claimed(N2, "i2", "i1"))
    w.event(2, LoopStarted("sim"))
    w.event(2, TurnStarted((second,)), "t7")
    w.event(2, TurnCompleted((second,)), "t7")
    asked = [Attempt("a", "c1", "message", "k2", 60.0, 60.1, "accepted", seq=7)] if recorded else []
    return History(
        [
            Grant("c1", 1, "x1", "i1", N1, None, False, 1.0),
            Burial("i1", "expired", 5.0),
            *asked,
            Grant("c1", 2, "x2", "i2", N2, "i1", False, 60.25),
            Journal("c1", tuple(w.events), epoch=2, owner="i2"),
        ]
    )


def test_work_that_came_after_the_death_is_waited_for_from_then_on():
    assert late(idle_when_its_owner_died(recorded=True), 0.25) == []
    assert late(idle_when_its_owner_died(recorded=True), 0.2) == [
        "epoch 2 was granted 0.250 s after i1 had died with work left"
    ]
    assert late(idle_when_its_owner_died(recorded=False), 0.0) == [], "nobody recorded when it was asked for"


# --- as a program -------------------------------------------------------------------------------------------------------


def test_the_program_reads_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "history.jsonl"
    file.write_text("\n".join(sound().lines()))
    assert main([str(file)]) == 0
    file.write_text("\n".join(a_call_that_ran_twice(sound()).lines()))
    assert main([str(file)]) == 1
    assert "G7" in capsys.readouterr().out


def test_the_program_refuses_what_is_no_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "history.jsonl"
    file.write_text('{"type": "effect"}')
    assert main([str(file)]) == 2
    assert "line 1" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
    for arguments in ([], ["--takeover-s", "1"], ["--takeover-s", "soon", str(file)], ["--takeover", "1", str(file)]):
        assert main(arguments) == 2
        assert "usage" in capsys.readouterr().err


def test_the_program_takes_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "history.jsonl"
    file.write_text("\n".join(with_death(3.5).lines()))
    assert main(["--takeover-s", "2", str(file)]) == 0
    assert main(["--takeover-s", "1.5", str(file)]) == 1
    assert "G6 takeover: c1: epoch 2 was granted 2.000 s after" in capsys.readouterr().out


@pytest.mark.blocking_ok  # a program of its own
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1 is no entry"),
        ("[]", 'an object with a "type"'),
        ('{"type": "grants"}', "'grants' is none of attempt, start, grant"),
        ('{"type": "burial", "incarnation": "i", "why": "expired"}', "burial lacks 'at'"),
        ('{"type": "burial", "incarnation": "i", "why": "expired", "at": "noon"}', "'at' is float, not 'noon'"),
        ('{"type": "excuse", "what": "rewound", "at": true}', "'at' is float, not True"),
        ('{"type": "excuse", "what": "rewound", "at": 1, "by": "me"}', "excuse has no 'by'"),
        ('{"type": "journal", "conversation": "c", "epoch": 1, "events": [{"seq": 1}]}', "it lacks 'epoch'"),
    ],
)
def test_a_line_that_is_no_entry_is_refused_by_number_and_reason(line: str, says: str):
    with pytest.raises(ValueError, match="line 1 is no entry of a history") as refused:
        History.parse([line])
    assert says in str(refused.value)


def test_it_runs_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "tenure.testing.checker", "-"],
        input="\n".join(sound().lines()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "0 violations" in ran.stdout
