"""What happens on a node, by name: the one list that feeds logs, metrics, traces, and the signals that tests wait for.

Each fact is a frozen dataclass with a stable ``event`` (``conversation.claimed``), a level, and a sentence for people. Whoever
notices one says ``facts.tell(Claimed(…))`` and no more; what becomes of it is its listeners' business. A fact that happens
often (a command, a call) has the level debug, so that telling it costs no line of log.

Facts hold names, counts and times; never what was said in a conversation, and never a secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenure.facts.telling import CRITICAL, DEBUG, ERROR, INFO, WARNING, Fact
from tenure.facts.telling import Facts as Facts
from tenure.facts.telling import to_log as to_log

if TYPE_CHECKING:
    from collections.abc import Mapping

# --- the node and its lease -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered(Fact):
    event, says = "node.registered", "registered"
    incarnation: str
    node: str


@dataclass(frozen=True, slots=True)
class Renewed(Fact):
    """`slack_s` was left of the trust in the lease when the answer came."""

    event, level, says = "lease.renewed", DEBUG, "lease renewed in {took_s:.4f} s"
    incarnation: str
    took_s: float
    slack_s: float


@dataclass(frozen=True, slots=True)
class RenewalUnanswered(Fact):
    event, level, says = "lease.renewal_unanswered", WARNING, "renewal got no answer: {error}"
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class GaveUp(Fact):
    event, level, says = "lease.lost", ERROR, "incarnation given up: {why}"
    incarnation: str
    why: str
    held: int


@dataclass(frozen=True, slots=True)
class HeartbeatFailed(Fact):
    event, level, says = "heartbeat.failed", ERROR, "the heartbeat ended: {error}"
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class RetirementUnanswered(Fact):
    event, level, says = "lease.retirement_unanswered", WARNING, "could not retire, the ttl will: {error}"
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class LoopBlocked(Fact):
    event, level = "loop.blocked", ERROR
    says = "the event loop is blocked for over {limit_s:g} s; put blocking code into a thread (asyncio.to_thread):\n{stack}"
    limit_s: float
    stack: str


@dataclass(frozen=True, slots=True)
class WitnessDied(Fact):
    event, level, says = "witness.died", ERROR, "the witness died, starting another"
    incarnation: str


@dataclass(frozen=True, slots=True)
class WitnessMissing(Fact):
    event, level, says = "witness.missing", WARNING, "no witness for now, the ttl decides: {error}"
    incarnation: str
    error: str


@dataclass(frozen=True, slots=True)
class Draining(Fact):
    event, says = "node.draining", "draining {conversations} conversations"
    incarnation: str
    conversations: int


@dataclass(frozen=True, slots=True)
class DrainOverdue(Fact):
    event, level = "node.drain_overdue", ERROR
    says = "some loops did not end; the rest is left to the takeover"
    incarnation: str


@dataclass(frozen=True, slots=True)
class Drained(Fact):
    event, says = "node.drained", "drained"
    node: str


@dataclass(frozen=True, slots=True)
class TasksStuck(Fact):
    event, level, says = "tasks.stuck", CRITICAL, "{when}, these do not end: {tasks}"
    when: str
    tasks: str


@dataclass(frozen=True, slots=True)
class TaskFailed(Fact):
    event, level, says = "task.failed", ERROR, "background task {task} failed, starting it again"
    task: str


@dataclass(frozen=True, slots=True)
class TaskEnded(Fact):
    event, level, says = "task.ended", DEBUG, "task ended with {error}"
    task: str
    error: str


@dataclass(frozen=True, slots=True)
class StoreAwaited(Fact):
    event, level, says = "store.awaited", WARNING, "{who} waits for the store: {error}"
    who: str
    error: str
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class StoreWeakens(Fact):
    event, level, says = "store.weakens", WARNING, "the store at {store} weakens a promise: {promise}"
    store: str
    promise: str


@dataclass(frozen=True, slots=True)
class HintsEnded(Fact):
    event, level, says = "store.hints_ended", INFO, "no hints for now: {error}"
    error: str


@dataclass(frozen=True, slots=True)
class HintsFailed(Fact):
    event, level, says = "store.hints_failed", ERROR, "the listening for hints failed, it begins anew: {error}"
    error: str


@dataclass(frozen=True, slots=True)
class HintsLost(Fact):
    event, level, says = (
        "store.hints_lost",
        DEBUG,
        "hints did not reach other nodes, which will look by themselves: {error}",
    )
    error: str


@dataclass(frozen=True, slots=True)
class LaneFailed(Fact):
    event, level, says = (
        "store.lane_failed",
        ERROR,
        "a lane to the store failed, the next request begins another: {error}",
    )
    error: str


@dataclass(frozen=True, slots=True)
class StatementsSlow(Fact):
    event, level = "store.statements_slow", WARNING
    says = (
        "statement_s ({statement_s:g}) is not below half of the ttl ({ttl_s:g} s): a row that a frozen session holds may "
        "cost a lease; set ?statement_s= in the store's URL"
    )
    statement_s: float
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Swept(Fact):
    event, level, says = "sweep.done", DEBUG, "swept: {wanted} wanted, {begun} claimed"
    wanted: int
    begun: int


@dataclass(frozen=True, slots=True)
class AgentUnloadable(Fact):
    event, level, says = "agent.unloadable", ERROR, "agent {agent} cannot be loaded: {error}"
    agent: str
    error: str


@dataclass(frozen=True, slots=True)
class RequestUnknown(Fact):
    event, level, says = "request.unknown", WARNING, "a request that this version does not know: {request}"
    request: str


# --- conversations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received(Fact):
    """A command reached this node; it will be accepted or refused."""

    event, level, says = "command.received", DEBUG, "{kind} received"
    conversation: str
    kind: str


@dataclass(frozen=True, slots=True)
class Accepted(Fact):
    event, level, says = "command.accepted", DEBUG, "{kind} accepted at {seq}"
    conversation: str
    kind: str
    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refused(Fact):
    """Not accepted: a reason of the store's, ``unavailable`` (no answer) or ``cancelled`` (the asker left)."""

    event, level, says = "command.refused", DEBUG, "{kind} refused: {reason}"
    conversation: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Claimed(Fact):
    event, says = "conversation.claimed", "claimed at epoch {epoch}: {why}"
    conversation: str
    epoch: int
    why: str
    death: str | None = None
    took_s: float = 0.0
    """Since this node set out to claim it."""


@dataclass(frozen=True, slots=True)
class TakenOver(Fact):
    """Our claim stands in the journal behind an owner that did not release; `at_s` since 1970, by the store's clock."""

    event, says = "conversation.taken_over", "taken over at epoch {epoch} from incarnation {previous}"
    conversation: str
    epoch: int
    node: str
    previous: str
    at_s: float
    forced: bool
    death: str | None = None


@dataclass(frozen=True, slots=True)
class Provisioning(Fact):
    """The runtime is attached or provisioned from now on; ends with :class:`Live`, or the tenure."""

    event, level, says = "runtime.wanted", DEBUG, "its runtime is looked for"
    conversation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StepReached(Fact):
    event, level, says = "conversation.step", DEBUG, "the start has come to {step}"
    conversation: str
    epoch: int
    step: str


@dataclass(frozen=True, slots=True)
class Provisioned(Fact):
    event, says = "runtime.ready", "runtime {outcome} in {took_s:.3f} s"
    conversation: str
    epoch: int
    outcome: str
    """``provisioned`` anew or ``attached``."""
    took_s: float


@dataclass(frozen=True, slots=True)
class StartFailed(Fact):
    event, level, says = "conversation.start_failed", WARNING, "start failed at {step}: {reason}"
    conversation: str
    epoch: int
    step: str
    reason: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Live(Fact):
    """The loop runs; `took_s` since this node set out to claim the conversation."""

    event, says = "conversation.live", "live after {took_s:.3f} s"
    conversation: str
    epoch: int
    took_s: float
    takeover: bool


@dataclass(frozen=True, slots=True)
class Read(Fact):
    """The owner read a command; `lag_s` since it was accepted."""

    event, level, says = "command.read", DEBUG, "{kind} read after {lag_s:.3f} s"
    conversation: str
    kind: str
    lag_s: float


@dataclass(frozen=True, slots=True)
class TurnTaken(Fact):
    """A turn is about to be journaled; `earlier` is what its first attempt's owner wrote of its trace."""

    event, level, says = "turn.taken", DEBUG, "turn {turn} is taken up, attempt {attempt}"
    conversation: str
    epoch: int
    turn: str
    attempt: int
    commands: tuple[int, ...]
    earlier: str | None = None


@dataclass(frozen=True, slots=True)
class TurnBegun(Fact):
    event, level, says = "turn.begun", DEBUG, "turn {turn}, attempt {attempt}"
    conversation: str
    epoch: int
    turn: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TurnEnded(Fact):
    """`took_s` under this owner; null if it had not begun here."""

    event, level, says = "turn.ended", DEBUG, "turn {turn} {outcome}"
    conversation: str
    epoch: int
    turn: str
    outcome: str
    took_s: float | None


@dataclass(frozen=True, slots=True)
class Answered(Fact):
    """A turn's end stands in the journal; `took_s` since its first command was accepted, `at_s` since 1970, both by the
    store's clock."""

    event, level, says = "turn.answered", DEBUG, "turn {turn} {outcome}, {took_s:.3f} s after its first command"
    conversation: str
    epoch: int
    turn: str
    outcome: str
    took_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class CallBegun(Fact):
    event, level, says = "call.begun", DEBUG, "call {call}"
    conversation: str
    epoch: int
    turn: str
    call: str
    tool: str = ""


@dataclass(frozen=True, slots=True)
class CallEnded(Fact):
    event, level, says = "call.ended", DEBUG, "call {call} {outcome}"
    conversation: str
    epoch: int
    turn: str
    call: str
    outcome: str
    """``finished``, ``failed`` or ``interrupted``."""
    took_s: float | None


@dataclass(frozen=True, slots=True)
class WriteRefused(Fact):
    """The fence held: another claim is in force."""

    event, level, says = "write.refused", WARNING, "{operation} refused at epoch {epoch}"
    conversation: str
    epoch: int
    operation: str


@dataclass(frozen=True, slots=True)
class Lost(Fact):
    event, level, says = "conversation.lost", WARNING, "conversation lost: {why}"
    conversation: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class Released(Fact):
    event, says = "conversation.released", "released: {reason}"
    conversation: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ConversationTrouble(Fact):
    """Something about one conversation went wrong; what follows from it is another fact."""

    event, level, says = "conversation.trouble", ERROR, "{what}"
    conversation: str
    what: str


@dataclass(frozen=True, slots=True)
class DeltaDropped(Fact):
    event, level, says = "delta.dropped", DEBUG, "a delta was dropped: {error}"
    conversation: str
    error: str


@dataclass(frozen=True, slots=True)
class ProviderOpened(Fact):
    event, says = "provider.opened", "runtimes come from {provider}: {detail}"
    provider: str
    detail: Any


@dataclass(frozen=True, slots=True)
class ProviderCaution(Fact):
    event, level, says = "provider.caution", WARNING, "runtimes of {provider}: {caution}"
    provider: str
    caution: str


@dataclass(frozen=True, slots=True)
class RuntimeLeft(Fact):
    event, level, says = "runtime.left", WARNING, "runtime {runtime} is left to the reaper: {error}"
    runtime: str
    error: str


@dataclass(frozen=True, slots=True)
class RuntimeReaped(Fact):
    event, says = "runtime.reaped", "reaped runtime {runtime}: {why}"
    conversation: str
    runtime: str
    why: str


@dataclass(frozen=True, slots=True)
class FilesLeft(Fact):
    event, level, says = "runtime.files_left", WARNING, "files are left behind: {error}"
    conversation: str
    error: str


# --- the face -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReaderCut(Fact):
    event, level, says = "stream.cut", WARNING, "a reader took nothing for {silent_s:g} s: cut"
    conversation: str
    silent_s: float


@dataclass(frozen=True, slots=True)
class ExportCut(Fact):
    event, level = "export.cut", WARNING
    says = "an export was cut, and its reader sees it by the missing end: {error}"
    conversation: str
    error: str


@dataclass(frozen=True, slots=True)
class RequestFailed(Fact):
    event, level, says = "http.failed", WARNING, "{method} {route}: {code}: {error}"
    method: str
    route: str
    code: str
    error: str


@dataclass(frozen=True, slots=True)
class ConnectionsUnaccepted(Fact):
    event, level = "http.unaccepted", ERROR
    says = "no connection can be accepted: {error}; raise the limit of open files, or of memory"
    error: str


@dataclass(frozen=True, slots=True)
class TracesOff(Fact):
    event, level, says = "traces.off", WARNING, "no traces are sent: {why}; {remedy}"
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Ready(Fact):
    event, says = "node.ready", "ready"
    url: str
    node: str
    agents: str


@dataclass(frozen=True, slots=True)
class Leaving(Fact):
    event, says = "node.leaving", "{signal}: leaving, within {limit_s:g} s"
    signal: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class LeavingAlready(Fact):
    event, says = "node.leaving_already", "{signal}: leaving already, it changes nothing"
    signal: str


@dataclass(frozen=True, slots=True)
class LeavingBadly(Fact):
    event, level, says = "node.leaving_badly", ERROR, "{what}"
    what: str


@dataclass(frozen=True, slots=True)
class Left(Fact):
    event, says = "node.left", "left"
    exit: int


ALL: Mapping[str, type[Fact]] = {fact.event: fact for fact in Fact.__subclasses__()}
"""Every fact by the name that logs carry."""
