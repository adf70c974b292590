"""A run: the rows that were asked for, one after the other, each kept as soon as it is there."""

from __future__ import annotations

import asyncio
import importlib
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tenure.cli.bench import page, peers, results
from tenure.cli.bench.places import places
from tenure.cli.bench.results import Row
from tenure.cli.bench.stage import FAILURES, PARTS, Amount, Stage
from tenure.cli.bench.targets import BY_KEY, TARGETS
from tenure.clock import SystemClock
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from tenure.cli.bench.places import Place

GRACE_S = 10.0
"""What parts that were given up may take to leave; the rows behind have so much less."""
WEIGHTS = {
    "claims": 1.5, "heartbeat": 1.5, "takeover": 4.5, "message": 1.5, "idle": 4.0, "append": 2.5, "rolling": 3.5, "startup": 3.0, "openhands": 3.0,
}  # fmt: skip
"""How much of a run's time a row is given, where it is limited: one part, or so many."""
WHOLE = ("redis-py", "python-redis-lock")
"""Packages whose first word would name something else."""


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What a run was asked for. `only`: keys of targets, all if empty; `folder`: where the page is kept, if anywhere."""

    store: str | None
    amount: Amount
    only: tuple[str, ...]
    folder: Path | None
    command: str


def chosen(only: Sequence[str]) -> tuple[str, ...]:
    """Keys of targets from what was asked, by key or number, in the order of the page.

    :raises InvalidInputError: there is no such.
    """
    names = {str(target.number): target.key for target in TARGETS} | {key: key for key in BY_KEY}
    for one in only:
        if one not in names:
            known = ", ".join(f"{target.number} {target.key}" for target in TARGETS)
            raise InvalidInputError("only", f"{one!r} is no row", f"there are {known}")
    wanted = {names[one] for one in only} or set(BY_KEY)
    return tuple(target.key for target in TARGETS if target.key in wanted)


async def run(asked: Asked, say: Callable[[str], None]) -> dict[str, Row]:
    """Measure; what a measurement could not do is said, and the others go on. The rows that were measured now."""
    found: dict[str, Row] = {}
    began = time.monotonic()
    async with places(asked.store) as (there, missing):
        for kind, why in missing.items():
            say(f"{kind}: not measured: {why}")
        keys = list(_wanted(asked, say))
        while keys:
            key = keys.pop(0)
            say(f"{BY_KEY[key].number} {BY_KEY[key].measurement} …")
            row = await _measured(asked, key, there, missing, share_s(asked, began, key, keys))
            if not row.figures:
                say(f"  not measured: {'; '.join(row.missing.values())}")
                continue
            found[key] = row
            _tell(row, missing, say)
            if asked.folder is not None:
                keep(asked.folder, row)
    took = time.monotonic() - began
    for row in found.values():
        row.run["whole_s"] = took
        if asked.folder is not None:
            keep(asked.folder, row)
    say(f"{took:.0f} s for {len(found)} rows")
    return found


def _wanted(asked: Asked, say: Callable[[str], None]) -> tuple[str, ...]:
    """The rows to measure; those that these amounts leave out are said, and on the page if no earlier run has them."""
    left = {key: why for key, why in asked.amount.left_out.items() if not asked.only}
    for key, why in left.items():
        say(f"{BY_KEY[key].number} {BY_KEY[key].measurement}: {why}")
        if asked.folder is not None and key not in results.load(asked.folder):
            keep(asked.folder, Row(key, missing={"this row": why}))
    return tuple(key for key in chosen(asked.only) if key not in left)


def share_s(asked: Asked, began: float, key: str, behind: Sequence[str]) -> float:
    """How long this row may take: its share of what is left for it and those behind it, and no longer than any row may."""
    left_s = max(0.0, began + asked.amount.total_s - time.monotonic())
    mine, others = WEIGHTS.get(key, 1.0), sum(WEIGHTS.get(other, 1.0) for other in behind)
    return min(asked.amount.limit_s, left_s * mine / (mine + others))


def _tell(row: Row, missing: dict[str, str], say: Callable[[str], None]) -> None:
    for bound in row.bounds:
        word = {True: "met", False: "NOT MET", None: "not measured"}[bound.met]
        say(f"  {word:12} {bound.text}: {bound.found}")
    for what, why in row.missing.items():
        if what not in missing:
            say(f"  left out     {what}: {why}")


def keep(folder: Path, row: Row) -> None:
    """Put the row among those that are kept, and write the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = results.load(folder) | {row.key: row}
    ordered = {target.key: rows[target.key] for target in TARGETS if target.key in rows}
    results.save(folder, ordered)
    page.write(folder, ordered)


async def _measured(asked: Asked, key: str, there: dict[Any, Place], missing: dict[str, str], limit_s: float) -> Row:
    """The row, as far as it came."""
    measure = importlib.import_module(f"tenure.cli.bench.rows.{key}").measure
    before, began = os.getloadavg()[0], time.monotonic()
    row = Row(key, missing=dict(missing))
    try:
        async with asyncio.timeout(limit_s + GRACE_S):
            await measure(Stage(there, asked.amount, began + PARTS * limit_s), row)
    except FAILURES as error:
        row.missing["what is not here"] = str(error).partition("\n")[0] or f"not done within {limit_s + GRACE_S:.0f} s"
    versions = {
        "tenure": version("tenure"),
        "Python": platform.python_version(),
        **{kind: place.version for kind, place in there.items()},
        **peers.versions(),
    }
    named = " ".join(figure.name for figure in row.figures).lower()
    shown = [
        name for name in versions if name in ("tenure", "Python") or (name if name in WHOLE else _first(name)) in named
    ]
    row.run = {
        "command": asked.command,
        "amount": asked.amount.name,
        "date": SystemClock().now().isoformat()[:16].replace("T", " ") + " UTC",
        "versions": versions,
        "shown": shown,
        "load": [before, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "seconds": time.monotonic() - began,
    }
    return row


def _first(package: str) -> str:
    return package.partition("-")[0].lower()


def measure(asked: Asked, say: Callable[[str], None]) -> dict[str, Row]:
    """:func:`run`, for who has no event loop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C: servers and nodes end with the run
    return asyncio.run(run(asked, say))
