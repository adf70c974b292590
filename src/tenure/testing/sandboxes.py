"""The reference sandbox service: ``docs/extending/http-runtimes.md`` as an ASGI app, over any provider of runtimes.

The service has a life of its own, so its runtimes outlive the nodes that ask for them. In tests a provider reaches it
without sockets: ``HttpProvider("http://sandboxes", transport=httpx.ASGITransport(service))``; over one, other processes do:
``async with serving(service) as url``. Not for production: it has no limits of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final
from urllib.parse import parse_qsl, unquote

from tenure.abc import RuntimeFailure, RuntimeSpec
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping

    from tenure.abc import Ran, Runtime, RuntimeProvider

    type Message = MutableMapping[str, Any]
    type Receive = Callable[[], Awaitable[Message]]
    type Send = Callable[[Message], Awaitable[None]]

HOLD_S = 10.0
"""How long a request that waits for the end of a run is held at most, whatever its caller asks for."""


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[str]:
    """Serve it on a port of this machine, in this event loop; its URL."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
    listener.close()


class Refusal(Exception):
    """An answer that is none of the good ones."""

    def __init__(self, status: int, reason: str, **more: Any) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"reason": reason, **more}


@final
@dataclass(slots=True)
class Sandbox:
    """One runtime of the service."""

    spec: RuntimeSpec
    state: str = "starting"
    step: str = "queued"
    failure: RuntimeFailure | None = None
    runtime: Runtime | None = None
    runs: dict[str, asyncio.Task[Ran] | None] = field(default_factory=dict[str, "asyncio.Task[Ran] | None"])
    """By the caller's name for it; null: forgotten, and never begun again."""
    used: bool = False
    """Whether a command has begun in it since it was made, or made anew."""

    def shape(self) -> dict[str, Any]:
        told = {"name": self.spec.name, "conversation": self.spec.conversation, "state": self.state, "step": self.step}
        if self.failure is None:
            return told
        return {**told, "step": self.failure.step, "reason": self.failure.reason, "permanent": self.failure.permanent}


@final
class SandboxService:
    """The app. `provider` makes the runtimes; `token` is asked for, if there is one; pages of lists have `page` names.

    It takes its time if it is told to: of each deletion and resumption the first `late` answers are "not yet" (202).
    """

    def __init__(self, provider: RuntimeProvider, *, token: str = "", page: int = 100, late: int = 0) -> None:
        self.provider = provider
        self.sandboxes: dict[str, Sandbox] = {}
        self.asked: list[tuple[str, str]] = []
        """(method, path) of each request, in order."""
        self._token = token
        self._page = page
        self._late = late
        self._waiting: Counter[tuple[str, str]] = Counter()
        """How often each (method, path) was answered with "not yet"."""
        self._gone: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def pause(self, name: str) -> None:
        """As a service does with what nobody uses."""
        self.sandboxes[name].state = "paused"

    async def lose(self, name: str) -> None:
        """The machine under a runtime is gone."""
        del self.sandboxes[name]
        await self.provider.discard(name)

    async def close(self) -> None:
        """Nothing of it runs any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self.sandboxes):
            await self.provider.discard(name)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        assert scope["type"] == "http", "served without lifespan"
        path = bytes(scope["raw_path"]).partition(b"?")[0].decode()
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append((scope["method"], path))
        try:
            self._admit(dict(scope["headers"]).get(b"authorization", b"").decode())
            query = dict(parse_qsl(bytes(scope["query_string"]).decode()))
            status, answer = await self._answer(scope["method"], path, query, bytes(body))
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        except InvalidInputError as error:
            status, answer = 422, {"reason": error.problem, "field": error.field}
        except FileNotFoundError:
            status, answer = 404, {"reason": "no such file"}
        except RuntimeFailure as error:
            status = 422 if error.permanent else 502
            answer = {"reason": error.reason, "step": error.step, "permanent": error.permanent}
        plain = isinstance(answer, bytes)
        content = answer if plain else json.dumps(answer).encode()
        kind = b"application/octet-stream" if plain else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"" if status == 204 else content})

    def _admit(self, authorization: str) -> None:
        if self._token and authorization != f"Bearer {self._token}":
            raise Refusal(401, "the bearer token is not the right one", permanent=True)

    async def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        parts = [unquote(part) for part in path.split("/")[1:]]
        match method, parts:
            case "GET", ["runtimes"]:
                shapes = {name: one.shape() for name, one in self.sandboxes.items()}
                return 200, self._paged("runtimes", shapes, query.get("cursor", ""))
            case "GET", ["workspaces"]:
                kept = {name: {"name": name} for name in await self.provider.workspaces()}
                return 200, self._paged("workspaces", kept, query.get("cursor", ""))
            case "PUT", ["runtimes", name]:
                return self._create(name, json.loads(body))
            case "GET", ["runtimes", name]:
                return 200, self._one(name).shape()
            case "DELETE", ["runtimes", name]:
                if self._not_yet(method, path):
                    return 202, {}
                return await self._delete(name, query.get("workspace"))
            case "POST", ["runtimes", name, "resume"]:
                one = self._one(name)
                if self._not_yet(method, path):
                    return 202, one.shape()
                one.state = "ready" if one.state == "paused" else one.state
                return 200, one.shape()
            case "PUT", ["runtimes", name, "credentials"]:
                await self.provider.configure(self._ready(name), json.loads(body)["credentials"])
                return 204, {}
            case "PUT", ["runtimes", name, "runs", run]:
                return await self._run(name, run, json.loads(body), float(query.get("wait_s", 0)))
            case "GET", ["runtimes", name, "runs", run]:
                return await self._end_of(self._there(name).runs.get(run), float(query.get("wait_s", 0)))
            case "DELETE", ["runtimes", name, "runs", run]:
                return await self._forget(self._there(name), run)
            case "DELETE", ["runtimes", name, "runs"]:
                return await self._end_all(self._there(name))
            case "GET", ["runtimes", name, "files", *file]:
                limit = int(query.get("limit_bytes", 1 << 20))
                return 200, await self._ready(name).read("/".join(file), limit_bytes=limit)
            case "PUT", ["runtimes", name, "files", *file]:
                await self._ready(name).write("/".join(file), body)
                return 204, {}
            case _:
                raise Refusal(404, "no such route")

    def _one(self, name: str) -> Sandbox:
        if name not in self.sandboxes:
            raise Refusal(404, f"there is no runtime {name}")
        return self.sandboxes[name]

    def _there(self, name: str) -> Sandbox:
        """For what lies below a runtime: 404 says that this is not there, so the runtime's own end is another word."""
        if name not in self.sandboxes:
            raise Refusal(410, f"runtime {name} is gone")
        return self.sandboxes[name]

    def _ready(self, name: str) -> Runtime:
        one = self._there(name)
        if one.runtime is None or one.state != "ready":
            raise Refusal(409, f"runtime {name} is {one.state}", state=one.state)
        return one.runtime

    def _not_yet(self, method: str, path: str) -> bool:
        self._waiting[method, path] += 1
        return self._waiting[method, path] <= self._late

    def _paged(self, what: str, shapes: dict[str, dict[str, Any]], cursor: str) -> dict[str, Any]:
        names = sorted(name for name in shapes if name > cursor)
        page = [shapes[name] for name in names[: self._page]]
        return {what: page, "next_cursor": names[self._page - 1] if len(names) > self._page else None}

    def _create(self, name: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if name in self._gone:
            raise Refusal(410, f"runtime {name} was deleted")
        spec = RuntimeSpec(name, asked["workspace"], asked["conversation"], asked.get("settings", {}))
        found = self.sandboxes.get(name)
        if found is not None and found.spec.conversation != spec.conversation:
            raise Refusal(409, f"runtime {name} is another conversation's", permanent=True)
        if found is None:
            found = self.sandboxes[name] = Sandbox(spec)
            self._spawn(self._boot(found))
            return 201, found.shape()
        return 200, found.shape()

    async def _boot(self, one: Sandbox) -> None:
        def progress(step: str) -> None:
            one.step = step

        try:
            one.runtime = await self.provider.provision(one.spec, progress)
        except RuntimeFailure as failure:
            one.state, one.failure = "failed", failure
            return
        if self.sandboxes.get(one.spec.name) is one:
            one.state = "ready"
        else:  # deleted meanwhile
            await self.provider.discard(one.spec.name)

    async def _delete(self, name: str, workspace: str | None) -> tuple[int, Any]:
        one = self.sandboxes.pop(name, None)
        self._gone.add(name)
        for run in one.runs.values() if one is not None else ():
            if run is not None:
                run.cancel()
        if one is not None or workspace is not None:
            try:
                await self.provider.discard(name, workspace)
            except RuntimeFailure:
                if one is not None:
                    self.sandboxes[name] = one
                raise
        return 204, {}

    async def _run(self, name: str, run: str, asked: dict[str, Any], wait_s: float) -> tuple[int, Any]:
        runtime, runs = self._ready(name), self._there(name).runs
        if run not in runs:
            work = runtime.run(asked["command"], timeout_s=asked.get("timeout_s"), stdin=asked.get("stdin"))
            runs[run] = self._spawn(work)
            self._there(name).used = True
        return await self._end_of(runs[run], wait_s)

    async def _end_of(self, run: asyncio.Task[Ran] | None, wait_s: float) -> tuple[int, Any]:
        if run is None:
            raise Refusal(410, "there is no such run, or it was forgotten")
        await asyncio.wait([run], timeout=min(wait_s, HOLD_S))
        if not run.done():
            return 202, {"state": "running"}
        if run.cancelled():
            raise Refusal(410, "the run was ended")
        return 200, {"state": "ended", **run.result().as_json()}

    async def _forget(self, one: Sandbox, name: str) -> tuple[int, Any]:
        run = one.runs.get(name)
        one.runs[name] = None
        if run is not None:
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await run
        return 204, {}

    async def _end_all(self, one: Sandbox) -> tuple[int, Any]:
        """Whatever commands have begun ends, in the background, too: the runtime is made anew, in its old workspace."""
        if not one.used:
            return 204, {}
        for name in list(one.runs):
            await self._forget(one, name)
        await self.provider.discard(one.spec.name)
        one.runtime = await self.provider.provision(one.spec, lambda _: None)
        one.used = False
        return 204, {}

    def _spawn[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever asks for it
