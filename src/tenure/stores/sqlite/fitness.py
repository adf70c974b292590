"""Whether a folder can hold a store: locks and shared memory must work between the processes that use it.

A network file system grants locks that two machines hold at once, or none; SQLite then loses writes without a word.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from tenure.errors import StoreUnfitError

_MOUNTS = Path("/proc/self/mountinfo")
_LOCKS = Path("/proc/locks")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # a blank in a mount point is written as \040

LOCAL = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
"""File systems of one machine, known to keep SQLite's locks and shared memory."""

REMOTE = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs3",
     "nfs4", "ocfs2", "orangefs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)  # fmt: skip
"""File systems behind which another machine or kernel may write the same file."""


class Mount(NamedTuple):
    """Where a file system hangs in the tree, and of which type it is."""

    point: str
    type: str

    @property
    def remote(self) -> bool:
        """Whether another machine or kernel may be behind it. FUSE can be anything, so it counts as remote."""
        return self.type in REMOTE or self.type == "fuse" or self.type.startswith("fuse.")


def mount_of(folder: Path, mountinfo: str) -> Mount | None:
    """The mount that holds the folder, out of the text of ``/proc/self/mountinfo``; the last of equals is on top."""
    found: Mount | None = None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields.split(" ")[4])
        if folder.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            found = Mount(point, rest.split(" ")[0])
    return found


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot hold a store.

    :raises StoreUnfitError: not there, not writable, on a network file system, or locks do not hold.
    """
    if not folder.is_dir():
        raise StoreUnfitError(f"the folder {folder} does not exist; create it, or name another one in the store's URL")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreUnfitError(f"the folder {folder} is not writable; give this user write permission")
    try:
        mount = mount_of(folder.resolve(), _MOUNTS.read_text())
    except OSError:  # not Linux
        mount = None
    if mount is not None and mount.remote:
        raise StoreUnfitError(
            f"{folder} is on {mount.type} (mounted at {mount.point}), where locks do not hold between machines: two "
            "clusters could write at once; put the database on a local disk, or use a store made for several machines"
        )
    if mount is None or mount.type not in LOCAL:
        _probe_locks(folder, mount.type if mount else "unknown")


_SEES_LOCK = """
import sqlite3, sys
probe = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
assert probe.execute("SELECT x FROM t").fetchall() == [(1,)], "a committed row is not seen"
try:
    probe.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError:
    sys.exit(0)
sys.exit("a lock that another process holds was granted")
"""


def _probe_locks(folder: Path, kind: str) -> None:
    """Hold a lock and let a child try to take it; only for file systems that we do not know (it costs a process)."""
    path = folder / f".tenure-{secrets.token_hex(8)}.probe"
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as probe:
            probe.execute("PRAGMA journal_mode=WAL")
            probe.execute("CREATE TABLE t (x)")
            probe.execute("INSERT INTO t VALUES (1)")
            probe.execute("BEGIN IMMEDIATE")
            child = subprocess.run(
                [sys.executable, "-I", "-c", _SEES_LOCK, str(path)],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        reason = child.stderr.strip().rpartition("\n")[2] if child.returncode else ""
    except (OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        reason = str(error)
    finally:
        for rest in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(f"{path}{rest}")
    if reason:
        raise StoreUnfitError(
            f"locks do not hold between processes in {folder} (file system {kind}): {reason}; "
            "put the database on a local disk"
        )


_WRITE_LOCK_BYTE = 120
"""Where SQLite locks the -shm file for its one writer (WAL_WRITE_LOCK in its wal.c)."""


def lock_holder(path: Path) -> int | None:
    """The process that holds the store's write lock now, by ``/proc/locks``; null if none does or nobody can tell."""
    try:
        inode = os.stat(f"{path}-shm").st_ino
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 1: POSIX  ADVISORY  WRITE 4711 fe:00:131 120 120; a line with "->" waits for it
        fields = line.split()
        if len(fields) != 8 or fields[1] != "POSIX" or fields[3] != "WRITE":
            continue
        pid, file, first, last = fields[4:]
        end = 1 << 63 if last == "EOF" else int(last)
        if file.rpartition(":")[2] == str(inode) and int(first) <= _WRITE_LOCK_BYTE <= end and int(pid) > 0:
            return int(pid)
    return None
