"""Finds work that nobody does: buries what has expired, claims what is wanted, up to this node's free capacity.

Level-triggered: each sweep asks the store what is wanted *now*, so that a lost hint, a late claim or an outage costs a
period and no more. Hints only make the next sweep come sooner. There is no list of a dead node's conversations that
is passed once (rule 7), and a conversation that the store calls ours while the table does not hold exactly that lease
is claimed again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Claim, Death, Held, Topic, Wanted
from tenure.errors import StoreUnavailableError
from tenure.lease import new_token
from tenure.node.initiation import adopt, death_of
from tenure.node.tasks import settled
from tenure.node.tenure import ANYTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenure.abc import Claimed, Page
    from tenure.conversation import Record
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Means


BATCH = 200
"""Claims that travel together; between two batches other nodes get their share of a dead node's conversations."""
AT_ONCE = 25
"""So many of them are entered into the table in one turn of the event loop."""
JITTER_S = 0.02
"""How long a node at most lets the one that heard a command first go ahead."""


@final
class Claimer:
    """The sweep of one incarnation, and the hints that hasten it."""

    def __init__(self, incarnation: Incarnation, means: Means, requests: Callable[[], Awaitable[None]]) -> None:
        self._incarnation = incarnation
        self._means = means
        self._requests = requests
        self._hinted = asyncio.Event()
        self._next_death_s = means.config.sweep_s
        self._named: dict[str, None] = {}
        """Conversations that hints named and nobody has looked at."""

    def hasten(self) -> None:
        """Sweep now."""
        self._hinted.set()

    def take_or_hasten(self, record: Record | None) -> None:
        """A command was accepted here: claim what nobody owns at once, as its record stood then; else sweep."""
        if record is None or record.owner is not None or self._room() <= 0:
            self._hinted.set()
        elif self._free(record):
            self._begin([_as_wanted(record)])

    def _free(self, record: Record) -> bool:
        """Whether a sweep would find it, and nobody here is at it."""
        due = record.wanted and not record.deleted and record.owner is None and not record.retry_in_s
        return due and record.agent in self._means.agents and not self._at_it(record.conversation)

    def _at_it(self, conversation: str) -> bool:
        return conversation in self._incarnation.starting or conversation in self._incarnation.claiming

    async def listen(self) -> None:
        """Turn hints into sweeps, looks and pokes, for as long as the store gives any."""
        topics = [Topic(Topic.WANTED), Topic(Topic.NODE, self._incarnation.id)]
        async with self._means.store.follow(topics) as hints:
            async for hint in hints:
                tenure = self._incarnation.holds(hint.conversation) if hint.conversation else None
                if tenure is not None:
                    tenure.hear(ANYTHING if hint.head is None else hint.head)
                elif hint.topic.kind != Topic.WANTED:
                    self._hinted.set()
                elif hint.conversation is None:
                    self._after_others(self._hinted.set)
                elif not self._at_it(hint.conversation):
                    if not self._named:
                        self._after_others(self._look)
                    self._named[hint.conversation] = None

    def _after_others(self, act: Callable[[], object]) -> None:
        """The one that heard a command first goes ahead: no two nodes race for what one of them has begun."""
        asyncio.get_running_loop().call_later(self._means.rng.uniform(0, JITTER_S), act)

    def _look(self) -> None:
        """Look at what hints named, unless it is so much that a sweep costs less."""
        here = self._incarnation.holds
        named = [name for name in self._named if here(name) is None and not self._at_it(name)]
        self._named = {}
        if not named or self._incarnation.over.is_set() or self._room() <= 0:
            return
        if len(named) > BATCH:
            self._hinted.set()
        else:
            self._means.tasks.start(self._look_at(named), "look")

    async def _look_at(self, named: Sequence[str]) -> None:
        try:
            records = await self._means.store.records(named)
        except StoreUnavailableError:
            self._hinted.set()
            return
        free = [_as_wanted(record) for record in records if record is not None and self._free(record)]
        if free and (room := self._room()) > 0:
            await settled(self._begin(free[:room]))

    async def sweep(self) -> None:
        """Sweep at every hint, at every period, and when the next lease runs out."""
        while True:
            self._hinted.clear()
            await self._requests()
            await self._bury_the_expired()
            self._incarnation.wanted = await self._claim_the_wanted()
            self._incarnation.swept_s = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._hinted.wait()
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        period = self._means.config.sweep_s * self._means.rng.uniform(0.8, 1.2)
        return max(0.01, min(period, self._next_death_s))

    async def _bury_the_expired(self) -> None:
        """Judged and buried first, claimed second (rule 10)."""
        soonest = self._means.config.ttl_s
        nodes = await self._means.store.nodes()
        self._means.activity.seen(nodes)
        for node in nodes:
            if node.dead or node.incarnation == self._incarnation.id:
                continue
            # More than a ttl left: the store's clock was set back. Asking clamps it, or the dead would live on (C23).
            if node.expires_in_s <= 0 or node.expires_in_s > self._means.config.ttl_s:
                await self._means.store.bury(node.incarnation, Death.EXPIRED)
            else:
                soonest = min(soonest, node.expires_in_s)
        self._next_death_s = soonest + 0.01

    async def _claim_the_wanted(self) -> int:
        """Up to the free capacity; how many of those found are left, which nobody does."""
        try:
            return await self._claim_page_by_page()
        finally:
            self._means.pace.let_on()

    async def _claim_page_by_page(self) -> int:
        found = begun = 0
        page = await self._page(None)
        while True:
            free = [w for w in page.items if not self._poked(w) and not self._at_it(w.conversation)]
            room = self._room()
            found += len(free)
            if page.cursor is not None and room > len(free):
                self._means.pace.hold_back()  # more are to be claimed: that first
            claiming = None
            if free and room > 0:
                self._means.rng.shuffle(free)
                begun += len(free[:room])
                claiming = self._begin(free[:room])
            following = None if page.cursor is None else await self._page(page.cursor)  # while these are claimed
            if claiming is not None:
                await settled(claiming)
            if following is None or self._incarnation.given_up:
                self._means.facts.tell(facts.Swept(found, begun))
                return found - begun
            page = following

    async def _page(self, cursor: str | None) -> Page[Wanted]:
        return await self._means.store.wanted(self._incarnation.id, tuple(self._means.agents), cursor, BATCH)

    def _poked(self, wanted: Wanted) -> bool:
        """Mine, and the table holds exactly that lease: let it look."""
        tenure = self._incarnation.holds(wanted.conversation)
        if tenure is None or (tenure.lease.epoch, tenure.lease.token) != (wanted.epoch, wanted.token):
            return False
        tenure.hear()
        return True

    def _room(self) -> int:
        if self._incarnation.draining or not self._incarnation.trusts():
            return 0
        return self._means.config.capacity - self._incarnation.held

    def _begin(self, wanted: Sequence[Wanted]) -> asyncio.Task[None]:
        """Not cancelled with the sweep, and known from here on: a start of one of them waits for it."""
        task = self._means.tasks.start(self._claim(wanted), "claim")
        claiming = self._incarnation.claiming
        for w in wanted:
            claiming[w.conversation] = task
            task.add_done_callback(lambda _, name=w.conversation: claiming.pop(name, None))
        return task

    async def _claim(self, wanted: Sequence[Wanted]) -> None:
        """One batch, repeated unchanged until it is answered: a claim is never forgotten (rule 3)."""
        config, began = self._means.config, self._means.clock.boottime()
        owners = dict.fromkeys(w.owner for w in wanted)
        deaths = {owner: await death_of(self._incarnation, owner) for owner in owners}
        claims = [
            Claim(
                conversation=w.conversation,
                incarnation=self._incarnation.id,
                token=new_token(),
                expected_epoch=w.epoch,
                node=config.node,
                address=config.public_address,
                why="wanted" if w.owner is None else "takeover",
                floor=self._means.floor,
                death=deaths[w.owner],
            )
            for w in wanted
        ]
        for number, (claim, answer) in enumerate(zip(claims, await self._answers(claims), strict=False), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(answer, Held) and not self._incarnation.given_up:
                adopt(self._incarnation, answer, claim, began, paced=True)

    async def _answers(self, claims: Sequence[Claim]) -> Sequence[Claimed]:
        failures = 0
        while self._incarnation.trusts():
            try:
                return await self._means.store.claim_all(claims)
            except StoreUnavailableError:
                failures = min(failures + 1, 8)
                await asyncio.sleep(0.01 * 2**failures * self._means.rng.uniform(0.5, 1.5))
        return ()


def _as_wanted(record: Record) -> Wanted:
    return Wanted(record.conversation, record.epoch, None, None, record.agent)
