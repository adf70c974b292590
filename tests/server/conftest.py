"""A cluster on one memory store behind HTTP: real nodes, an agent that does what its messages say, an owner driven by hand."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from tenure.abc import (
    About,
    AgentLoop,
    Append,
    Appended,
    Claim,
    Held,
    Ran,
    Reason,
    Release,
    RuntimeFailure,
    RuntimeProvider,
)
from tenure.clock import SystemClock
from tenure.config import Config
from tenure.conversation import Fold, fold, settlement
from tenure.errors import InvalidInputError, StoreUnavailableError
from tenure.journal import CommandSettled, Draft, LoopStarted, Stopped, TurnCompleted, TurnStarted, draft
from tenure.lease import new_incarnation, new_token
from tenure.node import Node
from tenure.server import Bounds, close_streams, create_app
from tenure.stores.memory import Disk, MemoryStore

QUICK = Bounds(start_wait_s=10, comment_s=15, poll_s=0.5, slow_s=5)


class Parrot(AgentLoop):
    """Does what a message says: ``wait`` for the gate, ``ask``, ``fail``, ``delta a b``, or says it back."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    def check(self, settings):
        if "volume" in settings and settings["volume"] not in range(11):
            raise InvalidInputError("settings.volume", "must lie in 0 to 10", "turn it down")
        return settings

    @asynccontextmanager
    async def open(self, place):
        yield self

    async def turn(self, turn):
        for message in turn.messages:
            word, _, rest = message.text.partition(" ")
            match word:
                case "wait":
                    await self.gate.wait()
                case "ask":
                    answer = await turn.ask("which", {"question": rest})
                    await turn.journal([Draft("reply", {"text": f"{answer}"})])
                    continue
                case "fail":
                    raise RuntimeError("told to fail")
                case "delta":
                    for one in rest.split():
                        turn.delta({"say": one})
                    await self.gate.wait()
                case _:
                    pass
            await turn.journal([Draft("reply", {"text": message.text})])

    async def now(self, command):
        raise NotImplementedError


@dataclass
class NoRuntime:
    name: str
    path = None

    async def run(self, command, *, timeout_s=None, stdin=None):
        return Ran(0, "", "")

    async def read(self, path, *, limit_bytes=1 << 20):
        raise FileNotFoundError(path)

    async def write(self, path, content):
        return None


class Nowhere(RuntimeProvider):
    """Runtimes without files or processes. With `refusal`, there are none to be had."""

    kind = "nowhere"
    refusal: RuntimeFailure | None = None

    async def provision(self, spec, progress):
        if self.refusal is not None:
            raise self.refusal
        return NoRuntime(spec.name)

    async def configure(self, runtime, credentials):
        return None

    async def attach(self, spec):
        return None

    async def discard(self, name, workspace=None):
        return None

    async def list(self):
        return []


class Unsteady:
    """The store as the server reaches it: while `down`, nothing is answered. The nodes' heartbeats do not notice."""

    def __init__(self, store: MemoryStore) -> None:
        self.__dict__.update(store=store, down=False, refused=0)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.store, name)
        if not callable(value) or name in ("sibling", "lies_at", "fence_query", "__aenter__", "__aexit__"):
            return value
        if name == "follow":
            return self._follow

        async def call(*args: Any, **named: Any) -> Any:
            if self.down:
                self.refused += 1
                raise StoreUnavailableError("postgresql://user:hunter2@db does not answer")
            return await value(*args, **named)

        return call

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    @asynccontextmanager
    async def _follow(self, topics):
        if self.down:
            raise StoreUnavailableError("no answer")
        async with self.store.follow(topics) as hints:
            yield hints


@dataclass
class ByHand:
    """An owner that does exactly what a test says. Its agent, ``by-hand``, no node runs."""

    store: MemoryStore
    conversation: str
    lease: Any = None
    number: int = 0
    state: Fold = field(default_factory=Fold)
    incarnation: Any = field(default_factory=new_incarnation)

    async def claim(self, why: str = "wanted", *, started: bool = True) -> None:
        about = About("hand", "http://hand", 10, ("by-hand",), SystemClock().now())
        await self.store.register(self.incarnation, about, 3600)
        [record] = await self.store.records([self.conversation])
        token = new_token()
        claim = Claim(self.conversation, self.incarnation, token, record.epoch, "hand", "http://hand", why, forced=True)
        held = await self.store.claim(claim)
        assert isinstance(held, Held)
        self.lease, self.number = held.lease, 0
        await self.catch_up()
        if started:
            await self.append(draft(LoopStarted("by-hand")))

    async def catch_up(self) -> None:
        reading = await self.store.read(self.conversation, self.state.seq)
        self.state = fold(self.state, reading.events)

    def _batch(self, drafts: tuple[Draft, ...]) -> Append:
        at = SystemClock().now()
        after = fold(self.state, [d.stored(self.state.seq + 1 + i, self.lease.epoch, at) for i, d in enumerate(drafts)])
        self.number += 1
        return Append(self.lease, self.number, self.state.seq, drafts, settlement(self.state, after, drafts))

    async def append(self, *drafts: Draft) -> None:
        await self.catch_up()
        assert isinstance(await self.store.append(self._batch(drafts)), Appended)
        await self.catch_up()

    async def release(self, *drafts: Draft) -> None:
        await self.catch_up()
        await self.store.release(Release(self._batch(drafts), Reason.DRAINED))
        self.state = Fold()

    async def say(self, *words: str) -> None:
        """Take all that waits in one turn, and say these words."""
        await self.catch_up()
        commands = tuple(e.seq for e in self.state.queue)
        turn = f"t{commands[0]}"
        await self.append(draft(TurnStarted(commands), turn))
        for word in words:
            await self.append(Draft("reply", {"text": word}, turn))
        await self.append(draft(TurnCompleted(commands), turn))

    async def settle(self) -> None:
        """Settle what does not wait."""
        await self.catch_up()
        for command in self.state.urgent:
            ends = [draft(Stopped(command.seq))] if command.kind == "stop" else []
            await self.append(*ends, draft(CommandSettled(command.seq, "done")))

    async def delta(self, body: dict[str, Any]) -> None:
        await self.store.publish(self.lease, body)


class Cluster:
    """Nodes on one disk, and what a client reaches of them."""

    def __init__(self, stack: contextlib.AsyncExitStack, open_store: Callable[[], Any] | None = None) -> None:
        self.stack = stack
        self.disk = Disk()
        self.open_store = open_store or (lambda: MemoryStore(self.disk))
        self.store = self.open_store()
        self.provider = Nowhere()
        self.apps: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}
        self.stores: dict[str, Unsteady] = {}
        self.parrot = Parrot()
        self.agents: dict[str, AgentLoop] = {"parrot": self.parrot}

    async def node(self, name: str = "n1", bounds: Bounds = QUICK, **settings: Any) -> Any:
        """A living node's app."""
        self.stores[name] = Unsteady(await self.stack.enter_async_context(self.open_store()))
        tracer_provider = settings.pop("tracer_provider", None)
        config = Config(
            node=name, address=f"http://{name}", ttl_s=10, sweep_s=0.1, drain_s=1, witness=False, **settings
        )
        node = Node(
            self.stores[name], self.agents, provider=self.provider, config=config, tracer_provider=tracer_provider
        )
        self.nodes[name] = await self.stack.enter_async_context(node)
        self.apps[name] = create_app(node, bounds)
        return self.apps[name]

    async def http(self, name: str = "n1", **more: Any) -> httpx.AsyncClient:
        """A client of that node, without sockets; makes the node if there is none."""
        if name not in self.apps:
            await self.node(name)
        transport = httpx.ASGITransport(self.apps[name], raise_app_exceptions=False)
        return await self.stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://tenure", timeout=30, **more)
        )

    async def serve(self, name: str = "n1", **more: Any) -> str:
        """The node behind a real socket; its URL."""
        if name not in self.apps:
            await self.node(name, **more)
        server = await self.stack.enter_async_context(serving(self.apps[name]))
        self.stack.callback(close_streams, self.apps[name])
        return server

    async def by_hand(self, conversation: str = "c1", **more: Any) -> ByHand:
        """An owner under the test's hand, of a conversation that is there already or is made."""
        from tenure.abc import Creation, Submit

        await self.store.submit(Submit(conversation, None, Creation(agent="by-hand", **more)))
        return ByHand(self.store, conversation)

    def contents(self) -> str:
        """All that is stored, heartbeats aside."""
        return repr([(c.row, c.events, c.keys, c.vault) for c in self.disk.conversations.values()]) + repr(
            [p for key, p in sorted(self.disk.papers.items())]
        )


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The app on a free port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # a test's process keeps its signals
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture
async def http(cluster: Cluster) -> httpx.AsyncClient:
    """A client of node n1."""
    return await cluster.http()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Poll until what an async function returns is true; its value."""

    async def wait(look: Callable[[], Any], within_s: float = 20) -> Any:
        async with asyncio.timeout(within_s):
            while not (found := await look()):
                await asyncio.sleep(0.01)
            return found

    return wait


@dataclass
class Said:
    """One server-sent event."""

    event: str = "message"
    id: str | None = None
    data: Any = None
    comment: str | None = None


async def said(response: httpx.Response) -> AsyncIterator[Said]:
    """The events of a stream; comments too."""
    one = Said()
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        match name:
            case "":
                if value:
                    yield Said(event="", comment=value)
                elif one.data is not None:
                    yield one
                    one = Said()
            case "data":
                one.data = json.loads(value)
            case "event" | "id":
                setattr(one, name, value)
            case _:
                pass


@pytest.fixture(name="said")
def _said() -> Callable[[httpx.Response], AsyncIterator[Said]]:
    return said
