"""The runtime ``docker``: status codes as they are meant, a daemon that stumbles, and where no secret ever stands."""

import asyncio
import importlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tenure.abc import RuntimeFailure, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes import open_provider
from tenure.runtimes.docker import DockerOptions, DockerProvider, container_name, volume_name
from tenure.runtimes.docker.execs import Frames
from tenure.testing.docker_engine import IMAGE, Engine, Fault

SPEC = RuntimeSpec("s.c.e1", "s.c", "c")
CREATE, START, EXEC = "/containers/create", "/containers/[^/]+/start", "/containers/[^/]+/exec"
CANARY = "canary 'quoted' $HOME \"x\"\nsecond line ü"


def quiet(step: str) -> None:
    """Nobody watches."""


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture
async def provider(engine: Engine) -> AsyncIterator[DockerProvider]:
    provider = DockerProvider(options(engine))
    yield provider
    await provider.close()


def options(engine: Engine, image: str = IMAGE, **more: Any) -> DockerOptions:
    return DockerOptions(image, address=f"unix://{engine.socket}", **more)


def asked(engine: Engine, method: str, path: str) -> int:
    return sum(m == method and re.search(path, p) is not None for m, p, _ in engine.asked)


async def failure_of(work: Any) -> RuntimeFailure:
    with pytest.raises(RuntimeFailure) as caught:
        await work
    return caught.value


async def test_a_container_is_made_as_the_options_say(engine: Engine):
    provider = DockerProvider(options(engine, network="bridge", memory_bytes=1 << 30, cpus=0.5, pids=64))
    await provider.provision(SPEC, quiet)
    await provider.close()
    about = engine.containers[container_name(SPEC.name)].shape()
    labels = {"tenure.runtime": SPEC.name, "tenure.conversation": "c", "tenure.workspace": "s.c"}
    assert about["Config"]["Labels"] == labels
    host = about["HostConfig"]
    assert (host["NetworkMode"], host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (
        *("bridge", 1 << 30, 500_000_000, 64),
    )
    assert host["Mounts"] == [{"Type": "volume", "Source": volume_name("s.c"), "Target": "/workspace"}]


@pytest.mark.parametrize(("method", "path"), [("POST", CREATE), ("POST", "/volumes/create"), ("POST", START)])
@pytest.mark.parametrize("kind", ["error", "lost"])
async def test_a_stumble_or_a_lost_answer_makes_one_container(
    engine: Engine, provider: DockerProvider, method: str, path: str, kind: Any
):
    engine.faults.append(Fault(method, path, kind))
    runtime = await provider.provision(SPEC, quiet)
    assert (await runtime.run("echo here")).stdout == "here\n"
    assert list(engine.containers) == [container_name(SPEC.name)]
    assert asked(engine, method, f"{path}") >= 2


async def test_a_daemon_that_keeps_stumbling_is_the_reason(engine: Engine, provider: DockerProvider):
    engine.faults.append(Fault("POST", CREATE, "error", times=100))
    failure = await failure_of(provider.provision(SPEC, quiet))
    assert (failure.reason, failure.step, failure.permanent) == ("the daemon stumbled", "create", False)
    assert asked(engine, "POST", CREATE) == 4


async def test_a_daemon_that_hangs_is_not_waited_for(engine: Engine):
    provider = DockerProvider(options(engine, call_s=0.2))
    engine.faults.append(Fault("POST", CREATE, "hang", times=100))
    failure = await failure_of(provider.provision(SPEC, quiet))
    await provider.close()
    assert "does not answer" in failure.reason and failure.step == "create" and not failure.permanent


async def test_no_daemon_is_a_reason():
    provider = DockerProvider(DockerOptions(IMAGE, address="tcp://127.0.0.1:1"))
    failure = await failure_of(provider.list())
    await provider.close()
    assert "the Docker daemon does not answer" in failure.reason and not failure.permanent


async def test_an_image_that_is_not_there_is_permanent(engine: Engine):
    provider = DockerProvider(options(engine, "nobody/has:this"))
    failure = await failure_of(provider.provision(SPEC, quiet))
    await provider.close()
    assert (failure.reason, failure.step, failure.permanent) == ("No such image: nobody/has:this", "create", True)


async def test_a_container_that_ends_at_once_says_so(engine: Engine, provider: DockerProvider):
    engine.dying.add(IMAGE)
    failure = await failure_of(provider.provision(SPEC, quiet))
    assert (failure.reason, failure.step) == ("the container is exited (exit code 1)", "ready")


async def test_a_name_that_another_one_took_is_left_alone(engine: Engine, provider: DockerProvider):
    engine.create(container_name(SPEC.name), {"Image": IMAGE, "Labels": {"mine": "x"}, "HostConfig": {}})
    failure = await failure_of(provider.provision(SPEC, quiet))
    assert "is not this runtime's" in failure.reason and failure.permanent
    assert engine.containers[container_name(SPEC.name)].status == "created"
    assert await provider.list() == []


async def test_a_stopped_container_is_started_again_with_its_files(engine: Engine, provider: DockerProvider):
    await (await provider.provision(SPEC, quiet)).write("note", "kept")
    engine.stop(container_name(SPEC.name))
    found = await provider.attach(SPEC)
    assert found is not None and await found.read("note") == b"kept"


async def test_what_cannot_be_found_out_is_not_gone(engine: Engine, provider: DockerProvider):
    await provider.provision(SPEC, quiet)
    engine.faults.append(Fault("GET", "/containers/[^/]+/json", "error", times=4))
    assert (await failure_of(provider.attach(SPEC))).reason == "the daemon stumbled"
    assert await provider.attach(SPEC) is not None


async def test_a_removal_that_takes_its_time_is_waited_for(engine: Engine, provider: DockerProvider):
    await provider.provision(SPEC, quiet)
    engine.looks = 3
    await provider.discard(SPEC.name, SPEC.workspace)
    assert engine.containers == {} and engine.volumes == {}
    assert asked(engine, "DELETE", "/containers/") >= 3, "a conflict with the removal under way is no failure"


async def test_a_name_whose_container_is_being_removed_is_free_soon(engine: Engine, provider: DockerProvider):
    runtime = await provider.provision(SPEC, quiet)
    await runtime.write("note", "kept")
    engine.looks = 6
    engine.remove(engine.containers[container_name(SPEC.name)], force=True)
    assert await provider.attach(SPEC) is None, "gone for good"
    again = await provider.provision(SPEC, quiet)
    assert await again.read("note") == b"kept" and asked(engine, "POST", CREATE) >= 3


async def test_a_container_that_is_never_removed_is_said(engine: Engine):
    provider = DockerProvider(options(engine, ready_s=0.3))
    await provider.provision(SPEC, quiet)
    engine.looks = 1_000_000
    failure = await failure_of(provider.discard(SPEC.name))
    assert failure.step == "discard" and "the container is not gone within 0.3 s" in failure.reason
    failure = await failure_of(provider.provision(SPEC, quiet))
    assert failure.step == "create" and "still taken by a container that is removed" in failure.reason
    await provider.close()


async def test_a_lost_answer_to_a_removal_is_a_removal(engine: Engine, provider: DockerProvider):
    await provider.provision(SPEC, quiet)
    engine.faults.append(Fault("DELETE", "/containers/[^/]+", "lost"))
    engine.faults.append(Fault("DELETE", "/volumes/[^/]+", "lost"))
    await provider.discard(SPEC.name, SPEC.workspace)
    assert engine.containers == {} and engine.volumes == {}


async def test_a_link_out_of_the_workspace_is_refused(provider: DockerProvider):
    runtime = await provider.provision(SPEC, quiet)
    await runtime.run("ln -s /etc outside; ln -s /etc/hostname file; mkdir folder")
    for path in ("outside/hostname", "file"):
        with pytest.raises(InvalidInputError, match="leaves the workspace"):
            await runtime.read(path)
    with pytest.raises(InvalidInputError, match="leaves the workspace"):
        await runtime.write("outside/tenure-note", "x")
    with pytest.raises(InvalidInputError, match="is no file"):
        await runtime.write("folder", "x")


async def test_credentials_stand_in_no_request_and_no_inspection(engine: Engine, provider: DockerProvider):
    runtime = await provider.provision(SPEC, quiet)
    await provider.configure(runtime, {"API_KEY": CANARY})
    running = asyncio.gather(runtime.run('printf %s "$API_KEY"'), runtime.run("echo > begun; cat", stdin="x" * 100_000))
    told, echoed = await running
    assert told.stdout == CANARY and echoed.stdout == "x" * 100_000
    inspected = [one.shape() for one in engine.containers.values()] + [one.shape() for one in engine.execs.values()]
    written = json.dumps([inspected, [(m, p, body.decode()) for m, p, body in engine.asked]], ensure_ascii=False)
    assert API_WORDS <= set(re.findall(r"\w+", written)), "it is the whole conversation with the daemon"
    assert "canary" not in written and "second line" not in written
    assert "canary" not in repr(runtime) + repr(vars(provider))


API_WORDS = {"Cmd", "Env", "Labels", "TENURE_RUN"}


def test_frames_may_be_cut_anywhere():
    stream = b"".join(
        bytes([n, 0, 0, 0]) + len(t).to_bytes(4, "big") + t for n, t in [(1, b"out"), (2, b"e"), (1, b"!")]
    )
    for size in (1, 3, 8, 100):
        frames = Frames(100)
        for start in range(0, len(stream), size):
            frames.feed(stream[start : start + size])
        assert (frames.outputs[1].bytes(), frames.outputs[2].bytes()) == (b"out!", b"e")
    with pytest.raises(RuntimeFailure, match="no frames"):
        Frames(100).feed(b"HTTP/1.1 200")


async def test_no_cut_of_an_output_tears_a_credential(provider: DockerProvider, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenure.runtimes.docker.OUTPUT_LIMIT", 1000)
    runtime = await provider.provision(SPEC, quiet)
    old, new = "first/value+with&more0123456789", "other/value+with&more9876543210"
    await provider.configure(runtime, {"TOKEN": old})
    await runtime.run('printf %s "$TOKEN" > old')
    await provider.configure(runtime, {"TOKEN": new})
    fill = 'head -c 485 /dev/zero | tr "\\0"'
    ran = await runtime.run(f'{fill} x; cat old; yes | head -c 3000; printf %s "$TOKEN"; {fill} z')
    assert ran.truncated
    assert re.fullmatch(r"x+\n… \d+ bytes left out …\nz+", ran.stdout), ran.stdout


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("docker://", "unix:///var/run/docker.sock"),
        ("docker:///run/d.sock", "unix:///run/d.sock"),
        ("docker://host:2375", "tcp://host:2375"),
    ],
)
def test_where_the_daemon_is(url: str, address: str):
    assert DockerOptions.parse(url, {"image": "debian"}).address == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("docker://", "image is ''"),
        ("docker://?image=--privileged", "image is '--privileged'"),
        ("docker://?image=a&speed=1", "docker has no option 'speed'; use image, network, memory_bytes"),
        ("docker://?image=a&cpus=x", "cpus is 'x'; give a number from 0.01"),
        ("docker://?image=a&cpus=nan", "cpus is 'nan'"),
        ("docker://?image=a&pids=1.5", "pids is '1.5'; give a whole number from 1"),
        ("docker://?image=a&network=a b", "network is 'a b'"),
        ("docker://host?image=a", "names no Docker daemon; give docker://"),
        ("docker://host:x?image=a", "names no Docker daemon"),
        ("docker://me:pass@host:1?image=a", "names no Docker daemon"),
        ("docker:image", "no provider is called 'docker:image'"),
    ],
)
def test_a_bad_url_is_refused(url: str, says: str, tmp_path: Path):
    with pytest.raises(InvalidInputError) as caught:
        open_provider(url, root=tmp_path)
    assert caught.value.field == "runtime" and says in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def none(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", none)
    with pytest.raises(InvalidInputError, match=re.escape("pip install 'tenure[docker]'")):
        open_provider("docker://?image=debian", root=tmp_path)
