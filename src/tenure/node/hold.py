"""A conversation held for somebody's own loop and tables: claimed, renewed with the node, released; loss is told.

::

    async with node.hold("c1") as lease:       # ConversationOwnedElsewhereError if another node has it
        ...                                    # yours, and nobody else's
                                               # lost, stopped or drained: the body is cancelled, OwnershipLostError

The node's loop gives such a conversation no turns, and its claimer leaves it alone. What it does for it is what needs no
loop: it settles a ``stop`` (which ends the hold), an ``interrupt``, an ``answer`` that nobody waits for. Messages wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal, Self, final

from tenure.abc import Reason
from tenure.conversation import Then, settle_urgent
from tenure.errors import CommandRefusedError, NodeUnavailableError, OwnershipLostError
from tenure.journal import CORE_COMMANDS, Command, Delivery, LoopStarted, draft
from tenure.lease import TenureState
from tenure.node import initiation
from tenure.node.initiation import Start, Wish
from tenure.node.tasks import settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.abc import FenceQuery
    from tenure.errors import ProvisioningError
    from tenure.lease import Lease
    from tenure.node.incarnation import Incarnation
    from tenure.node.tenure import Tenure


@final
class Hold:
    """An async context manager, to be entered once. Inside, it is the proof of ownership.

    What ends it early cancels the body: at its next ``await`` it gets ``CancelledError``, and ``async with`` raises
    :class:`OwnershipLostError` with the reason. Clean up quickly; code in threads looks at :attr:`lost`.
    """

    def __init__(self, incarnation: Callable[[], Awaitable[Incarnation]], wish: Wish, agent: str) -> None:
        self._incarnation = incarnation
        self._wish = wish
        self._agent = agent
        self._tenure: Tenure | None = None
        self._body: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._left = asyncio.Event()
        self._ended: str | None = None
        """Why the body was cut; null while it was not."""
        self.leaving = asyncio.Event()
        """The node is being drained: come to an end, or be cut when its time is over."""

    # --- what the body has ------------------------------------------------------------------------------------------

    @property
    def lease(self) -> Lease:
        """The lease itself: conversation, incarnation, epoch, token."""
        return self._entered.lease

    @property
    def conversation_id(self) -> str:
        return self.lease.conversation

    @property
    def epoch(self) -> int:
        """The fencing token: rises with every claim. Hand it to whatever compares tokens for you."""
        return self.lease.epoch

    @property
    def lost(self) -> bool:
        """Whether it is over. Looks at no store; from any thread."""
        return self._ended is not None or self._entered.lost

    def insist(self) -> None:
        """Go on only as the owner, as far as this process knows. Only the fence knows it for sure.

        :raises OwnershipLostError: it is over.
        """
        if self._ended is not None:
            raise self._loss()
        self._entered.insist()

    def fence(self) -> FenceQuery:
        """The fence as a query for a transaction of your own, where the store is in the same database.

        :raises InvalidInputError: the store has no tables; says what can be done instead.
        """
        return self._entered.means.store.fence_query(self.lease)

    @property
    def _entered(self) -> Tenure:
        if self._tenure is None:
            raise RuntimeError("not entered: write `async with node.hold(id) as lease`")
        return self._tenure

    # --- its life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._body is not None:
            raise RuntimeError("a hold is entered once: ask the node for another")
        self._body = asyncio.current_task()
        assert self._body is not None, "entered in a task"
        self._cancelled_before = self._body.cancelling()
        try:
            incarnation = await self._incarnation()
            self._tenure = await settled(await self._begin(incarnation))
            await settled(self._tenure.ready)
        except BaseException:
            self._left.set()  # a claim that is still under way is let go as soon as it is answered
            if self._ended is not None and self._body.uncancel() <= self._cancelled_before:
                raise self._loss() from None
            if self._tenure is not None and self._tenure.work is not None and not self._body.cancelling():
                await asyncio.wait([self._tenure.work])  # refused: nothing of it is held any more
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        assert self._body is not None, "entered"
        tenure = self._entered
        ours = self._ended is not None and self._body.uncancel() <= self._cancelled_before
        self._left.set()
        while tenure.work is not None and not tenure.work.done():
            try:
                await asyncio.wait([tenure.work])
            except asyncio.CancelledError:
                if not ours:  # the claim is let go in the background
                    raise
        if (ours and kind in (None, asyncio.CancelledError)) or (kind is None and tenure.state is TenureState.LOST):
            raise self._loss() from None

    def _loss(self) -> OwnershipLostError:
        tenure = self._entered
        try:
            tenure.insist()
        except OwnershipLostError as loss:
            if tenure.state is TenureState.LOST:
                return loss
        return OwnershipLostError(self.conversation_id, self.epoch, self._ended or "it was released")

    async def _begin(self, incarnation: Incarnation) -> asyncio.Task[Tenure]:
        """The claim, known to whoever else starts the conversation here; not cancelled with its caller."""
        conversation_id = self._wish.conversation_id
        if incarnation.means is None:
            raise NodeUnavailableError("this node is registering")
        while under_way := self._under_way(incarnation, conversation_id):
            await asyncio.wait([under_way])
        tenure, _ = await initiation.agreed(incarnation, conversation_id)
        if tenure is not None or self._under_way(incarnation, conversation_id):
            raise held_here(conversation_id)
        claiming = initiation.claim(incarnation, self._wish, self._agent, self._serve)
        task = incarnation.means.tasks.start(claiming, f"hold {conversation_id}")
        incarnation.starting[conversation_id] = Start(self._wish, task)
        task.add_done_callback(lambda _: incarnation.starting.pop(conversation_id, None))
        return task

    @staticmethod
    def _under_way(incarnation: Incarnation, conversation_id: str) -> asyncio.Task[Tenure] | asyncio.Task[None] | None:
        start = incarnation.starting.get(conversation_id)
        return incarnation.claiming.get(conversation_id) if start is None else start.task

    # --- what the node does meanwhile -------------------------------------------------------------------------------

    async def _serve(self, tenure: Tenure) -> Reason | Literal[Then.ABANDON] | ProvisioningError | NodeUnavailableError:
        """In the place of phases 2 and 3; the answer is how it is released."""
        try:
            await initiation.succeed(tenure)
            if tenure.restarts and not tenure.record.stopped:  # it had failed for good; stopped, it is refused below
                await tenure.submit(Command("start", {}, f"start-{tenure.lease.token}", Delivery.NOW))
            todo = await initiation.fold_and_settle(tenure)
            if todo.then is Then.ABANDON:
                return todo.then
            if todo.then is Then.GIVE_UP:
                return initiation.let_go(tenure, todo)
            if todo.then is Then.HALT:
                words = f"conversation {tenure.conversation_id} is stopped; start it first"
                tenure.ready.set_exception(CommandRefusedError(tenure.conversation_id, "conversation-stopped", words))
                return Reason.STOPPED
            if tenure.leaving:
                return NodeUnavailableError("this node is draining")
            await tenure.append([draft(LoopStarted(tenure.record.agent))])
            tenure.state = TenureState.LIVE
            if not tenure.ready.done():
                tenure.ready.set_result(True)
            return await self._watch(tenure)
        except (OwnershipLostError, asyncio.CancelledError):
            self._cut("ownership was lost")
            if tenure.ready.done() and not tenure.ready.cancelled() and tenure.ready.exception() is None:
                await self._left.wait()  # no node registers anew while an old loop runs (rule 11)
            raise

    async def _watch(self, tenure: Tenure) -> Reason:
        left = tenure.means.tasks.start(self._left.wait(), f"hold {tenure.conversation_id}")
        left.add_done_callback(lambda _: tenure.poke())
        reason = Reason.IDLE
        while not self._left.is_set():
            tenure.poked.clear()
            await tenure.catch_up()
            await _settle(tenure)
            if tenure.fold.stopped and self._cut("it was stopped"):
                reason = Reason.STOPPED
            if tenure.leaving:
                self.leaving.set()
            if tenure.handing_over and self._cut("the node is leaving"):
                reason = Reason.DRAINED
            await _poked(tenure)
        return reason

    def _cut(self, why: str) -> bool:
        """Cancel the body, once; whether this did."""
        if self._ended is not None or self._left.is_set():
            return False
        self._ended = why
        if self._body is not None:
            self._body.cancel(why)
        return True


async def _poked(tenure: Tenure) -> None:
    """Wait for a poke, or until it is time to look by oneself: a hold writes nothing, so no refusal would tell it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(tenure.means.config.ttl_s / 2):
            await tenure.poked.wait()


async def _settle(tenure: Tenure) -> None:
    """Commands of the core that need no loop."""
    for command in tenure.fold.urgent:
        if command.kind in CORE_COMMANDS and command.kind != "message":
            await tenure.append(lambda state, command=command: settle_urgent(state, command))


def held_here(conversation_id: str) -> CommandRefusedError:
    """A second hold or start at the node that holds it."""
    words = f"conversation {conversation_id} is held on this node already; wait for its end, or use that hold"
    return CommandRefusedError(conversation_id, "held-here", words)
