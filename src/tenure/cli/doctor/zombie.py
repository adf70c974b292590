"""The zombie test, on the store itself: an owner freezes, another takes over, and what the first still writes is refused.

Nothing is simulated: two incarnations register, the first claims a conversation, is silent until its lease runs out and is
buried, the second takes over, and then every fenced operation is tried with the first one's lease. Nodes beside it see two
incarnations without conversations of theirs, and may bury the first one before we do; the conversation is for an agent that
nobody has. What stays behind is one tombstone, which no store ever forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self, final

from tenure.abc import (
    About,
    Alive,
    Append,
    Appended,
    Buried,
    Claim,
    Creation,
    Dead,
    Death,
    Fenced,
    Granted,
    Held,
    Load,
    Reading,
    Reason,
    Release,
    ReleasedNow,
    broken,
    fine,
)
from tenure.clock import SystemClock
from tenure.conversation import Settle
from tenure.errors import StoreError
from tenure.journal import Draft
from tenure.lease import Epoch, IncarnationId, Lease, new_incarnation, new_token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tenure.abc import Finding, Store

AGENT = "tenure doctor (nobody has this agent)"
NODE = "tenure-doctor"
FROZEN_S, LIVING_S = 0.5, 60.0
"""The leases of the two incarnations, seconds; the first one's grows with the store's latency."""
BURIAL_S = 15.0
"""How long after its lease the frozen one must be buried."""
POLL_S = 0.05


class AilmentError(Exception):
    """The store did something else than its contract says."""


@final
class Patient:
    """The store under examination, and the incarnation that stays alive in it."""

    def __init__(self, store: Store, living: IncarnationId) -> None:
        self.store = store
        self.living = living
        self.conversation = f"tenure-doctor-{secrets.token_hex(8)}"
        self._beat = 0

    @classmethod
    @asynccontextmanager
    async def registered(cls, store: Store) -> AsyncGenerator[Self]:
        """Until the end of the block, which retires it and deletes what there is of its conversation."""
        patient = cls(store, new_incarnation())
        try:
            await patient.register(patient.living, LIVING_S)
            yield patient
        finally:
            with contextlib.suppress(StoreError):  # it is the store that ails; what is left of us ends with its lease
                await patient.leave()

    async def register(self, incarnation: IncarnationId, ttl_s: float) -> None:
        about = About(NODE, "http://tenure-doctor.invalid", 0, (), SystemClock().now())
        done = await self.store.register(incarnation, about, ttl_s)
        if not isinstance(done, Granted):
            raise StoreError(f"a new incarnation was not registered: {done}")

    async def renew(self) -> None:
        """One heartbeat of the living one."""
        done = await self.store.renew(self.living, self._beat, secrets.token_hex(8), LIVING_S, Load(draining=True))
        if not isinstance(done, Granted):
            raise StoreError(
                f"a renewal in time was refused: {done}; look for a clock that jumps on the store's machine"
            )
        self._beat = done.beat

    async def leave(self) -> None:
        """Nothing of us is left, but for the tombstone."""
        (record,) = await self.store.records([self.conversation])
        if record is not None:
            await self.store.delete(self.conversation, record.epoch, "tenure doctor")
        await self.store.bury(self.living, Death.RETIRED)


async def zombie_findings(patient: Patient, slowest_s: float) -> list[Finding]:
    """The verdict. `slowest_s` is the longest that a round trip took: a freeze must be longer than the claim before it.

    :raises StoreUnavailableError: it did not answer in the middle.
    """
    frozen = new_incarnation()
    try:
        await patient.register(frozen, FROZEN_S + 10 * slowest_s)
        return [await _trial(patient, frozen)]
    except AilmentError as ailment:
        why = "two servers could write one conversation at once (G2)"
        remedy = "run no nodes on it; see that every node and this program reach the same primary, and report it"
        return [broken("zombie", str(ailment), why, remedy)]
    finally:
        with contextlib.suppress(StoreError):
            await patient.store.bury(frozen, Death.RETIRED)


async def _trial(patient: Patient, frozen: IncarnationId) -> Finding:
    store = patient.store
    zombie = await _claimed(patient, frozen, Epoch(0))
    stale = Append(zombie.lease, 2, zombie.record.head + 1, (_note("zombie"),))
    _expect(Appended, await store.append(Append(zombie.lease, 1, zombie.record.head, (_note("owner"),))), "its append")
    await _buried(store, frozen)
    successor = await _claimed(patient, patient.living, zombie.lease.epoch)
    if successor.lease.epoch <= zombie.lease.epoch:
        raise AilmentError(f"a takeover was granted epoch {successor.lease.epoch} after {zombie.lease.epoch}")
    await _refused(store, zombie.lease, stale)
    last = Append(successor.lease, 1, successor.record.head, (_note("successor"),), Settle(runnable=False))
    _expect(ReleasedNow, await store.release(Release(last, Reason.IDLE)), "the successor's release")
    await _nothing_of_it(patient)
    return fine(
        "zombie",
        f"a frozen owner was buried and its conversation taken over (epoch {zombie.lease.epoch} to {successor.lease.epoch}); "
        "its late renewal, append, delta and release were refused",
    )


async def _claimed(patient: Patient, incarnation: IncarnationId, seen: Epoch) -> Held:
    create = Creation(agent=AGENT, title="tenure doctor") if seen == 0 else None
    claim = Claim(
        patient.conversation, incarnation, new_token(), seen, NODE, "http://tenure-doctor.invalid", "doctor", create=create
    )  # fmt: skip
    done = await patient.store.claim(claim)
    if not isinstance(done, Held):
        raise StoreError(
            f"a claim that nobody contends was answered {type(done).__name__}; run it again when it is calmer"
        )
    return done


async def _buried(store: Store, frozen: IncarnationId) -> None:
    """Wait as a node does: bury it again and again, until its lease has run out by the store's clock."""
    deadline = SystemClock().boottime() + BURIAL_S
    while isinstance(done := await store.bury(frozen, Death.EXPIRED), Alive):
        if SystemClock().boottime() > deadline:
            raise AilmentError(f"a silent node was not buried: its lease runs for {done.expires_in_s:.1f} s more")
        await asyncio.sleep(min(max(done.expires_in_s, POLL_S), 1.0))
    _expect(Buried, done, "the burial")


async def _refused(store: Store, lease: Lease, stale: Append) -> None:
    """Everything that the zombie may try."""
    renewed = await store.renew(lease.incarnation, 0, secrets.token_hex(8), LIVING_S, Load())
    tried = {
        "renewal": (renewed, Dead),
        "append": (await store.append(stale), Fenced),
        "delta": (await store.publish(lease, {"of": "zombie"}), Fenced),
        "release": (await store.release(Release(stale, Reason.IDLE)), Fenced),
    }
    for name, (done, refusal) in tried.items():
        if not isinstance(done, refusal):
            raise AilmentError(
                f"the late {name} of a frozen owner was accepted after a takeover ({type(done).__name__})"
            )


async def _nothing_of_it(patient: Patient) -> None:
    """What the store said is one thing, what it kept another."""
    reading = _expect(Reading, await patient.store.read(patient.conversation), "reading it")
    written = [event.body.get("by") for event in reading.events if event.kind == "doctor_note"]
    if written != ["owner", "successor"]:
        raise AilmentError(f"the journal holds notes by {written}, not by owner and successor")


def _note(by: str) -> Draft:
    return Draft("doctor_note", {"by": by})


def _expect[T](kind: type[T], done: object, what: str) -> T:
    if not isinstance(done, kind):
        raise AilmentError(f"{what} was answered {type(done).__name__}, not {kind.__name__}")
    return done
