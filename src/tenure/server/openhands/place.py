"""What every part of the facade stands on: the node, its OpenHands agents, and how conversations are found and read."""

from __future__ import annotations

import re
import secrets
import uuid
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast, final

from tenure.abc import Accepted, Amended, Deleted, Duplicate, Stale, Submit, Unknown
from tenure.errors import ConversationDeletedError, InvalidInputError, JournalError, UnknownConversationError
from tenure.journal import Command, Delivery
from tenure.loops.openhands import OpenHandsLoop
from tenure.loops.openhands.projection import Projection
from tenure.server.commands import accepted
from tenure.server.problems import Problem
from tenure.server.strict import read_strictly
from tenure.server.watch import find, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request

    from tenure.conversation import Record
    from tenure.journal import JsonObject
    from tenure.node import Node
    from tenure.server.watch import Watches
    from tenure.server.wire import Bounds

KEPT = 256
"""Projections that a node keeps, so that who asks every second does not read the same events each time."""
TRIES = 5
"""How often a compare-and-swap is tried again when somebody else was faster."""
PAGE = 200
_ID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")
_MISSING = {"loop", "agent"}


@final
class Place:
    """One node's facade. It keeps nothing that another node would need."""

    def __init__(self, node: Node, watches: Watches, bounds: Bounds) -> None:
        self.node = node
        self.watches = watches
        self.bounds = bounds
        self.loops = {name: loop for name, loop in node.agents.items() if isinstance(loop, OpenHandsLoop)}
        self._seen: OrderedDict[str, Projection] = OrderedDict()
        self._agents: dict[str, JsonObject] = {}

    # --- which ------------------------------------------------------------------------------------------------------

    async def record(self, text: str) -> Record:
        """The conversation that a path names, in either form of a UUID.

        :raises UnknownConversationError: none, a deleted one, or no OpenHands agent's.
        """
        conversation = conversation_id(text)
        try:
            record = await find(self.node.store, conversation)
        except ConversationDeletedError:
            raise UnknownConversationError(conversation) from None
        if record.agent not in self.loops:
            raise UnknownConversationError(conversation)
        return record

    async def projection(self, conversation: str) -> Projection:
        """What its journal says now. Shared: read it before the next await.

        :raises UnknownConversationError: there is none, or it was deleted.
        """
        seen = self._seen.pop(conversation, None) or Projection()
        seen, _ = await self.read_on(conversation, seen)
        self._seen[conversation] = seen
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return seen

    async def read_on(
        self, conversation: str, seen: Projection, *, every: bool = False
    ) -> tuple[Projection, list[JsonObject]]:
        """Move a projection on to the head; and what is new to a client. Of a rewound store it begins anew.

        A snapshot saves the reading of what it covers: whoever tells `every` event must not leap to it.

        :raises UnknownConversationError: there is none, or it was deleted.
        """
        told: list[JsonObject] = []
        before = seen.seq
        while True:
            try:
                reading = await read(self.node.store, conversation, seen.seq, PAGE, snapshot=not every)
                if reading.record.head < seen.seq:
                    raise JournalError("the store was rewound")
                told += seen.take(reading)
            except ConversationDeletedError:
                raise UnknownConversationError(conversation) from None
            except JournalError:
                if seen.seq == 0:
                    raise
                seen, told = Projection(), []
                continue
            if seen.seq >= reading.record.head:
                break
        if every and seen.seq != before:
            reading = await read(self.node.store, conversation, seen.seq, 1, snapshot=True)
            seen.loop = reading.snapshot and reading.snapshot.loop
        return seen, told

    async def agent(self, seen: Projection) -> JsonObject | None:
        """The agent to show for a conversation that names none and has not run yet."""
        record = seen.record
        assert record is not None, "read before it is told"
        if "agent" in record.settings or seen.base:
            return None
        if record.conversation not in self._agents:
            if len(self._agents) > KEPT:
                self._agents.clear()
            self._agents[record.conversation] = await self.loops[record.agent].shown_agent(record.settings)
        return self._agents[record.conversation]

    # --- writing ----------------------------------------------------------------------------------------------------

    async def submit(self, conversation: str, kind: str, body: JsonObject, delivery: Delivery, key: str = "") -> int:
        """Hand a command to the journal; its seq. Returns when it is durable, whoever owns the conversation.

        :raises ConversationError: it was refused. :raises StoreUnavailableError: no answer.
        """
        command = Command(kind, body, key or secrets.token_hex(16), delivery)
        result = accepted(conversation, await self.node.submit(Submit(conversation, command)))
        assert isinstance(result, Accepted | Duplicate)
        return result.seq

    async def amend(self, record: Record, change: Callable[[Record], Awaitable[JsonObject]]) -> Record:
        """Change title, metadata or settings by what `change` makes of the record as it is now.

        :raises UnknownConversationError: deleted meanwhile. :raises Problem: others are always faster.
        """
        for _ in range(TRIES):
            result = await self.node.store.amend(record.conversation, record.version, await change(record))
            match result:
                case Amended(record):
                    return record
                case Stale(record):
                    continue
                case Deleted() | Unknown():
                    raise UnknownConversationError(record.conversation)
        raise Problem(503, "busy", "Others are always faster", "the conversation changes too fast; repeat it")


def conversation_id(text: str) -> str:
    """The id in both APIs: a UUID with dashes in lower case.

    :raises UnknownConversationError: it is none.
    """
    if not _ID.fullmatch(text):
        raise UnknownConversationError(text[:128])
    return str(uuid.UUID(text))


async def body_of(request: Request) -> dict[str, Any]:
    """A request's JSON object, read as strictly as everywhere; empty without a body.

    :raises InvalidInputError: it is none.
    """
    return (await body_and_bytes(request))[0]


async def body_and_bytes(request: Request) -> tuple[dict[str, Any], bytes]:
    """The same, with the bytes that it came in, to be sent on.

    :raises InvalidInputError: it is none.
    """
    whole = await read_strictly(request)
    value: Any = await whole.json()
    if not isinstance(value, dict | None):
        raise InvalidInputError("body", "must be a JSON object", "send one")
    return cast("dict[str, Any]", value or {}), await whole.body()
