"""The life of a live loop: commands in order, one turn at a time, until it is idle, stopped or handed over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from tenure.abc import Reason
from tenure.conversation import end_turn, overtaken, refuse_urgent, settle_urgent, turn_id
from tenure.errors import OwnershipLostError, TurnDivergedError
from tenure.journal import (
    CORE_COMMANDS,
    CommandSettled,
    Event,
    Outcome,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    draft,
)
from tenure.node.deltas import Deltas
from tenure.node.reasons import described
from tenure.node.tasks import ended
from tenure.node.turn import LiveTurn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import AgentLoop, LiveLoop
    from tenure.conversation import Fold, OpenTurn
    from tenure.journal import Draft, Json
    from tenure.node.tenure import Tenure


CUT_GRACE_S = 5.0
"""How long a cancelled turn, or an open call at a hand-over, is waited for."""


@final
class Turns:
    """What a tenure does while its loop is live."""

    def __init__(self, tenure: Tenure, agent: AgentLoop, live: LiveLoop) -> None:
        self._tenure = tenure
        self._live = live
        self._timeout_s = agent.turn_timeout_s or tenure.means.config.turn_timeout_s
        self._deltas = tenure.deltas = Deltas(tenure)
        self._begun: str | None = None
        """The turn that this tenure has started or resumed."""
        self._turn: LiveTurn | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Task[None]] = {}
        """Commands that the loop was asked to take, each once."""
        self._cut_at: float | None = None

    async def run(self) -> Reason:
        """Work until there is a reason to let go. At the end no task of the loop runs.

        :raises OwnershipLostError: the tenure is over and cannot be released.
        """
        tenure = self._tenure
        tenure.credentials.tend()
        try:
            return await self._run()
        finally:
            turn = [self._task] if self._task is not None else []
            await self._end(*self._deltas.close(), *tenure.credentials.keepers, *self._asked.values(), *turn)

    async def _end(self, *tasks: asyncio.Task[None]) -> None:
        self._tenure.strays.update(tasks)  # at once: this wait may itself be cancelled
        await ended(tasks, CUT_GRACE_S)

    async def _run(self) -> Reason:
        tenure = self._tenure
        while True:
            tenure.poked.clear()
            await tenure.keep_up()
            await self._collect()
            await self._hear_urgent()
            await self._yield_to_newcomer()
            if self._halted():
                await self._refuse_the_rest()
                if self._halted():
                    return Reason.STOPPED
            if tenure.leaving:
                if await self._left():
                    return Reason.DRAINED
            else:
                await self._begin()
            if not tenure.poked.is_set() and not await self._something_came():
                return Reason.IDLE

    def _halted(self) -> bool:
        return self._tenure.fold.stopped and self._tenure.fold.turn is None

    async def _something_came(self) -> bool:
        """Wait for a poke; false when the conversation has been idle for long enough."""
        idle_s = self._tenure.means.config.idle_s
        if not self._busy():
            self._tenure.rest()
        try:
            async with asyncio.timeout(self._call_grace_s() if self._busy() else idle_s):
                await self._tenure.poked.wait()
            return True
        except TimeoutError:
            return self._busy() or self._tenure.poked.is_set()

    def _busy(self) -> bool:
        """Something of the loop runs, or could: whoever has work is not idle."""
        return self._works() or self._tenure.fold.runnable

    def _works(self) -> bool:
        return (self._task is not None and not self._waits_for_a_person()) or bool(self._asking())

    def _waits_for_a_person(self) -> bool:
        turn = self._tenure.fold.turn
        return turn is not None and turn.waiting

    def _asking(self) -> set[int]:
        """Commands that the loop is answering just now."""
        return {seq for seq, task in self._asked.items() if not task.done()}

    # --- turns ------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Resume the open turn, or start one on the next command that waits."""
        tenure = self._tenure
        if self._task is not None:
            return
        turn = tenure.fold.turn
        if turn is not None and not turn.waiting:
            if self._begun != turn.id:
                trace = await self._trace_resumed(turn)
                await tenure.append([draft(TurnResumed(turn.attempt + 1, traceparent=trace), turn.id)])
            await self._start_task()
        elif turn is None and tenure.fold.queue:
            first = tenure.fold.queue[0]
            if first.seq in self._asking():
                return  # steered into a turn that has ended meanwhile: the loop may take it yet
            await tenure.credentials.follow_settings()
            name = turn_id(first.seq, tenure.fold.generation)
            trace = self._trace(name, 1, (first.seq,))
            await tenure.append([draft(TurnStarted((first.seq,), traceparent=trace), name)])
            await self._start_task()

    def _trace(self, turn: str, attempt: int, commands: tuple[int, ...], earlier: str | None = None) -> str | None:
        """Say that the turn is taken up; what the journal is to say of its trace."""
        tenure = self._tenure
        tenure.telling.take_up(turn, attempt, commands, earlier)
        return tenure.means.traces.turn_context(tenure.conversation_id, tenure.lease.epoch)

    async def _trace_resumed(self, turn: OpenTurn) -> str | None:
        tenure, earlier = self._tenure, None
        if tenure.means.traces.on:
            for event in await tenure.events(turn.seq - 1, turn.seq):
                earlier = event.body.get("traceparent")
        return self._trace(turn.id, turn.attempt + 1, turn.commands, earlier if isinstance(earlier, str) else None)

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
        tenure = self._tenure
        with tenure.means.traces.within_turn(tenure.conversation_id, tenure.lease.epoch):
            async with asyncio.timeout(self._timeout_s) as turn.limit:
                await self._live.turn(turn)

    async def _collect(self) -> None:
        """A turn's task has ended: its end and its settlement are one append."""
        task, live, turn = self._task, self._turn, self._tenure.fold.turn
        if task is None or not task.done():
            return
        self._task = self._turn = None
        if turn is None or live is None:
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, OwnershipLostError):
            self._tenure.insist()
        told = None if error is None else described(error, self._tenure.masked)
        end = _end(turn.commands, error, told, timed_out=live.timed_out)
        await self._tenure.append(lambda fold: end_turn(fold, end))

    async def _cut(self) -> None:
        """Cancel the turn's task and wait until it has ended; one that ignores it finds its turn closed."""
        task, turn, self._task, self._turn = self._task, self._turn, None, None
        if task is None or turn is None:
            return
        turn.park_no_longer()
        self._tenure.strays.add(task)
        if await ended([task], CUT_GRACE_S):
            self._tenure.trouble("the agent ignores cancellation")

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
        """A command that only the loop knows: its answer settles it, if the journal takes it."""
        try:
            if (told := await self._answer(command)) is None:
                return
            await self._tenure.append([draft(told)])
        except OwnershipLostError:
            return
        except Exception as error:
            told = described(error, self._tenure.masked)
            await self._tenure.append([draft(CommandSettled(command.seq, Outcome.REFUSED, told))])
        self._tenure.poke()

    async def _answer(self, command: Event) -> CommandSettled | None:
        """What the loop says; null for a message that it cannot be steered by: it is taken after the turn."""
        try:
            async with asyncio.timeout(self._tenure.means.config.call_timeout_s):
                answer = await self._live.now(command)
        except NotImplementedError:
            if command.kind == "message":
                return None
            return CommandSettled(command.seq, Outcome.REFUSED, {"reason": "this agent has no use for it"})
        return CommandSettled(command.seq, Outcome.DONE if answer is None else Outcome.ANSWERED, answer)

    async def _refuse_the_rest(self) -> None:
        """Stopped: what only a live loop could settle gets its answer now, or it would be wanted for ever."""
        await self._end(*self._asked.values())
        if refuse_urgent(self._tenure.fold):
            await self._tenure.append(refuse_urgent)

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def _left(self) -> bool:
        """Draining: true when nothing of the loop runs any more. At the deadline, at the next step boundary."""
        if not self._tenure.handing_over and self._works():
            return False
        if self._task is not None and (self._task.done() or (self._in_a_call() and self._call_grace_s() != 0)):
            return False
        await self._cut()
        return True

    def _in_a_call(self) -> bool:
        turn = self._tenure.fold.turn
        return turn is not None and bool(turn.calls)

    def _call_grace_s(self) -> float | None:
        """How long an open call is still waited for at a hand-over; null while there is none."""
        if not self._tenure.handing_over:
            return None
        now = asyncio.get_running_loop().time()
        self._cut_at = self._cut_at or now + CUT_GRACE_S
        return max(0.0, self._cut_at - now)


def _end(
    commands: tuple[int, ...], error: BaseException | None, told: Json, *, timed_out: bool
) -> TurnCompleted | TurnFailed:
    match error:
        case None:
            return TurnCompleted(commands)
        case TimeoutError() if timed_out:
            return TurnFailed(commands, "timeout", told)
        case TurnDivergedError():
            return TurnFailed(commands, "diverged", told)
        case _:
            return TurnFailed(commands, "error", told)
