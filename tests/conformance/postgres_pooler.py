"""A connection pooler in a hundred lines, as PgBouncer stands between clients and PostgreSQL.

In mode ``transaction`` a client has a server only while its transaction lasts, and the server that was used last is lent out
first; with ``in_turn`` (PgBouncer's ``server_round_robin``) the one that was idle for longest. In mode ``statement`` there are
no transactions of several statements; in mode ``session`` a client has its server for as long as it is connected. It speaks
plain TCP and trusts everybody.
"""

import asyncio
import struct
from collections import deque
from contextlib import suppress
from typing import Self

_HEAD = struct.Struct("!cI")
_NO_TLS, _FAKE_KEY = 80877103, b"K" + struct.pack("!III", 12, 1, 1)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next message: its type, and all its bytes."""
    head = await reader.readexactly(5)
    kind, length = _HEAD.unpack(head)
    return kind, head + await reader.readexactly(length - 4)


def _error(state: bytes, text: bytes) -> bytes:
    fields = b"SFATAL\0C" + state + b"\0M" + text + b"\0\0"
    return b"E" + struct.pack("!I", 4 + len(fields)) + fields


class Server:
    """A connection to PostgreSQL, logged in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer


class Pooler:
    """``async with Pooler(port) as pooler``: clients connect to `pooler.port`."""

    def __init__(self, server_port: int, mode: str = "transaction", *, in_turn: bool = False) -> None:
        self.port = 0
        self._server_port = server_port
        self._mode = mode
        self._in_turn = in_turn
        self._idle: deque[Server] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._idle:
            server.writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server: Server | None = None
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                greeting = await self._greet(reader, writer)
                while True:
                    asked = await _message(reader)
                    if asked[0] == b"X":
                        break
                    if self._mode == "statement" and asked[1][5:].upper().startswith(b"BEGIN"):
                        writer.write(_error(b"08P01", b"transaction blocks not allowed in statement pooling mode"))
                        break
                    server = server or await self._lend(greeting)
                    if await self._pass(server, asked, reader, writer) and self._mode != "session":
                        self._idle.append(server)
                        server = None
        finally:
            if server is not None:
                server.writer.close()
            writer.close()
            self._tasks.discard(task)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Take a client in, as ourselves: it never hears of the server's own process id."""
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            startup = await reader.readexactly(length - 4)
            if struct.unpack("!I", startup[:4]) != (_NO_TLS,):
                break
            writer.write(b"N")
        parameters = [b"server_version\x0016.0\0", b"client_encoding\0UTF8\0", b"standard_conforming_strings\0on\0"]
        writer.write(b"R" + struct.pack("!II", 8, 0))
        for parameter in parameters:
            writer.write(b"S" + struct.pack("!I", 4 + len(parameter)) + parameter)
        writer.write(_FAKE_KEY + b"Z" + struct.pack("!I", 5) + b"I")
        return struct.pack("!I", length) + startup

    async def _lend(self, greeting: bytes) -> Server:
        if self._idle:
            return self._idle.popleft() if self._in_turn else self._idle.pop()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        writer.write(greeting)
        while (await _message(reader))[0] != b"Z":
            pass
        return Server(reader, writer)

    async def _pass(
        self, server: Server, asked: tuple[bytes, bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One exchange, up to the point where the server is ready again; whether its transaction is over."""
        while asked[0] not in (b"Q", b"S"):
            server.writer.write(asked[1])
            asked = await _message(reader)
        server.writer.write(asked[1])
        while True:
            kind, data = await _message(server.reader)
            writer.write(data)
            if kind == b"Z":
                return data[-1:] == b"I"
