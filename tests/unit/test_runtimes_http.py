"""The runtime ``http``: repeated requests make one of each, the service's own words are the reason, lies are refused."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenure.abc import Ran, RuntimeFailure, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes import open_provider
from tenure.runtimes.http import HttpProvider
from tenure.runtimes.process import ProcessProvider
from tenure.testing.provider import Fail, FaultyProvider, Hang, Machine
from tenure.testing.sandboxes import SandboxService, serving

SPEC = RuntimeSpec("s.c.e1", "s.c", "c")
TOKEN = "token-of-the-node-0123"


def quiet(step: str) -> None:
    """Nobody watches."""


class Unsteady(httpx.AsyncBaseTransport):
    """Loses the first request and the first reply of everything that is asked."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.tries: dict[tuple[str, str], int] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = (request.method, request.url.raw_path.decode())
        self.tries[asked] = self.tries.get(asked, 0) + 1
        if self.tries[asked] == 1:
            raise httpx.ConnectError("nobody there")
        response = await self.inner.handle_async_request(request)
        if self.tries[asked] == 2:
            raise httpx.ReadError("the reply was lost")
        return response


@pytest.fixture
def machine() -> Machine:
    return Machine(answer=lambda command, stdin: Ran(0, f"{command}:{stdin}", ""))


@pytest.fixture
async def service(machine: Machine) -> AsyncIterator[SandboxService]:
    service = SandboxService(FaultyProvider(machine))
    yield service
    await service.close()


def provider_of(service: Any, **more: Any) -> HttpProvider:
    return HttpProvider("http://sandboxes", transport=httpx.ASGITransport(service), **more)


def saying(status: int, body: object) -> HttpProvider:
    """A provider of a service that has one answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpProvider("http://x", transport=httpx.MockTransport(lambda _: httpx.Response(status, content=content)))


async def test_every_request_may_be_repeated(service: SandboxService, machine: Machine):
    network = Unsteady(httpx.ASGITransport(service))
    provider = HttpProvider("http://sandboxes", transport=network)
    runtime = await provider.provision(SPEC, quiet)
    await provider.configure(runtime, {"A": "b"})
    await runtime.write("note", "x")
    assert (await runtime.run("ls", stdin="in")).stdout == "ls:in"
    assert await runtime.read("note") == b"x"
    done = [step for step, _ in machine.log]
    assert (done.count("provision"), done.count("run")) == (1, 1), "begun once, however often it was asked for"
    assert await provider.list() == [("s.c.e1", "c")]
    assert await provider.attach(SPEC) is not None
    done = [step for step, _ in machine.log]
    assert (done.count("provision"), done.count("run")) == (2, 1), "made anew once, to end what the run has left"
    await provider.discard("s.c.e1", "s.c")
    assert await provider.attach(SPEC) is None
    assert max(network.tries.values()) >= 3
    await provider.close()


async def test_the_services_reason_is_the_failures(service: SandboxService):
    inner = service.provider
    assert isinstance(inner, FaultyProvider)
    inner.will("provision", Fail("the region is full", permanent=True))
    steps: list[str] = []
    with pytest.raises(RuntimeFailure) as failed:
        await provider_of(service).provision(SPEC, steps.append)
    assert (failed.value.reason, failed.value.step, failed.value.permanent) == ("the region is full", "provision", True)
    assert steps[0] == "create"


async def test_the_services_steps_are_the_starts(service: SandboxService):
    inner = service.provider
    assert isinstance(inner, FaultyProvider)
    inner.will("ready", Hang())
    steps: list[str] = []
    work = asyncio.ensure_future(provider_of(service).provision(SPEC, steps.append))
    await inner.reached("ready")
    while "ready" not in steps:
        await asyncio.sleep(0.01)
    inner.let_go()
    await work


async def test_a_name_that_was_deleted_is_never_made_again(service: SandboxService, machine: Machine):
    """A zombie that asks late gets nothing."""
    await provider_of(service).discard("s.c.e1")
    with pytest.raises(RuntimeFailure, match="was deleted"):
        await provider_of(service).provision(SPEC, quiet)
    assert machine.standing == {}


async def test_what_takes_the_service_its_time_is_waited_for(machine: Machine):
    service = SandboxService(FaultyProvider(machine), late=2)
    provider = provider_of(service)
    await provider.provision(SPEC, quiet)
    service.pause("s.c.e1")
    assert await provider.attach(SPEC) is not None
    assert machine.standing
    await provider.discard("s.c.e1")
    assert machine.standing == {}
    asked = Counter(service.asked)
    assert asked["POST", "/runtimes/s.c.e1/resume"] == asked["DELETE", "/runtimes/s.c.e1"] == 3
    await provider.close()


async def test_what_is_not_resumed_is_not_waited_for_for_ever(service: SandboxService, monkeypatch: Any):
    monkeypatch.setattr("tenure.runtimes.http.RESUME_S", 0.2)
    runtime = await provider_of(service).provision(SPEC, quiet)
    service.pause("s.c.e1")
    monkeypatch.setattr(service, "_late", 10_000)
    with pytest.raises(RuntimeFailure, match=r"did not resume it within 0\.2 s"):
        await runtime.run("ls")


async def test_a_conflict_that_is_no_pause_is_the_failure(service: SandboxService):
    runtime = await provider_of(service).provision(SPEC, quiet)
    service.sandboxes["s.c.e1"].state = "stopped"
    with pytest.raises(RuntimeFailure, match="is stopped"):
        await runtime.run("ls")
    assert ("POST", "/runtimes/s.c.e1/resume") not in service.asked


async def test_the_token_is_asked_for(machine: Machine):
    service = SandboxService(FaultyProvider(machine), token="right")
    with pytest.raises(RuntimeFailure, match="bearer token") as failed:
        await provider_of(service, token="wrong").list()
    assert failed.value.permanent
    assert await provider_of(service, token="right").list() == []


async def test_a_service_that_hangs_fails_with_its_step():
    async def hang(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("no answer")

    provider = HttpProvider("http://x", transport=httpx.MockTransport(hang))
    with pytest.raises(RuntimeFailure, match="does not answer") as failed:
        await provider.attach(SPEC)
    assert failed.value.step == "attach" and not failed.value.permanent


READY = {"name": "s.c.e1", "conversation": "c", "state": "ready"}


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"<html>", "without a JSON object"),
        (200, [1], "without a JSON object"),
        (200, READY | {"name": "s.d.e1"}, "another runtime"),
        (200, READY | {"conversation": "d"}, "another runtime"),
        (200, READY | {"state": 7}, "names no state"),
        (200, READY | {"state": "failed", "reason": "no disk"}, "no disk"),
        (403, {"reason": "not yours"}, "not yours"),
        (409, b"", "answered 409"),
        (302, b"", "answered 302"),
        (200, b"x" * (9 << 20), "has more than"),
    ],
)
async def test_a_service_that_lies_is_refused(status: int, body: object, says: str):
    with pytest.raises((RuntimeFailure, InvalidInputError), match=says):
        await saying(status, body).provision(SPEC, quiet)


@pytest.mark.parametrize("body", [{}, {"runtimes": 3}, {"runtimes": [{"name": "x"}]}])
async def test_a_list_that_is_none_is_refused(body: object):
    with pytest.raises(RuntimeFailure, match="list"):
        await saying(200, body).list()


async def test_a_careless_service_cannot_give_a_credential_away():
    runtime = await saying(200, READY).provision(SPEC, quiet)
    with pytest.raises(RuntimeFailure) as failed:
        await saying(422, {"reason": "bad value 'hunter2'"}).configure(runtime, {"A": "hunter2"})
    assert "hunter2" not in str(failed.value) and "***" in str(failed.value)


async def test_a_careless_service_cannot_give_the_nodes_token_away():
    """No conversation knows it, so no mask over a journal would find it."""
    encoded = base64.b64encode(b"x" + TOKEN.encode()).decode()
    for reason in (f"no right for Bearer {TOKEN}", f"no right for {encoded}"):
        content = json.dumps({"reason": reason, "step": reason}).encode()
        service = httpx.MockTransport(lambda _, content=content: httpx.Response(403, content=content))
        with pytest.raises(RuntimeFailure) as failed:
            await HttpProvider("http://x", token=TOKEN, transport=service).provision(SPEC, quiet)
        assert "no right for" in failed.value.reason
        assert TOKEN not in repr(failed.value) + failed.value.step and encoded[4:-4] not in repr(failed.value)


async def test_a_services_reason_is_whole_or_not_given():
    """It is masked by who knows the conversation's values in all their forms; of one that was cut before, half would stay."""
    for size in (400, 490, 9_000, 20_000, 200_000):
        reason = "x" * size + base64.b64encode(b"hunter2-hunter2-hunter2").decode()
        with pytest.raises(RuntimeFailure) as failed:
            await saying(422, {"reason": reason, "step": reason}).provision(SPEC, quiet)
        assert failed.value.reason == reason or "aHVu" not in failed.value.reason
        assert failed.value.step == reason or "aHVu" not in failed.value.step
        assert "422" in failed.value.reason or size < 10_000


async def test_a_run_whose_end_is_unreadable_fails():
    runtime = await saying(200, READY).provision(SPEC, quiet)
    with pytest.raises(RuntimeFailure, match="how the command ended"):
        await runtime.run("ls")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://", "names no service"),
        ("https://user:pw@host", "TENURE_RUNTIME_TOKEN"),
        ("http://host?call_s=0", "above 0"),
        ("http://host?call_s=soon", "above 0"),
        ("http://host?speed=9", "no option"),
        ("gopher://host", "no provider"),
        ("process:x", "no provider"),
    ],
)
def test_urls_that_are_none(tmp_path: Path, url: str, says: str):
    with pytest.raises(InvalidInputError, match=says):
        open_provider(url, root=tmp_path)


async def test_a_url_with_options(tmp_path: Path):
    provider = open_provider("https://host/api?call_s=2&timeout_s=60", root=tmp_path, token="t")
    assert (provider.kind, provider.outlives_node) == ("http", True)
    await provider.close()


async def test_over_a_real_socket_a_command_may_take_longer_than_a_request(tmp_path: Path):
    """The service holds a request for the end of a run as long as it is told, and no longer: its answers are in time."""
    service = SandboxService(ProcessProvider(tmp_path, grace_s=0.1))
    async with serving(service) as url:
        provider = open_provider(f"{url}?call_s=0.5", root=tmp_path)
        runtime = await provider.provision(SPEC, quiet)
        ran = await runtime.run("echo begun >> begun; sleep 3; cat begun")
        assert ran == Ran(0, "begun\n", "")
        held = [method for method, path in service.asked if "/runs/" in path]
        assert held.count("PUT") == 1 and held.count("GET") > 3, "each answered the first time"
        await provider.close()
    await service.close()


async def test_over_a_real_socket_the_next_owner_reattaches(tmp_path: Path, service: SandboxService):
    open_at: Callable[[str], Any] = lambda url: open_provider(url, root=tmp_path)  # noqa: E731
    async with serving(service) as url:
        first, second = open_at(url), open_at(url)
        await (await first.provision(SPEC, quiet)).write("a b/ü", "kept")
        first.kill_now()
        await first.close()
        found = await second.attach(SPEC)
        assert found is not None and await found.read("a b/ü") == b"kept"
        await second.close()
