"""An agent of Pydantic AI, alive for one conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, final

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.tools import DeferredToolResults, ToolDenied
from pydantic_graph import End

from tenure.errors import LoopError
from tenure.journal import Draft, Json, TurnResumed, read_body
from tenure.loops.pydantic_ai.journaling import Calls, Journaling, ThreadEach
from tenure.loops.pydantic_ai.messages import MESSAGES, REPLY, History, as_json, output_as_json, prompt_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.run import AgentRun

    from tenure.abc import Turn
    from tenure.journal import Event


@final
class LivePydanticAI:
    """Runs the agent once per turn, and again from the top when the turn is resumed."""

    def __init__(self, agent: Agent[Any, Any], deps: object) -> None:
        self._agent = agent
        self._deps = deps
        self._history = History()
        self._read = 0

    async def turn(self, turn: Turn) -> None:
        """:raises LoopError: the message is nothing for a model. :raises Exception: what ends the agent's run."""
        if any(event.kind == REPLY for event in turn.past):
            return  # cut between its last word and its end
        events = await turn.history(self._read)
        self._history.take(events)
        self._read = events[-1].seq if events else self._read
        with Agent.using_thread_executor(ThreadEach()):
            await _Run(turn, self._agent, self._deps, self._history.messages).do()

    async def now(self, command: Event) -> Json:
        raise NotImplementedError("an agent of Pydantic AI takes commands turn by turn")


@final
class _Run:
    """One turn: the agent runs, and runs on with a person's answers where it waits for them."""

    def __init__(self, turn: Turn, agent: Agent[Any, Any], deps: object, history: Sequence[ModelMessage]) -> None:
        self._turn = turn
        self._agent = agent
        self._deps = deps
        self._calls = Calls(turn)
        self._history = list(history)
        self._known: list[ModelMessage] = []
        """The messages of the run, as far as the journal has them."""
        kept: list[Any] = [event.body for event in turn.past if event.kind == MESSAGES]
        self._length: int = kept[-1]["from"] + len(kept[-1]["messages"]) if kept else len(history)
        """How many messages the journal has."""
        self._replayed = len(kept)
        """So many times what is to be kept stands there from earlier attempts."""
        self._asks = 0

    async def do(self) -> None:
        prompt, answers = prompt_of(self._turn.messages), None
        while True:
            output = await self._run(prompt, answers)
            if not isinstance(output, DeferredToolRequests):
                return
            prompt, answers = None, await self._ask(output)

    async def _run(self, prompt: Any, answers: DeferredToolResults | None) -> Any:
        async with self._agent.iter(
            prompt,
            message_history=self._history,
            deferred_tool_results=answers,
            deps=cast("Any", self._deps),
            capabilities=[Journaling(self._calls)],
            infer_name=False,
        ) as run:
            node: Any = await run.next(cast("Any", run.next_node))  # takes the history up
            self._known = list(run.all_messages())
            while not isinstance(node, End):
                node = await self._step(run, node)
        assert run.result is not None, "it has ended"
        messages, output = run.all_messages(), run.result.output
        self._history = list(messages)
        last = (
            []
            if isinstance(output, DeferredToolRequests)
            else [Draft(REPLY, output_as_json(output, run.usage), self._turn.id)]
        )
        await self._keep(messages, last)
        return output

    async def _step(self, run: AgentRun[Any, Any], node: Any) -> Any:
        """A request of the model, or the calls that it asked for. A reply is journaled before anything follows from it."""
        asks = Agent.is_model_request_node(node)
        if asks and not self._calls.recorded and self._turn.settings.get("stream") is True:
            async with node.stream(run.ctx) as stream:
                async for event in stream:
                    self._show(event)
        after = await run.next(node)
        if asks:
            await self._keep(run.all_messages(), [])
        return after

    async def _keep(self, messages: Sequence[ModelMessage], more: list[Draft]) -> None:
        """Journal the messages that the journal does not have, and what follows from them, in one step."""
        same = 0
        for before, now in zip(self._known, messages, strict=False):
            if before is not now and before != now:
                break
            same += 1
        drafts = self._calls.settled()
        if same < max(len(messages), len(self._known)):
            if self._replayed:
                self._replayed -= 1
            else:
                start = self._length if same == len(self._known) else 0  # else the agent has rewritten its history
                new = messages[same if start else 0 :]
                drafts.append(Draft(MESSAGES, {"from": start, "messages": as_json(new)}, self._turn.id))
                self._length = start + len(new)
        if drafts := [*drafts, *more]:
            await self._turn.journal(drafts)
        self._known = list(messages)

    def _show(self, event: Any) -> None:
        match event:
            case PartStartEvent(part=TextPart(content=text)) if text:
                self._turn.delta({"text": text})
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                self._turn.delta({"text": text})
            case _:
                pass

    # --- a person's part --------------------------------------------------------------------------------------------

    async def _ask(self, asked: DeferredToolRequests) -> DeferredToolResults:
        """Wait for a person's word on calls that need approval, or that are made elsewhere.

        :raises LoopError: the answer is not as it must be.
        """
        self._asks += 1
        name = f"{self._turn.id}.a{self._asks}"
        for event in self._turn.past:
            body = read_body(event)
            if isinstance(body, TurnResumed) and body.ask == name:
                return _results(asked, body.answer)
        calls = {
            "approve": [_call(part) for part in asked.approvals],
            "results": [_call(part) for part in asked.calls],
        }
        return _results(asked, await self._turn.ask(name, cast("Json", calls)))


def _call(part: Any) -> dict[str, Any]:
    return {"call": part.tool_call_id, "tool": part.tool_name, "arguments": part.args_as_dict()}


def _results(asked: DeferredToolRequests, answer: Json) -> DeferredToolResults:
    """An answer: ``true`` or ``false`` for all that needs approval, or by call: ``true``, ``false``, why not, a result."""
    given: Mapping[str, Any] = cast("Mapping[str, Any]", answer) if isinstance(answer, dict) else {}
    for part in asked.calls:
        if part.tool_call_id not in given:
            raise LoopError(f"the answer has no result for call {part.tool_call_id}: answer {{call: result, …}}")
    approvals: dict[str, Any] = {}
    for part in asked.approvals:
        word = given.get(part.tool_call_id, answer if isinstance(answer, bool) else False)
        approvals[part.tool_call_id] = word if isinstance(word, bool) else ToolDenied(str(word))
    return DeferredToolResults(calls={p.tool_call_id: given[p.tool_call_id] for p in asked.calls}, approvals=approvals)
