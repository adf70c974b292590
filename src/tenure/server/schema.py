"""What ``/openapi.json`` says of replies: their shapes, the streams, and one problem document for all that is refused.

The shapes are only named while the app is built, and written out when somebody asks: building stays cheap.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

from fastapi import Response
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from tenure.server.problems import MEDIA_TYPE, ProblemShape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi import FastAPI
    from starlette.routing import BaseRoute

_STREAM = {
    "description": "Server-sent events: id `seq:epoch`, event = kind, data = the event; `delta` without id.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_LINES = {
    "description": "JSON lines: the conversation, its events, the end; each with `chain`, a running SHA-256.",
    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
}
_METRICS = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_REF = "#/components/schemas/{model}"


def replies(shapes: dict[int, Any]) -> dict[str, Any]:
    """The declaration of a route's replies; the first one is the usual one. Null: no content; ``"stream"``: events;
    ``"lines"``: an export."""
    declared: dict[int | str, dict[str, Any]] = {}
    for status, shape in shapes.items():
        if shape == "stream":
            declared[status] = _STREAM
        elif shape == "lines":
            declared[status] = _LINES
        elif shape == "metrics":
            declared[status] = _METRICS
        elif shape is None:
            declared[status] = {"description": "Done"}
        else:
            content = {"application/json": {"schema": _schema(shape)}}
            declared[status] = {"description": shape.__doc__ or HTTPStatus(status).phrase, "content": content}
    problem = {"description": ProblemShape.__doc__, "content": {MEDIA_TYPE: {"schema": _schema(ProblemShape)}}}
    return {
        "status_code": next(iter(shapes)),
        "responses": {**declared, "default": problem},
        "response_class": Response,
    }


def _schema(shape: Any) -> dict[str, Any]:
    items = get_args(shape)
    if items:
        return {"type": "array", "items": _schema(items[0])}
    return {"$ref": _REF.format(model=shape.__name__)}


def describe(app: FastAPI, routes: Sequence[BaseRoute], shapes: Iterable[Any], *, keyed: bool) -> None:
    """Make the app's document say what we answer, where the framework would say what it would."""
    made: dict[str, Any] = {}
    told = {str(shape): shape for shape in shapes if not isinstance(shape, str | None)}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_document(app.title, app.version, routes, told.values(), keyed=keyed))
        return made

    app.openapi = openapi


def _document(
    title: str, version: str, routes: Sequence[BaseRoute], shapes: Iterable[Any], *, keyed: bool
) -> dict[str, Any]:
    made = get_openapi(title=title, version=version, routes=routes)
    made["paths"]["/conversations/import"]["post"]["requestBody"] = {"required": True, **_LINES}
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # the framework's own; ours is the default
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for shape in (*shapes, ProblemShape):
        schema = TypeAdapter(shape).json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        if not get_args(shape):
            schemas[shape.__name__] = schema
    if keyed:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return made
