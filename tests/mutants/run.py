"""Put each edit of the catalogue into a copy of the product, and see which test goes red.

    make mutants [ARGS="M07 M12 in_redis --jobs 2"]

Exits non-zero if one survives, if its tests are red without it, or if a test could not be collected or a script not be loaded with
it: that shows nothing of the rule.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from catalogue import PACKAGE, ROOT, Killers, Mutation, everything
from lua import refused

LIMIT_S = 900
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
TIMED_OUT = re.compile(r"Timeout \(?>\d")
PASSED, RED = 0, 1
"""Of pytest's return codes. 2: not collected, or interrupted; 3, 4: not run at all; 5: no such test."""


@dataclass(frozen=True)
class Verdict:
    red: bool
    by: str
    """The first test that went red, or what pytest said last; and whether it only took too long."""
    seconds: float


def pytest(tests: Killers, source: Path) -> Verdict:
    """Run the tests against the package in `source`; red also when they hang for longer than a test may."""
    command = [sys.executable, "-m", "pytest", tests.path, "-k", tests.which, "-x", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--timeout=60"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return Verdict(True, f"{tests.path}, which timed out as a whole", time.monotonic() - started)
    seconds = time.monotonic() - started
    if done.returncode not in (PASSED, RED):
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    named = FAILED.search(done.stdout)
    lines = done.stdout.strip().splitlines()
    by = named.group(1) if named else lines[-1] if lines else ""
    hung = done.returncode == RED and TIMED_OUT.search(done.stdout + done.stderr)
    return Verdict(done.returncode == RED, f"{by}, which timed out" if hung else by, seconds)


def tried(mutation: Mutation) -> Verdict:
    """The verdict on a copy of the package that has the edit."""
    with tempfile.TemporaryDirectory(prefix=f"tenure-{mutation.id}-") as folder:
        copy = Path(folder, "tenure")
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / mutation.file).write_text(mutation.edited(), encoding="utf-8")
        return pytest(mutation.killed_by, Path(folder))


def together(mutations: list[Mutation]) -> list[Killers]:
    """All tests that are to kill something, a file at a time."""
    files: dict[str, set[str]] = {}
    for mutation in mutations:
        files.setdefault(mutation.killed_by.path, set()).add(f"({mutation.killed_by.which})")
    return [Killers(path, " or ".join(sorted(which))) for path, which in files.items()]


def chosen(names: list[str]) -> list[Mutation]:
    """Those of these ids, or in files whose path has one of these words; all without any."""
    return [m for m in everything() if not names or any(name == m.id or name in m.file for name in names)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("names", nargs="*", help="ids, or words of the edited files' paths; all without any")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    mutations = chosen(asked.names)
    if unloadable := list(refused(mutations)):
        raise SystemExit("\n".join(unloadable))
    started = time.monotonic()
    with ThreadPoolExecutor(asked.jobs) as pool:
        # Without edits all of these tests are green: a test that is red anyway kills nothing.
        untouched = {tests: pool.submit(pytest, tests, PACKAGE.parent) for tests in together(mutations)}
        verdicts = {m.id: pool.submit(tried, m) for m in mutations}
        red_anyway = [tests for tests, verdict in untouched.items() if verdict.result().red]
        survivors = 0
        for mutation in mutations:
            verdict = verdicts[mutation.id].result()
            survivors += not verdict.red
            fate = f"killed by {verdict.by}" if verdict.red else "SURVIVED"
            print(f"{mutation.id}  {mutation.rule:9}  {mutation.file}: {mutation.what}", flush=True)
            print(f"     {fate}  ({verdict.seconds:.1f} s)", flush=True)
    for tests in red_anyway:
        print(f"red without any edit: {tests.path} -k '{tests.which}'")
    killed = len(mutations) - survivors
    print(f"\n{killed} of {len(mutations)} killed, {survivors} survived, {time.monotonic() - started:.0f} s")
    return 1 if survivors or red_anyway or not mutations else 0


if __name__ == "__main__":
    sys.exit(main())
