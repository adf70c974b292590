"""The OpenHands SDK's own client, unchanged, in a blocking ``run()`` whose owner is lost: part of ``make chaos``.

Three real nodes behind a plain round-robin proxy, which sends each request and each socket to the next node, and cuts what is silent.
The client's ``run()`` waits for a tool when the conversation's owner meets its fate:

===========  ==========================================================
``kill``     kill -9
``freeze``   SIGSTOP; SIGCONT when all is done, which changes nothing
``restart``  SIGTERM, and another node of that name on that port
===========  ==========================================================

The run must return normally; each journaled event must have come to the client's callback once; whoever asks meanwhile must hear
``running``; no reply may be anything but a success or a temporary failure, no socket be closed for good; and the key of the
model, which the client sends in clear, stands in no file: not the store's, no log.

    .venv/bin/python tests/chaos/client_crashes.py [--only freeze] [--window after:3]

``--window`` plays windows of ``agent_crashes`` first, in the same processes: importing the SDK costs more than the window does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "unit"), str(TESTS / "chaos")]
KEY = "key-of-the-cluster"
os.environ |= {"TENURE_API_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENHANDS_SUPPRESS_BANNER": "1"}
os.environ |= {"LOG_AUTO_CONFIG": "false"}

import httpx  # noqa: E402
import openhands_tools  # noqa: E402, F401 - the client must know what its agent's tools say
import uvicorn  # noqa: E402
from agent_crashes import Yard, windows  # noqa: E402
from openhands.sdk import LLM, Agent, Tool  # noqa: E402
from openhands.sdk.conversation.impl.remote_conversation import RemoteConversation  # noqa: E402
from openhands.sdk.workspace import RemoteWorkspace  # noqa: E402
from round_robin import RoundRobin  # noqa: E402

from tenure.testing.model_server import ModelServer  # noqa: E402
from tenure.testing.processes import free_port  # noqa: E402

FATES = ("kill", "freeze", "restart")
NODES = ("n0", "n1", "n2")
RUN_S = 90.0
CANARY = "sk-canary-of-the-client"
TEMPORARY = {200, 201, 502, 503, 504}


class Trial:
    """One client, one conversation, and its owner's fate."""

    def __init__(self, yard: Yard, fate: str) -> None:
        self.yard, self.fate = yard, fate
        self.effects, self.gate = yard.folder / f"{fate}.effects", yard.folder / f"{fate}.gate"
        self.ports = {name: free_port() for name in NODES}
        self.pids: dict[str, int] = {}
        self.seen: list[Any] = []
        self.statuses: Counter[str] = Counter()

    async def play(self) -> str:
        act = {"effects": str(self.effects), "line": "once", "until": str(self.gate)}
        self.yard.model.scripts = {
            "default": [{"calls": [{"name": "act", "arguments": act}]}, {"text": "Done.", "latency_s": 0.3}],
            "more": [{"text": "Welcome."}],
        }
        for name, port in self.ports.items():
            self.pids[name] = await self.yard.node(name, port=port)
        urls = [f"http://127.0.0.1:{port}" for port in self.ports.values()]
        proxy = RoundRobin(urls, read_s=3.0, idle_s=6.0)
        async with _serving(proxy) as url, httpx.AsyncClient(headers={"X-Session-API-Key": KEY}, timeout=5) as http:
            for one in urls:
                await self.yard.until(lambda one=one: _is_ready(http, one), "three nodes that are ready")
            workspace = RemoteWorkspace(host=url, working_dir=str(self.yard.folder / "project"), api_key=KEY)
            conversation = await asyncio.to_thread(self._converse, workspace)
            try:
                took_s = await self._run(conversation, http, urls)
                await self._judge(conversation, http, url, proxy)
                await self._thaw(conversation, http, url)
            finally:
                await asyncio.to_thread(conversation.close)
                workspace.reset_client()
        self._end()
        return (
            f"run() {took_s:.1f} s after the loss, {len(self.told())} events once each, replies {dict(proxy.answers)}"
        )

    def _converse(self, workspace: RemoteWorkspace) -> RemoteConversation:
        llm = LLM(model="openai/scripted", base_url=self.yard.model.url, api_key=CANARY, num_retries=0)
        agent = Agent(llm=llm, tools=[Tool(name="act")])
        return RemoteConversation(agent=agent, workspace=workspace, callbacks=[self.seen.append], visualizer=None)

    def told(self) -> list[str]:
        return [e.id for e in self.seen if getattr(e, "key", "") != "full_state"]

    # --- the run ----------------------------------------------------------------------------------------------------

    async def _run(self, conversation: RemoteConversation, http: httpx.AsyncClient, urls: list[str]) -> float:
        await asyncio.to_thread(conversation.send_message, "Begin.")
        running = asyncio.create_task(asyncio.to_thread(conversation.run, timeout=RUN_S))
        await self.yard.until(self._acts, "a tool that runs")
        watching = asyncio.create_task(self._watch(conversation, http, urls))
        [record] = await self.yard.store.records([str(conversation.id)])
        assert record is not None and record.owner is not None, record
        lost, epoch = record.owner.node, record.epoch
        began = time.monotonic()
        await self._strike(lost)

        async def taken_over() -> bool:
            [now] = await self.yard.store.records([str(conversation.id)])
            return now is not None and now.epoch > epoch

        await self.yard.until(taken_over, "another owner")
        self.gate.touch()
        watching.cancel()
        await running
        return time.monotonic() - began

    async def _acts(self) -> bool:
        return self.effects.exists()

    async def _strike(self, lost: str) -> None:
        pid = self.pids[lost]
        match self.fate:
            case "kill":
                self.yard.signal(pid, signal.SIGKILL)
            case "freeze":
                self.yard.signal(pid, signal.SIGSTOP)
            case _:
                self.yard.signal(pid, signal.SIGTERM)

                async def gone() -> bool:
                    return not self.yard.alive(pid)

                await self.yard.until(gone, "a node that has left")
                self.pids[lost] = await self.yard.node(lost, port=self.ports[lost])

    async def _watch(self, conversation: RemoteConversation, http: httpx.AsyncClient, urls: list[str]) -> None:
        """What every node that answers says of the run, from the loss of one owner to the next one."""
        while True:
            for url in urls:
                with contextlib.suppress(httpx.TransportError):
                    reply = await http.get(f"{url}/api/conversations/{conversation.id}", timeout=0.5)
                    self.statuses[reply.json().get("execution_status", str(reply.status_code))] += 1
            await asyncio.sleep(0.02)

    # --- the verdict ------------------------------------------------------------------------------------------------

    async def _judge(self, conversation: Any, http: httpx.AsyncClient, url: str, proxy: RoundRobin) -> None:
        journaled = await self._journaled(conversation, http, url)
        assert Counter(self.told()) == Counter(journaled), "neither missed nor doubled"
        assert len(set(journaled)) == len(journaled)
        assert set(self.statuses) == {"running"}, self.statuses
        assert set(proxy.answers) <= TEMPORARY, proxy.answers
        assert not {4001, 4004} & set(proxy.closes), proxy.closes
        assert self.effects.read_text() == "once\n", "the tool ran once"
        leaks = await asyncio.to_thread(_files_with, CANARY, self.yard.folder)
        assert not leaks, f"the key that the client has sent stands in {leaks}"
        assert conversation.state.execution_status.value == "finished"

    async def _journaled(self, conversation: Any, http: httpx.AsyncClient, url: str) -> list[str]:
        while True:
            reply = await http.get(f"{url}/api/conversations/{conversation.id}/events/search", timeout=30)
            if reply.status_code == 200:
                return [e["id"] for e in reply.json()["items"]]

    async def _thaw(self, conversation: Any, http: httpx.AsyncClient, url: str) -> None:
        """The client goes on, and so does what was frozen: which adds nothing."""
        for pid in self.pids.values():
            self.yard.signal(pid, signal.SIGCONT)
        await asyncio.to_thread(conversation.send_message, "More. [script:more]")
        await asyncio.to_thread(conversation.run, timeout=RUN_S)
        journaled = await self._journaled(conversation, http, url)
        assert Counter(self.told()) == Counter(journaled), "neither missed nor doubled, after the thaw"
        assert self.effects.read_text() == "once\n"

    def _end(self) -> None:
        for pid in self.pids.values():
            self.yard.signal(pid, signal.SIGKILL)


def _files_with(words: str, folder: Path) -> str:
    """In a process of its own: whoever closes a file of SQLite's gives up the locks that his connections have on it, and
    from the next node's start on he reads what stood there before."""
    looked = subprocess.run(["grep", "-rlaF", "-D", "skip", words, str(folder)], capture_output=True, text=True)
    assert looked.returncode in (0, 1), looked.stderr
    return looked.stdout


async def _is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/readyz")).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.asynccontextmanager
async def _serving(proxy: RoundRobin) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            proxy.app, lifespan="off", log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=1
        )
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        await proxy.close()
        listener.close()


async def main(fates: tuple[str, ...], first: list[str]) -> int:
    folder = Path(tempfile.mkdtemp(prefix="tenure-clients-"))
    failed = 0
    async with ModelServer({}) as model:
        yard = Yard(folder, f"sqlite:///{folder / 'tenure.db'}", model)
        try:
            await yard.ready()
            async with yard.store:
                if first:
                    await windows(yard, first)
                for fate in fates:
                    trial = Trial(yard, fate)
                    try:
                        print(f"{fate:8} {await trial.play()}", flush=True)
                    except Exception as error:  # the others still say what they have to
                        failed += 1
                        print(f"{fate:8} FAILED: {error!r}; see {folder}", flush=True)
        finally:
            yard.nursery.kill()
            for pid in yard.nodes:
                yard.signal(pid, signal.SIGKILL)
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FATES)
    parser.add_argument("--window", action="append", default=[], help="one of agent_crashes; may be repeated")
    given = parser.parse_args()
    sys.exit(asyncio.run(main((given.only,) if given.only else FATES, given.window)))
