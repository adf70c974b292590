"""What ``tenure doctor`` looks at in a SQLite store: the place, the file, the layout. Opens the file to read only."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import quote

from tenure.abc import broken, fine, risky
from tenure.errors import StoreUnfitError
from tenure.stores.sqlite.boot import boot_id
from tenure.stores.sqlite.file import APPLICATION_ID, OLDEST_SQLITE, layout_finding
from tenure.stores.sqlite.fitness import check_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tenure.abc import Finding

MIND_FREE = 1 << 28
"""Bytes of disk below which somebody should be told: a journal of a busy day."""


def examined(path: Path) -> list[Finding]:
    """All that there is to say; blocks."""
    return [*_version(), *_place(path), *_file(path), *_what_one_file_means(), *_clock()]


def _version() -> Iterator[Finding]:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield broken(
            "version", f"SQLite {sqlite3.sqlite_version}", "it lacks STRICT tables", "use a Python built with 3.37 or newer"
        )  # fmt: skip
    else:
        yield fine("version", f"SQLite {sqlite3.sqlite_version}")


def _place(path: Path) -> Iterator[Finding]:
    try:
        check_folder(path.parent)
    except StoreUnfitError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield broken("place", what, "no store can be kept there", remedy)
        return
    yield fine("place", f"{path.parent} is writable, and locks hold there")
    space = os.statvfs(path.parent)
    if (free := space.f_bavail * space.f_frsize) < MIND_FREE:
        yield risky(
            "space", f"{free >> 20} MiB are free in {path.parent}", "when the disk is full, nothing is accepted any more",
            "make room, or move the store with every node stopped",
        )  # fmt: skip


def _file(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield fine("schema", f"there is no {path.name} yet: whoever opens it first makes it")
        return
    if not _is_writable(path):
        yield broken(
            "permissions", f"{path} is not writable", "nothing could be accepted",
            "give this user read and write permission, on a file system that is mounted read-write",
        )  # fmt: skip
        return
    yield fine("permissions", f"{path} can be read and written")
    try:
        yield _layout(path)
    except sqlite3.Error as error:
        yield broken(
            "schema", f"{path} cannot be read as a store ({error})", "it is damaged, or no SQLite database",
            "name another file, or restore a backup (docs/operating/restore.md)",
        )  # fmt: skip


def _is_writable(path: Path) -> bool:
    """By opening it: what the mode says is not all (a read-only mount, an immutable file, root)."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return os.access(path, os.R_OK | os.W_OK)


def _layout(path: Path) -> Finding:
    with closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=5)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            return fine("schema", f"{path.name} is empty: whoever opens it first makes it a store")
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            return broken(
                "schema", f"{path} is another program's database", "its tables are not ours", "name another file"
            )  # fmt: skip
        (schema,) = connection.execute("SELECT schema FROM meta").fetchone()
    return layout_finding(path, schema)


def _what_one_file_means() -> Iterator[Finding]:
    yield fine("eviction", "a file evicts nothing")
    yield fine("persistence", "every commit is synced to disk (synchronous=FULL)")
    yield risky(
        "replication",
        "one file on one machine, not replicated",
        "with the machine gone, no node can go on; with its disk gone, all since the last backup is lost",
        "fine for one machine; else use Redis or PostgreSQL, and in any case keep backups (docs/operating/restore.md)",
    )


def _clock() -> Iterator[Finding]:
    if boot_id():
        yield fine("clock", "the store's clock is this machine's boot time, which nobody can set")
    else:
        yield risky(
            "clock", "this kernel has no boot id", "leases of an earlier boot end a ttl after the next one, not at once",
            "expect the first takeover after a reboot to take one ttl longer",
        )  # fmt: skip
