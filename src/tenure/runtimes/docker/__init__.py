"""The runtime ``docker``: a container per runtime and a volume per workspace, through the API of a Docker daemon.

Containers outlive the node that made them, and the next owner finds them by name. A name of ours may hold anything, so a
container's is a digest of it; its labels say whose it is. What the daemon calls a conflict is there already, what it does
not find is gone. An image must lie on the daemon's machine: nothing is pulled here.

The daemon does not remember what was deleted. So a create of a node that froze may come late and make a container that
nobody needs; the reaper removes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from typing import TYPE_CHECKING, Any, Self, final

from tenure.abc import Ran, Runtime, RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes.docker import execs
from tenure.runtimes.docker.daemon import REASON_CHARS, Daemon, Refused
from tenure.runtimes.docker.execs import WORKSPACE
from tenure.runtimes.docker.options import DockerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NAME, CONVERSATION, OF_WORKSPACE = "tenure.runtime", "tenure.conversation", "tenure.workspace"
"""Labels of a container, the last one of a volume, too."""
INPUT_LIMIT, OUTPUT_LIMIT = 16 << 20, 512 << 10
ARGUMENT_LIMIT = (128 << 10) - 1
"""What Linux takes as one argument of a command, in bytes."""
FILE_S = 60.0
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 1.0
NAME_OF_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
NO_FILE, OUTSIDE, NO_PLAIN_FILE = 121, 122, 123
"""Exit codes of the two commands below."""

# Through commands and not through the daemon's archives: those ignore the image's user and follow links anywhere.
READ = f"""f=$(readlink -f -- "$1") && [ -e "$f" ] || exit {NO_FILE}
case $f in "$(pwd -P)"/*) ;; *) exit {OUTSIDE};; esac
[ -f "$f" ] || exit {NO_PLAIN_FILE}
exec head -c "$2" "$f\""""
WRITE = f"""case $1 in */*) d=${{1%/*}}; mkdir -p -- "$d" || exit {NO_PLAIN_FILE};; *) d=.;; esac
d=$(readlink -f -- "$d") || exit {NO_PLAIN_FILE}
case $d/ in "$(pwd -P)"/*) ;; *) exit {OUTSIDE};; esac
f=$d/${{1##*/}}
[ ! -d "$f" ] || exit {NO_PLAIN_FILE}
cat > "$f.$2" && mv -f -- "$f.$2" "$f" || {{ rm -f -- "$f.$2"; exit 1; }}"""

__all__ = ["DockerOptions", "DockerProvider", "DockerRuntime"]


@final
class DockerRuntime:
    """A container, by its name; credentials live in this object and in commands, nowhere else."""

    def __init__(self, daemon: Daemon, name: str, container: str, timeout_s: float) -> None:
        self.name = name
        self._daemon = daemon
        self._container = container
        self._timeout_s = timeout_s
        self._credentials: Mapping[str, str] = {}
        self._known: dict[str, None] = {}
        """All values that it ever had: a mask must find them whole in what commands say, or not at all."""

    @property
    def path(self) -> Path | None:
        return None

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        """Run a command: killed with its children at the time limit, and when the caller goes away.

        :raises InvalidInputError: the command or its input is none, or too long. :raises RuntimeFailure: the daemon's reason.
        """
        argv, data = _argv(command), (stdin or "").encode(errors="replace")
        if len(data) > INPUT_LIMIT:
            raise InvalidInputError("stdin", f"has more than {INPUT_LIMIT} bytes", "write it to a file")
        ended = await self._execute(
            argv,
            timeout_s=timeout_s or self._timeout_s,
            most=OUTPUT_LIMIT,
            environment=self._credentials,
            stdin=data,
            hide=self._known,
        )
        texts = (output.decode(errors="replace") for output in (ended.stdout, ended.stderr))
        return Ran(ended.exit_code, *texts, truncated=ended.truncated, timed_out=ended.timed_out)

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        """The content of a file of the workspace.

        :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, links
            resolved, or names no file, or the file is larger. :raises RuntimeFailure: the daemon's reason.
        """
        _insist_on_path(path)
        ended = await self._file(READ, path, str(limit_bytes + 1), most=2 * limit_bytes + 2)
        if len(ended.stdout) > limit_bytes:
            raise InvalidInputError("path", f"has more than {limit_bytes} bytes", "read a part of it with a command")
        return ended.stdout

    async def write(self, path: str, content: bytes | str) -> None:
        """Write a file of the workspace, whole or not at all, making its folders.

        :raises InvalidInputError: the path leaves the workspace, links resolved, or names no file, or the content has
            more than 16 MiB. :raises RuntimeFailure: the daemon's reason.
        """
        _insist_on_path(path)
        data = content.encode(errors="replace") if isinstance(content, str) else content
        if len(data) > INPUT_LIMIT:
            raise InvalidInputError("content", f"has {len(data)} bytes, at most {INPUT_LIMIT}", "write it in parts")
        mark = hashlib.sha256(data).hexdigest()[:12]
        await self._file(WRITE, path, f"{mark}.part", most=REASON_CHARS, stdin=data)

    async def _file(self, script: str, path: str, more: str, *, most: int, stdin: bytes = b"") -> execs.Ended:
        argv = ["/bin/sh", "-c", script, "file", f"./{path}", more]
        ended = await self._execute(argv, timeout_s=FILE_S, most=most, stdin=stdin)
        match ended.exit_code:
            case 0 if not ended.timed_out:
                return ended
            case code if code == NO_FILE:
                raise FileNotFoundError(path)
            case code if code == OUTSIDE:
                raise InvalidInputError("path", f"{path!r} leaves the workspace", "name a file inside of it")
            case code if code == NO_PLAIN_FILE:
                raise InvalidInputError("path", f"{path!r} is no file", "name a file")
            case code:
                said = ended.stderr.decode(errors="replace").strip()  # whole: it is cut where it is masked
                raise RuntimeFailure(said or f"the file's command ended with {code}", step="file")

    async def _execute(self, argv: Sequence[str], **more: Any) -> execs.Ended:
        """Run it; if somebody has paused the container meanwhile, nothing has begun: unpause it and run it then."""
        name = container_name(self.name)
        try:
            return await execs.execute(self._daemon, name, argv, of=self._container, **more)
        except Refused as refused:
            about = await self._daemon.ask(lambda client: client.inspect_container(name), step="run", none=(404,))
            if refused.status != 409 or about is None or about["State"]["Status"] != "paused":
                raise
        await self._daemon.ask(lambda client: client.unpause(name), step="unpause", none=(409,))
        return await execs.execute(self._daemon, name, argv, of=self._container, **more)

    def configure(self, credentials: Mapping[str, str]) -> None:
        """Give these to every command from now on, instead of those before."""
        for name, value in credentials.items():
            if not NAME_OF_VARIABLE.fullmatch(name) or name.startswith("TENURE_") or name in ("HOME", "PATH"):
                raise RuntimeFailure(
                    f"{name[:80]!r} cannot be the name of a credential", step="configure", permanent=True
                )
            if "\0" in value:
                raise RuntimeFailure(f"credential {name} holds a NUL character", step="configure", permanent=True)
        self._credentials = dict(credentials)
        self._known.update(dict.fromkeys(credentials.values()))


@final
class DockerProvider(RuntimeProvider):
    """Containers of the daemon that `options` names. :raises InvalidInputError: the ``docker`` package is missing."""

    kind = "docker"
    outlives_node = True

    def __init__(self, options: DockerOptions, *, rng: random.Random | None = None) -> None:
        self._options = options
        self._rng = rng or random.Random()
        self._daemon = Daemon(options.address, call_s=options.call_s, rng=self._rng)

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str]) -> Self:
        """As ``open_provider`` reads it. :raises InvalidInputError: naming `runtime`."""
        return cls(DockerOptions.parse(url, options))

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> DockerRuntime:
        """Make volume and container, or find them; start it; return when it runs a command.

        :raises RuntimeFailure: with the daemon's own reason; permanent if the image is not there.
        """
        progress("create")
        await self._volume(spec)
        await self._create(spec)
        return await self._running(spec, progress)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        """Keep the credentials for commands; the daemon never sees them in a request.

        :raises RuntimeFailure: a name or value cannot be one; never with a value.
        """
        if not isinstance(runtime, DockerRuntime):
            raise RuntimeFailure("the runtime is another provider's", step="configure", permanent=True)
        runtime.configure(credentials)

    async def attach(self, spec: RuntimeSpec) -> DockerRuntime | None:
        """The container of that name, unpaused or started again; null if there is none, or it is being removed. What
        commands of its former owners have left running is ended.

        :raises RuntimeFailure: it could not be found out.
        """
        about = await self._inspect(spec, "attach")
        if about is None or about["State"]["Status"] in ("removing", "dead"):
            return None
        try:
            runtime = await self._running(spec, _unheard)
            await execs.end_all(self._daemon, container_name(spec.name), about["Id"])
            return runtime
        except Refused as refused:
            if refused.status == 404 and await self._inspect(spec, "attach") is None:  # removed meanwhile
                return None
            raise

    async def discard(self, name: str, workspace: str | None = None) -> None:
        """Kill and remove the container; with `workspace` also the volume, and what else of its conversation uses it.

        Returns when the daemon has none of them.

        :raises RuntimeFailure: it may still be there.
        """
        await self._remove(container_name(name))
        if workspace is None:
            return
        for one in await self._labelled(f"{OF_WORKSPACE}={workspace}", step="discard"):
            await self._remove(one["Id"])
        volume = volume_name(workspace)
        await self._ask(lambda client: client.remove_volume(volume), step="discard", none=(404,))

    async def list(self) -> Sequence[tuple[str, str]]:
        """(name, conversation) of every container with our labels, whatever its state.

        :raises RuntimeFailure: with the daemon's reason.
        """
        found = await self._labelled(NAME, CONVERSATION, step="list")
        return [(one["Labels"][NAME], one["Labels"][CONVERSATION]) for one in found]

    async def workspaces(self) -> Sequence[str]:
        """The names of all workspaces that have a volume.

        :raises RuntimeFailure: with the daemon's reason.
        """
        wanted = {"label": [OF_WORKSPACE]}
        found = await self._ask(lambda client: client.volumes(filters=wanted), step="list")
        return [one["Labels"][OF_WORKSPACE] for one in found["Volumes"] or ()]

    async def close(self) -> None:
        await self._daemon.close()

    async def _labelled(self, *labels: str, step: str) -> Sequence[dict[str, Any]]:
        wanted = {"label": list(labels)}
        return await self._ask(lambda client: client.containers(all=True, filters=wanted), step=step)

    async def _remove(self, container: str) -> None:
        pause_s = FIRST_LOOK_S
        async with _bounded(self._options.ready_s, "the container is not gone", "discard"):
            while True:  # 409: its removal is on its way
                await self._ask(lambda c: c.remove_container(container, force=True), step="discard", none=(404, 409))
                if await self._ask(lambda c: c.inspect_container(container), step="discard", none=(404,)) is None:
                    return
                pause_s = await self._pause(pause_s)

    async def _volume(self, spec: RuntimeSpec) -> None:
        """Creating a volume that exists answers with it."""
        name, labels = volume_name(spec.workspace), {OF_WORKSPACE: spec.workspace, CONVERSATION: spec.conversation}
        await self._ask(lambda client: client.create_volume(name, labels=labels), step="create")

    async def _create(self, spec: RuntimeSpec) -> None:
        """Have a container of that name: made now, or there already."""
        container, config = container_name(spec.name), self._config(spec)
        pause_s = FIRST_LOOK_S
        async with _bounded(self._options.ready_s, "the name is still taken by a container that is removed", "create"):
            while True:
                made = await self._ask(
                    lambda client: client.create_container_from_config(config, container), step="create", none=(409,)
                )
                if made is not None:
                    return
                about = await self._inspect(spec, "create")
                if about is not None and about["State"]["Status"] not in ("removing", "dead"):
                    return
                pause_s = await self._pause(pause_s)

    def _config(self, spec: RuntimeSpec) -> dict[str, Any]:
        options = self._options
        return {
            "Image": options.image,
            "Entrypoint": ["tail", "-f", "/dev/null"],  # it only has to live: commands come as execs
            "Cmd": [],
            "WorkingDir": WORKSPACE,
            "Labels": {NAME: spec.name, CONVERSATION: spec.conversation, OF_WORKSPACE: spec.workspace},
            "HostConfig": {
                "Mounts": [{"Type": "volume", "Source": volume_name(spec.workspace), "Target": WORKSPACE}],
                "NetworkMode": options.network,
                "Memory": options.memory_bytes,
                "NanoCpus": int(options.cpus * 1e9),
                "PidsLimit": options.pids,
                "SecurityOpt": ["no-new-privileges"],
                "Init": True,  # reaps what commands leave
            },
        }

    async def _running(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> DockerRuntime:
        """Bring it to life from whatever state it is in, and wait for the first command."""
        container = container_name(spec.name)
        progress("start")
        about = await self._inspect(spec, "start")
        if about is not None and about["State"]["Status"] == "paused":
            # 409: another one was faster
            await self._ask(lambda client: client.unpause(container), step="unpause", none=(409,))
        else:
            await self._ask(lambda client: client.start(container), step="start")  # 304: it runs
        progress("ready")
        pause_s = FIRST_LOOK_S
        async with _bounded(self._options.ready_s, "no command ran in it", "ready"):
            while (probe := await self._probe(container)) != 0:
                about = await self._inspect(spec, "ready")
                state = about["State"] if about is not None else {"Status": "gone"}
                if state["Status"] not in ("created", "running", "restarting", "paused"):
                    raise RuntimeFailure(_end_of(state), step="ready")
                if probe in (126, 127):
                    raise RuntimeFailure("the image has no POSIX shell", step="ready", permanent=True)
                pause_s = await self._pause(pause_s)
        if about is None:
            raise RuntimeFailure("the container is gone", step="ready")
        return DockerRuntime(self._daemon, spec.name, about["Id"], self._options.timeout_s)

    async def _probe(self, container: str) -> int:
        """The exit code of the smallest command; -1 while the container takes none."""
        try:
            ended = await execs.execute(
                self._daemon, container, ["true"], timeout_s=self._options.call_s, most=REASON_CHARS
            )
        except Refused as refused:
            if refused.status == 409:
                return -1
            raise
        return ended.exit_code

    async def _inspect(self, spec: RuntimeSpec, step: str) -> dict[str, Any] | None:
        """What the daemon says of the container, if it is this runtime's; null: there is none."""
        name = container_name(spec.name)
        about = await self._ask(lambda client: client.inspect_container(name), step=step, none=(404,))
        if about is None:
            return None
        labels: dict[str, str] = about["Config"]["Labels"] or {}
        if (labels.get(NAME), labels.get(CONVERSATION)) != (spec.name, spec.conversation):
            raise RuntimeFailure(f"container {name} is not this runtime's", step=step, permanent=True)
        return about

    async def _ask(self, call: Callable[[Any], Any], **more: Any) -> Any:
        return await self._daemon.ask(call, **more)

    async def _pause(self, seconds: float) -> float:
        await asyncio.sleep(seconds * self._rng.uniform(0.5, 1.5))
        return min(2 * seconds, LAST_LOOK_S)


@final
class _bounded:
    """A time limit whose end is the runtime's failure, with a reason."""

    def __init__(self, seconds: float, reason: str, step: str) -> None:
        self._limit = asyncio.timeout(seconds)
        self._failure = RuntimeFailure(f"{reason} within {seconds:g} s", step=step)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._limit.__aexit__(*error)
        except TimeoutError:
            raise self._failure from None


def container_name(name: str) -> str:
    """A name of ours as one that the daemon takes; also in `docker ps`."""
    return f"tenure-{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def volume_name(workspace: str) -> str:
    return f"tenure-workspace-{hashlib.sha256(workspace.encode()).hexdigest()[:40]}"


def _end_of(state: dict[str, Any]) -> str:
    """Why a container does not run, as the daemon tells it."""
    about = "it ran out of memory" if state.get("OOMKilled") else str(state.get("Error") or "")
    return f"the container is {state['Status']} (exit code {state.get('ExitCode')})" + (about and f": {about}")


def _unheard(step: str) -> None:
    """A reattachment has one step, ``attach``."""


def _argv(command: str | Sequence[str]) -> list[str]:
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not command or not all(isinstance(t, str) and "\0" not in t for t in argv):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInputError("command", "must be text or a list of texts, without NUL", "name the program first")
    if any(len(text.encode(errors="replace")) > ARGUMENT_LIMIT for text in argv):
        raise InvalidInputError("command", f"has more than {ARGUMENT_LIMIT} bytes", "write a script and run that")
    return argv


def _insist_on_path(path: str) -> None:
    if not path or path.startswith("/") or path.endswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidInputError("path", f"{path!r} leaves the workspace", "name a file inside of it")
