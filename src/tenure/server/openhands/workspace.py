"""A conversation's commands, files and git under the SDK's paths: in its runtime, from any node (see ``reach``).

A command belongs to the owner at which it was begun, as everything that runs in a runtime does. Its id names that owner's
epoch: of one whose owner was lost, any node says that it was interrupted.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, final

from fastapi import Request, Response
from starlette.datastructures import UploadFile

from tenure.abc import Ran, RuntimeFailure
from tenure.errors import InvalidInputError
from tenure.loops.openhands.projection import stamp
from tenure.server.openhands.place import Place, body_and_bytes
from tenure.server.openhands.reach import Reach
from tenure.server.problems import Problem
from tenure.server.strict import too_large
from tenure.server.wire import json_reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tenure.abc import Runtime
    from tenure.conversation import Record
    from tenure.journal import Json
    from tenure.node.tenure import Tenure

FILE_BYTES: Final = 16 << 20
FORM_BYTES: Final = FILE_BYTES + (64 << 10)
"""An upload with what is around the file."""
LONGEST_S: Final = 86_400
RUNNING, KEPT = 16, 200
"""Commands of a conversation at a time; and those of it that a node still tells of."""
GIT_S: Final = 30.0
LOST = "interrupted: the server that ran this command was lost, or gave the conversation away; its outcome is unknown"
_COMMAND = re.compile(r"e([0-9]{1,15})-[0-9a-f]{32}")
_STATUS = {"A": "ADDED", "?": "ADDED", "D": "DELETED", "R": "MOVED", "C": "ADDED"}


@final
@dataclass(slots=True)
class _Command:
    """A client's command, begun here."""

    conversation: str
    task: asyncio.Task[None]
    began: str
    ended: dict[str, Json] | None = None


@final
class SdkWorkspace:
    """The routes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.reach = Reach(place)
        self._commands: OrderedDict[str, _Command] = OrderedDict()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def start_command(self, request: Request) -> Response:
        """Begin a command; its id. What it prints is told when it has ended."""
        body, sent = await body_and_bytes(request)
        command, timeout_s, cwd = body.get("command"), body.get("timeout", 300), body.get("cwd")
        if not isinstance(command, str) or not command:
            raise InvalidInputError("command", "must be text", "give it")
        if not isinstance(timeout_s, int) or not 1 <= timeout_s <= LONGEST_S:
            raise InvalidInputError("timeout", f"must be 1 to {LONGEST_S} seconds", "correct it")
        if cwd is not None and not isinstance(cwd, str):
            raise InvalidInputError("cwd", "must be a path", "leave it out for the workspace")

        async def begin(tenure: Tenure, record: Record) -> Response:
            running = [c for c in self._commands.values() if c.conversation == record.conversation and c.ended is None]
            if len(running) >= RUNNING:
                detail = f"{RUNNING} commands run in this conversation; wait for one, or stop one"
                raise Problem(429, "too-many-commands", "Too many commands", detail, retry_after_s=1)
            name = f"e{tenure.lease.epoch}-{uuid.uuid4().hex}"
            line = command if cwd is None else f"cd -- {shlex.quote(_inside(record, cwd))} || exit 1\n{command}"
            work = self._run(name, tenure, line, float(timeout_s))
            now = stamp(self.place.node.clock.now())
            task = self.place.node.tasks.start(work, f"command {name}")
            self._keep(name, _Command(record.conversation, task, now))
            told = {"id": name, "kind": "BashCommand", "timestamp": now, "command": command, "cwd": cwd}
            return json_reply(200, {**told, "timeout": timeout_s})

        return await self._in_runtime(request, begin, sent)

    async def _run(self, name: str, tenure: Tenure, line: str, timeout_s: float) -> None:
        told = Ran(-1, "", "stopped")
        awake = self.place.node.tasks.start(_keep_awake(tenure), f"{name} goes on")
        try:
            told = await _runtime(tenure).run(["/bin/bash", "-c", line], timeout_s=timeout_s)
        except asyncio.CancelledError:
            pass  # by a stop, or at the node's end: its group has ended with it
        except (RuntimeFailure, InvalidInputError) as error:
            told = Ran(-1, "", str(error))
        finally:
            awake.cancel()
        if (command := self._commands.get(name)) is not None:
            stderr = told.stderr + (f"\nCommand timed out after {timeout_s:g} seconds" if told.timed_out else "")
            command.ended = {"exit_code": told.exit_code, "stdout": told.stdout, "stderr": stderr}

    def _keep(self, name: str, command: _Command) -> None:
        self._commands[name] = command
        mine = [one for one, kept in self._commands.items() if kept.conversation == command.conversation]
        ended = [one for one in mine if self._commands[one].ended is not None]
        for one in ended[: max(0, len(mine) - KEPT)]:
            del self._commands[one]

    async def search(self, request: Request) -> Response:
        """What commands have printed: one ``BashOutput`` for each that has ended."""
        record = await self.place.record(request.path_params["id"])
        query = request.query_params
        name, after = query.get("command_id__eq"), query.get("order__gt", "-1")
        if name is not None and name not in self._commands and _epoch_of(name) != record.epoch:
            items = [_output(name, stamp(record.updated_at), {"exit_code": -1, "stdout": "", "stderr": LOST})]
            return _page(items if after.startswith("-") else [])

        async def tell(tenure: Tenure, record: Record) -> Response:
            mine = {n: c for n, c in self._commands.items() if c.conversation == record.conversation}
            if name is not None and name not in mine:
                raise _no_command(name)
            wanted = [name] if name is not None else list(reversed(mine))
            items = [_output(n, mine[n].began, ended) for n in wanted if (ended := mine[n].ended) is not None]
            return _page(items if after.startswith("-") else [])

        return await self._in_runtime(request, tell)

    async def stop(self, request: Request) -> Response:
        """End a command, with all that it has begun in its group."""
        name = str(request.path_params["command"])

        async def end(tenure: Tenure, record: Record) -> Response:
            command = self._commands.get(name)
            if command is None or command.conversation != record.conversation:
                raise _no_command(name)
            command.task.cancel()
            return json_reply(200, {"success": True})

        return await self._in_runtime(request, end)

    # --- files ------------------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """Write a file of the workspace: the form's part ``file``, at most 16 MiB."""
        body = await _bounded(request)
        path = _path(request)

        async def write(tenure: Tenure, record: Record) -> Response:
            content = await _file_of(request, body)
            await _runtime(tenure).write(_inside(record, path), content)
            return json_reply(200, {"success": True, "file_size": len(content)})

        return await self._in_runtime(request, write, body)

    async def download(self, request: Request) -> Response:
        """A file of the workspace, at most 16 MiB."""
        path = _path(request)

        async def read(tenure: Tenure, record: Record) -> Response:
            content = await _runtime(tenure).read(_inside(record, path), limit_bytes=FILE_BYTES)
            return Response(content, media_type="application/octet-stream")

        return await self._in_runtime(request, read)

    # --- git --------------------------------------------------------------------------------------------------------

    async def changes(self, request: Request) -> Response:
        """What differs from the last commit, new files included."""
        path = _path(request)

        async def look(tenure: Tenure, record: Record) -> Response:
            said = await _git(tenure, _inside(record, path), "status", "--porcelain", "-z", "--untracked-files=all")
            return json_reply(200, _changes(said.split("\0")))

        return await self._in_runtime(request, look)

    async def diff(self, request: Request) -> Response:
        """A file as it is, and as the last commit has it."""
        path = _path(request)

        async def look(tenure: Tenure, record: Record) -> Response:
            place = PurePosixPath(_inside(record, path))
            try:
                content = await _runtime(tenure).read(str(place), limit_bytes=FILE_BYTES)
                modified = content.decode(errors="replace")
            except FileNotFoundError:
                modified = None
            ran = await _git_ran(tenure, str(place.parent), "show", f"HEAD:./{place.name}")
            return json_reply(200, {"modified": modified, "original": ran.stdout if ran.exit_code == 0 else None})

        return await self._in_runtime(request, look)

    # --- where ------------------------------------------------------------------------------------------------------

    async def _in_runtime(
        self, request: Request, do: Callable[[Tenure, Record], Awaitable[Response]], body: bytes = b""
    ) -> Response:
        record = await self.place.record(request.path_params["id"])
        found = await self.reach.tenure(request, record, body)
        if isinstance(found, Response):
            return found
        try:
            return await do(found, record)
        except FileNotFoundError:
            raise Problem(404, "no-such-file", "No such file", "path: there is no such file", field="path") from None
        except RuntimeFailure as failure:
            raise Problem(503, "runtime-failed", "The runtime failed", failure.reason, retry_after_s=1) from None


async def _keep_awake(tenure: Tenure) -> None:
    """A conversation in which a command runs is not idle."""
    while True:
        tenure.poke()
        await asyncio.sleep(tenure.means.config.idle_s / 3)


def _runtime(tenure: Tenure) -> Runtime:
    assert tenure.runtime is not None, "reached"
    return tenure.runtime


def _inside(record: Record, path: str) -> str:
    """A client's path as the runtime has it: one below the working folder that the client asked for, and did not get
    under that name, is meant to be of the workspace."""
    asked = str(record.settings.get("working_dir") or "").rstrip("/")
    if asked and (path == asked or path.startswith(f"{asked}/")):
        return path.removeprefix(asked).lstrip("/") or "."
    return path


def _path(request: Request) -> str:
    path = request.query_params.get("path", "")
    if not path:
        raise InvalidInputError("path", "is required", "name a file of the workspace")
    return path


async def _bounded(request: Request) -> bytes:
    """:raises Problem: 413: larger than an upload may be."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > FORM_BYTES:
            raise too_large("file", f"at most {FILE_BYTES} bytes")
    return bytes(data)


async def _file_of(request: Request, body: bytes) -> bytes:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, receive).form(max_files=1, max_fields=10) as form:
        part = form.get("file")
        if not isinstance(part, UploadFile):
            raise InvalidInputError("file", "is required", "send a form with a file of that name")
        return await part.read()


def _epoch_of(name: str) -> int:
    """The epoch of the owner at which a command was begun.

    :raises Problem: 404: no command has such a name.
    """
    told = _COMMAND.fullmatch(name)
    if told is None:
        raise _no_command(name)
    return int(told[1])


def _no_command(name: str) -> Problem:
    return Problem(404, "unknown-command", "Unknown command", f"command: {name[:64]!r} is not known here")


def _output(name: str, at: str, ended: dict[str, Json]) -> dict[str, Json]:
    of = str(uuid.uuid5(uuid.NAMESPACE_OID, f"tenure:{name}:0"))
    return {"id": of, "kind": "BashOutput", "timestamp": at, "command_id": name, "order": 0, **ended}


def _page(items: list[dict[str, Json]]) -> Response:
    return json_reply(200, {"items": items, "next_page_id": None})


async def _git_ran(tenure: Tenure, folder: str, *words: str) -> Ran:
    return await _runtime(tenure).run(["git", "-C", folder, *words], timeout_s=GIT_S)


async def _git(tenure: Tenure, folder: str, *words: str) -> str:
    ran = await _git_ran(tenure, folder, *words)
    if ran.exit_code != 0:
        raise InvalidInputError("path", f"git says: {ran.stderr.strip()[:300]}", "name a folder of a repository")
    return ran.stdout


def _changes(told: list[str]) -> list[Json]:
    """``git status -z`` as the SDK's GitChange: two letters, a space, a path; of what was moved, the old path follows."""
    found: list[Json] = []
    parts = iter(told)
    for one in parts:
        if len(one) < 4:
            continue
        letter = one[0] if one[0] not in " ?" else one[1]
        if letter in "RC":
            next(parts, None)
        found.append({"status": _STATUS.get(letter, "UPDATED"), "path": one[3:]})
    return found
