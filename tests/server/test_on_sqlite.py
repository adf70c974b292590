"""The same faces on the store that people begin with: what streams and waits need of it is there."""

import asyncio
import contextlib

import pytest

from tenure.client import Client
from tenure.journal import Event
from tenure.stores import open_store


@pytest.fixture
async def cluster(cluster, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        yield type(cluster)(stack, lambda: open_store(f"sqlite:///{tmp_path}/tenure.db"))


async def test_one_turn_however_often_and_wherever_it_is_asked_for(cluster):
    urls = [await cluster.serve(name) for name in ("n1", "n2")]
    async with Client(urls[0]) as one, Client(urls[1]) as other:
        await one.create("c1")
        sent = await asyncio.gather(*(c.send("c1", "hello", key="k", wait_s=30) for c in (one, other, one, other)))
        assert all((s.seq, s.events) == (sent[0].seq, sent[0].events) for s in sent)
        assert sorted(s.duplicate for s in sent) == [False, True, True, True]
        assert (await other.start("c1")).ready
        taken = await other.takeover("c1")
        assert (taken.here, taken.owner.node) == (True, "n2")


async def test_a_stream_of_another_node_has_no_gap_and_no_duplicate(cluster):
    urls = [await cluster.serve(name) for name in ("n1", "n2")]
    async with Client(urls) as client, Client(urls[1]) as reader:
        await client.create("c1")
        got = []

        async def read():
            async with asyncio.timeout(60), reader.stream("c1") as stream:
                async for item in stream:
                    got.append(item)
                    if (
                        isinstance(item, Event)
                        and item.kind == "turn_completed"
                        and item.body["commands"] == [last.seq]
                    ):
                        return

        for number in range(5):
            last = await client.send("c1", f"m{number}")
        await read()
        events = [item for item in got if isinstance(item, Event)]
        assert events == [event async for event in client.events("c1", limit=len(events))]


@pytest.mark.parametrize("cursor", ["x", "-5", "9" * 40, "\u00b2", "1.5", "c1"])
async def test_a_foreign_cursor_is_no_fault_of_ours(cluster, cursor):
    http = await cluster.http("n1")
    answer = await http.get("/conversations", params={"cursor": cursor})
    assert answer.status_code in (200, 422)
    assert answer.status_code == 200 or answer.json()["field"] == "cursor"
