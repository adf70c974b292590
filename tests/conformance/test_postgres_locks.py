"""PROTOCOL section 5, PostgreSQL: real sessions in each other's way. C5, C6, C15, and groups that never wait for each other."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import postgres_servers
import pytest
from postgres_servers import blocked, console, eventually

from tenure.abc import (
    Alive,
    Append,
    Appended,
    Buried,
    Dead,
    Death,
    Elsewhere,
    Fenced,
    Held,
    Limits,
    Load,
    Reading,
    Submit,
    TooLarge,
)
from tenure.errors import StoreUnavailableError
from tenure.lease import Token
from tenure.stores.postgres.link import Link
from tenure.stores.postgres.requests import append_fields, claim_fields
from tenure.stores.postgres.schema import search_path
from tenure.stores.postgres.text import json_text
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import CREATION, Writer, expect, message, note

PATIENT = {"statement_s": 20, "timeout_s": 30}
"""Nobody gives up while a test makes up its mind."""


@dataclass
class Place:
    """A server, a schema of its own, a stage on it."""

    server: PostgresServer
    schema: str
    stage: Stage


@pytest.fixture(**postgres_servers.EACH)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    server, schema = postgres_servers.shared_server(request.param), postgres_servers.schema()
    async with postgres_servers.stage_on(server.url(schema=schema, **PATIENT)) as stage:
        yield Place(server, schema, stage)


def asked(batch: Append) -> str:
    """A batch as the function takes it."""
    return f'[{{"item":0,{json_text(append_fields(batch, Limits()))[1:]}]'


# C5: death is a write on the node's own record


async def test_c5_a_burial_waits_for_a_renewal_that_is_not_committed_yet(place: Place):
    incarnation = await place.stage.node(ttl_s=0.5)
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        assert session.execute("SELECT renew(%s, null, 0, 'n', 60, 0, false)", (incarnation,)).fetchone() == (1,)
        await eventually(
            lambda: place.server.ask(
                f"SELECT expires < extract(epoch FROM clock_timestamp()) FROM {place.schema}.nodes"
            ),
            lambda rows: rows == [(True,)],
            "whoever reads without the lock sees that it has run out",
        )
        async with asyncio.TaskGroup() as tasks:
            burial = tasks.create_task(place.stage.store.bury(incarnation, Death.EXPIRED))
            await blocked(place.server)
            session.execute("COMMIT")
    answer = expect(Alive, burial.result())
    assert answer.expires_in_s > 30, "the renewal counts"


async def test_c5_a_renewal_waits_for_a_burial_and_is_refused(place: Place):
    incarnation = await place.stage.node(ttl_s=60)
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        session.execute("SELECT * FROM bury(%s, null, 'exited')", (incarnation,))
        async with asyncio.TaskGroup() as tasks:
            renewal = tasks.create_task(place.stage.store.renew(incarnation, 0, "n", 60, Load()))
            await blocked(place.server)
            session.execute("COMMIT")
    assert renewal.result() == Dead()


async def test_c5_a_lease_that_ran_out_while_its_renewal_waited_is_not_renewed(place: Place):
    """clock_timestamp(), not now(): the time is read after the lock."""
    incarnation = await place.stage.node(ttl_s=0.5)
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        session.execute("SELECT FROM nodes WHERE incarnation = %s FOR UPDATE", (incarnation,))
        async with asyncio.TaskGroup() as tasks:
            renewal = tasks.create_task(place.stage.store.renew(incarnation, 0, "n", 60, Load()))
            await blocked(place.server)
            session.execute(
                "SELECT pg_sleep_until(to_timestamp(expires)) FROM nodes WHERE incarnation = %s", (incarnation,)
            )
            session.execute("COMMIT")
    assert renewal.result() == Dead()


async def test_c5_a_claim_that_waited_sees_the_owner_that_came_meanwhile(place: Place):
    """The sub-query that finds "no such node" in an old snapshot: an owner that registered and claimed under the lock."""
    conversation, late = await place.stage.conversation(), await place.stage.node()
    other = await place.stage.node()
    claim = place.stage.claiming(conversation, other)
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        fields = json_text(claim_fields(claim, Limits()))
        session.execute("SELECT * FROM claim(%s::json, null, true)", (f'[{{"item":0,{fields[1:]}]',))
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(place.stage.store.claim(place.stage.claiming(conversation, late)))
            await blocked(place.server)
            session.execute("COMMIT")
    owner = expect(Elsewhere, waiting.result()).record.owner
    assert owner is not None and owner.incarnation == other


# C6: the row lock is the fence


async def test_c6_a_claim_waits_for_an_append_and_reads_it(place: Place):
    writer, other = await place.stage.owned(), await place.stage.node()
    conversation = writer.lease.conversation
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        session.execute("SELECT * FROM append(%s::json, null, true, 100)", (asked(writer.batch(note("late"))),))
        async with asyncio.TaskGroup() as tasks:
            request = place.stage.claiming(conversation, other, 1, forced=True)
            claim = tasks.create_task(place.stage.store.claim(request))
            await blocked(place.server)
            session.execute("COMMIT")
    expect(Held, claim.result())
    reading = expect(Reading, await place.stage.store.read(conversation))
    assert [e.kind for e in reading.events] == ["created", "claimed", "note", "claimed"]


async def test_c6_an_append_waits_for_a_claim_and_is_fenced(place: Place):
    writer, other = await place.stage.owned(), await place.stage.node()
    conversation = writer.lease.conversation
    request = place.stage.claiming(conversation, other, 1, forced=True)
    with console(place.server, place.schema) as session:
        session.execute("BEGIN")
        fields = json_text(claim_fields(request, Limits()))
        session.execute("SELECT * FROM claim(%s::json, null, true)", (f'[{{"item":0,{fields[1:]}]',))
        async with asyncio.TaskGroup() as tasks:
            append = tasks.create_task(place.stage.store.append(writer.batch(note())))
            await blocked(place.server)
            session.execute("COMMIT")
    record = expect(Fenced, append.result()).record
    assert record is not None and record.epoch == 2
    assert "note" not in await place.stage.kinds(conversation)


# C15: who holds a row and does nothing


async def test_c15_a_row_that_another_session_holds_stops_nobody_else(place: Place):
    stuck, free = await place.stage.owned(), await place.stage.owned()
    url = place.server.url(schema=place.schema, statement_s=0.6)
    async with postgres_servers.stage_on(url) as hasty:
        with console(place.server, place.schema) as session:
            session.execute("BEGIN")
            session.execute("SELECT FROM conversations WHERE id = %s FOR UPDATE", (stuck.lease.conversation,))
            batch = stuck.batch(note())
            held_up, others = await asyncio.gather(
                asyncio.gather(*(hasty.store.append(batch) for _ in range(3)), return_exceptions=True),
                hasty.store.append_all([free.batch(note())]),
            )
            assert [type(one) for one in others] == [Appended]
            assert all(isinstance(one, StoreUnavailableError) for one in held_up)
            assert all("nothing was done" in str(one) for one in held_up), "an answer, not a guess"
            session.execute("ROLLBACK")
        expect(Appended, await hasty.store.append(batch))


async def test_c15_a_node_that_freezes_inside_a_transaction_is_cut_by_the_server(place: Place):
    writer = await place.stage.owned()
    link = await Link.connect(place.stage.store.address, search_path(place.schema), statement_s=0.3)  # type: ignore[attr-defined]
    try:
        await link.script("BEGIN")
        await link.script("SELECT FROM conversations FOR UPDATE")
        await writer.append(note())  # waits for the server to end the idle transaction, far below its own patience
    finally:
        await link.close()
    assert "idle-in-transaction timeout" in place.server.log


# groups


async def test_groups_of_two_nodes_in_opposite_order_never_wait_for_each_other(place: Place):
    stage, rounds = place.stage, 4
    writers = [await stage.owned() for _ in range(20)]
    other = await stage.another()
    names = [writer.lease.conversation for writer in writers]
    before = place.server.ask("SELECT sum(deadlocks) FROM pg_stat_database")
    for round_ in range(rounds):
        appends, submits = await asyncio.gather(
            stage.store.append_all([writer.batch(note()) for writer in writers]),
            other.submit_all([Submit(name, message(f"k{round_}")) for name in reversed(names)]),
        )
        assert {type(one).__name__ for one in appends} == {"Appended"}
        assert {type(one).__name__ for one in submits} == {"Accepted"}
        for writer, done in zip(writers, appends, strict=True):
            writer.number, writer.seen = writer.number + 1, expect(Appended, done).head
    assert place.server.ask("SELECT sum(deadlocks) FROM pg_stat_database") == before


async def test_rule_17_one_fenced_item_never_fails_the_others(place: Place):
    writers = [await place.stage.owned() for _ in range(5)]
    batches = [writer.batch(note()) for writer in writers]
    batches[1] = replace(batches[1], lease=replace(batches[1].lease, token=Token("forged")))
    batches[2] = replace(batches[2], drafts=(note("x" * (2 << 20)),))
    batches[3] = replace(batches[3], lease=replace(batches[3].lease, conversation="nowhere"))
    answers = await place.stage.store.append_all(batches)
    assert [type(one) for one in answers] == [Appended, Fenced, TooLarge, Fenced, Appended]


async def test_rule_17_what_comes_at_one_moment_is_one_transaction(place: Place):
    stage = place.stage
    writers = [await stage.owned() for _ in range(30)]
    new = await stage.node()
    await stage.submit(writers[0].lease.conversation)

    def commits() -> int:
        return sum(row[0] for row in place.server.ask(f"SELECT count(DISTINCT xmin::text) FROM {place.schema}.events"))

    before = commits()
    await asyncio.gather(
        stage.store.append_all([writer.batch(note()) for writer in writers]),
        stage.store.submit_all([Submit(f"g{i}", message("k"), CREATION) for i in range(10)]),
        stage.store.claim(stage.claiming("new", new, create=CREATION)),
    )
    assert commits() - before <= 4, "two lanes: what finds one free goes at once, all the rest together"


async def test_one_append_at_a_time_of_one_conversation_in_a_group(place: Place):
    """A copy of a batch in the same moment is a repetition or a refusal, never applied twice."""
    writer: Writer = await place.stage.owned()
    batch = writer.batch(note())
    answers = await place.stage.store.append_all([batch] * 10)
    assert sorted(type(one).__name__ for one in answers) == ["Appended"] + 9 * ["Repeated"]
    assert await place.stage.kinds(writer.lease.conversation) == ["created", "claimed", "note"]


async def test_a_buried_owner_is_a_fact_that_a_claim_may_read(place: Place):
    writer, other = await place.stage.owned(), await place.stage.node()
    assert await place.stage.store.bury(writer.lease.incarnation, Death.EXITED) == Buried()
    expect(Held, await place.stage.store.claim(place.stage.claiming(writer.lease.conversation, other, 1)))
