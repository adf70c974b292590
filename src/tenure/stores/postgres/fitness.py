"""Whether a server can keep the store's contract, and which promises its settings weaken."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.postgres.link import Link, Statement
from tenure.stores.postgres.schema import OLDEST_SERVER

if TYPE_CHECKING:
    from tenure.stores.postgres.address import Address

_LOOK = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_standby_names'),
    (SELECT count(*) FROM pg_stat_replication)
"""


async def examine(link: Link, address: Address) -> tuple[str, ...]:
    """Which promises the settings weaken, a sentence each.

    :raises StoreUnfitError: the contract cannot be kept here, with the reason and the remedy.
    """
    if link.pooled:
        await refuse_transaction_pooling(link, address)
    ((version, encoding, fsync, full_pages, sync_standbys, standbys),) = (await link.run(Statement(_LOOK)))[0]
    if version // 10000 < OLDEST_SERVER:
        raise StoreUnfitError(f"{address} is PostgreSQL {version // 10000}: version {OLDEST_SERVER} or newer is needed")
    if encoding != "UTF8":
        raise StoreUnfitError(f"{address} keeps text as {encoding}: create the database with ENCODING 'UTF8'")
    if fsync == "off":
        raise StoreUnfitError(
            f"{address} has fsync=off: a power cut loses what was accepted, and may destroy the database; set fsync=on"
        )
    weakened: list[str] = []
    if full_pages == "off":
        weakened.append(
            "full_page_writes=off: a power cut may damage pages; set it to on unless the disk writes them whole"
        )
    if standbys and not sync_standbys:
        weakened.append(
            "its standbys are asynchronous: when one is promoted, accepted writes may be lost and epochs granted again; "
            "set synchronous_standby_names to keep G1 and G4 through a fail-over"
        )
    return tuple(weakened)


async def refuse_transaction_pooling(link: Link, address: Address) -> None:
    """Behind a pooler: see that a session stays a session.

    A setting is left in the session of `link`; then another connection holds a transaction open, for which a pooler in
    transaction mode lends out the very server that our session had, or has none left.

    :raises StoreUnfitError: the session did not stay.
    """
    mark = secrets.token_hex(8)
    await link.run(Statement("SELECT set_config('tenure.session', %s, false)", (mark,)))
    stays = False
    try:
        other = await Link.connect(address, "pg_catalog")
        try:
            await other.script("BEGIN")
            await asyncio.wait_for(other.run(Statement("SELECT 1")), address.timeout_s)
            ((seen,),) = (await link.run(Statement("SELECT current_setting('tenure.session', true)")))[0]
            stays = seen == mark
            await other.script("ROLLBACK")
        finally:
            await other.close()
    except (StoreUnavailableError, TimeoutError):
        stays = False
    if not stays:
        raise StoreUnfitError(
            f"between us and {address} stands a pooler that lends out servers by transaction (PgBouncer's pool_mode = "
            "transaction): time-outs, prepared statements and LISTEN need a session; connect to PostgreSQL itself (a node "
            "takes a small, fixed number of connections), or through a pool with pool_mode = session"
        )
