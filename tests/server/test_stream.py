"""Streams: gap-free, without duplicates, resumable on any node, bounded, and closed in time (R13)."""

import asyncio
import contextlib
import json
from dataclasses import replace

import httpx
import pytest

from tenure.journal import Draft, TurnCompleted, TurnStarted, draft
from tenure.server import Bounds, close_streams, see_off


@contextlib.asynccontextmanager
async def opened(url, said, cursor=None, conversation="c1", **params):
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    async with httpx.AsyncClient(timeout=30, verify=False) as http:
        address = f"{url}/conversations/{conversation}/stream"
        async with http.stream("GET", address, headers=headers, params=params) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield said(response)


async def take(events, count):
    """So many journal entries; nothing else may come between them."""
    got = []
    async with asyncio.timeout(20):
        async for one in events:
            if one.id is None:
                continue
            got.append(one)
            if len(got) == count:
                break
    return got


async def a_journal(cluster, turns=3):
    """Several owners, several turns."""
    owner = await cluster.by_hand("c1")
    http = await cluster.http("n1")
    for number in range(turns):
        await http.post("/conversations/c1/messages", json={"text": f"m{number}"})
        await owner.claim()
        await owner.say("one", "two")
        await owner.release()
    await http.post("/conversations/c1/messages", json={"text": "last"})
    return (await http.get("/conversations/c1/events?limit=1000")).json()["events"]


def in_force(journal):
    """The cursor of each entry: its seq, and the last claimed epoch at or before it."""
    epoch, cursors = 0, ["0:0"]
    for event in journal:
        epoch = event["epoch"] or epoch
        cursors.append(f"{event['seq']}:{epoch}")
    return cursors


async def test_a_stream_is_the_journal(cluster, said):
    journal = await a_journal(cluster)
    url = await cluster.serve("n2")
    async with opened(url, said) as events:
        got = await take(events, len(journal))
    assert [one.data for one in got] == journal
    assert [one.event for one in got] == [event["kind"] for event in journal]
    assert [one.id for one in got] == in_force(journal)[1:]


@pytest.mark.parametrize("form", ["seq", "seq:epoch"])
@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_stream_resumes_at_every_cut_point_on_any_node(cluster, said, form, where):
    journal = await a_journal(cluster)
    urls = [await cluster.serve(name) for name in ("n1", "n2")]
    for number, cursor in enumerate(in_force(journal)[:-1]):
        cursor = cursor if form == "seq:epoch" else cursor.partition(":")[0]
        at = {"cursor": cursor} if where == "header" else {"after": cursor}
        async with opened(urls[number % 2], said, **at) as events:
            [one] = await take(events, 1)
        assert one.data == journal[number], "the very next one"
        assert one.id == in_force(journal)[number + 1]


async def test_a_live_journal_is_followed_through_cuts_after_each_event(cluster, said):
    urls = [await cluster.serve(name) for name in ("n1", "n2")]
    owner = await cluster.by_hand("c1")
    http = await cluster.http("n1")
    got, cursor = [], "0"

    async def live():
        for number in range(4):
            await http.post("/conversations/c1/messages", json={"text": f"m{number}"})
            await owner.claim()
            await owner.say("one", "two")
            await asyncio.sleep(0)
            await owner.release()

    writing = asyncio.create_task(live())
    while not (writing.done() and len(got) == cluster.disk.conversations["c1"].row.record.head):
        async with opened(urls[len(got) % 2], said, cursor) as events:
            [one] = await take(events, 1)
        got.append(one.data)
        cursor = one.id
    await writing
    journal = (await http.get("/conversations/c1/events?limit=1000")).json()["events"]
    assert got == journal


async def test_a_live_journal_is_followed_in_one_connection(cluster, said):
    """Every append by itself, and more of them than one reading takes."""
    url = await cluster.serve("n2")
    owner = await cluster.by_hand("c1")
    await owner.claim()
    async with opened(url, said) as events:
        got = await take(events, owner.state.seq)
        for number in range(40):
            await owner.append(Draft("note", {"n": number}))
            if number % 3 == 0:
                got += await take(events, owner.state.seq - len(got))
        await owner.append(*(Draft("note", {"n": number}) for number in range(100)))
        got += await take(events, owner.state.seq - len(got))
    journal = (await owner.store.read("c1")).events
    assert [one.data for one in got] == [event.as_json() for event in journal]


async def test_the_header_wins_over_the_query(cluster, said):
    journal = await a_journal(cluster, turns=1)
    url = await cluster.serve("n1")
    async with opened(url, said, cursor="3", after="0") as events:
        assert (await take(events, 1))[0].data == journal[3]


async def test_deltas_come_between_without_an_id(cluster, said):
    url = await cluster.serve("n2")
    owner = await cluster.by_hand("c1")
    http = await cluster.http("n1")
    await http.post("/conversations/c1/messages", json={"text": "x"})
    await owner.claim()
    head = owner.state.seq
    async with opened(url, said, cursor=str(head)) as events:
        await owner.append(draft(TurnStarted((2,)), "t2"))
        [first] = await take(events, 1)
        assert first.event == "turn_started"
        for word in ("a", "b"):
            await owner.delta({"text": word})
        await owner.append(Draft("reply", {"text": "ab"}, "t2"), draft(TurnCompleted((2,)), "t2"))
        rest = []
        async with asyncio.timeout(20):
            async for one in events:
                rest.append(one)
                if one.event == "turn_completed":
                    break
    assert [(one.event, one.id is None) for one in rest] == [
        ("delta", True),
        ("delta", True),
        ("reply", False),
        ("turn_completed", False),
    ]
    assert [one.data for one in rest[:2]] == [{"text": "a"}, {"text": "b"}]


async def the_end(events):
    async with asyncio.timeout(20):
        return [one async for one in events][-1]


@pytest.mark.parametrize("cursor", ["999", "999:1", "3:7", "1:1"])
async def test_a_cursor_that_the_journal_does_not_know_is_rewound(cluster, said, cursor):
    """Rule 19: explicit, not silence."""
    journal = await a_journal(cluster, turns=1)
    url = await cluster.serve("n1")
    async with opened(url, said, cursor=cursor) as events:
        end = await the_end(events)
    assert (end.event, end.id, end.data) == ("rewound", None, {"last_seq": len(journal), "epoch": 1})


@pytest.mark.parametrize("rewrites", [False, True])
async def test_a_store_that_is_rewound_under_an_open_stream_says_so(cluster, said, rewrites):
    journal = await a_journal(cluster)
    url = await cluster.serve("n1")
    async with opened(url, said) as events:
        await take(events, len(journal))
        kept = cluster.disk.conversations["c1"]
        events_then = kept.events[:]
        del kept.events[8:]
        record = replace(kept.row.record, head=8, epoch=events_then[7].epoch)
        if rewrites:  # the restored store has grown beyond the cursor meanwhile, in an earlier epoch
            last = events_then[7]
            kept.events += [replace(last, seq=seq, kind="other") for seq in range(9, len(journal) + 3)]
            record = replace(record, head=len(journal) + 2)
        kept.row = replace(kept.row, record=record)
        end = await the_end(events)
    assert end.event == "rewound"
    assert end.data["last_seq"] == record.head


async def test_a_deleted_conversation_ends_its_streams(cluster, said):
    journal = await a_journal(cluster, turns=1)
    url = await cluster.serve("n1")
    http = await cluster.http("n2")
    async with opened(url, said) as events:
        await take(events, len(journal))
        assert (await http.delete("/conversations/c1")).status_code == 204
        end = await the_end(events)
    assert (end.event, end.data) == ("deleted", {"id": "c1"})


async def test_a_shutdown_ends_streams_and_waits(cluster, said):
    await cluster.by_hand("c1")
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    waiting = asyncio.create_task(http.post("/conversations/c1/messages?wait_s=60", json={"text": "x"}))
    starting = asyncio.create_task(http.post("/conversations/c1/start"))
    async with opened(url, said) as events:
        await take(events, 3)
        close_streams(cluster.apps["n1"])
        end = await the_end(events)
        assert end.event == "closing"
    assert ((await waiting).status_code, (await waiting).json()["settled"]) == (202, False)
    assert (await starting).status_code == 202
    async with opened(url, said) as events:
        assert (await the_end(events)).event == "closing", "nor does a new one stay"


async def test_readers_are_seen_off_while_everything_still_answers(cluster, said):
    """They have a place elsewhere by the time that the turns have one; who comes after that may stay to the end."""
    await cluster.by_hand("c1")
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    waiting = asyncio.create_task(http.post("/conversations/c1/messages?wait_s=60", json={"text": "x"}))
    async with opened(url, said) as first, opened(url, said) as second:
        await take(first, 2)
        await take(second, 2)
        await see_off(cluster.apps["n1"], 0.1)
        assert [(await the_end(one)).event for one in (first, second)] == ["closing", "closing"]
    assert not waiting.done(), "a wait goes on: its answer cannot move"
    async with opened(url, said) as late:
        await take(late, 2)
    close_streams(cluster.apps["n1"])
    assert (await waiting).status_code == 202


async def test_a_silent_stream_says_that_it_lives(cluster, said):
    await cluster.by_hand("c1")
    url = await cluster.serve("n1", bounds=Bounds(comment_s=0.1, poll_s=0.02))
    async with opened(url, said, cursor="1") as events, asyncio.timeout(20):
        comments = 0
        async for one in events:
            assert one.comment is not None
            comments += 1
            if comments == 3:
                break


async def test_a_stream_outlives_an_outage_of_the_store(cluster, said):
    url = await cluster.serve("n1", bounds=Bounds(comment_s=0.05, poll_s=0.02))
    await cluster.by_hand("c1")
    http = await cluster.http("n2")
    async with opened(url, said) as events, asyncio.timeout(30):
        await take(events, 1)
        cluster.stores["n1"].down = True
        refused = await (await cluster.http("n1")).get("/conversations/c1")
        assert refused.status_code == 503
        comments = 0
        async for one in events:
            comments += one.comment is not None
            if comments == 3:
                break
        await http.post("/conversations/c1/messages", json={"text": "x"})
        cluster.stores["n1"].down = False
        [after] = await take(events, 1)
        assert (after.event, after.data["seq"]) == ("message", 2)


async def test_a_stream_may_begin_in_an_outage_of_hints(cluster, said):
    url = await cluster.serve("n1", bounds=Bounds(poll_s=0.05))
    await cluster.by_hand("c1")
    follow = cluster.stores["n1"].store.follow
    cluster.stores["n1"].store.follow = lambda topics: follow([])
    http = await cluster.http("n1")
    async with opened(url, said) as events:
        await take(events, 1)
        await http.post("/conversations/c1/messages", json={"text": "x"})
        assert (await take(events, 1))[0].event == "message", "no hint ever came: it looks all the same"


async def test_a_reader_that_leaves_changes_nothing(cluster, said, eventually):
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    await http.post("/conversations", json={"id": "c1", "message": {"text": "wait", "key": "k"}})

    async def running():
        return (await http.get("/conversations/c1")).json()["status"] == "running"

    assert await eventually(running)
    followers = len(cluster.disk.followers)
    before = cluster.contents()
    async with opened(url, said) as events:
        await take(events, 3)
        assert len(cluster.disk.followers) == followers + 1

    async def left():
        return len(cluster.disk.followers) == followers and len(cluster.apps["n1"].state.watches) == 0

    assert await eventually(left)
    assert cluster.contents() == before
    cluster.parrot.gate.set()
    done = await http.post("/conversations/c1/messages?wait_s=20", json={"text": "wait", "key": "k"})
    assert done.json()["outcome"] == "completed", "the turn went on"


class Asgi:
    """The app without a server: what is sent is taken only as far as the test lets it."""

    def __init__(self, app, path):
        self.app = app
        self.path = path
        self.taken = []
        self.takes = asyncio.Semaphore(0)

    async def send(self, message):
        await self.takes.acquire()
        self.taken.append(message)

    async def receive(self):
        await asyncio.get_running_loop().create_future()

    async def run(self):
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": self.path, "raw_path": self.path.encode(), "query_string": b"", "root_path": "", "headers": [],
            "client": None, "server": None,
        }  # fmt: skip
        await self.app(scope, self.receive, self.send)


@pytest.mark.parametrize("cut_by", ["patience", "shutdown"])
async def test_a_slow_reader_is_bounded(cluster, caplog, eventually, cut_by):
    """It takes a little and then nothing: the stream reads no further than a page, and is cut."""
    bounds = Bounds(slow_s=0.2) if cut_by == "patience" else Bounds(slow_s=300)
    app = await cluster.node("n1", bounds)
    owner = await cluster.by_hand("c1")
    await owner.claim()
    for number in range(50):
        await owner.append(*(Draft("note", {"n": number * 10 + i, "text": "x" * 100}) for i in range(10)))
    reads = []
    read = cluster.stores["n1"].store.read

    async def counted(*args, **named):
        reads.append(args)
        return await read(*args, **named)

    cluster.stores["n1"].store.read = counted
    reader = Asgi(app, "/conversations/c1/stream")

    async def takes_no_more():
        return len(reader.taken) == 5

    streaming = asyncio.create_task(reader.run())
    for _ in range(5):
        reader.takes.release()
    async with asyncio.timeout(20):
        if cut_by == "shutdown":
            assert await eventually(takes_no_more)
            close_streams(app)
        await streaming
    assert len(reader.taken) == 5
    assert len(reads) <= 2, "what it has not taken is not read on"
    assert len(app.state.watches) == 0
    if cut_by == "patience":
        assert "took nothing" in caplog.text


async def test_more_streams_than_the_node_takes_are_refused(cluster, said):
    url = await cluster.serve("n1", bounds=Bounds(streams=1))
    await cluster.by_hand("c1")
    http = await cluster.http("n1")
    async with opened(url, said) as events:
        await take(events, 1)
        for refused in (
            await http.get("/conversations/c1/stream"),
            await http.post("/conversations/c1/messages?wait_s=1", json={"text": "x"}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (503, "too-many-streams")
            assert refused.headers["retry-after"] == "1"


# --- a turn as a stream ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def posting(url, route, body=None):
    address = f"{url}/conversations/c1/{route}"
    async with (
        httpx.AsyncClient(timeout=30, verify=False) as http,
        http.stream("POST", address, json=body, headers={"Accept": "text/event-stream"}) as response,
    ):
        yield response


async def turn_of(url, said, body):
    async with posting(url, "messages", body) as response:
        if response.status_code != 200:
            return json.loads(await response.aread())
        return [one async for one in said(response)]


async def test_a_message_streams_its_turn_with_deltas_and_ends(cluster, said):
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    await http.post("/conversations", json={"id": "c1"})
    await http.post("/conversations/c1/start")
    cluster.parrot.gate.set()
    body = {"text": "delta a b c", "key": "k"}
    told = await turn_of(url, said, body)
    kinds = [one.event for one in told]
    assert [kind for kind in kinds if kind != "delta"] == ["message", "turn_started", "reply", "turn_completed"]
    again = await turn_of(await cluster.serve("n2"), said, body)
    assert [one.id for one in again] == [one.id for one in told if one.id is not None], "a duplicate is attached to it"


async def test_the_deltas_of_a_turn_are_in_its_stream(cluster, said):
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    await http.post("/conversations", json={"id": "c1"})
    await http.post("/conversations/c1/start")
    deltas = []
    async with posting(url, "messages", {"text": "delta a b c"}) as response:
        async for one in said(response):
            deltas += [one.data] if one.event == "delta" else []
            if len(deltas) == 3:
                cluster.parrot.gate.set()
    assert deltas == [{"say": "a"}, {"say": "b"}, {"say": "c"}]


async def test_a_delta_at_the_very_moment_of_acceptance_is_in_the_stream(cluster, said, monkeypatch):
    url = await cluster.serve("n1")
    owner = await cluster.by_hand("c1")
    await owner.claim()
    submit = cluster.nodes["n1"].submit

    async def answered_at_once(request):
        accepted = await submit(request)
        await owner.delta({"say": "early"})
        await owner.say("hello")
        return accepted

    monkeypatch.setattr(cluster.nodes["n1"], "submit", answered_at_once)
    assert {"say": "early"} in [one.data for one in await turn_of(url, said, {"text": "x"})]


async def test_until_ends_a_stream_behind_the_settlement(cluster, said):
    journal = await a_journal(cluster, turns=2)
    url = await cluster.serve("n1")
    ends = next(event["seq"] for event in journal if event["kind"] == "turn_completed")
    for cursor in range(ends + 3):
        async with opened(url, said, cursor=str(cursor), until=2) as events, asyncio.timeout(20):
            got = [one.data["seq"] async for one in events]
        assert got == list(range(cursor + 1, ends + 1)), "also for a reader that was cut behind the last one"


@pytest.mark.parametrize("route", ["stop", "interrupt"])
async def test_other_commands_stream_up_to_their_settlement(cluster, said, route):
    url = await cluster.serve("n1")
    http = await cluster.http("n1")
    await http.post("/conversations", json={"id": "c1", "message": "wait"})
    async with posting(url, route) as response:
        told = [one async for one in said(response)]
    assert told[0].event == route
    assert told[-1].event == "command_settled"
    assert told[-1].data["body"]["command"] == told[0].data["seq"]


async def test_a_refused_message_is_a_problem_not_a_stream(cluster, said):
    url = await cluster.serve("n1")
    assert (await turn_of(url, said, {"text": "x"}))["code"] == "unknown-conversation"
    assert (await turn_of(url, said, {}))["field"] == "text"
