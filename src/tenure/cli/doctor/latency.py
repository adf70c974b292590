"""How long the store takes to renew a lease, against what a lease leaves room for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tenure.abc import fine, risky
from tenure.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.abc import Finding
    from tenure.cli.doctor.zombie import Patient
    from tenure.lease import Timing

AT_LEAST, AT_MOST, BUDGET_S = 5, 100, 1.0
"""So many renewals, and within those bounds as many as fit into the time."""
RENEWALS = 4
"""That must fit into the time between a lease's start and the end of trust: two may be lost, one is late."""


async def round_trips(patient: Patient) -> list[float]:
    """Seconds that renewals took, ascending: the very operation that must be in time."""
    clock, took = SystemClock(), list[float]()
    begun = clock.boottime()
    while len(took) < AT_LEAST or (len(took) < AT_MOST and clock.boottime() - begun < BUDGET_S):
        before = clock.boottime()
        await patient.renew()
        took.append(clock.boottime() - before)
    return sorted(took)


def latency_finding(trips: Sequence[float], timing: Timing) -> Finding:
    """What these ascending seconds mean for nodes with this lease."""
    room = (timing.ttl_s - timing.margin_s) / RENEWALS
    p50, p99 = (quantile(trips, part) for part in (0.5, 0.99))
    what = (
        f"a renewal takes {p50 * 1000:.1f} ms (p50), {p99 * 1000:.1f} ms (p99) of {len(trips)}; "
        f"a ttl of {timing.ttl_s:g} s leaves room for {room * 1000:.0f} ms"
    )
    if p99 <= room:
        return fine("latency", what)
    return risky(
        "latency",
        what,
        f"fewer than {RENEWALS} renewals fit into a lease: a slow moment, and a healthy node gives up all that it holds",
        f"bring nodes and store closer, or set TENURE_TTL_S to {math.ceil(p99 * RENEWALS / 0.9 + 0.05)} or more",
    )


def quantile(ascending: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed."""
    return ascending[max(0, math.ceil(part * len(ascending)) - 1)]
