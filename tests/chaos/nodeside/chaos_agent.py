"""What runs inside the nodes of the chaos suite: an agent whose tools leave traces, and numbered points to die at.

``CRASH_AT=before:turn_started`` kills the process (SIGKILL, by itself) just before the write that carries that event is
handed to the store; ``after:`` when the store has executed it and nobody has heard so yet. ``tool`` is inside a call.
Only conversations whose id begins with ``crash`` are meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import chaos_clock

import tenure
from tenure.abc import Death
from tenure.stores import open_store

POINT = os.environ.get("CRASH_AT", "")
EFFECTS = Path(os.environ["CHAOS_EFFECTS"])
STORE: Any = type(open_store(os.environ["CHAOS_STORE"]))
chaos_clock.install(Path(os.environ["CHAOS_CLOCK"]))


def crash(moment: str, what: str, conversation: str) -> None:
    if POINT == f"{moment}:{what}" and conversation.startswith("crash"):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


TRACES = os.open(EFFECTS, os.O_WRONLY | os.O_APPEND)
"""Open from the start: a node without descriptors still leaves its traces."""


def note(**line: object) -> None:
    """One line, written at once: O_APPEND keeps lines of several processes whole."""
    known = {"pid": os.getpid(), "address": os.environ["CHAOS_ADDRESS"], "at": time.monotonic()}
    os.write(TRACES, (json.dumps(known | line) + "\n").encode())


def work(text: str, conversation: str, idempotency_key: str) -> str:
    crash("before", "tool", conversation)
    note(tool="work", key=idempotency_key, conversation=conversation, epoch=EPOCHS[conversation])
    crash("after", "tool", conversation)
    return text.upper()


async def look(conversation: str, idempotency_key: str) -> str:
    note(tool="look", key=idempotency_key, conversation=conversation)
    return "seen"


def fork(seconds: float) -> None:
    """What multiprocessing does: a copy of the node's process, with all its descriptors, that outlives it."""
    if os.fork() == 0:
        note(tool="forked", key="", conversation="")
        time.sleep(seconds)
        os._exit(0)


ONCE = {"block_s", "hold_gil_s"}
"""Whoever takes the turn over is spared: else one order would stop one node after the other."""


EPOCHS: dict[str, int] = {}
"""Of the turns under way. No argument of a call: it is another one in the next attempt."""


async def agent(turn):
    EPOCHS[turn.conversation_id] = turn.epoch
    for message in turn.messages:
        order = message.content if isinstance(message.content, dict) else {}
        if turn.attempt > 1:
            order = {name: value for name, value in order.items() if name not in ONCE}
        if "fork_s" in order:
            fork(order["fork_s"])
        if "sleep_s" in order:
            await asyncio.sleep(order["sleep_s"])
        if "block_s" in order:
            time.sleep(order["block_s"])  # what bad code does: the whole event loop stands still
        if "hold_gil_s" in order:
            ctypes.PyDLL(None).usleep(int(order["hold_gil_s"] * 1e6))  # and this stops every thread
        if "hog_mib" in order:
            bytearray(int(order["hog_mib"]) << 20)  # MemoryError where the process has a limit
        if "run" in order:
            with contextlib.suppress(tenure.CallInterrupted):
                await turn.call("run", turn.runtime.run, order["run"])
        try:
            worked = await turn.call("work", work, message.text, turn.conversation_id)
        except tenure.CallInterrupted:
            worked = None
        if "between_s" in order:
            await turn.call("pause", asyncio.sleep, order["between_s"], idempotent=True)
        seen = await turn.call("look", look, turn.conversation_id, idempotent=True)
        await turn.emit("reply", {"text": message.text, "worked": worked, "seen": seen})


# --- dying at a numbered point --------------------------------------------------------------------------------------


def _dies(name: str, conversation_of, kinds_of) -> None:
    """At one request of this name, and at a list of them: a store may have a way of its own for either."""

    def crash_at(moment: str, requests) -> None:
        for request in requests:
            for kind in kinds_of(request):
                crash(moment, kind, conversation_of(request))

    one_by_one, at_once = getattr(STORE, name), getattr(STORE, f"{name}_all")

    async def one(self, request):
        crash_at("before", [request])
        result = await one_by_one(self, request)
        crash_at("after", [request])
        return result

    async def many(self, requests):
        crash_at("before", requests)
        results = await at_once(self, requests)
        crash_at("after", requests)
        return results

    setattr(STORE, name, one)
    setattr(STORE, f"{name}_all", many)


def _dies_burying() -> None:
    original = STORE.bury

    async def bury(self, incarnation, why):
        if why is Death.RETIRED:
            crash("before", "retire", "crash")
        answer = await original(self, incarnation, why)
        if why is Death.RETIRED:
            crash("after", "retire", "crash")
        return answer

    STORE.bury = bury


if POINT:
    _dies("claim", lambda r: r.conversation, lambda r: ["claimed"])
    _dies("append", lambda r: r.lease.conversation, lambda r: [d.kind for d in r.drafts])
    _dies(
        "release",
        lambda r: r.batch.lease.conversation,
        lambda r: [*(d.kind for d in r.batch.drafts), "released"],
    )
    _dies_burying()
