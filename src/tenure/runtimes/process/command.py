"""One command: its group of processes, its limits, and what it said."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, final

from tenure.abc import Ran, RuntimeFailure
from tenure.errors import InvalidInputError
from tenure.runtimes.process import census
from tenure.runtimes.process.census import MARK
from tenure.vault import cleanly_cut

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from tenure.runtimes.process.isolation import Isolation

# The group waits for a line of its standard input: until then its limits are set. Then it looks whether its runtime is
# still there: what was discarded by another process of this machine starts nothing more. Whatever isolates the command
# begins after that: its limits hold for that, too. The second shell says what is not found, in the same words everywhere.
LAUNCH = f'read -r go && [ -e "${MARK}" ] || exit 126; exec "$@"'
ISOLATED = ("/bin/sh", "-c", 'exec "$@"', "sh")

LINGER_S = 0.3
"""How long output is read on after the command has ended, when something it left in the background holds it open."""
INPUT_LIMIT = 16 << 20


@final
@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What each command of a runtime may use. Null is no limit of ours; limits that the node has hold anyway.

    ``processes`` counts all that the node's user runs, and does not bind root.
    """

    cpu_s: int | None = 3600
    memory_bytes: int | None = None
    file_bytes: int | None = 4 << 30
    open_files: int | None = 4096
    processes: int | None = None
    timeout_s: int = 3600
    output_bytes: int = 64 << 10
    """Of standard output and of standard error each; what is more is cut from the middle."""

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """Limits as text, by name; an empty text is null.

        :raises InvalidInputError: naming `runtime`: a limit that there is not, or no number above 0.
        """
        known = {field.name: "None" in str(field.type) for field in fields(cls)}
        values: dict[str, int | None] = {}
        for name, text in given.items():
            if name not in known:
                raise InvalidInputError(
                    "runtime", f"process has no limit {name[:80]!r}", f"use {', '.join(known)}, network, isolate"
                )
            if not (text.isdecimal() and 0 < int(text) < 1 << 62) and not (known[name] and text == ""):
                raise InvalidInputError("runtime", f"{name} is {text[:80]!r}", "give a whole number above 0")
            values[name] = int(text) if text else None
        return cls(**values)  # pyright: ignore[reportArgumentType] - null only where it is allowed

    def in_a_shell(self) -> list[str]:
        """What a shell sets for itself and what it begins. A limit that the node has, and that is lower, stays."""
        asked = {
            "-t": self.cpu_s,
            "-v": self.memory_bytes and -(-self.memory_bytes // 1024),
            "-f": self.file_bytes and -(-self.file_bytes // 512),
            "-n": self.open_files,
            "-u": self.processes,
            "-c": 0,
        }
        given = {letter: value for letter, value in asked.items() if value is not None}
        if "-u" in given:
            given["-p"] = given["-u"]  # as dash calls it; one shell or the other does not know its letter
        return [f"ulimit {letter} {value} 2>/dev/null || :" for letter, value in given.items()]

    def impose(self, pid: int) -> None:
        """Set the limits of a process from outside; its children inherit them.

        :raises OSError: the system does not let us.
        """
        if sys.platform != "linux":
            return  # no other system sets the limits of another process
        wanted = {
            resource.RLIMIT_CPU: self.cpu_s,
            resource.RLIMIT_AS: self.memory_bytes,
            resource.RLIMIT_FSIZE: self.file_bytes,
            resource.RLIMIT_NOFILE: self.open_files,
            resource.RLIMIT_NPROC: self.processes,
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in wanted.items():
            if value is not None:
                hard = resource.prlimit(pid, limit)[1]
                least = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.prlimit(pid, limit, (least, least))


@final
class Group:
    """The process group of one command, from before it begins to after it was reaped. Killed from any thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._lock = threading.Lock()
        self._over = False
        self._pinned: int | None = None
        with contextlib.suppress(AttributeError, OSError):
            self._pinned = os.pidfd_open(pid)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group, if its first process was not reaped: only then is the number surely still its own."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pinned is not None:
                signal.pidfd_send_signal(self._pinned, 0)
            if not self._over:
                os.killpg(self.pid, number)

    def close(self) -> None:
        """The command is over, and its first process reaped."""
        with self._lock:
            self._over = True
            if self._pinned is not None:
                os.close(self._pinned)
            self._pinned = None


@final
class Cut:
    """The head and the tail of an output, in bounded memory."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * self._half:  # not at every piece
            self._trim()

    def _trim(self) -> None:
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    @property
    def truncated(self) -> bool:
        self._trim()
        return self._dropped > 0

    def text(self, hide: Collection[str] = ()) -> str:
        """What was said; where something is missing it says how much. Of `hide`, nothing is left there in part."""
        self._trim()
        if not self._dropped:
            return bytes(self._head + self._tail).decode(errors="replace")
        head, tail = cleanly_cut(bytes(self._head), bytes(self._tail), hide)
        dropped = self._dropped + len(self._head) + len(self._tail) - len(head) - len(tail)
        return (head + f"\n… {dropped} bytes left out …\n".encode() + tail).decode(errors="replace")


@final
class Exchange(asyncio.SubprocessProtocol):
    """Hears what a command says, and of its end.

    ``asyncio.subprocess`` would wait until every child in the background has closed the output.
    """

    def __init__(self, output_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.output = {1: Cut(output_bytes), 2: Cut(output_bytes)}
        self.exited: asyncio.Future[None] = loop.create_future()
        self.silent: asyncio.Future[None] = loop.create_future()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output[fd].add(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open and not self.silent.done():
            self.silent.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


@final
class Launched:
    """A command that stands at its starting line: its process exists and waits. :meth:`finish` lets it go."""

    def __init__(
        self, transport: asyncio.SubprocessTransport, exchange: Exchange, mark: str, stdin: int, isolation: Isolation
    ) -> None:
        self.group = Group(transport.get_pid())
        self._mark = mark
        self._transport = transport
        self._exchange = exchange
        self._stdin = stdin
        self._isolation = isolation
        self._feed: asyncio.WriteTransport | None = None

    @classmethod
    async def launch(
        cls,
        argv: Sequence[str],
        place: Path,
        environment: Mapping[str, str],
        output_bytes: int,
        isolation: Isolation,
    ) -> Launched:
        """Make the group, stopped before the command begins.

        :raises InvalidInputError: the command is no text for a process, or too long.
        :raises RuntimeFailure: the machine makes no process now.
        """
        exchange = Exchange(output_bytes)
        apart = [*isolation.prefix, *ISOLATED] if isolation.prefix else []
        reading, writing = os.pipe()
        try:
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: exchange,
                *("/bin/sh", "-c", LAUNCH, "sh", *apart, *argv),
                stdin=reading,
                cwd=place,
                env=environment,
                start_new_session=True,
            )
        except BaseException as error:
            os.close(writing)
            if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno == errno.E2BIG):
                raise InvalidInputError("command", f"cannot be run: {error}", "make it shorter, without NUL") from None
            if isinstance(error, OSError):
                raise RuntimeFailure(f"no process: {error}", step="run") from error
            raise
        finally:
            os.close(reading)
        return cls(transport, exchange, environment[MARK], writing, isolation)

    async def finish(self, stdin: bytes, timeout_s: float, grace_s: float, hide: Collection[str] = ()) -> Ran:
        """Let it go, and wait for its end: the whole group is ended at the time-out, and when this is cancelled.
        `hide`: what no cut of the output may tear."""
        await self._go(stdin)
        timed_out = False
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._exchange.exited)
        except TimeoutError:
            timed_out = True
            await self._ask_to_end()
            await asyncio.wait([self._exchange.exited], timeout=grace_s)
            await asyncio.to_thread(census.kill, [self._mark], self.group.pid)  # also without its first process
            self.group.signal(signal.SIGKILL)
            await asyncio.shield(self._exchange.exited)
        await asyncio.wait([self._exchange.silent], timeout=LINGER_S)
        code = self._transport.get_returncode()
        stdout, stderr = self._exchange.output[1], self._exchange.output[2]
        return Ran(
            128 - code if code is not None and code < 0 else code or 0,
            stdout.text(hide),
            stderr.text(hide),
            truncated=stdout.truncated or stderr.truncated,
            timed_out=timed_out,
        )

    async def _ask_to_end(self) -> None:
        """SIGTERM. A program that waits for the command must hear how it ends, so it is not told itself."""
        if self._isolation.forks:
            await asyncio.to_thread(census.ask, [self._mark], self.group.pid)
        else:
            self.group.signal(signal.SIGTERM)

    async def _go(self, stdin: bytes) -> None:
        file = open(self._stdin, "wb", buffering=0)  # noqa: ASYNC230 - a pipe; the transport closes it
        self._stdin = -1
        self._feed, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, file)
        self._feed.write(b"go\n" + stdin)
        self._feed.write_eof()

    async def close(self) -> None:
        """Whatever became of it: nothing of the group runs that the command had not left in the background."""
        self.group.signal(signal.SIGKILL)
        if self._stdin >= 0:
            os.close(self._stdin)
        if self._feed is not None and self._feed.get_write_buffer_size():  # input that nobody read; else it is closed
            self._feed.abort()
        try:
            await asyncio.wait([self._exchange.exited], timeout=5)
        finally:
            self._transport.close()
            self.group.close()
