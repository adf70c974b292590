"""NOTIFY takes a lock of the whole database: what happens at one moment is told in few transactions, and all of it is told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import postgres_servers
import pytest

from tenure.abc import Appended, Hint, Topic
from tenure.stores.postgres import hints as hints_module
from tenure.stores.postgres.link import Link, Statement
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import Writer, awaited, expect, note

MANY = 200


@dataclass
class Place:
    """A server, a schema of its own, a stage on it, and the statements that its stores have sent."""

    server: PostgresServer
    schema: str
    stage: Stage
    sent: list[str]

    def count(self, words: str) -> int:
        return sum(words in sql for sql in self.sent)

    def say_end(self) -> None:
        """Notified after all that was told until now, so it is heard after that."""
        told = json.dumps(["nobody", "hints", [[Topic.CONVERSATION, "end", "end", 0]]])
        self.server.ask("SELECT pg_notify(%s, %s)", f"tenure:{self.schema}", told)


@pytest.fixture(**postgres_servers.EACH)
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    server, schema = postgres_servers.shared_server(request.param), postgres_servers.schema()
    sent: list[str] = []
    run = Link.run

    async def spy(self: Link, *statements: Statement, **how: Any) -> Any:
        sent.extend(statement.sql for statement in statements)
        return await run(self, *statements, **how)

    async with postgres_servers.stage_on(server.url(schema=schema, timeout_s=30, statement_s=20)) as stage:
        monkeypatch.setattr(Link, "run", spy)
        yield Place(server, schema, stage, sent)


async def owned_by_one(stage: Stage, count: int) -> list[Writer]:
    incarnation = await stage.node()
    return [await stage.claim(await stage.conversation(), incarnation) for _ in range(count)]


async def heard(stream: AsyncIterator[Hint]) -> list[Hint]:
    """All up to the end that was said."""
    found: list[Hint] = []
    await awaited(stream, lambda hint: found.append(hint) or hint.conversation == "end")
    return found[:-1]


async def test_what_happens_at_one_moment_is_told_in_a_few_transactions_and_all_of_it(place: Place):
    writers = await owned_by_one(place.stage, MANY)
    topics = [Topic(Topic.CONVERSATION, writer.lease.conversation) for writer in writers]
    other = await place.stage.another()
    async with other.follow(topics) as stream:
        place.sent.clear()
        answers = await place.stage.store.append_all([writer.batch(note()) for writer in writers])
        heads = {(w.lease.conversation, expect(Appended, a).head) for w, a in zip(writers, answers, strict=True)}
        found: set[tuple[str | None, int | None]] = set()
        await awaited(stream, lambda hint: found.add((hint.conversation, hint.head)) or heads <= found)
    groups = place.count("FROM append")
    assert groups <= 8
    assert 1 <= place.count("tell(") <= groups + 1, (
        "one for what was committed together, and one of the claims' perhaps"
    )


async def test_between_two_tellings_there_is_a_pause(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hints_module, "SLICE_S", slice_s := 0.3)
    (writer,) = await owned_by_one(place.stage, 1)
    place.sent.clear()
    began = time.monotonic()
    for _ in range(40):
        await writer.append(note())
    await postgres_servers.eventually(
        lambda: place.count("tell("), lambda told: told >= 1, "the pause is over, and it is told"
    )
    most = 2 + (time.monotonic() - began) / slice_s
    assert place.count("tell(") <= most


async def test_what_a_store_tells_it_does_not_hear_again(place: Place):
    """Followers of the same store object were told at once: what comes back from the server is the same."""
    (writer,) = await owned_by_one(place.stage, 1)
    store, topic = place.stage.store, Topic(Topic.CONVERSATION, writer.lease.conversation)
    async with AsyncExitStack() as stack:
        follow = stack.enter_async_context
        mine = await follow(store.follow([topic, Topic(Topic.CONVERSATION, "end")]))
        theirs = await follow((await place.stage.another()).follow([topic]))
        for _ in range(3):
            await writer.append(note())
        last = writer.seen
        await awaited(theirs, lambda hint: hint.head == last)
        await asyncio.to_thread(place.say_end)
        assert [hint.head for hint in await heard(mine)] == [last - 2, last - 1, last]
