"""``tenure demo``: three nodes, a storm of starts, a kill -9, a freeze, a drain; then what was lost and what was doubled.

With ``--agent openhands``: an OpenHands agent at work, whose owner is killed (:mod:`tenure.cli.demo.openhands`).

Nothing is simulated: the nodes are processes, the store is a file or a server, the signals are the kernel's. Everything
that was started ends with the demo, also on Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

import httpx

from tenure.cli.demo import openhands
from tenure.cli.demo.mirror import Mirror
from tenure.cli.demo.own import OWN, begun, check_store
from tenure.cli.demo.scenes import LEAVE_S, all_up, chat, drain, follow, freeze, glance, kill, storm
from tenure.cli.demo.screen import Screen, print_verdict
from tenure.cli.demo.stage import HTTP_TIMEOUT_S, PATIENCE_S, Stage
from tenure.cli.demo.verdict import Verdict, judge, read_effects
from tenure.cli.exits import Exit
from tenure.clock import SystemClock
from tenure.errors import TenureError
from tenure.loops.openhands.sdk import insist_on_extra
from tenure.stores import open_store
from tenure.testing.history import Attempt, Journal, Start
from tenure.testing.processes import NodeEndedError, NodeProcesses, ServerFailedError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from rich.console import Console

    from tenure.abc import Store

LIVE = 6
"""So many of the conversations are talked to all the time."""
QUICK_LIVE = 4


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What ``tenure demo`` is told. `store` is a URL, or the name of one that the demo starts by itself (``sqlite``, also
    when it is null, ``redis`` and ``postgres``): a new one in a temporary folder."""

    store: str | None = None
    agents: tuple[str, ...] = ("scripted",)
    nodes: int = 3
    conversations: int = 30
    seconds: float = 0.0
    quick: bool = False


def run(options: Options, console: Console) -> Exit:
    """Play it, and say how it ended. Ends everything that it has started.

    :raises InvalidInputError: the store is none, none for several processes, or one that cannot be started here; or the
        agent needs a package that is missing.
    """
    check_store(options.store)
    if openhands.plays(options.agents):
        insist_on_extra()
    clock, folder = SystemClock(), Path(tempfile.mkdtemp(prefix="tenure-demo-"))
    began = clock.boottime()
    try:
        with begun(options.store, folder) as store:
            verdict = asyncio.run(_play(options, store, folder, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: everything that was started is ended")
        shutil.rmtree(folder, ignore_errors=True)
        return Exit.INTERRUPTED
    except (NodeEndedError, TimeoutError, TenureError, ServerFailedError, ExceptionGroup) as error:
        for one in leaves(error):
            console.print(
                f"the demo could not go on: {str(one) or type(one).__name__}", style="red", markup=False, soft_wrap=True
            )
        console.print(f"the store and the logs stay in {folder}", soft_wrap=True)
        return Exit.FAILED
    print_verdict(console, verdict, clock.boottime() - began)
    if verdict.kept:
        shutil.rmtree(folder, ignore_errors=True)
        return Exit.OK
    console.print(f"the store, the logs and the history stay in {folder}", soft_wrap=True)
    return Exit.FAILED


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What a group of errors consists of."""
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(one)
    else:
        yield error


async def _play(options: Options, store: str, folder: Path, console: Console) -> Verdict:
    http = httpx.AsyncClient(trust_env=False, timeout=HTTP_TIMEOUT_S, limits=httpx.Limits(max_connections=400))
    with _until_sigterm(), NodeProcesses() as nodes:
        async with http, open_store(store) as opened:
            stage = Stage(store, options.agents, folder, nodes, http, Screen(console))
            stage.build(options.nodes)
            with stage.screen.live():
                await _acts(options, stage, opened)
                await _read(stage, opened)
            await _close(stage)
    (folder / "history.jsonl").write_text("\n".join(stage.history.lines()))
    return judge(
        stage.history,
        stage.faults,
        effects_known=stage.scripted,
        storm_ended=stage.storm_ended,
        flaws=stage.broken,
    )


async def _acts(options: Options, stage: Stage, store: Store) -> None:
    """The storm, then the faults, one after the other, while everybody goes on talking."""
    prefix = "c" if options.store in (None, *OWN) else f"demo-{secrets.token_hex(3)}-"
    if openhands.plays(options.agents):
        await openhands.acts(stage, store, f"{prefix}01")
        return
    stage.screen.say(f"starting {options.nodes} nodes on {stage.store}")
    await asyncio.gather(*(stage.start(node) for node in stage.nodes))
    names = [f"{prefix}{number:02}" for number in range(1, options.conversations + 1)]
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(glance(stage, names, store))
        await storm(stage, names)
        stage.storm_ended = time.time()
        mirrors = [Mirror(name, stage.screen) for name in names[: QUICK_LIVE if options.quick else LIVE]]
        following = [group.create_task(follow(stage, mirror)) for mirror in mirrors]
        await _break_nodes(options, stage, mirrors, store, group)
        stage.screen.say("nobody talks any more; what was accepted is being answered")
        await asyncio.gather(*(_come_to_rest(stage, mirror) for mirror in mirrors))
        for task in (looking, *following):
            task.cancel()
    stage.broken += [flaw for mirror in mirrors for flaw in mirror.flaws]


async def _break_nodes(
    options: Options, stage: Stage, mirrors: Sequence[Mirror], store: Store, group: asyncio.TaskGroup
) -> None:
    """One fault after the other while people talk; returns when every node is up and nobody talks any more."""
    stage.screen.say(
        f"{len(mirrors)} conversations are talked to, through any node; their agents work in their runtimes"
    )
    hush, began = asyncio.Event(), time.time()
    chats = [group.create_task(chat(stage, mirror, hush)) for mirror in mirrors]
    while True:
        suffered = {await kill(stage, mirrors, set(), group)}
        suffered.add(await freeze(stage, mirrors, suffered, store))
        await drain(stage, mirrors, suffered, group)
        if time.time() - began >= options.seconds:
            break
    hush.set()
    await asyncio.gather(*chats)
    await all_up(stage)


async def _come_to_rest(stage: Stage, mirror: Mirror) -> None:
    accepted = {a.seq for a in stage.history.of(Attempt) if a.conversation == mirror.conversation and a.seq}
    if not await mirror.until(lambda: accepted <= mirror.settled, PATIENCE_S):
        stage.broken.append(f"{mirror.conversation}: not everything was answered within {PATIENCE_S:g} s")


async def _read(stage: Stage, store: Store) -> None:
    """Every journal, through every node that lives, and the file of side effects."""
    journals: list[Journal] = []
    conversations = sorted({start.conversation for start in stage.history.of(Start)})
    for conversation, record in zip(conversations, await store.records(conversations), strict=True):
        told = [await stage.journal(conversation, node) for node in stage.nodes if node.running]
        owner = record.owner.incarnation if record is not None and record.owner is not None else None
        epoch = record.epoch if record is not None else 0
        wanted = record is not None and record.wanted
        journals.append(Journal(conversation, tuple(told[0]), epoch, owner, wanted))
    lines = stage.effects_file.read_text().splitlines() if stage.effects_file.exists() else []
    for entry in (*journals, *read_effects(lines, journals)):
        stage.history.add(entry)


async def _close(stage: Stage) -> None:
    """The nodes leave as they should, all at once."""
    nodes = [node for node in stage.nodes if node.running]
    for node in nodes:
        node.drain()
    for node in nodes:
        try:
            if await node.ended(LEAVE_S) != 0:
                stage.broken.append(f"{node.name} ended with {node.exit_code}")
        except TimeoutError:
            stage.broken.append(f"{node.name} did not leave within {LEAVE_S:g} s")


@contextlib.contextmanager
def _until_sigterm() -> Generator[None]:
    """SIGTERM ends the demo like Ctrl-C does: nothing is left behind."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "inside of asyncio.run"
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
