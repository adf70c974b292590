"""What a node counts, for Prometheus: a listener of its facts, and gauges that are read when somebody asks.

Every series is there at zero from the start and names its node. Labels have few values: a kind, an outcome, a reason that
the code knows; never an id, and never a word of a client's. ``docs/operating/metrics.md`` says what each one means.
"""

from __future__ import annotations

import asyncio
import math
from itertools import product
from typing import TYPE_CHECKING, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tenure import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import Metric

    from tenure.clock import Clock
    from tenure.facts import Fact
    from tenure.node.incarnation import Incarnation
    from tenure.node.node import Node

KINDS = ("message", "start", "stop", "interrupt", "answer", "other")
REFUSALS = (
    "conversation-stopped", "too-many-unsettled", "turn-open", "conversation-exists", "key-reused", "too-large",
    "conversation-deleted", "unknown-conversation", "unavailable", "cancelled", "other",
)  # fmt: skip
WHYS = ("start", "wanted", "takeover", "forced")
ENDS = ("exited", "expired", "retired", "forced", "unknown")
OPERATIONS = ("append", "release", "publish")
RELEASES = ("idle", "drained", "stopped", "failed", "forced")
TURNS = ("completed", "failed", "interrupted")
CALLS = ("finished", "failed", "interrupted")
PROVISIONINGS = ("provisioned", "attached", "failed", "failed_for_good")

QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SLOW_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


@final
class Metrics:
    """The series of one node, in a registry of its own: several nodes may live in one process."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.registry = CollectorRegistry()
        count, time = self._counter, self._histogram
        self._received = count("commands_received", "Commands that reached this node.", kind=KINDS)
        self._accepted = count("commands_accepted", "Commands that are durable, repetitions included.", kind=KINDS)
        self._refused = count("commands_refused", "Commands that were not accepted.", reason=REFUSALS)
        self._claims = count("claims", "Conversations claimed.", why=WHYS)
        self._takeovers = count("takeovers", "Claims after an owner that did not release.", ended=ENDS)
        self._takeover_s = time("takeover_seconds", "From setting out to take over until the loop is live.", QUICK_S)
        self._lost = count("conversations_lost", "Conversations that were taken from this node.")
        self._released = count("releases", "Conversations let go.", reason=RELEASES)
        self._leases_lost = count("leases_lost", "Times that this node gave up its lease, and all it held.")
        self._writes = count("writes_refused", "Late writes of this node that the store refused.", operation=OPERATIONS)
        self._renewal_s = time("renewal_seconds", "One renewal of the node's lease.", QUICK_S)
        self._unanswered = count("renewals_unanswered", "Renewals that got no answer in time.")
        self._turns = count("turns", "Turns that ended under this owner.", outcome=TURNS)
        self._calls = count("calls", "Tool calls that ended under this owner.", outcome=CALLS)
        self._turn_s = time("turn_seconds", "A turn that began and ended under one owner.", SLOW_S, outcome=TURNS)
        self._call_s = time("call_seconds", "A tool call that began and ended under one owner.", SLOW_S, outcome=CALLS)
        self._lag_s = time("journal_lag_seconds", "From a command's acceptance until an owner read it.", QUICK_S)
        self._provisionings = count("provisionings", "Runtimes made ready, and failed starts.", outcome=PROVISIONINGS)
        self._provisioning_s = time("provisioning_seconds", "Until a runtime was ready.", SLOW_S)
        self._stalls = count("event_loop_stalls", "Times that the event loop did not answer for too long.")
        self._waits = count("store_waits", "Times that something had to wait for the store.")

    def _counter(self, name: str, says: str, **labels: Sequence[str]) -> Counter:
        made = Counter(f"tenure_{name}", says, ("node", *labels), registry=self.registry)
        for values in product(*labels.values()):
            made.labels(self.node, *values)
        return made

    def _histogram(self, name: str, says: str, buckets: Sequence[float], **labels: Sequence[str]) -> Histogram:
        made = Histogram(f"tenure_{name}", says, ("node", *labels), registry=self.registry, buckets=buckets)
        for values in product(*labels.values()):
            made.labels(self.node, *values)
        return made

    def gauge(self, name: str, says: str, **read: Callable[[], float]) -> None:
        """A value that is read when somebody asks; several make a series for each `queue`."""
        if list(read) == ["value"]:
            made = Gauge(f"tenure_{name}", says, ("node",), registry=self.registry)
            made.labels(self.node).set_function(read["value"])
            return
        made = Gauge(f"tenure_{name}", says, ("node", "queue"), registry=self.registry)
        for queue, value in read.items():
            made.labels(self.node, queue).set_function(value)

    def text(self) -> bytes:
        """All series, in Prometheus' text format."""
        return generate_latest(_WithoutBirthdays(self.registry))

    # --- hearing ----------------------------------------------------------------------------------------------------

    def hear(self, fact: Fact) -> None:
        """Count it. From any thread; the frequent ones first."""
        node = self.node
        match fact:
            case facts.Received(kind=kind):
                self._received.labels(node, kind).inc()
            case facts.Accepted(kind=kind):
                self._accepted.labels(node, kind).inc()
            case facts.Read(lag_s=lag_s):
                self._lag_s.labels(node).observe(lag_s)
            case facts.CallEnded(outcome=outcome, took_s=took_s):
                _ended(self._calls.labels(node, outcome), self._call_s.labels(node, outcome), took_s)
            case facts.TurnEnded(outcome=outcome, took_s=took_s):
                _ended(self._turns.labels(node, outcome), self._turn_s.labels(node, outcome), took_s)
            case facts.Renewed(took_s=took_s):
                self._renewal_s.labels(node).observe(took_s)
            case facts.Refused(reason=reason):
                self._refused.labels(node, _known(reason, REFUSALS)).inc()
            case facts.StoreAwaited():
                self._waits.labels(node).inc()
            case _:
                self._hear_rare(fact)

    def _hear_rare(self, fact: Fact) -> None:
        node = self.node
        match fact:
            case facts.Claimed(why=why, death=death):
                self._claims.labels(node, _known(why, WHYS)).inc()
                if why in ("takeover", "forced") or death is not None:
                    ended = death or ("forced" if why == "forced" else "unknown")
                    self._takeovers.labels(node, _known(ended, ENDS)).inc()
            case facts.Live(took_s=took_s, takeover=True):
                self._takeover_s.labels(node).observe(took_s)
            case facts.Provisioned(outcome=outcome, took_s=took_s):
                self._provisionings.labels(node, outcome).inc()
                self._provisioning_s.labels(node).observe(took_s)
            case facts.StartFailed(permanent=permanent):
                self._provisionings.labels(node, "failed_for_good" if permanent else "failed").inc()
            case facts.Released(reason=reason):
                self._released.labels(node, reason).inc()
            case facts.Lost():
                self._lost.labels(node).inc()
            case facts.WriteRefused(operation=operation):
                self._writes.labels(node, operation).inc()
            case facts.GaveUp():
                self._leases_lost.labels(node).inc()
            case facts.RenewalUnanswered():
                self._unanswered.labels(node).inc()
            case facts.LoopBlocked():
                self._stalls.labels(node).inc()
            case _:
                pass


def _ended(count: Counter, time: Histogram, took_s: float | None) -> None:
    """Count it in any case; its time only if it began here, for nobody here knows when an earlier owner began it."""
    count.inc()
    if took_s is not None:
        time.observe(took_s)


def _known(word: str, words: Sequence[str]) -> str:
    return word if word in words else words[-1]


@final
class LeastSlack:
    """The least slack of the last half minute at least, a minute at most: whoever looks seldom sees the worst, too.

    Not since the last look: two who look would take it from each other.
    """

    SPAN_S = 30.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = (0, math.inf, math.inf)
        """A span of time by number, the least in it, and the least in the one before. Replaced whole: two threads."""

    def hear(self, fact: Fact) -> None:
        """Note what a renewal left. From the heartbeat's thread."""
        if isinstance(fact, facts.Renewed):
            now, least, before = self._by_now()
            self._seen = (now, min(least, fact.slack_s), before)

    def with_present(self, slack_s: float) -> float:
        """The least of what was noted and of this."""
        _, least, before = self._by_now()
        return min(slack_s, least, before)

    def _by_now(self) -> tuple[int, float, float]:
        now = int(self._clock.boottime().boot_s // self.SPAN_S)
        noted, least, before = self._seen
        match now - noted:
            case 0:
                return now, least, before
            case 1:
                return now, math.inf, least
            case _:
                return now, math.inf, math.inf


@final
class _WithoutBirthdays:
    """A registry without the ``_created`` series, which double what is scraped and say nothing here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def of_node(node: Node) -> Metrics:
    """The metrics of a node: they hear its facts, and look at it when they are asked."""
    metrics = Metrics(node.config.node)
    least = LeastSlack(node.clock)
    node.facts.listen(metrics.hear)
    node.facts.listen(least.hear)

    def of_present(read: Callable[[Incarnation], float]) -> Callable[[], float]:
        def value() -> float:
            present = node.present
            return 0.0 if present is None else read(present)

        return value

    gauge = metrics.gauge
    gauge("owned", "Conversations that this node holds.", value=lambda: node.owned)
    gauge("capacity", "Conversations that this node holds at most.", value=lambda: node.config.capacity)
    gauge("ready", "1 while this node should be sent new work.", value=lambda: not node.readiness())
    gauge("draining", "1 while this node is leaving.", value=lambda: node.draining)
    gauge("wanted", "Work that nobody does, as the last sweep left it.", value=of_present(lambda i: i.wanted))
    gauge("sweep_age_seconds", "Since the last sweep ended.", value=of_present(_sweep_age))
    gauge(
        "heartbeat_slack_seconds",
        "The least that was left of the trust in this node's lease of late; 0 or less: it may no longer act.",
        value=of_present(lambda incarnation: least.with_present(_slack(incarnation, node))),
    )
    gauge(
        "queue_depth",
        "What waits on this node, by queue.",
        commands=of_present(lambda i: sum(len(t.fold.queue) for t in list(i.table.values()))),
        starts=of_present(lambda i: len(i.starting)),
        claims=of_present(lambda i: len(i.claiming)),
        copies=of_present(lambda i: len(i.rehydrating)),
        deltas=of_present(lambda i: sum(len(t.deltas) for t in list(i.table.values()))),
        store=lambda: node.store.under_way,
    )
    return metrics


def _sweep_age(incarnation: Incarnation) -> float:
    try:
        now_s = asyncio.get_running_loop().time()
    except RuntimeError:  # asked from a thread
        return 0.0
    return max(0.0, now_s - incarnation.swept_s) if incarnation.swept_s else 0.0


def _slack(incarnation: Incarnation, node: Node) -> float:
    window = incarnation.heartbeat.window if incarnation.heartbeat is not None else None
    return 0.0 if window is None else window.trusted_until - node.clock.boottime()
