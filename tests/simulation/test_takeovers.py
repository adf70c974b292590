"""How long work waits for its next owner (G6), in virtual time: no noise of a machine is in it, so the bounds are tight.

Five servers, so that somebody is always left, and a network that works: what takes long then is ours.
"""

from dataclasses import replace

import pytest

from tenure.testing.checker import Guarantee, check
from tenure.testing.faults import Conditions
from tenure.testing.history import Burial, Death, History
from tenure.testing.scenario import Scenario, run
from tenure.testing.takeovers import takeovers

SEEDS = {"crashes": range(12), "freezes": range(14)}
AT_ONCE_S = 0.1
"""From a burial to the claim: a hint, a look, a claim, each some milliseconds on this network."""


@pytest.mark.parametrize("theme", SEEDS)
def test_work_left_by_the_dead_waits_for_a_ttl_at_most_and_not_at_all_if_a_witness_saw_it(theme: str):
    judged = witnessed = 0
    for seed in SEEDS[theme]:
        drawn = Scenario.of(seed, theme)
        settings = drawn.settings | {"capacity": 1000}
        scenario = replace(drawn, nodes=5, mixed=False, conditions=Conditions(), settings=settings)
        history = run(scenario).history
        late = [v for v in check(history, scenario.settings["ttl_s"] + AT_ONCE_S) if v.guarantee is Guarantee.TAKEOVER]
        assert not late, f"seed {seed} ({theme}): {late}"
        seen = _seen_by_witness(history)
        for grant, took_s in takeovers(history):
            judged += 1
            if grant.previous in seen:
                witnessed += 1
                assert took_s < AT_ONCE_S, f"seed {seed} ({theme}): {took_s:.3f} s until {grant}"
    assert judged >= 4, "there were takeovers to judge"
    assert witnessed, "and some that a witness saw"


def _seen_by_witness(history: History) -> set[str]:
    """Whose end the store knew at once."""
    ended = {death.incarnation: death.at for death in history.of(Death)}
    return {b.incarnation for b in history.of(Burial) if b.at - ended.get(b.incarnation, float("-inf")) < AT_ONCE_S / 2}
