"""Samples, their middle and their spread; and contestants that are measured in turn."""

from __future__ import annotations

import cProfile
import math
import pstats
import statistics
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

PROFILED = 10
"""So many functions of a profile are shown."""

type Contestant = Callable[[], Awaitable[float]]


class MeasureFailedError(Exception):
    """A measurement could not be made; the message says why."""


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest of the values that at least this part of them does not exceed."""
    ascending = sorted(values)
    return ascending[max(0, math.ceil(part * len(ascending)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


async def in_turn(rounds: int, contestants: dict[str, Contestant]) -> dict[str, list[float]]:
    """Each contestant once per round, one after the other: what else the machine does then meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(await contestants[name]())
    return found


async def profiled(work: Callable[[], Awaitable[object]]) -> list[tuple[str, float]]:
    """Where this process spends its time in `work`: functions and their own share of it, the largest first."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        await work()
    finally:
        profile.disable()
    found = cast("dict[Any, Any]", cast("Any", pstats.Stats(profile)).stats)
    total = sum(row[2] for row in found.values()) or 1.0
    most = sorted(found.items(), key=lambda one: -one[1][2])[:PROFILED]
    return [(_place(where), row[2] / total) for where, row in most]


def _place(where: tuple[str, int, str]) -> str:
    file, _, function = where
    if file == "~":
        return function.strip("<>")
    parts = Path(file).parts
    return f"{'/'.join(parts[-2:])}: {function}"
