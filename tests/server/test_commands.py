"""Accepted and settled, on every command, from any node."""

import asyncio

import pytest

from tenure.abc import RuntimeFailure


async def test_a_message_is_accepted_then_settled(cluster, http):
    await cluster.by_hand("c1")
    accepted = await http.post("/conversations/c1/messages", json={"text": "hello", "key": "k"})
    assert (accepted.status_code, accepted.json()) == (202, {"seq": 2, "duplicate": False, "settled": False})
    event = (await http.get("/conversations/c1/events", params={"after": 1})).json()["events"][0]
    assert (event["kind"], event["body"], event["key"]) == ("message", {"text": "hello"}, "k")


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"text": "a"}, {"text": "a"}),
        ({"text": "a", "content": [1]}, {"text": "a", "content": [1]}),
        ({"content": "b"}, {"text": "b", "content": "b"}),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "image", "url": "u"}, "b", 3]},
            {"text": "a\nb", "content": [{"type": "text", "text": "a"}, {"type": "image", "url": "u"}, "b", 3]},
        ),
        ({"content": {"text": "x"}}, {"text": "x", "content": {"text": "x"}}),
        ({"content": {"parts": 1}}, {"text": "", "content": {"parts": 1}}),
        ({"text": "\u0000 \U0001f600 é"}, {"text": "\u0000 \U0001f600 é"}),
    ],
)
async def test_a_messages_event_has_text_always_and_content_if_given(cluster, http, body, kept):
    await cluster.by_hand("c1")
    assert (await http.post("/conversations/c1/messages", json=body)).status_code == 202
    assert (await http.get("/conversations/c1/events", params={"after": 1})).json()["events"][0]["body"] == kept


async def test_the_same_key_five_times_on_different_nodes_is_one_turn(cluster):
    """R8: concurrently, before and after a failover; all callers are attached to the same turn."""
    nodes = [await cluster.http(f"n{number}") for number in (1, 2, 3)]
    await nodes[0].post("/conversations", json={"id": "c1"})
    sent = await asyncio.gather(
        *(
            nodes[number % 3].post("/conversations/c1/messages?wait_s=30", json={"text": "hello", "key": "k"})
            for number in range(5)
        )
    )
    assert [s.status_code for s in sent] == [200] * 5
    assert sorted(s.json()["duplicate"] for s in sent) == [False, True, True, True, True]
    assert len({s.json()["seq"] for s in sent}) == 1
    turns = [[(e["seq"], e["kind"]) for e in s.json()["events"]] for s in sent]
    assert all(turn == turns[0] for turn in turns)
    assert [kind for _, kind in turns[0]] == ["turn_started", "reply", "turn_completed"]
    again = await nodes[2].post("/conversations/c1/messages", json={"text": "hello"}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["duplicate"], again.json()["settled"]) == (202, True, True)
    other = await nodes[1].post("/conversations/c1/messages", json={"text": "other", "key": "k"})
    assert (other.status_code, other.json()["code"]) == (409, "key-reused")


async def test_waiting_tells_how_the_turn_ended(http):
    await http.post("/conversations", json={"id": "c1"})
    failed = (await http.post("/conversations/c1/messages?wait_s=20", json={"text": "fail"})).json()
    assert (failed["outcome"], failed["settled"], failed["events"][-1]["kind"]) == ("failed", True, "turn_failed")
    well = (await http.post("/conversations/c1/messages?wait_s=20", json={"text": "hello"})).json()
    assert (well["outcome"], well["events"][1]["body"]) == ("completed", {"text": "hello"})


async def test_a_wait_that_ends_first_says_so(cluster, http):
    await cluster.by_hand("c1")
    for wait_s in ("0", "0.05"):
        answer = await http.post(f"/conversations/c1/messages?wait_s={wait_s}", json={"text": "x"})
        assert (answer.status_code, answer.json()["settled"]) == (202, False)


async def test_a_long_turn_is_told_by_its_last_events(cluster):
    from tenure.server import Bounds

    await cluster.node("n1", Bounds(page_bytes=2000))
    http = await cluster.http("n1")
    owner = await cluster.by_hand("c1")
    await http.post("/conversations/c1/messages", json={"text": "x", "key": "k"})
    await owner.claim()
    await owner.say(*(f"{number}: {'word ' * 20}" for number in range(30)))
    told = (await http.post("/conversations/c1/messages?wait_s=5", json={"text": "x", "key": "k"})).json()
    assert told["truncated"] is True
    assert told["events"][-1]["kind"] == "turn_completed"
    assert 1 < len(told["events"]) < 20


async def test_a_stopped_conversation_refuses_messages_until_it_is_started(http):
    await http.post("/conversations", json={"id": "c1", "message": "hello"})
    stopped = await http.post("/conversations/c1/stop?wait_s=20")
    assert (stopped.status_code, stopped.json()["outcome"]) == (200, "done")
    assert (await http.get("/conversations/c1")).json()["status"] == "stopped"
    refused = await http.post("/conversations/c1/messages", json={"text": "x"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conversation-stopped")
    assert "start" in refused.json()["remedy"]
    started = await http.post("/conversations/c1/start")
    assert started.status_code == 200
    assert (await http.post("/conversations/c1/messages?wait_s=20", json={"text": "x"})).status_code == 200


async def test_a_stop_works_while_the_owner_is_dead_and_the_provider_is_down(cluster, http, eventually):
    """R17, C18: a durable command; success is told only when the dead turn has been reconciled."""
    cluster.provider.refusal = RuntimeFailure("no machines left")
    owner = await cluster.by_hand("c1")
    await http.post("/conversations/c1/messages", json={"text": "x"})
    asked = asyncio.create_task(http.post("/conversations/c1/stop?wait_s=30", json={"queue": True}))

    async def accepted():
        return (await http.get("/conversations/c1")).json()["last_seq"] == 3

    assert await eventually(accepted)
    assert not asked.done()
    await owner.claim(started=False)
    await owner.settle()
    answer = await asked
    assert (answer.status_code, answer.json()["outcome"]) == (200, "done")
    assert (await http.get("/conversations/c1")).json()["status"] == "stopped"


async def test_an_interrupt_ends_the_turn(cluster, http, eventually):
    sent = asyncio.create_task(http.post("/conversations?", json={"id": "c1", "message": "wait"}))
    await sent

    async def running():
        return (await http.get("/conversations/c1")).json()["status"] == "running"

    assert await eventually(running)
    answer = await http.post("/conversations/c1/interrupt?wait_s=20")
    assert (answer.status_code, answer.json()["outcome"]) == (200, "done")
    ended = (await http.get("/conversations/c1/events", params={"kind": "turn_interrupted"})).json()["events"]
    assert [e["body"]["commands"] for e in ended] == [[2]]


@pytest.mark.parametrize("body", [{"answer": {"yes": 1}}, {"text": "left"}, {"ask": "which", "answer": None}])
async def test_a_question_is_answered_through_any_node(cluster, eventually, body):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1", "message": {"text": "ask left or right", "key": "k"}})

    async def waiting():
        return (await other.get("/conversations/c1")).json()["status"] == "waiting"

    assert await eventually(waiting)
    answer = await other.post("/conversations/c1/answer", json=body)
    assert answer.status_code == 202
    done = await one.post("/conversations/c1/messages?wait_s=20", json={"text": "ask left or right", "key": "k"})
    reply = next(e for e in done.json()["events"] if e["kind"] == "reply")
    assert reply["body"]["text"] == str(body.get("answer", body.get("text")))
    late = await other.post("/conversations/c1/answer?wait_s=20", json=body)
    assert (late.status_code, late.json()["outcome"]) == (200, "refused")


@pytest.mark.parametrize("body", [{}, {"answer": 1, "text": "x"}, {"ask": "which"}])
async def test_an_answer_is_one_thing(cluster, http, body):
    await cluster.by_hand("c1")
    before = cluster.contents()
    refused = await http.post("/conversations/c1/answer", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, "answer")
    assert cluster.contents() == before


async def test_too_many_unsettled_commands_are_refused_with_the_time_to_wait(cluster, http):
    await cluster.by_hand("c1")
    for _ in range(100):
        assert (await http.post("/conversations/c1/messages", json={"text": "x"})).status_code == 202
    before = cluster.contents()
    refused = await http.post("/conversations/c1/messages", json={"text": "x", "key": "late"})
    assert (refused.status_code, refused.json()["code"]) == (429, "too-many-unsettled")
    assert refused.headers["retry-after"] == "1"
    assert cluster.contents() == before
    assert (await http.post("/conversations/c1/stop")).status_code == 202, "a stop always passes"


async def test_reject_refuses_messages_during_a_turn(http, eventually):
    await http.post("/conversations", json={"id": "c1", "policy": "reject", "message": "wait"})

    async def running():
        return (await http.get("/conversations/c1")).json()["status"] == "running"

    assert await eventually(running)
    refused = await http.post("/conversations/c1/messages", json={"text": "x", "key": "k"})
    assert (refused.status_code, refused.json()["code"]) == (409, "turn-open")
    await http.post("/conversations/c1/interrupt?wait_s=20")
    retried = await http.post("/conversations/c1/messages", json={"text": "x", "key": "k"})
    assert (retried.status_code, retried.json()["duplicate"]) == (202, False), "a refusal does not burn the key"


# --- start and takeover ---------------------------------------------------------------------------------------------


async def test_start_answers_with_the_owner_whoever_it_is(cluster):
    nodes = [await cluster.http(f"n{number}") for number in (1, 2, 3)]
    await nodes[0].post("/conversations", json={"id": "c1"})
    started = await asyncio.gather(*(http.post("/conversations/c1/start") for http in nodes))
    assert [s.status_code for s in started] == [200] * 3
    infos = [s.json() for s in started]
    assert {(i["conversation_id"], i["epoch"], i["status"]) for i in infos} == {("c1", 1, "idle")}
    assert len({i["owner"]["incarnation"] for i in infos}) == 1
    assert [i["here"] for i in infos].count(True) == 1
    again = await nodes[1].post("/conversations/c1/start", json={})
    assert (again.status_code, again.json()["epoch"]) == (200, 1)


async def test_start_here_names_the_owner_that_is_elsewhere(cluster):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1"})
    here = await one.post("/conversations/c1/start?here=true")
    assert (here.status_code, here.json()["here"], here.json()["owner"]["node"]) == (200, True, "n1")
    before = cluster.contents()
    refused = await other.post("/conversations/c1/start?here=true")
    assert (refused.status_code, refused.json()["code"]) == (409, "conversation-owned-elsewhere")
    owner = refused.json()["owner"]
    assert (owner["node"], owner["address"], owner["epoch"]) == ("n1", "http://n1", 1)
    assert owner["expires_in_s"] > 0
    assert cluster.contents() == before
    assert (await one.post("/conversations/c1/start?here=true")).json() == here.json() | {
        "owner": here.json()["owner"] | {"expires_in_s": pytest.approx(10, abs=10)}
    }


@pytest.mark.parametrize("by_default", [True, False])
async def test_a_start_whose_wait_ends_first_is_accepted(cluster, by_default):
    from tenure.server import Bounds

    await cluster.node("n1", Bounds(start_wait_s=0.1 if by_default else 60, poll_s=0.05))
    http = await cluster.http("n1")
    await cluster.by_hand("c1")
    answer = await http.post("/conversations/c1/start", params={} if by_default else {"wait_s": 0})
    assert answer.status_code == 202
    assert answer.json() == {"conversation_id": "c1", "status": "queued", "epoch": 0, "owner": None, "here": False}
    assert (await http.get("/conversations/c1")).json()["last_seq"] == 2, "the wish is durable"


async def test_a_start_that_fails_for_good_gives_the_providers_reason(cluster, http):
    cluster.provider.refusal = RuntimeFailure("no such image", step="pull", permanent=True)
    await http.post("/conversations", json={"id": "c1"})
    for route in ("start", "start?here=true"):
        failed = await http.post(f"/conversations/c1/{route}")
        assert (failed.status_code, failed.json()["code"]) == (503, "provisioning-failed")
        assert (failed.json()["step"], failed.json()["permanent"]) == ("pull", True)
        assert "no such image" in failed.json()["reason"]


async def test_a_start_that_fails_gives_the_providers_reason(cluster):
    from tenure.server import Bounds

    await cluster.node("n1", Bounds(start_wait_s=1, poll_s=0.05))
    http = await cluster.http("n1")
    cluster.provider.refusal = RuntimeFailure("no machines left", step="pull")
    await http.post("/conversations", json={"id": "c1"})
    failed = await http.post("/conversations/c1/start")
    assert "no machines left" in (failed.json()["failure"] if failed.status_code == 202 else failed.json()["reason"])
    here = await http.post("/conversations/c1/start?here=true")
    assert (here.status_code, here.json()["permanent"], here.headers["retry-after"]) == (503, False, "1")


async def test_takeover_moves_it_here(cluster):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1"})
    assert (await one.post("/conversations/c1/start?here=true")).status_code == 200
    taken = await other.post("/conversations/c1/takeover")
    assert (taken.status_code, taken.json()["here"], taken.json()["epoch"]) == (200, True, 2)
    assert taken.json()["owner"]["node"] == "n2"
    assert (await one.get("/conversations/c1")).json()["owner"]["node"] == "n2"


async def test_a_takeover_that_came_too_late_is_refused(cluster):
    """The epoch moved between the reading and the claim."""
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1"})
    await one.post("/conversations/c1/start?here=true")
    await cluster.node("n3")
    takeovers = await asyncio.gather(
        *(http.post("/conversations/c1/takeover") for http in (other, await cluster.http("n3")))
    )
    statuses = sorted(t.status_code for t in takeovers)
    assert statuses in ([200, 200], [200, 409])
    for refused in (t for t in takeovers if t.status_code == 409):
        assert refused.json()["code"] == "conversation-owned-elsewhere"
        assert refused.json()["owner"]["node"] in ("n2", "n3")


async def test_a_takeover_from_an_epoch_that_is_past_changes_nothing_and_names_the_owner(cluster):
    """Who decides by what it saw takes over from the owner it saw, or from nobody."""
    one, other = await cluster.http("n1"), await cluster.http("n2")
    third = await cluster.http("n3")
    await one.post("/conversations", json={"id": "c1"})
    seen = (await one.post("/conversations/c1/start?here=true")).json()["epoch"]
    taken = await other.post("/conversations/c1/takeover", json={"epoch": seen})
    assert (taken.status_code, taken.json()["epoch"]) == (200, seen + 1)
    for stale in (seen, seen + 7):
        refused = await third.post("/conversations/c1/takeover", json={"epoch": stale})
        assert (refused.status_code, refused.json()["code"]) == (409, "conversation-owned-elsewhere")
        assert (refused.json()["owner"]["node"], refused.json()["owner"]["epoch"]) == ("n2", seen + 1)
        assert "owned by node n2" in refused.json()["detail"]
    kinds = [e["kind"] for e in (await one.get("/conversations/c1/events?limit=1000")).json()["events"]]
    assert kinds.count("claimed") == 2
    assert (await third.post("/conversations/c1/takeover", json={})).json()["epoch"] == seen + 2, "as before"


async def test_a_takeover_from_a_past_epoch_of_what_nobody_owns_says_so(cluster):
    one = await cluster.http("n1")
    await one.post("/conversations", json={"id": "c1"})
    seen = (await one.post("/conversations/c1/start?here=true")).json()["epoch"]
    await one.post("/conversations/c1/stop?wait_s=20")
    refused = await one.post("/conversations/c1/takeover", json={"epoch": seen - 1})
    assert (refused.status_code, refused.json()["code"]) == (409, "epoch-moved")
    assert f"epoch {seen}" in refused.json()["detail"]


async def test_a_draining_or_full_node_takes_nothing_and_names_others(cluster):
    await cluster.node("full", capacity=0)
    full, other = await cluster.http("full"), await cluster.http("n2")
    await other.post("/conversations", json={"id": "c1"})
    for route in ("start?here=true", "takeover"):
        refused = await full.post(f"/conversations/c1/{route}")
        assert (refused.status_code, refused.json()["code"]) == (503, "node-unavailable")
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["elsewhere"] == ["http://n2"]
    assert (await full.post("/conversations/c1/start")).status_code == 200, "any node takes the wish"
    await cluster.nodes["n2"].drain()
    refused = await other.post("/conversations/c1/takeover")
    assert (refused.status_code, refused.json()["code"]) == (503, "node-unavailable")
    accepted = await other.post("/conversations/c1/messages", json={"text": "x"})
    assert accepted.status_code == 202, "a node that leaves still accepts"


async def test_every_node_tells_how_a_start_does(cluster, eventually):
    """The step and since when while somebody starts it, the provider's own reason when it failed, for its user alone."""
    one, other = await cluster.http("n1"), await cluster.http("n2")
    await one.post("/conversations", json={"id": "c1", "user_id": "ann"})
    idle = await other.get("/conversations/c1/start", params={"user_id": "ann"})
    assert (idle.status_code, idle.json()) == (200, {
        "conversation_id": "c1", "status": "idle", "epoch": 0, "owner": None, "step": None, "since": None,
        "failures": 0, "retry_in_s": None, "error": None,
    })  # fmt: skip
    owner = await cluster.by_hand("c2")
    await owner.claim(started=False)
    starting = (await other.get("/conversations/c2/start")).json()
    assert (starting["status"], starting["step"], starting["owner"]["node"]) == ("starting", "claimed", "hand")
    await cluster.store.put_paper("start", "c2@1", {"conversation": "c2", "epoch": 1, "incarnation": "x",
        "step": "pull the image", "since": "2026-01-31T09:30:00.250Z"}, 0)  # fmt: skip
    told = [(await http.get("/conversations/c2/start")).json() for http in (one, other)]
    assert {(t["step"], t["since"]) for t in told} == {("pull the image", "2026-01-31T09:30:00.250Z")}
    assert (await one.get("/conversations/c1/start", params={"user_id": "ben"})).status_code == 404


async def test_a_failed_start_tells_its_reason_on_every_node(cluster, eventually):
    one, other = await cluster.http("n1"), await cluster.http("n2")
    cluster.provider.refusal = RuntimeFailure("no machines left", step="place", permanent=True)
    await one.post("/conversations", json={"id": "c1", "message": "x"})

    async def failed():
        told = (await other.get("/conversations/c1/start")).json()
        return told if told["status"] == "failed" else None

    told = await eventually(failed)
    assert (told["error"]["step"], told["error"]["reason"], told["error"]["permanent"]) == (
        "place", "no machines left", True,
    )  # fmt: skip
    assert told["error"]["at"].endswith("Z")
