"""The plan for a new owner, and the drafts that settle what needs no loop."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final

from tenure.clock import Instant
from tenure.conversation.folding import Fold, fold
from tenure.journal import (
    CallInterrupted,
    CommandSettled,
    Draft,
    Event,
    Outcome,
    Policy,
    Stopped,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    draft,
)
from tenure.lease import Epoch

LOST_LIMIT = 3
"""How many owners one turn may lose before the next one abandons it (rule 15)."""


# --- the plan for a new owner ---------------------------------------------------------------------------------------


class Then(enum.StrEnum):
    """What a new owner does after its repairs."""

    RESUME = "resume"
    """An open turn goes on under this owner: provision, start, resume."""
    WORK = "work"
    """Commands wait: provision, start, take them in order."""
    START = "start"
    """No work, but somebody asked for a live loop: provision, start, be idle."""
    WAIT = "wait"
    """An open turn waits for an answer or a time: release, not wanted."""
    REST = "rest"
    """Nothing to do: release."""
    HALT = "halt"
    """The conversation is stopped: release."""
    ABANDON = "abandon"
    """The past of a copy was cut off: only who has the recording can go on; otherwise it is deleted in the end."""
    GIVE_UP = "give up"
    """Too many owners were lost while starting it: release as failed for good."""

    @property
    def needs_loop(self) -> bool:
        return self in (Then.RESUME, Then.WORK, Then.START)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """First `repairs`, journaled in one append before anything is provisioned; then `then`."""

    repairs: tuple[Draft, ...]
    then: Then


def plan(state: Fold, *, lost: int = 0, lost_limit: int = LOST_LIMIT) -> Plan:
    """What a new owner has to do, from the fold alone (rules 9, 13 and 15).

    Commands of the core that need no loop are settled in order: a ``stop`` needs no runtime, so it works while the
    provider is down. A ``start`` does, so it is settled by the loop that it asked for: one that fails is tried again.
    A call without outcome that is not idempotent gets its one outcome, ``interrupted``; an idempotent one stays open
    and is restarted by the loop. A turn that has lost more than `lost_limit` owners ends.
    """
    drafts: list[Draft] = []
    provisional = state
    if state.rehydrating:
        return Plan((), Then.ABANDON)

    def write(*more: Draft) -> None:
        nonlocal provisional
        now = Instant(0.0)
        first = provisional.seq + 1
        epoch = Epoch(provisional.epoch)
        provisional = fold(provisional, (d.stored(first + i, epoch, now) for i, d in enumerate(more)))
        drafts.extend(more)

    for command in state.urgent:
        write(*settle_urgent(provisional, command))
    if provisional.stopped:
        write(*refuse_urgent(provisional))
    turn = provisional.turn
    if turn is not None and lost > lost_limit:
        write(*end_turn(provisional, TurnFailed(turn.commands, "abandoned", {"owners_lost": lost})))
    elif turn is not None and overtaken(provisional):
        write(*end_turn(provisional, TurnInterrupted(turn.commands, overtaken(provisional), "overtaken by a message")))
    elif turn is not None and not provisional.stopped:
        write(*interrupt_calls(provisional, "owner lost"))
    then = _then(provisional)
    if then.needs_loop and turn is None and lost > lost_limit:
        then = Then.GIVE_UP
    return Plan(tuple(drafts), then)


def _then(state: Fold) -> Then:
    if state.stopped:
        return Then.HALT
    if state.urgent:
        return Then.WORK
    if state.turn is not None and state.turn.waiting:
        return Then.START if state.asked_to_start else Then.WAIT
    if state.turn is not None:
        return Then.RESUME
    if state.queue:
        return Then.WORK
    return Then.START if state.asked_to_start else Then.REST


def settle_urgent(state: Fold, command: Event) -> tuple[Draft, ...]:
    """The drafts that settle a ``now`` command of the core without a loop; none for a kind that only a loop knows."""
    match command.kind:
        case "start":
            return (
                (_done(command),) if state.started else ()
            )  # settled by a live loop, so a failed start is tried again
        case "stop":
            ends = _interrupted_by(state, command, "stopped")
            refused = [c for c in state.queue if command.body.get("queue") is True and c.seq < command.seq]
            return (
                *ends,
                *(draft(CommandSettled(c.seq, Outcome.REFUSED, {"reason": "stopped"})) for c in refused),
                draft(Stopped(command.seq)),
                _done(command),
            )
        case "interrupt":
            begun_before = state.turn is not None and state.turn.seq < command.seq
            ends = _interrupted_by(state, command, "interrupted") if begun_before else ()
            return (*ends, _done(command))
        case "answer":
            return _answer(state, command)
        case _:
            return ()


def _answer(state: Fold, command: Event) -> tuple[Draft, ...]:
    turn = state.turn
    wanted = command.body.get("ask")
    if turn is None or turn.ask is None or (wanted is not None and wanted != turn.ask):
        return (draft(CommandSettled(command.seq, Outcome.REFUSED, {"reason": "nothing waits for this answer"})),)
    answer = command.body.get("answer", command.body.get("text"))
    return (draft(TurnResumed(turn.attempt, turn.ask, answer, command.seq), turn.id), _done(command))


def refuse_urgent(state: Fold) -> tuple[Draft, ...]:
    """Answers for what only a live loop could settle, once the conversation is stopped: it would be wanted for ever."""
    return tuple(draft(CommandSettled(c.seq, Outcome.REFUSED, {"reason": "stopped"})) for c in state.urgent)


def _done(command: Event) -> Draft:
    return draft(CommandSettled(command.seq, Outcome.DONE))


def _interrupted_by(state: Fold, command: Event, reason: str) -> tuple[Draft, ...]:
    if state.turn is None:
        return ()
    return end_turn(state, TurnInterrupted(state.turn.commands, command.seq, reason))


def interrupt_calls(state: Fold, reason: str, *, idempotent_too: bool = False) -> tuple[Draft, ...]:
    """One ``call_interrupted`` for each open call that will not run again."""
    if state.turn is None:
        return ()
    cut = [c for c in state.turn.calls.values() if idempotent_too or not c.idempotent]
    return tuple(draft(CallInterrupted(c.call, reason), state.turn.id) for c in cut)


def end_turn(state: Fold, end: TurnCompleted | TurnFailed | TurnInterrupted) -> tuple[Draft, ...]:
    """The end of the open turn, after an outcome for each of its open calls: no turn ends over one (rule 13)."""
    assert state.turn is not None, "a turn is open"
    return (*interrupt_calls(state, "turn ended", idempotent_too=True), draft(end, state.turn.id))


def overtaken(state: Fold) -> int | None:
    """The message that interrupts the open turn under the policy ``interrupt``, if one has come."""
    if state.turn is None or state.policy is not Policy.INTERRUPT:
        return None
    began = state.turn.seq
    return next((int(c.seq) for c in state.queue if c.kind == "message" and c.seq > began), None)


def turn_id(first_command: int, generation: int = 0) -> str:
    """The name of the turn that begins with this command: a command is in one turn only, so it is unique.

    In a copy the turns of the past keep their names, which say seqs of the original; its own ones say the generation.
    """
    return f"t{first_command}r{generation}" if generation else f"t{first_command}"
