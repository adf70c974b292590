"""Reading: always from the primary; every answer is one statement, and of one moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, final

from tenure.abc import Deleted, Page, Reading, Sealed, Snapshot, Unknown, Wanted
from tenure.lease import Epoch
from tenure.stores import rules
from tenure.stores.postgres import answers
from tenure.stores.postgres.link import Statement
from tenure.stores.postgres.text import original, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenure.abc import Filters, Limits, Paper, Refusal
    from tenure.conversation import Record
    from tenure.lease import IncarnationId
    from tenure.stores.postgres.lanes import Lanes
    from tenure.stores.postgres.writing import Clock

SCANNED = 2000
"""How many conversations one page of a list looks at; a filter that matches few gives short pages."""

_READ: Final = "SELECT * FROM read(%s, %s::float8[], %s, %s, %s::text[], %s)"
_RECORDS: Final = "SELECT * FROM records(%s::text[], %s::float8[])"
_LIST: Final = "SELECT * FROM list_conversations(%s::float8[], %s, %s, %s, %s)"
_WANTED: Final = "SELECT * FROM wanted(%s::float8[], %s, %s::text[], %s, %s, %s, %s, %s)"
_SECRETS: Final = "SELECT * FROM secrets(%s, %s)"
_PAPER: Final = "SELECT id, document, version FROM papers WHERE kind = %s AND id = %s"
_PAPERS: Final = "SELECT * FROM list_papers(%s, %s, %s, %s)"
_REFUSALS: Final = "SELECT * FROM list_refusals(%s, %s)"


@final
class Reads:
    """The reading half of the port."""

    def __init__(self, lanes: Lanes, *, limits: Limits, clock: Callable[[], Clock]) -> None:
        self._lanes = lanes
        self._limits = limits
        self._clock = clock

    async def read(
        self, conversation: str, after: int, limit: int, kinds: Sequence[str], *, snapshot: bool
    ) -> Reading | Deleted | Unknown:
        of_kinds = [stored(kind) for kind in kinds] or None
        limit = min(limit, self._limits.page)
        parameters = (stored(conversation), self._clock(), after, limit, of_kinds, snapshot)
        rows = await self._lanes.run(Statement(_READ, parameters))
        if not rows:
            return Unknown()
        text, seq, fold, loop, *_ = rows[0]
        record = answers.record_of(text)
        if record.deleted:
            return Deleted(record.epoch)
        start = None if seq is None else Snapshot(seq, fold, loop)
        return Reading(tuple(answers.event_of(row[4:]) for row in rows[1:]), record, start)

    async def records(self, conversations: Sequence[str]) -> list[Record | None]:
        parameters = ([stored(conversation) for conversation in conversations], self._clock())
        rows = await self._lanes.run(Statement(_RECORDS, parameters))
        found = {original(id): answers.record_of(text) for id, text in rows}
        return [found.get(conversation) for conversation in conversations]

    async def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        after = rules.list_place(cursor)
        items: list[Record] = []
        for _ in range(max(1, SCANNED // limit)):
            some = await self._some(filters, after, limit + 1)
            for created_no, text in some[:limit]:
                record = answers.record_of(text)
                if rules.listed(record, filters):
                    if len(items) == limit:
                        return Page(tuple(items), str(after))
                    items.append(record)
                after = created_no
            if len(some) <= limit:
                return Page(tuple(items), None)
        return Page(tuple(items), str(after))

    async def _some(self, filters: Filters, after: int, limit: int) -> Sequence[tuple[Any, ...]]:
        parameters = (self._clock(), after, limit, stored(filters.user_id), stored(filters.owner))
        return await self._lanes.run(Statement(_LIST, parameters))

    async def wanted(
        self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int
    ) -> Page[Wanted]:
        limit = max(1, limit)
        names = sorted({stored(agent) for agent in agents})
        statement = Statement(_WANTED, (self._clock(), me, names, *_place(cursor), limit))
        rows = await self._lanes.run(statement)
        items = tuple(
            Wanted(original(id), Epoch(epoch), owner, token, original(agent))
            for id, epoch, owner, token, agent, *_ in rows
        )
        if len(rows) < limit:
            return Page(items, None)
        _, _, owner, _, agent, not_before, created_no = rows[-1]
        return Page(items, json.dumps([owner or "", agent, not_before, created_no]))

    # the vault, the papers, the refusals

    async def unseal(self, conversation: str, name: str) -> Sealed | None:
        for row in await self._lanes.run(Statement(_SECRETS, (stored(conversation), stored(name)))):
            return answers.sealed_of(row)
        return None

    async def names(self, conversation: str) -> list[Sealed]:
        rows = await self._lanes.run(Statement(_SECRETS, (stored(conversation), None)))
        return [answers.sealed_of(row) for row in rows]

    async def get_paper(self, kind: str, id: str) -> Paper | None:
        for row in await self._lanes.run(Statement(_PAPER, (stored(kind), stored(id)))):
            return answers.paper_of(kind, row)
        return None

    async def list_papers(self, kind: str, prefix: str, limit: int) -> list[Paper]:
        first = stored(prefix)
        parameters = (stored(kind), first, first + "\U0010ffff", limit)
        return [answers.paper_of(kind, row) for row in await self._lanes.run(Statement(_PAPERS, parameters))]

    async def refusals(self, conversation: str, limit: int) -> list[Refusal]:
        rows = await self._lanes.run(Statement(_REFUSALS, (stored(conversation), limit)))
        return [answers.refusal_of(conversation, row) for row in rows]


def _place(cursor: str | None) -> tuple[str, str, float, int]:
    if cursor is None:
        return "", "", -1.0, 0
    try:
        owner, agent, not_before, created_no = json.loads(cursor)
        return str(owner), str(agent), float(not_before), int(created_no)
    except (ValueError, TypeError):
        raise rules.foreign(cursor) from None
