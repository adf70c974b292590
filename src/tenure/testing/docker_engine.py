"""A fake of the Docker Engine API: its paths, shapes, status codes and streams, with processes of this machine.

``with Engine() as engine: open_provider(f"docker://{engine.socket}?image=debian:stable-slim", …)``. A container is a
record, a volume is a folder, and an exec is a process whose ``/workspace`` is that folder: nothing is isolated, and no
limit is imposed. What the API does is as in its reference (v1.47): a create under a taken name is 409, a start of what
runs 304, an exec in what is paused 409; an exec's stream is the hijacked connection, in frames; an exec outlives the
connection that began it, and there is no call that ends one. :attr:`Engine.faults` make it stumble.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socketserver
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, final
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

API = "1.47"
IMAGE = "debian:stable-slim"
WORKSPACE = "/workspace"
LINGER_S = 0.2
"""How long an exec's stream stays open for children that hold it; a real daemon waits 2 s."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Refusal(Exception):
    """An answer other than the good one."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@final
@dataclass(slots=True)
class Fault:
    """What befalls the next request that fits, or the next `times`.

    ``error``: 500 instead of doing it; ``hang``: never done nor answered; ``lost``: done, and the connection cut.
    """

    method: str
    path: str
    """A regular expression for the whole path, without the version."""
    kind: Literal["error", "hang", "lost"]
    times: int = 1


@final
@dataclass(slots=True)
class Exec:
    """A command in a container."""

    id: str
    container: Container
    config: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    exit_code: int | None = None

    def signal(self, number: int) -> None:
        if self.process is not None and self.exit_code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def shape(self) -> dict[str, Any]:
        entrypoint, *arguments = self.config["Cmd"]
        return {
            "ID": self.id,
            "Running": self.process is not None and self.exit_code is None,
            "ExitCode": self.exit_code,
            "ProcessConfig": {"tty": False, "entrypoint": entrypoint, "arguments": arguments, "privileged": False},
            "OpenStdin": bool(self.config.get("AttachStdin")),
            "OpenStdout": True,
            "OpenStderr": True,
            "ContainerID": self.container.id,
            "Pid": self.process.pid if self.process is not None else 0,
        }


@final
@dataclass(slots=True)
class Container:
    """One container; `status` is ``created``, ``running``, ``paused``, ``exited`` or ``removing``."""

    id: str
    name: str
    config: dict[str, Any]
    status: str = "created"
    exit_code: int = 0
    execs: list[Exec] = field(default_factory=list[Exec])
    looks: int = 0

    @property
    def volumes(self) -> list[str]:
        return [mount["Source"] for mount in self.config["HostConfig"].get("Mounts", ())]

    def shape(self) -> dict[str, Any]:
        """As ``GET /containers/{id}/json`` has it."""
        config = {key: value for key, value in self.config.items() if key != "HostConfig"}
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": "sha256:" + "0" * 64,
            "State": {
                "Status": self.status,
                "Running": self.status in ("running", "paused"),
                "Paused": self.status == "paused",
                "Dead": False,
                "OOMKilled": False,
                "ExitCode": self.exit_code,
                "Error": "",
            },
            "Config": {"Labels": {}, "Env": None, **config},
            "HostConfig": self.config["HostConfig"],
            "ExecIDs": [one.id for one in self.execs if one.exit_code is None] or None,
        }

    def entry(self) -> dict[str, Any]:
        """As ``GET /containers/json`` has it."""
        labels: dict[str, str] = self.config.get("Labels") or {}
        return {"Id": self.id, "Names": [f"/{self.name}"], "Labels": labels, "State": self.status}

    def end(self, status: str, code: int) -> None:
        self.status, self.exit_code = status, code
        for one in self.execs:
            one.signal(signal.SIGKILL)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    engine: Engine

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in mid-answer is no news."""


@final
class Engine:
    """The daemon. Everything that it was asked is in `asked`: (method, path with query, body)."""

    def __init__(self, *, images: tuple[str, ...] = (IMAGE,)) -> None:
        self.images = set(images)
        self.dying: set[str] = set()
        """Images whose containers exit at once, with code 1."""
        self.containers: dict[str, Container] = {}
        """By name."""
        self.looks = 0
        """How often a container that was removed is still seen, as ``removing``: its removal takes its time."""
        self.volumes: dict[str, dict[str, Any]] = {}
        self.execs: dict[str, Exec] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, bytes]] = []
        self.lock = threading.RLock()
        self.over = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="engine-"))  # short: a socket's path has 107 bytes at most
        self.socket = str(self._folder / "docker.sock")

    def __enter__(self) -> Self:
        self._server = _Server(self.socket, _Exchange)
        self._server.engine = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for one in self.execs.values():
            one.signal(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def folder(self, volume: str) -> Path:
        return self._folder / volume

    def fault(self, method: str, path: str) -> str | None:
        """The kind of fault that befalls this request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.fullmatch(fault.path, path):
                    fault.times -= 1
                    return fault.kind
        return None

    # --- what the API does: each under the lock ---

    def find(self, key: str) -> Container:
        for one in self.containers.values():
            if key in (one.name, one.id):
                return one
        raise Refusal(404, f"No such container: {key}")

    def create(self, name: str, config: dict[str, Any]) -> tuple[int, Any]:
        if not _NAME.fullmatch(name):
            raise Refusal(400, f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        if name in self.containers:
            taken = self.containers[name].id
            raise Refusal(409, f'Conflict. The container name "/{name}" is already in use by container "{taken}".')
        if config["Image"] not in self.images:
            raise Refusal(404, f"No such image: {config['Image']}")
        one = self.containers[name] = Container(secrets.token_hex(32), name, config)
        for volume in one.volumes:
            self.create_volume({"Name": volume})
        return 201, {"Id": one.id, "Warnings": []}

    def start(self, one: Container) -> tuple[int, Any]:
        if one.status == "paused":
            raise Refusal(409, "cannot start a paused container, try unpause instead")
        if one.status == "running":
            return 304, None
        if one.config["Image"] in self.dying:
            one.end("exited", 1)
        else:
            one.status = "running"
        return 204, None

    def pause(self, one: Container) -> tuple[int, Any]:
        if one.status != "running":
            raise Refusal(409, f"Container {one.id} is not running")
        one.status = "paused"
        for each in one.execs:
            each.signal(signal.SIGSTOP)
        return 204, None

    def unpause(self, one: Container) -> tuple[int, Any]:
        if one.status != "paused":
            raise Refusal(409, f"Container {one.id} is not paused")
        one.status = "running"
        for each in one.execs:
            each.signal(signal.SIGCONT)
        return 204, None

    def stop(self, name: str, code: int = 137) -> None:
        """Its main process ends behind everybody's back, or the machine was started anew."""
        with self.lock:
            self.containers[name].end("exited", code)

    def remove(self, one: Container, *, force: bool) -> tuple[int, Any]:
        if one.status in ("running", "paused") and not force:
            message = "container is running: stop the container before removing or force remove"
            raise Refusal(409, f'cannot remove container "/{one.name}": {message}')
        if one.status == "removing":
            raise Refusal(409, f"removal of container {one.name} is already in progress")
        one.end("removing" if self.looks else "exited", 137)
        one.looks = self.looks
        if not one.looks:
            del self.containers[one.name]
        for each in one.execs:
            self.execs.pop(each.id, None)
        return 204, None

    def look(self, one: Container) -> tuple[int, Any]:
        """One that is being removed is gone after a few looks."""
        shape = one.shape()
        if one.status == "removing":
            one.looks -= 1
            if one.looks <= 0:
                del self.containers[one.name]
        return 200, shape

    def create_volume(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = asked["Name"]
        if name not in self.volumes:
            self.folder(name).mkdir()
            self.volumes[name] = {"Name": name, "Driver": "local", "Labels": asked.get("Labels"), "Scope": "local"}
        return 201, self.volumes[name]

    def remove_volume(self, name: str) -> tuple[int, Any]:
        if name not in self.volumes:
            raise Refusal(404, f"get {name}: no such volume")
        if users := [one.id for one in self.containers.values() if name in one.volumes]:
            raise Refusal(409, f"remove {name}: volume is in use - [{', '.join(users)}]")
        del self.volumes[name]
        shutil.rmtree(self.folder(name))
        return 204, None

    def list(self, *, every: bool, labels: list[str]) -> tuple[int, Any]:
        found = [one.entry() for one in self.containers.values() if every or one.status == "running"]
        return 200, [entry for entry in found if all(_has(entry["Labels"], label) for label in labels)]

    def create_exec(self, one: Container, config: dict[str, Any]) -> tuple[int, Any]:
        self.insist_on_running(one)
        made = Exec(secrets.token_hex(32), one, config)
        one.execs.append(made)
        self.execs[made.id] = made
        return 201, {"Id": made.id}

    def begin(self, one: Exec) -> subprocess.Popen[bytes]:
        """Start an exec's process: the leader of a group of its own, as in a container."""
        self.insist_on_running(one.container)
        if one.process is not None:
            raise Refusal(409, f"exec command {one.id} has already run")
        place = self.folder(one.container.volumes[0]) if one.config.get("WorkingDir") == WORKSPACE else "/"
        given = dict(pair.split("=", 1) for pair in one.config.get("Env") or ())
        one.process = subprocess.Popen(
            one.config["Cmd"],
            stdin=subprocess.PIPE if one.config.get("AttachStdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=place,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **given},
            start_new_session=True,
        )
        return one.process

    def insist_on_running(self, one: Container) -> None:
        if one.status == "paused":
            raise Refusal(409, f"Container {one.id} is paused, unpause the container before exec")
        if one.status != "running":
            raise Refusal(409, f"container {one.id} is not running")


def _has(labels: dict[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


@final
class _Exchange(BaseHTTPRequestHandler):
    """A connection's requests."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """It is all in `asked`."""

    @property
    def engine(self) -> Engine:
        return cast("_Server", self.server).engine

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        engine, parts = self.engine, urlsplit(self.path)
        path = re.sub(r"^/v[0-9.]+(?=/)", "", parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        engine.asked.append((self.command, self.path, body))
        fault = engine.fault(self.command, path)
        if fault == "hang":
            engine.over.wait()
            self.close_connection = True
            return
        try:
            if fault == "error":
                raise Refusal(500, "the daemon stumbled")
            asked: dict[str, Any] = json.loads(body or b"{}") or {}
            if self.command == "POST" and (found := re.fullmatch(r"/exec/(\w+)/start", path)):
                self._stream(found[1], detach=bool(asked.get("Detach")))
                return
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            with engine.lock:
                status, answer = _route(engine, self.command, path, query, asked)
        except Refusal as refusal:
            status, answer = refusal.status, {"message": refusal.message}
        if fault == "lost":
            self.close_connection = True
            return
        self._reply(status, answer)

    def _reply(self, status: int, answer: Any) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Api-Version", API)
        self.send_header("Content-Type", "application/json")
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, exec_id: str, *, detach: bool) -> None:
        """Start an exec; unless detached, the connection becomes its input and, in frames, its outputs."""
        engine = self.engine
        with engine.lock:
            if exec_id not in engine.execs:
                raise Refusal(404, f"No such exec instance: {exec_id}")
            one = engine.execs[exec_id]
            process = engine.begin(one)
        if detach:
            self._reply(200, None)
        else:
            self.send_response(101, "UPGRADED")
            self.send_header("Content-Type", "application/vnd.docker.multiplexed-stream")
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "tcp")
            self.end_headers()
            self.close_connection = True
        self._carry(one, process, detach=detach)

    def _carry(self, one: Exec, process: subprocess.Popen[bytes], *, detach: bool) -> None:
        turn = threading.Lock()

        def out(stream: int, pipe: Any) -> None:
            while data := pipe.read1(1 << 15):  # to its end, whether anybody listens or not
                with turn, suppress(OSError, ValueError):
                    if not detach:
                        self.connection.sendall(bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data)
            pipe.close()

        def feed(pipe: Any) -> None:
            with suppress(OSError, ValueError):
                while data := self.rfile.read1(1 << 15):  # type: ignore[attr-defined]
                    pipe.write(data)
                    pipe.flush()
            with suppress(OSError):
                pipe.close()

        pumps = [_thread(out, 1, process.stdout), _thread(out, 2, process.stderr)]
        if process.stdin is not None:
            _thread(feed, process.stdin)
        code = process.wait()
        for pump in pumps:
            pump.join(LINGER_S)
        with self.engine.lock:
            one.exit_code = code if code >= 0 else 128 - code
        if not detach:
            with turn, suppress(OSError):
                self.connection.shutdown(2)


def _thread(work: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


def _route(engine: Engine, method: str, path: str, query: dict[str, str], asked: dict[str, Any]) -> tuple[int, Any]:
    match method, [unquote(part) for part in path.split("/")[1:]]:
        case "GET", ["version"]:
            return 200, {"Version": "27.0.0", "ApiVersion": API, "MinAPIVersion": "1.24", "Os": "linux"}
        case "POST", ["containers", "create"]:
            return engine.create(query["name"], asked)
        case "GET", ["containers", "json"]:
            labels = json.loads(query.get("filters", "{}")).get("label", [])
            return engine.list(every=query.get("all") in ("1", "true", "True"), labels=labels)
        case "GET", ["containers", key, "json"]:
            return engine.look(engine.find(key))
        case "POST", ["containers", key, "start"]:
            return engine.start(engine.find(key))
        case "POST", ["containers", key, "pause"]:
            return engine.pause(engine.find(key))
        case "POST", ["containers", key, "unpause"]:
            return engine.unpause(engine.find(key))
        case "POST", ["containers", key, "exec"]:
            return engine.create_exec(engine.find(key), asked)
        case "DELETE", ["containers", key]:
            return engine.remove(engine.find(key), force=query.get("force") in ("1", "true", "True"))
        case "GET", ["exec", exec_id, "json"]:
            if exec_id not in engine.execs:
                raise Refusal(404, f"No such exec instance: {exec_id}")
            return 200, engine.execs[exec_id].shape()
        case "POST", ["volumes", "create"]:
            return engine.create_volume(asked)
        case "GET", ["volumes"]:
            labels = json.loads(query.get("filters", "{}")).get("label", [])
            volumes = [one for one in engine.volumes.values() if all(_has(one["Labels"] or {}, w) for w in labels)]
            return 200, {"Volumes": volumes or None, "Warnings": None}
        case "DELETE", ["volumes", name]:
            return engine.remove_volume(name)
        case _:
            raise Refusal(404, "page not found")
