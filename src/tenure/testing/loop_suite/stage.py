"""A conversation without a node: a journal in a list, judged by the real fold, and its owners.

An owner runs the loop until the turn has ended or its *fuse* burns: after so many appends of the loop the next one is
refused, or gets no answer, whether it was written or not; nothing of that owner runs any more. The next owner does what
the plan says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tenure.abc import Appended, Message, Ran
from tenure.clock import Instant
from tenure.conversation import Fold, Then, checked, end_turn, fold, plan
from tenure.errors import InvalidInputError, OwnershipLostError
from tenure.journal import (
    Claimed,
    Created,
    Delivery,
    Draft,
    Event,
    Json,
    JsonObject,
    LoopStarted,
    Seq,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    TurnWaiting,
    draft,
)
from tenure.lease import Epoch
from tenure.vault import MASKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from tenure.abc import AgentLoop, LiveLoop

CONVERSATION: Final = "conv"
NOW: Final = Instant(0.0)
EVENT_LIMIT: Final = 100_000
PATIENCE_S: Final = 10.0
"""How long a loop may take to end when it is cancelled; a node waits about as long."""
ENDS: Final = ("turn_completed", "turn_failed", "turn_interrupted")
CORE_OF_TURNS: Final = {"turn_started", "turn_resumed", "turn_waiting", *ENDS}


class MemoryRuntime:
    """Files in a dictionary; every command is told to `ran` and says what `says` maps it to.

    :param path: a folder, for loops that insist on a runtime of this machine. :param shell: what its programs run in.
    """

    name = "memory"

    def __init__(self, path: Path | None = None, shell: Path | None = None) -> None:
        self.path = path
        self.files: dict[str, bytes] = {}
        self.ran: list[str] = []
        self.says: dict[str, str] = {}
        self.runs: Callable[[str], Any] | None = None
        """What runs a command instead, a coroutine function."""
        self._shell = shell

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        text = command if isinstance(command, str) else " ".join(command)
        self.ran.append(text)
        if self.runs is not None:
            return Ran(0, str(await self.runs(text)), "")
        await asyncio.sleep(0)
        return Ran(0, self.says.get(text, f"did {text}\n"), "")

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def write(self, path: str, content: bytes | str) -> None:
        self.files[path] = content.encode() if isinstance(content, str) else content

    def launcher(self, program: Sequence[str]) -> Path:
        assert self._shell is not None, "no program was expected"
        return self._shell


@dataclass
class Fuse:
    """After `appends` of the loop the next one burns it. `written`: it stands in the journal all the same.
    `refused`: it is answered, with a no, as a deposed owner's is; otherwise not at all, as if the owner had died."""

    appends: int
    written: bool = False
    refused: bool = False


@dataclass
class Conversation:
    """A conversation of one user with one agent."""

    settings: JsonObject = field(default_factory=dict[str, Json])
    runtime: MemoryRuntime = field(default_factory=MemoryRuntime)
    credentials: Mapping[str, str] = field(default_factory=dict[str, str])
    events: list[Event] = field(default_factory=list[Event])
    state: Fold = field(default_factory=Fold)
    snapshot: JsonObject | None = None
    deltas: list[JsonObject] = field(default_factory=list[JsonObject])
    answers: list[Json] = field(default_factory=list[Json])
    """What a person answers, in order; without one the asker waits until it is cancelled."""
    reads: list[int] = field(default_factory=list[int])
    """From where loops have read the history."""
    appends: int = 0
    """How many appends of loops stand in the journal."""

    def __post_init__(self) -> None:
        self._store(draft(Created("agent", settings=self.settings)), None)

    def _store(self, one: Draft, epoch: int | None) -> Event:
        stored = one.stored(self.state.seq + 1, None if epoch is None else Epoch(epoch), NOW)
        self.state = fold(self.state, [stored])
        self.events.append(stored)
        return stored

    def message(self, text: str, content: Json = None, key: str | None = None) -> Event:
        """A client's message."""
        seq = self.state.seq + 1
        body: dict[str, Json] = {"text": text}
        if content is not None:
            body["content"] = content
        event = Event(Seq(seq), None, "message", NOW, body, key=key or f"k{seq}", delivery=Delivery.TURN)
        self.state = fold(self.state, [event])
        self.events.append(event)
        return event

    def write(self, *drafts: Draft) -> list[Event]:
        """Journal as the present owner; the fold refuses what breaks a rule."""
        checked(self.state, drafts)
        return [self._store(one, self.state.epoch) for one in drafts]

    def claim(self) -> Then:
        """A new owner: the claim, and its repairs. (Nobody needs a runtime here.)"""
        self._store(draft(Claimed("i", "n", "a", "wanted")), self.state.epoch + 1)
        todo = plan(self.state)
        if todo.repairs:
            self.write(*todo.repairs)
        self.write(draft(LoopStarted("agent")))
        return todo.then

    def of_turn(self, turn: str | None = None) -> list[Event]:
        return [e for e in self.events if e.turn is not None and turn in (None, e.turn)]

    def emitted(self, kind: str) -> list[JsonObject]:
        return [e.body for e in self.events if e.kind == kind]

    def kinds(self) -> list[str]:
        """The kinds of the turns' events, beginnings, resumptions and ends aside."""
        return [e.kind for e in self.of_turn() if e.kind not in CORE_OF_TURNS]

    @property
    def end(self) -> Event:
        """The end of the last turn."""
        return [e for e in self.events if e.kind in ENDS][-1]

    async def owner(self, loop: AgentLoop, fuse: Fuse | None = None, turns: int = 1) -> bool:
        """One owner: claims, resumes or begins, and does `turns` turns. False: its fuse has burnt."""
        self.claim()
        async with loop.open(StagePlace(self)) as live:
            return all([await self.turn(live, fuse) for _ in range(turns)])

    def begin(self, fuse: Fuse | None = None) -> StageTurn:
        """The open turn under a new attempt, or one on the next command that waits."""
        if self.state.turn is None:
            first = self.state.queue[0]
            self.write(replace(draft(TurnStarted((first.seq,))), turn=f"t{first.seq}"))
        else:
            self.write(draft(TurnResumed(self.state.turn.attempt + 1), self.state.turn.id))
        return StageTurn(self, fuse)

    async def turn(self, live: LiveLoop, fuse: Fuse | None = None) -> bool:
        """One turn, or the rest of one."""
        turn = self.begin(fuse)
        work = asyncio.ensure_future(live.turn(turn))
        burnt = asyncio.ensure_future(turn.burnt.wait())
        try:
            await asyncio.wait([work, burnt], return_when=asyncio.FIRST_COMPLETED)
            if turn.burnt.is_set():
                return False
        finally:
            turn.lost = turn.burnt.is_set()
            await ended(turn, work, burnt)
        turn.lost = True
        assert self.state.turn is not None
        error = work.exception()
        told = {"type": type(error).__name__, "message": str(error)}
        commands = self.state.turn.commands
        end = TurnCompleted(commands) if error is None else TurnFailed(commands, "error", told)
        self.write(*end_turn(self.state, end))
        return True

    async def interrupted(self, live: LiveLoop, when: asyncio.Event) -> None:
        """A turn that is cancelled when the signal is given."""
        turn = self.begin()
        work = asyncio.ensure_future(live.turn(turn))
        waiting = asyncio.ensure_future(when.wait())
        await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert when.is_set(), f"the turn has ended before: {work}"
        await ended(turn, work)
        assert work.cancelled(), f"a cancelled turn is cancelled, and not {work}"
        turn.lost = True
        assert self.state.turn is not None
        self.write(*end_turn(self.state, TurnInterrupted(self.state.turn.commands)))

    async def handed_over(self, loop: AgentLoop, when: asyncio.Event, go: Callable[[], None]) -> None:
        """An owner that leaves from the signal on: the turn goes no further than its open calls, `go` ends those."""
        self.claim()
        async with loop.open(StagePlace(self)) as live:
            turn = self.begin()
            work = asyncio.ensure_future(live.turn(turn))
            async with asyncio.timeout(PATIENCE_S):
                await when.wait()
                turn.leaving = True
                go()
                await turn.at_boundary.wait()
            await ended(turn, work)
            turn.lost = True


async def ended(turn: StageTurn, *tasks: asyncio.Future[Any]) -> None:
    """Cancel, and wait until they have ended.

    :raises AssertionError: one of them ignores it.
    """
    for task in tasks:
        task.cancel()
    turn.park_no_longer()
    _, ignoring = await asyncio.wait(tasks, timeout=PATIENCE_S)
    assert not ignoring, f"a cancelled turn ends within {PATIENCE_S:g} s; this one ignores it: {ignoring}"


class StagePlace:
    """The place of a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.conversation_id = CONVERSATION
        self.settings = conversation.settings
        self.epoch = conversation.state.epoch
        self.runtime = conversation.runtime
        self.state = conversation.snapshot
        self.hidden: list[str] = []
        self.status: str | None = None

    async def history(self, after: int = 0) -> Sequence[Event]:
        return [e for e in self._conversation.events if e.seq > after]

    def report_status(self, word: str | None) -> None:
        self.status = word

    def credentials(self) -> Mapping[str, str]:
        return self._conversation.credentials

    def hide(self, values: Iterable[str]) -> None:
        self.hidden += values


class StageTurn:
    """The open turn of a conversation, under one attempt."""

    def __init__(self, conversation: Conversation, fuse: Fuse | None) -> None:
        opened = conversation.state.turn
        assert opened is not None
        self._conversation = conversation
        self._fuse = fuse
        self._seq = opened.seq
        self._door = asyncio.Lock()
        self._host = asyncio.get_running_loop()
        self._parked: set[asyncio.Future[None]] = set()
        self.burnt = asyncio.Event()
        self.at_boundary = asyncio.Event()
        self.lost = False
        self.leaving = False
        self.id = opened.id
        self.conversation_id = CONVERSATION
        self.commands = tuple(conversation.state.pending[c] for c in opened.commands)
        self.messages = tuple(Message(c.text, c.content, c.seq, c.key) for c in self.commands if c.kind == "message")
        self.past = tuple(e for e in conversation.of_turn(self.id) if e.seq > opened.seq)
        self.settings = conversation.settings
        self.runtime = conversation.runtime
        self.epoch = conversation.state.epoch
        self.attempt = opened.attempt
        self.resumed = bool(self.past)

    async def history(self, after: int = 0) -> Sequence[Event]:
        self._conversation.reads.append(after)
        return [e for e in self._conversation.events if after < e.seq < self._seq]

    async def journal(self, drafts: Sequence[Draft], state: JsonObject | None = None) -> Appended:
        self._insist()
        return await asyncio.shield(asyncio.ensure_future(self._append(drafts, state)))

    async def _append(self, drafts: Sequence[Draft], state: JsonObject | None) -> Appended:
        closing = any(d.closes for d in drafts)
        await self._boundary(closing)
        async with self._door:
            await asyncio.sleep(0)
            self._insist()
            mine = [replace(one, turn=self.id) for one in drafts]
            if self._fuse is not None and self._fuse.appends <= 0:
                await self._burn(self._fuse, mine, state)
            if self._fuse is not None:
                self._fuse.appends -= 1
            for one in mine:
                if len(str(one.body)) > EVENT_LIMIT:
                    raise InvalidInputError(f"event {one.kind}", "is too large", "use a file")
            stored = self._write(mine, state)
            await asyncio.sleep(0)
        if closing and not self._in_a_call():
            await self._boundary(closing=False)
        head = self._conversation.state.seq
        return Appended(stored[0].seq if stored else Seq(head), len(stored), Seq(head), 0, NOW)

    async def _burn(self, fuse: Fuse, drafts: Sequence[Draft], state: JsonObject | None) -> None:
        self.burnt.set()
        if fuse.refused:
            self.lost = True
            self._insist()
        if fuse.written:
            self._write(drafts, state)
        self.lost = True
        await self._park()

    def _write(self, drafts: Sequence[Draft], state: JsonObject | None) -> list[Event]:
        stored = self._conversation.write(*drafts)
        self._conversation.appends += 1
        if state is not None:
            self._conversation.snapshot = state
        return stored

    def _in_a_call(self) -> bool:
        turn = self._conversation.state.turn
        return turn is not None and bool(turn.calls)

    async def _boundary(self, closing: bool) -> None:
        if self.leaving and not closing:
            self.at_boundary.set()
            await self._park()

    async def _park(self) -> None:
        """Wait to be cancelled."""
        parked: asyncio.Future[None] = self._host.create_future()
        self._parked.add(parked)
        await parked

    def park_no_longer(self) -> None:
        for parked in self._parked:
            parked.cancel()

    def _insist(self) -> None:
        if self.lost:
            raise OwnershipLostError(CONVERSATION, self.epoch, "another owner")

    def journal_blocking(self, drafts: Sequence[Draft], timeout_s: float, state: JsonObject | None = None) -> Appended:
        return asyncio.run_coroutine_threadsafe(self.journal(drafts, state), self._host).result(timeout_s)

    def masked(self, text: str) -> str:
        for value in self._conversation.credentials.values():
            text = text.replace(value, MASKED)
        return text

    async def ask(self, ask: str, body: Json) -> Json:
        self._insist()
        state = self._conversation.state
        assert state.turn is not None and state.turn.ask in (None, ask), "a turn waits for one answer at a time"
        if state.turn.ask != ask:
            await self.journal([draft(TurnWaiting(ask, body), self.id)])
        await asyncio.sleep(0)
        if not self._conversation.answers:
            await asyncio.get_running_loop().create_future()
        answer = self._conversation.answers.pop(0)
        self._conversation.write(draft(TurnResumed(self.attempt, ask, answer), self.id))
        return answer

    def delta(self, body: JsonObject) -> None:
        self._insist()
        self._conversation.deltas.append(body)
