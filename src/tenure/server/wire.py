"""What travels: the shapes of requests and replies."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict, final

from fastapi import Header, Path, Query, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints

from tenure.errors import InvalidInputError, Owner
from tenure.journal import Event, Json, JsonObject, Policy, canonical

if TYPE_CHECKING:
    from tenure.conversation import Record, Status


@final
@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of the server, in bytes and seconds."""

    body_bytes: int = 1_310_720
    """A request's body; above the store's limit for one event, so that a message of that size passes."""
    recording_bytes: int = 64 << 20
    """A recording that comes in, or that is forked."""
    page_bytes: int = 4 << 20
    """A page of events ends when it is larger than this."""
    start_wait_s: float = 15.0
    comment_s: float = 15.0
    """A silent stream says that it lives."""
    poll_s: float = 1.5
    """Streams look this often also when no hint comes."""
    slow_s: float = 30.0
    """A reader that takes nothing for this long is cut; it resumes by its cursor."""
    streams: int = 10_000
    """Streams and waiting requests at the same time."""
    exports: int = 16
    """Exports at the same time: each holds up to a hundred events, and reads on while it is read."""
    imports: int = 4
    """Imports, replays and forks at the same time: each holds its whole recording until the copy is written."""


# --- strings --------------------------------------------------------------------------------------------------------

_PLAIN = r"^[^\x00-\x1f\x7f]*$"

type PlainText = Annotated[str, StringConstraints(max_length=500, pattern=_PLAIN)]
type Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PLAIN)]
type ConversationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
type Cursor = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,15}(:[0-9]{1,15})?$")]

type InPath = Annotated[ConversationId, Path(alias="id", description="The conversation's id.")]
type NodeInPath = Annotated[Name, Path(description="The node's name.")]
type ForUser = Annotated[
    Name | None, Query(alias="user_id", description="Act for this user; without it, for the operator.")
]
type KeyHeader = Annotated[
    Name | None, Header(alias="Idempotency-Key", description="The same key is the same command, on every node.")
]
type WaitS = Annotated[
    float | None,
    Query(ge=0, le=60, allow_inf_nan=False, description="Wait so many seconds for the command to be settled."),
]
type PageLimit = Annotated[int, Query(ge=1, le=1000)]

METADATA_BYTES = 16_384


def _small(metadata: JsonObject) -> JsonObject:
    if len(canonical(metadata)) > METADATA_BYTES:
        raise ValueError(f"at most {METADATA_BYTES} bytes of JSON")
    return metadata


type JsonBody = dict[str, Any]
type Metadata = Annotated[JsonBody, AfterValidator(_small)]


# --- requests -------------------------------------------------------------------------------------------------------


class Empty(BaseModel):
    """``{}`` or no body at all. No body has unknown fields, and nothing in it is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Body(Empty):
    """A body about a conversation; `user_id` here is as good as in the query."""

    user_id: Name | None = None


class Keyed(Body):
    """A command's body; the key may also stand in the header ``Idempotency-Key``."""

    key: Name | None = None


class NewMessage(Keyed):
    """A message: `text`, or structured `content`, or both."""

    text: Annotated[str, StringConstraints(min_length=1)] | None = None
    content: Any = None

    def command_body(self) -> JsonObject:
        """The body of the ``message`` event: always a text, the content if it was given.

        :raises InvalidInputError: neither was given.
        """
        if self.content is None:
            if self.text is None:
                raise InvalidInputError("text", "a message needs text or content", "give one of them")
            return {"text": self.text}
        return {"text": self.text if self.text is not None else text_of(self.content), "content": self.content}


def text_of(content: Json) -> str:
    """What of structured content can be read as text: itself, its ``text``, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text", "")
        return text if isinstance(text, str) else ""
    if isinstance(content, list):
        parts = [text_of(part) for part in content if isinstance(part, str | dict)]
        return "\n".join(part for part in parts if part)
    return ""


def _or_text(message: object) -> object:
    return {"text": message} if isinstance(message, str) else message


class Replay(Empty):
    """A recorded stream: `events` as ``GET …/events`` gives them, all from seq 1 on; or the `lines` of an export.

    `conversation` is what is known of the original beside its events: ``id``, ``agent``, ``title``, ``metadata`` …
    """

    events: list[JsonBody] | None = None
    lines: list[JsonBody] | None = None
    conversation: JsonBody | None = None


class NewConversation(Keyed):
    """A conversation, and maybe its first message. Without an id one is made; from the key, if there is one.

    With `replay`, a recorded stream becomes its past; with `rerun` as well, what that left unanswered is sent again.
    """

    replay: Replay | None = None
    rerun: bool = False

    id: ConversationId | None = None
    agent: Name | None = None
    settings: JsonBody | None = None
    message: Annotated[NewMessage, BeforeValidator(_or_text, json_schema_input_type=str | NewMessage)] | None = None
    title: PlainText | None = None
    metadata: Metadata | None = None
    policy: Annotated[Policy | None, Field(strict=False)] = None


class Fork(Keyed):
    """`at`: the seq up to which the past is copied; the head without it."""

    at: int | None = None
    id: ConversationId | None = None
    agent: Name | None = None
    title: PlainText | None = None
    metadata: Metadata | None = None
    rerun: bool = False


class Changes(Body):
    """What PATCH changes; what is not named stays. `metadata` and `settings` are replaced as a whole."""

    title: PlainText | None = None
    metadata: Metadata | None = None
    settings: JsonBody | None = None
    version: Annotated[int, Field(ge=1)] | None = None

    def named(self) -> JsonObject:
        """Only what was named.

        :raises InvalidInputError: nothing was, or null where a value must stand.
        """
        changes = {
            name: getattr(self, name) for name in ("title", "metadata", "settings") if name in self.model_fields_set
        }
        if not changes:
            raise InvalidInputError("body", "names nothing to change", "give title, metadata or settings")
        for name, value in changes.items():
            if value is None and name != "title":
                raise InvalidInputError(name, "must be an object, not null", "send {} to clear it")
        return changes


class NewSecret(Body):
    """A secret's value, for a vault; no reply ever holds it."""

    value: Annotated[SecretStr, Field(min_length=1, max_length=65_536)]


class Nothing(Keyed):
    """A command that needs no words; ``{}`` or no body at all."""


class Stop(Keyed):
    """`queue`: also refuse the messages that wait."""

    queue: bool = False


class Takeover(Body):
    """`epoch`: take over from the owner of exactly this epoch; without it, from whoever owns it when the request arrives."""

    epoch: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class Answer(Keyed):
    """The answer to what a turn waits for; `ask` names the question if there could be a doubt."""

    ask: Name | None = None
    answer: Any = None
    text: str | None = None

    def command_body(self) -> JsonObject:
        """The body of the ``answer`` command.

        :raises InvalidInputError: there is no answer in it, or two.
        """
        given = self.model_fields_set & {"answer", "text"}
        if len(given) != 1:
            raise InvalidInputError("answer", "exactly one of answer and text is needed", "give one of them")
        body: dict[str, Json] = {name: getattr(self, name) for name in given}
        return body if self.ask is None else {"ask": self.ask, **body}


# --- replies --------------------------------------------------------------------------------------------------------


class OwnerShape(TypedDict):
    """Who holds a conversation, and for how long its node's lease still runs."""

    node: str
    incarnation: str
    address: str
    epoch: int
    since: str
    expires_in_s: float | None


class CredentialShape(TypedDict):
    """A credential that has no value: which, where it was looked for, why not, and what to do."""

    name: str
    reference: str
    problem: str
    remedy: str


class FailureShape(TypedDict):
    """Why it does not go on. `permanent`: nobody tries again before the next command; else with back-off."""

    at: str
    step: str
    reason: str
    permanent: bool
    credential: CredentialShape | None


class ConversationShape(TypedDict):
    """A conversation, as any node tells it. `owner` is null when nobody alive holds it."""

    id: str
    user_id: str | None
    agent: str
    status: str
    agent_status: str | None
    epoch: int
    owner: OwnerShape | None
    last_seq: int
    title: str | None
    metadata: JsonBody
    policy: str
    version: int
    unsettled: int
    retry_in_s: float | None
    created_at: str
    updated_at: str
    settings: NotRequired[JsonBody]
    failure: NotRequired[FailureShape | None]
    seq: NotRequired[int]
    duplicate: NotRequired[bool]
    vault: NotRequired[list[str]]


class ConversationsShape(TypedDict):
    """A page, in order of creation. It may be short; `next_cursor` is null at the end."""

    conversations: list[ConversationShape]
    next_cursor: str | None


class EventShape(TypedDict):
    """One entry of a journal. `epoch` is null for what no owner wrote; commands have `key` and `delivery`."""

    seq: int
    epoch: int | None
    kind: str
    at: str
    turn: str | None
    body: JsonBody
    opens: NotRequired[list[str]]
    closes: NotRequired[list[str]]
    key: NotRequired[str]
    delivery: NotRequired[str]


class EventsShape(TypedDict):
    """A page of a journal. `next_after` goes into the next request, also when there is nothing new yet."""

    events: list[EventShape]
    last_seq: int
    next_after: int


class RefusedWriteShape(TypedDict):
    """A write that came too late: refused, nothing was written."""

    at: str
    operation: str


class TenureSpanShape(TypedDict):
    """One node's hold on a conversation: `since` the claim, `live_at` (the loop ran) `until` release or loss (null: now).

    `why` it was claimed: start, wanted, takeover, forced. How it `ended`: idle, drained, stopped, failed, released; or, not
    released: died, frozen, expired, gave_up, forced, reclaimed, lost.
    """

    epoch: int
    seq: int
    node: str
    incarnation: str
    address: str
    why: str
    since: str
    live_at: str | None
    until: str | None
    ended: str | None
    failure: str | None
    refused: list[RefusedWriteShape]


class TimelineShape(TypedDict):
    """Who owned it, oldest first. `owner`: who holds it now, if somebody alive does. `next_after` is null at the end."""

    tenures: list[TenureSpanShape]
    owner: OwnerShape | None
    last_seq: int
    next_after: int | None


class AcceptedShape(TypedDict):
    """Durable, at `seq`. `settled`: its effect stands in the journal."""

    seq: int
    duplicate: bool
    settled: bool


class SettledShape(AcceptedShape):
    """`events` are those of the turn that settled the command (the last ones of a long turn, then `truncated`)."""

    outcome: str
    events: list[EventShape]
    truncated: NotRequired[bool]


class LoopInfoShape(TypedDict):
    """The agent loop of a conversation. `here`: this node holds it. `failure`: why the last try did not succeed."""

    conversation_id: str
    status: str
    epoch: int
    owner: OwnerShape | None
    here: bool
    failure: NotRequired[str]


class StartErrorShape(TypedDict):
    """Why a start failed: at which step, in the provider's own words."""

    step: str
    reason: str
    permanent: bool
    at: str


class StartShape(TypedDict):
    """How a start does. `step` and `since` are null unless somebody alive is starting it now."""

    conversation_id: str
    status: str
    epoch: int
    owner: OwnerShape | None
    step: str | None
    since: str | None
    failures: int
    retry_in_s: float | None
    error: StartErrorShape | None


class TakeoverShape(TypedDict):
    """A claim after an owner that did not release. `previous_node` is null if its name was not known any more; `death` is how
    that owner ended (``exited``, ``expired``, ``retired``), null if it lives or nobody knows."""

    at: str
    conversation_id: str
    epoch: int
    node: str
    previous_node: str | None
    previous_incarnation: str
    forced: bool
    death: str | None


class TurnsShape(TypedDict):
    """Takeovers, ends of turns, and how long turns took from the accepted message to the end; null without turns."""

    takeovers: int
    completed: int
    failed: int
    interrupted: int
    p50_s: float | None
    p95_s: float | None
    max_s: float | None


class MinuteShape(TurnsShape):
    """The minute that begins at `at`."""

    at: str


class ActivityShape(TypedDict):
    """The last hour: takeovers, newest first (at most 100), and its 60 minutes, oldest first; `hour` is their sum."""

    at: str
    takeovers: list[TakeoverShape]
    hour: TurnsShape
    minutes: list[MinuteShape]


class NodeShape(TypedDict):
    """An incarnation that is not buried. A negative `expires_in_s`: nobody renews it any more. `here`: it answers this
    request. `lease_age_s`: since its last renewal, by this node's ttl."""

    node: str
    incarnation: str
    address: str
    here: bool
    started_at: str
    expires_in_s: float
    lease_age_s: float
    owned: int
    capacity: int
    draining: bool
    agents: list[str]


class SecretShape(TypedDict):
    """A secret of a vault, without its value. `key` is the id of the key that reads it, if this node has it."""

    name: str
    version: int
    key: str | None


class SecretsShape(TypedDict):
    """What a vault holds, by name."""

    secrets: list[SecretShape]


class SecretPlaceShape(TypedDict):
    """Where a secret is kept."""

    conversation: str
    name: str


class RotatedShape(TypedDict):
    """What a page of a rotation did, under the key of that id. `next_cursor` is null at the end."""

    key: str
    conversations: int
    secrets: int
    rewritten: int
    unreadable: list[SecretPlaceShape]
    next_cursor: str | None


class DrainShape(TypedDict):
    """How many incarnations of that name were asked to drain."""

    node: str
    asked: int


class HealthShape(TypedDict):
    """The process answers; or it is ready for work."""

    status: str


def conversation_shape(record: Record, status: Status, owner: Owner | None) -> dict[str, Json]:
    """The shape of a conversation in lists; one that is asked for alone also shows its settings."""
    return {
        "id": record.conversation,
        "user_id": record.user_id,
        "agent": record.agent,
        "status": status.value,
        "agent_status": record.agent_status or None,
        "epoch": record.epoch,
        "owner": owner and owner.as_json(),
        "last_seq": record.head,
        "title": record.title,
        "metadata": record.metadata,
        "policy": record.policy.value,
        "version": record.version,
        "unsettled": record.unsettled,
        "retry_in_s": None if record.retry_in_s is None else round(record.retry_in_s, 3),
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def event_text(event: Event) -> str:
    """An event as one line of JSON."""
    return json.dumps(event.as_json(), ensure_ascii=False, separators=(",", ":"))


def json_reply(status: int, parts: Json, events: list[str] | None = None) -> Response:
    """A JSON reply; `events` are texts already, so that a large journal is not encoded twice."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    if events is not None:
        text = f'{text[:-1]},"events":[{",".join(events)}]}}'
    return Response(text.encode(), status, media_type="application/json")


def derived_id(user: str | None, key: str | None) -> str:
    """A retried creation, on whichever node, makes the same conversation (rule 18)."""
    if key is None:
        return f"c-{secrets.token_hex(16)}"
    return f"c-{hashlib.sha256(canonical([user, key]).encode()).hexdigest()[:32]}"


def one_reply(status: int, shape: dict[str, Json]) -> Response:
    """One conversation, with its version as the entity tag."""
    reply = json_reply(status, shape)
    reply.headers["ETag"] = f'"{shape["version"]}"'
    return reply
