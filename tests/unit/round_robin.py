"""A plain round-robin proxy: each request and each socket goes to the next server, whatever it is about.

It does what such proxies do by default, and no more: who refuses a connection is passed over, an answer may take `read_s`
(then 504), a socket on which nothing comes for `idle_s`, not even a ping, is cut. It knows no conversations and no health.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import websockets
from fastapi import FastAPI, Request, Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "content-encoding"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class RoundRobin:
    """The proxy as an app; `upstreams` are URLs, and may change."""

    def __init__(self, upstreams: Sequence[str], *, read_s: float = 10.0, idle_s: float = 10.0) -> None:
        self.upstreams = list(upstreams)
        self.answers: Counter[int] = Counter()
        """How many replies of each status went back to clients."""
        self.closes: list[int] = []
        """The codes with which servers have closed sockets."""
        self._next = itertools.count()
        self._idle_s = idle_s
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(read_s, connect=1.0))
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/{path:path}", self._pass_on, methods=METHODS)
        self.app.add_api_websocket_route("/{path:path}", self._join)

    async def close(self) -> None:
        await self._client.aclose()

    def _order(self) -> list[str]:
        at = next(self._next) % len(self.upstreams)
        return self.upstreams[at:] + self.upstreams[:at]

    async def _pass_on(self, request: Request) -> Response:
        headers = [(n, v) for n, v in request.headers.items() if n not in HOP_BY_HOP]
        body, query = await request.body(), request.url.query
        status, content, told = 502, b"", {}
        for upstream in self._order():
            url = f"{upstream}{request.url.path}?{query}".rstrip("?")
            try:
                reply = await self._client.request(request.method, url, headers=headers, content=body)
            except httpx.ConnectError:
                continue
            except httpx.TransportError:
                status = 504
            else:
                status, content = reply.status_code, reply.content
                told = {n: v for n, v in reply.headers.items() if n not in HOP_BY_HOP}
            break
        self.answers[status] += 1
        return Response(content, status, told)

    async def _join(self, socket: WebSocket) -> None:
        for upstream in self._order():
            url = f"ws{upstream.removeprefix('http')}{socket.url.path}?{socket.url.query}".rstrip("?")
            ping = {"ping_interval": self._idle_s / 2, "ping_timeout": self._idle_s / 2}
            try:
                server = await websockets.connect(url, open_timeout=self._idle_s, **ping)
            except (OSError, TimeoutError, websockets.exceptions.InvalidHandshake):
                continue
            await socket.accept()
            pumps = [asyncio.create_task(_there(socket, server)), asyncio.create_task(_back(server, socket))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            code = server.close_code or 1006
            self.closes.append(code)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(code if code >= 4000 else 1011)
            server.transport.abort()
            return
        await socket.close(1013)


async def _there(socket: WebSocket, server: Any) -> None:
    with contextlib.suppress(WebSocketDisconnect, ConnectionClosed):
        while True:
            await server.send(await socket.receive_text())


async def _back(server: Any, socket: WebSocket) -> None:
    with contextlib.suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError):
        async for frame in server:
            await socket.send_text(frame)
