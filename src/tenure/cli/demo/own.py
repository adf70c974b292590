"""The store of the demo: one that is named by a URL, or one of its own that begins and ends with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tenure.errors import InvalidInputError
from tenure.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

OWN = ("sqlite", "redis", "postgres")
"""What the demo can start by itself."""


def check_store(store: str | None) -> None:
    """Refuse what the demo cannot play on.

    :raises InvalidInputError: the store is none, or none for several processes; or there is no server to start.
    """
    if store == "redis":
        _redis_binary()
    elif store == "postgres":
        _postgres_binaries()
    elif store not in (None, *OWN) and open_store(store).url is None:
        raise InvalidInputError("store", f"{store} lives in one process", "use one that several can open")


@contextlib.contextmanager
def begun(store: str | None, folder: Path) -> Generator[str]:
    """The URL of the store, for as long as the block runs. Its files are in the folder."""
    if store == "redis":
        from tenure.testing.servers import RedisServer

        with RedisServer(folder / "redis", binary=_redis_binary(), options={"appendfsync": "always"}) as server:
            yield server.url()
    elif store == "postgres":
        binaries = _postgres_binaries()
        from tenure.testing.postgres import PostgresServer

        with PostgresServer(binaries) as server:
            yield server.url()
    else:
        yield f"sqlite:///{folder}/demo.db" if store in (None, "sqlite") else store


def _redis_binary() -> Path:
    try:
        from tenure.testing.servers import redis_binaries
    except ModuleNotFoundError as error:
        if error.name != "hiredis":
            raise
        raise InvalidInputError(
            "store", "Redis needs a package that is missing", "pip install 'tenure[redis]'"
        ) from None
    for path in redis_binaries().values():
        return path
    raise InvalidInputError(
        "store",
        "found no redis-server and no valkey-server to start",
        "install one, or name one that runs: --store redis://127.0.0.1:6379/0",
    )


def _postgres_binaries() -> Path:
    try:
        from tenure.testing.postgres import postgres_binaries
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise InvalidInputError(
            "store", "PostgreSQL needs a package that is missing", "pip install 'tenure[postgres]'"
        ) from None
    for path in reversed(postgres_binaries().values()):
        return path
    raise InvalidInputError(
        "store",
        "found no postgres with initdb to start",
        "install one, or name one that runs: --store postgresql://user@host:5432/database",
    )
