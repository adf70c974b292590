"""OpenHands agents and their own client on real processes: a few windows of what ``make chaos`` plays whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WINDOWS = ("after:4", "tools", "freeze:model", "drain:tools")
"""An append, calls that are cut, an owner that wakes up again, and one that leaves in its own time."""


@pytest.mark.timeout(600)  # two processes import the SDK first, on machines that do other things, too
def test_an_agents_owner_is_lost_in_the_midst_of_a_run_and_so_is_its_clients(tmp_path: Path):
    """One process per role for all of them: it is the import of the SDK that costs."""
    words = [part for window in WINDOWS for part in ("--window", window)]
    done = subprocess.run(
        [sys.executable, HERE / "client_crashes.py", "--only", "kill", *words],
        capture_output=True,
        text=True,
        timeout=570,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    played = [line.split()[0] for line in done.stdout.splitlines()]
    assert played == ["whole", *WINDOWS, "kill"], done.stdout
