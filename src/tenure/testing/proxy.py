"""A network that can fail, in userspace: a TCP proxy of this process in front of one address of the loopback.

It needs no rights and works everywhere. What it can do is what a network does to a TCP connection: refuse it, tear it,
delay it, or keep back what goes one way while the other way is open. What is kept back arrives late, after the heal, as
retransmissions do; if the connection is closed meanwhile, nobody knows whether it arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from typing import TYPE_CHECKING, Self, final

from tenure.testing.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

HOST = "127.0.0.1"
CHUNK = 1 << 16
LATE_S = 30.0
"""A connection whose one side has gone is kept for so long, so that what was kept back still arrives."""


class Way(enum.Enum):
    """A direction, seen from whoever connects to the proxy."""

    THERE = "there"
    BACK = "back"


@final
class Proxy:
    """``async with Proxy(port) as proxy``: whoever connects to ``proxy.port`` talks to `target`, a port of this machine.

    Several faults hold at the same time; :meth:`heal` ends them all.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._place = socket.socket()
        """Holds the port, also while nobody listens: the next one to look for a free port must not find this one."""
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind((HOST, free_port()))
        self.port = int(self._place.getsockname()[1])
        self._open = {way: asyncio.Event() for way in Way}
        self._delay_s = 0.0
        self._listening: socket.socket | None = None
        self._taken: set[socket.socket] = set()
        """Connections that nobody carries yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        for way in Way:
            self._open[way].set()
        self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._taken:
            connection.close()
        self._place.close()

    # --- faults -----------------------------------------------------------------------------------------------------

    async def refuse(self) -> None:
        """Nobody listens any more, and every connection is torn."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        self.tear()

    def tear(self) -> None:
        """Reset every connection. New ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self, way: Way) -> None:
        """Keep back what goes this way: a one-way partition; of both ways, a whole one."""
        self._open[way].clear()

    def delay(self, seconds: float) -> None:
        """Let each piece of data wait, in both directions."""
        self._delay_s = seconds

    async def heal(self) -> None:
        """The network works again; what was kept back is delivered now."""
        self._delay_s = 0.0
        for way in Way:
            self._open[way].set()
        if self._listening is None:
            self._listen()

    # --- connections ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        # Not `asyncio.start_server`: one that is closed while it accepts forgets the connection, and leaves it open.
        self._listening = socket.create_server((HOST, self.port), reuse_port=True)
        self._listening.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError:
            return  # it was gone before it was taken, or there are no descriptors
        connection.setblocking(False)
        self._taken.add(connection)
        task = asyncio.create_task(self._carry(connection), name=f"proxy {self.port} to {self.target}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, connection: socket.socket) -> None:
        """One client; ends when both ways have ended."""
        self._taken.discard(connection)
        reader, writer = await asyncio.open_connection(sock=connection)
        with self._held(writer):
            try:
                there, to = await asyncio.open_connection(HOST, self.target)
            except OSError:
                writer.transport.abort()
                return
            with self._held(to):
                await self._both(self._pump(reader, to, Way.THERE), self._pump(there, writer, Way.BACK))

    @contextlib.contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Generator[None]:
        """Known, so that it can be torn; closed at the end."""
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _both(self, *ways: Coroutine[None, None, None]) -> None:
        """Until both are done; when one has ended, the other gets a while, and no longer."""
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(tasks, timeout=LATE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open[way].wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
