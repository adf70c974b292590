"""What ``tenure doctor`` asks of the server beyond what opening a store does: clock, permissions, schema. Writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.abc import broken, clock_finding, fine, risky
from tenure.clock import SystemClock
from tenure.errors import StoreUnfitError
from tenure.stores.postgres.fitness import findings
from tenure.stores.postgres.link import Statement
from tenure.stores.postgres.schema import SCHEMA, exists, is_ready, migrated_to

if TYPE_CHECKING:
    from tenure.abc import Finding
    from tenure.stores.postgres.address import Address
    from tenure.stores.postgres.link import Link

_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
_MAY_CREATE = "SELECT has_database_privilege(current_database(), 'CREATE')"
_FORBIDDEN = """
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p')
    AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
        AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
ORDER BY 1
"""


async def examined(link: Link, address: Address) -> list[Finding]:
    """All that there is to say.

    :raises StoreUnfitError: a pooler by transaction is in between.
    """
    found = await findings(link, address)
    found.append(fine("eviction", "a table evicts nothing"))
    found.append(await _clock(link, address))
    made = await exists(link, address.schema, "meta")
    permissions = await _tables(link, address) if made else None
    if permissions is not None:
        return [*found, permissions]
    return [*found, *await (_schema(link, address) if made else _maker(link, address))]


async def _clock(link: Link, address: Address) -> Finding:
    clock = SystemClock()
    before, here = clock.boottime(), clock.now()
    ((there,),) = (await link.run(Statement(_CLOCK)))[0]
    half = (clock.boottime() - before) / 2
    return clock_finding(there - (here.unix_s + half), half, f"the clock of {address.where}")


async def _maker(link: Link, address: Address) -> list[Finding]:
    """Nothing is there yet."""
    if (await link.run(Statement(_MAY_CREATE)))[0][0][0]:
        return [
            fine("permissions", "this role may make the tables"),
            fine("schema", f"schema {address.schema} is not there yet: whoever opens the store first makes it"),
        ]
    return [_may_not_create(f"schema {address.schema} is not there yet, and this role may not make it")]


async def _tables(link: Link, address: Address) -> Finding | None:
    """What this role may not do with the tables that are there; null if it may do all."""
    forbidden = [name for (name,) in (await link.run(Statement(_FORBIDDEN, (address.schema,))))[0]]
    if not forbidden:
        return None
    return broken(
        "permissions",
        f"this role may not read and write {', '.join(forbidden)} in schema {address.schema}",
        "operations that need them fail",
        f"GRANT USAGE ON SCHEMA {address.schema} and SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {address.schema}",
    )


async def _schema(link: Link, address: Address) -> list[Finding]:
    """The tables are there, and this role may use them: are they those of this release?"""
    permitted = fine("permissions", "this role may read and write every table")
    try:
        at = await migrated_to(link, address)
        ready = await is_ready(link, address)
    except StoreUnfitError as error:
        what, _, remedy = str(error).rpartition(": ")
        return [permitted, broken("schema", what, "this release would misread its tables", remedy)]
    if ready:
        return [permitted, fine("schema", f"migrated to {at}, with the functions of this release")]
    if not (await link.run(Statement(_MAY_CREATE)))[0][0][0]:
        return [
            _may_not_create(
                f"schema {address.schema} lacks the functions of this release, and this role may not make them"
            )
        ]
    if at < SCHEMA:
        why = "the first node of this release migrates it, which older nodes may not survive"
        remedy = "back it up, and read the changelog, before a node of this release starts"
        return [permitted, risky("schema", f"migrated to {at}; this release needs {SCHEMA}", why, remedy)]
    return [permitted, fine("schema", f"migrated to {at}; whoever opens it first makes the functions of this release")]


def _may_not_create(what: str) -> Finding:
    remedy = (
        "GRANT CREATE ON DATABASE to the role, or let one that has it open the store once (docs/operating/postgres.md)"
    )
    return broken("permissions", what, "the store cannot be opened", remedy)
