"""The contract of :class:`tenure.abc.RuntimeProvider`, as cases. Every provider passes all that fit what it declares.

For a provider of your own, with pytest and pytest-asyncio::

    pytest.register_assert_rewrite("tenure.testing.provider_suite")   # before the import: failures show their values

    from tenure.testing.provider_suite import Bench, cases, exercise

    BENCH = Bench(lambda: MyProvider("https://sandboxes.test"))

    @pytest.mark.parametrize("case", cases(BENCH), ids=lambda case: case.__name__)
    async def test_provider(case):
        await exercise(case, BENCH)

A bench makes *another node's* provider with every call, on the same machines; it says what runtimes there can do, and, if
it can, how one is paused or lost behind everybody's back. A case is named after the sentence of the contract that it
shows, and discards what it made.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from tenure.abc import RuntimeFailure, RuntimeProvider, RuntimeSpec
from tenure.errors import InvalidInputError

if TYPE_CHECKING:
    from tenure.abc import Ran, Runtime

PATIENCE_S = 30.0
"""How long a case waits for what must come; what comes, comes much sooner."""


@final
@dataclass(frozen=True, slots=True)
class Bench:
    """Where a provider is tried. `provider` makes another node's provider, on the same machines, with every call."""

    provider: Callable[[], RuntimeProvider]
    commands: bool = True
    """Whether runtimes run commands of a POSIX shell."""
    pause: Callable[[str], Awaitable[None]] | None = None
    """Pause the runtime of that name; null: runtimes here are never paused."""
    lose: Callable[[str], Awaitable[None]] | None = None
    """Destroy the runtime of that name behind its providers' back; null: nobody can."""


@final
@dataclass(slots=True)
class Stage:
    """What a case plays on: providers of several nodes, and names that nobody else uses."""

    bench: Bench
    steps: list[str] = field(default_factory=list[str])
    _id: str = field(default_factory=lambda: secrets.token_hex(4))
    _providers: list[RuntimeProvider] = field(default_factory=list[RuntimeProvider])
    _specs: dict[str, RuntimeSpec] = field(default_factory=dict[str, RuntimeSpec])

    def node(self) -> RuntimeProvider:
        """Another node's provider."""
        self._providers.append(self.bench.provider())
        return self._providers[-1]

    def spec(self, conversation: str = "c", epoch: int = 1) -> RuntimeSpec:
        workspace = f"{self._id}.{conversation}"
        spec = RuntimeSpec(f"{workspace}.e{epoch}", workspace, conversation)
        self._specs[spec.name] = spec
        return spec

    async def provision(self, provider: RuntimeProvider, spec: RuntimeSpec) -> Runtime:
        return await provider.provision(spec, self.steps.append)

    async def listed(self, provider: RuntimeProvider) -> list[tuple[str, str]]:
        """What of this case the provider has."""
        return sorted(entry for entry in await provider.list() if entry[0] in self._specs)

    async def clear(self) -> None:
        """Leave nothing behind."""
        for spec in self._specs.values():
            await self._providers[0].discard(spec.name, spec.workspace)
        for provider in self._providers:
            await provider.close()


type Case = Callable[[Stage], Coroutine[None, None, None]]


async def exercise(case: Case, bench: Bench) -> None:
    """Play one case. :raises AssertionError: the provider breaks its contract; the case's name says which sentence."""
    stage = Stage(bench)
    stage.node()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await case(stage)
    finally:
        await stage.clear()


async def refused(work: Awaitable[object], *kinds: type[Exception]) -> Exception:
    """The error of one of these kinds that the work raises."""
    try:
        answer = await work
    except kinds as error:
        return error
    raise AssertionError(f"expected {kinds}, the provider answered {answer!r}")


async def said(runtime: Runtime, command: str | Sequence[str], **more: float | str) -> Ran:
    return await runtime.run(command, **more)  # type: ignore[arg-type]


# --- names ----------------------------------------------------------------------------------------------------------


async def provision_makes_a_runtime_of_that_name_and_says_its_steps(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    runtime = await stage.provision(node, spec)
    assert runtime.name == spec.name
    assert await stage.listed(node) == [(spec.name, spec.conversation)]
    assert stage.steps and all(0 < len(step) <= 200 and step.isprintable() for step in stage.steps)


async def provision_again_finds_the_runtime_of_that_name(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    await (await stage.provision(node, spec)).write("note", "kept")
    again = await stage.provision(node, spec)
    assert await again.read("note") == b"kept"
    assert await stage.listed(node) == [(spec.name, spec.conversation)]


async def provisions_of_one_name_at_once_make_one(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    await asyncio.gather(*(stage.provision(node, spec) for _ in range(3)))
    assert await stage.listed(node) == [(spec.name, spec.conversation)]


async def every_node_lists_every_runtime_with_its_conversation(stage: Stage) -> None:
    """Also where a name is no file name, and where case alone tells two apart."""
    node = stage.node()
    specs = [stage.spec(name) for name in ("plain", "Plain", "with blank", "ünï", "c" * 128, "a_b-c.d")]
    for spec in specs:
        await stage.provision(node, spec)
    assert await stage.listed(stage.node()) == sorted((spec.name, spec.conversation) for spec in specs)


async def discard_destroys_that_runtime_alone(stage: Stage) -> None:
    node, spec, other = stage.node(), stage.spec("c"), stage.spec("C")
    runtime, neighbour = await stage.provision(node, spec), await stage.provision(node, other)
    await neighbour.write("note", "mine")
    await node.discard(spec.name)
    assert await stage.listed(node) == [(other.name, other.conversation)]
    assert await node.attach(spec) is None
    await refused(runtime.write("note", "late"), RuntimeFailure)
    assert await neighbour.read("note") == b"mine"


async def any_node_discards_and_once_more_is_fine(stage: Stage) -> None:
    node, other, spec = stage.node(), stage.node(), stage.spec()
    await stage.provision(node, spec)
    await asyncio.gather(other.discard(spec.name), node.discard(spec.name))
    await other.discard(spec.name, spec.workspace)
    await other.discard(spec.name, spec.workspace)
    await other.discard(stage.spec("never").name)
    assert await stage.listed(node) == []


async def the_workspace_outlives_the_runtime_and_dies_with_the_conversation(stage: Stage) -> None:
    node, first, second, third = stage.node(), stage.spec(), stage.spec(epoch=2), stage.spec(epoch=3)
    await (await stage.provision(node, first)).write("folder/note", "kept")
    await node.discard(first.name)
    assert await (await stage.provision(node, second)).read("folder/note") == b"kept"
    await node.discard(second.name, second.workspace)
    await refused((await stage.provision(node, third)).read("folder/note"), FileNotFoundError)


async def a_workspace_is_listed_from_its_first_runtime_until_it_is_discarded(stage: Stage) -> None:
    """By every node, and while no runtime uses it: else nobody would know what a conversation left that was deleted."""
    node, other = stage.node(), stage.node()
    specs = [stage.spec(name) for name in ("plain", "Plain", "with blank", "ünï", "c" * 128)]
    for spec in specs:
        await stage.provision(node, spec)
    await node.discard(specs[0].name)
    kept = {spec.workspace for spec in specs}
    assert kept & set(await other.workspaces()) == kept
    await other.discard(specs[0].name, specs[0].workspace)
    await other.discard(specs[1].name, specs[1].workspace)
    assert kept & set(await other.workspaces()) == {spec.workspace for spec in specs[2:]}


async def attach_finds_what_this_node_made(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    await (await stage.provision(node, spec)).write("note", "here")
    found = await node.attach(spec)
    assert found is not None and found.name == spec.name
    assert await found.read("note") == b"here"
    assert await node.attach(stage.spec("never")) is None


# --- files ----------------------------------------------------------------------------------------------------------


async def files_are_bytes_and_texts_of_any_name_below_the_workspace(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    await runtime.write("a/b/ü c.bin", bytes(range(256)))
    assert await runtime.read("a/b/ü c.bin") == bytes(range(256))
    await runtime.write("a/b/ü c.bin", "short")
    assert await runtime.read("a/b/ü c.bin") == b"short"
    await refused(runtime.read("a/none"), FileNotFoundError)


async def a_file_above_the_limit_is_refused(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    await runtime.write("large", b"x" * 101)
    assert len(await runtime.read("large", limit_bytes=101)) == 101
    await refused(runtime.read("large", limit_bytes=100), InvalidInputError)


async def a_path_that_leaves_the_workspace_is_refused(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    for path in ("../note", "/etc/hostname", "a/../../note"):
        await refused(runtime.read(path), InvalidInputError)
        await refused(runtime.write(path, "x"), InvalidInputError)


# --- commands -------------------------------------------------------------------------------------------------------


async def a_command_answers_with_its_code_and_both_outputs(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    ran = await said(runtime, "echo out; echo err >&2; exit 3")
    assert (ran.exit_code, ran.stdout, ran.stderr, ran.timed_out) == (3, "out\n", "err\n", False)
    assert (await said(runtime, ["printf", "%s|", "a b", "$HOME"])).stdout == "a b|$HOME|"
    assert (await said(runtime, "cat", stdin="in ü")).stdout == "in ü"


async def commands_and_files_share_the_workspace(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    await runtime.write("in/note", "hello")
    ran = await said(runtime, "cat in/note && printf out > result")
    assert ran.stdout == "hello"
    assert await runtime.read("result") == b"out"


async def a_command_that_takes_too_long_is_ended(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    ran = await said(runtime, "echo begun; sleep 300; echo survived > late", timeout_s=0.3)
    assert ran.timed_out and ran.exit_code != 0 and ran.stdout == "begun\n"
    await refused(runtime.read("late"), FileNotFoundError)


async def a_command_whose_caller_goes_away_is_ended(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    work = asyncio.ensure_future(said(runtime, "echo $$ > begun; while :; do sleep 0.05; date >> beats; done"))
    await _until(runtime, "test -s begun")
    work.cancel()
    await refused(work, asyncio.CancelledError)  # type: ignore[arg-type]
    await _until(
        runtime, 'a=$(wc -c < beats 2>/dev/null || echo 0); sleep 0.3; test "$a" = "$(wc -c < beats || echo 0)"'
    )


async def much_output_is_cut_and_says_so(stage: Stage) -> None:
    runtime = await stage.provision(stage.node(), stage.spec())
    ran = await said(runtime, "head -c 3000000 /dev/zero | tr '\\0' x")
    assert ran.truncated and 0 < len(ran.stdout) < 1_000_000


async def credentials_are_what_configure_gave_last(stage: Stage) -> None:
    node = stage.node()
    runtime = await stage.provision(node, stage.spec())
    await node.configure(runtime, {"API_KEY": "first-secret", "OTHER": "other-secret"})
    await node.configure(runtime, {"API_KEY": "second-secret"})
    ran = await said(runtime, 'echo "$API_KEY/$OTHER"')
    assert ran.stdout == "second-secret/\n"
    assert "secret" not in repr(runtime) + repr(await node.list()) + "".join(stage.steps)


async def a_bad_credential_is_refused_without_its_value(stage: Stage) -> None:
    node = stage.node()
    runtime = await stage.provision(node, stage.spec())
    for name, value in (("BAD NAME", "hidden-value"), ("=", "hidden-value"), ("NUL", "hidden-value\0")):
        error = await refused(node.configure(runtime, {name: value}), RuntimeFailure)
        assert "hidden" not in str(error)


async def nothing_runs_in_a_discarded_runtime(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    runtime = await stage.provision(node, spec)
    work = asyncio.ensure_future(said(runtime, "echo > begun; sleep 300"))
    await _until(runtime, "test -e begun")
    await stage.node().discard(spec.name)
    await asyncio.wait([work], timeout=PATIENCE_S / 2)
    assert work.done(), "what runs ends with the runtime"
    assert isinstance(work.exception(), RuntimeFailure) or work.result().exit_code != 0
    await refused(said(runtime, "true"), RuntimeFailure)


async def _until(runtime: Runtime, command: str) -> None:
    while (await runtime.run(f"{command} || {{ sleep 0.05; exit 1; }}")).exit_code != 0:
        pass


# --- whose they are -------------------------------------------------------------------------------------------------


async def a_runtime_that_outlives_its_node_is_reattached_by_another(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    await (await stage.provision(node, spec)).write("note", "kept")
    await asyncio.to_thread(node.kill_now)
    found = await stage.node().attach(spec)
    assert found is not None and await found.read("note") == b"kept"
    assert await stage.listed(stage.node()) == [(spec.name, spec.conversation)]


async def a_runtime_that_ends_with_its_node_is_nobody_elses(stage: Stage) -> None:
    node, spec, other = stage.node(), stage.spec("c"), stage.spec("d")
    runtime = await stage.provision(node, spec)
    neighbour = stage.node()
    await (await stage.provision(neighbour, other)).write("note", "mine")
    assert await neighbour.attach(spec) is None
    await asyncio.to_thread(node.kill_now)
    await refused(runtime.run("true"), RuntimeFailure)
    found = await neighbour.attach(other)
    assert found is not None and await found.read("note") == b"mine"


async def a_paused_runtime_is_resumed_by_attach(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    await (await stage.provision(node, spec)).write("note", "kept")
    assert stage.bench.pause is not None
    await stage.bench.pause(spec.name)
    found = await stage.node().attach(spec)
    assert found is not None and await found.read("note") == b"kept"
    await found.write("note", "goes on")


async def a_runtime_that_is_paused_under_its_owner_goes_on(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    runtime = await stage.provision(node, spec)
    await runtime.write("note", "kept")
    assert stage.bench.pause is not None
    await stage.bench.pause(spec.name)
    await node.configure(runtime, {"API_KEY": "fresh"})
    assert await runtime.read("note") == b"kept"
    await stage.bench.pause(spec.name)
    await runtime.write("note", "goes on")
    if stage.bench.commands:
        await stage.bench.pause(spec.name)
        assert (await said(runtime, 'echo "$API_KEY"')).stdout == "fresh\n"


async def what_an_earlier_owner_began_ends_when_another_attaches(stage: Stage) -> None:
    """Its command, and what a command has left in the background. The files stay."""
    node, spec = stage.node(), stage.spec()
    runtime = await stage.provision(node, spec)
    beats = "while :; do echo >> {}; sleep 0.02; done"
    await said(runtime, f"({beats.format('behind')}) > /dev/null 2>&1 &")
    work = asyncio.ensure_future(said(runtime, beats.format("before")))
    await _until(runtime, "test -s behind && test -s before")
    found = await stage.node().attach(spec)
    assert found is not None
    count = "cat behind before | wc -c"
    assert (await said(found, f"test $({count}) = $(sleep 0.3; {count}) && echo still")).stdout == "still\n"
    await asyncio.wait([work], timeout=PATIENCE_S / 2)
    assert work.done() and (work.exception() is not None or work.result().exit_code != 0)


async def a_lost_runtime_is_gone_for_good(stage: Stage) -> None:
    node, spec = stage.node(), stage.spec()
    runtime = await stage.provision(node, spec)
    assert stage.bench.lose is not None
    await stage.bench.lose(spec.name)
    assert await node.attach(spec) is None
    await refused(runtime.write("note", "x"), RuntimeFailure)
    await refused(runtime.read("note"), RuntimeFailure)
    await node.discard(spec.name)
    assert (await stage.provision(node, stage.spec(epoch=2))).name.endswith(".e2")


NAMES: tuple[Case, ...] = (
    provision_makes_a_runtime_of_that_name_and_says_its_steps,
    provision_again_finds_the_runtime_of_that_name,
    provisions_of_one_name_at_once_make_one,
    every_node_lists_every_runtime_with_its_conversation,
    discard_destroys_that_runtime_alone,
    any_node_discards_and_once_more_is_fine,
    the_workspace_outlives_the_runtime_and_dies_with_the_conversation,
    a_workspace_is_listed_from_its_first_runtime_until_it_is_discarded,
    attach_finds_what_this_node_made,
    files_are_bytes_and_texts_of_any_name_below_the_workspace,
    a_file_above_the_limit_is_refused,
    a_path_that_leaves_the_workspace_is_refused,
)
COMMANDS: tuple[Case, ...] = (
    a_command_answers_with_its_code_and_both_outputs,
    commands_and_files_share_the_workspace,
    a_command_that_takes_too_long_is_ended,
    a_command_whose_caller_goes_away_is_ended,
    much_output_is_cut_and_says_so,
    credentials_are_what_configure_gave_last,
    a_bad_credential_is_refused_without_its_value,
    nothing_runs_in_a_discarded_runtime,
)


def cases(bench: Bench) -> tuple[Case, ...]:
    """The cases that fit what the bench and its providers declare, in the order of the story."""
    outlives = bench.provider().outlives_node
    whose: Case = (
        a_runtime_that_outlives_its_node_is_reattached_by_another
        if outlives
        else a_runtime_that_ends_with_its_node_is_nobody_elses
    )
    paused = (
        (a_paused_runtime_is_resumed_by_attach, a_runtime_that_is_paused_under_its_owner_goes_on)
        if bench.pause is not None
        else ()
    )
    former = (what_an_earlier_owner_began_ends_when_another_attaches,) if outlives and bench.commands else ()
    lost = (a_lost_runtime_is_gone_for_good,) if bench.lose is not None else ()
    return (*NAMES, *(COMMANDS if bench.commands else ()), whose, *former, *paused, *lost)


__all__ = ["Bench", "Case", "Stage", "cases", "exercise"]
