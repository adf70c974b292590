"""Leaving without waiting for any ttl: stop claiming, finish or hand over, release, retire (rule 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure import facts
from tenure.lease import TenureState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenure.abc import NodeRecord
    from tenure.node.incarnation import Incarnation


HAND_OVER_S = 8.0
"""What the rest gets after the deadline: to come to a step boundary and to release."""


def places(nodes: Iterable[NodeRecord], but: str) -> tuple[str, ...]:
    """Addresses of nodes that take work now, other than the one of that name."""
    return tuple(
        n.about.address
        for n in nodes
        if not n.dead
        and n.expires_in_s > 0
        and not n.load.draining
        and n.load.owned < n.about.capacity
        and n.about.node != but
    )


async def drain(incarnation: Incarnation, deadline_s: float) -> None:
    """Let turns run until the deadline, hand the rest over at a step boundary. Returns when nothing runs here.

    Nothing ends because of it: an open turn stays open in the journal and goes on under its next owner.
    """
    incarnation.draining = True
    tenures = list(incarnation.table.values())
    incarnation.facts.tell(facts.Draining(incarnation.id, len(tenures)))
    for tenure in tenures:
        tenure.leaving = True
        tenure.poke()
    if await incarnation.ended(deadline_s):
        return
    for tenure in list(incarnation.table.values()):
        tenure.leaving = tenure.handing_over = True
        tenure.poke()
        if tenure.state is not TenureState.LIVE and not tenure.letting_go and tenure.work is not None:
            tenure.work.cancel("handing over")
    if not await incarnation.ended(HAND_OVER_S):
        incarnation.facts.tell(facts.DrainOverdue(incarnation.id))


async def settle_down(incarnation: Incarnation, patience_s: float) -> bool:
    """After a loss: wait until every old loop has ended (rule 11); false if one is stuck."""
    if await incarnation.ended(patience_s):
        return True
    stuck = ", ".join(work.get_name() for work in incarnation.works)
    incarnation.facts.tell(facts.TasksStuck("after the loss of the lease", stuck))
    return False
