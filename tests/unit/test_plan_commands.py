"""What a new owner does about each command that needs no loop, and about the turn that it finds."""

import pytest
from journals import Journal

from tenure.conversation import (
    LOST_LIMIT,
    Then,
    end_turn,
    interrupt_calls,
    overtaken,
    plan,
    settle_urgent,
    turn_id,
)
from tenure.journal import (
    CallFinished,
    CallStarted,
    CommandSettled,
    Delivery,
    Draft,
    LoopStarted,
    Policy,
    Released,
    StartFailed,
    Stopped,
    TurnInterrupted,
    TurnStarted,
    TurnWaiting,
)


def in_turn(policy: Policy = Policy.ENQUEUE) -> Journal:
    """created, claimed, message (3), turn_started on it: turn t3."""
    return Journal(policy).ask().write(TurnStarted((3,)), turn="t3")


def repairs(journal: Journal, lost: int = 0) -> list[tuple[str, object]]:
    """Kind and what matters of each repair."""
    parts = ("command", "outcome", "call", "commands", "reason", "by", "answer")
    planned = plan(journal.fold, lost=lost).repairs
    return [(d.kind, {p: d.body[p] for p in parts if d.body.get(p) not in (None, "")}) for d in planned]


def then(journal: Journal, lost: int = 0) -> Then:
    return plan(journal.fold, lost=lost).then


def test_a_start_is_settled_by_a_live_loop_and_not_before():
    """Otherwise a start that fails for a passing reason, or whose owner dies before the loop lives, is lost."""
    journal = Journal().ask("start")
    assert repairs(journal) == []
    assert then(journal).needs_loop
    failed = journal.write(StartFailed("provision", "no room"), Released("n", "failed"))
    assert failed.fold.runnable, "still wanted"
    assert then(failed.claim()).needs_loop, "the next owner tries again"
    live = Journal().ask("start").write(LoopStarted("a"))
    assert settle_urgent(live.fold, live.fold.urgent[0])[0].body["outcome"] == "done"
    assert then(journal.write(CommandSettled(3, "done"), Released("n", "idle")).claim()) is Then.REST


def test_a_stop_works_without_a_loop_and_without_a_runtime():
    journal = in_turn().write(CallStarted("c1", "f"), CallStarted("c2", "f", idempotent=True), turn="t3").ask("stop")
    assert repairs(journal) == [
        ("call_interrupted", {"call": "c1", "reason": "turn ended"}),
        ("call_interrupted", {"call": "c2", "reason": "turn ended"}),
        ("turn_interrupted", {"commands": [3], "by": 7, "reason": "stopped"}),
        ("stopped", {"command": 7}),
        ("command_settled", {"command": 7, "outcome": "done"}),
    ]
    assert then(journal) is Then.HALT


def test_a_stop_leaves_what_waits_unless_it_says_otherwise():
    journal = Journal().ask().ask("stop").ask()
    assert [kind for kind, _ in repairs(journal)] == ["stopped", "command_settled"]
    journal = Journal().ask().ask("stop", queue=True).ask()
    assert repairs(journal) == [
        ("command_settled", {"command": 3, "outcome": "refused"}),
        ("stopped", {"command": 4}),
        ("command_settled", {"command": 4, "outcome": "done"}),
    ], "what came after it is not its business"


def test_a_start_after_a_stop_wins():
    journal = Journal().ask().ask("stop").ask("start")
    assert then(journal) is Then.WORK
    assert [kind for kind, _ in repairs(journal)] == ["stopped", "command_settled"], "the start waits for its loop"


def test_a_start_before_a_stop_is_refused_with_it():
    journal = Journal().ask("start").ask("stop")
    settled = [(part["command"], part["outcome"]) for kind, part in repairs(journal) if kind == "command_settled"]
    assert sorted(settled) == [(3, "refused"), (4, "done")]
    assert then(journal) is Then.HALT


def test_a_stop_ends_a_turn_that_began_after_it():
    journal = Journal().ask().ask("stop").write(TurnStarted((3,)), turn="t3")
    assert ("turn_interrupted", {"commands": [3], "by": 4, "reason": "stopped"}) in repairs(journal)


def test_an_interrupt_ends_the_turn_that_was_open_when_it_came():
    assert repairs(in_turn().ask("interrupt")) == [
        ("turn_interrupted", {"commands": [3], "by": 5, "reason": "interrupted"}),
        ("command_settled", {"command": 5, "outcome": "done"}),
    ]
    late = Journal().ask().ask("interrupt").write(TurnStarted((3,)), turn="t3")
    assert repairs(late) == [("command_settled", {"command": 4, "outcome": "done"})]
    assert then(late) is Then.RESUME, "nobody had seen this turn when they interrupted"
    assert repairs(Journal().ask("interrupt")) == [("command_settled", {"command": 3, "outcome": "done"})]


def test_an_answer_resumes_the_turn_that_waits_for_it():
    waiting = in_turn().write(TurnWaiting("name?"), turn="t3")
    assert then(waiting) is Then.WAIT
    waiting.ask("answer", ask="name?", answer="Ann")
    assert repairs(waiting) == [
        ("turn_resumed", {"command": 6, "answer": "Ann"}),
        ("command_settled", {"command": 6, "outcome": "done"}),
    ]
    assert then(waiting) is Then.RESUME


def test_an_answer_need_not_name_what_it_answers_and_may_be_a_text():
    waiting = in_turn().write(TurnWaiting("name?"), turn="t3").ask("answer", text="Ann")
    assert ("turn_resumed", {"command": 6, "answer": "Ann"}) in repairs(waiting)


@pytest.mark.parametrize("journal", [Journal().ask("answer"), in_turn().ask("answer")], ids=["no turn", "not waiting"])
def test_an_answer_that_nothing_waits_for_is_refused(journal: Journal):
    assert repairs(journal) == [("command_settled", {"command": journal.seq, "outcome": "refused"})]


def test_an_answer_to_another_question_is_refused():
    waiting = in_turn().write(TurnWaiting("name?"), turn="t3").ask("answer", ask="age?", answer=7)
    assert repairs(waiting) == [("command_settled", {"command": 6, "outcome": "refused"})]
    assert then(waiting) is Then.WAIT


def test_only_the_first_of_two_answers_resumes():
    waiting = in_turn().write(TurnWaiting("a"), turn="t3").ask("answer", answer=1).ask("answer", answer=2)
    assert [(kind, part.get("outcome")) for kind, part in map(tuple_of, repairs(waiting))] == [
        ("turn_resumed", None),
        ("command_settled", "done"),
        ("command_settled", "refused"),
    ]


def tuple_of(repair: tuple[str, object]) -> tuple[str, dict[str, object]]:
    kind, parts = repair
    assert isinstance(parts, dict)
    return kind, parts


def test_commands_are_settled_in_order():
    journal = in_turn().ask("interrupt").ask("answer").ask("interrupt")
    settled = [part["command"] for kind, part in map(tuple_of, repairs(journal)) if kind == "command_settled"]
    assert settled == [5, 6, 7]


def test_what_only_a_loop_knows_waits_for_one():
    journal = Journal().ask("pause")
    assert (repairs(journal), then(journal)) == ([], Then.WORK)
    assert settle_urgent(journal.fold, journal.events[-1]) == ()


def test_what_only_a_loop_knows_is_refused_when_it_is_stopped():
    """Nothing would settle it, and it would stay wanted for ever."""
    journal = Journal().ask("pause").ask("stop")
    assert ("command_settled", {"command": 3, "outcome": "refused"}) in repairs(journal)
    assert then(journal) is Then.HALT


def test_a_steered_message_is_left_for_the_turn():
    journal = in_turn().ask("message", Delivery.NOW)
    assert (repairs(journal), then(journal)) == ([], Then.WORK)


# the turn that it finds


def test_a_turn_goes_on_and_its_calls_have_one_fate():
    journal = in_turn().write(CallStarted("c1", "f"), CallStarted("c2", "f", idempotent=True), turn="t3")
    journal.write(Draft("tool", {}, "t3", opens=("c3",))).claim()
    assert repairs(journal) == [
        ("call_interrupted", {"call": "c1", "reason": "owner lost"}),
        ("call_interrupted", {"call": "c3", "reason": "owner lost"}),
    ], "c2 runs again, with its key"
    assert then(journal) is Then.RESUME


def test_a_call_that_finished_is_left_alone():
    journal = in_turn().write(CallStarted("c", "f"), CallFinished("c", 1), turn="t3").claim()
    assert (repairs(journal), then(journal)) == ([], Then.RESUME)


def test_a_turn_that_lost_too_many_owners_ends():
    journal = in_turn().write(CallStarted("c", "f", idempotent=True), turn="t3").claim()
    assert repairs(journal, lost=LOST_LIMIT) == []
    assert repairs(journal, lost=LOST_LIMIT + 1) == [
        ("call_interrupted", {"call": "c", "reason": "turn ended"}),
        ("turn_failed", {"commands": [3], "reason": "abandoned"}),
    ]
    assert then(journal, lost=LOST_LIMIT + 1) is Then.REST
    assert then(journal.ask(), lost=LOST_LIMIT + 1) is Then.WORK, "the next message is another matter"


def test_a_start_that_lost_too_many_owners_is_given_up():
    journal = Journal().ask()
    assert then(journal, lost=LOST_LIMIT) is Then.WORK
    assert then(journal, lost=LOST_LIMIT + 1) is Then.GIVE_UP
    assert then(Journal(), lost=LOST_LIMIT + 1) is Then.REST, "nothing to start, nothing to give up"
    assert plan(journal.fold, lost=2, lost_limit=1).then is Then.GIVE_UP


def test_a_message_overtakes_the_turn_under_interrupt():
    journal = in_turn(Policy.INTERRUPT).ask()
    assert overtaken(journal.fold) == 5
    assert repairs(journal) == [
        ("turn_interrupted", {"commands": [3], "by": 5, "reason": "overtaken by a message"}),
    ]
    assert then(journal) is Then.WORK


def test_a_message_that_waited_before_the_turn_overtakes_nothing():
    journal = Journal(Policy.INTERRUPT).ask().ask().write(TurnStarted((3,)), turn="t3")
    assert overtaken(journal.fold) is None
    assert overtaken(in_turn(Policy.INTERRUPT).ask("run", Delivery.TURN).fold) is None, "nor does another command"
    assert overtaken(in_turn(Policy.ENQUEUE).ask().fold) is None
    assert overtaken(Journal(Policy.INTERRUPT).ask().fold) is None


def test_a_turn_of_a_stopped_conversation_is_left_until_a_start():
    journal = in_turn().write(CallStarted("c", "f"), turn="t3").ask("stop").write(Stopped(6), CommandSettled(6, "done"))
    assert (repairs(journal), then(journal)) == ([], Then.HALT)


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        (Journal(), Then.REST),
        (Journal(claimed=False).claim("start"), Then.START),
        (Journal().ask(), Then.WORK),
        (in_turn(), Then.RESUME),
        (in_turn().write(TurnWaiting("a"), turn="t3"), Then.WAIT),
        (in_turn().write(TurnWaiting("a"), turn="t3").ask(), Then.WAIT),
        (in_turn().write(TurnWaiting("a"), turn="t3").claim("start"), Then.START),
        (in_turn().write(LoopStarted("agent")).claim(), Then.RESUME),
    ],
    ids=["rest", "asked", "work", "turn", "waiting", "waiting, with a message behind it", "asked, waiting", "cut"],
)
def test_then(journal: Journal, expected: Then):
    assert then(journal) is expected
    assert expected.needs_loop == (expected in (Then.RESUME, Then.WORK, Then.START))


def test_ending_a_turn_gives_every_call_its_outcome_first():
    journal = in_turn().write(CallStarted("c1", "f"), CallStarted("c2", "f", idempotent=True), turn="t3")
    ended = end_turn(journal.fold, TurnInterrupted((3,), None, "drained"))
    assert [d.kind for d in ended] == ["call_interrupted", "call_interrupted", "turn_interrupted"]
    assert all(d.turn == "t3" for d in ended)
    assert interrupt_calls(Journal().fold, "why") == ()


def test_a_turn_is_named_after_its_first_command():
    assert turn_id(17) == "t17"
