"""The life of a live loop: commands in order, one turn at a time, until it is idle, stopped or handed over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, final

from tenure.abc import Reason
from tenure.conversation import end_turn, overtaken, settle_urgent, turn_id
from tenure.errors import OwnershipLostError, TurnDivergedError
from tenure.journal import (
    CORE_COMMANDS,
    CommandSettled,
    Delivery,
    Event,
    Json,
    Outcome,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    draft,
)
from tenure.node.deltas import Deltas
from tenure.node.turn import LiveTurn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import AgentLoop, LiveLoop
    from tenure.conversation import Fold
    from tenure.journal import Draft
    from tenure.node.tenure import Tenure

log = logging.getLogger("tenure.turns")

CUT_GRACE_S = 5.0
"""How long a cancelled turn, or an open call at a hand-over, is waited for."""
ERROR_CHARS = 2000


@final
class Turns:
    """What a tenure does while its loop is live."""

    def __init__(self, tenure: Tenure, agent: AgentLoop, live: LiveLoop) -> None:
        self._tenure = tenure
        self._live = live
        self._timeout_s = agent.turn_timeout_s or tenure.means.config.turn_timeout_s
        self._deltas = Deltas(tenure)
        self._begun: str | None = None
        """The turn that this tenure has started or resumed."""
        self._turn: LiveTurn | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> Reason:
        """Work until there is a reason to let go. At the end no task of the loop runs.

        :raises OwnershipLostError: the tenure is over and cannot be released.
        """
        deltas = self._tenure.means.tasks.start(self._deltas.publish(), "deltas")
        try:
            return await self._run()
        finally:
            deltas.cancel()
            for task in self._asked.values():
                task.cancel()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task], timeout=CUT_GRACE_S)

    async def _run(self) -> Reason:
        tenure = self._tenure
        while True:
            tenure.poked.clear()
            await tenure.catch_up()
            await self._collect()
            await self._hear_urgent()
            await self._yield_to_newcomer()
            if tenure.fold.stopped and tenure.fold.turn is None:
                return Reason.STOPPED
            if tenure.leaving:
                if await self._left():
                    return Reason.DRAINED
            else:
                await self._begin()
            if not tenure.poked.is_set() and not await self._something_came():
                return Reason.IDLE

    async def _something_came(self) -> bool:
        """Wait for a poke; false when the conversation has been idle for long enough."""
        busy = self._task is not None and not self._waits_for_a_person()
        try:
            async with asyncio.timeout(None if busy or self._asked else self._tenure.means.config.idle_s):
                await self._tenure.poked.wait()
            return True
        except TimeoutError:
            return self._tenure.poked.is_set()

    def _waits_for_a_person(self) -> bool:
        turn = self._tenure.fold.turn
        return turn is not None and turn.waiting

    # --- turns ------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Resume the open turn, or start one on the next command that waits."""
        tenure = self._tenure
        if self._task is not None:
            return
        turn = tenure.fold.turn
        if turn is not None and not turn.waiting:
            if self._begun != turn.id:
                await tenure.append([draft(TurnResumed(turn.attempt + 1), turn.id)])
            await self._start_task()
        elif turn is None and tenure.fold.queue:
            first = tenure.fold.queue[0]
            await tenure.append([draft(TurnStarted((first.seq,)), turn_id(first.seq))])
            await self._start_task()

    async def _start_task(self) -> None:
        tenure = self._tenure
        turn = tenure.fold.turn
        if turn is None:
            return
        journal = await tenure.events(turn.seq, tenure.fold.seq) if tenure.fold.seq > turn.seq else []
        past = tuple(e for e in journal if e.turn == turn.id)
        commands = tuple(tenure.fold.pending[c] for c in turn.commands)
        self._begun = turn.id
        self._turn = LiveTurn(tenure, turn, commands, past, self._deltas)
        self._task = tenure.means.tasks.start(self._take(self._turn), f"turn {turn.id}")
        self._task.add_done_callback(lambda _: tenure.poke())

    async def _take(self, turn: LiveTurn) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self._live.turn(turn)

    async def _collect(self) -> None:
        """A turn's task has ended: its end and its settlement are one append."""
        task, turn = self._task, self._tenure.fold.turn
        if task is None or not task.done():
            return
        self._task = self._turn = None
        if turn is None:
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, OwnershipLostError):
            self._tenure.insist()
        await self._tenure.append(lambda fold: end_turn(fold, _end(turn.commands, error)))

    async def _cut(self) -> None:
        """Cancel the turn's task and wait until it has ended; one that ignores it finds its turn closed."""
        task, self._task, self._turn = self._task, None, None
        if task is None:
            return
        task.cancel()
        _, running = await asyncio.wait([task], timeout=CUT_GRACE_S)
        if running:
            log.error("the agent ignores cancellation", extra={"conversation": self._tenure.conversation_id})

    async def _yield_to_newcomer(self) -> None:
        """Policy ``interrupt``: a message that came during the open turn ends it."""
        by, turn = overtaken(self._tenure.fold), self._tenure.fold.turn
        if by is not None and turn is not None:
            await self._cut()
            end = TurnInterrupted(turn.commands, by, "overtaken by a message")
            await self._tenure.append(lambda fold: end_turn(fold, end))

    # --- commands that do not wait ----------------------------------------------------------------------------------

    async def _hear_urgent(self) -> None:
        while commands := [c for c in self._tenure.fold.urgent if c.seq not in self._asked]:
            for command in commands:
                if command.kind in CORE_COMMANDS and command.kind != "message":
                    await self._settle(command)
                else:
                    self._asked[command.seq] = self._tenure.means.tasks.start(self._ask(command), "command")

    async def _settle(self, command: Event) -> None:
        """A command of the core, with the same drafts that a new owner would write."""
        tenure = self._tenure
        if any(d.kind == TurnInterrupted.kind for d in settle_urgent(tenure.fold, command)):
            await self._cut()
        written: list[Draft] = []

        def drafts(state: Fold) -> Sequence[Draft]:
            written[:] = settle_urgent(state, command)
            return written

        await tenure.append(drafts)
        for one in written:
            if one.kind == TurnResumed.kind and self._turn is not None:
                self._turn.answered(str(one.body["ask"]), one.body["answer"])

    async def _ask(self, command: Event) -> None:
        """A command that only the loop knows: its answer settles it."""
        tenure = self._tenure
        try:
            async with asyncio.timeout(tenure.means.config.call_timeout_s):
                answer = await self._live.now(command)
            settled = CommandSettled(command.seq, Outcome.DONE if answer is None else Outcome.ANSWERED, answer)
        except NotImplementedError:
            if command.kind == "message" and command.delivery is Delivery.NOW:
                return  # a loop that cannot be steered takes the message after its turn
            settled = CommandSettled(command.seq, Outcome.REFUSED, {"reason": "this agent has no use for it"})
        except OwnershipLostError:
            return
        except Exception as error:
            settled = CommandSettled(command.seq, Outcome.REFUSED, _described(error))
        await tenure.append([draft(settled)])
        self._asked.pop(command.seq, None)
        tenure.poke()

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def _left(self) -> bool:
        """Draining: true when nothing of the loop runs any more. At the deadline, at the next step boundary."""
        if self._task is None or self._waits_for_a_person():
            await self._cut()
            return True
        if not self._tenure.handing_over:
            return False
        try:
            async with asyncio.timeout(CUT_GRACE_S):
                while (turn := self._tenure.fold.turn) is not None and turn.calls and not self._task.done():
                    await asyncio.wait(
                        [self._task, asyncio.ensure_future(self._tenure.moved.wait())],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
        except TimeoutError:
            log.warning("handing over in mid-call", extra={"conversation": self._tenure.conversation_id})
        if self._task.done():
            return False
        await self._cut()
        return True


def _end(commands: tuple[int, ...], error: BaseException | None) -> TurnCompleted | TurnFailed:
    match error:
        case None:
            return TurnCompleted(commands)
        case TimeoutError():
            return TurnFailed(commands, "timeout", _described(error))
        case TurnDivergedError():
            return TurnFailed(commands, "diverged", _described(error))
        case _:
            return TurnFailed(commands, "error", _described(error))


def _described(error: BaseException) -> Json:
    return {"type": type(error).__name__, "message": str(error)[:ERROR_CHARS]}
