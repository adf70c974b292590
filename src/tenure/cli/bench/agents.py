"""Agents of measurements that run in ``tenure serve``: ``--agent tenure.cli.bench.agents:stepping``."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from tenure.errors import CallInterrupted

if TYPE_CHECKING:
    from tenure.loops.function.turn import FunctionTurn

STEPPING = f"{__name__}:stepping"
STEPS, STEP_S = 20, 0.2
EFFECTS = "BENCH_EFFECTS"
"""The file to which every step adds a line before it does anything: what is counted to find doubles."""


async def stepping(turn: FunctionTurn) -> None:
    """Steps of equal length, each a call with an effect outside, and no process for any of them: what the machine has to do
    is the node's part alone."""
    for number in range(STEPS):
        with suppress(CallInterrupted):  # its owner was lost in it: it is not done again, and the turn goes on
            await turn.call("step", _step, turn.conversation_id, number)
    await turn.emit("reply", {"text": "done"})


async def _step(conversation: str, number: int, idempotency_key: str) -> int:
    line = json.dumps({"conversation": conversation, "key": idempotency_key})
    descriptor = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())  # one write, so that lines of several nodes never mix
    finally:
        os.close(descriptor)
    await asyncio.sleep(STEP_S)
    return number
