"""The fold: what a journal means, and which journals mean nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, assert_never, final

from tenure.clock import Instant
from tenure.errors import JournalError
from tenure.journal import (
    TURN_ENDS,
    CallRestarted,
    CallStarted,
    Claimed,
    CommandSettled,
    Created,
    Delivery,
    Draft,
    Event,
    Json,
    JsonObject,
    LoopStarted,
    Policy,
    Rehydrated,
    Rehydrating,
    Released,
    RuntimeAttached,
    RuntimeDiscarded,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    SettingsChanged,
    Stopped,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    TurnWaiting,
    read_body,
)
from tenure.lease import Epoch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

from tenure.conversation.record import Settle, TurnState

REPLAY = "replay"
"""Why a conversation was claimed whose past is to be written; with its creation in the same step, so that whoever finds it
later knows that it is not whole."""

RETIRED = 100
"""How many retired runtimes a fold remembers: they are destroyed within a period of the reaper, most of them at once."""

# --- the fold -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that was started and has no outcome yet. A call that a loop opened without ``call_started`` (a foreign
    kind with ``opens``) is never idempotent."""

    call: str
    name: str
    idempotent: bool = False
    key: str = ""
    attempt: int = 1


@final
@dataclass(slots=True)
class OpenTurn:
    """The turn that has not ended. ``seq`` is that of its ``turn_started``."""

    id: str
    seq: int
    commands: tuple[int, ...]
    attempt: int = 1
    calls: dict[str, OpenCall] = field(default_factory=dict[str, OpenCall])
    closed: set[str] = field(default_factory=set[str])
    retryable: bool = True
    """Every call that was started is idempotent: a loop that cannot replay may do the turn again from the top."""
    ask: str | None = None
    """What the turn waits for; null when it does not wait."""
    until: str | None = None

    @property
    def waiting(self) -> bool:
        return self.ask is not None


@final
@dataclass(slots=True)
class Fold:
    """What a journal means up to ``seq``. Built by :func:`fold` only; treat it as frozen."""

    seq: int = 0
    epoch: int = 0
    agent: str = ""
    user_id: str | None = None
    settings: JsonObject = field(default_factory=dict[str, Json])
    policy: Policy = Policy.ENQUEUE
    pending: dict[int, Event] = field(default_factory=dict[int, Event])
    """Unsettled commands by seq, in order."""
    turn: OpenTurn | None = None
    runtime: str | None = None
    """The current runtime's name; the only one that may be attached."""
    runtime_ready: bool = False
    retired: tuple[str, ...] = ()
    """The last :data:`RETIRED` runtimes that were discarded, lost or superseded: never attached again, free to be destroyed.
    Of older ones the journal knows: whatever it has requested and does not call current."""
    stopped: bool = False
    started: bool = False
    """The loop of the current epoch is live."""
    owned: bool = False
    asked_to_start: bool = False
    """The last claim or a later ``start`` asked for a live loop, whatever work there is."""
    rehydrating: bool = False
    """The past of a copy is being written: it is no conversation yet."""
    generation: int = 0
    """How often what stands here was copied: 0 for an original."""

    @property
    def queue(self) -> list[Event]:
        """Commands that wait for a turn, in order. A steered message whose turn is over waits like any other."""
        taken = self.turn.commands if self.turn else ()
        return [c for c in self.pending.values() if c.seq not in taken and self._waits(c)]

    @property
    def urgent(self) -> list[Event]:
        """Commands that go to the live loop at once, or are settled without one, in order."""
        taken = self.turn.commands if self.turn else ()
        return [c for c in self.pending.values() if c.seq not in taken and not self._waits(c)]

    def _waits(self, command: Event) -> bool:
        return command.delivery is Delivery.TURN or (command.kind == "message" and self.turn is None)

    @property
    def turn_state(self) -> TurnState:
        """What the record says of the turn."""
        if self.turn is None:
            return TurnState.NONE
        return TurnState.WAITING if self.turn.waiting else TurnState.OPEN

    @property
    def runnable(self) -> bool:
        """Whether something can be done now: the part of ``wanted`` that the owner knows."""
        if self.rehydrating or self.urgent:
            return True
        if self.stopped:
            return False
        if self.turn is not None:
            return not self.turn.waiting
        return bool(self.queue)

    def copy(self) -> Fold:
        turn = self.turn and replace(self.turn, calls=dict(self.turn.calls), closed=set(self.turn.closed))
        return replace(self, pending=dict(self.pending), turn=turn)

    def as_json(self) -> dict[str, Json]:
        """The fold as a snapshot carries it."""
        turn = self.turn and {
            "id": self.turn.id,
            "seq": self.turn.seq,
            "commands": list(self.turn.commands),
            "attempt": self.turn.attempt,
            "calls": [[c.call, c.name, c.idempotent, c.key, c.attempt] for c in self.turn.calls.values()],
            "closed": sorted(self.turn.closed),
            "retryable": self.turn.retryable,
            "ask": self.turn.ask,
            "until": self.turn.until,
        }
        return {
            "seq": self.seq,
            "epoch": self.epoch,
            "agent": self.agent,
            "user_id": self.user_id,
            "settings": self.settings,
            "policy": self.policy.value,
            "pending": [e.as_json() for e in self.pending.values()],
            "turn": turn,
            "runtime": self.runtime,
            "runtime_ready": self.runtime_ready,
            "retired": list(self.retired),
            "stopped": self.stopped,
            "started": self.started,
            "owned": self.owned,
            "asked_to_start": self.asked_to_start,
            "rehydrating": self.rehydrating,
            "generation": self.generation,
        }

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> Fold:
        """Read :meth:`as_json` back; unknown parts are passed over."""
        turn = shape["turn"]
        return cls(
            seq=shape["seq"],
            epoch=shape["epoch"],
            agent=shape["agent"],
            user_id=shape["user_id"],
            settings=shape["settings"],
            policy=Policy(shape["policy"]),
            pending={e["seq"]: Event.from_json(e) for e in shape["pending"]},
            turn=turn
            and OpenTurn(
                id=turn["id"],
                seq=turn["seq"],
                commands=tuple(turn["commands"]),
                attempt=turn["attempt"],
                calls={c[0]: OpenCall(*c) for c in turn["calls"]},
                closed=set(turn["closed"]),
                retryable=turn["retryable"],
                ask=turn["ask"],
                until=turn["until"],
            ),
            runtime=shape["runtime"],
            runtime_ready=shape["runtime_ready"],
            retired=tuple(shape["retired"]),
            stopped=shape["stopped"],
            started=shape["started"],
            owned=shape["owned"],
            asked_to_start=shape["asked_to_start"],
            rehydrating=shape.get("rehydrating", False),
            generation=shape.get("generation", 0),
        )


def fold(state: Fold, events: Iterable[Event]) -> Fold:
    """The meaning after `events`, which must follow `state` without a gap. `state` itself is not changed.

    :raises JournalError: a gap, a foreign epoch, two open turns, a second outcome of a call, a command settled twice,
        a turn that ends over an open call … naming the seq.
    """
    state = state.copy()
    for event in events:
        advance(state, event)
    return state


def advance(state: Fold, event: Event) -> None:
    """Move a fold of one's own behind one more event, in place; after an error it is worth nothing.

    :raises JournalError: as :func:`fold`.
    """
    if event.seq != state.seq + 1:
        raise JournalError(f"event {event.seq} follows {state.seq}: the journal has a gap or was rewound; read it anew")
    state.seq = event.seq
    if event.is_command:
        state.pending[event.seq] = event
        if event.kind == "start":
            state.stopped = False
            state.asked_to_start = True
        return
    if event.epoch is not None and event.kind != Claimed.kind and (event.epoch != state.epoch or not state.owned):
        raise JournalError(f"event {event.seq} is of epoch {event.epoch}, the journal is at {state.epoch}")
    _apply_calls(state, event)
    body = read_body(event)
    match body:
        case Created():
            state.agent, state.user_id, state.settings = body.agent, body.user_id, body.settings
            state.policy = Policy(body.policy)
        case Claimed():
            if event.epoch is None or event.epoch <= state.epoch:
                raise JournalError(f"event {event.seq} claims epoch {event.epoch}, the journal is at {state.epoch}")
            state.epoch, state.owned, state.started = event.epoch, True, False
            waits = any(command.kind == "start" for command in state.pending.values())
            state.asked_to_start = waits or body.why in ("start", "forced")
            if body.why == REPLAY and event.seq == 2:  # in the step that created it
                state.rehydrating = True
        case Released():
            state.owned = state.started = state.asked_to_start = False
        case SettingsChanged():
            state.settings = body.settings
        case CommandSettled():
            _settle(state, event, (body.command,))
        case Rehydrating():
            state.rehydrating = True
        case Rehydrated():
            state.rehydrating, state.generation = False, body.generation
        case Stopped():
            state.stopped = not any(c.kind == "start" and c.seq > body.command for c in state.pending.values())
        case LoopStarted():
            state.started = True
        case RuntimeRequested() | RuntimeReady() | RuntimeAttached() | RuntimeLost() | RuntimeDiscarded():
            _apply_runtime(state, event, body)
        case TurnStarted() | TurnResumed() | TurnWaiting() | TurnCompleted() | TurnFailed() | TurnInterrupted():
            _apply_turn(state, event, body)
        case CallRestarted():
            turn = _open_turn(state, event)
            if body.call not in turn.calls:
                raise JournalError(f"event {event.seq} restarts call {body.call}, which is not open")
            turn.calls[body.call] = replace(turn.calls[body.call], attempt=body.attempt)
        case _:
            pass


def _open_turn(state: Fold, event: Event) -> OpenTurn:
    if state.turn is None or (event.turn is not None and event.turn != state.turn.id):
        raise JournalError(f"event {event.seq} ({event.kind}) needs turn {event.turn}, which is not open")
    return state.turn


def _apply_calls(state: Fold, event: Event) -> None:
    """The envelope's part: whatever the kind, a call has exactly one outcome (G7)."""
    for call in event.opens:
        turn = _open_turn(state, event)
        if call in turn.calls or call in turn.closed:
            raise JournalError(f"event {event.seq} opens call {call} a second time")
        body = read_body(event)
        if isinstance(body, CallStarted):
            turn.calls[call] = OpenCall(call, body.name, body.idempotent, body.key)
        else:
            turn.calls[call] = OpenCall(call, event.kind)
        turn.retryable = turn.retryable and turn.calls[call].idempotent
    for call in event.closes:
        turn = _open_turn(state, event)
        if call not in turn.calls:
            raise JournalError(f"event {event.seq} closes call {call}, which is not open: one outcome per call")
        del turn.calls[call]
        turn.closed.add(call)


def _apply_turn(
    state: Fold,
    event: Event,
    body: TurnStarted | TurnResumed | TurnWaiting | TurnCompleted | TurnFailed | TurnInterrupted,
) -> None:
    match body:
        case TurnStarted():
            if state.turn is not None:
                raise JournalError(f"event {event.seq} starts a turn inside turn {state.turn.id}")
            unknown = [c for c in body.commands if c not in state.pending]
            if unknown or event.turn is None:
                raise JournalError(f"event {event.seq} starts a turn on commands {unknown} that do not wait")
            state.turn = OpenTurn(event.turn, event.seq, body.commands, body.attempt)
        case TurnResumed():
            turn = _open_turn(state, event)
            turn.attempt, turn.ask, turn.until = body.attempt, None, None
        case TurnWaiting():
            turn = _open_turn(state, event)
            turn.ask, turn.until = body.ask, body.until
        case TurnCompleted() | TurnFailed() | TurnInterrupted():
            turn = _open_turn(state, event)
            if turn.calls:
                raise JournalError(f"event {event.seq} ends turn {turn.id} over the open calls {sorted(turn.calls)}")
            if set(body.commands) != set(turn.commands):
                raise JournalError(f"event {event.seq} settles {body.commands}, its turn has {turn.commands}")
            state.turn = None
            _settle(state, event, body.commands)


def _settle(state: Fold, event: Event, commands: Sequence[int]) -> None:
    for command in commands:
        if command not in state.pending:
            raise JournalError(f"event {event.seq} settles command {command}, which is not pending: once each")
        del state.pending[command]


def _apply_runtime(
    state: Fold,
    event: Event,
    body: RuntimeRequested | RuntimeReady | RuntimeAttached | RuntimeLost | RuntimeDiscarded,
) -> None:
    if isinstance(body, RuntimeRequested):
        if body.name in state.retired or body.name == state.runtime:
            raise JournalError(f"event {event.seq} requests runtime {body.name} a second time")
        if state.runtime is not None:
            state.retired = (*state.retired, state.runtime)[-RETIRED:]
        state.runtime, state.runtime_ready = body.name, False
        return
    if body.name != state.runtime:
        raise JournalError(f"event {event.seq} speaks of runtime {body.name}, the current one is {state.runtime}")
    match body:
        case RuntimeReady() | RuntimeAttached():
            state.runtime_ready = True
        case RuntimeLost() | RuntimeDiscarded():
            state.retired = (*state.retired, body.name)[-RETIRED:]
            state.runtime, state.runtime_ready = None, False
        case _:
            assert_never(body)


def checked(state: Fold, drafts: Sequence[Draft]) -> Fold:
    """The fold after `drafts` are appended behind `state`, judged before they are sent.

    :raises JournalError: the journal would break a rule of its kind.
    """
    epoch = Epoch(state.epoch)
    return fold(state, (d.stored(state.seq + 1 + i, epoch, Instant(0.0)) for i, d in enumerate(drafts)))


def settlement(before: Fold, after: Fold, drafts: Sequence[Draft], agent_status: str | None = None) -> Settle:
    """What the record must hear of a batch that leads from `before` to `after`.

    The record's view of pending work, turn and start follows from the fold; the store adds only what came unseen. Of a
    past that is being written the record hears at the end: its commands were never counted as unsettled.
    """
    past = before.rehydrating
    halts = any(d.kind == Stopped.kind for d in drafts)
    return Settle(
        runnable=after.runnable,
        settled=() if past else tuple(seq for seq in before.pending if seq not in after.pending),
        turn=after.turn_state,
        turn_ended=any(d.kind in TURN_ENDS for d in drafts),
        started=after.started,
        stopped=after.stopped and not after.rehydrating and (halts or past),
        agent_status=agent_status,
    )
