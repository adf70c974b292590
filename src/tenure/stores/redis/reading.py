"""Reading: always from the primary; every answer is of one moment, long ones are put together from bounded pieces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure.abc import Deleted, Page, Reading, Unknown
from tenure.errors import StoreUnavailableError
from tenure.lease import Epoch
from tenure.stores import rules
from tenure.stores.redis.keys import PAPERS
from tenure.stores.redis.rebuild import rebuild
from tenure.stores.redis.replies import (
    MICROSECONDS,
    events_of,
    paper_of,
    record_of,
    refusal_of,
    sealed_of,
    snapshot_of,
)
from tenure.stores.redis.requests import conversation_keys, flag
from tenure.stores.redis.scripts import script
from tenure.stores.redis.servers import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.abc import Filters, Limits, Paper, Refusal, Sealed, Snapshot
    from tenure.conversation import Record
    from tenure.journal import Event
    from tenure.stores.redis.keys import ConversationKeys, Keyspace
    from tenure.stores.redis.link import Command, Reply
    from tenure.stores.redis.registry import Registry
    from tenure.stores.redis.servers import Servers

READ_BYTES = 1 << 20
READ_ENTRIES = 1000
"""What one script reads at most; a longer answer takes several."""
LISTED = 1000
"""How many conversations one page of a list looks at; a filter that matches few gives short pages."""
TRIES = 5

type _Place = tuple[int, int]
"""A place in the list: creation number and partition."""


@final
class Reads:
    """The reading half of the port. `saw` is told the creation numbers that come by."""

    def __init__(
        self,
        servers: Servers,
        keyspace: Keyspace,
        registry: Registry,
        *,
        limits: Limits,
        given: Callable[[], str],
        saw: Callable[[int], None],
    ) -> None:
        self._servers = servers
        self._keyspace = keyspace
        self._registry = registry
        self._limits = limits
        self._given = given
        self._saw = saw

    # journals

    async def read(
        self, conversation: str, after: int, limit: int, kinds: Sequence[str], *, snapshot: bool
    ) -> Reading | Deleted | Unknown:
        limit = min(limit, self._limits.page)
        events: list[Event] = []
        start: Snapshot | None = None
        first = True
        while True:
            answer = await self._piece(conversation, after, limit - len(events), kinds, snapshot=snapshot and first)
            match answer:
                case [b"reading", shown, snapshot_parts, scanned, complete, entries]:
                    start = snapshot_of(snapshot_parts) if first else start
                    events += events_of(entries)
                    if complete == b"1" or len(events) >= limit:
                        return Reading(tuple(events), record_of(shown), start)
                    after, first = int(scanned), False
                case [b"deleted", epoch]:
                    return Deleted(Epoch(int(epoch)))
                case _:
                    return Unknown()

    async def _piece(
        self, conversation: str, after: int, limit: int, kinds: Sequence[str], *, snapshot: bool
    ) -> list[Reply]:
        keys = self._keyspace.conversation(conversation)
        call = script("read").call(
            **conversation_keys(keys, "lock", "journal", "epochs", "snapshot"),
            given=self._given(),
            after=after,
            limit=limit,
            from_snapshot=flag(snapshot),
            most_bytes=READ_BYTES,
            most_scanned=READ_ENTRIES,
            kinds=kinds,
        )
        for _ in range(TRIES):
            answer = await self._servers.run(keys.tag, call, Lane.READS, durable=False)
            if answer[0] != b"lost":
                return answer
            await rebuild(self._servers, keys, conversation)
        raise StoreUnavailableError(f"the record of conversation {conversation} is being rebuilt; repeat the request")

    # records and lists

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        found = await self._of_each(conversations, lambda keys: ("HGETALL", keys.lock))
        return [record_of((now, flat)) if flat else None for now, flat in found]

    async def _of_each(
        self, conversations: Sequence[str], command: Callable[[ConversationKeys], Command]
    ) -> list[tuple[int, Reply]]:
        """What one command answers for each, with its server's now. Those that may travel together do."""
        keys = [self._keyspace.conversation(conversation) for conversation in conversations]
        by_tag: dict[str, list[int]] = {}
        for index, one in enumerate(keys):
            by_tag.setdefault(one.tag if self._servers.is_cluster else keys[0].tag, []).append(index)

        async def ask(tag: str, indexes: list[int]) -> None:
            time, *replies = await self._servers.get(tag, ("TIME",), *(command(keys[index]) for index in indexes))
            for index, reply in zip(indexes, replies, strict=True):
                answers[index] = (self._now(time), reply)

        answers: dict[int, tuple[int, Reply]] = {}
        await asyncio.gather(*(ask(tag, indexes) for tag, indexes in by_tag.items()))
        return [answers[index] for index in range(len(keys))]

    def _now(self, time: Sequence[bytes]) -> int:
        given = self._given()
        return int(given.split()[0]) if given else int(time[0]) * MICROSECONDS + int(time[1])

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        after = _place(cursor)
        limit = max(1, limit)
        items: list[Record] = []
        looked = 0
        while looked < LISTED:
            found, complete = await self._created_after(after, limit - len(items))
            for start in range(0, len(found), limit):
                piece = found[start : start + limit]
                for (place, _), record in zip(piece, await self._matching(piece, filters), strict=True):
                    after = place
                    if record is not None:
                        items.append(record)
                        if len(items) == limit:
                            is_last = complete and place == found[-1][0]
                            return Page(tuple(items), None if is_last else _cursor(place))
            if complete:
                return Page(tuple(items), None)
            looked += len(found)
        return Page(tuple(items), _cursor(after))

    async def _created_after(self, after: _Place, about: int) -> tuple[list[tuple[_Place, str]], bool]:
        """The next conversations of all partitions, in order; and whether these are all."""
        partitions = self._keyspace.partitions
        each = 2 * about // len(partitions) + 4
        answers: list[list[bytes]] = []
        for group in self._registry.groups():
            commands: list[Command] = []
            for number, partition in enumerate(group, len(answers) + len(commands)):
                start = f"({after[0]}" if number <= after[1] else f"{after[0]}"
                commands.append(("ZRANGEBYSCORE", partition.created, start, "+inf", "WITHSCORES", "LIMIT", 0, each))
            answers += await self._servers.get(group[0].tag, *commands)
        found: list[tuple[_Place, str]] = []
        horizon: _Place | None = None
        for number, flat in enumerate(answers):
            places = [(int(score), number) for score in flat[1::2]]
            found += zip(places, (id.decode() for id in flat[::2]), strict=True)
            if len(places) == each:  # there may be more in this one: what comes behind its last is not in order yet
                horizon = min(horizon or places[-1], places[-1])
        if found:
            self._saw(max(place[0] for place, _ in found))
        return sorted(one for one in found if horizon is None or one[0] <= horizon), horizon is None

    async def _matching(self, found: Sequence[tuple[_Place, str]], filters: Filters) -> list[Record | None]:
        """The records, null where one is not to be shown. Bodies are fetched only for those that are."""
        names = [id for _, id in found]
        if (filters.user_id, filters.owner, filters.agent) != (None, None, None):
            fields = ("user_id", "agent", "owner", "owner_node")
            parts = await self._of_each(names, lambda keys: ("HMGET", keys.lock, *fields))
            names = [id for id, (_, part) in zip(names, parts, strict=True) if _may_match(part, filters)]
        records = {r.conversation: r for r in await self.records(names) if r and rules.listed(r, filters)}
        return [records.get(id) for _, id in found]

    # what stands beside

    async def refusals(self, conversation: str, limit: int) -> list[Refusal]:
        keys = self._keyspace.conversation(conversation)
        (entries,) = await self._servers.get(keys.tag, ("LRANGE", keys.refusals, 0, limit))
        return [refusal_of(conversation, entry) for entry in entries[:limit]]

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        keys = self._keyspace.conversation(conversation)
        (kept,) = await self._servers.get(keys.tag, ("HGET", keys.vault, name))
        return None if kept is None else sealed_of(name, kept)

    async def names(self, conversation: str) -> list[Sealed]:
        keys = self._keyspace.conversation(conversation)
        (flat,) = await self._servers.get(keys.tag, ("HGETALL", keys.vault))
        found = (sealed_of(name.decode(), kept) for name, kept in zip(flat[::2], flat[1::2], strict=True))
        return sorted(found, key=lambda sealed: sealed.name)

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        (kept,) = await self._servers.get(PAPERS, ("HGET", self._keyspace.papers(kind)[0], id))
        return None if kept is None else paper_of(kind, id, kept)

    async def list_papers(self, kind: str, prefix: str, limit: int) -> list[Paper]:
        documents, ids = self._keyspace.papers(kind)
        call = script("list_papers").call(documents=documents, ids=ids, prefix=prefix, limit=limit)
        flat = await self._servers.run(PAPERS, call, Lane.READS, durable=False)
        return [paper_of(kind, id.decode(), kept) for id, kept in zip(flat[::2], flat[1::2], strict=True)]


def _may_match(part: Sequence[bytes | None], filters: Filters) -> bool:
    user_id, agent, *owner = (None if one is None else one.decode() for one in part)
    return (
        filters.user_id in (None, user_id)
        and filters.agent in (None, agent)
        and (filters.owner is None or filters.owner in owner)
    )


def _cursor(place: _Place) -> str:
    return f"{place[0]}-{place[1]}"


def _place(cursor: str | None) -> _Place:
    if cursor is None:
        return -1, -1
    number, _, partition = cursor.partition("-")
    if not (rules.NUMBER.fullmatch(number) and rules.NUMBER.fullmatch(partition)):
        raise rules.foreign(cursor)
    return int(number), int(partition)
