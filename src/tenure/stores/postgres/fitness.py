"""What is looked at in a server: whether it can keep the store's contract, and which promises its settings weaken.

One list of findings serves both who opens a store (the first broken one refuses it, a risky one is logged) and who has it
examined (all of them).
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from tenure.abc import Verdict, broken, fine, risky
from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.postgres.link import Link, RejectedError, Statement
from tenure.stores.postgres.schema import OLDEST_SERVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tenure.abc import Finding
    from tenure.stores.postgres.address import Address

ASKED = 3
"""How often a session behind a pooler is asked whether it is still the same."""

_LOOK = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_standby_names'),
    (SELECT count(*) FROM pg_stat_replication),
    (SELECT min(pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn))::bigint FROM pg_stat_replication)
"""


async def examine(link: Link, address: Address) -> tuple[str, ...]:
    """Which promises the settings weaken, a sentence each.

    :raises StoreUnfitError: the contract cannot be kept here, with the reason and the remedy.
    """
    found = await findings(link, address)
    for finding in found:
        if finding.verdict is Verdict.BROKEN:
            raise StoreUnfitError(finding.sentence)
    return tuple(finding.sentence for finding in found if finding.verdict is Verdict.RISKY)


async def findings(link: Link, address: Address) -> list[Finding]:
    """What there is to say of the server.

    :raises StoreUnfitError: a pooler by transaction is in between.
    """
    if link.pooled:
        await refuse_transaction_pooling(link, address)
    ((version, encoding, fsync, full_pages, sync_standbys, standbys, behind),) = (await link.run(Statement(_LOOK)))[0]
    return [
        *_server(address, version // 10000, encoding),
        *_persistence(address, fsync, full_pages),
        *_replication(standbys, sync_standbys, behind),
    ]


def _server(address: Address, version: int, encoding: str) -> Iterator[Finding]:
    if version < OLDEST_SERVER:
        yield broken(
            "version", f"{address} is PostgreSQL {version}", "it lacks what the store's functions call",
            f"version {OLDEST_SERVER} or newer is needed",
        )  # fmt: skip
    else:
        yield fine("version", f"PostgreSQL {version}")
    if encoding != "UTF8":
        yield broken(
            "encoding", f"{address} keeps text as {encoding}", "it cannot hold what people write",
            "create the database with ENCODING 'UTF8'",
        )  # fmt: skip


def _persistence(address: Address, fsync: str, full_pages: str) -> Iterator[Finding]:
    if fsync == "off":
        yield broken(
            "persistence", f"{address} has fsync=off",
            "a power cut loses what was accepted, and may destroy the database", "set fsync=on",
        )  # fmt: skip
    elif full_pages == "off":
        yield risky(
            "persistence", "full_page_writes=off", "a power cut may damage pages",
            "set it to on unless the disk writes them whole",
        )  # fmt: skip
    else:
        yield fine("persistence", "every commit of ours is synced to disk (fsync and synchronous_commit are on)")


def _replication(standbys: int, sync_standbys: str, behind: int | None) -> Iterator[Finding]:
    if not standbys and not sync_standbys:
        yield fine("replication", "no standby: no fail-over, and none that loses writes")
    elif sync_standbys:
        yield fine("replication", f"a commit waits for standbys ({sync_standbys}; {standbys} connected)")
    else:
        seen = "" if behind is None else f" (the best one is {behind} bytes behind now)"
        yield risky(
            "replication",
            f"its standbys are asynchronous{seen}",
            "when one is promoted, accepted writes may be lost and epochs granted again",
            "set synchronous_standby_names to keep G1 and G4 through a fail-over",
        )


async def refuse_transaction_pooling(link: Link, address: Address) -> None:
    """Behind a pooler: see that a session stays a session.

    A setting is left in the session of `link`, which then asks again and again where it is: a pooler in transaction mode that
    lends its servers out in turn has another one for it, unless it has but one. So meanwhile another connection holds a
    transaction open, which gets that one, or whichever was used last. A pooler by statement refuses that transaction.

    :raises StoreUnfitError: the session did not stay.
    """
    try:
        stays = await _stays(link, address)
    except (StoreUnavailableError, RejectedError, TimeoutError):
        stays = False
    if not stays:
        raise StoreUnfitError(
            f"between us and {address} stands a pooler that lends out servers by transaction (PgBouncer's pool_mode = "
            "transaction) or by statement: time-outs, prepared statements and LISTEN need a session; connect to PostgreSQL itself (a node "
            "takes a small, fixed number of connections), or through a pool with pool_mode = session"
        )


async def _stays(link: Link, address: Address) -> bool:
    mark = secrets.token_hex(8)
    await link.run(Statement("SELECT set_config('tenure.session', %s, false)", (mark,)))
    seen = [await _session(link) for _ in range(ASKED)]
    other = await Link.connect(address, "pg_catalog")
    try:
        await other.script("BEGIN")
        await asyncio.wait_for(other.run(Statement("SELECT 1")), address.timeout_s)
        seen += [await _session(link) for _ in range(ASKED)]
        await other.script("ROLLBACK")
    finally:
        await other.close()
    return set(seen) == {(seen[0][0], mark)}


async def _session(link: Link) -> tuple[int, str | None]:
    """Which server's it is, and the mark in it."""
    ((pid, mark),) = (await link.run(Statement("SELECT pg_backend_pid(), current_setting('tenure.session', true)")))[0]
    return pid, mark
