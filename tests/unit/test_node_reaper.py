"""What is destroyed: what the journal calls discarded, lost or superseded, or what belongs to the deleted. Nothing else."""

import asyncio

import pytest
from node_support import Agent, C, Cluster, Member, Provider, failing, in_virtual_time, until

from tenure.abc import RuntimeFailure
from tenure.conversation import RETIRED
from tenure.errors import ProvisioningError
from tenure.lease import Epoch, IncarnationId
from tenure.node.reaper import Reaper
from tenure.testing.provider import Fail, FaultyProvider, Hang, Machine


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


async def reap(node: Member) -> int:
    incarnation = node.node._incarnation
    assert incarnation is not None
    return await node.ask(Reaper(incarnation).reap())


def keeping(cluster: Cluster, **more: object) -> Provider:
    """A provider whose runtimes outlive their nodes, shared by the cluster."""
    return Provider(standing=cluster.standing, outlives_node=True, **more)  # type: ignore[arg-type]


@in_virtual_time
async def test_a_current_runtime_is_never_reaped(cluster: Cluster):
    """Not of one that lives here, not of one that lives elsewhere, not of an idle one that nobody owns."""
    a, b = await cluster.add(provider=keeping(cluster), idle_s=2), await cluster.add(provider=keeping(cluster))
    await a.start("c1")
    await b.start("c2")
    await until(lambda: cluster.owner("c1") is None)
    assert (await reap(a), await reap(b)) == (0, 0)
    assert len(cluster.standing) == 2


@in_virtual_time
async def test_c17_what_a_failed_teardown_left_is_reaped_later(cluster: Cluster):
    provider = keeping(cluster, at={"configure": failing(RuntimeFailure("no")), "discard": failing(OSError("busy"))})
    node = await cluster.add(provider=provider)
    with pytest.raises(ProvisioningError):
        await node.start()
    assert len(cluster.standing) == 1
    assert await reap(node) == 0  # still busy
    provider.at.clear()
    assert await reap(node) == 1
    assert cluster.standing == {}


@in_virtual_time
async def test_what_was_left_behind_long_ago_is_reaped_though_the_fold_has_forgotten_it(cluster: Cluster):
    """A provider that could not destroy the first runtime of a conversation, and was mended 120 runtimes later."""
    stuck: list[str] = []

    async def destroy(name: str) -> None:
        stuck[:] = stuck or [name]
        if name in stuck:
            raise OSError("busy")

    provider = Provider(standing=cluster.standing, at={"discard": destroy})  # each ends with its tenure
    node = await cluster.add(provider=provider, idle_s=0.1)
    for number in range(RETIRED + 20):
        await node.start()
        await until(lambda: cluster.owner() is None and not node.node.owned)
        assert len(cluster.events("runtime_discarded")) == number + 1
    state = cluster.fold()
    assert len(state.retired) == RETIRED and stuck[0] not in state.retired and state.runtime is None
    cluster.standing["other"] = cluster.standing[f"{stuck[0]}x"] = C
    assert await reap(node) == 0, "still busy; and what the journal never named is not ours to destroy"
    provider.at.clear()
    assert await reap(node) == 1
    assert sorted(cluster.standing) == sorted(["other", f"{stuck[0]}x"])


@in_virtual_time
async def test_c17_what_a_zombie_provisions_after_its_successor_is_reaped(cluster: Cluster):
    """By name its epoch is the older one; by the journal it is superseded. The successor's stays."""
    boot = asyncio.Event()

    async def wait(name: str) -> None:
        await boot.wait()

    a = await cluster.add(provider=keeping(cluster, at={"provision": wait}))
    a.starting()
    await until(lambda: a.provider.did("provision"))
    assert a.process is not None
    a.process.pause()
    b = await cluster.add(provider=keeping(cluster), reap_s=5)
    await asyncio.sleep(1.1)
    await b.start()
    current = str(cluster.fold().runtime)
    assert list(cluster.standing) == [current]
    cluster.standing[str(cluster.events("runtime_requested")[0].body["name"])] = C  # what the zombie asked for comes up
    await until(lambda: list(cluster.standing) == [current], 30)
    a.process.resume()
    boot.set()
    await asyncio.sleep(30)
    assert list(cluster.standing) == [current]
    assert b.live == [C]


@in_virtual_time
async def test_the_runtime_of_a_forced_loser_ends_soon(cluster: Cluster):
    """The new owner cannot reach it; the old one destroys it as soon as the journal calls it lost."""
    a, b = Provider(standing={}), Provider(standing={})
    first = await cluster.add(agent=Agent(on_turn=for_ever), provider=a, reap_s=60)
    second = await cluster.add(provider=b, reap_s=60)
    await first.start()
    assert len(a.standing) == 1
    await second.ask(second.node.take_over(C, Epoch(1)))
    await until(lambda: a.standing == {}, 10)
    assert len(b.standing) == 1


@in_virtual_time
async def test_the_runtime_and_the_workspace_of_the_deleted_go(cluster: Cluster):
    gone: list[tuple[str, str | None]] = []

    class Noting(Provider):
        async def discard(self, name: str, workspace: str | None = None) -> None:
            gone.append((name, workspace))
            await super().discard(name, workspace)

    node = await cluster.add(provider=Noting(standing=cluster.standing, outlives_node=True), idle_s=1)
    await node.start()
    await until(lambda: cluster.owner() is None)
    name = str(cluster.fold().runtime)
    await cluster.store.delete(C, Epoch(1), "test")
    assert await reap(node) == 1
    assert gone == [(name, name.rsplit(".", 1)[0])]


@in_virtual_time
async def test_the_files_of_the_deleted_go_though_no_runtime_names_them_any_more(cluster: Cluster):
    """It was deleted elsewhere, or the provider was away then, after its runtime had ended with its tenure."""
    machine = Machine()
    provider = FaultyProvider(machine)
    node = await cluster.add(provider=provider, idle_s=0.1)  # type: ignore[arg-type]
    for name in ("c1", "c2"):
        await node.start(name)
        await until(lambda name=name: cluster.owner(name) is None)
    identity = node.node._identity
    machine.workspaces["othersto.c1"] = machine.workspaces[f"{identity}.nobody"] = {}
    assert machine.standing == {} and len(machine.workspaces) == 4
    await reap(node)
    assert len(machine.workspaces) == 4, "nobody was deleted"
    await cluster.store.delete("c1", Epoch(1), "test")
    provider.will("discard", Fail("busy"))
    await reap(node)
    assert len(machine.workspaces) == 4
    await reap(node)
    assert set(machine.workspaces) == {f"{identity}.c2", "othersto.c1", f"{identity}.nobody"}


@in_virtual_time
async def test_many_workspaces_are_looked_at_in_several_rounds(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenure.node.reaper.WORKSPACES", 2)
    machine = Machine()
    node = await cluster.add(provider=FaultyProvider(machine), idle_s=0.1)  # type: ignore[arg-type]
    names = [f"c{number}" for number in range(5)]
    for name in names:
        await node.start(name)
        await until(lambda name=name: cluster.owner(name) is None)
    for name in ("c0", "c4"):
        await cluster.store.delete(name, Epoch(1), "test")
    incarnation = node.node._incarnation
    assert incarnation is not None
    reaper, left = Reaper(incarnation), list[int]()
    for _ in range(3):
        await node.ask(reaper.reap())
        left.append(len(machine.workspaces))
    assert left == [4, 4, 3]
    await cluster.store.delete("c1", Epoch(1), "test")
    await node.ask(reaper.reap())
    assert len(machine.workspaces) == 2, "after the last one it is the first ones' turn again"


@in_virtual_time
async def test_a_journal_that_has_not_moved_on_is_not_read_again(cluster: Cluster):
    node, other = [await cluster.add(provider=keeping(cluster)) for _ in range(2)]
    await other.start()
    incarnation = node.node._incarnation
    assert incarnation is not None
    reaper = Reaper(incarnation)
    counts: list[int] = []
    for _ in range(2):
        await node.ask(reaper.reap())
        await node.ask(reaper.reap())
        counts.append(node.rig.count("read"))
        await cluster.say()
        await until(lambda: cluster.events("turn_completed"))
    assert counts[0] == counts[1] - 1 > 0, "once for each head"
    name = str(cluster.fold().runtime)
    other.kill()
    cluster.standing.pop(name)
    await asyncio.sleep(3)
    await node.start()
    assert cluster.fold().runtime != name
    cluster.standing[name] = C  # as a zombie's comes up late
    await node.ask(reaper.reap())
    assert name not in cluster.standing, "what was the current one once is judged anew"


@in_virtual_time
async def test_a_provider_that_hangs_costs_a_period_at_most(cluster: Cluster):
    provider = FaultyProvider(Machine(), outlives_node=True)
    node = await cluster.add(provider=provider, reap_s=5)  # type: ignore[arg-type]
    provider.will("configure", Fail("no"))
    provider.will("discard", Fail("busy"))
    provider.will("list", Hang())
    with pytest.raises(ProvisioningError):
        await node.start()
    assert len(provider.machine.standing) == 1
    await asyncio.sleep(3 * 5 * 1.2)
    assert provider.machine.standing == {}


@in_virtual_time
async def test_what_is_not_of_this_store_or_not_known_stays(cluster: Cluster):
    node = await cluster.add(provider=keeping(cluster))
    identity = node.node._identity
    cluster.standing.update({"othersto.c1.e1": "c1", f"{identity}.nobody.e1": "nobody"})
    assert await reap(node) == 0
    assert len(cluster.standing) == 2


@in_virtual_time
async def test_one_that_cannot_be_judged_does_not_keep_the_others(cluster: Cluster):
    provider = keeping(cluster, at={"configure": failing(RuntimeFailure("no")), "discard": failing(OSError("busy"))})
    node = await cluster.add(provider=provider)
    for name in ("c1", "c2", "c3"):
        with pytest.raises(ProvisioningError):
            await node.start(name)
    provider.at.clear()
    events = cluster.disk.conversations["c1"].events
    events[2], events[3] = events[3], events[2]  # a journal that no fold takes
    assert await reap(node) == 2


@in_virtual_time
async def test_it_looks_by_itself_and_goes_on_after_failures(cluster: Cluster):
    provider = keeping(cluster, at={"configure": failing(RuntimeFailure("no")), "discard": failing(OSError("busy"))})
    node = await cluster.add(provider=provider, reap_s=5)

    async def broken() -> list[tuple[str, str]]:
        raise RuntimeError("the provider is away")

    with pytest.raises(ProvisioningError):
        await node.start()
    provider.at.clear()
    provider.list = broken  # type: ignore[method-assign]
    await asyncio.sleep(20)
    assert len(cluster.standing) == 1
    del provider.list  # type: ignore[attr-defined]
    await until(lambda: cluster.standing == {}, 60)


@in_virtual_time
async def test_what_a_node_was_asked_that_died_first_is_removed(cluster: Cluster):
    """And what a living one was asked is left for it."""
    node = await cluster.add(reap_s=5)
    store = node.node.store
    living = IncarnationId("fedcba9876543210")
    [itself] = await store.nodes()
    await store.register(living, itself.about, 60)
    await store.put_paper("request", "0123456789abcdef/drain", {"what": "drain"}, 0)
    await store.put_paper("request", f"{living}/drain", {"what": "drain"}, 0)
    assert node.node._incarnation is not None
    await node.ask(Reaper(node.node._incarnation)._sweep_papers())
    assert [paper.id for paper in await store.list_papers("request")] == [f"{living}/drain"]
