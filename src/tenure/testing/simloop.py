"""An event loop in virtual time, shared by simulated processes that can be frozen and killed.

Time stands still while anything is ready and then jumps to the next timer: an hour of a cluster's life takes as long
as the work in it. Nothing waits, nothing is asked of the machine, nothing is left to chance, so a run is a function
of its seed.

Each callback belongs to the :class:`SimProcess` in whose context it was scheduled. A process can be *paused* (its
callbacks are held, in order, and run when it resumes: SIGSTOP and SIGCONT), *killed* (they are dropped for ever, and
no ``finally`` runs: kill -9) or *slowed* (they run one by one with a gap: a starved machine). What other processes
have under way for it, such as a request that the network carries, goes on.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import inspect
import sys
from collections import deque
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, final

from tenure.clock import Deadline, Instant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    type Work = Coroutine[Any, Any, Any]

_PROCESS: ContextVar[SimProcess | None] = ContextVar("tenure_sim_process", default=None)

STANDSTILL_STEPS = 200_000
"""So many callbacks at one instant of virtual time are a loop that never ends."""


class SimDeadlockError(RuntimeError):
    """Nothing is ready and nothing is scheduled, yet the main coroutine is not done; or time no longer moves."""


class SimTimeoutError(RuntimeError):
    """The main coroutine was not done within the virtual time that it was given."""


def running_process() -> SimProcess | None:
    """The simulated process whose code runs, or null outside of one."""
    return _PROCESS.get()


@final
class _Callback(asyncio.TimerHandle):
    """A callback with the process that it belongs to."""

    __slots__ = ("process", "run_in")

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        context = context if context is not None else copy_context()
        super().__init__(when, callback, args, loop, context)
        self.run_in = context
        self.process = context.get(_PROCESS)

    def cancel(self) -> None:
        # The loop looks at cancelled(); TimerHandle would count in private fields of asyncio's own loops.
        asyncio.Handle.cancel(self)


@final
class SimProcess:
    """One simulated process of the operating system. Made by :meth:`SimLoop.process`."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.paused = False
        self.dead = False
        self.gap_s = 0.0
        """How long each callback takes; 0: no time at all."""
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the process was killed."""
        self._held: deque[_Callback] = deque()
        self._pumping = False
        self._remains: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        state = "dead" if self.dead else "paused" if self.paused else "running"
        return f"<process {self.name}: {state}>"

    def spawn[T](self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run the coroutine inside the process; all that it schedules belongs to it as well."""
        return self.loop.create_task(work, name=name, context=self.context())

    def context(self) -> Context:
        """A context of the process: a callback that is scheduled with it belongs to the process."""
        context = copy_context()
        context.run(_PROCESS.set, self)
        return context

    async def call[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine inside the process and wait, from outside of it, for the result.

        A caller that is cancelled leaves: what it asked for goes on.

        :raises ProcessLookupError: the process is dead, or was killed meanwhile.
        """
        if self.dead:
            work.close()
            raise ProcessLookupError(f"{self.name} is dead")
        task = self.spawn(work)
        task.add_done_callback(_heard)  # maybe by nobody else
        await asyncio.wait([task, self.ended], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ProcessLookupError(f"{self.name} was killed")
        return task.result()

    def pause(self) -> None:
        """SIGSTOP: nothing of the process runs until :meth:`resume`; its timers go off unseen meanwhile."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what was held runs now, in order, before anything newer."""
        self.paused = False
        self._pump()

    def slow(self, gap_s: float) -> None:
        """From now on each callback takes `gap_s`; 0 ends it."""
        self.gap_s = gap_s
        self._pump()

    def kill(self) -> None:
        """kill -9: nothing of the process ever runs again, no ``finally`` and no ``except`` either."""
        if self.dead:
            return
        self.dead = True
        # Strong references: a task that is collected would be closed, and run its ``finally`` blocks.
        self._remains = [task for task in asyncio.all_tasks(self.loop) if self._owns(task)]
        if not self.ended.done():
            self.ended.set_result(None)

    def takes(self, callback: _Callback) -> bool:
        """Whether the callback may run at once; else it is dropped or held here."""
        if self.dead:
            return False
        if not self.paused and not self._held and not self.gap_s:
            return True
        self._held.append(callback)
        self._pump()
        return False

    def _pump(self) -> None:
        if self._held and not self._pumping and not self.paused and not self.dead:
            self._pumping = True
            self.loop.call_later(self.gap_s, self._run_one, context=Context())

    def _run_one(self) -> None:
        self._pumping = False
        if self._held and not self.paused and not self.dead:
            self.loop.run_callback(self._held.popleft())
        self._pump()

    def _owns(self, task: asyncio.Task[Any]) -> bool:
        return task.get_context().get(_PROCESS) is self

    def unwind(self) -> None:
        """After the run: free what a killed process left behind, deaf to what its ``finally`` blocks try."""
        self._held.clear()
        remains, self._remains = self._remains, []
        for task in remains:
            _close_quietly(task)


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _close_quietly(task: asyncio.Task[Any]) -> None:
    work = task.get_coro()
    if not inspect.iscoroutine(work):
        return
    for _ in range(100):  # a ``finally`` that awaits ignores being closed; the next attempt ends that await
        if inspect.getcoroutinestate(work) in (inspect.CORO_CLOSED, inspect.CORO_RUNNING):
            return
        try:
            task.get_context().run(work.close)
        except BaseException:  # whatever a dead process thinks of its death
            continue


@final
class SimLoop(asyncio.AbstractEventLoop):
    """The event loop. Use :func:`simulate`, which opens and closes it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[_Callback] = deque()
        self._timers: list[tuple[float, int, _Callback]] = []
        self._scheduled = 0
        self._running = False
        self._closed = False
        self._processes: list[SimProcess] = []
        self.steps = 0
        """Callbacks that ran so far: with the seed, part of what two equal runs must agree on."""
        self.errors: list[str] = []
        """What callbacks and forgotten tasks raised; a clean run has none."""

    def process(self, name: str) -> SimProcess:
        """A new simulated process."""
        made = SimProcess(self, name)
        self._processes.append(made)
        return made

    # time

    def time(self) -> float:
        return self._now

    def _advance(self) -> None:
        """Jump to the next timer, and make ready all that is due there."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            held = [str(process) for process in self._processes if process.paused]
            raise SimDeadlockError(
                f"at {self._now:.3f} s nothing is ready and no timer is set: the main coroutine waits for ever"
                + (f"; paused: {', '.join(held)}" if held else "")
            )
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            callback = heapq.heappop(timers)[2]
            if not callback.cancelled():
                self._ready.append(callback)

    # running

    def run_callback(self, callback: _Callback) -> None:
        """Run it now, in its context."""
        if callback.cancelled():
            return
        self.steps += 1
        callback._run()
        del callback  # the frame lives on in the traceback of a failed task, which would then keep itself alive

    def run_until_complete(self, future: Any, limit_s: float = float("inf")) -> Any:
        """Run until the coroutine or future is done, at most `limit_s` of virtual time.

        :raises SimDeadlockError: it waits for what cannot come. :raises SimTimeoutError: the limit has passed.
        """
        main = future if asyncio.isfuture(future) else self.create_task(future)
        until = self._now + limit_s
        hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        self._running = True
        try:
            self._run_to(main, until)
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)
        return main.result()

    def _run_to(self, main: asyncio.Future[Any], until: float) -> None:
        moved_at = self.steps
        while not main.done():
            if not self._ready:
                self._advance()
                moved_at = self.steps
                if self._now > until:
                    raise SimTimeoutError(f"not done after {self._now:.1f} s of virtual time")
            callback = self._ready.popleft()
            if callback.process is None or callback.process.takes(callback):
                self.run_callback(callback)
            if self.steps - moved_at > STANDSTILL_STEPS:
                raise SimDeadlockError(f"time stands still at {self._now:.3f} s: a loop that never waits: {callback!r}")

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        process = _PROCESS.get()
        if not self._closed and (process is None or not process.dead):
            self.create_task(generator.aclose())  # type: ignore[arg-type]

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the run: kill what is left, and free it."""
        outside = [task for task in asyncio.all_tasks(self) if task.get_context().get(_PROCESS) is None]
        for process in self._processes:
            process.kill()
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        asyncio._set_running_loop(self)  # so that what they still try to start meets the closed loop
        try:
            for task in outside:
                _close_quietly(task)
            for process in self._processes:
                process.unwind()
        finally:
            asyncio._set_running_loop(None)

    # scheduling

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        made = _Callback(self._now, callback, args, self, context)
        if not self._closed:  # a dead process may go on to schedule what never runs
            self._ready.append(made)
        return made

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + max(0.0, delay), callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        made = _Callback(when, callback, args, self, context)
        self._scheduled += 1
        if not self._closed:
            heapq.heappush(self._timers, (when, self._scheduled, made))
        return made

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task[T](
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        if self._closed:
            coro.close()
            raise RuntimeError("the simulated event loop is closed")
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., object], *args: Any) -> asyncio.Future[Any]:
        raise RuntimeError(f"{func!r} asks for a thread: a simulation has none; run it inline")

    # errors

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Remember what went wrong in a callback or a forgotten task, unless its process is dead."""
        task = context.get("task") or context.get("future")
        process = task.get_context().get(_PROCESS) if isinstance(task, asyncio.Task) else _PROCESS.get()
        if self._closed or (process is not None and process.dead):
            return
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: they are closed as they are dropped."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""


def simulate[T](main: Callable[[SimLoop], Coroutine[Any, Any, T]], limit_s: float = 3600.0) -> T:
    """Run ``main(loop)`` in virtual time, at most `limit_s` of it, and take everything down afterwards.

    The collector of garbage is off meanwhile: when it comes depends on what ran before, and finalizers act.

    :raises SimDeadlockError: everybody waits. :raises SimTimeoutError: the limit has passed.
    """
    collecting = gc.isenabled()
    gc.disable()
    loop = SimLoop()
    try:
        return loop.run_until_complete(main(loop), limit_s)
    finally:
        loop.close()
        if collecting:
            gc.enable()


@final
class LoopClock:
    """A clock of one machine in the simulation, driven by the loop's virtual time.

    ``rate`` is how fast its boot time runs (1.01: one percent fast). Wall time may be stepped, and must not matter;
    boot time may be stepped forward for a store whose fail-over lands on another machine.
    """

    def __init__(self, loop: SimLoop, *, boot_s: float = 1000.0, rate: float = 1.0, unix_s: float = 1.8e9) -> None:
        self._loop = loop
        self._boot_s = boot_s
        self._rate = rate
        self._unix_s = unix_s

    def now(self) -> Instant:
        return Instant(round(self._unix_s + self._loop.time(), 3))

    def boottime(self) -> Deadline:
        return Deadline(self._boot_s + self._loop.time() * self._rate)

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._unix_s += seconds

    def step_boot(self, seconds: float) -> None:
        """The clock that grants is another one from now on."""
        self._boot_s += seconds
