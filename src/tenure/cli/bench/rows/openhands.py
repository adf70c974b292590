"""Target 9: OpenHands agents here, beside the agent server that their SDK brings along."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from tenure.cli.bench import sampled
from tenure.cli.bench.results import Bound, Figure, Row
from tenure.cli.bench.sampling import MeasureFailedError, shares
from tenure.cli.bench.stage import parts
from tenure.cli.bench.stock import STOCK, Ours, Server, Stock, installed
from tenure.errors import InvalidInputError
from tenure.loops.openhands.sdk import insist_on_extra
from tenure.testing.model_server import ModelServer

if TYPE_CHECKING:
    from tenure.cli.bench.results import Role
    from tenure.cli.bench.stage import Amount, Part, Stage

PAGE = os.sysconf("SC_PAGE_SIZE")
POLL_S = 0.001
PATIENCE_S = 60.0
WARM = 3
MOST, SHARE, LOOKED = 50, 10, 20
"""So many conversations, at most; and one for so many operations of another row."""
ALONE_S = 5.0
"""How long nobody asks, after a kill, before a client does."""
IN_THE_TOOL_S = 4.0
WITHIN_S = 2.0
BY_ITSELF = "takeover after kill -9 in a tool, nobody asking"
NOISE = 1.25
SCRIPTS: Final[dict[str, Any]] = {
    "default": [{"text": "Hello."}],
    "slow": [{"calls": [{"name": "terminal", "arguments": {"command": "sleep 600"}}]}, {"text": "So it goes."}],
}
EDITOR, TERMINAL = ({"name": "file_editor"}, {"name": "task_tracker"}), ({"name": "terminal"},)

type Birth = Callable[[str], Server]
type Keep = Callable[[str, str, list[float]], None]


async def measure(stage: Stage, row: Row) -> None:
    """Seconds to readiness, bytes per resident conversation, milliseconds to the first call of the model, and what happens
    after a kill -9 in a tool: two servers of each kind, one kind after the other.

    :raises MeasureFailedError: the SDK is not installed here.
    """
    try:
        insist_on_extra()
    except InvalidInputError as error:
        raise MeasureFailedError(str(error)) from None
    place = stage.places.get("sqlite") or next(iter(stage.places.values()))
    async with ModelServer(SCRIPTS) as model, httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        bench = _Bench(model, stage.amount, row)
        with tempfile.TemporaryDirectory(prefix="tenure-bench-", ignore_cleanup_errors=True) as name:
            async with place.space() as url:
                birth = partial(Ours, store=url, folder=Path(name), http=http)
                works: dict[str, Part] = {"tenure": lambda _: bench.on("tenure", "ours", birth)}
                if installed():
                    works[STOCK] = lambda _: _stock(bench, http)
                else:
                    row.missing[STOCK] = "not installed here; `make bench` installs it"
                works["profiles"] = lambda _: bench.look_into(birth("looked", looked=True))
                await parts(stage, row, works)
    _compare(row)


async def _stock(bench: _Bench, http: httpx.AsyncClient) -> None:
    with tempfile.TemporaryDirectory(prefix="tenure-bench-", ignore_cleanup_errors=True) as name:
        await bench.on(STOCK, "peer", partial(Stock, folder=Path(name), http=http))


class _Bench:
    """What is measured of each kind of server, and where it is kept."""

    def __init__(self, model: ModelServer, amount: Amount, row: Row) -> None:
        self.model, self.row = model, row
        self.count = min(MOST, max(3, amount.single // SHARE))

    async def on(self, name: str, role: Role, birth: Birth) -> None:
        """Two servers on one store; the first is killed, the second goes on."""

        def keep(what: str, unit: str, values: list[float]) -> None:
            self.row.figures.append(Figure.of(f"{name}: {what}", role, unit, values))

        with ExitStack() as stack:
            servers = [birth("one"), birth("two")]
            for server in servers:
                stack.callback(server.kill)
            keep("start of a server, two at once", "s", [await server.up() for server in servers])
            one = servers[0]
            keep("memory of a server", "MB", [_resident(one) / 1e6])
            for _ in range(WARM):
                await self._conversation(one)
            before = _resident(one)
            starts = [await self._conversation(one) for _ in range(self.count)]
            keep(
                f"memory per resident conversation, {self.count} of them, idle",
                "KB",
                [(_resident(one) - before) / self.count / 1e3],
            )
            keep("message to the first call of the model", "ms", starts)
            await self._takeover(name, keep, servers, stack, birth)

    async def look_into(self, server: Ours) -> None:
        """Where the time and the memory of ours go; a server of its own, since looking makes it slower."""
        times, memory = dict[str, float](), dict[str, float]()
        try:
            await server.up()
            for _ in range(WARM):
                await self._conversation(server)
            async with server.looked_into(sampled.TIME, times):
                for _ in range(self.count):
                    await self._conversation(server)
            async with server.looked_into(sampled.MEMORY, memory):
                for _ in range(count := min(self.count, LOOKED)):
                    await self._conversation(server)
        finally:
            server.kill()
        self.row.profiles[
            "time of tenure's server while conversations begin and are answered (samples, innermost function)"
        ] = shares(times)
        each = sum(memory.values()) / count / 1e3
        self.row.profiles[
            f"memory of tenure's server per resident conversation, {each:.0f} KB by the interpreter's count (by the file that took it)"
        ] = shares(memory)

    async def _conversation(self, server: Server) -> float:
        """A conversation that is created, answered, and then stays; milliseconds until the model was asked."""
        conversation = str(uuid.uuid4())
        began, agent = time.monotonic(), self._agent(EDITOR)
        said = asyncio.ensure_future(server.say(conversation, f"hello {conversation}", agent))
        asked = await self._asked(conversation, 1)
        await said
        async with asyncio.timeout(PATIENCE_S):
            while not await server.idle(conversation):  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.02)
        return (asked - began) * 1000

    async def _takeover(self, name: str, keep: Keep, servers: list[Server], stack: ExitStack, birth: Birth) -> None:
        """Seconds from the kill to the next call of the model, if it comes by itself. Else a client asks the other server;
        where that one does not know the conversation, a server is started anew, and asked."""
        conversation, (one, two) = str(uuid.uuid4()), servers
        await one.say(conversation, f"work {conversation} [script:slow]", self._agent(TERMINAL))
        await self._asked(conversation, 1)
        await asyncio.sleep(IN_THE_TOOL_S)
        killed = one.kill()
        with suppress(MeasureFailedError):
            keep(BY_ITSELF, "s", [await self._asked(conversation, 2, ALONE_S) - killed])
            return
        self.row.missing[f"{name}: {BY_ITSELF}"] = f"nothing happens within {ALONE_S:g} s"
        began, how = time.monotonic(), "asked of the other server"
        if not await two.resume(conversation):
            self.row.missing[f"{name}: takeover, {how}"] = "it does not know what was created after its own start (404)"
            how = "a server started anew, and asked by a client"
            third = birth("three")
            stack.callback(third.kill)
            await third.up()
            await third.resume(conversation)
        keep(f"takeover, {how}", "s", [await self._asked(conversation, 2) - began])

    async def _asked(self, conversation: str, times: int, patience_s: float = PATIENCE_S) -> float:
        """Wait until the model was asked so often for this conversation's agent; when, in monotonic seconds.

        :raises MeasureFailedError: not in time.
        """
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            asked = [r for r in self.model.requests if r.get("tools") and conversation in str(r["messages"][1])]
            if len(asked) >= times:
                return time.monotonic()
            await asyncio.sleep(POLL_S)
        raise MeasureFailedError(f"the model was not asked within {patience_s:g} s")

    def _agent(self, tools: tuple[dict[str, str], ...]) -> dict[str, Any]:
        llm = {"model": "openai/scripted", "base_url": self.model.url, "api_key": "no-key", "num_retries": 0}
        return {"llm": llm, "tools": list(tools)}


def _resident(server: Server) -> int:
    """What its process has in memory, in bytes."""
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * PAGE


def _compare(row: Row) -> None:
    figures = {figure.name: figure for figure in row.figures}
    alone = figures.get(f"tenure: {BY_ITSELF}")
    found = "not taken over" if alone is None else f"{alone.middle:.2f} s"
    met = alone is not None and alone.middle < WITHIN_S
    row.bounds.append(
        Bound(f"an agent that was killed in a tool goes on elsewhere by itself < {WITHIN_S:g} s", found, met)
    )
    for name in [name for name in figures if name.startswith("tenure: ") and "takeover" not in name]:
        what = name.removeprefix("tenure: ")
        theirs = figures.get(f"{STOCK}: {what}")
        text = f"{what.partition(',')[0]}: at most that of the stock server, within noise"
        if theirs is None:
            row.bounds.append(Bound(text, row.missing.get(STOCK, "not measured"), None))
            continue
        row.beside(name, theirs.name)
        ours, unit = figures[name].middle, theirs.unit
        row.bounds.append(
            Bound(text, f"{ours:.1f} {unit} beside {theirs.middle:.1f} {unit}", ours <= NOISE * theirs.middle)
        )
