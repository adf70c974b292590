"""Letting go: the end of every tenure that is not lost. The journal hears of it before anything is destroyed (rule 14)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tenure import facts
from tenure.abc import Reason
from tenure.errors import ProvisioningError
from tenure.journal import CommandSettled, Outcome, RuntimeDiscarded, StartFailed, draft
from tenure.lease import TenureState
from tenure.node.reaper import named_by
from tenure.node.reasons import reason_of, speakable

if TYPE_CHECKING:
    from tenure.conversation import Fold
    from tenure.journal import Draft
    from tenure.node.tenure import Tenure


DISCARD_S = 30.0
SPARED = 20
"""After how many failed starts in a row a runtime is given up that lives, but cannot be attached or configured (0064)."""
UNFINISHED_S = 3600.0
"""How long a copy may be unfinished while nobody goes on with it."""


async def release(tenure: Tenure, reason: Reason) -> None:
    """Let go; a runtime that cannot outlive its node is discarded, and the journal says so before it happens."""
    await tenure.release(reason, lambda fold: _discarding(tenure, fold, reason.value))
    name = tenure.fold.runtime
    if name is not None and _discarding(tenure, tenure.fold, reason.value):
        await _discard(tenure, name)


async def fail(tenure: Tenure, failure: ProvisioningError) -> None:
    """Fail safe: the reason journaled and the claim released in one append, then the runtime torn down (G5); one that lived
    before this start outlasts it, if it can."""
    means = tenure.means
    spares = tenure.state in (TenureState.CLAIMED, TenureState.PROVISIONING) and (
        failure.credential is not None or (not failure.permanent and tenure.record.failures < SPARED)
    )
    back_off = min(60.0, 2.0 ** min(tenure.record.failures, 6)) * means.config.backoff_s * means.rng.uniform(0.75, 1.25)
    failure = _speakable(tenure, failure)
    told = draft(StartFailed(failure.step, failure.reason, failure.permanent, failure.credential))
    await tenure.release(
        Reason.FAILED,
        lambda fold: [
            *_discarding(tenure, fold, "failed", spares=spares),
            told,
            *(_refusals(fold) if failure.permanent else []),
        ],
        failed=failure.permanent,
        retry_in_s=None if failure.permanent else back_off,
    )
    tenure.telling.start_failed(failure.step, speakable(tenure.masked(failure.reason)), permanent=failure.permanent)
    name = tenure.fold.runtime
    if name is not None and _discarding(tenure, tenure.fold, "failed", spares=spares):
        await _discard(tenure, name)
    if not tenure.ready.done():
        tenure.ready.set_exception(failure)


def _speakable(tenure: Tenure, failure: ProvisioningError) -> ProvisioningError:
    """As the journal, the caller and the logs may hear it: a provider's own reason may hold what it was configured with."""
    reason = speakable(tenure.masked(failure.reason))
    step = speakable(tenure.masked(failure.step))
    return ProvisioningError(
        failure.conversation_id, step, reason, permanent=failure.permanent, credential=failure.credential
    )


def _refusals(fold: Fold) -> list[Draft]:
    """A start that failed for good is answered, so that the next one is a new one; otherwise it waits for the next try."""
    told = {"reason": "the start failed for good"}
    return [draft(CommandSettled(c.seq, Outcome.REFUSED, told)) for c in fold.urgent if c.kind == "start"]


def _discarding(tenure: Tenure, fold: Fold, reason: str, *, spares: bool = False) -> list[Draft]:
    """Asked when the release's time has come: the append that names the runtime may still have been under way.

    `spares`: the start failed before its runtime was anything but what a former one had left, alive.
    """
    name, keeps = fold.runtime, reason != "failed" or (spares and fold.runtime_ready)
    if name is None or (tenure.means.provider.outlives_node and keeps):
        return []
    return [draft(RuntimeDiscarded(name, reason))]


async def _discard(tenure: Tenure, name: str) -> None:
    """Torn down now if the provider answers; otherwise the reaper finds it by the journal's word."""
    if not named_by(tenure.means.identity, name):
        return  # the original's, in a copy of its store
    try:
        async with asyncio.timeout(DISCARD_S):
            await tenure.means.provider.discard(name)
    except Exception as error:
        tenure.means.facts.tell(facts.RuntimeLeft(name, reason_of(error, tenure.masked)))


async def abandon(tenure: Tenure) -> None:
    """A copy whose past was cut off: who has the recording goes on, within an hour; after that it is deleted (0060)."""
    means = tenure.means
    left_s = tenure.record.created_at.unix_s + UNFINISHED_S - means.clock.now().unix_s
    why = "its past is not whole: repeat the request that copies it, with the same key or id, or delete it"
    if left_s > 0:
        told = draft(StartFailed("rehydrate", why))
        await tenure.release(Reason.FAILED, [told], retry_in_s=min(left_s, UNFINISHED_S) + 1)
    else:
        tenure.trouble("a copy that was never finished is deleted")
        await means.store.delete(tenure.conversation_id, tenure.lease.epoch, "tenure")
        tenure.lose("it was never finished, and is deleted")
    if not tenure.ready.done():
        tenure.ready.set_exception(ProvisioningError(tenure.conversation_id, "rehydrate", why))


async def outlast(tenure: Tenure) -> None:
    """What ignores its cancellation is waited for: no node registers anew while an old loop runs (rule 11)."""
    running = [t for t in tenure.strays if not t.done()]
    if running:
        tenure.trouble("waiting for an agent that was cancelled")
        await asyncio.wait(running)
