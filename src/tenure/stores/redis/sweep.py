"""The sweep: what is wanted and nobody alive but the asker owns.

Each partition keeps what is wanted in one ordered set of texts: owner, agent, end of the back-off, and then what a claim needs
to know. So one look says which partitions have something, and for whom; then only that is fetched. An idle sweep is
one command (in a Cluster: one per partition), however much is stored.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.abc import Page, Wanted
from tenure.lease import Epoch, IncarnationId, Token
from tenure.stores import rules
from tenure.stores.redis.keys import NODES
from tenure.stores.redis.scripts import script
from tenure.stores.redis.servers import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.stores.redis.keys import Keyspace, PartitionKeys
    from tenure.stores.redis.registry import Registry
    from tenure.stores.redis.servers import Servers


@final
@dataclass(frozen=True, slots=True, order=True)
class _Group:
    """Where some of the wanted stand together, and how many of them there are at most."""

    partition: int
    owner: str
    agent: str
    count: int

    @property
    def place(self) -> tuple[int, str, str]:
        return self.partition, self.owner, self.agent

    @property
    def prefix(self) -> bytes:
        return prefix(self.owner, self.agent)


def prefix(owner: str, agent: str) -> bytes:
    """How every text in ``wanted`` begins that is of this owner ('' for nobody) and this agent."""
    return b"".join(b"%d:%b" % (len(part), part) for part in (owner.encode(), agent.encode()))


@final
class Sweep:
    """``wanted`` of the port. `given` is a test's clock, or ''."""

    def __init__(self, servers: Servers, keyspace: Keyspace, registry: Registry, given: Callable[[], str]) -> None:
        self._servers = servers
        self._keyspace = keyspace
        self._registry = registry
        self._given = given

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        """In order of partition, owner, agent, end of the back-off; the cursor is a place in that order."""
        limit = max(1, limit)
        from_place, after = _place(cursor)
        now, groups = await self._look(me, sorted(set(agents)))
        groups = [group for group in groups if group.place >= from_place]
        items: list[Wanted] = []
        while groups:
            wave = _as_many_as_needed(groups, limit - len(items))
            groups = groups[len(wave) :]
            for group, texts in zip(wave, await self._fetch(wave, from_place, after, now, limit), strict=True):
                for text in texts[: limit - len(items)]:
                    items.append(_wanted(group, text))
                    if len(items) == limit:
                        return Page(tuple(items), json.dumps([*group.place, text.decode()]))
        return Page(tuple(items), None)

    async def _look(self, me: str | None, agents: Sequence[str]) -> tuple[int, list[_Group]]:
        """The store's now, and every group that may have something, in order."""
        groups = self._registry.groups()
        (living,), *answers = await asyncio.gather(
            self._servers.get(NODES, ("ZRANGE", self._keyspace.living, 0, -1)),
            *(self._look_at(group, agents) for group in groups),
        )
        found: list[tuple[int, int, dict[str, int]]] = []
        base = 0
        for group, (_, *partitions) in zip(groups, answers, strict=True):
            for index, due, owners in partitions:
                names = (name.decode() for name in owners[::2])
                found.append((base + index, due, dict(zip(names, map(int, owners[1::2]), strict=True))))
            base += len(group)
        alive = {one.decode() for one in living}
        suspects = {owner for _, _, owners in found for owner in owners} - alive
        theirs = await self._registry.dead_among(suspects)
        if me is not None:
            theirs.add(me)
        return int(answers[0][0]), [
            _Group(partition, owner, agent, count)
            for partition, due, owners in found
            for owner, count in sorted([("", due), *((o, n) for o, n in owners.items() if o in theirs)])
            for agent in agents
            if count
        ]

    async def _look_at(self, group: Sequence[PartitionKeys], agents: Sequence[str]) -> list[object]:
        call = script("look").call(
            indexes=[*(one.wanted for one in group), *(one.owners for one in group)],
            given=self._given(),
            nobodys=[prefix("", agent) for agent in agents],
        )
        return await self._servers.run(group[0].tag, call, Lane.READS, durable=False)

    async def _fetch(
        self, wave: Sequence[_Group], from_place: tuple[int, str, str], after: bytes, now: int, limit: int
    ) -> list[list[bytes]]:
        async def fetch(group: _Group) -> list[bytes]:
            partition = self._keyspace.partitions[group.partition]
            start = b"(" + after if after and group.place == from_place else b"[" + group.prefix
            end = b"(%b%020d" % (group.prefix, max(now, 0) + 1)
            (texts,) = await self._servers.get(
                partition.tag, ("ZRANGEBYLEX", partition.wanted, start, end, "LIMIT", 0, limit)
            )
            return texts

        return await asyncio.gather(*map(fetch, wave))


def _as_many_as_needed(groups: Sequence[_Group], limit: int) -> Sequence[_Group]:
    """The first groups that together may fill a page."""
    total = 0
    for index, group in enumerate(groups, 1):
        total += group.count
        if total >= limit:
            return groups[:index]
    return groups


def _wanted(group: _Group, text: bytes) -> Wanted:
    """A text of ``wanted``: behind the prefix, end of the back-off, epoch, token, conversation."""
    epoch, _, rest = text[len(group.prefix) + 20 :].partition(b" ")
    length, _, rest = rest.partition(b":")
    token, conversation = rest[: int(length)].decode(), rest[int(length) :].decode()
    return Wanted(
        conversation,
        Epoch(int(epoch)),
        IncarnationId(group.owner) if group.owner else None,
        Token(token) if token else None,
        group.agent,
    )


def _place(cursor: str | None) -> tuple[tuple[int, str, str], bytes]:
    if cursor is None:
        return (0, "", ""), b""
    try:
        partition, owner, agent, text = json.loads(cursor)
        return (int(partition), str(owner), str(agent)), str(text).encode()
    except (ValueError, TypeError):
        raise rules.foreign(cursor) from None
