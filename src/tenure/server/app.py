"""All routes on one screen.

Any node serves any conversation: commands go to the journal, streams come from it. There is no redirect and no
sticky routing, and nothing here holds state that another node would need.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tenure.server.cluster import Cluster
from tenure.server.commands import Commands
from tenure.server.conversations import Conversations
from tenure.server.dashboard import Dashboard
from tenure.server.guard import Guard, OwnPages
from tenure.server.problems import answer_with_problems
from tenure.server.reference import serve_reference
from tenure.server.schema import describe, replies
from tenure.server.secrets import Secrets
from tenure.server.strict import StrictRoute
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


def create_app(node: Node, bounds: Bounds | None = None, *, hosts: frozenset[str] | None = None) -> FastAPI:
    """The HTTP face of a node, to be served or mounted in anybody's ASGI app. It does not own the node.

    With `hosts` (:func:`tenure.server.own_hosts`) it refuses what pages from elsewhere ask; an app that it is mounted in
    looks after its own names.
    Call :func:`close_streams` when the process is to end: a server waits for open streams.
    """
    bounds = bounds or Bounds()
    app = FastAPI(
        title="Tenure", version=VERSION, redirect_slashes=False, generate_unique_id_function=_name,
        docs_url=None, redoc_url=None, telemetry=UNTOLD,
    )  # fmt: skip
    app.router.route_class = StrictRoute
    app.state.bounds = bounds
    app.state.large_bodies = ThreadPoolExecutor(1, "tenure-large-bodies")
    app.state.watches = watches = Watches(node.store, bounds.streams)
    conversations = Conversations(node, watches, bounds)
    commands = Commands(node, watches, bounds)
    cluster, secrets = Cluster(node), Secrets(node)
    routes: list[tuple[str, str, Any, dict[int, Any]]] = [
        ("POST", "/conversations", conversations.create, {201: ConversationShape, 200: ConversationShape}),
        ("GET", "/conversations", conversations.list, {200: ConversationsShape}),
        ("GET", ONE, conversations.show, {200: ConversationShape}),
        ("PATCH", ONE, conversations.change, {200: ConversationShape}),
        ("DELETE", ONE, conversations.delete, {204: None}),
        ("GET", f"{ONE}/events", conversations.events, {200: EventsShape}),
        ("GET", f"{ONE}/timeline", conversations.timeline, {200: TimelineShape}),
        ("GET", f"{ONE}/export", conversations.recordings.export, {200: "lines"}),
        ("POST", "/conversations/import", conversations.recordings.take_in, COPY),
        ("POST", f"{ONE}/fork", conversations.recordings.fork, COPY),
        ("GET", f"{ONE}/stream", conversations.stream, {200: "stream"}),
        ("POST", f"{ONE}/messages", commands.message, COMMAND),
        ("POST", f"{ONE}/interrupt", commands.interrupt, COMMAND),
        ("POST", f"{ONE}/stop", commands.stop, COMMAND),
        ("POST", f"{ONE}/answer", commands.answer, COMMAND),
        ("POST", f"{ONE}/start", commands.start, {200: LoopInfoShape, 202: LoopInfoShape}),
        ("GET", f"{ONE}/start", commands.progress, {200: StartShape}),
        ("POST", f"{ONE}/takeover", commands.takeover, {200: LoopInfoShape}),
        ("GET", "/activity", cluster.activity, {200: ActivityShape}),
        ("GET", f"{ONE}/vault", secrets.secrets, {200: SecretsShape}),
        ("PUT", f"{ONE}/vault/{{name}}", secrets.put, {201: SecretShape, 200: SecretShape}),
        ("DELETE", f"{ONE}/vault/{{name}}", secrets.remove, {204: None}),
        ("POST", "/vault/rotate", secrets.rotate, {200: RotatedShape}),
        ("GET", "/nodes", cluster.nodes, {200: list[NodeShape]}),
        ("POST", "/nodes/{node}/drain", cluster.drain, {202: DrainShape}),
        ("GET", "/metrics", cluster.metrics, {200: "metrics"}),
        ("GET", "/healthz", cluster.healthz, {200: HealthShape}),
        ("GET", "/readyz", cluster.readyz, {200: HealthShape}),
    ]
    for method, path, endpoint, shapes in routes:
        app.add_api_route(path, endpoint, methods=[method], **replies(shapes))
    serve_reference(app)
    answer_with_problems(app)
    shapes = {
        str(shape): shape for *_, of_route in routes for shape in of_route.values() if not isinstance(shape, str | None)
    }
    describe(app, shapes.values(), keyed=bool(node.config.api_key))
    if node.config.api_key:
        app.add_middleware(Guard, api_key=node.config.api_key)
    if hosts is not None:
        app.add_middleware(OwnPages, hosts=hosts)
    app.add_middleware(Traced, traces=node.traces)
    app.add_middleware(Dashboard)  # GET / and /dashboard/…, outermost: the pages need no key, what they ask does
    return app


def _name(route: APIRoute) -> str:
    return route.name


def close_streams(app: FastAPI) -> None:
    """End every stream (with a last word) and every wait of this app, now and from now on."""
    app.state.watches.close()
