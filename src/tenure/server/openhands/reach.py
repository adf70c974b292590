"""Reaching a conversation's runtime from any node: here if this node owns it, else through its owner, and first by waking one.

A runtime is its owner's: only that node may run anything in it. So a node that is not the owner asks for a start, as any
client may, and passes the request on to whoever owns the conversation then, once: the owner never passes it on again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import httpx
from fastapi import Request, Response

from tenure.clock import Deadline
from tenure.errors import StoreUnavailableError
from tenure.journal import CORE_COMMANDS
from tenure.server.guard import SDK_HEADER
from tenure.server.openhands.place import Place
from tenure.server.problems import Problem
from tenure.server.watch import find

if TYPE_CHECKING:
    from tenure.conversation import Record
    from tenure.node.tenure import Tenure

REACH_S: Final = 30.0
"""How long a request waits for an owner: for a start, or through a takeover."""
LOOK_S: Final = 0.2
CONNECT_S, ANSWER_S = 2.0, 60.0
PASSED_ON: Final = "X-Tenure-Passed-On"
NOT_HERE: Final = "runtime-not-here"
_KEPT_HEADERS = ("content-type", "accept")


@final
class Reach:
    """The way to runtimes. `request` bodies must have been read: they may be sent more than once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.node = place.node

    async def tenure(self, request: Request, record: Record, body: bytes = b"") -> Tenure | Response:
        """The conversation's tenure, if it is this node's, with its runtime; else what its owner has answered.

        :raises Problem: 503: there was no owner in time, or it is not known whether the owner has done it; 409: it is stopped,
            and the request only reads.
        """
        conversation, until = record.conversation, self.node.clock.boottime() + REACH_S
        asked = False
        async with self.place.watches.watch(conversation) as watch:
            while not watch.closed and _left_s(self, until) > 0:
                if (here := self._here(conversation)) is not None:
                    return here
                try:
                    record = await find(self.node.store, conversation)
                    _, owner = await self.node.describe(record)
                except StoreUnavailableError:
                    await watch.next(LOOK_S)
                    continue
                if owner is not None and owner.incarnation != self._incarnation() and record.started:
                    if request.headers.get(PASSED_ON):
                        break
                    reply = await self._pass_on(request, owner.address, body)
                    if reply is not None:
                        return reply
                elif owner is None and record.stopped and request.method == "GET":
                    detail = "somebody has stopped the conversation, and who only looks does not start it"
                    raise Problem(409, "stopped", "The conversation is stopped", detail, remedy="start it, or run it")
                elif owner is None and not asked:
                    asked = True
                    await self.place.submit(conversation, "start", {}, CORE_COMMANDS["start"])
                await watch.next(LOOK_S)
        raise Problem(
            503, NOT_HERE, "The runtime cannot be reached now", "nobody has the conversation's runtime yet; repeat it",
            retry_after_s=1, remedy="repeat it; …/start of Tenure's API says how the start does",
        )  # fmt: skip

    def _incarnation(self) -> object:
        present = self.node.present
        return None if present is None else present.id

    def _here(self, conversation: str) -> Tenure | None:
        present = self.node.present
        tenure = None if present is None or not present.trusts() else present.holds(conversation)
        return tenure if tenure is not None and tenure.runtime is not None and tenure.fold.started else None

    async def _pass_on(self, request: Request, address: str, body: bytes) -> Response | None:
        """What the owner says; null if it does not own it any more, or was not reached."""
        headers = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
        headers[PASSED_ON] = self.node.config.node
        if self.node.config.api_key:
            headers[SDK_HEADER] = self.node.config.api_key
        url = f"{address}{request.url.path}?{request.url.query}".rstrip("?")
        times = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        async with httpx.AsyncClient(timeout=times, trust_env=False) as client:
            try:
                reply = await client.request(request.method, url, headers=headers, content=body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                return None
            except httpx.TransportError:
                if request.method == "GET":
                    return None
                detail = "the conversation's owner was lost meanwhile; look whether it was done"
                raise Problem(503, "outcome-unknown", "The outcome is not known", detail, retry_after_s=1) from None
        kind = reply.headers.get("content-type", "")
        if reply.status_code == 503 and NOT_HERE in reply.text[:500]:
            return None
        return Response(reply.content, reply.status_code, media_type=kind or None)


def _left_s(reach: Reach, until: Deadline) -> float:
    return until - reach.node.clock.boottime()
