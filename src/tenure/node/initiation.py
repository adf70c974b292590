"""The three phases of a start: claim, provision, start. See ``docs/principle.md``, which sets this file beside the
algorithm that it succeeds, line by line."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never, final

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
    Submit,
    Unknown,
)
from tenure.conversation import Plan, Then, plan
from tenure.errors import (
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
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
    RuntimeDiscarded,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    StartFailed,
    draft,
)
from tenure.lease import UNCLAIMED, Epoch, TenureState, new_token
from tenure.node.credentials import credentials
from tenure.node.tasks import settled
from tenure.node.tenure import Tenure
from tenure.node.turn import LivePlace
from tenure.node.turns import Turns

if TYPE_CHECKING:
    from tenure.abc import AgentLoop, Runtime
    from tenure.abc import Claimed as ClaimResult
    from tenure.conversation import Fold, Record, Status
    from tenure.errors import Owner
    from tenure.journal import Draft
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Means

log = logging.getLogger("tenure.initiation")


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


async def maybe_start(incarnation: Incarnation, wish: Wish, default_agent: str) -> Tenure:
    """The live loop of a conversation on this node: joined if it runs or starts, else started.

    The start is not cancelled with its caller; two callers in one process get the one start.
    """
    under_way = incarnation.starting.get(wish.conversation_id)
    if under_way is None:
        means = _means(incarnation)
        under_way = means.tasks.start(_start(incarnation, wish, default_agent), f"start {wish.conversation_id}")
        incarnation.starting[wish.conversation_id] = under_way
        under_way.add_done_callback(lambda _: incarnation.starting.pop(wish.conversation_id, None))
    tenure = await settled(under_way)
    if wish.user_id is not None and tenure.record.user_id != wish.user_id:
        raise UnknownConversationError(wish.conversation_id)
    await settled(tenure.ready)
    return tenure


async def _start(incarnation: Incarnation, wish: Wish, default_agent: str) -> Tenure:
    tenure = await join(incarnation, wish)
    if tenure is None:
        tenure = await claim(incarnation, wish, default_agent)  # 1
    return tenure  # its work goes on with 2 and 3: see `hold`


# --- 1 claim --------------------------------------------------------------------------------------------------------


async def join(incarnation: Incarnation, wish: Wish) -> Tenure | None:
    """The tenure that this node holds already, if the store agrees on exactly that lease; else null."""
    tenure = incarnation.holds(wish.conversation_id)
    if tenure is None or wish.forced is not None:
        return None
    record = (await _means(incarnation).store.records([wish.conversation_id]))[0]
    owner = record.owner if record is not None else None
    if record is None or owner is None or (record.epoch, record.token) != (tenure.lease.epoch, tenure.lease.token):
        tenure.lose("the store records another lease")
        return None
    return tenure


async def claim(incarnation: Incarnation, wish: Wish, default_agent: str) -> Tenure:
    """Claim by compare-and-swap, or say who has it. Nothing was changed if this raises.

    One round trip for a conversation that is new, two for one that nobody owns.
    """
    means = _means(incarnation)
    creation: Creation | None = Creation(default_agent=default_agent, user_id=wish.user_id, settings=wish.settings)
    expected = UNCLAIMED if wish.forced is None else wish.forced
    if wish.forced is not None:
        creation = None
    for _ in range(20):
        answer = await _claim_once(incarnation, wish, expected, creation)
        match answer:
            case Held():
                await _restart_stopped(means, answer)
                return adopt(incarnation, answer)
            case Stale(record):
                if wish.forced is not None:
                    raise _elsewhere(wish.conversation_id, record)
                expected, creation = record.epoch, _fitting(creation, record)
            case Elsewhere(record):
                await _bury_or_raise(means, wish.conversation_id, record)
                expected = record.epoch
            case Refused(reason, record):
                if record is None or (wish.user_id, wish.settings) != (None, None):
                    raise _refusal(wish, reason, record)
                expected, creation = record.epoch, None
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


async def _claim_once(incarnation: Incarnation, wish: Wish, expected: Epoch, creation: Creation | None) -> ClaimResult:
    """One claim attempt under one token, repeated until it is answered: it is never forgotten (rule 3)."""
    means = _means(incarnation)
    request = Claim(
        conversation=wish.conversation_id,
        incarnation=incarnation.id,
        token=new_token(),
        expected_epoch=expected,
        node=means.config.node,
        address=means.config.public_address,
        why="start" if wish.forced is None else "forced",
        forced=wish.forced is not None,
        create=creation,
    )
    failures = 0
    while True:
        if not incarnation.trusts():
            raise NodeUnavailableError("this node lost its lease and registers anew")
        try:
            return await means.store.claim(request)
        except StoreUnavailableError:
            failures = min(failures + 1, 8)
            await asyncio.sleep(0.01 * 2**failures * means.rng.uniform(0.5, 1.5))


def _fitting(creation: Creation | None, record: Record) -> Creation | None:
    return creation if creation is not None and creation.fits(record) else None


async def _bury_or_raise(means: Means, conversation_id: str, record: Record) -> None:
    """Judge first, claim second (rule 10): an owner whose time is up is buried, a live one stays."""
    assert record.owner is not None, "somebody owns it"
    match await means.store.bury(record.owner.incarnation, Death.EXPIRED):
        case Alive(left):
            raise _elsewhere(conversation_id, record, left)
        case Buried():
            return


def _elsewhere(conversation_id: str, record: Record, expires_in_s: float | None = None) -> TenureError:
    if record.owner is None:
        return NodeUnavailableError(f"conversation {conversation_id} has moved on to epoch {record.epoch}; look again")
    return ConversationOwnedElsewhereError(conversation_id, replace(record.owner, expires_in_s=expires_in_s))


def _refusal(wish: Wish, reason: str, record: Record | None) -> TenureError:
    if wish.settings is None and record is not None and record.user_id != wish.user_id:
        return UnknownConversationError(wish.conversation_id)
    return ConversationExistsError(wish.conversation_id)


async def _restart_stopped(means: Means, held: Held) -> None:
    """Who starts a stopped conversation wants it to run: said by the durable command, like any other start."""
    if held.record.stopped:
        command = Command("start", {}, f"start-{held.lease.token}", Delivery.NOW)
        await means.store.submit(Submit(held.lease.conversation, command))


def adopt(incarnation: Incarnation, held: Held) -> Tenure:
    """Enter a granted claim into the table and begin its work; from here on it ends in release or loss."""
    means = _means(incarnation)
    conversation_id = held.lease.conversation
    before = incarnation.holds(conversation_id)
    if before is not None:
        if before.lease == held.lease:
            return before
        before.lose("superseded by a claim of the same node")
    tenure = Tenure(means, held.lease, held.record)
    incarnation.table[conversation_id] = tenure
    tenure.work = means.tasks.start(hold(incarnation, tenure), f"tenure {conversation_id}@{held.lease.epoch}")
    return tenure


# --- 2 provision, 3 start -------------------------------------------------------------------------------------------


async def hold(incarnation: Incarnation, tenure: Tenure) -> None:
    """Phases 2 and 3: hold the claim until the loop has ended, then release. Any failure releases at once."""
    try:
        if tenure.record.agent not in tenure.means.agents:
            await leave_to_others(tenure)
            return
        todo = await fold_and_settle(tenure)
        if not todo.then.needs_loop:
            await let_go(tenure, todo)
            return
        agent = tenure.means.agents[tenure.record.agent]
        runtime = await provision(tenure)  # 2
        reason = await start(tenure, agent, runtime)  # 3
        await release(tenure, reason)
    except OwnershipLostError as loss:
        tenure.lose(loss.why)
    except asyncio.CancelledError:
        if tenure.lost or not tenure.handing_over:
            tenure.lose("cancelled")
            raise
        await release(tenure, Reason.DRAINED)
    except ProvisioningError as failure:
        await fail(tenure, failure)
    except Exception as error:
        log.exception("a tenure failed", extra={"conversation": tenure.conversation_id})
        await fail(tenure, ProvisioningError(tenure.conversation_id, tenure.step, f"{type(error).__name__}: {error}"))
    finally:
        if not tenure.ready.done():
            tenure.ready.set_result(None)
        if incarnation.table.get(tenure.conversation_id) is tenure:
            del incarnation.table[tenure.conversation_id]


async def leave_to_others(tenure: Tenure) -> None:
    """Claimed by name, but this node has no such agent: put back as it was, and no failure (R24)."""
    await tenure.catch_up(snapshot=True)
    await tenure.release(Reason.DRAINED)
    tenure.ready.set_exception(NodeUnavailableError(f"this node has no agent named {tenure.record.agent!r}"))


async def fold_and_settle(tenure: Tenure) -> Plan:
    """Read to the head, fold, and settle what needs no runtime: a stop works while the provider is down (C18)."""
    tenure.step = "fold"
    await tenure.catch_up(snapshot=True)
    todo = plan(tenure.fold, lost=tenure.record.lost, lost_limit=tenure.means.config.lost_limit)
    if todo.repairs:
        await tenure.append(todo.repairs)
    return todo


async def let_go(tenure: Tenure, todo: Plan) -> None:
    """Nothing here needs a loop."""
    if todo.then is Then.GIVE_UP:
        failure = StartFailed("start", f"{tenure.record.lost} owners were lost while starting it", permanent=True)
        await tenure.release(
            Reason.FAILED, lambda fold: [*_discarding(tenure, fold, "failed"), draft(failure)], failed=True
        )
    else:
        await release(tenure, Reason.STOPPED if todo.then is Then.HALT else Reason.IDLE)


async def provision(tenure: Tenure) -> Runtime:
    """The runtime: the current one if it still lives, else a new one whose name is journaled first (rules 9, 14)."""
    means = tenure.means
    tenure.state = TenureState.PROVISIONING
    try:
        async with asyncio.timeout(means.config.start_timeout_s):
            runtime = await _reattach(tenure)
            if runtime is None:
                spec = _spec(tenure, f"{means.identity}.{tenure.conversation_id}.e{tenure.lease.epoch}")
                retired = tenure.fold.runtime
                lost = [draft(RuntimeLost(retired, "its owner is gone"))] if retired is not None else []
                await tenure.append([*lost, draft(RuntimeRequested(spec.name, means.provider.kind))])
                if retired is not None:
                    tenure.step = "discard"
                    await means.provider.discard(retired)
                tenure.step = "provision"
                runtime = await means.provider.provision(spec, lambda step: setattr(tenure, "step", step))
            tenure.step = "configure"
            await means.provider.configure(runtime, await credentials(tenure))
    except RuntimeFailure as failure:
        raise ProvisioningError(
            tenure.conversation_id, failure.step, failure.reason, permanent=failure.permanent
        ) from failure
    except TimeoutError:
        raise ProvisioningError(
            tenure.conversation_id, tenure.step, f"no answer within {means.config.start_timeout_s:g} s"
        ) from None
    tenure.runtime = runtime
    return runtime


async def _reattach(tenure: Tenure) -> Runtime | None:
    if tenure.fold.runtime is None or not tenure.fold.runtime_ready:
        return None
    tenure.step = "attach"
    return await tenure.means.provider.attach(_spec(tenure, tenure.fold.runtime))


def _spec(tenure: Tenure, name: str) -> RuntimeSpec:
    workspace = f"{tenure.means.identity}.{tenure.conversation_id}"
    return RuntimeSpec(name, workspace, tenure.conversation_id, tenure.fold.settings)


async def start(tenure: Tenure, agent: AgentLoop, runtime: Runtime) -> Reason:
    """Open the loop, say so, and serve until there is a reason to let go."""
    tenure.state, tenure.step = TenureState.STARTING, "loop"
    try:
        async with agent.open(LivePlace(tenure)) as live:
            attached = tenure.fold.runtime_ready
            told = RuntimeAttached(runtime.name) if attached else RuntimeReady(runtime.name)
            await tenure.append([draft(told), draft(LoopStarted(tenure.record.agent))])
            tenure.state = TenureState.LIVE
            tenure.ready.set_result(None)
            return await Turns(tenure, agent, live).run()
    except (OwnershipLostError, asyncio.CancelledError):
        raise
    except Exception as error:
        if tenure.state is TenureState.LIVE:
            raise
        raise ProvisioningError(tenure.conversation_id, "loop", f"{type(error).__name__}: {error}") from error


async def release(tenure: Tenure, reason: Reason) -> None:
    """Let go; a runtime that cannot outlive its node is discarded, and the journal says so before it happens."""
    await tenure.release(reason, lambda fold: _discarding(tenure, fold, reason.value))
    name = tenure.fold.runtime
    if name is not None and _discarding(tenure, tenure.fold, reason.value):
        await _discard(tenure, name)


async def fail(tenure: Tenure, failure: ProvisioningError) -> None:
    """Fail safe: the reason journaled and the claim released in one append, then the runtime torn down (G5)."""
    means = tenure.means
    back_off = min(60.0, 2.0 ** min(tenure.record.failures, 6)) * means.config.backoff_s * means.rng.uniform(0.75, 1.25)
    reason = tenure.masked(failure.reason)
    told = draft(StartFailed(failure.step, reason, failure.permanent))
    try:
        await tenure.release(
            Reason.FAILED,
            lambda fold: [*_discarding(tenure, fold, "failed"), told],
            failed=failure.permanent,
            retry_in_s=back_off,
        )
    except OwnershipLostError as loss:
        tenure.lose(loss.why)
    except Exception as error:
        log.exception("could not release a failed start", extra={"conversation": tenure.conversation_id})
        tenure.lose(f"could not be released: {error}")
    else:
        if tenure.fold.runtime is not None:
            await _discard(tenure, tenure.fold.runtime)
    if not tenure.ready.done():
        tenure.ready.set_exception(failure)


def _discarding(tenure: Tenure, fold: Fold, reason: str) -> list[Draft]:
    """Asked when the release's time has come: the append that names the runtime may still have been under way."""
    name = fold.runtime
    if name is None or (tenure.means.provider.outlives_node and reason != "failed"):
        return []
    return [draft(RuntimeDiscarded(name, reason))]


async def _discard(tenure: Tenure, name: str) -> None:
    """Torn down now if the provider answers; otherwise the reaper finds it by the journal's word."""
    try:
        async with asyncio.timeout(30):
            await tenure.means.provider.discard(name)
    except (RuntimeFailure, TimeoutError, OSError) as error:
        log.warning("runtime %s is left to the reaper: %s", name, error)


def _means(incarnation: Incarnation) -> Means:
    if incarnation.means is None or incarnation.given_up:
        raise NodeUnavailableError("this node is registering")
    return incarnation.means
