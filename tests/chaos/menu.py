"""The fault menu: what can happen to a cluster, each with how it is injected, how it is healed, and what it means.

A fault is an asynchronous context manager: inside of it the fault holds, at its end it is healed. What it is aimed at:
a ``node`` (its process, its clocks, its limits), a ``way`` (between a node and its store), a ``front`` (between clients
and a node), or the ``store`` itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from backings import RedisBacking, ServerBacking, SqliteBacking
from chaos_clock import Steps
from world import World

from tenure.testing.postgres import PostgresServer
from tenure.testing.processes import NodeProcess, limited
from tenure.testing.proxy import Proxy, Way
from tenure.testing.servers import RedisServer

HOUR_S = 3600.0
SPARE_MIB = 24
BALLAST_STEP = 1 << 16

type Injection = Callable[[World, NodeProcess, float], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the menu. `hold` is how long it lasts, as a range in ttls; `weight` how often a seed draws it."""

    name: str
    target: str
    says: str
    inject: Injection
    hold: tuple[float, float]
    weight: int
    stores: frozenset[str]
    ends: bool
    """Its node is gone, and somebody has to start it again."""


MENU: dict[str, Fault] = {}
ALL = ("sqlite", "redis", "postgres")
NETWORKED = ("redis", "postgres")


def fault(
    name: str,
    target: str,
    says: str,
    *,
    hold: tuple[float, float] = (0.2, 1.5),
    weight: int = 2,
    stores: tuple[str, ...] = ALL,
    ends: bool = False,
) -> Callable[[Callable[[World, NodeProcess, float], AsyncIterator[None]]], Injection]:
    """Put an injection on the menu."""

    def listed(inject: Callable[[World, NodeProcess, float], AsyncIterator[None]]) -> Injection:
        held = asynccontextmanager(inject)
        MENU[name] = Fault(name, target, says, held, hold, weight, frozenset(stores), ends)
        return held

    return listed


def offered(store: str, target: str) -> list[Fault]:
    """What can happen to this kind of target on this store."""
    return [one for one in MENU.values() if one.target == target and store in one.stores]


# --- a node's process -----------------------------------------------------------------------------------------------


@fault("kill", "node", "kill -9; its witness sees it", hold=(0.0, 0.3), weight=3, ends=True)
async def kill(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    if node.running:
        node.kill()
    yield


@fault("kill-both", "node", "kill -9 of the node and of its witness together: the ttl decides", weight=2, ends=True)
async def kill_both(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    if node.running:
        node.freeze()  # so that it cannot start another in between
        node.kill_witness()
        node.kill()
    yield


@fault("kill-witness", "node", "kill -9 of the witness alone; the node starts another", hold=(0.0, 0.2), weight=3)
async def kill_witness(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    node.kill_witness()
    yield


@fault("freeze", "node", "SIGSTOP, then SIGCONT: short of the ttl, or beyond it", hold=(0.1, 2.5), weight=4)
async def freeze(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    pid = node.pid
    if node.running:
        node.freeze()
    try:
        yield
    finally:
        if node.running and node.pid == pid:
            node.thaw()


@fault("drain", "node", "SIGTERM: hand over and leave", hold=(0.0, 0.3), weight=2, ends=True)
async def drain(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    if node.running:
        node.drain()
    yield


@fault("no-descriptors", "node", "no further file or socket can be opened (RLIMIT_NOFILE)", hold=(0.3, 2.0), weight=3)
async def no_descriptors(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    with _limited(node, resource.RLIMIT_NOFILE, _lowest_free_descriptor):
        yield


@fault("no-memory", "node", "nothing large can be allocated (RLIMIT_AS); a turn that wants it fails", weight=3)
async def no_memory(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    with _limited(node, resource.RLIMIT_AS, lambda pid: _size(pid) + (SPARE_MIB << 20)):
        yield


@fault("blocked-loop", "node", "an agent blocks the event loop; the lease is kept", hold=(0.5, 2.5))
async def blocked_loop(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    one.ask(_stand_still(one, node, block_s=hold_s))
    yield


@fault("blocked-interpreter", "node", "an agent keeps the interpreter's lock: a freeze", hold=(0.5, 2.5))
async def blocked_interpreter(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    one.ask(_stand_still(one, node, hold_gil_s=hold_s))
    yield


# --- a node's clocks ------------------------------------------------------------------------------------------------


@fault("wall-clock", "node", "its wall clock is an hour off, either way: nothing is decided by it", weight=3)
async def wall_clock(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    sign = 1 if int(hold_s * 1000) % 2 else -1
    with _stepped(one, node, wall_s=sign * HOUR_S):
        yield


@fault("boot-clock", "node", "its boot time steps ahead by some ttls, and later back", hold=(0.5, 2.0))
async def boot_clock(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    with _stepped(one, node, boot_s=3 * hold_s):
        yield


# --- the network ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _refused(proxy: Proxy, hold_s: float) -> AsyncIterator[None]:
    await proxy.refuse()
    try:
        yield
    finally:
        await proxy.heal()


@asynccontextmanager
async def _torn(proxy: Proxy, hold_s: float) -> AsyncIterator[None]:
    proxy.tear()
    yield


@asynccontextmanager
async def _delayed(proxy: Proxy, hold_s: float) -> AsyncIterator[None]:
    proxy.delay(hold_s / 8)
    try:
        yield
    finally:
        await proxy.heal()


def _held(*ways: Way) -> Callable[[Proxy, float], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def held(proxy: Proxy, hold_s: float) -> AsyncIterator[None]:
        for way in ways:
            proxy.hold(way)
        try:
            yield
        finally:
            await proxy.heal()

    return held


_LINKS: dict[str, tuple[str, Callable[[Proxy, float], AbstractAsyncContextManager[None]]]] = {
    "refused": ("connections are torn, and refused", _refused),
    "torn": ("connections are torn once", _torn),
    "there": ("one-way partition: requests arrive late or never", _held(Way.THERE)),
    "back": ("one-way partition: replies arrive late or never", _held(Way.BACK)),
    "parted": ("whole partition", _held(*Way)),
    "slow": ("everything is delayed", _delayed),
}


def _on_link(target: str, name: str) -> Callable[[World, NodeProcess, float], AsyncIterator[None]]:
    async def inject(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
        proxy = (one.backing.ways if target == "way" else one.fronts)[node.name]
        async with _LINKS[name][1](proxy, hold_s):
            yield

    return inject


for _name, (_says, _) in _LINKS.items():
    fault(f"way-{_name}", "way", f"node to store: {_says}", hold=(0.1, 1.2), stores=NETWORKED)(_on_link("way", _name))
    fault(f"front-{_name}", "front", f"client to node: {_says}", hold=(0.1, 1.2))(_on_link("front", _name))


# --- the store ------------------------------------------------------------------------------------------------------


@fault("store-killed", "store", "kill -9 of the server, and a start from its file", hold=(0.0, 1.2), stores=NETWORKED)
async def store_killed(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    server = _server(one)
    await asyncio.to_thread(server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@fault("store-restarted", "store", "the server ends in good order, and starts", hold=(0.0, 0.5), stores=NETWORKED)
async def store_restarted(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    server = _server(one)
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@fault("store-frozen", "store", "SIGSTOP of the server: connected, and silent", hold=(0.1, 1.3), stores=NETWORKED)
async def store_frozen(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    server = _server(one)
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@fault("store-full", "store", "maxmemory is reached: every write is refused", hold=(0.2, 1.3), stores=("redis",))
async def store_full(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    server = _redis(one)
    await asyncio.to_thread(server.told, "CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        await asyncio.to_thread(server.told, "CONFIG", "SET", "maxmemory", 0)


@fault("store-unreachable", "store", "no node reaches the server", hold=(0.2, 1.3), stores=NETWORKED)
async def store_unreachable(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for proxy in one.backing.ways.values():
            await stack.enter_async_context(_refused(proxy, hold_s))
        yield


@fault("disk-full", "store", "no byte can be added to the disk that the store is on", hold=(0.2, 2.0), weight=3)
async def disk_full(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    """A SQLite file refuses; a PostgreSQL refuses, or ends in a panic; a Redis that must sync each write ends."""
    async with _full(one):
        yield
    await one.backing.revive()


@fault(
    "disk-full-unsynced",
    "store",
    "the same while appendfsync is everysec: the server lives, and refuses writes (MISCONF)",
    hold=(0.2, 2.0),
    stores=("redis",),
)
async def disk_full_unsynced(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    server = _redis(one)
    await asyncio.to_thread(server.told, "CONFIG", "SET", "appendfsync", "everysec")
    async with _full(one):
        yield
    await one.backing.revive()
    await asyncio.to_thread(server.told, "CONFIG", "SET", "appendfsync", "always")


LOCKED = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


@fault("writer-frozen", "store", "SIGSTOP inside of a transaction: writes wait", hold=(0.2, 2.0), stores=("sqlite",))
async def writer_frozen(one: World, node: NodeProcess, hold_s: float) -> AsyncIterator[None]:
    assert isinstance(one.backing, SqliteBacking), "offered there only"
    file = str(one.backing.file)
    with subprocess.Popen([sys.executable, "-c", LOCKED, file], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            await asyncio.to_thread(holder.stdout.readline)
            holder.send_signal(signal.SIGSTOP)
            yield
        finally:
            holder.kill()


# --- how ------------------------------------------------------------------------------------------------------------


def _server(one: World) -> RedisServer | PostgresServer:
    assert isinstance(one.backing, ServerBacking), "offered there only"
    return one.backing.server


def _redis(one: World) -> RedisServer:
    assert isinstance(one.backing, RedisBacking), "offered there only"
    return one.backing.server


@asynccontextmanager
async def _full(one: World) -> AsyncIterator[None]:
    """The store's disk is full; where none of its own could be had, no file of the store can grow."""
    disk = one.backing.disk
    with contextlib.ExitStack() as stack:
        if disk.is_mount():
            ballast = disk / "ballast"
            stack.callback(ballast.unlink, missing_ok=True)
            await asyncio.to_thread(_fill, ballast)
        else:
            for pid in one.backing.writers() or [node.pid for node in one.nodes]:
                with contextlib.suppress(OSError):
                    stack.enter_context(limited(pid, resource.RLIMIT_FSIZE, 4096))
        yield


@contextlib.contextmanager
def _limited(node: NodeProcess, what: int, soft: Callable[[int], int]) -> Iterator[None]:
    """As `NodeProcess.limited`, for one that may just have ended."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(node.limited(what, soft(node.pid)))
        yield


def _lowest_free_descriptor(pid: int) -> int:
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(used) + 1) if number not in used)


def _size(pid: int) -> int:
    found = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise ProcessLookupError(pid)
    return int(found[1]) << 10


@contextlib.contextmanager
def _stepped(one: World, node: NodeProcess, **steps: float) -> Iterator[None]:
    clock = Steps(one.clock_file(node.name))
    clock.set(**steps)
    try:
        yield
    finally:
        clock.set()


async def _stand_still(one: World, node: NodeProcess, **order: float) -> None:
    """A conversation that this node runs (if it can) is told to stand still."""
    conversation = one.fresh("stone")
    await one.create(conversation)
    with contextlib.suppress(httpx.TransportError):
        await one.http.post(f"{node.url}/conversations/{conversation}/start", params={"here": "true"}, json={})
    await one.send(conversation, "stand still", **order)


def _fill(ballast: Path) -> None:
    """Take all that is left, and hold it."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        left = os.statvfs(ballast.parent)
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, left.f_bavail * left.f_bsize - BALLAST_STEP))
        file.seek(0, os.SEEK_END)
        while True:
            file.write(bytes(4096))
