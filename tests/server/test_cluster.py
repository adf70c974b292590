"""Nodes, health, keys, the store's outage, the document, and the app inside another app."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from tenure.server import app as routes
from tenure.server import create_app, wire


async def test_nodes_are_listed_by_any_node(cluster):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    nodes = (await one.get("/nodes")).json()
    assert [node["node"] for node in nodes] == ["n1", "n2"]
    assert [node["address"] for node in nodes] == ["http://n1", "http://n2"]
    assert nodes[0]["incarnation"] == cluster.nodes["n1"].incarnation
    assert nodes[0]["capacity"] == 1000
    assert not nodes[0]["draining"]
    assert 0 < nodes[0]["expires_in_s"] <= 10
    assert {node["node"] for node in (await other.get("/nodes")).json()} == {"n1", "n2"}


async def test_a_node_is_drained_through_another(cluster, eventually):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1"})
    await one.post("/conversations/c1/start?here=true")
    unknown = await other.post("/nodes/n9/drain")
    assert (unknown.status_code, unknown.json()["code"], unknown.json()["field"]) == (404, "unknown-node", "node")
    drained = await other.post("/nodes/n1/drain")
    assert (drained.status_code, drained.json()) == (202, {"node": "n1", "asked": 1})

    async def left():
        return [node["node"] for node in (await other.get("/nodes")).json()] == ["n2"]

    assert await eventually(left)
    assert (await one.get("/healthz")).json() == {"status": "ok"}
    unready = await one.get("/readyz")
    assert (unready.status_code, unready.json()["code"]) == (503, "not-ready")
    assert "draining" in unready.json()["reasons"]
    assert (await one.get("/conversations/c1")).status_code == 200, "it reads to the last"


async def test_ready_and_alive_are_two_things(cluster, http, eventually):
    async def ready():
        return (await http.get("/readyz")).status_code == 200

    assert await eventually(ready)
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    cluster.stores["n1"].down = True
    assert (await http.get("/healthz")).status_code == 200, "no store is asked"


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer s3cret2", 401),
        ("Bearer \xff", 401),
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
    ],
)
async def test_a_key_guards_everything_but_the_health(cluster, given, status):
    await cluster.node("n1", api_key="s3cret")
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    http = await cluster.http("n1", headers=headers)
    for path in ("/conversations", "/nodes", "/openapi.json", "/docs"):
        answer = await http.get(path)
        assert answer.status_code == status, path
        if status == 401:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "unauthorized"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "s3cret" not in answer.text
    if status == 401:
        before = cluster.contents()
        assert (await http.post("/conversations", json={})).status_code == 401
        assert (await http.get("/nowhere")).status_code == 401
        assert cluster.contents() == before
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code in (200, 503)


async def test_nothing_secret_is_logged(cluster, caplog):
    caplog.set_level(0)
    await cluster.node("n1", api_key="s3cret")
    http = await cluster.http("n1", headers={"Authorization": "Bearer s3cret"})
    await http.post(
        "/conversations", json={"id": "c1", "message": "a private matter"}, headers={"Idempotency-Key": "k3y"}
    )
    await http.post("/conversations/c1/messages", json={"text": "a private matter", "nonsense": 1})
    cluster.stores["n1"].down = True
    outage = await http.post("/conversations/c1/messages", json={"text": "a private matter"})
    assert "hunter2" not in outage.text
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("tenure.server"))
    for secret in ("s3cret", "private", "k3y", "hunter2"):
        assert secret not in ours


# --- the store's outage ---------------------------------------------------------------------------------------------

ON_THE_STORE = [
    ("GET", "/conversations", None),
    ("POST", "/conversations", {"id": "c2", "message": "x"}),
    ("GET", "/conversations/c1", None),
    ("PATCH", "/conversations/c1", {"title": "x"}),
    ("DELETE", "/conversations/c1", None),
    ("GET", "/conversations/c1/events", None),
    ("GET", "/conversations/c1/stream", None),
    ("POST", "/conversations/c1/messages", {"text": "x"}),
    ("POST", "/conversations/c1/messages?wait_s=30", {"text": "x"}),
    ("POST", "/conversations/c1/interrupt", {}),
    ("POST", "/conversations/c1/stop", {}),
    ("POST", "/conversations/c1/answer", {"text": "x"}),
    ("POST", "/conversations/c1/start", {}),
    ("POST", "/conversations/c1/start?here=true", {}),
    ("POST", "/conversations/c1/takeover", {}),
    ("GET", "/nodes", None),
    ("POST", "/nodes/n1/drain", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ON_THE_STORE)
async def test_an_outage_is_told_as_one(cluster, method, path, body):
    await cluster.node("n1", wire.Bounds(poll_s=0.05))
    http = await cluster.http("n1")
    await http.post("/conversations", json={"id": "c1"})
    cluster.stores["n1"].down = True
    cluster.nodes["n1"]._living = (float("-inf"), {})
    before = cluster.contents()
    answer = await http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "same key" in answer.json()["remedy"]
    assert cluster.contents() == before


async def test_a_wait_goes_on_through_an_outage(cluster, eventually):
    await cluster.node("n1", wire.Bounds(poll_s=0.05))
    http = await cluster.http("n1")
    owner = await cluster.by_hand("c1")
    waiting = asyncio.create_task(http.post("/conversations/c1/messages?wait_s=30", json={"text": "x"}))

    async def accepted():
        return cluster.disk.conversations["c1"].row.record.head == 2

    async def refused_some():
        return cluster.stores["n1"].refused > 20

    assert await eventually(accepted)
    cluster.stores["n1"].down = True
    await owner.claim()
    await owner.say("hello")
    assert await eventually(refused_some)
    assert not waiting.done()
    cluster.stores["n1"].down = False
    answer = await waiting
    assert (answer.status_code, answer.json()["outcome"]) == (200, "completed")


async def test_a_bug_is_a_problem_document_too(cluster, monkeypatch):
    http = await cluster.http("n1")

    async def broken(*args):
        raise ZeroDivisionError("with a secret in it")

    monkeypatch.setattr(cluster.stores["n1"].store, "nodes", broken)
    answer = await http.get("/nodes")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    assert "secret" not in answer.text


# --- inside another app ---------------------------------------------------------------------------------------------


async def test_the_app_can_be_mounted_in_another(cluster):
    await cluster.node("n1", api_key="s3cret")
    outer = FastAPI()
    outer.mount("/agents", create_app(cluster.nodes["n1"]))
    outer.mount("/again", create_app(cluster.nodes["n1"]))
    transport = httpx.ASGITransport(outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://outer") as http:
        assert (await http.get("/agents/healthz")).status_code == 200
        assert (await http.get("/agents/conversations")).status_code == 401
        key = {"Authorization": "Bearer s3cret"}
        made = await http.post("/agents/conversations", json={"id": "c1"}, headers=key)
        assert made.status_code == 201
        assert (await http.get("/again/conversations/c1", headers=key)).json() == made.json()
        assert (await http.get("/agents/nowhere", headers=key)).headers["content-type"] == ("application/problem+json")
        assert (await http.get("/agents/openapi.json", headers=key)).status_code == 200


# --- the document ---------------------------------------------------------------------------------------------------


async def test_the_document_is_complete(http):
    document = (await http.get("/openapi.json")).json()
    assert (await http.get("/docs")).status_code == 200
    expected = {
        "/conversations": {"get", "post"},
        "/conversations/{id}": {"get", "patch", "delete"},
        "/conversations/{id}/events": {"get"},
        "/conversations/{id}/timeline": {"get"},
        "/conversations/{id}/stream": {"get"},
        "/conversations/{id}/messages": {"post"},
        "/conversations/{id}/interrupt": {"post"},
        "/conversations/{id}/stop": {"post"},
        "/conversations/{id}/answer": {"post"},
        "/conversations/{id}/start": {"get", "post"},
        "/conversations/{id}/takeover": {"post"},
        "/conversations/import": {"post"},
        "/conversations/{id}/export": {"get"},
        "/conversations/{id}/fork": {"post"},
        "/conversations/{id}/vault": {"get"},
        "/conversations/{id}/vault/{name}": {"put", "delete"},
        "/vault/rotate": {"post"},
        "/activity": {"get"},
        "/nodes": {"get"},
        "/nodes/{node}/drain": {"post"},
        "/metrics": {"get"},
        "/healthz": {"get"},
        "/readyz": {"get"},
    }
    assert {path: set(operations) for path, operations in document["paths"].items()} == expected
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["description"]
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert wanted <= set(document["components"]["schemas"])
    assert not wanted & {"HTTPValidationError", "ValidationError"}


def exactly(shape):
    """A check of a reply: the declared members, of the declared types, and no others."""
    declared = shape.__required_keys__ | shape.__optional_keys__
    adapter = TypeAdapter(shape)

    def check(reply):
        adapter.validate_python(reply, strict=True)
        assert reply.keys() <= declared, reply.keys() - declared

    return check


async def test_replies_are_what_the_document_says(cluster, http):
    send = http.post
    exactly(wire.ConversationShape)((await send("/conversations", json={"id": "c1", "message": "hello"})).json())
    exactly(wire.ConversationShape)((await http.get("/conversations/c1")).json())
    exactly(wire.ConversationShape)((await http.patch("/conversations/c1", json={"title": "x"})).json())
    exactly(wire.AcceptedShape)((await send("/conversations/c1/messages", json={"text": "x"})).json())
    exactly(wire.SettledShape)((await send("/conversations/c1/messages?wait_s=20", json={"text": "x"})).json())
    exactly(wire.LoopInfoShape)((await send("/conversations/c1/start")).json())
    exactly(wire.LoopInfoShape)((await send("/conversations/c1/start?here=1")).json())
    exactly(wire.LoopInfoShape)((await send("/conversations/c1/takeover")).json())
    exactly(wire.ConversationsShape)((await http.get("/conversations")).json())
    page = (await http.get("/conversations/c1/events")).json()
    exactly(wire.EventsShape)(page)
    for event in page["events"]:
        exactly(wire.EventShape)(event)
    for node in (await http.get("/nodes")).json():
        exactly(wire.NodeShape)(node)
    exactly(wire.DrainShape)((await send("/nodes/n1/drain")).json())
    exactly(wire.HealthShape)((await http.get("/healthz")).json())


def test_the_package_says_its_version():
    assert routes.VERSION
