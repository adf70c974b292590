"""How a loop is tried: what its author says of it, and the tool that its agent calls."""

from __future__ import annotations

import abc
import asyncio
import json
import threading
from typing import TYPE_CHECKING, Final, final

from tenure.testing.loop_suite.stage import PATIENCE_S, Conversation, MemoryRuntime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tenure.abc import AgentLoop
    from tenure.journal import Event, Json, JsonObject

SECRET: Final = "sesame-8472-open"
"""The value of the conversation's credential TOKEN."""
TOLD_UNKNOWN: Final = "interrupted"
"""What an agent is told of a call whose outcome is unknown has this word in it, unless its trial says otherwise."""

type Steps = Sequence[Sequence[str]]
"""What an agent is made to do: one batch of calls after another, each a line for the tool."""


@final
class Bench:
    """The tool of the agent under test: it leaves a mark, waits where it shall, and says ``did LINE``."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._host = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._gate, self._open = threading.Event(), asyncio.Event()
        self._lock = threading.Lock()
        self.happened: list[str] = []
        """A line for each time that the tool has begun."""
        self.wrong: list[str] = []
        """What the tool has seen that must not be."""
        self.slow_began = asyncio.Event()
        """Given when a line begins that starts with ``slow``; it ends when :meth:`go` is called."""

    async def act(self, line: str) -> str:
        """The tool, for agents whose tools are coroutines."""
        self._begin(line)
        if line.startswith("slow"):
            await self._open.wait()
        await asyncio.sleep(0)
        return f"did {line}"

    def act_blocking(self, line: str) -> str:
        """The tool, for agents whose tools block."""
        self._begin(line)
        if threading.get_ident() == self._thread:
            self.wrong.append(f"{line}: a tool that blocks runs on the node's event loop")
        elif line.startswith("slow"):
            self._gate.wait(PATIENCE_S)
        return f"did {line}"

    def go(self) -> None:
        """Slow lines end."""
        self._gate.set()
        self._open.set()

    def _begin(self, line: str) -> None:
        with self._lock:
            self.happened.append(line)
            calls = sum(len(event.opens) for event in self._conversation.events)
            if len(self.happened) > calls:
                self.wrong.append(f"{line}: {len(self.happened)} tools have begun, {calls} calls stand in the journal")
        if line.startswith("slow"):
            self._host.call_soon_threadsafe(self.slow_began.set)


class Trial(abc.ABC):
    """What the author of a loop says of it. One is made for each case."""

    loop: AgentLoop
    """The loop; its agent does what :meth:`message` asks for."""
    each: int = 1
    """Try the loss of an owner at each append, or, where that takes too long, at every n-th."""
    whole_replies: bool = True
    """Whether all calls of a batch come into the journal at once. If not, an owner may be lost between two of them: those
    behind it were never asked for."""
    unknown: str = TOLD_UNKNOWN
    """What stands in the text that the agent is told of a call whose outcome nobody knows."""

    def bench(self, bench: Bench) -> None:
        """The tool that the agent calls from now on: :meth:`Bench.act` or :meth:`Bench.act_blocking`."""
        self.tool = bench

    def settings(self) -> JsonObject:
        """A conversation's settings. The credential ``TOKEN`` is there; use it where your agents use credentials."""
        return {"credentials": {"TOKEN": "env:TOKEN"}}

    def runtime(self) -> MemoryRuntime:
        """The runtime of a conversation."""
        return MemoryRuntime()

    @abc.abstractmethod
    def message(self, steps: Steps) -> tuple[str, Json]:
        """The text and the content of a message on which the agent makes these calls, batch by batch, and then answers.
        The calls of a batch may run side by side."""

    @abc.abstractmethod
    def answers(self, events: Sequence[Event]) -> list[str]:
        """What the agent has answered, one text for each message that it has answered."""

    @abc.abstractmethod
    def context(self) -> list[str]:
        """All that the agent knew when it answered last, oldest first: messages, results of calls, answers."""


@final
class Trying:
    """One case's play: conversations with the loop under test."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self._benches: list[Bench] = []

    def conversation(self, credentials: Mapping[str, str] | None = None) -> Conversation:
        """A new conversation; the agent's tool marks what happens in this one."""
        trial = self.trial
        values = {"TOKEN": SECRET} if credentials is None else credentials
        told = Conversation(trial.loop.check(trial.settings()), trial.runtime(), values)
        self.bench = Bench(told)
        self._benches.append(self.bench)
        trial.bench(self.bench)
        return told

    def say(self, conversation: Conversation, steps: Steps) -> None:
        text, content = self.trial.message(steps)
        conversation.message(text, content)

    async def undisturbed(self, steps: Steps) -> tuple[int, list[str]]:
        """How many appends the work takes, and what the agent knew at its end, when nobody disturbs it."""
        conversation = self.conversation()
        self.say(conversation, steps)
        assert await conversation.owner(self.trial.loop)
        self.judge(conversation, 1)
        return conversation.appends, self.trial.context()

    async def until_done(self, conversation: Conversation) -> None:
        """Further owners, each to the turn's end."""
        assert await conversation.owner(self.trial.loop), "no fuse was set"

    def judge(self, conversation: Conversation, answers: int) -> None:
        """What holds after every turn that has ended well."""
        assert conversation.end.kind == "turn_completed", conversation.end.body
        assert not self.bench.wrong, self.bench.wrong
        assert len(self.trial.answers(conversation.events)) == answers, "each message is answered once"
        assert conversation.state.turn is None, "a turn that has ended is not open"

    def once(self) -> None:
        """No line has happened twice."""
        happened = self.bench.happened
        assert len(set(happened)) == len(happened), f"a call that was cut is not run again: {happened}"

    def alike(self, expected: Sequence[str], known: Sequence[str], cut: int) -> None:
        """The agent knows what it would have known, but for calls that were cut, of which it is told so."""
        if not self.trial.whole_replies:
            behind = {one.removeprefix("did ") for one in expected[len(known) :]}
            assert not behind & {*self.bench.happened}, f"{behind} happened, and the agent knows nothing of it"
            expected = expected[: len(known)]
        assert len(known) == len(expected), f"told {known}, where an undisturbed agent is told {list(expected)}"
        others = [now for now, then in zip(known, expected, strict=True) if now != then]
        assert all(self.trial.unknown in one for one in others), f"{others} stand in place of what was known"
        assert len(others) <= cut, f"{cut} calls were cut, but {len(others)} are told to be unknown"

    def end(self) -> None:
        for bench in self._benches:
            bench.go()


def written(conversation: Conversation) -> str:
    """All that the journal, the snapshot and whoever watches have seen."""
    shapes = [event.as_json() for event in conversation.events]
    return json.dumps([shapes, conversation.snapshot, conversation.deltas])
