"""What a measurement found, as values and as JSON. The page and its plots are made from this, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, final

from tenure.cli.bench.sampling import Shares, median, quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

type Role = Literal["ours", "floor", "peer"]

DATA_FILE = "results.json"


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: the middle of `samples` values, and between which they lie.

    `ratio` is of ours to the other one, measured in turn in the same run: on the line of ours `beside` names the other, on that
    of a peer it names ours.
    """

    name: str
    role: Role
    unit: str
    middle: float
    low: float
    high: float
    samples: int
    ratio: float | None = None
    beside: str = ""

    @classmethod
    def of(cls, name: str, role: Role, unit: str, values: Sequence[float]) -> Self:
        return cls(name, role, unit, median(values), min(values), max(values), len(values))

    @classmethod
    def of_waits(cls, name: str, role: Role, unit: str, values: Sequence[float]) -> Self:
        """For times of single events: the spread is up to the 99th of a hundred."""
        return cls(name, role, unit, median(values), min(values), quantile(values, 0.99), len(values))


@final
@dataclass(frozen=True, slots=True)
class Bound:
    """One demand of a target, what was measured, and whether it is met; null: not measured in this run, and why."""

    text: str
    found: str
    met: bool | None


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """A plot: named series of points. `log_x`: the x axis counts in powers of ten."""

    file: str
    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = True


@final
@dataclass(slots=True)
class Row:
    """All that one run found for one target."""

    key: str
    figures: list[Figure] = field(default_factory=list["Figure"])
    bounds: list[Bound] = field(default_factory=list["Bound"])
    curves: list[Curve] = field(default_factory=list["Curve"])
    profiles: dict[str, Shares] = field(default_factory=dict[str, "Shares"])
    """Where time or memory goes, by what was looked at: its parts and their share."""
    missing: dict[str, str] = field(default_factory=dict[str, str])
    """What was not measured, and why."""
    run: dict[str, Any] = field(default_factory=dict[str, Any])
    """Command, date, versions, load of the machine, seconds."""

    def beside(self, ours: str, theirs: str) -> None:
        """Set the ratio of one figure to another, by their names."""
        found = {figure.name: figure for figure in self.figures}
        if ours in found and theirs in found and found[theirs].middle:
            at = self.figures.index(found[ours])
            ratio = found[ours].middle / found[theirs].middle
            self.figures[at] = replace(found[ours], ratio=ratio, beside=theirs)

    def ahead(self, ours: str, peers: Sequence[str], *, less: bool = False) -> None:
        """Ours beside each of the peers that was measured, and whether it is ahead of all of them. `less`: less is better."""
        found = {figure.name: figure for figure in self.figures}
        there = [name for name in peers if name in found and found[name].middle]
        if ours not in found or not there:
            return
        ratios = {name: found[ours].middle / found[name].middle for name in there}
        for name, ratio in ratios.items():
            self.figures[self.figures.index(found[name])] = replace(found[name], ratio=ratio, beside=ours)
        met = all(ratio < 1 if less else ratio > 1 for ratio in ratios.values())
        told = "; ".join(f"{ratio:.2f} × {name.removeprefix('peer: ')}" for name, ratio in ratios.items())
        self.bounds.append(Bound(f"{ours}: {'less than' if less else 'ahead of'} every peer", told, met))

    def middle(self, name: str) -> float:
        """The middle of the figure of that name."""
        return next(figure.middle for figure in self.figures if figure.name == name)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, shape: Mapping[str, Any]) -> Self:
        return cls(
            key=shape["key"],
            figures=[Figure(**one) for one in shape["figures"]],
            bounds=[Bound(**one) for one in shape["bounds"]],
            curves=[Curve(**one) for one in shape["curves"]],
            profiles={name: [(where, part) for where, part in rows] for name, rows in shape["profiles"].items()},
            missing=dict(shape["missing"]),
            run=dict(shape["run"]),
        )


def load(folder: Path) -> dict[str, Row]:
    """The rows that were kept there; none if there is no file yet."""
    file = folder / DATA_FILE
    if not file.exists():
        return {}
    kept: list[Any] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {one["key"]: Row.from_json(one) for one in kept}


def save(folder: Path, rows: Mapping[str, Row]) -> None:
    """Keep the rows; a row that was not measured this time stays as it was."""
    text = json.dumps({"rows": [row.as_json() for row in rows.values()]}, indent=1, ensure_ascii=False)
    (folder / DATA_FILE).write_text(text + "\n", encoding="utf-8")
