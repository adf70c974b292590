"""Legal journals by chance: whatever a store and an owner may write, in an order that the fold takes."""

from hypothesis import strategies as st

from tenure.clock import Instant
from tenure.conversation import Fold
from tenure.conversation.folding import advance
from tenure.journal import (
    CallFinished,
    CallInterrupted,
    CallRestarted,
    CallStarted,
    Claimed,
    CommandSettled,
    Created,
    Delivery,
    Draft,
    Event,
    LoopStarted,
    Policy,
    Released,
    RuntimeRequested,
    Seq,
    SettingsChanged,
    Stopped,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnResumed,
    TurnStarted,
    TurnWaiting,
    draft,
)
from tenure.lease import Epoch

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BODIES = st.dictionaries(
    TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS | st.lists(TEXTS), max_size=2
)
COMMANDS = {"message": "turn", "run": "turn", "start": "now", "stop": "now", "interrupt": "now", "answer": "now"}


class Writer:
    """A journal that grows, and what it means so far."""

    def __init__(self, pick) -> None:
        self.pick = pick
        self.events: list[Event] = []
        self.state = Fold()
        self.names = 0

    def take(self, event: Event) -> None:
        advance(self.state, event)
        self.events.append(event)

    def write(self, body, turn: str | None = None, *, owned: bool = True) -> None:
        one = body if isinstance(body, Draft) else draft(body, turn)
        epoch = Epoch(self.state.epoch) if owned else None
        self.take(one.stored(len(self.events) + 1, epoch, Instant(float(len(self.events)))))

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    # what may be written now

    def moves(self) -> list:
        moves: list = [self.command, self.claim, lambda: self.write(SettingsChanged(self.pick(BODIES)), owned=False)]
        if not self.state.owned:
            return moves
        moves += [self.release, lambda: self.write(LoopStarted("agent")), self.runtime, self.emit]
        turn = self.state.turn
        if turn is None and self.state.queue:
            moves += 4 * [self.begin]
        if turn is not None:
            moves += [self.call, self.call, self.wait, self.foreign_call]
            moves += 3 * [self.outcome] if turn.calls else 2 * [self.end]
        if self.state.urgent:
            moves += 2 * [self.settle]
        return moves

    def command(self) -> None:
        kind = self.pick(st.sampled_from(sorted(COMMANDS)))
        seq = Seq(len(self.events) + 1)
        key = f"{self.pick(TEXTS.map(lambda text: ''.join(c for c in text if c.isprintable())))}{seq}"
        body = {"text": self.pick(TEXTS)} | self.pick(BODIES)
        self.take(Event(seq, None, kind, Instant(0.0), body, key=key, delivery=Delivery(COMMANDS[kind])))

    def claim(self) -> None:
        body = Claimed(f"i{self.state.epoch}", "n", "", "wanted")
        self.take(draft(body).stored(len(self.events) + 1, Epoch(self.state.epoch + 1), Instant(0.0)))

    def release(self) -> None:
        self.write(Released("i", "idle"))

    def runtime(self) -> None:
        self.write(RuntimeRequested(self.name("r")))

    def emit(self) -> None:
        self.write(Draft("said", self.pick(BODIES), self.state.turn and self.state.turn.id))

    def begin(self) -> None:
        first = self.state.queue[0].seq
        self.write(TurnStarted((first,)), f"t{first}")

    def call(self) -> None:
        turn = self.turn
        name = self.name(f"{turn.id}.c")
        self.write(CallStarted(name, "tool", self.pick(st.booleans()), name, self.pick(BODIES)), turn.id)

    def foreign_call(self) -> None:
        self.write(Draft("action", self.pick(BODIES), self.turn.id, opens=(self.name("a"),)))

    def outcome(self) -> None:
        call = self.pick(st.sampled_from(sorted(self.turn.calls)))
        match self.pick(st.sampled_from(("result", "error", "cut", "again", "foreign"))):
            case "result":
                self.write(CallFinished(call, self.pick(BODIES)), self.turn.id)
            case "error":
                self.write(CallFinished(call, error={"type": "E"}), self.turn.id)
            case "cut":
                self.write(CallInterrupted(call, "owner lost"), self.turn.id)
            case "again":
                self.write(CallRestarted(call, self.turn.calls[call].attempt + 1), self.turn.id)
            case _:
                self.write(Draft("observation", {}, self.turn.id, closes=(call,)))

    def wait(self) -> None:
        ask = self.name("ask")
        self.write(TurnWaiting(ask, self.pick(BODIES)), self.turn.id)
        if self.pick(st.booleans()):
            self.write(TurnResumed(self.turn.attempt, ask, self.pick(TEXTS)), self.turn.id)

    def end(self) -> None:
        commands = self.turn.commands
        ends = (TurnCompleted(commands), TurnFailed(commands, "no"), TurnInterrupted(commands, commands[0], "asked"))
        self.write(self.pick(st.sampled_from(ends)), self.turn.id)

    def settle(self) -> None:
        command = self.state.urgent[0]
        if command.kind == "stop":
            self.write(Stopped(command.seq))
        self.write(CommandSettled(command.seq, "done", self.pick(BODIES)))

    @property
    def turn(self):
        assert self.state.turn is not None
        return self.state.turn


@st.composite
def journals(pick, most: int = 60) -> list[Event]:
    """The events of a conversation, cut anywhere."""
    writer = Writer(pick)
    policy = pick(st.sampled_from(sorted(Policy)))
    writer.write(Created("agent", "user", pick(BODIES), policy), owned=False)
    for _ in range(pick(st.integers(0, most))):
        pick(st.sampled_from(writer.moves()))()
    return writer.events
