"""What other libraries do of the same kind, on the same server, in turn with ours. They stand in a group of their own
(``requirements/bench.txt``); one that is not installed is named as missing, and no number stands in for it."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import time
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenure.cli.bench.places import option
from tenure.cli.bench.sampling import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenure.cli.bench.sampling import Contestant

PACKAGES = {
    "redis-py": "redis",
    "python-redis-lock": "python-redis-lock",
    "tooz": "tooz",
    "dbos": "dbos",
    "langgraph-checkpoint-postgres": "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-sqlite": "langgraph-checkpoint-sqlite",
    "openhands-agent-server": "openhands-agent-server",
    "openhands-sdk": "openhands-sdk",
}
"""By the name that the page shows: a server called Redis has a version as well."""
LOCK_S = 30
TASKS = 50


def versions() -> dict[str, str]:
    """Of those that are installed."""
    found: dict[str, str] = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def offered(module: str, package: str, missing: dict[str, str]) -> Any:
    """The module, or null: then `missing` says which package is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing[package] = f"not installed here ({error.name}); `make bench` installs it"
        return None


def plain(url: str) -> str:
    """A URL without the options that only we know."""
    return url.partition("?")[0]


def _counted(work: Callable[[], object], seconds: float) -> Contestant:
    """How often per second a blocking call gets done, in a thread of its own."""

    def repeat() -> float:
        done, began = 0, time.monotonic()
        while time.monotonic() < began + seconds:
            work()
            done += 1
        return done / (time.monotonic() - began)

    return lambda: in_thread(repeat)


# --- locks ----------------------------------------------------------------------------------------------------------


async def locks(stack: AsyncExitStack, url: str, missing: dict[str, str], seconds: float) -> dict[str, Contestant]:
    """Acquiring a lock that nobody holds: no fencing token, no journal."""
    found: dict[str, Contestant] = {}
    numbers = itertools.count()
    prefix = f"{option(url, 'prefix')}:peer"
    if (client := await _redis_py(stack, url, missing)) is not None:
        found[f"peer: redis-py Lock, {TASKS} tasks"] = partial(_redis_py_locks, client, prefix, numbers, seconds)
    if (module := offered("redis_lock", "python-redis-lock", missing)) is not None:
        blocking: Any = importlib.import_module("redis").Redis.from_url(plain(url))
        stack.callback(blocking.close)

        def acquire() -> None:
            module.Lock(blocking, f"{prefix}:{next(numbers)}", expire=LOCK_S).acquire(blocking=False)

        found["peer: python-redis-lock, 1 thread"] = _counted(acquire, seconds)
    if (coordinator := await _tooz(stack, url, missing)) is not None:
        found["peer: tooz, 1 thread"] = _counted(
            lambda: coordinator.get_lock(f"{prefix}:{next(numbers)}".encode()).acquire(blocking=False), seconds
        )
    return found


async def _redis_py(stack: AsyncExitStack, url: str, missing: dict[str, str]) -> Any:
    module = offered("redis.asyncio", "redis", missing)
    if module is None:
        return None
    client = module.Redis.from_url(plain(url), max_connections=TASKS)
    stack.push_async_callback(client.aclose)
    return client


async def _redis_py_locks(client: Any, prefix: str, numbers: itertools.count[int], seconds: float) -> float:
    done, end = 0, time.monotonic() + seconds

    async def repeat() -> None:
        nonlocal done
        while time.monotonic() < end:
            await client.lock(f"{prefix}:{next(numbers)}", timeout=LOCK_S).acquire(blocking=False)
            done += 1

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(repeat())
    return done / (time.monotonic() - began)


async def _tooz(stack: AsyncExitStack, url: str, missing: dict[str, str]) -> Any:
    module = offered("tooz.coordination", "tooz", missing)
    if module is None or offered("redis", "redis", missing) is None:
        return None
    coordinator = module.get_coordinator(f"{plain(url)}?timeout={LOCK_S}", b"bench")
    await in_thread(coordinator.start)
    stack.push_async_callback(asyncio.to_thread, coordinator.stop)
    return coordinator


async def renewals(stack: AsyncExitStack, url: str, held: int, missing: dict[str, str]) -> dict[str, Contestant]:
    """Milliseconds to renew what is held, a lock per conversation: what a beat costs there."""
    found: dict[str, Contestant] = {}
    prefix = f"{option(url, 'prefix')}:peer"
    if (client := await _redis_py(stack, url, missing)) is not None:
        mine = [client.lock(f"{prefix}:r{number}", timeout=10 * LOCK_S) for number in range(held)]
        for lock in mine:
            await lock.acquire(blocking=False)

        async def reacquire() -> float:
            began = time.monotonic()
            for lock in mine:
                await lock.reacquire()
            return (time.monotonic() - began) * 1000

        async def pipelined() -> float:
            began = time.monotonic()
            async with client.pipeline(transaction=False) as pipe:
                for lock in mine:
                    pipe.pexpire(lock.name, 10_000 * LOCK_S)
                await pipe.execute()
            return (time.monotonic() - began) * 1000

        found[f"peer: redis-py, reacquire of {held:,} locks"] = reacquire
        found[f"peer: redis-py, PEXPIRE of {held:,} in one pipeline"] = pipelined
    if (coordinator := await _tooz(stack, url, missing)) is not None:
        theirs = [coordinator.get_lock(f"{prefix}:t{number}".encode()) for number in range(held)]
        await in_thread(lambda: [lock.acquire(blocking=False) for lock in theirs])

        async def beat() -> float:
            began = time.monotonic()
            await in_thread(coordinator.heartbeat)
            return (time.monotonic() - began) * 1000

        found[f"peer: tooz, heartbeat with {held:,} locks"] = beat
    return found


# --- durable steps --------------------------------------------------------------------------------------------------


async def steps(
    stack: AsyncExitStack, postgres: str | None, sqlite: str | None, missing: dict[str, str], seconds: float
) -> dict[str, Contestant]:
    """Making one step of an agent durable: a DBOS step, a LangGraph checkpoint of a conversation that grows."""
    found: dict[str, Contestant] = {}
    if sqlite is not None and (
        module := offered("langgraph.checkpoint.sqlite", "langgraph-checkpoint-sqlite", missing)
    ):
        saver = stack.enter_context(module.SqliteSaver.from_conn_string(sqlite.removeprefix("sqlite:///") + ".peer"))
        found["peer: LangGraph SqliteSaver, a growing conversation"] = _counted(_checkpoints(saver), seconds)
    if postgres is None:
        return found
    if module := offered("langgraph.checkpoint.postgres", "langgraph-checkpoint-postgres", missing):
        saver = stack.enter_context(module.PostgresSaver.from_conn_string(plain(postgres)))
        await in_thread(saver.setup)
        found["peer: LangGraph PostgresSaver, a growing conversation"] = _counted(_checkpoints(saver), seconds)
    if module := offered("dbos", "dbos", missing):
        try:
            found["peer: DBOS, a step"] = await in_thread(partial(_dbos, stack, module, postgres, seconds))
        except Exception as error:  # it wants a database of its own, which a user's login may not make
            missing["dbos"] = f"did not start: {str(error)[:200]}"
    return found


def _checkpoints(saver: Any) -> Callable[[], object]:
    """One more message, and a checkpoint of all of them, as a graph's state is kept."""
    messages: list[dict[str, str]] = []
    config: dict[str, Any] = {"configurable": {"thread_id": f"t{time.monotonic_ns()}", "checkpoint_ns": ""}}
    base = importlib.import_module("langgraph.checkpoint.base")

    def put() -> None:
        nonlocal config
        messages.append({"role": "user", "text": "x" * 200})
        number = len(messages)
        checkpoint = base.empty_checkpoint()
        checkpoint["id"] = f"{number:032d}"
        checkpoint["channel_values"] = {"messages": list(messages)}
        checkpoint["channel_versions"] = {"messages": number}
        config = saver.put(config, checkpoint, {"source": "loop", "step": number}, {"messages": number})

    return put


def _dbos(stack: AsyncExitStack, module: Any, postgres: str, seconds: float) -> Contestant:
    address = urlsplit(plain(postgres))
    url = address._replace(scheme="postgresql", path="/bench_dbos").geturl()
    dbos = module.DBOS
    dbos(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

    @dbos.step()
    def step() -> str:
        return "x" * 200

    @dbos.workflow()
    def workflow(count: int) -> int:
        for _ in range(count):
            step()
        return count

    dbos.launch()
    stack.callback(dbos.destroy)

    async def measured() -> float:
        def repeat() -> float:
            done, began = 0, time.monotonic()
            while time.monotonic() < began + seconds:
                done += workflow(20)
            return done / (time.monotonic() - began)

        return await in_thread(repeat)

    return measured
