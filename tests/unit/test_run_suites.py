"""What `make test` says at its end: the script that runs the suites."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run-suites"
REPORT = """<testsuites><testsuite tests="3" failures="0" errors="0" skipped="2">
<testcase name="a"><skipped message="no browser here"/></testcase>
<testcase name="b"><skipped message="no browser here"/></testcase><testcase name="c"/>
</testsuite></testsuites>"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    loader = SourceFileLoader("run_suites", str(SCRIPT))
    spec = spec_from_loader("run_suites", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_suites", module)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def test_the_last_line_says_what_was_skipped_and_why(script: Any, tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    browser, total = script.Outcome("browser"), script.Outcome("total")
    script.count(report, browser)
    total.add(browser)
    assert script.last_line(total) == "1 passed, 0 failed, 2 skipped (no browser here)"


def test_without_skips_it_says_nothing_of_them(script: Any):
    assert script.last_line(script.Outcome("total", passed=4519)) == "4519 passed, 0 failed"


def test_the_last_line_says_what_a_test_that_passed_left_out(script: Any, tmp_path: Path):
    """What it has told to `record_property`."""
    told = f'<properties><property name="{script.LEFT_OUT}" value="no namespaces here"/></properties>'
    report = tmp_path / "report.xml"
    report.write_text(REPORT.replace('<testcase name="c"/>', f'<testcase name="c">{told}</testcase>'))
    chaos, total = script.Outcome("chaos"), script.Outcome("total")
    script.count(report, chaos)
    total.add(chaos)
    assert script.last_line(total).endswith("2 skipped (no browser here); left out: no namespaces here")


def test_a_suite_that_nobody_knows_is_refused(script: Any, capsys: pytest.CaptureFixture[str]):
    assert script.main(["nonsense"]) == 2
    assert "no such suite: nonsense" in capsys.readouterr().err
