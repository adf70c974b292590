"""How a start does: the step that it is in and since when, shown to every node once somebody may wonder.

Steps are ephemeral: nothing of them stands in the journal, and a start that is over within :data:`SLOW_S` writes nothing
at all. A slower one keeps one *paper* in the store, ``start`` / ``CONVERSATION@EPOCH``, rewritten at most once in
:data:`PAUSE_S` and removed at its end. The epoch is part of the name, so a zombie writes beside its successor and
never over it; a paper counts only while the record has that very owner at that epoch, and any node's reaper removes
those whose node has died.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.abc import Reading
from tenure.clock import Instant
from tenure.conversation import Status
from tenure.errors import StoreError
from tenure.facts import DeltaDropped, to_log
from tenure.journal import StartFailed, read_body
from tenure.node.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.abc import NodeRecord, Paper, Store
    from tenure.conversation import Record
    from tenure.errors import Owner
    from tenure.journal import Json, JsonObject
    from tenure.lease import IncarnationId, Lease
    from tenure.node.tenure import Means

KIND = "start"
SLOW_S = 1.0
"""A start that takes longer is shown."""
PAUSE_S = 0.5
STEP_CHARS = 200
LOOK_BACK = 250
"""The reason of the last failed start stands this close to the head: behind it come its release and a bounded number of
commands."""


@final
class Progress:
    """The named steps of one start."""

    def __init__(self, means: Means, lease: Lease) -> None:
        self._means = means
        self._lease = lease
        self._step = "claimed"
        self._since = means.clock.now()
        self._moved = Bell()
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None
        self._shown = 0
        """The version of the paper; 0 while there is none."""

    @property
    def step(self) -> str:
        return self._step

    def tell(self, step: str) -> None:
        """The start has come to this step."""
        if step != self._step:
            self._step, self._since = step[:STEP_CHARS], self._means.clock.now()
            self._moved.set()

    def begin(self) -> None:
        """From now on, somebody may wonder."""
        self._alarm = asyncio.get_running_loop().call_later(SLOW_S, self._show)

    def end(self) -> None:
        """The loop is live, or never will be."""
        self._over = True
        self._moved.set()
        if self._alarm is not None:
            self._alarm.cancel()

    def _show(self) -> None:
        if not self._over:
            self._means.tasks.start(self._keep_shown(), f"progress {self._lease.conversation}")

    async def _keep_shown(self) -> None:
        while not self._over and self._means.trusts():
            self._moved.clear()
            await self._write()
            await asyncio.sleep(PAUSE_S)
            if not self._over:
                await self._moved.wait()
        if self._shown:
            await self._remove()

    async def _write(self) -> None:
        document: JsonObject = {
            "conversation": self._lease.conversation,
            "epoch": self._lease.epoch,
            "incarnation": self._lease.incarnation,
            "step": self._step,
            "since": self._since.isoformat(),
        }
        name = paper_name(self._lease.conversation, self._lease.epoch)
        try:
            paper = await self._means.store.put_paper(KIND, name, document, self._shown)
            if paper is None:  # an earlier write whose answer was lost
                paper = await self._means.store.get_paper(KIND, name)
        except StoreError as error:
            to_log(DeltaDropped(self._lease.conversation, f"a step is not shown: {error}"))
        else:
            self._shown = paper.version if paper is not None else 0

    async def _remove(self) -> None:
        try:
            await self._means.store.remove_paper(
                KIND, paper_name(self._lease.conversation, self._lease.epoch), self._shown
            )
        except StoreError:
            to_log(DeltaDropped(self._lease.conversation, "its steps are left to the reaper"))


def paper_name(conversation: str, epoch: int) -> str:
    return f"{conversation}@{epoch}"


async def sweep(store: Store, living: Mapping[IncarnationId, NodeRecord]) -> int:
    """Remove the papers of starts that are over or whose node has died; how many there were."""
    papers = await store.list_papers(KIND)
    records = await store.records([str(paper.document["conversation"]) for paper in papers]) if papers else []
    gone = 0
    for paper, record in zip(papers, records, strict=True):
        if not _counts(paper, record, living):
            gone += await store.remove_paper(KIND, paper.id, paper.version)
    return gone


def _counts(paper: Paper, record: Record | None, living: Mapping[IncarnationId, NodeRecord]) -> bool:
    if record is None or record.owner is None or record.started or record.epoch != paper.document["epoch"]:
        return False
    node = living.get(record.owner.incarnation)
    return node is None or not node.dead  # unknown is not dead: it registered a moment ago


# --- what anybody may ask -------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class StartInfo:
    """How the start of a conversation does. `step` and `since` are null unless somebody alive is starting it; `error` is
    why the last try failed, until a turn has ended well."""

    conversation_id: str
    status: Status
    epoch: int
    owner: Owner | None
    step: str | None
    since: Instant | None
    failures: int
    retry_in_s: float | None
    error: JsonObject | None

    def as_json(self) -> dict[str, Json]:
        return {
            "conversation_id": self.conversation_id,
            "status": self.status.value,
            "epoch": self.epoch,
            "owner": None if self.owner is None else self.owner.as_json(),
            "step": self.step,
            "since": None if self.since is None else self.since.isoformat(),
            "failures": self.failures,
            "retry_in_s": None if self.retry_in_s is None else round(self.retry_in_s, 3),
            "error": self.error,
        }


async def start_info(store: Store, record: Record, status: Status, owner: Owner | None) -> StartInfo:
    """What any node can tell of a start: one paper and, after a failure, a bounded look at the end of the journal."""
    step, since = None, None
    if status is Status.STARTING and owner is not None:
        paper = await store.get_paper(KIND, paper_name(record.conversation, record.epoch))
        if paper is None:
            step, since = "claimed", owner.since
        else:
            step, since = str(paper.document["step"]), Instant.parse(str(paper.document["since"]))
    error = await _last_error(store, record) if record.failures or record.failed else None
    return StartInfo(
        record.conversation, status, record.epoch, owner, step, since, record.failures, record.retry_in_s, error
    )


async def _last_error(store: Store, record: Record) -> JsonObject | None:
    after = max(0, record.head - LOOK_BACK)
    answer = await store.read(record.conversation, after, LOOK_BACK, kinds=["start_failed"])
    for event in reversed(answer.events if isinstance(answer, Reading) else ()):
        body = read_body(event)
        if isinstance(body, StartFailed):
            when = event.at.isoformat()
            return {"step": body.step, "reason": body.reason, "permanent": body.permanent, "at": when}
    return None
