"""All routes on one screen.

Any node serves any conversation: commands go to the journal, streams come from it. There is no redirect and no
sticky routing, and nothing here holds state that another node would need.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from tenure.server.cluster import Cluster
from tenure.server.commands import Commands
from tenure.server.conversations import Conversations
from tenure.server.dashboard import Dashboard
from tenure.server.guard import Guard, OwnPages
from tenure.server.openhands import mount, speaks_openhands
from tenure.server.problems import answer_with_problems
from tenure.server.recordings import Recordings
from tenure.server.reference import Reference
from tenure.server.routes import route, take_faces
from tenure.server.schema import describe
from tenure.server.secrets import Secrets
from tenure.server.tracing import Traced
from tenure.server.watch import Watches
from tenure.server.wire import (
    AcceptedShape,
    ActivityShape,
    Bounds,
    ConversationShape,
    ConversationsShape,
    DrainShape,
    EventsShape,
    HealthShape,
    LoopInfoShape,
    NodeShape,
    RotatedShape,
    SecretShape,
    SecretsShape,
    SettledShape,
    StartShape,
    TimelineShape,
)

if TYPE_CHECKING:
    from tenure.node import Node

VERSION = version("tenure")
ONE, COMMAND = "/conversations/{id}", {202: AcceptedShape, 200: SettledShape}
UNTOLD: Any = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
"""FastAPI's own telemetry holds queries and the words of errors; versions without it pass this over."""
COPY = {201: ConversationShape, 200: ConversationShape}

TABLE: list[tuple[str, str, Any, dict[int, Any]]] = [
    ("POST", "/conversations", Conversations.create, {201: ConversationShape, 200: ConversationShape}),
    ("GET", "/conversations", Conversations.list, {200: ConversationsShape}),
    ("GET", ONE, Conversations.show, {200: ConversationShape}),
    ("PATCH", ONE, Conversations.change, {200: ConversationShape}),
    ("DELETE", ONE, Conversations.delete, {204: None}),
    ("GET", f"{ONE}/events", Conversations.events, {200: EventsShape}),
    ("GET", f"{ONE}/timeline", Conversations.timeline, {200: TimelineShape}),
    ("GET", f"{ONE}/export", Recordings.export, {200: "lines"}),
    ("POST", "/conversations/import", Recordings.take_in, COPY),
    ("POST", f"{ONE}/fork", Recordings.fork, COPY),
    ("GET", f"{ONE}/stream", Conversations.stream, {200: "stream"}),
    ("POST", f"{ONE}/messages", Commands.message, COMMAND),
    ("POST", f"{ONE}/interrupt", Commands.interrupt, COMMAND),
    ("POST", f"{ONE}/stop", Commands.stop, COMMAND),
    ("POST", f"{ONE}/answer", Commands.answer, COMMAND),
    ("POST", f"{ONE}/start", Commands.start, {200: LoopInfoShape, 202: LoopInfoShape}),
    ("GET", f"{ONE}/start", Commands.progress, {200: StartShape}),
    ("POST", f"{ONE}/takeover", Commands.takeover, {200: LoopInfoShape}),
    ("GET", "/activity", Cluster.activity, {200: ActivityShape}),
    ("GET", f"{ONE}/vault", Secrets.secrets, {200: SecretsShape}),
    ("PUT", f"{ONE}/vault/{{name}}", Secrets.put, {201: SecretShape, 200: SecretShape}),
    ("DELETE", f"{ONE}/vault/{{name}}", Secrets.remove, {204: None}),
    ("POST", "/vault/rotate", Secrets.rotate, {200: RotatedShape}),
    ("GET", "/nodes", Cluster.nodes, {200: list[NodeShape]}),
    ("POST", "/nodes/{node}/drain", Cluster.drain, {202: DrainShape}),
    ("GET", "/metrics", Cluster.metrics, {200: "metrics"}),
    ("GET", "/healthz", Cluster.healthz, {200: HealthShape}),
    ("GET", "/readyz", Cluster.readyz, {200: HealthShape}),
    ("GET", "/openapi.json", Reference.document, {}),
    ("GET", "/docs", Reference.page, {}),
]
"""Method, path, whose method answers, and what it answers; with no shape it is no operation of the API."""
ROUTES = tuple(route(*row) for row in TABLE)
"""Read when this module is imported, and shared by every app of the process."""


def create_app(node: Node, bounds: Bounds | None = None, *, hosts: frozenset[str] | None = None) -> FastAPI:
    """The HTTP face of a node, to be served or mounted in anybody's ASGI app. It does not own the node.

    With `hosts` (:func:`tenure.server.own_hosts`) it refuses what pages from elsewhere ask; an app that it is mounted in
    looks after its own names.
    Call :func:`close_streams` when the process is to end: a server waits for open streams.
    """
    bounds = bounds or Bounds()
    app = FastAPI(
        title="Tenure", version=VERSION, routes=[*ROUTES], redirect_slashes=False, openapi_url=None, telemetry=UNTOLD
    )
    app.state.bounds = bounds
    app.state.large_bodies = ThreadPoolExecutor(1, "tenure-large-bodies")
    app.state.watches = watches = Watches(node.store, bounds.streams)
    conversations = Conversations(node, watches, bounds)
    commands = Commands(node, watches, bounds)
    take_faces(app, conversations, conversations.recordings, commands, Cluster(node), Secrets(node), Reference(app))
    describe(app, ROUTES, (shape for *_, shapes in TABLE for shape in shapes.values()), keyed=bool(node.config.api_key))
    if speaks_openhands(node):
        mount(app, node, watches, bounds)
    answer_with_problems(app)
    if node.config.api_key:
        app.add_middleware(Guard, api_key=node.config.api_key)
    if hosts is not None:
        app.add_middleware(OwnPages, hosts=hosts)
    app.add_middleware(Traced, traces=node.traces)
    app.add_middleware(Dashboard)  # GET / and /dashboard/…, outermost: the pages need no key, what they ask does
    return app


def close_streams(app: FastAPI) -> None:
    """End every stream (with a last word) and every wait of this app, now and from now on."""
    app.state.watches.close()


async def see_off(app: FastAPI, within_s: float) -> None:
    """Ask the readers of this app's streams to go on at another node; returns after `within_s`, when all were asked."""
    await app.state.watches.see_off(within_s)
