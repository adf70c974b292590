"""Who owned a conversation, from when to when, why it moved, and whose late writes were refused: folded from its journal.

The store journals ``claimed`` and ``released`` inside the very steps that they tell of, so that no owner is missing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

from tenure.clock import Instant
from tenure.journal import Claimed, Event, Json, LoopStarted, Released, StartFailed, read_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TELLING = (Claimed.kind, Released.kind, LoopStarted.kind, StartFailed.kind)
"""The kinds that the timeline is folded from; at most one of each per epoch."""


class Ended(enum.StrEnum):
    """How a tenure ended. The first five are releases, the others losses."""

    IDLE = "idle"
    """Released: nothing was left to do."""
    DRAINED = "drained"
    """Released: its node was leaving."""
    STOPPED = "stopped"
    """Released: somebody stopped the conversation."""
    FAILED = "failed"
    """Released: it could not be started; ``failure`` says why."""
    RELEASED = "released"
    """Released for a reason that this version does not know."""
    DIED = "died"
    """Its process ended, by the kernel's proof."""
    FROZEN = "frozen"
    """Its lease ran out, and later it tried to write: it had been frozen or cut off."""
    EXPIRED = "expired"
    """Its lease ran out, and nothing was heard of it since: frozen, cut off, or dead without a witness."""
    GAVE_UP = "gave_up"
    """It could not renew its lease in time and gave everything up by itself."""
    FORCED = "forced"
    """Another node took it over by force."""
    RECLAIMED = "reclaimed"
    """Its own node claimed it anew: the answer to a claim had been lost."""
    LOST = "lost"
    """It did not release, and how it ended was not recorded."""


@final
@dataclass(frozen=True, slots=True)
class RefusedWrite:
    """A late write that the store refused: when, and which operation (``append``, ``release``, ``publish``)."""

    at: Instant
    operation: str


@final
@dataclass(frozen=True, slots=True)
class TenureSpan:
    """One conversation held by one node: from claim to release, loss, or now (`until` null)."""

    epoch: int
    seq: int
    """Of its ``claimed``."""
    node: str
    incarnation: str
    address: str
    why: str
    """Why it was claimed: ``start``, ``wanted``, ``takeover`` or ``forced``."""
    since: Instant
    live_at: Instant | None = None
    """When its loop was live; null if it never was."""
    until: Instant | None = None
    ended: Ended | None = None
    failure: str | None = None
    """Why its start failed, in its provider's words."""
    refused: tuple[RefusedWrite, ...] = ()

    def as_json(self) -> dict[str, Json]:
        """What the API answers."""
        return {
            "epoch": self.epoch,
            "seq": self.seq,
            "node": self.node,
            "incarnation": self.incarnation,
            "address": self.address,
            "why": self.why,
            "since": self.since.isoformat(),
            "live_at": self.live_at and self.live_at.isoformat(),
            "until": self.until and self.until.isoformat(),
            "ended": self.ended and self.ended.value,
            "failure": self.failure,
            "refused": [{"at": one.at.isoformat(), "operation": one.operation} for one in self.refused],
        }

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> TenureSpan:
        """Read :meth:`as_json` back; a way of ending that this version does not know is ``lost``.

        :raises KeyError: a part is missing. :raises ValueError: a part has no legal value.
        """
        ended = shape["ended"]
        return cls(
            epoch=int(shape["epoch"]),
            seq=int(shape["seq"]),
            node=str(shape["node"]),
            incarnation=str(shape["incarnation"]),
            address=str(shape["address"]),
            why=str(shape["why"]),
            since=Instant.parse(shape["since"]),
            live_at=shape["live_at"] and Instant.parse(shape["live_at"]),
            until=shape["until"] and Instant.parse(shape["until"]),
            ended=ended and (Ended(ended) if ended in list(Ended) else Ended.LOST),
            failure=shape["failure"],
            refused=tuple(RefusedWrite(Instant.parse(one["at"]), one["operation"]) for one in shape["refused"]),
        )


def timeline(events: Iterable[Event], refused: Sequence[tuple[Instant, str, int, str]] = ()) -> tuple[TenureSpan, ...]:
    """The owners that a journal names, oldest first. Events of other kinds than :data:`TELLING` change nothing.

    `refused` holds what the store refused: (at, incarnation, epoch, operation). What cannot be told from the events (they
    start in the middle of a tenure) is left out.
    """
    found: list[TenureSpan] = []
    for event in events:
        match read_body(event):
            case Claimed() as claim:
                if found and found[-1].until is None:
                    found[-1] = replace(found[-1], until=event.at, ended=_moved(claim, found[-1]))
                found.append(
                    TenureSpan(
                        event.epoch or 0, event.seq, claim.node, claim.incarnation, claim.address, claim.why, event.at
                    )
                )
            case Released(reason=reason) if found:
                found[-1] = replace(found[-1], until=event.at, ended=_let_go(reason))
            case LoopStarted() if found and found[-1].live_at is None:
                found[-1] = replace(found[-1], live_at=event.at)
            case StartFailed(step=step, reason=reason) if found:
                found[-1] = replace(found[-1], failure=f"{step}: {reason}")
            case _:
                pass
    return tuple(_with_refusals(one, refused) for one in found)


def _let_go(reason: str) -> Ended:
    return Ended(reason) if reason in ("idle", "drained", "stopped", "failed", "forced") else Ended.RELEASED


def _moved(claim: Claimed, before: TenureSpan) -> Ended:
    """How the owner ended that did not release, in the words of the claim that followed."""
    if claim.incarnation == before.incarnation:
        return Ended.RECLAIMED
    match claim.death:
        case "exited":
            return Ended.DIED
        case "expired":
            return Ended.EXPIRED
        case "retired":
            return Ended.GAVE_UP
        case _:
            return Ended.FORCED if claim.forced else Ended.LOST


def _with_refusals(one: TenureSpan, refused: Sequence[tuple[Instant, str, int, str]]) -> TenureSpan:
    late = tuple(
        RefusedWrite(at, operation)
        for at, incarnation, epoch, operation in refused
        if (incarnation, epoch) == (one.incarnation, one.epoch)
    )
    # Who writes after its lease ran out was not dead: it had been frozen, or cut off from the store.
    ended = Ended.FROZEN if late and one.ended is Ended.EXPIRED else one.ended
    return replace(one, ended=ended, refused=tuple(sorted(late, key=lambda write: write.at)))
