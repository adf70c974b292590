"""The client: typed, one thing asked once however often it was sent, streams that go on elsewhere."""

import asyncio
import random

import httpx
import pytest

from tenure.abc import RuntimeFailure
from tenure.client import Client, Delta, ProblemError, RewoundError, UnreachableError
from tenure.conversation import Status
from tenure.errors import (
    CommandRefusedError,
    ConversationDeletedError,
    ConversationExistsError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    ProvisioningError,
    StoreUnavailableError,
    UnknownConversationError,
)
from tenure.journal import Event
from tenure.server import Bounds, close_streams


class BadNetwork(httpx.AsyncBaseTransport):
    """Loses requests, replies, and the rest of streams, as its chance says; or what a test tells it to lose."""

    def __init__(self, rng=None, lose=0.0, cut_after=None):
        self.inner = httpx.AsyncHTTPTransport()
        self.rng = rng or random.Random(0)
        self.lose = lose
        self.cut_after = cut_after
        self.asked = []

    async def handle_async_request(self, request):
        self.asked.append(request)
        if self.rng.random() < self.lose:
            raise httpx.ConnectError("nobody there")
        response = await self.inner.handle_async_request(request)
        if self.rng.random() < self.lose:
            await response.aclose()
            raise httpx.ReadError("the reply was lost")
        if self.cut_after is not None and "event-stream" in response.headers["content-type"]:
            response.stream = Cut(response.stream, self.cut_after)
        return response

    async def aclose(self):
        await self.inner.aclose()


class Cut(httpx.AsyncByteStream):
    """Breaks off behind so many events, maybe in the midst of the next."""

    def __init__(self, inner, events):
        self.inner, self.events = inner, events

    async def __aiter__(self):
        left = self.events
        async for chunk in self.inner:
            for part in chunk.split(b"\n\n"):
                if left < 0:
                    raise httpx.ReadError("cut")
                yield part + b"\n\n" if left else part[: len(part) // 2]
                left -= part.startswith(b"id:")

    async def aclose(self):
        await self.inner.aclose()


@pytest.fixture
async def client(cluster):
    async with Client([await cluster.serve("n1"), await cluster.serve("n2")], patience_s=20) as client:
        yield client


async def collect(stream, until):
    got = []
    async with asyncio.timeout(30):
        async for item in stream:
            got.append(item)
            if until(item):
                return got
    return got


async def test_a_conversation_from_beginning_to_end(client):
    made = await client.create("c1", title="A title", metadata={"a": 1})
    assert (made.id, made.status, made.owner, made.title) == ("c1", Status.IDLE, None, "A title")
    sent = await client.send("c1", "hello", wait_s=20)
    assert (sent.settled, sent.outcome, sent.duplicate) == (True, "completed", False)
    assert [event.kind for event in sent.events] == ["turn_started", "reply", "turn_completed"]
    again = await client.send("c1", "hello", key=sent.key, wait_s=20)
    assert (again.seq, again.duplicate, again.events) == (sent.seq, True, sent.events)
    shown = await client.get("c1")
    assert shown.owner is not None
    assert shown.owner.node in ("n1", "n2")
    assert shown.last_seq == sent.events[-1].seq
    info = await client.start("c1")
    assert (info.ready, info.owner.incarnation) == (True, shown.owner.incarnation)
    taken = await client.takeover("c1", epoch=shown.epoch)
    assert taken.here
    assert taken.epoch == shown.epoch + 1
    with pytest.raises(ConversationOwnedElsewhereError) as late:
        await client.takeover("c1", epoch=shown.epoch)
    assert late.value.owner.epoch == taken.epoch
    assert [event.seq async for event in client.events("c1", limit=3)] == [1, 2, 3]
    assert [event.kind async for event in client.events("c1", kinds=["message", "reply"])] == ["message", "reply"]
    assert (await client.patch("c1", title="other", version=1)).title == "other"
    stopped = await client.stop("c1", wait_s=20)
    assert stopped.outcome == "done"
    assert [c.id async for c in client.conversations(status=Status.STOPPED)] == ["c1"]
    await client.delete("c1")
    await client.delete("c1")
    assert [c.id async for c in client.conversations()] == []


async def test_questions_and_interruptions(client):
    await client.create("c1", message="ask left or right")
    await collect(client.stream("c1"), lambda item: isinstance(item, Event) and item.kind == "turn_waiting")
    assert (await client.answer("c1", {"way": "left"}, ask="which", wait_s=20)).outcome == "done"
    await collect(client.stream("c1"), lambda item: isinstance(item, Event) and item.kind == "turn_completed")
    await client.send("c1", "wait")
    await collect(
        client.stream("c1"), lambda item: isinstance(item, Event) and item.kind == "turn_started" and item.seq > 10
    )
    assert (await client.interrupt("c1", wait_s=20)).outcome == "done"


async def test_lists_and_pages_are_gone_through(cluster, client):
    for number in range(5):
        await client.create(f"c{number}", agent="parrot")
    assert [c.id async for c in client.conversations()] == [f"c{number}" for number in range(5)]
    assert [c.id async for c in client.conversations(limit=2)] == ["c0", "c1"]
    assert [node.node for node in await client.nodes()] == ["n1", "n2"]


async def test_a_user_sees_what_is_hers(cluster):
    url = await cluster.serve("n1")
    async with Client(url, user_id="ann") as ann, Client(url, user_id="bob") as bob, Client(url) as operator:
        await ann.create("c1", message="hello")
        with pytest.raises(UnknownConversationError):
            await bob.get("c1")
        with pytest.raises(UnknownConversationError):
            await bob.send("c1", "hello")
        with pytest.raises(UnknownConversationError):
            await anext(bob.stream("c1"))
        with pytest.raises(ConversationExistsError):
            await bob.create("c1")
        assert [c.id async for c in bob.conversations()] == []
        assert [c.id async for c in operator.conversations()] == ["c1"]
        assert [node.node for node in await bob.nodes()] == ["n1"]


async def test_refusals_are_the_errors_that_the_server_had(cluster, client):
    with pytest.raises(UnknownConversationError, match="never"):
        await client.get("never")
    with pytest.raises(InvalidInputError) as bad:
        await client.create(settings={"volume": 99})
    assert (bad.value.field, bad.value.remedy) == ("settings.volume", "turn it down")
    assert isinstance(bad.value.__cause__, ProblemError)
    assert bad.value.__cause__.status == 422
    await client.create("c1")
    await client.start("c1")
    await client.stop("c1", wait_s=20)
    with pytest.raises(CommandRefusedError) as refused:
        await client.send("c1", "hello")
    assert refused.value.reason == "conversation-stopped"
    with pytest.raises(ProblemError) as stale:
        await client.patch("c1", title="x", version=7)
    assert (stale.value.code, stale.value.status) == ("stale", 412)
    await client.delete("c1")
    with pytest.raises(ConversationDeletedError):
        await client.get("c1")


async def test_a_start_here_names_the_owner_elsewhere(cluster):
    one, other = Client(await cluster.serve("n1")), Client(await cluster.serve("n2"))
    async with one, other:
        await one.create("c1")
        assert (await one.start("c1", here=True)).here
        with pytest.raises(ConversationOwnedElsewhereError) as elsewhere:
            await other.start("c1", here=True)
        assert elsewhere.value.owner.node == "n1"
        await cluster.nodes["n2"].drain()
        with pytest.raises(NodeUnavailableError):
            await other.takeover("c1")


async def test_a_start_that_failed_says_why(cluster, client):
    from tenure.abc import RuntimeFailure

    cluster.provider.refusal = RuntimeFailure("no such image", step="pull", permanent=True)
    await client.create("c1")
    with pytest.raises(ProvisioningError) as failed:
        await client.start("c1")
    assert (failed.value.step, failed.value.permanent) == ("pull", True)


async def test_how_a_start_does(cluster, client):
    cluster.provider.refusal = RuntimeFailure("no machines left", step="place", permanent=True)
    await client.create("c1")
    with pytest.raises(ProvisioningError):
        await client.start("c1")
    progress = await client.start_progress("c1")
    assert (progress.status, progress.step, progress.since) == (Status.FAILED, None, None)
    assert progress.error is not None and progress.error["reason"] == "no machines left"
    owner = await cluster.by_hand("c2")
    await owner.claim(started=False)
    progress = await client.start_progress("c2")
    assert progress.step == "claimed" and progress.owner is not None and progress.since == progress.owner.since


@pytest.mark.parametrize("urls", [[], "", "ftp://x", ["http://a", "b"]])
def test_an_address_is_a_url(urls):
    with pytest.raises(InvalidInputError, match="http"):
        Client(urls)


# --- repeating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_a_message_is_sent_once_however_bad_the_network(cluster, seed):
    network = BadNetwork(random.Random(seed), lose=0.4)
    urls = [await cluster.serve("n1"), await cluster.serve("n2")]
    async with Client(urls, transport=network, patience_s=60, rng=random.Random(seed)) as client:
        made = await client.create(agent="parrot", message="first")
        seqs = [(await client.send(made.id, f"m{number}")).seq for number in range(8)]
        assert len(network.asked) > 9, "some had to be sent again"
        texts = [event.text async for event in client.events(made.id, kinds=["message"])]
        assert texts == ["first", *(f"m{number}" for number in range(8))]
        assert sorted(seqs) == seqs
        assert [c.id async for c in client.conversations()] == [made.id]


async def test_what_cannot_be_repeated_is_not(cluster):
    network = BadNetwork()
    url = await cluster.serve("n1")
    async with Client(url, transport=network) as client:
        await client.create("c1")
        network.rng = random.Random(1)
        network.lose = 0.999999

        async def reply_lost(request):
            network.asked.append(request)
            await (await network.inner.handle_async_request(request)).aclose()
            raise httpx.ReadError("lost")

        network.handle_async_request = reply_lost
        asked = len(network.asked)
        with pytest.raises(UnreachableError):
            await client.takeover("c1")
        assert len(network.asked) == asked + 1, "a takeover repeated is a second takeover"


async def test_a_dead_node_is_passed_over(cluster):
    url = await cluster.serve("n1")
    async with Client(["http://127.0.0.1:9", url], patience_s=20) as client:
        assert (await client.create("c1")).id == "c1"


async def test_patience_ends(cluster):
    async with Client("http://127.0.0.1:9", patience_s=0.2) as client:
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
            await client.nodes()
        with pytest.raises(UnreachableError):
            await anext(client.stream("c1"))


async def test_an_outage_of_the_store_is_waited_for(cluster):
    url = await cluster.serve("n1")
    async with Client(url, patience_s=0.3) as hasty, Client(url, patience_s=30) as patient:
        await patient.create("c1")
        cluster.stores["n1"].down = True
        with pytest.raises(StoreUnavailableError):
            await hasty.get("c1")
        waiting = asyncio.create_task(patient.send("c1", "hello"))
        with pytest.raises(StoreUnavailableError):
            await hasty.get("c1")
        assert not waiting.done()
        cluster.stores["n1"].down = False
        assert (await waiting).seq == 2


async def test_a_wait_goes_on_at_another_node_when_one_leaves(cluster, client, eventually):
    owner = await cluster.by_hand("c1")
    waiting = asyncio.create_task(client.send("c1", "hello", wait_s=30))

    async def waits_at(node):
        return len(cluster.apps[node].state.watches) == 1

    assert await eventually(lambda: waits_at("n1"))
    close_streams(cluster.apps["n1"])
    assert await eventually(lambda: waits_at("n2"))
    await owner.claim()
    await owner.say("hello to you")
    assert (await waiting).events[1].body == {"text": "hello to you"}


async def test_the_key_is_sent(cluster):
    await cluster.node("n1", api_key="s3cret")
    url = await cluster.serve("n1")
    async with Client(url, api_key="s3cret") as client:
        assert (await client.create("c1")).id == "c1"
    async with Client(url) as client:
        with pytest.raises(ProblemError) as refused:
            await client.nodes()
        assert refused.value.code == "unauthorized"


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_after", [1, 2, 5])
async def test_a_stream_goes_on_through_cuts_without_gap_or_duplicate(cluster, cut_after):
    urls = [await cluster.serve("n1"), await cluster.serve("n2")]
    owner = await cluster.by_hand("c1")
    async with Client(urls, transport=BadNetwork(cut_after=cut_after), patience_s=30) as client:
        stream = client.stream("c1")
        reading = asyncio.create_task(
            collect(stream, lambda item: isinstance(item, Event) and item.body.get("text") == "the end")
        )
        for number in range(4):
            await client.send("c1", f"m{number}")
            await owner.claim()
            await owner.say("one", "the end" if number == 3 else "two")
            await owner.release()
        got = [item for item in await reading if isinstance(item, Event)]
        journal = [event async for event in client.events("c1", limit=len(got))]
        assert got == journal
        assert stream.cursor == f"{got[-1].seq}:4"
        await stream.aclose()


async def test_a_cursor_is_kept_and_handed_on(cluster, client):
    await client.create("c1", message="hello")
    first = await collect(client.stream("c1"), lambda item: isinstance(item, Event) and item.kind == "reply")
    assert first
    async with client.stream("c1") as stream:
        seen = [await anext(stream) for _ in range(3)]
    async with client.stream("c1", after=stream.cursor) as rest:
        assert (await anext(rest)).seq == seen[-1].seq + 1


async def test_a_caller_that_loses_patience_may_come_back(cluster, client):
    await cluster.by_hand("c1")
    stream = client.stream("c1")
    assert (await anext(stream)).kind == "created"
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(stream)
    await client.send("c1", "hello")
    async with asyncio.timeout(20):
        assert (await anext(stream)).text == "hello"
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_node_that_leaves_hands_its_streams_on(cluster, client):
    await cluster.by_hand("c1")
    async with client.stream("c1") as stream:
        assert (await anext(stream)).kind == "created"
        close_streams(cluster.apps["n1"])
        await client.send("c1", "hello")
        assert (await anext(stream)).text == "hello"


async def test_a_rewound_store_and_a_deleted_conversation_are_errors(cluster, client):
    await cluster.by_hand("c1")
    with pytest.raises(RewoundError) as rewound:
        await anext(client.stream("c1", after="9:1"))
    assert rewound.value.last_seq == 1
    async with client.stream("c1") as stream:
        await anext(stream)
        await client.delete("c1")
        with pytest.raises(ConversationDeletedError):
            await anext(stream)


@pytest.mark.parametrize("cut_after", [None, 1, 2, 3, 4])
async def test_a_turn_is_streamed_to_its_end_through_cuts(cluster, cut_after):
    urls = [await cluster.serve("n1"), await cluster.serve("n2")]
    cluster.parrot.gate.set()
    async with Client(urls, transport=BadNetwork(cut_after=cut_after), patience_s=30) as client:
        await client.create("c1")
        async with asyncio.timeout(30):
            got = [item async for item in client.stream_turn("c1", "delta a b")]
        kinds = [item.kind for item in got if not isinstance(item, Delta)]
        assert kinds[0] == "message"
        assert kinds[-3:] == ["turn_started", "reply", "turn_completed"]
        messages = [event async for event in client.events("c1", kinds=["message"])]
        assert len(messages) == 1, "posted again with its key"


async def test_text_with_the_line_ends_of_unicode_stays_whole(cluster):
    url = await cluster.serve("n1", bounds=Bounds())
    await cluster.by_hand("c1")
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"
    async with Client(url) as client:
        await client.send("c1", text)
        async with client.stream("c1") as stream:
            await anext(stream)
            assert (await anext(stream)).text == text
    async with httpx.AsyncClient(verify=False) as http, http.stream("GET", f"{url}/conversations/c1/stream") as raw:
        lines = raw.aiter_lines()
        async for line in lines:
            if line == "event: message":
                assert (await anext(lines)).startswith("data: {")
                assert await anext(lines) == ""
                break


async def test_draining_through_the_client(client, eventually):
    assert await client.drain("n1") == 1

    async def left():
        return [node.node for node in await client.nodes()] == ["n2"]

    assert await eventually(left)
    with pytest.raises(ProblemError) as unknown:
        await client.drain("n9")
    assert unknown.value.code == "unknown-node"
