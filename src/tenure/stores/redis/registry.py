"""The nodes: their leases, and who is dead. All of it lives in one slot, apart from the conversations.

So in a Cluster a claim cannot look at its nodes in its own step: who is dead is judged here first, and named in the claim
(rule 10). Death is for good, and so is having been registered: both may be remembered, "alive" never. A claim that arrives
after its own incarnation was buried is harmless: the sweep finds what a dead node owns, however late it came to own it (rule 7).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure.abc import Alive, Buried, Dead, Death, Granted, Refused
from tenure.journal import canonical
from tenure.stores.redis.keys import NODES
from tenure.stores.redis.replies import MICROSECONDS, death_of, node_of
from tenure.stores.redis.requests import flag, microseconds
from tenure.stores.redis.scripts import script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tenure.abc import About, Load, NodeRecord
    from tenure.lease import IncarnationId
    from tenure.stores.redis.keys import Keyspace, PartitionKeys
    from tenure.stores.redis.link import Command, Reply
    from tenure.stores.redis.servers import Servers

PARTICULARS_KEPT_S = 30 * 86400
"""How long the address and the like of a dead node stay readable. That it is dead stays for ever."""
REMEMBERED = 100
"""How many of the dead are named in a claim: the last that were seen."""


@final
class Registry:
    """Register, renew, bury, and what this process has learned of others. `given` is a test's clock, or ''."""

    def __init__(self, servers: Servers, keyspace: Keyspace, channel: str, given: Callable[[], str]) -> None:
        self._servers = servers
        self._keyspace = keyspace
        self._channel = channel
        self._given = given
        self._dead: dict[str, None] = {}
        self._registered: dict[str, None] = {}

    # the port

    async def register(self, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
        call = script("register").call(
            register=self._keyspace.register,
            living=self._keyspace.living,
            node=self._keyspace.node(incarnation),
            given=self._given(),
            incarnation=incarnation,
            ttl=microseconds(ttl_s),
            about=canonical(
                {
                    "node": about.node,
                    "address": about.address,
                    "capacity": about.capacity,
                    "agents": list(about.agents),
                    "started_at": about.started_at.unix_s,
                }
            ),
        )
        (answer,) = await self._servers.run(NODES, call)
        return Granted(0) if answer == b"granted" else Refused("registered-before")

    async def renew(
        self, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
    ) -> Granted | Dead:
        call = script("renew").call(
            register=self._keyspace.register,
            node=self._keyspace.node(incarnation),
            given=self._given(),
            incarnation=incarnation,
            beat=beat,
            nonce=nonce,
            ttl=microseconds(ttl_s),
            owned=load.owned,
            draining=flag(load.draining),
        )
        # Not held back for replicas: a missing one would end every node. A renewal that a fail-over loses only expires early.
        answer = await self._servers.run(NODES, call, durable=False)
        return Granted(int(answer[1])) if answer[0] == b"granted" else Dead()

    async def bury(self, incarnation: IncarnationId, why: Death) -> Buried | Alive:
        call = script("bury").call(
            register=self._keyspace.register,
            living=self._keyspace.living,
            node=self._keyspace.node(incarnation),
            given=self._given(),
            channel=self._channel,
            incarnation=incarnation,
            why=why.value,
            kept=PARTICULARS_KEPT_S,
        )
        answer = await self._servers.run(NODES, call)
        if answer[0] == b"buried":
            _remember(self._dead, incarnation)
            return Buried(death_of(answer[1]))
        return Alive(int(answer[1]) / MICROSECONDS if answer[1] else float("inf"))

    async def nodes(self) -> list[NodeRecord]:
        (living, time), named = await asyncio.gather(
            self._servers.get(NODES, ("ZRANGE", self._keyspace.living, 0, -1), ("TIME",)),
            self.named(),
        )
        alive = [one.decode() for one in living]
        dead = await self.dead_among(named.difference(alive))
        shown = (*alive, *sorted(dead))
        commands: list[Command] = [("HGETALL", self._keyspace.node(one)) for one in shown]
        hashes: list[Reply] = await self._servers.get(NODES, *commands) if commands else []
        now = self._now(time)
        found = [node_of(one, flat, now) for one, flat in zip(shown, hashes, strict=True) if flat]
        found.sort(key=lambda node: node[0])
        return [record for _, record in found if not record.dead or record.incarnation in named]

    def _now(self, time: Sequence[bytes]) -> int:
        given = self._given()
        return int(given.split()[0]) if given else int(time[0]) * MICROSECONDS + int(time[1])

    async def named(self) -> set[str]:
        """Every incarnation that owns a conversation, dead or alive."""
        answers = await asyncio.gather(
            *(
                self._servers.get(group[0].tag, ("ZUNION", len(group), *(partition.named for partition in group)))
                for group in self.groups()
            )
        )
        return {one.decode() for (answer,) in answers for one in answer}

    def groups(self) -> Sequence[Sequence[PartitionKeys]]:
        """Partitions that one command may ask for: all of them, or, in a Cluster, each alone."""
        partitions = self._keyspace.partitions
        return [(one,) for one in partitions] if self._servers.is_cluster else [partitions]

    # what was learned

    @property
    def lately_dead(self) -> Sequence[str]:
        """The dead that this process met last."""
        return tuple(self._dead)

    async def dead_among(self, incarnations: Iterable[str]) -> set[str]:
        """Which of these are buried. Who was never registered is not."""
        asked = set(incarnations)
        dead = asked & self._dead.keys()
        if rest := sorted(asked - dead):
            (states,) = await self._servers.get(NODES, ("HMGET", self._keyspace.register, *rest))
            for incarnation, state in zip(rest, states, strict=True):
                if state == b"dead":
                    _remember(self._dead, incarnation)
                    dead.add(incarnation)
        return dead

    async def may_claim(self, incarnation: str) -> bool:
        """Whether it was registered once, and is not known to be dead. Costs a look when it is met first.

        Only in a Cluster; elsewhere the claim sees for itself.
        """
        if not self._servers.is_cluster:
            return True
        if incarnation in self._dead:
            return False
        if incarnation not in self._registered:
            (state,) = await self._servers.get(NODES, ("HGET", self._keyspace.register, incarnation))
            if state != b"registered":
                return False
            _remember(self._registered, incarnation)
        return True


def _remember(memory: dict[str, None], incarnation: str) -> None:
    """As the last one; the first ones are forgotten."""
    memory.pop(incarnation, None)
    memory[incarnation] = None
    while len(memory) > REMEMBERED:
        del memory[next(iter(memory))]
