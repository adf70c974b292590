"""A real Chromium before real nodes. Without a browser on this machine the suite is skipped, and says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser

sys.path.insert(0, str(Path(__file__).parent))

from stage import Stage, Watchers, beside_the_api, chromium, launched

NO_BROWSER = "no Chromium on the PATH, and TENURE_CHROMIUM is not set"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All in one event loop, so that they share a browser; skipped where there is none."""
    here = [item for item in items if "browser" in item.path.parts]
    if not here:
        return
    try:
        missing = chromium() is None
    except LookupError as misspelt:
        raise pytest.UsageError(str(misspelt)) from None
    for item in here:
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)  # as the browser
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))
        if missing:
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two nodes that no test harms; a test takes a conversation of its own."""
    with Stage(tmp_path_factory.mktemp("pair")) as stage:
        stage.node("n1")
        stage.node("n2")
        asyncio.run(stage.nodes.start())
        yield stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    assert os.path.exists(chromium() or ""), "else skipped"
    async with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def document(pair: Stage) -> dict[str, Any]:
    """What a node says of its API."""
    return httpx.get(f"{pair.nodes['n1'].url}/openapi.json", trust_env=False, timeout=40).json()


@pytest_asyncio.fixture(loop_scope="session")
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Nodes of this test alone, to be killed and drained."""
    with Stage(tmp_path) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="session")
async def watchers(browser: Browser, document: dict[str, Any]) -> AsyncIterator[Watchers]:
    """Pages; at the end none may have thrown, tried what the policy forbids, or asked for what is no public API."""
    async with Watchers(browser) as watchers:
        yield watchers
    assert watchers.complaints == []
    assert watchers.asked, "it looked at no page"
    assert beside_the_api(watchers.asked, document) == set()
