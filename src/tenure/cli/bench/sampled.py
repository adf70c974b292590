"""``tenure serve`` as it is, and a thread beside it that looks where it is: for measurements of servers that cannot be asked.

``python -m tenure.cli.bench.sampled FOLDER python -m tenure serve …`` becomes that server. While the file ``FOLDER/look`` says
``time``, its threads' stacks are looked at every few milliseconds, while it says ``memory``, what is taken is remembered; when the
file is gone, what was found stands in ``FOLDER/found``, a JSON list of parts and their weight. Time is a thread's processor time by the
kernel's count, so that whoever waits has none, and belongs to the innermost function outside the standard library.
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
    """Nanoseconds of the processor since the last look belong to where the thread is now."""
    found: Counter[str] = Counter()
    before: dict[int, int] = {}
    while (folder / LOOK).exists():
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - the only way to see all threads
        for thread in threading.enumerate():
            number, frame = thread.native_id, frames.get(thread.ident or 0)
            if number is None or frame is None or thread is threading.current_thread():
                continue
            used = processor_ns(number)
            found[place(frame)] += max(0, used - before.get(number, used))
            before[number] = used
        time.sleep(PERIOD_S)
    return found


def processor_ns(thread: int) -> int:
    """What a thread of this process has had of the processor, by the kernel's count; nothing if it has ended."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def place(frame: FrameType) -> str:
    """The innermost function outside the standard library."""
    outside: FrameType | None = frame
    while outside is not None and _is_library(outside.f_code.co_filename):
        outside = outside.f_back
    code = (outside or frame).f_code
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
