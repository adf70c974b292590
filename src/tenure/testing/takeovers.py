"""How long work waited for its next owner, in a recorded history.

From the first entry that says that the owner is dead, or from the first attempt to give its conversation work if that came
later, to the grant that names it as the previous one. Work whose beginning nobody recorded tells no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.conversation import Fold, fold
from tenure.errors import JournalError
from tenure.journal import Claimed
from tenure.testing.history import Attempt, Burial, Death, Grant, Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tenure.testing.history import History

EVER = float("-inf")


def takeovers(history: History) -> Iterator[tuple[Grant, float]]:
    """Each grant over a dead owner that left work, and how many seconds that had waited."""
    seen = _Seen.of(history)
    for grant in history.of(Grant):
        died, journal = seen.died.get(grant.previous or ""), seen.journals.get(grant.conversation)
        if died is None or journal is None:
            continue
        since = seen.work_since(journal, grant.epoch)
        if since is not None:
            yield grant, grant.at - max(died, since)


@final
@dataclass(frozen=True, slots=True)
class _Seen:
    """When each incarnation was first known to be dead, and each key first asked for."""

    died: dict[str, float]
    asked: dict[tuple[str, str], float]
    journals: dict[str, Journal]

    @classmethod
    def of(cls, history: History) -> _Seen:
        died: dict[str, float] = {}
        for one in (*history.of(Death), *history.of(Burial)):
            died[one.incarnation] = min(one.at, died.get(one.incarnation, one.at))
        asked: dict[tuple[str, str], float] = {}
        for attempt in history.of(Attempt):
            key = (attempt.conversation, attempt.key)
            asked[key] = min(attempt.started, asked.get(key, attempt.started))
        return cls(died, asked, {journal.conversation: journal for journal in history.of(Journal)})

    def work_since(self, journal: Journal, epoch: int) -> float | None:
        """Since when there was work that this epoch's claim found: an open turn began before its owner died."""
        state = _found(journal, epoch)
        if state is None or not state.runnable:
            return None
        if state.turn is not None and not state.turn.waiting:
            return EVER
        times = (self.asked.get((journal.conversation, one.key or "")) for one in state.pending.values())
        return min((time for time in times if time is not None), default=None)


def _found(journal: Journal, epoch: int) -> Fold | None:
    """The conversation as the claim of this epoch found it."""
    claim = next((e for e in journal.events if e.kind == Claimed.kind and e.epoch == epoch), None)
    if claim is None:
        return None
    try:
        return fold(Fold(), (event for event in journal.events if event.seq < claim.seq))
    except (JournalError, ValueError):
        return None  # a journal that is broken is said by the checker
