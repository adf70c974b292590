"""The runtime ``http``: sandboxes of a service that speaks the protocol of ``docs/extending/http-runtimes.md``.

They outlive the node that asked for them, and the next owner reattaches them by name. Every request may be repeated: what
is made is named by the caller (a runtime, a run), so the copy of a request finds what the first one made. A request has a
time limit and a few tries with back-off and jitter; what the service says of a failure is the failure's reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, Self, final

from tenure.abc import Ran, Runtime, RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes.http.service import Answer, Paused, Service, segment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    import httpx

CALL_S, TIMEOUT_S = 10.0, 3600.0
INPUT_LIMIT = 16 << 20
OVERTIME_S = 30.0
"""How long behind a command's own time limit the service may take to say that it ended it."""
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 1.0
"""Between two looks at a runtime that is coming or going."""
FAREWELL_S = 5.0
RESUME_S = 60.0
"""How long a runtime that was paused under its owner may take to go on."""
PAGES = 10_000

__all__ = ["HttpProvider", "HttpRuntime"]


@final
class HttpRuntime:
    """A sandbox of the service, by its name."""

    def __init__(self, service: Service, name: str, timeout_s: float, resume: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self._service = service
        self._timeout_s = timeout_s
        self.resume = resume

    @property
    def path(self) -> Path | None:
        return None

    async def run(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, stdin: str | None = None
    ) -> Ran:
        """Run a command: begun once, however often it is asked for, and ended when the caller goes away.

        :raises InvalidInputError: the command or its input is none, or too long. :raises RuntimeFailure: the service's reason.
        """
        _insist_on_command(command, stdin)
        limit_s = timeout_s or self._timeout_s
        run = f"{self._at}/runs/{secrets.token_hex(8)}"
        hold = f"?wait_s={self._service.wait_s:g}"
        ended = False
        asked = {"command": command if isinstance(command, str) else list(command), "timeout_s": limit_s}
        try:
            async with asyncio.timeout(limit_s + OVERTIME_S):
                body = asked if stdin is None else {**asked, "stdin": stdin}
                answer = await self._ask("PUT", run + hold, body, step="run")
                while answer.json().get("state") == "running":
                    answer = await self._ask("GET", run + hold, step="run")
            ended = True
            return _ran(answer.json())
        except TimeoutError:
            raise RuntimeFailure(f"the service did not end a command of {limit_s:g} s", step="run") from None
        finally:
            if not ended:  # begun or not: nothing of it is left there, and a late copy of the request begins nothing
                await self._forget(run)

    async def _forget(self, run: str) -> None:
        with contextlib.suppress(RuntimeFailure, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._service.ask("DELETE", run, step="run", none=(404, 410))

    async def read(self, path: str, *, limit_bytes: int = 1 << 20) -> bytes:
        """The content of a file of the workspace.

        :raises FileNotFoundError: no such file. :raises InvalidInputError: the path leaves the workspace, or the file is
            larger. :raises RuntimeFailure: the service's reason.
        """
        answer = await self._ask(
            "GET", f"{self._file(path)}?limit_bytes={limit_bytes}", step="file", most=limit_bytes, none=(404,)
        )
        if answer.status == 404:
            raise FileNotFoundError(path)
        return answer.body

    async def write(self, path: str, content: bytes | str) -> None:
        """Write a file of the workspace, making its folders.

        :raises InvalidInputError: the path leaves the workspace, or the content is too large.
        :raises RuntimeFailure: the service's reason.
        """
        data = content.encode(errors="replace") if isinstance(content, str) else content
        if len(data) > INPUT_LIMIT:
            raise InvalidInputError("content", f"has {len(data)} bytes, at most {INPUT_LIMIT}", "write it in parts")
        await self._ask("PUT", self._file(path), data, step="file")

    @property
    def _at(self) -> str:
        return f"/runtimes/{segment(self.name)}"

    def _file(self, path: str) -> str:
        parts = path.split("/")
        if not path or path.startswith("/") or ".." in parts or "\0" in path:
            raise InvalidInputError("path", f"{path!r} leaves the workspace", "name a file inside of it")
        return f"{self._at}/files/{'/'.join(segment(part) for part in parts)}"

    async def _ask(self, method: str, path: str, content: object = None, **more: Any) -> Answer:
        return await _ask_awake(self._service, self.resume, method, path, content, **more)


@final
class HttpProvider(RuntimeProvider):
    """Runtimes of the service at `url`.

    :param token: sent as a bearer token. :param call_s: the time limit of one request.
    :param timeout_s: the time limit of a command that has none of its own.
    :param transport: for tests, or for a proxy of one's own.
    """

    kind = "http"
    outlives_node = True

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        call_s: float = CALL_S,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._rng = rng or random.Random()
        self._service = Service(url, token=token, call_s=call_s, transport=transport, rng=self._rng)
        self._timeout_s = timeout_s

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str], token: str) -> Self:
        """As ``open_provider`` reads it. :raises InvalidInputError: naming `runtime`."""
        numbers: dict[str, float] = {}
        for name, text in options.items():
            if name not in ("call_s", "timeout_s"):
                raise InvalidInputError("runtime", f"http has no option {name[:80]!r}", "use call_s, timeout_s")
            try:
                numbers[name] = float(text)
            except ValueError:
                numbers[name] = -1.0
            if not 0 < numbers[name] <= 30 * 86400:
                raise InvalidInputError("runtime", f"{name} is {text[:80]!r}", "give seconds above 0")
        call_s, timeout_s = numbers.get("call_s", CALL_S), numbers.get("timeout_s", TIMEOUT_S)
        return cls(url, token=token, call_s=call_s, timeout_s=timeout_s)

    async def provision(self, spec: RuntimeSpec, progress: Callable[[str], None]) -> HttpRuntime:
        """Ask for a runtime of that name, and wait until the service calls it ready; its steps are ours.

        :raises RuntimeFailure: with the service's own reason.
        """
        progress("create")
        wanted = {"conversation": spec.conversation, "workspace": spec.workspace, "settings": spec.settings}
        answer = await self._service.ask("PUT", _at(spec.name), wanted, step="create")
        return await self._ready(spec, self._about(spec, answer), progress)

    async def configure(self, runtime: Runtime, credentials: Mapping[str, str]) -> None:
        """Hand the credentials over; they stand in the body of this request and nowhere else.

        :raises RuntimeFailure: with the service's reason, and never with a value.
        """
        assert isinstance(runtime, HttpRuntime), "made by this provider"
        body = {"credentials": dict(credentials)}
        at = f"{_at(runtime.name)}/credentials"
        await _ask_awake(self._service, runtime.resume, "PUT", at, body, step="configure", hide=credentials)

    async def attach(self, spec: RuntimeSpec) -> HttpRuntime | None:
        """The living runtime of that name, resumed if it was paused; null if the service has none, or it has failed. What
        commands of its former owners have left running is ended.

        :raises RuntimeFailure: it could not be found out.
        """
        answer = await self._service.ask("GET", _at(spec.name), step="attach", none=(404, 410))
        if answer.status in (404, 410):
            return None
        about = self._about(spec, answer)
        if about["state"] in ("failed", "stopped"):
            return None
        runtime = await self._ready(spec, about, _unheard)
        ended = await self._service.ask("DELETE", f"{_at(spec.name)}/runs", step="attach", none=(410,))
        return None if ended.status == 410 else runtime

    async def discard(self, name: str, workspace: str | None = None) -> None:
        """Have the runtime destroyed, with `workspace` also its files; returns when the service says that it is gone.

        :raises RuntimeFailure: it may still be there.
        """
        more = "" if workspace is None else f"?workspace={segment(workspace)}"
        pause_s = FIRST_LOOK_S
        while (await self._service.ask("DELETE", _at(name) + more, step="discard", none=(404, 410))).status == 202:
            pause_s = await self._pause(pause_s)

    async def list(self) -> Sequence[tuple[str, str]]:
        """(name, conversation) of every runtime that the service has.

        :raises RuntimeFailure: with the service's reason.
        """
        return await self._listed("runtimes", lambda one: (str(one["name"]), str(one["conversation"])))

    async def workspaces(self) -> Sequence[str]:
        """The names of all workspaces that the service keeps.

        :raises RuntimeFailure: with the service's reason.
        """
        return await self._listed("workspaces", lambda one: str(one["name"]))

    async def _listed[T](self, what: str, read: Callable[[Any], T]) -> list[T]:
        found: list[T] = []
        cursor = ""
        for _ in range(PAGES):
            answer = (await self._service.ask("GET", f"/{what}{cursor}", step="list")).json()
            try:
                found += [read(one) for one in answer[what]]
            except (KeyError, TypeError):
                raise RuntimeFailure("the service's list is none", step="list") from None
            if not answer.get("next_cursor"):
                return found
            cursor = f"?cursor={segment(str(answer['next_cursor']))}"
        raise RuntimeFailure(f"the service's list has more than {PAGES} pages", step="list")

    async def close(self) -> None:
        await self._service.close()

    async def _ready(self, spec: RuntimeSpec, about: dict[str, Any], progress: Callable[[str], None]) -> HttpRuntime:
        """Wait until it answers; how long at most, the start's own limit decides."""
        pause_s = FIRST_LOOK_S
        while about["state"] != "ready":
            step = str(about.get("step") or about["state"])
            if about["state"] in ("failed", "stopped"):
                reason = str(about.get("reason") or f"the service calls it {about['state']}")
                raise RuntimeFailure(reason, step=step, permanent=about.get("permanent") is True)
            progress(step)
            if about["state"] == "paused":
                await self._service.ask("POST", f"{_at(spec.name)}/resume", {}, step="resume")
            pause_s = await self._pause(pause_s)
            answer = await self._service.ask("GET", _at(spec.name), step=step, none=(404, 410))
            if answer.status in (404, 410):
                raise RuntimeFailure("it vanished while it was made", step=step)
            about = self._about(spec, answer)
        return HttpRuntime(self._service, spec.name, self._timeout_s, partial(self._resume, spec))

    async def _resume(self, spec: RuntimeSpec) -> None:
        """Have a runtime go on that was paused under its owner."""
        try:
            async with asyncio.timeout(RESUME_S):
                answer = await self._service.ask("GET", _at(spec.name), step="resume")
                await self._ready(spec, self._about(spec, answer), _unheard)
        except TimeoutError:
            raise RuntimeFailure(f"the service did not resume it within {RESUME_S:g} s", step="resume") from None

    async def _pause(self, seconds: float) -> float:
        await asyncio.sleep(seconds * self._rng.uniform(0.5, 1.5))
        return min(2 * seconds, LAST_LOOK_S)

    def _about(self, spec: RuntimeSpec, answer: Answer) -> dict[str, Any]:
        """What the service says of the runtime, if it speaks of that one at all."""
        about = answer.json()
        if about.get("name") != spec.name or about.get("conversation") != spec.conversation:
            raise RuntimeFailure("the service answered for another runtime", step="create")
        if not isinstance(about.get("state"), str):
            raise RuntimeFailure("the service names no state", step="create")
        return about


async def _ask_awake(
    service: Service, resume: Callable[[], Awaitable[object]], method: str, path: str, content: object, **more: Any
) -> Answer:
    """Ask the service; if it has paused the runtime meanwhile, resume it and ask once more."""
    with contextlib.suppress(Paused):
        return await service.ask(method, path, content, **more)
    await resume()
    return await service.ask(method, path, content, **more)


def _at(name: str) -> str:
    return f"/runtimes/{segment(name)}"


def _unheard(step: str) -> None:
    """A reattachment has one step, ``attach``."""


def _insist_on_command(command: str | Sequence[str], stdin: str | None) -> None:
    texts = [command] if isinstance(command, str) else list(command)
    if not command or not all(isinstance(t, str) and "\0" not in t for t in texts):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInputError("command", "must be text or a list of texts, without NUL", "name the program first")
    if stdin is not None and len(stdin.encode(errors="replace")) > INPUT_LIMIT:
        raise InvalidInputError("stdin", f"has more than {INPUT_LIMIT} bytes", "write it to a file")


def _ran(shape: dict[str, Any]) -> Ran:
    match shape:
        case {"exit_code": int(code), "stdout": str(stdout), "stderr": str(stderr)}:
            flags = {name: shape.get(name) is True for name in ("truncated", "timed_out")}
            return Ran(code, stdout, stderr, **flags)
        case _:
            raise RuntimeFailure("the service did not say how the command ended", step="run")
