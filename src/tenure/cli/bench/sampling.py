"""Samples, their middle and their spread; and contestants that are measured in turn."""

from __future__ import annotations

import asyncio
import cProfile
import math
import pstats
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

PROFILED = 10
"""So many functions of a profile are shown."""
P99_FROM = 20
WAITING = "waiting for an answer or a message (epoll)"

type Contestant = Callable[[], Awaitable[float]]


class MeasureFailedError(Exception):
    """A measurement could not be made; the message says why."""


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest of the values that at least this part of them does not exceed."""
    ascending = sorted(values)
    return ascending[max(0, math.ceil(part * len(ascending)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


async def in_turn(
    rounds: int, contestants: Mapping[str, Contestant], *, warm: int = 0, within_s: float = math.inf
) -> dict[str, list[float]]:
    """Each contestant once per round, one after the other: what else the machine does then meets all of them.

    `warm`: so often each does its work before, and nothing is kept of it: connections are made, scripts and plans known.
    `within_s`: when so much has passed, no other round begins; there is always one.
    """
    ends_at = time.monotonic() + within_s
    for _ in range(warm):
        for work in contestants.values():
            await work()
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        if number and time.monotonic() > ends_at:
            break
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(await contestants[name]())
    return found


async def in_thread[R](work: Callable[[], R]) -> R:
    """Do it in a thread. Given up, it is waited for first: what the thread uses is closed afterwards, never under its hands."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


type Shares = list[tuple[str, float]]
"""Parts of something and their share of it, the largest first."""


async def profiled(work: Callable[[], Awaitable[object]]) -> Shares:
    """Where this process spends its time in `work`: functions and their own share of it."""
    profile = Profile()
    profile.start()
    try:
        await work()
    finally:
        found = profile.stop()
    return found


@final
class Profile:
    """Where the event loop's thread spends its time between a start and a stop: waiting for others is one of the places."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def start(self) -> None:
        self._profile = cProfile.Profile()
        self._profile.enable()

    def stop(self) -> Shares:
        self._profile.disable()
        found = cast("dict[Any, Any]", cast("Any", pstats.Stats(self._profile)).stats)
        return shares({_place(where): row[2] for where, row in found.items()})


def shares(parts: Mapping[str, float]) -> Shares:
    """The largest parts, each as its share of all of them."""
    total = sum(parts.values()) or 1.0
    most = sorted(parts.items(), key=lambda one: -one[1])[:PROFILED]
    return [(what, part / total) for what, part in most if part > 0]


def _place(where: tuple[str, int, str]) -> str:
    file, _, function = where
    if file != "~":
        return f"{short(file)}: {function}"
    function = function.strip("<>")
    return WAITING if "poll" in function and "select" in function else function


def short(file: str) -> str:
    """A file's name and its folder's: enough to find it."""
    return "/".join(Path(file).parts[-2:])


def upper(values: Sequence[float], unit: str = "ms") -> str:
    """The 99th of a hundred, for people; of so few that it would be the last one anyway, that is what it is called."""
    name = "p99" if len(values) >= P99_FROM else "at most"
    return f"{name} {quantile(values, 0.99):,.0f} {unit} of {len(values)}"
