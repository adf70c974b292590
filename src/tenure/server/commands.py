"""What clients ask of a conversation: message, start, stop, interrupt, answer, takeover.

A command is *accepted* when it is durable (202) and *settled* when its effect stands in the journal; two words, two
moments. Who asks may wait for the second, or stream up to it. The same key is the same command, on every node.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, assert_never, final

from fastapi import Request, Response

from tenure.abc import Accepted, Deleted, Duplicate, KeyReused, Refused, Submit, Submitted, TooLarge, Unknown
from tenure.conversation import Status
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ProvisioningError,
    StoreUnavailableError,
    UnknownConversationError,
)
from tenure.journal import CORE_COMMANDS, Command, JsonObject
from tenure.lease import Epoch
from tenure.server.failures import start_failure
from tenure.server.stream import EventStream, Place
from tenure.server.strict import the_key, the_user, too_large
from tenure.server.watch import Settlement, Watch, Watches, find, read
from tenure.server.wire import (
    Answer,
    Bounds,
    ForUser,
    InPath,
    KeyHeader,
    NewMessage,
    Nothing,
    Stop,
    Takeover,
    WaitS,
    event_text,
    json_reply,
)

if TYPE_CHECKING:
    from tenure.journal import Json
    from tenure.node import Node

MOST_EVENTS = 1000
"""A reply that waited for a turn carries the last so many of its events."""

_WORDS = {
    "conversation-stopped": "is stopped; start it first",
    "turn-open": "has an open turn, and refuses messages meanwhile; wait for its end, or interrupt it",
    "too-many-unsettled": "has too many unsettled commands; wait until some are settled, then send it again",
}


def accepted(conversation: str, result: Submitted) -> Accepted | Duplicate:
    """What was accepted, now or before.

    :raises ConversationError: what was not, and why. :raises Problem: too large.
    """
    match result:
        case Accepted() | Duplicate():
            return result
        case KeyReused(seq):
            words = f"the key stands at {seq} of conversation {conversation} with another body; use a new key"
            raise CommandRefusedError(conversation, "key-reused", words)
        case Refused("conversation-exists"):
            raise ConversationExistsError(conversation)
        case Refused(reason):
            words = f"conversation {conversation} {_WORDS.get(reason, f'refuses this: {reason}')}"
            raise CommandRefusedError(conversation, reason, words)
        case Deleted():
            raise ConversationDeletedError(conversation)
        case Unknown():
            raise UnknownConversationError(conversation)
        case TooLarge(_, size, limit):
            raise too_large("body", f"the event has {size} bytes, at most {limit} can be kept")
        case _:
            assert_never(result)


@final
class Commands:
    """The routes that send a command, and the one that takes over."""

    def __init__(self, node: Node, watches: Watches, bounds: Bounds) -> None:
        self.node = node
        self.watches = watches
        self.bounds = bounds

    async def message(
        self, request: Request, conversation: InPath, body: NewMessage,
        user_id: ForUser = None, wait_s: WaitS = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """Send a message; it starts the conversation's agent loop by itself."""
        user = the_user(user_id, body.user_id)
        command = _command("message", body.command_body(), the_key(body.key, key))
        return await self._send(request, conversation, user, command, wait_s)

    async def interrupt(
        self, request: Request, conversation: InPath, body: Nothing | None = None,
        user_id: ForUser = None, wait_s: WaitS = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """End the open turn; messages that wait are taken next."""
        body = body or Nothing()
        command = _command("interrupt", {}, the_key(body.key, key))
        return await self._send(request, conversation, the_user(user_id, body.user_id), command, wait_s)

    async def stop(
        self, request: Request, conversation: InPath, body: Stop | None = None,
        user_id: ForUser = None, wait_s: WaitS = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """Stop the conversation until a start. Works without a living owner, and while the runtime's provider is down."""
        body = body or Stop()
        command = _command("stop", {"queue": True} if body.queue else {}, the_key(body.key, key))
        return await self._send(request, conversation, the_user(user_id, body.user_id), command, wait_s)

    async def answer(
        self, request: Request, conversation: InPath, body: Answer,
        user_id: ForUser = None, wait_s: WaitS = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """Answer what a turn waits for; the turn goes on, on whichever node."""
        user = the_user(user_id, body.user_id)
        command = _command("answer", body.command_body(), the_key(body.key, key))
        return await self._send(request, conversation, user, command, wait_s)

    async def start(
        self, conversation: InPath, body: Nothing | None = None,
        user_id: ForUser = None, here: bool = False, wait_s: WaitS = None, key: KeyHeader = None,
    ) -> Response:  # fmt: skip
        """Ask for a live agent loop, whoever owns it, and wait for it (15 s). The wish is durable: it outlives this
        request and this node. With `here`, on this node or not at all.
        """
        body = body or Nothing()
        user = the_user(user_id, body.user_id)
        command = _command("start", {}, the_key(body.key, key))
        if user is not None or here:
            await find(self.node.store, conversation, user)
        if here:
            return json_reply(200, (await self.node.maybe_start_agent_loop(conversation)).as_json())
        submitted = accepted(conversation, await self.node.submit(Submit(conversation, command)))
        wait_s = self.bounds.start_wait_s if wait_s is None else wait_s
        return await self._started(conversation, submitted.seq, wait_s)

    async def progress(self, conversation: InPath, user_id: ForUser = None) -> Response:
        """How the start does, on whichever node: the step and since when, and why the last try failed."""
        if user_id is not None:
            await find(self.node.store, conversation, user_id)
        return json_reply(200, (await self.node.start_info(conversation)).as_json())

    async def takeover(self, conversation: InPath, body: Takeover | None = None, user_id: ForUser = None) -> Response:
        """Make this node the owner by force, if nobody else claims it meanwhile: with `epoch`, since that one; without,
        since this request.
        """
        body = body or Takeover()
        record = await find(self.node.store, conversation, the_user(user_id, body.user_id))
        seen = record.epoch if body.epoch is None else Epoch(body.epoch)
        info = await self.node.take_over(conversation, seen)
        return json_reply(200, info.as_json())

    async def _send(
        self, request: Request, conversation: str, user: str | None, command: Command, wait_s: float | None
    ) -> Response:
        if user is not None:
            await find(self.node.store, conversation, user)

        async def submit() -> Accepted | Duplicate:
            return accepted(conversation, await self.node.submit(Submit(conversation, command)))

        async def start() -> Place:
            submitted = await submit()
            return Place(submitted.seq - 1, until=submitted.seq, announced=isinstance(submitted, Accepted))

        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStream(self.watches, self.bounds, conversation, start)
        return await self._settled(conversation, await submit(), wait_s)

    async def _settled(self, conversation: str, submitted: Accepted | Duplicate, wait_s: float | None) -> Response:
        seq, duplicate = submitted.seq, isinstance(submitted, Duplicate)
        settlement = Settlement(self.node.store, conversation, seq)
        settled = False
        if wait_s is not None:
            async with self.watches.watch(conversation) as watch:
                settled = await settlement.wait(watch, wait_s, self.bounds.poll_s)
        elif duplicate:
            settled = await settlement.found()
        parts: dict[str, Json] = {"seq": seq, "duplicate": duplicate, "settled": settled}
        if wait_s is None or not settled:
            return json_reply(202, parts)
        events, truncated = await self._turn_of(settlement)
        parts["outcome"] = settlement.outcome
        if truncated:
            parts["truncated"] = True
        return json_reply(200, parts, events)

    async def _turn_of(self, settlement: Settlement) -> tuple[list[str], bool]:
        """The events of the turn that settled the command, the last ones if there are many."""
        end = settlement.event
        assert end is not None, "only asked for when it was found"
        if end.turn is None:
            return [event_text(end)], False
        kept: deque[str] = deque()
        size, truncated, after = 0, False, settlement.command
        while after < end.seq:
            reading = await read(self.node.store, settlement.conversation, after, min(100, end.seq - after))
            if not reading.events:
                break
            for event in reading.events:
                if event.turn == end.turn:
                    kept.append(event_text(event))
                    size += len(kept[-1])
                while len(kept) > MOST_EVENTS or (size > self.bounds.page_bytes and len(kept) > 1):
                    size, truncated = size - len(kept.popleft()), True
            after = reading.events[-1].seq
        return list(kept), truncated

    async def _started(self, conversation: str, seq: int, wait_s: float) -> Response:
        """200 as soon as a living owner's loop has started; 202 when the wait ends first."""
        settlement = Settlement(self.node.store, conversation, seq)
        async with self.watches.watch(conversation) as watch:
            try:
                async with asyncio.timeout(wait_s):
                    started = await self._wait_for_loop(watch, settlement)
            except TimeoutError:
                started = False
        info = (await self.node.info(conversation)).as_json()
        if started:
            return json_reply(200, info)
        failure = await self._failure(settlement)
        return json_reply(202, info if failure is None else {**info, "failure": failure.reason})

    async def _wait_for_loop(self, watch: Watch, settlement: Settlement) -> bool:
        while not watch.closed:
            try:
                record = await find(self.node.store, settlement.conversation)
                status, owner = await self.node.describe(record)
                if await settlement.found():
                    if owner is not None and record.started:
                        return True
                    # Nobody owns it, nothing is wanted, and it was settled: nobody will try again by himself.
                    failure = await self._failure(settlement) if status in (Status.FAILED, Status.IDLE) else None
                    if failure is not None:
                        raise failure
            except StoreUnavailableError:
                pass
            await watch.next(self.bounds.poll_s)
        return False

    async def _failure(self, settlement: Settlement) -> ProvisioningError | None:
        """The last start that failed since the command, with its provider's own reason."""
        return await start_failure(self.node.store, settlement.conversation, settlement.command)


def _command(kind: str, body: JsonObject, key: str | None) -> Command:
    return Command(kind, body, key or secrets.token_hex(16), CORE_COMMANDS[kind])
