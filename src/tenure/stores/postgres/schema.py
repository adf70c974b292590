"""The tables and functions in ``sql/``: how they come to be, and how releases live side by side.

Tables change by migrations, each of which runs once, whoever comes first; any number of nodes may come at once. Functions
belong to a release: they live in a schema of their own, named after their text, so that a node of another release goes on
calling the ones that it was written for. Every migration says which releases survive it (``meta.oldest``).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString, cast

from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.postgres.link import MIGRATION_S, Link, RejectedError, Statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.stores.postgres.address import Address

_SQL = Path(__file__).parent / "sql"
SCHEMA = 1
"""The last migration that this release knows."""
OLDEST_SERVER = 15
LOCK_MS = 300
"""How long a migration waits for a table: everybody who comes later waits behind it, the heartbeats of the release before among
them. Far below a quarter of a ttl."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

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
    :raises StoreUnavailableError: somebody held a table all the time; the migrations that are done stay.
    """
    if await is_ready(link, address):
        return
    try:
        async with asyncio.timeout(MIGRATION_S):
            await _migrate(link, address)
    except TimeoutError:
        raise StoreUnavailableError(
            f"the tables of {address} could not be migrated within {MIGRATION_S:g} s: other sessions held them; "
            "end the transaction that pg_stat_activity shows as the oldest, and open the store again"
        ) from None
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
    """Step by step, each a transaction of its own: what one locks is free again before the next begins."""
    for number in migrations():
        await _patiently(link, address, partial(_migrate_to, link, address, number))
    await _patiently(link, address, partial(_make_functions, link, address))


async def _patiently(link: Link, address: Address, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step; while somebody else holds what it must lock, let those pass who wait behind it, and try again."""
    rng, pause_s = random.Random(), FIRST_PAUSE_S
    while True:
        try:
            await _transact(link, address, step)
            return
        except RejectedError as error:
            if not error.waited:
                raise
        await asyncio.sleep(pause_s * rng.uniform(0.5, 1))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _transact(link: Link, address: Address, step: Callable[[], Awaitable[None]]) -> None:
    """One node at a time, which looks again once it is its turn.

    :raises RejectedError: the server refused something, and nothing was done.
    """
    try:
        await link.script("BEGIN; SET LOCAL statement_timeout = '55s'; SET LOCAL lock_timeout = '50s'")
        lock = Statement("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (f"tenure: schema {address.schema}",))
        await link.run(lock, timeout_s=MIGRATION_S)
        await link.script(f"SET LOCAL lock_timeout = '{LOCK_MS}ms'")
        await step()
        await link.script("COMMIT")
    except RejectedError:
        await link.script("ROLLBACK")
        raise
    except BaseException:
        await link.close()  # and with it the transaction
        raise


async def _migrate_to(link: Link, address: Address, number: int) -> None:
    schema = address.schema
    at = await migrated_to(link, address) if await exists(link, schema, "meta") else 0
    if number <= at:
        return
    if at == 0:
        await link.script(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    await link.script(f'SET LOCAL search_path = "{schema}"')
    await link.script(migrations()[number])
    await link.script(f"UPDATE meta SET schema = {number}")


async def _make_functions(link: Link, address: Address) -> None:
    schema, code = address.schema, code_schema(address.schema)
    if not await exists(link, code, "answer"):
        await link.script(f'CREATE SCHEMA IF NOT EXISTS "{code}"; SET LOCAL search_path = "{code}", "{schema}"')
        await link.script(functions())


async def exists(link: Link, schema: str, name: str) -> bool:
    """Whether the schema holds something of this name."""
    return (await link.run(Statement(_EXISTS, (schema, name))))[0][0][0]
