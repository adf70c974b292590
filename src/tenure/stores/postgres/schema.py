"""The tables and functions in ``sql/``: how they come to be, and how releases live side by side.

Tables change by migrations, each of which runs once, whoever comes first; any number of nodes may come at once. Functions
belong to a release: they live in a schema of their own, named after their text, so that a node of another release goes on
calling the ones that it was written for. Every migration says which releases survive it (``meta.oldest``).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString, cast

from tenure.errors import StoreUnfitError
from tenure.stores.postgres.link import Link, RejectedError, Statement

if TYPE_CHECKING:
    from tenure.stores.postgres.address import Address

_SQL = Path(__file__).parent / "sql"
SCHEMA = 1
"""The last migration that this release knows."""
OLDEST_SERVER = 15

# Asked of the catalogue itself: to_regclass() may answer from what this session remembers of the time before it had the lock.
_EXISTS: Final = """
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s)
"""


@cache
def functions() -> str:
    """The text of every function, what they share first."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((_SQL / "functions").glob("*.sql")))


@cache
def migrations() -> dict[int, str]:
    """The text of each migration, by its number."""
    found = sorted((_SQL / "migrations").glob("*.sql"))
    return {int(path.name.partition("_")[0]): path.read_text(encoding="utf-8") for path in found}


def code_schema(schema: str, text: str | None = None) -> str:
    """Where the functions of this release live."""
    return f"{schema}_{hashlib.sha256((text or functions()).encode()).hexdigest()[:12]}"


def search_path(schema: str) -> str:
    """Where every name of ours is found: functions first, then tables."""
    return f'"{code_schema(schema)}", "{schema}"'


async def prepare(link: Link, address: Address) -> None:
    """Make tables and functions what this release needs, or find them so.

    :raises StoreUnfitError: they were left by a newer release that this one cannot work beside, or may not be made.
    """
    if await is_ready(link, address):
        return
    try:
        await _migrate(link, address)
    except RejectedError as error:
        raise StoreUnfitError(
            f"the tables of {address} could not be made: {error}; GRANT CREATE ON DATABASE to the role, or let one that has "
            "it open the store once (docs/operating/postgres.md)"
        ) from error


async def is_ready(link: Link, address: Address) -> bool:
    """Whether this release finds all that it needs."""
    ((tables, functions_made),) = (
        await link.run(
            Statement(
                "SELECT to_regclass(%s) IS NOT NULL, to_regtype(%s) IS NOT NULL",
                (f'"{address.schema}".meta', f'"{code_schema(address.schema)}".answer'),
            )
        )
    )[0]
    return tables and await migrated_to(link, address) >= SCHEMA and functions_made


async def migrated_to(link: Link, address: Address) -> int:
    """Which migration the tables are at.

    :raises StoreUnfitError: this release cannot work with them any more.
    """
    statement = Statement(cast("LiteralString", f'SELECT schema, oldest FROM "{address.schema}".meta'))
    ((schema, oldest),) = (await link.run(statement))[0]
    if oldest > SCHEMA:
        raise StoreUnfitError(
            f"{address} was migrated by a newer Tenure (to {schema}; it works with releases from {oldest} on, this one is "
            f"{SCHEMA}): upgrade this node, or name another schema"
        )
    return schema


async def _migrate(link: Link, address: Address) -> None:
    await link.script("BEGIN")
    try:
        await link.script("SET LOCAL statement_timeout = '55s'; SET LOCAL lock_timeout = '50s'")
        lock = Statement("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (f"tenure: schema {address.schema}",))
        await link.run(lock, timeout_s=60)
        await _migrate_alone(link, address)
        await link.script("COMMIT")
    except BaseException:
        await link.close()  # and with it the transaction
        raise


async def _migrate_alone(link: Link, address: Address) -> None:
    """Under the lock: look again, and do what is missing."""
    schema, code = address.schema, code_schema(address.schema)
    at = await migrated_to(link, address) if await exists(link, schema, "meta") else 0
    if at == 0:
        await link.script(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    await link.script(f'SET LOCAL search_path = "{schema}"')
    for number, text in migrations().items():
        if number > at:
            await link.script(text)
            await link.script(f"UPDATE meta SET schema = {number}")
    if not await exists(link, code, "answer"):
        await link.script(f'CREATE SCHEMA IF NOT EXISTS "{code}"; SET LOCAL search_path = "{code}", "{schema}"')
        await link.script(functions())


async def exists(link: Link, schema: str, name: str) -> bool:
    """Whether the schema holds something of this name."""
    return (await link.run(Statement(_EXISTS, (schema, name))))[0][0][0]
