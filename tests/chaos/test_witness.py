"""What buries a node early, and what does not: only the end of its process, seen by the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from world import World, world

LONG_TTL_S = 120.0
"""Whatever is seen before this has run out was not the ttl's doing."""


async def _buried(one: World, incarnation: str) -> bool:
    """Nobody names it any more, or it is dead."""
    return all(n.dead for n in await one.store.nodes() if n.incarnation == incarnation)


async def _incarnation(one: World, node) -> str:
    [found] = [n["incarnation"] for n in await one.get("/nodes", node) if n["node"] == node.name]
    return found


async def _deaf(pid: int) -> bool:
    """Whether the process ignores SIGTERM by now."""
    [mask] = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line]
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


async def test_c13_only_the_end_of_the_process_buries_early(tmp_path, store):
    """Stopped, signalled as a group, its witness killed: none of it is a death. Its end is, and at once."""
    async with world(tmp_path, store, ttl_s=LONG_TTL_S) as one:
        node, other = one.node("node"), one.node("other")
        await one.nodes.start()
        incarnation = await _incarnation(one, node)

        async def watched() -> int:
            return node.witness

        first = await one.until(watched, "the witness")
        await one.until(lambda: _deaf(first), "the witness to be past its first instant")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first, number)
        node.freeze()
        sent = await one.send_new("elsewhere", "time goes by", other)
        await one.answered("elsewhere", sent)
        assert not await _buried(one, incarnation), "frozen is not dead"
        assert node.witness == first, "the witness ignores what is meant for others"
        node.thaw()
        os.kill(first, signal.SIGKILL)

        async def another() -> bool:
            return node.witness not in (0, first)

        await one.until(another, "another witness")
        assert not await _buried(one, incarnation), "the death of the witness is not the node's"
        await one.create("c", node)
        await one.http.post(f"{node.url}/conversations/c/start", params={"here": "true"}, json={})
        await one.send("c", "hello", other, sleep_s=1.0)
        await one.event("c", "turn_started")
        node.kill()
        await one.until(lambda: _buried(one, incarnation), "the burial, long before the ttl")
        await one.quiescent()
        await one.judge()


async def test_c14_a_forked_child_does_not_hide_the_death_of_its_node(tmp_path, store):
    """A lock file or a pipe would be inherited by the fork, and the node would look alive for as long as it runs."""
    async with world(tmp_path, store, ttl_s=LONG_TTL_S) as one:
        node, other = one.node("node"), one.node("other")
        await one.nodes.start()
        incarnation = await _incarnation(one, node)
        await one.create("c", node)
        await one.http.post(f"{node.url}/conversations/c/start", params={"here": "true"}, json={})
        await one.send("c", "fork", node, fork_s=60, between_s=5.0)
        await one.event("c", "call_finished")
        forked = [e["pid"] for e in one.effects() if e["tool"] == "forked"]
        assert forked, "the child lives"
        node.kill()
        await one.until(lambda: _buried(one, incarnation), "the burial, although a copy of the process lives")
        os.kill(forked[0], signal.SIGKILL)
        await one.event("c", "turn_completed")
        claims = [e.epoch for e in await one.events("c") if e.kind == "claimed"]
        assert claims == [1, 2]
        assert other.running
        await one.judge()


async def test_c15_a_writer_frozen_inside_a_transaction_stalls_writers_not_readers(tmp_path):
    """The documented limit of an embedded store: writes wait until it is thawed or killed, reads go on, nothing breaks."""
    async with world(tmp_path, "sqlite", ttl_s=LONG_TTL_S) as one:
        node = one.node("node")
        await node.start()
        sent = await one.send_new("c", "before", node)
        await one.answered("c", sent)
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                (
                    "import sqlite3, sys, time\n"
                    "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
                    "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(600)\n"
                ),
                str(one.backing.file),
            ],
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            holder.send_signal(signal.SIGSTOP)
            reply = await one.http.post(
                f"{node.url}/conversations/c/messages", json={"text": "during", "key": "stalled"}, timeout=60
            )
            assert reply.status_code == 503 and "retry-after" in reply.headers, reply.text
            events = await one.get("/conversations/c/events", node)
            assert events["events"][-1]["kind"] == "turn_completed", "reads go on"
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        again = await one.send("c", "during", node, key="stalled")
        await one.answered("c", again)
        await one.quiescent()
        await one.judge()
