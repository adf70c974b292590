"""Files of a workspace, and never one outside of it. Blocking: call it in a thread."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tenure.abc import RuntimeFailure
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

WRITE_LIMIT = 16 << 20
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,179}")
_NO_FILE = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR, errno.ENAMETOOLONG}


def folder(name: str) -> str:
    """A file name for `name`, one for one: also where case does not count, and for names that are no file names.

    Plain ones stay as they are; others become a readable part, ``~`` (which no plain one has) and a digest.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:64].strip(".-")
    return f"{readable or 'x'}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}"


def read(workspace: Path, path: str, limit_bytes: int) -> bytes:
    """The content of a file of at most `limit_bytes`.

    :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, or the file is
        larger or none. :raises RuntimeFailure: it cannot be read.
    """
    with _opened(workspace, path, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise InvalidInputError(
            "path", f"{path!r} has more than {limit_bytes} bytes", "read a part of it with a command"
        )
    return content


def write(workspace: Path, path: str, content: bytes | str) -> None:
    """Write a file, making its folders.

    :raises InvalidInputError: the path leaves the workspace or is no file, or the content is too large.
    :raises RuntimeFailure: it cannot be written.
    """
    data = content.encode(errors="replace") if isinstance(content, str) else content
    if len(data) > WRITE_LIMIT:
        raise InvalidInputError("content", f"has {len(data)} bytes, at most {WRITE_LIMIT}", "write it in parts")
    with _opened(workspace, path, os.O_WRONLY | os.O_CREAT) as descriptor:
        os.ftruncate(descriptor, 0)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)


def remove_tree(place: Path) -> None:
    """Remove a folder and all in it, also what its owner made unreadable. Gone already is fine.

    :raises OSError: something is still there.
    """

    def make_writable(remove: Callable[[str], object], path: str, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if not isinstance(error, PermissionError):
            raise error
        for one in (os.path.dirname(path), path):
            if not os.path.islink(one):
                os.chmod(one, 0o700)
        if remove in (os.unlink, os.rmdir):
            remove(path)
        else:
            shutil.rmtree(path)

    shutil.rmtree(place, onexc=make_writable)  # pyright: ignore[reportArgumentType] - it is called with a path


@contextmanager
def _opened(workspace: Path, path: str, flags: int) -> Generator[int]:
    """Open a regular file below `workspace`, folder by folder, so that no link that appears meanwhile leads out."""
    try:
        parts = _inside(workspace, path)
        descriptor = _open(workspace, parts, flags)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file in the workspace", path) from None
    except OSError as error:
        if error.errno in _NO_FILE:
            raise InvalidInputError(
                "path", f"{path!r} names no file: {error.strerror}", "name a regular file"
            ) from None
        raise RuntimeFailure(f"{path}: {error.strerror}", step="file") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidInputError("path", f"{path!r} is no regular file", "name a regular file")
        yield descriptor
    except OSError as error:
        raise RuntimeFailure(f"{path}: {error.strerror}", step="file") from error
    finally:
        os.close(descriptor)


def _inside(workspace: Path, path: str) -> tuple[str, ...]:
    """The parts of the path below the workspace, links resolved."""
    try:
        fits = 0 < len(os.fsencode(path)) <= 4096 and "\0" not in path
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise InvalidInputError("path", "must be 1 to 4096 bytes of text without NUL", "name a file of the workspace")
    found = Path(os.path.realpath(workspace / path))
    if found == workspace or not found.is_relative_to(workspace):
        raise InvalidInputError("path", f"{path!r} leaves the workspace", "name a file inside of it")
    return found.relative_to(workspace).parts


def _open(workspace: Path, parts: tuple[str, ...], flags: int) -> int:
    here = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            if flags & os.O_CREAT:
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                except FileExistsError:
                    pass
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        # Not blocking: a FIFO would be waited for.
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=here)
    finally:
        os.close(here)
