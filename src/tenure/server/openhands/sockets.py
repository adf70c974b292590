"""``/sockets/events/{id}``: the SDK's events as they are journaled, on any node, whoever owns the conversation.

::

    connect ──> key (header, or first frame) ──> full_state ──> [what the client wants again] ──> events as they come
                no: 4001          no such conversation: 4004      a full_state when a run begins and ends, and at an error

To a client in a blocking ``run()`` a full_state that does not say ``running`` is the end of its run: there is none for what else
changes the status, as a message that makes ``finished`` to ``idle``.

A socket belongs to no owner, so a takeover does not touch it. It is closed with 1012 (come back: elsewhere) when its node
leaves, or gives up its lease, so that nobody listens to a node that may be cut off from the store. Through an outage of the
store it stays open. 1013: this node has too many streams.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import TYPE_CHECKING, Any, Final, cast, final

from starlette.websockets import WebSocket, WebSocketDisconnect

from tenure.errors import ConversationError, InvalidInputError, StoreUnavailableError, UnknownConversationError
from tenure.facts import ReaderCut, to_log
from tenure.journal import Delivery
from tenure.loops.openhands.projection import Projection, delta_event, sdk_event
from tenure.server.openhands.commands import message_body
from tenure.server.openhands.conversations import info
from tenure.server.openhands.place import Place
from tenure.server.problems import Problem
from tenure.server.stream import until_one_ends
from tenure.server.strict import read_json
from tenure.server.watch import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Hint
    from tenure.journal import JsonObject
    from tenure.server.watch import Watch

AUTH_S: Final = 10.0
"""How long the first frame may take where a key is needed."""
AGAIN_S: Final = 1.0
"""After the end of a run that was asked for as short a time ago its full_state is told a second time: a client that was just
told that its run is accepted may not have been listening for the end yet."""
WRONG_KEY, UNKNOWN, COME_BACK, FULL = 4001, 4004, 1012, 1013
PART = 100


class _Closed(Exception):
    """The socket was closed, with this code."""


@final
class SdkSocket:
    """One client, and what it was told. What it has not taken is not read on."""

    def __init__(self, place: Place, socket: WebSocket) -> None:
        self.place = place
        self.node = place.node
        self.socket = socket
        self.seen = Projection()
        self.ended = 0
        self.status = ""
        self.again_at: float | None = None

    async def serve(self) -> None:
        """Until one of the two leaves."""
        await self.socket.accept()
        try:
            await self._authenticate()
            conversation = await self._conversation()
            async with self.place.watches.watch(conversation) as watch:
                await watch.following(self.place.bounds.poll_s)
                await watch.next(0)
                await until_one_ends(self._tell_all(watch, conversation), self._hear(conversation), self._node_leaves())
            code = COME_BACK
        except _Closed as closed:
            code = int(closed.args[0])
        except UnknownConversationError:
            code = UNKNOWN  # deleted meanwhile
        except Problem:
            code = FULL
        except WebSocketDisconnect:
            return
        await self._close(code)

    async def _close(self, code: int) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self.socket.close(code)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            return  # it has gone by itself

    # --- who and what -----------------------------------------------------------------------------------------------

    async def _authenticate(self) -> None:
        key = self.node.config.api_key
        if not key or is_key(self.socket.headers.get("x-session-api-key"), key):
            return
        scheme, _, token = self.socket.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_key(token.strip(), key):
            return
        try:
            async with asyncio.timeout(AUTH_S):
                frame = _frame(await self.socket.receive_text())
        except (TimeoutError, InvalidInputError, KeyError):
            raise _Closed(WRONG_KEY) from None
        if frame.get("type") != "auth" or not is_key(frame.get("session_api_key"), key):
            raise _Closed(WRONG_KEY)

    async def _conversation(self) -> str:
        """:raises _Closed: there is none, or the node leaves before the store answers."""
        while not self._over():
            try:
                return (await self.place.record(self.socket.path_params["id"])).conversation
            except UnknownConversationError:
                raise _Closed(UNKNOWN) from None
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
        raise _Closed(COME_BACK)

    def _over(self) -> bool:
        present = self.node.present
        return self.place.watches.closed or (present is not None and present.over.is_set())

    async def _node_leaves(self) -> None:
        """Return when this start of the node has ended: given up, or left."""
        present = self.node.present
        if present is None:  # it registers just now
            await asyncio.Event().wait()
            return
        await present.over.wait()

    # --- what it hears ----------------------------------------------------------------------------------------------

    async def _hear(self, conversation: str) -> None:
        """A frame of the client's is a message, and runs the agent; a key that nobody asked for is passed over."""
        try:
            while True:
                frame = _frame(await self.socket.receive_text())
                if frame.get("type") == "auth":
                    continue
                body = message_body({**frame, "run": True})
                await self.place.submit(conversation, "message", body, Delivery.TURN)
        except (WebSocketDisconnect, KeyError):
            return
        except (ConversationError, InvalidInputError, StoreUnavailableError, Problem):
            return  # a frame has no reply: who sends what cannot be taken is told by the end

    # --- what it is told --------------------------------------------------------------------------------------------

    async def _tell_all(self, watch: Watch, conversation: str) -> None:
        bounds = self.place.bounds
        try:
            await self._begin(watch, conversation)
            hints: Sequence[Hint] = ()
            while not watch.closed:
                for hint in hints:
                    if hint.delta is not None and (told := delta_event(hint.delta, self.node.clock.now())) is not None:
                        await self._send(told)
                try:
                    await self._catch_up(conversation)
                except StoreUnavailableError:
                    pass
                hints = await watch.next(self._patience_s(bounds.poll_s))
        except WebSocketDisconnect:
            return

    def _patience_s(self, poll_s: float) -> float:
        if self.again_at is None:
            return poll_s
        return min(poll_s, max(0.0, self.again_at - asyncio.get_running_loop().time()))

    async def _begin(self, watch: Watch, conversation: str) -> None:
        """The first frame is the whole state; then, if it is asked for, what was before."""
        while True:
            try:
                self.seen, _ = await self.place.read_on(conversation, Projection())
                await self._tell_state()
                await self._resend(conversation)
                return
            except StoreUnavailableError:
                await watch.next(self.place.bounds.poll_s)

    async def _resend(self, conversation: str) -> None:
        query, head = self.socket.query_params, self.seen.seq
        since = query.get("after_timestamp", "") if query.get("resend_mode") == "since" else ""
        after = 0 if query.get("resend_mode") in ("all", "since") else head
        while after < head:
            reading = await read(self.node.store, conversation, after, min(PART, head - after))
            for event in reading.events:
                told = sdk_event(event)
                if told is not None and event.seq <= head and str(told["timestamp"]) >= since.rstrip("Z"):
                    await self._send(told)
            after = reading.events[-1].seq if reading.events else head

    async def _catch_up(self, conversation: str) -> None:
        before = self.seen
        self.seen, told = await self.place.read_on(conversation, self.seen, every=True)
        if self.seen is not before:  # the store was rewound: the client must read everything anew
            raise WebSocketDisconnect(COME_BACK)
        for event in told:
            await self._send(event)
        now = asyncio.get_running_loop().time()
        ended = self.seen.ended != self.ended
        if self.seen.running:
            self.again_at = None  # who has asked for this run must not take that end for its own
        due = self.again_at is not None and now >= self.again_at
        if ended or due or self._is_news():
            await self._tell_state()
            self.again_at = now + AGAIN_S if ended and self.seen.run_s < AGAIN_S and not self.seen.running else None

    def _is_news(self) -> bool:
        status = self.seen.execution_status
        return status != self.status and (status in ("running", "error") or self.status == "running")

    async def _tell_state(self) -> None:
        self.ended, self.status = self.seen.ended, self.seen.execution_status
        agent = await self.place.agent(self.seen)
        frame = dict(self.seen.full_state(agent, self.node.clock.now()))
        frame["value"] = info(self.place, self.seen, agent)
        await self._send(frame)

    async def _send(self, frame: JsonObject) -> None:
        """:raises WebSocketDisconnect: it is gone, or has taken nothing for too long."""
        slow_s = self.place.bounds.slow_s
        try:
            async with asyncio.timeout(slow_s):
                await self.socket.send_text(json.dumps(frame, ensure_ascii=False, separators=(",", ":")))
        except TimeoutError:
            to_log(ReaderCut(str(self.socket.path_params["id"]), slow_s))
            raise WebSocketDisconnect from None
        except RuntimeError:
            raise WebSocketDisconnect from None


def is_key(given: object, key: str) -> bool:
    """Takes the same time whatever is wrong."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), key.encode())


def _frame(text: str) -> dict[str, Any]:
    value: Any = read_json(text.encode(errors="replace"))
    if not isinstance(value, dict):
        raise InvalidInputError("frame", "must be a JSON object", "correct it")
    return cast("dict[str, Any]", value)
