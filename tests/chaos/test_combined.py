"""Every fault at once, from a seed, for half a minute; `make chaos` does the same for minutes to hours."""

from __future__ import annotations

import itertools

import pytest
from backings import BACKINGS, CHOSEN
from combined import TTL_S, BrokenError, combined, plan, targets
from menu import MENU, offered
from world import world

from tenure.abc import (
    About,
    Append,
    Claim,
    Creation,
    Death,
    Held,
    Reason,
    Release,
    ReleasedNow,
    Store,
    Submit,
)
from tenure.clock import Instant
from tenure.conversation import Settle
from tenure.journal import Command, Delivery
from tenure.lease import Epoch, new_incarnation, new_token
from tenure.testing.history import Attempt

SEED = "11"
FAULTS, SECONDS = 30, 30.0


async def test_every_fault_at_once(tmp_path, store):
    report = await combined(tmp_path, store, SEED, FAULTS, SECONDS)
    print("\n".join(report.lines()))
    assert sum(report.faults.values()) >= FAULTS
    assert report.turns == report.accepted, "each message was settled by the end of one turn"
    assert report.accepted > 0


async def test_a_broken_promise_is_told_with_the_timeline_and_the_seed(tmp_path):
    """A client that was told of an acceptance which no journal holds: what a lost write looks like."""

    def forge(run) -> None:
        name = next(iter(run.one.conversations))
        run.one.history.add(Attempt("c", name, "message", "never-sent", 0.0, 1.0, "accepted", seq=2))

    with pytest.raises(BrokenError) as caught:
        await combined(tmp_path, CHOSEN[0], "3", 4, 20.0, before_verdict=forge)
    told = str(caught.value)
    assert "key never-sent was accepted and is gone" in told
    assert " is over\n" in told and "calm\n" in told
    assert "a promise broken in round 3.0\nfaults: " in told, "what was done up to then"
    assert f"--store {CHOSEN[0]} --seed 3.0" in told


async def test_what_does_not_rest_is_told_and_what_failed_for_good_is_asked_for_anew(tmp_path):
    async with world(tmp_path, CHOSEN[0]) as one:
        await failed_for_good(one.store, "gone")
        one.conversations.add("gone")
        with pytest.raises(
            AssertionError, match=r"(?s)gone: .*unsettled=1.*failed=True.*owner expires in: nobody.*released"
        ):
            await one.quiescent()  # there is no node that could be asked
        one.node("a")
        await one.nodes.start()
        assert await one.quiescent() == 1
        [record] = await one.store.records(["gone"])
        assert record is not None and (record.unsettled, record.failed) == (0, False)


async def failed_for_good(store: Store, conversation: str) -> None:
    """A conversation with a message, whose start was given up."""
    about = About("z", "http://127.0.0.1:1", 1, ("agent",), Instant(0.0))
    owner, token = new_incarnation(), new_token()
    await store.register(owner, about, 60.0)
    say = Command("message", {"text": "hello"}, "k", Delivery.TURN)
    await store.submit(Submit(conversation, say, Creation(default_agent="agent")))
    held = await store.claim(Claim(conversation, owner, token, Epoch(0), "z", "http://127.0.0.1:1", "wanted"))
    assert isinstance(held, Held)
    batch = Append(held.lease, 1, held.record.head, (), Settle(runnable=False, failed=True))
    assert isinstance(await store.release(Release(batch, Reason.FAILED)), ReleasedNow)
    await store.bury(owner, Death.RETIRED)


@pytest.mark.parametrize("store", list(BACKINGS))
def test_what_the_drums_draw_follows_from_the_seed_alone(store):
    def drawn(seed: str, target: str) -> list[tuple[float, str, float]]:
        return [(pause, fault.name, hold) for pause, fault, hold in itertools.islice(plan(seed, store, target), 50)]

    for target in targets(store):
        assert drawn("7.0", target) == drawn("7.0", target) != drawn("7.1", target)
        assert all(fault.hold[0] * TTL_S <= hold for _, fault, hold in itertools.islice(plan("7", store, target), 50))


@pytest.mark.parametrize("store", list(BACKINGS))
def test_every_fault_of_the_menu_has_a_drum(store):
    beaten = {fault.name for target in targets(store) for fault in offered(store, target.partition(" ")[0])}
    assert beaten == {fault.name for fault in MENU.values() if store in fault.stores}
