"""Runtimes in memory, and a provider that can be told to fail, hang, die, be slow or lie at each step. For tests of a node.

A :class:`Machine` is what there really is; each node has a :class:`FaultyProvider` on it, as nodes of one computer have.
Without faults it keeps the provider's contract. ::

    provider.will("provision", Fail("no room"), Hang())      # the next two calls; then it is honest again
    await provider.reached("provision", 2)                   # no test sleeps: wait until the step is entered
    provider.let_go()                                        # what hangs goes on, and does its work
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from tenure.abc import Ran, RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tenure.abc import Runtime

STEPS = frozenset({"provision", "ready", "configure", "attach", "discard", "list", "run", "read", "write"})


@final
@dataclass(frozen=True, slots=True)
class Fail:
    """Raise :class:`~tenure.abc.RuntimeFailure`; with `after`, the step was done all the same: its reply was lost."""

    reason: str = "out of order"
    permanent: bool = False
    after: bool = False


@final
@dataclass(frozen=True, slots=True)
class Hang:
    """Do not answer until :meth:`FaultyProvider.let_go`, or cancellation."""


@final
@dataclass(frozen=True, slots=True)
class Slow:
    """Do it after a while."""

    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Lie:
    """Answer that it was done, without doing it; ``attach`` says the opposite of the truth, ``list`` names nothing."""


@final
@dataclass(frozen=True, slots=True)
class Die:
    """Do it and say so; then every runtime of this name is gone, as if its machine had been lost."""


type Fault = Fail | Hang | Slow | Lie | Die


@final
@dataclass(slots=True)
class Machine:
    """What there really is. `answer` is what commands say; by itself they say nothing and succeed."""

    standing: dict[str, RuntimeSpec] = field(default_factory=dict[str, RuntimeSpec])
    paused: set[str] = field(default_factory=set[str])
    """Names of those that stand still until they are attached or asked for something."""
    workspaces: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    credentials: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    log: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(step, name of the runtime) of all that was really done, in order."""
    answer: Callable[[str | Sequence[str], str | None], Ran] = lambda command, stdin: Ran(0, "", "")


@final
class FaultyProvider(RuntimeProvider):
    """One node's way to the machine."""

    kind = "faulty"

    def __init__(self, machine: Machine | None = None, *, outlives_node: bool = False) -> None:
        self.machine = machine if machine is not None else Machine()
        self.outlives_node = outlives_node
        self.killed = 0
        """How often the end of trust was told."""
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._entered: Counter[str] = Counter()
        self._moved = asyncio.Event()
        self._hanging: set[asyncio.Event] = set()
        self._mine: set[str] = set()

    # --- what a test says -------------------------------------------------------------------------------------------

    def will(self, step: str, *faults: Fault) -> None:
        """The next calls of the step meet these faults, one each."""
        assert step in STEPS, f"the steps are {sorted(STEPS)}"
        self._faults[step].extend(faults)

    def always(self, step: str, fault: Fault | None) -> None:
        """Every further call of the step meets the fault; null: none does."""
        assert step in STEPS, f"the steps are {sorted(STEPS)}"
        if fault is None:
            self._always.pop(step, None)
        else:
            self._always[step] = fault

    async def reached(self, step: str, times: int = 1) -> None:
        """Wait until the step was entered so often, whatever became of it."""
        while self._entered[step] < times:
            await self._moved.wait()

    def let_go(self) -> None:
        """Whatever hangs goes on."""
        for waiting in self._hanging:
            waiting.set()

    # --- the contract -----------------------------------------------------------------------------------------------

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        progress("boot")
        fault = await self.meet("provision")
        if not isinstance(fault, Lie):
            self.did("provision", spec.name)
            self.machine.standing[spec.name] = spec
            self.machine.workspaces.setdefault(spec.workspace, {})
            self._mine.add(spec.name)
        self.told("provision", fault, spec.name)
        progress("ready")
        self.told("ready", await self.meet("ready"), spec.name)
        return MemoryRuntime(self, spec)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        fault = await self.meet("configure")
        if not isinstance(fault, Lie):
            self.did("configure", runtime.name)
            self.machine.credentials[runtime.name] = dict(credentials)
        self.told("configure", fault, runtime.name)

    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        fault = await self.meet("attach")
        there = spec.name in self.machine.standing and (self.outlives_node or spec.name in self._mine)
        self.told("attach", fault, spec.name)
        if there and spec.name in self.machine.paused:
            self.resume(spec.name)
        return MemoryRuntime(self, spec) if there is not isinstance(fault, Lie) else None

    async def discard(self, name: str, workspace: str | None = None) -> None:
        fault = await self.meet("discard")
        if not isinstance(fault, Lie):
            self.did("discard", name)
            self.machine.standing.pop(name, None)
            self.machine.credentials.pop(name, None)
            if workspace is not None:
                self.machine.workspaces.pop(workspace, None)
        self.told("discard", fault, name)

    async def list(self) -> Sequence[tuple[str, str]]:
        fault = await self.meet("list")
        self.told("list", fault)
        return [] if isinstance(fault, Lie) else [(n, s.conversation) for n, s in self.machine.standing.items()]

    async def workspaces(self) -> Sequence[str]:
        return list(self.machine.workspaces)

    def kill_now(self) -> None:
        self.killed += 1
        if not self.outlives_node:
            for name in self._mine:
                self.lose(name)

    def lose(self, name: str) -> None:
        """The runtime dies behind everybody's back."""
        self.machine.standing.pop(name, None)
        self.machine.paused.discard(name)

    def resume(self, name: str) -> None:
        """It was paused, and somebody needs it."""
        self.machine.paused.discard(name)
        self.did("resume", name)

    # --- what its runtimes ask --------------------------------------------------------------------------------------

    async def meet(self, step: str) -> Fault | None:
        """Enter the step: its fault, if it has one. What comes before the work has happened then."""
        self._entered[step] += 1
        self._moved.set()
        self._moved = asyncio.Event()
        fault = self._faults[step].popleft() if self._faults[step] else self._always.get(step)
        match fault:
            case Fail(after=False):
                self.told(step, Fail(fault.reason, fault.permanent, after=True))
            case Slow(seconds):
                await asyncio.sleep(seconds)
            case Hang():
                waiting = asyncio.Event()
                self._hanging.add(waiting)
                try:
                    await waiting.wait()
                finally:
                    self._hanging.discard(waiting)
            case _:
                pass
        return fault

    def told(self, step: str, fault: Fault | None, name: str | None = None) -> None:
        """The work is done; what is said of it, and what becomes of the runtime.

        :raises RuntimeFailure: as the fault has it.
        """
        if isinstance(fault, Die) and name is not None:
            self.lose(name)
        if isinstance(fault, Fail):
            raise RuntimeFailure(fault.reason, step=step, permanent=fault.permanent)

    def did(self, step: str, name: str) -> None:
        """The step was really done."""
        self.machine.log.append((step, name))


@final
class MemoryRuntime:
    """A runtime on a :class:`Machine`; files in memory, commands that its ``answer`` answers."""

    def __init__(self, provider: FaultyProvider, spec: RuntimeSpec) -> None:
        self.name = spec.name
        self._provider = provider
        self._spec = spec

    @property
    def path(self) -> Path | None:
        return None

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        fault = await self._provider.meet("run")
        ran = Ran(0, "", "")
        if not isinstance(fault, Lie):
            self._files()
            self._provider.did("run", self.name)
            ran = self._provider.machine.answer(command, stdin)
        self._provider.told("run", fault, self.name)
        return ran

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        fault = await self._provider.meet("read")
        self._provider.told("read", fault, self.name)
        files = self._files()
        if _inside(path) not in files or isinstance(fault, Lie):
            raise FileNotFoundError(path)
        if len(files[path]) > limit_bytes:
            raise InvalidInputError("path", f"{path!r} has more than {limit_bytes} bytes", "read a part of it")
        return files[path]

    async def write(self, path: str, content: bytes | str) -> None:
        fault = await self._provider.meet("write")
        if not isinstance(fault, Lie):
            self._files()[_inside(path)] = content.encode() if isinstance(content, str) else content
            self._provider.did("write", self.name)
        self._provider.told("write", fault, self.name)

    def _files(self) -> dict[str, bytes]:
        if self.name not in self._provider.machine.standing:
            raise RuntimeFailure(f"runtime {self.name} is gone", step="run")
        if self.name in self._provider.machine.paused:
            self._provider.resume(self.name)
        return self._provider.machine.workspaces[self._spec.workspace]


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidInputError("path", f"{path!r} leaves the workspace", "name a file inside of it")
    return path
