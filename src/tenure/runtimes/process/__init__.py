"""The runtime ``process``: a folder and groups of processes on the node's own machine.

Under the provider's root, ``workspaces/`` holds one folder per conversation (``names/`` says whose, where the folder's own
name does not) and ``runtimes/`` one small file per runtime, whose path marks all of its processes (see :mod:`~tenure.runtimes.process.census`). So any node of the machine
can end what another one, dead or frozen, has left; and a process that a frozen node launches after its runtime was
discarded finds the file gone and ends by itself.

A workspace lives as long as its conversation. Processes end with the epoch: nobody attaches to those of another node.

Commands run apart from the node where the machine allows it (see :mod:`~tenure.runtimes.process.isolation`). Not a prison:
they have the node's user and its files. Offer it to people whom you would give a shell, or use a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import threading
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from tenure.abc import Ran, Runtime, RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes.process import census, files
from tenure.runtimes.process.census import MARK
from tenure.runtimes.process.command import INPUT_LIMIT, Group, Launched, ProcessLimits
from tenure.runtimes.process.isolation import REMEDY, Isolation, Wanted, find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tenure.journal import JsonObject

PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TZ")
"""What commands see of the node's own environment. Nothing else: it may hold secrets."""
NAME_OF_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NO_CREDENTIALS = ("TENURE_", "LD_")
"""Ours; and what would run code of the workspace before the command is isolated."""
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
LAUNCHER = """#!/bin/sh
[ -e {mark} ] || exit 126
{limits}
exec env -i {environment} TERM="$TERM" PS1="$PS1" PS2="$PS2" PAGER="$PAGER" GIT_PAGER="$GIT_PAGER" {argv} "$@"
"""
"""As commands are launched: of a discarded runtime nothing starts, in whatever process."""
_DISCARDED = "was discarded: another owner has the conversation, or it was released"

__all__ = ["Isolation", "ProcessLimits", "ProcessProvider", "ProcessRuntime", "Wanted"]


@final
class ProcessRuntime:
    """A workspace and the processes of one epoch."""

    def __init__(
        self, spec: RuntimeSpec, place: Path, mark: Path, limits: ProcessLimits, grace_s: float, isolation: Isolation
    ) -> None:
        self.name = spec.name
        self._place = place
        self._mark = mark
        self._limits = limits
        self._grace_s = grace_s
        self._isolation = isolation
        self._credentials: Mapping[str, str] = {}
        self._known: dict[str, None] = {}
        """All values that it ever had: a mask must find them whole in what commands say, or not at all."""
        self._lock = threading.Lock()
        self._groups: set[Group] = set()
        self._ended = False

    @property
    def path(self) -> Path:
        return self._place

    @property
    def ended(self) -> bool:
        return self._ended

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        """Run a command in the workspace: a string through the shell, a sequence as it is.

        Its group is ended at the time-out (SIGTERM, then SIGKILL: the exit code tells which) and when the caller is
        cancelled. What it leaves in the background runs on until the runtime is discarded.

        :raises InvalidInputError: the command or its input is no text, or too long.
        :raises RuntimeFailure: the runtime was discarded, or the machine makes no process now.
        """
        argv = _argv(command)
        data = (stdin or "").encode(errors="replace")
        if len(data) > INPUT_LIMIT:
            raise InvalidInputError("stdin", f"has {len(data)} bytes, at most {INPUT_LIMIT}", "write it to a file")
        self._insist()
        launched = await Launched.launch(
            argv, self._place, self._environment(self._credentials), self._limits.output_bytes, self._isolation
        )
        try:
            with self._lock:
                self._insist()
                self._groups.add(launched.group)
            try:
                with contextlib.suppress(ProcessLookupError):  # killed already, by a discard: it is said below
                    self._limits.impose(launched.group.pid)
                    census.brand(launched.group.pid, str(self._mark))
            except (OSError, ValueError) as error:
                raise RuntimeFailure(f"the limits of processes cannot be set: {error}", step="run") from error
            ran = await launched.finish(data, timeout_s or self._limits.timeout_s, self._grace_s, self._known)
        finally:
            await launched.close()
            with self._lock:
                self._groups.discard(launched.group)
        if self._ended or not await asyncio.to_thread(self._mark.exists):
            raise RuntimeFailure(f"runtime {self.name} {_DISCARDED}", step="run")
        return ran

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        """The content of a file of the workspace.

        :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, links
            resolved, or names no file, or the file is larger. :raises RuntimeFailure: it cannot be read.
        """
        return await asyncio.to_thread(files.read, self._place, path, limit_bytes)

    async def write(self, path: str, content: bytes | str) -> None:
        """Write a file of the workspace, making its folders.

        :raises InvalidInputError: the path leaves the workspace, links resolved, or names no file, or the content has
            more than 16 MiB. :raises RuntimeFailure: it cannot be written, or the runtime was discarded.
        """
        self._insist()
        await asyncio.to_thread(files.write, self._place, path, content)

    def launcher(self, program: Sequence[str]) -> Path:
        """An executable file beside the mark that runs `program` as commands run here, with their limits, but without
        credentials: those stand in no file. What a terminal sets for its shell comes through.

        :raises RuntimeFailure: the runtime was discarded, or the file cannot be written.
        """
        self._insist()
        environment = " ".join(shlex.quote(f"{name}={value}") for name, value in self._environment({}).items())
        argv = shlex.join([*self._isolation.prefix, *program])
        file = self._mark.with_suffix(".sh")
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            limits = "\n".join([*self._limits.in_a_shell(), census.brand_in_a_shell(str(self._mark))])
            script = LAUNCHER.format(
                mark=shlex.quote(str(self._mark)), limits=limits, environment=environment, argv=argv
            )
            draft.write_text(script)
            draft.chmod(0o700)
            draft.replace(file)
        except OSError as error:
            raise RuntimeFailure(f"{error.filename or file}: {error.strerror}", step="run") from error
        return file

    def configure(self, credentials: Mapping[str, str]) -> None:
        """Add these to the environment of every command from now on, instead of what was added before."""
        for name, value in credentials.items():
            if not NAME_OF_VARIABLE.fullmatch(name) or name.startswith(_NO_CREDENTIALS) or name == "HOME":
                raise RuntimeFailure(
                    f"{name[:80]!r} cannot be the name of a credential", step="configure", permanent=True
                )
            if "\0" in value:
                raise RuntimeFailure(f"credential {name} holds a NUL character", step="configure", permanent=True)
        self._credentials = dict(credentials)
        self._known.update(dict.fromkeys(credentials.values()))

    def end(self) -> None:
        """Nothing starts here any more, and what runs is killed. At once, from any thread."""
        with self._lock:
            self._ended = True
            for group in self._groups:
                group.signal(signal.SIGKILL)

    def _insist(self) -> None:
        if self._ended:
            raise RuntimeFailure(f"runtime {self.name} {_DISCARDED}", step="run")

    def _environment(self, credentials: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        home = {"HOME": str(self._place), MARK: str(self._mark)}
        return {"PATH": _DEFAULT_PATH, **inherited, **credentials, **home}


@final
class ProcessProvider(RuntimeProvider):
    """Runtimes on this machine, under one folder. Nodes of a machine share it; machines do not.

    :param root: the folder; made if it is not there.
    :param limits: what each command may use.
    :param allows: which folders (links resolved) a conversation may name as its workspace.
    :param grace_s: how long a command has between SIGTERM and SIGKILL at its time-out.
    :param wanted: how commands are kept apart from the node.
    """

    kind = "process"
    outlives_node = False

    def __init__(
        self,
        root: Path,
        *,
        limits: ProcessLimits | None = None,
        grace_s: float = 2.0,
        wanted: Wanted | None = None,
        allows: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._allows = allows
        self._given_root = Path(root)
        self._limits = limits or ProcessLimits()
        self._grace_s = grace_s
        self._wanted = wanted or Wanted()
        self._isolation: Isolation | None = None
        self._id = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._runtimes: dict[str, ProcessRuntime] = {}
        self._probed = False

    @classmethod
    def parse(cls, root: Path, options: Mapping[str, str], allows: Callable[[str], bool] = lambda _: False) -> Self:
        """As ``open_provider`` reads it. :raises InvalidInputError: naming `runtime`."""
        apart = {field.name for field in fields(Wanted)}
        wanted = Wanted.parse({name: text for name, text in options.items() if name in apart})
        limits = ProcessLimits.parse({name: text for name, text in options.items() if name not in apart})
        return cls(root, limits=limits, wanted=wanted, allows=allows)

    async def open(self) -> None:
        """Try how commands can be isolated here, once.

        :raises InvalidInputError: naming `runtime`: it is required, and impossible; with the machine's reasons.
        """
        if self._isolation is None:
            self._isolation = await asyncio.to_thread(find, self._wanted)

    @property
    def detail(self) -> JsonObject | None:
        return self._isolation.detail if self._isolation is not None else None

    @property
    def caution(self) -> str:
        if self._isolation is None or not self._isolation.why:
            return ""
        return f"commands are not isolated, they have the node's network: {self._isolation.why}; {REMEDY}"

    def named_folder(self, settings: JsonObject) -> Path | None:
        """An absolute ``working_dir``, links resolved, where whoever runs the node allows it. Nobody removes it."""
        asked = settings.get("working_dir")
        if not isinstance(asked, str) or not asked.startswith("/") or "\0" in asked or len(asked) > 4000:
            return None
        folder = os.path.realpath(asked)
        return Path(folder) if self._allows(folder) else None

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> ProcessRuntime:
        """Make the folder and the file that marks the runtime; the first time, see that a command runs.

        A runtime of this name that another provider made is ended first.

        :raises RuntimeFailure: with the machine's own reason.
        """
        with self._lock:
            runtime = self._runtimes.get(spec.name)
        if runtime is not None and await asyncio.to_thread(self._is_mine, spec.name):
            return runtime
        await self.open()
        progress("workspace")
        try:
            place = await asyncio.to_thread(self._make, spec)
        except OSError as error:
            raise RuntimeFailure(f"{error.filename or self._root}: {error.strerror}", step="workspace") from error
        isolation = self._isolation or Isolation()
        runtime = ProcessRuntime(spec, place, self._mark(spec.name), self._limits, self._grace_s, isolation)
        with self._lock:
            self._runtimes[spec.name] = runtime
        if not self._probed:
            progress("probe")
            ran = await runtime.run(":")
            if ran.exit_code != 0:
                raise RuntimeFailure(f"/bin/sh answered {ran.exit_code}: {ran.stderr[:500]}", step="probe")
            self._probed = True
        return runtime

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        """Give commands these environment variables. They stand in no file and in no arguments.

        :raises RuntimeFailure: a name that cannot be one; never says a value.
        """
        assert isinstance(runtime, ProcessRuntime), "made by this provider"
        runtime.configure(credentials)

    async def attach(self, spec: RuntimeSpec) -> ProcessRuntime | None:
        """The runtime if this very provider made it and it is still there; processes of another node end at takeover."""
        with self._lock:
            runtime = self._runtimes.get(spec.name)
        if runtime is None or runtime.ended or not await asyncio.to_thread(self._is_mine, spec.name):
            return None
        return runtime

    async def discard(self, name: str, workspace: str | None = None) -> None:
        """End every process of the runtime on this machine, whoever launched it; with `workspace`, remove its files.

        Until all of it is done, :meth:`list` goes on to name the runtime.

        :raises RuntimeFailure: something is still there.
        """
        with self._lock:
            runtime = self._runtimes.pop(name, None)
        if runtime is not None:
            runtime.end()
        await asyncio.to_thread(self._destroy, name, workspace)

    async def list(self) -> Sequence[tuple[str, str]]:
        """(name, conversation) of every runtime under the root that was not wholly discarded."""
        return await asyncio.to_thread(self._list)

    async def workspaces(self) -> Sequence[str]:
        """The names of all workspaces under the root; folders that conversations have named are nobody's here."""
        return await asyncio.to_thread(self._kept)

    def kill_now(self) -> None:
        """Kill all that runs for this provider, and let nothing start in its runtimes any more. From any thread."""
        with self._lock:
            runtimes = list(self._runtimes.values())
            self._runtimes.clear()
        for runtime in runtimes:
            runtime.end()
        census.kill([str(self._mark(runtime.name)) for runtime in runtimes])

    # --- files; blocking --------------------------------------------------------------------------------------------

    @cached_property
    def _root(self) -> Path:
        """Links resolved: what marks a process must be the same text for every node of the machine."""
        return Path(os.path.realpath(self._given_root))

    def _mark(self, name: str) -> Path:
        return self._root / "runtimes" / f"{files.folder(name)}.json"

    def _place(self, workspace: str) -> Path:
        return self._root / "workspaces" / files.folder(workspace)

    def _name(self, workspace: str) -> Path:
        return self._root / "names" / f"{files.folder(workspace)}.json"

    def _make(self, spec: RuntimeSpec) -> Path:
        named = self.named_folder(spec.settings)
        if named is not None:
            named.mkdir(parents=True, exist_ok=True)  # its rights are its owner's business
        elif files.folder(spec.workspace) != spec.workspace:
            self._write(self._name(spec.workspace), {"workspace": spec.workspace})
        place, mark = named or self._place(spec.workspace), self._mark(spec.name)
        for folder in (self._root, place, mark.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mark.exists() and not self._is_mine(spec.name):
            self._destroy(spec.name, None)
        self._write(mark, {"name": spec.name, "conversation": spec.conversation, "provider": self._id})
        return place

    def _write(self, file: Path, about: dict[str, str]) -> None:
        """Whole or not at all."""
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".{self._id}.{secrets.token_hex(4)}")
        draft.write_text(json.dumps(about), encoding="utf-8")
        draft.replace(file)

    def _is_mine(self, name: str) -> bool:
        return _about(self._mark(name)).get("provider") == self._id

    def _destroy(self, name: str, workspace: str | None) -> None:
        mark = self._mark(name)
        discarded = mark.with_name(f"{files.folder(name)}.discarded")
        try:
            with contextlib.suppress(FileNotFoundError):
                mark.replace(discarded)  # first: from here on nothing starts, in whatever process
            if left := census.end([str(mark)]):
                raise RuntimeFailure(f"process {left[0].pid} of runtime {name} does not end", step="discard")
            if workspace is not None:
                files.remove_tree(self._place(workspace))
                self._name(workspace).unlink(missing_ok=True)
            mark.with_suffix(".sh").unlink(missing_ok=True)
            discarded.unlink(missing_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"{error.filename or name}: {error.strerror}", step="discard") from error

    def _list(self) -> list[tuple[str, str]]:
        places = self._root / "runtimes"
        marks = [*places.glob("*.json"), *places.glob("*.discarded")]
        told = (_about(mark) for mark in marks)
        return sorted({(about["name"], about["conversation"]) for about in told if about})

    def _kept(self) -> list[str]:
        told = (_about(file) for file in (self._root / "names").glob("*.json"))
        named = {files.folder(about["workspace"]): about["workspace"] for about in told if about}
        folders = (place.name for place in (self._root / "workspaces").glob("*"))
        return sorted(named.get(folder, folder) for folder in folders)


def _about(mark: Path) -> dict[str, Any]:
    """What the runtime's file says; empty if it is gone meanwhile, or none of ours."""
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _argv(command: str | Sequence[str]) -> list[str]:
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not argv or not all(isinstance(part, str) for part in argv):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInputError("command", "must be text or a list of texts", "name the program first")
    try:
        fits = not any(b"\0" in os.fsencode(part) for part in argv)
    except UnicodeEncodeError:
        fits = False
    if not fits or not command:
        raise InvalidInputError("command", "must be text without NUL, and not empty", "correct it")
    return argv
