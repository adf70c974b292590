"""What the tests of the SQLite store share: a store in a folder, requests, and a look at the file from outside."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tenure.abc import (
    About,
    Accepted,
    Append,
    Appended,
    Claim,
    Creation,
    Granted,
    Held,
    Reading,
    Store,
    Submit,
)
from tenure.clock import Clock, Instant
from tenure.journal import Command, Delivery, Draft
from tenure.lease import Epoch, IncarnationId, Lease, new_incarnation, new_token
from tenure.stores.sqlite import SqliteStore

PATIENCE_S = 20.0
AGENT = "agent"
CREATION = Creation(default_agent=AGENT)


def store_in(folder: Path, *, clock: Clock | None = None, timeout_s: float | None = None, boot: str | None = None):
    return SqliteStore(f"sqlite:///{folder}/t.db", clock=clock, timeout_s=timeout_s, boot=boot)


def message(conversation: str, key: str, text: str = "hi") -> Submit:
    return Submit(conversation, Command("message", {"text": text}, key, Delivery.TURN), CREATION)


async def node(store: Store, ttl_s: float = 100.0) -> IncarnationId:
    incarnation = new_incarnation()
    about = About("n", "http://n", 10, (AGENT,), Instant(1.0))
    assert await store.register(incarnation, about, ttl_s) == Granted(0)
    return incarnation


async def hold(store: Store, incarnation: IncarnationId, conversation: str = "c1") -> Lease:
    claim = Claim(conversation, incarnation, new_token(), Epoch(0), "n", "http://n", "test", create=CREATION)
    held = await store.claim(claim)
    assert isinstance(held, Held)
    return held.lease


def batch(lease: Lease, number: int, *texts: str) -> Append:
    return Append(lease, number, 1, tuple(Draft("note", {"text": text}) for text in texts or ("hello",)))


async def accept(store: Store, request: Submit) -> Accepted:
    answer = await store.submit(request)
    assert isinstance(answer, Accepted), answer
    return answer


async def append(store: Store, request: Append) -> Appended:
    answer = await store.append(request)
    assert isinstance(answer, Appended), answer
    return answer


async def journal(store: Store, conversation: str = "c1") -> list[str]:
    found = await store.read(conversation)
    assert isinstance(found, Reading)
    return [event.text or event.kind for event in found.events]


async def until(what: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    deadline = asyncio.get_running_loop().time() + patience_s
    while not what():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.002)


def threads_of_stores() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tenure-sqlite")]


def look(path: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Ask the file itself, as another program would."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return connection.execute(statement, parameters).fetchall()


_HOLDS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def write_lock_held(path: Path) -> Iterator[int]:
    """Another process is inside a transaction, like one that was frozen there; gives its process id."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child.pid
        finally:
            child.stdin.close()
