"""The SDK's own RemoteConversation, unchanged, against nodes behind a plain round-robin proxy."""

import asyncio
import contextlib
import importlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
from openhands_world import MARKS, World
from round_robin import RoundRobin

import tenure
from tenure.server import Bounds, close_streams, create_app

pytestmark = MARKS
KEY = "key-of-the-cluster"
LLM_KEY = "sk-canary-1f4e"
SECRET = "canary-of-a-secret-77"
BOUNDS = Bounds(poll_s=0.2, start_wait_s=10)


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False, ws="websockets-sansio")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


class Cluster:
    """Three nodes, each with its server, and the proxy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: list[tenure.Node] = []
        self.urls: list[str] = []

    async def open(self, stack: contextlib.AsyncExitStack, api_key: str = KEY) -> None:
        for name in ("n0", "n1", "n2"):
            node = await self.world.node(name, api_key=api_key)
            app = create_app(node, BOUNDS)
            self.nodes.append(node)
            self.urls.append(await stack.enter_async_context(serving(app)))
            stack.callback(close_streams, app)
        self.proxy = RoundRobin(self.urls)
        stack.push_async_callback(self.proxy.close)
        self.url = await stack.enter_async_context(serving(self.proxy.app))
        self.http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, headers={"X-Session-API-Key": api_key}, timeout=30)
        )

    def owner(self, conversation: str) -> tenure.Node:
        owner = self.world.disk.conversations[conversation].row.record.owner
        assert owner is not None
        return next(node for node in self.nodes if node.config.node == owner.node)

    def other(self, conversation: str) -> tenure.Node:
        return next(node for node in self.nodes if node is not self.owner(conversation))


@pytest.fixture
async def cluster(world: World) -> AsyncIterator[Cluster]:
    cluster = Cluster(world)
    async with contextlib.AsyncExitStack() as stack:
        await cluster.open(stack)
        yield cluster


class Person:
    """Someone with the SDK; what blocks is done in a thread."""

    def __init__(self, cluster: Cluster, place: str = "") -> None:
        self.sdk = importlib.import_module("openhands.sdk")
        self.remote = importlib.import_module("openhands.sdk.conversation.impl.remote_conversation").RemoteConversation
        self.workspace_of = importlib.import_module("openhands.sdk.workspace").RemoteWorkspace
        self.cluster = cluster
        self.place = place or str(cluster.world.folder / "project")
        self.seen: list[Any] = []
        self.open: list[Any] = []
        llm = self.sdk.LLM(
            model="openai/scripted", base_url=cluster.world.model.url, api_key=LLM_KEY, num_retries=0, usage_id="agent"
        )
        self.agent = self.sdk.Agent(llm=llm, tools=[self.sdk.Tool(name="act")])
        self.workspace = self.workspace_of(host=cluster.url, working_dir=self.place, api_key=KEY)

    async def start(self, **more: Any) -> Any:
        made = {"agent": self.agent, "workspace": self.workspace, "callbacks": [self.seen.append], "visualizer": None}
        conversation = await asyncio.to_thread(lambda: self.remote(**made, **more))
        self.open.append(conversation)
        return conversation

    def leave(self) -> None:
        for conversation in self.open:
            conversation.close()
        self.workspace.reset_client()

    def told(self) -> list[str]:
        """The ids of what callbacks were told, without states."""
        return [e.id for e in self.seen if getattr(e, "key", "") != "full_state"]


@pytest.fixture
async def person(cluster: Cluster) -> AsyncIterator[Person]:
    person = Person(cluster)
    try:
        yield person
    finally:
        await asyncio.to_thread(person.leave)


async def test_the_unchanged_client_runs_through_a_takeover_with_each_event_once(cluster: Cluster, person: Person):
    world = cluster.world
    conversation = await person.start(secrets={"TOKEN": SECRET}, tags={"team": "blue"})
    name = str(conversation.id)
    await asyncio.to_thread(conversation.send_message, "go [script:slow]")
    running = asyncio.create_task(asyncio.to_thread(conversation.run, timeout=60))
    await world.until(lambda: world.happened() == ["slow"])
    for url in cluster.urls:  # every node says so, whoever owns it
        reply = await cluster.http.get(f"{url}/api/conversations/{name}")
        assert reply.json()["execution_status"] == "running"
    await cluster.other(name).take_over(name, world.disk.conversations[name].row.record.epoch)
    world.gate.touch()
    await running

    status = importlib.import_module("openhands.sdk.conversation.state").ConversationExecutionStatus
    assert conversation.state.execution_status == status.FINISHED
    assert world.happened() == ["slow"], "the tool did not run again"
    reply = await cluster.http.get(f"/api/conversations/{name}/events/search")
    journaled = [e["id"] for e in reply.json()["items"]]
    assert sorted(person.told()) == sorted(journaled), "neither missed nor doubled"
    kinds = [e["kind"] for e in reply.json()["items"]]
    assert "AgentErrorEvent" in kinds and kinds.count("MessageEvent") == 2
    states = [e for e in person.seen if getattr(e, "key", "") == "full_state"]
    assert len({e.id for e in states}) == len(states)
    assert set(cluster.proxy.answers) <= {200, 201}, cluster.proxy.answers
    whole = str(world.disk.conversations[name]) + json.dumps(
        [e.as_json() for e in world.disk.conversations[name].events]
    )
    assert LLM_KEY not in whole and SECRET not in whole
