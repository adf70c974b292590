"""Breadth first through every state; the first trace to anything wrong is a shortest one.

Liveness is AG EF_fair: from every state that can be reached there is a way, by fair moves alone, to one in which
nothing is left to do. No luck is needed for it, and no further fault, wish or hint.
"""

from __future__ import annotations

import re
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from tenure.testing.model.protocol import Broken, Protocol, Scenario
from tenure.testing.model.state import Renamed, renamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tenure.testing.model.state import State


@final
@dataclass(frozen=True, slots=True)
class Explored:
    """What came of it. `broken` is null if nothing is; `trace` then leads from the beginning to it, a move a line."""

    states: int
    moves: int
    operations: int
    """Operations that the memory store ran: the rest had been seen on an equal content."""
    seconds: float
    closed: bool
    """Every reachable state was seen; false: the limit came first."""
    broken: str | None = None
    trace: tuple[str, ...] = ()

    def report(self) -> str:
        """One line, and the trace if there is one."""
        verdict = self.broken or ("no violation, no stuck state" if self.closed else "not closed; nothing found")
        lines = [f"{self.states:>9,} states {self.moves:>10,} moves {self.seconds:7.1f} s  {verdict}"]
        return "\n".join(lines + [f"    {n:2d} {move}" for n, move in enumerate(self.trace, 1)])


def explore(scenario: Scenario, limit: int = 3_000_000, *, reduce: bool = True) -> Explored:
    """Every state of the scenario, at most `limit`; `reduce`: those that differ in names alone count as one."""
    return _Search(scenario, limit, renamed if reduce else _as_it_is).run()


@final
class _Search:
    def __init__(self, scenario: Scenario, limit: int, same: Callable[[State], Renamed]) -> None:
        self._protocol = Protocol(scenario)
        self._limit = limit
        self._same = same
        self._states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._parents = array("l")
        self._fair_from, self._fair_to = array("L"), array("L")
        self._began = time.perf_counter()
        self._moves = 0
        self._expanded = 0

    def run(self) -> Explored:
        self._add(self._same(self._protocol.begin()).state, -1)
        try:
            while self._expanded < len(self._states) <= self._limit:
                self._expand(self._expanded)
                self._expanded += 1
        except _FoundError as found:
            return self._result(found.what, found.at)
        stuck = self._stuck()
        if stuck is not None:
            return self._result(f"LIVENESS: no fair way leads from here to rest: {self._shown(stuck)}", stuck)
        return self._result(None, 0)

    def _expand(self, at: int) -> None:
        try:
            for _, state, fair in self._protocol.moves(self._states[at]):
                self._moves += 1
                same = self._same(state).state
                number = self._numbers.get(same)
                if number is None:
                    number = self._add(same, at)
                if fair:
                    self._fair_from.append(at)
                    self._fair_to.append(number)
        except Broken as broken:
            raise _FoundError(str(broken), at) from None

    def _add(self, state: State, parent: int) -> int:
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        self._parents.append(parent)
        try:
            self._protocol.judge(state)
        except Broken as broken:
            raise _FoundError(str(broken), number) from None
        return number

    def _stuck(self) -> int | None:
        """The first state from which no fair way leads to rest, or null."""
        count = len(self._states)
        before: list[list[int]] = [[] for _ in range(count)]
        for origin, target in zip(self._fair_from, self._fair_to, strict=True):
            before[target].append(origin)
        rests = bytearray(count)
        found = [n for n in range(count) if n >= self._expanded or self._protocol.served(self._states[n])]
        for number in found:
            rests[number] = 1
        while found:
            for origin in before[found.pop()]:
                if not rests[origin]:
                    rests[origin] = 1
                    found.append(origin)
        stuck = rests.find(0)
        return stuck if stuck >= 0 else None

    def _shown(self, number: int) -> str:
        state = self._states[number]
        record = self._protocol.store.record(state.kept)
        return f"epoch {record.epoch}, owner {state.kept.owner}, wanted {record.wanted}, servers {state.members}"

    def _result(self, broken: str | None, at: int) -> Explored:
        path: list[int] = []
        while broken and at > 0:
            path.append(at)
            at = self._parents[at]
        trace: tuple[str, ...] = ()
        if broken:
            *moves, broken = self._told(list(reversed(path)), broken)
            trace = (*moves, f"=> {broken}")
        return Explored(
            states=len(self._states),
            moves=self._moves,
            operations=self._protocol.store.executed,
            seconds=time.perf_counter() - self._began,
            closed=self._expanded == len(self._states),
            broken=broken,
            trace=trace,
        )

    def _told(self, path: Sequence[int], end: str) -> Iterator[str]:
        """The moves along a path, with names that stay: those of a reduced state change from step to step."""
        began = self._same(self._protocol.begin())
        names = _Names(began)
        state = began.state
        for number in path:
            move, new = next(
                (move, new)
                for move in self._protocol.moves(state)
                if (new := self._same(move.state)).state == self._states[number]
            )
            yield names.told(move.label)
            names.follow(new)
            state = new.state
        yield names.told(end)


def _as_it_is(state: State) -> Renamed:
    return Renamed(state, tuple(range(len(state.members))), {}, {})


class _Names:
    """Which server, incarnation and token a number of the current state stands for."""

    def __init__(self, began: Renamed) -> None:
        self._now: dict[str, dict[int, int]] = {"@": {}, "#": {}, "%": {}}
        self._said = {"@": "n", "#": "incarnation ", "%": "token "}
        self._last = {"@": -1, "#": 0, "%": 0}
        self.follow(began)

    def told(self, label: str) -> str:
        """The label with lasting names."""
        return re.sub(r"([@#%])(\d+)", lambda found: self._name(found[1], int(found[2])), label)

    def _name(self, kind: str, number: int) -> str:
        known = self._now[kind]
        if number not in known:
            self._last[kind] += 1
            known[number] = self._last[kind]
        return f"{self._said[kind]}{known[number]}"

    def follow(self, new: Renamed) -> None:
        """From now on the numbers are those of this state."""
        before = {"@": {place: now for now, place in enumerate(new.places)}, "#": new.incs, "%": new.tokens}
        for kind, renaming in before.items():
            for number in sorted(renaming):
                if number or kind == "@":
                    self._name(kind, number)
            self._now[kind] = {now: self._now[kind][old] for old, now in renaming.items() if old in self._now[kind]}


class _FoundError(Exception):
    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at
