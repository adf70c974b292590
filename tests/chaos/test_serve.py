"""`tenure serve` as a process: how it arrives, and how it leaves whatever is open."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tenure.client import Client
from tenure.journal import Event
from tenure.testing.processes import NodeEndedError, NodeProcess, NodeProcesses
from tenure.testing.servers import RedisServer

PATIENCE_S = 60.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("TENURE_")}
QUICK = ["--ttl-s", "2"]
SLOW_SCRIPT = [{"run": "sleep 0.4"} for _ in range(100)]


_URLS: dict[Path, str] = {}
"""The store of each test, by its folder."""


@pytest.fixture
def nodes(tmp_path: Path, store: str) -> Iterator[NodeProcesses]:
    """Nodes on a store of their own. In `make test` the stores share these tests, in `make chaos` each has them all."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/store.db"
        if store == "redis":
            url = stack.enter_context(RedisServer(tmp_path / "redis")).url()
        _URLS[tmp_path] = url
        yield stack.enter_context(NodeProcesses())


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def a_node(nodes: NodeProcesses, folder: Path, name: str = "a", **rest: object) -> NodeProcess:
    options = [*QUICK, *rest.pop("options", [])]  # type: ignore[misc]
    store = rest.pop("store", _URLS[folder])
    return nodes.add(NodeProcess(name, store=store, folder=folder, options=options, **rest))  # type: ignore[arg-type]


async def until_seen(http: httpx.AsyncClient, url: str, kind: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while kind not in (await http.get(f"{url}/events")).text:
            await asyncio.sleep(0.05)


async def status_of(http: httpx.AsyncClient, url: str) -> int:
    return (await http.get(url)).status_code


# --- arrival --------------------------------------------------------------------------------------------------------


async def test_port_0_takes_a_free_one_and_says_which(nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient):
    node = a_node(nodes, tmp_path, port=0)
    await node.start()
    assert node.port != 0
    [told] = (await http.get(f"{node.url}/nodes")).json()
    assert told["address"] == node.url
    said = (tmp_path / "a.out").read_text()
    assert said == f"ready {node.url} node=a\n"


async def test_beyond_loopback_needs_a_key(nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient):
    refused = a_node(nodes, tmp_path, "refused", options=["--host", "0.0.0.0"])
    refused.spawn()
    assert await refused.ended(PATIENCE_S) == 2
    assert re.fullmatch(r"tenure: host: .*TENURE_API_KEY.*\n", refused.log)

    keyed = a_node(nodes, tmp_path, "keyed", options=["--host", "0.0.0.0"], environ={"TENURE_API_KEY": "sesame-open"})
    await keyed.start()
    assert await status_of(http, f"{keyed.url}/nodes") == 401
    told = await http.get(f"{keyed.url}/nodes", headers={"Authorization": "Bearer sesame-open"})
    assert told.status_code == 200
    assert "sesame-open" not in keyed.log
    assert "sesame-open" not in Path(f"/proc/{keyed.pid}/cmdline").read_text()


async def test_an_agent_of_the_current_folder_is_found(nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient):
    (tmp_path / "bots.py").write_text("async def shout(turn):\n    await turn.emit('reply', {'text': 'HO'})\n")
    program = Path(sys.executable).with_name("tenure")
    script = [str(program), "serve", "--store", "memory:", "--port", "0", "--agent", "bots:shout"]
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(script, stdout=subprocess.PIPE, stderr=log, cwd=tmp_path, env=ENVIRON) as process:
        try:
            assert process.stdout is not None
            ready = await asyncio.to_thread(process.stdout.readline)
            url = ready.decode().split()[1]
            made = await http.post(f"{url}/conversations", json={"id": "c", "message": "hey"})
            assert made.json()["agent"] == "shout"
            await until_seen(http, f"{url}/conversations/c", '"HO"')
        finally:
            process.kill()


async def test_a_node_that_cannot_start_says_why(nodes: NodeProcesses, tmp_path: Path):
    place = f"sqlite:///{tmp_path}/broken.db"
    (tmp_path / "broken.db").write_text("this is no database, and long enough to look like one" * 100)
    node = a_node(nodes, tmp_path, store=place)
    with pytest.raises(NodeEndedError):
        await node.start()
    assert node.exit_code == 1
    assert "broken.db" in node.log
    assert "Traceback" not in node.log


# --- departure ------------------------------------------------------------------------------------------------------


async def test_sigterm_with_an_open_stream_and_an_open_turn(
    nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient
):
    node = a_node(nodes, tmp_path, options=["--drain-s", "3"])
    await node.start()
    one = f"{node.url}/conversations/c"
    await http.post(f"{node.url}/conversations", json={"id": "c", "message": {"content": SLOW_SCRIPT}})
    await until_seen(http, one, "call_started")
    async with http.stream("GET", f"{one}/stream") as stream:
        reading = asyncio.create_task(read_all(stream))
        node.drain()
        async with asyncio.timeout(PATIENCE_S):
            while await status_of(http, f"{node.url}/readyz") != 503:
                await asyncio.sleep(0.01)
        assert await status_of(http, f"{node.url}/healthz") == 200
        accepted = await http.post(f"{one}/messages", json={"text": "while it drains", "key": "late"})
        assert accepted.status_code == 202
        node.drain()  # a second one changes nothing
        node.send(signal.SIGINT)
        assert await node.ended(13) == 0
        told = await reading
    assert "event: released" in told
    assert "event: closing" in told
    assert "changes nothing" in node.log


async def read_all(stream: httpx.Response) -> str:
    return "".join([text async for text in stream.aiter_text()])


async def test_what_a_drained_node_held_goes_on_elsewhere(
    nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient
):
    for name in "ab":
        a_node(nodes, tmp_path, name, options=["--drain-s", "0.5"])
    await nodes.start()
    place = "conversations/c"
    await http.post(f"{nodes['a'].url}/conversations", json={"id": "c", "message": {"content": SLOW_SCRIPT[:8]}})
    await until_seen(http, f"{nodes['a'].url}/{place}", "call_started")
    owner = nodes[(await http.get(f"{nodes['a'].url}/{place}")).json()["owner"]["node"]]
    [other] = [node for node in nodes if node is not owner]
    owner.drain()
    assert await owner.ended(10.5) == 0
    await until_seen(http, f"{other.url}/{place}", "turn_completed")
    kinds = [e["kind"] for e in (await http.get(f"{other.url}/{place}/events")).json()["events"]]
    assert "call_interrupted" not in kinds  # handed over at a step boundary
    assert kinds.count("turn_resumed") == 1


async def test_a_node_that_is_asked_to_drain_leaves_by_itself(
    nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient
):
    a, b = a_node(nodes, tmp_path, "a"), a_node(nodes, tmp_path, "b")
    await nodes.start()
    assert (await http.post(f"{b.url}/nodes/a/drain")).status_code == 202
    assert await a.ended(PATIENCE_S) == 0
    assert b.running


async def test_sigterm_is_never_worse_than_sigkill(nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient):
    """An agent that blocks the event loop for good: the watchdog ends the process, the witness buries it."""
    (tmp_path / "bots.py").write_text("import time\nasync def stone(turn):\n    time.sleep(3600)\n")
    agents = ["bots:stone", "scripted"]
    a = a_node(nodes, tmp_path, "a", options=["--drain-s", "0"], agents=agents, cwd=tmp_path)
    b = a_node(nodes, tmp_path, "b", agents=["scripted"])
    await nodes.start()
    await http.post(f"{b.url}/conversations", json={"id": "ok", "agent": "scripted"})
    await http.post(f"{b.url}/conversations", json={"id": "stone", "agent": "stone", "message": "block"})
    await until_seen(http, f"{b.url}/conversations/stone", "turn_started")
    a.drain()
    assert await a.ended(11.5) == 1
    assert "time.sleep" in a.log or "bots.py" in a.log  # where it stood
    async with asyncio.timeout(PATIENCE_S):
        while len((await http.get(f"{b.url}/nodes")).json()) > 1:
            await asyncio.sleep(0.05)


async def test_sigterm_before_the_store_answers(nodes: NodeProcesses, tmp_path: Path):
    """Told to leave while it starts, it leaves."""
    node = a_node(nodes, tmp_path)
    node.spawn()
    async with asyncio.timeout(PATIENCE_S):
        while not node.log and node.running:
            await asyncio.sleep(0.001)
    node.drain()
    assert await node.ended(PATIENCE_S) in (0, -signal.SIGTERM)


async def test_a_loop_that_does_not_end_after_the_loss_ends_the_process(
    nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient
):
    (tmp_path / "bots.py").write_text(
        "import asyncio\n"
        "async def stubborn(turn):\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.sleep(3600)\n"
        "        except asyncio.CancelledError:\n"
        "            pass\n"
    )
    node = a_node(nodes, tmp_path, agents=["bots:stubborn"], cwd=tmp_path)
    await node.start()
    await http.post(f"{node.url}/conversations", json={"id": "c", "message": "never mind"})
    await until_seen(http, f"{node.url}/conversations/c", "turn_started")
    node.freeze()
    await asyncio.sleep(2.5)  # its ttl is what has to pass
    node.thaw()
    assert await node.ended(PATIENCE_S) == 75
    assert "do not end" in node.log


# --- whoever follows ------------------------------------------------------------------------------------------------


async def test_tail_goes_on_at_another_node(nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient):
    a, b = a_node(nodes, tmp_path, "a"), a_node(nodes, tmp_path, "b")
    await nodes.start()
    await http.post(f"{b.url}/conversations", json={"id": "c", "message": "one"})
    await until_seen(http, f"{b.url}/conversations/c", "turn_completed")
    command = [sys.executable, "-m", "tenure", "tail", "c", "--after", "0", "--json", "--url", f"{a.url},{b.url}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRON) as tail:
        try:
            assert tail.stdout is not None
            told = [json.loads(await asyncio.to_thread(tail.stdout.readline))]
            a.kill()
            await http.post(f"{b.url}/conversations/c/messages", json={"text": "two"})
            while "two" not in str(told[-1]):
                told.append(json.loads(await asyncio.to_thread(tail.stdout.readline)))
        finally:
            tail.kill()
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))


async def test_a_stream_that_was_silent_for_long_has_all_its_patience_left(
    nodes: NodeProcesses, tmp_path: Path, http: httpx.AsyncClient
):
    a, b = a_node(nodes, tmp_path, "a"), a_node(nodes, tmp_path, "b")
    await nodes.start()
    await http.post(f"{b.url}/conversations", json={"id": "c"})
    async with Client([a.url, b.url], patience_s=1) as client, client.stream("c") as stream:
        assert isinstance(first := await anext(stream), Event) and first.kind == "created"
        following = asyncio.create_task(anext(stream))
        await asyncio.sleep(1.5)  # longer than its patience: that is what has to pass
        a.kill()
        await http.post(f"{b.url}/conversations/c/messages", json={"text": "still there?"})
        assert isinstance(second := await following, Event) and second.text == "still there?"
