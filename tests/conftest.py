"""What holds for every suite."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from blockbuster import blockbuster_ctx

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

SUITES_THAT_MUST_NOT_BLOCK = {"unit", "simulation", "server"}
TEST_KIT = [name for name in ["tenure.testing"] if importlib.util.find_spec(name)]


@pytest.fixture(autouse=True)
def a_blocked_loop_is_a_missed_renewal(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test fails when our code blocks the event loop, unless it is marked ``blocking_ok``."""
    suite = request.path.relative_to(Path(__file__).parent).parts[0]
    if suite not in SUITES_THAT_MUST_NOT_BLOCK or request.node.get_closest_marker("blocking_ok"):
        yield
        return
    with blockbuster_ctx("tenure", excluded_modules=TEST_KIT) as blockbuster:
        blockbuster.functions["os.getcwd"].deactivate()  # asks no disk; every import inside a coroutine calls it
        yield
