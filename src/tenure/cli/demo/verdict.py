"""What the demo proves, counted from the journals and from the file of side effects; nothing is taken on trust."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.journal import (
    TURN_ENDS,
    CallFinished,
    CallInterrupted,
    CallStarted,
    Claimed,
    Event,
    LoopStarted,
    Released,
    read_body,
)
from tenure.testing.checker import (
    Violation,
    accepted_is_kept,
    always_readable,
    fail_safe_start,
    grammar,
    idempotent_start,
    known_fate,
    one_owner,
    one_writer,
    settled,
)
from tenure.testing.history import Attempt, Effect, History, Journal, Start

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to a node, and when (wall time of this machine, as in the journals)."""

    kind: str
    node: str
    incarnation: str
    at: float


@final
@dataclass(frozen=True, slots=True)
class Takeover:
    """An open turn that changed its owner because of a fault. All times in seconds.

    `at` is the time of the fault; `claimed_s` and `resumed_s` run from the fault to the new owner's claim and to the next event of the turn;
    `unowned_s` is how long nobody could act for it: from the fault, or from the release of an owner that drained.
    """

    kind: str
    at: float
    conversation: str
    before: str
    after: str
    epoch: int
    claimed_s: float
    unowned_s: float
    resumed_s: float | None


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """The table at the end. `loops` are those that ran by the end of the storm."""

    starts: int
    loops: int
    sent: int
    answered: int
    calls: int
    cut: int
    effects: int
    takeovers: tuple[Takeover, ...]
    doubles: tuple[str, ...]
    losses: tuple[str, ...]
    violations: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.doubles or self.losses or self.violations)


def judge(
    history: History,
    faults: Sequence[Fault],
    *,
    effects_known: bool,
    storm_ended: float = float("inf"),
    flaws: Sequence[str] = (),
) -> Verdict:
    """Count, and ask the checker for everything that a history like this can show."""
    journals = history.of(Journal)
    accepted = {(a.conversation, a.key) for a in history.of(Attempt) if a.outcome in ("accepted", "duplicate")}
    effects = history.of(Effect)
    return Verdict(
        starts=len(history.of(Start)),
        loops=sum(_loops(journal.events, storm_ended) for journal in journals),
        sent=len(accepted),
        answered=sum(
            1 for journal in journals for key in _answered(journal.events) if (journal.conversation, key) in accepted
        ),
        calls=sum(len(event.opens) for journal in journals for event in journal.events),
        cut=sum(isinstance(read_body(event), CallInterrupted) for journal in journals for event in journal.events),
        effects=len(effects),
        takeovers=tuple(sorted(takeovers(journals, faults), key=lambda one: one.at)),
        doubles=tuple(doubles(journals, effects)),
        losses=tuple(losses(journals, accepted, effects, effects_known=effects_known)),
        violations=(*flaws, *map(str, _violations(history, effects_known=effects_known))),
    )


def _violations(history: History, *, effects_known: bool) -> Iterator[Violation]:
    for promise in (
        one_owner, one_writer, idempotent_start, accepted_is_kept, settled, fail_safe_start, always_readable, grammar,
        ):  # fmt: skip
        yield from promise(history)
    if effects_known:  # an agent that leaves no file of side effects shows its calls in the journal alone
        yield from known_fate(history)


# --- doubles and losses ---------------------------------------------------------------------------------------------


def doubles(journals: Sequence[Journal], effects: Sequence[Effect]) -> Iterator[str]:
    """What happened twice that may happen once: a loop under one epoch, a message, its settlement, a tool's run."""
    for journal in journals:
        name = journal.conversation
        started = Counter(e.epoch for e in journal.events if isinstance(read_body(e), LoopStarted))
        keys = Counter(e.key for e in journal.events if e.key is not None)
        settlements = Counter(_settlements(journal.events))
        outcomes = Counter(call for e in journal.events for call in e.closes)
        yield from (f"{name}: {times} loops under epoch {epoch}" for epoch, times in started.items() if times > 1)
        yield from (f"{name}: message {key} stands {times} times" for key, times in keys.items() if times > 1)
        yield from (f"{name}: command {seq} settled {times} times" for seq, times in settlements.items() if times > 1)
        yield from (f"{name}: call {call} has {times} outcomes" for call, times in outcomes.items() if times > 1)
    once = {
        (journal.conversation, body.call)
        for journal in journals
        for event in journal.events
        if isinstance(body := read_body(event), CallStarted) and not body.idempotent
    }
    for (name, call), times in Counter((e.conversation, e.call) for e in effects).items():
        if times > 1 and (name, call) in once:
            yield f"{name}: call {call} ran {times} times"


def losses(
    journals: Sequence[Journal], accepted: Iterable[tuple[str, str]], effects: Sequence[Effect], *, effects_known: bool
) -> Iterator[str]:
    """What was accepted and is gone, or was never settled; what finished and never ran; what ran unjournaled."""
    kept = {(j.conversation, e.key) for j in journals for e in j.events if e.key is not None}
    answered = {(journal.conversation, key) for journal in journals for key in _answered(journal.events)}
    for name, key in sorted(accepted):
        if (name, key) not in kept:
            yield f"{name}: message {key} was accepted and is gone"
        elif (name, key) not in answered:
            yield f"{name}: message {key} was never answered"
    started: set[tuple[str, str]] = set()
    finished: set[tuple[str, str]] = set()
    for journal in journals:
        for event in journal.events:
            started.update((journal.conversation, call) for call in event.opens)
            if isinstance(body := read_body(event), CallFinished):
                finished.add((journal.conversation, body.call))
    ran = {(effect.conversation, effect.call) for effect in effects}
    if effects_known:
        yield from (f"{name}: call {call} finished and never ran" for name, call in sorted(finished - ran))
    yield from (f"{name}: call {call} ran and no journal knows of it" for name, call in sorted(ran - started))


def _loops(events: Sequence[Event], until: float) -> int:
    return sum(isinstance(read_body(event), LoopStarted) for event in events if event.at.unix_s <= until)


def _settlements(events: Sequence[Event]) -> Iterator[int]:
    for event in events:
        if event.is_command:
            continue
        if event.kind in TURN_ENDS:
            commands = event.body["commands"]
            assert isinstance(commands, list | tuple), "a list of seqs"
            yield from (int(str(seq)) for seq in commands)
        elif event.kind == "command_settled":
            yield int(str(event.body["command"]))


def _answered(events: Sequence[Event]) -> set[str]:
    """The keys of the messages that were settled."""
    done = set(_settlements(events))
    return {event.key for event in events if event.key is not None and event.kind == "message" and event.seq in done}


# --- takeovers ------------------------------------------------------------------------------------------------------


def takeovers(journals: Sequence[Journal], faults: Sequence[Fault]) -> Iterator[Takeover]:
    """The open turns that changed hands because of a fault. A conversation that was idle then is simply free."""
    by_incarnation = {fault.incarnation: fault for fault in faults}
    for journal in journals:
        owner: Claimed | None = None
        released_at: float | None = None
        turn: str | None = None
        for place, event in enumerate(journal.events):
            body = read_body(event)
            if event.kind == "turn_started":
                turn = event.turn
            elif event.kind in TURN_ENDS:
                turn = None
            elif isinstance(body, Released):
                released_at = event.at.unix_s
            elif isinstance(body, Claimed):
                fault = by_incarnation.get(owner.incarnation) if owner is not None else None
                if owner is not None and fault is not None and turn is not None and event.at.unix_s >= fault.at:
                    since = fault.at if released_at is None else released_at
                    yield Takeover(
                        fault.kind,
                        fault.at,
                        journal.conversation,
                        owner.node,
                        body.node,
                        event.epoch or 0,
                        event.at.unix_s - fault.at,
                        event.at.unix_s - max(since, fault.at),
                        _next_of_turn(journal.events[place + 1 :], turn, fault.at),
                    )
                owner, released_at = body, None


def _next_of_turn(events: Sequence[Event], turn: str, since: float) -> float | None:
    return next((event.at.unix_s - since for event in events if event.turn == turn), None)


# --- the file of side effects ---------------------------------------------------------------------------------------


def read_effects(lines: Iterable[str], journals: Sequence[Journal]) -> Iterator[Effect]:
    """The lines that tools have written, each before it did its work; its process is the owner of its epoch."""
    owners = {
        (journal.conversation, event.epoch): body.incarnation
        for journal in journals
        for event in journal.events
        if isinstance(body := read_body(event), Claimed)
    }
    for line in lines:
        shape = json.loads(line)
        name, _, call = shape["key"].partition("/")
        yield Effect(name, call, shape["key"], shape["epoch"], owners.get((name, shape["epoch"]), "nobody"), 0.0)
