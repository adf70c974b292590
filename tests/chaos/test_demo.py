"""The demo keeps its word, shows it, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "tenure", "demo"]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("TENURE_")}
PATIENCE_S = 240
"""For a machine that does other things as well; the promise of 20 s is for a quiet one."""


@contextmanager
def a_demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, with its temporary files in a folder of ours."""
    process = subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=ENVIRON | {"TMPDIR": str(folder), "COLUMNS": "120"},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def left_behind(folder: Path) -> list[str]:
    """Processes that know of the folder, by command line or as their place."""
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in words or str(folder) in os.readlink(place / "cwd"):
                found.append(words)
        except OSError:
            continue
    return [words for words in found if str(os.getpid()) not in words]


def numbers(printed: str, row: str) -> list[int]:
    [line] = [line for line in printed.splitlines() if line.startswith(row)]
    return [int(number) for number in re.findall(r"\d+", line.removeprefix(row))]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """PostgreSQL does not run as root, and nobody else may enter pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="tenure-demo-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
def test_the_quick_demo_keeps_every_promise_on_a_store_of_its_own(open_folder: Path, store: str):
    with a_demo(open_folder, "--quick", *(["--store", store] if store != "sqlite" else [])) as demo:
        printed, _ = demo.communicate(timeout=PATIENCE_S)
    print(printed)
    assert demo.returncode == 0
    assert numbers(printed, "doubles") == [0]
    assert numbers(printed, "losses") == [0]
    assert numbers(printed, "broken promises") == [0]
    starts, loops = numbers(printed, "starts asked / loops run")
    assert (starts, loops) == (12 * 3 * 3, 12)
    sent, answered = numbers(printed, "messages sent / answered")
    assert sent == answered > 12
    for kind in ("killed", "frozen", "drained"):
        assert re.search(rf"^{kind} +c\d\d +n\d → n\d", printed, re.MULTILINE), (
            f"no takeover of an owner that was {kind}"
        )
    assert left_behind(open_folder) == []
    assert list(open_folder.iterdir()) == []


def test_another_agent(tmp_path: Path):
    (tmp_path / "bots.py").write_text(
        "import asyncio\n"
        "async def work(text):\n"
        "    await asyncio.sleep(1)\n"
        "    return text.upper()\n"
        "async def shout(turn):\n"
        "    for message in turn.messages:\n"
        "        await turn.emit('reply', {'text': await turn.call('work', work, message.text, idempotent=True)})\n"
    )
    with a_demo(tmp_path, "--quick", "--agent", "bots:shout", "--conversations", "4") as demo:
        printed, _ = demo.communicate(timeout=PATIENCE_S)
    print(printed)
    assert demo.returncode == 0
    assert numbers(printed, "losses") == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_whoever_interrupts_it_is_left_alone(tmp_path: Path, number: signal.Signals):
    with a_demo(tmp_path, "--quick") as demo:
        assert demo.stdout is not None
        told = [""]
        while "conversations are talked to" not in told[-1]:
            told.append(await asyncio.to_thread(demo.stdout.readline))
            assert told[-1], f"it ended too early: {''.join(told)}"
        demo.send_signal(number)
        assert await asyncio.to_thread(demo.wait, PATIENCE_S) == 130
    deadline = time.monotonic() + 30
    while (left := left_behind(tmp_path)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_a_store_for_one_process_is_refused(tmp_path: Path):
    with a_demo(tmp_path, "--store", "memory:") as demo:
        printed, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 2
    assert printed == "tenure: store: memory: lives in one process; use one that several can open\n"
