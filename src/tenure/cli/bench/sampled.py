"""``tenure serve`` as it is, and a thread beside it that looks where it is: for measurements of servers that cannot be asked.

``python -m tenure.cli.bench.sampled FOLDER python -m tenure serve …`` becomes that server. While the file ``FOLDER/look`` says
``time``, its threads' stacks are looked at every few milliseconds, while it says ``memory``, what is taken is remembered; when the
file is gone, what was found stands in ``FOLDER/found``, a JSON object of parts and their weight. Time is of the threads that do not
wait, and belongs to the innermost function outside the standard library.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

LOOK, FOUND = "look", "found"
TIME, MEMORY = "time", "memory"
PERIOD_S, IDLE_S = 0.005, 0.1
WAITS = frozenset({"wait", "select", "_worker", "get", "accept", "_recv", "_wait_for_tstate_lock", "wait_for", "join"})
"""Innermost functions of the standard library in which a thread waits."""
LIBRARY = str(Path(threading.__file__).parent)


def watch(folder: Path) -> None:
    """Look whenever it is asked for, for ever."""
    while True:
        wanted = _wanted(folder)
        if wanted == TIME:
            _tell(folder, _times(folder))
        elif wanted == MEMORY:
            _tell(folder, _memory(folder))
        else:
            time.sleep(IDLE_S)


def _wanted(folder: Path) -> str:
    try:
        return (folder / LOOK).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _tell(folder: Path, found: Counter[str]) -> None:
    half = folder / f"{FOUND}.half"
    half.write_text(json.dumps(found.most_common(200)), encoding="utf-8")
    half.rename(folder / FOUND)


def _times(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    me = threading.get_ident()
    while (folder / LOOK).exists():
        for thread, frame in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage] - the only way to see all threads
            if thread != me and (where := place(frame)):
                found[where] += 1
        time.sleep(PERIOD_S)
    return found


def place(frame: FrameType | None) -> str:
    """The innermost function outside the standard library; nothing for a thread that waits."""
    if frame is None or (frame.f_code.co_filename.startswith(LIBRARY) and frame.f_code.co_name in WAITS):
        return ""
    innermost = frame
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    code = (frame or innermost).f_code
    return f"{origin(code.co_filename)}: {code.co_name}"


def _is_library(file: str) -> bool:
    return file.startswith(("<", LIBRARY)) and "site-packages" not in file


def origin(file: str) -> str:
    """A file by its package: what stands behind ``site-packages`` or ``src``."""
    parts = Path(file).parts
    for root in ("site-packages", "src"):
        if root in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(root) :])
    return "/".join(parts[-2:])


def _memory(folder: Path) -> Counter[str]:
    tracemalloc.start(1)
    while (folder / LOOK).exists():
        time.sleep(IDLE_S)
    taken = tracemalloc.take_snapshot()
    tracemalloc.stop()
    found: Counter[str] = Counter()
    for one in taken.statistics("filename"):
        found[origin(one.traceback[0].filename)] += one.size
    return found


def main() -> None:
    folder, _, _, module, *arguments = sys.argv[1:]
    threading.Thread(target=watch, args=(Path(folder),), name="sampled", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
