"""The scenes: a storm of starts, then live conversations whose owners are killed, frozen and drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from tenure.cli.demo.screen import TTL_S
from tenure.cli.demo.stage import PATIENCE_S, Stage
from tenure.cli.demo.verdict import Fault
from tenure.client import Client
from tenure.errors import StoreError, TenureError
from tenure.journal import Event
from tenure.testing.history import Start
from tenure.testing.processes import NodeEndedError, NodeProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Store
    from tenure.cli.demo.mirror import Mirror

STARTS_HERE = 2
"""How often each conversation is asked of each node at once to run *here*; and once to run wherever."""
SILENCE_S = 1.0
PROBE_S, PROBES = 0.25, 20
BEAT_S = 0.1
GLANCE_S = 0.3
LEAVE_S = 12.0


async def storm(stage: Stage, conversations: Sequence[str]) -> None:
    """Every conversation is created and started through every node, several times, all at once; and its first message
    is sent through every node, too, always with the same key."""

    async def ask(node: NodeProcess, conversation: str) -> None:
        await stage.create(node, conversation)
        await asyncio.gather(
            stage.start_loop(node, conversation, here=False),
            *(stage.start_loop(node, conversation, here=True) for _ in range(STARTS_HERE)),
            stage.send(conversation, 0, [node], body={"text": "hello"}),
        )

    asked = len(conversations) * len(stage.nodes) * (STARTS_HERE + 1)
    stage.screen.say(f"{asked} starts of {len(conversations)} conversations, through every node at once")
    await asyncio.gather(*(ask(node, conversation) for conversation in conversations for node in stage.nodes))
    seconds = time.time() - min(start.started for start in stage.history.of(Start))
    here = {(s.conversation, s.process) for s in stage.history.of(Start) if s.outcome == "here"}
    stage.screen.say(f"    answered after {seconds:.1f} s: {len(here)} conversations run, each on one node")


async def glance(stage: Stage, conversations: Sequence[str], store: Store) -> None:
    """Look at who owns what, for the screen."""
    while True:
        with contextlib.suppress(StoreError):
            living = {node.incarnation for node in await store.nodes() if not node.dead}
            for name, record in zip(conversations, await store.records(conversations), strict=True):
                owner = record.owner if record is not None else None
                stage.screen.owners[name] = owner.node if owner is not None and owner.incarnation in living else None
        await asyncio.sleep(GLANCE_S)


async def chat(stage: Stage, mirror: Mirror, hush: asyncio.Event) -> None:
    """One message after the other, each under its own key, at any node; the next when it is answered or takes long."""
    number = 0
    while not hush.is_set():
        number += 1
        seq = await stage.send(mirror.conversation, number)
        await mirror.until(lambda seq=seq: seq in mirror.settled or hush.is_set(), TTL_S)


async def follow(stage: Stage, mirror: Mirror) -> None:
    """Follow the stream from any node; one that says nothing for a while may be frozen, so ask the next."""
    async with Client([node.url for node in stage.reachable()], rng=stage.rng) as client:
        while True:
            stream = client.stream(mirror.conversation, len(mirror.events))
            with contextlib.suppress(TimeoutError, TenureError):
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        told = await anext(stream)
                    if isinstance(told, Event):
                        mirror.absorb(told)
            await client.next_node(0)


# --- what happens to owners -----------------------------------------------------------------------------------------


async def kill(stage: Stage, mirrors: Sequence[Mirror], spared: set[str], group: asyncio.TaskGroup) -> str:
    """``kill -9`` in mid-turn. Its witness buries it; somebody else goes on. Then it is started again."""
    victim = await _in_mid_call(stage, mirrors, spared)
    node = stage.nodes[_owner(victim)]
    fault = begin(stage, "killed", victim)
    node.kill()
    stage.screen.nodes[node.name] = "killed"
    stage.screen.say(f"kill -9 {node.name}, in the middle of a turn of {victim.conversation}", "red")
    await taken_over(stage, mirrors, fault)
    group.create_task(_again(stage, node))
    return node.name


async def freeze(stage: Stage, mirrors: Sequence[Mirror], spared: set[str], store: Store) -> str:
    """``SIGSTOP`` beyond its ttl, then ``SIGCONT``: whatever it still wants to write is refused."""
    victim = await _in_mid_call(stage, mirrors, spared)
    node = stage.nodes[_owner(victim)]
    fault = await _freeze_outside_of_a_transaction(stage, victim, node, store)
    stage.screen.nodes[node.name] = "frozen"
    stage.screen.say(f"kill -STOP {node.name}, in the middle of a turn of {victim.conversation}", "blue")
    await taken_over(stage, mirrors, fault)
    await asyncio.sleep(max(0.0, fault.at + 1.25 * TTL_S - time.time()))
    node.thaw()
    stage.screen.say(f"kill -CONT {node.name}: it wakes up, and believes that it owns what it owned", "blue")
    try:
        await node.ready(PATIENCE_S)
    except NodeEndedError as error:
        stage.broken.append(f"{node.name} did not come back after it was frozen: {error}")
    stage.screen.nodes[node.name] = "up"
    refused = sum([len(await store.refusals(mirror.conversation)) for mirror in mirrors])
    late = f"late writes refused by the store: {refused}" if refused else "no late write left it"
    stage.screen.say(f"{node.name} gave everything up and registered anew; {late}", "blue")
    return node.name


async def drain(stage: Stage, mirrors: Sequence[Mirror], spared: set[str], group: asyncio.TaskGroup) -> str:
    """``SIGTERM``: turns go on for a while, the rest is handed over; it must exit with 0. Then it is started again."""
    await all_up(stage)
    victim = await _in_mid_call(
        stage, mirrors, spared, at_first_call=True
    )  # so that it outlasts what the node is given
    node = stage.nodes[_owner(victim)]
    fault = begin(stage, "drained", victim)
    node.drain()
    stage.screen.nodes[node.name] = "draining"
    stage.screen.say(f"kill -TERM {node.name}, in the middle of a turn of {victim.conversation}", "yellow")
    await taken_over(stage, mirrors, fault)
    try:
        code = await node.ended(LEAVE_S)
    except TimeoutError:
        code = None
    if code != 0:
        stage.broken.append(f"{node.name} was told to drain and ended with {code}")
    stage.screen.nodes[node.name] = "left"
    stage.screen.say(f"{node.name} has left, exit code {code}")
    group.create_task(_again(stage, node))
    return node.name


async def _again(stage: Stage, node: NodeProcess) -> None:
    await stage.start(node)
    stage.screen.say(f"{node.name} is started again, as a new incarnation")


async def all_up(stage: Stage) -> None:
    """Wait until every node is ready again."""
    while set(stage.screen.nodes.values()) != {"up"}:  # noqa: ASYNC110 - a glance now and then will do
        await asyncio.sleep(BEAT_S)


def _owner(mirror: Mirror) -> str:
    assert mirror.owner is not None, "a tool runs"
    return mirror.owner.node


async def _in_mid_call(
    stage: Stage, mirrors: Sequence[Mirror], spared: set[str], *, at_first_call: bool = False
) -> Mirror:
    """A conversation whose tool runs at this moment, preferably not on a node that has suffered already."""
    deadline = time.time() + PATIENCE_S
    while time.time() < deadline:
        busy = [m for m in mirrors if m.in_mid_call and stage.screen.nodes.get(_owner(m)) == "up"]
        busy = [mirror for mirror in busy if mirror.done == 0 or not at_first_call]
        fresh = [mirror for mirror in busy if _owner(mirror) not in spared]
        if fresh or (busy and time.time() > deadline - PATIENCE_S + 1):
            return stage.rng.choice(fresh or busy)
        await asyncio.sleep(0.01)
    raise TimeoutError("no conversation was in the middle of a turn")


def begin(stage: Stage, kind: str, victim: Mirror) -> Fault:
    """A fault of the victim's owner begins now."""
    assert victim.owner is not None, "a tool runs"
    fault = Fault(kind, victim.owner.node, victim.owner.incarnation, time.time())
    stage.faults.append(fault)
    return fault


async def _freeze_outside_of_a_transaction(stage: Stage, victim: Mirror, node: NodeProcess, store: Store) -> Fault:
    """A writer that is frozen inside a transaction of SQLite stalls the store for everybody until it is thawed: no
    promise covers that, and it is not what is shown here. So look whether the store takes a write."""
    for attempt in range(1, PROBES + 1):
        fault = begin(stage, "frozen", victim)
        node.freeze()
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(min(attempt * PROBE_S, TTL_S / 2)):
                paper = await store.get_paper("demo", "probe")
                await store.put_paper("demo", "probe", {}, 0 if paper is None else paper.version)
                return fault
        node.thaw()
        stage.faults.remove(fault)
        await asyncio.sleep(BEAT_S)
    raise TimeoutError(f"the store took no write in {PROBES} tries while {node.name} was frozen")


async def taken_over(stage: Stage, mirrors: Sequence[Mirror], fault: Fault) -> None:
    """Wait until every turn that was open on that node goes on elsewhere (or has ended: a drained node may end it)."""
    held = [
        m for m in mirrors if m.owner is not None and m.owner.incarnation == fault.incarnation and m.turn is not None
    ]
    open_turns = [(mirror, mirror.turn, len(mirror.events)) for mirror in held]

    def goes_on(mirror: Mirror, turn: str | None, seen: int) -> bool:
        later = mirror.events[seen:]
        moved = next((place for place, event in enumerate(later) if event.kind == "claimed"), None)
        return mirror.turn != turn or (moved is not None and any(e.turn == turn for e in later[moved:]))

    async def wait(mirror: Mirror, turn: str | None, seen: int) -> None:
        if not await mirror.until(lambda: goes_on(mirror, turn, seen), PATIENCE_S):
            stage.broken.append(
                f"{mirror.conversation} did not go on within {PATIENCE_S:g} s ({fault.kind} {fault.node})"
            )
            return
        if mirror.owner is not None and mirror.owner.incarnation != fault.incarnation:
            after_s = next(e.at.unix_s for e in mirror.events[seen:] if e.kind == "claimed") - fault.at
            stage.screen.say(f"    {mirror.conversation} goes on at {mirror.owner.node}, claimed after {after_s:.2f} s")

    await asyncio.gather(*(wait(*one) for one in open_turns))
