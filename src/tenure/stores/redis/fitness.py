"""What is looked at when a store is opened: whether the servers can keep the contract, and which promises they weaken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.redis.address import Mode
from tenure.stores.redis.link import is_error

if TYPE_CHECKING:
    from tenure.stores.redis.address import Endpoint
    from tenure.stores.redis.link import Reply
    from tenure.stores.redis.servers import Servers

OLDEST = (6, 2)
SETTINGS = ("maxmemory-policy", "appendonly", "appendfsync")


async def examine(servers: Servers) -> tuple[str, ...]:
    """Look at every server that takes writes; what it weakens, as sentences.

    :raises StoreUnfitError: too old, a replica, or one that evicts keys; with the remedy.
    :raises StoreUnavailableError: one does not answer.
    """
    (first, *rest) = await servers.primaries()
    info = await _info(servers, first)
    if info.get("cluster_enabled") == "1" and not servers.is_cluster:
        if servers.address.db:
            raise StoreUnfitError(
                f"{first} belongs to a Cluster, which has no database {servers.address.db}; leave it out"
            )
        servers.use_slots()
        (first, *rest) = await servers.primaries()
    weakened = await _examine_one(servers, first)
    for endpoint in rest:
        weakened |= await _examine_one(servers, endpoint)
    return tuple(weakened)


async def _examine_one(servers: Servers, endpoint: Endpoint) -> dict[str, None]:
    """A dict for its order: no sentence twice, however many servers give cause for it."""
    info = await _info(servers, endpoint)
    settings = await _settings(servers, endpoint, info)
    _refuse_unfit(endpoint, info, settings)
    return dict.fromkeys(_weakened(servers, info, settings))


async def _info(servers: Servers, endpoint: Endpoint) -> dict[str, str]:
    (text,) = await servers.tell(endpoint, ("INFO",))
    if is_error(text):
        if str(text).startswith(("LOADING", "BUSY", "MASTERDOWN")):
            raise StoreUnavailableError(f"{endpoint} says {text}; try again")
        raise StoreUnfitError(
            f"{endpoint} refused INFO: {text}; let this user run INFO, which says how the server keeps data"
        )
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


async def _settings(servers: Servers, endpoint: Endpoint, info: dict[str, str]) -> dict[str, str]:
    """The server's settings; where ``CONFIG`` is forbidden (most managed services), what ``INFO`` says of them."""
    known = {
        "maxmemory-policy": info.get("maxmemory_policy", ""),
        "appendonly": "yes" if info.get("aof_enabled") == "1" else "no",
    }
    replies: list[Reply] = await servers.tell(endpoint, *(("CONFIG", "GET", name) for name in SETTINGS))
    for reply in replies:
        match reply:
            case [name, value]:
                known[name.decode()] = value.decode()
            case _:
                pass
    return known


def _refuse_unfit(endpoint: Endpoint, info: dict[str, str], settings: dict[str, str]) -> None:
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise StoreUnfitError(f"{endpoint} runs Redis {version}; needed is 6.2 or newer, or Valkey")
    if info.get("role", "master") != "master":
        raise StoreUnfitError(
            f"{endpoint} is a replica and takes no writes; give the primary's address, or redis+sentinel:// to find it"
        )
    policy = settings["maxmemory-policy"] or "noeviction"
    if policy != "noeviction":
        raise StoreUnfitError(
            f"{endpoint} evicts keys when memory is short (maxmemory-policy {policy}): conversations would vanish. "
            "Run CONFIG SET maxmemory-policy noeviction, and write the same into the server's configuration"
        )


def _weakened(servers: Servers, info: dict[str, str], settings: dict[str, str]) -> list[str]:
    found: list[str] = []
    if settings["appendonly"] != "yes":
        found.append(
            "appendonly is off: a restart loses what came after the last snapshot (G4: accepted is kept) and may grant "
            "an epoch again; set appendonly yes"
        )
    elif settings.get("appendfsync", "everysec") != "always":
        how = settings.get("appendfsync", "everysec, or unknown")
        found.append(
            f"appendfsync is {how}: a crash of the server's machine can lose the last second of accepted writes (G4), "
            "and an epoch may be granted again; set appendfsync always if that is too much"
        )
    fails_over = (
        servers.address.mode is Mode.SENTINEL or servers.is_cluster or int(info.get("connected_slaves", "0")) > 0
    )
    if fails_over and not servers.address.wait:
        found.append(
            "replication is asynchronous: a fail-over can lose accepted writes that no replica had yet (G4), and an epoch "
            "may be granted again; add ?wait=1 to the store's URL, so that a write counts when a replica has it"
        )
    return found
