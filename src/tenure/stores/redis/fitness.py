"""What is looked at in the servers of a store: whether they can keep the contract, and which promises they weaken.

One list of findings serves both who opens a store (the first broken one refuses it, a risky one is logged) and who has it
examined (all of them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.abc import Verdict, broken, fine, risky
from tenure.errors import StoreUnavailableError, StoreUnfitError
from tenure.stores.redis.address import Mode
from tenure.stores.redis.link import is_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tenure.abc import Finding
    from tenure.stores.redis.address import Endpoint
    from tenure.stores.redis.link import Reply
    from tenure.stores.redis.servers import Servers

OLDEST = (6, 2)
SETTINGS = ("maxmemory-policy", "appendonly", "appendfsync")

PASSING = ("replication", "health")
"""What ends by itself, on one server of many maybe: writes go unanswered meanwhile, and opening is not refused."""
NEARLY_FULL = 0.9


async def examine(servers: Servers) -> tuple[str, ...]:
    """Look at every server that takes writes; what it weakens, as sentences.

    :raises StoreUnfitError: too old, a replica, or one that evicts keys; with the remedy.
    :raises StoreUnavailableError: one does not answer.
    """
    found = await findings(servers)
    for finding in found:
        if finding.verdict is Verdict.BROKEN and finding.name not in PASSING:
            raise StoreUnfitError(finding.sentence)
    return tuple(finding.sentence for finding in found if finding.verdict is not Verdict.FINE)


async def findings(servers: Servers) -> list[Finding]:
    """What there is to say of every server that takes writes; the same thing is said once.

    :raises StoreUnfitError: what there is cannot be asked. :raises StoreUnavailableError: one does not answer.
    """
    (first, *rest) = await servers.primaries()
    told = await info(servers, first)
    if told.get("cluster_enabled") == "1" and not servers.is_cluster:
        if servers.address.db:
            raise StoreUnfitError(
                f"{first} belongs to a Cluster, which has no database {servers.address.db}; leave it out"
            )
        servers.use_slots()
        (first, *rest) = await servers.primaries()
    found = await _findings_on(servers, first)
    for endpoint in rest:
        found |= await _findings_on(servers, endpoint)
    ailing = {finding.name for finding in found if finding.verdict is not Verdict.FINE}
    return [finding for finding in found if finding.verdict is not Verdict.FINE or finding.name not in ailing]


async def _findings_on(servers: Servers, endpoint: Endpoint) -> dict[Finding, None]:
    """A dict for its order: nothing twice, however many servers give cause for it."""
    told = await info(servers, endpoint)
    settings = await _settings(servers, endpoint, told)
    judged = (
        *_version(endpoint, told),
        *_role(endpoint, told),
        *_eviction(endpoint, settings),
        *_persistence(settings),
        *_replication(servers, endpoint, told),
        *_health(endpoint, told),
    )
    return dict.fromkeys(judged)


async def info(servers: Servers, endpoint: Endpoint) -> dict[str, str]:
    """What ``INFO`` says, by name."""
    (text,) = await servers.tell(endpoint, ("INFO",))
    if is_error(text):
        if str(text).startswith(("LOADING", "BUSY", "MASTERDOWN")):
            raise StoreUnavailableError(f"{endpoint} says {text}; try again")
        raise StoreUnfitError(
            f"{endpoint} refused INFO: {text}; let this user run INFO, which says how the server keeps data"
        )
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


async def _settings(servers: Servers, endpoint: Endpoint, told: dict[str, str]) -> dict[str, str]:
    """The server's settings; where ``CONFIG`` is forbidden (most managed services), what ``INFO`` says of them."""
    known = {
        "maxmemory-policy": told.get("maxmemory_policy", ""),
        "appendonly": "yes" if told.get("aof_enabled") == "1" else "no",
    }
    replies: list[Reply] = await servers.tell(endpoint, *(("CONFIG", "GET", name) for name in SETTINGS))
    for reply in replies:
        match reply:
            case [name, value]:
                known[name.decode()] = value.decode()
            case _:
                pass
    return known


def _version(endpoint: Endpoint, told: dict[str, str]) -> Iterator[Finding]:
    version = told.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        yield broken(
            "version", f"{endpoint} runs Redis {version}", "it lacks commands that the store calls",
            "use what is needed: 6.2 or newer, or Valkey",
        )  # fmt: skip
    elif "valkey_version" in told:
        yield fine("version", f"Valkey {told['valkey_version']}")
    else:
        yield fine("version", f"Redis {version}")


def _role(endpoint: Endpoint, told: dict[str, str]) -> Iterator[Finding]:
    if told.get("role", "master") != "master":
        yield broken(
            "role", f"{endpoint} is a replica and takes no writes", "nothing could be accepted",
            "give the primary's address, or redis+sentinel:// to find it",
        )  # fmt: skip


def _eviction(endpoint: Endpoint, settings: dict[str, str]) -> Iterator[Finding]:
    policy = settings["maxmemory-policy"] or "noeviction"
    if policy == "noeviction":
        yield fine("eviction", "no key is ever evicted (maxmemory-policy noeviction)")
    else:
        yield broken(
            "eviction",
            f"{endpoint} evicts keys when memory is short (maxmemory-policy {policy})",
            "conversations would vanish",
            "run CONFIG SET maxmemory-policy noeviction, and write the same into the server's configuration",
        )


def _persistence(settings: dict[str, str]) -> Iterator[Finding]:
    how = settings.get("appendfsync", "everysec, or unknown")
    if settings["appendonly"] != "yes":
        yield risky(
            "persistence",
            "appendonly is off",
            "a restart loses what came after the last snapshot (G4: accepted is kept) and may grant an epoch again",
            "set appendonly yes",
        )
    elif how != "always":
        yield risky(
            "persistence",
            f"appendfsync is {how}",
            "a crash of the server's machine can lose the last second of accepted writes (G4), and an epoch may be "
            "granted again",
            "set appendfsync always if that is too much",
        )
    else:
        yield fine("persistence", "every write is synced to disk before it is answered (appendfsync always)")


def _replication(servers: Servers, endpoint: Endpoint, told: dict[str, str]) -> Iterator[Finding]:
    replicas, wait = int(told.get("connected_slaves", "0")), servers.address.wait
    if wait > replicas:
        yield broken(
            "replication", f"wait={wait}, {replicas} replicas connected to {endpoint}", "no write can count",
            "attach a replica, or drop ?wait= from the store's URL" if wait == 1 else "attach replicas, or lower ?wait=",
        )  # fmt: skip
    elif wait:
        yield fine("replication", f"a write counts when {wait} replica(s) have it ({replicas} connected)")
    elif servers.address.mode is Mode.SENTINEL or servers.is_cluster or replicas > 0:
        yield risky(
            "replication",
            "replication is asynchronous" + _behind(told),
            "a fail-over can lose accepted writes that no replica had yet (G4), and an epoch may be granted again",
            "add ?wait=1 to the store's URL, so that a write counts when a replica has it",
        )
    else:
        yield fine("replication", "a single server: no fail-over, and none that loses writes")


def _behind(told: dict[str, str]) -> str:
    """The loss window as the primary sees it now: how many bytes of its log the best replica has not confirmed."""
    head = int(told.get("master_repl_offset", "0"))
    parts = [part.partition("=") for name in told if _is_replica(name) for part in told[name].split(",")]
    offsets = [int(value) for name, _, value in parts if name == "offset" and value.isdigit()]
    return f" (the best replica is {max(0, head - max(offsets))} bytes behind now)" if offsets else ""


def _is_replica(name: str) -> bool:
    return name.startswith("slave") and name[5:].isdigit()


def _health(endpoint: Endpoint, told: dict[str, str]) -> Iterator[Finding]:
    """Whether it could write lately, and has room to."""
    used, most = int(told.get("used_memory", "0")), int(told.get("maxmemory", "0"))
    ails = False
    if told.get("aof_last_write_status", "ok") != "ok":
        ails = True
        yield broken(
            "health", f"{endpoint} could not append to its file", "it refuses every write until it can",
            "look at the server's log and at its disk",
        )  # fmt: skip
    if told.get("rdb_last_bgsave_status", "ok") != "ok":
        ails = True
        yield risky(
            "health", f"the last snapshot of {endpoint} failed",
            "with save points set it refuses every write until one succeeds (stop-writes-on-bgsave-error)",
            "look at the server's log, its disk and its memory, then run BGSAVE",
        )  # fmt: skip
    if most and used >= NEARLY_FULL * most:
        ails = True
        yield risky(
            "health", f"{endpoint} uses {used / most:.0%} of its maxmemory", "when it is full, nothing is accepted any more",
            "raise maxmemory, delete conversations, or move other programs' keys elsewhere",
        )  # fmt: skip
    if not ails:
        yield fine(
            "health", "the server could write lately, and has room to" + (f" ({used / most:.0%})" if most else "")
        )
