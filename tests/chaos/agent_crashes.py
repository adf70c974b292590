"""Agents of the real OpenHands SDK on real processes that are killed in every window of a run: ``make chaos``.

A *nursery* imports the SDK once and forks nodes, each of which may carry an order to kill itself: ``before:N`` or ``after:N``
its Nth write to the journal. Others are killed, frozen or told to leave from outside, during a call of the model or while
three tools run at once. Then a second node appears, and what stands in the journal, what tools have left in a file, and what
the model was told are compared.

    .venv/bin/python tests/chaos/agent_crashes.py [--only after:3] [--writes 14]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "unit")]

PATIENCE_S = 90.0
CRASH = "AGENT_CRASHES_AT"
OUTSIDE = ("model:1", "model:2", "tools:1", "tools:2", "tools:3", "freeze", "drain")


# --- the nursery: a process of its own ------------------------------------------------------------------------------


def nursery() -> None:
    """Fork a node for each line of JSON on the standard input; say its number."""
    from tenure.loops.openhands import sdk

    sdk.load(["openhands_tools"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            _node(order)
        print(pid, flush=True)


def _node(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    when, _, count = order["crash"].partition(":")
    if when in ("before", "after"):
        _crash(when, int(count))
    sys.argv = ["tenure", *order["args"]]
    from tenure.cli import main

    main()
    os._exit(0)


def _crash(when: str, at: int) -> None:
    from tenure.loops.openhands.store import JournalStore

    write, done = JournalStore.write_blocking, 0

    def counted(self: Any, *given: Any, **named: Any) -> None:
        nonlocal done
        done += 1
        if (when, at) == ("before", done):
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, *given, **named)
        if (when, at) == ("after", done):
            os.kill(os.getpid(), signal.SIGKILL)

    JournalStore.write_blocking = counted  # type: ignore[method-assign]


# --- one window -----------------------------------------------------------------------------------------------------


class Yard:
    """The model, the store, the nursery."""

    def __init__(self, folder: Path, model: Any) -> None:
        from tenure.stores import open_store

        self.folder, self.model = folder, model
        self.store = open_store(f"sqlite:///{folder}/tenure.db")
        python = [sys.executable, __file__, "--nursery"]
        self.nursery = subprocess.Popen(python, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.nodes: list[int] = []

    def _answer(self) -> str:
        assert self.nursery.stdout is not None
        return self.nursery.stdout.readline().strip()

    async def ready(self) -> None:
        assert await asyncio.to_thread(self._answer) == "ready", "the nursery has imported the SDK"

    async def node(self, name: str, crash: str = "") -> int:
        from tenure.testing.processes import free_port

        args = ["serve", "--store", f"sqlite:///{self.folder}/tenure.db", "--node", name, "--port", str(free_port())]
        args += ["--agent", "openhands:openhands_tools", "--ttl-s", "1.5", "--drain-s", "0", "--sweep-s", "0.1"]
        assert self.nursery.stdin is not None
        order = {"args": args, "crash": crash, "log": str(self.folder / f"{name}.log")}
        self.nursery.stdin.write(json.dumps(order) + "\n")
        self.nursery.stdin.flush()
        self.nodes.append(int(await asyncio.to_thread(self._answer)))
        return self.nodes[-1]

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
        self.effects, self.gate = yard.folder / f"{self.id}.effects", yard.folder / f"{self.id}.gate"
        self.first = 0

    async def play(self) -> list[Any]:
        from tenure.abc import Creation, Submit
        from tenure.journal import Command, Delivery

        yard = self.yard
        asked = len(yard.model.requests)
        self._script()
        self.first = await yard.node(f"first-{self.fate}", self.fate)
        llm = {"model": "openai/scripted", "base_url": yard.model.url, "num_retries": 0, "api_key": "no-key"}
        settings = {"agent": {"llm": llm, "tools": [{"name": "act"}], "tool_concurrency_limit": 3}}
        create = Creation(agent="openhands", settings=settings, wanted=True)
        message = Command("message", {"text": f"go [script:{self.id}]"}, "k", Delivery.TURN)
        await yard.store.submit(Submit(self.id, message, create))
        await self._strike(asked)
        second = await yard.node(f"second-{self.fate}")
        await yard.until(self._ended, f"{self.fate}: the end of the turn")
        if self.fate == "freeze":
            yard.signal(self.first, signal.SIGCONT)
        self.gate.touch()
        events = await self._journal()
        self._judge(events)
        for pid in (self.first, second):
            yard.signal(pid, signal.SIGKILL)
        return events

    def _script(self) -> None:
        waits = self.fate.partition(":")[0] in ("tools", "freeze", "drain")
        until = str(self.gate) if waits else ""
        calls = [
            {"name": "act", "arguments": {"effects": str(self.effects), "line": line, "until": until}} for line in "abc"
        ]
        one = {"name": "act", "arguments": {"effects": str(self.effects), "line": "d"}}
        latency = {"latency_s": 0.5} if self.fate.startswith("model") else {}
        self.yard.model.scripts = {
            self.id: [{"calls": calls, **latency}, {"calls": [one], **latency}, {"text": "That is all."}]
        }

    async def _strike(self, asked: int) -> None:
        """Wait until the first owner has met its fate."""
        yard, (kind, _, count) = self.yard, self.fate.partition(":")

        async def in_the_model() -> bool:
            return len(yard.model.requests) - asked >= int(count)

        async def in_the_tools() -> bool:
            return len(self.happened()) >= (int(count) if count else 3)

        async def gone() -> bool:
            return not yard.alive(self.first) or await self._ended()

        match kind:
            case "model":
                await yard.until(in_the_model, "a call of the model")
                yard.signal(self.first, signal.SIGKILL)
            case "tools":
                await yard.until(in_the_tools, "tools that run")
                yard.signal(self.first, signal.SIGKILL)
            case "freeze":
                await yard.until(in_the_tools, "tools that run")
                yard.signal(self.first, signal.SIGSTOP)
                return
            case "drain":
                await yard.until(in_the_tools, "tools that run")
                yard.signal(self.first, signal.SIGTERM)
            case _:
                pass
        await yard.until(gone, f"{self.fate}: the end of the first owner")

    # --- what came of it --------------------------------------------------------------------------------------------

    def happened(self) -> list[str]:
        return self.effects.read_text().split() if self.effects.exists() else []

    async def _journal(self) -> list[Any]:
        from tenure.abc import Reading

        reading = await self.yard.store.read(self.id, 0, 1000)
        return list(reading.events) if isinstance(reading, Reading) else []

    async def _ended(self) -> bool:
        return any(e.kind in ("turn_completed", "turn_failed") for e in await self._journal())

    def _judge(self, events: list[Any]) -> None:
        """Every tool at most once and never unsaid; one outcome each; and the model was told exactly that."""
        from tenure.conversation import Fold, fold
        from tenure.loops.openhands.live import INTERRUPTED

        end = fold(Fold(), events)
        assert end.turn is None and not end.pending, f"{self.fate}: unsettled"
        assert [e.kind for e in events if e.kind.startswith("turn_") and e.kind != "turn_resumed"] == [
            "turn_started", "turn_completed",
        ], [e.body for e in events if e.kind == "turn_failed"]  # fmt: skip
        told = [e.body for e in events if e.kind == "openhands.event"]
        assert len({e["id"] for e in told}) == len(told)
        actions = [e for e in told if e["kind"] == "ActionEvent"]
        lines = [e["action"]["line"] for e in actions]
        outcomes = {e["tool_call_id"]: e for e in told if e["kind"] in ("ObservationEvent", "AgentErrorEvent")}
        assert len(outcomes) == len(actions) == len(set(lines)), f"{self.fate}: one outcome for each action"
        assert sum(e["kind"] in ("ObservationEvent", "AgentErrorEvent") for e in told) == len(actions)
        done = self.happened()
        assert len(done) == len(set(done)) and set(done) <= set(lines), f"{self.fate}: {done} of {lines}"
        finished = [e for e in actions if outcomes[e["tool_call_id"]]["kind"] == "ObservationEvent"]
        assert {e["action"]["line"] for e in finished} <= set(done), "what is said to be done was done"
        said = [(m["role"], _text(m)) for m in self.yard.model.requests[-1]["messages"][1:]]
        results = [text for role, text in said if role == "tool"]
        expected = [f"did {e['action']['line']}" if e in finished else INTERRUPTED for e in actions]
        assert results == expected, f"{self.fate}: the model was told {results}, the journal says {expected}"
        assert [r for r in said if r[0] == "user"] == [("user", f"go [script:{self.id}]")], "its message once"
        messages = [e for e in told if e["kind"] == "MessageEvent"]
        assert [e["source"] for e in messages] == ["user", "agent"], f"{self.fate}: answered once"


def _text(message: Any) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


async def play(fates: list[str]) -> None:
    from tenure.testing.model_server import ModelServer

    with tempfile.TemporaryDirectory(prefix="agent-crashes-") as folder:
        async with ModelServer({}) as model:
            yard = Yard(Path(folder), model)
            try:
                async with yard.store:
                    await yard.ready()
                    for fate in fates:
                        began = time.monotonic()
                        try:
                            events = await Window(yard, fate).play()
                        except BaseException:
                            for log in sorted(Path(folder).glob(f"*-{fate}.log")):
                                print(f"--- {log.name}\n{log.read_text()[-6000:]}")
                            raise
                        owners = sum(e.kind == "claimed" for e in events)
                        print(
                            f"{fate:10} {owners} owners, {len(events)} events, {time.monotonic() - began:.1f} s",
                            flush=True,
                        )
            finally:
                yard.nursery.kill()
                for pid in yard.nodes:
                    yard.signal(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", help="one fate; may be repeated")
    parser.add_argument("--writes", type=int, default=16, help="how many writes of a run are windows")
    given = parser.parse_args()
    if given.nursery:
        nursery()
        return
    windows = [f"{when}:{n}" for n in range(1, given.writes + 1) for when in ("before", "after")]
    asyncio.run(play(given.only or [*windows, *OUTSIDE]))
    print("every tool at most once, every outcome said, every run went on by itself")


if __name__ == "__main__":
    main()
