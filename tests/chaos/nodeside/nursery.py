"""A process that imports the OpenHands SDK once, and forks a node for each order that comes in: a line of JSON each.

An order is ``{"args": [...], "log": path, "count": path, "die": "before:7"}``: the words after ``tenure``, where its output goes,
where the number of its appends is kept, and at which of them it kills itself: before it is sent, or after its answer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Say ``ready``, then the process id of each node."""
    from tenure.loops.openhands import sdk

    sdk.load(["openhands_tools"])
    _import_the_rest()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            _node(order)
        print(pid, flush=True)


def _import_the_rest() -> None:
    import tenure.cli.serving
    import tenure.server.app
    import tenure.stores.postgres
    import tenure.stores.redis
    import tenure.stores.sqlite  # noqa: F401 - each node needs them


def _node(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    when, _, at = order["die"].partition(":")
    _count_appends(Path(order["count"]), when, int(at or 0))
    sys.argv = ["tenure", *order["args"]]
    from tenure.cli import main as tenure

    tenure()
    os._exit(0)


def _count_appends(file: Path, when: str, at: int) -> None:
    """Releases are appends, too."""
    from tenure.stores.postgres import PostgresStore
    from tenure.stores.redis import RedisStore
    from tenure.stores.sqlite import SqliteStore

    done = 0

    def counted(real: Any) -> Any:
        async def call(self: Any, request: Any) -> Any:
            nonlocal done
            done += 1
            number = done
            file.write_text(str(number))
            if (when, at) == ("before", number):
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await real(self, request)
            if (when, at) == ("after", number):
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    for store in (SqliteStore, RedisStore, PostgresStore):
        store.append, store.release = counted(store.append), counted(store.release)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
