"""All routes of the facade on one screen, in the order in which they are tried."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import Request, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tenure.loops.openhands import OpenHandsLoop
from tenure.loops.openhands.sdk import VERSION
from tenure.server.openhands.commands import SdkCommands
from tenure.server.openhands.conversations import SdkConversations
from tenure.server.openhands.events import SdkEvents
from tenure.server.openhands.place import Place
from tenure.server.openhands.refusals import no_count, no_group, no_operation, no_socket
from tenure.server.openhands.sockets import SdkSocket
from tenure.server.openhands.workspace import SdkWorkspace
from tenure.server.wire import json_reply

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tenure.node import Node
    from tenure.server.watch import Watches
    from tenure.server.wire import Bounds

ALL: Final = "/api/conversations"
ONE: Final = f"{ALL}/{{id}}"
METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def speaks_openhands(node: Node) -> bool:
    """Whether the node runs agents that the SDK's client may talk to."""
    return any(isinstance(loop, OpenHandsLoop) for loop in node.agents.values())


def mount(app: FastAPI, node: Node, watches: Watches, bounds: Bounds) -> None:
    """Serve the SDK's paths as well, beside Tenure's own: none of them is the same."""
    place = Place(node, watches, bounds)
    life, commands, events = SdkConversations(place), SdkCommands(place), SdkEvents(place)
    work = SdkWorkspace(place)

    async def follow(socket: WebSocket) -> None:
        await SdkSocket(place, socket).serve()

    table = [
        ("GET", "/health", _health),
        ("GET", "/alive", _health),
        ("GET", "/server_info", _server_info),
        ("POST", ALL, life.create),
        ("GET", ALL, life.some),
        ("GET", f"{ALL}/search", life.search),
        ("GET", f"{ALL}/count", no_count),
        ("GET", ONE, life.show),
        ("PATCH", ONE, life.change),
        ("DELETE", ONE, life.delete),
        ("POST", f"{ONE}/events", commands.send),
        ("POST", f"{ONE}/events/respond_to_confirmation", commands.confirm),
        ("GET", f"{ONE}/events/search", events.search),
        ("GET", f"{ONE}/events/count", events.count),
        ("GET", f"{ONE}/events/{{event}}", events.one),
        ("POST", f"{ONE}/run", commands.run),
        ("POST", f"{ONE}/pause", commands.pause),
        ("POST", f"{ONE}/interrupt", commands.interrupt),
        ("POST", f"{ONE}/secrets", life.set_secrets),
        ("POST", f"{ONE}/confirmation_policy", life.set_policy),
        ("POST", f"{ONE}/security_analyzer", life.set_analyzer),
        ("POST", f"{ONE}/bash/start_bash_command", work.start_command),
        ("GET", f"{ONE}/bash/bash_events/search", work.search),
        ("POST", f"{ONE}/bash/bash_commands/{{command}}/stop", work.stop),
        ("POST", f"{ONE}/file/upload", work.upload),
        ("GET", f"{ONE}/file/download", work.download),
        ("GET", f"{ONE}/git/changes", work.changes),
        ("GET", f"{ONE}/git/diff", work.diff),
    ]
    app.router.routes += [Route(path, answer, methods=[method]) for method, path, answer in table]
    app.router.routes += [
        Route(f"{ONE}/{{rest:path}}", no_operation, methods=METHODS),
        Route("/api/{rest:path}", no_group, methods=METHODS),
        WebSocketRoute("/sockets/events/{id}", follow),
        Route("/sockets/{rest:path}", no_socket, methods=METHODS),
    ]


async def _health(request: Request) -> Response:
    """The process is up, as ``/healthz``."""
    return json_reply(200, "OK")


async def _server_info(request: Request) -> Response:
    """What serves here, and which release of the SDK it speaks."""
    return json_reply(
        200,
        {
            "title": "Tenure",
            "version": version("tenure"),
            "sdk_version": VERSION,
            "tools_version": VERSION,
            "python_version": sys.version.partition(" ")[0],
        },
    )
