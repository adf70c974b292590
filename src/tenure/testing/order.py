"""Per-conversation linearizability of claims and commands, in linear time (after sorting).

The journal is the order: an accepted command and a granted claim took effect where their event stands, and their answers
name the place. What an answer says is true of the conversation exactly while its journal is of certain lengths, the
operation's *window*: a duplicate of ``seq`` from there on; "it runs here" and "it is owned elsewhere" at an epoch from its
claim until it is released or claimed anew. An acceptance at ``seq`` and a grant take the journal from the length before it
to that length: whatever ended before saw at most the former, whatever begins after sees at least the latter.

A history is linearizable iff each operation can be given a length in its window such that who ended before another began
has not the greater one. That is so iff no operation must come after a length that its own window ends before: give each
the greatest beginning of a window among itself and those that ended before it began. This is the least that any
assignment can give, and it keeps the order, as what ended before a predecessor began ended before this one did. So the
check is complete, and it needs no search: the answers leave no choice of an order that a search would have to try.

Operations without an answer, and refusals, bind nothing. Times must be of one clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.journal import Claimed, Released
from tenure.testing.history import Attempt, Grant, Journal, Start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tenure.testing.history import History

FOR_EVER = float("inf")


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """What somebody asked, and what its answer says of the journal's length."""

    started: float
    ended: float
    least: float
    """Whatever begins after its end sees a journal of this length at least."""
    most: float
    """Whatever ended before its beginning saw a journal of this length at most."""
    shown: str


@final
@dataclass(frozen=True, slots=True)
class Disorder:
    """`late` ended before `early` began, and yet its effect came after what `early` was told."""

    conversation: str
    late: Operation
    early: Operation


def disorders(history: History) -> Iterator[Disorder]:
    """The first disorder of each conversation that has one."""
    for journal in history.of(Journal):
        found = _first(journal.conversation, list(_operations(history, journal)))
        if found is not None:
            yield found


def _first(conversation: str, operations: Sequence[Operation]) -> Disorder | None:
    ended = sorted(operations, key=lambda one: one.ended)
    done = 0
    latest: Operation | None = None
    for one in sorted(operations, key=lambda one: one.started):
        while done < len(ended) and ended[done].ended < one.started:
            if latest is None or ended[done].least > latest.least:
                latest = ended[done]
            done += 1
        if latest is not None and latest.least > one.most:
            return Disorder(conversation, latest, one)
    return None


def _operations(history: History, journal: Journal) -> Iterator[Operation]:
    tenures = _tenures(journal)
    for entry in history.entries:
        match entry:
            case Attempt(conversation=name, seq=int(seq)) if name == journal.conversation:
                if entry.outcome == "accepted":
                    yield Operation(entry.started, entry.ended, seq, seq - 1, repr(entry))
                elif entry.outcome == "duplicate":
                    yield Operation(entry.started, entry.ended, seq, FOR_EVER, repr(entry))
            case Start(conversation=name, epoch=int(epoch)) if name == journal.conversation and epoch in tenures:
                if entry.outcome in ("here", "elsewhere"):
                    yield Operation(entry.started, entry.ended, *tenures[epoch], repr(entry))
            case Grant(conversation=name, epoch=epoch) if name == journal.conversation and epoch in tenures:
                least, _ = tenures[epoch]
                yield Operation(entry.at, entry.at, least, least - 1, repr(entry))
            case _:
                pass


def _tenures(journal: Journal) -> dict[int, tuple[float, float]]:
    """By epoch the lengths of the journal at which it is in force."""
    found: dict[int, tuple[float, float]] = {}
    current: int | None = None
    for event in journal.events:
        if event.is_command or event.epoch is None or event.kind not in (Claimed.kind, Released.kind):
            continue
        if current is not None:
            found[current] = (found[current][0], event.seq - 1)
        current = None
        if event.kind == Claimed.kind:
            current = event.epoch
            found[current] = (event.seq, FOR_EVER)
    return found
