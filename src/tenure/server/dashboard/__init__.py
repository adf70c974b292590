"""The dashboard: pages that every node serves at ``/``, and that speak to the public API alone.

Plain HTML, CSS and ES modules, read once when this module is imported: nothing is built, nothing comes from elsewhere.
The pages hold no secret and need no key; what they ask of the API does. Their policy forbids every script, style and
connection but this node's own, and the browser refuses them markup made from text (Trusted Types): what a journal holds
can only ever be text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, final

from starlette.datastructures import Headers
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.resources.abc import Traversable

    from starlette.types import ASGIApp, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
FOLDER = "/dashboard/"


@final
@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _files() -> Mapping[str, _File]:
    """Every page by its path below ``/dashboard/``."""
    return {name: _file(place) for name, place in _walk(files(__name__) / "pages")}


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for place in folder.iterdir():
        if place.is_dir():
            yield from _walk(place, f"{prefix}{place.name}/")
        elif place.name.rpartition(".")[2] in _TYPES:
            yield prefix + place.name, place


def _file(place: Traversable) -> _File:
    content = place.read_bytes()
    return _File(content, _TYPES[place.name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:24]}"')


FILES = _files()


@final
class Dashboard:
    """Answers for the pages, before anything asks for a key; everything else goes on to the app.

    ``/`` is the dashboard for whoever accepts HTML. Programs get there what they would get without it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = _page(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        await (self.app if page is None else page)(scope, receive, send)


def _page(scope: Scope) -> Response | None:
    path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
    if path == "/" and "text/html" in headers.get("accept", ""):
        file = FILES["index.html"]
    elif path.startswith(FOLDER):
        file = FILES.get(path.removeprefix(FOLDER))
    else:
        return None
    if file is None:
        return None
    reply_headers = {**HEADERS, "ETag": file.etag, "Vary": "Accept"}
    if file.etag in headers.get("if-none-match", ""):
        return Response(status_code=304, headers=reply_headers)
    content = b"" if scope["method"] == "HEAD" else file.content
    reply_headers["Content-Length"] = str(len(file.content))
    return Response(content, headers=reply_headers, media_type=file.media_type)
