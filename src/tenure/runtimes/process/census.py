"""Who runs on this machine for a runtime, found without trust in process numbers.

Every process of a runtime has a *mark* in its environment: the path of the runtime's file. Children inherit it, also
those that left the group (a double fork) and those of a node that is dead or frozen. Whatever a marked process began
counts too, mark or not: its children and, if it began a session, all that is in there. So ``env -i`` alone does not
escape. That a marked process is *in* a session says nothing: a program that a node launches may be in the node's own.

A *brand*, a resource limit that nothing enforces and every child inherits, finds those that wiped their environment, began
a session of their own *and* lost their parent. What escapes: a process that does so and sets that limit anew. Processes are a
convenience, not a prison; use a container where agents are not trusted.

A number is never enough to kill: numbers are reused. Between the census and the signal a process is pinned with a
pidfd and must have started when the census says. Needs ``/proc``; where there is none nothing is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MARK = "TENURE_RUNTIME_FILE"
"""The environment variable that marks the processes of a runtime."""

_LOCKS = 10
"""``RLIMIT_LOCKS``: Linux enforces nothing by it since 2.4, and children inherit it through everything they do."""

_ROUNDS = 60
"""Looks at the machine until the processes of a runtime are gone: about 5 s in all."""


@final
@dataclass(frozen=True, slots=True)
class Process:
    """A process as ``/proc/PID/stat`` has it."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def name(self) -> tuple[int, int]:
        """What no other process of this machine has, before or after: the number, and when it started."""
        return (self.pid, self.started)

    @property
    def alive(self) -> bool:
        return self.state not in "ZXx"


def belonging(marks: Collection[str], group: int | None = None) -> list[Process]:
    """The living processes of the runtimes with these marks; with `group`, only those in it. Never this process."""
    everybody = {process.pid: process for process in map(_process, _numbers()) if process is not None}
    sought = [f"{MARK}={mark}".encode() for mark in marks]
    brands = {_brand(mark) for mark in marks}
    found = {pid for pid in everybody if _branded(pid) in brands or any(entry in _environment(pid) for entry in sought)}
    ours = os.getsid(0)
    size = -1
    while len(found) > size:
        size = len(found)
        sessions = {pid for pid in found if everybody[pid].session == pid} - {ours}
        found |= {p.pid for p in everybody.values() if p.session in sessions or p.parent in found}
    found.discard(os.getpid())
    members = (everybody[pid] for pid in found)
    return [p for p in members if p.alive and (group is None or p.group == group)]


def brand(pid: int, mark: str) -> None:
    """Mark a process once more, where ``env -i`` does not reach; best effort: inside another runtime it has a brand."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, _LOCKS, (_brand(mark), _brand(mark)))


def brand_in_a_shell(mark: str) -> str:
    """What a shell brands itself with; the letter of the limit is another one in bash."""
    return f"ulimit -w {_brand(mark)} 2>/dev/null || ulimit -x {_brand(mark)} 2>/dev/null || :"


def _brand(mark: str) -> int:
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7])


def _branded(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, _LOCKS)[1] if sys.platform == "linux" else None
    except (OSError, ValueError):
        return None


def kill(marks: Collection[str], group: int | None = None) -> None:
    """SIGKILL all of them, and those that they fork meanwhile; does not wait until they are gone."""
    told: set[tuple[int, int]] = set()
    for _ in range(_ROUNDS):
        new = [p for p in belonging(marks, group) if p.name not in told]
        if not new:
            return
        _signal_all(new)
        told |= {p.name for p in new}


def ask(marks: Collection[str], group: int) -> None:
    """SIGTERM to those in the group, its first process left out. Parents first: one that waits must not see its child end
    before it is asked itself."""
    told = [p for p in belonging(marks, group) if p.pid != group]
    _signal_all(sorted(told, key=lambda p: (p.started, p.pid)), signal.SIGTERM)


def end(marks: Collection[str], group: int | None = None) -> list[Process]:
    """SIGKILL all of them until none is left; those that are there after about 5 s."""
    left: list[Process] = []
    for number in range(_ROUNDS):
        left = belonging(marks, group)
        if not left:
            break
        _signal_all(left)
        time.sleep(min(0.1, 0.002 * 1.3**number))
    return left


def _signal_all(processes: Iterable[Process], number: signal.Signals = signal.SIGKILL) -> None:
    for process in processes:
        try:
            _signal(process, number)
        except (ProcessLookupError, PermissionError):  # gone; or it became another user, and is not ours to end
            continue


def _signal(process: Process, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        pinned = os.pidfd_open(process.pid)
    except (AttributeError, OSError) as error:
        if isinstance(error, ProcessLookupError):
            raise
        pinned = None  # an old kernel: the window between the look and the signal stays open
    try:
        found = _process(process.pid)
        if found is None or found.name != process.name:
            return
        if pinned is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(pinned, number)
    finally:
        if pinned is not None:
            os.close(pinned)


def _numbers() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return []


def _process(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses of its own.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # another user's, or gone
        return []
