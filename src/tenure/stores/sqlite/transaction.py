"""Writing: the operations of the port inside ``BEGIN IMMEDIATE … COMMIT``, decided by :mod:`tenure.stores.rules`.

Rows are decided upon in memory and written at the end, all at once: a refused request has written nothing, and a
conversation that several requests touch is written once. Rows stay in memory for the next transaction, and are good
as long as ``meta.changes`` is what this connection left there: every change of a conversation raises it.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, final

from tenure.abc import Fenced, Sent, Topic, Unknown
from tenure.journal import digest
from tenure.stores import rules
from tenure.stores.sqlite import statements as sql
from tenure.stores.sqlite.columns import (
    advance_columns,
    event_columns,
    move_columns,
    only_advances,
    only_moves,
    row_columns,
    row_of,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.abc import (
        Amended,
        Append,
        AppendResult,
        Claim,
        Claimed,
        Deleted,
        Limits,
        Release,
        ReleaseResult,
        Snapshot,
        Stale,
        Submit,
        Submitted,
    )
    from tenure.clock import Clock, Instant
    from tenure.journal import JsonObject
    from tenure.lease import Epoch, IncarnationId, Lease
    from tenure.stores.rules import Row, Step
    from tenure.stores.sqlite.columns import Columns
    from tenure.stores.sqlite.file import StoreFile

ROWS_IN_MEMORY = 1000
SIGNALS_KEPT = 2000
"""How many changes a signal outlives; who is further behind is told only that hints lapsed."""
DELTA_BYTES = 1 << 16
"""A larger delta is lost: what must arrive belongs into the journal."""
PAGES_BETWEEN_CHECKPOINTS = 1000


@final
@dataclass(slots=True, eq=False)
class _Kept:
    """A conversation as this transaction sees it. `stored` is the row on disk, null for a new one."""

    created_no: int
    row: Row
    stored: Row | None
    change: int = 0


@final
class Transaction:
    """One connection for writing, and the transaction that is open on it."""

    def __init__(
        self, file: StoreFile, clock: Clock, limits: Limits, *, checkpoints: bool, on_commit: Callable[[], None]
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.connection = file.open()
        self._checkpoints = checkpoints
        self._checkpointer: sqlite3.Connection | None = None
        self._file = file
        self._on_commit = on_commit
        self._durable = True
        self._changes = self._changes_stored = self._created = 0
        self._pages = 0
        self._rows: dict[str, _Kept] = {}
        self._forget()

    # the unit of work

    def begin(self, *, durable: bool) -> None:
        """Take the write lock, see that the file is still ours, and read the clocks: once for all that goes along."""
        if durable != self._durable:
            # NORMAL: the log is not synced at this commit. A kill takes nothing; a power cut may, but it also ends
            # the boot and with it every lease, and deltas are nobody's for good. The next durable commit syncs it all.
            self.connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        if self._checkpoints and self._pages >= PAGES_BETWEEN_CHECKPOINTS:
            self._checkpoint()
        self.connection.execute("BEGIN IMMEDIATE")
        self._file.check()
        changes, self._created = self.connection.execute(sql.COUNTERS).fetchone()
        if changes != self._changes or len(self._rows) > ROWS_IN_MEMORY:
            self._rows.clear()
        self._changes = self._changes_stored = changes
        self.now: Instant = self.clock.now()
        self.store_now: float = self.clock.boottime().boot_s

    def commit(self) -> None:
        """Write what was decided; then let followers know."""
        self.flush()
        changed = self._changes != self._changes_stored
        if changed:
            self.connection.execute(sql.UPDATE_COUNTERS, (self._changes, self._created))
        self.connection.execute("COMMIT")
        if changed:
            self._on_commit()

    def rollback(self) -> None:
        """Forget what was decided; what is on disk is looked at anew."""
        self._forget()
        self._rows.clear()
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def close(self) -> None:
        self.connection.close()
        if self._checkpointer is not None:
            self._checkpointer.close()

    def _checkpoint(self) -> None:
        """Move the log into the database, from another connection while this one holds the write lock.

        SQLite before 3.51.3 can lose a commit that starts the log anew while a checkpoint runs (sqlite.org/wal.html,
        "The WAL-reset bug"). Under the write lock there is no such commit; the price is that writers wait, which is
        why it comes often and is short. It writes nothing itself, so that the next writer can start the log anew.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self._file.check()
            if self._checkpointer is None:
                self._checkpointer = self._file.open()
            with suppress(sqlite3.OperationalError):  # no room, say: the next one tries again
                self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self.connection.execute("ROLLBACK")
        self._pages = 0

    def _forget(self) -> None:
        self._touched: dict[str, _Kept] = {}
        self._events: list[Columns] = []
        self._keys: dict[tuple[int, str], tuple[int, str]] = {}
        self._signals: list[Columns] = []

    def flush(self) -> None:
        """Write what was decided so far."""
        new: list[Columns] = []
        moved: list[Columns] = []
        advanced: list[Columns] = []
        whole: list[Columns] = []
        for kept in self._touched.values():
            place = (kept.change, kept.created_no)
            if kept.stored is None:
                new.append(row_columns(kept.row) + place)
            elif not only_advances(kept.stored.record, kept.row.record):
                whole.append(row_columns(kept.row) + place)
            elif only_moves(kept.stored, kept.row):
                moved.append(move_columns(kept.row) + place)
            else:
                advanced.append(advance_columns(kept.row) + place)
            kept.stored = kept.row
        self._write(sql.INSERT_CONVERSATION, new)
        self._write(sql.MOVE_CONVERSATION, moved)
        self._write(sql.ADVANCE_CONVERSATION, advanced)
        self._write(sql.UPDATE_CONVERSATION, whole)
        self._write(sql.INSERT_EVENT, self._events)
        self._write(sql.INSERT_KEY, [at + stands for at, stands in self._keys.items()])
        if self._signals:
            self._write(sql.INSERT_SIGNAL, self._signals)
            self.connection.execute(sql.TRIM_SIGNALS, (self._changes - SIGNALS_KEPT,))
        self._pages += 3 + len(self._touched) + len(self._events) + sum(len(event[5]) for event in self._events) // 4096
        self._forget()

    def _write(self, statement: str, rows: list[Columns]) -> None:
        if rows:
            self.connection.executemany(statement, rows)

    # conversations

    def find(self, conversation: str) -> tuple[int, Row] | None:
        """The creation number and the row as this transaction has it so far."""
        kept = self._rows.get(conversation)
        if kept is None:
            found = self.connection.execute(sql.CONVERSATION, (conversation,)).fetchone()
            if found is None:
                return None
            row = row_of(found[1:])
            kept = self._rows[conversation] = _Kept(found[0], row, row)
        return kept.created_no, kept.row

    def _row(self, conversation: str) -> Row | None:
        found = self.find(conversation)
        return found and found[1]

    def _keep(self, conversation: str, step: Step[Any], operation: str = "") -> None:
        """Take over what a rule decided: the row, its events, their keys, the refusal."""
        kept = self._rows.get(conversation)
        if step.refused is not None and kept is not None:
            self._log_refusal(kept, step.refused, operation)
        if step.row is None:
            return
        self._changes += 1
        if kept is None:
            self._created += 1
            kept = self._rows[conversation] = _Kept(self._created, step.row, None)
        kept.row, kept.change = step.row, self._changes
        self._touched[conversation] = kept
        for event, body in zip_longest(step.events, step.bodies):
            self._events.append(event_columns(kept.created_no, event, body))
            if event.key is not None:
                stands = (event.seq, digest({"kind": event.kind, "body": event.body}))
                self._keys[kept.created_no, event.key] = stands

    def _log_refusal(self, kept: _Kept, lease: Lease, operation: str) -> None:
        who = (lease.incarnation, lease.epoch, lease.token)
        self.connection.execute(sql.INSERT_REFUSAL, (kept.created_no, self.now.unix_s, *who, operation))
        self.connection.execute(sql.TRIM_REFUSALS, {"conversation": kept.created_no, "kept": self.limits.refusals})

    def submit(self, request: Submit) -> Submitted:
        found = self.find(request.conversation)
        known = None
        if found is not None and request.command is not None:
            at = (found[0], request.command.key)
            known = self._keys.get(at) or self.connection.execute(sql.KEY, at).fetchone()
        row = found and found[1]
        step = rules.submit(row, request, known, now=self.now, store_now=self.store_now, limits=self.limits)
        self._keep(request.conversation, step)
        return step.result

    def claim(self, request: Claim) -> Claimed:
        row = self._row(request.conversation)
        owner = row.record.owner if row else None
        step = rules.claim(
            row,
            request,
            claimant_dead=self._dead(request.incarnation) is not False,
            owner_dead=owner is not None and self._dead(owner.incarnation) is True,
            journal_epoch=self._journal_epoch(request.conversation),
            now=self.now,
            store_now=self.store_now,
            limits=self.limits,
        )
        self._keep(request.conversation, step)
        return step.result

    def _dead(self, incarnation: IncarnationId) -> bool | None:
        """Whether it is buried; null if it was never registered."""
        found = self.connection.execute(sql.DEAD, (incarnation,)).fetchone()
        return None if found is None else bool(found[0])

    def _journal_epoch(self, conversation: str) -> int:
        """The highest epoch on disk; what this transaction adds to the journal stands in the row as well."""
        kept = self._rows.get(conversation)
        found = kept and self.connection.execute(sql.JOURNAL_EPOCH, (kept.created_no,)).fetchone()
        return found[0] if found else 0

    def append(self, request: Append) -> AppendResult:
        conversation = request.lease.conversation
        step = rules.append(
            self._row(conversation), request, now=self.now, store_now=self.store_now, limits=self.limits
        )
        self._keep(conversation, step, "append")
        if step.row is not None:
            self._keep_snapshot(conversation, request.snapshot)
        return step.result

    def release(self, request: Release) -> ReleaseResult:
        conversation = request.batch.lease.conversation
        step = rules.release(
            self._row(conversation), request, now=self.now, store_now=self.store_now, limits=self.limits
        )
        self._keep(conversation, step, "release")
        if step.row is not None:
            self._keep_snapshot(conversation, request.batch.snapshot)
        return step.result

    def _keep_snapshot(self, conversation: str, new: Snapshot | None) -> None:
        if new is None:
            return
        fold = None if new.fold is None else text_of(new.fold)
        loop = None if new.loop is None else text_of(new.loop)
        seq = 0 if fold is None else new.seq
        self.connection.execute(sql.PUT_SNAPSHOT, (self._rows[conversation].created_no, seq, fold, loop))
        self._pages += (len(fold or "") + len(loop or "")) // 4096

    def delete(self, conversation: str, expected_epoch: Epoch) -> Deleted | Stale | Unknown:
        found = self.find(conversation)
        if found is None:
            return Unknown()
        created_no, row = found
        step = rules.delete(row, expected_epoch, now=self.now, store_now=self.store_now)
        if step.row is not None:
            self.flush()  # what came before in this transaction is erased as well
            for statement in sql.ERASE:
                self.connection.execute(statement, (created_no,))
            self.connection.execute(sql.ERASE_DELTAS, (conversation,))
            self._keep(conversation, step)
        return step.result

    def amend(self, conversation: str, version: int, changes: JsonObject) -> Amended | Stale | Deleted | Unknown:
        step = rules.amend(self._row(conversation), version, changes, now=self.now, store_now=self.store_now)
        self._keep(conversation, step)
        return step.result

    # signals

    def publish(self, lease: Lease, delta: JsonObject) -> Sent | Fenced:
        row = self._row(lease.conversation)
        if row is None:
            return Fenced(None)
        if not rules.holds(row, lease):
            self._log_refusal(self._rows[lease.conversation], lease, "publish")
            return Fenced(rules.shown(row, self.store_now))
        text = text_of(delta)
        if len(text) <= DELTA_BYTES:
            self.signal(Topic.CONVERSATION, lease.conversation, text)
        return Sent()

    def signal(self, topic: str, subject: str, delta: str | None = None) -> None:
        """Let followers of the topic know, on every node, once this is committed."""
        self._changes += 1
        self._signals.append((self._changes, topic, subject, delta))
