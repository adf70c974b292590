"""The three phases of a start: claim, provision, start. See ``docs/principle.md``, which sets this file beside the
algorithm that it succeeds, line by line."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, assert_never, final

from tenure.abc import (
    Alive,
    Buried,
    Claim,
    Creation,
    Dead,
    Death,
    Deleted,
    Elsewhere,
    Held,
    Reason,
    Refused,
    RuntimeFailure,
    RuntimeSpec,
    Stale,
    Unknown,
)
from tenure.conversation import Plan, Then, plan
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    OwnershipLostError,
    ProvisioningError,
    StoreUnavailableError,
    TenureError,
    UnknownConversationError,
)
from tenure.journal import (
    Command,
    Delivery,
    Json,
    JsonObject,
    LoopStarted,
    RuntimeAttached,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    digest,
    draft,
)
from tenure.lease import UNCLAIMED, Epoch, TenureState, new_token
from tenure.node.reaper import named_by, runtime_names
from tenure.node.reasons import reason_of
from tenure.node.release import abandon, fail, outlast, release
from tenure.node.tasks import settled
from tenure.node.tenure import Tenure
from tenure.node.turn import LivePlace
from tenure.node.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from tenure.abc import AgentLoop, LiveLoop, Runtime
    from tenure.abc import Claimed as ClaimResult
    from tenure.clock import Deadline
    from tenure.conversation import Record, Status
    from tenure.errors import Owner
    from tenure.lease import IncarnationId
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Means


type Work = Callable[[Tenure], Awaitable[Reason | Literal[Then.ABANDON] | ProvisioningError | NodeUnavailableError]]
"""What a tenure does between claim and release; the answer is how it is to be released."""

TRIES = 20
CLOSE_S = 10.0
"""How long a loop may take to close."""


@final
@dataclass(frozen=True, slots=True)
class AgentLoopInfo:
    """What a start answers: where the loop of the conversation is, and how it does."""

    conversation_id: str
    status: Status
    epoch: Epoch
    owner: Owner | None
    here: bool

    def as_json(self) -> dict[str, Json]:
        return {
            "conversation_id": self.conversation_id,
            "status": self.status.value,
            "epoch": self.epoch,
            "owner": None if self.owner is None else self.owner.as_json(),
            "here": self.here,
        }


@final
@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of a start; `forced` names the epoch that is to be deposed."""

    conversation_id: str
    settings: JsonObject | None = None
    user_id: str | None = None
    forced: Epoch | None = None
    held: bool = False
    """For a loop that is none of the node's: see :mod:`tenure.node.hold`."""


@final
@dataclass(frozen=True, slots=True)
class Start:
    """A start under way, and what was asked of it."""

    wish: Wish
    task: asyncio.Task[Tenure]


async def maybe_start(incarnation: Incarnation, wish: Wish, default_agent: str) -> Tenure:
    """The live loop of a conversation on this node: joined if it runs or starts, else started.

    The start is not cancelled with its caller. Callers who ask the same get the one start and its outcome; who asks
    something else waits for its end and is then answered for what they asked.
    """
    for _ in range(TRIES):
        under_way = incarnation.starting.get(wish.conversation_id)
        if under_way is None:
            under_way = _begin(incarnation, wish, default_agent)
        elif under_way.wish != wish:
            await asyncio.wait([under_way.task])
            continue
        tenure = await _outcome(under_way.task)
        if tenure.exclusive:
            words = f"conversation {wish.conversation_id} is held on this node for a loop of its own; wait for its end"
            raise CommandRefusedError(wish.conversation_id, "held-here", words)
        try:
            if await _outcome(tenure.ready) or wish.forced is not None:
                return tenure
            # It was held for something that needed no loop, and let go.
        except OwnershipLostError:
            continue  # lost while it started: ask again
    raise NodeUnavailableError(f"conversation {wish.conversation_id} is let go again and again; see its journal")


def _begin(incarnation: Incarnation, wish: Wish, default_agent: str) -> Start:
    task = _means(incarnation).tasks.start(_start(incarnation, wish, default_agent), f"start {wish.conversation_id}")
    start = incarnation.starting[wish.conversation_id] = Start(wish, task)
    task.add_done_callback(lambda _: incarnation.starting.pop(wish.conversation_id, None))
    return start


async def _outcome[T](work: asyncio.Future[T]) -> T:
    try:
        return await settled(work)
    except asyncio.CancelledError:
        if work.cancelled():  # not the caller was cancelled, but what it waits for: the node ends
            raise NodeUnavailableError("this node is leaving") from None
        raise


async def _start(incarnation: Incarnation, wish: Wish, default_agent: str) -> Tenure:
    if (claiming := incarnation.claiming.get(wish.conversation_id)) is not None:
        await asyncio.wait([claiming])  # the sweep's claim of it: one of us is enough
    tenure = await join(incarnation, wish)
    if tenure is None:
        tenure = await claim(incarnation, wish, default_agent)  # 1
    return tenure  # its work goes on with 2 and 3: see `hold`


# --- 1 claim --------------------------------------------------------------------------------------------------------


async def join(incarnation: Incarnation, wish: Wish) -> Tenure | None:
    """The tenure that this node holds already, if the store agrees on exactly that lease; else null."""
    if wish.forced is not None:
        return None
    tenure, record = await agreed(incarnation, wish.conversation_id)
    if tenure is not None and record is not None:
        _insist_on_fit(wish, record)
    return tenure


async def agreed(incarnation: Incarnation, conversation_id: str) -> tuple[Tenure, Record] | tuple[None, None]:
    """What the table holds, once the store agrees; what it does not agree on is lost (C21)."""
    tenure = incarnation.holds(conversation_id)
    if tenure is None:
        return None, None
    record = (await _means(incarnation).store.records([conversation_id]))[0]
    if tenure.letting_go:
        await tenure.over.wait()
        return None, None
    if record is None or (record.epoch, record.token) != (tenure.lease.epoch, tenure.lease.token):
        tenure.lose("the store records another lease")
        return None, None
    return tenure, record


async def claim(incarnation: Incarnation, wish: Wish, default_agent: str, work: Work | None = None) -> Tenure:
    """Claim by compare-and-swap, or say who has it. Nothing was changed if this raises.

    One round trip for a conversation that is new, two for one that nobody owns. `work` takes the place of the node's
    own phases 2 and 3: no agent is needed then.
    """
    creation: Creation | None = Creation(default_agent=default_agent, user_id=wish.user_id, settings=wish.settings)
    expected, death = UNCLAIMED if wish.forced is None else wish.forced, None
    if wish.forced is not None:
        creation = None
    began = _means(incarnation).clock.boottime()
    for _ in range(TRIES):
        request = _claim_of(incarnation, wish, expected, creation, death)
        answer = await _claim_once(incarnation, request)
        match answer:
            case Held(record=record):
                # Only a command takes back "failed": without one it would be called so for ever, whatever it does.
                restarts = record.failed or (record.stopped and wish.forced is None)
                return adopt(incarnation, answer, request, began, restarts=restarts, work=work)
            case Stale(record):
                if wish.forced is not None:
                    raise _elsewhere(wish.conversation_id, record)
                _insist_on_fit(wish, record)
                if work is None:
                    _insist_on_agent(incarnation, record)
                expected = record.epoch
                death = await death_of(incarnation, record.owner and record.owner.incarnation)
            case Elsewhere(record):
                death = await _bury_or_raise(_means(incarnation), wish.conversation_id, record)
                expected = record.epoch
            case Refused(record=record):
                if record is None:
                    raise InvalidInputError("settings", "are larger than the store takes", "make them smaller")
                _insist_on_fit(wish, record)
                expected, creation = record.epoch, None  # whoever names no user may start anybody's
            case Unknown():
                raise UnknownConversationError(wish.conversation_id)
            case Deleted():
                raise ConversationDeletedError(wish.conversation_id)
            case Dead():
                incarnation.give_up("the store calls this incarnation dead")
                raise NodeUnavailableError("this node lost its lease and registers anew")
            case _:
                assert_never(answer)
    raise NodeUnavailableError(f"conversation {wish.conversation_id} changes owners too fast to be claimed")


def _claim_of(
    incarnation: Incarnation, wish: Wish, expected: Epoch, creation: Creation | None, death: Death | None
) -> Claim:
    means = _means(incarnation)
    return Claim(
        conversation=wish.conversation_id,
        incarnation=incarnation.id,
        token=new_token(),
        expected_epoch=expected,
        node=means.config.node,
        address=means.config.public_address,
        why="start" if wish.forced is None else "forced",
        forced=wish.forced is not None,
        create=creation,
        floor=means.floor,
        death=death,
    )


async def _claim_once(incarnation: Incarnation, request: Claim) -> ClaimResult:
    """One claim attempt under one token, repeated until it is answered: it is never forgotten (rule 3)."""
    means = _means(incarnation)
    failures = 0
    while True:
        if not incarnation.trusts():
            raise NodeUnavailableError("this node lost its lease and registers anew")
        try:
            return await means.store.claim(request)
        except StoreUnavailableError:
            failures = min(failures + 1, 8)
            await asyncio.sleep(0.01 * 2**failures * means.rng.uniform(0.5, 1.5))


async def _bury_or_raise(means: Means, conversation_id: str, record: Record) -> Death | None:
    """Judge first, claim second (rule 10): an owner whose time is up is buried, a live one stays. How it ended."""
    assert record.owner is not None, "somebody owns it"
    match await means.store.bury(record.owner.incarnation, Death.EXPIRED):
        case Alive(left):
            raise _elsewhere(conversation_id, record, left)
        case Buried(why):
            return why


async def death_of(incarnation: Incarnation, owner: IncarnationId | None) -> Death | None:
    """How an owner ended that was found dead: a word for the timeline, so that no answer costs no claim."""
    if owner is None or owner == incarnation.id:
        return None
    if (known := incarnation.deaths.get(owner)) is not None:
        return known
    try:
        answer = await _means(incarnation).store.bury(owner, Death.EXPIRED)
    except StoreUnavailableError:
        return None
    if not isinstance(answer, Buried) or answer.why is None:
        return None
    incarnation.learn(owner, answer.why)
    return answer.why


def _elsewhere(conversation_id: str, record: Record, expires_in_s: float | None = None) -> TenureError:
    if record.owner is None:
        moved_on = f"conversation {conversation_id} has moved on to epoch {record.epoch}; look again"
        return CommandRefusedError(conversation_id, "epoch-moved", moved_on)
    return ConversationOwnedElsewhereError(conversation_id, replace(record.owner, expires_in_s=expires_in_s))


def _insist_on_fit(wish: Wish, record: Record) -> None:
    """Another user's conversation is not found, whatever else is asked; other settings are another conversation."""
    others = wish.user_id is not None and wish.user_id != record.user_id
    if others and wish.settings is None:
        raise UnknownConversationError(wish.conversation_id)
    if others or (wish.settings is not None and digest(wish.settings) != digest(record.settings)):
        raise ConversationExistsError(wish.conversation_id)


def _insist_on_agent(incarnation: Incarnation, record: Record) -> None:
    if record.agent not in _means(incarnation).agents:
        raise NodeUnavailableError(_no_agent(record))


def _no_agent(record: Record) -> str:
    return f"this node has no agent named {record.agent!r}"


def adopt(
    incarnation: Incarnation,
    held: Held,
    claim: Claim,
    began: Deadline,
    *,
    restarts: bool = False,
    work: Work | None = None,
    paced: bool = False,
) -> Tenure:
    """Enter a granted claim into the table and begin its work; from here on it ends in release or loss.

    `restarts`: it was stopped or had failed, and whoever asked for it wants it to run. `paced`: nobody asked for it, it
    was found, maybe with thousands; see :mod:`tenure.node.pace`. An answer that comes after that
    of a later claim begins nothing.
    """
    means = _means(incarnation)
    conversation_id = held.lease.conversation
    before = incarnation.table.get(conversation_id)
    if before is not None and before.lease.epoch >= held.lease.epoch:
        return before
    if before is not None:
        before.lose("superseded by a claim of the same node")
    tenure = Tenure(means, held.lease, held.record)
    tenure.telling.claimed(claim, began, takeover=claim.forced or claim.why == "takeover" or claim.death is not None)
    tenure.restarts = restarts
    if before is not None and before.state is TenureState.LOST:
        tenure.predecessors = [*before.predecessors, *([before.work] if before.work is not None else [])]
    tenure.leaving = tenure.handing_over = incarnation.draining
    tenure.exclusive = work is not None
    tenure.paced = paced
    tenure.work = means.tasks.start(hold(tenure, work or serve), f"tenure {conversation_id}@{held.lease.epoch}")
    incarnation.enter(tenure, tenure.work)
    return tenure


# --- 2 provision, 3 start -------------------------------------------------------------------------------------------


async def hold(tenure: Tenure, work: Work) -> None:
    """Phases 2 and 3: hold the claim until the loop has ended, then release. Any failure releases at once."""
    try:
        match await work(tenure):
            case Reason() as reason:
                await release(tenure, reason)
            case Then():
                await abandon(tenure)
            case ProvisioningError() as failure:
                await fail(tenure, failure)
            case NodeUnavailableError() as not_here:
                await release(tenure, Reason.DRAINED)
                if not tenure.ready.done():
                    tenure.ready.set_exception(not_here)
    except OwnershipLostError as loss:
        tenure.lose(loss.why)
    except Exception as error:
        tenure.trouble("it could not be released", traced=True)
        tenure.lose(f"could not be released: {reason_of(error, tenure.masked)}")
    finally:
        await outlast(tenure)


async def serve(tenure: Tenure) -> Reason | Literal[Then.ABANDON] | ProvisioningError | NodeUnavailableError:
    """Do what there is to do; the answer is how it is to be released.

    :raises OwnershipLostError: it is not to be released: it is another's. :raises CancelledError: as well.
    """
    try:
        await succeed(tenure)
        if tenure.restarts:
            await tenure.submit(Command("start", {}, f"start-{tenure.lease.token}", Delivery.NOW))
        async with tenure.means.pace.passed() if tenure.paced else nullcontext():
            todo = await fold_and_settle(tenure)
        agent = tenure.means.agents.get(tenure.record.agent)
        if todo.then is Then.ABANDON:
            return todo.then
        if not todo.then.needs_loop:
            return let_go(tenure, todo)
        if agent is None or tenure.leaving:
            return leave_to_others(tenure)
        tenure.progress.begin()
        runtime = await provision(tenure)  # 2
        return await start(tenure, agent, runtime)  # 3
    except ProvisioningError as failure:
        return failure
    except OwnershipLostError:
        raise
    except asyncio.CancelledError:
        if tenure.lost:
            raise
        if tenure.handing_over:
            return leave_to_others(tenure)
        if (work := asyncio.current_task()) is not None and work.cancelling():
            raise
        return ProvisioningError(tenure.conversation_id, tenure.step, "it was cancelled from within")
    except Exception as error:
        tenure.trouble("its tenure failed", traced=True)
        return ProvisioningError(tenure.conversation_id, tenure.step, reason_of(error, tenure.masked))
    finally:
        tenure.progress.end()


def leave_to_others(tenure: Tenure) -> NodeUnavailableError:
    """This node leaves, or has no such agent: put back as it is, and no failure (R24)."""
    here = tenure.record.agent in tenure.means.agents
    return NodeUnavailableError("this node is draining" if here else _no_agent(tenure.record))


async def succeed(tenure: Tenure) -> None:
    """Two loops of one conversation never run side by side in a process, not even while one is being cancelled."""
    running = [work for work in tenure.predecessors if not work.done()]
    if running and (await asyncio.wait(running, timeout=CLOSE_S))[1]:
        tenure.trouble("starting beside a loop that ignores its end")


async def fold_and_settle(tenure: Tenure) -> Plan:
    """Read to the head, fold, and settle what needs no runtime: a stop works while the provider is down (C18)."""
    tenure.step = "fold"
    await tenure.catch_up(snapshot=True)
    todo = plan(tenure.fold, lost=tenure.record.lost, lost_limit=tenure.means.config.lost_limit)
    if todo.repairs:
        await tenure.append(todo.repairs)
    return todo


def let_go(tenure: Tenure, todo: Plan) -> Reason | ProvisioningError:
    """Nothing here needs a loop."""
    if todo.then is Then.GIVE_UP:
        why = f"{tenure.record.lost} owners were lost while starting it"
        return ProvisioningError(tenure.conversation_id, "start", why, permanent=True)
    return Reason.STOPPED if todo.then is Then.HALT else Reason.IDLE


async def provision(tenure: Tenure) -> Runtime:
    """The runtime: the current one if it still lives, else a new one whose name is journaled first (rules 9, 14)."""
    means, began = tenure.means, tenure.means.clock.boottime()
    tenure.state = TenureState.PROVISIONING
    tenure.telling.provisioning()
    async with _bounded(tenure):
        runtime, outcome = await _reattach(tenure), "attached"
        if runtime is None:
            outcome = "provisioned"
            spec = _spec(tenure, runtime_names(means.identity, tenure.conversation_id, tenure.lease.epoch)[0])
            retired = tenure.fold.runtime
            lost = [draft(RuntimeLost(retired, "its owner is gone"))] if retired is not None else []
            await tenure.append([*lost, draft(RuntimeRequested(spec.name, means.provider.kind))])
            if retired is not None and named_by(means.identity, retired):
                tenure.step = "discard"
                await means.provider.discard(retired)
            tenure.step = "provision"
            runtime = await means.provider.provision(spec, lambda step: setattr(tenure, "step", step))
        tenure.step = "credentials"
        credentials = await tenure.credentials.resolve()
        tenure.step = "configure"
        await means.provider.configure(runtime, credentials)
    tenure.runtime = runtime
    tenure.telling.provisioned(outcome, began)
    return runtime


@asynccontextmanager
async def _bounded(tenure: Tenure) -> AsyncGenerator[None]:
    """A start is a bounded wait with named steps; what a provider or a loop raises becomes its reason."""
    limit_s = tenure.means.config.start_timeout_s
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except TenureError:
        raise
    except RuntimeFailure as failure:
        raise ProvisioningError(
            tenure.conversation_id, failure.step, failure.reason, permanent=failure.permanent
        ) from failure
    except Exception as error:
        why = f"no answer within {limit_s:g} s" if limit.expired() else reason_of(error, tenure.masked)
        raise ProvisioningError(tenure.conversation_id, tenure.step, why) from error


async def _reattach(tenure: Tenure) -> Runtime | None:
    name = tenure.fold.runtime
    if name is None or not tenure.fold.runtime_ready or not named_by(tenure.means.identity, name):
        return None
    tenure.step = "attach"
    return await tenure.means.provider.attach(_spec(tenure, name))


def _spec(tenure: Tenure, name: str) -> RuntimeSpec:
    _, workspace = runtime_names(tenure.means.identity, tenure.conversation_id, tenure.lease.epoch)
    return RuntimeSpec(name, workspace, tenure.conversation_id, tenure.fold.settings)


async def start(tenure: Tenure, agent: AgentLoop, runtime: Runtime) -> Reason:
    """Open the loop, say so, and serve until there is a reason to let go."""
    tenure.state, tenure.step = TenureState.STARTING, "loop"
    opened: AbstractAsyncContextManager[LiveLoop] | None = None
    try:
        async with _bounded(tenure):
            await agent.ready()
            opening = agent.open(LivePlace(tenure))
            live = await opening.__aenter__()
            opened = opening
        attached = tenure.fold.runtime_ready
        told = RuntimeAttached(runtime.name) if attached else RuntimeReady(runtime.name, tenure.means.provider.detail)
        await tenure.append([draft(told), draft(LoopStarted(tenure.record.agent))])
        tenure.state = TenureState.LIVE
        tenure.progress.end()
        tenure.telling.live()
        tenure.ready.set_result(True)
        return await Turns(tenure, agent, live).run()
    finally:
        if opened is not None:
            await _close(tenure, opened)


async def _close(tenure: Tenure, opened: AbstractAsyncContextManager[LiveLoop]) -> None:
    """What a loop does at its end is bounded, and no failure of the start: its work stands in the journal."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await opened.__aexit__(*sys.exc_info())
    except Exception:
        tenure.trouble("the loop did not close well", traced=True)


def _means(incarnation: Incarnation) -> Means:
    if incarnation.means is None or incarnation.given_up:
        raise NodeUnavailableError("this node is registering")
    return incarnation.means
