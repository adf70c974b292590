"""Who may ask: with a key, whoever shows it; without one, on loopback, this machine's programs and the node's own pages."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tenure.config import is_loopback
from tenure.server.problems import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tenure.config import Config

OPEN = ("/healthz", "/readyz", "/health", "/alive", "/server_info")
"""What a load balancer asks without a key, by whatever name; the last three are the OpenHands SDK's."""
SDK_HEADER = "X-Session-API-Key"
"""Where the OpenHands SDK's client puts the key."""


def _is_open(scope: Scope) -> bool:
    return scope["path"].removeprefix(scope.get("root_path", "")) in OPEN


@final
class Guard:
    """Refuses requests without the key. The comparison takes the same time whatever is wrong. A socket looks for itself:
    its key may come with the first frame."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._expected = f"Bearer {api_key}".encode()
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._lets_in(scope):
            await self.app(scope, receive, send)
            return
        remedy = "send the header Authorization: Bearer, with the node's TENURE_API_KEY"
        problem = Problem(
            401, "unauthorized", "A key is needed", f"no key, or a wrong one; {remedy}",
            headers={"WWW-Authenticate": 'Bearer realm="tenure"'}, remedy=remedy,
        )  # fmt: skip
        await problem.response()(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        if _is_open(scope):
            return True
        headers = Headers(scope=scope)
        if hmac.compare_digest(headers.get(SDK_HEADER, "").encode(errors="replace"), self._key):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = f"{scheme.capitalize()} {token.strip()}".encode(errors="replace")
        return hmac.compare_digest(given, self._expected)


# --- without a key --------------------------------------------------------------------------------------------------


def own_hosts(config: Config) -> frozenset[str] | None:
    """By which names, beside those of loopback, a node without a key may be called; null: it needs no such look.

    With a key the key decides. Beyond loopback without one, something else guards the node and knows its names.
    """
    if config.api_key or not is_loopback(config.host):
        return None
    named = [name.strip() for name in config.allow_host.split(",")]
    return frozenset(host for name in (*named, config.address) if (host := _host(name)))


@final
class OwnPages:
    """Refuses what a browser sends here for a page from elsewhere.

    Loopback keeps other machines out, but not the browser on this one: a page from anywhere may post to it, and one
    whose name is made to mean 127.0.0.1 (DNS rebinding) may read it too. The first shows in ``Origin``, the second in
    ``Host``. Programs send no ``Origin``.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] in ("http", "websocket") and not _is_open(scope)
        foreign = self._foreign(Headers(scope=scope)) if asked else None
        if foreign is None:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # no browser asks for leave before it opens one: to refuse is all there is
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        field, value = foreign
        limit = "must be this node's own while it has no key"
        remedy = f"set TENURE_API_KEY, or call the node by its address, or allow the name with --allow-host {_host(value) or 'NAME'}"
        problem = Problem(
            403, "foreign-page", "Not from here", f"{field}: {value[:100]!r} {limit}; {remedy}",
            field=field, limit=limit, remedy=remedy,
        )  # fmt: skip
        await problem.response()(scope, receive, send)

    def _foreign(self, headers: Headers) -> tuple[str, str] | None:
        """The header that shows it, and what it says."""
        hosts = headers.getlist("host")
        for host in hosts:
            if not self._is_own(_host(host)):
                return "host", host
        for origin in headers.getlist("origin"):
            place = origin.partition("://")[2]
            # A page from another port of this machine is another's page too.
            if not place or (place not in hosts and _host(origin) not in self._hosts):
                return "origin", origin
        return None

    def _is_own(self, name: str) -> bool:
        return is_loopback(name) or name.endswith(".localhost") or name in self._hosts


def _host(address: str) -> str:
    """The host of an origin, a URL, or ``host:port``, in lower case; empty if it names none."""
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""
