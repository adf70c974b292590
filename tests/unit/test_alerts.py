"""Alert rules and panels: their sides can meet, what they tell people exists, and each rule fires when it should."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from node_support import Cluster, in_virtual_time
from promql import Labels, carried, unpaired

from tenure import facts
from tenure.cli.tree import tree
from tenure.journal import CORE_KINDS
from tenure.node.metrics import of_node

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus-alerts.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
BOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
EVENT = re.compile(r"\b[a-z]+\.[a-z_]+\b")


def text_of(rule: dict[str, Any]) -> str:
    return " ".join(rule["annotations"].values())


async def exported(cluster: Cluster) -> dict[str, Labels]:
    """The labels of each series of a living node, by its name."""
    node = await cluster.add()
    samples = [one for family in of_node(node.node).registry.collect() for one in family.samples]
    return {one.name: frozenset(one.labels) for one in samples}


# --- both sides meet


@pytest.mark.parametrize(
    ("expression", "meets"),
    [
        ("max(tenure_wanted) > 0 and max_over_time(tenure_wanted[2m]) > 0", False),
        ("max(tenure_wanted) > 0 and on () max_over_time(tenure_wanted[2m]) > 0", True),
        ("sum by (node) (tenure_owned) / tenure_capacity", True),
        ("sum(tenure_owned) > tenure_capacity", False),
        ("tenure_owned / ignoring (queue) tenure_queue_depth", True),
        ("tenure_owned unless on (queue) tenure_queue_depth", False),
        ("sum(tenure_owned) == 0 or absent(tenure_owned)", True),
        ("0 < tenure_owned < 3", True),
        ("count(tenure_owned) < count(tenure_owned offset 10m)", True),
    ],
)
@in_virtual_time
async def test_sides_that_never_meet_are_seen(cluster: Cluster, expression: str, meets: bool):
    assert (unpaired(expression, (await exported(cluster)).__getitem__) == []) is meets


@in_virtual_time
async def test_the_sides_of_every_rule_and_panel_meet(cluster: Cluster):
    labels = await exported(cluster)
    panels = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for rule in RULES.values()]
    assert len(panels) > 30 and len(rules) > 15
    for expression in panels + rules:
        assert unpaired(expression, labels.__getitem__) == [], expression


# --- what people are told


@in_virtual_time
async def test_annotations_name_what_there_is(cluster: Cluster):
    labels, options = await exported(cluster), _options(typer.main.get_command(tree))
    for name, rule in RULES.items():
        text = text_of(rule)
        assert {"summary", "remedy"} == set(rule["annotations"]), name
        plain = text.replace("$labels.node", "")
        named = set(re.findall(r"\btenure_[a-z_]+\b", text))
        assert all(any(each.startswith(one) for each in labels) for one in named), f"{name}: {named}"
        assert set(EVENT.findall(plain)) <= set(facts.ALL), name
        assert set(re.findall(r"\b[a-z]+_(?:failed|started|completed)\b", plain)) - named <= set(CORE_KINDS), name
        assert set(re.findall(r"\btenure ([a-z]+)\b", text)) <= set(options), name
        assert set(re.findall(r"(--[a-z-]+)", text)) <= set().union(*options.values()), name


def _options(command: Any) -> dict[str, set[str]]:
    return {name: {opt for param in one.params for opt in param.opts} for name, one in command.commands.items()}


@in_virtual_time
async def test_a_rule_that_fires_for_a_node_names_it(cluster: Cluster):
    labels = await exported(cluster)
    for name, rule in RULES.items():
        of_a_node = "node" in (carried(rule["expr"], labels.__getitem__) or ())
        assert ("{{ $labels.node }}" in text_of(rule)) is of_a_node, name


def test_the_unit_of_a_line_is_that_of_what_it_shows():
    """Seconds are drawn as seconds and nothing else is, also where a panel shows both."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            shows_s = set(re.findall(r"tenure_\w+_seconds(?:_bucket)?(?=[\[{])", target["expr"])) != set()
            assert (_unit(panel, target["legendFormat"]) == "s") is shows_s, (panel["title"], target["expr"])


def _unit(panel: dict[str, Any], legend: str) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["id"] == "byRegexp"
        if re.search(override["matcher"]["options"].strip("/"), legend):
            unit = next(one["value"] for one in override["properties"] if one["id"] == "unit")
    return unit


# --- each rule, once firing and once silent

type Series = dict[str, str]
"""What Prometheus has scraped, a value a minute, in promtool's notation."""


def rising(name: str, by: float = 1, **labels: str) -> Series:
    return {_series(name, labels): f"0+{by:g}x40"}


def steady(name: str, at: float, **labels: str) -> Series:
    return {_series(name, labels): f"{at:g}+0x40"}


def gone(name: str, at: float, after_min: int, **labels: str) -> Series:
    return {_series(name, labels): f"{at:g}+0x{after_min} stale"}


def slow(name: str) -> Series:
    """A histogram, half of it below a second and all of it below ten."""
    return (
        rising(f"{name}_bucket", 1, le="1")
        | rising(f"{name}_bucket", 2, le="10")
        | rising(f"{name}_bucket", 2, le="+Inf")
    )


def quick(name: str) -> Series:
    return (
        rising(f"{name}_bucket", 2, le="1")
        | rising(f"{name}_bucket", 2, le="10")
        | rising(f"{name}_bucket", 2, le="+Inf")
    )


def _series(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in ({"node": "a"} | labels).items()) + "}"


CASES: dict[str, tuple[Series, Series]] = {
    "TenureWorkWaits": (
        steady("tenure_wanted", 0) | steady("tenure_wanted", 2, node="b"),
        steady("tenure_wanted", 0),
    ),
    "TenureNoNodeReady": (steady("tenure_ready", 0), steady("tenure_ready", 0) | steady("tenure_ready", 1, node="b")),
    "TenureNodeGone": (
        steady("tenure_ready", 1) | gone("tenure_ready", 1, 22, node="b"),
        gone("tenure_ready", 1, 22) | {'tenure_ready{node="b"}': "_x22 1+0x20"},
    ),
    "TenureLeaseNearlyLost": (
        steady("tenure_heartbeat_slack_seconds", 0.4),
        steady("tenure_heartbeat_slack_seconds", 0) | steady("tenure_heartbeat_slack_seconds", 2, node="b"),
    ),
    "TenureLeasesLost": (rising("tenure_leases_lost_total", 0.2), steady("tenure_leases_lost_total", 7)),
    "TenureDrainStuck": (steady("tenure_draining", 1), gone("tenure_draining", 1, 10)),
    "TenureNearlyFull": (
        steady("tenure_owned", 95) | steady("tenure_capacity", 100) | steady("tenure_draining", 0)
        | steady("tenure_capacity", 100, node="b") | steady("tenure_draining", 1, node="b"),
        steady("tenure_owned", 95) | steady("tenure_capacity", 100) | steady("tenure_draining", 0)
        | steady("tenure_capacity", 100, node="b") | steady("tenure_draining", 0, node="b"),
    ),
    "TenureOwnersKeepDying": (
        rising("tenure_takeovers_total", 1, ended="expired"),
        rising("tenure_takeovers_total", 1, ended="forced") | {_series("tenure_takeovers_total", {"ended": "exited"}): "0x20 9x20"},
    ),
    "TenureTakeoversPileUp": (
        rising("tenure_takeovers_total", 5, ended="exited") | rising("tenure_takeover_seconds_count", 2),
        rising("tenure_takeovers_total", 5, ended="exited") | rising("tenure_takeover_seconds_count", 5),
    ),
    "TenureTakeoversSlow": (slow("tenure_takeover_seconds"), quick("tenure_takeover_seconds")),
    "TenureJournalLag": (slow("tenure_journal_lag_seconds"), quick("tenure_journal_lag_seconds")),
    "TenureWritesRefused": (
        rising("tenure_writes_refused_total", 1, operation="append"),
        rising("tenure_writes_refused_total", 0.2, operation="append"),
    ),
    "TenureStartsFail": (
        rising("tenure_provisionings_total", 0.2, outcome="failed") | rising("tenure_provisionings_total", 0.2, outcome="failed_for_good"),
        rising("tenure_provisionings_total", 5, outcome="provisioned") | rising("tenure_provisionings_total", 0.1, outcome="failed"),
    ),
    "TenureTurnsFail": (
        rising("tenure_turns_total", 1, outcome="failed") | rising("tenure_turns_total", 3, outcome="completed"),
        rising("tenure_turns_total", 1, outcome="failed") | rising("tenure_turns_total", 5, outcome="completed"),
    ),
    "TenureEventLoopBlocked": (rising("tenure_event_loop_stalls_total", 1), rising("tenure_event_loop_stalls_total", 0.1)),
    "TenureCommandsUnavailable": (
        rising("tenure_commands_refused_total", 0.5, reason="unavailable"),
        rising("tenure_commands_refused_total", 5, reason="turn-open"),
    ),
    "TenureSweepStale": (steady("tenure_sweep_age_seconds", 40), steady("tenure_sweep_age_seconds", 2)),
}  # fmt: skip
"""By rule: what makes it fire within 25 minutes, and what is near it and does not."""
AT = "25m"


def test_every_rule_has_a_firing_and_a_silent_case_of_series_that_there_are():
    assert set(CASES) == set(RULES)
    for name, cases in CASES.items():
        for case in cases:
            asked = set(re.findall(r"tenure_[a-z_]+", RULES[name]["expr"]))
            assert {series.partition("{")[0] for series in case} == asked, name


@pytest.mark.blocking_ok  # promtool is a process of its own
def test_each_rule_fires_and_keeps_silent(tmp_path: Path):
    """In Prometheus' own evaluator, where there is one; anywhere else the case above is all that can be judged."""
    tests = [
        _promtool(name, case, fires=fires)
        for name, cases in CASES.items()
        for case, fires in zip(cases, (1, 0), strict=True)
    ]
    table = tmp_path / "cases.yaml"
    table.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    if (promtool := shutil.which("promtool")) is not None:
        judged = subprocess.run([promtool, "test", "rules", str(table)], capture_output=True, text=True, timeout=60)
        assert judged.returncode == 0, judged.stdout + judged.stderr


def _promtool(alert: str, series: Series, *, fires: int) -> dict[str, Any]:
    firing = f'(count(ALERTS{{alertname="{alert}", alertstate="firing"}}) > bool 0) or vector(0)'
    judged = {"expr": firing, "eval_time": AT}
    return {
        "interval": "1m",
        "name": f"{alert} {'fires' if fires else 'is silent'}",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{**judged, "exp_samples": [{"labels": "{}", "value": fires}]}],
    }
