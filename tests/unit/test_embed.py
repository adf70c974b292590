"""Tenure inside somebody's program: a URL, a function, and the whole HTTP API to be mounted."""

import asyncio
from pathlib import Path

import httpx
import pytest

import tenure
from tenure.config import Config
from tenure.errors import CommandRefusedError, InvalidInputError

pytestmark = pytest.mark.blocking_ok  # making a node reads its key file, once; the tests look at folders themselves


async def shout(turn):
    await turn.emit("reply", {"text": turn.messages[-1].text.upper()})


def node(folder: Path) -> tenure.Node:
    config = Config(node="embedded", witness=False, idle_s=0.2, sweep_s=0.1)
    return tenure.Node(store=f"sqlite:///{folder}/tour.db", agents={"shout": shout}, config=config)


async def test_ten_lines_are_enough(tmp_path: Path):
    async with node(tmp_path) as one:
        seq = await one.send("c", "hello", key="k")
        assert await one.send("c", "hello", key="k") == seq, "the same key is the same message"
        events = [event async for event in one.events("c", until="turn_completed")]
    assert [dict(e.body) for e in events if e.kind == "reply"] == [{"text": "HELLO"}]


async def test_what_is_not_accepted_says_why(tmp_path: Path):
    async with node(tmp_path) as one:
        await one.send("c", "hello", key="k")
        with pytest.raises(CommandRefusedError, match="another message"):
            await one.send("c", "other", key="k")
        with pytest.raises(InvalidInputError, match="message"):
            await one.send("c", "x" * (2 << 20))
        with pytest.raises(tenure.TenureError, match="not known"):
            await one.send("c", "mine", user_id="somebody else")


async def test_keys_and_workspaces_lie_beside_the_store_that_was_given(tmp_path: Path):
    async with node(tmp_path) as one:
        await one.send("c", "hello")
        _ = [event async for event in one.events("c", until="turn_completed")]
    assert (tmp_path / "tour.db.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tour.db.workspaces").is_dir()


async def test_a_deleted_conversation_leaves_no_files(tmp_path: Path):
    """Also one that was passivated: no runtime names its workspace any more, so the reaper would not find it."""
    async with node(tmp_path) as one:
        app = httpx.ASGITransport(app=tenure.create_app(one))
        await one.send("gone", "hello")
        async with asyncio.timeout(60):
            _ = [event async for event in one.events("gone", until="released")]
        workspaces = tmp_path / "tour.db.workspaces"
        assert [p for p in workspaces.rglob("*") if "gone" in p.name and p.is_dir()], (
            "its workspace outlives the release"
        )
        async with httpx.AsyncClient(transport=app, base_url="http://node") as http:
            assert (await http.delete("/conversations/gone")).status_code == 204
        async with asyncio.timeout(60):
            while [p for p in workspaces.rglob("*") if "gone" in p.name]:
                await asyncio.sleep(0.02)
