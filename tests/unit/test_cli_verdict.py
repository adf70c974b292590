"""What the demo counts: planted doubles and losses are found, takeovers are measured, a sound run is sound."""

import io
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tenure.cli import demo
from tenure.cli.demo import Options
from tenure.cli.demo.mirror import Mirror
from tenure.cli.demo.screen import Screen, print_verdict
from tenure.cli.demo.verdict import Fault, Verdict, judge, read_effects
from tenure.cli.exits import Exit
from tenure.clock import Instant
from tenure.journal import (
    CallFinished,
    CallInterrupted,
    CallStarted,
    Claimed,
    Core,
    Created,
    Delivery,
    Event,
    LoopStarted,
    Released,
    Seq,
    TurnCompleted,
    TurnResumed,
    TurnStarted,
    draft,
)
from tenure.lease import Epoch
from tenure.testing.history import Attempt, History, Journal, Start
from tenure.testing.processes import NodeEndedError

KEY = "c-1/t3.c1"


def journal(*entries: tuple[int | None, float, Core | str, str | None]) -> list[Event]:
    """Events from (epoch, at, body or the key of a message, turn)."""
    events: list[Event] = []
    for seq, (epoch, at, body, turn) in enumerate(entries, 1):
        if isinstance(body, str):
            message = Event(Seq(seq), None, "message", Instant(at), {"text": "hi"}, key=body, delivery=Delivery.TURN)
            events.append(message)
        else:
            events.append(draft(body, turn).stored(seq, None if epoch is None else Epoch(epoch), Instant(at)))
    return events


def claimed(node: str, previous: str | None = None) -> Claimed:
    return Claimed(f"i-{node}", node, f"http://{node}", "wanted", previous=previous)


def taken_over() -> list[Event]:
    """Node a dies at 10.0 in mid-call; b goes on."""
    return journal(
        (None, 1.0, Created("scripted"), None),
        (1, 1.1, claimed("a"), None),
        (None, 1.2, "k1", None),
        (1, 1.3, LoopStarted("scripted"), None),
        (1, 9.0, TurnStarted((3,)), "t3"),
        (1, 9.5, CallStarted("t3.c1", "run", key=KEY), "t3"),
        (2, 10.2, claimed("b", previous="i-a"), None),
        (2, 10.3, LoopStarted("scripted"), None),
        (2, 10.4, TurnResumed(2), "t3"),
        (2, 10.5, CallInterrupted("t3.c1", "owner lost"), "t3"),
        (2, 11.0, TurnCompleted((3,)), "t3"),
    )


def a_run(events: Sequence[Event], effects: Sequence[str] = (KEY,), *, asked: Sequence[str] = ("k1",)) -> History:
    told = Journal("c-1", tuple(events), 2, owner="i-b")
    lines = [json.dumps({"key": key, "epoch": 1}) for key in effects]
    attempts = [Attempt("client", "c-1", "message", key, 1.0, 1.2, "accepted", seq=3) for key in asked]
    starts = [Start("c-1", "http://a", 1.0, 1.1, "here", epoch=1)]
    return History([*attempts, *starts, told, *read_effects(lines, [told])])


KILLED = Fault("killed", "a", "i-a", 10.0)


def test_a_sound_run_is_sound():
    verdict = judge(a_run(taken_over()), [KILLED], effects_known=True)
    assert verdict.kept, (verdict.doubles, verdict.losses, verdict.violations)
    assert (verdict.starts, verdict.loops, verdict.sent, verdict.answered) == (1, 2, 1, 1)


def test_a_takeover_is_measured_from_the_fault():
    [takeover] = judge(a_run(taken_over()), [KILLED], effects_known=True).takeovers
    assert (takeover.kind, takeover.before, takeover.after, takeover.epoch) == ("killed", "a", "b", 2)
    assert takeover.claimed_s == takeover.unowned_s == pytest.approx(0.2)
    assert takeover.resumed_s == pytest.approx(0.4)


def test_after_a_release_nobody_owns_it_from_the_release_on():
    events = taken_over()
    events.insert(6, draft(Released("i-a", "drained")).stored(7, Epoch(1), Instant(10.15)))
    events[5] = draft(CallStarted("t3.c1", "run", True, KEY), "t3").stored(6, Epoch(1), Instant(9.5))
    events = [replace(event, seq=Seq(seq)) for seq, event in enumerate(events, 1)]
    [takeover] = judge(a_run(events), [Fault("drained", "a", "i-a", 10.0)], effects_known=True).takeovers
    assert takeover.unowned_s == pytest.approx(0.05)
    assert takeover.claimed_s == pytest.approx(0.2)


def test_an_idle_conversation_that_moves_is_no_takeover():
    events = [e for e in taken_over() if e.turn is None]
    assert judge(a_run(events, [], asked=[]), [KILLED], effects_known=True).takeovers == ()


def test_a_tool_that_ran_twice_is_a_double():
    verdict = judge(a_run(taken_over(), [KEY, KEY]), [], effects_known=True)
    assert verdict.doubles == ("c-1: call t3.c1 ran 2 times",)


def test_an_idempotent_tool_may_run_again():
    events = taken_over()
    events[5] = draft(CallStarted("t3.c1", "run", True, KEY), "t3").stored(6, Epoch(1), Instant(9.5))
    assert judge(a_run(events, [KEY, KEY]), [], effects_known=True).doubles == ()


@pytest.mark.parametrize(
    ("again", "what"),
    [
        (LoopStarted("scripted"), "2 loops under epoch 2"),
        (TurnCompleted((3,)), "command 3 settled 2 times"),
        (CallFinished("t3.c1"), "call t3.c1 has 2 outcomes"),
    ],
)
def test_what_stands_twice_is_a_double(again: Core, what: str):
    events = taken_over()
    events.append(draft(again, "t3").stored(len(events) + 1, Epoch(2), Instant(12.0)))
    assert what in " ".join(judge(a_run(events), [], effects_known=True).doubles)


def test_a_message_that_stands_twice_is_a_double():
    events = taken_over()
    twice = replace(events[2], seq=Seq(len(events) + 1))
    assert "c-1: message k1 stands 2 times" in judge(a_run([*events, twice]), [], effects_known=True).doubles


@pytest.mark.parametrize(
    ("events", "effects", "asked", "what"),
    [
        (taken_over(), [KEY], ["k1", "k2"], "c-1: message k2 was accepted and is gone"),
        (taken_over()[:-1], [KEY], ["k1"], "c-1: message k1 was never answered"),
        (taken_over(), [KEY, "c-1/t3.c2"], ["k1"], "c-1: call t3.c2 ran and no journal knows of it"),
    ],
)
def test_what_is_gone_is_a_loss(events: list[Event], effects: list[str], asked: list[str], what: str):
    verdict = judge(a_run(events, effects, asked=asked), [], effects_known=True)
    assert verdict.losses == (what,)
    assert not verdict.kept


def test_a_call_that_finished_and_left_no_effect_is_a_loss_if_effects_are_known():
    events = taken_over()
    events[9] = draft(CallFinished("t3.c1", "ok"), "t3").stored(10, Epoch(2), Instant(10.5))
    assert judge(a_run(events, []), [], effects_known=True).losses == ("c-1: call t3.c1 finished and never ran",)
    assert judge(a_run(events, []), [], effects_known=False).kept


def test_the_checker_is_asked_too():
    events = taken_over()
    events[8] = replace(events[8], epoch=Epoch(1))  # a late write of the dead owner was accepted
    verdict = judge(a_run(events), [], effects_known=True)
    assert any("epoch 2 is in force" in str(violation) for violation in verdict.violations)


# --- the table and the exit code ------------------------------------------------------------------------------------


def printed(verdict: Verdict) -> str:
    out = io.StringIO()
    print_verdict(Console(file=out, width=120), verdict, 12.3)
    return out.getvalue()


def test_the_table_says_what_was_counted():
    text = printed(judge(a_run(taken_over()), [KILLED], effects_known=True))
    assert re.search(r"^killed +c-1 +a → b +2 +200 ms +200 ms +400 ms", text, re.MULTILINE)
    assert re.search(r"^messages sent / answered +1 / 1", text, re.MULTILINE)
    assert re.search(r"^doubles +0", text, re.MULTILINE)
    assert "every promise was kept (12 s)" in text


def test_the_table_says_what_was_broken():
    text = printed(judge(a_run(taken_over(), [KEY, KEY]), [], effects_known=True, flaws=["n1 ended with 1"]))
    assert re.search(r"^doubles +1", text, re.MULTILINE)
    assert "c-1: call t3.c1 ran 2 times" in text
    assert "n1 ended with 1" in text
    assert "PROMISES WERE BROKEN" in text


@pytest.mark.parametrize(("effects", "code"), [([KEY], Exit.OK), ([KEY, KEY], Exit.FAILED), ([], Exit.OK)])
@pytest.mark.blocking_ok  # a program for one person
def test_a_broken_promise_is_an_exit_code(
    effects: list[str], code: Exit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def play(options: Options, store: str, folder: Path, console: Console) -> Verdict:
        (folder / "history.jsonl").write_text("")
        return judge(a_run(taken_over(), effects), [KILLED], effects_known=True)

    monkeypatch.setattr(demo, "_play", play)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = io.StringIO()
    assert demo.run(Options(), Console(file=out)) is code
    assert [len([*folder.iterdir()]) for folder in tmp_path.iterdir()] == ([] if code is Exit.OK else [1])


@pytest.mark.parametrize("error", [NodeEndedError("n1 ended"), ExceptionGroup("all", [TimeoutError("n1 ended")])])
@pytest.mark.blocking_ok  # a program for one person
def test_a_demo_that_cannot_go_on_says_why(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    async def play(options: Options, store: str, folder: Path, console: Console) -> Verdict:
        raise error

    monkeypatch.setattr(demo, "_play", play)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = io.StringIO()
    assert demo.run(Options(), Console(file=out, width=200)) is Exit.FAILED
    assert "could not go on: n1 ended" in out.getvalue()


def test_a_stream_with_a_gap_is_a_flaw():
    mirror = Mirror("c-1", Screen(Console(file=io.StringIO())))
    first, _, third, *_ = taken_over()
    mirror.absorb(first)
    mirror.absorb(third)
    assert mirror.flaws == ["c-1: the stream told 3 after 1"]


def test_a_mirror_knows_owner_turn_and_calls():
    mirror = Mirror("c-1", Screen(Console(file=io.StringIO())))
    for event in taken_over()[:6]:
        mirror.absorb(event)
    assert (mirror.in_mid_call, mirror.turn, mirror.owner and mirror.owner.node) == (True, "t3", "a")
    for event in taken_over()[6:]:
        mirror.absorb(event)
    assert (mirror.in_mid_call, mirror.turn, mirror.settled) == (False, None, {3})
