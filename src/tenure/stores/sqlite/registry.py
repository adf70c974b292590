"""Writing, beside the conversations: the nodes' leases, the vault and the papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.abc import Alive, Buried, Dead, Death, Deleted, Granted, Paper, Refused, Sealed, Stale, Topic, Unknown
from tenure.stores import rules
from tenure.stores.sqlite import statements as sql
from tenure.stores.sqlite.columns import text_of

if TYPE_CHECKING:
    from tenure.abc import About, Load
    from tenure.journal import JsonObject
    from tenure.lease import IncarnationId
    from tenure.stores.sqlite.transaction import Transaction

DEATHS: tuple[Death | None, ...] = (None, Death.EXPIRED, Death.RETIRED, Death.EXITED)
"""What ``nodes.dead`` stands for; 0 is alive."""


def register(tx: Transaction, incarnation: IncarnationId, about: About, ttl_s: float) -> Granted | Refused:
    columns = (incarnation, about.node, about.address, about.capacity, text_of(about.agents), about.started_at.unix_s)
    done = tx.connection.execute(sql.INSERT_NODE, (*columns, ttl_s, tx.store_now + ttl_s))
    return Granted(0) if done.rowcount else Refused("registered-before")


def renew(
    tx: Transaction, incarnation: IncarnationId, beat: int, nonce: str, ttl_s: float, load: Load
) -> Granted | Dead:
    found = tx.connection.execute(sql.LEASE_OF_NODE, (incarnation,)).fetchone()
    if found is None:
        return Dead()
    _, expires, last_beat, last_nonce, dead = found
    if dead or tx.store_now >= expires:
        return Dead()
    repeated = beat == last_beat - 1 and nonce == last_nonce
    if beat != last_beat and not repeated:
        return Dead()
    given = (ttl_s, tx.store_now + ttl_s, beat + 1, nonce, load.owned, load.draining, incarnation)
    tx.connection.execute(sql.RENEW, given)
    return Granted(beat + 1)


def bury(tx: Transaction, incarnation: IncarnationId, why: Death) -> Buried | Alive:
    found = tx.connection.execute(sql.LEASE_OF_NODE, (incarnation,)).fetchone()
    if found is None:
        return Alive(float("inf"))
    ttl_s, expires, _, _, dead = found
    if dead:
        return Buried(DEATHS[int(dead)])
    left = min(expires - tx.store_now, ttl_s)
    if why is Death.EXPIRED and left > 0:
        tx.connection.execute(sql.CLAMP, (tx.store_now + left, incarnation))
        return Alive(left)
    tx.connection.execute(sql.BURY, (DEATHS.index(why), tx.store_now + left, incarnation))
    tx.signal(Topic.WANTED, "")
    tx.signal(Topic.NODE, incarnation)
    return Buried(why)


def seal(
    tx: Transaction, conversation: str, name: str, ciphertext: bytes, version: int
) -> Sealed | Stale | Deleted | Unknown:
    found = tx.find(conversation)
    if found is None:
        return Unknown()
    created_no, row = found
    if row.record.deleted:
        return Deleted(row.record.epoch)
    old = tx.connection.execute(sql.SECRET, (created_no, name)).fetchone()
    if (old[1] if old else 0) != version:
        return Stale(rules.shown(row, tx.store_now))
    tx.connection.execute(sql.PUT_SECRET, (created_no, name, ciphertext, version + 1))
    return Sealed(name, ciphertext, version + 1)


def forget(tx: Transaction, conversation: str, name: str, version: int) -> bool:
    found = tx.find(conversation)
    if found is None:
        return True
    tx.connection.execute(sql.FORGET_SECRET, (found[0], name, version))
    return tx.connection.execute(sql.SECRET, (found[0], name)).fetchone() is None


def put_paper(tx: Transaction, kind: str, id: str, document: JsonObject, version: int) -> Paper | None:
    old = tx.connection.execute(sql.PAPER, (kind, id)).fetchone()
    if (old[1] if old else 0) != version:
        return None
    tx.connection.execute(sql.PUT_PAPER, (kind, id, text_of(document), version + 1))
    if kind == "request":
        tx.signal(Topic.NODE, id.partition("/")[0])
    return Paper(kind, id, document, version + 1)


def remove_paper(tx: Transaction, kind: str, id: str, version: int) -> bool:
    tx.connection.execute(sql.REMOVE_PAPER, (kind, id, version))
    return tx.connection.execute(sql.PAPER, (kind, id)).fetchone() is None
