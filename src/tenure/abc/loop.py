"""The contract of agent loops."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tenure.abc.runtime import Runtime
    from tenure.abc.values import Appended
    from tenure.journal import Delivery, Draft, Event, Json, JsonObject


# --- agent loops ----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A message as an agent sees it."""

    text: str
    content: Json
    seq: int
    key: str | None


class Turn(Protocol):
    """One turn, as an agent loop sees it. Every method that writes goes through the fence.

    After the loss of the conversation each of them raises :class:`~tenure.errors.OwnershipLostError`.
    """

    @property
    def id(self) -> str:
        """The turn's name, the same in every attempt."""
        ...

    @property
    def conversation_id(self) -> str: ...

    @property
    def commands(self) -> tuple[Event, ...]:
        """The commands that this turn settles."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages among them."""
        ...

    @property
    def past(self) -> tuple[Event, ...]:
        """What this turn has journaled in earlier attempts, in order; empty in the first."""
        ...

    @property
    def settings(self) -> JsonObject: ...

    @property
    def runtime(self) -> Runtime: ...

    @property
    def epoch(self) -> int: ...

    @property
    def attempt(self) -> int:
        """1, and one more with each owner that takes the turn over."""
        ...

    @property
    def resumed(self) -> bool: ...

    @property
    def lost(self) -> bool:
        """Whether the conversation is no longer ours. Looks at no store; the fence does."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether this node hands the conversation over: a turn that is cancelled now is not ended but goes on elsewhere."""
        ...

    async def history(self, after: int = 0) -> Sequence[Event]:
        """The journal before this turn and after the seq `after`, oldest first."""
        ...

    async def journal(self, drafts: Sequence[Draft], state: JsonObject | None = None) -> Appended:
        """Append events of this turn; `state` replaces the loop's part of the snapshot. Returns when durable.

        Batches stand in the journal in the order in which they were handed over. One that was handed over is written
        also when its caller is cancelled meanwhile.

        :raises OwnershipLostError: refused: stop at once. :raises JournalError: the events break the rules of calls.
        :raises InvalidInputError: an event is too large, or has a kind of the core that loops may not write.
        """
        ...

    def journal_blocking(self, drafts: Sequence[Draft], timeout_s: float, state: JsonObject | None = None) -> Appended:
        """The same from a thread; not from the event loop.

        :raises TimeoutError: no answer in time; the outcome is unknown and the tenure is over.
        """
        ...

    async def ask(self, ask: str, body: Json) -> Json:
        """Wait for a person's ``answer``, under the name `ask`. The conversation may be passivated meanwhile: then
        this is cancelled, and a later owner resumes the turn with the answer in :attr:`past`."""
        ...

    def masked(self, text: str) -> str:
        """The text without the secrets of the conversation, as it is journaled. From any thread. Ask before you shorten a
        text: of a secret that was cut in two, the journal would keep a half."""
        ...

    def delta(self, body: JsonObject) -> None:
        """Hand something ephemeral to whoever watches; may be dropped, never blocks."""
        ...


class LiveLoop(Protocol):
    """A loop of one conversation, alive from phase 3 to passivation."""

    async def turn(self, turn: Turn) -> None:
        """Do a turn. Returning completes it; raising fails it, and the conversation takes the next message.

        May be cancelled: by ``interrupt`` and ``stop``, by drain, by the loss of the conversation.
        """
        ...

    async def now(self, command: Event) -> Json:
        """Take a command that does not wait, maybe during :meth:`turn`; the result is the answer to it.

        :raises NotImplementedError: the loop has no use for it: it is settled as refused.
        """
        ...


class Place(Protocol):
    """What a loop gets when it is opened: the conversation that it serves, held by this node."""

    @property
    def conversation_id(self) -> str: ...
    @property
    def settings(self) -> JsonObject: ...
    @property
    def epoch(self) -> int: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def state(self) -> JsonObject | None:
        """The loop's own part of the last snapshot."""
        ...

    async def history(self, after: int = 0) -> Sequence[Event]:
        """The journal after the seq `after` up to now, oldest first."""
        ...

    def report_status(self, word: str | None) -> None:
        """The loop's own word for its state (``agent_status``); goes out with the next append."""
        ...

    def credentials(self) -> Mapping[str, str]:
        """The values of the credentials that the conversation's settings ask for, by name, as the runtime has them now.
        From any thread. They are masked in all that is journaled; let them go nowhere else."""
        ...

    def hide(self, values: Iterable[str]) -> None:
        """Mask these, too, in all that this conversation journals, and in the node's logs.

        :raises ValueError: one of them is no secret: empty, or too long.
        """
        ...


class AgentLoop(abc.ABC):
    """The code that turns commands into events. One per agent name; opened once per tenure."""

    commands: Mapping[str, Delivery] = {}
    """Kinds of commands beyond the core's that this loop takes, each with its fixed delivery."""
    turn_timeout_s: float | None = None
    """How long a turn may last; null: the node's setting."""
    check_blocks = False
    """Whether :meth:`check` may take long (imports, downloads): a server then calls it in a thread."""

    @abc.abstractmethod
    def check(self, settings: JsonObject) -> JsonObject:
        """The settings as they are stored, checked at creation.

        :raises InvalidInputError: names the field, the limit and the remedy.
        """

    @abc.abstractmethod
    def open(self, place: Place) -> AbstractAsyncContextManager[LiveLoop]:
        """Bring the loop to life for one conversation; left at passivation, drain or loss."""

    async def ready(self) -> None:  # noqa: B027 - optional
        """Return when the loop can be opened (imports done); ``/readyz`` waits for it. Default: at once."""


type AgentFunction = Callable[..., Awaitable[object]]
"""``async def agent(turn)``: see ``tenure.loops.function``."""
