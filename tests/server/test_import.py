"""A server whose agent takes long to import: it is there at once, says so, and takes new work when the import has ended.

The agent is the OpenHands loop as it is; only the import itself, seconds of CPU, is a gate here.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tenure.errors import InvalidInputError
from tenure.loops import openhands_loop
from tenure.loops.openhands import sdk

NEW = {"id": "c1", "agent": "openhands", "settings": {}}
UNLOADED = "agent openhands cannot be loaded"


class Import:
    """Ends when a test says so, and as it says."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.error: Exception | None = None
        self.threads: list[str] = []

    def __call__(self, modules: Any = ()) -> Any:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return object()


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    slow = Import()
    monkeypatch.setattr(sdk, "load", slow)
    yield slow
    slow.gate.set()


async def test_a_server_waits_for_the_import_of_its_agent_in_the_background(cluster, importing, eventually):
    cluster.agents["openhands"] = openhands_loop()
    http = await cluster.http()
    assert importing.begun.wait(20) and importing.threads == ["tenure-openhands-import"], "in a thread of its own"

    assert (await http.get("/healthz")).status_code == 200
    unready = await http.get("/readyz")
    assert (unready.status_code, unready.json()["code"]) == (503, "not-ready")
    assert unready.headers["retry-after"] and any("openhands" in reason for reason in unready.json()["reasons"])
    early = await http.post("/conversations", json=NEW)
    assert (early.status_code, early.headers["retry-after"]) == (503, "1"), early.text
    other = await http.post("/conversations", json={"id": "c2", "agent": "parrot"})
    assert other.status_code == 201, "what needs no import is served meanwhile"
    assert cluster.disk.conversations.keys() == {"c2"}, "and nothing was created of the other"

    importing.gate.set()

    async def ready():
        return (await http.get("/readyz")).status_code == 200

    assert await eventually(ready)
    assert importing.threads == ["tenure-openhands-import"], "it is imported once"


async def test_an_import_that_fails_is_named_and_the_server_stays_unready(cluster, importing, eventually):
    importing.error = InvalidInputError("agent", "module 'my_tools' cannot be imported", "install it on every node")
    cluster.agents["openhands"] = openhands_loop(["my_tools"])
    http = await cluster.http()
    importing.gate.set()

    async def reasons():
        told = (await http.get("/readyz")).json().get("reasons", [])
        return [reason for reason in told if "cannot be loaded" in reason]

    [reason] = await eventually(reasons)
    assert reason.startswith(UNLOADED) and "my_tools" in reason
    assert (await http.get("/healthz")).status_code == 200
