"""One start of this node, as far as the store knows it: what it holds, and until when it may believe that it lives."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING, Any, final

from tenure import facts
from tenure.abc import Load
from tenure.lease import TenureState
from tenure.node.activity import Activity

if TYPE_CHECKING:
    from tenure.abc import Death
    from tenure.facts import Facts
    from tenure.lease import IncarnationId
    from tenure.node.heartbeat import Heartbeat
    from tenure.node.initiation import Start
    from tenure.node.rehydration import Rehydration
    from tenure.node.tenure import Means, Tenure

DEATHS = 256
"""How many dead owners are remembered; another one is asked for again."""

_OF_THIS_PROCESS: weakref.WeakSet[Incarnation] = weakref.WeakSet()


def _in_a_forked_child() -> None:
    """A copy of this process holds nothing: two processes with one lease would be two owners (C24)."""
    for incarnation in _OF_THIS_PROCESS:
        incarnation.given_up = True


os.register_at_fork(after_in_child=_in_a_forked_child)


@final
class Incarnation:
    """The table of what one incarnation holds, and the flag that ends it for good."""

    def __init__(self, id: IncarnationId, told: Facts | None = None) -> None:
        self.id = id
        self.facts = told or facts.Facts()
        self.table: dict[str, Tenure] = {}
        self.works: dict[asyncio.Task[None], None] = {}
        """What tenures run and has not ended, those included that were lost or superseded."""
        self.starting: dict[str, Start] = {}
        """Explicit starts under way: joined, never doubled, and not cancelled with who asked."""
        self.rehydrating: dict[str, Rehydration] = {}
        """Copies whose past is being written here: joined, never doubled, and not cancelled with who asked."""
        self.claiming: dict[str, asyncio.Task[None]] = {}
        """Conversations that the sweep claims just now."""
        self.deaths: dict[IncarnationId, Death] = {}
        """How others ended, as far as this one has asked: they stay dead, and a sweep meets the same one again and again.
        The last :data:`DEATHS` of them."""
        self.activity = Activity()
        """What people are told of the last hour."""
        self.over = asyncio.Event()
        """Given up or retired: set once, in the node's event loop."""
        self.bereft = asyncio.Event()
        """A conversation was lost whose runtime may still run here: the reaper looks soon."""
        self.given_up = False
        """Lost for good."""
        self.retired = False
        """Left on purpose: everything was released, or is left to a takeover."""
        self.draining = False
        self.heartbeat: Heartbeat | None = None
        self.means: Means | None = None
        self.swept_s = 0.0
        """When the last sweep ended, in the event loop's time."""
        self.wanted = 0
        """What the last sweep found wanted and had to leave, so that nobody does it."""
        _OF_THIS_PROCESS.add(self)

    def trusts(self) -> bool:
        """Whether this incarnation may still act. From any thread."""
        return not self.given_up and not self.retired and self.heartbeat is not None and self.heartbeat.trusts()

    def load(self) -> Load:
        """What the next renewal says of it. From the heartbeat's thread."""
        return Load(len(self.table), self.draining)

    def learn(self, other: IncarnationId, death: Death) -> None:
        """Remember how another one ended."""
        self.deaths[other] = death
        if len(self.deaths) > DEATHS:
            del self.deaths[next(iter(self.deaths))]

    def give_up(self, why: str) -> None:
        """For good: every tenure is lost, everything of it is refused from now on (rule 11)."""
        if self.given_up or self.retired:
            return
        self.given_up = True
        self.facts.tell(facts.GaveUp(self.id, why, len(self.table)))
        for tenure in list(self.table.values()):
            tenure.lose(why)
        self.over.set()

    def retire(self) -> None:
        """Left on purpose; whatever still runs is refused from now on."""
        self.retired = True
        for tenure in list(self.table.values()):
            tenure.lose("the node has left")
        self.over.set()

    def enter(self, tenure: Tenure, work: asyncio.Task[None]) -> None:
        """Keep the tenure for as long as its work lasts."""
        self.table[tenure.conversation_id] = tenure
        self.works[work] = None
        work.add_done_callback(lambda _: self._leave(tenure, work))

    def _leave(self, tenure: Tenure, work: asyncio.Task[None]) -> None:
        # Not in the work itself: one that is cancelled before its first step never runs at all.
        del self.works[work]
        if not tenure.state.ended:
            tenure.lose("it was cancelled")
        if not tenure.ready.done():
            tenure.ready.set_result(False)
        if tenure.state is TenureState.LOST and tenure.runtime is not None:
            self.bereft.set()
        tenure.forget()
        if self.table.get(tenure.conversation_id) is tenure:
            del self.table[tenure.conversation_id]

    @property
    def held(self) -> int:
        """How many conversations this incarnation holds, or is about to."""
        # Asked at every sweep and every command: nothing here may grow with the table.
        coming = self.starting.keys() | self.rehydrating.keys() | self.claiming.keys()
        return len(self.table) + sum(name not in self.table for name in coming)

    def has_room(self, conversation_id: str, capacity: int) -> bool:
        """Whether it may hold the conversation: it does already, or there is a place left."""
        here = conversation_id in self.table or conversation_id in self.starting or conversation_id in self.claiming
        return here or self.held < capacity

    async def ended(self, timeout_s: float) -> bool:
        """Wait until nothing of it runs any more, no loop, no start, no claim; false if some do after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while under_way := self._under_way():
                    await asyncio.wait(under_way)
        except TimeoutError:
            return False
        return True

    def _under_way(self) -> list[asyncio.Future[Any]]:
        copies = (r.task for r in self.rehydrating.values())
        return [*self.works, *(s.task for s in self.starting.values()), *copies, *self.claiming.values()]

    def holds(self, conversation_id: str) -> Tenure | None:
        """The tenure of a conversation, unless it is over."""
        tenure = self.table.get(conversation_id)
        return None if tenure is None or tenure.state in (TenureState.RELEASED, TenureState.LOST) else tenure
