"""The benchmark runs, and says what it found: in tiny amounts, and without a word about any time."""

import asyncio
import dataclasses
import importlib
import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenure.cli.bench import page, results, running
from tenure.cli.bench.plots import svg
from tenure.cli.bench.results import Bound, Curve, Figure, Row
from tenure.cli.bench.rows import claims
from tenure.cli.bench.rows.rolling import hand_overs
from tenure.cli.bench.running import Asked, chosen, keep, run, share_s
from tenure.cli.bench.sampled import place, processor_ns
from tenure.cli.bench.sampling import MeasureFailedError, in_thread, in_turn, upper
from tenure.cli.bench.stage import PARTS, TINY, Stage, parts
from tenure.cli.bench.targets import TARGETS
from tenure.cli.tree import tree
from tenure.clock import Instant
from tenure.errors import InvalidInputError
from tenure.journal import Event, Seq

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


@pytest.mark.blocking_ok  # a command is no node
async def test_a_run_whose_time_is_over_ends_and_says_what_it_left_out(tmp_path: Path):
    over = dataclasses.replace(TINY, total_s=0.0)
    said: list[str] = []
    asked = Asked(f"sqlite:///{tmp_path}/mine.db", over, ("claims", "append"), tmp_path / "out", "tenure bench")
    assert await run(asked, said.append) == {}
    assert sum("not measured: " in line and "not done within 0 s" in line for line in said) == 2, said


def test_rows_share_a_runs_time_and_leave_what_they_do_not_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "WEIGHTS", {"append": 2.0})
    asked = Asked(None, dataclasses.replace(TINY, total_s=100.0, limit_s=80.0), (), None, "tenure bench")
    now = time.monotonic()
    assert share_s(asked, now, "heartbeat", ["message", "append"]) == pytest.approx(25.0, abs=1.0), (
        "append counts twice"
    )
    assert share_s(asked, now - 50, "message", ["append"]) == pytest.approx(50 / 3, abs=1.0)
    assert share_s(asked, now, "append", []) == 80.0, "no row may take longer"
    assert share_s(asked, now - 200, "append", []) == 0.0


@pytest.mark.blocking_ok  # a command is no node
async def test_a_row_that_its_amounts_leave_out_is_measured_only_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without = dataclasses.replace(TINY, left_out={"heartbeat": "takes too long"}, total_s=0.0)
    said: list[str] = []
    monkeypatch.setattr(running, "chosen", lambda only: only or ("heartbeat", "claims"))
    await run(Asked(f"sqlite:///{tmp_path}/mine.db", without, (), tmp_path, "tenure bench"), said.append)
    assert any("takes too long" in line for line in said), said
    assert "takes too long" in (tmp_path / page.PAGE_FILE).read_text()
    said.clear()
    await run(Asked(f"sqlite:///{tmp_path}/mine.db", without, ("heartbeat",), None, "tenure bench"), said.append)
    assert not any("takes too long" in line for line in said), said


@pytest.mark.blocking_ok  # it keeps a page
async def test_a_row_that_is_cut_keeps_what_was_measured_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def measure(stage: object, row: Row) -> None:
        row.figures.append(Figure.of("ours", "ours", "per s", [1.0]))
        await asyncio.Event().wait()

    monkeypatch.setattr(claims, "measure", measure)
    monkeypatch.setattr(running, "GRACE_S", 0.0)
    cut = dataclasses.replace(TINY, limit_s=0.1)
    found = await run(Asked(f"sqlite:///{tmp_path}/mine.db", cut, ("claims",), None, "tenure bench"), lambda _: None)
    assert [figure.name for figure in found["claims"].figures] == ["ours"]
    assert found["claims"].missing["what is not here"] == "not done within 0 s"
    assert found["claims"].run["whole_s"] >= found["claims"].run["seconds"] > 0


async def test_parts_of_a_row_share_its_time_and_fail_alone():
    ended: dict[str, float] = {}
    row = Row("claims")
    stage = Stage({}, TINY, time.monotonic() + 40.0)

    async def part(mine: Stage, name: str) -> None:
        ended[name] = mine.left_s
        if name == "broken":
            raise MeasureFailedError("no server")

    async def hangs(mine: Stage) -> None:
        await asyncio.Event().wait()

    await parts(stage, row, {name: partial(part, name=name) for name in ("one", "broken", "three", "four")})
    assert ended["one"] == pytest.approx(PARTS * 30, abs=1.0), "thrice its share, less what it takes to give up"
    assert ended["four"] == pytest.approx(PARTS * 40, abs=1.0), "what the others left"
    assert row.missing == {"broken": "no server"}
    row.missing.clear()
    await parts(Stage({}, TINY, time.monotonic() + 0.2), row, {"hangs": hangs, "behind": partial(part, name="behind")})
    assert row.missing == {"hangs": "not done within 0 s"}
    assert "behind" in ended


def test_ours_stands_beside_each_peer():
    one = Row("claims", [Figure.of("ours", "ours", "per s", [10.0])])
    one.figures += [Figure.of(name, "peer", "per s", [value]) for name, value in (("peer: a", 5.0), ("peer: b", 20.0))]
    one.ahead("ours", ["peer: a", "peer: b", "peer: not installed"])
    assert [(figure.ratio, figure.beside) for figure in one.figures] == [(None, ""), (2.0, "ours"), (0.5, "ours")]
    assert [(bound.found, bound.met) for bound in one.bounds] == [("2.00 × a; 0.50 × b", False)]
    one.ahead("ours", ["peer: b"], less=True)
    assert one.bounds[-1].met is True
    one.ahead("ours", [])
    assert len(one.bounds) == 2, "beside nobody, nothing is judged"


def test_a_quantile_of_few_is_not_called_a_percentile():
    assert upper([1.0, 3.0, 2.0]) == "at most 3 ms of 3"
    assert upper([float(n) for n in range(200)]) == "p99 197 ms of 200"


async def test_what_warms_up_is_not_counted():
    values = iter(range(9))

    async def one() -> float:
        return float(next(values))

    assert await in_turn(2, {"a": one, "b": one}, warm=2) == {"a": [4.0, 7.0], "b": [5.0, 6.0]}


async def test_a_thread_is_given_up_only_when_it_has_ended():
    asked, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        asked.set()
        may_end.wait(20)
        ended.set()

    working = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(asked.wait, 20)
    working.cancel()
    asyncio.get_running_loop().call_soon(may_end.set)
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()


def test_a_look_at_threads_counts_the_processor_and_names_who_is_not_of_the_library():
    frame = sys._getframe()
    assert place(frame) == "unit/test_cli_bench.py: " + frame.f_code.co_name
    assert json.loads("[1]", object_hook=None, parse_int=lambda _: place(sys._getframe())) == [
        place(frame).rpartition(":")[0] + ": <lambda>"
    ]
    before = processor_ns(threading.get_native_id())
    while processor_ns(threading.get_native_id()) == before:
        sum(range(1000))
    assert processor_ns(0) == 0, "a thread that is no more"


def test_a_hand_over_is_told_by_its_parts():
    def event(seq: int, kind: str, at: float, turn: str | None = None) -> Event:
        return Event(Seq(seq), None, kind, Instant(at), {}, turn)

    journal = [
        event(1, "turn_started", 10.0, "t1"), event(2, "call_finished", 10.2, "t1"), event(3, "released", 10.3),
        event(4, "claimed", 10.35), event(5, "runtime_ready", 10.45), event(6, "loop_started", 10.46),
        event(7, "call_started", 10.48, "t1"), event(8, "turn_completed", 10.7, "t1"), event(9, "released", 11.0),
        event(10, "claimed", 12.0), event(11, "turn_started", 12.1, "t2"),
    ]  # fmt: skip
    [over] = hand_overs(journal, {7: 10.5, 11: 12.2})
    assert [round(took) for took in over.parts.values()] == [100, 50, 100, 10, 20, 20]
    assert hand_overs(journal, {}) == [], "what no viewer saw has no end"


def test_a_plot_of_decades_has_a_logarithmic_axis_and_can_be_read_in_the_dark():
    wide = svg(Curve("x.svg", "Wide", "conversations", "seconds", {"ours": [(10, 0.01), (1000, 5.0)]}), "when and what")
    assert "seconds (logarithmic)" in wide
    assert all(f">{tick}<" in wide for tick in ("0.01", "0.1", "1", "10"))
    assert "prefers-color-scheme:dark" in wide
    flat = svg(Curve("x.svg", "Flat", "conversations", "seconds", {"ours": [(10, 4.0), (1000, 5.0)]}), "when and what")
    assert "seconds (logarithmic)" not in flat
    assert ">0<" in flat, "its axis begins at nothing"
