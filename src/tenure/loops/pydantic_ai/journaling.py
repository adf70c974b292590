"""Between an agent and what it uses: a model that repeats what it said, and tools whose calls are journaled."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from pydantic_ai import exceptions
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.toolsets import WrapperToolset
from pydantic_core import to_jsonable_python

from tenure.errors import CallFailed, OwnershipLostError
from tenure.journal import (
    CallFinished,
    CallInterrupted,
    CallRestarted,
    CallStarted,
    Draft,
    Json,
    canonical,
    digest,
    draft,
    read_body,
)
from tenure.loops.pydantic_ai.messages import INTERRUPTED, replies, result_as_json, result_from_json
from tenure.loops.pydantic_ai.workplace import CALL_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import WrapModelRequestHandler
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

    from tenure.abc import Turn

    type Run = Callable[[], Awaitable[Any]]

ARGUMENTS_LIMIT: Final = 16 << 10
"""Arguments of more bytes of JSON are journaled as their digest; the reply that holds them stands in the journal."""
ERROR_CHARS: Final = 2000
_SAID: Final = ("ModelRetry", "ToolFailed")
"""What a tool raises to tell the model something."""
_PUT_OFF: Final = ("ApprovalRequired", "CallDeferred")
"""What a tool raises before it does anything."""
_CUT: Final[Json] = {
    "type": "ModelRetry",
    "message": "The tool took too long and was given up; its outcome is unknown.",
}


@final
class Calls:
    """The calls of tools of one turn: each begun and ended through the fence, none run twice in silence.

    A call is named after the turn, the number of the reply that asks for it, and its place in it, so that every attempt
    gives it the same name, in whatever order the calls of a reply run.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.reply: ModelResponse | None = None
        self.replies = 0
        self.recorded = deque(replies(turn.past))
        """What the model has said in earlier attempts and not yet in this one."""
        self._outcomes = {call: read_body(e) for e in turn.past for call in e.closes}
        self._opened = {call for e in turn.past for call in e.opens}
        self._restarts = [body.call for e in turn.past if isinstance(body := read_body(e), CallRestarted)]
        self._named: set[str] = set()
        self._cut: list[str] = []
        """Calls that a time limit of the agent's has ended, not yet journaled."""

    def hear(self, reply: ModelResponse) -> None:
        """The model has replied: its calls come next."""
        self.reply = reply
        self.replies += 1

    async def run(
        self, name: str, arguments: dict[str, Any], ctx: RunContext[Any], *, idempotent: bool, tool: Run
    ) -> Any:
        """What the tool gives back, now or in an earlier attempt; or that nobody knows.

        :raises OwnershipLostError: refused: the tool did not start, or its outcome is not ours to tell.
        :raises Exception: what the tool raises; :class:`~tenure.errors.CallFailed` where it did so in an earlier attempt.
        """
        call = self._name(ctx.tool_call_id)
        key = f"{self.turn.conversation_id}/{call}"
        if (outcome := self._outcomes.get(call)) is not None:
            return _again(call, name, outcome)
        if call not in self._opened:
            opening = draft(CallStarted(call, name, idempotent, key, _journaled(arguments)), self.turn.id)
        elif idempotent:
            opening = draft(CallRestarted(call, 2 + self._restarts.count(call)), self.turn.id)
        else:
            await self.turn.journal([draft(CallInterrupted(call, "owner lost"), self.turn.id)])
            return INTERRUPTED
        return await self._run(call, key, opening, tool)

    async def _run(self, call: str, key: str, opening: Draft, tool: Run) -> Any:
        finished: CallFinished | None = None
        token = CALL_KEY.set(key)
        try:
            await self.turn.journal([opening])
            try:
                result = result_as_json(await tool())
                finished = CallFinished(call, result)
                await self.turn.journal([draft(finished, self.turn.id)])
            except OwnershipLostError:
                raise
            except Exception as error:
                finished = CallFinished(call, error=_error(error, self.turn.masked))
                await self.turn.journal([draft(finished, self.turn.id)])
                raise
        except asyncio.CancelledError:
            if finished is None:  # else it is written, as all that was handed over
                self._cut.append(call)
            raise
        finally:
            CALL_KEY.reset(token)
        return result_from_json(result)

    def settled(self) -> list[Draft]:
        """The outcome of calls that a limit of the agent's has ended, for the next append; if there is none, the turn
        has ended, too, and whoever ends it says so."""
        cut, self._cut = self._cut, []
        return [draft(CallFinished(call, error=_CUT), self.turn.id) for call in cut]

    def _name(self, tool_call_id: str | None) -> str:
        asked = [part.tool_call_id for part in self.reply.tool_calls] if self.reply is not None else []
        places = [place for place, one in enumerate(asked, 1) if one == tool_call_id]
        names = [f"{self.turn.id}.{self.replies}.{place}" for place in places or [0]]
        name = next((one for one in names if one not in self._named), names[-1])
        while name in self._named:
            name += "+"  # again, with a person's approval
        self._named.add(name)
        return name


@final
class JournaledTools(WrapperToolset[Any]):
    """An agent's tools, whose calls go through the journal."""

    def __init__(self, wrapped: AbstractToolset[Any], calls: Calls) -> None:
        super().__init__(wrapped)
        self._calls = calls

    async def for_run(self, ctx: RunContext[Any]) -> AbstractToolset[Any]:
        return self._around(await self.wrapped.for_run(ctx))

    async def for_run_step(self, ctx: RunContext[Any]) -> AbstractToolset[Any]:
        return self._around(await self.wrapped.for_run_step(ctx))

    def _around(self, wrapped: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return self if wrapped is self.wrapped else JournaledTools(wrapped, self._calls)

    def visit_and_replace(
        self, visitor: Callable[[AbstractToolset[Any]], AbstractToolset[Any]]
    ) -> AbstractToolset[Any]:
        return JournaledTools(self.wrapped.visit_and_replace(visitor), self._calls)

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        async def run() -> Any:
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)

        idempotent = bool((tool.tool_def.metadata or {}).get("idempotent"))
        return await self._calls.run(name, tool_args, ctx, idempotent=idempotent, tool=run)


@final
@dataclass
class Journaling(AbstractCapability[Any]):
    """Given to each run: replies that were paid are not asked for again, and tools are journaled."""

    calls: Calls

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")  # what others do around a reply or a call is part of it

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return JournaledTools(toolset, self.calls)

    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: WrapModelRequestHandler
    ) -> ModelResponse:
        recorded = self.calls.recorded
        reply = recorded.popleft() if recorded else await handler(request_context)
        self.calls.hear(reply)
        return reply


@final
class ThreadEach(Executor):
    """A daemon thread for each call of a tool that blocks: it may block for hours, and nobody waits for its thread.

    The library's own threads keep whoever cancels a call waiting until they return.
    """

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        told: Future[T] = Future()

        def run() -> None:
            if not told.set_running_or_notify_cancel():
                return
            try:
                told.set_result(fn(*args, **kwargs))
            except BaseException as error:  # whatever it is, it belongs to the call
                told.set_exception(error)

        threading.Thread(target=run, name="tenure-pydantic-ai-tool", daemon=True).start()
        return told


def _again(call: str, name: str, outcome: object) -> Any:
    """The recorded outcome once more."""
    if not isinstance(outcome, CallFinished):
        return INTERRUPTED
    if outcome.error is None:
        return result_from_json(outcome.result)
    error: dict[str, Any] = dict(outcome.error) if isinstance(outcome.error, Mapping) else {}
    known: Any = getattr(exceptions, str(error.get("type")), None)
    if error.get("type") in _SAID and known is not None:
        raise known(error.get("message", ""))
    if error.get("type") in _PUT_OFF and known is not None:
        raise known(metadata=error.get("metadata"))
    raise CallFailed(call, name, error)


def _error(error: Exception, masked: Callable[[str], str]) -> dict[str, Json]:
    message = masked(str(error))[:ERROR_CHARS].encode(errors="replace").decode()
    shape: dict[str, Json] = {"type": type(error).__name__, "message": message}
    metadata: Any = getattr(error, "metadata", None)
    return {**shape, "metadata": to_jsonable_python(metadata, serialize_unknown=True)} if metadata else shape


def _journaled(arguments: dict[str, Any]) -> Json:
    """The arguments if they are short, else their digest."""
    value: Json = to_jsonable_python(arguments, serialize_unknown=True, bytes_mode="base64")
    return value if len(canonical(value)) <= ARGUMENTS_LIMIT else {"digest": digest(value)}
