"""What is measured, and what it is measured against: the rows of the page, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Target:
    """One row: what is measured, the limit that nothing can pass on one machine, and what we ask of ourselves."""

    number: int
    key: str
    measurement: str
    limit: str
    ours: str


TARGETS: tuple[Target, ...] = (
    Target(
        1, "claims", "claims per second, with epoch and index",
        "raw EVALSHA of the same client", "≥ 95 % of it singly; ≥ 50,000 per s in batches",
    ),
    Target(
        2, "heartbeat", "heartbeat with 1,000 / 10,000 / 100,000 conversations held",
        "57 µs, constant", "flat; < 0.1 % of a core",
    ),
    Target(
        3, "takeover", "takeover: kill -9, freeze, store restart, partition, blocked event loop; 10,000 conversations of a dead node",
        "0.7 ms + claim + replay",
        "crash p99 < 250 ms on one host, < 1 s through the store alone; freeze p99 < ttl + 0.5 s; 10,000 within 2 s",
    ),
    Target(
        4, "message", "message at a random node → owner has it, durable, p50",
        "TCP + one durable write", "< 0.5 ms over Redis, < 1.5 ms over PostgreSQL",
    ),
    Target(
        5, "idle", "passivated / resident idle conversation; wake-up with 100 events",
        "138 B / 4.5 KB", "< 300 B / < 6 KB; < 5 ms",
    ),
    Target(
        6, "append", "fenced append", "the same append unfenced",
        "≥ 90 % of it; PostgreSQL ≥ 6,000 per s at 16 writers, ≥ 25,000 at 200; SQLite ≥ 20,000 at 200; "
        "Redis ≥ 40,000 at 200; constant in the length of the history",
    ),
    Target(
        7, "rolling", "rolling restart of 3 nodes under 100 live streams", "one step boundary",
        "0 turns dropped, 0 calls doubled, 0 events missing or doubled at a client with a cursor, longest gap p99 < 1 s",
    ),
    Target(
        8, "startup", "start-up time and memory with 100,000 stored conversations",
        "those of an empty store", "equal within noise",
    ),
    Target(
        9, "openhands", "OpenHands agents: start of a server, memory and start of a conversation, takeover after kill -9 in a tool",
        "the SDK itself", "at most what the stock agent server takes, within noise; takeover by itself, < 2 s",
    ),
)  # fmt: skip

BY_KEY = {target.key: target for target in TARGETS}
