"""Seeds: each is the life of a cluster of real nodes, and the checker is the guarantee.

``TENURE_SIM_SEEDS`` says how many (300 without it), ``TENURE_SIM_SEED`` replays a single one. A failure prints the
timeline of its faults and the command that shows it again.
"""

import os
import subprocess
import sys

import pytest

from tenure.testing.scenario import THEMES, Scenario, run

SEEDS = int(os.environ.get("TENURE_SIM_SEEDS", "300"))
ONE = os.environ.get("TENURE_SIM_SEED")
CHUNK = 10


def chunks() -> list[range]:
    """The seeds in pieces that several processes can share."""
    if ONE is not None:
        return [range(int(ONE), int(ONE) + 1)]
    return [range(first, min(first + CHUNK, SEEDS)) for first in range(0, SEEDS, CHUNK)]


@pytest.mark.parametrize("seeds", chunks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_the_guarantee_holds(seeds: range):
    for seed in seeds:
        outcome = run(seed)
        assert outcome.ok, f"\n{outcome.report()}"


def test_there_are_enough_seeds():
    assert ONE is not None or SEEDS >= 300 or "TENURE_SIM_SEEDS" in os.environ


def test_every_theme_is_lived():
    assert {Scenario.of(seed).theme for seed in range(len(THEMES))} == set(THEMES)


# --- a seed is a life -----------------------------------------------------------------------------------------------

TWICE = (1, 4, 9, 10, 20)


def test_a_seed_repeats_every_step():
    assert [run(seed).digest for seed in TWICE] == [run(seed).digest for seed in TWICE]


def test_seeds_differ():
    assert len({run(seed).digest for seed in TWICE}) == len(TWICE)


@pytest.mark.blocking_ok  # two interpreters of their own
def test_a_seed_does_not_depend_on_the_order_of_hashes():
    program = f"from tenure.testing.scenario import run; print([run(seed).digest for seed in {TWICE}])"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": number},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in ("0", "12345")
    }
    assert len(told) == 1


def test_a_failure_says_how_to_replay_it():
    report = run(3).report()
    assert "TENURE_SIM_SEED=3 " in report
    assert "is cut from the store" in report
