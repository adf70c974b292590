"""What a PostgreSQL must be before a store opens on it, and how releases come to live on one set of tables."""

import asyncio
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import postgres_servers
import psycopg
import pytest
from postgres_pooler import Pooler

from tenure.abc import Accepted, Filters, Granted, Load, Submit
from tenure.errors import InvalidInputError, StoreUnavailableError, StoreUnfitError
from tenure.stores import open_store
from tenure.stores.postgres import PostgresStore, link, schema
from tenure.stores.postgres.address import parse_url
from tenure.testing.postgres import PostgresServer
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import CREATION, expect, message, note


@pytest.fixture(**postgres_servers.EACH)
def server(request: pytest.FixtureRequest) -> PostgresServer:
    return postgres_servers.shared_server(request.param)


def test_both_versions_that_the_wheel_carries_are_tested():
    assert {"postgres-16", "postgres-18"} <= postgres_servers.BINARIES.keys()


# URLs


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://h/d?schema=A-b", "schema='A-b'"),
        ("postgresql://h/d?timeout_s=0", "timeout_s='0'"),
        ("postgresql://h/d?statement_s=x", "statement_s='x'"),
        ("postgresql://u:geheim@h/d?colour=red", "libpq does not understand"),
        ("postgresql://h/d?options=-cfsync%3Doff", "options is the store's own"),
        ("mysql://h/d", "no scheme 'mysql'"),
    ],
)
def test_a_url_that_nobody_knows_is_refused_without_being_repeated(url: str, says: str):
    with pytest.raises(InvalidInputError) as refused:
        parse_url(url)
    assert says in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_a_store_never_shows_its_password():
    store = open_store("postgres://user:geheim@db.example:6432/app?schema=ours&sslmode=require")
    assert isinstance(store, PostgresStore)
    assert repr(store) == "PostgresStore(db.example:6432/app (schema ours))"
    assert "geheim" not in repr(store.address)
    assert (store.address.schema, store.address.statement_s) == ("ours", 1.2)


async def test_who_may_not_log_in_is_told_what_to_correct(server: PostgresServer):
    with pytest.raises(StoreUnfitError, match="refused the login"):
        await PostgresStore(server.url().replace("tenure@", "nobody-here:geheim@")).__aenter__()
    with pytest.raises(StoreUnavailableError, match="no connection"):
        await PostgresStore("postgresql://u:geheim@127.0.0.1:1/d").__aenter__()


# what is refused


async def test_a_server_that_ends_while_it_is_greeted_is_not_there_for_now():
    """It answers the question for TLS with an error. Not a refusal, which nobody would repeat."""

    async def goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"E\x00\x00\x00\x05\x00")
        writer.close()

    async with await asyncio.start_server(goodbye, "127.0.0.1") as greeting:
        port = greeting.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailableError, match="no connection"):
            async with PostgresStore(f"postgresql://tenure@127.0.0.1:{port}/postgres"):
                pass


async def test_synchronous_commit_is_set_whatever_the_role_says(server: PostgresServer):
    server.ask("CREATE ROLE careless LOGIN SUPERUSER")
    server.ask("ALTER ROLE careless SET synchronous_commit = off")
    url = server.url(schema=postgres_servers.schema()).replace("tenure@", "careless@")
    async with PostgresStore(url) as store:
        one = await link.Link.connect(store.address, "pg_catalog")
        try:
            assert await one.run(link.Statement("SHOW synchronous_commit")) == [[("on",)]]
        finally:
            await one.close()


async def test_a_server_that_keeps_synchronous_commit_off_is_refused(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    """As where something between us and the server swallows what the store sets."""
    swallowed = link._SET_UP.replace("'remote_apply' THEN 'remote_apply' ELSE 'on' END", "'x' THEN 'on' ELSE 'off' END")
    monkeypatch.setattr(link, "_SET_UP", swallowed)
    with pytest.raises(StoreUnfitError, match="keeps synchronous_commit at 'off'"):
        await PostgresStore(server.url()).__aenter__()


async def test_a_server_without_fsync_a_standby_and_another_encoding_are_refused(server: PostgresServer):
    server.ask("DROP DATABASE IF EXISTS latin")
    server.ask("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(StoreUnfitError, match="keeps text as LATIN1"):
        await PostgresStore(server.url().replace("/postgres", "/latin")).__aenter__()
    with PostgresServer(server.binaries, options={"fsync": "off"}) as careless:
        with pytest.raises(StoreUnfitError, match="set fsync=on"):
            await PostgresStore(careless.url()).__aenter__()
        careless.stop()
        (careless.folder / "data" / "standby.signal").touch()
        careless.start()
        with pytest.raises(StoreUnavailableError, match=r"read-only|standby|read-write"):
            await PostgresStore(careless.url()).__aenter__()
        with pytest.raises(StoreUnavailableError, match="is a standby"):
            await PostgresStore(careless.url(target_session_attrs="any")).__aenter__()


# poolers


@pytest.mark.parametrize("idle", range(5))
@pytest.mark.parametrize("in_turn", [False, True])
async def test_transaction_pooling_is_refused_with_the_remedy(server: PostgresServer, in_turn: bool, idle: int):
    """Whichever server it lends out next, and however many it has: chance brings the same one back now and then."""
    async with Pooler(server.port, in_turn=in_turn) as pooler:
        url = server.url(schema=postgres_servers.schema()).replace(f":{server.port}/", f":{pooler.port}/")
        async with AsyncExitStack() as clients:
            for _ in range(idle):
                client = await psycopg.AsyncConnection.connect(url.partition("?")[0], autocommit=True)
                await client.execute("BEGIN")
                clients.push_async_callback(client.close)
                clients.push_async_callback(client.rollback)
        with pytest.raises(StoreUnfitError, match=r"pool_mode = transaction.*connect to PostgreSQL itself"):
            await PostgresStore(url).__aenter__()


async def test_statement_pooling_is_refused_with_the_remedy(server: PostgresServer):
    async with Pooler(server.port, mode="statement") as pooler:
        url = server.url(schema=postgres_servers.schema()).replace(f":{server.port}/", f":{pooler.port}/")
        with pytest.raises(StoreUnfitError, match=r"by statement.*connect to PostgreSQL itself"):
            await PostgresStore(url).__aenter__()


async def test_a_pooler_that_keeps_sessions_apart_will_do(server: PostgresServer):
    async with Pooler(server.port, mode="session") as pooler:
        url = server.url(schema=postgres_servers.schema()).replace(f":{server.port}/", f":{pooler.port}/")
        async with PostgresStore(url) as store:
            expect(Accepted, await store.submit(Submit("c", message("k"), CREATION)))


# migrations

_OPEN = """
import asyncio, sys
from tenure.stores import open_store
async def main():
    print("ready", flush=True); sys.stdin.readline()
    async with open_store(sys.argv[1]): print("open")
asyncio.run(main())
"""


def test_many_nodes_may_migrate_at_once(server: PostgresServer):
    url = server.url(schema=postgres_servers.schema(), timeout_s=30)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (out, err, child.returncode) == ("open\n", "", 0)


async def test_the_release_before_survives_a_migration(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Expand: the next release adds a column and changes its functions, while this one goes on, also after opening anew."""
    name = postgres_servers.schema()
    url = server.url(schema=name)
    async with PostgresStore(url) as old:
        expect(Accepted, await old.submit(Submit("before", message("k"), CREATION)))
        with monkeypatch.context() as newer:
            _next_release(newer, tmp_path, "ALTER TABLE conversations ADD COLUMN colour text NOT NULL DEFAULT 'red'")
            async with PostgresStore(url) as new:
                expect(Accepted, await new.submit(Submit("new", message("k"), CREATION)))
        assert server.ask(f"SELECT schema, oldest FROM {name}.meta") == [(2, 1)]
        expect(Accepted, await old.submit(Submit("after", message("k"), CREATION)))
    async with PostgresStore(url) as again:
        listed = (await again.list(Filters(), None, 10)).items
        assert [record.conversation for record in listed] == ["before", "new", "after"]
    codes = server.ask("SELECT count(*) FROM pg_namespace WHERE nspname LIKE %s", f"{name}\\_%")
    assert codes == [(2,)], "each release has its own functions"


_OPEN_NEXT = """
import asyncio, sys
from pathlib import Path
from tenure.stores import open_store
from tenure.stores.postgres import schema
schema._SQL, schema.SCHEMA = Path(sys.argv[2]), 2
async def main():
    async with open_store(sys.argv[1]): pass
asyncio.run(main())
"""
LOCKED_OUT = "canceling statement due to lock timeout"


async def test_a_migration_gives_way_to_the_release_before_and_fails_none_of_its_requests(
    server: PostgresServer, tmp_path: Path
):
    """Whoever asks for a table after the migration waits behind it; so it must not wait long for who holds a row of that table."""
    name = postgres_servers.schema()
    url = server.url(schema=name, statement_s=3)
    more = "ADD COLUMN colour text NOT NULL DEFAULT 'red'"
    sql = _next_sql(tmp_path, f"ALTER TABLE nodes {more}; ALTER TABLE conversations {more}")
    given_way, over = server.log.count(LOCKED_OUT), asyncio.Event()
    async with postgres_servers.stage_on(url) as old, asyncio.TaskGroup() as tasks:
        held = await old.conversation()
        work = [tasks.create_task(_owner(old, over)) for _ in range(3)]
        work.append(tasks.create_task(_heart(old, over)))
        with postgres_servers.console(server, name) as session:
            session.execute("BEGIN")
            session.execute("SELECT FROM conversations WHERE id = %s FOR UPDATE", (held,))
            newer = await asyncio.create_subprocess_exec(sys.executable, "-c", _OPEN_NEXT, url, str(sql))
            await postgres_servers.eventually(
                lambda: server.log.count(LOCKED_OUT),
                lambda seen: seen >= given_way + 3,
                "the migration gives way thrice",
            )
            assert newer.returncode is None
            session.execute("COMMIT")
            assert await newer.wait() == 0
        over.set()
        done = await asyncio.gather(*work)
    assert server.ask(f"SELECT schema FROM {name}.meta") == [(2,)]
    assert all(rounds > 3 for rounds in done), "they went on all the time"


async def _owner(stage: Stage, over: asyncio.Event) -> int:
    """What an owner asks, again and again; anything but a success fails the test. How often."""
    rounds = 0
    while not over.is_set():
        writer = await stage.owned()
        await writer.append(note())
        await writer.release()
        rounds += 1
    return rounds


async def _heart(stage: Stage, over: asyncio.Event) -> int:
    beat, incarnation = 0, await stage.node(ttl_s=600)
    async with stage.store.sibling() as store:
        while not over.is_set():
            assert await store.renew(incarnation, beat, f"{beat}", 600, Load()) == Granted(beat + 1)
            beat += 1
    return beat


async def test_a_migration_that_never_gets_its_table_says_who_is_in_the_way_and_changes_nothing(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = postgres_servers.schema()
    async with postgres_servers.stage_on(server.url(schema=name)) as old:
        await old.conversation()
        with postgres_servers.console(server, name) as session, monkeypatch.context() as newer:
            session.execute("BEGIN")
            session.execute("SELECT FROM conversations FOR UPDATE")
            _next_release(
                newer, tmp_path, "ALTER TABLE nodes ADD COLUMN c text; ALTER TABLE conversations ADD COLUMN c text"
            )
            newer.setattr(schema, "MIGRATION_S", 1.0)
            with pytest.raises(StoreUnavailableError, match=r"other sessions held them.*pg_stat_activity"):
                await PostgresStore(server.url(schema=name)).__aenter__()
            session.execute("ROLLBACK")
        await old.conversation()
    assert server.ask(f"SELECT schema FROM {name}.meta") == [(1,)]


async def test_tables_of_a_release_that_does_not_know_us_any_more_are_refused(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = server.url(schema=postgres_servers.schema())
    with monkeypatch.context() as newer:
        _next_release(newer, tmp_path, "UPDATE meta SET oldest = 2")
        async with PostgresStore(url):
            pass
    with pytest.raises(StoreUnfitError, match=r"works with releases from 2 on, this one is 1.*upgrade this node"):
        await PostgresStore(url).__aenter__()


def _next_sql(folder: Path, migration: str) -> Path:
    sql = Path(shutil.copytree(schema._SQL, folder / "sql"))
    (sql / "migrations" / "0002_next.sql").write_text(f"{migration};\n")
    (sql / "functions" / "zz_next.sql").write_text(
        "CREATE FUNCTION next_release() RETURNS int LANGUAGE sql AS 'SELECT 2';\n"
    )
    return sql


def _next_release(patch: pytest.MonkeyPatch, folder: Path, migration: str) -> None:
    """Play a release with one more migration and other functions."""
    patch.setattr(schema, "_SQL", _next_sql(folder, migration))
    patch.setattr(schema, "SCHEMA", 2)
    for cached in (schema.functions, schema.migrations):
        cached.cache_clear()
        patch.setattr(schema, cached.__name__, cached.__wrapped__)


async def test_who_may_not_make_tables_is_told_what_to_grant(server: PostgresServer):
    server.ask("CREATE ROLE poor LOGIN")
    server.ask("REVOKE CREATE ON DATABASE postgres FROM PUBLIC")
    name = postgres_servers.schema()
    url = server.url(schema=name)
    poor = url.replace("tenure@", "poor@")
    with pytest.raises(StoreUnfitError, match="GRANT CREATE ON DATABASE"):
        await PostgresStore(poor).__aenter__()
    async with PostgresStore(url):
        pass
    for one in (name, schema.code_schema(name)):
        server.ask(f"GRANT USAGE ON SCHEMA {one} TO poor")
        server.ask(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {one} TO poor")
    async with PostgresStore(poor) as store:
        expect(Accepted, await store.submit(Submit("c", message("k"), CREATION)))
