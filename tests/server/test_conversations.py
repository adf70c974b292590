"""Create, show, list, change, delete; another user's conversation is not there."""

import asyncio

import pytest

from tenure.abc import About, Claim, Held
from tenure.clock import Instant
from tenure.lease import new_incarnation, new_token


async def replies(http, conversation):
    page = (await http.get(f"/conversations/{conversation}/events", params={"kind": "reply"})).json()
    return [event["body"]["text"] for event in page["events"]]


async def test_a_new_conversation_is_shown(http):
    made = await http.post("/conversations", json={"id": "c1", "title": "A title", "metadata": {"a": [1]}})
    assert made.status_code == 201
    shape = made.json()
    assert (shape["id"], shape["agent"], shape["status"], shape["owner"]) == ("c1", "parrot", "idle", None)
    assert (shape["epoch"], shape["last_seq"], shape["title"]) == (0, 1, "A title")
    shown = await http.get("/conversations/c1")
    assert shown.status_code == 200
    assert shown.json() == shape


async def test_a_message_starts_it_by_itself(http, eventually):
    made = await http.post("/conversations", json={"id": "c1", "message": "hello"})
    assert made.status_code == 201
    assert (made.json()["seq"], made.json()["duplicate"]) == (2, False)
    assert await eventually(lambda: replies(http, "c1")) == ["hello"]
    shape = (await http.get("/conversations/c1")).json()
    assert shape["owner"]["node"] == "n1"
    assert shape["owner"]["expires_in_s"] > 0
    assert shape["epoch"] == shape["owner"]["epoch"] == 1


async def test_creation_is_repeated_with_the_same_or_no_settings_only(http):
    body = {"id": "c1", "user_id": "ann", "settings": {"volume": 3}}
    assert (await http.post("/conversations", json=body)).status_code == 201
    assert (await http.post("/conversations", json=body)).status_code == 200
    assert (await http.post("/conversations", json={"id": "c1", "user_id": "ann"})).status_code == 200
    assert (await http.post("/conversations?user_id=ann", json={"id": "c1"})).status_code == 200
    for other in ({"settings": {"volume": 4}}, {"user_id": "bob"}, {"user_id": None}):
        refused = await http.post("/conversations", json=body | other)
        assert refused.status_code == 409
        assert refused.json()["code"] == "conversation-exists"
        assert "ann" not in refused.text


@pytest.mark.parametrize("where", ["body", "message", "header"])
async def test_the_id_is_derived_from_user_and_key(cluster, where):
    """Rule 18: the first message, retried on another node, makes one conversation and one turn."""
    one, other = await cluster.http("n1"), await cluster.http("n2")
    body = {"user_id": "ann", "message": {"text": "hello"}}
    headers = {}
    match where:
        case "body":
            body["key"] = "k1"
        case "message":
            body["message"]["key"] = "k1"
        case "header":
            headers = {"Idempotency-Key": "k1"}
    made = await asyncio.gather(
        *(h.post("/conversations", json=body, headers=headers) for h in (one, other, one, other, one))
    )
    assert sorted(m.status_code for m in made) == [200, 200, 200, 200, 201]
    assert len({(m.json()["id"], m.json()["seq"]) for m in made}) == 1
    elsewhere = await one.post("/conversations", json=body | {"user_id": "bob"}, headers=headers)
    assert elsewhere.status_code == 201
    assert elsewhere.json()["id"] != made[0].json()["id"]


async def test_keys_that_differ_are_refused(http):
    body = {"key": "a", "message": {"text": "x", "key": "b"}}
    refused = await http.post("/conversations", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, "key")
    refused = await http.post("/conversations", json={"key": "a"}, headers={"Idempotency-Key": "b"})
    assert (refused.status_code, refused.json()["field"]) == (422, "key")


async def test_settings_are_checked_by_the_agent(http):
    refused = await http.post("/conversations", json={"settings": {"volume": 11}})
    assert refused.status_code == 422
    assert refused.json()["field"] == "settings.volume"
    assert refused.json()["limit"] == "must lie in 0 to 10"
    assert refused.json()["remedy"] == "turn it down"


async def test_an_agent_that_only_another_node_knows_is_fine(cluster, http, eventually):
    refused = await http.post("/conversations", json={"agent": "by-hand"})
    assert (refused.status_code, refused.json()["field"]) == (422, "agent")
    owner = await cluster.by_hand("c0")
    await owner.claim()

    async def known():
        return (await http.post("/conversations", json={"agent": "by-hand", "settings": {"x": 1}})).status_code == 201

    assert await eventually(known), "the register may be a fifth of a second old"


async def test_a_list_goes_through_all_in_order_of_creation(cluster, http):
    for number in range(7):
        await http.post("/conversations", json={"id": f"c{6 - number}", "user_id": "ab"[number % 2]})
    seen, cursor = [], None
    while True:
        page = (await http.get("/conversations", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [c["id"] for c in page["conversations"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [f"c{6 - number}" for number in range(7)]
    mine = (await http.get("/conversations", params={"user_id": "b"})).json()["conversations"]
    assert [c["id"] for c in mine] == ["c5", "c3", "c1"]
    assert "settings" not in mine[0]


async def test_a_list_is_filtered_by_status_and_owner(cluster, http, eventually):
    await http.post("/conversations", json={"id": "idle"})
    await http.post("/conversations", json={"id": "busy", "message": "wait"})
    owner = await cluster.by_hand("hers")
    await owner.claim()

    async def listed(**filters):
        return [c["id"] for c in (await http.get("/conversations", params=filters)).json()["conversations"]]

    async def running():
        return await listed(status="running") == ["busy"]

    assert await eventually(running)
    assert await listed(owner="n1") == ["busy"]
    assert await listed(owner="hand") == await listed(owner=owner.incarnation) == ["hers"]
    assert await listed(agent="by-hand") == ["hers"]
    await cluster.store.bury(owner.incarnation, "exited")

    async def gone():
        return await listed(owner="hand") == []

    assert await eventually(gone), "a dead node owns nothing"


@pytest.mark.parametrize("cursor", ["x", "-5", "9" * 40, "²", "1.5", " ", ""])
async def test_a_foreign_cursor_is_refused(http, cursor):
    refused = await http.get("/conversations", params={"cursor": cursor})
    if cursor in ("-5", "9" * 40):
        assert refused.status_code in (200, 422)
    else:
        assert (refused.status_code, refused.json()["field"]) == (422, "cursor")


async def test_an_owner_that_died_owns_nothing(cluster, http, eventually):
    owner = await cluster.by_hand("c1")
    await owner.claim()
    shape = (await http.get("/conversations/c1")).json()
    assert (shape["owner"]["node"], shape["status"]) == ("hand", "idle")
    await http.post("/conversations/c1/messages", json={"text": "x"})
    await owner.append()
    await cluster.store.bury(owner.incarnation, "exited")

    async def buried():
        shape = (await http.get("/conversations/c1")).json()
        return shape if shape["owner"] is None else None

    assert (await eventually(buried))["status"] == "queued", "never running without a living owner"


async def test_every_node_tells_the_same_also_while_the_owner_is_dead(cluster, eventually):
    """G8, R16: without a claim; nobody's reading changes anything."""
    nodes = [await cluster.http(name) for name in ("n1", "n2", "n3")]
    owner = await cluster.by_hand("c1", title="A title")
    await nodes[0].post("/conversations/c1/messages", json={"text": "x"})
    await owner.claim()

    async def told(path):
        answers = [(await http.get(path)).json() for http in nodes]
        for answer in answers:
            if answer.get("owner"):
                answer["owner"].pop("expires_in_s")
        return answers

    for state in ("alive", "dead"):
        before = cluster.contents()
        for path in ("/conversations/c1", "/conversations/c1/events", "/conversations?user_id=nobody"):

            async def alike(path=path):
                first, *others = await told(path)
                return others == [first, first]

            assert await eventually(alike), (state, path)
        assert cluster.contents() == before
        await cluster.store.bury(owner.incarnation, "exited")


async def test_change_title_metadata_and_settings(http):
    await http.post("/conversations", json={"id": "c1", "title": "old", "metadata": {"a": 1}})
    changed = await http.patch("/conversations/c1", json={"title": "new"})
    assert changed.status_code == 200
    assert (changed.json()["title"], changed.json()["metadata"], changed.json()["version"]) == ("new", {"a": 1}, 2)
    changed = await http.patch("/conversations/c1", json={"title": None, "metadata": {}})
    assert (changed.json()["title"], changed.json()["metadata"]) == (None, {})
    changed = await http.patch("/conversations/c1", json={"settings": {"volume": 5}})
    assert changed.json()["settings"] == {"volume": 5}
    events = (await http.get("/conversations/c1/events", params={"kind": "settings_changed"})).json()["events"]
    assert [e["body"] for e in events] == [{"settings": {"volume": 5}}]
    assert (await http.patch("/conversations/c1", json={"settings": {"volume": 99}})).json()[
        "field"
    ] == "settings.volume"


async def test_a_change_of_a_version_that_is_gone_is_refused(http):
    made = await http.post("/conversations", json={"id": "c1"})
    tag = made.headers["etag"]
    first = await http.patch("/conversations/c1", json={"title": "a"}, headers={"If-Match": tag})
    assert first.status_code == 200
    for late in ({"headers": {"If-Match": tag}}, {"json": {"title": "b", "version": 1}}):
        refused = await http.patch("/conversations/c1", **{"json": {"title": "b"}, **late})
        assert (refused.status_code, refused.json()["code"]) == (412, "stale")
    assert (await http.patch("/conversations/c1", json={"title": "b"}, headers={"If-Match": "*"})).status_code == 200
    differ = await http.patch("/conversations/c1", json={"title": "c", "version": 1}, headers={"If-Match": '"3"'})
    assert (differ.status_code, differ.json()["field"]) == (422, "version")
    nothing = await http.patch("/conversations/c1", json={})
    assert (nothing.status_code, nothing.json()["code"]) == (422, "invalid-input")


def somebody_is_faster(store, operation, times):
    """Between a reading and the write that follows it, somebody else changes the record: so many times."""
    inner = getattr(store, operation)
    left = [times]

    async def raced(conversation, seen, *rest):
        if left[0]:
            left[0] -= 1
            [record] = await store.records([conversation])
            if operation == "amend":
                await inner(conversation, record.version, {"metadata": {"left": left[0]}})
            else:
                token = new_token()
                claim = Claim(conversation, incarnation, token, record.epoch, "fast", "", "wanted", forced=True)
                assert isinstance(await store.claim(claim), Held)
        return await inner(conversation, seen, *rest)

    incarnation = new_incarnation()
    setattr(store, operation, raced)
    return incarnation


@pytest.mark.parametrize("times", [1, 4, 5])
async def test_a_change_is_tried_again_when_somebody_is_faster(cluster, http, times):
    await http.post("/conversations", json={"id": "c1"})
    somebody_is_faster(cluster.stores["n1"].store, "amend", times)
    changed = await http.patch("/conversations/c1", json={"title": "mine"})
    if times < 5:
        assert (changed.status_code, changed.json()["title"]) == (200, "mine")
        assert changed.json()["metadata"] == {"left": 0}, "what the others wrote stays"
    else:
        assert (changed.status_code, changed.json()["code"]) == (409, "stale")


async def test_a_change_of_a_named_version_is_not_tried_again(cluster, http):
    await http.post("/conversations", json={"id": "c1"})
    somebody_is_faster(cluster.stores["n1"].store, "amend", 1)
    refused = await http.patch("/conversations/c1", json={"title": "mine", "version": 1})
    assert (refused.status_code, refused.json()["field"]) == (412, "version")
    assert (await http.get("/conversations/c1")).json()["title"] is None


@pytest.mark.parametrize("times", [1, 4, 5])
async def test_a_deletion_is_tried_again_when_somebody_claims_meanwhile(cluster, http, times):
    await cluster.by_hand("c1")
    store = cluster.stores["n1"].store
    incarnation = somebody_is_faster(store, "delete", times)
    await store.register(incarnation, About("fast", "", 1, (), Instant(0)), 3600)
    deleted = await http.delete("/conversations/c1")
    if times < 5:
        assert deleted.status_code == 204
        assert (await http.get("/conversations/c1")).status_code == 410
    else:
        assert (deleted.status_code, deleted.json()["code"], deleted.json()["field"]) == (409, "stale", "epoch")


async def test_deleted_is_deleted(cluster, http):
    await http.post("/conversations", json={"id": "c1", "user_id": "ann", "message": "hello"})
    assert (await http.delete("/conversations/c1", params={"user_id": "bob"})).status_code == 404
    assert (await http.delete("/conversations/c1", params={"user_id": "ann"})).status_code == 204
    assert (await http.delete("/conversations/c1")).status_code == 204
    assert (await http.delete("/conversations/c1", params={"user_id": "bob"})).status_code == 404
    assert (await http.delete("/conversations/never")).status_code == 404
    for gone in (
        await http.get("/conversations/c1"),
        await http.get("/conversations/c1/events"),
        await http.get("/conversations/c1/stream"),
        await http.post("/conversations/c1/messages", json={"text": "x"}),
        await http.post("/conversations/c1/start"),
        await http.post("/conversations/c1/takeover"),
        await http.patch("/conversations/c1", json={"title": "x"}),
        await http.post("/conversations", json={"id": "c1", "user_id": "ann"}),
    ):
        assert (gone.status_code, gone.json()["code"]) == (410, "conversation-deleted")
    for secret in ("", "/events", "/stream"):
        hidden = await http.get(f"/conversations/c1{secret}", params={"user_id": "bob"})
        assert (hidden.status_code, hidden.json()["code"]) == (404, "unknown-conversation")
    assert (await http.get("/conversations")).json()["conversations"] == []


ROUTES = [
    ("GET", "", None),
    ("PATCH", "", {"title": "x"}),
    ("DELETE", "", None),
    ("GET", "/events", None),
    ("GET", "/stream", None),
    ("POST", "/messages", {"text": "x"}),
    ("POST", "/interrupt", {}),
    ("POST", "/stop", {}),
    ("POST", "/answer", {"text": "x"}),
    ("POST", "/start", {}),
    ("POST", "/start?here=true", {}),
    ("POST", "/takeover", {}),
]


@pytest.mark.parametrize(("method", "route", "body"), ROUTES)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_another_users_conversation_is_unknown_on_every_route(cluster, http, method, route, body, accept):
    await http.post("/conversations", json={"id": "c1", "user_id": "ann"})
    await http.post("/conversations", json={"id": "c2"})
    before = cluster.contents()
    kept = "&" if "?" in route else "?"
    tried = []
    for conversation in ("c1", "c2", "never"):
        url = f"/conversations/{conversation}{route}"
        headers = {"Accept": accept}
        tried.append(await http.request(method, f"{url}{kept}user_id=bob", json=body, headers=headers))
        if body is not None:
            tried.append(await http.request(method, url, json=body | {"user_id": "bob"}, headers=headers))
    for answer in tried:
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-conversation")
        assert "ann" not in answer.text
    assert cluster.contents() == before
    two = await http.request(
        method, f"/conversations/c1{route}{kept}user_id=bob", json={"user_id": "ann"} | (body or {})
    )
    assert two.status_code == 422 if body is not None else 404


async def test_events_are_paged(http, eventually):
    await http.post("/conversations", json={"id": "c1", "message": "hello"})
    assert await eventually(lambda: replies(http, "c1"))
    everything = (await http.get("/conversations/c1/events")).json()
    assert [e["seq"] for e in everything["events"]] == list(range(1, everything["last_seq"] + 1))
    assert everything["next_after"] == everything["last_seq"]
    assert {"seq", "epoch", "kind", "at", "turn", "body"} <= everything["events"][0].keys()
    seen, after = [], 0
    while after < everything["last_seq"]:
        page = (await http.get("/conversations/c1/events", params={"after": after, "limit": 3})).json()
        seen += page["events"]
        after = page["next_after"]
    assert seen[: len(everything["events"])] == everything["events"]
    some = (await http.get("/conversations/c1/events", params={"kind": ["reply", "message"]})).json()
    assert [e["kind"] for e in some["events"]] == ["message", "reply"]
    assert some["next_after"] == some["last_seq"]
    beyond = (await http.get("/conversations/c1/events", params={"after": 10**9})).json()
    assert (beyond["events"], beyond["next_after"]) == ([], 10**9)


async def test_events_of_a_rewound_store_are_refused_by_the_long_cursor(cluster, http):
    owner = await cluster.by_hand("c1")
    await owner.claim()
    head = owner.state.seq
    assert (await http.get("/conversations/c1/events", params={"after": f"{head}:1"})).status_code == 200
    assert (await http.get("/conversations/c1/events", params={"after": "1:0"})).status_code == 200
    for cursor in (f"{head}:2", "1:1", f"{head + 1}:1"):
        refused = await http.get("/conversations/c1/events", params={"after": cursor})
        assert (refused.status_code, refused.json()["code"]) == (409, "rewound")
        assert refused.json()["last_seq"] == head


async def test_a_page_of_large_events_ends_early(cluster):
    from tenure.server import Bounds

    await cluster.node("n1", Bounds(page_bytes=30_000))
    http = await cluster.http("n1")
    await cluster.by_hand("c1")
    for _ in range(8):
        assert (await http.post("/conversations/c1/messages", json={"text": "x" * 20_000})).status_code == 202
    page = (await http.get("/conversations/c1/events", params={"after": 1})).json()
    assert [e["seq"] for e in page["events"]] == [2, 3]
    assert (page["next_after"], page["last_seq"]) == (3, 9)
