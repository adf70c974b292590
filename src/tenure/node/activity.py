"""What happened lately: takeovers, and how long turns took, minute by minute, over the last hour.

For people who watch, never for a decision. It listens to the facts of its node. Each incarnation keeps its own part in memory, within bounds, and leaves a
copy in the store as a paper of the kind ``activity``, a moment after something happened: so any node can tell the
cluster's last hour, and a killed node's part survives it but for its last moments. Papers older than the hour are removed
by whoever publishes next.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, final

from tenure import facts
from tenure.clock import Instant
from tenure.errors import StoreUnavailableError
from tenure.journal import JsonObject
from tenure.lease import IncarnationId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tenure.abc import NodeRecord, Store
    from tenure.clock import Clock
    from tenure.facts import Fact
    from tenure.journal import Json

KIND = "activity"
MINUTES = 60
MOST_TAKEOVERS = 100
"""Kept per incarnation, the newest; the counts per minute stay exact."""
PUBLISH_S = 1.0
"""What happens within this is published together."""
TIDY_S = 600.0
LAST_WORDS_S = 0.5

EDGES_S: tuple[float, ...] = tuple(round(0.005 * 10 ** (i / 8), 6) for i in range(52))
"""Upper edges of the buckets of turn times, eight to a decade: 5 ms to about 3 h 20 min. One more takes the rest."""


@final
@dataclass(slots=True)
class Minute:
    """One minute of one or of all incarnations: takeovers, ends of turns by kind, and the buckets of their times."""

    takeovers: int = 0
    ends: dict[str, int] = field(default_factory=dict[str, int])
    buckets: dict[int, int] = field(default_factory=dict[int, int])
    longest_s: float = 0.0

    def add_turn(self, end: str, took_s: float) -> None:
        self.ends[end] = self.ends.get(end, 0) + 1
        bucket = bisect.bisect_left(EDGES_S, took_s)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.longest_s = max(self.longest_s, took_s)

    def add(self, other: Minute) -> None:
        """Add another incarnation's same minute: buckets merge without loss."""
        self.takeovers += other.takeovers
        self.longest_s = max(self.longest_s, other.longest_s)
        for end, count in other.ends.items():
            self.ends[end] = self.ends.get(end, 0) + count
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def quantile_s(self, part: float) -> float | None:
        """The turn time that `part` of the turns did not exceed, as fine as the buckets; null without turns."""
        rank = math.ceil(part * sum(self.buckets.values()))
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return min(EDGES_S[bucket], self.longest_s) if bucket < len(EDGES_S) else self.longest_s
        return None

    def as_json(self) -> dict[str, Json]:
        return {
            "takeovers": self.takeovers,
            "ends": self.ends,
            "buckets": {str(bucket): count for bucket, count in self.buckets.items()},
            "longest_s": self.longest_s,
        }

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> Self:
        buckets = {int(bucket): int(count) for bucket, count in shape["buckets"].items()}
        return cls(int(shape["takeovers"]), dict(shape["ends"]), buckets, float(shape["longest_s"]))


@final
class Activity:
    """The last hour of one incarnation; or, merged, of all."""

    def __init__(self) -> None:
        self.takeovers: deque[JsonObject] = deque(maxlen=MOST_TAKEOVERS)
        self.minutes: dict[int, Minute] = {}
        self.stirred = asyncio.Event()
        self._names: dict[IncarnationId, str] = {}

    # --- recording --------------------------------------------------------------------------------------------------

    def seen(self, nodes: Iterable[NodeRecord]) -> None:
        """Remember whose incarnations these are: by the time of a takeover the register may have forgotten."""
        self._names = {node.incarnation: node.about.node for node in nodes}

    def hear(self, fact: Fact) -> None:
        """Keep what people are to see of it. In the node's event loop."""
        match fact:
            case facts.TakenOver(at_s=at_s):
                self._keep_takeover(fact)
                self._minute(Instant(at_s)).takeovers += 1
            case facts.Answered(outcome=outcome, took_s=took_s, at_s=at_s):
                self._minute(Instant(at_s)).add_turn(outcome, took_s)
            case _:
                return
        self.stirred.set()

    def _keep_takeover(self, fact: facts.TakenOver) -> None:
        self.takeovers.append(
            {
                "at": Instant(fact.at_s).isoformat(),
                "conversation_id": fact.conversation,
                "epoch": fact.epoch,
                "node": fact.node,
                "previous_node": self._names.get(IncarnationId(fact.previous)),
                "previous_incarnation": fact.previous,
                "forced": fact.forced,
                "death": fact.death,
            }
        )

    def _minute(self, at: Instant) -> Minute:
        number = int(at.unix_s // 60)
        self._forget_before(number - MINUTES)
        return self.minutes.setdefault(number, Minute())

    def _forget_before(self, number: int) -> None:
        for old in [one for one in self.minutes if one < number]:
            del self.minutes[old]
        since = Instant(number * 60.0).isoformat()
        while self.takeovers and str(self.takeovers[0]["at"]) < since:
            self.takeovers.popleft()

    # --- leaving a copy, and reading all ----------------------------------------------------------------------------

    def as_json(self) -> dict[str, Json]:
        """The paper."""
        return {
            "takeovers": list(self.takeovers),
            "minutes": {str(number): minute.as_json() for number, minute in self.minutes.items()},
        }

    @classmethod
    def merged(cls, papers: Iterable[JsonObject], now: Instant) -> Activity:
        """All incarnations' parts as one; what is older than the hour, or unreadable to this version, is left out."""
        whole, takeovers = cls(), list[JsonObject]()
        oldest = int(now.unix_s // 60) - MINUTES + 1
        for paper in papers:
            try:
                part = _read(paper)
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # a newer version's
            takeovers += [one for one in part.takeovers if str(one["at"]) >= Instant(oldest * 60.0).isoformat()]
            for number, minute in part.minutes.items():
                if number >= oldest:
                    whole.minutes.setdefault(number, Minute()).add(minute)
        whole.takeovers.extend(sorted(takeovers, key=lambda one: str(one["at"])))
        return whole


def _read(paper: Mapping[str, Any]) -> Activity:
    part = Activity()
    part.takeovers.extend(paper["takeovers"])
    part.minutes = {int(number): Minute.from_json(minute) for number, minute in paper["minutes"].items()}
    return part


@final
class Publisher:
    """Leaves an incarnation's part in the store, a moment after something happened."""

    def __init__(self, activity: Activity, store: Store, incarnation: IncarnationId, clock: Clock) -> None:
        self._activity = activity
        self._store = store
        self._incarnation = incarnation
        self._clock = clock
        self._version = 0

    async def run(self) -> None:
        """Publish what comes; at the end, within a bound, also what came last."""
        tidied = float("-inf")
        try:
            while True:
                await self._activity.stirred.wait()
                await self.publish()
                now = asyncio.get_running_loop().time()
                if now - tidied > TIDY_S:
                    tidied = now
                    await self._tidy()
                await asyncio.sleep(PUBLISH_S)
        except asyncio.CancelledError:
            if self._activity.stirred.is_set():
                await self._last_words()
            raise

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self.publish()
        except (StoreUnavailableError, TimeoutError):
            return

    async def publish(self) -> None:
        """Write the paper as it is now. An answer that was lost shows as another version: read and written again."""
        self._activity.stirred.clear()
        try:
            for _ in range(3):
                paper = await self._store.put_paper(KIND, self._incarnation, self._activity.as_json(), self._version)
                if paper is not None:
                    self._version = paper.version
                    return
                found = await self._store.get_paper(KIND, self._incarnation)
                self._version = 0 if found is None else found.version
        except BaseException:
            self._activity.stirred.set()
            raise

    async def _tidy(self) -> None:
        oldest = int(self._clock.now().unix_s // 60) - MINUTES
        for paper in await self._store.list_papers(KIND):
            minutes: Any = paper.document.get("minutes", {})
            if paper.id != self._incarnation and max(map(int, minutes), default=0) < oldest:
                await self._store.remove_paper(KIND, paper.id, paper.version)


async def last_hour(store: Store, mine: tuple[IncarnationId, Activity] | None, now: Instant) -> Activity:
    """The cluster's last hour: every paper, and this node's own part as it is now.

    :raises StoreUnavailableError: the papers cannot be read.
    """
    papers: list[JsonObject] = [
        paper.document for paper in await store.list_papers(KIND) if mine is None or paper.id != mine[0]
    ]
    return Activity.merged([*papers, *([mine[1].as_json()] if mine is not None else [])], now)
