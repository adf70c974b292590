"""Agents of the real OpenHands SDK on real processes whose owner is lost in every window of a run: ``make chaos``.

=====================  ===============================================================================================
``before:N, after:N``  kill -9 before the owner sends its Nth append, and after its answer; every N of a run
``model:N``            kill -9 during the Nth call of the model
``tool:a`` (b, c)      kill -9 while this one of three parallel tools runs, and the two others have returned
``tools``              kill -9 while all three run
``freeze:model``       SIGSTOP during the first call of the model; SIGCONT when its successor has done everything
``freeze:tools``       the same while the three tools run
``drain:tools``        SIGTERM while the three run; they return during the drain, and their results are kept
``drain:stuck``        the same; they do not return
=====================  ===============================================================================================

First a run without a fault says how many appends there are and what the model is told. Then, in each window, a second node
appears, and what stands in the journal, what tools have left in a file, and what the model was told are compared: that is
what it is told without a fault, with an error in place of each result that was cut.

    .venv/bin/python tests/chaos/agent_crashes.py [--store sqlite|redis|postgres|URL] [--only after:3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tenure.abc import Creation, Reading, Submit
from tenure.cli.demo.own import OWN, begun
from tenure.conversation import Fold, fold
from tenure.journal import TURN_ENDS, Command, Delivery, Event
from tenure.loops.openhands.live import INTERRUPTED
from tenure.stores import open_store
from tenure.testing.model_server import ModelServer
from tenure.testing.processes import free_port

TESTS = Path(__file__).resolve().parents[1]
NURSERY = TESTS / "chaos" / "nodeside" / "nursery.py"
PATIENCE_S = 90.0
TTL_S = 1.5
LATENCY_S = 0.5
WHOLE = "whole"
TOOLS = ("a", "b", "c")
OUTSIDE = (
    *(f"model:{number}" for number in (1, 2, 3)), *(f"tool:{tool}" for tool in TOOLS),
    "tools", "freeze:model", "freeze:tools", "drain:tools", "drain:stuck",
)  # fmt: skip

type Said = list[tuple[str, Any]]
"""What the model was told, without the system's part: ("user", text), ("assistant", lines of its calls), ("tool", text)."""


class Yard:
    """The model, the store, the nursery."""

    def __init__(self, folder: Path, url: str, model: ModelServer) -> None:
        self.folder, self.url, self.model = folder, url, model
        self.store = open_store(url)
        self.nursery = subprocess.Popen(
            [sys.executable, NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS / "unit")},
        )
        self.nodes: list[int] = []

    def _answer(self) -> str:
        assert self.nursery.stdout is not None
        return self.nursery.stdout.readline().strip()

    async def ready(self) -> None:
        assert await asyncio.to_thread(self._answer) == "ready", "the nursery has imported the SDK"

    async def node(self, name: str, die: str = "", port: int = 0) -> int:
        """Start a node; its process id."""
        args = ["serve", "--store", self.url, "--node", name, "--port", str(port or free_port())]
        args += ["--agent", "openhands:openhands_tools", "--workspaces", str(self.folder / "workspaces")]
        args += ["--ttl-s", f"{TTL_S:g}", "--drain-s", "0", "--sweep-s", "0.1"]
        assert self.nursery.stdin is not None
        files = {"log": str(self.folder / f"{name}.log"), "count": str(self.folder / f"{name}.count")}
        self.nursery.stdin.write(json.dumps({"args": args, "die": die, **files}) + "\n")
        self.nursery.stdin.flush()
        self.nodes.append(int(await asyncio.to_thread(self._answer)))
        return self.nodes[-1]

    def appends(self, name: str) -> int:
        """How many a node has sent."""
        return int((self.folder / f"{name}.count").read_text())

    def signal(self, pid: int, what: signal.Signals) -> None:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            pass

    def alive(self, pid: int) -> bool:
        return Path(f"/proc/{pid}").exists()

    async def until(self, what: Any, describe: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await what():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S:g} s: {describe}")
            await asyncio.sleep(0.005)


class Window:
    """One conversation, its first owner's fate, and what came of it."""

    def __init__(self, yard: Yard, fate: str) -> None:
        self.yard, self.fate, self.id = yard, fate, str(uuid.uuid4())
        self.kind, _, self.at = fate.partition(":")
        self.names = f"first-{fate}", f"second-{fate}"
        self.effects, self.gate = yard.folder / f"{self.id}.effects", yard.folder / f"{self.id}.gate"
        self.first = 0

    async def play(self) -> list[Event]:
        yard = self.yard
        self._script()
        self.first = await yard.node(self.names[0], self.fate if self.kind in ("before", "after") else "")
        llm = {"model": "openai/scripted", "base_url": yard.model.url, "num_retries": 0, "api_key": "no-key"}
        settings = {"agent": {"llm": llm, "tools": [{"name": "act"}], "tool_concurrency_limit": 3}}
        create = Creation(agent="openhands", settings=settings, wanted=True)
        message = Command("message", {"text": f"go [script:{self.id}]"}, "k", Delivery.TURN)
        await yard.store.submit(Submit(self.id, message, create))
        if self.kind != WHOLE:
            await self._strike()
            await yard.node(self.names[1])
        await yard.until(self._ended, f"{self.fate}: the end of the turn")
        if self.kind == "freeze":
            await self._thaw()
        self.gate.touch()
        events = await self._journal()
        for pid in yard.nodes[-2:]:
            yard.signal(pid, signal.SIGKILL)
        return events

    def _script(self) -> None:
        waits = {"tool": {self.at}, "tools": set(TOOLS)}.get(self.fate.partition(":")[0], set())
        if self.kind == "drain" or self.fate == "freeze:tools":
            waits = set(TOOLS)
        latency = {"latency_s": LATENCY_S} if "model" in self.fate else {}
        calls = [self._call(line, str(self.gate) if line in waits else "") for line in TOOLS]
        self.yard.model.scripts = {
            self.id: [
                {"calls": calls, **latency},
                {"calls": [self._call("d")], **latency},
                {"text": "Done.", **latency},
            ]
        }

    def _call(self, line: str, until: str = "") -> dict[str, Any]:
        return {"name": "act", "arguments": {"effects": str(self.effects), "line": line, "until": until}}

    # --- the fault --------------------------------------------------------------------------------------------------

    async def _strike(self) -> None:
        """Wait until the first owner has met its fate."""
        yard = self.yard
        match self.kind:
            case "model":
                await yard.until(self._in_the_model, "a call of the model")
                yard.signal(self.first, signal.SIGKILL)
            case "tool" | "tools":
                await yard.until(self._in_the_tools, "tools that run")
                yard.signal(self.first, signal.SIGKILL)
            case "freeze":
                await yard.until(self._in_the_model if self.at == "model" else self._in_the_tools, "work")
                yard.signal(self.first, signal.SIGSTOP)
                return
            case "drain":
                await yard.until(self._in_the_tools, "tools that run")
                yard.signal(self.first, signal.SIGTERM)
                if self.at == "tools":
                    await yard.until(self._drains, "a node that drains")
                    self.gate.touch()
            case _:
                pass
        await yard.until(self._gone, f"{self.fate}: the end of the first owner (is there such an append?)")

    async def _thaw(self) -> None:
        """Its successor has done everything. It wakes up, finds out, and begins a new life: having changed nothing."""
        yard, requests = self.yard, len(self.requests())
        before = await self._journal(), self.happened()
        lives = {node.incarnation for node in await yard.store.nodes()}

        async def anew() -> bool:
            nodes = await yard.store.nodes()
            return any(n.about.node == self.names[0] and n.incarnation not in lives and not n.dead for n in nodes)

        self.gate.touch()
        yard.signal(self.first, signal.SIGCONT)
        await yard.until(anew, f"{self.fate}: the new life of the first owner")
        assert (await self._journal(), self.happened()) == before, f"{self.fate}: it wrote, or a tool began"
        assert len(self.requests()) == requests, f"{self.fate}: it asked the model"

    async def _in_the_model(self) -> bool:
        return len(self.requests()) >= (int(self.at) if self.kind == "model" else 1)

    async def _in_the_tools(self) -> bool:
        others = set(TOOLS) - {self.at} if self.kind == "tool" else set[str]()
        return set(self.happened()) >= set(TOOLS) and set(self.happened("returned")) >= others

    async def _drains(self) -> bool:
        return any(n.about.node == self.names[0] and n.load.draining for n in await self.yard.store.nodes())

    async def _gone(self) -> bool:
        return not self.yard.alive(self.first)

    # --- what came of it --------------------------------------------------------------------------------------------

    def happened(self, what: str = "") -> list[str]:
        """The lines that tools have left when they began, or when they returned."""
        file = Path(f"{self.effects}.{what}") if what else self.effects
        return file.read_text().split() if file.exists() else []

    def requests(self) -> list[list[Any]]:
        """The messages of each call of the model, without the system's."""
        asked = [request["messages"][1:] for request in self.yard.model.requests]
        return [messages for messages in asked if messages and self.id in _text(messages[0])]

    def said(self) -> Said:
        """What the model was told in its last call, which has seen most."""
        told: Said = []
        for message in self.requests()[-1]:
            calls = [json.loads(call["function"]["arguments"])["line"] for call in message.get("tool_calls") or ()]
            told.append((message["role"], calls if calls else _text(message).replace(self.id, "ID")))
        return told

    async def _journal(self) -> list[Event]:
        reading = await self.yard.store.read(self.id, 0, 1000)
        return list(reading.events) if isinstance(reading, Reading) else []

    async def _ended(self) -> bool:
        return any(e.kind in TURN_ENDS for e in await self._journal())


# --- the judgement --------------------------------------------------------------------------------------------------


def judge(window: Window, events: list[Event], whole: Said) -> None:
    """Every tool at most once and never unsaid, one outcome each; the model was told exactly that, and nothing else."""
    fate, end = window.fate, fold(Fold(), events)
    assert end.turn is None and not end.pending, f"{fate}: unsettled"
    assert [e.kind for e in events if e.kind.startswith("turn_") and e.kind != "turn_resumed"] == [
        "turn_started", "turn_completed",
    ], [e.body for e in events if e.kind == "turn_failed"]  # fmt: skip
    told: list[Any] = [e.body for e in events if e.kind == "openhands.event"]
    assert len({e["id"] for e in told}) == len(told), f"{fate}: an event stands twice"
    messages = [e["source"] for e in told if e["kind"] == "MessageEvent"]
    assert messages == ["user", "agent"], f"{fate}: heard once, answered once, not {messages}"
    actions = [e for e in told if e["kind"] == "ActionEvent"]
    lines = [e["action"]["line"] for e in actions]
    outcomes = [e for e in told if e["kind"] in ("ObservationEvent", "AgentErrorEvent")]
    assert len(set(lines)) == len(lines) and len(outcomes) == len(actions), f"{fate}: one outcome for each action"
    assert {e["tool_call_id"] for e in outcomes} == {e["tool_call_id"] for e in actions}
    done = window.happened()
    assert len(done) == len(set(done)) and set(done) <= set(lines), f"{fate}: {done} of {lines}"
    returned = {e["tool_call_id"] for e in outcomes if e["kind"] == "ObservationEvent"}
    finished = {e["action"]["line"] for e in actions if e["tool_call_id"] in returned}
    assert finished <= set(done), f"{fate}: what is said to be done was done"
    assert finished == set(lines) or (window.kind != WHOLE and fate != "drain:tools"), (
        f"{fate}: {lines} less {finished}"
    )
    expected = cut(whole, known=set(lines), finished=finished)
    assert window.said() == expected, f"{fate}: the model was told {window.said()} and not {expected}"


def cut(whole: Said, *, known: set[str], finished: set[str]) -> Said:
    """What the model is told without a fault, less the calls that no journal knows; those that were cut, with an error."""
    left: Said = []
    for role, content in whole:
        if role == "assistant":
            calls = [line for line in content if line in known]
            left += [(role, calls)] if calls else []
        elif role == "tool":
            line = content.removeprefix("did ")
            left += [(role, content if line in finished else INTERRUPTED)] if line in known else []
        else:
            left.append((role, content))
    return left


def _text(message: Any) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


# --- all of them ----------------------------------------------------------------------------------------------------


async def play(url: str, folder: Path, only: list[str]) -> int:
    """Every window on this store, or only those; how many there were."""
    async with ModelServer({}) as model:
        yard = Yard(folder, url, model)
        try:
            async with yard.store:
                await yard.ready()
                return await windows(yard, only)
        finally:
            yard.nursery.kill()
            for pid in yard.nodes:
                yard.signal(pid, signal.SIGKILL)


async def windows(yard: Yard, only: list[str]) -> int:
    """Every window, or only those, on a yard that is ready; how many there were."""
    whole = await _window(yard, WHOLE, None)
    appends = yard.appends(f"first-{WHOLE}")
    inside = [f"{when}:{number}" for number in range(1, appends + 1) for when in ("before", "after")]
    fates = only or [*inside, *OUTSIDE]
    for fate in fates:
        await _window(yard, fate, whole)
    return len(fates)


async def _window(yard: Yard, fate: str, whole: Said | None) -> Said:
    began, window = time.monotonic(), Window(yard, fate)
    try:
        events = await window.play()
        judge(window, events, window.said() if whole is None else whole)
        logs = [file.read_text() for file in yard.folder.glob(f"*-{fate}.log")]
        assert not any("Traceback" in log for log in logs), f"{fate}: a node did not expect this"
    except BaseException:
        for log in sorted(yard.folder.glob(f"*-{fate}.log")):
            print(f"--- {log.name}\n{log.read_text()[-6000:]}")
        raise
    owners = sum(e.kind == "claimed" for e in events)
    print(f"    {fate:12} {owners} owners, {len(events)} events, {time.monotonic() - began:.1f} s", flush=True)
    return window.said()


def _remove(folder: Path) -> None:
    """The last witness may still bury its node, in a file of this folder."""
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="one of sqlite, redis and postgres, begun for this; or a URL. Default: each")
    parser.add_argument("--only", action="append", help="one window; may be repeated", default=[])
    given = parser.parse_args()
    for store in [given.store] if given.store else OWN:
        print(f"OpenHands agents on {store}", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="agent-crashes-"))
        try:
            with begun(store, folder) as url:
                windows = asyncio.run(play(url, folder, given.only))
        finally:
            _remove(folder)
        print(f"{windows} windows: every tool at most once, every outcome said, every run went on by itself")


if __name__ == "__main__":
    main()
