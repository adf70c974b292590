"""The witness and real processes: it buries a node that was killed, and nothing else. The chaos suite has whole nodes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from node_support import until

from tenure.abc import About
from tenure.clock import Instant
from tenure.lease import IncarnationId
from tenure.node import witness as module
from tenure.node.witness import Witness, possible
from tenure.stores import open_store
from tenure.stores.memory import MemoryStore

pytestmark = pytest.mark.blocking_ok  # starts processes, and waits for them

ME = IncarnationId("me")
LONG_S = 3600.0
"""A ttl that is not what buries anything here."""

NODE = """
import asyncio, signal, sys
from tenure.lease import IncarnationId
from tenure.node.witness import Witness

async def main():
    witness = Witness(sys.argv[1], IncarnationId(sys.argv[2]))
    keeping = asyncio.create_task(witness.keep(0.05))
    while witness.pid is None:
        await asyncio.sleep(0.01)
    print(witness.pid, flush=True)

    def close_the_pipe():
        witness._child.stdin.close()
        print("closed", flush=True)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, close_the_pipe)
    await keeping

asyncio.run(main())
"""


def running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def watches(pid: int) -> bool:
    """Whether it has opened the store: from then on it waits for one thing only."""
    try:
        return any("tenure.db" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


@contextmanager
def a_node(url: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that is a node as far as its witness knows, and the witness's pid."""
    command = [sys.executable, "-c", NODE, url, ME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as node:
        try:
            assert node.stdout is not None
            yield node, int(node.stdout.readline())
        finally:
            node.kill()


async def test_c13_it_buries_at_once_when_the_process_is_killed_and_never_before(tmp_path: Path):
    """Frozen, with the pipe to its witness closed, or signalled with its whole group, the node is not dead."""
    url = f"sqlite:///{tmp_path}/tenure.db"
    async with open_store(url) as store:
        await store.register(ME, About("n", "test://n", 1, (), Instant(0.0)), LONG_S)
        await store.put_paper("cluster", "there", {}, 0)

        async def buried() -> bool:
            return not any(n.incarnation == ME and not n.dead for n in await store.nodes())

        with a_node(url) as (node, witness):
            await until(lambda: watches(witness))
            assert os.getsid(witness) != os.getsid(node.pid)
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                os.kill(witness, number)
            os.kill(node.pid, signal.SIGUSR1)
            assert node.stdout is not None
            assert await asyncio.to_thread(node.stdout.readline) == "closed\n"
            os.kill(node.pid, signal.SIGSTOP)
            for _ in range(100):  # far longer than a burial takes
                assert not await buried()
                await asyncio.sleep(0.01)
            assert running(witness)
            os.killpg(node.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                while not await buried():
                    await asyncio.sleep(0.01)
        await until(lambda: not running(witness))


async def test_one_that_dies_is_replaced_and_one_that_is_dismissed_ends_without_burying(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/tenure.db"
    async with open_store(url) as store:
        await store.register(ME, About("n", "test://n", 1, (), Instant(0.0)), LONG_S)
        witness = Witness(url, ME)
        keeping = asyncio.ensure_future(witness.keep(0.02))
        first = await until(lambda: witness.pid)
        os.kill(first, signal.SIGKILL)
        second = await until(lambda: witness.pid not in (None, first) and witness.pid)
        await until(lambda: watches(second))
        keeping.cancel()
        await witness.dismiss()
        await until(lambda: not running(second))
        assert witness.pid is None
        assert [n.dead for n in await store.nodes()] == [False]


async def test_a_witness_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "COMMAND", ("/nowhere/at/all",))
    witness = Witness(f"sqlite:///{tmp_path}/tenure.db", ME)
    keeping = asyncio.ensure_future(witness.keep(0.02))
    await asyncio.sleep(0.1)
    assert not keeping.done()
    monkeypatch.setattr(module, "COMMAND", ("/bin/cat",))
    child = await until(lambda: witness.pid)
    keeping.cancel()
    await witness.dismiss()
    await until(lambda: not running(child))


def test_a_store_that_no_other_process_opens_has_no_witness():
    assert not possible(MemoryStore())
