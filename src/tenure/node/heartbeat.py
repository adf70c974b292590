"""The renewal of the node's lease: in a thread and on a connection of its own, anchored to the start of the attempt.

It shares no loop, pool, lock or queue with agent code, so that a blocked event loop does not cost the lease. It alone
moves the trust window, and it alone ends it: past ``stop_at`` it says *stop*, past ``trusted_until`` it kills the
children's process groups itself and says *lost*, in that order, and then never renews again (rule 11).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Dead, Death, Granted, Refused
from tenure.errors import StoreError, StoreUnavailableError
from tenure.lease import TrustWindow, new_token

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tenure.abc import About, Load, Store
    from tenure.clock import Clock, Deadline
    from tenure.facts import Facts
    from tenure.lease import IncarnationId, Timing


@final
class Heartbeat:
    """Keeps one incarnation alive, from registration to retirement or loss.

    `stop` and `lost` are called once each, in this heartbeat's thread: they must only pass the word on.
    """

    def __init__(
        self,
        store: Store,
        incarnation: IncarnationId,
        about: About,
        *,
        timing: Timing,
        clock: Clock,
        rng: random.Random,
        load: Callable[[], Load],
        stop: Callable[[str], None],
        lost: Callable[[str], None],
        told: Facts | None = None,
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._about = about
        self._timing = timing
        self._clock = clock
        self._rng = rng
        self._load = load
        self._stop = stop
        self._lost = lost
        self._facts = told or facts.Facts()
        self._retiring = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaves = False
        self._end = _uncancellable()
        self._registered = _uncancellable()
        self._window: TrustWindow | None = None
        self.last_attempt: Deadline | None = None

    def trusts(self) -> bool:
        """Whether the node may act for what it owns, now. From any thread."""
        window = self._window
        return window is not None and window.trusts(self._clock.boottime())

    @property
    def window(self) -> TrustWindow | None:
        """The trust window; null before registration and after the end."""
        return self._window

    async def start(self, *, threaded: bool, spawn: Callable[..., object]) -> None:
        """Register, and renew from then on.

        :raises StoreError: not registered; this incarnation is spent, try with a new one.
        """
        if threaded:
            threading.Thread(target=self._in_a_thread, name="tenure-heartbeat", daemon=True).start()
        else:
            spawn(self._main(), "heartbeat")
        await asyncio.wrap_future(self._registered)

    async def retire(self) -> None:
        """Renew no more and tell the store that this incarnation is over; returns when that was tried."""
        self._leaves = True
        loop = self._loop
        if loop is None or self._end.done():
            return  # not begun: it will see the flag before it registers
        with suppress(RuntimeError):  # it ends just now
            loop.call_soon_threadsafe(self._retiring.set)
        try:
            async with asyncio.timeout(4 * self._timing.call_timeout_s):
                await asyncio.wrap_future(self._end)
        except TimeoutError:
            self._facts.tell(facts.RetirementUnanswered(self._incarnation, "the heartbeat does not end"))

    def _in_a_thread(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._main())
        except Exception as error:  # it never began: an event loop takes descriptors, and there may be none left
            if self._end.done():
                raise
            self._registered.set_exception(error)
            self._end.set_result(None)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with self._store as store:
                await self._register(store)
                await self._beat(store)
                self._window = None
                await self._retiring.wait()  # after a loss: its loops end first (rule 11)
                await self._bury_self(store)
        except Exception as error:  # whatever it is: without a heartbeat nothing may go on
            if not self._registered.done():
                self._registered.set_exception(error)
            else:
                self._facts.tell(facts.HeartbeatFailed(self._incarnation, repr(error)), traced=True)
                self._lost(f"the heartbeat failed: {error!r}")
        finally:
            self._window = None
            if not self._registered.done():
                self._registered.set_exception(StoreUnavailableError("the heartbeat was ended"))
            self._end.set_result(None)

    async def _register(self, store: Store) -> None:
        if self._leaves:
            raise StoreUnavailableError("the node has left before it registered")
        started = self._clock.boottime()
        try:
            async with asyncio.timeout(self._timing.call_timeout_s * 2):
                answer = await store.register(self._incarnation, self._about, self._timing.ttl_s)
        except TimeoutError:
            raise StoreUnavailableError("the store did not answer the registration in time") from None
        if isinstance(answer, Refused):
            raise StoreUnavailableError(f"the store refused the registration: {answer.reason}")
        self._window = TrustWindow(self._timing, started)
        self.last_attempt = started
        self._registered.set_result(None)

    async def _beat(self, store: Store) -> None:
        """Renew until told to retire; returns after loss as well."""
        beat, stopped = 0, False
        nonce, first_sent = new_token(), None
        due = self._clock.boottime() + self._timing.beat_s
        while not self._leaves:
            window = self._window
            assert window is not None, "set by registration"
            now = self._clock.boottime()
            if window.must_stop(now) and not stopped:
                stopped = True
                self._stop("no renewal was confirmed in time")
            if not window.trusts(now):
                self._lost("no renewal was confirmed in time")
                return
            mark = window.trusted_until if stopped else window.stop_at
            if stopped:  # given up for good: no further renewal, or nobody could take over
                await self._wait(mark - now)
                continue
            if now < due:
                await self._wait(min(due, mark) - now)
                continue
            if first_sent is None:
                first_sent = now
            self.last_attempt = now
            answer = await self._renew(store, beat, nonce, min(self._timing.call_timeout_s, mark - now))
            match answer:
                case Granted(beat=next_beat):
                    answered = self._clock.boottime()
                    slack_s = window.trusted_until - answered
                    self._facts.tell(facts.Renewed(self._incarnation, max(0.0, answered - now), slack_s))
                    self._window = window.renewed(first_sent)
                    beat, nonce = next_beat, new_token()
                    due, first_sent = first_sent + self._timing.beat_s, None
                case Dead():
                    self._stop("the store calls this incarnation dead")
                    self._lost("the store calls this incarnation dead")
                    return
                case None:
                    due = self._clock.boottime() + self._timing.beat_s * self._rng.uniform(0.1, 0.4)

    async def _renew(self, store: Store, beat: int, nonce: str, timeout_s: float) -> Granted | Dead | None:
        """One transmission; null when there was no answer: the same beat and nonce go out again."""
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                return await store.renew(self._incarnation, beat, nonce, self._timing.ttl_s, self._load())
        except (StoreError, TimeoutError, OSError) as error:
            self._facts.tell(facts.RenewalUnanswered(self._incarnation, str(error) or "timed out"))
            return None

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._retiring.wait()
        except TimeoutError:
            return

    async def _bury_self(self, store: Store) -> None:
        try:
            async with asyncio.timeout(self._timing.call_timeout_s * 2):
                await store.bury(self._incarnation, Death.RETIRED)
        except (StoreError, TimeoutError, OSError) as error:
            self._facts.tell(facts.RetirementUnanswered(self._incarnation, str(error) or "timed out"))


def _uncancellable() -> Future[None]:
    """A future of the heartbeat's thread: whoever gives up waiting for it does not cancel it."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


@final
class LoopWatch:
    """Reports an event loop that does not answer, with the stack that blocks it. Costs neither lease nor turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, told: Facts | None = None) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._facts = told or facts.Facts()
        self._thread_id = threading.get_ident()
        self._ended = threading.Event()
        self.stalls = 0

    def start(self) -> None:
        threading.Thread(target=self._watch, name="tenure-loop-watch", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._limit_s):
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            if answered.wait(self._limit_s) or self._ended.is_set():
                continue
            self.stalls += 1
            frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage] - documented API
            where = "".join(traceback.format_stack(frame, limit=8)) if frame else "(unknown)"
            self._facts.tell(facts.LoopBlocked(self._limit_s, where))
            while not answered.wait(self._limit_s) and not self._ended.is_set():
                pass
