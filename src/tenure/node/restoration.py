"""A store that was restored from a backup: its epochs are older than those that its former life has granted.

Whoever held a lease in that life may still write, and a new claim would grant an epoch that was granted before. So, before
any node starts, every conversation is claimed once at a *floor* above all former epochs, and released as it was (rule 4).
What was created after the backup is not there to be raised, and may come again under the same id: so the floor stays in a
paper, which every node reads when it registers, and no claim grants an epoch below it. The floor is the time in seconds since 1970: no conversation has changed owners as often, and a second restore of the same
backup, later, has a higher one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.abc import (
    About,
    Alive,
    Append,
    Claim,
    Death,
    Deleted,
    Filters,
    Granted,
    Held,
    Load,
    Reason,
    Release,
    ReleasedNow,
)
from tenure.errors import StoreError, StoreUnfitError
from tenure.lease import new_incarnation, new_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.abc import Store
    from tenure.clock import Clock
    from tenure.conversation import Record
    from tenure.lease import IncarnationId

MARK = ("cluster", "restoring")
"""The paper that stands while epochs are raised; no node starts meanwhile."""
FLOOR = ("cluster", "floor")
"""The paper that stays: no epoch of this store is granted at or below its floor."""
NODE = "restored"
BATCH = 64
TTL_S = 60.0
WAIT_S = 120.0
"""How long an incarnation of the backup may seem to be alive; a ttl is shorter."""


@final
@dataclass(frozen=True, slots=True)
class Raised:
    """What was done: every epoch is above `floor` now."""

    floor: int
    conversations: int
    buried: int


async def insist_on_whole(store: Store) -> None:
    """:raises StoreUnfitError: the epochs of this store are being raised, or that was cut off."""
    if await store.get_paper(*MARK) is not None:
        raise StoreUnfitError(
            "the store was restored and its epochs are not raised yet; run `tenure restored` to its end"
        )


async def floor_of(store: Store) -> int:
    """What every claim is granted above; 0 for a store that was never restored.

    :raises StoreUnfitError: as :func:`insist_on_whole`.
    """
    await insist_on_whole(store)
    found = await store.get_paper(*FLOOR)
    floor = 0 if found is None else found.document.get("floor")
    assert isinstance(floor, int), "written by `raise_epochs` alone"
    return floor


async def raise_epochs(store: Store, clock: Clock, told: Callable[[int], None] = lambda _: None) -> Raised:
    """Make a restored store safe to use. Cut off, it is begun anew. `told` hears how many conversations are done.

    :raises StoreUnfitError: a node is alive: stop all of them first.
    """
    buried = await _bury_all(store)
    floor = int(clock.now().unix_s)
    mark = await store.get_paper(*MARK)
    mark = await store.put_paper(*MARK, {"floor": floor}, mark.version if mark is not None else 0)
    if mark is None:
        raise StoreUnfitError("somebody else raises the epochs of this store just now; let one of you do it")
    kept = await store.get_paper(*FLOOR)
    if await store.put_paper(*FLOOR, {"floor": floor}, kept.version if kept is not None else 0) is None:
        raise StoreUnfitError("somebody else raises the epochs of this store just now; let one of you do it")
    me = new_incarnation()
    about = About(NODE, "", 0, (), clock.now())
    await store.register(me, about, TTL_S)
    beat, done, cursor = 0, 0, None
    try:
        while True:
            page = await store.list(Filters(), cursor, BATCH)
            await _raise(store, me, floor, page.items)
            done += len(page.items)
            told(done)
            cursor = page.cursor
            if cursor is None:
                break
            match await store.renew(me, beat, new_token(), TTL_S, Load()):
                case Granted(beat):
                    pass
                case _:
                    raise StoreError(f"batches took longer than {TTL_S:g} s; run it again on a faster way to the store")
    finally:
        await store.bury(me, Death.RETIRED)
    await store.remove_paper(*MARK, mark.version)
    return Raised(floor, done, buried)


async def _bury_all(store: Store) -> int:
    """Who stands in the backup is dead; who renews is not of the backup."""
    there = [node for node in await store.nodes() if not node.dead]
    left_s = 0.0
    for node in there:
        answer = await store.bury(node.incarnation, Death.EXPIRED)
        if isinstance(answer, Alive):  # its lease may still run in the backup; asking has clamped it to a ttl
            left_s = max(left_s, answer.expires_in_s)
    if left_s > 0:
        await asyncio.sleep(min(left_s, WAIT_S) + 0.01)
    for node in there:
        if isinstance(await store.bury(node.incarnation, Death.EXPIRED), Alive):
            raise StoreUnfitError(
                f"node {node.about.node} ({node.about.address}) is alive on this store; stop all nodes, restore again, "
                "then run this before they start"
            )
    return len(there)


async def _raise(store: Store, me: IncarnationId, floor: int, records: Sequence[Record]) -> None:
    claims = [
        Claim(r.conversation, me, new_token(), r.epoch, NODE, "", why="restored", forced=True, floor=floor)
        for r in records
    ]
    releases: list[Release] = []
    for answer in await store.claim_all(claims):
        match answer:
            case Held(lease=lease, record=record):
                releases.append(Release(Append(lease, 1, record.head, ()), Reason.FORCED))
            case Deleted():
                pass
            case _:
                raise StoreUnfitError(f"somebody works on this store ({answer!r}); stop all nodes, then run this again")
    for answer in await store.release_all(releases):
        if not isinstance(answer, ReleasedNow):
            raise StoreUnfitError(f"somebody works on this store ({answer!r}); stop all nodes, then run this again")
