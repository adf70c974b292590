"""kill -9 at each numbered point of start, turn and drain: whoever is left goes on, nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest
from backings import CHOSEN, LONG
from world import World, world

from conftest import SHARED


def _points(*kinds: str) -> list[str]:
    """In such an order that every other one has both moments in it."""
    return [f"{moment}:{kind}" for moment in ("before", "after") for kind in kinds]


START = _points("claimed", "runtime_requested", "runtime_ready")
TURN = _points("turn_started", "call_started", "tool", "call_finished", "reply", "turn_completed")
DRAIN = _points("released", "retire")


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


PROVOKED = {
    **dict.fromkeys(START, _start_here),
    **dict.fromkeys(TURN, _own_then_message),
    **dict.fromkeys(DRAIN, _own_then_drain),
}
"""The 22 points in order, and what brings a node to each."""


def _share(store: str) -> list[str]:
    """All of them on each store in `make chaos`; in `make test` the stores share them, so that none is left out."""
    points = list(PROVOKED)
    return points if LONG else points[CHOSEN.index(store) :: len(CHOSEN)]


@pytest.mark.timeout(900)
async def test_kill_9_at_each_point(tmp_path, store):
    async with world(tmp_path, store) as one:
        await one.node("survivor").start()
        for number, point in enumerate(_share(store), 1):
            conversation = await _dies(one, point, number, PROVOKED[point])
            messages = [e for e in await one.events(conversation) if e.kind == "message"]
            replies = [e.body["text"] for e in await one.events(conversation) if e.kind == "reply"]
            assert replies == [m.text for m in messages], f"{number} {point}: each message is answered once"
        await one.quiescent()
        await one.judge()


def test_each_point_is_lived_through_on_some_store():
    assert len(PROVOKED) == 22
    assert {point for store in CHOSEN for point in _share(store)} == PROVOKED.keys()
    assert "test_crash_points" not in SHARED, "then it would run on one of the stores that share its points"
