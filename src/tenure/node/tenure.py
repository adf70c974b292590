"""One conversation held by this node, from claim to release.

A tenure does what the plan says and what commands ask, and writes through one door: :meth:`Tenure.append`. There the
fold judges a batch before it is sent, batches are numbered, one is under way at a time, an unknown outcome is repeated
unchanged until it is answered, and a refusal ends the tenure: from that moment everything of it is refused here, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never, final

from tenure import facts
from tenure.abc import (
    Append,
    Appended,
    Deleted,
    Fenced,
    Reading,
    Reason,
    Release,
    ReleasedNow,
    Repeated,
    Snapshot,
    Submit,
    TooLarge,
    Unknown,
    snapshot_size,
)
from tenure.conversation import Fold, checked, fold, settlement
from tenure.errors import InvalidInputError, OwnershipLostError, StoreUnavailableError
from tenure.journal import (
    CORE_COMMANDS,
    TURN_ENDS,
    Claimed,
    LoopStarted,
    RuntimeAttached,
    RuntimeLost,
    RuntimeReady,
    RuntimeRequested,
    TurnStarted,
)
from tenure.lease import TenureState
from tenure.node.activity import Activity
from tenure.node.bell import Bell
from tenure.node.credentials import Credentials
from tenure.node.pace import Pace
from tenure.node.progress import Progress
from tenure.node.tasks import Tasks, settled
from tenure.node.telling import Telling
from tenure.vault import Allowed, Mask, Veil

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence, Sized

    from tenure.abc import AgentLoop, AppendResult, ReleaseResult, Runtime, RuntimeProvider, Store
    from tenure.clock import Clock
    from tenure.config import Config
    from tenure.conversation import Record
    from tenure.facts import Facts
    from tenure.journal import Command, Draft, Event, JsonObject
    from tenure.lease import Lease
    from tenure.node.traces import Traces
    from tenure.vault import Keys, Secret


type Drafts = Sequence[Draft] | Callable[[Fold], Sequence[Draft]]

SECRETS = 500
"""So many values of one conversation stay masked; the oldest have run out by then."""
OF_STARTS = frozenset(
    kind.kind for kind in (RuntimeRequested, RuntimeReady, RuntimeAttached, RuntimeLost, LoopStarted, TurnStarted)
)
"""What is written between the first reading and the first turn."""
ANYTHING = float("inf")
KEPT = 1000
"""So many events are kept at most."""
SNAPSHOT_EVERY = 200
"""Events between two snapshots of the fold: what a takeover reads is bounded by this, not by the journal's age."""
SNAPSHOT_AT_REST = 32
"""And before a release: whoever wakes it up waits for the reading. Of fewer events a snapshot costs more than it saves."""


@final
@dataclass(frozen=True, slots=True)
class Means:
    """What every tenure of a node works with."""

    store: Store
    config: Config
    clock: Clock
    rng: random.Random
    tasks: Tasks
    facts: Facts
    traces: Traces
    agents: dict[str, AgentLoop]
    provider: RuntimeProvider
    identity: str
    """The store's identity, as far as names of runtimes need it."""
    floor: int
    """No epoch is granted at or below it: a former life of a restored store may have."""
    keys: Keys | None
    """The cluster's keys; null: no secret of a vault can be read here."""
    trusts: Callable[[], bool]
    """Whether this incarnation may still act; from any thread."""
    allowed: Allowed = field(default_factory=Allowed)
    """What conversations may ask this node for."""
    veil: Veil = field(default_factory=Veil)
    """What this process's logs must not show."""
    pace: Pace = field(default_factory=Pace)
    """What a sweep claimed begins a few at a time."""
    activity: Activity = field(default_factory=Activity)
    """What people are told of the last hour."""


@final
class Tenure:
    """A held conversation: its lease, its fold, and the one door to its journal."""

    __slots__ = (  # a node holds thousands, and a dictionary of so many names takes five times as much
        "_door", "_heard", "_kept", "_loss", "_number", "_secrets", "_snapshot_seq", "agent_status", "credentials", "deltas", "exclusive",
        "fold", "handing_over", "lease", "leaving", "loop_state", "mask", "means", "over", "paced", "poked", "predecessors", "progress",
        "ready", "record", "restarts", "runtime", "state", "strays", "telling", "work",
    )  # fmt: skip

    def __init__(self, means: Means, lease: Lease, record: Record) -> None:
        self.means = means
        self.lease = lease
        self.record = record
        self.state = TenureState.CLAIMED
        self.telling = Telling(means.facts, means.clock, lease)
        self.fold = Fold()
        self.runtime: Runtime | None = None
        self.loop_state: JsonObject | None = None
        self.agent_status: str | None = None
        self.progress = Progress(means, lease)
        self.mask: Mask | None = None
        self.credentials = Credentials(self)
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when the loop is live, false if it ended without one; or what went wrong."""
        self.ready.add_done_callback(_retrieve)
        self.deltas: Sized = ()
        """What its live loop said and nobody published yet."""
        self.poked = Bell()
        """Something may have come: look at the journal."""
        self.over = Bell()
        """Released or lost."""
        self.restarts = False
        """It was stopped, or had failed for good, when it was claimed, and whoever asked for it wants it to run."""
        self.exclusive = False
        """Held for a loop that is none of the node's."""
        self.paced = False
        """Claimed by a sweep, maybe with thousands: it begins in its turn."""
        self.leaving = False
        """No new turn: release when the open one has ended."""
        self.handing_over = False
        """The open turn goes no further than its open calls."""
        self.work: asyncio.Task[None] | None = None
        self.predecessors: list[asyncio.Task[None]] = []
        """Work of lost tenures of this conversation, on this node: it ends before this one starts."""
        self.strays: set[asyncio.Task[None]] = set()
        """Tasks of the agent that were cancelled and have not ended."""
        self._number = 0
        self._snapshot_seq = 0
        self._heard: float = ANYTHING
        """The journal may reach so far."""
        self._kept: list[Event] = []
        """The end of the journal, without gaps, as it was read for the fold: for who asks for it a moment later."""
        self._door = asyncio.Lock()
        self._loss: OwnershipLostError | None = None
        self._secrets: list[Secret] = []

    @property
    def conversation_id(self) -> str:
        return self.lease.conversation

    @property
    def step(self) -> str:
        """The named step that its start has come to."""
        return self.progress.step

    @step.setter
    def step(self, step: str) -> None:
        step = self.masked(step)
        if step != self.progress.step:
            self.telling.step(step)
        self.progress.tell(step)

    @property
    def letting_go(self) -> bool:
        """Its release is under way, or done: who wants the conversation claims it anew."""
        return self.state in (TenureState.RELEASING, TenureState.RELEASED)

    # --- loss -------------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether anything of this tenure is refused. Looks at no store; from any thread."""
        return self._loss is not None or self.state.ended or not self.means.trusts()

    def insist(self) -> None:
        """Go on only as the owner.

        :raises OwnershipLostError: the tenure is over.
        """
        if self._loss is None and not self.state.ended and self.means.trusts():
            return
        raise self._loss or OwnershipLostError(self.conversation_id, self.lease.epoch, self._why_over())

    def _why_over(self) -> str:
        return "it was released" if self.state is TenureState.RELEASED else "the node's lease is no longer trusted"

    def lose(self, why: str) -> None:
        """The tenure is over and was not released: stop everything of it, at once."""
        if self.state.ended:
            return
        self.state = TenureState.LOST
        self._loss = OwnershipLostError(self.conversation_id, self.lease.epoch, why)
        self.means.facts.tell(facts.Lost(self.conversation_id, self.lease.epoch, why))
        if not self.ready.done():
            self.ready.set_exception(self._loss)
        self.over.set()
        if self.work is not None and self.work is not asyncio.current_task():
            self.work.cancel("ownership lost")

    def masked(self, text: str) -> str:
        """The text without the secrets that this conversation's runtime knows."""
        return text if self.mask is None else self.mask.text(text)

    def learn(self, secrets: Iterable[Secret]) -> None:
        """Mask these, too, from now on, in the journal and in the logs; what was known stays known."""
        new = [secret for secret in secrets if secret not in self._secrets]
        if not new:
            return
        self._secrets = [*self._secrets, *new][-SECRETS:]
        before, self.mask = self.mask, Mask(self._secrets)
        self.means.veil.put_on(self.mask)
        if before is not None:
            self.means.veil.take_off(before)

    def forget(self) -> None:
        """Nothing of it runs any more."""
        if self.mask is not None:
            self.means.veil.take_off(self.mask)

    def trouble(self, what: str, *, traced: bool = False) -> None:
        """Say what went wrong with it; `traced`: with the error that is being dealt with."""
        self.means.facts.tell(facts.ConversationTrouble(self.conversation_id, what), traced=traced)

    def refused(self, operation: str) -> None:
        """Say that the store refused a write of it."""
        self.means.facts.tell(facts.WriteRefused(self.conversation_id, self.lease.epoch, operation))

    def poke(self) -> None:
        """Something of its own has changed: look at it."""
        self.poked.set()

    def hear(self, head: float = ANYTHING) -> None:
        """The journal reaches to `head`, or may have moved: read on if that is news, and look."""
        if head > self.fold.seq:
            self._heard = max(self._heard, head)
            self.poked.set()

    # --- reading ----------------------------------------------------------------------------------------------------

    async def catch_up(self, *, snapshot: bool = False) -> None:
        """Fold what the journal holds beyond the fold, from the primary.

        :raises OwnershipLostError: the tenure is over.
        """
        await settled(self.means.tasks.start(self._catch_up(snapshot), "catch up"))

    async def keep_up(self) -> None:
        """:meth:`catch_up`, if anything was heard since. What is not heard is no secret for long: the sweep finds it.

        :raises OwnershipLostError: the tenure is over.
        """
        if self._heard > self.fold.seq:
            await settled(self.means.tasks.start(self._keep_up(), "keep up"))

    async def _keep_up(self) -> None:
        async with self._door:
            if self._heard > self.fold.seq:  # it may have been an append of our own that was heard of
                await self._read_on()

    async def _catch_up(self, snapshot: bool) -> None:
        async with self._door:
            await self._read_on(snapshot)

    async def _read_on(self, snapshot: bool = False) -> None:
        self._heard = 0
        while True:
            reading = await self.read(self.fold.seq, snapshot=snapshot)
            if reading.snapshot is not None and reading.snapshot.seq > self.fold.seq and reading.snapshot.fold:
                self.fold = Fold.from_json(reading.snapshot.fold)
                self._snapshot_seq = self.fold.seq
            if reading.snapshot is not None:
                self.loop_state = reading.snapshot.loop
            snapshot = False
            if reading.record.head < self.fold.seq:  # a fail-over: who reads on from here would miss what comes
                self.lose("the store was rewound")
                self.insist()
            self._keep(reading.events)
            self.fold = fold(self.fold, reading.events)
            for event in reading.events:
                if event.kind == Claimed.kind and event.epoch == self.lease.epoch:
                    self.telling.claim_read(event)
            self.telling.read(reading.events, self.fold)
            if self.fold.epoch > self.lease.epoch:  # somebody else has claimed, and maybe let go again
                self.lose(f"epoch {self.fold.epoch} was claimed")
                self.insist()
            if self.fold.seq >= reading.record.head or not reading.events:
                break
        if self.fold.epoch < self.lease.epoch:  # a fail-over to before our claim
            self.lose("the store was rewound")
            self.insist()

    async def read(
        self, after: int, limit: int = 1000, *, snapshot: bool = False, kinds: Sequence[str] = ()
    ) -> Reading:
        """Read the journal, for as long as it takes the store to answer and the node to trust itself.

        :raises OwnershipLostError: the tenure is over.
        """
        failures = 0
        while True:
            self.insist()
            try:
                answer = await self.means.store.read(self.conversation_id, after, limit, snapshot=snapshot, kinds=kinds)
            except StoreUnavailableError as error:
                failures = await self._pause(failures, error)
                continue
            match answer:
                case Reading():
                    return answer
                case Deleted() | Unknown():
                    self.lose("the conversation was deleted")
                    self.insist()

    async def events(self, after: int, upto: int) -> list[Event]:
        """The journal from `after` (exclusive) to `upto` (inclusive). What was read a moment ago is not read again."""
        kept = self._kept
        if kept and kept[0].seq <= after + 1 and upto <= kept[-1].seq:
            return kept[after + 1 - kept[0].seq : max(after, upto) + 1 - kept[0].seq]
        found: list[Event] = []
        while after < upto:
            reading = await self.read(after, min(1000, upto - after))
            if not reading.events:
                break
            found.extend(e for e in reading.events if e.seq <= upto)
            after = reading.events[-1].seq
        return found

    def _keep(self, events: Sequence[Event]) -> None:
        if events and self._kept and events[0].seq != self._kept[-1].seq + 1:
            self._kept = []
        self._kept += events
        if len(self._kept) > KEPT:
            self._kept = []

    def rest(self) -> None:
        """Nothing happens for a while: keep no more than the fold."""
        self._kept = []

    async def _pause(self, failures: int, error: Exception) -> int:
        if failures == 0:
            self.means.facts.tell(facts.StoreAwaited("a tenure", str(error), self.conversation_id))
        limit_s = self.means.config.ttl_s / 4
        await asyncio.sleep(min(limit_s, 0.02 * 2**failures) * self.means.rng.uniform(0.5, 1.5))
        return min(failures + 1, 10)

    async def submit(self, command: Command) -> None:
        """Journal a command that the node itself gives, as any client would.

        :raises OwnershipLostError: the tenure is over.
        """
        failures = 0
        while True:
            self.insist()
            try:
                await self.means.store.submit(Submit(self.conversation_id, command))
                return
            except StoreUnavailableError as error:
                failures = await self._pause(failures, error)

    # --- writing ----------------------------------------------------------------------------------------------------

    async def append(
        self,
        drafts: Drafts,
        state: JsonObject | None = None,
        *,
        unless: Callable[[], bool] | None = None,
    ) -> Appended:
        """Journal `drafts`, all or none; returns when durable. Not undone by the cancellation of its caller.

        What follows from the fold (the end of a turn) is given as a function of it, called when the batch's time has
        come: an append whose caller was cancelled may be under way and open or close a call. `unless` is asked when the batch's time has come: true refuses it (its turn has ended meanwhile).

        :raises OwnershipLostError: refused: the tenure is over, or the work that wrote it.
        :raises JournalError: the batch would break the rules of its kind. :raises InvalidInputError: too large.

        More events than the store takes in one batch are appended in several, in order: only the core writes as many.
        """
        return await settled(self.means.tasks.start(self._append(drafts, state, unless), "append"))

    async def _append(self, given: Drafts, state: JsonObject | None, unless: Callable[[], bool] | None) -> Appended:
        async with self._door:
            self.insist()
            if unless is not None and unless():
                raise OwnershipLostError(self.conversation_id, self.lease.epoch, "the turn has ended")
            drafts = tuple(given(self.fold) if callable(given) else given)
            if self.mask is not None:
                drafts = tuple(replace(d, body=self.mask.object(d.body)) for d in drafts)
                state = None if state is None else self.mask.object(state)
            most = self.means.store.limits.batch_events
            while len(drafts) > most:  # the core's own: a turn was cut that had very many calls open
                await self._write(drafts[:most], None)
                drafts = drafts[most:]
            return await self._write(drafts, state)

    async def _write(self, drafts: tuple[Draft, ...], state: JsonObject | None) -> Appended:
        before = self.fold
        batch = self._batch(before, checked(before, drafts), drafts, state, SNAPSHOT_EVERY)
        result = await self._send(batch)
        self._number = batch.number
        self.telling.journaled(drafts)
        if state is not None:
            self.loop_state = state
        await self._absorb(before, drafts, result)
        return result

    def _batch(
        self,
        before: Fold,
        after: Fold,
        drafts: tuple[Draft, ...],
        state: JsonObject | None,
        snapshot_every: int,
    ) -> Append:
        settle = settlement(before, after, drafts, self.agent_status and self.masked(self.agent_status))
        snapshot = None if state is None else Snapshot(before.seq, None, state)
        if before.seq - self._snapshot_seq >= snapshot_every:
            self._snapshot_seq = before.seq
            whole = Snapshot(before.seq, before.as_json(), state)
            if snapshot_size(whole) <= self.means.store.limits.snapshot_bytes:
                snapshot = whole  # else the fold is read from the journal: a snapshot only saves time
        return Append(self.lease, self._number + 1, before.seq, drafts, settle, snapshot)

    async def _send(self, batch: Append) -> Appended:
        failures = 0
        while True:
            self.insist()
            try:
                answer: AppendResult = await self.means.store.append(batch)
            except StoreUnavailableError as error:
                failures = await self._pause(failures, error)
                continue
            match answer:
                case Appended():
                    return answer
                case Repeated(result):
                    return result
                case TooLarge(index, size, limit):
                    raise InvalidInputError(
                        f"event {batch.drafts[index].kind}",
                        f"has {size} bytes, above the store's limit of {limit}",
                        "write large results to a file of the workspace and journal its name",
                    )
                case Fenced(record):
                    self.refused("append")
                    self.lose("another claim is in force" if record else "the conversation is gone")
                    self.insist()
                case _:
                    assert_never(answer)

    async def _absorb(self, before: Fold, drafts: tuple[Draft, ...], result: Appended) -> None:
        """Move the fold behind the batch; what clients wrote in between is read and heard."""
        for end in (d for d in drafts if d.kind in TURN_ENDS):
            self.telling.answered(before, end, result.at)
        if result.first == before.seq + 1:
            stored = [d.stored(result.first + i, self.lease.epoch, result.at) for i, d in enumerate(drafts)]
            self.fold = fold(before, stored)
            if all(d.kind in OF_STARTS for d in drafts):
                self._keep(stored)
            else:
                self._kept = []  # an agent may yet change the objects that it gave
        else:
            await self._read_on()
            self.poked.set()
        if self.handing_over:
            self.poke()

    async def release(
        self,
        reason: Reason,
        drafts: Drafts = (),
        *,
        failed: bool = False,
        retry_in_s: float | None = None,
    ) -> None:
        """Let go; the last append of this tenure. With `failed`: for good, until a command comes.

        `drafts` as in :meth:`append`; afterwards the fold moves no more.

        :raises OwnershipLostError: it was not ours to release.
        """
        work = self._release(reason, drafts, failed, retry_in_s)
        await settled(self.means.tasks.start(work, "release"))

    async def _release(self, reason: Reason, given: Drafts, failed: bool, retry_in_s: float | None) -> None:
        async with self._door:
            self.insist()
            self.state = TenureState.RELEASING
            before = self.fold
            drafts = tuple(given(before) if callable(given) else given)
            if self.mask is not None:
                drafts = tuple(replace(d, body=self.mask.object(d.body)) for d in drafts)
            after = checked(before, drafts)
            batch = self._batch(before, after, drafts, None, SNAPSHOT_AT_REST)
            # A stop that came meanwhile is not left unsettled: the next owner answers it, and then tries again.
            unheard = any(c.kind in CORE_COMMANDS and c.kind != "message" for c in after.urgent)
            if failed and not unheard and batch.settle is not None:
                batch = replace(batch, settle=replace(batch.settle, failed=True, runnable=False))
            request = Release(batch, reason, retry_in_s)
            failures = 0
            while True:
                self.insist()
                try:
                    answer: ReleaseResult = await self.means.store.release(request)
                except StoreUnavailableError as error:
                    failures = await self._pause(failures, error)
                    continue
                match answer:
                    case ReleasedNow():
                        self.state = TenureState.RELEASED
                        self.over.set()
                        self.telling.journaled(batch.drafts)
                        self.means.facts.tell(facts.Released(self.conversation_id, self.lease.epoch, reason.value))
                        return
                    case Fenced():
                        self.refused("release")
                        self.lose("another claim is in force")
                        self.insist()
                    case TooLarge():
                        raise InvalidInputError("release", "is larger than the store takes", "report this")
                    case _:
                        assert_never(answer)


def _retrieve(future: asyncio.Future[bool]) -> None:
    """A start that nobody waits for fails without a warning about it; its reason stands in the journal."""
    if not future.cancelled():
        future.exception()
