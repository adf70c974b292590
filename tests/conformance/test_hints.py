"""Whatever ends the listening for hints, it begins anew, and the log says so: its silence would be noticed far too late."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import postgres_servers
import pytest
import redis_servers

from tenure.abc import Hint, Topic
from tenure.stores import open_store
from tenure.stores.sqlite.hints import Poller
from tenure.testing.servers import redis_binary
from tenure.testing.store_suite import Stage
from tenure.testing.store_suite.stage import awaited

type On = tuple[str, Callable[[str], object]]
"""A store, and how to make its listening fail while a conversation is followed."""


def on_sqlite(tmp_path: Path, patched: pytest.MonkeyPatch) -> On:
    """A bug: nothing that a file may hold does it."""
    whole = Poller._look

    def once(self: Poller, connection: sqlite3.Connection) -> None:
        patched.setattr(Poller, "_look", whole)
        raise ZeroDivisionError

    return f"sqlite:///{tmp_path}/store.db", lambda _: patched.setattr(Poller, "_look", once)


def on_redis(tmp_path: Path, patched: pytest.MonkeyPatch) -> On:
    """A stranger's message on our channel."""
    server, prefix = redis_servers.shared_server(redis_binary()), redis_servers.prefix()
    return server.url(prefix=prefix), lambda followed: server.told(
        "PUBLISH", f"{prefix}@0:conversation:{followed}", "+no JSON"
    )


def on_postgres(tmp_path: Path, patched: pytest.MonkeyPatch) -> On:
    """A stranger's message on our channel."""
    server, schema = postgres_servers.shared_server(postgres_servers.NEWEST), postgres_servers.schema()
    return server.url(schema=schema), lambda _: server.ask(f"SELECT pg_notify('tenure:{schema}', 'no JSON')")


@pytest.mark.blocking_ok  # the servers' consoles
@pytest.mark.parametrize("on", [on_sqlite, on_redis, on_postgres])
async def test_listening_that_fails_begins_anew_and_says_so(
    on, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    url, harm = on(tmp_path, monkeypatch)
    caplog.set_level(logging.INFO, "tenure.store")
    async with Stage.opened(lambda clock, limits: open_store(url)) as stage:
        conversation, other = await stage.conversation(), await stage.another()
        topic = Topic(Topic.CONVERSATION, conversation)
        async with other.follow([topic]) as hints:
            harm(conversation)
            await stage.submit(conversation)
            await awaited(hints, lambda hint: hint.lapsed)
            seen = await stage.submit(conversation)
            await awaited(hints, lambda hint: hint == Hint(topic, conversation, seen.seq))
    [failed] = [record for record in caplog.records if getattr(record, "event", "") == "store.hints_failed"]
    assert failed.levelno == logging.ERROR
    assert failed.exc_info is not None, "with where it came from"
