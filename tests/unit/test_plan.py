"""The plan for a new owner, over every meaning that a journal of bounded length can have.

The journals are all that the strict fold accepts, built event by event from a small alphabet: every kind of command, claims
and releases, turns, calls of each sort, waiting. Journals that mean the same are followed once. To each a new owner comes.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from tenure.clock import Instant
from tenure.conversation import (
    LOST_LIMIT,
    Fold,
    Plan,
    Then,
    checked,
    fold,
    overtaken,
    plan,
    settlement,
    turn_id,
)
from tenure.errors import JournalError
from tenure.journal import (
    CORE_COMMANDS,
    TURN_ENDS,
    CallFinished,
    CallRestarted,
    CallStarted,
    Claimed,
    CommandSettled,
    Created,
    Delivery,
    Draft,
    Event,
    Json,
    LoopStarted,
    Policy,
    Released,
    Seq,
    Stopped,
    TurnCompleted,
    TurnResumed,
    TurnStarted,
    TurnWaiting,
    canonical,
    draft,
)
from tenure.lease import Epoch

AT = Instant(0.0)


class Scope(NamedTuple):
    """How far the journals reach: `length` events after the first claim, `unsettled` commands at a time."""

    policy: Policy
    unsettled: int
    length: int


SCOPES = [Scope(Policy.ENQUEUE, 2, 5), Scope(Policy.ENQUEUE, 3, 4), Scope(Policy.INTERRUPT, 2, 5)]


def command(state: Fold, kind: str, delivery: Delivery, **body: Json) -> Event:
    seq = state.seq + 1
    return Event(Seq(seq), None, kind, AT, body, key=f"k{seq}", delivery=delivery)


def claimed(state: Fold, why: str = "wanted") -> Event:
    return draft(Claimed("n", "n", "", why)).stored(state.seq + 1, Epoch(state.epoch + 1), AT)


def continuations(state: Fold, unsettled: int) -> Iterator[Event]:
    """What might come next; the fold says what may."""
    if len(state.pending) < unsettled:
        yield command(state, "message", Delivery.TURN)
        yield command(state, "message", Delivery.NOW)  # steered
        yield command(state, "start", Delivery.NOW)
        yield command(state, "stop", Delivery.NOW)
        yield command(state, "stop", Delivery.NOW, queue=True)
        yield command(state, "interrupt", Delivery.NOW)
        yield command(state, "answer", Delivery.NOW, ask="a", answer=1)
        yield command(state, "pause", Delivery.NOW)  # a kind that only a loop knows
    yield claimed(state)
    yield claimed(state, why="start")
    for one in drafts(state):
        yield one.stored(state.seq + 1, Epoch(state.epoch), AT)


def drafts(state: Fold) -> Iterator[Draft]:
    """What an owner might write next."""
    yield draft(Released("n", "idle"))
    yield draft(LoopStarted("agent"))
    for waiting in state.queue[:1]:
        yield draft(TurnStarted((waiting.seq,)), turn_id(waiting.seq))
    for urgent in state.urgent[:1]:
        yield draft(CommandSettled(urgent.seq, "done"))
        yield draft(Stopped(urgent.seq))
    if state.turn is None:
        return
    turn, call = state.turn.id, f"call{state.seq}"
    yield draft(TurnCompleted(state.turn.commands), turn)
    yield draft(TurnWaiting("a"), turn)
    yield draft(TurnResumed(2), turn)
    for name in list(state.turn.calls)[:1]:
        yield draft(CallFinished(name), turn)
        yield draft(CallRestarted(name, 2), turn)
    if len(state.turn.calls) > 1:
        return
    yield draft(CallStarted(call, "f", idempotent=True, key=call), turn)
    yield draft(CallStarted(call, "f"), turn)
    yield Draft("tool", {}, turn, opens=(call,))


def meaning(state: Fold) -> object:
    """The fold up to names: which seq a command has, and how often a turn was tried, changes no plan."""
    turn = state.turn
    order = sorted({*state.pending, *((turn.seq,) if turn else ())})
    return (
        tuple((order.index(s), c.kind, c.delivery, len(c.body)) for s, c in state.pending.items()),
        turn and (order.index(turn.seq), tuple(map(order.index, turn.commands)), turn.waiting, turn.retryable),
        turn and tuple(call.idempotent for call in turn.calls.values()),
        (state.stopped, state.started, state.owned, state.asked_to_start, state.policy),
    )


def folds(scope: Scope) -> list[Fold]:
    """Every fold of up to `length` events, one per meaning, each after a new owner has come."""
    created = draft(Created("agent", policy=scope.policy.value)).stored(1, None, AT)
    first = fold(Fold(), [created])
    frontier = [fold(first, [claimed(first)])]
    reached = {meaning(state): state for state in frontier}
    for _ in range(scope.length):
        fresh: dict[object, Fold] = {}
        for state in frontier:
            for after in accepted(state, scope.unsettled):
                fresh.setdefault(meaning(after), after)
        frontier = [state for meant, state in fresh.items() if meant not in reached]
        reached = fresh | reached
    return [fold(state, [claimed(state, why)]) for state in reached.values() for why in ("wanted", "start")]


def accepted(state: Fold, unsettled: int) -> Iterator[Fold]:
    for event in continuations(state, unsettled):
        try:
            yield fold(state, [event])
        except JournalError:
            continue


class Planned(NamedTuple):
    """A fold, what a new owner plans for it, and the fold after the repairs."""

    before: Fold
    plan: Plan
    after: Fold


@cache
def plans(scope: Scope) -> list[Planned]:
    made = [(state, plan(state)) for state in folds(scope)]
    return [Planned(state, planned, checked(state, planned.repairs)) for state, planned in made]


over_all_folds = pytest.mark.parametrize("scope", SCOPES, ids=lambda s: f"{s.policy}-{s.unsettled}-{s.length}")


@over_all_folds
def test_the_folds_are_many_and_of_all_sorts(scope: Scope):
    found = plans(scope)
    assert len(found) > 2000
    assert {planned.then for _, planned, _ in found} == {*Then} - {Then.ABANDON, Then.GIVE_UP}
    kinds = {d.kind for _, planned, _ in found for d in planned.repairs}
    assert kinds == {"command_settled", "stopped", "call_interrupted", "turn_interrupted", "turn_resumed"}


@over_all_folds
def test_the_fold_accepts_every_repair(scope: Scope):
    """`plans` would have raised; and a repair is never nothing that happened."""
    for before, planned, after in plans(scope):
        assert after.seq == before.seq + len(planned.repairs)
        assert after.epoch == before.epoch


@over_all_folds
def test_no_command_of_the_core_that_needs_no_loop_is_left(scope: Scope):
    for _, _, after in plans(scope):
        left = {c.kind for c in after.pending.values() if c.kind in CORE_COMMANDS and c.kind != "message"}
        assert not left - {"start"}, after
        assert not left or (after.runnable and not after.stopped and not after.started), "a start waits for its loop"


@over_all_folds
def test_what_needs_a_loop_is_left_to_it(scope: Scope):
    """Unless a stop answers for it: nothing else settles what only a loop knows, or a message."""
    for before, planned, after in plans(scope):
        settled = [c for s, c in before.pending.items() if s not in after.pending]
        if any(d.kind == "stopped" for d in planned.repairs) or before.stopped:
            continue
        ended = before.turn.commands if before.turn is not None and after.turn is None else ()
        assert all((c.kind in CORE_COMMANDS and c.kind != "message") or c.seq in ended for c in settled), after


@over_all_folds
def test_no_call_is_left_whose_outcome_is_unknown(scope: Scope):
    """G7: an open call will run again with its key, or has its outcome."""
    for before, _, after in plans(scope):
        if after.turn is None or after.stopped:
            continue
        assert before.turn is not None
        assert all(call.idempotent for call in after.turn.calls.values()), after
        assert after.turn.calls == {n: c for n, c in before.turn.calls.items() if c.idempotent}, "and no other is cut"


@over_all_folds
def test_then_is_what_can_be_done(scope: Scope):
    """`runnable` is the owner's part of `wanted`: with it somebody must come, without it nobody."""
    for _, planned, after in plans(scope):
        assert (planned.then in (Then.RESUME, Then.WORK)) == after.runnable, after
        assert planned.then.needs_loop or not after.runnable


@over_all_folds
def test_then_is_the_words_that_it_says(scope: Scope):
    for _, planned, after in plans(scope):
        match planned.then:
            case Then.HALT:
                assert after.stopped
            case Then.RESUME:
                assert after.turn is not None
                assert not after.turn.waiting
            case Then.WORK:
                assert after.queue or after.urgent
            case Then.WAIT:
                assert after.turn is not None
                assert after.turn.waiting
                assert not after.asked_to_start
            case Then.START:
                assert after.asked_to_start
            case Then.REST:
                assert (after.turn, after.queue, after.asked_to_start) == (None, [], False)
            case Then.GIVE_UP:
                pytest.fail("nobody was lost")


@over_all_folds
def test_a_plan_that_was_carried_out_has_nothing_left_to_repair(scope: Scope):
    """The next owner, or this one after a crash between the repairs and the rest, does the same."""
    for _, planned, after in plans(scope):
        again = plan(after)
        assert again.repairs == ()
        assert again.then is planned.then


@over_all_folds
def test_a_message_overtakes_under_its_policy_only(scope: Scope):
    for before, planned, after in plans(scope):
        assert overtaken(after) is None or after.stopped
        ends = [d for d in planned.repairs if d.kind == "turn_interrupted"]
        if scope.policy is Policy.ENQUEUE:
            assert all(before.pending[int(str(d.body["by"]))].kind != "message" for d in ends)


@over_all_folds
def test_the_record_hears_what_the_repairs_mean(scope: Scope):
    """What an append of the repairs tells the record is what the fold after them says."""
    for before, planned, after in plans(scope):
        told = settlement(before, after, planned.repairs)
        assert told.runnable == after.runnable
        assert {*told.settled} == {*before.pending} - {*after.pending}
        assert len(told.settled) == len({*told.settled})
        assert (told.turn, told.started) == (after.turn_state, after.started)
        assert told.turn_ended == (before.turn is not None and after.turn is None)
        assert not told.stopped or after.stopped
        assert before.stopped or not after.stopped or told.stopped


@over_all_folds
def test_a_turn_that_lost_too_many_owners_is_abandoned(scope: Scope):
    for before, _, _ in plans(scope):
        planned = plan(before, lost=LOST_LIMIT + 1)
        after = checked(before, planned.repairs)
        if before.stopped:
            continue
        assert after.turn is None, "rule 15: its next owner ends it"
        if before.turn is None and planned.then is not Then.HALT:
            assert planned.then in (Then.GIVE_UP, Then.REST), "it is the start that kills"
        else:
            ends = [d for d in planned.repairs if d.kind in TURN_ENDS]
            assert len(ends) == (before.turn is not None)
        assert plan(after).repairs == ()


@over_all_folds
def test_at_the_limit_a_turn_is_tried_once_more(scope: Scope):
    for before, planned, _ in plans(scope):
        assert plan(before, lost=LOST_LIMIT) == planned


@over_all_folds
def test_a_fold_survives_its_snapshot(scope: Scope):
    for before, _, after in plans(scope):
        for state in (before, after):
            assert Fold.from_json(json.loads(canonical(state.as_json()))) == state
