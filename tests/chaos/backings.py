"""What a world of the chaos suite stands on. A further store needs one class here and a line in BACKINGS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from tenure.testing.postgres import PostgresServer
from tenure.testing.proxy import Proxy
from tenure.testing.servers import RedisServer, ServerFailedError

DISK_MIB = 192


class Backing:
    """A store for a cluster: where the judge reaches it, and where each node does.

    :param small_disk: keep the store's files on a small disk of its own, where there are the rights for one.
    :param host: a further address under which nodes in a network of their own reach it.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, *, small_disk: bool = False, host: str = "") -> None:
        self.folder = folder / "store"
        self.host = host
        self.disk = self.folder
        """Where the store's files are; a disk of its own while `small_disk` could be had."""
        self.ways: dict[str, Proxy] = {}
        """The ways to the store that can fail: of those nodes that were given one."""
        self._small_disk = small_disk
        self._stack = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """For the judge, whose way never fails."""
        raise NotImplementedError

    def url_for(self, node: str) -> str:
        """Where this node finds the store."""
        del node
        return self.url

    async def way(self, node: str) -> Proxy | None:
        """A way of its own for this node, before it is made; null where there is no network in between."""
        del node

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        self.folder.mkdir()
        async with self._stack:
            if self._small_disk:
                self._stack.enter_context(_small_disk(self.disk))
            await self._begin()
            yield

    async def _begin(self) -> None:
        """Start what must run."""

    def writers(self) -> list[int]:
        """The processes that write the store's files, where the nodes do not do it themselves."""
        return []

    async def revive(self) -> None:
        """See that a server answers again, whatever it has died of."""

    def describe(self) -> list[str]:
        """What is to be known of it when something was broken: its disk, the last lines of its server's log."""
        room = shutil.disk_usage(self.disk)
        return [f"disk of the store: {room.free >> 10} KiB free of {room.total >> 10}"]


class SqliteBacking(Backing):
    """A file."""

    name = "sqlite"

    @property
    def file(self) -> Path:
        return self.folder / "tenure.db"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.file}"


class ServerBacking(Backing):
    """A server of its own, which keeps what it has answered."""

    server: RedisServer | PostgresServer

    @property
    def url(self) -> str:
        return self.server.url()

    def url_for(self, node: str) -> str:
        return self.url.replace(f":{self.server.port}/", f":{self.ways[node].port}/") if node in self.ways else self.url

    async def way(self, node: str) -> Proxy:
        self.ways[node] = await self._stack.enter_async_context(Proxy(self.server.port))
        return self.ways[node]

    async def _begin(self) -> None:
        await asyncio.to_thread(self._stack.enter_context, self.server)

    def writers(self) -> list[int]:
        return self.server.pids if self.server.running else []

    async def revive(self) -> None:
        try:
            await asyncio.to_thread(self.server.ready)
        except ServerFailedError:
            if self.server.running:
                raise
            await asyncio.to_thread(self.server.start)

    def describe(self) -> list[str]:
        state = "runs" if self.server.running else "has ended"
        return [*super().describe(), f"the server {state}; its log:", *self.server.log.splitlines()[-30:]]


class RedisBacking(ServerBacking):
    """Every accepted write is in its file before it is answered, so that a restart loses nothing."""

    name = "redis"
    server: RedisServer

    def __init__(self, folder: Path, *, small_disk: bool = False, host: str = "") -> None:
        super().__init__(folder, small_disk=small_disk, host=host)
        reached = {"bind": f"127.0.0.1 {host}", "protected-mode": "no"} if host else {}
        # Each start counts growth anew: a server that is often started again would never rewrite its file, and fill the disk.
        rewritten = {"auto-aof-rewrite-min-size": "32mb", "auto-aof-rewrite-percentage": "1"}
        self.server = RedisServer(self.folder, options={"appendfsync": "always", **rewritten, **reached})


class PostgresBacking(ServerBacking):
    """What it has answered is on its disk."""

    name = "postgres"
    server: PostgresServer

    def __init__(self, folder: Path, *, small_disk: bool = False, host: str = "") -> None:
        super().__init__(folder, small_disk=small_disk, host=host)
        reached = {"listen_addresses": f"127.0.0.1,{host}"} if host else {}
        # The log alone must not fill the disk.
        self.server = PostgresServer(options={"max_wal_size": "32MB", **reached})
        self.disk = self.server.folder


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    """Nothing is mounted where there are no rights: a full disk is then played with a limit on the size of files."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755", "tenure-chaos", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)


BACKINGS: dict[str, type[Backing]] = {one.name: one for one in (SqliteBacking, RedisBacking, PostgresBacking)}
LONG = "TENURE_CHAOS_SECONDS" in os.environ
"""`make chaos`: everything on every store; otherwise the stores share what takes long."""
CHOSEN = [name for name in os.environ.get("TENURE_CHAOS_STORE", ",".join(BACKINGS)).split(",") if name]
"""The stores of this run: those that are named, else all."""
