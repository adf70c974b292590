"""A conversation without a node, for tests of loops: a journal in a list, judged by the real fold, and its owners.

An owner runs the loop until the turn has ended or its *fuse* burns: after so many appends of the loop the next one gets
no answer, whether it was written or not, and nothing of that owner runs any more. The next owner does what the plan says.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tenure.abc import AgentLoop, Appended, LiveLoop, Message, Ran
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
    read_body,
)
from tenure.lease import Epoch

C = "conv"
NOW = Instant(0.0)
EVENT_LIMIT = 100_000
CORE_OF_TURNS = {"turn_started", "turn_resumed", "turn_waiting", "turn_completed", "turn_failed", "turn_interrupted"}


class MemoryRuntime:
    """Files in a dictionary; every command is told to `ran` and says what `says` maps it to."""

    name = "memory"
    path = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ran: list[str] = []
        self.says: dict[str, str] = {}

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        text = command if isinstance(command, str) else " ".join(command)
        self.ran.append(text)
        await asyncio.sleep(0)
        return Ran(0, self.says.get(text, f"did {text}\n"), "")

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def write(self, path: str, content: bytes | str) -> None:
        self.files[path] = content.encode() if isinstance(content, str) else content


@dataclass
class Fuse:
    """After `appends` of the loop the next one burns it; `written`: it stands in the journal all the same."""

    appends: int
    written: bool = False


@dataclass
class Conversation:
    """A conversation of one user with one agent."""

    settings: JsonObject = field(default_factory=dict[str, Json])
    runtime: MemoryRuntime = field(default_factory=MemoryRuntime)
    events: list[Event] = field(default_factory=list[Event])
    state: Fold = field(default_factory=Fold)
    deltas: list[JsonObject] = field(default_factory=list[JsonObject])
    answers: list[Json] = field(default_factory=list[Json])
    """What a person answers, in order; without one the asker waits until it is cancelled."""
    reads: list[int] = field(default_factory=list[int])
    """From where loops have read the history."""

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
        return [e for e in self.events if e.kind in ("turn_completed", "turn_failed", "turn_interrupted")][-1]

    async def owner(self, loop: AgentLoop, fuse: Fuse | None = None, turns: int = 1) -> bool:
        """One owner: claims, resumes or begins, and does `turns` turns. False: its fuse has burnt."""
        self.claim()
        async with loop.open(FakePlace(self)) as live:
            return all([await self.turn(live, fuse) for _ in range(turns)])

    async def turn(self, live: LiveLoop, fuse: Fuse | None = None) -> bool:
        """One turn, or the rest of one."""
        if self.state.turn is None:
            first = self.state.queue[0]
            self.write(replace(draft(TurnStarted((first.seq,))), turn=f"t{first.seq}"))
        else:
            self.write(draft(TurnResumed(self.state.turn.attempt + 1), self.state.turn.id))
        turn = FakeTurn(self, fuse)
        work = asyncio.ensure_future(live.turn(turn))
        burnt = asyncio.ensure_future(turn.burnt.wait())
        try:
            await asyncio.wait([work, burnt], return_when=asyncio.FIRST_COMPLETED)
            if turn.burnt.is_set():
                return False
        finally:
            turn.lost = turn.burnt.is_set()
            for one in (work, burnt):
                one.cancel()
            await asyncio.gather(work, burnt, return_exceptions=True)
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
        first = self.state.queue[0]
        self.write(replace(draft(TurnStarted((first.seq,))), turn=f"t{first.seq}"))
        turn = FakeTurn(self, None)
        work = asyncio.ensure_future(live.turn(turn))
        await when.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert work.cancelled()
        turn.lost = True
        self.write(*end_turn(self.state, TurnInterrupted((first.seq,))))


class FakePlace:
    """The place of a conversation."""

    state = None

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.conversation_id = C
        self.settings = conversation.settings
        self.epoch = conversation.state.epoch
        self.runtime = conversation.runtime

    async def history(self, after: int = 0) -> Sequence[Event]:
        return [e for e in self._conversation.events if e.seq > after]

    def report_status(self, word: str | None) -> None:
        pass


class FakeTurn:
    """The open turn of a conversation, under one attempt."""

    def __init__(self, conversation: Conversation, fuse: Fuse | None) -> None:
        opened = conversation.state.turn
        assert opened is not None
        self._conversation = conversation
        self._fuse = fuse
        self._seq = opened.seq
        self._door = asyncio.Lock()
        self.burnt = asyncio.Event()
        self.lost = False
        self.id = opened.id
        self.conversation_id = C
        self.commands = tuple(conversation.state.pending[c] for c in opened.commands)
        self.messages = tuple(Message(c.text, c.content, c.seq, c.key) for c in self.commands)
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
        return await asyncio.shield(asyncio.ensure_future(self._append(drafts)))

    async def _append(self, drafts: Sequence[Draft]) -> Appended:
        async with self._door:
            await asyncio.sleep(0)
            self._insist()
            if self._fuse is not None and self._fuse.appends <= 0:
                if self._fuse.written:
                    self._conversation.write(*drafts)
                self.burnt.set()
                self.lost = True
                await asyncio.get_running_loop().create_future()
            if self._fuse is not None:
                self._fuse.appends -= 1
            for one in drafts:
                assert one.turn == self.id
                if len(str(one.body)) > EVENT_LIMIT:
                    raise InvalidInputError(f"event {one.kind}", "is too large", "use a file")
            stored = self._conversation.write(*drafts)
            await asyncio.sleep(0)
            return Appended(stored[0].seq, len(stored), stored[-1].seq, 0, NOW)

    def _insist(self) -> None:
        if self.lost:
            raise OwnershipLostError(C, self.epoch, "another owner")

    def journal_blocking(self, drafts: Sequence[Draft], timeout_s: float, state: JsonObject | None = None) -> Appended:
        raise NotImplementedError

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


def outcomes(conversation: Conversation) -> dict[str, str]:
    """The kind of each call's one outcome; a second one fails."""
    found: dict[str, str] = {}
    for event in conversation.events:
        for call in event.closes:
            assert call not in found, f"{call} has two outcomes"
            found[call] = event.kind
    return found


def bodies(conversation: Conversation, kind: str) -> list[object]:
    return [read_body(e) for e in conversation.events if e.kind == kind]
