"""What ``/openapi.json`` says of replies: their shapes, the streams, and one problem document for all that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.openapi.utils import get_openapi

from tenure.server.problems import MEDIA_TYPE, ProblemShape

if TYPE_CHECKING:
    from fastapi import FastAPI

_STREAM = {
    "description": "Server-sent events: id `seq:epoch`, event = kind, data = the event; `delta` without id.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def replies(shapes: dict[int, Any]) -> dict[str, Any]:
    """The declaration of a route's replies; the first one is the usual one."""
    declared: dict[int | str, dict[str, Any]] = {}
    for status, shape in shapes.items():
        if shape == "stream":
            declared[status] = _STREAM
        else:
            declared[status] = {"model": shape, "description": (shape and shape.__doc__) or "Done"}
    declared["default"] = {"model": ProblemShape, "description": "A problem document"}
    return {"status_code": next(iter(shapes)), "responses": declared, "response_class": Response}


def describe(app: FastAPI, *, keyed: bool) -> None:
    """Make the app's document say what we answer, where the framework would say what it would."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(get_openapi(title=app.title, version=app.version, routes=app.routes))
            for path in made["paths"].values():
                for operation in path.values():
                    _correct(operation["responses"])
            for name in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(name, None)
            if keyed:
                made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
        return made

    app.openapi = openapi


def _correct(responses: dict[str, Any]) -> None:
    responses.pop("422", None)  # the framework's own; ours is the default
    problem = responses["default"]["content"]
    problem[MEDIA_TYPE] = problem.pop("application/json")
