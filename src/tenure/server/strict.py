"""The strict reading of requests.

A body is read within a bound, must be JSON in UTF-8, and may hold nothing that a journal could not: no lone surrogate,
no NaN, no number beyond 64 bits, no nesting without end. Whatever is refused names its field, the limit and the remedy.
Fields and parameters that nobody asked for are refused as well: a misspelt ``user_id`` must not act for the operator.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, cast, final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from tenure.errors import InvalidInputError, NodeUnavailableError
from tenure.server.problems import Problem

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tenure.server.wire import Bounds

MAX_DEPTH = 64
LARGE = 65_536
"""Bodies from here on are judged beside the event loop, in a thread of the app's own: a million small lists take
their time, and the default threads may all be busy with agents' tools."""
_SUSPECT = re.compile(r"\\u[dD]|\d{19}|[eE]\+?\d{3}|NaN|Infinity")
"""What a text must hold for :func:`_faults` to find anything but depth; so that most bodies are not walked."""


def read_json(data: bytes) -> Any:
    """The value of a request's body.

    :raises InvalidInputError: not UTF-8, not JSON, or a value that a journal cannot hold; names the field.
    """
    try:
        text = data.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidInputError("body", f"byte {error.start} is not UTF-8", "encode the body as UTF-8") from None
    except RecursionError:
        raise InvalidInputError("body", f"nested deeper than {MAX_DEPTH} levels", "flatten it") from None
    except json.JSONDecodeError as error:
        raise InvalidInputError("body", f"is not JSON: {error.msg} at {error.pos}", "send one JSON object") from None
    except ValueError:  # the interpreter's own limit on the digits of an integer
        raise InvalidInputError("body", "a number is beyond 64 bits", "send large numbers as strings") from None
    if _SUSPECT.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        for field, problem, remedy in _faults(value):
            raise InvalidInputError(field, problem, remedy)
    return value


def _faults(value: Any) -> Iterator[tuple[str, str, str]]:
    places: list[tuple[str, Any, int]] = [("", value, 1)]
    while places:
        path, one, depth = places.pop()
        match one:
            case str() if not _is_unicode(one):
                yield path or "body", "has a lone surrogate", "send valid Unicode"
            case int() if not -(1 << 63) <= one < 1 << 63:
                yield path or "body", "is beyond 64 bits", "send large numbers as strings"
            case float() if not math.isfinite(one):
                yield path or "body", "is not a finite number", "send null or a string"
            case dict() | list() if depth > MAX_DEPTH:
                yield re.split(r"[.\[]", path)[0] or "body", f"nested deeper than {MAX_DEPTH} levels", "flatten it"
            case dict():
                members = cast("dict[str, Any]", one)
                if not all(map(_is_unicode, members)):
                    yield path or "body", "has a name with a lone surrogate", "send valid Unicode"
                places += [(f"{path}.{n[:64]}" if path else n[:64], v, depth + 1) for n, v in members.items()]
            case list():
                places += [(f"{path}[{i}]", v, depth + 1) for i, v in enumerate(cast("list[Any]", one))]
            case _:
                pass


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@final
class ReadRequest(Request):
    """A request whose body was read, bounded and checked."""

    def __init__(self, request: Request, data: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._data = data
        self._value = value

    async def body(self) -> bytes:
        return self._data

    async def json(self) -> Any:
        return self._value


class StrictRoute(APIRoute):
    """A route that reads strictly: known parameters only, a bounded body, JSON that a journal can hold."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        parameters = {str(field.alias) for field in self.dependant.query_params}
        takes_body = self.body_field is not None

        async def strictly(request: Request) -> Response:
            refuse_unknown_parameters(request, parameters)
            try:
                return await answer(await read_strictly(request) if takes_body else request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody hears it; and it is no error of ours
            except asyncio.CancelledError:
                if not request.app.state.watches.closed:
                    raise
                # The last grace of a departure has passed: a client must hear that another node may be asked.
                raise NodeUnavailableError("this node leaves; whether it was done is not known") from None

        return strictly


def refuse_unknown_parameters(request: Request, known: set[str]) -> None:
    """:raises InvalidInputError: the query names something that the route does not know."""
    for name in request.query_params:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InvalidInputError(
                name[:64] or '""', f"is no parameter of this route (known: {listed})", "leave it out"
            )


async def read_strictly(request: Request) -> ReadRequest:
    """The request with its body read, bounded and checked.

    :raises InvalidInputError: as :func:`read_json`. :raises Problem: too large, or no JSON by its content type.
    """
    limit = cast("Bounds", request.app.state.bounds).body_bytes
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise too_large("body", f"at most {limit} bytes")
    if not data:
        return ReadRequest(request, b"", None)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise Problem(
            415,
            "unsupported-media-type",
            "The body is not JSON",
            f"the content type is {kind[:64] or 'missing'}; send the header Content-Type: application/json",
            field="content-type",
            limit="application/json",
            remedy="send the header Content-Type: application/json",
        )
    body = bytes(data)
    if len(body) < LARGE:
        return ReadRequest(request, body, read_json(body))
    judge = cast("Executor", request.app.state.large_bodies)
    return ReadRequest(request, body, await asyncio.get_running_loop().run_in_executor(judge, read_json, body))


def too_large(field: str, limit: str) -> Problem:
    """413: the request, or one event that it makes, is larger than can be kept."""
    remedy = "send less, or put large content into a file and send its name"
    return Problem(
        413, "too-large", "Too large", f"{field}: {limit}; {remedy}", field=field, limit=limit, remedy=remedy
    )


def the_user(in_query: str | None, in_body: str | None) -> str | None:
    """Whom a request acts for; null: the operator.

    :raises InvalidInputError: query and body name two.
    """
    if in_query is not None and in_body is not None and in_query != in_body:
        raise InvalidInputError("user_id", "query and body name different users", "name one user")
    return in_body if in_query is None else in_query


def the_key(*given: str | None) -> str | None:
    """The one key of a request, wherever it stands.

    :raises InvalidInputError: two different keys.
    """
    keys = {key for key in given if key is not None}
    if len(keys) > 1:
        raise InvalidInputError("key", "the body and the header Idempotency-Key differ", "give one key")
    return next(iter(keys), None)
