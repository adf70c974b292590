"""The demo with a real OpenHands agent: it edits files and runs commands while its owner is killed, and goes on elsewhere.

The model is a scripted one of the demo's own, so that it needs no network and no key; with ``LLM_MODEL`` (and ``LLM_BASE_URL``,
``LLM_API_KEY``) it is a real one, which gets the same errand in words and does it in its own way.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from tenure.cli.demo.errand import STEPS, TASK, flaws, lines, replies
from tenure.cli.demo.mirror import Mirror
from tenure.cli.demo.scenes import begin, follow, glance, taken_over
from tenure.testing.model_server import ModelServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tenure.abc import Store
    from tenure.cli.demo.stage import Stage
    from tenure.journal import Event

IMPORT_S: Final = 300.0
"""What a node gets to import the SDK: tens of seconds of CPU, and the nodes do so side by side."""
IN_THE_TOOL_S: Final = 1.5
ERRAND_S: Final = 900.0
"""The most that a real model may take; the scripted one takes as long as its commands."""
POLL_S = 0.05


def plays(agents: Sequence[str]) -> bool:
    """Whether this is the demo for these agents."""
    return len(agents) == 1 and agents[0].partition(":")[0] == "openhands"


async def acts(stage: Stage, store: Store, name: str) -> None:
    """Everything that happens. What is wrong goes to the stage's `broken`.

    :raises NodeEndedError: a node did not come up. :raises TimeoutError: nothing could be killed, or no end was in sight.
    """
    named = os.environ.get("LLM_MODEL", "")
    stage.screen.say(
        f"starting {len(stage.nodes)} nodes on {stage.store}; each imports the OpenHands SDK, 10 s of CPU or more"
    )
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ModelServer({})) if not named else None
        await stage.nodes.start(IMPORT_S)
        stage.screen.nodes.update(dict.fromkeys(stage.screen.nodes, "up"))
        stage.screen.say(f"the nodes are up; the model is {named or 'a scripted one'}")
        workspace = await _begin(stage, name, model)
        if model is not None:
            model.scripts = {"default": replies(workspace)}
        mirror = Mirror(name, stage.screen, _Teller(stage, workspace).tell)
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(glance(stage, [name], store)), group.create_task(follow(stage, mirror))]
            await _errand(stage, mirror)
            for task in watching:
                task.cancel()
    stage.broken += mirror.flaws
    stage.broken += flaws(mirror.events, None if named else workspace)
    _show(stage, workspace)


async def _begin(stage: Stage, name: str, model: ModelServer | None) -> Path:
    """Ask every node at once to run the agent; one of them does. Its workspace."""
    llm = None if model is None else {"model": "openai/scripted", "base_url": model.url, "num_retries": 0}
    settings: dict[str, Any] = {} if llm is None else {"llm": llm}
    nodes = list(stage.nodes)
    await asyncio.gather(*(stage.create(node, name, settings) for node in nodes))
    await asyncio.gather(
        *(stage.start_loop(node, name, here=here) for node in nodes for here in (False, True)),
    )
    stage.storm_ended = time.time()
    [workspace] = (stage.workspaces / "workspaces").iterdir()
    stage.screen.say(f"{2 * len(nodes)} starts of {name} through {len(nodes)} nodes: one agent, in one workspace")
    return workspace


async def _errand(stage: Stage, mirror: Mirror) -> None:
    """Give it the errand, kill its owner in the middle of a command, and wait for the end."""
    stage.screen.say(f"the errand: a script of {STEPS} slow steps, to be written, run, checked and noted down")
    seq = await stage.send(mirror.conversation, 1, body={"text": TASK})
    await _in_a_command(mirror)
    assert mirror.owner is not None, "a command runs"
    node, fault = stage.nodes[mirror.owner.node], begin(stage, "killed", mirror)
    node.kill()
    stage.screen.nodes[node.name] = "killed"
    stage.screen.say(f"kill -9 {node.name}, in the middle of that command", "red")
    await taken_over(stage, [mirror], fault)
    if not await mirror.until(lambda: seq in mirror.settled, ERRAND_S):
        raise TimeoutError(f"the agent did not come to an end within {ERRAND_S:g} s")


async def _in_a_command(mirror: Mirror) -> None:
    """Return when a command of the terminal has run for a while.

    :raises TimeoutError: the run has ended, or takes for ever, without one.
    """
    deadline = time.time() + ERRAND_S
    while time.time() < deadline and not mirror.settled:
        for event in mirror.events[-5:]:
            ran_s = time.time() - event.at.unix_s
            if event.body.get("tool_name") == "terminal" and mirror.calls & set(event.opens) and ran_s > IN_THE_TOOL_S:
                return
        await asyncio.sleep(POLL_S)
    raise TimeoutError("the agent ran no command that took long enough to be killed in")


class _Teller:
    """Tells what the agent does, and where: each line begins with the node that had journaled it."""

    def __init__(self, stage: Stage, workspace: Path) -> None:
        self._stage = stage
        self._folder = f"{workspace}/"
        self._owners: dict[int | None, str] = {}

    def tell(self, event: Event) -> None:
        if event.kind == "claimed":
            self._owners[event.epoch] = str(event.body["node"])
        for line, style in lines(event):
            self._stage.screen.say(f"    {self._owners.get(event.epoch, '?')}  {line.replace(self._folder, '')}", style)


def _show(stage: Stage, workspace: Path) -> None:
    files = sorted(file for file in workspace.iterdir() if file.is_file())
    stage.screen.say("what it has left: " + ", ".join(file.name for file in files))
