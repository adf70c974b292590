"""One start of this node, as far as the store knows it: what it holds, and until when it may believe that it lives."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from typing import TYPE_CHECKING, final

from tenure.abc import Load
from tenure.lease import TenureState

if TYPE_CHECKING:
    from tenure.lease import IncarnationId
    from tenure.node.heartbeat import Heartbeat
    from tenure.node.tenure import Means, Tenure

log = logging.getLogger("tenure.node")


_OF_THIS_PROCESS: weakref.WeakSet[Incarnation] = weakref.WeakSet()


def _in_a_forked_child() -> None:
    """A copy of this process holds nothing: two processes with one lease would be two owners (C24)."""
    for incarnation in _OF_THIS_PROCESS:
        incarnation.given_up = True


os.register_at_fork(after_in_child=_in_a_forked_child)


@final
class Incarnation:
    """The table of what one incarnation holds, and the flag that ends it for good."""

    def __init__(self, id: IncarnationId) -> None:
        self.id = id
        self.table: dict[str, Tenure] = {}
        self.starting: dict[str, asyncio.Task[Tenure]] = {}
        """Explicit starts under way: joined, never doubled, and not cancelled with who asked."""
        self.over = asyncio.Event()
        """Given up or retired: set once, in the node's event loop."""
        self.given_up = False
        """Lost for good."""
        self.retired = False
        """Left on purpose: everything was released or handed over."""
        self.draining = False
        self.heartbeat: Heartbeat | None = None
        self.means: Means | None = None
        self.swept_s = 0.0
        _OF_THIS_PROCESS.add(self)

    def trusts(self) -> bool:
        """Whether this incarnation may still act. From any thread."""
        return not self.given_up and not self.retired and self.heartbeat is not None and self.heartbeat.trusts()

    def load(self) -> Load:
        """What the next renewal says of it. From the heartbeat's thread."""
        return Load(len(self.table), self.draining)

    def give_up(self, why: str) -> None:
        """For good: every tenure is lost, everything of it is refused from now on (rule 11)."""
        if self.given_up or self.retired:
            return
        self.given_up = True
        log.error("incarnation given up: %s", why, extra={"incarnation": self.id})
        for tenure in list(self.table.values()):
            tenure.lose(why)
        self.over.set()

    def retire(self) -> None:
        """Nothing is held any more; the heartbeat has told the store."""
        self.retired = True
        self.over.set()

    async def ended(self, timeout_s: float) -> bool:
        """Wait until no loop of it runs any more; false if some still do after `timeout_s`."""
        running = [t.work for t in self.table.values() if t.work is not None and not t.work.done()]
        if not running:
            return True
        _, stuck = await asyncio.wait(running, timeout=timeout_s)
        return not stuck

    def holds(self, conversation_id: str) -> Tenure | None:
        """The tenure of a conversation, unless it is over."""
        tenure = self.table.get(conversation_id)
        return None if tenure is None or tenure.state in (TenureState.RELEASED, TenureState.LOST) else tenure
