"""Every fault at once, from a seed, for half a minute; `make chaos` does the same for minutes to hours."""

from __future__ import annotations

import itertools

import pytest
from backings import CHOSEN
from combined import TTL_S, BrokenError, combined, plan, targets
from menu import MENU, offered

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


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_what_the_drums_draw_follows_from_the_seed_alone(store):
    def drawn(seed: str, target: str) -> list[tuple[float, str, float]]:
        return [(pause, fault.name, hold) for pause, fault, hold in itertools.islice(plan(seed, store, target), 50)]

    for target in targets(store):
        assert drawn("7.0", target) == drawn("7.0", target) != drawn("7.1", target)
        assert all(fault.hold[0] * TTL_S <= hold for _, fault, hold in itertools.islice(plan("7", store, target), 50))


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_every_fault_of_the_menu_has_a_drum(store):
    beaten = {fault.name for target in targets(store) for fault in offered(store, target.partition(" ")[0])}
    assert beaten == {fault.name for fault in MENU.values() if store in fault.stores}
