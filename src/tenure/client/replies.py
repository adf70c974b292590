"""What a node answers, typed: replies, and refusals as the errors that the server had."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, final

from tenure import errors
from tenure.clock import Instant
from tenure.conversation import Status
from tenure.errors import Owner, TenureError
from tenure.lease import Epoch, IncarnationId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

    from tenure.journal import Event, JsonObject


class ProblemError(TenureError):
    """The server refused with a problem document that has no class of its own here."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("detail") or document.get("title") or document))
        self.document = dict(document)
        self.code = str(document.get("code", "unknown"))
        self.status = int(document.get("status", 0))


class UnreachableError(TenureError):
    """No node answered in time. What was asked may have taken effect; with its key it can be asked again."""

    def __init__(self, urls: Sequence[str], last: Exception) -> None:
        super().__init__(
            f"no node answered at {', '.join(urls)} ({type(last).__name__}); check the address, or wait and ask again"
        )


class RewoundError(TenureError):
    """The store lost what the cursor had seen (a restored backup, a failover): read the journal anew, from 0."""

    def __init__(self, conversation_id: str, last_seq: int, epoch: int) -> None:
        super().__init__(f"the journal of {conversation_id} was rewound to {last_seq}; read it anew, from 0")
        self.conversation_id = conversation_id
        self.last_seq = last_seq
        self.epoch = epoch


# --- replies --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as a node tells it. `owner` is null when nobody alive holds it; `raw` is the whole reply."""

    id: str
    user_id: str | None
    agent: str
    status: Status
    agent_status: str | None
    epoch: int
    owner: Owner | None
    last_seq: int
    title: str | None
    metadata: JsonObject
    version: int
    created_at: Instant
    updated_at: Instant
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@final
@dataclass(frozen=True, slots=True)
class Sent:
    """A command, durable at `seq`. `settled`: its effect stands in the journal; after a wait, `outcome` says how and
    `events` are those of its turn."""

    conversation_id: str
    key: str
    seq: int
    duplicate: bool
    settled: bool
    outcome: str | None = None
    events: tuple[Event, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class LoopInfo:
    """The agent loop of a conversation. `ready`: a living owner has started it. `here`: at the node that answered."""

    conversation_id: str
    status: Status
    epoch: int
    owner: Owner | None
    here: bool
    ready: bool
    failure: str | None = None


@final
@dataclass(frozen=True, slots=True)
class StartProgress:
    """How a start does. `step` and `since` are null unless somebody alive is starting it now; `error` is why the last
    try failed: step, reason, permanent, at."""

    conversation_id: str
    status: Status
    epoch: int
    owner: Owner | None
    step: str | None
    since: Instant | None
    failures: int
    retry_in_s: float | None
    error: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@final
@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node of the cluster. A negative `expires_in_s`: nobody renews it any more."""

    node: str
    incarnation: str
    address: str
    started_at: Instant
    expires_in_s: float
    owned: int
    capacity: int
    draining: bool


@final
@dataclass(frozen=True, slots=True)
class Delta:
    """Something said in passing; it may be lost and never stands in the journal."""

    body: JsonObject


def owner_of(shape: Mapping[str, Any] | None) -> Owner | None:
    if shape is None:
        return None
    return Owner(
        node=shape["node"],
        incarnation=IncarnationId(shape["incarnation"]),
        address=shape["address"],
        epoch=Epoch(shape["epoch"]),
        since=Instant.parse(shape["since"]),
        expires_in_s=shape["expires_in_s"],
    )


def conversation_of(shape: Mapping[str, Any]) -> Conversation:
    return Conversation(
        id=shape["id"],
        user_id=shape["user_id"],
        agent=shape["agent"],
        status=Status(shape["status"]),
        agent_status=shape["agent_status"],
        epoch=shape["epoch"],
        owner=owner_of(shape["owner"]),
        last_seq=shape["last_seq"],
        title=shape["title"],
        metadata=shape["metadata"],
        version=shape["version"],
        created_at=Instant.parse(shape["created_at"]),
        updated_at=Instant.parse(shape["updated_at"]),
        raw=shape,
    )


def loop_info_of(shape: Mapping[str, Any], *, ready: bool) -> LoopInfo:
    return LoopInfo(
        shape["conversation_id"],
        Status(shape["status"]),
        shape["epoch"],
        owner_of(shape["owner"]),
        shape["here"],
        ready,
        shape.get("failure"),
    )


def start_progress_of(shape: Mapping[str, Any]) -> StartProgress:
    return StartProgress(
        shape["conversation_id"],
        Status(shape["status"]),
        shape["epoch"],
        owner_of(shape["owner"]),
        shape["step"],
        None if shape["since"] is None else Instant.parse(shape["since"]),
        shape["failures"],
        shape["retry_in_s"],
        shape["error"],
        raw=shape,
    )


def node_of(shape: Mapping[str, Any]) -> NodeInfo:
    return NodeInfo(
        node=shape["node"],
        incarnation=shape["incarnation"],
        address=shape["address"],
        started_at=Instant.parse(shape["started_at"]),
        expires_in_s=shape["expires_in_s"],
        owned=shape["owned"],
        capacity=shape["capacity"],
        draining=shape["draining"],
    )


def error_of(document: Mapping[str, Any], conversation_id: str) -> TenureError:
    """The error of a problem document: the class of :mod:`tenure.errors` that the server had, or :class:`ProblemError`."""
    detail = str(document.get("detail", ""))
    owner = owner_of(cast("Mapping[str, Any] | None", document.get("owner")))
    match document.get("code"):
        case "invalid-input":
            return errors.InvalidInputError(document["field"], document["limit"], document["remedy"])
        case "unknown-conversation":
            return errors.UnknownConversationError(conversation_id)
        case "conversation-deleted":
            return errors.ConversationDeletedError(conversation_id)
        case "conversation-exists":
            return errors.ConversationExistsError(conversation_id)
        case "conversation-stopped" | "turn-open" | "key-reused" | "too-many-unsettled" as reason:
            return errors.CommandRefusedError(conversation_id, reason, detail)
        case "conversation-owned-elsewhere" if owner is not None:
            return errors.ConversationOwnedElsewhereError(conversation_id, owner)
        case "provisioning-failed":
            permanent = bool(document["permanent"])
            return errors.ProvisioningError(conversation_id, document["step"], document["reason"], permanent=permanent)
        case "node-unavailable":
            return errors.NodeUnavailableError(detail, tuple(document.get("elsewhere", ())))
        case "store-unavailable":
            return errors.StoreUnavailableError(detail)
        case _:
            return ProblemError(document)


def refusal(answer: httpx.Response, of: str) -> TenureError:
    try:
        document = answer.json()
        if not isinstance(document, dict):
            raise TypeError
    except (ValueError, TypeError):
        document = {"title": answer.reason_phrase, "status": answer.status_code}
    problem = ProblemError(cast("dict[str, Any]", document))
    error = error_of(problem.document, of)
    error.__cause__ = problem if error is not problem else None
    return problem if isinstance(error, ProblemError) else error


def may_pass(error: TenureError) -> bool:
    """Whether it may be gone in a moment, or at another node."""
    if isinstance(error, ProblemError):
        return error.status in (502, 503, 504)
    return isinstance(error, errors.StoreUnavailableError | errors.NodeUnavailableError)
