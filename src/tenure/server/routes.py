"""A route as it is read once in a process, whatever number of apps answer it: reading signatures takes a third of a second,
in which an event loop would answer nobody."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from tenure.server.schema import replies
from tenure.server.strict import StrictRoute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fastapi import FastAPI
    from fastapi.routing import APIRoute


def take_faces(app: FastAPI, *faces: object) -> None:
    """Let these answer the app's requests, each for the routes that name its class."""
    app.state.faces = {type(face).__name__: face for face in faces}


def route(method: str, path: str, answer: Callable[..., Awaitable[Response]], shapes: dict[int, Any]) -> StrictRoute:
    """A route that this method answers, with these shapes; without any it is no operation of the API."""
    return StrictRoute(
        path, _late(answer), methods=[method], include_in_schema=bool(shapes), generate_unique_id_function=_name,
        **replies(shapes or {200: None}),
    )  # fmt: skip


def _name(of: APIRoute) -> str:
    return of.name


def _late(method: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """An endpoint that reads as the method does, and calls it on whichever object the app asked holds of its class."""
    face, _, name = method.__qualname__.partition(".")
    _, *taken = inspect.signature(method, eval_str=True).parameters.values()
    wants = any(one.name == "request" for one in taken)
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)

    async def endpoint(**asked: Any) -> Response:
        faces: Mapping[str, Any] = asked["request"].app.state.faces
        if not wants:
            del asked["request"]
        return await method(faces[face], **asked)

    functools.update_wrapper(endpoint, method)
    endpoint.__name__ = name
    by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in taken]
    endpoint.__dict__["__signature__"] = inspect.Signature(by_name if wants else [*by_name, request])
    return endpoint
