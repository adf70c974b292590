"""Who may: the lease, the trust window and the states of a tenure.

The guarantee
=============
At any moment the store accepts an owner's write from at most one lease per conversation, and the order of those
leases is their epoch. That holds under every crash, pause, partition, restart and clock step, because nothing in
it is measured in time: the store compares owner, epoch and token for equality in the same atomic step as the write.

The non-guarantee
=================
Outside the store nobody can promise that two processes never act at the same moment. A paused process does not know
that it was paused; a call that it had begun goes on. What is done about it: the node stops *before* its lease can be
taken (the trust window, below), every tool call is journaled through the fence before it runs, and each call has an
idempotency key. The overlap that remains is the length of one call, and it is visible in the journal.

The three parts
===============
A **node lease**: each start of a server is an :class:`Incarnation`; it renews one heartbeat whatever it holds. Past
its expiry anybody may *bury* it: a write, for good. There is no coming back; a new incarnation registers instead.

An **epoch per conversation**: each claim raises it by one. It survives release, deletion and restart.

**One append that checks both**: owner, epoch and token equal, the batch number exactly the next.

The trust window
================
::

    renewal sent                     stop_at        trusted_until     expires (store's clock)
        |------ reply -----------------|---------------|------ margin ----|
        | start of the attempt         | begin to stop | refuse all       | may be buried
        ttl is counted from HERE, never from the reply

``trusted_until = start of the last confirmed attempt + ttl - margin`` on boot time. One failed renewal with time
left stops nothing. Past ``stop_at`` loops are cancelled; past ``trusted_until`` the incarnation is given up for
good: no further renewal, everything of it refused locally, children's process groups killed by the heartbeat thread.

The states of a tenure
======================
::

    claimed ──> provisioning ──> starting ──> live ──> releasing ──> released
       │              │              │          │           │
       │              └── failed ────┴──────────┼──────> released (with the reason, at once)
       └──────────────────── lost <─────────────┴───────────┘
                    (refused by the store, given up, or forced away)

================================  =====================================================================
failure                           what happens
================================  =====================================================================
process killed                    the witness buries it within milliseconds; without one, the ttl decides
process frozen                    buried at expiry by whoever looks; thawed, it finds itself fenced
store unreachable                 stops at ``stop_at``, gives up at ``trusted_until``; registers anew later
event loop blocked                nothing: the heartbeat has a thread and a connection of its own
whole interpreter blocked         a freeze
hypervisor pause, cloned machine  the fence, the token and the beat counter; the trust window cannot see it
================================  =====================================================================

Sources: Gray & Cheriton 1989 (leases); Kleppmann 2016 (fencing tokens); River's leadership term, anchored to the
start of the attempt; the exhaustive model of this protocol (docs/proof.md).
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, final

if TYPE_CHECKING:
    from tenure.clock import Deadline

IncarnationId = NewType("IncarnationId", str)
"""One start of one server: random, registered once, never reused. Not a PID, not a host name."""

Epoch = NewType("Epoch", int)
"""The fencing token of a conversation: rises by one with every claim; 0 before the first."""

UNCLAIMED = Epoch(0)
"""The epoch of a conversation that nobody has claimed yet."""

Token = NewType("Token", str)
"""Random per claim attempt. The epoch orders, the token identifies."""


def new_incarnation() -> IncarnationId:
    """A fresh identity for one start of a node: 16 hexadecimal digits of chance."""
    return IncarnationId(secrets.token_hex(8))


def new_token() -> Token:
    """A fresh token for one claim attempt; repeated unchanged while its answer is unknown."""
    return Token(secrets.token_hex(8))


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """The proof of ownership: made by a store in a claim, and by nothing else.

    Every fenced operation takes one and compares all of it for equality. It has no expiry of its own: it is live
    exactly as long as its incarnation is, and it ends with release, a later claim, or deletion.
    """

    conversation: str
    incarnation: IncarnationId
    epoch: Epoch
    token: Token


@final
@dataclass(frozen=True, slots=True)
class Timing:
    """The relations between the times of a node lease, all in seconds.

    ``ttl_s`` is how long a silent node keeps what it holds; ``margin_s`` is kept back for clocks that run at
    different rates and for threads that wake late; ``stop_budget_s`` is what cancelling gets before trust ends.

    :raises ValueError: a relation that would make the promise hollow; the message names the setting and the remedy.
    """

    ttl_s: float = 3.0
    margin_s: float = 0.3
    stop_budget_s: float = 0.5
    beat_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0.2 <= self.ttl_s <= 3600:
            raise ValueError(f"ttl_s is {self.ttl_s:g}, must lie in 0.2 to 3600 seconds: set TENURE_TTL_S")
        if self.margin_s <= 0 or self.stop_budget_s <= 0 or self.beat_s <= 0:
            raise ValueError("margin_s, stop_budget_s and beat_s must be above 0")
        if self.margin_s + self.stop_budget_s + 2 * self.beat_s > self.ttl_s:
            raise ValueError(
                f"margin_s + stop_budget_s + 2 * beat_s is {self.margin_s + self.stop_budget_s + 2 * self.beat_s:g}, "
                f"above ttl_s {self.ttl_s:g}: one lost renewal would stop every loop; raise ttl_s or lower the others"
            )

    @classmethod
    def of_ttl(cls, ttl_s: float) -> Timing:
        """The usual relations for a ttl: margin a tenth, stop budget and beat a sixth of it."""
        return cls(ttl_s=ttl_s, margin_s=ttl_s / 10, stop_budget_s=ttl_s / 6, beat_s=ttl_s / 6)

    @property
    def call_timeout_s(self) -> float:
        """The longest that one renewal may take: a quarter of what can be trusted (rule 17)."""
        return (self.ttl_s - self.margin_s) / 4


@final
@dataclass(frozen=True, slots=True)
class TrustWindow:
    """Until when a node may believe that it is alive. Immutable; each confirmed renewal makes the next one."""

    timing: Timing
    confirmed: Deadline
    """The start of the first transmission of the last confirmed renewal (or registration)."""

    @property
    def stop_at(self) -> Deadline:
        """From here on loops are being cancelled."""
        return self.trusted_until + -self.timing.stop_budget_s

    @property
    def trusted_until(self) -> Deadline:
        """From here on the incarnation is given up for good."""
        return self.confirmed + (self.timing.ttl_s - self.timing.margin_s)

    def renewed(self, attempt_started: Deadline) -> TrustWindow:
        """The window after a renewal was confirmed that was first sent at `attempt_started`; never shorter."""
        return TrustWindow(self.timing, max(self.confirmed, attempt_started))

    def trusts(self, now: Deadline) -> bool:
        """Whether the node may still act for what it owns."""
        return now < self.trusted_until

    def must_stop(self, now: Deadline) -> bool:
        """Whether loops have to be cancelled, renewal or not."""
        return now >= self.stop_at


class TenureState(enum.StrEnum):
    """Where a tenure stands; the names of the diagram above."""

    CLAIMED = "claimed"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    LIVE = "live"
    RELEASING = "releasing"
    RELEASED = "released"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        """Nothing of the tenure is accepted any more, neither here nor by the store."""
        return self in (TenureState.RELEASED, TenureState.LOST)
