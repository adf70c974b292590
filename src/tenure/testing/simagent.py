"""What runs on the nodes of a simulated cluster: an agent that does what its messages say, and runtimes in memory.

A message's text is a list of steps in JSON: ``["call", seconds, idempotent]``, ``["emit"]``, ``["sleep", seconds]``,
``["ask"]``, ``["fail"]``. The agent replays a turn that another owner began: what the journal holds is not done again.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from tenure.abc import AgentLoop, LiveLoop, Ran, RuntimeFailure, RuntimeProvider, Turn
from tenure.journal import CallFinished, CallRestarted, CallStarted, Draft, draft
from tenure.testing.simloop import running_process

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from tenure.abc import Place, Runtime, RuntimeSpec
    from tenure.journal import Event, Json, JsonObject
    from tenure.testing.recorder import Recorder
    from tenure.testing.simloop import SimProcess

type Step = list[Any]

ACTS_AT = 0.7
"""The part of a call's time after which it acts: neither at once nor at the end."""


def script(*steps: Step) -> str:
    """The text of a message that makes the agent do these steps."""
    return json.dumps(list(steps))


@final
class SimAgent(AgentLoop):
    """The agent; one for each simulated process."""

    def __init__(self, recorder: Recorder, rng: random.Random, farewell_s: float = 0.0) -> None:
        self._recorder = recorder
        self._rng = rng
        self._farewell_s = farewell_s
        """The longest that a loop takes to end, also when it is cancelled."""

    def check(self, settings: JsonObject) -> JsonObject:
        return settings

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncGenerator[LiveLoop]:
        process = _here()
        span = self._recorder.opened(process, place.conversation_id, place.epoch)
        try:
            yield _Live(self._recorder, process)
        finally:
            try:
                await asyncio.sleep(self._rng.choice((0.0, self._rng.random(), 1.0)) * self._farewell_s)
            finally:  # cancelled once more: then it ends now
                self._recorder.ended(span)


@final
class _Live:
    def __init__(self, recorder: Recorder, process: SimProcess) -> None:
        self._recorder = recorder
        self._process = process

    async def turn(self, turn: Turn) -> None:
        for message in turn.messages:
            for place, step in enumerate(json.loads(message.text)):
                await self._do(turn, f"{turn.id}.{message.seq}.{place}", step)

    async def now(self, command: Event) -> Json:
        if command.kind == "message":
            raise NotImplementedError
        return {"heard": command.seq}

    async def _do(self, turn: Turn, name: str, step: Step) -> None:
        match step:
            case ["call", seconds, idempotent]:
                await self._call(turn, name, seconds, idempotent=idempotent)
            case ["emit"]:
                turn.delta({"text": name})
                if not any(e.kind == "note" and e.body.get("step") == name for e in turn.past):
                    await turn.journal([Draft("note", {"step": name})])
            case ["sleep", seconds]:
                await asyncio.sleep(seconds)
            case ["ask"]:
                if not any(e.kind == "turn_resumed" and e.body.get("ask") == name for e in turn.past):
                    await turn.ask(name, {"question": name})
            case ["fail"]:
                raise RuntimeError(f"{name} was told to fail")
            case _:
                raise ValueError(f"{step!r} is no step")

    async def _call(self, turn: Turn, call: str, seconds: float, *, idempotent: bool) -> None:
        past = [e for e in turn.past if call in (*e.opens, *e.closes) or e.body.get("call") == call]
        if any(call in e.closes for e in past):
            return
        if past:
            await turn.journal([draft(CallRestarted(call, len(past) + 1))])
        else:
            await turn.journal([draft(CallStarted(call, "act", idempotent=idempotent, key=call))])
        await asyncio.sleep(seconds * ACTS_AT)
        self._recorder.effect(self._process, turn.conversation_id, call, call, turn.epoch)
        await asyncio.sleep(seconds * (1 - ACTS_AT))
        await turn.journal([draft(CallFinished(call, "acted"))])


@final
@dataclass(slots=True)
class Plant:
    """Where the runtimes of all nodes stand: outside of every process."""

    rng: random.Random
    outlives_nodes: bool = True
    takes_s: tuple[float, float] = (0.01, 0.2)
    fails: float = 0.0
    fails_for_good: float = 0.0
    hangs: float = 0.0
    standing: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """(conversation, process) by name."""

    def lose(self, process: SimProcess) -> None:
        """A process was killed, or may no longer be trusted: what cannot live without it goes, too."""
        if not self.outlives_nodes:
            self.standing = {n: at for n, at in self.standing.items() if at[1] != process.name}


@final
class SimProvider(RuntimeProvider):
    """One process's way to the plant."""

    kind = "simulated"

    def __init__(self, plant: Plant, recorder: Recorder) -> None:
        self.outlives_node = plant.outlives_nodes
        self._plant = plant
        self._recorder = recorder

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        progress("pull")
        await self._take_time("pull")
        progress("boot")
        await self._take_time("boot")
        self._plant.standing[spec.name] = (spec.conversation, _here().name)
        return _Runtime(spec.name)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        await self._take_time("configure")

    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        await self._take_time("attach")
        return _Runtime(spec.name) if spec.name in self._plant.standing else None

    async def discard(self, name: str, workspace: str | None = None) -> None:
        await self._take_time("discard")
        found = self._plant.standing.pop(name, None)
        if found is not None:
            self._recorder.teardown(_here(), found[0], name)

    async def list(self) -> Sequence[tuple[str, str]]:
        return [(name, at[0]) for name, at in self._plant.standing.items()]

    def kill_now(self) -> None:
        self._plant.lose(_here())

    async def _take_time(self, step: str) -> None:
        plant = self._plant
        if plant.rng.random() < plant.hangs:
            await asyncio.sleep(3600)
        await asyncio.sleep(plant.rng.uniform(*plant.takes_s))
        if plant.rng.random() < plant.fails:
            permanent = plant.rng.random() < plant.fails_for_good
            raise RuntimeFailure(f"{step} did not work", step=step, permanent=permanent)


@final
@dataclass(slots=True)
class _Runtime:
    """Runs nothing: the agent's calls act by themselves."""

    name: str

    @property
    def path(self) -> Path | None:
        return None

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        return Ran(0, "", "")

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        raise FileNotFoundError(path)

    async def write(self, path: str, content: bytes | str) -> None:
        return None


def _here() -> SimProcess:
    process = running_process()
    assert process is not None, "simulated agents and runtimes live in simulated processes"
    return process
