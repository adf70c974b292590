"""Requests to a sandbox service: bounded, repeated with back-off, and refused in the service's own words."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final
from urllib.parse import quote, urlsplit

import httpx

from tenure.abc import RuntimeFailure
from tenure.errors import InvalidInputError
from tenure.vault import Mask, Secret

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping

TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request is sent again."""
ANSWER_LIMIT = 8 << 20
REASON_CHARS = 10_000


def segment(text: str) -> str:
    """A part of a path, or a value of a query: every character but the plain ones as ``%XX``."""
    return quote(text, safe="")


class Paused(RuntimeFailure):
    """The runtime stands still: the service paused what nobody used."""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered."""

    status: int
    body: bytes
    token: Mask
    """Hides what this node shows to the service: no conversation knows it, so nobody else would mask it."""

    def json(self) -> dict[str, Any]:
        """The body as an object; its words to people without the node's token.

        :raises RuntimeFailure: it is none.
        """
        try:
            found: Any = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RuntimeFailure(f"the service answered {self.status} without a JSON object", step="service")
        about = cast("dict[str, Any]", found)
        return about | {name: self.token.json(about[name]) for name in ("reason", "step") if name in about}


@final
class Service:
    """The way to one service."""

    def __init__(
        self, url: str, *, token: str, call_s: float, transport: httpx.AsyncBaseTransport | None, rng: random.Random
    ) -> None:
        if not urlsplit(url).hostname or urlsplit(url).scheme not in ("http", "https"):
            raise InvalidInputError("runtime", "names no service", "give http://host or https://host/path")
        if urlsplit(url).username is not None:
            raise InvalidInputError("runtime", "carries a password", "put it into TENURE_RUNTIME_TOKEN")
        self.wait_s = call_s / 2
        """How long the service may hold a request that waits for the end of a run: its answer must not come too late."""
        self._url = url.rstrip("/")
        self._rng = rng
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._token = Mask([Secret(token)] if token else [])
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        secure = self._url.startswith("https:")  # reading certificates takes its time
        self._http = httpx.AsyncClient(
            headers=headers, limits=limits, transport=transport, verify=secure, timeout=call_s, follow_redirects=False
        )

    async def ask(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        step: str,
        none: Collection[int] = (),
        most: int = ANSWER_LIMIT,
        hide: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send it until it is answered, a few times. `none`: refusals that are answers, too; `hide`: never said again.

        :raises RuntimeFailure: what the service refuses it with, or that it does not answer.
        :raises InvalidInputError: the path or the size is no good, in the service's words.
        """
        pause_s, why = FIRST_PAUSE_S, ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                answer = await self._once(method, path, content, most)
            except httpx.HTTPError as error:
                why = f"the service does not answer ({type(error).__name__})"
                continue
            if answer.status < 300 or answer.status in none:
                return answer
            why = _reason(answer)
            if answer.status not in MAY_PASS:
                raise _refusal(answer, step, _without(why, hide))
        raise RuntimeFailure(_without(why, hide), step=step)

    async def _once(self, method: str, path: str, content: object, most: int) -> Answer:
        body: dict[str, Any] = {} if content is None else {"json": content}
        if isinstance(content, bytes):
            body = {"content": content}
        async with self._http.stream(method, self._url + path, **body) as response:
            found = bytearray()
            async for part in response.aiter_bytes():
                found += part
                if response.is_success and len(found) > most:
                    raise InvalidInputError("path", f"has more than {most} bytes", "read a part of it with a command")
                del found[max(most, REASON_CHARS * 8) + 1 :]
            return Answer(response.status_code, bytes(found), self._token)

    async def close(self) -> None:
        await self._http.aclose()


def _reason(answer: Answer) -> str:
    """The service's own words, if it has any."""
    try:
        reason = answer.json().get("reason")
    except RuntimeFailure:
        reason = None
    if reason and len(str(reason)) > REASON_CHARS:  # whole or not at all: it is cut where it is masked
        return f"the service answered {answer.status}, for a reason of {len(str(reason))} characters"
    return str(reason) if reason else f"the service answered {answer.status}"


def _refusal(answer: Answer, step: str, reason: str) -> Exception:
    try:
        about = answer.json()
    except RuntimeFailure:
        about = {}
    if answer.status in (413, 422) and about.get("field") in ("path", "command", "stdin", "content"):
        return InvalidInputError(str(about["field"]), reason, "correct it")
    if answer.status == 409 and about.get("state") == "paused":
        return Paused(reason, step=step)
    return RuntimeFailure(reason, step=str(about.get("step") or step), permanent=about.get("permanent") is True)


def _without(reason: str, hide: Mapping[str, str] | None) -> str:
    """The reason without values that a careless service repeats."""
    for value in (hide or {}).values():
        reason = reason.replace(value, "***") if value else reason
    return reason
