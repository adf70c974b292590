"""The SDK's own RemoteConversation, unchanged, against nodes behind a plain round-robin proxy."""

import asyncio
import contextlib
import importlib
import json
import shutil
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from openhands_world import MARKS, World
from round_robin import RoundRobin

import tenure
from tenure.errors import ProvisioningError, StoreUnavailableError
from tenure.loops.openhands.projection import Projection
from tenure.server import Bounds, close_streams, create_app
from tenure.server.openhands.place import Place
from tenure.server.watch import Watches, read

pytestmark = MARKS
KEY = "key-of-the-cluster"
LLM_KEY = "sk-canary-1f4e"
SECRET = "canary-of-a-secret-77"
BOUNDS = Bounds(poll_s=0.2, start_wait_s=10)


@contextlib.asynccontextmanager
async def serving(app: Any, listener: socket.socket) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False, ws="websockets-sansio")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield server
    finally:
        server.should_exit = True
        await task
        listener.close()


def a_place() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


class Cluster:
    """Three nodes, each with its server, and the proxy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: list[tenure.Node] = []
        self.urls: list[str] = []

    async def open(self, stack: contextlib.AsyncExitStack, api_key: str = KEY, **config: Any) -> None:
        servers: list[uvicorn.Server] = []
        for name in ("n0", "n1", "n2"):
            listener, url = a_place()
            node = await self.world.node(name, api_key=api_key, address=url, **config)
            app = create_app(node, BOUNDS)
            self.nodes.append(node)
            self.urls.append(url)
            servers.append(await stack.enter_async_context(serving(app, listener)))
            stack.callback(close_streams, app)
        self.proxy = RoundRobin(self.urls)
        stack.push_async_callback(self.proxy.close)
        listener, self.url = a_place()
        servers.append(await stack.enter_async_context(serving(self.proxy.app, listener)))
        self.http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, headers={"X-Session-API-Key": api_key}, timeout=30)
        )

        def end() -> None:
            for server in servers:  # all at once: each looks every tenth of a second
                server.should_exit = True

        stack.callback(end)

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


# --- the routes, one by one -----------------------------------------------------------------------------------------


def asking(cluster: Cluster, **more: Any) -> dict[str, Any]:
    llm = {"model": "openai/scripted", "base_url": cluster.world.model.url, "api_key": LLM_KEY, "num_retries": 0}
    place = {"kind": "LocalWorkspace", "working_dir": str(cluster.world.folder / "project")}
    return {"agent": {"kind": "Agent", "llm": llm, "tools": [{"name": "act"}]}, "workspace": place, **more}


async def create(cluster: Cluster, **more: Any) -> tuple[str, str, dict[str, Any]]:
    reply = await cluster.http.post("/api/conversations", json=asking(cluster, **more))
    assert reply.status_code == 201, reply.text
    told = reply.json()
    return told["id"], f"/api/conversations/{told['id']}", told


async def status_is(cluster: Cluster, path: str, *wanted: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (info := (await cluster.http.get(path)).json())["execution_status"] not in wanted:
            failed = {"kind": "ConversationErrorEvent"} if info["execution_status"] == "error" else None
            assert failed is None, (await cluster.http.get(f"{path}/events/search", params=failed)).text
            await asyncio.sleep(0.02)
    return info


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}], **more}


async def test_the_client_comes_back_by_its_id_or_attached_and_pauses_interrupts_and_deletes(
    cluster: Cluster, person: Person
):
    world, name, late = cluster.world, uuid.uuid4(), []
    status = importlib.import_module("openhands.sdk.conversation.state").ConversationExecutionStatus
    first = await person.start(conversation_id=name)
    assert first.id == name
    await asyncio.to_thread(first.send_message, "go [script:slow]")
    running = asyncio.create_task(asyncio.to_thread(first.run, timeout=60))
    await world.until(lambda: world.happened() == ["slow"])
    attached = await asyncio.to_thread(
        lambda: person.remote.attach(person.workspace, name, callbacks=[late.append], visualizer=None)
    )
    person.open.append(attached)
    assert attached.state.execution_status == status.RUNNING and attached.agent.llm.model == person.agent.llm.model
    await asyncio.to_thread(attached.pause)
    world.gate.touch()
    await running  # behind the step it ends
    assert first.state.execution_status == status.PAUSED

    again = await person.start(conversation_id=name)
    known = [{e.id for e in one.state.events if getattr(e, "key", "") != "full_state"} for one in (first, again)]
    assert known[0] and known[0] == known[1]
    await asyncio.to_thread(again.run, timeout=60)
    assert again.state.execution_status == status.FINISHED and world.happened() == ["slow"]
    world.gate.unlink()
    await asyncio.to_thread(again.send_message, "once more [script:slow]")
    running = asyncio.create_task(asyncio.to_thread(again.run, timeout=60))
    await world.until(lambda: world.happened() == ["slow", "slow"])
    await asyncio.to_thread(attached.interrupt)
    await running
    assert again.state.execution_status == status.PAUSED
    await asyncio.to_thread(again.set_title, "Twice slow")
    shown = await cluster.http.get(f"/api/conversations/{name.hex}")
    assert (shown.json()["title"], shown.json()["id"]) == ("Twice slow", str(name))
    world.gate.touch()
    again.delete_on_close = True
    await asyncio.to_thread(again.close)
    assert (await cluster.http.get(f"/api/conversations/{name}")).status_code == 404
    assert set(cluster.proxy.answers) <= {200, 201, 404}, cluster.proxy.answers


async def test_a_life_by_plain_requests_each_at_another_node(cluster: Cluster):
    wanted = "AAAAAAAA-bbbb-4ccc-8ddd-EEEEEEEEEEEE"
    name, path, told = await create(
        cluster, conversation_id=wanted, initial_message=said("hi", run=True), tags={"a": "b"}
    )
    assert name == wanted.lower() and told["tags"] == {"a": "b"} and told["execution_status"] in ("running", "finished")
    assert told["agent"]["llm"]["api_key"] == "**********" and LLM_KEY not in json.dumps(told)
    again = await cluster.http.post("/api/conversations", json=asking(cluster, conversation_id=wanted))
    assert (again.status_code, again.json()["id"]) == (200, name)
    info = await status_is(cluster, path, "finished")
    assert info["max_iterations"] == 500 and info["tenure"]["working_dir"]["used"] is True
    assert info["workspace"]["working_dir"] == str(cluster.world.folder / "project")
    by_hex = await cluster.http.get(f"/api/conversations/{name.replace('-', '').upper()}")
    assert by_hex.json()["id"] == name
    ours = await cluster.http.get(f"/conversations/{name}", headers={"Authorization": f"Bearer {KEY}"})
    assert ours.json()["agent"] == "openhands", "one conversation in both APIs"

    assert (await cluster.http.patch(path, json={"title": "Greetings", "tags": {"c": "d"}})).json() == {"success": True}
    info = (await cluster.http.get(path)).json()
    assert (info["title"], info["tags"]) == ("Greetings", {"c": "d"})
    assert [c["id"] for c in (await cluster.http.get("/api/conversations/search")).json()["items"]] == [name]
    some = (await cluster.http.get("/api/conversations", params={"ids": [name, str(uuid.uuid4())]})).json()
    assert [one and one["id"] for one in some] == [name, None]

    found = (await cluster.http.get(f"{path}/events/search", params={"limit": 2})).json()
    assert len(found["items"]) == 2 and found["next_page_id"]
    items, page = [], None
    while page or not items:
        params = {"limit": 2, **({"page_id": page} if page else {})}
        found = (await cluster.http.get(f"{path}/events/search", params=params)).json()
        items, page = items + found["items"], found["next_page_id"]
    assert (await cluster.http.get(f"{path}/events/count")).json() == len(items)
    back = await cluster.http.get(f"{path}/events/search", params={"sort_order": "TIMESTAMP_DESC"})
    assert back.json()["items"] == items[::-1]
    from_user = {"kind": "MessageEvent", "source": "user", "body": "HI"}
    assert len((await cluster.http.get(f"{path}/events/search", params=from_user)).json()["items"]) == 1
    late = await cluster.http.get(f"{path}/events/search", params={"timestamp__gte": items[2]["timestamp"]})
    assert late.json()["items"] == items[2:]
    assert (await cluster.http.get(f"{path}/events/{items[1]['id']}")).json() == items[1]
    unordered = await cluster.http.get(f"{path}/events/search", params={"sort_order": "SIDEWAYS"})
    assert (unordered.status_code, unordered.json()["field"]) == (422, "sort_order")
    since = await cluster.http.get(f"{path}/events/search", params={"page_id": items[1]["id"]})
    assert since.json()["items"] == items[1:]

    assert (await cluster.http.delete(path)).json() == {"success": True}
    assert (await cluster.http.get(path)).status_code == 404
    assert set(cluster.proxy.answers) == {200, 201, 404, 422}


async def test_a_person_confirms_pauses_and_interrupts_whoever_owns_it(cluster: Cluster):
    world = cluster.world
    _, path, _ = await create(cluster)
    policy = {"policy": {"kind": "AlwaysConfirm"}}
    assert (await cluster.http.post(f"{path}/confirmation_policy", json=policy)).status_code == 200
    await cluster.http.post(f"{path}/events", json=said("go [script:one]", run=True))
    info = await status_is(cluster, path, "waiting_for_confirmation")
    assert info["confirmation_policy"] == {"kind": "AlwaysConfirm"} and world.happened() == []
    await cluster.http.post(f"{path}/events/respond_to_confirmation", json={"accept": True})
    await status_is(cluster, path, "finished")
    assert world.happened() == ["one"]
    await cluster.http.post(f"{path}/confirmation_policy", json={"policy": {"kind": "NeverConfirm"}})

    await cluster.http.post(f"{path}/events", json=said("again [script:slow]"))
    assert (await cluster.http.post(f"{path}/run")).json()["success"] is True
    await world.until(lambda: world.happened() == ["one", "slow"])
    assert (await cluster.http.post(f"{path}/run")).status_code == 200, "never 409 for a run under way"
    await cluster.http.post(f"{path}/interrupt")
    await status_is(cluster, path, "paused", "finished", "idle")
    world.gate.touch()
    refused = await cluster.http.post(f"{path}/events/respond_to_confirmation", json={"accept": "yes"})
    assert (refused.status_code, refused.json()["field"]) == (422, "accept")

    world.gate.unlink()
    await cluster.http.post(f"{path}/events", json=said("thrice [script:slow]", run=True))
    await world.until(lambda: world.happened() == ["one", "slow", "slow"])
    await cluster.http.post(f"{path}/events", json=said("behind [script:default]", run=True))
    await cluster.http.post(f"{path}/interrupt")
    await status_is(cluster, path, "paused")
    world.gate.touch()
    events = (await cluster.http.get(f"{path}/events/search", params={"source": "agent"})).json()["items"]
    assert "Hello." not in json.dumps(events), "what waited behind the interrupted run has ended with it"


PARTS = [
    ({"type": "text"}, ".text"),
    ({"type": "text", "text": 7}, ".text"),
    ({"type": "text", "text": "x", "colour": "red"}, ".colour"),
    ({"type": "text", "text": "x", "cache_prompt": []}, ".cache_prompt"),
    ({"type": "image"}, ".image_urls"),
    ({"type": "image", "image_urls": "http://x"}, ".image_urls"),
    ({"type": "image", "image_urls": [None]}, ".image_urls"),
    ({"type": "sound"}, ""),
    ("x", ""),
]


async def test_a_message_that_the_sdk_would_not_take_is_refused_when_it_is_sent(cluster: Cluster):
    sdk = importlib.import_module("openhands.sdk")
    _, path, _ = await create(cluster)
    for part, where in PARTS:
        sent = await cluster.http.post(f"{path}/events", json={"role": "user", "content": [part], "run": True})
        assert (sent.status_code, sent.json()["field"]) == (422, f"content[0]{where}"), sent.text
        with pytest.raises(ValueError, match="validation"):
            sdk.Message.model_validate({"role": "user", "content": [part]})
    for part in ({"type": "image", "image_urls": []}, {"type": "text", "text": "", "enable_truncation": True}):
        sdk.Message.model_validate({"role": "user", "content": [part]})
        sent = await cluster.http.post(f"{path}/events", json={"role": "user", "content": [part]})
        assert sent.status_code == 200, sent.text


async def test_secrets_reach_commands_through_the_vault_and_nothing_else(cluster: Cluster, caplog: Any):
    caplog.set_level(0)
    script = [
        {"calls": [{"name": "terminal", "arguments": {"command": "printf %s $TOKEN | rev > out-$RANDOM"}}]},
        {"calls": [{"name": "terminal", "arguments": {"command": "printf %s $PLAIN $STATIC | rev > context"}}]},
        {"calls": [{"name": "finish", "arguments": {"message": "done"}}]},
    ]
    world = cluster.world
    world.model.scripts = {"default": script}
    body = asking(cluster)
    body["agent"] |= {"tools": [{"name": "terminal"}]}
    body["agent"]["llm"]["extra_headers"] = {"X-Tenant": "canary-of-a-header"}
    body["agent"]["llm"]["litellm_extra_body"] = {"guards": [{"authorization": "canary-of-a-body"}], "mode": 3}
    in_context = {"PLAIN": "canary-of-a-context", "STATIC": {"kind": "StaticSecret", "value": "canary-that-is-static"}}
    body["agent"]["agent_context"] = {"secrets": in_context}
    body["secrets"] = {"TOKEN": {"kind": "StaticSecret", "value": SECRET}}
    name = (await cluster.http.post("/api/conversations", json=body)).json()["id"]
    path = f"/api/conversations/{name}"
    await cluster.http.post(f"{path}/events", json=said("go", run=True))
    await status_is(cluster, path, "finished")
    other = f"{SECRET}-the-second"
    assert (await cluster.http.post(f"{path}/secrets", json={"secrets": {"TOKEN": other}})).status_code == 200
    await cluster.http.post(f"{path}/events", json=said("go [script:default]", run=True))
    await world.until(lambda: len(list((world.folder / "project").glob("out-*"))) == 2)
    await status_is(cluster, path, "finished")
    outs = {file.read_text()[::-1] for file in (world.folder / "project").glob("out-*")}
    assert outs == {SECRET, other}
    assert (world.folder / "project" / "context").read_text()[::-1] == "canary-of-a-contextcanary-that-is-static"
    assert world.model.requests[-1]["guards"] == [{"authorization": "canary-of-a-body"}], "the provider gets it"
    refused = await cluster.http.post(
        f"{path}/secrets", json={"secrets": {"TOKEN": {"kind": "LookupSecret", "url": "x"}}}
    )
    assert refused.status_code == 422 and "lookup" not in refused.json()["remedy"]
    kept = str(world.disk.conversations[name]) + json.dumps(
        [e.as_json() for e in world.disk.conversations[name].events]
    )
    shown = json.dumps([(await cluster.http.get(path)).json(), refused.json()])
    assert "canary" not in shown.replace(SECRET, "")
    for canary in (LLM_KEY, SECRET, "canary-of-a-"):
        assert canary not in kept and canary not in shown
        assert canary not in "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("tenure"))


async def test_a_secret_of_the_user_never_takes_the_place_of_the_agents_key(cluster: Cluster):
    taken = "OPENHANDS_AGENT_LLM_API_KEY"
    before = await cluster.http.post("/api/conversations", json=asking(cluster, secrets={taken: "mine"}))
    assert (before.status_code, before.json()["field"]) == (422, f"secrets.{taken}")
    name, path, _ = await create(cluster, secrets={"LLM_API_KEY": "mine"})
    settings = cluster.world.disk.conversations[name].row.record.settings
    assert settings["credentials"] == {taken: f"vault:{taken}", "LLM_API_KEY": "vault:LLM_API_KEY"}
    after = await cluster.http.post(f"{path}/secrets", json={"secrets": {taken: "mine"}})
    assert (after.status_code, after.json()["field"]) == (422, f"secrets.{taken}")
    assert (await cluster.http.post(f"{path}/secrets", json={"secrets": {"LLM_API_KEY": "new"}})).status_code == 200

    ours = {
        "agent": "openhands",
        "settings": {"llm": {"model": "m", "api_key": "$KEY"}, "credentials": {"KEY": "vault:KEY"}},
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    other = str(uuid.uuid4())
    made = await cluster.http.post("/conversations", json={"id": other, **ours}, headers=headers)
    assert made.status_code in (200, 201), made.text
    after = await cluster.http.post(f"/api/conversations/{other}/secrets", json={"secrets": {"KEY": "mine"}})
    assert (after.status_code, after.json()["field"]) == (422, "secrets.KEY")


async def test_commands_files_and_git_reach_the_runtime_from_any_node(
    cluster: Cluster, person: Person, monkeypatch: pytest.MonkeyPatch
):
    name, path, _ = await create(cluster)
    place = person.workspace_of(
        host=cluster.url, working_dir=person.place, api_key=KEY, runtime_conversation_id=uuid.UUID(name)
    )
    try:
        done = await asyncio.to_thread(place.execute_command, "pwd; echo oops >&2; exit 3", timeout=30)
        assert (done.exit_code, done.stdout, done.stderr) == (3, f"{person.place}\n", "oops\n")
        source = cluster.world.folder / "upload.txt"
        source.write_text("one\n")
        sent = await asyncio.to_thread(place.file_upload, source, f"{person.place}/a/b.txt")
        assert sent.success and sent.file_size == 4
        back = await asyncio.to_thread(
            place.file_download, f"{person.place}/a/b.txt", cluster.world.folder / "back.txt"
        )
        assert back.success and (cluster.world.folder / "back.txt").read_text() == "one\n"
        commit = "git init -q . && git add a && git -c user.name=x -c user.email=x@x commit -qm x && echo two > a/b.txt"
        done = await asyncio.to_thread(place.execute_command, commit, cwd=person.place, timeout=30)
        assert done.exit_code == 0, done
        changes = await asyncio.to_thread(place.git_changes, person.place)
        assert ("UPDATED", "a/b.txt") in {(c.status.value, str(c.path)) for c in changes}
        diff = await asyncio.to_thread(place.git_diff, f"{person.place}/a/b.txt")
        assert (diff.original, diff.modified) == ("one\n", "two\n")
        assert (await asyncio.to_thread(place.get_server_info))["title"] == "Tenure"
        assert await asyncio.to_thread(lambda: place.alive)

        begun = await asyncio.to_thread(place.start_command, "sleep 60")
        await cluster.other(name).take_over(name, cluster.world.disk.conversations[name].row.record.epoch)
        lost = await asyncio.to_thread(place.get_command_output, begun)
        assert lost is not None and lost["exit_code"] == -1 and "interrupted" in lost["stderr"]
        begun = await asyncio.to_thread(place.start_command, "sleep 60")
        await asyncio.to_thread(place.stop_command, begun)
        async with asyncio.timeout(20):
            while (ended := await asyncio.to_thread(place.get_command_output, begun)) is None:
                await asyncio.sleep(0.02)
        assert ended["exit_code"] == -1
    finally:
        place.reset_client()
    monkeypatch.setattr("tenure.server.openhands.workspace.KEPT", 1)
    other, busy, _ = await create(cluster)
    await cluster.http.post(f"{busy}/bash/start_bash_command", json={"command": "true"})
    if cluster.owner(other) is not cluster.owner(name):
        await cluster.owner(name).take_over(other, cluster.world.disk.conversations[other].row.record.epoch)
    for _ in range(3):
        begun = await cluster.http.post(f"{busy}/bash/start_bash_command", json={"command": "true"})
        assert begun.status_code == 200, begun.text
    kept = await cluster.http.get(f"{path}/bash/bash_events/search", params={"command_id__eq": ended["command_id"]})
    assert [one["exit_code"] for one in kept.json()["items"]] == [-1], (
        "another conversation's commands push none of these out"
    )
    outside = await cluster.http.get(f"{path}/file/download", params={"path": "/etc/passwd"})
    missing = await cluster.http.get(f"{path}/file/download", params={"path": "nothing"})
    assert (outside.status_code, missing.status_code) == (422, 404)
    await cluster.http.post(f"/conversations/{name}/stop", json={}, headers={"Authorization": f"Bearer {KEY}"})
    await cluster.world.until(lambda: cluster.world.disk.conversations[name].row.record.owner is None)
    before = cluster.world.disk.conversations[name].row.record.head
    stopped = await cluster.http.get(f"{path}/file/download", params={"path": "nothing"})
    assert (stopped.status_code, stopped.json()["code"]) == (409, "stopped"), "who only looks starts nothing"
    assert cluster.world.disk.conversations[name].row.record.head == before


NOT_OFFERED = [
    ("POST", "/api/conversations/{id}/fork", "/conversations/{id}/fork"),
    ("POST", "/api/conversations/{id}/condense", "condenser"),
    ("POST", "/api/conversations/{id}/navigate", "fork"),
    ("POST", "/api/bash/start_bash_command", "runtime_conversation_id"),
    ("POST", "/api/file/upload", "runtime_conversation_id"),
    ("GET", "/api/git/changes", "runtime_conversation_id"),
    ("GET", "/api/settings", "agent"),
    ("GET", "/api/conversations/count", "search"),
    ("GET", "/sockets/session/{id}", "/sockets/events"),
]


async def test_what_is_not_offered_says_what_to_do_instead(cluster: Cluster):
    for method, path, word in NOT_OFFERED:
        reply = await cluster.http.request(method, path)
        assert reply.status_code == 501 and word in reply.json()["remedy"], reply.text
    for field, value in (("plugins", [{"source": "x"}]), ("client_tools", [{"name": "x"}]), ("worktree", True)):
        reply = await cluster.http.post("/api/conversations", json=asking(cluster, **{field: value}))
        assert (reply.status_code, reply.json()["field"]) == (501, field)


async def test_modules_of_tools_are_imported_by_each_owner_and_a_missing_one_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: Any
):
    refused = await cluster.http.post(
        "/api/conversations", json=asking(cluster, tool_module_qualnames={"x": "no_such_module_here"})
    )
    assert refused.status_code == 422 and refused.json()["field"] == "tool_module_qualnames.x"
    assert "no_such_module_here" in refused.json()["detail"]

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tool_of_mine.py").write_text("import openhands_tools\n")
    name, path, told = await create(cluster, tool_module_qualnames={"act": "tool_of_mine"})
    assert told["tool_module_qualnames"] == {"act": "tool_of_mine"} and sys.modules.pop("tool_of_mine")
    await cluster.http.post(f"{path}/events", json=said("go [script:default]", run=True))
    await status_is(cluster, path, "finished")
    assert sys.modules.pop("tool_of_mine"), "imported by the owner, too"

    (tmp_path / "tool_of_mine.py").rename(tmp_path / "elsewhere.py")
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    epoch = cluster.world.disk.conversations[name].row.record.epoch
    with pytest.raises(ProvisioningError, match="tool_of_mine"):
        await cluster.other(name).take_over(name, epoch)
    await cluster.http.post(f"{path}/events", json=said("more [script:default]", run=True))
    assert (await cluster.http.get(path)).json()["execution_status"] == "running", "an owner is awaited: no error"
    (tmp_path / "elsewhere.py").rename(tmp_path / "tool_of_mine.py")
    importlib.invalidate_caches()
    await status_is(cluster, path, "finished")


async def test_another_folder_than_an_allowed_one_is_mapped_and_the_reply_says_so(world: World):
    (world.folder / "allowed").mkdir()
    cluster = Cluster(world)
    async with contextlib.AsyncExitStack() as stack:
        (world.folder / "link").symlink_to(world.folder / "allowed")
        await cluster.open(stack, allow_folder=str(world.folder / "link"))  # links are resolved at both ends
        for place, used in (("allowed/mine", True), ("project", False), ("allowed/../project", False)):
            asked = str(world.folder / place)
            body = asking(cluster) | {"workspace": {"kind": "LocalWorkspace", "working_dir": asked}}
            told = (await cluster.http.post("/api/conversations", json=body)).json()
            assert told["tenure"]["working_dir"] == {"asked": asked, "used": used}
            path = f"/api/conversations/{told['id']}"
            files = {"file": ("a.txt", b"hello")}
            sent = await cluster.http.post(f"{path}/file/upload", params={"path": f"{asked}/a.txt"}, files=files)
            assert sent.json() == {"success": True, "file_size": 5}
            assert (world.folder / place / "a.txt").exists() is used
            back = await cluster.http.get(f"{path}/file/download", params={"path": f"{asked}/a.txt"})
            assert back.content == b"hello"
            await cluster.http.delete(path)
        assert (world.folder / "allowed" / "mine" / "a.txt").exists(), "nobody removes a folder that is a person's own"


# --- sockets --------------------------------------------------------------------------------------------------------


def socket_to(url: str, name: str, query: str = "", **headers: str) -> Any:
    place = f"ws{url.removeprefix('http')}/sockets/events/{name}{query}"
    return websockets.connect(place, additional_headers=headers)


async def next_frame(socket: Any) -> dict[str, Any]:
    async with asyncio.timeout(30):
        return json.loads(await socket.recv())


async def closed_with(socket: Any) -> int:
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        async with asyncio.timeout(30):
            while True:
                await socket.recv()
    return socket.close_code


async def test_a_socket_shows_its_key_and_closes_with_the_sdks_codes(cluster: Cluster):
    name, path, _ = await create(cluster)
    url = cluster.urls[0]
    auth = {"type": "auth", "session_api_key": KEY}
    for frame, code in (({"type": "auth", "session_api_key": "wrong"}, 4001), ({"role": "user"}, 4001)):
        async with socket_to(url, name) as one:
            await one.send(json.dumps(frame))
            assert await closed_with(one) == code
    async with socket_to(url, str(uuid.uuid4())) as one:
        await one.send(json.dumps(auth))
        assert await closed_with(one) == 4004
    for headers in ({"X-Session-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {}):
        async with socket_to(url, name.replace("-", ""), **headers) as one:
            await one.send(json.dumps(auth))
            first = await next_frame(one)
            assert (first["kind"], first["key"]) == ("ConversationStateUpdateEvent", "full_state")
            assert first["value"]["execution_status"] == "idle" and LLM_KEY not in json.dumps(first)
    for headers in ({}, {"X-Session-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        async with httpx.AsyncClient(base_url=url, headers=headers) as stranger:
            assert (await stranger.get(path)).status_code == 401
            assert (await stranger.get("/health")).json() == "OK"
            assert (await stranger.get("/server_info")).json()["sdk_version"] == "1.58.0"


async def test_a_message_by_socket_runs_and_what_was_before_is_told_again_on_demand(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tenure.node.tenure.SNAPSHOT_EVERY", 1)  # a socket must not leap over what a snapshot covers
    name, path, _ = await create(cluster)
    key = {"X-Session-API-Key": KEY}
    frames: list[dict[str, Any]] = []
    async with socket_to(cluster.urls[1], name, **key) as one:
        frames.append(await next_frame(one))
        await one.send(json.dumps(said("hello [script:default]")))
        while not (frames[-1].get("key") == "full_state" and frames[-1]["value"]["execution_status"] == "finished"):
            frames.append(await next_frame(one))
        again = await next_frame(one)
        assert again["key"] == "full_state" and again["id"] != frames[-1]["id"], "the end is told twice, each anew"
    events = (await cluster.http.get(f"{path}/events/search")).json()["items"]
    assert [f for f in frames if f.get("key") != "full_state"] == events
    place = Place(cluster.nodes[0], Watches(cluster.nodes[0].store, 10), BOUNDS)
    behind = Projection()
    told = behind.take(await read(place.node.store, name, 0, 9))
    after, rest = await place.read_on(name, behind, every=True)
    assert told + rest == events and after.execution_status == "finished"
    middle = events[2]["timestamp"]
    for query, wanted in (("?resend_mode=all", events), (f"?resend_mode=since&after_timestamp={middle}", events[2:])):
        async with socket_to(cluster.urls[2], name, query, **key) as one:
            assert (await next_frame(one))["key"] == "full_state"
            assert [await next_frame(one) for _ in wanted] == wanted


async def test_a_blocking_run_is_ended_by_its_own_end_alone(cluster: Cluster):
    name, path, _ = await create(cluster)
    async with socket_to(cluster.urls[1], name, **{"X-Session-API-Key": KEY}) as one:
        await next_frame(one)
        await cluster.http.post(f"{path}/events", json=said("go [script:slow]", run=True))
        await cluster.world.until(lambda: cluster.world.happened() == ["slow"])
        loop = asyncio.get_running_loop()
        asked = loop.time()
        await cluster.world.until(lambda: loop.time() > asked + 1.1)  # no short run: nobody can have missed its end
        cluster.world.gate.touch()
        states = [await next_state(one) for _ in range(2)]
        await cluster.http.post(f"{path}/events", json=said("more [script:default]"))
        async with asyncio.timeout(30):
            while (await cluster.http.get(path)).json()["execution_status"] != "idle":
                await asyncio.sleep(0.02)
        ended = loop.time()
        await cluster.world.until(lambda: loop.time() > ended + 1.1)
        await cluster.http.post(f"{path}/run")
        states += [await next_state(one) for _ in range(2)]
    assert states == ["running", "finished", "running", "finished"]


async def next_state(socket: Any) -> str:
    while (frame := await next_frame(socket)).get("key") != "full_state":
        pass
    return frame["value"]["execution_status"]


async def test_streamed_text_is_told_in_every_turn(cluster: Cluster):
    body = asking(cluster)
    body["agent"]["llm"]["stream"] = True
    name = (await cluster.http.post("/api/conversations", json=body)).json()["id"]
    async with socket_to(cluster.urls[0], name, **{"X-Session-API-Key": KEY}) as one:
        await next_frame(one)
        for _ in range(2):
            await one.send(json.dumps(said("hello [script:default]")))
            while (frame := await next_frame(one))["kind"] != "StreamingDeltaEvent":
                pass
            assert frame["content"].strip() in "Hello."
            while await next_state(one) != "finished":
                pass


async def test_without_a_key_configured_any_key_is_taken(world: World):
    cluster = Cluster(world)
    async with contextlib.AsyncExitStack() as stack:
        await cluster.open(stack, api_key="")
        name, path, _ = await create(cluster)
        for headers in ({}, {"X-Session-API-Key": "any"}, {"Authorization": "Bearer any"}):
            async with httpx.AsyncClient(base_url=cluster.urls[0], headers=headers) as stranger:
                assert (await stranger.get(path)).status_code == 200
        async with socket_to(cluster.urls[0], name) as one:
            await one.send(json.dumps({"type": "auth", "session_api_key": "any"}))
            assert (await next_frame(one))["key"] == "full_state"
            await one.send(json.dumps(said("hello [script:default]")))
            while await next_state(one) != "finished":
                pass


async def test_sockets_of_a_node_that_lost_its_lease_are_cut_and_those_of_others_go_on(cluster: Cluster):
    name, _, _ = await create(cluster)
    key = {"X-Session-API-Key": KEY}
    async with socket_to(cluster.urls[0], name, **key) as cut, socket_to(cluster.urls[1], name, **key) as other:
        await next_frame(cut), await next_frame(other)
        present = cluster.nodes[0].present
        assert present is not None
        present.give_up("told to")
        assert await closed_with(cut) == 1012
        await other.send(json.dumps(said("hello [script:default]")))
        while (frame := await next_frame(other)).get("value") != "finished":
            assert frame.get("value") != "error"


async def test_an_outage_of_the_store_is_503_for_requests_and_nothing_for_sockets(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    name, path, _ = await create(cluster)
    key, node = {"X-Session-API-Key": KEY}, cluster.nodes[0]

    async def no_answer(*args: Any, **named: Any) -> Any:
        raise StoreUnavailableError("postgresql://user:hunter2@db does not answer")

    async with socket_to(cluster.urls[0], name, **key) as early:
        await next_frame(early)
        with monkeypatch.context() as patch, contextlib.ExitStack() as late:
            for operation in ("records", "read", "submit"):
                patch.setattr(node.store, operation, no_answer)
            asked = [
                ("GET", path),
                ("GET", f"{path}/events/search"),
                ("POST", f"{path}/run"),
                ("POST", f"{path}/pause"),
            ]
            for method, place in asked:
                reply = await cluster.http.request(method, f"{cluster.urls[0]}{place}")
                assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
                assert "hunter2" not in reply.text
            opened = await socket_to(cluster.urls[0], name, **key)
            late.callback(opened.transport.abort)
            await cluster.http.post(f"{cluster.urls[1]}{path}/events", json=said("hello [script:default]", run=True))
            await status_is(cluster, f"{cluster.urls[1]}{path}", "finished")
            patch.undo()
            assert (await next_frame(opened))["key"] == "full_state", "it has waited for the store"
            events = (await cluster.http.get(f"{path}/events/search")).json()["items"]
            told: list[dict[str, Any]] = []
            while len(told) < len(events):
                frame = await next_frame(early)
                told += [] if frame.get("key") == "full_state" else [frame]
            assert told == events
