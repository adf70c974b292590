"""Who may ask: one bearer token for everything but the health of the node."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, final

from starlette.datastructures import Headers

from tenure.server.problems import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/healthz", "/readyz")
"""What a load balancer asks without a key."""


@final
class Guard:
    """Refuses requests without the key. The comparison takes the same time whatever is wrong."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._expected = f"Bearer {api_key}".encode()

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
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN:
            return True
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        given = f"{scheme.capitalize()} {token.strip()}".encode(errors="replace")
        return hmac.compare_digest(given, self._expected)
