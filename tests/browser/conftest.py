"""A real Chromium before real nodes. Without a browser on this machine the suite is skipped, and says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stage import Stage, Watchers, chromium

NO_BROWSER = "no Chromium on the PATH, and TENURE_CHROMIUM names none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "browser" in item.path.parts]
    for item in here:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))
        if chromium() is None:
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two nodes that no test harms; a test takes a conversation of its own."""
    with Stage(tmp_path_factory.mktemp("pair")) as stage:
        stage.node("n1")
        stage.node("n2")
        asyncio.run(stage.nodes.start())
        yield stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Nodes of this test alone, to be killed and drained."""
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
async def watchers() -> AsyncIterator[Watchers]:
    """Browsers; at the end none of their pages may have thrown, or tried what the policy forbids."""
    assert os.path.exists(chromium() or ""), "else skipped"
    async with Watchers() as watchers:
        yield watchers
    assert watchers.complaints == []
