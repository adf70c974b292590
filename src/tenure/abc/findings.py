"""What an examination of a store finds: facts for people who are to trust it, each with its remedy."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from tenure.journal import Json


class Verdict(enum.StrEnum):
    """How bad it is."""

    FINE = "fine"
    RISKY = "risky"
    """It works, and some promise is weaker for it."""
    BROKEN = "broken"
    """No node can or may run on it."""


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `name` is what (``persistence``, a stable word), `what` is what there is, `why` what
    follows from it; `remedy` is what to do, empty where nothing is to be done. Never holds a password."""

    name: str
    verdict: Verdict
    what: str
    why: str = ""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """All of it in one line, for errors and logs."""
        told = f"{self.what}: {self.why}" if self.why else self.what
        return f"{told}; {self.remedy}" if self.remedy else told

    def as_json(self) -> dict[str, Json]:
        """The shape that ``tenure doctor --json`` prints."""
        return {
            "name": self.name, "verdict": self.verdict.value, "what": self.what, "why": self.why, "remedy": self.remedy,
        }  # fmt: skip


def fine(name: str, what: str) -> Finding:
    """Nothing is to be done."""
    return Finding(name, Verdict.FINE, what)


def risky(name: str, what: str, why: str, remedy: str) -> Finding:
    """It works, and some promise is weaker for it."""
    return Finding(name, Verdict.RISKY, what, why, remedy)


def broken(name: str, what: str, why: str, remedy: str) -> Finding:
    """No node can or may run on it."""
    return Finding(name, Verdict.BROKEN, what, why, remedy)


def clock_finding(offset_s: float, uncertain_s: float, whose: str) -> Finding:
    """What a store's wall clock is ahead of this machine's, in seconds, give or take `uncertain_s` (half a round trip)."""
    what = f"{whose} is {abs(offset_s):.3f} s {'ahead of' if offset_s >= 0 else 'behind'} this machine's, ± {uncertain_s:.3f} s"
    if abs(offset_s) - uncertain_s < CLOCKS_APART_S:
        return fine("clock", what)
    return risky(
        "clock",
        what,
        "no lease depends on this machine's time, but the times in journals are the store's, and when another machine "
        "becomes the store, its leases end early or late by as much",
        "run NTP on both machines",
    )


CLOCKS_APART_S = 0.5
"""What NTP keeps by far, and people do not notice."""
