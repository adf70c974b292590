"""The suite for loops: on every loop of this package, on the page's example, and on that example broken on purpose."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tenure.errors import CallInterrupted
from tenure.journal import Event, Json
from tenure.loops import function_loop, scripted_loop
from tenure.loops.pydantic_ai import PydanticAILoop, Workplace
from tenure.testing.loop_suite import CASES, Case, Trial, exercise
from tenure.testing.loop_suite.stage import MemoryRuntime
from tenure.testing.loop_suite.trial import SECRET, Steps

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending" / "loops.md"
EXAMPLE, ITS_TRIAL = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


class FunctionTrial(Trial):
    """An agent that keeps no memory: it knows what the journal's replies say."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.loop = function_loop(self.agent)

    async def agent(self, turn: Any) -> None:
        known = [line for event in turn.history if event.kind == "reply" for line in event.body["known"]]
        for batch in turn.messages[0].content:
            for line in batch:
                try:
                    known.append(await turn.call("act", self.tool.act_blocking, line))
                except CallInterrupted:
                    known.append(f"{line} was interrupted")
        self.known = known
        await turn.emit("reply", {"text": "done", "known": known})

    def message(self, steps: Steps) -> tuple[str, Json]:
        return "go", [list(batch) for batch in steps]

    def answers(self, events: Sequence[Event]) -> list[str]:
        return [event.body["text"] for event in events if event.kind == "reply"]

    def context(self) -> list[str]:
        return self.known


class ScriptedTrial(Trial):
    """Its tools are commands in the runtime; it knows the output of the last one, and tells it."""

    def __init__(self) -> None:
        self.loop = scripted_loop()
        self.told: list[str] = []

    def runtime(self) -> MemoryRuntime:
        runtime = MemoryRuntime()
        runtime.runs = lambda command: self.tool.act(command)
        return runtime

    def message(self, steps: Steps) -> tuple[str, Json]:
        script: list[Json] = []
        for batch in steps:
            for line in batch:
                script += [{"run": line}, {"emit": {"kind": "noted"}}]
        return "go", {"script": [*script, {"reply": "{output}"}]}

    def answers(self, events: Sequence[Event]) -> list[str]:
        self.told = [
            str((event.body.get("result") or {"stdout": "interrupted"})["stdout"])
            for event in events
            if event.kind in ("call_finished", "call_interrupted")
        ]
        return [event.body["text"] for event in events if event.kind == "reply"]

    def context(self) -> list[str]:
        return self.told


class PydanticAITrial(Trial):
    """A model that does what the last message says, and remembers what it was shown."""

    streams = False

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.asked = 0
        self.loop = PydanticAILoop(self.make)

    def settings(self) -> dict[str, Json]:
        return {**super().settings(), "stream": self.streams}

    def make(self, workplace: Workplace) -> Agent[Any, Any]:
        assert workplace.credentials == {"TOKEN": SECRET}
        agent = Agent(FunctionModel(self.reply, stream_function=self.stream), instructions="Do as you are told.")

        @agent.tool
        def act(ctx: RunContext[Any], line: str) -> str:
            return self.tool.act_blocking(line)

        return agent

    def reply(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked += 1
        self.seen = [text for message in messages for text in texts(message)]
        prompts = [at for at, message in enumerate(messages) if prompt(message)]
        steps = json.loads(prompt(messages[prompts[-1]]))
        done = sum(isinstance(message, ModelResponse) for message in messages[prompts[-1] :])
        if done == len(steps):
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("act", {"line": line}, f"{line}-{done}") for line in steps[done]])

    async def stream(self, messages: list[ModelMessage], info: AgentInfo) -> Any:
        from pydantic_ai.models.function import DeltaToolCall

        for at, part in enumerate(self.reply(messages, info).parts):
            if isinstance(part, TextPart):
                yield part.content[:2]
                yield part.content[2:]
            elif isinstance(part, ToolCallPart):
                yield {at: DeltaToolCall(part.tool_name, json.dumps(part.args), tool_call_id=part.tool_call_id)}

    def message(self, steps: Steps) -> tuple[str, Json]:
        return json.dumps([list(batch) for batch in steps]), None

    def answers(self, events: Sequence[Event]) -> list[str]:
        return [event.body["text"] for event in events if event.kind == "reply"]

    def context(self) -> list[str]:
        return self.seen


class StreamingTrial(PydanticAITrial):
    streams = True


def prompt(message: ModelMessage) -> str:
    parts = message.parts if isinstance(message, ModelRequest) else []
    return "".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))


def texts(message: ModelMessage) -> list[str]:
    return [str(getattr(part, "content", None) or getattr(part, "args", "")) for part in message.parts]


def example(code: str = EXAMPLE) -> Callable[[], Trial]:
    """The trial of the page's example, or of what was made of it."""
    there: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), there)
    exec(compile(ITS_TRIAL, str(PAGE), "exec"), there)
    return there["ErrandsTrial"]


TRIALS: dict[str, Callable[[], Trial]] = {
    "function": FunctionTrial,
    "scripted": ScriptedTrial,
    "pydantic-ai": PydanticAITrial,
    "pydantic-ai-streaming": StreamingTrial,
    "example": example(),
}


@every_case
@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
async def test_loop(case: Case, trial: Callable[[], Trial]):
    await exercise(case, trial)


BROKEN: dict[str, tuple[str, str, str]] = {
    "takes any settings": (
        "        credentials(settings)                                # refuses what is no reference\n",
        "",
        "settings_are_judged_at_creation",
    ),
    "journals a call behind its tool": (
        (
            '        await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n'
            "        result = await self.tool(line)\n"
        ),
        (
            "        result = await self.tool(line)\n"
            '        await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n'
        ),
        "a_call_stands_in_the_journal_before_its_tool_runs",
    ),
    "keeps an outcome to itself": (
        "        await turn.journal([draft(CallFinished(name, result))])\n",
        "",
        "an_outcome_stands_in_the_journal_before_what_follows_from_it",
    ),
    "goes on behind a refusal": (
        '        await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n',
        (
            "        try:\n"
            '            await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n'
            "        except Exception:\n"
            "            pass\n"
        ),
        "after_a_refused_append_nothing_more_starts",
    ),
    "runs again what was cut": (
        (
            "        if past:                                             # begun by an owner that is gone, and not ended\n"
            '            if past[-1].kind != "call_interrupted":\n'
            '                await turn.journal([draft(CallInterrupted(name, "owner lost"))])\n'
            '            return f"{line} was interrupted: nobody knows"\n'
            '        await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n'
        ),
        '        if not past:\n            await turn.journal([draft(CallStarted(name, "errand", arguments=line))])\n',
        "an_owner_may_be_lost_at_any_append",
    ),
    "pays again for what is there": (
        '        if past and past[-1].kind == "call_finished":\n            return past[-1].body["result"]\n',
        "",
        "an_owner_may_be_lost_at_any_append",
    ),
    "answers again behind its last word": (
        (
            '        if any(event.kind == "reply" for event in turn.past):\n'
            "            return                                           # the former owner was lost behind its last word\n"
        ),
        "",
        "an_owner_may_be_lost_at_any_append",
    ),
    "remembers by itself": (
        'known = [line for event in await turn.history() if event.kind == "reply" for line in event.body["known"]]',
        'known = self.__dict__.setdefault("memory", [])',
        "a_new_owner_knows_the_turns_before",
    ),
    "finishes what was interrupted": (
        "        result = await self.tool(line)\n",
        (
            "        work = asyncio.ensure_future(self.tool(line))\n"
            "        while not work.done():\n"
            "            try:\n"
            "                await asyncio.shield(work)\n"
            "            except asyncio.CancelledError:\n"
            "                pass\n"
            "        result = work.result()\n"
        ),
        "an_interrupt_ends_the_turn_at_once",
    ),
    "has forgotten what its former owner did": (
        '            return past[-1].body["result"]\n',
        '            return f"{line} was done before"\n',
        "a_turn_is_handed_over_at_a_step",
    ),
    "tells its secrets": (
        'CallStarted(name, "errand", arguments=line)',
        'CallStarted(name, "errand", arguments=[line, *self.values])',
        "no_value_of_a_credential_is_written",
    ),
}
"""A rule broken: what of the page's example, by what it is replaced, and the case that must say so."""


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_loop_is_found_by_the_case_of_its_rule(broken: str, monkeypatch: pytest.MonkeyPatch):
    before, after, name = BROKEN[broken]
    assert EXAMPLE.count(before) == 1, f"the page's example has changed: {before!r}"
    for part in ("cases", "stage"):
        monkeypatch.setattr(f"tenure.testing.loop_suite.{part}.PATIENCE_S", 0.5)
    code = EXAMPLE.replace(before, after)
    if "self.values" in after:
        code = code.replace("LiveErrands(self.tool)", "LiveErrands(self.tool, place)").replace(
            "    def __init__(self, tool):\n        self.tool = tool\n\n    async def turn",
            "    def __init__(self, tool, place):\n        self.tool = tool\n"
            "        self.values = place.credentials().values()\n\n    async def turn",
        )
    case = next(case for case in CASES if case.__name__ == name)
    with pytest.raises((AssertionError, TimeoutError)):
        await exercise(case, example(code))
