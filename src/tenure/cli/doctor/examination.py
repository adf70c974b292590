"""The order of an examination: the server first; its operations only if nothing is broken so far."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tenure.abc import Verdict, broken, fine, risky
from tenure.cli.doctor.latency import latency_finding, round_trips
from tenure.cli.doctor.zombie import Patient, zombie_findings
from tenure.cli.exits import Exit
from tenure.errors import StoreError, StoreUnavailableError
from tenure.stores import open_store

if TYPE_CHECKING:
    from tenure.abc import Finding, Store
    from tenure.lease import Timing

EXAMINED_S, TRIED_S = 60.0, 120.0
"""Nothing takes longer; a store that makes the examination take so long is none to trust."""
UNREACHED = "reachability"


async def findings_of(url: str, timing: Timing) -> list[Finding]:
    """All that there is to say of the store that the URL names, for nodes with this lease.

    :raises InvalidInputError: the URL names no store.
    """
    store = open_store(url)
    found: list[Finding] = []
    try:
        async with asyncio.timeout(EXAMINED_S):
            found += await store.examine()
        found.insert(0, fine(UNREACHED, "it answers, and lets us in"))
        if any(finding.verdict is Verdict.BROKEN for finding in found):
            found.append(_untried("with something broken no node may open the store", "mend what is broken"))
            return found
        if any(finding.name == "schema" and finding.verdict is Verdict.RISKY for finding in found):
            found.append(_untried("opening the store would migrate it, under the nodes that live on it", "migrate it"))
            return found
        async with asyncio.timeout(TRIED_S), store:
            found += await _trials(store, timing)
    except (StoreError, TimeoutError) as error:
        found.append(_failed(error))
    return found


async def _trials(store: Store, timing: Timing) -> list[Finding]:
    async with Patient.registered(store) as patient:
        trips = await round_trips(patient)
        return [latency_finding(trips, timing), *await zombie_findings(patient, trips[-1])]


def _untried(why: str, remedy: str) -> Finding:
    return risky("zombie", "not tried", why, f"{remedy}, then run this again")


def _failed(error: Exception) -> Finding:
    """What ended the examination."""
    if isinstance(error, StoreUnavailableError | TimeoutError):
        what = str(error) or f"it did not answer within {EXAMINED_S:g} to {TRIED_S:g} s"
        return broken(
            UNREACHED, what, "no node can work without it",
            "see that it runs, that this machine reaches it, and that the URL is right",
        )  # fmt: skip
    what, _, remedy = str(error).rpartition("; ")
    return broken("fitness", what or remedy, "no node can open it", remedy if what else "look at the server's log")


def exit_of(found: list[Finding]) -> Exit:
    """Risks are for people to weigh; only what is broken fails."""
    bad = [finding for finding in found if finding.verdict is Verdict.BROKEN]
    if any(finding.name == UNREACHED for finding in bad):
        return Exit.UNAVAILABLE
    return Exit.FAILED if bad else Exit.OK
