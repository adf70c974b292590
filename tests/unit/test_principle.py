"""The four invariants of the principle that Tenure succeeds, by their names. ``docs/principle.md`` sets it beside ours."""

import asyncio

import pytest
from node_support import Agent, C, Cluster, Provider, failing, in_virtual_time, reply, until

from tenure.abc import RuntimeFailure, Turn
from tenure.errors import ConversationOwnedElsewhereError, NodeUnavailableError, ProvisioningError


@in_virtual_time
async def test_at_most_one(cluster: Cluster):
    """However many nodes are asked at once, however often, each conversation has one owner and one loop.

    Also while owners die and thaw: a frozen one that comes back finds itself refused, and its loop ends.
    """
    nodes = [await cluster.add(reap_s=5) for _ in range(4)]
    names = [f"c{n}" for n in range(6)]
    answers = await asyncio.gather(
        *(node.start(name) for name in names for node in nodes for _ in range(3)), return_exceptions=True
    )
    refused = [a for a in answers if isinstance(a, BaseException)]
    assert all(isinstance(a, ConversationOwnedElsewhereError) for a in refused)
    assert len(answers) - len(refused) == 3 * len(names)
    opened = [which for node in nodes for which in node.agent.opened]
    assert sorted(opened) == [(name, 1) for name in names]

    frozen = next(n for n in nodes if n.live)
    held = frozen.live
    assert frozen.process is not None
    frozen.process.pause()
    said = {name: await cluster.say(conversation=name) for name in held}
    await until(lambda: all(cluster.settled(seq, name) for name, seq in said.items()))
    before = {name: cluster.journal(name) for name in held}
    frozen.process.resume()
    await until(lambda: not set(held) & set(frozen.live))
    await asyncio.sleep(10)
    for name in held:
        assert cluster.journal(name) == before[name]  # the zombie left no trace
        epochs = [e.epoch for e in cluster.events("claimed", name)]
        assert epochs == [1, 2]
        assert sum((name, 2) in node.agent.alive for node in nodes) == 1


@in_virtual_time
async def test_idempotency(cluster: Cluster):
    """Starting twice on the owner gives the running loop, also while it is still being provisioned."""
    boot = asyncio.Event()

    async def wait(name: str) -> None:
        await boot.wait()

    node = await cluster.add(provider=Provider(at={"provision": wait}))
    during = [node.starting() for _ in range(3)]
    await until(lambda: node.provider.did("provision"))
    during += [node.starting() for _ in range(3)]
    boot.set()
    infos = [await start for start in during] + [await node.start()]
    assert {(i.epoch, i.here) for i in infos} == {(1, True)}
    assert node.agent.opened == [(C, 1)]
    assert len(node.provider.did("provision")) == 1
    assert cluster.kinds().count("claimed") == 1


@pytest.mark.parametrize("step", ["provision", "configure", "loop"])
@in_virtual_time
async def test_fail_safe_release(cluster: Cluster, step: str):
    """A start that fails after the claim leaves no lock behind: torn down, journaled, released; anybody may try again."""

    async def broken(_: object) -> None:
        raise RuntimeFailure("it is broken")

    agent = Agent(on_open=broken if step == "loop" else None)
    provider = Provider(at={} if step == "loop" else {step: failing(RuntimeFailure("it is broken"))})
    a, b = await cluster.add(agent=agent, provider=provider), await cluster.add()
    with pytest.raises(ProvisioningError, match="it is broken"):
        await a.start()
    assert cluster.owner() is None
    assert cluster.events("start_failed")[0].body["reason"] == "it is broken"
    assert provider.standing == {}
    info = await b.start()
    assert (info.epoch, info.here) == (2, True)
    assert [e.body["reason"] for e in cluster.events("released")] == ["failed"]


@in_virtual_time
async def test_ttl_recovery(cluster: Cluster):
    """An owner that dies keeps nothing beyond its ttl: its work goes on elsewhere, with nobody connected or asking.

    Before that, nobody takes it: a silent owner is not a dead one.
    """

    async def work(turn: Turn) -> None:
        await asyncio.sleep(0.4)
        await reply(turn)

    a = await cluster.add(agent=Agent(on_turn=work), ttl_s=2)
    await a.start()
    b = await cluster.add(agent=Agent(on_turn=work), ttl_s=2)
    said = await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    a.kill()
    killed_at = asyncio.get_running_loop().time()
    await asyncio.sleep(1.0)
    with pytest.raises((ConversationOwnedElsewhereError, NodeUnavailableError)):
        await b.start()
    assert cluster.owner() == "n1"
    await until(lambda: cluster.settled(said))
    took = asyncio.get_running_loop().time() - killed_at
    assert took < 2 + 0.5 + 0.4  # the ttl, a sweep, the work
    assert [e.epoch for e in cluster.events("reply")] == [2]
    assert cluster.events("claimed")[1].body["why"] == "takeover"
