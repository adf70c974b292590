"""Nodes in processes of their own, as measurements see them: :mod:`tenure.cli.bench.node_child` from outside."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tenure.cli.bench.node_child import STORE
from tenure.cli.bench.sampling import MeasureFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tenure.cli.bench.sampling import Shares

PATIENCE_S = 120.0
END_S = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@final
class ChildNode:
    """A running node, and what it told: `told[kind][conversation]` is when it happened last, in monotonic seconds."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: dict[str, dict[Any, float]] = defaultdict(dict)
        self.counts: dict[str, int] = defaultdict(int)
        self._moved = asyncio.Event()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """What the process has in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    @property
    def cpu_s(self) -> float:
        """Processor seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            kind, at, what = json.loads(line)
            self.told[kind][what] = at
            self.counts[kind] += 1
            self._moved.set()
        self._moved.set()

    async def until(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until what it told makes the condition true.

        :raises MeasureFailedError: not in time, or the process ended.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            self._moved.clear()
            if self._process.returncode is not None or self._listening.done():
                raise MeasureFailedError(f"the node ended before {what}")
            if time.monotonic() > deadline:
                raise MeasureFailedError(f"not within {patience_s:g} s: {what}")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._moved.wait()

    async def ask(self, word: str, reply: str) -> Any:
        """Ask it something; what its answer carries."""
        assert self._process.stdin is not None
        before = self.counts[reply]
        self.told[reply].clear()
        self._process.stdin.write(f"{word}\n".encode())
        await self.until(lambda: self.counts[reply] > before, f"its answer to {word}")
        return next(iter(self.told[reply]))

    async def send(self, conversation: str, key: str) -> None:
        """Let a message come to this node; returns before it is accepted."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"send {conversation} {key}\n".encode())

    async def worst_stall_s(self) -> float:
        """The longest that its event loop was held up since this was last asked."""
        return float(await self.ask("pulse", "pulse"))

    @asynccontextmanager
    async def profiled(self, found: Shares) -> AsyncGenerator[None]:
        """Where its event loop's thread spends its time while the block runs; `found` has it afterwards."""
        await self.ask("profile", "profiling")
        yield
        found[:] = [(where, part) for where, part in json.loads(await self.ask("profiled", "profiled"))]

    async def trace(self) -> None:
        """From now on it remembers what took memory."""
        await self.ask("trace", "tracing")

    async def traced(self) -> dict[str, int]:
        """Bytes that it has taken since and still holds, by file."""
        return dict(json.loads(await self.ask("traced", "traced")))

    def kill(self) -> float:
        """``kill -9``; when, in monotonic seconds."""
        at = time.monotonic()
        if self._process.returncode is None:
            self._process.kill()
        return at

    async def end(self) -> None:
        """Let it leave by itself; kill it if that takes too long."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                async with asyncio.timeout(END_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._listening.cancel()  # its witness may hold the other end for longer
        await asyncio.wait([self._listening])


@asynccontextmanager
async def child_node(store: str, *, kill: bool = False, **options: object) -> AsyncGenerator[ChildNode]:
    """A node on the store, ready; afterwards it has ended. `options` are those of ``node_child``; `kill` ends it without a word."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tenure.cli.bench.node_child", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24,
        env={k: v for k, v in os.environ.items() if not k.startswith("TENURE_")} | {STORE: store},
    )  # fmt: skip
    node = ChildNode(process)
    try:
        await node.until(lambda: "ready" in node.told, "it was ready")
        yield node
    except BaseException:
        kill = True  # nobody waits for it to leave when the time is up
        raise
    finally:
        if kill and process.returncode is None:
            process.kill()
            await process.wait()
        await node.end()
