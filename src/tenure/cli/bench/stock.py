"""The OpenHands SDK's own agent server, as a process, beside ``tenure serve``: both as a measurement sees them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, final

import httpx

from tenure.cli.bench import sampled
from tenure.cli.bench.sampling import MeasureFailedError
from tenure.testing.processes import NodeProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

STOCK = "openhands-agent-server"
UP_S = 180.0
POLL_S = 0.02
_ENVIRON = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LOG_LEVEL": "WARNING",
    "OH_ENABLE_VSCODE": "false",
    "OH_MAX_CONCURRENT_RUNS": "1000",
    "OH_SECRET_KEY": "a key for measurements, of no value",
    "OPENHANDS_SUPPRESS_BANNER": "1",
}


class Server(Protocol):
    """A server of OpenHands agents, in a process of its own."""

    @property
    def pid(self) -> int: ...
    async def up(self) -> float:
        """Wait until it takes conversations; seconds since its birth."""
        ...

    async def say(self, conversation: str, text: str, agent: Mapping[str, Any]) -> None:
        """Create a conversation with a message, which runs the agent."""
        ...

    async def idle(self, conversation: str) -> bool:
        """Whether its agent has finished."""
        ...

    async def resume(self, conversation: str) -> bool:
        """Do what a client must do so that a run that was cut goes on here; false if it is not known here."""
        ...

    def kill(self) -> float:
        """``kill -9``; when, in monotonic seconds."""
        ...


@final
class Ours:
    """``tenure serve --agent openhands``."""

    def __init__(self, name: str, store: str, folder: Path, http: httpx.AsyncClient, *, looked: bool = False) -> None:
        options = ["--sweep-s", "0.5", "--workspaces", str(folder / "runtimes")]
        self._looks = folder / f"{name}.looks"
        self._looks.mkdir()
        self._node = NodeProcess(
            name, store="", folder=folder, agents=("openhands",), options=options, environ={"TENURE_STORE": store},
            prefix=[sys.executable, "-m", "tenure.cli.bench.sampled", str(self._looks)] if looked else (),
        )  # fmt: skip
        self._http = http
        self._born = time.monotonic()
        self._node.spawn()

    @property
    def pid(self) -> int:
        return self._node.pid

    async def up(self) -> float:
        await self._node.ready(UP_S)
        return time.monotonic() - self._born

    async def say(self, conversation: str, text: str, agent: Mapping[str, Any]) -> None:
        body = {"id": conversation, "agent": "openhands", "settings": {"agent": dict(agent)}}
        _fine(await self._http.post(f"{self._node.url}/conversations", json=body))
        path = f"{self._node.url}/conversations/{conversation}/messages"
        _fine(await self._http.post(path, json={"text": text, "key": "first"}))

    async def idle(self, conversation: str) -> bool:
        told = _fine(await self._http.get(f"{self._node.url}/conversations/{conversation}")).json()
        return told["status"] == "idle"

    @contextlib.asynccontextmanager
    async def looked_into(self, what: str, found: dict[str, float]) -> AsyncGenerator[None]:
        """Where its time, or its memory, goes while the block runs, by :mod:`sampled`; `found` has it afterwards."""
        look, told = self._looks / sampled.LOOK, self._looks / sampled.FOUND
        look.write_text(what, encoding="utf-8")
        await asyncio.sleep(2 * sampled.IDLE_S)
        yield
        look.unlink()
        async with asyncio.timeout(UP_S):
            while not told.exists():  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(POLL_S)
        found.update(json.loads(told.read_text(encoding="utf-8")))
        told.unlink()

    async def resume(self, conversation: str) -> bool:
        """Nothing: it goes on by itself."""
        return True

    def kill(self) -> float:
        at = time.monotonic()
        self._node.close()
        return at


@final
class Stock:
    """``python -m openhands.agent_server``: two of them share a folder, as they may."""

    def __init__(self, name: str, folder: Path, http: httpx.AsyncClient) -> None:
        self._http = http
        self._folder = folder
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("OH_", "LLM_"))} | _ENVIRON
        environ |= {"OH_CONVERSATIONS_PATH": str(folder / "conversations"), "HOME": str(folder)}
        self._born = time.monotonic()
        with (folder / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "openhands.agent_server", "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=folder,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    async def up(self) -> float:
        """:raises MeasureFailedError: it ended, or takes too long."""
        while time.monotonic() < self._born + UP_S and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if (await self._http.get(f"{self._url}/ready")).status_code == 200:
                    return time.monotonic() - self._born
            await asyncio.sleep(POLL_S)
        raise MeasureFailedError(f"{STOCK} did not come up: {self._process.returncode}")

    async def say(self, conversation: str, text: str, agent: Mapping[str, Any]) -> None:
        workspace = self._folder / "runtimes" / conversation
        workspace.mkdir(parents=True)
        message = {"role": "user", "content": [{"type": "text", "text": text}], "run": True}
        body = {
            "conversation_id": conversation, "agent": {"kind": "Agent", **agent}, "initial_message": message,
            "workspace": {"kind": "LocalWorkspace", "working_dir": str(workspace)}, "autotitle": False,
        }  # fmt: skip
        _fine(await self._http.post(f"{self._url}/api/conversations", json=body))

    async def idle(self, conversation: str) -> bool:
        told = _fine(await self._http.get(f"{self._url}/api/conversations/{conversation}")).json()
        return told["execution_status"] == "finished"

    async def resume(self, conversation: str) -> bool:
        """Loaded on access, then told to run: it stands at `error`, and runs from there."""
        reply = await self._http.get(f"{self._url}/api/conversations/{conversation}")
        if reply.status_code == 404:
            return False
        _fine(await self._http.post(f"{self._url}/api/conversations/{conversation}/run"))
        return True

    def kill(self) -> float:
        at = time.monotonic()
        self._process.kill()
        self._process.wait()
        return at


def installed() -> bool:
    """Whether the stock server is there."""
    return importlib.util.find_spec("openhands") is not None and (
        importlib.util.find_spec("openhands.agent_server") is not None
    )


def _fine(reply: httpx.Response) -> httpx.Response:
    if reply.status_code >= 300:
        raise MeasureFailedError(
            f"{reply.request.method} {reply.request.url.path}: {reply.status_code} {reply.text[:500]}"
        )
    return reply
