"""The contracts: :class:`Store`, :class:`AgentLoop`, :class:`RuntimeProvider`. All that an extension author reads.

What a store promises
=====================
Each operation is one atomic step on one conversation (or one incarnation): it happens wholly or not at all, and what
it answers was true at that step. Lists are for travelling together (group commit): a result per item, in order, and
one item that is refused never fails the others. A store that loses what it acknowledged breaks G4, not G2: the token
still keeps two owners from writing.

What a store does not promise: that a hint arrives, that a delta is kept, that a page of a list is full.

Every operation may raise :class:`~tenure.errors.StoreUnavailableError`: its outcome is then unknown, and the caller
repeats it *unchanged* (same token, same key, same number) until it is answered. Results that mean "no" are values, not
exceptions: match them exhaustively.
"""

from __future__ import annotations

from tenure.abc.findings import Finding, Verdict, broken, clock_finding, fine, risky
from tenure.abc.limits import Limits, snapshot_size
from tenure.abc.loop import AgentFunction, AgentLoop, LiveLoop, Message, Place, Turn
from tenure.abc.runtime import Launches, Ran, Runtime, RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.abc.store import Store
from tenure.abc.values import (
    About,
    Accepted,
    Alive,
    Amended,
    Append,
    Appended,
    AppendResult,
    Buried,
    Claim,
    Claimed,
    Creation,
    Dead,
    Death,
    Deleted,
    Duplicate,
    Elsewhere,
    Fenced,
    FenceQuery,
    Filters,
    Granted,
    Held,
    Hint,
    KeyReused,
    Load,
    NodeRecord,
    Page,
    Paper,
    Reading,
    Reason,
    Refusal,
    Refused,
    Release,
    ReleasedNow,
    ReleaseResult,
    Repeated,
    Sealed,
    Sent,
    Snapshot,
    Stale,
    Submit,
    Submitted,
    TooLarge,
    Topic,
    Unknown,
    Wanted,
    Written,
)

__all__ = [
    "About",
    "Accepted",
    "AgentFunction",
    "AgentLoop",
    "Alive",
    "Amended",
    "Append",
    "AppendResult",
    "Appended",
    "Buried",
    "Claim",
    "Claimed",
    "Creation",
    "Dead",
    "Death",
    "Deleted",
    "Duplicate",
    "Elsewhere",
    "FenceQuery",
    "Fenced",
    "Filters",
    "Finding",
    "Granted",
    "Held",
    "Hint",
    "KeyReused",
    "Launches",
    "Limits",
    "LiveLoop",
    "Load",
    "Message",
    "NodeRecord",
    "Page",
    "Paper",
    "Place",
    "Ran",
    "Reading",
    "Reason",
    "Refusal",
    "Refused",
    "Release",
    "ReleaseResult",
    "ReleasedNow",
    "Repeated",
    "Runtime",
    "RuntimeFailure",
    "RuntimeProvider",
    "RuntimeSpec",
    "Sealed",
    "Sent",
    "Snapshot",
    "Stale",
    "Store",
    "Submit",
    "Submitted",
    "TooLarge",
    "Topic",
    "Turn",
    "Unknown",
    "Verdict",
    "Wanted",
    "Written",
    "broken",
    "clock_finding",
    "fine",
    "risky",
    "snapshot_size",
]
