"""How a start does, as every node tells it: a step while it is slow, a reason when it failed, nothing that stays behind."""

import asyncio

import pytest
from node_support import C, Cluster, Member, Provider, failing, in_virtual_time, until

from tenure.abc import RuntimeFailure
from tenure.conversation import Status
from tenure.errors import ProvisioningError, UnknownConversationError
from tenure.facts import Live, Provisioned
from tenure.node.progress import KIND, StartInfo
from tenure.testing.simloop import LoopClock


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


async def told(node: Member) -> StartInfo:
    return await node.ask(node.node.start_info(C))


async def papers(cluster: Cluster) -> list[str]:
    return [paper.id for paper in await cluster.store.list_papers(KIND)]


@in_virtual_time
async def test_a_start_that_is_quick_writes_nothing_of_its_steps(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    await asyncio.sleep(5)
    assert node.rig.count("put_paper") == 1, "the store's identity, once"
    assert (await told(node)).step is None
    assert await papers(cluster) == []


@in_virtual_time
async def test_every_node_tells_the_step_of_a_slow_start_and_since_when(cluster: Cluster):
    boot, configure = asyncio.Event(), asyncio.Event()
    a = await cluster.add(
        provider=Provider(at={"provision": lambda _: boot.wait(), "configure": lambda _: configure.wait()})
    )
    b = await cluster.add()
    a.starting()
    await until(lambda: a.provider.did("provision"))
    began = a.node.clock.now()
    early = await told(b)
    assert (early.step, early.status) == ("claimed", Status.STARTING), "known from the record alone"
    await asyncio.sleep(3)
    late = await told(b)
    assert (late.step, late.owner and late.owner.node, late.epoch) == ("boot", "n1", 1)
    assert late.since is not None and late.since <= began
    boot.set()
    await asyncio.sleep(2)
    assert (await told(b)).step == "configure"
    assert (await told(b)).as_json()["step"] == (await told(a)).as_json()["step"] == "configure"
    configure.set()
    await until(lambda: a.live == [C])
    await asyncio.sleep(2)
    assert ((await told(b)).step, await papers(cluster)) == (None, [])


@in_virtual_time
async def test_what_a_dead_node_has_said_is_not_told_and_is_reaped(cluster: Cluster):
    a = await cluster.add(provider=Provider(at={"provision": for_ever}))
    b = await cluster.add(provider=Provider(at={"provision": failing(RuntimeFailure("no"))}), reap_s=3)
    a.starting()
    await asyncio.sleep(2)
    assert await papers(cluster) == [f"{C}@1"]
    a.kill()
    await until(lambda: cluster.status() is not Status.STARTING, 10)
    assert (await told(b)).step is None
    await asyncio.sleep(8)
    assert await papers(cluster) == []


@in_virtual_time
async def test_a_failed_start_tells_the_providers_own_reason_and_when_it_goes_on(cluster: Cluster):
    a = await cluster.add(
        provider=Provider(at={"provision": failing(RuntimeFailure("no room on host 7", step="place"))})
    )
    b = await cluster.add(agents={"other": a.agent})
    with pytest.raises(ProvisioningError, match="no room on host 7"):
        await a.start()
    await cluster.say()
    info = await told(b)
    assert info.error is not None
    assert (info.error["step"], info.error["reason"], info.error["permanent"]) == ("place", "no room on host 7", False)
    assert (info.failures, info.step) == (1, None)
    assert info.retry_in_s is not None and info.retry_in_s > 0
    a.provider.at.clear()
    await until(lambda: a.live == [C])
    await until(lambda: cluster.status() is Status.IDLE)
    assert (await told(b)).error is None, "a turn has ended well since"


@in_virtual_time
async def test_a_start_that_fails_slowly_takes_its_paper_away(cluster: Cluster):
    node = await cluster.add(provider=Provider(at={"provision": for_ever}), start_timeout_s=3)
    with pytest.raises(ProvisioningError, match="boot: no answer within 3 s"):
        await node.start()
    await asyncio.sleep(2)
    assert await papers(cluster) == []


@in_virtual_time
async def test_nobody_elses_start_is_told(cluster: Cluster):
    node = await cluster.add()
    with pytest.raises(UnknownConversationError):
        await told(node)


@in_virtual_time
async def test_what_took_no_time_that_anybody_can_tell_took_none(cluster: Cluster):
    """The boot clock is stepped back in the middle of a start, as a debugger or a restored checkpoint does."""
    boot = asyncio.Event()
    node = await cluster.add(provider=Provider(at={"provision": lambda _: boot.wait()}), threaded=False)
    node.starting()
    await until(lambda: node.provider.did("provision"))
    assert isinstance(cluster.clock, LoopClock)
    provisioned = asyncio.ensure_future(node.node.facts.until(Provisioned))
    live = asyncio.ensure_future(node.node.facts.until(Live))
    await asyncio.sleep(0.5)
    cluster.clock.step_boot(-5)
    boot.set()
    assert ((await provisioned).took_s, (await live).took_s) == (0, 0)
