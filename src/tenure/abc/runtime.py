"""The contract of runtimes and their providers."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

from tenure.journal import Json, JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


# --- runtimes -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """What to provision. `name` is unique per store, conversation and epoch; `workspace` per store and conversation."""

    name: str
    workspace: str
    conversation: str
    settings: JsonObject = field(default_factory=dict[str, Json])


@final
@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in a runtime did. Output is cut at a limit, from the middle, and says so in `truncated`."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool = False
    timed_out: bool = False

    def as_json(self) -> dict[str, Json]:
        return {
            "exit_code": self.exit_code,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "truncated": self.truncated,
            "timed_out": self.timed_out,
        }


@runtime_checkable
class Runtime(Protocol):
    """The place where tools run: a workspace of files and the processes of one epoch."""

    name: str

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        """Run a command in the workspace: a string through the shell, a sequence as it is."""
        ...

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        """The content of a file of the workspace.

        :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, or the file is larger.
        """
        ...

    async def write(self, path: str, content: bytes | str) -> None:
        """Write a file of the workspace, making its folders."""
        ...

    @property
    def path(self) -> Path | None:
        """The workspace as a path of this machine, or null if it is elsewhere."""
        ...


@runtime_checkable
class Launches(Protocol):
    """A runtime of this machine in which an agent loop may have long-lived programs of its own, terminals say."""

    def launcher(self, program: Sequence[str]) -> Path:
        """An executable file that runs `program`, followed by its own arguments, as a command of this runtime: kept apart
        as commands are, with their environment but without credentials, and ended with the runtime. Blocking; from any
        thread.

        :raises RuntimeFailure: the runtime was discarded, or the file cannot be written.
        """
        ...


class RuntimeFailure(Exception):
    """A provider says no, with its own reason. `permanent`: trying again as it is will not help. `step` names where."""

    def __init__(self, reason: str, *, step: str = "provision", permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.permanent = permanent


class RuntimeProvider(abc.ABC):
    """Makes runtimes. Everything is idempotent by name; the name is journaled before :meth:`provision` is called.

    Only the runtime that the journal calls current is ever attached; only what the journal calls discarded, lost or
    superseded, or what belongs to a deleted conversation, is ever destroyed (rule 14).
    """

    kind: str
    outlives_node: bool = False
    """Whether a runtime lives on without the node that provisioned it, so that another one can attach to it."""

    async def open(self) -> None:  # noqa: B027 - optional
        """Before the node registers, each time it starts: look at what is there. Idempotent. Default: nothing.

        :raises InvalidInputError: naming `runtime`: what was asked for is impossible here; the node does not start.
        """

    @property
    def detail(self) -> JsonObject | None:
        """What each ``runtime_ready`` says of a runtime made here, once it is open. Default: nothing."""
        return None

    @property
    def caution(self) -> str:
        """What people who run nodes must know of this provider on this machine, told once at start; most often empty."""
        return ""

    def named_folder(self, settings: JsonObject) -> Path | None:
        """The folder of this machine that a conversation's settings name (``working_dir``) and that is its workspace here,
        instead of one that the provider makes; null: it is not. Default: never."""
        return None

    @abc.abstractmethod
    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> Runtime:
        """Make the runtime, or find the one of that name; return when it answers. `progress` names each step.

        :raises RuntimeFailure: with the provider's own reason.
        """

    @abc.abstractmethod
    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        """Give the runtime these credentials instead of those before; idempotent. Values go nowhere else.

        :raises RuntimeFailure: with the provider's own reason, never with a value.
        """

    @abc.abstractmethod
    async def attach(self, spec: RuntimeSpec) -> Runtime | None:
        """The living runtime of that name, resumed if it was paused, as it is when its owner asks anything of it later;
        or null if it is gone for good. What commands of an earlier owner have left running is ended first.

        :raises RuntimeFailure: it could not be found out.
        """

    @abc.abstractmethod
    async def discard(self, name: str, workspace: str | None = None) -> None:
        """Destroy the runtime's processes; with `workspace` also its files. Gone already is fine.

        :raises RuntimeFailure: it may still be there.
        """

    @abc.abstractmethod
    async def list(self) -> Sequence[tuple[str, str]]:
        """(name, conversation) of every runtime of this store that the provider has; for the reaper."""

    async def workspaces(self) -> Sequence[str]:
        """The names of all workspaces that the provider keeps, whether a runtime uses them or not; for the reaper, which
        discards those of deleted conversations. Default: none, for a provider whose files end with their runtime."""
        return ()

    async def close(self) -> None:  # noqa: B027 - optional
        """Give back connections and threads; runtimes stay as they are. Default: nothing to give back."""

    def kill_now(self) -> None:  # noqa: B027 - optional
        """Kill the process groups of this node's runtimes, at once and from any thread: trust has ended. Default: none."""
