"""The record that the store keeps per conversation, and the status that follows from it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from tenure.journal import (
    Json,
    JsonObject,
    Policy,
)
from tenure.lease import UNCLAIMED, Epoch, Token

if TYPE_CHECKING:
    from tenure.clock import Instant
    from tenure.errors import Owner

    pass


class TurnState(enum.StrEnum):
    """Where the record says the turn is; what ``reject``, ``interrupt`` and ``steer`` are judged by."""

    NONE = "none"
    OPEN = "open"
    WAITING = "waiting"


class Status(enum.StrEnum):
    """What a conversation is doing, the same word on every node."""

    STOPPED = "stopped"
    FAILED = "failed"
    QUEUED = "queued"
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    IDLE = "idle"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The one row that the store keeps per conversation, as an operation saw it.

    ``wanted`` means that something can be done; ``started`` that the loop of the current claim is live; ``head`` is
    the journal's last seq; ``last_command`` and ``last_start`` the last seq of a command and of a ``start``.
    ``retry_in_s`` is what is left of the back-off by the store's clock. A tombstone has ``deleted`` and its epoch.
    """

    conversation: str
    user_id: str | None = None
    agent: str = ""
    settings: JsonObject = field(default_factory=dict[str, Json])
    policy: Policy = Policy.ENQUEUE
    title: str | None = None
    metadata: JsonObject = field(default_factory=dict[str, Json])
    version: int = 1
    epoch: Epoch = UNCLAIMED
    owner: Owner | None = None
    token: Token | None = None
    head: int = 0
    last_command: int = 0
    last_start: int = 0
    unsettled: int = 0
    turn: TurnState = TurnState.NONE
    started: bool = False
    wanted: bool = False
    retry_in_s: float | None = None
    lost: int = 0
    failures: int = 0
    stopped: bool = False
    failed: bool = False
    deleted: bool = False
    agent_status: str | None = None
    created_at: Instant
    updated_at: Instant


def status(record: Record, *, owner_alive: bool) -> Status:
    """The status of a conversation: the table of DESIGN §6, read from the top.

    A turn that waits shows ``waiting`` whether or not somebody holds it meanwhile: it waits for the same thing.
    """
    if record.stopped:
        return Status.STOPPED
    if record.failed and not owner_alive:
        return Status.FAILED
    if record.turn is TurnState.WAITING and not record.wanted:
        return Status.WAITING
    if not owner_alive:
        return Status.QUEUED if record.wanted or record.turn is TurnState.OPEN else Status.IDLE
    if not record.started:
        return Status.STARTING
    if record.turn is TurnState.OPEN:
        return Status.RUNNING
    return Status.QUEUED if record.wanted else Status.IDLE


@final
@dataclass(frozen=True, slots=True)
class Settle:
    """What an append tells the record beside its events (rule 6): ``wanted := runnable or last_command > seen``.

    ``settled`` counts down ``unsettled``; ``turn_ended`` resets ``lost``; ``stopped`` takes effect only if no later
    ``start`` was accepted than the writer had seen. Null parts leave the record as it is.
    """

    runnable: bool
    settled: tuple[int, ...] = ()
    turn: TurnState = TurnState.NONE
    turn_ended: bool = False
    started: bool = False
    stopped: bool = False
    failed: bool = False
    agent_status: str | None = None

    def as_json(self) -> dict[str, Json]:
        """The part of a batch that its digest covers."""
        return {
            "runnable": self.runnable,
            "settled": list(self.settled),
            "turn": self.turn.value,
            "turn_ended": self.turn_ended,
            "started": self.started,
            "stopped": self.stopped,
            "failed": self.failed,
            "agent_status": self.agent_status,
        }
