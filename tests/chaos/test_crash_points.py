"""kill -9 at each numbered point of start, turn and drain: whoever is left goes on, nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest
from backings import CHOSEN, LONG
from world import World, world

START = [
    f"{moment}:{kind}" for kind in ("claimed", "runtime_requested", "runtime_ready") for moment in ("before", "after")
]
TURN = [
    f"{moment}:{kind}"
    for kind in ("turn_started", "call_started", "tool", "call_finished", "reply", "turn_completed")
    for moment in ("before", "after")
]
DRAIN = [f"{moment}:{kind}" for kind in ("released", "retire") for moment in ("before", "after")]


async def _dies(one: World, point: str, number: int, provoke) -> str:
    """A fresh node that owns (or is about to own) a conversation dies at the point; the other one goes on."""
    conversation = f"crash-{number}"
    survivor = one.nodes["survivor"]
    await one.create(conversation, survivor)
    victim = one.node(f"victim-{number}", CRASH_AT=point)
    await victim.start()
    await provoke(one, victim, conversation)
    assert await victim.ended(60) == -9, f"the node did not die at {point}"
    after = await one.send(conversation, "after", survivor)
    await one.answered(conversation, after)
    return conversation


async def _start_here(one: World, victim, conversation: str) -> None:
    try:
        await one.http.post(f"{victim.url}/conversations/{conversation}/start", params={"here": "true"}, json={})
    except Exception:
        return  # it died while it answered


async def _own_then_message(one: World, victim, conversation: str) -> None:
    await _start_here(one, victim, conversation)
    await one.send(conversation, "before", one.nodes["survivor"])


async def _own_then_drain(one: World, victim, conversation: str) -> None:
    await _own_then_message(one, victim, conversation)
    await one.event(conversation, "turn_completed")
    victim.drain()


@pytest.mark.parametrize(
    ("phase", "points", "provoke"),
    [("start", START, _start_here), ("turn", TURN, _own_then_message), ("drain", DRAIN, _own_then_drain)],
)
async def test_kill_9_at_each_point(tmp_path, store, phase, points, provoke):
    """Each point on each store in `make chaos`; in `make test` the stores share them."""
    mine = points if LONG else points[CHOSEN.index(store) :: len(CHOSEN)]
    async with world(tmp_path, store) as one:
        await one.node("survivor").start()
        for number, point in enumerate(mine, 1):
            conversation = await _dies(one, point, number, provoke)
            messages = [e for e in await one.events(conversation) if e.kind == "message"]
            replies = [e.body["text"] for e in await one.events(conversation) if e.kind == "reply"]
            assert replies == [m.text for m in messages], f"{phase} {number} {point}: each message is answered once"
        await one.quiescent()
        await one.judge()
