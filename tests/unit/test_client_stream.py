"""A stream of the client: whatever the way does to it, each event comes out once, in order."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.client import Delta, RewoundError, Stream, UnreachableError
from tenure.client.replies import ProblemError
from tenure.clock import Instant
from tenure.errors import ConversationDeletedError, StoreUnavailableError
from tenure.journal import Event, Seq

JOURNAL = [Event(Seq(seq), None, "note", Instant(1.0), {"text": f"\u2028 {seq} \x85"}) for seq in range(1, 13)]


def entry(event):
    data = json.dumps(event.as_json(), ensure_ascii=False)
    return f"id: {event.seq}:1\nevent: {event.kind}\ndata: {data}\n\n"


def aside(event, **data):
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


class Bytes(httpx.AsyncByteStream):
    def __init__(self, chunks, cut):
        self.chunks, self.cut = chunks, cut

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk
        if self.cut:
            raise httpx.ReadError("cut")


class Scripted:
    """A way whose connections say what a test wrote down; behind them, the rest of the journal."""

    def __init__(self, *connections, patience_s=100.0, size=None):
        self.urls = ["http://a", "http://b"]
        self.connections = list(connections)
        self.patience_s = patience_s
        self.size = size
        self.asked = []
        self.at = 0.0

    @asynccontextmanager
    async def connect(self, conversation_id, ask):
        self.asked.append(ask)
        if self.connections:
            said = self.connections.pop(0)
            if isinstance(said, Exception):
                raise said
        else:
            seq = int(ask.cursor.partition(":")[0])
            said = "".join(entry(event) for event in JOURNAL[seq:]) + aside("deleted")
        data = said.encode()
        size = self.size or len(data) or 1
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        yield httpx.Response(200, stream=Bytes(chunks, cut=not said.endswith("\n\n")))

    async def next_node(self, pause_s):
        self.at += pause_s
        return 2 * pause_s

    def now(self):
        return self.at


async def everything(stream):
    got = []
    with pytest.raises(ConversationDeletedError):
        async for item in stream:
            got.append(item)  # noqa: PERF401 - what came before the error is kept
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    return got


pieces = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 12)).map(
            lambda ends: "".join(entry(event) for event in JOURNAL[min(ends) - 1 : max(ends)])
        ),
        st.just(": still here\n\n"),
        st.just("retry: 1000\n\n"),
        st.just(aside("delta", text="x")),
        st.just(aside("closing", reason="")),
        st.just("id: 3:1\nevent: no"),
        st.just(""),
    ),
    max_size=5,
)
connections = st.lists(
    st.one_of(
        pieces.map("".join),
        st.sampled_from([httpx.ConnectError("no"), httpx.ReadTimeout("no"), StoreUnavailableError("no")]),
        st.just(ProblemError({"status": 503})),
    ),
    max_size=6,
)


@given(connections, st.integers(1, 200))
async def test_each_event_once_in_order(said, size):
    """Overlaps, gaps, cuts in the midst of an event, refusals that pass, any chunks."""
    way = Scripted(*said, size=size)
    stream = Stream(way, "c1", "0")
    got = await everything(stream)
    assert [item for item in got if isinstance(item, Event)] == JOURNAL
    assert stream.cursor == "12:1"


@pytest.mark.parametrize("cursor", ["0", "5", "5:1", "12:1"])
async def test_it_begins_behind_its_cursor(cursor):
    way = Scripted()
    assert await everything(Stream(way, "c1", cursor)) == JOURNAL[int(cursor.partition(":")[0]) :]
    assert way.asked[0].cursor == cursor


async def test_deltas_come_out_between():
    way = Scripted(entry(JOURNAL[0]) + aside("delta", text="a") + entry(JOURNAL[1]))
    got = await everything(Stream(way, "c1", "0"))
    assert got[:3] == [JOURNAL[0], Delta({"text": "a"}), JOURNAL[1]]


async def test_a_turn_is_asked_for_by_its_message_once_then_read_from_the_journal():
    way = Scripted(httpx.ConnectError("no"), entry(JOURNAL[4]) + "id: 6:1\n", entry(JOURNAL[5]) + entry(JOURNAL[6]))
    stream = Stream(way, "c1", "0", {"text": "x", "key": "k"})
    assert [item async for item in stream] == JOURNAL[4:7]
    assert [(ask.cursor, ask.until, ask.message is not None) for ask in way.asked] == [
        ("0", None, True),
        ("0", None, True),
        ("5:1", 5, False),
    ]


async def test_a_turn_goes_on_when_its_node_leaves():
    way = Scripted(entry(JOURNAL[4]) + aside("closing"), entry(JOURNAL[5]))
    assert [item async for item in Stream(way, "c1", "0", {"text": "x"})] == JOURNAL[4:6]


async def test_rewound_is_an_error():
    with pytest.raises(RewoundError) as rewound:
        await anext(Stream(Scripted(aside("rewound", last_seq=3, epoch=2)), "c1", "9:4"))
    assert (rewound.value.last_seq, rewound.value.epoch) == (3, 2)


async def test_a_refusal_that_does_not_pass_is_raised():
    with pytest.raises(ProblemError):
        await anext(Stream(Scripted(ProblemError({"status": 401, "code": "unauthorized"})), "c1", "0"))


async def test_patience_ends_and_begins_anew_with_each_word():
    refused = [httpx.ConnectError("no")] * 10  # 0.1 + 0.2 + … pauses: beyond 20 s after the eighth
    with pytest.raises(UnreachableError, match="http://a, http://b"):
        await anext(Stream(Scripted(*refused, patience_s=20), "c1", "0"))
    some = [httpx.ConnectError("no")] * 6
    way = Scripted(*some, entry(JOURNAL[0]), *some, patience_s=20)
    assert [item for item in await everything(Stream(way, "c1", "0")) if isinstance(item, Event)] == JOURNAL


async def test_closing_it_lets_go_at_once():
    stream = Stream(Scripted(), "c1", "0")
    assert await anext(stream) == JOURNAL[0]
    await stream.aclose()
    await stream.aclose()
    assert [item async for item in stream] == []


async def test_a_cancelled_wait_loses_nothing():
    class Silent(Scripted):
        @asynccontextmanager
        async def connect(self, conversation_id, ask):
            if len(self.asked) == 1:
                self.asked.append(ask)
                await asyncio.get_running_loop().create_future()
            async with super().connect(conversation_id, ask) as response:
                yield response

    stream = Stream(Silent(entry(JOURNAL[0])), "c1", "0")
    assert await anext(stream) == JOURNAL[0]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(stream)
    assert await anext(stream) == JOURNAL[1]
