"""The benchmark runs, and says what it found: in tiny amounts, and without a word about any time."""

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenure.cli.bench import page, results
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.running import Asked, chosen, keep, run
from tenure.cli.bench.sampling import in_turn
from tenure.cli.bench.stage import TINY
from tenure.cli.bench.targets import TARGETS
from tenure.cli.tree import tree
from tenure.errors import InvalidInputError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
RUN = {
    "command": "tenure bench", "amount": "tiny", "date": "2026-01-01 00:00 UTC", "versions": {"tenure": "0"}, "shown": ["tenure"],
    "load": [0.1, 0.2], "cores": 2, "seconds": 1.0,
}  # fmt: skip


def row(key: str, *met: bool | None) -> Row:
    bounds = [Bound(f"demand {number}", "1 ms", one) for number, one in enumerate(met)]
    figures = [Figure.of("ours", "ours", "per s", [1.0, 2.0, 9.0]), Figure.of("floor", "floor", "per s", [4.0])]
    curve = Curve(f"{key}.svg", "A & B", "x", "y", {"redis": [(0, 1.0), (1000, 2.0)]})
    made = Row(key, figures, bounds, [curve], run=dict(RUN))
    made.beside("ours", "floor")
    return made


@pytest.mark.blocking_ok  # it measures, and serves nobody
async def test_a_run_measures_and_keeps_what_it_found(tmp_path: Path):
    asked = Asked(f"sqlite:///{tmp_path}/mine.db", TINY, ("heartbeat", "append", "4"), tmp_path / "out", "tenure bench")
    said: list[str] = []
    found = await run(asked, said.append)
    assert list(found) == ["heartbeat", "message", "append"], said
    assert all(figure.middle > 0 for one in found.values() for figure in one.figures)
    kept = results.load(tmp_path / "out")
    assert json.dumps([one.as_json() for one in kept.values()]) == json.dumps([one.as_json() for one in found.values()])
    text = (tmp_path / "out" / page.PAGE_FILE).read_text()
    assert "## 6 · fenced append" in text
    assert "| 1 |" in text, "every target has its row, measured or not"
    assert list(tmp_path.glob("*.db*")) == [], "the user's own store is not even made, the spaces are gone"


def test_a_row_that_is_measured_again_replaces_itself_alone(tmp_path: Path):
    keep(tmp_path, row("append", True))
    keep(tmp_path, row("claims", False, True))
    keep(tmp_path, row("append", True, None))
    kept = results.load(tmp_path)
    assert list(kept) == ["claims", "append"]
    text = (tmp_path / page.PAGE_FILE).read_text()
    overview = [line.rpartition("| ")[2] for line in text.splitlines() if line[:3] in {f"| {n}" for n in range(1, 9)}]
    assert [words.strip(" |") for words in overview[:8]] == [
        "not met (1 of 2)", *4 * ["not measured"], "met", *2 * ["not measured"],
    ]  # fmt: skip
    assert "0.50 × floor" in text
    assert "A &amp; B" in (tmp_path / "append.svg").read_text()


def test_the_page_that_is_published_has_a_row_for_each_target():
    kept = results.load(DOCS)
    assert kept
    text = (DOCS / page.PAGE_FILE).read_text(encoding="utf-8")
    for target in TARGETS:
        one = kept.get(target.key)
        line = next(
            line for line in text.splitlines() if line.startswith(f"| {target.number} | {target.measurement} |")
        )
        assert line.endswith(f"| {page.verdict(one)} |")
        if one is None:
            continue
        assert one.bounds, target
        assert all((DOCS / curve.file).read_text().startswith("<svg") for curve in one.curves)
        assert {"command", "date", "versions", "load"} <= one.run.keys()
    assert json.loads((DOCS / results.DATA_FILE).read_text()), "the page follows from the data"


def test_each_target_is_measured_by_its_module():
    for target in TARGETS:
        assert callable(importlib.import_module(f"tenure.cli.bench.rows.{target.key}").measure)


async def test_contestants_take_turns():
    order: list[str] = []

    async def one(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = await in_turn(2, {"a": lambda: one("a"), "b": lambda: one("b")})
    assert order == ["a", "b", "b", "a"]
    assert found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_rows_are_named_by_number_or_key():
    assert chosen(()) == tuple(target.key for target in TARGETS)
    assert chosen(("6", "claims")) == ("claims", "append")
    with pytest.raises(InvalidInputError, match="there are 1 claims"):
        chosen(("99",))


@pytest.mark.blocking_ok  # a command is no node
def test_a_store_that_is_not_measured_is_refused():
    said = CliRunner().invoke(tree, ["bench", "--store", "gopher://x", "--only", "append"])
    assert said.exit_code == 2, said.output
    assert "gopher" in said.output
