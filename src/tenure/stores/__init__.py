"""Where conversations live: ``open_store(url)`` picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from tenure.abc import Store


def open_store(url: str) -> Store:
    """The store that the URL names, not yet opened: use it with ``async with``.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``memory:`` (this process only, for tests).

    :raises InvalidInputError: no store has this scheme.
    """
    scheme = urlsplit(url).scheme
    match scheme:
        case "memory":
            from tenure.stores.memory import MemoryStore

            return MemoryStore()
        case "sqlite":
            from tenure.stores.sqlite import SqliteStore

            return SqliteStore(url)
        case _:
            raise InvalidInputError(
                "store", f"no store has the scheme {scheme or '(none)'!r}", "use sqlite:///path, or memory: for tests"
            )
