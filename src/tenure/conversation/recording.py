"""The event stream, out and in: the lines of an export, and the recording that they are when they come back.

An export is JSON lines: the conversation, its events in order, the end. Each line carries ``chain``: the SHA-256, in
hexadecimal, of the last line's chain followed by the canonical JSON of this line without ``chain``. So an edited, lost or
doubled line is found at its place, and a cut one by the missing end.

A :class:`Recording` was judged whole, line by line, before anything is claimed for it. Its *past* are the events that a
copy takes over; what is the copy's own (:data:`OWN_KINDS`) is left behind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, final

from tenure.conversation.folding import Fold, advance
from tenure.conversation.planning import end_turn
from tenure.errors import InvalidInputError, JournalError
from tenure.journal import (
    CORE_COMMANDS,
    CORE_KINDS,
    CommandSettled,
    Delivery,
    Draft,
    Event,
    Json,
    JsonObject,
    Outcome,
    Policy,
    Rehydrated,
    TurnInterrupted,
    canonical,
    draft,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tenure.conversation.record import Record

FORMAT = 1
"""The version of the lines, and of the core's kinds in them: it rises with every kind that the core learns."""

OWN_KINDS: frozenset[str] = frozenset(
    {"created", "claimed", "released", "start_failed", "loop_started", "rehydrating", "rehydrated"}
    | {kind for kind in CORE_KINDS if kind.startswith("runtime_")}
)
"""What every conversation has for itself: who owned it, and where it ran. A copy does not take it over."""

OWN_PARTS: frozenset[str] = frozenset(
    {"seq", "epoch", "user_id", "runtime", "runtime_ready", "retired", "started", "owned", "asked_to_start"}
    | {"rehydrating", "generation"}
)
"""What of a fold every conversation has for itself: where it stands, whose it is, where it ran, what it was copied from."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]{0,63}")
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_OWN_TURN = re.compile(r"t\d+r(\d+)")
_COPIED: JsonObject = {"reason": "copied"}


# --- out ------------------------------------------------------------------------------------------------------------


@final
class Export:
    """Writes the lines of one conversation, as it was when its head was `record.head`.

    :param sealed: the names of what its vault holds; the values stay there.
    """

    def __init__(self, record: Record, sealed: Sequence[str] = ()) -> None:
        self.head = record.head
        self._sealed = list(sealed)
        self._record = record
        self._chain = ""
        self._events = 0

    def first(self) -> str:
        """The line that says what follows."""
        record = self._record
        conversation: dict[str, Json] = {
            "id": record.conversation,
            "user_id": record.user_id,
            "agent": record.agent,
            "agent_status": record.agent_status,
            "settings": record.settings,
            "policy": record.policy.value,
            "title": record.title,
            "metadata": record.metadata,
            "created_at": record.created_at.isoformat(),
            "vault": self._sealed,
        }
        return self._line({"format": FORMAT, "conversation": conversation, "head": record.head})

    def event(self, event: Event) -> str:
        """The next event's line."""
        self._events += 1
        return self._line({"event": event.as_json()})

    def last(self) -> str:
        """The line without which an export is cut."""
        return self._line({"end": {"events": self._events}})

    def _line(self, content: dict[str, Json]) -> str:
        self._chain = chained(self._chain, content)
        return json.dumps({**content, "chain": self._chain}, ensure_ascii=False, separators=(",", ":"))


def chained(chain: str, content: JsonObject) -> str:
    """The chain behind a line with this content."""
    return hashlib.sha256((chain + canonical(content)).encode()).hexdigest()


# --- in -------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Recording:
    """A judged stream: what a new conversation needs to have it as its past."""

    lines: Sequence[bytes] = field(repr=False)
    """One JSON object with ``event`` each: parsed again when they are written, so that memory holds texts only."""
    digest: str
    """Recognises the same events."""
    fold: Fold
    """What the original meant at its head."""
    conversation: str
    """The original's id; empty when it is not known."""
    past_events: int
    generation: int
    """That of the copy: one more than the highest in the names of turns that stand here."""
    messages: tuple[Event, ...]
    """Those that the past leaves unanswered, in order; if there is none, the last one."""
    agent: str
    settings: JsonObject
    policy: Policy
    commands: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where each kind of command beyond the core's stands first: only the copy's agent knows whether it is one."""
    agent_status: str | None = None
    title: str | None = None
    metadata: JsonObject | None = None

    def past(self) -> Iterator[Event]:
        """The events that a copy takes over, in order."""
        for line in self.lines:
            event = Event.from_json(json.loads(line)["event"])
            if not is_own(event):
                yield event


def is_own(event: Event) -> bool:
    """Whether the event is the conversation's own affair, which no copy takes over."""
    return event.kind in OWN_KINDS and not event.is_command


def read_export(lines: Sequence[bytes], *, event_bytes: int, parse: Any = json.loads) -> Recording:
    """Judge the lines of an export: format, chain, order, kinds, references, sizes.

    :param parse: reads one line; raises InvalidInputError for what no journal can hold.
    :raises InvalidInputError: the first line that is not as it must be, with the field, the limit and the remedy.
    """
    if not lines:
        raise InvalidInputError("line 1", "is missing: an export begins with its conversation", "send a whole export")
    judge = _Judge(event_bytes)
    chain, head, ended = "", 0, False
    about: Mapping[str, Any] = {}
    for number, line in enumerate(lines, 1):
        where = f"line {number}"
        content = _object(where, _parsed(where, line, parse))
        if ended:
            raise InvalidInputError(where, "follows the end", "send one export at a time")
        if content.pop("chain", None) != (chain := _chained(where, chain, content)):
            remedy = "export it again; what was edited is given as `replay.events`"
            raise InvalidInputError(f"{where}: chain", "does not follow: a line was edited, lost or doubled", remedy)
        match content:
            case {"format": format, "conversation": dict(), "head": int(head)} if number == 1:
                _insist_on_format(f"{where}: format", format)
                about = content["conversation"]
            case {"event": shape} if number > 1 and len(content) == 1:
                judge.take(where, shape)
            case {"end": {"events": events}} if number > 1:
                ended = True
                if events != judge.fold.seq or judge.fold.seq != head:
                    told = f"says {events} of {head} events, {judge.fold.seq} came"
                    raise InvalidInputError(f"{where}: end", told, "export it again")
            case _:
                must = "conversation" if number == 1 else "event"
                raise InvalidInputError(where, f"must hold `{must}`", "send the lines of an export, unchanged")
    if not ended:
        raise InvalidInputError(
            f"line {len(lines) + 1}", "is missing: the export was cut before its end", "export again"
        )
    return judge.recording(lines[1:-1], about, "line 1: conversation")


def read_events(events: Iterable[object], about: Mapping[str, Any], *, event_bytes: int) -> Recording:
    """Judge events that came without lines and chain: a whole journal, from seq 1 on.

    :param about: what is known of the original: ``id``, ``agent``, ``title`` …; what is missing, its events say. ``format``
        is that of the events, if they may be another version's: its core's kinds look like a loop's.
    :raises InvalidInputError: as :func:`read_export`; places are ``replay.events[0]`` …
    """
    _insist_on_format("replay.conversation.format", about.get("format", FORMAT))
    judge = _Judge(event_bytes)
    lines: list[bytes] = []
    for index, shape in enumerate(events):
        judge.take(f"replay.events[{index}]", shape)
        lines.append(json.dumps({"event": shape}, ensure_ascii=False, separators=(",", ":")).encode())
    return judge.recording(lines, about, "replay.conversation")


def _insist_on_format(where: str, format: object) -> None:
    if format != FORMAT:
        newer = f"is {format!r}, this version reads {FORMAT}"
        raise InvalidInputError(where, newer, "import it with the version that wrote it")


def _parsed(where: str, line: bytes, parse: Any) -> object:
    try:
        return parse(line)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error.field}", error.problem, error.remedy) from None
    except (ValueError, RecursionError):
        raise InvalidInputError(where, "is not JSON in UTF-8", "send one JSON object per line") from None


def _chained(where: str, chain: str, content: dict[str, Any]) -> str:
    try:
        return chained(chain, content)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            where, f"no journal can hold it: {error}", "send valid Unicode and finite numbers"
        ) from None


def _object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(where, "must be a JSON object", "see docs/how-to/export.md for its shape")
    return cast("dict[str, Any]", value)


@final
class _Judge:
    """Takes event after event; what it has taken is a legal journal."""

    def __init__(self, event_bytes: int) -> None:
        self.fold = Fold()
        self._event_bytes = event_bytes
        self._sum = hashlib.sha256()
        self._keys: dict[str, int] = {}
        self._commands: set[int] = set()
        self._kinds: dict[str, str] = {}
        self._past = self._generation = 0
        self._message: Event | None = None

    def take(self, where: str, shape: object) -> None:
        shape = _object(where, shape)
        event = _event(where, shape)
        if event.seq != self.fold.seq + 1:
            follows = f"is {event.seq} where {self.fold.seq + 1} must stand: no gap, no repetition, in order"
            raise InvalidInputError(f"{where}: seq", follows, "send the whole journal, from 1 on")
        if (event.kind == "created") != (event.seq == 1):
            raise InvalidInputError(f"{where}: kind", "`created` stands at 1, and only there", "send the whole journal")
        self._judge_size(where, event)
        if event.is_command:
            self._judge_command(where, event)
        elif event.kind in CORE_KINDS:
            self._judge_body(where, event)
        elif event.kind in CORE_COMMANDS or not _NAME.fullmatch(event.kind):
            known = "no kind of an event: a command needs `key` and `delivery`, a loop's kind is a name"
            raise InvalidInputError(f"{where}: kind", f"{event.kind[:80]!r} is {known}", "leave it out, or name it")
        try:
            advance(self.fold, event)
        except JournalError as error:
            raise InvalidInputError(where, str(error), "send a journal as a store has written it") from None
        self._sum.update(canonical(event.as_json()).encode())
        self._past += not is_own(event)
        if event.turn is not None and (own := _OWN_TURN.fullmatch(event.turn)):
            self._generation = max(self._generation, int(own[1][:9]))

    def _judge_size(self, where: str, event: Event) -> None:
        try:
            size = len(canonical(event.body).encode())
        except (ValueError, RecursionError):
            raise InvalidInputError(f"{where}: body", "is no JSON", "send valid Unicode and finite numbers") from None
        if size > self._event_bytes:
            limit = f"has {size} bytes, at most {self._event_bytes} can be kept"
            raise InvalidInputError(f"{where}: body", limit, "copy it to a store with a higher limit")

    def _judge_command(self, where: str, event: Event) -> None:
        usual = CORE_COMMANDS.get(event.kind)
        if event.kind in CORE_KINDS or not _NAME.fullmatch(event.kind):
            raise InvalidInputError(
                f"{where}: kind", f"{event.kind[:80]!r} is no kind of a command", "see the commands"
            )
        if usual not in (None, event.delivery) and event.kind != "message":
            raise InvalidInputError(f"{where}: delivery", f"of {event.kind} is {usual}", "send what was exported")
        if event.key is None or not _PLAIN.fullmatch(event.key):
            raise InvalidInputError(f"{where}: key", "a command has a key of 1 to 256 characters", "give it its own")
        if event.epoch is not None:
            raise InvalidInputError(f"{where}: epoch", "of a command is null", "send what was exported")
        if (before := self._keys.setdefault(event.key, event.seq)) != event.seq:
            raise InvalidInputError(f"{where}: key", f"stands at {before} already", "a key is one command for ever")
        self._commands.add(event.seq)
        if event.kind not in CORE_COMMANDS:
            self._kinds.setdefault(event.kind, where)
        if event.kind == "message":
            self._message = event

    def _judge_body(self, where: str, event: Event) -> None:
        for part in dataclasses.fields(CORE_KINDS[event.kind]):
            optional = part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING
            if part.name not in event.body and optional:
                continue
            if part.name not in event.body or not _PARTS[str(part.type)](event.body[part.name]):
                must = f"{event.kind} needs it as {part.type}"
                raise InvalidInputError(f"{where}: body.{part.name}", must, "send what was exported")
        for name, seq in _references(event):
            if seq not in self._commands:
                raise InvalidInputError(
                    f"{where}: body.{name}", f"{seq} is no earlier command", "send what was exported"
                )
        if event.kind.startswith("call_") and event.kind != "call_restarted":
            side, named = ("opens", event.opens) if event.kind == "call_started" else ("closes", event.closes)
            if event.body["call"] not in named:
                raise InvalidInputError(f"{where}: {side}", "must name the call", "send what was exported")
        if event.kind == "created" and event.body.get("policy", Policy.ENQUEUE) not in {*Policy}:
            raise InvalidInputError(f"{where}: body.policy", f"is none of {', '.join(Policy)}", "name one of these")

    def recording(self, lines: Sequence[bytes], about: Mapping[str, Any], where: str) -> Recording:
        """What was judged, as a whole."""
        state = self.fold
        if state.seq == 0:
            raise InvalidInputError(where, "there are no events", "send the whole journal, from 1 on")
        if state.rehydrating:
            raise InvalidInputError(where, "the original's own past is not whole", "finish that copy first")
        waiting = tuple(c for c in state.pending.values() if c.kind == "message")
        last = () if self._message is None else (self._message,)
        return Recording(
            lines=lines,
            digest=self._sum.hexdigest(),
            fold=state,
            past_events=self._past,
            generation=max(self._generation, state.generation) + 1,
            messages=waiting or last,
            commands=self._kinds,
            conversation=_about(about, where, "id", str, ""),
            agent=_about(about, where, "agent", str, None) or state.agent,
            settings=state.settings,
            policy=Policy(_about(about, where, "policy", Policy, None) or state.policy),
            agent_status=_about(about, where, "agent_status", str, None),
            title=_about(about, where, "title", str, None),
            metadata=_about(about, where, "metadata", dict, None),
        )


def _about(about: Mapping[str, Any], where: str, name: str, kind: type, default: Any) -> Any:
    value = about.get(name)
    if value is None:
        return default
    fits = value in {*Policy} if kind is Policy else isinstance(value, kind)
    if not fits or (kind is str and len(value) > 500):
        raise InvalidInputError(f"{where}.{name}", "has no legal value", "send what was exported")
    return value


def _event(where: str, shape: dict[str, Any]) -> Event:
    for name, (needed, legal) in _ENVELOPE.items():
        if (name not in shape and needed) or (name in shape and not legal(shape[name])):
            raise InvalidInputError(f"{where}: {name}", "is missing or has no legal value", "send what was exported")
    for name in shape:
        if name not in _ENVELOPE:
            raise InvalidInputError(f"{where}: {name[:64]}", "is no part of an event", "leave it out")
    if ("key" in shape) != ("delivery" in shape):
        raise InvalidInputError(
            f"{where}: delivery", "a command has both `key` and `delivery`", "send what was exported"
        )
    try:
        return Event.from_json(shape)
    except (ValueError, OverflowError):
        raise InvalidInputError(f"{where}: at", "is no moment in ISO 8601", "send what was exported") from None


type _Legal = Callable[[object], bool]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _text(value: object) -> bool:
    return isinstance(value, str)


def _name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 500


def _mapping(value: object) -> bool:
    return isinstance(value, dict)


def _each(legal: _Legal) -> _Legal:
    return lambda value: isinstance(value, list) and all(map(legal, cast("list[object]", value)))


def _or_null(legal: _Legal) -> _Legal:
    return lambda value: value is None or legal(value)


_ENVELOPE: Mapping[str, tuple[bool, _Legal]] = {
    "seq": (True, _whole),
    "epoch": (True, _or_null(_whole)),
    "kind": (True, _text),
    "at": (True, _text),
    "turn": (False, _or_null(_name)),
    "body": (True, _mapping),
    "opens": (False, _each(_name)),
    "closes": (False, _each(_name)),
    "key": (False, _text),
    "delivery": (False, lambda value: value in {*Delivery}),
}
"""The parts of an event's shape: whether it must be there, and what it may be."""

_PARTS: Mapping[str, _Legal] = {
    "str": _text,
    "str | None": _or_null(_text),
    "int": _whole,
    "int | None": _or_null(_whole),
    "bool": lambda value: isinstance(value, bool),
    "tuple[int, ...]": _each(_whole),
    "JsonObject": _mapping,
    "Json": lambda value: True,
}
"""What the parts of core bodies may be, by their declared type."""


# --- over -----------------------------------------------------------------------------------------------------------

_ONE = {
    "command_settled": "command",
    "stopped": "command",
    "turn_resumed": "command",
    "turn_interrupted": "by",
}
"""Where core bodies name one command by its seq."""


def _references(event: Event) -> Iterator[tuple[str, int]]:
    body = cast("Mapping[str, Any]", event.body)
    one = _ONE.get(event.kind)
    if one is not None and body.get(one) is not None:
        yield one, body[one]
    if event.kind.startswith("turn_"):
        yield from (("commands", seq) for seq in body.get("commands", ()))


def recorded(event: Event, places: Mapping[int, int]) -> Draft:
    """The event as the copy has it; `places` are the new seqs of the commands before it."""
    if event.is_command:
        return Draft(event.kind, event.body, key=event.key, delivery=event.delivery)
    body = dict(event.body)
    if event.kind in CORE_KINDS:
        for name, seq in _references(event):
            if name != "commands":
                body[name] = places[seq]
        if event.kind.startswith("turn_") and "commands" in body:
            body["commands"] = [places[seq] for seq in cast("list[int]", body["commands"])]
    return Draft(event.kind, body, event.turn, event.opens, event.closes)


def closing(state: Fold, recording: Recording) -> tuple[Draft, ...]:
    """The end of the past, and an answer to all that it left open: nothing of a copy goes on by itself.

    Open calls are interrupted, the open turn ends as interrupted, and commands that wait are settled as refused, each with
    the reason ``copied``. In the original they go on as before.
    """
    drafts: list[Draft] = [draft(Rehydrated(recording.digest, recording.fold.seq, recording.generation))]
    taken: Sequence[int] = ()
    if state.turn is not None:
        taken = state.turn.commands
        drafts += end_turn(state, TurnInterrupted(taken, reason="copied"))
    drafts += (draft(CommandSettled(seq, Outcome.REFUSED, _COPIED)) for seq in state.pending if seq not in taken)
    return tuple(drafts)


def past_of(events: Iterable[Event]) -> list[dict[str, Json]]:
    """The past in the shape in which two copies are equal: without seq, epoch and time, commands named by their order."""
    order: dict[int, int] = {}
    shapes: list[dict[str, Json]] = []
    for event in events:
        if is_own(event):
            continue
        if event.is_command:
            order[event.seq] = len(order) + 1
        one = recorded(event, order)
        shapes.append(replace(one, key=event.key, delivery=event.delivery).as_json())
    return shapes


def meaning_of(state: Fold, events: Iterable[Event]) -> dict[str, Json]:
    """What the journal `events` means, which `state` is the fold of, in the shape in which a copy and its original are equal:
    all of the fold but :data:`OWN_PARTS`, without times, and events named by their order in the past."""
    order = {event.seq: number for number, event in enumerate((e for e in events if not is_own(e)), 1)}
    shape: dict[str, Any] = {name: part for name, part in state.as_json().items() if name not in OWN_PARTS}
    shape["pending"] = [{**c, "seq": order[c["seq"]], "at": None} for c in shape["pending"]]
    if shape["turn"]:
        shape["turn"]["seq"] = order[shape["turn"]["seq"]]
        shape["turn"]["commands"] = [order[seq] for seq in shape["turn"]["commands"]]
    return shape
