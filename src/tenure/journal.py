"""What was said: events, commands, and the closed union of the core's kinds.

A conversation's journal is its ordered events, ``seq`` 1, 2, 3 … without gaps. A *command* is an event that a client
asked for: journaled by any node, not fenced (``epoch`` null), deduplicated by its key. Everything else is recorded by
the owner, fenced, or by the store itself inside a claim or a release.

Core kinds have one frozen dataclass each, in :data:`Core`. Other kinds belong to agent loops; they pass through
unchanged, as do fields that this version does not know: a newer node may have written them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NewType, cast, final

from tenure.clock import Instant
from tenure.lease import Epoch

type Json = bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None
type JsonObject = Mapping[str, Json]

Seq = NewType("Seq", int)
"""A place in a journal: 1, 2, 3 … without gaps; 0 is before the first."""


class Delivery(enum.StrEnum):
    """How a command reaches the loop."""

    TURN = "turn"
    """Waits, in order, for a turn."""
    NOW = "now"
    """Goes to the live loop at once, or is settled by the next owner from the fold."""


class Policy(enum.StrEnum):
    """What a message does that arrives during an open turn."""

    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"
    REJECT = "reject"
    STEER = "steer"


class Outcome(enum.StrEnum):
    """How a command was settled that is not settled by the end of a turn."""

    DONE = "done"
    REFUSED = "refused"
    ANSWERED = "answered"


CORE_COMMANDS: Mapping[str, Delivery] = {
    "message": Delivery.TURN,
    "start": Delivery.NOW,
    "stop": Delivery.NOW,
    "interrupt": Delivery.NOW,
    "answer": Delivery.NOW,
}
"""The commands that every conversation understands. A loop may declare more."""


def _encoder(*, sort_keys: bool) -> Callable[[Json], str]:
    """``json.dumps`` as it is set up once: setting it up for each small document takes three times as long as writing it."""
    whole = json.JSONEncoder(sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    make: Callable[..., Callable[[Json, int], Sequence[str]]] | None = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return whole.encode
    write = make(None, whole.default, json.encoder.encode_basestring, None, ":", ",", sort_keys, False, False)

    def encode(value: Json) -> str:
        try:
            return "".join(write(value, 0))
        except RecursionError:
            raise ValueError("nested too deeply for JSON, or contains itself") from None

    return encode


compact = _encoder(sort_keys=False)
"""JSON without blanks or NaN, its keys in the order that they have.

:raises ValueError: a float that JSON does not have. :raises TypeError: no JSON.
"""
_sorted = _encoder(sort_keys=True)


def canonical(value: Json) -> str:
    """The one text of a JSON value: sorted keys, no blanks, no NaN.

    :raises ValueError: a float that JSON does not have, or text that is not valid Unicode.
    """
    text = _sorted(value)
    text.encode()  # a lone surrogate is refused here, not in the middle of a transaction
    return text


def digest(value: Json) -> str:
    """What recognises a repeat: the SHA-256 of :func:`canonical`, in hexadecimal.

    :raises ValueError: as :func:`canonical`.
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@final
@dataclass(frozen=True, slots=True)
class Command:
    """What a client asks. Its key is the client's: the same key is the same command, on every node, for ever."""

    kind: str
    body: JsonObject
    key: str
    delivery: Delivery

    def digest(self) -> str:
        """Recognises a repeat of the same request under the same key."""
        return digest({"kind": self.kind, "body": self.body})


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a journal, as stored.

    ``epoch`` is null for commands and for what no owner wrote. ``opens`` and ``closes`` name calls whose outcome is
    at stake (G7), whatever the kind. ``key`` and ``delivery`` are set exactly for commands.
    """

    seq: Seq
    epoch: Epoch | None
    kind: str
    at: Instant
    body: JsonObject
    turn: str | None = None
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    key: str | None = None
    delivery: Delivery | None = None

    @property
    def is_command(self) -> bool:
        """Whether a client asked for it."""
        return self.delivery is not None

    @property
    def text(self) -> str:
        """A message's text; empty for other kinds."""
        text = self.body.get("text", "")
        return text if isinstance(text, str) else ""

    @property
    def content(self) -> Json:
        """A message's structured content, or its text if it has none."""
        return self.body.get("content", self.text)

    def as_json(self) -> dict[str, Json]:
        """The event's public shape: what APIs, exports and snapshots carry. Empty parts are left out."""
        shape: dict[str, Json] = {
            "seq": self.seq,
            "epoch": self.epoch,
            "kind": self.kind,
            "at": self.at.isoformat(),
            "turn": self.turn,
            "body": self.body,
        }
        if self.opens:
            shape["opens"] = list(self.opens)
        if self.closes:
            shape["closes"] = list(self.closes)
        if self.delivery is not None:
            shape["key"] = self.key
            shape["delivery"] = self.delivery.value
        return shape

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> Event:
        """Read :meth:`as_json` back.

        :raises KeyError: a part is missing. :raises ValueError: a part has no legal value.
        """
        delivery = shape.get("delivery")
        epoch = shape["epoch"]
        return cls(
            seq=Seq(int(shape["seq"])),
            epoch=None if epoch is None else Epoch(int(epoch)),
            kind=str(shape["kind"]),
            at=Instant.parse(shape["at"]),
            body=shape["body"],
            turn=shape.get("turn"),
            opens=tuple(shape.get("opens", ())),
            closes=tuple(shape.get("closes", ())),
            key=shape.get("key"),
            delivery=None if delivery is None else Delivery(delivery),
        )


@final
@dataclass(frozen=True, slots=True)
class Draft:
    """An event before it is journaled: the store adds seq, epoch and time.

    With `key` and `delivery` it is a *recorded* command: the past of a conversation that is rehydrated. It is
    journaled like any command (epoch null, the key stands for it), but nobody waits for it: `last_command`,
    `unsettled` and wanted stay as they are.
    """

    kind: str
    body: JsonObject = field(default_factory=dict[str, Json])
    turn: str | None = None
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    key: str | None = None
    delivery: Delivery | None = None

    def as_json(self) -> dict[str, Json]:
        """The part of a batch that its digest covers."""
        shape: dict[str, Json] = {
            "kind": self.kind,
            "body": self.body,
            "turn": self.turn,
            "opens": list(self.opens),
            "closes": list(self.closes),
        }
        if self.delivery is not None:
            shape |= {"key": self.key, "delivery": self.delivery.value}
        return shape

    def stored(self, seq: int, epoch: Epoch | None, at: Instant) -> Event:
        """The event that this draft becomes."""
        if self.delivery is None:
            return Event(Seq(seq), epoch, self.kind, at, self.body, self.turn, self.opens, self.closes)
        return Event(Seq(seq), None, self.kind, at, self.body, key=self.key, delivery=self.delivery)


# --- the core kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """The conversation exists; written by the store in the step that creates it."""

    kind: ClassVar[str] = "created"
    agent: str
    user_id: str | None = None
    settings: JsonObject = field(default_factory=dict[str, Json])
    policy: str = Policy.ENQUEUE


@dataclass(frozen=True, slots=True)
class Claimed:
    """A new owner; written by the store inside ``claim``. ``previous`` is the owner that did not release, if any, and
    ``death`` how that one ended (exited, expired, retired), where the claimant knew."""

    kind: ClassVar[str] = "claimed"
    incarnation: str
    node: str
    address: str
    why: str
    forced: bool = False
    previous: str | None = None
    death: str | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The owner let go; written by the store inside ``release``."""

    kind: ClassVar[str] = "released"
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class CommandSettled:
    """The effect of a command that no turn settles stands in the journal."""

    kind: ClassVar[str] = "command_settled"
    command: int
    outcome: str
    body: Json = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The conversation is stopped until a ``start``; ``command`` is the stop that asked for it."""

    kind: ClassVar[str] = "stopped"
    command: int


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """Other settings from the next turn on; written by the store inside ``amend``."""

    kind: ClassVar[str] = "settings_changed"
    settings: JsonObject


@dataclass(frozen=True, slots=True)
class RuntimeRequested:
    """The name is journaled before the provider hears it; an earlier name is superseded by it."""

    kind: ClassVar[str] = "runtime_requested"
    name: str
    provider: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeReady:
    """The provider answered and the runtime is configured. ``detail`` is what its provider says of it."""

    kind: ClassVar[str] = "runtime_ready"
    name: str
    detail: Json = None


@dataclass(frozen=True, slots=True)
class RuntimeAttached:
    """A new owner found the current runtime alive and went on with it."""

    kind: ClassVar[str] = "runtime_attached"
    name: str


@dataclass(frozen=True, slots=True)
class RuntimeLost:
    """The current runtime did not answer; it is never attached again."""

    kind: ClassVar[str] = "runtime_lost"
    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeDiscarded:
    """Journaled before a runtime is destroyed; it is never attached again."""

    kind: ClassVar[str] = "runtime_discarded"
    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A start that did not reach a live loop: at which step, and the provider's own reason."""

    kind: ClassVar[str] = "start_failed"
    step: str
    reason: str
    permanent: bool = False
    credential: Json = None
    """Which one had no value, if that was the reason: ``{name, reference, problem, remedy}``."""


@dataclass(frozen=True, slots=True)
class CredentialFailed:
    """A credential ran out in the midst of its use, and could not be made anew. The turn goes on, no other begins."""

    kind: ClassVar[str] = "credential_failed"
    name: str
    reference: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CredentialRestored:
    """A credential that had failed has a value again, and the runtime knows it."""

    kind: ClassVar[str] = "credential_restored"
    name: str


@dataclass(frozen=True, slots=True)
class LoopStarted:
    """Phase 3 was reached: the loop is live at this epoch."""

    kind: ClassVar[str] = "loop_started"
    agent: str


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The loop's work on these commands begins."""

    kind: ClassVar[str] = "turn_started"
    commands: tuple[int, ...]
    attempt: int = 1
    traceparent: str | None = None
    """Its trace, as W3C Trace Context writes it; not there without one. Nothing is decided by it."""


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A tool call is about to run; through the fence, so it is the ownership check as well."""

    kind: ClassVar[str] = "call_started"
    call: str
    name: str
    idempotent: bool = False
    key: str = ""
    arguments: Json = None


@dataclass(frozen=True, slots=True)
class CallFinished:
    """The call's one outcome: a result, or the error that it raised."""

    kind: ClassVar[str] = "call_finished"
    call: str
    result: Json = None
    error: Json = None


@dataclass(frozen=True, slots=True)
class CallRestarted:
    """An idempotent call runs again after a takeover: same call, same key."""

    kind: ClassVar[str] = "call_restarted"
    call: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CallInterrupted:
    """The call's one outcome is unknown: its owner was lost while it ran. It does not run again."""

    kind: ClassVar[str] = "call_interrupted"
    call: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TurnWaiting:
    """The turn waits for a person (``ask``) or for a time (``until``); until then there is nothing to do."""

    kind: ClassVar[str] = "turn_waiting"
    ask: str
    body: Json = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class TurnResumed:
    """The turn goes on: under a new owner (``attempt`` rises) or with the answer that it waited for."""

    kind: ClassVar[str] = "turn_resumed"
    attempt: int
    ask: str | None = None
    answer: Json = None
    command: int | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class TurnCompleted:
    """The turn ended well; it settles exactly these commands."""

    kind: ClassVar[str] = "turn_completed"
    commands: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The turn ended with an error; it settles exactly these commands."""

    kind: ClassVar[str] = "turn_failed"
    commands: tuple[int, ...]
    reason: str
    error: Json = None


@dataclass(frozen=True, slots=True)
class TurnInterrupted:
    """The turn was ended by a command (its seq in ``by``); it settles exactly these commands."""

    kind: ClassVar[str] = "turn_interrupted"
    commands: tuple[int, ...]
    by: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rehydrating:
    """The past of this conversation follows, up to ``rehydrated``: a copy of `events` events of `conversation`.

    `digest` recognises the same recording, so that whoever was cut off goes on where it stood.
    """

    kind: ClassVar[str] = "rehydrating"
    digest: str
    conversation: str
    events: int


@dataclass(frozen=True, slots=True)
class Rehydrated:
    """The past is whole: the original's up to its seq `head`. `generation` counts how often it was copied."""

    kind: ClassVar[str] = "rehydrated"
    digest: str
    head: int
    generation: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind that the core does not know: a loop's own, or a newer version's. Kept, never judged."""

    kind: ClassVar[str] = ""
    body: JsonObject


type Core = (
    Created
    | Claimed
    | Released
    | CommandSettled
    | Stopped
    | SettingsChanged
    | RuntimeRequested
    | RuntimeReady
    | RuntimeAttached
    | RuntimeLost
    | RuntimeDiscarded
    | StartFailed
    | CredentialFailed
    | CredentialRestored
    | LoopStarted
    | TurnStarted
    | CallStarted
    | CallFinished
    | CallRestarted
    | CallInterrupted
    | TurnWaiting
    | TurnResumed
    | TurnCompleted
    | TurnFailed
    | TurnInterrupted
    | Rehydrating
    | Rehydrated
)

CORE_KINDS: Mapping[str, type[Core]] = {cls.kind: cls for cls in Core.__value__.__args__}
"""Every kind of the core, commands aside, with its body's class. Loops may not emit these."""

TURN_ENDS: frozenset[str] = frozenset({"turn_completed", "turn_failed", "turn_interrupted"})


@functools.cache
def _parts(cls: type[Core]) -> tuple[dataclasses.Field[Any], ...]:
    """The parts of a body, looked up once for each kind: every event is written and read through them."""
    return dataclasses.fields(cls)


def read_body(event: Event) -> Core | Foreign:
    """The typed body of an event; unknown kinds and commands are :class:`Foreign`, unknown fields are passed over.

    :raises ValueError: a core kind without a part that it must have.
    """
    cls = None if event.is_command else CORE_KINDS.get(event.kind)
    if cls is None:
        return Foreign(event.body)
    parts: dict[str, Any] = {}
    for part in _parts(cls):
        if part.name in event.body:
            value = event.body[part.name]
            parts[part.name] = tuple(cast("Sequence[int]", value)) if part.name == "commands" else value
        elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            raise ValueError(f"event {event.seq} of kind {event.kind} lacks {part.name!r}")
    return cls(**parts)


def draft(body: Core, turn: str | None = None) -> Draft:
    """The draft of a core event; a call's envelope (``opens``, ``closes``) follows from its kind."""
    parts: dict[str, Json] = {}
    for part in _parts(type(body)):
        value = getattr(body, part.name)
        if part.name == "traceparent" and value is None:
            continue  # a journal without traces looks as it always did
        parts[part.name] = list(cast("tuple[int, ...]", value)) if part.name == "commands" else value
    match body:
        case CallStarted(call):
            return Draft(body.kind, parts, turn, opens=(call,))
        case CallFinished(call) | CallInterrupted(call):
            return Draft(body.kind, parts, turn, closes=(call,))
        case _:
            return Draft(body.kind, parts, turn)
