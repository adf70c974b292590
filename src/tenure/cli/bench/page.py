"""The page: a row for each target, then what was measured for it, and where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenure.cli.bench.plots import svg
from tenure.cli.bench.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tenure.cli.bench.results import Bound, Figure, Row
    from tenure.cli.bench.targets import Target

PAGE_FILE, TRIED_FILE = "results.md", "tried.md"

HEAD = """\
# Benchmarks

Every number here was measured by `make bench`, which writes this page and the plots beside it from
[`results.json`](results.json); nothing on it is written by hand but the words under *What was tried*
([`tried.md`](tried.md)). Figures of one machine do not carry to another: what carries is the **ratio** of ours to
the raw floor (the same client without our rules) and to the peers, measured in turn in one run. Each row says when, on
what, and how busy the machine was meanwhile. How to read and to repeat it: [how-to](../how-to/bench.md).

"""


def write(folder: Path, rows: Mapping[str, Row]) -> None:
    """The page and its plots, from the rows and from what was written of what was tried."""
    for row in rows.values():
        for curve in row.curves:
            (folder / curve.file).write_text(svg(curve, caption(row)), encoding="utf-8")
    tried = _sections((folder / TRIED_FILE).read_text(encoding="utf-8")) if (folder / TRIED_FILE).exists() else {}
    (folder / PAGE_FILE).write_text(page(rows, tried), encoding="utf-8")


def page(rows: Mapping[str, Row], tried: Mapping[str, str]) -> str:
    """The text of the page. `tried`: words by the number of the target."""
    parts = [HEAD, "| # | measurement | limit | ours | met |\n|---|---|---|---|---|\n"]
    parts += [_overview(target, rows.get(target.key)) for target in TARGETS]
    for target in TARGETS:
        if (row := rows.get(target.key)) is not None:
            parts.append(_section(target, row, tried.get(str(target.number), "")))
    return "".join(parts)


def caption(row: Row) -> str:
    run = row.run
    return f"{run['date']} · {run['command']} · {_versions(run)}"


def _versions(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in run["versions"].items() if name in run.get("shown", ()))


def verdict(row: Row | None) -> str:
    """In a word or two, whether a target is met."""
    if row is None:
        return "not measured"
    judged = [bound for bound in row.bounds if bound.met is not None]
    missed = [bound for bound in judged if not bound.met]
    if not judged:
        return "not measured"
    return f"not met ({len(missed)} of {len(judged)})" if missed else "met"


def _overview(target: Target, row: Row | None) -> str:
    return f"| {target.number} | {target.measurement} | {target.limit} | {target.ours} | {verdict(row)} |\n"


def _section(target: Target, row: Row, tried: str) -> str:
    parts = [
        f"\n## {target.number} · {target.measurement}\n\n",
        _run(row.run),
    ]
    if row.bounds:
        parts += ["| demand | found | met |\n|---|---|---|\n", *(_bound(bound) for bound in row.bounds), "\n"]
    if row.figures:
        parts.append("| | | median | low … high | n | ours to it |\n|---|---|---:|---:|---:|---:|\n")
        parts += [_figure(figure) for figure in row.figures]
    parts += [f"\n![{curve.title}]({curve.file})\n" for curve in row.curves]
    if row.missing:
        parts.append("\nNot measured: " + "; ".join(f"{what} ({why})" for what, why in row.missing.items()) + ".\n")
    for what, places in row.profiles.items():
        parts.append(f"\nWhere it goes: {what}:\n\n")
        parts += [f"- {part:.0%} `{where}`\n" for where, part in places]
    if tried:
        parts.append(f"\n### What was tried\n\n{tried.strip()}\n")
    return "".join(parts)


def _run(run: Mapping[str, Any]) -> str:
    if not run:
        return ""
    whole = f" of a run of {run['whole_s']:.0f} s" if "whole_s" in run else ""
    return (
        f"`{run['command']}`, {run['date']}, {run['amount']} amounts, {run['seconds']:.0f} s{whole}, "
        f"load average {run['load'][0]:.1f} → {run['load'][1]:.1f} on {run['cores']} cores; {_versions(run)}.\n\n"
    )


def _bound(bound: Bound) -> str:
    met = {True: "met", False: "**not met**", None: "not measured"}[bound.met]
    return f"| {bound.text} | {bound.found} | {met} |\n"


def _figure(figure: Figure) -> str:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} × {figure.beside}"
    name = f"**{figure.name}**" if figure.role == "ours" else figure.name
    spread = f"{number(figure.low)} … {number(figure.high)}" if figure.samples > 1 else ""
    return (
        f"| {name} | {figure.role} | {number(figure.middle)} {figure.unit} | {spread} | {figure.samples} | {ratio} |\n"
    )


def number(value: float) -> str:
    """Three figures, as many as the measurement carries."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _sections(text: str) -> dict[str, str]:
    """What stands under each ``## N``."""
    found: dict[str, str] = {}
    for part in text.split("\n## ")[1:]:
        head, _, body = part.partition("\n")
        found[head.split()[0]] = body
    return found
