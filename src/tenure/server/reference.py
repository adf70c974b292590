"""``/openapi.json``, and ``/docs``: the same as a page for people. Plain HTML without scripts, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import json
from html import escape
from typing import TYPE_CHECKING, Any, final

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from tenure.server.dashboard import HEADERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastapi import FastAPI

_PAGE = """<!doctype html>
<html lang="en" data-theme="system">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Tenure: the HTTP API</title>
<link rel="icon" type="image/svg+xml" href="dashboard/mark.svg">
<link rel="stylesheet" href="dashboard/style/tokens.css">
<link rel="stylesheet" href="dashboard/style/frame.css">
<link rel="stylesheet" href="dashboard/style/reference.css">
</head>
<body>
<main class="reference">
{}
</main>
</body>
</html>
"""


@final
class Reference:
    """What is told of the API: to programs and to people. Both are written beside the event loop, which takes a moment."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def document(self, request: Request) -> Response:
        """The OpenAPI document."""
        document = await asyncio.to_thread(self._app.openapi)
        root = request.scope.get("root_path", "").rstrip("/")
        return JSONResponse({**document, "servers": [{"url": root}]} if root else document)

    async def page(self) -> Response:
        """The same as a page, where the framework's own would load its scripts from another host."""
        page = await asyncio.to_thread(self._page)
        return Response(page, headers=HEADERS, media_type="text/html; charset=utf-8")

    def _page(self) -> bytes:
        return _PAGE.format("\n".join(_written(self._app.openapi()))).encode()


def _written(document: Mapping[str, Any]) -> Iterator[str]:
    """The page's parts, top to bottom."""
    about, schemas = document["info"], document["components"]["schemas"]
    yield f"<h1>{escape(about['title'])} {escape(about['version'])}: the HTTP API</h1>"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a>. Refusals are problem documents '
    yield f"({_link('ProblemShape')}): decide by their <code>code</code>.</p>"
    operations = [
        (method, path, operation) for path, found in document["paths"].items() for method, operation in found.items()
    ]
    yield '<nav aria-label="Operations"><ul>'
    for method, path, operation in operations:
        name = escape(operation["operationId"])
        yield f'<li><a href="#{name}"><b>{method.upper()}</b> {escape(path)}</a></li>'
    yield "</ul></nav>"
    for method, path, operation in operations:
        yield from _operation(method, path, operation)
    yield "<h2>Shapes</h2>"
    for name, schema in sorted(schemas.items()):
        yield from _shape(name, schema)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f'<section class="card" id="{name}" aria-labelledby="{name}-title">'
    yield f'<h3 id="{name}-title"><b>{method.upper()}</b> <code>{escape(path)}</code></h3>'
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    parameters = [
        (one["name"], one["in"], one.get("required", False), one["schema"], one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    yield from _table("Parameters", parameters)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: {_of_type(content['schema'])} <span>({escape(kind)})</span></p>"
    yield "<ul>"
    for status, reply in operation["responses"].items():
        shapes = ", ".join(_of_type(content["schema"]) for content in reply.get("content", {}).values())
        said = "else" if status == "default" else status
        yield f"<li><b>{said}</b> {shapes} {escape(reply['description'])}</li>"
    yield "</ul></section>"


def _shape(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    name, required = escape(name), schema.get("required", ())
    yield f'<section class="card" id="{name}" aria-labelledby="{name}-title"><h3 id="{name}-title">{name}</h3>'
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    if "enum" in schema:
        yield f"<p>One of {_values(schema['enum'])}.</p>"
    fields = [
        (field, "", field in required, one, one.get("description", ""))
        for field, one in schema.get("properties", {}).items()
    ]
    yield from _table("Fields", fields)
    yield "</section>"


def _table(title: str, rows: Sequence[tuple[str, str, bool, Mapping[str, Any], str]]) -> Iterator[str]:
    """Name, place, whether it must be given, its schema, and what is said of it."""
    if not rows:
        return
    yield f'<div class="wide"><table><caption class="unseen">{title}</caption>'
    for name, place, required, schema, said in rows:
        note = " · ".join(part for part in (place, "required" if required else "") if part)
        yield f'<tr><th scope="row"><code>{escape(name)}</code> <span>{note}</span></th>'
        yield f"<td>{_of_type(schema)}</td><td>{escape(said)}</td></tr>"
    yield "</table></div>"


_BOUNDS = ("pattern", "minimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "maxItems", "default")


def _of_type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words: its type, and the bounds of its values."""
    if "$ref" in schema:
        return _link(str(schema["$ref"]).rpartition("/")[2])
    if choices := schema.get("anyOf"):
        return " or ".join(map(_of_type, choices))
    if "enum" in schema:
        return _values(schema["enum"])
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array":
        kind = f"list of {_of_type(schema.get('items', {}))}"
    bounds = [f"{name} {json.dumps(schema[name])}" for name in _BOUNDS if schema.get(name) is not None]
    return f"{kind} <span>{escape(', '.join(bounds))}</span>" if bounds else kind


def _values(values: Sequence[Any]) -> str:
    return ", ".join(f"<code>{escape(str(one))}</code>" for one in values)


def _link(name: str) -> str:
    return f'<a href="#{escape(name)}">{escape(name)}</a>'
