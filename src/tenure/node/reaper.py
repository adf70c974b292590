"""Destroys runtimes that nobody needs: those that the journal calls discarded, lost or superseded, or whose
conversation is deleted; and workspaces of the deleted that no runtime names any more. Periodically, and never by comparing
epochs: a zombie may provision after its successor (rule 14).

A round costs one answer of the provider for its runtimes and one for its workspaces, and the records of their
conversations; a journal is read only if its record moved on since it was last read here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Deleted, Reading, RuntimeFailure
from tenure.conversation import RETIRED, Fold, fold
from tenure.errors import StoreUnavailableError
from tenure.journal import RuntimeRequested
from tenure.lease import new_incarnation
from tenure.node import progress
from tenure.node.reasons import reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tenure.abc import RuntimeProvider, Store
    from tenure.conversation import Record
    from tenure.facts import Facts
    from tenure.journal import JsonObject
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Means


FIRST_LOOK_S = 0.5
FORGET_S = 30.0
ANSWER_S = 60.0
"""How long the provider may take for one of these answers, or a period if that is shorter; one that hangs costs a round,
not the reaper."""
RECORDS, WORKSPACES = 50, 1000
"""How many records are asked for at once; of how many workspaces in a round, the others follow."""
REQUEST = "request"
"""Papers that ask one incarnation for something: ``INCARNATION/WHAT``."""


def runtime_names(identity: str, conversation_id: str, epoch: int) -> tuple[str, str]:
    """What the runtime that an epoch provisions is called, and the workspace that it shares with those before it."""
    return f"{identity}.{conversation_id}.e{epoch}", f"{identity}.{conversation_id}"


def named_by(identity: str, name: str) -> bool:
    """Whether a runtime was named by this store, and not by the one that it is a copy of."""
    return name.startswith(f"{identity}.")


async def forget(told: Facts, provider: RuntimeProvider, identity: str, conversation_id: str, epoch: int) -> None:
    """Destroy the workspace of a deleted conversation; what cannot be is said, and left behind."""
    try:
        async with asyncio.timeout(FORGET_S):
            name, workspace = runtime_names(identity, conversation_id, epoch)
            await provider.discard(name, workspace)
    except (RuntimeFailure, TimeoutError, OSError) as error:
        told.tell(facts.FilesLeft(conversation_id, reason_of(error)))


async def store_identity(store: Store) -> str:
    """Eight digits that name this store in the names of runtimes; agreed by compare-and-swap. A copy of it that lies
    elsewhere draws its own: it must not touch the runtimes of the original."""
    while True:
        found = await store.get_paper("cluster", "identity")
        known = None if found is None else str(found.document["id"])
        place = "" if found is None else str(found.document.get("place", ""))
        copied = place != "" and not store.lies_at(place)
        if known is not None and not copied and (place or not store.place):
            return known
        document: JsonObject = {"id": new_incarnation()[:8] if known is None or copied else known}
        if store.place:
            document["place"] = store.place
        await store.put_paper("cluster", "identity", document, 0 if found is None else found.version)


@final
class Reaper:
    """The periodic look at what the provider has."""

    def __init__(self, incarnation: Incarnation) -> None:
        self._incarnation = incarnation
        self._judged: dict[str, tuple[int, int]] = {}
        """The epoch and the head at which the journal called a runtime the current one, or did not know it."""
        self._last = ""
        """The workspace at which the last round ended."""

    @property
    def _means(self) -> Means:
        means = self._incarnation.means
        assert means is not None, "registered"
        return means

    async def run(self) -> None:
        """Look at every period, and ever more rarely after a loss: the new owner has yet to say what it supersedes."""
        means = self._means
        pause_s = means.config.reap_s
        while True:
            lost_one = await self._waited(pause_s * means.rng.uniform(0.8, 1.2))
            pause_s = min(FIRST_LOOK_S if lost_one else 2 * pause_s, means.config.reap_s)
            await self.reap()
            await self._sweep_papers()

    async def _waited(self, seconds: float) -> bool:
        """Wait; true as soon as a conversation is lost whose runtime may still run."""
        try:
            async with asyncio.timeout(seconds):
                await self._incarnation.bereft.wait()
        except TimeoutError:
            return False
        self._incarnation.bereft.clear()
        return True

    async def reap(self) -> int:
        """One look; how many runtimes were destroyed."""
        means = self._means
        async with self._bounded():
            found = await means.provider.list()
        ours = [(name, conversation) for name, conversation in found if self._may_be_left(name, conversation)]
        records = await self._records([conversation for _, conversation in ours])
        names = {name for name, _ in ours}
        self._judged = {name: seen for name, seen in self._judged.items() if name in names}
        gone = 0
        for name, conversation in ours:
            gone += await self._reap(name, conversation, records.get(conversation))
        await self._reap_workspaces({conversation for _, conversation in ours})
        return gone

    def _may_be_left(self, name: str, conversation: str) -> bool:
        tenure = self._incarnation.holds(conversation)
        return named_by(self._means.identity, name) and (tenure is None or tenure.fold.runtime != name)

    async def _reap(self, name: str, conversation: str, record: Record | None) -> bool:
        """Whether it was destroyed. One that cannot be judged or destroyed does not keep the others."""
        means = self._means
        if record is None or self._judged.get(name) == (record.epoch, record.head):
            return False
        try:
            verdict = "deleted" if record.deleted else await self._verdict(name, conversation)
            if verdict is None:
                self._judged[name] = (record.epoch, record.head)
                return False
            workspace = runtime_names(means.identity, conversation, 0)[1] if verdict == "deleted" else None
            async with self._bounded():
                await means.provider.discard(name, workspace)
        except StoreUnavailableError:
            raise
        except Exception as error:
            means.facts.tell(facts.RuntimeLeft(name, reason_of(error)))
            return False
        means.facts.tell(facts.RuntimeReaped(conversation, name, verdict))
        return True

    async def _reap_workspaces(self, seen: Collection[str]) -> None:
        """Files of conversations that were deleted where nobody had a runtime to say so, or while the provider was away."""
        means = self._means
        async with self._bounded():
            found = await means.provider.workspaces()
        prefix = runtime_names(means.identity, "", 0)[1]
        kept = sorted(name for name in found if name.startswith(prefix))
        round_ = [name for name in kept if name > self._last][:WORKSPACES] or kept[:WORKSPACES]
        self._last = round_[-1] if round_ else ""
        conversations = {name.removeprefix(prefix): name for name in round_}
        records = await self._records([c for c in conversations if c not in seen])
        for conversation, record in records.items():
            if record.deleted:
                await self._forget(conversation)

    async def _forget(self, conversation: str) -> None:
        means = self._means
        name, workspace = runtime_names(means.identity, conversation, 0)  # no epoch is 0: no runtime is called so
        try:
            async with self._bounded():
                await means.provider.discard(name, workspace)
        except Exception as error:
            means.facts.tell(facts.FilesLeft(conversation, reason_of(error)))
        else:
            means.facts.tell(facts.RuntimeReaped(conversation, workspace, "deleted"))

    def _bounded(self) -> asyncio.Timeout:
        return asyncio.timeout(min(ANSWER_S, self._means.config.reap_s))

    async def _records(self, conversations: Sequence[str]) -> dict[str, Record]:
        """Of those that are known, deleted ones too."""
        found: dict[str, Record] = {}
        asked = list(dict.fromkeys(conversations))
        for start in range(0, len(asked), RECORDS):
            portion = asked[start : start + RECORDS]
            answers = zip(portion, await self._means.store.records(portion), strict=True)
            found |= {name: record for name, record in answers if record is not None}
        return found

    async def _sweep_papers(self) -> None:
        """What starts have said of themselves whose node has died meanwhile, and what such a node was asked."""
        means = self._means
        asked = await means.store.list_papers(REQUEST)
        nodes = {n.incarnation: n for n in await means.store.nodes()}
        await progress.sweep(means.store, nodes)
        living = {incarnation for incarnation, node in nodes.items() if not node.dead}
        for paper in asked:  # listed before the nodes were: whoever is asked has registered before
            if paper.id.partition("/")[0] not in living:
                await means.store.remove_paper(REQUEST, paper.id, paper.version)

    async def _verdict(self, name: str, conversation: str) -> str | None:
        """Why the runtime may go; null while the journal does not say so, and for a conversation that is not known."""
        means = self._means
        state = Fold()
        first = True
        while True:
            answer = await means.store.read(conversation, state.seq, snapshot=first)
            if isinstance(answer, Deleted):
                return "deleted"
            if not isinstance(answer, Reading):
                return None
            if first and answer.snapshot is not None and answer.snapshot.fold is not None:
                state = Fold.from_json(answer.snapshot.fold)
            first = False
            state = fold(state, answer.events)
            if not answer.events or state.seq >= answer.record.head:
                break
        if name in state.retired:
            return "retired"
        forgotten = len(state.retired) == RETIRED and name != state.runtime
        return "retired" if forgotten and await self._was_requested(name, conversation) else None

    async def _was_requested(self, name: str, conversation: str) -> bool:
        """Whether the journal names the runtime: so long ago that the fold has forgotten it."""
        means, after = self._means, 0
        while True:
            answer = await means.store.read(conversation, after, kinds=[RuntimeRequested.kind])
            events = answer.events if isinstance(answer, Reading) else ()
            if any(event.body["name"] == name for event in events):
                return True
            if not events:
                return False
            after = events[-1].seq
