"""Every case of the shipped suite, on every provider of this package."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tenure.abc import RuntimeProvider
from tenure.runtimes.docker import DockerOptions, DockerProvider, container_name
from tenure.runtimes.http import HttpProvider
from tenure.runtimes.process import ProcessLimits, ProcessProvider
from tenure.testing.docker_engine import IMAGE, Engine
from tenure.testing.provider import FaultyProvider, Machine
from tenure.testing.provider_suite import Bench, Case, cases, exercise
from tenure.testing.sandboxes import SandboxService

type Place = Callable[[Path], AbstractAsyncContextManager[Bench]]


def nobody() -> RuntimeProvider:
    raise AssertionError("only asked what it declares")


def of(hook: Callable[[str], object]) -> Callable[[str], Awaitable[None]]:
    async def call(name: str) -> None:
        hook(name)

    return call


@asynccontextmanager
async def faulty(_: Path) -> AsyncIterator[Bench]:
    machine = Machine()
    yield Bench(lambda: FaultyProvider(machine), commands=False, lose=of(FaultyProvider(machine).lose))


@asynccontextmanager
async def faulty_outliving(_: Path) -> AsyncIterator[Bench]:
    machine = Machine()
    one = FaultyProvider(machine)
    yield Bench(
        lambda: FaultyProvider(machine, outlives_node=True),
        commands=False,
        pause=of(machine.paused.add),
        lose=of(one.lose),
    )


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[Bench]:
    yield Bench(lambda: ProcessProvider(folder, limits=ProcessLimits(), grace_s=0.1))


@asynccontextmanager
async def http(folder: Path) -> AsyncIterator[Bench]:
    """The reference service without sockets; pages of two names, so that lists have several."""
    service = SandboxService(ProcessProvider(folder, grace_s=0.1), token="t0k3n", page=2)
    transport = httpx.ASGITransport(service)
    try:
        yield Bench(
            lambda: HttpProvider("http://sandboxes/api", token="t0k3n", transport=Prefixed(transport)),
            pause=of(service.pause),
            lose=service.lose,
        )
    finally:
        await service.close()


@asynccontextmanager
async def docker(_: Path) -> AsyncIterator[Bench]:
    """The API of a daemon, through the `docker` package and a socket."""
    with Engine() as engine:

        async def pause(name: str) -> None:
            engine.pause(engine.containers[container_name(name)])

        async def lose(name: str) -> None:
            engine.remove(engine.containers[container_name(name)], force=True)

        options = DockerOptions(IMAGE, address=f"unix://{engine.socket}")
        yield Bench(lambda: DockerProvider(options), pause=pause, lose=lose)


class Prefixed(httpx.AsyncBaseTransport):
    """A service that lies below a path of its host."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path.startswith(b"/api/")
        request.url = request.url.copy_with(raw_path=request.url.raw_path.removeprefix(b"/api"))
        return await self.inner.handle_async_request(request)


PLACES: dict[str, Place] = {
    "faulty": faulty,
    "faulty-outliving": faulty_outliving,
    "process": process,
    "http": http,
    "docker": docker,
}


def fitting(place: Place) -> tuple[Case, ...]:
    async def ask() -> tuple[Case, ...]:
        async with place(Path("unused")) as bench:
            return cases(bench)

    return asyncio.run(ask())


EVERY = [pytest.param(place, case, id=f"{n}-{case.__name__}") for n, place in PLACES.items() for case in fitting(place)]


@pytest.mark.parametrize(("place", "case"), EVERY)
async def test_provider(place: Place, case: Case, tmp_path: Path):
    async with place(tmp_path) as bench:
        await exercise(case, bench)
