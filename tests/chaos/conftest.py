"""Chaos runs real processes: each test gets time on a noisy machine, and the logs of its nodes when it fails."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = {"test_blocked", "test_canaries", "test_rolling", "test_runtimes", "test_serve", "test_witness"}
"""Files whose tests the stores share, but for `make chaos`."""
CUT_BY_A_FAULT = r"ignore:Exception ignored in. <function _SelectorTransport:pytest.PytestUnraisableExceptionWarning"
sys.path[:0] = [str(HERE), str(HERE / "nodeside")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `store` runs on each of them; STORE of `make chaos` chooses."""
    own = "fault" in metafunc.fixturenames or "store" in _parametrized(metafunc)
    if "store" in metafunc.fixturenames and not own and "chaos" in metafunc.definition.path.parts:
        from backings import CHOSEN, LONG

        stores = CHOSEN
        if metafunc.module.__name__.rpartition(".")[2] in SHARED and not LONG:
            stores = [CHOSEN[zlib.crc32(metafunc.function.__name__.encode()) % len(CHOSEN)]]
        metafunc.parametrize("store", stores)


def _parametrized(metafunc: pytest.Metafunc) -> str:
    return " ".join(str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "chaos" not in str(item.path):
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))
        # The judge's own connections are torn by the faults; what it leaves unclosed says nothing of the nodes.
        item.add_marker(pytest.mark.filterwarnings(CUT_BY_A_FAULT))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed and "tmp_path" in getattr(item, "funcargs", {}):
        for log in sorted(item.funcargs["tmp_path"].rglob("*.log")):
            report.sections.append((f"log of {log.stem}", log.read_text(errors="replace")[-6000:]))
