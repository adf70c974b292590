"""What holds for the unit suite: its support modules are found whatever folder the tests are run from, and all tests with
the real OpenHands SDK, whose import takes 20 s of CPU, run in one process."""

import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parent))

from openhands_world import loop, world  # noqa: F401 - fixtures for every file of such tests

pytest.register_assert_rewrite("tenure.testing.loop_suite")


class BesideTheSdk(LoadScopeScheduling):
    """Each test is sent to whoever is free, but those with the SDK are sent together."""

    def _split_scope(self, nodeid: str) -> str:
        return "openhands" if "test_openhands" in nodeid else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> BesideTheSdk:
    return BesideTheSdk(config, log)
