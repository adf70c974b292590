"""A journal as a client of the OpenHands SDK sees it: pure JSON, from any node, without the SDK and without an owner.

Journaled SDK events are told as they stand, under their own ids. What the core alone knows (a start that failed for good, a
run that a limit ended) is told as the SDK's ``ConversationErrorEvent``, whose id follows from its place in the journal.
``execution_status`` is ``running`` from the moment at which a command that runs the agent stands in the journal until it is
settled, whoever owns the conversation meanwhile, or nobody.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from tenure.conversation import Fold, TurnState, advance
from tenure.journal import StartFailed, TurnCompleted, TurnFailed, TurnInterrupted, read_body
from tenure.loops.openhands.settings import NO_POLICY
from tenure.loops.openhands.store import EVENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.abc import Reading
    from tenure.clock import Instant
    from tenure.conversation import Record
    from tenure.journal import Event, Json, JsonObject

FULL_STATE: Final = "full_state"
HIDDEN: Final = "**********"
"""What the SDK's own server shows instead of a secret."""
TOLD_KINDS: Final = (EVENT, TurnFailed.kind, StartFailed.kind)
"""Kinds of the journal that :func:`sdk_event` may have a word for."""
_NAMED = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]{0,127}")


def runs_agent(command: Event) -> bool:
    """Whether a command starts a run, as :mod:`tenure.loops.openhands` reads it."""
    match command.kind:
        case "run":
            return True
        case "message":
            return command.body.get("run") is not False
        case "confirm":
            return command.body.get("accept") is not False
        case _:
            return False


def sdk_event(event: Event) -> JsonObject | None:
    """The SDK's event that stands at this place of the journal, if there is one."""
    if event.kind == EVENT:
        return event.body
    body = read_body(event)
    match body:
        case TurnFailed(_, "error", {"type": "RunFailed"}):
            return None  # the run's own ConversationErrorEvent stands before it
        case TurnFailed(_, reason, error):
            return _error(event, f"turn_{reason}", f"the run was ended: {reason} {error or ''}".strip())
        case StartFailed(step, reason, True, _):
            return _error(event, "start_failed", f"{step}: {reason}")
        case _:
            return None


def _error(event: Event, code: str, detail: str) -> JsonObject:
    return {
        "kind": "ConversationErrorEvent",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"tenure:{event.seq}:{event.epoch}:{code}")),
        "timestamp": stamp(event.at),
        "source": "environment",
        "code": code,
        "detail": detail,
    }


def stamp(at: Instant) -> str:
    """A time as the SDK writes it, without a zone; here it is always UTC."""
    return datetime.fromtimestamp(at.unix_s, UTC).replace(tzinfo=None).isoformat()


@final
@dataclass(slots=True)
class Projection:
    """What the journal says up to `seq`, as it grows: :meth:`take` what was read behind it."""

    fold: Fold = field(default_factory=Fold)
    loop: Mapping[str, Any] | None = None
    """The loop's part of the snapshot: ``base`` is the SDK's base state."""
    record: Record | None = None
    ended: int = 0
    """How many runs have ended while this was looking on."""
    last_end: str = ""
    """The kind of the last end of a turn, of those that this has seen."""
    run_s: float = 0.0
    """How long ago the run that ended last was asked for, when it ended."""

    @property
    def seq(self) -> int:
        return self.fold.seq

    def take(self, reading: Reading) -> list[JsonObject]:
        """Move on, and say what is new to a client, in order. `reading` began at :attr:`seq`, with its snapshot.

        :raises JournalError: a gap, or another past: the store was rewound; begin anew.
        """
        told: list[JsonObject] = []
        if reading.snapshot is not None:
            self.loop = cast("Mapping[str, Any] | None", reading.snapshot.loop)
            if reading.snapshot.fold is not None and reading.snapshot.seq > self.fold.seq:
                self.fold = Fold.from_json(reading.snapshot.fold)
        for event in reading.events:
            self._count(event)
            advance(self.fold, event)
            one = sdk_event(event)
            if one is not None:
                told.append(one)
        self.record = reading.record
        return told

    def _count(self, event: Event) -> None:
        body = read_body(event)
        match body:
            case TurnCompleted() | TurnFailed() | TurnInterrupted():
                self.last_end = event.kind
                runs = [c for n in body.commands if (c := self.fold.pending.get(n)) is not None and runs_agent(c)]
                self.ended += bool(runs)
                self.run_s = min((event.at.unix_s - c.at.unix_s for c in runs), default=self.run_s)
            case _:
                pass

    # --- what it means ----------------------------------------------------------------------------------------------

    @property
    def base(self) -> Mapping[str, Any]:
        """The SDK's base state as it was last saved; empty before the first turn."""
        return (self.loop or {}).get("base") or {}

    @property
    def running(self) -> bool:
        """Whether a run was asked for and has not ended."""
        return any(runs_agent(command) for command in self.fold.pending.values())

    @property
    def execution_status(self) -> str:
        """The SDK's word. Never ``error`` for a takeover: a run without an owner is running."""
        record = self.record
        if self.fold.stopped:
            return "paused"
        if self.running:
            return "error" if record is not None and record.failed and record.owner is None else "running"
        if record is not None and record.agent_status == "error":
            return "error"  # also where the run failed outside of the SDK, whose base state does not know
        saved = str(self.base.get("execution_status", "idle"))
        if saved != "running" or self.fold.turn_state is not TurnState.NONE:
            return "idle" if saved == "running" else saved
        return {"turn_failed": "error", "turn_interrupted": "paused"}.get(self.last_end, "idle")

    def info(self, agent: JsonObject | None) -> dict[str, Json]:
        """What ``GET /api/conversations/{id}`` and a ``full_state`` frame say. `agent`: for a conversation that has never
        run and whose settings name none."""
        record = self.record
        assert record is not None, "read before it is told"
        settings, base = cast("Mapping[str, Any]", record.settings), self.base
        shown = settings.get("agent") or base.get("agent") or agent
        place = base.get("workspace") or {"kind": "LocalWorkspace", "working_dir": settings.get("working_dir") or "."}
        return {
            **base,
            "id": record.conversation,
            "agent": hidden(shown, settings.get("credentials") or {}),
            "workspace": place,
            "persistence_dir": base.get("persistence_dir", f"{place['working_dir']}/.openhands"),
            "max_iterations": settings.get("max_iterations", base.get("max_iterations", 500)),
            "stuck_detection": settings.get("stuck_detection", True),
            "execution_status": self.execution_status,
            "confirmation_policy": settings.get("confirmation_policy", NO_POLICY),
            "security_analyzer": settings.get("security_analyzer"),
            "activated_knowledge_skills": base.get("activated_knowledge_skills", []),
            "invoked_skills": base.get("invoked_skills", []),
            "stats": base.get("stats", {"usage_to_metrics": {}}),
            "secret_registry": {"secret_sources": {}},
            "tags": record.metadata.get("tags") or base.get("tags", {}),
            "client_tools": [],
            "tool_module_qualnames": settings.get("tool_module_qualnames", {}),
            "title": record.title,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.updated_at.isoformat(),
        }

    def full_state(self, agent: JsonObject | None, now: Instant) -> JsonObject:
        """A frame with the whole state, under an id of its own: clients pass over a frame whose id they have seen."""
        return {
            "kind": "ConversationStateUpdateEvent",
            "id": str(uuid.uuid4()),
            "timestamp": stamp(now),
            "source": "environment",
            "key": FULL_STATE,
            "value": self.info(agent),
        }


def delta_event(delta: JsonObject, now: Instant) -> JsonObject | None:
    """A piece of streamed text as the SDK's client wants it; it stands in no journal."""
    text = delta.get("text")
    if not isinstance(text, str):
        return None
    return {
        "kind": "StreamingDeltaEvent",
        "id": str(uuid.uuid4()),
        "timestamp": stamp(now),
        "source": "agent",
        "content": text,
    }


def hidden(value: Json, credentials: Mapping[str, Any]) -> Any:
    """The value without the names of credentials, as the SDK's own server hides what they stand for."""
    match value:
        case str():
            return HIDDEN if _NAMED.fullmatch(value) and value[1:] in credentials else value
        case dict():
            return {name: hidden(part, credentials) for name, part in value.items()}
        case list():
            return [hidden(part, credentials) for part in value]
        case _:
            return value
