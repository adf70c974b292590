"""Work is proportional to the answer: counted by the server, in rows that it looked at."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import postgres_servers
import pytest
from postgres_servers import eventually

from tenure.abc import Death, Filters, Load, Submit, Topic
from tenure.lease import Epoch, IncarnationId
from tenure.stores.postgres import PostgresStore
from tenure.stores.postgres.link import Link, Statement
from tenure.stores.postgres.schema import search_path
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import AGENT, CREATION, IDLE, message, note

TABLES = ("nodes", "conversations", "events", "keys", "snapshots", "vault", "papers", "refusals")

_STORED = """
INSERT INTO conversations (id, agent, settings, settings_digest, policy, metadata, created_at, updated_at, owner, token, wanted)
SELECT %s || n, 'agent', '{}', '', 'enqueue', '{}', 0, 0, %s, 'token', %s FROM generate_series(1, %s) n
"""
_SWEEP = "SELECT id FROM wanted(null, %s, ARRAY['agent'], '', '', -1, 0, 100)"
_SCANS = "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = %s"
_SEEN = """
SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'conversations'::regclass
"""


@dataclass
class Place:
    """A server, a schema of its own, a stage on it."""

    server: PostgresServer
    schema: str
    stage: Stage


@pytest.fixture(**postgres_servers.EACH)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    server, schema = postgres_servers.shared_server(request.param), postgres_servers.schema()
    async with postgres_servers.stage_on(server.url(schema=schema)) as stage:
        yield Place(server, schema, stage)


def store(place: Place, prefix: str, owner: str | None, wanted: bool, count: int) -> None:
    with postgres_servers.console(place.server, place.schema) as session:
        session.execute(_STORED, (prefix, owner, wanted, count))


async def swept(place: Place, me: IncarnationId) -> tuple[set[str], int, int]:
    """What a sweep finds, how often it went through all conversations, and how many it looked at."""
    address = place.stage.store.address  # type: ignore[attr-defined]
    link = await Link.connect(address, search_path(place.schema))
    try:
        await link.script("BEGIN")
        found = await link.run(Statement(_SWEEP, (me,)))
        ((scans, looked_at),) = (await link.run(Statement(_SEEN)))[0]
        return {name for (name,) in found[0]}, scans, looked_at
    finally:
        await link.close()


async def test_a_sweep_looks_at_what_it_finds_whatever_is_stored(place: Place):
    me, other, dead = [await place.stage.node(ttl_s=600) for _ in range(3)]
    await place.stage.store.bury(dead, Death.EXITED)
    for prefix, owner in (("free", None), ("mine", me), ("dead", dead)):
        store(place, prefix, owner, True, 3)
    asked = {f"{prefix}{n}" for prefix in ("free", "mine", "dead") for n in (1, 2, 3)}
    store(place, "elsewhere", other, True, 10)
    few = await swept(place, me)
    store(place, "idle", None, False, 4000)
    store(place, "held", me, False, 1000)
    store(place, "busy", other, True, 1000)
    place.server.ask(f"ANALYZE {place.schema}.conversations")
    many = await swept(place, me)
    assert few[0] == many[0] == asked
    assert many[1] == 0, "no sequential scan"
    assert many[2] <= few[2] + 5, "a row to skip to each owner, and what is found"


async def scans(place: Place, sessions: list[tuple[int]]) -> dict[str, tuple[int, int]]:
    """How often each table was gone through, and read by an index: a session tells what it did when it ends, at the latest."""
    open_ = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenure'"
    await eventually(
        lambda: place.server.ask(open_), lambda some: {*some} <= {*sessions}, "all sessions but these are over"
    )
    return {name: (gone_through, read) for name, gone_through, read in place.server.ask(_SCANS, place.schema)}


async def test_no_operation_goes_through_a_table(place: Place):
    """All of them, on tables of some size, with the plans of sessions that saw them small."""
    place.schema = postgres_servers.schema()
    sessions = place.server.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'tenure'")
    async with PostgresStore(url := place.server.url(schema=place.schema)):
        pass
    before = await scans(place, sessions)  # each index was made by going through its table
    async with postgres_servers.stage_on(url) as stage:
        await everything(stage, "small")
        store(place, "idle", None, False, 1000)
        place.server.ask(f"ANALYZE {place.schema}.conversations")
        await everything(stage, "large")
    after = await scans(place, sessions)
    assert all(after[name][1] > 0 for name in TABLES), "the server has counted"
    assert {name: after[name][0] - before[name][0] for name in TABLES} == dict.fromkeys(TABLES, 0)


async def everything(stage: Stage, name: str) -> None:
    """Each operation of the port."""
    one = stage.store
    incarnation = await stage.node(f"n-{name}", ttl_s=600)
    await one.renew(incarnation, 0, "n", 600, Load())
    names = [f"{name}{n}" for n in range(6)]
    await one.submit_all([Submit(each, message("k"), CREATION) for each in names])
    await one.submit_all([Submit(each, message("k2")) for each in names])
    await one.claim_all([stage.claiming(each, incarnation) for each in names[1:]])
    writer = await stage.claim(names[0], incarnation)
    await writer.append(note())
    await writer.append(note(), note(), settle=IDLE)
    await one.append(writer.batch(note(), seen=10_000))
    await one.publish(writer.lease, {"n": 1})
    async with one.follow([Topic(Topic.WANTED)]):
        await writer.release()
    await one.read(names[0], snapshot=True)
    await one.records(names)
    await one.wanted(incarnation, [AGENT], None, 10)
    for filters in (Filters(), Filters(user_id="nobody"), Filters(owner=incarnation)):
        await one.list(filters, None, 10)
    await one.amend(names[0], 1, {"title": "t"})
    await one.seal(names[0], "secret", b"x", 0)
    await one.unseal(names[0], "secret")
    await one.names(names[0])
    await one.forget(names[0], "secret", 1)
    await one.put_paper("kind", name, {}, 0)
    await one.get_paper("kind", name)
    await one.list_papers("kind")
    await one.remove_paper("kind", name, 1)
    assert await one.refusals(names[0])
    await one.nodes()
    await one.delete(names[1], Epoch(1), "user")
    await one.bury(incarnation, Death.EXITED)
