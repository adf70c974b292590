"""Where is measured: servers that the run starts itself, or the one that a user names; each measurement in a space of its own.

Nothing of a user's store is touched: a Redis gets another key prefix, a PostgreSQL another schema, an SQLite file a neighbour;
all of it is removed afterwards.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tenure.errors import InvalidInputError
from tenure.testing.processes import ServerFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tenure.testing.servers import RedisServer

type Kind = Literal["redis", "postgres", "sqlite"]

SWEPT = 500
"""Keys that are removed at once."""


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A store to measure on. `server` is null where a user's own is used: it is never emptied, nor counted."""

    kind: Kind
    url: str
    version: str
    server: RedisServer | None = None
    is_users: bool = False
    """Nobody makes tables there but in a space: peers that do stay away."""

    @asynccontextmanager
    async def space(self) -> AsyncGenerator[str]:
        """The URL of an empty store; what was put there is removed afterwards."""
        name = f"bench_{secrets.token_hex(4)}"
        match self.kind:
            case "redis":
                try:
                    yield with_option(self.url, "prefix", name)
                finally:
                    await _remove_keys(self.url, name)
            case "postgres":
                try:
                    yield with_option(self.url, "schema", name)
                finally:
                    await asyncio.to_thread(_drop_schema, self.url, name)
            case "sqlite":
                path = Path(self.url.removeprefix("sqlite:///").partition("?")[0])
                try:
                    yield f"sqlite:///{path.with_name(f'{name}.db')}"
                finally:
                    for file in path.parent.glob(f"{name}.db*"):
                        file.unlink()


def with_option(url: str, name: str, value: str) -> str:
    """The URL with one option of its query set."""
    parts = urlsplit(url)
    options = {**dict(parse_qsl(parts.query, keep_blank_values=True)), name: value}
    return urlunsplit(parts._replace(query=urlencode(options)))


def option(url: str, name: str) -> str:
    """One option of the URL's query: the `prefix` or the `schema` of a space."""
    return dict(parse_qsl(urlsplit(url).query))[name]


def conninfo(url: str) -> str:
    """How psycopg connects to the PostgreSQL of a URL: with the user's options, without ours."""
    from tenure.stores.postgres.address import parse_url

    return parse_url(url).conninfo


def kind_of(url: str) -> Kind:
    """Which kind of store a URL names.

    :raises InvalidInputError: one that is not measured.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("postgres", "postgresql"):
        return "postgres"
    if scheme == "sqlite":
        return "sqlite"
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        return "redis"
    raise InvalidInputError("store", f"{scheme}: is not measured", "use sqlite:///, redis:// or postgresql://")


@asynccontextmanager
async def places(url: str | None) -> AsyncGenerator[tuple[dict[Kind, Place], dict[str, str]]]:
    """The places by kind, and which are missing and why. Without `url`: a new server of each kind that this machine has."""
    async with AsyncExitStack() as stack:
        if url is not None:
            kind = kind_of(url)
            others: dict[str, str] = dict.fromkeys(
                ("redis", "postgres", "sqlite"), "only the store that was named is measured"
            )
            del others[kind]
            yield {kind: Place(kind, url, await asyncio.to_thread(_version, kind, url), is_users=True)}, others
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenure-bench-")))
        found: dict[Kind, Place] = {"sqlite": Place("sqlite", f"sqlite:///{folder}/bench.db", sqlite3.sqlite_version)}
        missing: dict[str, str] = {}
        try:
            found["redis"] = await asyncio.to_thread(_own_redis, stack, folder)
        except (ImportError, ServerFailedError) as error:
            missing["redis"] = str(error)
        try:
            found["postgres"] = await asyncio.to_thread(_own_postgres, stack)
        except (ImportError, ServerFailedError) as error:
            missing["postgres"] = str(error)
        yield found, missing


def _own_redis(stack: AsyncExitStack, folder: Path) -> Place:
    from tenure.testing.servers import RedisServer

    server = stack.enter_context(RedisServer(folder))
    return Place("redis", server.url(), server.info("server")["redis_version"], server)


def _own_postgres(stack: AsyncExitStack) -> Place:
    from tenure.testing.postgres import PostgresServer

    server = stack.enter_context(PostgresServer())
    (version,) = server.ask("SHOW server_version")[0]
    return Place("postgres", server.url(), str(version).partition(" ")[0])


def _version(kind: Kind, url: str) -> str:
    if kind == "sqlite":
        return sqlite3.sqlite_version
    if kind == "redis":
        return asyncio.run(_redis_version(url))
    import psycopg

    with psycopg.connect(conninfo(url)) as connection:
        return str(connection.info.parameter_status("server_version"))


async def _redis_version(url: str) -> str:
    """:raises InvalidInputError: it is not a single server: floors and peers speak to one, and one is swept afterwards."""
    async with redis_link(url) as link:
        (told,) = await link.ask(("INFO",))
    if b"cluster_enabled:1" in told:
        raise InvalidInputError("store", "it belongs to a Cluster", "name a single server")
    lines = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    return str(lines.get("valkey_version") or lines["redis_version"])


@asynccontextmanager
async def redis_link(url: str) -> AsyncGenerator[Any]:
    """A connection as our store makes it, without our store: the client of the floors."""
    from tenure.stores.redis.address import parse_url
    from tenure.stores.redis.link import connect

    address = parse_url(url)
    link = await connect(
        address.endpoints[0], address.credentials, tls=address.tls, db=address.db, timeout_s=30.0, scripts=False
    )
    try:
        yield link
    finally:
        await link.close()


async def _remove_keys(url: str, prefix: str) -> None:
    async with redis_link(url) as link:
        cursor: Any = 0
        while True:
            ((cursor, keys),) = await link.ask(("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", SWEPT))
            if keys:
                await link.ask(("UNLINK", *keys))
            if int(cursor) == 0:
                return


def _drop_schema(url: str, schema: str) -> None:
    """With that of its functions."""
    import psycopg
    from psycopg import sql

    from tenure.stores.postgres.schema import code_schema

    with psycopg.connect(conninfo(url), autocommit=True) as connection:
        for one in (code_schema(schema), schema):
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(one)))
