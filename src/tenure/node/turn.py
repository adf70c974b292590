"""A turn as the agent loop sees it: the contract ``tenure.abc.Turn``, on a tenure."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, final

from tenure.abc import Message, TooLarge
from tenure.errors import InvalidInputError, OwnershipLostError
from tenure.journal import CORE_COMMANDS, CORE_KINDS, TurnWaiting, canonical, draft
from tenure.node.reasons import speakable
from tenure.vault import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tenure.abc import Appended, Runtime, Submit
    from tenure.conversation import OpenTurn
    from tenure.journal import Draft, Event, Json, JsonObject
    from tenure.node.deltas import Deltas
    from tenure.node.tenure import Tenure

OF_LOOPS = frozenset({"call_started", "call_finished", "call_restarted", "call_interrupted"})
"""The kinds of the core that a loop writes itself."""

STATUS_CHARS = 200
ASK_CHARS = 200
ANSWER_FRAME = 4096
"""What an event takes beside the answer that it carries; the name of a question is bounded."""


def too_large_an_answer(request: Submit, event_bytes: int) -> TooLarge | None:
    """An answer stands in the journal twice, the second time inside of ``turn_resumed``: that one must fit, too."""
    if request.command is None or request.command.kind != "answer":
        return None
    limit = max(event_bytes - ANSWER_FRAME, 0)
    size = len(canonical(request.command.body).encode())
    return TooLarge(0, size, limit) if size > limit else None


@final
class LiveTurn:
    """The open turn of a held conversation, under one attempt."""

    def __init__(
        self, tenure: Tenure, turn: OpenTurn, commands: tuple[Event, ...], past: tuple[Event, ...], deltas: Deltas
    ) -> None:
        self._tenure = tenure
        self._seq = turn.seq
        self._id = turn.id
        self._attempt = turn.attempt
        self._commands = commands
        self._past = past
        self._deltas = deltas
        self._host = asyncio.get_running_loop()
        self._answers: dict[str, asyncio.Future[Json]] = {}
        self._parked: set[asyncio.Future[None]] = set()
        self.limit: asyncio.Timeout | None = None
        """The turn's time-out, while it runs."""

    @property
    def id(self) -> str:
        return self._id

    @property
    def conversation_id(self) -> str:
        return self._tenure.conversation_id

    @property
    def commands(self) -> tuple[Event, ...]:
        return self._commands

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(Message(c.text, c.content, c.seq, c.key) for c in self._commands if c.kind == "message")

    @property
    def past(self) -> tuple[Event, ...]:
        return self._past

    @property
    def settings(self) -> JsonObject:
        return self._tenure.fold.settings

    @property
    def runtime(self) -> Runtime:
        runtime = self._tenure.runtime
        assert runtime is not None, "provisioned before the loop was opened"
        return runtime

    @property
    def epoch(self) -> int:
        return self._tenure.lease.epoch

    @property
    def attempt(self) -> int:
        return self._attempt

    @property
    def resumed(self) -> bool:
        return self._attempt > 1 or bool(self._past)

    @property
    def lost(self) -> bool:
        return self._tenure.lost or not self._open()

    @property
    def leaving(self) -> bool:
        return self._tenure.handing_over

    def _open(self) -> bool:
        turn = self._tenure.fold.turn
        return turn is not None and turn.id == self._id

    async def history(self, after: int = 0) -> Sequence[Event]:
        return await self._tenure.events(after, self._seq - 1)

    async def journal(self, drafts: Sequence[Draft], state: JsonObject | None = None) -> Appended:
        for one in drafts:
            if one.kind in CORE_COMMANDS or (one.kind in CORE_KINDS and one.kind not in OF_LOOPS):
                raise InvalidInputError("kind", f"{one.kind!r} is written by the core alone", "choose another kind")
        self._tenure.means.store.limits.insist_on_count(len(drafts))
        closing = any(d.closes for d in drafts)
        await self._boundary(closing)
        mine = [replace(d, turn=self._id) for d in drafts]
        result = await self._tenure.append(mine, state, unless=lambda: not self._open())
        self._tenure.insist()  # the process may have been frozen since the store answered
        if closing and not self._in_a_call():  # beside another call it goes on: the outcomes of a batch come together
            await self._boundary(closing=False)
        return result

    def _in_a_call(self) -> bool:
        turn = self._tenure.fold.turn
        return turn is not None and bool(turn.calls)

    async def _boundary(self, closing: bool) -> None:
        """At a hand-over the turn goes no further than its open calls: it waits here to be cancelled."""
        if self._tenure.handing_over and not closing:
            parked: asyncio.Future[None] = self._host.create_future()
            self._parked.add(parked)
            await parked

    def park_no_longer(self) -> None:
        """The turn is cut: whoever waits at a boundary, maybe for a thread, leaves."""
        for parked in self._parked:
            parked.cancel()

    @property
    def timed_out(self) -> bool:
        """Whether it was the time-out that ended the turn."""
        return self.limit is not None and self.limit.expired()

    def journal_blocking(self, drafts: Sequence[Draft], timeout_s: float, state: JsonObject | None = None) -> Appended:
        under_way = asyncio.run_coroutine_threadsafe(self.journal(drafts, state), self._host)
        try:
            return under_way.result(timeout_s)
        except TimeoutError:
            self._host.call_soon_threadsafe(self._tenure.lose, "an append from a thread had no answer in time")
            raise

    async def ask(self, ask: str, body: Json) -> Json:
        if len(ask) > ASK_CHARS:
            raise InvalidInputError("ask", f"is a name of {len(ask)} characters, above {ASK_CHARS}", "shorten it")
        turn = self._tenure.fold.turn
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answers[ask] = answer
        try:
            if turn is None or turn.ask != ask:
                waiting = replace(draft(TurnWaiting(ask, body)), turn=self._id)
                await self._boundary(closing=False)
                await self._tenure.append([waiting], unless=lambda: not self._open())
                self._tenure.poke()  # nothing runs now: from here on the conversation is idle
            return await self._from_a_person(answer)
        finally:
            self._answers.pop(ask, None)

    async def _from_a_person(self, answer: asyncio.Future[Json]) -> Json:
        """A person may take any time: the turn's time-out stands still."""
        due = self.limit.when() if self.limit is not None else None
        if self.limit is None or due is None:
            return await answer
        left_s = due - self._host.time()
        self.limit.reschedule(None)
        try:
            return await answer
        finally:
            with suppress(RuntimeError):  # the turn has ended meanwhile
                self.limit.reschedule(self._host.time() + left_s)

    def answered(self, ask: str, answer: Json) -> None:
        """The answer stands in the journal: let the agent go on with it."""
        waiting = self._answers.get(ask)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def masked(self, text: str) -> str:
        return self._tenure.masked(text)

    def delta(self, body: JsonObject) -> None:
        if self.lost:
            raise OwnershipLostError(self.conversation_id, self.epoch, "the turn is over")
        self._deltas.hand(body)


@final
class LivePlace:
    """What a loop gets when it is opened: the contract ``tenure.abc.Place``, on a tenure."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure

    @property
    def conversation_id(self) -> str:
        return self._tenure.conversation_id

    @property
    def settings(self) -> JsonObject:
        return self._tenure.fold.settings

    @property
    def epoch(self) -> int:
        return self._tenure.lease.epoch

    @property
    def runtime(self) -> Runtime:
        runtime = self._tenure.runtime
        assert runtime is not None, "provisioned before the loop was opened"
        return runtime

    @property
    def state(self) -> JsonObject | None:
        return self._tenure.loop_state

    async def history(self, after: int = 0) -> Sequence[Event]:
        return await self._tenure.events(after, self._tenure.fold.seq)

    def report_status(self, word: str | None) -> None:
        if word is not None and (len(word) > STATUS_CHARS or speakable(word) != word):
            raise InvalidInputError("agent_status", f"must be text of at most {STATUS_CHARS} characters", "shorten it")
        self._tenure.agent_status = word

    def credentials(self) -> Mapping[str, str]:
        return self._tenure.credentials.values

    def hide(self, values: Iterable[str]) -> None:
        self._tenure.learn([Secret(value) for value in values])
