"""A server without descriptors: one line for each try, not one for each place of the queue."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from tenure import facts
from tenure.cli.accepting import EXHAUSTED, tell_once

BACKLOG = 2048


@pytest.fixture
async def heard() -> AsyncIterator[list[facts.Fact]]:
    told: list[facts.Fact] = []
    tell_once(asyncio.get_running_loop(), facts.Facts(told.append))
    yield told
    asyncio.get_running_loop().set_exception_handler(None)


async def test_connections_that_cannot_be_accepted_are_told_once(
    heard: list[facts.Fact], caplog: pytest.LogCaptureFixture
):
    error = OSError(24, "Too many open files")
    for _ in range(BACKLOG):
        asyncio.get_running_loop().call_exception_handler({"message": EXHAUSTED, "exception": error})
    assert heard == [facts.ConnectionsUnaccepted("[Errno 24] Too many open files")]
    assert [record.name for record in caplog.records] == ["tenure.http"]


async def test_any_other_error_is_told_as_before(heard: list[facts.Fact], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, "asyncio"):
        asyncio.get_running_loop().call_exception_handler({"message": "something else", "exception": ValueError("x")})
    assert "something else" in caplog.text
    assert heard == []
