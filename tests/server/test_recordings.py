"""Export, import and fork over HTTP: nothing is lost on the way, and what is no recording is refused before anything changes."""

import asyncio
import contextlib
import json

import httpx
import pytest

from tenure.conversation import past_of
from tenure.journal import Event, Policy
from tenure.server import Bounds
from tenure.server.watch import read

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
async def told(http, eventually):
    """A conversation of two turns; its export's lines."""
    await http.post("/conversations", json={"id": "c1", "settings": {"volume": 3}, "title": "t", "policy": "steer"})
    for text in ("hello", "ask which"):
        await http.post(
            "/conversations/c1/messages", params={"wait_s": 5 if text == "hello" else 0}, json={"text": text}
        )

    async def asked():
        return (await http.get("/conversations/c1/events", params={"kind": "turn_waiting"})).json()["events"]

    await eventually(asked)
    await http.post("/conversations/c1/answer", params={"wait_s": 20}, json={"answer": "this"})
    answer = await http.post("/conversations/c1/messages", params={"wait_s": 20}, json={"text": "done"})
    assert answer.status_code == 200
    answer = await http.get("/conversations/c1/export")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return answer.text.splitlines()


async def past(http, conversation):
    events = (await http.get(f"/conversations/{conversation}/events", params={"limit": 1000})).json()["events"]
    return past_of(map(Event.from_json, events))


async def imported(http, lines, **params):
    return await http.post("/conversations/import", params=params, content="\n".join(lines), headers=LINES)


async def test_export_import_export(http, told, cluster):
    answer = await imported(http, told, id="copy")
    assert answer.status_code == 201, answer.text
    copy = answer.json()
    assert (copy["id"], copy["settings"], copy["title"], copy["policy"]) == ("copy", {"volume": 3}, "t", Policy.STEER)
    assert await past(http, "copy") == await past(http, "c1")
    other = await cluster.http("n2")
    again = (await other.get("/conversations/copy/export")).text.splitlines()
    assert (await imported(other, again, id="again")).status_code == 201
    assert await past(http, "again") == await past(http, "c1")


async def test_the_same_import_again_is_the_same_conversation(http, told):
    first = await imported(http, told, user_id="u")
    keyed = [await http.post("/conversations/import", params={"user_id": "u"}, content="\n".join(told) + "\n",
                             headers={**LINES, "Idempotency-Key": "k"}) for _ in range(2)]  # fmt: skip
    assert [answer.status_code for answer in (first, *keyed)] == [201, 201, 200]
    assert keyed[0].json()["id"] == keyed[1].json()["id"] != first.json()["id"]
    assert (await imported(http, told, id="c1")).json()["code"] == "conversation-exists"


async def test_inline_events_and_inline_lines(http, told):
    events = (await http.get("/conversations/c1/events", params={"limit": 1000})).json()["events"]
    for number, replay in enumerate(({"events": events}, {"lines": [json.loads(line) for line in told]})):
        answer = await http.post("/conversations", json={"id": f"copy{number}", "replay": replay})
        assert answer.status_code == 201, answer.text
        assert await past(http, f"copy{number}") == await past(http, "c1")


async def test_rerun_answers_the_last_message_again(http, told, eventually):
    assert (await imported(http, told, id="copy", rerun="true")).status_code == 201

    async def answered():
        events = (await http.get("/conversations/copy/events", params={"kind": "turn_completed"})).json()["events"]
        return len(events) == 4

    await eventually(answered)


async def test_fork_at_a_seq(http, told, cluster):
    await cluster.store.seal("c1", "TOKEN", b"cipher", 0)
    events = [json.loads(line)["event"] for line in told[1:-1]]
    at = next(e["seq"] for e in events if e["kind"] == "turn_waiting")
    answer = await http.post("/conversations/c1/fork", json={"at": at, "id": "fork", "title": "other"})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["title"], answer.json()["vault"]) == ("other", ["TOKEN"])
    original, fork = await past(http, "c1"), await past(http, "fork")
    cut = len(past_of(Event.from_json(e) for e in events if e["seq"] <= at))
    assert fork[:cut] == original[:cut]
    assert [e["kind"] for e in fork[cut:]] == ["turn_interrupted"]
    assert not await cluster.store.names("fork")
    assert json.loads(told[0])["conversation"]["vault"] == []
    for wrong in (0, events[-1]["seq"] + 1):
        refused = await http.post("/conversations/c1/fork", json={"at": wrong})
        assert (refused.status_code, refused.json()["field"]) == (422, "at")


async def test_another_users_conversation_is_neither_exported_nor_forked(http):
    await http.post("/conversations", json={"id": "mine", "user_id": "u"})
    for answer in (
        await http.get("/conversations/mine/export", params={"user_id": "v"}),
        await http.post("/conversations/mine/fork", json={"user_id": "v"}),
    ):
        assert answer.status_code == 404


async def test_a_conversation_that_grows_is_exported_up_to_the_head_of_the_first_line(http, cluster, told, monkeypatch):
    monkeypatch.setattr("tenure.server.recordings.CHUNK", 3)
    read = cluster.store.read

    async with http.stream("GET", "/conversations/c1/export") as answer:
        lines = []
        async for line in answer.aiter_lines():
            lines.append(line)
            if len(lines) == 2:
                await http.post("/conversations/c1/messages", json={"text": "meanwhile"})
    assert lines[0] == told[0] and len(lines) == len(told)
    assert (await read("c1")).record.head > json.loads(lines[0])["head"]
    assert (await imported(http, lines, id="copy")).status_code == 201


async def test_more_exports_than_the_node_takes_are_refused_and_room_is_made_again(http, cluster, told, monkeypatch):
    """Two are under way, held up by the store; a third is told when to come again. One ends, one is left by its reader."""
    gate = asyncio.Event()

    async def slow(store, conversation, after, *more):
        if after:
            await gate.wait()
        return await read(store, conversation, after, *more)

    monkeypatch.setattr("tenure.server.recordings.CHUNK", 3)
    monkeypatch.setattr("tenure.server.recordings.read", slow)
    await cluster.node("small", Bounds(exports=2))
    url = await cluster.serve("small")
    async with httpx.AsyncClient(base_url=url, timeout=20) as other, contextlib.AsyncExitStack() as left:
        for _ in range(2):
            answer = await left.enter_async_context(other.stream("GET", "/conversations/c1/export"))
            assert answer.status_code == 200
        refused = await other.get("/conversations/c1/export")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
            503, "too-many-exports", "1"
        )  # fmt: skip
        assert "at most 2" in refused.json()["limit"]
        await left.aclose()  # both readers leave
        gate.set()

        async def room():
            return (await other.get("/conversations/c1/export")).status_code == 200

        await eventually_true(room)
        for _ in range(3):
            assert (await other.get("/conversations/c1/export")).text.splitlines() == told


async def test_more_imports_than_the_node_takes_are_refused_and_room_is_made_again(cluster, told):
    """Two bodies are under way; a third recording is told when to come again, and is taken when they are through."""
    await cluster.node("small", Bounds(imports=2))
    other, whole = await cluster.http("small"), "\n".join(told).encode()
    started, gate = [asyncio.Event() for _ in range(2)], asyncio.Event()

    async def held(begun):
        yield whole[:100]
        begun.set()
        await gate.wait()
        yield whole[100:]

    async def bring(id, content):
        return await other.post("/conversations/import", params={"id": id}, content=content, headers=LINES)

    under_way = [asyncio.create_task(bring(f"held-{at}", held(one))) for at, one in enumerate(started)]
    await asyncio.gather(*(one.wait() for one in started))
    refused = await bring("late", whole)
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
        503,
        "too-many-imports",
        "1",
    )
    assert "at most 2" in refused.json()["limit"]
    for path, body in (("c1/fork", {}), ("", {"replay": {"events": []}})):
        assert (await other.post(f"/conversations/{path}".rstrip("/"), json=body)).json()["code"] == "too-many-imports"
    gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [201, 201]
    assert (await bring("late", whole)).status_code == 201


async def test_an_import_whose_body_stops_is_told_so_and_lets_go_of_its_place(cluster, told):
    await cluster.node("small", Bounds(imports=1, slow_s=0.05))
    other, whole = await cluster.http("small"), "\n".join(told).encode()

    async def half():
        yield whole[:100]
        await asyncio.Event().wait()

    answer = await other.post("/conversations/import", content=half(), headers=LINES)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (408, "body-too-slow", "body")
    assert (await imported(other, told, id="whole")).status_code == 201


async def eventually_true(look):
    async with asyncio.timeout(20):
        while not await look():
            await asyncio.sleep(0.02)


def edited(line, **changes):
    shape = json.loads(line)
    shape["event"] |= changes
    return json.dumps(shape)


BAD = {
    "no lines": (lambda ls: [""], "line 1"),
    "no JSON": (lambda ls: [*ls[:3], "{", *ls[4:]], "line 4"),
    "an edited event": (lambda ls: [*ls[:3], edited(ls[3], at="2020-01-01T00:00:00Z"), *ls[4:]], "line 4: chain"),
    "a lost line": (lambda ls: [*ls[:3], *ls[4:]], "line 4: chain"),
    "a doubled line": (lambda ls: [*ls[:3], ls[2], *ls[3:]], "line 4: chain"),
    "swapped lines": (lambda ls: [*ls[:3], ls[4], ls[3], *ls[5:]], "line 4: chain"),
    "a cut export": (lambda ls: ls[:-1], "line"),
    "two exports": (lambda ls: [*ls, *ls], "line"),
    "another version": (lambda ls: [ls[0].replace('"format":1', '"format":2'), *ls[1:]], "line 1"),
}


@pytest.mark.parametrize("fault", BAD)
async def test_bad_lines_are_refused_and_change_nothing(http, told, cluster, fault):
    make, field = BAD[fault]
    before = cluster.contents()
    answer = await imported(http, make(told), id="copy")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid-input"), answer.text
    assert problem["field"].startswith(field)
    assert problem["limit"] and problem["remedy"]
    assert cluster.contents() == before


def _at(kind, /, **changes):
    def change(events):
        one = next(e for e in events if e["kind"] == kind)
        one |= changes
        return events

    return change


def _body(kind, /, **changes):
    def change(events):
        one = next(e for e in events if e["kind"] == kind)
        one["body"] |= changes
        return events

    return change


def _without(kind):
    return lambda events: [e for e in events if e["kind"] != kind]


FAULTY = {
    "a gap": (_without("turn_started"), "seq"),
    "out of order": (lambda es: [es[0], es[2], es[1], *es[3:]], "seq"),
    "a seq that is no number": (_at("claimed", seq="2"), "seq"),
    "a foreign epoch": (_at("turn_started", epoch=7), "events"),
    "a command with an epoch": (_at("message", epoch=1), "epoch"),
    "a kind that is no name": (_at("reply", kind="no name!"), "kind"),
    "a command without its key": (_at("message", key=None), "key"),
    "an event of a command's kind": (_at("reply", kind="stop"), "kind"),
    "a command that its agent does not declare": (_at("message", kind="levitate"), "kind"),
    "a core kind as a command": (_at("message", kind="turn_started"), "kind"),
    "a stop that waits for a turn": (_at("answer", delivery="turn"), "delivery"),
    "a delivery that is none": (_at("message", delivery="later"), "delivery"),
    "an unknown part": (_at("reply", extra=1), "extra"),
    "a time that is none": (_at("reply", at="yesterday"), "at"),
    "a turn on unknown commands": (_body("turn_started", commands=[99]), "body.commands"),
    "a turn on no list": (_body("turn_started", commands="x"), "body.commands"),
    "a command settled twice": (_body("command_settled", command=2), "events"),
    "a settled command that is none": (_body("command_settled", command=1), "body.command"),
    "a core event without its part": (_at("turn_waiting", body={}), "body.ask"),
    "an event of a turn that is not open": (_at("turn_completed", turn="t99"), "events"),
    "a second beginning": (lambda es: [*es, {**es[0], "seq": len(es) + 1}], "kind"),
    "no beginning": (lambda es: [{**es[0], "kind": "reply"}, *es[1:]], "kind"),
    "nothing": (lambda es: [], "replay"),
    "a doubled key": (lambda es: [{**e, "key": "k"} if "key" in e else e for e in es], "key"),
    "a number beyond 64 bits": (_body("reply", text=1 << 70), "replay.events"),
    "an event beyond the limit": (_body("reply", text="x" * (1 << 20)), "body"),
    "an event that is no object": (lambda es: [*es, 3], "replay.events"),
}


@pytest.mark.parametrize("fault", FAULTY)
async def test_bad_events_are_refused_and_change_nothing(http, told, cluster, fault):
    change, field = FAULTY[fault]
    events = change([json.loads(line)["event"] for line in told[1:-1]])
    before = cluster.contents()
    answer = await http.post("/conversations", json={"id": "copy", "replay": {"events": events}})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid-input"), answer.text
    assert field in problem["field"] or field == "events", problem
    assert problem["limit"] and problem["remedy"]
    assert cluster.contents() == before


async def test_events_of_another_version_are_refused_if_they_say_so(http, told, cluster):
    """By its name alone, a kind that its core has learned could be a loop's."""
    events = [json.loads(line)["event"] for line in told[1:-1]]
    before = cluster.contents()
    for wrong in (2, "1", None):
        about = {"format": wrong}
        answer = await http.post(
            "/conversations", json={"id": "copy", "replay": {"events": events, "conversation": about}}
        )
        assert (answer.status_code, answer.json()["field"]) == (422, "replay.conversation.format"), answer.text
    assert cluster.contents() == before
    about = {"format": 1}
    answer = await http.post("/conversations", json={"id": "copy", "replay": {"events": events, "conversation": about}})
    assert answer.status_code == 201


async def test_an_oversize_import_names_the_limit(cluster, told):
    await cluster.node("small", Bounds(recording_bytes=1000))
    http = await cluster.http("small")
    before = cluster.contents()
    answer = await imported(http, told, id="copy")
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert "1000" in answer.json()["limit"]
    fork = await http.post("/conversations/c1/fork", json={})
    assert (fork.status_code, fork.json()["field"]) == (413, "at")
    assert cluster.contents() == before


async def test_other_content_types_and_unknown_agents_are_refused(http, told, cluster):
    before = cluster.contents()
    answer = await http.post("/conversations/import", json={})
    assert (answer.status_code, answer.json()["limit"]) == (415, "application/x-ndjson")
    answer = await imported(http, told, agent="nobody")
    assert (answer.status_code, answer.json()["field"]) == (422, "agent")
    answer = await http.post("/conversations", json={"rerun": True})
    assert answer.json()["field"] == "rerun"
    answer = await http.post("/conversations", json={"replay": {"lines": []}, "message": "hi"})
    assert answer.json()["field"] == "message"
    assert cluster.contents() == before
