"""What ``tenure doctor`` asks of the servers beyond what opening a store does: clock, permissions, layout. Writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.abc import Verdict, broken, clock_finding, fine
from tenure.clock import Instant, SystemClock
from tenure.stores.redis.fitness import findings
from tenure.stores.redis.keys import NODES, Keyspace
from tenure.stores.redis.link import is_error

if TYPE_CHECKING:
    from tenure.abc import Finding
    from tenure.stores.redis.address import Endpoint
    from tenure.stores.redis.link import Command
    from tenure.stores.redis.servers import Servers

SCHEMA = 1
"""How the keys are laid out; written when a store is used first."""


async def examined(servers: Servers) -> list[Finding]:
    """All that there is to say.

    :raises StoreUnfitError: what there is cannot be asked. :raises StoreUnavailableError: one does not answer.
    """
    found = await findings(servers)
    (first, *rest) = await servers.primaries()
    found += [await _clock(servers, endpoint) for endpoint in (first, *rest)]
    found += dict.fromkeys([await _permissions(servers, endpoint) for endpoint in (first, *rest)])
    if not any(finding.name in ("role", "permissions") and finding.verdict is Verdict.BROKEN for finding in found):
        found.append(await _layout(servers))
    return found


async def _clock(servers: Servers, endpoint: Endpoint) -> Finding:
    clock = SystemClock()
    before, here = clock.boottime(), clock.now()
    (told,) = await servers.tell(endpoint, ("TIME",))
    half = (clock.boottime() - before) / 2
    if is_error(told):
        return broken("clock", f"{endpoint} refused TIME", "leases run by it", "let this user run TIME")
    there = Instant(int(told[0]) + int(told[1]) / 1e6)
    return clock_finding(there.unix_s - (here.unix_s + half), half, f"the clock of {endpoint}")


async def _permissions(servers: Servers, endpoint: Endpoint) -> Finding:
    """Ask for every command in a form that comes to nothing: a server looks at who asks before it looks at values."""
    prefix = servers.address.prefix
    asked = _harmless(Keyspace(prefix, 1).nowhere, f"{prefix}@{servers.address.db}:nowhere")
    replies = await servers.tell(endpoint, *asked)
    refused = [str(command[0]) for command, reply in zip(asked, replies, strict=True) if is_error(reply, "NOPERM")]
    if not refused:
        return fine("permissions", f"this user may run the {len(asked)} commands that were tried, on the store's keys")
    return broken(
        "permissions",
        f"this user may not run {', '.join(refused)} on keys that begin with {prefix}: ({endpoint})",
        "operations that need it fail, and the scripts that call it stop half-way",
        f"run ACL SETUSER … ~{prefix}:* &{prefix}@* {' '.join(f'+{name.lower()}' for name in refused)}",
    )


def _harmless(key: str, channel: str) -> list[Command]:
    """The commands that the store or its scripts call, on a key that is not there, in forms that leave nothing behind.

    HSETNX and LPUSH have no such form: opening the store calls the one, a refused write the other. DUMP and RESTORE save memory, and
    who may not call them does without.
    """
    return [
        ("HSET", key, "field", "value", "one too many"), ("PUBLISH", channel, ""),
        ("EVAL", "return 1", 1, key), ("TIME",), ("EXISTS", key), ("EXPIRE", key, 1), ("UNLINK", key),
        ("HGET", key, "field"), ("HMGET", key, "field"), ("HGETALL", key), ("HLEN", key), ("HDEL", key, "field"),
        ("LRANGE", key, 0, 0), ("LTRIM", key, 0, 0),
        ("ZADD", key, "XX", 1, "member"), ("ZINCRBY", key, "no number", "member"), ("ZCARD", key), ("ZSCORE", key, "member"),
        ("ZRANGE", key, 0, 0), ("ZRANGEBYLEX", key, "-", "+"), ("ZRANGEBYSCORE", key, 0, 0), ("ZREVRANGEBYSCORE", key, 0, 0),
        ("ZLEXCOUNT", key, "-", "+"), ("ZREM", key, "member"), ("ZREMRANGEBYSCORE", key, 0, 0),
        ("XADD", key, "NOMKSTREAM", "*", "field", "value"), ("XRANGE", key, "-", "+"), ("XREVRANGE", key, "+", "-"), ("XLEN", key),
    ]  # fmt: skip


async def _layout(servers: Servers) -> Finding:
    key = Keyspace(servers.address.prefix, 1).store
    ((partitions, schema),) = await servers.get(NODES, ("HMGET", key, "partitions", "schema"))
    if schema is None:
        return fine("schema", "no store is there yet: whoever opens it first makes it")
    return layout_finding(str(servers.address), int(schema), int(partitions or 0))


def layout_finding(where: str, schema: int, partitions: int) -> Finding:
    """Whether this release can read what is there."""
    if schema == SCHEMA:
        return fine("schema", f"layout {schema}, {partitions} partitions")
    if schema > SCHEMA:
        return broken(
            "schema", f"the store at {where} has layout {schema}, newer than this version's {SCHEMA}",
            "this version would misread it", "upgrade this node",
        )  # fmt: skip
    return broken(
        "schema", f"the store at {where} has layout {schema}, older than this version's {SCHEMA}",
        "this version knows no way from there", "export with the release that wrote it, import with this one into a new ?prefix=",
    )  # fmt: skip
