"""The witness: a tiny process that sees its node end and buries it within milliseconds (rule 12).

It holds a descriptor of the node's *process* (a pidfd), so that only the end of that process wakes it: no stop signal, no
closed connection, no forked child can. It lives in a session of its own, ignores the signals that end the node, and
ends by itself once the node is buried or says that it has retired. Without one (no pidfd, a store that no other
process can open, or both killed together) the ttl decides.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, final

from tenure import facts
from tenure.abc import Buried, Death
from tenure.errors import StoreError
from tenure.lease import IncarnationId

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.abc import Store
    from tenure.facts import Facts


PASSED_ON = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "LD_", "PYTHON", "VIRTUAL_ENV")
"""Variables that the witness inherits, by how they begin: an interpreter's own, none of the node's secrets."""
COMMAND = (sys.executable, "-m", "tenure.cli.witness")
"""What is executed; the composition root opens the store and calls :func:`watch`."""

RETIRED = b"retired\n"

REAP_S = 1.0
"""What a dismissed witness gets to end by itself; it may still be loading, and there is nothing left for it to see."""


def possible(store: Store) -> bool:
    """Whether this machine and this store can have a witness."""
    return store.url is not None and hasattr(os, "pidfd_open")


@final
class Witness:
    """The node's side: starts the child, restarts it when it died, and tells it when there is nothing left to see."""

    def __init__(self, url: str, incarnation: IncarnationId, told: Facts | None = None) -> None:
        self._url = url
        self._incarnation = incarnation
        self._facts = told or facts.Facts()
        self._child: subprocess.Popen[bytes] | None = None
        self._hand = threading.Lock()
        """A start goes on in its thread when its caller is cancelled: who ends the child waits for it."""
        self._dismissed = False

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    async def keep(self, check_s: float) -> None:
        """Have a witness, for as long as this runs."""
        while True:
            if self.pid is None:
                if self._child is not None:
                    self._facts.tell(facts.WitnessDied(self._incarnation))
                    await asyncio.to_thread(self._reap)
                try:
                    await asyncio.to_thread(self._start)
                except OSError as error:
                    self._facts.tell(facts.WitnessMissing(self._incarnation, str(error)))
            await asyncio.sleep(check_s)

    def _start(self) -> None:
        with self._hand:
            if not self._dismissed:
                self._child = self._exec()

    def _exec(self) -> subprocess.Popen[bytes]:
        # The URL may hold a password: it goes through a pipe, never into an argument list.
        pidfd = os.pidfd_open(os.getpid())
        try:
            child = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None,
                pass_fds=(pidfd,),
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
            )
        finally:
            os.close(pidfd)
        assert child.stdin is not None, "asked for a pipe"
        brief = {"url": self._url, "incarnation": self._incarnation, "pidfd": pidfd}
        try:
            child.stdin.write(json.dumps(brief).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            child.kill()
            child.wait()
            raise
        return child

    async def dismiss(self) -> None:
        """The node has retired: let the child end."""
        self._dismissed = True
        await asyncio.to_thread(self._reap)

    def _reap(self) -> None:
        with self._hand:
            child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        try:
            child.stdin.write(RETIRED)
            child.stdin.close()
        except (BrokenPipeError, ValueError):
            pass
        try:
            child.wait(timeout=REAP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def watch(open_store: Callable[[str], Store]) -> None:
    """The child's side: read the brief from standard input, wait for the end, bury. Signals are ignored already."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:  # no byte more than the line
        brief = json.loads(pipe.readline())
    asyncio.run(_watch(open_store(brief["url"]), IncarnationId(brief["incarnation"]), int(brief["pidfd"])))


async def _watch(store: Store, incarnation: IncarnationId, pidfd: int) -> None:
    async with store:  # opened before it is needed: burying must take one round trip
        if await asyncio.to_thread(_exited, pidfd):
            await _bury(store, incarnation)


def _exited(pidfd: int) -> bool:
    """Block until the process has ended (true) or has said that it retired (false).

    An ending process closes its pipe before it counts as ended, so the end of the pipe alone means nothing.
    """
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(sys.stdin.fileno(), select.POLLIN)
    said = b""
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == pidfd:
                return True
            chunk = os.read(sys.stdin.fileno(), 64)
            said += chunk
            if said.endswith(RETIRED):
                return False
            if not chunk:
                poller.unregister(sys.stdin.fileno())


async def _bury(store: Store, incarnation: IncarnationId) -> None:
    for attempt in range(100):
        try:
            if isinstance(await store.bury(incarnation, Death.EXITED), Buried):
                return
        except StoreError as error:
            facts.to_log(facts.RetirementUnanswered(incarnation, str(error)))
        await asyncio.sleep(min(5.0, 0.01 * 2**attempt))
