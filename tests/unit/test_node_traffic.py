"""What a node asks of its store, counted: for a start, a message, an append, a heartbeat, a wake-up, and while nothing happens."""

import asyncio
from collections import Counter

import pytest
from node_support import Agent, Cluster, Member, in_virtual_time, until

from tenure.abc import Turn
from tenure.journal import Draft
from tenure.node import claimer, pace

SWEEP = {"nodes", "wanted", "list_papers", "bury", "put_paper"}
"""What the sweep asks, and the activity of the last hour: not for the sake of one conversation."""
LONG_S = 1000.0


def asked(node: Member, since: int = 0) -> Counter[str]:
    """What was asked for conversations, by operation."""
    return Counter(name for name, _ in node.rig.calls[since:] if name not in SWEEP)


async def quiet(cluster: Cluster) -> None:
    """Nothing is left to be done, and hints have been heard."""
    await asyncio.sleep(0.5)


@in_virtual_time
async def test_a_start_costs_a_claim_a_reading_and_two_appends(cluster: Cluster):
    node = await cluster.add(sweep_s=10, ttl_s=60)
    before = len(node.rig.calls)
    await node.start()
    await quiet(cluster)
    told = asked(node, before)
    told -= Counter(records=told["records"])  # the answer to whoever asked
    assert told == {"claim_all": 1, "read": 1, "append_all": 2}
    assert cluster.kinds() == ["created", "claimed", "runtime_requested", "runtime_ready", "loop_started"]


@in_virtual_time
async def test_a_message_to_a_live_loop_costs_its_acceptance_and_an_append_for_each_step(cluster: Cluster):
    node = await cluster.add(sweep_s=10, ttl_s=60)
    await node.start()
    await quiet(cluster)
    before = len(node.rig.calls)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    await quiet(cluster)
    told = asked(node, before)
    assert told["submit_all"] == 1
    assert told["append_all"] == 3, "turn_started, what the agent journals, turn_completed"
    assert told["read"] == 1, "the message, once: neither its hint, nor those of our own appends, nor the turn's end"
    assert set(told) == {"submit_all", "append_all", "read"}


@in_virtual_time
async def test_an_append_is_one_round_trip(cluster: Cluster):
    async def many(turn: Turn) -> None:
        for _ in range(20):
            await turn.journal([Draft("note", {}), Draft("note", {})])

    node = await cluster.add(agent=Agent(on_turn=many), sweep_s=10, ttl_s=60)
    await node.start()
    before = len(node.rig.calls)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert asked(node, before)["append_all"] == 20 + 2


@in_virtual_time
async def test_a_passivation_and_a_wake_up_are_bounded_however_long_the_history(cluster: Cluster):
    async def much(turn: Turn) -> None:
        for _ in range(300 if turn.messages[0].seq < 20 else 1):
            await turn.journal([Draft("note", {})])

    node = await cluster.add(agent=Agent(on_turn=much), sweep_s=10, ttl_s=60, idle_s=5)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    await until(lambda: cluster.owner() is None)
    await quiet(cluster)
    before = len(node.rig.calls)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    told = asked(node, before)
    assert len(cluster.events("note")) == 301
    assert (told["submit_all"], told["claim_all"], told["append_all"]) == (1, 1, 5)
    assert told["read"] <= 2, "from the snapshot on; the end is in memory when the turn wants it"
    assert not told["records"], "it is claimed as it stood when its message was accepted"
    before = len(node.rig.calls)
    await until(lambda: cluster.owner() is None)
    told = asked(node, before)
    assert told["release_all"] == 1
    assert sum(told.values()) <= 5


@in_virtual_time
async def test_an_idle_node_asks_the_same_whatever_it_owns(cluster: Cluster):
    node = await cluster.add(capacity=1000, idle_s=LONG_S)
    rates: list[Counter[str]] = []
    beats: list[int] = []
    for owned in (0, 10, 100):
        names = [f"c{number}" for number in range(node.node.owned, owned)]
        said = [await cluster.say(conversation=name, via=node) for name in names]
        await until(lambda said=said, names=names: all(map(cluster.settled, said, names)))
        await asyncio.sleep(5)
        assert node.node.owned == owned
        calls, renewals = len(node.rig.calls), node.beats.count("renew")
        await asyncio.sleep(60)
        rates.append(Counter(name for name, _ in node.rig.calls[calls:]))
        beats.append(node.beats.count("renew") - renewals)
    assert rates[0].keys() == rates[1].keys() == rates[2].keys() <= SWEEP
    for name, count in rates[0].items():
        assert all(abs(other[name] - count) <= 0.2 * count for other in rates), name  # its period is jittered
    assert max(beats) <= 1.2 * min(beats)


@in_virtual_time
async def test_many_of_a_dead_node_are_claimed_in_batches_and_before_they_begin(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claimer, "BATCH", 8)
    monkeypatch.setattr(pace, "AT_ONCE", 2)
    a = await cluster.add(agent=Agent(on_turn=lambda _: asyncio.Event().wait()), capacity=1000)
    names = [f"c{number}" for number in range(5 * 8)]
    for name in names:
        await cluster.say(conversation=name, via=a)
    await until(lambda: len(a.agent.turns) == len(names))
    b = await cluster.add(capacity=1000)
    a.kill()
    await until(lambda: b.rig.count("claim_all") and b.node.owned == len(names))
    claims = [number for number, (name, _) in enumerate(b.rig.calls) if name == "claim_all"]
    reads = [number for number, (name, _) in enumerate(b.rig.calls) if name == "read"]
    assert len(claims) == 5, "in batches"
    assert sum(number < claims[-1] for number in reads) <= 2, "the claims first"
    await until(lambda: len(b.agent.turns) == len(names))
