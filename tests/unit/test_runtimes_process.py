"""The runtime ``process``, with real processes: what a command sees and may use, and that nothing of it is left."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tenure.abc import Ran, RuntimeFailure, RuntimeSpec
from tenure.errors import InvalidInputError
from tenure.runtimes import open_provider
from tenure.runtimes.process import ProcessLimits, ProcessProvider, ProcessRuntime, census, isolation
from tenure.runtimes.process.command import Launched

SPEC = RuntimeSpec("s.c.e1", "s.c", "c")
DEADLINE_S = 30.0


async def until[T](what: Callable[[], T]) -> T:
    """Poll until it is true; fails at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := await asyncio.to_thread(what)):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def number_in(file: Path) -> int:
    """The process number that a command wrote, or 0 while it has not."""
    text = file.read_text() if file.exists() else ""
    return int(text) if text.endswith("\n") else 0


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[ProcessProvider]:
    provider = ProcessProvider(tmp_path / "root", grace_s=0.2)
    yield provider
    await asyncio.to_thread(provider.kill_now)
    for name, _ in await provider.list():
        await provider.discard(name)


@pytest.fixture
async def runtime(provider: ProcessProvider) -> ProcessRuntime:
    return await provider.provision(SPEC, lambda step: None)


def place_of(runtime: ProcessRuntime) -> Path:
    return runtime.path


# --- one command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ran"),
    [
        ("echo out; echo err >&2; exit 3", Ran(3, "out\n", "err\n")),
        (["printf", "%s|", "a b", "$HOME", ""], Ran(0, "a b|$HOME||", "")),
        ("kill -9 $$", Ran(137, "", "")),
        ("kill -TERM $$", Ran(143, "", "")),
        ("printf '\\377ü'", Ran(0, "\ufffdü", "")),
        ("cat", Ran(0, "", "")),
        ("true", Ran(0, "", "")),
    ],
    ids=str,
)
async def test_a_command_and_what_it_said(runtime: ProcessRuntime, command: Any, ran: Ran):
    assert await runtime.run(command) == ran


async def test_a_command_that_is_not_there(runtime: ProcessRuntime):
    ran = await runtime.run(["no-such-program"])
    assert ran.exit_code == 127 and "not found" in ran.stderr


async def test_input_reaches_the_command_whole_and_then_ends(runtime: ProcessRuntime):
    text = "first\n" + "ü" * 200_000 + "\nlast"
    await runtime.run("cat > copy", stdin=text)
    assert (await runtime.read("copy")).decode() == text
    assert (await runtime.run("cat /dev/stdin; wc -c", stdin="x")).stdout.split() == ["x0"]
    assert (await runtime.run("exec true", stdin=text)).exit_code == 0  # nobody reads it


async def test_a_command_runs_in_the_workspace_as_a_session_of_its_own(runtime: ProcessRuntime):
    ran = await runtime.run("pwd; cut -d' ' -f5,6 /proc/self/stat")
    where, groups = ran.stdout.splitlines()
    assert Path(where) == place_of(runtime)
    group, session = map(int, groups.split())
    assert group == session != os.getsid(0)


@pytest.mark.parametrize(
    "command", ["", [], ["a", 3], "a\0b", ["a", "b\0"], "\ud800", ["x" * 300_000]], ids=lambda c: ascii(c)[:20]
)
async def test_what_is_no_command_is_refused(runtime: ProcessRuntime, command: Any):
    with pytest.raises(InvalidInputError) as refused:
        await runtime.run(command)
    assert refused.value.field == "command"


async def test_output_is_cut_in_the_middle(tmp_path: Path):
    provider = ProcessProvider(tmp_path, limits=ProcessLimits(output_bytes=1000))
    runtime = await provider.provision(SPEC, lambda step: None)
    ran = await runtime.run("echo BEGIN; yes | head -c 3000000; echo END; echo short >&2")
    assert ran.truncated
    assert ran.stdout.startswith("BEGIN\ny\n") and ran.stdout.endswith("y\nEND\n")
    assert "bytes left out" in ran.stdout and len(ran.stdout) < 1100
    assert ran.stderr == "short\n"
    exact = await runtime.run("head -c 1000 /dev/zero | tr '\\0' x")
    assert not exact.truncated and exact.stdout == "x" * 1000


@pytest.mark.parametrize("form", ["plain", "base64"])
async def test_no_cut_of_an_output_tears_a_credential(tmp_path: Path, form: str):
    """A mask finds whole values only: of one that lies across a cut, neither half may stay."""
    provider = ProcessProvider(tmp_path, limits=ProcessLimits(output_bytes=1000))
    runtime = await provider.provision(SPEC, lambda step: None)
    old, new = "first/value+with&more0123456789", "other/value+with&more9876543210"
    await provider.configure(runtime, {"TOKEN": old})
    await runtime.run(["/bin/sh", "-c", 'printf %s "$TOKEN" > old'])
    await provider.configure(runtime, {"TOKEN": new})
    shown = "cat" if form == "plain" else "base64 -w0"
    say = f'head -c 485 /dev/zero | tr "\\0" x; {shown} < $1; yes | head -c 3000; {shown} < $2; head -c 485 /dev/zero | tr "\\0" z'
    await runtime.run(["/bin/sh", "-c", 'printf %s "$TOKEN" > new'])
    for order in (["old", "new"], ["new", "old"]):
        ran = await runtime.run(["/bin/sh", "-c", say, "sh", *order])
        assert ran.truncated
        shared = "" if form == "plain" else "(.==?)?"  # the last letter of base64 holds no whole letter of the value
        assert re.fullmatch(rf"x+\n… \d+ bytes left out …\n{shared}z+", ran.stdout), ran.stdout


async def test_endless_output_costs_no_memory_and_ends_at_the_time_out(runtime: ProcessRuntime):
    ran = await runtime.run("yes", timeout_s=0.3)
    assert ran.timed_out and ran.truncated and len(ran.stdout) < 70_000


async def test_many_at_once(runtime: ProcessRuntime):
    rans = await asyncio.gather(*(runtime.run(f"echo {n}; echo {n} >> all") for n in range(30)))
    assert [ran.stdout for ran in rans] == [f"{n}\n" for n in range(30)]
    assert sorted(map(int, (await runtime.read("all")).split())) == list(range(30))


# --- the end of a command -------------------------------------------------------------------------------------------


async def test_the_time_out_ends_the_whole_group_politely_first(runtime: ProcessRuntime):
    ran = await runtime.run("trap 'echo bye; exit 5' TERM; echo $$ > pid; sleep 60 & wait", timeout_s=0.3)
    assert ran == Ran(5, "bye\n", "", timed_out=True)
    assert not alive(number_in(place_of(runtime) / "pid"))


async def test_the_time_out_ends_those_that_do_not_listen(runtime: ProcessRuntime):
    command = "trap '' TERM; (trap '' TERM; echo $$ > /dev/null; sleep 60) & echo $! > child; sleep 60"
    ran = await runtime.run(command, timeout_s=0.3)
    assert ran.timed_out and ran.exit_code == 137
    child = number_in(place_of(runtime) / "child")
    assert child
    await until(lambda: not alive(child))


async def test_the_time_out_ends_a_group_whose_first_process_obeys(runtime: ProcessRuntime):
    """The first one is gone and reaped; its child ignores SIGTERM. The number of the group alone would not do."""
    command = "trap 'exit 0' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $! > child; wait"
    assert (await runtime.run(command, timeout_s=0.3)).timed_out
    child = number_in(place_of(runtime) / "child")
    await until(lambda: not alive(child))


async def test_cancelling_kills_the_group(runtime: ProcessRuntime):
    place = place_of(runtime)
    running = asyncio.ensure_future(runtime.run("trap '' TERM; sleep 60 & echo $! > child; echo $$ > pid; sleep 60"))
    pid = await until(lambda: number_in(place / "pid"))
    child = number_in(place / "child")
    assert alive(pid) and alive(child)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not alive(pid) and not alive(child))


async def test_cancelling_before_it_begins_leaves_nothing(runtime: ProcessRuntime):
    place = place_of(runtime)
    for ticks in range(8):
        running = asyncio.ensure_future(runtime.run("echo $$ > begun; sleep 60"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    mark = str(place.parent.parent / "runtimes" / "s.c.e1.json")
    await until(lambda: not census.belonging([mark]))


async def test_what_is_left_in_the_background_runs_on_and_holds_up_nobody(
    runtime: ProcessRuntime, provider: ProcessProvider
):
    ran = await asyncio.wait_for(runtime.run("sleep 60 & echo $! > child; echo done"), 20)
    assert ran.stdout == "done\n"
    child = number_in(place_of(runtime) / "child")
    assert alive(child)
    await provider.discard(SPEC.name)
    assert not alive(child)


# --- what it may use ------------------------------------------------------------------------------------------------


def limits_of(text: str) -> dict[str, list[str]]:
    """Soft and hard, by name, as ``/proc/PID/limits`` has them."""
    return {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]}


async def test_limits_are_those_of_the_command_before_it_begins(tmp_path: Path):
    limits = ProcessLimits(cpu_s=11, memory_bytes=1 << 30, file_bytes=4096, open_files=64, processes=5000)
    runtime = await ProcessProvider(tmp_path, limits=limits).provision(SPEC, lambda step: None)
    ran = await runtime.run(["cat", "/proc/self/limits"])
    told = limits_of(ran.stdout)
    assert told["Max cpu time"] == ["11", "11"]
    assert told["Max address space"] == [str(1 << 30)] * 2
    assert told["Max file size"] == ["4096", "4096"]
    assert told["Max open files"] == ["64", "64"]
    assert told["Max processes"] == ["5000", "5000"]
    assert told["Max core file size"] == ["0", "0"]
    cut = await runtime.run("head -c 100000 /dev/zero > large; echo $?; stat -c %s large")
    assert cut.stdout.split()[-1] == "4096" and cut.stdout.split()[0] != "0"


async def test_cpu_time_is_bounded(tmp_path: Path):
    runtime = await ProcessProvider(tmp_path, limits=ProcessLimits(cpu_s=1)).provision(SPEC, lambda step: None)
    ran = await runtime.run("while :; do :; done", timeout_s=60)
    assert not ran.timed_out and ran.exit_code in (128 + signal.SIGXCPU, 137)


async def test_limits_never_rise_above_the_nodes_own(tmp_path: Path):
    """The node's hard limit holds; asking for more is no error."""
    script = f"""
import asyncio, resource
from pathlib import Path
from tenure.abc import RuntimeSpec
from tenure.runtimes.process import ProcessLimits, ProcessProvider
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
async def main():
    provider = ProcessProvider(Path({str(tmp_path)!r}), limits=ProcessLimits(open_files=100000))
    runtime = await provider.provision(RuntimeSpec("n", "w", "c"), lambda step: None)
    print((await runtime.run("ulimit -n")).stdout)
asyncio.run(main())
"""
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.strip() == "256", ran.stderr


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("docker", "no provider is called 'docker'; use process"),
        ("", "no provider is called ''"),
        ("process?speed=1", "process has no limit 'speed'"),
        ("process?network=all", "network is 'all'; use none, host"),
        ("process?isolate=", "isolate is ''; use auto, require, off"),
        ("process?cpu_s=0", "cpu_s is '0'; give a whole number above 0"),
        ("process?cpu_s=x", "cpu_s is 'x'"),
        ("process?cpu_s=-1", "cpu_s is '-1'"),
        ("process?output_bytes=", "output_bytes is ''"),
    ],
)
def test_a_provider_is_named_with_its_limits(tmp_path: Path, url: str, says: str):
    with pytest.raises(InvalidInputError) as refused:
        open_provider(url, root=tmp_path)
    assert refused.value.field == "runtime" and says in str(refused.value)


def test_limits_are_read_from_the_name(tmp_path: Path):
    provider = open_provider("process?cpu_s=60&memory_bytes=&open_files=99&network=host", root=tmp_path)
    assert isinstance(provider, ProcessProvider)
    assert provider._wanted == isolation.Wanted(network="host")  # pyright: ignore[reportPrivateUsage]
    assert provider._limits == ProcessLimits(cpu_s=60, memory_bytes=None, open_files=99)  # pyright: ignore[reportPrivateUsage]


# --- what it sees ---------------------------------------------------------------------------------------------------


async def test_the_nodes_environment_stays_with_the_node(runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENURE_API_KEY", "node-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "node-secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    seen = dict(line.partition("=")[::2] for line in (await runtime.run(["env"])).stdout.splitlines())
    assert "node-secret" not in str(seen)
    assert seen["HOME"] == str(place_of(runtime)) and seen["LANG"] == "C.UTF-8"
    assert seen["PATH"] == os.environ["PATH"]
    known = {"HOME", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TZ", "TENURE_RUNTIME_FILE", "PWD", "OLDPWD", "_"}
    assert set(seen) <= known | {"SHLVL"}


async def test_credentials_are_in_the_environment_and_nowhere_else(
    provider: ProcessProvider, runtime: ProcessRuntime, tmp_path: Path
):
    await provider.configure(runtime, {"TOKEN": "tok-en-one", "OTHER": "o"})
    assert (await runtime.run("echo $TOKEN$OTHER")).stdout == "tok-en-oneo\n"
    await provider.configure(runtime, {"TOKEN": "tok-en-two"})
    running = asyncio.ensure_future(runtime.run('echo "$TOKEN"; echo $$ > pid; sleep 60'))
    pid = await until(lambda: number_in(place_of(runtime) / "pid"))
    assert b"tok-en" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await runtime.run('echo "$TOKEN$OTHER"')).stdout == "tok-en-two\n"
    assert "tok-en" not in repr(runtime) + str(vars(provider))
    for file in await asyncio.to_thread(lambda: [f for f in tmp_path.rglob("*") if f.is_file()]):
        assert b"tok-en" not in file.read_bytes()


@pytest.mark.parametrize(
    "credentials",
    [
        {"A B": "v-alue"},
        {"": "v-alue"},
        {"A=B": "v-alue"},
        {"TENURE_X": "v-alue"},
        {"HOME": "v-alue"},
        {"LD_PRELOAD": "v-alue"},
        {"A": "v-alue\0"},
    ],
)
async def test_bad_credentials_are_refused_without_their_value(
    provider: ProcessProvider, runtime: ProcessRuntime, credentials: dict[str, str]
):
    with pytest.raises(RuntimeFailure) as refused:
        await provider.configure(runtime, credentials)
    assert refused.value.step == "configure" and refused.value.permanent
    assert "v-alue" not in str(refused.value)


# --- the runtime's life ---------------------------------------------------------------------------------------------


async def test_provisioning_is_idempotent_by_name(provider: ProcessProvider):
    steps: list[str] = []
    runtime = await provider.provision(SPEC, steps.append)
    assert steps == ["workspace", "probe"]
    assert await provider.provision(SPEC, steps.append) is runtime
    other = await provider.provision(RuntimeSpec("s.d.e1", "s.d", "d"), steps.append)
    assert steps == ["workspace", "probe", "workspace"], "that commands run is seen once"
    assert other.path != runtime.path
    assert await provider.list() == [("s.c.e1", "c"), ("s.d.e1", "d")]


async def test_the_workspace_outlives_the_epoch_and_dies_with_the_conversation(provider: ProcessProvider):
    first = await provider.provision(SPEC, lambda step: None)
    await first.write("notes", "kept")
    await provider.discard(SPEC.name)
    second = await provider.provision(RuntimeSpec("s.c.e2", "s.c", "c"), lambda step: None)
    assert await second.read("notes") == b"kept"
    await second.run("mkdir -p locked/in && touch locked/in/x && ln -s / root && chmod 000 locked")
    await provider.discard("s.c.e2", "s.c")
    assert not second.path.exists() and Path("/").exists()
    await provider.discard("s.c.e2", "s.c")  # gone already is fine
    await provider.discard("never-there", "nor-this")
    assert await provider.list() == []


async def test_only_its_own_provider_attaches(provider: ProcessProvider, runtime: ProcessRuntime, tmp_path: Path):
    assert await provider.attach(SPEC) is runtime
    assert await provider.attach(RuntimeSpec("s.c.e9", "s.c", "c")) is None
    other = ProcessProvider(tmp_path / "root")
    assert await other.list() == [("s.c.e1", "c")]
    assert await other.attach(SPEC) is None
    await other.discard(SPEC.name)
    assert await provider.attach(SPEC) is None


async def test_a_name_that_another_provider_made_is_ended_first(
    provider: ProcessProvider, runtime: ProcessRuntime, tmp_path: Path
):
    await runtime.run("sleep 60 & echo $! > child")
    child = number_in(place_of(runtime) / "child")
    other = ProcessProvider(tmp_path / "root")
    again = await other.provision(SPEC, lambda step: None)
    assert not alive(child)
    assert await provider.attach(SPEC) is None
    assert (await again.run("echo new")).stdout == "new\n"
    await other.discard(SPEC.name)


async def test_where_nothing_can_be_made_the_machine_says_why(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeFailure, match="Not a directory") as failed:
        await ProcessProvider(tmp_path / "file" / "root").provision(SPEC, lambda step: None)
    assert failed.value.step == "workspace"


async def test_a_machine_that_runs_nothing_fails_the_start(provider: ProcessProvider, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenure.runtimes.process.command.LAUNCH", "exit 3")
    with pytest.raises(RuntimeFailure, match="answered 3") as failed:
        await provider.provision(SPEC, lambda step: None)
    assert failed.value.step == "probe"


async def test_limits_that_cannot_be_set_fail_the_start(
    provider: ProcessProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuse(self: ProcessLimits, pid: int) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(ProcessLimits, "impose", refuse)
    with pytest.raises(RuntimeFailure, match="limits of processes cannot be set: not here"):
        await provider.provision(SPEC, lambda step: None)
    mark = str(tmp_path / "root" / "runtimes" / "s.c.e1.json")
    assert not await asyncio.to_thread(census.belonging, [mark])


# --- ending what others left ----------------------------------------------------------------------------------------

DOUBLE_FORK = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("daemon", "w").write(f"{os.getpid()}\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
"""


async def left_behind(runtime: ProcessRuntime, command: str, file: str) -> int:
    """Run a command that leaves a process; its number."""
    await runtime.write("fork.py", DOUBLE_FORK)
    ran = await runtime.run(f"exec >/dev/null 2>&1; {command}")
    assert ran.exit_code == 0
    return await until(lambda: number_in(place_of(runtime) / file))


LEFT_BEHIND = {
    "in the group": ("sleep 60 & echo $! > left", "left"),
    "in a session of its own": ("setsid sleep 60 & echo $! > left", "left"),
    "a daemon, forked twice": (f"{sys.executable} fork.py", "daemon"),
    "frozen": ("sleep 60 & echo $! > left; kill -STOP $!", "left"),
    "without its environment": ("(sleep 60 & env -i sh -c 'echo $$ > left; exec sleep 60' & wait) &", "left"),
    "below one without its environment": ("env -i sh -c 'sleep 60 & echo $! > left; wait' & sleep 60 &", "left"),
}


@pytest.mark.parametrize(("command", "file"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
async def test_discarding_ends_what_another_provider_left(
    runtime: ProcessRuntime, tmp_path: Path, command: str, file: str
):
    left = await left_behind(runtime, command, file)
    assert alive(left)
    await ProcessProvider(tmp_path / "root").discard(SPEC.name)
    assert not alive(left)
    assert not await asyncio.to_thread(census.belonging, [str(tmp_path / "root" / "runtimes" / "s.c.e1.json")])


async def test_a_dead_node_leaves_nothing_to_its_successor(tmp_path: Path):
    """The node is another process, killed while a command of its runs."""
    script = f"""
import asyncio
from pathlib import Path
from tenure.abc import RuntimeSpec
from tenure.runtimes.process import ProcessProvider
async def main():
    provider = ProcessProvider(Path({str(tmp_path)!r}))
    runtime = await provider.provision(RuntimeSpec("s.c.e1", "s.c", "c"), lambda step: None)
    await runtime.run("setsid sleep 60 & echo $! > left; echo $$ > pid; sleep 60")
asyncio.run(main())
"""
    node = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", script])
    place = tmp_path / "workspaces" / "s.c"
    pid = await until(lambda: number_in(place / "pid"))
    left = number_in(place / "left")
    node.kill()
    await asyncio.to_thread(node.wait)
    assert alive(pid) and alive(left)
    successor = ProcessProvider(tmp_path)
    assert await successor.attach(SPEC) is None
    await successor.discard(SPEC.name)
    assert not alive(pid) and not alive(left)


async def test_a_frozen_node_starts_nothing_in_a_discarded_runtime(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It froze after its own look: the command stands at its starting line, and finds the runtime gone."""
    original = Launched.finish
    mark = tmp_path / "root" / "runtimes" / "s.c.e1.json"

    async def discarded_meanwhile(self: Launched, *args: Any) -> Ran:
        await asyncio.to_thread(mark.replace, mark.with_name("s.c.e1.discarded"))  # how every discard begins
        return await original(self, *args)

    monkeypatch.setattr(Launched, "finish", discarded_meanwhile)
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await runtime.run("touch began")
    assert not (place_of(runtime) / "began").exists()


async def test_a_discarded_runtime_takes_no_work(provider: ProcessProvider, runtime: ProcessRuntime):
    running = asyncio.ensure_future(runtime.run("echo $$ > pid; sleep 60"))
    pid = await until(lambda: number_in(place_of(runtime) / "pid"))
    await provider.discard(SPEC.name)
    assert not alive(pid)
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await running
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await runtime.run("true")
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await runtime.write("a", "b")


async def test_the_neighbours_live(provider: ProcessProvider, runtime: ProcessRuntime):
    names = ["s.c.e10", "s.c.e", "s.C.e1"]  # alike, and not the same
    others = [await provider.provision(RuntimeSpec(n, f"w{i}", "c"), lambda step: None) for i, n in enumerate(names)]
    numbers = [await left_behind(other, "setsid sleep 60 & echo $! > left", "left") for other in others]
    mine = await left_behind(runtime, "sleep 60 & echo $! > left", "left")
    await provider.discard(SPEC.name, SPEC.workspace)
    assert not alive(mine)
    assert all(map(alive, numbers)) and all(other.path.exists() for other in others)
    for name in names:
        await provider.discard(name)


async def test_an_unfinished_discard_is_found_again(
    provider: ProcessProvider, runtime: ProcessRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    left = await left_behind(runtime, "sleep 60 & echo $! > left", "left")
    with monkeypatch.context() as patched:
        patched.setattr(census, "end", lambda marks: [census.Process(left, "D", 1, left, left, 0)])
        with pytest.raises(RuntimeFailure, match=f"process {left} of runtime s.c.e1 does not end"):
            await provider.discard(SPEC.name)
    successor = ProcessProvider(tmp_path / "root")
    assert await successor.list() == [("s.c.e1", "c")]
    await successor.discard(SPEC.name)
    assert not alive(left) and await successor.list() == []


def test_a_number_alone_kills_nobody():
    """The census said that it started at another time: it is another process with a number that was used again."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bystander:
        assert bystander.stdin is not None and bystander.stdout is not None
        found = census._process(bystander.pid)
        assert found is not None
        census._signal(census.Process(found.pid, found.state, found.parent, found.group, found.session, 1))
        print("still there", file=bystander.stdin, flush=True)
        assert bystander.stdout.readline() == "still there\n"
        census._signal(found)
        assert bystander.wait(DEADLINE_S) == -signal.SIGKILL


async def test_the_end_of_trust_kills_at_once_from_any_thread(provider: ProcessProvider, runtime: ProcessRuntime):
    other = await provider.provision(RuntimeSpec("s.d.e1", "s.d", "d"), lambda step: None)
    daemon = await left_behind(other, f"{sys.executable} fork.py", "daemon")
    running = asyncio.ensure_future(runtime.run("trap '' TERM; sleep 60 & echo $! > child; echo $$ > pid; sleep 60"))
    pid = await until(lambda: number_in(place_of(runtime) / "pid"))
    numbers = [pid, number_in(place_of(runtime) / "child"), daemon]
    assert all(map(alive, numbers))
    thread = threading.Thread(target=provider.kill_now)
    thread.start()
    await asyncio.to_thread(thread.join, DEADLINE_S)
    await until(lambda: not any(map(alive, numbers)))
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await running
    assert await provider.attach(SPEC) is None, "a later incarnation asks for a new one"
    with pytest.raises(RuntimeFailure):
        await runtime.run("true")
    assert ("s.c.e1", "c") in await provider.list(), "for the reaper"


async def test_the_end_of_trust_with_the_event_loop_blocked(provider: ProcessProvider, runtime: ProcessRuntime):
    running = asyncio.ensure_future(runtime.run("echo $$ > pid; sleep 60"))
    pid = await until(lambda: number_in(place_of(runtime) / "pid"))
    killed = threading.Event()

    def kill() -> None:
        provider.kill_now()
        deadline = time.monotonic() + DEADLINE_S
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    assert killed.wait(DEADLINE_S), "in this thread: no callback of the event loop runs meanwhile"
    assert not alive(pid)
    await asyncio.gather(running, return_exceptions=True)


NODE = """
import subprocess, sys, time
subprocess.Popen([sys.argv[1], "-c", "echo $$ > launched; exec sleep 60"], cwd=sys.argv[2])
with open("node", "w") as file:
    import os
    print(os.getpid(), file=file)
time.sleep(60)
"""


@pytest.mark.parametrize("shell", ['exec "$@"', '"$@" & exit'], ids=["leads its session", "its leader is gone"])
async def test_a_living_peer_is_never_in_the_census(
    provider: ProcessProvider, runtime: ProcessRuntime, tmp_path: Path, shell: str
):
    """Nor is its neighbour, with what it has launched in the session of both. What it launched for this runtime is."""
    launcher = await asyncio.to_thread(runtime.launcher, ("/bin/sh",))
    command = ("/bin/sh", "-c", shell, "sh", sys.executable, "-c", NODE, str(launcher), str(runtime.path))
    began = await asyncio.to_thread(subprocess.Popen, command, cwd=tmp_path, start_new_session=True)
    launched = await until(lambda: number_in(runtime.path / "launched"))
    node = await until(lambda: number_in(tmp_path / "node"))
    assert os.getsid(launched) == os.getsid(node), "in one session"
    try:
        await ProcessProvider(tmp_path / "root").discard(SPEC.name)
        assert not alive(launched) and alive(node)
    finally:
        os.kill(node, signal.SIGKILL)
        await asyncio.to_thread(began.wait)


async def test_what_left_its_group_its_environment_and_its_parent_ends_with_the_runtime(
    provider: ProcessProvider, runtime: ProcessRuntime
):
    """setsid, a double fork, another folder, an empty environment."""
    file = place_of(runtime) / "pid"
    await runtime.run(f"cd / && (env -i setsid sh -c 'sh -c \"echo \\$\\$ > {file}; exec sleep 600\" &' &) ; true")
    pid = await until(lambda: number_in(file))
    assert alive(pid)
    await provider.discard(SPEC.name)
    assert not alive(pid)


# --- kept apart from the node ---------------------------------------------------------------------------------------

APART = [by for by in isolation.MEANS if isolation.find(isolation.Wanted(), {by: isolation.MEANS[by]}).by is not None]
"""What isolates on this machine. Where it is nothing, that it is said is tested all the same."""
STAND_IN = """#!/bin/sh
# For bubblewrap where it is not installed: as it does, a child in namespaces of its own, and a parent that waits.
while [ "$1" != -- ]; do [ "$1" != --unshare-net ] || net=--net; shift; done
shift
exec 3<&0
unshare --user --map-current-user $net "$@" <&3 3<&- &
wait $!
"""
FORKING = "stands in for bubblewrap"
SEEN = "readlink /proc/self/ns/net /proc/self/ns/user /proc/self/ns/pid; tail -n +3 /proc/net/dev | cut -d: -f1"


@pytest.fixture(params=[*APART, *([FORKING] if "unshare" in APART else [])])
async def apart(
    request: pytest.FixtureRequest, provider: ProcessProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A runtime whose commands are kept apart by this."""
    by = "bubblewrap" if request.param == FORKING else request.param
    if request.param == FORKING:
        program = tmp_path / "bin" / "bwrap"
        program.parent.mkdir()
        program.write_text(STAND_IN)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(isolation, "MEANS", {by: isolation.MEANS[by]})
    await provider.open()
    assert provider.detail == {"isolation": by, "network": "none"}
    return await provider.provision(SPEC, lambda step: None)


def test_what_does_not_isolate_here_has_a_reason(record_property: Callable[[str, object], None]):
    missing = {by: isolation.find(isolation.Wanted(), {by: isolation.MEANS[by]}).why for by in isolation.MEANS}
    missing = {by: why for by, why in missing.items() if by not in APART}
    assert all(missing.values())
    if missing:
        record_property("left-out", f"isolation by {', '.join(f'{by} ({why})' for by, why in missing.items())}")


def namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "user", "pid")]


async def test_a_command_has_no_network_but_a_loopback_of_its_own(apart: ProcessRuntime):
    listening = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
    async with listening:
        ran = await apart.run([sys.executable, "-c", reach])
        seen = (await apart.run(SEEN)).stdout.split()
        open_to_all = await ProcessProvider(apart.path.parent, wanted=isolation.Wanted(network="host")).provision(
            RuntimeSpec("n", "w", "c"), lambda step: None
        )
        assert (await open_to_all.run([sys.executable, "-c", reach])).exit_code == 0, "the node's, where asked for"
    assert ran.exit_code == 1 and "Error" in ran.stderr
    net, user, pid = namespaces()
    assert seen[0] != net and seen[1] != user and seen[2] == pid and seen[3:] == ["lo"]


async def test_a_command_has_no_rights_outside_but_those_of_its_user(apart: ProcessRuntime):
    ran = await apart.run("cat /proc/self/uid_map; readlink /proc/self/ns/user; mknod node c 1 3 || echo refused")
    user, outside, count, namespace, told = ran.stdout.split()
    assert (int(user), int(outside), int(count)) == (os.geteuid(), os.geteuid(), 1), "one user, that of the node"
    assert namespace != namespaces()[1] and told == "refused", "root makes devices, and it is not root outside"
    assert (await apart.run("touch mine")).exit_code == 0
    assert (apart.path / "mine").stat().st_uid == os.geteuid()


async def test_apart_a_command_is_what_it_is_otherwise(apart: ProcessRuntime, provider: ProcessProvider):
    assert await apart.run("echo out; echo err >&2; exit 3") == Ran(3, "out\n", "err\n")
    assert await apart.run("cat", stdin="in") == Ran(0, "in", "")
    assert (await apart.run("kill -9 $$")).exit_code == 137
    missing = await apart.run(["no-such-program"])
    assert missing.exit_code == 127 and "not found" in missing.stderr
    ran = await apart.run("trap 'echo bye; exit 5' TERM; sleep 60 & wait", timeout_s=0.5)
    assert ran == Ran(5, "bye\n", "", timed_out=True)
    assert (await apart.run("ulimit -n; ulimit -c")).stdout.split() == ["4096", "0"], "its limits hold"


@pytest.mark.parametrize(("command", "file"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
async def test_apart_nothing_outlives_the_runtime(apart: ProcessRuntime, tmp_path: Path, command: str, file: str):
    left = await left_behind(apart, command, file)
    assert alive(left)
    await ProcessProvider(tmp_path / "root").discard(SPEC.name)
    assert not alive(left)


async def test_apart_the_end_of_trust_kills_at_once(apart: ProcessRuntime, provider: ProcessProvider):
    running = asyncio.ensure_future(apart.run("trap '' TERM; sleep 60 & echo $! > child; echo $$ > pid; sleep 60"))
    pid = await until(lambda: number_in(place_of(apart) / "pid"))
    numbers = [pid, number_in(place_of(apart) / "child")]
    await asyncio.to_thread(provider.kill_now)
    await until(lambda: not any(map(alive, numbers)))
    with pytest.raises(RuntimeFailure, match="was discarded"):
        await running


FAILS = {
    "nothing is installed": ("tenure-none", "tenure-none is not installed"),
    "the kernel refuses": ("false", "false does not do it: it answered 1"),
    "it does nothing": ("env", "env does not do it: the namespaces are the node's own"),
}


@pytest.mark.parametrize(("program", "why"), FAILS.values(), ids=FAILS)
async def test_where_it_is_impossible_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
):
    monkeypatch.setattr(isolation, "MEANS", {"one": ((program,), ())})
    provider = open_provider("process", root=tmp_path)
    await provider.open()
    assert provider.detail == {"isolation": "none", "network": "host"}
    assert why in provider.caution and "install bubblewrap" in provider.caution
    runtime = await provider.provision(SPEC, lambda step: None)
    assert (await runtime.run(SEEN)).stdout.split()[:3] == namespaces()
    with pytest.raises(InvalidInputError) as refused:
        await open_provider("process?isolate=require", root=tmp_path).open()
    assert refused.value.field == "runtime" and why in str(refused.value) and "install bubblewrap" in str(refused.value)


async def test_without_isolation_where_that_is_asked_for(tmp_path: Path):
    provider = open_provider("process?isolate=off", root=tmp_path)
    runtime = await provider.provision(SPEC, lambda step: None)
    assert (await runtime.run(SEEN)).stdout.split()[:3] == namespaces()
    assert provider.detail == {"isolation": "none", "network": "host"} and provider.caution == "", "nobody wonders"


# --- each limit bites -----------------------------------------------------------------------------------------------

BITES = {
    "memory": (
        ProcessLimits(memory_bytes=512 << 20),
        "try:\n bytearray(1 << 30)\nexcept MemoryError:\n print('refused')",
    ),
    "files": (
        ProcessLimits(file_bytes=4096),
        "f = open('large', 'ab', 0); f.write(bytes(4096))\ntry: f.write(b'x')\nexcept OSError: print('refused')",
    ),
    "descriptors": (
        ProcessLimits(open_files=64),
        "import os\ntry:\n for _ in range(80): os.dup(0)\nexcept OSError: print('refused')",
    ),
}


@pytest.mark.parametrize("isolate", ["auto", "off"])
@pytest.mark.parametrize(("limits", "program"), BITES.values(), ids=BITES)
async def test_a_limit_bites(tmp_path: Path, limits: ProcessLimits, program: str, isolate: str):
    provider = ProcessProvider(tmp_path, limits=limits, wanted=isolation.Wanted(isolate))
    ran = await (await provider.provision(SPEC, lambda step: None)).run([sys.executable, "-c", program])
    assert ran.stdout.startswith("refused"), ran


def tasks_of(user: int) -> int:
    """How many threads this user runs: what the limit on processes counts."""
    count = 0
    for process in Path("/proc").glob("[0-9]*/task"):
        try:
            count += len(list(process.iterdir())) if process.stat().st_uid == user else 0
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count


async def test_the_number_of_processes_is_bounded(tmp_path: Path):
    """It does not bind root, as is said: there the command becomes somebody else first."""
    root = os.geteuid() == 0
    user, become = (65534, "exec setpriv --reuid=65534 --clear-groups") if root else (os.geteuid(), "exec")
    limits = ProcessLimits(processes=await asyncio.to_thread(tasks_of, user) + 30)
    provider = ProcessProvider(tmp_path, limits=limits, wanted=isolation.Wanted("off"))
    runtime = await provider.provision(SPEC, lambda step: None)
    forks = "for n in $(seq 200); do sleep 60 >/dev/null 2>&1 & done; echo all of them"
    ran = await runtime.run(f"{become} sh -c '{forks}'")
    await provider.discard(SPEC.name)
    assert "all of them" not in ran.stdout and "fork" in ran.stderr, ran


@pytest.mark.blocking_ok  # launches as a loop's own thread does
async def test_what_is_launched_runs_as_commands_do_and_ends_with_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = ProcessLimits(cpu_s=11, memory_bytes=1 << 30, file_bytes=4096, open_files=64, processes=5000)
    provider = ProcessProvider(tmp_path / "root", limits=limits)
    runtime = await provider.provision(SPEC, lambda step: None)
    monkeypatch.setenv("NODES_OWN", "secret of the node")
    runtime.configure({"TOKEN": "tok-in-no-file"})
    launcher = runtime.launcher(("/bin/sh",))
    said = runtime.path / "said"
    escapes = "env -i setsid sh -c 'echo $$ > escaped; exec sleep 60' &"
    script = f'env > "{said}"; cat /proc/self/limits > limits; ({escapes}); echo $$ > pid; exec sleep 60'
    began = subprocess.Popen([launcher, "-c", script], cwd=runtime.path)
    number = await until(lambda: number_in(runtime.path / "pid"))
    escaped = await until(lambda: number_in(runtime.path / "escaped"))
    told = said.read_text()
    as_commands_do = limits_of((await runtime.run(["cat", "/proc/self/limits"])).stdout)
    assert limits_of((runtime.path / "limits").read_text()) == as_commands_do
    assert as_commands_do["Max cpu time"] == ["11", "11"] and as_commands_do["Max file size"] == ["4096", "4096"]
    assert f"HOME={runtime.path}" in told and "NODES_OWN" not in told and "TOKEN" not in told
    assert "tok-in-no-file" not in launcher.read_text()
    await provider.discard(runtime.name)
    await until(lambda: not alive(number) and not alive(escaped))
    began.wait()
    assert not launcher.exists()
    with pytest.raises(RuntimeFailure, match="discarded"):
        runtime.launcher(("/bin/sh",))
