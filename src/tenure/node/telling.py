"""What a tenure tells of itself: the facts that follow from what it journals and reads.

Turns and calls are told from the events that were stored, in one place, so that they are counted alike for every agent loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never, final

from tenure import facts
from tenure.abc import Accepted, Deleted, Duplicate, KeyReused, Refused, TooLarge, Unknown
from tenure.errors import StoreError
from tenure.journal import CORE_COMMANDS, TURN_ENDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from tenure.abc import Claim, Submit, Submitted
    from tenure.clock import Clock, Deadline, Instant
    from tenure.conversation import Fold
    from tenure.facts import Facts
    from tenure.journal import Draft, Event
    from tenure.lease import Lease

CALL_ENDS = {"call_finished": "finished", "call_interrupted": "interrupted"}
NAME_CHARS = 200


def known_kind(kind: str) -> str:
    """The kind of a command as metrics may name it: those of loops are one, or a client could make series without end."""
    return kind if kind in CORE_COMMANDS else "other"


def refusal_of(answer: Submitted) -> str:
    """Why a command was not accepted, as a slug; empty if it was."""
    match answer:
        case Accepted() | Duplicate():
            return ""
        case Refused(reason=reason):
            return reason
        case KeyReused():
            return "key-reused"
        case Deleted():
            return "conversation-deleted"
        case Unknown():
            return "unknown-conversation"
        case TooLarge():
            return "too-large"
        case _:
            assert_never(answer)


async def told_of(told: Facts, request: Submit, answering: Awaitable[Submitted]) -> Submitted:
    """What becomes of a command on this node: each one received is accepted or refused, whatever happens meanwhile."""
    if request.command is None:
        return await answering
    kind = known_kind(request.command.kind)
    told.tell(facts.Received(request.conversation, kind))
    refused = "cancelled"
    try:
        answer = await answering
        refused = refusal_of(answer)
    except StoreError:
        refused = "unavailable"
        raise
    finally:
        if refused:
            told.tell(facts.Refused(request.conversation, kind, refused))
    if isinstance(answer, Accepted | Duplicate):
        told.tell(facts.Accepted(request.conversation, kind, answer.seq, isinstance(answer, Duplicate)))
    return answer


@final
class Telling:
    """One tenure's facts, with the times that they need. Costs a look at each event's kind."""

    def __init__(self, told: Facts, clock: Clock, lease: Lease) -> None:
        self._facts = told
        self._clock = clock
        self._conversation = lease.conversation
        self._epoch = lease.epoch
        self._began = clock.boottime()
        self._takeover = False
        self._turn: tuple[str, Deadline] | None = None
        self._calls: dict[str, Deadline] = {}

    def claimed(self, claim: Claim, began: Deadline, *, takeover: bool) -> None:
        """The claim was granted; `began` is when this node set out for it."""
        self._began, self._takeover = began, takeover
        death = None if claim.death is None else claim.death.value
        took_s = self._since(began)
        self._facts.tell(facts.Claimed(self._conversation, self._epoch, claim.why, death, took_s))

    def _since(self, began: Deadline) -> float:
        """Seconds since then; none if the boot clock was stepped back meanwhile, as a debugger or a checkpoint does."""
        return max(0.0, self._clock.boottime() - began)

    def claim_read(self, claimed: Event) -> None:
        """Our own claim was read in the journal: a takeover if it names an owner that did not release."""
        said = claimed.body
        if said.get("previous") is not None:
            death = None if said.get("death") is None else str(said["death"])
            previous, node, forced = str(said["previous"]), str(said.get("node")), bool(said.get("forced"))
            at_s = claimed.at.unix_s
            self._facts.tell(facts.TakenOver(self._conversation, self._epoch, node, previous, at_s, forced, death))

    def provisioning(self) -> None:
        """The runtime is looked for."""
        self._facts.tell(facts.Provisioning(self._conversation, self._epoch))

    def step(self, step: str) -> None:
        """The start has come to this step."""
        self._facts.tell(facts.StepReached(self._conversation, self._epoch, step))

    def provisioned(self, outcome: str, began: Deadline) -> None:
        """The runtime is there and configured."""
        took_s = self._since(began)
        self._facts.tell(facts.Provisioned(self._conversation, self._epoch, outcome, took_s))

    def live(self) -> None:
        """The loop runs."""
        took_s = self._since(self._began)
        self._facts.tell(facts.Live(self._conversation, self._epoch, took_s, self._takeover))

    def start_failed(self, step: str, reason: str, *, permanent: bool) -> None:
        """The start did not reach a live loop; the claim is released."""
        self._facts.tell(facts.StartFailed(self._conversation, self._epoch, step, reason, permanent))

    def take_up(self, turn: str, attempt: int, commands: tuple[int, ...], earlier: str | None = None) -> None:
        """A turn is about to be journaled."""
        self._facts.tell(facts.TurnTaken(self._conversation, self._epoch, turn, attempt, commands, earlier))

    def read(self, events: Iterable[Event], fold: Fold) -> None:
        """Events were read that others wrote, and `fold` stands behind them."""
        for event in events:
            if event.delivery is not None and event.seq in fold.pending:
                lag_s = max(0.0, self._clock.now().unix_s - event.at.unix_s)
                self._facts.tell(facts.Read(self._conversation, known_kind(event.kind), lag_s))

    def journaled(self, drafts: Iterable[Draft]) -> None:
        """A batch of ours was stored."""
        for draft in drafts:
            kind = draft.kind
            if kind in ("turn_started", "turn_resumed"):
                self._begin_turn(draft)
            elif kind in TURN_ENDS:
                self._end_turn(draft)
            elif kind in ("call_started", "call_restarted"):
                self._begin_call(draft)
            elif kind in CALL_ENDS:
                self._end_call(draft)

    def _begin_turn(self, draft: Draft) -> None:
        turn, attempt = draft.turn or "", draft.body.get("attempt", 1)
        if self._turn is not None and self._turn[0] == turn:
            return  # it had waited for an answer
        self._turn = (turn, self._clock.boottime())
        self._facts.tell(
            facts.TurnBegun(self._conversation, self._epoch, turn, attempt if isinstance(attempt, int) else 1)
        )

    def _end_turn(self, draft: Draft) -> None:
        begun, self._turn = self._turn, None
        took_s = None if begun is None else self._since(begun[1])
        outcome = draft.kind.removeprefix("turn_")
        self._facts.tell(facts.TurnEnded(self._conversation, self._epoch, draft.turn or "", outcome, took_s))

    def answered(self, before: Fold, end: Draft, at: Instant) -> None:
        """A turn's end was stored at this time; `before` still has its commands."""
        first = before.pending.get(before.turn.commands[0]) if before.turn is not None else None
        if first is not None:
            took_s, outcome = max(0.0, at.unix_s - first.at.unix_s), end.kind.removeprefix("turn_")
            told = facts.Answered(self._conversation, self._epoch, end.turn or "", outcome, took_s, at.unix_s)
            self._facts.tell(told)

    def _begin_call(self, draft: Draft) -> None:
        call = str(draft.body.get("call", ""))
        self._calls[call] = self._clock.boottime()
        name = str(draft.body.get("name", ""))[:NAME_CHARS]
        self._facts.tell(facts.CallBegun(self._conversation, self._epoch, draft.turn or "", call, name))

    def _end_call(self, draft: Draft) -> None:
        call = str(draft.body.get("call", ""))
        begun = self._calls.pop(call, None)
        took_s = None if begun is None else self._since(begun)
        outcome = "failed" if draft.body.get("error") is not None else CALL_ENDS[draft.kind]
        self._facts.tell(facts.CallEnded(self._conversation, self._epoch, draft.turn or "", call, outcome, took_s))
