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
from tenure.cli.bench.sampling import MeasureFailedError
from tenure.cli.bench.stage import Amount, Stage
from tenure.cli.bench.targets import BY_KEY, TARGETS
from tenure.clock import SystemClock
from tenure.errors import InvalidInputError, TenureError

if TYPE_CHECKING:
    from tenure.cli.bench.places import Place
    from tenure.cli.bench.results import Row


PARTS = 0.8
"""The share of a row's time in which its parts are done: what hangs is given up while there is time to say so."""


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
    async with places(asked.store) as (there, missing):
        for kind, why in missing.items():
            say(f"{kind}: not measured: {why}")
        for key in chosen(asked.only):
            say(f"{BY_KEY[key].number} {BY_KEY[key].measurement} …")
            try:
                found[key] = await _measured(asked, key, there, missing)
            except (MeasureFailedError, TenureError, TimeoutError) as error:
                why = str(error) or f"not done within {asked.amount.limit_s:g} s"
                say(f"  not measured: {why}")
                continue
            for bound in found[key].bounds:
                word = {True: "met", False: "NOT MET", None: "not measured"}[bound.met]
                say(f"  {word:12} {bound.text}: {bound.found}")
            if asked.folder is not None:
                keep(asked.folder, found[key])
    return found


def keep(folder: Path, row: Row) -> None:
    """Put the row among those that are kept, and write the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = results.load(folder) | {row.key: row}
    ordered = {target.key: rows[target.key] for target in TARGETS if target.key in rows}
    results.save(folder, ordered)
    page.write(folder, ordered)


async def _measured(asked: Asked, key: str, there: dict[Any, Place], missing: dict[str, str]) -> Row:
    measure = importlib.import_module(f"tenure.cli.bench.rows.{key}").measure
    before, began = os.getloadavg()[0], time.monotonic()
    async with asyncio.timeout(asked.amount.limit_s):
        row: Row = await measure(Stage(there, asked.amount, began + PARTS * asked.amount.limit_s))
    row.missing = missing | row.missing
    versions = {
        "tenure": version("tenure"),
        "Python": platform.python_version(),
        **{kind: place.version for kind, place in there.items()},
        **peers.versions(),
    }
    named = " ".join(figure.name for figure in row.figures)
    words = {"redis": "redis", "python-redis-lock": "python-redis-lock", "dbos": "DBOS", "tooz": "tooz"}
    shown = [
        name
        for name in versions
        if name in ("tenure", "Python") or words.get(name, name.partition("-")[0]).lower() in named.lower()
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


def measure(asked: Asked, say: Callable[[str], None]) -> dict[str, Row]:
    """:func:`run`, for who has no event loop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C: servers and nodes end with the run
    return asyncio.run(run(asked, say))
