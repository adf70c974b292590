"""The database file: its URL, how it comes to be, how it is opened, and whether it is still the one that we opened.

A new store is made whole under another name and linked into place: nobody ever sees half a store, and any number of
processes may be first at once. An old connection to a file that was moved away goes on writing to it without an
error, while new processes find an empty place: two clusters. So each transaction looks at what the path names.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, final
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from tenure.abc import Verdict, broken, fine
from tenure.clock import SystemClock
from tenure.errors import InvalidInputError, StoreUnavailableError, StoreUnfitError
from tenure.stores.sqlite.boot import boot_id
from tenure.stores.sqlite.fitness import check_folder

if TYPE_CHECKING:
    from tenure.abc import Finding

SCHEMA = 1
APPLICATION_ID = 0x54454E55  # "TENU"; what `file` and other programs see
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables

SEED_S = 3600.0
"""A store takes milliseconds to make: a seed of this age is nobody's."""

_NOT_A_DATABASE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


def parse_url(url: str) -> tuple[Path, dict[str, str]]:
    """The path and the parameters of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    :raises InvalidInputError: it names a host, no file, or something that no path can hold.
    """
    place, _, query = url.partition("?")
    scheme, slashes, name = place.partition(":///")
    name = os.fsdecode(unquote_to_bytes(name))
    if scheme != "sqlite" or not slashes:
        raise InvalidInputError(
            "store", f"{place!r} names no file", "use sqlite:///relative.db or sqlite:////absolute.db"
        )
    if name in ("", ":memory:") or name.endswith("/") or "\0" in name:
        raise InvalidInputError("store", f"{place!r} names no file", "name one, or use memory: for tests")
    return Path(name).absolute(), dict(parse_qsl(query, keep_blank_values=True))


@final
class StoreFile:
    """One opening of one database file. May be used from any thread."""

    def __init__(self, path: Path, boot: str | None = None) -> None:
        self.path = path
        self._given_boot = boot
        self._identity: tuple[int, int] | None = None
        self._lost = False
        self._lock = threading.Lock()

    def open(self) -> sqlite3.Connection:
        """A new connection to the store, which is made first if it is not there.

        :raises StoreUnfitError: it cannot keep its contract here. :raises StoreUnavailableError: it was moved away.
        :raises sqlite3.Error: busy, say: try again.
        """
        with self._lock:
            if self._identity is None:
                self._prepare()
        self.check()
        return _connect(self.path)

    @property
    def place(self) -> str:
        """The boot, the device and the number of the file."""
        device, number = self._identity or (0, 0)
        return f"{self.boot}/{device}/{number}"

    def lies_at(self, place: str) -> bool:
        """Whether `place` was this file's. Within one boot device and number decide; devices may be numbered anew at the
        next one."""
        boot, device, number = place.split("/")
        now = self.place.split("/")
        return number == now[2] and (boot != now[0] or device == now[1])

    def check(self) -> None:
        """Whether the path still names the file that was opened; once it did not, never again.

        :raises StoreUnavailableError: moved, replaced or deleted.
        """
        if not self._lost and self._named() != self._identity:
            self._lost = True
        if self._lost:
            raise StoreUnavailableError(
                f"the database {self.path} was moved, replaced or deleted under us: what is there now is another store; "
                "nothing more is written; stop every node on it, put the right file in its place, start them again"
            )

    def _named(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _prepare(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreUnfitError(f"SQLite {sqlite3.sqlite_version} is too old, needs 3.37: use a newer Python build")
        self.boot = boot_id() if self._given_boot is None else self._given_boot
        check_folder(self.path.parent)
        if self._named() is None:
            self._create()
        if self.path.is_dir():
            raise StoreUnfitError(f"{self.path} is a folder; name a file in the store's URL")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise StoreUnfitError(f"{self.path} is not writable; give this user read and write permission")
        identity = self._named()
        self._tidy()
        try:
            self._adopt()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_A_DATABASE:
                raise StoreUnfitError(
                    f"{self.path} is no SQLite database or is damaged ({error}); name another"
                ) from error
            raise
        self._identity = identity

    def _create(self) -> None:
        """Make the store beside its place and link it there; another process may be first, and then its store stands."""
        seed = self.path.with_name(f".{self.path.name[:200]}.{secrets.token_hex(8)}")
        os.close(os.open(seed, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with closing(_connect(seed)) as connection:
                _make_schema(connection, self.boot)
            _link(seed, self.path)
        finally:
            for rest in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{seed}{rest}")

    def _tidy(self) -> None:
        """Remove what a process left beside the store that was killed while it made one, long ago."""
        ours = re.compile(re.escape(f".{self.path.name[:200]}.") + r"[0-9a-f]{16}(-wal|-shm|-journal)?")
        oldest = SystemClock().now().unix_s - SEED_S
        with os.scandir(self.path.parent) as beside:
            for entry in beside:
                if ours.fullmatch(entry.name):
                    with suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_mtime < oldest:
                            os.unlink(entry.path)

    def _adopt(self) -> None:
        """Look at what is there: make an empty file a store, refuse what is none of ours."""
        with closing(_connect(self.path)) as connection:
            if _is_empty(connection):
                _make_schema(connection, self.boot)
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise StoreUnfitError(f"{self.path} is another program's database; name another file")
            _use_wal(connection)
            schema, boot = connection.execute("SELECT schema, boot FROM meta").fetchone()
            layout = layout_finding(self.path, schema)
            if layout.verdict is Verdict.BROKEN:
                raise StoreUnfitError(layout.sentence)
            if boot != self.boot:
                _begin_boot(connection, self.boot)


def layout_finding(path: Path, schema: int) -> Finding:
    """Whether this release can read what is there."""
    if schema == SCHEMA:
        return fine("schema", f"schema {schema}")
    if schema > SCHEMA:
        return broken(
            "schema", f"{path} was written by a newer Tenure (schema {schema}, this one knows {SCHEMA})",
            "this version would misread it", "upgrade this node, or name another file",
        )  # fmt: skip
    return broken(
        "schema", f"{path} was written by an older Tenure (schema {schema}, this one knows {SCHEMA})",
        "this version knows no way from there", "export with the release that wrote it, import with this one into a new file",
    )  # fmt: skip


def _connect(path: Path) -> sqlite3.Connection:
    """A connection without waiting and without a mind of its own: transactions and checkpoints are ours to begin."""
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode=rw", uri=True, timeout=0, isolation_level=None, cached_statements=64
    )
    try:
        for setting in (
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            "journal_size_limit=67108864",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
        raise StoreUnfitError(
            "this file system has no shared memory for SQLite's WAL; put the database on a local disk"
        )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def _make_schema(connection: sqlite3.Connection, boot: str) -> None:
    """Turn an empty database into a store; somebody else may do the same at the same moment."""
    _use_wal(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _is_empty(connection):
            schema = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
            for statement in schema.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(
                "INSERT INTO meta (one, schema, store, boot) VALUES (1, ?, ?, ?)", (SCHEMA, secrets.token_hex(8), boot)
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _begin_boot(connection: sqlite3.Connection, boot: str) -> None:
    """The clock starts again: every lease and every back-off of the boot before has ended."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT boot FROM meta").fetchone() != (boot,):
            connection.execute("UPDATE nodes SET expires = 0 WHERE dead = 0")
            connection.execute("UPDATE conversations SET not_before = 0 WHERE not_before > 0")
            connection.execute("UPDATE meta SET boot = ?, changes = changes + 1", (boot,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _link(seed: Path, path: Path) -> None:
    try:
        os.link(seed, path)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreUnfitError(
            f"the file system of {path.parent} cannot link files ({error.strerror}); use ext4, xfs, btrfs or apfs"
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, like what will be written under it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
