"""The suite for loops, on the loop of the OpenHands SDK."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from openhands_world import MARKS, text_of

from tenure.journal import Event, Json
from tenure.loops.openhands import OpenHandsLoop
from tenure.testing.loop_suite import CASES, Bench, Case, Trial, exercise
from tenure.testing.loop_suite.stage import MemoryRuntime
from tenure.testing.loop_suite.trial import Steps
from tenure.testing.model_server import ModelServer

pytestmark = MARKS


class OpenHandsTrial(Trial):
    """The SDK's agent, with a model that says what each message's script says."""

    each = 4  # a run writes some twenty times, and each takes a tenth of a second
    whole_replies = False  # the SDK writes an event for each call

    def __init__(self, loop: OpenHandsLoop, model: ModelServer, folder: Path) -> None:
        self.loop, self.model, self.folder = loop, model, folder
        self.scripts = 0

    def bench(self, bench: Bench) -> None:
        super().bench(bench)
        importlib.import_module("openhands_tools").ERRANDS.append(bench.act_blocking)

    def settings(self) -> dict[str, Json]:
        llm = {"model": "openai/scripted", "base_url": self.model.url, "num_retries": 0, "api_key": "$TOKEN"}
        agent: Json = {"llm": llm, "tools": [{"name": "errand"}], "tool_concurrency_limit": 3}
        return {**super().settings(), "agent": agent}

    def runtime(self) -> MemoryRuntime:
        return MemoryRuntime(self.folder, Path("/bin/bash"))

    def message(self, steps: Steps) -> tuple[str, Json]:
        self.scripts += 1
        name = f"s{self.scripts}"
        batches = [[{"name": "errand", "arguments": {"line": line}} for line in batch] for batch in steps]
        self.model.scripts = {**self.model.scripts, name: [*({"calls": batch} for batch in batches), {"text": "done"}]}
        return f"go [script:{name}]", None

    def answers(self, events: Sequence[Event]) -> list[str]:
        told = [e.body for e in events if e.kind == "openhands.event" and e.body["kind"] == "MessageEvent"]
        return [text_of(message["llm_message"]) for message in told if message["source"] == "agent"]

    def context(self) -> list[str]:
        told = self.model.requests[-1]["messages"][1:]
        return [text_of({"content": message.get("content")}).partition(" [script:")[0] for message in told]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_loop(case: Case, loop: OpenHandsLoop, tmp_path: Path):
    async with ModelServer({}) as model:
        await exercise(case, lambda: OpenHandsTrial(loop, model, tmp_path))
