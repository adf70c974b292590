"""Settings are judged without blocking the event loop, whatever the SDK, or a module that they name, does meanwhile."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openhands_world import C, World

from tenure.server import create_app

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


async def test_an_import_that_takes_its_time_does_not_block_the_event_loop(world: World, monkeypatch: Any):
    (world.folder / "modules").mkdir()
    Path(world.folder / "modules" / "slow_tools_of_mine.py").write_text("import time\ntime.sleep(0.01)\n")
    monkeypatch.syspath_prepend(str(world.folder / "modules"))
    node = await world.node("only")
    settings = world.settings(tool_module_qualnames={"act": "slow_tools_of_mine"})
    transport = httpx.ASGITransport(create_app(node))
    async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as client:
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/conversations", {"id": C, "agent": "openhands", "settings": settings}),
            (f"/api/conversations/{C}/confirmation_policy", {"policy": {"kind": "NeverConfirm"}}),
            (f"/api/conversations/{C}/secrets", {"secrets": {"TOKEN": "value"}}),
            (
                "/api/conversations",
                {"agent": settings["agent"], "tool_module_qualnames": settings["tool_module_qualnames"]},
            ),
        ]
        for path, body in asked:
            sys.modules.pop("slow_tools_of_mine", None)
            reply = await client.post(path, json=body)
            assert reply.status_code in (200, 201), reply.text
            assert "slow_tools_of_mine" in sys.modules
