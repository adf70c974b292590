"""Reading: on a connection of its own, so that it never waits for a writer; all of one answer is of one moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, final

from tenure.abc import (
    About,
    Deleted,
    Load,
    NodeRecord,
    Page,
    Paper,
    Reading,
    Refusal,
    Sealed,
    Snapshot,
    Unknown,
    Wanted,
)
from tenure.clock import Instant
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.stores import rules
from tenure.stores.sqlite import statements as sql
from tenure.stores.sqlite.columns import event_of, row_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Filters, Limits
    from tenure.clock import Clock
    from tenure.conversation import Record
    from tenure.stores.sqlite.columns import Columns
    from tenure.stores.sqlite.file import StoreFile

SCANNED = 2000
"""How many conversations one page of a list looks at; a filter that matches few gives short pages."""


@final
class View:
    """One connection for reading, and the moment that it shows."""

    def __init__(self, file: StoreFile, clock: Clock, limits: Limits) -> None:
        self._file = file
        self._clock = clock
        self._limits = limits
        self._connection = file.open()

    # the unit of work

    def begin(self, *, durable: bool) -> None:
        """Fix the moment; everything that was answered before it is in it."""
        del durable
        self._connection.execute("BEGIN")
        self._connection.execute(sql.COUNTERS).fetchone()
        self._file.check()
        self._now = self._clock.boottime().boot_s

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()

    def _all(self, statement: str, *parameters: object) -> list[Columns]:
        return self._connection.execute(statement, parameters).fetchall()

    # conversations

    def read(
        self, conversation: str, after: int, limit: int, kinds: Sequence[str], *, snapshot: bool
    ) -> Reading | Deleted | Unknown:
        found = self._connection.execute(sql.CONVERSATION, (conversation,)).fetchone()
        if found is None:
            return Unknown()
        created_no, row = found[0], row_of(found[1:])
        if row.record.deleted:
            return Deleted(row.record.epoch)
        start = self._snapshot(created_no) if snapshot else None
        if start is not None and start.fold is not None:
            after = max(after, start.seq)
        limit = min(limit, self._limits.page)
        if kinds:
            events = self._all(sql.EVENTS_OF_KINDS, created_no, after, text_of(list(kinds)), limit)
        else:
            events = self._all(sql.EVENTS, created_no, after, limit)
        return Reading(tuple(map(event_of, events)), rules.shown(row, self._now), start)

    def _snapshot(self, created_no: int) -> Snapshot | None:
        for seq, fold, loop in self._all(sql.SNAPSHOT, created_no):
            return Snapshot(seq, fold and json.loads(fold), loop and json.loads(loop))
        return None

    def records(self, conversations: Sequence[str]) -> list[Record | None]:
        rows = map(row_of, (found[1:] for found in self._all(sql.CONVERSATIONS, text_of(list(conversations)))))
        records = {row.record.conversation: rules.shown(row, self._now) for row in rows}
        return [records.get(conversation) for conversation in conversations]

    def list(self, filters: Filters, cursor: str | None, limit: int) -> Page[Record]:
        after = rules.list_place(cursor)
        items: list[Record] = []
        for _ in range(max(1, SCANNED // limit)):
            some = self._some(filters, after, limit + 1)
            for created_no, *columns in some[:limit]:
                row = row_of(tuple(columns))
                if rules.listed(row.record, filters):
                    if len(items) == limit:
                        return Page(tuple(items), str(after))
                    items.append(rules.shown(row, self._now))
                after = created_no
            if len(some) <= limit:
                return Page(tuple(items), None)
        return Page(tuple(items), str(after))

    def _some(self, filters: Filters, after: int, limit: int) -> list[Columns]:
        if filters.user_id is not None:
            return self._all(sql.LIST_OF_USER, filters.user_id, after, limit)
        if filters.owner is not None:
            named = {"owner": filters.owner, "after": after, "limit": limit}
            return self._connection.execute(sql.LIST_OF_OWNER, named).fetchall()
        return self._all(sql.LIST_ALL, after, limit)

    def wanted(self, me: IncarnationId | None, agents: Sequence[str], cursor: str | None, limit: int) -> Page[Wanted]:
        """In order of owner (nobody first), agent, end of the back-off, creation; the cursor is a place in that order."""
        owners = {owner for (owner,) in self._all(sql.DEAD_OWNERS_OF_WANTED)}
        groups = [
            (owner, agent) for owner in ("", *sorted(owners | ({me} if me else set()))) for agent in sorted(set(agents))
        ]
        at_owner, at_agent, not_before, created_no = _place(cursor)
        items: list[Wanted] = []
        limit = max(1, limit)
        for owner, agent in groups:
            if (owner, agent) < (at_owner, at_agent):
                continue
            after = (not_before, created_no) if (owner, agent) == (at_owner, at_agent) else (-1.0, 0)
            found = self._all(sql.WANTED, owner or None, agent, self._now, *after, limit - len(items))
            items += [Wanted(id, Epoch(epoch), by, token, agent) for id, epoch, by, token, agent, _, _ in found]
            if len(items) == limit:
                return Page(tuple(items), text_of([owner, agent, *found[-1][-2:]]))
        return Page(tuple(items), None)

    def refusals(self, conversation: str, limit: int) -> list[Refusal]:
        return [
            Refusal(Instant(at), Lease(id, IncarnationId(incarnation), Epoch(epoch), Token(token)), operation)
            for at, id, incarnation, epoch, token, operation in self._all(sql.REFUSALS, conversation, limit)
        ]

    # nodes, the vault, the papers

    def nodes(self) -> list[NodeRecord]:
        return [self._node(columns) for columns in self._all(sql.NODES)]

    def _node(self, columns: Columns) -> NodeRecord:
        incarnation, node, address, capacity, agents, started_at, owned, draining, beat, expires, dead = columns
        about = About(node, address, capacity, tuple(json.loads(agents)), Instant(started_at))
        return NodeRecord(incarnation, about, Load(owned, bool(draining)), beat, expires - self._now, bool(dead))

    def unseal(self, conversation: str, name: str) -> Sealed | None:
        for found in self._all(sql.SECRET_OF, conversation, name):
            return Sealed(*found)
        return None

    def names(self, conversation: str) -> list[Sealed]:
        return [Sealed(*found) for found in self._all(sql.SECRETS_OF, conversation)]

    def get_paper(self, kind: str, id: str) -> Paper | None:
        for document, version in self._all(sql.PAPER, kind, id):
            return Paper(kind, id, json.loads(document), version)
        return None

    def list_papers(self, kind: str, prefix: str, limit: int) -> list[Paper]:
        found = self._all(sql.PAPERS, kind, prefix, prefix + "\U0010ffff", limit)
        return [Paper(kind, id, json.loads(document), version) for id, document, version in found]


def _place(cursor: str | None) -> tuple[str, str, float, int]:
    if cursor is None:
        return "", "", -1.0, 0
    try:
        owner, agent, not_before, created_no = json.loads(cursor)
        return str(owner), str(agent), float(not_before), int(created_no)
    except (ValueError, TypeError):
        raise rules.foreign(cursor) from None
