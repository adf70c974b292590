"""Every error that Tenure raises on purpose.

::

    TenureError
    ├── ConversationOwnedElsewhereError   another node owns it; carries the owner; nothing was changed
    ├── ProvisioningError                 the start failed after the claim; released; any node may try again
    ├── NodeUnavailableError              this node is draining, full or not started; another one can
    ├── OwnershipLostError                the tenure is over: everything of it is refused
    ├── ConversationError                 about one conversation
    │   ├── UnknownConversationError      no such conversation (or it is another user's)
    │   ├── ConversationDeletedError      it existed; its id is never used again
    │   ├── ConversationExistsError       the id is taken by other settings or another user
    │   └── CommandRefusedError           the command was not accepted and changed nothing; carries a reason
    ├── InvalidInputError                 names the field, the limit and the remedy
    ├── CredentialError                   a reference has no value here, or may not be asked for; never holds a value
    ├── JournalError                      a journal that breaks the rules of its kind
    ├── StoreError
    │   ├── StoreUnavailableError         no answer in time; the outcome is unknown, repeat unchanged
    │   └── StoreUnfitError               refused at opening: the store cannot keep its contract
    └── LoopError
        ├── CallInterrupted               an earlier owner's call has an unknown outcome (also a name of the agent's API)
        ├── CallFailed                    a recorded call had raised; its error again, on replay
        └── TurnDivergedError             the agent no longer makes the same calls in the same order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from tenure.clock import Instant
    from tenure.journal import Json, JsonObject
    from tenure.lease import Epoch, IncarnationId


@final
@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a conversation, as every refusal, list and screen tells it. `expires_in_s` is what is left of the
    node's lease by the store's clock; negative or null when nobody renewed it."""

    node: str
    incarnation: IncarnationId
    address: str
    epoch: Epoch
    since: Instant
    expires_in_s: float | None = None

    def as_json(self) -> dict[str, Json]:
        """The shape of ``owner`` in every reply."""
        return {
            "node": self.node,
            "incarnation": self.incarnation,
            "address": self.address,
            "epoch": self.epoch,
            "since": self.since.isoformat(),
            "expires_in_s": None if self.expires_in_s is None else round(self.expires_in_s, 3),
        }


class TenureError(Exception):
    """The root: whatever Tenure raises on purpose."""


class ConversationOwnedElsewhereError(TenureError):
    """Another node owns the conversation. Nothing was changed: send to it through any node, or take over."""

    def __init__(self, conversation_id: str, owner: Owner) -> None:
        left = "" if owner.expires_in_s is None else f", its lease expires in {max(0.0, owner.expires_in_s):.1f} s"
        super().__init__(
            f"conversation {conversation_id} is owned by node {owner.node} ({owner.address}) at epoch {owner.epoch}"
            f"{left}; send messages through any node, or take it over by force"
        )
        self.conversation_id = conversation_id
        self.owner = owner


class ProvisioningError(TenureError):
    """The start failed after the claim, at `step`; the claim is released and any node may try again.

    `permanent` means that the provider says that trying again as it is will not help. `credential` says which one had
    no value, if that was the reason: ``{name, reference, problem, remedy}``.
    """

    def __init__(
        self,
        conversation_id: str,
        step: str,
        reason: str,
        *,
        permanent: bool = False,
        credential: JsonObject | None = None,
    ) -> None:
        again = "mend the cause, then start it again" if permanent else "any node tries again after a back-off"
        super().__init__(f"conversation {conversation_id} could not be started: {step}: {reason}; {again}")
        self.conversation_id = conversation_id
        self.step = step
        self.reason = reason
        self.permanent = permanent
        self.credential = credential


class NodeUnavailableError(TenureError):
    """This node cannot take the conversation now; `elsewhere` lists addresses of nodes that may."""

    def __init__(self, reason: str, elsewhere: tuple[str, ...] = ()) -> None:
        hint = f"; try {', '.join(elsewhere)}" if elsewhere else "; try another node"
        super().__init__(f"{reason}{hint}")
        self.reason = reason
        self.elsewhere = elsewhere


class OwnershipLostError(TenureError):
    """The tenure is over: another epoch was claimed, or the node gave up its lease. Stop; nothing is accepted."""

    def __init__(self, conversation_id: str, epoch: int, why: str) -> None:
        super().__init__(f"conversation {conversation_id} is no longer held at epoch {epoch}: {why}; stop this work")
        self.conversation_id = conversation_id
        self.epoch = epoch
        self.why = why


class ConversationError(TenureError):
    """About one conversation."""

    def __init__(self, conversation_id: str, message: str) -> None:
        super().__init__(message)
        self.conversation_id = conversation_id


class UnknownConversationError(ConversationError):
    """No such conversation, or it belongs to another user: the two are not told apart."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id, f"conversation {conversation_id} is not known; create it first")


class ConversationDeletedError(ConversationError):
    """The conversation was deleted; its id is never used again."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id, f"conversation {conversation_id} was deleted; use a new id")


class ConversationExistsError(ConversationError):
    """The id is taken. It does not say by whom."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(
            conversation_id,
            f"conversation {conversation_id} exists with other settings or another user; choose another id",
        )


class CommandRefusedError(ConversationError):
    """The command was not accepted and changed nothing. `reason` is the slug of the problem."""

    def __init__(self, conversation_id: str, reason: str, message: str) -> None:
        super().__init__(conversation_id, message)
        self.reason = reason


class InvalidInputError(TenureError):
    """Bad input, refused before anything changed: names the field, the limit and the remedy."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class CredentialError(TenureError):
    """A reference has no value here, may not be asked for, or a secret cannot be sealed. Names the reference and the
    remedy, never a value. `everywhere`: no other node has it either."""

    def __init__(self, reference: str, problem: str, remedy: str, *, everywhere: bool = False) -> None:
        super().__init__(f"{reference}: {problem}; {remedy}")
        self.reference = reference
        self.problem = problem
        self.remedy = remedy
        self.everywhere = everywhere


class JournalError(TenureError):
    """A journal, or a batch for it, that breaks the rules of its kind (two open turns, a second outcome …)."""


class StoreError(TenureError):
    """About the store."""


class StoreUnavailableError(StoreError):
    """The store did not answer in time. The outcome is unknown: repeat the same request unchanged."""


class StoreUnfitError(StoreError):
    """Refused at opening: this store cannot keep its contract here. The message says what to change."""


class LoopError(TenureError):
    """About an agent loop."""


class CallInterrupted(LoopError):
    """An earlier owner was lost during this call; whether it took effect is unknown. It was not run again."""

    def __init__(self, call: str, name: str) -> None:
        super().__init__(f"call {name} ({call}) was cut by the loss of its owner; its outcome is unknown")
        self.call = call
        self.name = name


class CallFailed(LoopError):
    """A call of an earlier attempt of this turn had raised; raised again instead of running the call again."""

    def __init__(self, call: str, name: str, error: JsonObject) -> None:
        super().__init__(f"call {name} ({call}) failed: {error.get('type', 'error')}: {error.get('message', '')}")
        self.call = call
        self.name = name
        self.error = error


class TurnDivergedError(LoopError):
    """On resumption the agent asked for something else than the journal holds at that place.

    Make the agent deterministic between calls: take times, random numbers and model replies from ``turn.call``.
    """

    def __init__(self, turn: str, expected: str, got: str) -> None:
        super().__init__(
            f"turn {turn} was resumed, but the agent did {got} where the journal has {expected}; "
            "agents must make the same calls in the same order: put times, chance and model replies into turn.call"
        )
        self.turn = turn
        self.expected = expected
        self.got = got
