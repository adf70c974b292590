"""Commands in a container, through the daemon's *exec*: how they begin, what they say, how they are ended.

A command waits behind a gate, :data:`GATE`, for one line on its standard input. The line holds the credentials, so they
stand in no request, no inspection, no event and no command line; and nothing of the output can come before we listen. The
daemon cannot end an exec. So each carries marks in its environment, one of its own and one of its container, and another
exec, :data:`END`, kills what has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from tenure.abc import RuntimeFailure
from tenure.vault import cleanly_cut

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    from tenure.runtimes.docker.daemon import Daemon

WORKSPACE = "/workspace"
MARK, OF_CONTAINER = "TENURE_RUN", "TENURE_CONTAINER"
FRAME = 8
"""Bytes of a frame's header: which stream, three zeros, the length."""
REASON_BYTES = 500
ENDING_S = 10.0
"""How long a command that was killed may take to be gone."""
FAREWELL_S = 5.0
LOOK_S = 0.02

# The shell stays in front of the command: it keeps the mark, whatever the command does to its own environment.
GATE = """TENURE_NL='
'
IFS= read -r TENURE_LINE || exit 125
eval "$TENURE_LINE"
unset TENURE_LINE TENURE_NL
"$@"
exit $?"""

# Whatever grep's exit code is: other processes come and go while it looks.
END = """n=0
while [ $n -lt 50 ]; do
  found=$(grep -lsF "$1" /proc/[0-9]*/environ)
  [ "$found" ] || exit 0
  for p in $found; do
    p=${p%/environ}; p=${p#/proc/}
    kill -s KILL -- "-$p" 2>/dev/null; kill -s KILL "$p" 2>/dev/null
  done
  n=$((n + 1))
done
exit 1"""


@final
@dataclass(slots=True)
class Cut:
    """The beginning and the end of an output, `most` bytes in all."""

    most: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0

    def add(self, data: bytes) -> None:
        room = max(0, self.most // 2 - len(self.head))
        self.head += data[:room]
        self.tail += data[room:]
        if (over := len(self.tail) - (self.most - self.most // 2)) > 0:
            self.dropped += over
            del self.tail[:over]

    def bytes(self, hide: Collection[str] = ()) -> bytes:
        """What was said; where something is missing it says how much. Of `hide`, nothing is left there in part."""
        if not self.dropped:
            return bytes(self.head + self.tail)
        head, tail = cleanly_cut(bytes(self.head), bytes(self.tail), hide)
        dropped = self.dropped + len(self.head) + len(self.tail) - len(head) - len(tail)
        return head + f"\n… {dropped} bytes left out …\n".encode() + tail


@final
class Frames:
    """Takes the daemon's stream apart: frames of (stream, length, bytes), cut anywhere by the network."""

    def __init__(self, most: int) -> None:
        self.outputs = {1: Cut(most), 2: Cut(most)}
        self._header = bytearray()
        self._stream, self._left = 0, 0

    def feed(self, data: bytes) -> None:
        """:raises RuntimeFailure: these are no frames."""
        while data:
            if not self._left:
                wanted = FRAME - len(self._header)
                self._header += data[:wanted]
                data = data[wanted:]
                if len(self._header) < FRAME:
                    return
                self._stream, self._left = self._header[0], int.from_bytes(self._header[4:], "big")
                self._header.clear()
                if self._stream not in self.outputs:
                    raise RuntimeFailure("the Docker daemon's stream has no frames", step="run")
                continue
            self.outputs[self._stream].add(data[: self._left])
            self._left, data = self._left - len(data[: self._left]), data[self._left :]


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """How an exec ended; outputs are bytes."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool


async def execute(
    daemon: Daemon,
    container: str,
    argv: Sequence[str],
    *,
    timeout_s: float,
    most: int,
    environment: Mapping[str, str] | None = None,
    of: str = "",
    stdin: bytes = b"",
    hide: Collection[str] = (),
) -> Ended:
    """Run `argv` in the container's workspace, ended with its children at `timeout_s` and when the caller goes away.
    `of`: the container to whose commands it belongs, for :func:`end_all`.
    `hide`: what no cut of the output may tear.

    :raises RuntimeFailure: the daemon's reason; the container is gone, or stops.
    """
    mark = f"{MARK}={secrets.token_hex(16)}"
    marks = [mark, f"{OF_CONTAINER}={of}"] if of else [mark]
    command = ["/bin/sh", "-c", GATE, "tenure", *argv]
    made = await daemon.ask(
        lambda client: client.exec_create(container, command, stdin=True, environment=marks, workdir=WORKSPACE),
        step="run",
    )
    frames, said, ended, timed_out = Frames(most), _line(environment or {}) + stdin, False, False
    try:
        async with _opened(daemon, made["Id"]) as wire:
            try:
                async with asyncio.timeout(timeout_s):
                    await _talk(wire, said, frames)
            except TimeoutError:
                timed_out = True
                await _end(daemon, container, mark)
                await _last_words(wire, frames)
        code = await _code(daemon, made["Id"])
        ended = True
    finally:
        if not ended:
            with contextlib.suppress(RuntimeFailure, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await _end(daemon, container, mark)
    stdout, stderr = frames.outputs[1], frames.outputs[2]
    return Ended(code, stdout.bytes(hide), stderr.bytes(hide), bool(stdout.dropped or stderr.dropped), timed_out)


async def end_all(daemon: Daemon, container: str, of: str) -> None:
    """End every command that ran in it for whomever, and what it has left in the background.

    :raises RuntimeFailure: something may still run.
    """
    argv = ["/bin/sh", "-c", END, "tenure", f"{OF_CONTAINER}={of}"]
    ended = await execute(daemon, container, argv, timeout_s=ENDING_S, most=REASON_BYTES)
    if ended.exit_code != 0:
        raise RuntimeFailure("commands of its former owner do not end", step="attach")


def _line(environment: Mapping[str, str]) -> bytes:
    """The gate's line: assignments for a shell, line breaks in the values as a variable."""
    quoted = (f"{name}={shlex.quote(value)}".replace("\n", "'\"$TENURE_NL\"'") for name, value in environment.items())
    line = " ".join(quoted)
    return (f"export {line}\n" if line else ":\n").encode(errors="replace")


@contextlib.asynccontextmanager
async def _opened(daemon: Daemon, exec_id: str) -> AsyncGenerator[socket.socket]:
    """The connection to the command's ends. Never asked for twice: the command begins once.

    A caller that goes away meanwhile has it hung up: the gate reads the end of its input, and nothing begins.
    """
    stream = await daemon.ask(
        lambda client: client.exec_start(exec_id, socket=True), step="run", tries=1, unwanted=_hang_up
    )
    try:
        wire: socket.socket = stream._sock  # the package hands out the reader; the socket is below it
        wire.setblocking(False)
        yield wire
    except OSError as error:
        raise RuntimeFailure(f"the Docker daemon hung up ({type(error).__name__})", step="run") from None
    finally:
        _hang_up(stream)


async def _talk(wire: socket.socket, said: bytes, frames: Frames) -> None:
    """Let the command go, and hear it to its end."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_say(wire, said))
            both.create_task(_hear(wire, frames))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _last_words(wire: socket.socket, frames: Frames) -> None:
    """What a killed command had still said."""
    try:
        async with asyncio.timeout(ENDING_S):
            await _hear(wire, frames)
    except TimeoutError:
        raise RuntimeFailure("the container did not end a command at its time limit", step="run") from None


async def _say(wire: socket.socket, said: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a command need not read its input
        await asyncio.get_running_loop().sock_sendall(wire, said)
        wire.shutdown(1)


async def _hear(wire: socket.socket, frames: Frames) -> None:
    while data := await asyncio.get_running_loop().sock_recv(wire, 1 << 16):
        frames.feed(data)


def _hang_up(stream: Any) -> None:
    """The connection was taken out of HTTP: it goes back to no pool."""
    stream._response.close()  # first: it flushes what lies below
    stream.close()


async def _end(daemon: Daemon, container: str, mark: str) -> None:
    """Detached: the end of the command's own stream tells that it worked."""
    command = ["/bin/sh", "-c", END, "tenure", mark]
    made = await daemon.ask(lambda client: client.exec_create(container, command), step="run")
    await daemon.ask(lambda client: client.exec_start(made["Id"], detach=True), step="run", tries=1)


async def _code(daemon: Daemon, exec_id: str) -> int:
    """The exit code; the stream may end a moment before the daemon knows it."""
    try:
        async with asyncio.timeout(ENDING_S):
            while True:
                about = await daemon.ask(lambda client: client.exec_inspect(exec_id), step="run")
                if not about["Running"] and about["ExitCode"] is not None:
                    return int(about["ExitCode"])
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise RuntimeFailure("the Docker daemon does not say how the command ended", step="run") from None
