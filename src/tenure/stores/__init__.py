"""Where conversations live: ``open_store(url)`` picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from tenure.abc import Store


def open_store(url: str) -> Store:
    """The store that the URL names, not yet opened: use it with ``async with``.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``redis://host:6379/0`` (``rediss``, ``valkey``; also
    ``redis+sentinel://host,host/service`` and ``redis+cluster://host,host``), ``postgresql://user@host:5432/database``, or
    ``memory:`` (this process only, for tests).

    :raises InvalidInputError: no store has this scheme, or the URL is none of that store.
    """
    scheme = urlsplit(url).scheme
    match scheme:
        case "memory":
            from tenure.stores.memory import MemoryStore

            return MemoryStore()
        case "sqlite":
            from tenure.stores.sqlite import SqliteStore

            return SqliteStore(url)
        case "postgresql" | "postgres":
            return _postgres(url)
        case _ if scheme.startswith(("redis", "valkey")):
            return _redis(url)
        case _:
            raise InvalidInputError(
                "store",
                f"no store has the scheme {scheme or '(none)'!r}",
                "use sqlite:///path, redis://host:6379/0, postgresql://host/database, or memory: for tests",
            )


def _redis(url: str) -> Store:
    try:
        from tenure.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "hiredis":
            raise
        raise InvalidInputError(
            "store", "Redis needs a package that is missing", "pip install 'tenure[redis]'"
        ) from None
    return RedisStore(url)


def _postgres(url: str) -> Store:
    try:
        from tenure.stores.postgres import PostgresStore
    except ImportError as error:  # psycopg says so itself where it finds no libpq
        if not (error.name or "psycopg").startswith("psycopg"):
            raise
        raise InvalidInputError(
            "store", "PostgreSQL needs a package that is missing", "pip install 'tenure[postgres]'"
        ) from None
    return PostgresStore(url)
