"""Journals for tests of the domain: written event by event, as a store would."""

from collections.abc import Sequence

from tenure.clock import Instant
from tenure.conversation import Fold, fold
from tenure.journal import CORE_COMMANDS, Claimed, Core, Created, Delivery, Draft, Event, Json, Policy, Seq, draft
from tenure.lease import Epoch

AT = Instant(0.0)


class Journal:
    """A conversation's events so far, claimed once if not told otherwise. Everything returns the journal itself."""

    def __init__(self, policy: Policy = Policy.ENQUEUE, *, claimed: bool = True) -> None:
        self.events: list[Event] = []
        self.epoch = 0
        self.unowned(Created("agent", "user", {"a": 1}, policy.value))
        if claimed:
            self.claim()

    @property
    def seq(self) -> int:
        return len(self.events)

    @property
    def fold(self) -> Fold:
        return fold(Fold(), self.events)

    def claim(self, why: str = "wanted") -> "Journal":
        self.epoch += 1
        return self.write(Claimed("n", "node", "", why))

    def write(self, *bodies: Core | Draft, turn: str | None = None) -> "Journal":
        """Events of the owner at the journal's epoch; `turn` is their turn."""
        for body in bodies:
            one = body if isinstance(body, Draft) else draft(body, turn)
            self.events.append(one.stored(self.seq + 1, Epoch(self.epoch), AT))
        return self

    def unowned(self, *bodies: Core) -> "Journal":
        """Events that no owner wrote."""
        self.events += [draft(b).stored(self.seq + 1 + i, None, AT) for i, b in enumerate(bodies)]
        return self

    def ask(self, kind: str = "message", delivery: Delivery | None = None, **body: Json) -> "Journal":
        """A command."""
        seq = self.seq + 1
        delivery = delivery or CORE_COMMANDS.get(kind, Delivery.NOW)
        self.events.append(Event(Seq(seq), None, kind, AT, body, key=f"k{seq}", delivery=delivery))
        return self

    def take(self, drafts: Sequence[Draft]) -> "Journal":
        return self.write(*drafts)
