"""Real nodes as child processes, and what can happen to them: killed, frozen, thawed, drained, started again.

For chaos tests and for the demo. A node is started as a user starts it, ``tenure serve``, and counts as ready when its
``/readyz`` says so. Only its process gets the signals: its witness and its runtimes live in groups of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

READY = re.compile(r"^ready (?P<url>\S+) node=(?P<node>.+)$", re.MULTILINE)
"""The line that ``tenure serve`` prints for programs."""

POLL_S = 0.02
LOG_TAIL = 4000
CHILD_S = 3.0
"""What a witness gets to bury its node and to end."""


class NodeEndedError(Exception):
    """The process ended, or did not become ready in time; the message carries the end of its log."""


class ServerFailedError(Exception):
    """A database server ended, or did not do in time what it was asked; the message carries the end of its log."""


def free_port() -> int:
    """A port of the loopback that nobody listens on, below those that the kernel hands out by itself: so that a node
    can be started again on its port, whatever connections were made in between. Two runs of tests side by side (of
    pytest-xdist) take from halves of their own, so that none takes the port of a node that is down for a moment."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32768
    half = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    for port in random.sample(range(max(1024, lowest - 12000) + half, lowest, 2), 100) if lowest > 2048 else [0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("found no free port on 127.0.0.1")


@final
class NodeProcess:
    """One ``tenure serve``. Started again, it keeps name, port and folder, and becomes a new incarnation.

    :param store: its URL, empty if `environ` has it (``TENURE_STORE``): a password stays out of the list of processes.
    :param options: further options of ``tenure serve``, e.g. ``["--ttl-s", "2"]``.
    :param host: where it is reached; beyond the loopback, say so in the options as well.
    :param prefix: words before its command, e.g. of a network namespace. They must become its process.
    :param environ: added to the environment, from which every ``TENURE_*`` of this process is left out.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str,
        folder: Path,
        agents: Sequence[str] = (),
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        port: int | None = None,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.host = host
        self.port = free_port() if port is None else port
        self.log_file = folder / f"{name}.log"
        self._out_file = folder / f"{name}.out"
        self._cwd = cwd
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("TENURE_")} | dict(environ or {})
        self._command = [*prefix, sys.executable, "-m", "tenure", "serve", *(["--store", store] if store else [])]
        self._command += ["--node", name]
        self._command += [part for agent in agents for part in ("--agent", agent)]
        self._command += options
        self._child: subprocess.Popen[bytes] | None = None
        self._frozen = False

    # --- life -------------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the process; it is not ready yet."""
        assert not self.running, f"node {self.name} runs already"
        self._frozen = False
        with self._out_file.open("wb") as out, self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                cwd=self._cwd,
                env=self._environ,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
            )

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until ``/readyz`` answers 200.

        :raises NodeEndedError: it ended, or it took longer.
        """
        try:
            async with asyncio.timeout(timeout_s), httpx.AsyncClient(trust_env=False) as http:
                while not await self._answers(http):  # noqa: ASYNC110 - another process tells nobody
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise NodeEndedError(f"node {self.name} was not ready within {timeout_s:g} s{self._tail()}") from None

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        if not self.running:
            raise NodeEndedError(f"node {self.name} ended with {self.exit_code}{self._tail()}")
        said = READY.search(self._out_file.read_text(errors="replace"))
        if said is None:
            return False
        self.port = int(said["url"].rpartition(":")[2])
        try:
            return (await http.get(f"{self.url}/readyz", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start the process and wait until it is ready."""
        self.spawn()
        await self.ready(timeout_s)

    async def ended(self, timeout_s: float) -> int:
        """Wait for the end of the process; its exit code, negative for a signal.

        :raises TimeoutError: it still runs.
        """
        async with asyncio.timeout(timeout_s):
            while self.running:  # noqa: ASYNC110 - nor does its end
                await asyncio.sleep(POLL_S)
        code = self.exit_code
        assert code is not None, "it has ended"
        return code

    def close(self) -> None:
        """End the process now, whatever state it is in, and then its children that do not end by themselves."""
        if self._child is None or not self.running:
            return
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(_held(pid)) for pid in _children(self.pid)]
            self._child.kill()
            self._child.wait()
            for child in children:
                _end(child)

    # --- what is seen of it -----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._child is not None, f"node {self.name} was never started"
        return self._child.pid

    @property
    def announced(self) -> bool:
        """Its last process got as far as to say that it is ready."""
        return READY.search(self._out_file.read_text(errors="replace")) is not None

    @property
    def witness(self) -> int:
        """The process id of its witness; 0 while it has none."""
        return next((pid for pid in _children(self.pid) if _is_witness(pid)), 0) if self.running else 0

    @property
    def running(self) -> bool:
        """The process has not ended; it may be frozen."""
        return self._child is not None and self._child.poll() is None

    @property
    def frozen(self) -> bool:
        return self._frozen and self.running

    @property
    def exit_code(self) -> int | None:
        """Of the last process that ended; negative for a signal."""
        return None if self._child is None else self._child.poll()

    @property
    def log(self) -> str:
        """All that its processes have written to standard error."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def _tail(self) -> str:
        return f"; the end of its log:\n{self.log[-LOG_TAIL:]}"

    # --- what happens to it -----------------------------------------------------------------------------------------

    def send(self, number: signal.Signals) -> None:
        """A signal to the process alone."""
        assert self._child is not None, f"node {self.name} was never started"
        self._child.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; returns when it has ended."""
        self.send(signal.SIGKILL)
        assert self._child is not None, "it was sent a signal"
        self._child.wait()

    def freeze(self) -> None:
        """``SIGSTOP``; returns when it stands still."""
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._frozen = True

    def thaw(self) -> None:
        """``SIGCONT``."""
        self.send(signal.SIGCONT)
        self._frozen = False

    def drain(self) -> None:
        """``SIGTERM``: it leaves by itself."""
        self.send(signal.SIGTERM)

    def kill_witness(self) -> bool:
        """``kill -9`` of its witness; whether there was one."""
        if pid := self.witness:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pid != 0

    def limited(self, what: int, soft: int) -> contextlib.AbstractContextManager[None]:
        """Lower a limit of the living process (``resource.RLIMIT_…``) while the block runs."""
        return limited(self.pid, what, soft)


@contextlib.contextmanager
def limited(pid: int, what: int, soft: int) -> Generator[None]:
    """Lower a limit of a living process of ours (``resource.RLIMIT_…``) while the block runs."""
    before, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, (before, hard))


@final
class NodeProcesses:
    """Nodes that end together: ``with NodeProcesses() as nodes``. Whatever happens inside, none is left behind."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeProcess] = {}

    def add(self, node: NodeProcess) -> NodeProcess:
        """Answer for this node, too."""
        self._nodes[node.name] = node
        return node

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start those that do not run, side by side, and wait until all are ready."""
        for node in self:
            if not node.running:
                node.spawn()
        for node in self:
            await node.ready(timeout_s)

    def __iter__(self) -> Iterator[NodeProcess]:
        return iter(self._nodes.values())

    def __getitem__(self, name: str) -> NodeProcess:
        return self._nodes[name]

    def __len__(self) -> int:
        return len(self._nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self:
            node.close()


# --- children -------------------------------------------------------------------------------------------------------


def _children(pid: int) -> list[int]:
    """The witness, and what runs in runtimes."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def _is_witness(pid: int) -> bool:
    try:
        return b"tenure.cli.witness" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def _held(pid: int) -> Generator[int | None]:
    """A descriptor of that very process: its number may be another one's by the time that it is needed."""
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):  # ended already, or no Linux
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(descriptor: int | None) -> None:
    if descriptor is None:
        return
    ended, _, _ = select.select([descriptor], [], [], CHILD_S)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
