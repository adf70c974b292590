"""Real processes on one file: a storm of first openings, and the kill that loses nothing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from sqlite_support import look

PROCESSES, THREADS, COMMANDS = 20, 8, 2

STORM = """
    import asyncio, sys, threading
    sys.path.insert(0, sys.argv[1])
    from sqlite_support import *
    from tenure.abc import Limits

    url, process = sys.argv[2], sys.argv[3]
    failures = []

    async def one(thread):
        async with SqliteStore(url, limits=Limits(unsettled=10**6)) as store:
            for number in range(2):
                key = f"{process}-{thread}-{number}"
                await accept(store, message(f"own-{process}-{thread}", key))
                answers = await asyncio.gather(store.submit(message("shared", key)), store.submit(message("shared", key)))
                assert sorted(type(answer).__name__ for answer in answers) == ["Accepted", "Duplicate"]

    def run(thread):
        try:
            asyncio.run(one(thread))
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(8)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    sys.exit("\\n".join(failures) or 0)
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), here, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(240)
def test_a_fresh_file_stands_twenty_processes_with_eight_threads_each(tmp_path: Path):
    """All are first at the same moment: nobody sees a locked database, and each key stands in its journals once."""
    path = tmp_path / "t.db"
    children = [child(STORM, f"sqlite:///{path}?timeout_s=120", str(number)) for number in range(PROCESSES)]
    for one in children:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    assert not path.exists()
    for one in children:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    outcomes = [(*one.communicate(timeout=200), one.returncode) for one in children]
    assert outcomes == [("", "", 0)] * PROCESSES
    expected = PROCESSES * THREADS * COMMANDS
    keys = look(
        path, "SELECT conversations.id, key FROM events JOIN conversations ON created_no = conversation WHERE key > ''"
    )
    assert len(keys) == len(set(keys)) == 2 * expected
    heads = look(path, "SELECT head, count(*) FROM conversations JOIN events ON conversation = created_no GROUP BY id")
    assert all(head == count for head, count in heads), "no gaps"
    assert look(path, "PRAGMA integrity_check") == [("ok",)]
    assert [found.name for found in tmp_path.iterdir()] == ["t.db"]


SUBMITS = """
    import asyncio, itertools, sys
    sys.path.insert(0, sys.argv[1])
    from sqlite_support import *
    from tenure.abc import Limits

    async def one(store, name, life):
        for number in itertools.count():
            answer = await accept(store, message(f"c{name}", f"{life}-{name}-{number}"))
            print(f"c{name}", f"{life}-{name}-{number}", answer.seq, flush=True)

    async def main(url, life):
        store = SqliteStore(url, limits=Limits(unsettled=10**9))
        async with store:
            await asyncio.gather(*(one(store, name, life) for name in range(20)))

    asyncio.run(main(*sys.argv[2:]))
"""


def test_kill_nine_loses_no_accepted_command(tmp_path: Path):
    """Whatever was acknowledged stands in the journal once, at the seq that was said; several lives, one file."""
    path = tmp_path / "t.db"
    chance = random.Random(7)
    acknowledged: list[tuple[str, str, int]] = []
    for life in range(6):
        pair = [child(SUBMITS, f"sqlite:///{path}", f"{life}{which}") for which in "ab"]
        for one in pair:
            with one:  # closes its pipes
                assert one.stdout is not None and one.stderr is not None
                lines = [one.stdout.readline() for _ in range(chance.randrange(5, 200))]
                os.kill(one.pid, signal.SIGKILL)
                rest = one.stdout.read()  # through the same buffer: communicate() would begin in the middle of a line
                assert one.stderr.read() == ""
            for line in ["".join(lines), rest]:
                for name, key, seq in (said.split() for said in line.splitlines(keepends=True) if said.endswith("\n")):
                    acknowledged.append((name, key, int(seq)))
    stands = look(
        path, "SELECT id, key, seq FROM conversations JOIN events ON conversation = created_no WHERE key > ''"
    )
    assert len(acknowledged) > 100
    assert set(acknowledged) <= set(stands)
    assert max(Counter((name, key) for name, key, _ in stands).values()) == 1
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


FREEZES = """
    import asyncio, os, signal, sys, threading
    sys.path.insert(0, sys.argv[1])
    from sqlite_support import *
    from tenure.abc import Limits
    from tenure.stores.sqlite.transaction import Transaction

    async def main(url):
        async with SqliteStore(url) as store:
            lease = await hold(store, await node(store))
            flush = Transaction.flush
            def stop_inside(tx):
                flush(tx)
                print("inside", flush=True)
                # This very thread takes it, and at once: sent to the process it waits for the main thread to be scheduled.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            Transaction.flush = stop_inside
            await append(store, batch(lease, 1))
            print("done", flush=True)

    asyncio.run(main(sys.argv[2]))
"""


def test_a_writer_that_is_killed_inside_its_transaction_leaves_nothing_of_it(tmp_path: Path):
    """C15, what can be had: frozen there it stalls every writer, and readers go on; killed, it was never there."""
    from sqlite_support import SqliteStore, accept, journal, message

    from tenure.errors import StoreUnavailableError

    async def others(pid: int) -> None:
        async with SqliteStore(f"sqlite:///{tmp_path}/t.db?timeout_s=0.05") as store:
            try:
                await accept(store, message("c2", "k"))
            except StoreUnavailableError as error:
                assert f"by process {pid}" in str(error)
            else:
                raise AssertionError("it wrote while another was writing")
            assert await journal(store) == ["created", "claimed"]
            os.kill(pid, signal.SIGKILL)
            frozen.wait(20)
            await accept(store, message("c2", "k"))
            assert await journal(store) == ["created", "claimed"]

    with child(FREEZES, f"sqlite:///{tmp_path}/t.db") as frozen:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == "inside\n"
        asyncio.run(others(frozen.pid))
