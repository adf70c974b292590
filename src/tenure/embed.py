"""Tenure inside a program of yours: :class:`Node` takes what you have at hand, a URL and a function."""

from __future__ import annotations

import dataclasses
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import unquote

from tenure import node as _node
from tenure.abc import (
    Accepted,
    AgentLoop,
    Creation,
    Deleted,
    Duplicate,
    KeyReused,
    Refused,
    Store,
    Submit,
    TooLarge,
    Unknown,
)
from tenure.config import Config
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    InvalidInputError,
    UnknownConversationError,
)
from tenure.journal import Command, Delivery
from tenure.loops import function_loop, parse_agents
from tenure.runtimes import open_provider
from tenure.server.watch import Watch, read
from tenure.stores import open_store
from tenure.vault import Keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tenure.abc import AgentFunction, RuntimeProvider
    from tenure.journal import Event, JsonObject

POLL_S = 1.0
"""How long a reader trusts that no hint means no event."""


class Node(_node.Node):
    """A node of the cluster, inside your event loop: ``async with tenure.Node(store="sqlite:///x.db", agents={…})``.

    `store` is a URL or a ``Store``; `agents` maps names to ``async def agent(turn)`` or to agent loops, or lists what
    ``--agent`` takes. Everything else follows from `config`, which is read from the environment if it is not given.

    :raises InvalidInputError: no such store, loop or runtime; names the setting.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        agents: Mapping[str, AgentLoop | AgentFunction] | Sequence[str] = ("scripted",),
        *,
        provider: RuntimeProvider | None = None,
        config: Config | None = None,
        keys: Keys | None = None,
        **rest: Any,
    ) -> None:
        given = config or Config.from_environment(os.environ, store=store if isinstance(store, str) else None)
        if not isinstance(store, Store):
            store = open_store(store or given.store)
        settled = dataclasses.replace(given, store=store.url or "memory:")
        self._own_provider = provider is None
        super().__init__(
            store,
            loops(agents, settled),
            provider=provider or _open_provider(settled),
            config=settled,
            keys=keys or Keys.load(os.environ, database(settled.store)),
            **rest,
        )

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def _close(self) -> None:
        try:
            await super()._close()
        finally:
            if self._own_provider:
                await self.provider.close()

    async def send(
        self,
        conversation_id: str,
        message: str | JsonObject,
        *,
        key: str | None = None,
        user_id: str | None = None,
        agent: str | None = None,
    ) -> int:
        """Send a message, to a new or a known conversation, whoever owns it; returns its seq once it is durable.

        The same `key` is the same message, for ever and on every node: give one if you may have to repeat this.

        :raises CommandRefusedError: not accepted, nothing was changed; carries the reason.
        :raises UnknownConversationError: another user's. :raises ConversationDeletedError:
        :raises StoreUnavailableError: no answer: repeat it with the same key.
        """
        body = cast("JsonObject", {"text": message} if isinstance(message, str) else message)
        command = Command("message", body, key or secrets.token_hex(8), Delivery.TURN)
        creation = Creation(agent=agent, default_agent=self.default_agent, user_id=user_id)
        answer = await self.submit(Submit(conversation_id, command, creation))
        match answer:
            case Accepted(seq) | Duplicate(seq):
                return seq
            case Refused("conversation-exists"):
                raise UnknownConversationError(conversation_id)
            case Refused(reason):
                raise CommandRefusedError(conversation_id, reason, f"not accepted: {reason}")
            case KeyReused(seq):
                raise CommandRefusedError(
                    conversation_id, "key-reused", f"the key stands for another message, at {seq}; use a new one"
                )
            case TooLarge(_, size, limit):
                raise InvalidInputError("message", f"has {size} bytes, above {limit}", "send a reference instead")
            case Deleted():
                raise ConversationDeletedError(conversation_id)
            case Unknown():
                raise UnknownConversationError(conversation_id)

    async def events(self, conversation_id: str, after: int = 0, *, until: str | None = None) -> AsyncIterator[Event]:
        """The journal from `after` on, as it grows, whoever owns the conversation; ends behind an event of kind `until`.

        :raises UnknownConversationError: there is none. :raises ConversationDeletedError: there is none any more.
        """
        watch = Watch(self.store, conversation_id)
        listening = self.tasks.start(watch.listen(), "events")
        try:
            while True:
                reading = await read(self.store, conversation_id, after, 1000)
                for event in reading.events:
                    yield event
                    if event.kind == until:
                        return
                    after = event.seq
                if not reading.events:
                    await watch.next(POLL_S)
        finally:
            listening.cancel()


def loops(agents: Mapping[str, AgentLoop | AgentFunction] | Sequence[str], config: Config) -> dict[str, AgentLoop]:
    """What a node can run, by name, from functions, loops, or the specs of ``--agent``.

    :raises InvalidInputError: naming `agent`.
    """
    if not hasattr(agents, "items"):
        return parse_agents(cast("Sequence[str]", agents), config)
    given = cast("Mapping[str, AgentLoop | AgentFunction]", agents)
    return {name: one if isinstance(one, AgentLoop) else function_loop(one, config) for name, one in given.items()}


def database(url: str) -> Path | None:
    """The file of an embedded store; null for a server."""
    scheme, _, rest = url.partition(":///")
    return Path(unquote(rest.partition("?")[0])).absolute() if scheme == "sqlite" else None


def _open_provider(config: Config) -> RuntimeProvider:
    return open_provider(
        config.runtime, root=workspaces(config), token=config.runtime_token, allows=config.allows_folder
    )


def workspaces(config: Config) -> Path:
    """Where runtimes keep their files: as set, else beside the database, else in the user's state folder."""
    if config.workspaces:
        return Path(config.workspaces).expanduser().absolute()
    file = database(config.store)
    if file is not None:
        return file.with_name(f"{file.name}.workspaces")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tenure"
