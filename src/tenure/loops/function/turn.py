"""What ``async def agent(turn)`` is given."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, cast, final

from tenure.errors import CallFailed, InvalidInputError, LoopError
from tenure.errors import CallInterrupted as CallInterruptedError
from tenure.journal import (
    CORE_COMMANDS,
    CORE_KINDS,
    CallFinished,
    CallInterrupted,
    CallRestarted,
    CallStarted,
    Draft,
    Event,
    Json,
    JsonObject,
    TurnResumed,
    TurnWaiting,
    canonical,
    digest,
    draft,
    read_body,
)
from tenure.loops.function.replay import AskStep, CallStep, EmitStep, Replay
from tenure.loops.function.threads import in_thread

if TYPE_CHECKING:
    from tenure.abc import Message, Runtime, Turn

KIND = re.compile(r"[a-z][a-z0-9_.]{0,63}")
ARGUMENTS_LIMIT = 16 << 10
"""Arguments of more bytes of JSON are journaled as their digest."""
ERROR_CHARS = 2000
CANCELLED = "CancelledError"

_inside: ContextVar[str] = ContextVar("tenure_inside_call", default="")
"""The call that the running code belongs to: what is inside does not run on replay, so it makes no steps."""


@final
class FunctionTurn:
    """One turn of a function agent: what came, what was, where to work, and three ways to act on the journal.

    **Resumption.** When the owner is lost, the next one runs the function again from the top with the same turn.
    A call that had finished returns its recorded result without running, and what was emitted is not emitted again.
    So the function must make the same calls, emits and asks in the same order each time: put times, chance, model
    replies and all else that may differ into :meth:`call`. Otherwise the turn fails with
    :class:`~tenure.errors.TurnDivergedError`.

    **Branches.** Several calls may run at once (``asyncio.gather``, ``asyncio.TaskGroup``). They are numbered in the
    order in which they are made, so that order must follow from the function and from results of calls alone. Give a
    call ``timeout_s=`` instead of putting a timer of your own around it.

    **Side effects** belong into calls, and a call's function makes no steps itself: only :meth:`delta` works inside.
    """

    def __init__(self, turn: Turn, history: Sequence[Event], *, call_timeout_s: float) -> None:
        self.history = history
        """The journal before this turn, oldest first."""
        self._turn = turn
        self._call_timeout_s = call_timeout_s
        self._replay = Replay(turn.id, turn.past)
        self._restarts = [body for event in turn.past if isinstance(body := read_body(event), CallRestarted)]
        self._host = asyncio.get_running_loop()
        self._calls = 0
        self._asks = 0
        self._asking = asyncio.Lock()
        self._running: dict[str, asyncio.Task[Any] | None] = {}
        """Calls without outcome, with the task that made each."""
        self._cut: list[str] = []
        """Those among them that the agent itself has cancelled."""
        self._over = False

    # --- what came, what was, where to work -------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The turn's name, the same in every attempt."""
        return self._turn.id

    @property
    def conversation_id(self) -> str:
        return self._turn.conversation_id

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages that this turn answers, each with ``text``, ``content``, ``seq`` and ``key``."""
        return self._turn.messages

    @property
    def settings(self) -> JsonObject:
        return self._turn.settings

    @property
    def runtime(self) -> Runtime:
        """Where tools run. Use it inside of calls: ``await turn.call("ls", turn.runtime.run, "ls")``."""
        return self._turn.runtime

    @property
    def epoch(self) -> int:
        return self._turn.epoch

    @property
    def attempt(self) -> int:
        """1, and one more with each owner that takes the turn over."""
        return self._turn.attempt

    @property
    def resumed(self) -> bool:
        return self._turn.resumed

    @property
    def lost(self) -> bool:
        """Whether the conversation is no longer ours; for code in a thread that wants to stop early."""
        return self._turn.lost

    # --- acting -----------------------------------------------------------------------------------------------------

    async def call(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        idempotent: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Run ``fn(*args)`` at most once, or, if it is `idempotent`, at least once with one idempotency key.

        `fn` may be async; anything else runs in a thread of its own, so blocking code costs no other conversation. It
        gets the keyword ``idempotency_key`` if it has a parameter of that name. The result is what JSON makes of it
        (``as_json()`` is asked first), in every attempt. Arguments that are JSON are journaled.

        A thread cannot be stopped: after a time-out it may go on, while the call has failed.

        :raises CallFailed: `fn` raised, took longer than `timeout_s`, or gave no JSON. In every attempt, so that
            ``except`` sees the same; the cause is the exception itself in the first.
        :raises CallInterrupted: an earlier owner was lost during this call and its outcome is unknown.
        :raises TurnDivergedError: the journal holds another step at this place.
        """
        self._may_step(f"call {name!r}")
        if not isinstance(cast("Any", name), str) or not 0 < len(name) <= 200:
            raise InvalidInputError("name", "a call needs a name of 1 to 200 characters", "name what the call does")
        if not callable(fn):
            raise InvalidInputError(
                "fn", f"call {name!r} got {fn!r}, which cannot be called", "pass the function itself"
            )
        step = CallStep(name, bool(idempotent), _journaled_arguments(args))
        recorded = await self._replay.step(step)
        if recorded is None:
            call = await self._start(step)
        else:
            self._calls += 1
            call = recorded.opens[0]
            outcome = await self._replay.outcome(call)
            if outcome is not None:
                return await self._again(call, name, outcome)
            await self._reopen(call, name, idempotent)
        return await self._run(call, name, fn, args, timeout_s or self._call_timeout_s)

    async def emit(self, kind: str, body: JsonObject | None = None) -> None:
        """Journal an event of the agent's own kind, once, with the body unchanged.

        :raises InvalidInputError: the kind is the core's or no name, the body is no JSON object, or it is too large.
        """
        self._may_step(f"emit {kind!r}")
        step = EmitStep(_own_kind(kind), _json_object(body if body is not None else {}))
        if await self._replay.step(step) is None:
            await self._settle_cut()
            await self._turn.journal([Draft(step.kind, step.body, self.id)])

    async def ask(self, question: Json) -> Json:
        """Wait for a person's answer to `question`: the ``answer`` of the ``answer`` command. It may take days."""
        self._may_step("ask")
        question = _checked_json("question", question)
        recorded = await self._replay.step(AskStep(question))
        ask: str | None = None
        if recorded is not None:
            self._asks += 1
            asked = read_body(recorded)
            assert isinstance(asked, TurnWaiting), "what an ask matches"
            ask = asked.ask
            outcome = await self._replay.outcome(ask)
            if outcome is not None:
                answered = read_body(outcome)
                assert isinstance(answered, TurnResumed), "what closes an ask"
                return answered.answer
        async with self._asking:  # one question at a time: an answer need not say which it is for
            await self._settle_cut()
            if ask is None:
                self._asks += 1
                ask = f"{self.id}.a{self._asks}"
            return await self._turn.ask(ask, question)

    def delta(self, text: str) -> None:
        """Show a piece of text to whoever watches, as it comes; not journaled, may be lost. Also from a thread."""
        if not self._replay.done:
            return  # whoever watched has seen it
        if asyncio._get_running_loop() is self._host:  # pyright: ignore[reportPrivateUsage] - documented, and null in a thread
            self._turn.delta({"text": text})
        else:
            self._host.call_soon_threadsafe(self._delta_from_thread, text)

    def _delta_from_thread(self, text: str) -> None:
        if not self._over and not self._turn.lost:
            self._turn.delta({"text": text})

    # --- the life of a call -----------------------------------------------------------------------------------------

    async def _start(self, step: CallStep) -> str:
        await self._settle_cut()
        self._calls += 1
        call = f"{self.id}.c{self._calls}"
        started = CallStarted(call, step.name, step.idempotent, self._key(call), step.arguments)
        await self._open(call, draft(started, self.id))
        return call

    async def _reopen(self, call: str, name: str, idempotent: bool) -> None:
        """A call without outcome: an idempotent one runs again, with the same key; another one never does."""
        await self._settle_cut()
        if not idempotent:
            await self._turn.journal([draft(CallInterrupted(call, "owner lost"), self.id)])
            raise CallInterruptedError(call, name)
        attempt = 2 + sum(restart.call == call for restart in self._restarts)
        await self._open(call, draft(CallRestarted(call, attempt), self.id))

    async def _open(self, call: str, opening: Draft) -> None:
        """Through the fence before it runs: this append is the check that the conversation is still ours."""
        self._running[call] = asyncio.current_task()
        try:
            await self._turn.journal([opening])
        except asyncio.CancelledError:
            self._cut.append(call)  # what was handed over is written also for a cancelled caller: the call is open
            raise
        except BaseException:
            del self._running[call]
            raise

    async def _run(self, call: str, name: str, fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        cause: BaseException | None = None
        finished = CallFinished(call)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                result = _as_json(name, await self._invoke(call, fn, args))
            finished = CallFinished(call, result)
        except asyncio.CancelledError as error:
            if _cancelled_from_outside():
                self._cut.append(call)
                raise
            cause = error
        except (Exception, SystemExit) as error:
            cause = TimeoutError(f"no result within {timeout_s:g} s") if limit.expired() else error
        if cause is None:
            try:
                await self._finish(call, finished)
                return finished.result
            except InvalidInputError as error:
                cause = error  # too large for the journal
        failure = _error(cause, self._turn.masked)
        await self._finish(call, CallFinished(call, error=failure))
        raise CallFailed(call, name, failure) from cause

    async def _invoke(self, call: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        keyed = {"idempotency_key": self._key(call)} if _asks_for_key(fn) else {}
        token = _inside.set(call)
        try:
            if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
                return await fn(*args, **keyed)
            result = await in_thread(f"tenure-call-{call}", lambda: fn(*args, **keyed))
            return await result if inspect.isawaitable(result) else result
        finally:
            _inside.reset(token)

    async def _finish(self, call: str, outcome: CallFinished) -> None:
        task = self._running.pop(call, None)  # before the append, which the cancellation of its caller does not undo
        try:
            await self._turn.journal([draft(outcome, self.id)])
        except InvalidInputError:
            self._running[call] = task
            raise

    async def _again(self, call: str, name: str, outcome: Event) -> Any:
        """The recorded outcome once more."""
        body = read_body(outcome)
        if not isinstance(body, CallFinished):
            raise CallInterruptedError(call, name)
        if body.error is None:
            return body.result
        error = body.error if isinstance(body.error, Mapping) else {"message": str(body.error)}
        if error.get("type") == CANCELLED and error.get("by") == "agent":
            await self._host.create_future()  # the agent cancels it now as it did then
        raise CallFailed(call, name, error)

    def _key(self, call: str) -> str:
        return f"{self.conversation_id}/{call}"

    # --- the journal ------------------------------------------------------------------------------------------------

    def _may_step(self, what: str) -> None:
        if inside := _inside.get():
            raise InvalidInputError(
                what, f"is made inside of call {inside}, which is not run again", "make it before or after that call"
            )
        if self._over:
            raise LoopError(f"{what}: turn {self.id} has ended; await all that an agent starts before it returns")

    async def _settle_cut(self) -> None:
        """The outcome of calls that the agent has cancelled, before its next step."""
        cut, self._cut = self._cut, []
        for call in cut:
            self._running.pop(call, None)
        if cut:
            await self._turn.journal([draft(CallFinished(call, error=_cut_short()), self.id) for call in cut])

    def finish(self) -> None:
        """The agent has returned.

        :raises TurnDivergedError: the journal holds steps that it did not make.
        """
        self._replay.finish()

    def abandon(self) -> None:
        """The turn is over, however it ended: calls that the agent left behind are cancelled, and it makes no more steps.

        Their outcome, ``interrupted``, is written with the end of the turn.
        """
        self._over = True
        for task in self._running.values():
            if task is not None and task is not asyncio.current_task():
                task.cancel()


def _cancelled_from_outside() -> bool:
    """Whether somebody has cancelled this task; otherwise what was awaited was cancelled, which is a failure."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cut_short() -> dict[str, Json]:
    return {"type": CANCELLED, "message": "cancelled by the agent; whether it took effect is unknown", "by": "agent"}


def _error(error: BaseException, masked: Callable[[str], str]) -> dict[str, Json]:
    message = masked(str(error))[:ERROR_CHARS].encode(errors="replace").decode()
    return {"type": type(error).__name__, "message": message}


def _asks_for_key(fn: Callable[..., Any]) -> bool:
    try:
        return "idempotency_key" in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False  # a built-in that does not tell


def _journaled_arguments(args: Sequence[Any]) -> Json:
    """The arguments if they are JSON and short, their digest if they are long, null if they are no JSON."""
    try:
        value = _copy(list(args))
        size = len(canonical(value).encode())
    except (TypeError, ValueError, RecursionError):
        return None
    return value if size <= ARGUMENTS_LIMIT else {"digest": digest(value)}


def _as_json(name: str, result: Any) -> Any:
    """The result as a later attempt reads it: what JSON makes of it."""
    shaped = result.as_json() if callable(getattr(result, "as_json", None)) else result
    try:
        return _copy(shaped)
    except (TypeError, ValueError, RecursionError) as error:
        _refuse_result(name, shaped, error)


def _refuse_result(name: str, result: Any, error: Exception) -> NoReturn:
    raise InvalidInputError(
        f"result of call {name!r}", f"is a {type(result).__name__} that is no JSON ({error})", "return plain JSON"
    ) from error


def _own_kind(kind: str) -> str:
    if not isinstance(cast("Any", kind), str) or not KIND.fullmatch(kind):
        raise InvalidInputError(
            "kind", f"{str(kind)[:80]!r} is no name of a kind", "use a-z, then a-z, 0-9, _ and ., at most 64"
        )
    if kind in CORE_KINDS or kind in CORE_COMMANDS:
        raise InvalidInputError("kind", f"{kind!r} is a kind of the core", "choose a name of your own")
    return kind


def _json_object(body: Any) -> JsonObject:
    if not isinstance(body, Mapping):
        raise InvalidInputError("body", f"is a {type(body).__name__}, must be a JSON object", "emit a dict")
    return _checked_json("body", cast("JsonObject", body))


def _checked_json(field: str, value: Json) -> Any:
    """A copy of the value that the caller cannot change any more.

    :raises InvalidInputError: it is no JSON.
    """
    try:
        return _copy(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(field, f"is no JSON ({error})", "use plain JSON values") from None


def _copy(value: Any) -> Any:
    """What JSON makes of the value, in its own order.

    :raises TypeError: it is no JSON. :raises ValueError: neither is a part of it.
    """
    canonical(value)  # also refuses text that is no Unicode
    return json.loads(json.dumps(value))
