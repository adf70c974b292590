"""A node in a process of its own, for measurements: it tells its parent what happened to it, and when.

Started by :mod:`tenure.cli.bench.nodes`, with the store's URL in the environment (it may hold a password). Standard output carries one JSON list per line, ``[fact, seconds, conversation]``, in
which the seconds are those of ``CLOCK_MONOTONIC``: one clock for all processes of a machine. ``ready`` comes first.
It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import sys
import time
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import RuntimeProvider, RuntimeSpec, Submit
from tenure.cli.bench.sampling import Profile, short
from tenure.cli.bench.stage import message
from tenure.cli.collecting import collect_seldom
from tenure.config import Config
from tenure.loops import function_loop
from tenure.node import Node
from tenure.runtimes import open_provider
from tenure.stores import open_store
from tenure.vault import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tenure.abc import Ran, Runtime
    from tenure.loops.function.turn import FunctionTurn

STORE = "TENURE_BENCH_STORE"
TOLD: Mapping[str, type[facts.Fact]] = {
    "claimed": facts.Claimed,
    "provisioned": facts.Provisioned,
    "live": facts.Live,
    "read": facts.Read,
    "turn": facts.TurnEnded,
    "released": facts.Released,
}
LOOP_PROBE_S = 0.005
STAYS, WRITES, BLOCKS = "stay", "write", "block"


async def answer(turn: FunctionTurn) -> None:
    """The agent: one event for each message, ``write N``: so many; ``stay`` keeps its turn
    open for ever, ``block S`` blocks the event loop for so many seconds."""
    for said in turn.messages:
        if said.text == STAYS:
            await asyncio.Event().wait()
        word, _, number = said.text.partition(" ")
        if word == BLOCKS:
            time.sleep(float(number))  # noqa: ASYNC251 - this is what is measured
        for _ in range(int(number) if word == WRITES else 1):
            await turn.emit("reply", {"text": f"heard {said.seq}"})


@final
class NoRuntime:
    """A place in which nothing runs: what is measured is the node."""

    path = None

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        raise NotImplementedError("nothing runs here")

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        raise FileNotFoundError(path)

    async def write(self, path: str, content: bytes | str) -> None:
        raise NotImplementedError("nothing is kept here")


@final
class NoRuntimes(RuntimeProvider):
    """Gives a place in which nothing runs, at once."""

    kind = "none"

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        return NoRuntime(spec.name)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None: ...

    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        return None

    async def discard(self, name: str, workspace: str | None = None) -> None: ...

    async def list(self) -> Sequence[tuple[str, str]]:
        return ()


@final
class Pulse:
    """How long the event loop was held up, at worst, since it was last asked."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def feel(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOP_PROBE_S)
            self.worst_s = max(self.worst_s, time.monotonic() - before - LOOP_PROBE_S)


class Teller:
    """Writes lines, many at once: telling must not cost what is measured."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = {TOLD[kind]: kind for kind in kinds}
        self._lines: list[str] = []

    def hear(self, fact: facts.Fact) -> None:
        kind = self._kinds.get(type(fact))
        if kind is not None:
            self.say(kind, getattr(fact, "conversation", None))

    def say(self, kind: str, what: object = None) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(json.dumps([kind, time.monotonic(), what]))

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


async def obey(node: Node, teller: Teller, pulse: Pulse) -> None:
    """What the parent asks on standard input: ``pulse`` tells the worst stall and begins anew, ``collect`` frees memory,
    ``send CONVERSATION KEY`` submits a message as if it had come here; ``profile`` looks where the time goes until ``profiled``,
    ``trace`` where memory goes until ``traced``: both make it slower meanwhile."""
    reader, profile = asyncio.StreamReader(), Profile()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        if line == "pulse":
            teller.say("pulse", pulse.worst_s)
            pulse.worst_s = 0.0
        elif line.startswith("send "):
            await node.submit(Submit(line.split()[1], message(line.split()[2])))
            teller.say("sent")
        elif line == "collect":
            gc.collect()
            teller.say("collected")
        elif line == "profile":
            teller.say("profiling")
            profile.start()
        elif line == "profiled":
            teller.say("profiled", json.dumps(profile.stop()))
        elif line == "trace":
            gc.collect()
            tracemalloc.start()
            teller.say("tracing")
        elif line == "traced":
            teller.say("traced", json.dumps(memory_since()))


def memory_since() -> dict[str, int]:
    """Bytes that were taken since the tracing began and are still held, by the file that took them."""
    gc.collect()
    taken = tracemalloc.take_snapshot()
    tracemalloc.stop()
    found: Counter[str] = Counter()
    for one in taken.statistics("filename"):
        found[short(one.traceback[0].filename)] += one.size
    return found


async def run(given: argparse.Namespace) -> None:
    url = os.environ.pop(STORE)
    if given.whole:
        importlib.import_module("tenure.embed")
    config = Config(
        store=url,
        node=given.node,
        capacity=given.capacity,
        idle_s=given.idle_s,
        ttl_s=given.ttl_s,
        witness=given.witness,
        workspaces=given.workspaces,
    )
    provider = (
        NoRuntimes() if given.runtime == "none" else open_provider(given.runtime, root=given.workspaces, token="")
    )
    teller, pulse = Teller(given.tell.split(",") if given.tell else []), Pulse()
    loops = {"bench": function_loop(answer, config)}
    node = Node(open_store(url), loops, provider=provider, config=config, keys=Keys.load({}, None))
    node.facts.listen(teller.hear)
    async with node:
        collect_seldom()
        feeling = node.tasks.start(pulse.feel(), "pulse")
        teller.say("ready")
        await obey(node, teller, pulse)
        feeling.cancel()


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", default="bench")
    parser.add_argument("--whole", action="store_true", help="with all that `tenure serve` loads")
    parser.add_argument("--capacity", type=int, default=1000)
    parser.add_argument("--idle-s", type=float, default=3600)
    parser.add_argument("--ttl-s", type=float, default=3.0)
    parser.add_argument("--runtime", default="none")
    parser.add_argument("--workspaces", default="")
    parser.add_argument("--witness", action="store_true")
    parser.add_argument("--tell", default="")
    return parser


if __name__ == "__main__":
    asyncio.run(run(options().parse_args()))
