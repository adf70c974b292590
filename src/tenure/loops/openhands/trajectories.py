"""OpenHands' own files of a conversation, as journals and back: a trajectory, and a stock server's persistence directory.

A *trajectory* is the list of the SDK's events as JSON, or pages of it as ``events/search`` answers them. A *directory* is
what the SDK persists: ``base_state.json`` and ``events/event-00000-ID.json`` …; of the former only the agent is taken.

In the journal each message of a user is a command and a turn of its own, and what followed stands in that turn, under the
SDK's ids. Nothing of it runs again: an action without outcome gets its error when the next turn begins, as after a takeover.
Pure: no SDK is needed, and what the SDK alone can judge (a tool's arguments, say) it judges when the conversation goes on.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from tenure.clock import Instant
from tenure.conversation import FORMAT, Fold, chained, end_turn, fold
from tenure.errors import InvalidInputError
from tenure.journal import Claimed, Created, Delivery, Draft, Event, Seq, TurnCompleted, TurnStarted, draft
from tenure.lease import Epoch
from tenure.loops.openhands.live import sdk_id
from tenure.loops.openhands.projection import HIDDEN, hidden
from tenure.loops.openhands.store import BASE_STATE, EVENT, EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tenure.journal import Json, JsonObject

KINDS: Final = frozenset(
    "ACPToolCallEvent ActionEvent AgentErrorEvent Condensation CondensationRequest CondensationSummaryEvent "
    "ConversationErrorEvent ConversationStateUpdateEvent HookExecutionEvent InterruptEvent LLMCompletionLogEvent "
    "MessageEvent ObservationEvent PauseEvent SecurityAnalysisEvent SystemPromptEvent TokenEvent "
    "UserRejectObservation".split()
)
"""The SDK's kinds of events that a log holds (1.58)."""
KEY_NAME: Final = "LLM_API_KEY"
"""The credential that stands in settings for every key that a base state has, masked or encrypted."""
_DROPPED = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "secrets"}
"""Fields of an agent that hold secrets of several kinds: whoever imports it names them anew."""
_FILE = re.compile(r"event-(\d{5,})-([0-9A-Za-z._-]{1,128})\.json")
_ID = re.compile(r"[0-9A-Za-z._:-]{1,128}")


# --- in -------------------------------------------------------------------------------------------------------------


def is_trajectory(data: bytes) -> bool:
    """Whether a file begins as one JSON document of OpenHands', and not as the lines of an export of ours."""
    text = data.lstrip()
    return text.startswith(b"[") or (text.startswith(b"{") and b'"format"' not in text[:64] and b'"items"' in text[:64])


def read_trajectory(data: bytes) -> list[dict[str, Any]]:
    """The events of a trajectory, judged one by one.

    :raises InvalidInputError: names the place, what is wrong, and the remedy.
    """
    found = _parsed("file", data)
    if not isinstance(found, list):
        found = [found]
    parts = cast("list[Any]", found)
    if not (parts and isinstance(parts[0], dict) and "items" in parts[0]):
        return _judged((f"[{at}]", event) for at, event in enumerate(parts))
    events: list[tuple[str, Any]] = []
    for number, page in enumerate(parts):
        items = _object(f"[{number}]", page).get("items")
        if not isinstance(items, list):
            raise InvalidInputError(f"[{number}].items", "must be a list of events", "send pages of events/search")
        events += [(f"[{number}].items[{at}]", event) for at, event in enumerate(cast("list[Any]", items))]
    return _judged(events)


def read_directory(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Json]]:
    """The events that a stock server has persisted, and the settings of a conversation with its agent.

    :raises InvalidInputError: names the file, what is wrong, and the remedy.
    """
    base = _object(BASE_STATE, _parsed(BASE_STATE, _bytes(folder / BASE_STATE, BASE_STATE)))
    agent = base.get("agent")
    if not isinstance(agent, dict):
        raise InvalidInputError(f"{BASE_STATE}: agent", "is missing", "send the directory as the SDK has written it")
    files = sorted((folder / EVENTS).glob("event-*.json"), key=_place) if (folder / EVENTS).is_dir() else []
    found: list[tuple[str, Any]] = []
    for number, file in enumerate(files):
        name = f"{EVENTS}/{file.name}"
        named = _FILE.fullmatch(file.name)
        if named is None or int(named[1]) != number:
            raise InvalidInputError(name, f"stands where number {number} must stand", "send all files, unchanged")
        event = _object(name, _parsed(name, _bytes(file, name)))
        if event.get("id") != named[2]:
            raise InvalidInputError(f"{name}: id", "is another than in the file's name", "send all files, unchanged")
        found.append((name, event))
    settings: dict[str, Json] = {"agent": _without_keys(agent)}
    if f"${KEY_NAME}" in json.dumps(settings):
        settings["credentials"] = {KEY_NAME: f"vault:{KEY_NAME}"}
    for name in ("confirmation_policy", "security_analyzer", "max_iterations", "stuck_detection"):
        if base.get(name) is not None:
            settings[name] = base[name]
    return _judged(found), settings


def _place(file: Path) -> tuple[int, str]:
    """Names of the SDK's files have five digits up to event 99999, and then more."""
    named = _FILE.fullmatch(file.name)
    return int(named[1]) if named else -1, file.name


def _bytes(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInputError(name, f"cannot be read: {error.strerror}", "send the whole directory") from None


def _parsed(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidInputError(where, "is not JSON in UTF-8", "send what OpenHands has written") from None


def _object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(where, "must be a JSON object", "send what OpenHands has written")
    return cast("dict[str, Any]", value)


def _judged(found: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    for where, one in found:
        event = _object(where, one)
        if "kind" not in event and ("action" in event or "observation" in event):
            raise InvalidInputError(
                where, "is an event of OpenHands before its SDK", "convert it with OpenHands 1.x, then export it anew"
            )
        if event.get("kind") not in KINDS:
            kind = str(event.get("kind"))[:80]
            raise InvalidInputError(
                f"{where}.kind",
                f"{kind!r} is no event of the SDK's log",
                "leave it out, or import it with a newer release",
            )
        if event["kind"] == "ConversationStateUpdateEvent" and event.get("key") == "full_state":
            continue  # what a socket says first; no log holds it
        name = event.get("id")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise InvalidInputError(f"{where}.id", "must be the event's id", "send what OpenHands has written")
        if (before := known.setdefault(name, where)) != where:
            raise InvalidInputError(f"{where}.id", f"stands at {before} already", "send each event once")
        _time(f"{where}.timestamp", event.get("timestamp"))
        events.append(event)
    if not any(_is_message(event) for event in events):
        raise InvalidInputError("events", "hold no message of a user", "send a whole conversation")
    return events


def _time(where: str, value: object) -> float:
    try:
        told = datetime.fromisoformat(cast("str", value))
    except (TypeError, ValueError):
        raise InvalidInputError(where, "must be a time in ISO 8601", "send what OpenHands has written") from None
    return told.timestamp() if told.tzinfo else told.replace(tzinfo=UTC).timestamp()


def _is_message(event: Mapping[str, Any]) -> bool:
    return event["kind"] == "MessageEvent" and event.get("source") == "user"


def _without_keys(value: Any) -> Any:
    """An agent whose keys are names of credentials: a base state has them masked, or encrypted for another server."""
    if isinstance(value, list):
        return [_without_keys(part) for part in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, part in cast("dict[str, Any]", value).items():
        if name == "api_key" and part:
            found[name] = f"${KEY_NAME}"
        elif part != HIDDEN and name not in _DROPPED:
            found[name] = _without_keys(part)
    return found


def as_export(
    events: Sequence[Mapping[str, Any]], *, agent: str, settings: JsonObject, title: str | None = None
) -> bytes:
    """The lines of an export (docs/how-to/export.md) whose journal has these events: what `tenure import` sends."""
    past = _Past(agent, settings, events)
    about: dict[str, Json] = {
        "id": "openhands", "user_id": None, "agent": agent, "agent_status": None, "settings": settings,
        "policy": "enqueue", "title": title, "metadata": {},
        "created_at": past.events[0].at.isoformat(), "vault": [],
    }  # fmt: skip
    contents: list[dict[str, Json]] = [
        {"format": FORMAT, "conversation": about, "head": len(past.events)},
        *({"event": event.as_json()} for event in past.events),
        {"end": {"events": len(past.events)}},
    ]
    lines: list[str] = []
    chain = ""
    for content in contents:
        chain = chained(chain, content)
        lines.append(json.dumps({**content, "chain": chain}, ensure_ascii=False, separators=(",", ":")))
    return ("\n".join(lines) + "\n").encode()


@final
class _Past:
    """A legal journal with the events: a turn for each message of a user."""

    def __init__(self, agent: str, settings: JsonObject, events: Sequence[Mapping[str, Any]]) -> None:
        self.events: list[Event] = []
        self._state = Fold()
        self._at = Instant(_time("timestamp", events[0]["timestamp"]))
        self._turn: str | None = None
        self._store(draft(Created(agent, settings=settings)), None)
        self._store(draft(Claimed("openhands", "openhands", "", "imported")), 1)
        first = next(at for at, event in enumerate(events) if _is_message(event))
        self._begin(events[first])
        for at, event in enumerate(events):
            if at > first and _is_message(event):
                self._end()
                self._begin(event)
            self._at = Instant(max(self._at.unix_s, _time("timestamp", event["timestamp"])))
            self._store(Draft(EVENT, cast("JsonObject", dict(event)), turn=self._turn), 1)
        self._end()

    def _begin(self, message: Mapping[str, Any]) -> None:
        content = cast("list[dict[str, Any]]", message.get("llm_message", {}).get("content") or [])
        text = "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
        seq, body = self._state.seq + 1, cast("JsonObject", {"text": text, "content": content})
        self._take(
            Event(Seq(seq), None, "message", self._at, body, key=f"openhands:{message['id']}", delivery=Delivery.TURN)
        )
        self._turn = f"t{seq}"
        self._store(draft(TurnStarted((Seq(seq),)), self._turn), 1)

    def _end(self) -> None:
        assert self._state.turn is not None, "begun before"
        for one in end_turn(self._state, TurnCompleted(self._state.turn.commands)):
            self._store(one, 1)

    def _store(self, one: Draft, epoch: int | None) -> None:
        self._take(one.stored(self._state.seq + 1, None if epoch is None else Epoch(epoch), self._at))

    def _take(self, event: Event) -> None:
        self._state = fold(self._state, [event])
        self.events.append(event)


# --- out ------------------------------------------------------------------------------------------------------------


def trajectory_of(lines: Iterable[str]) -> list[JsonObject]:
    """The SDK's events of an export, in order, as they stand.

    :raises InvalidInputError: it has none.
    """
    shapes = [json.loads(line).get("event") for line in lines]
    events = [shape["body"] for shape in shapes if shape is not None and shape["kind"] == EVENT]
    if not events:
        raise InvalidInputError("conversation", "has no event of OpenHands'", "export it without --as")
    return events


def directory_of(lines: Sequence[str]) -> dict[str, str]:
    """The files of a persistence directory by their paths in it; the SDK's ``LocalConversation`` opens it. Keys are masked.

    :raises InvalidInputError: there is no event, or the settings name no agent.
    """
    events = trajectory_of(lines)
    about = json.loads(lines[0])["conversation"]
    settings = cast("dict[str, Any]", about["settings"])
    if not isinstance(settings.get("agent"), dict):
        raise InvalidInputError(
            "settings.agent", "is not named, so no base state can be written", "export it with --as trajectory"
        )
    base: dict[str, Any] = {
        "id": str(sdk_id(about["id"])),
        "agent": {"kind": "Agent", **hidden(settings["agent"], settings.get("credentials") or {})},
        "workspace": {"kind": "LocalWorkspace", "working_dir": settings.get("working_dir") or "."},
        "execution_status": "idle",
    }
    for name in ("confirmation_policy", "security_analyzer", "max_iterations", "stuck_detection"):
        if settings.get(name) is not None:
            base[name] = settings[name]
    files = {BASE_STATE: json.dumps(base)}
    for number, event in enumerate(events):
        files[f"{EVENTS}/event-{number:05d}-{event['id']}.json"] = json.dumps(event)
    return files
