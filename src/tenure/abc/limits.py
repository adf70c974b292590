"""What a store accepts, counted before it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.errors import InvalidInputError
from tenure.journal import canonical

if TYPE_CHECKING:
    from tenure.abc.values import Append, Snapshot


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What a store accepts. Bytes are those of canonical JSON."""

    event_bytes: int = 1 << 20
    """Of one event's body; above it, :class:`~tenure.abc.TooLarge`."""
    snapshot_bytes: int = 8 << 20
    """Of one snapshot, both parts together."""
    unsettled: int = 100
    page: int = 1000
    batch_events: int = 1000
    refusals: int = 100
    """How many refused writes are kept per conversation."""

    def insist(self, batch: Append) -> None:
        """What a store says first of an append or a release, whoever sent it; nothing was written, its number is free.

        :raises InvalidInputError: more events, or a larger snapshot, than it takes in one step.
        """
        self.insist_on_count(len(batch.drafts))
        if batch.snapshot is not None and (size := snapshot_size(batch.snapshot)) > self.snapshot_bytes:
            problem = f"has {size} bytes, above the store's limit of {self.snapshot_bytes}"
            raise InvalidInputError(
                "state", problem, "keep what is large in a file of the workspace, and its name here"
            )

    def insist_on_count(self, events: int) -> None:
        """:raises InvalidInputError: they are too many for one batch."""
        if events > self.batch_events:
            problem = f"are {events} in one batch, above the store's limit of {self.batch_events}"
            raise InvalidInputError("events", problem, "journal them in several batches")


def snapshot_size(snapshot: Snapshot) -> int:
    """The bytes of its parts."""
    return sum(len(canonical(part).encode()) for part in (snapshot.fold, snapshot.loop) if part is not None)
