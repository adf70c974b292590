"""What a node counts, where a takeover, a sweep or a seldom scrape could make it untrue."""

import asyncio
from typing import Any

from node_support import Agent, Cluster, Member, call, in_virtual_time, until
from prometheus_client.parser import text_string_to_metric_families

from tenure import facts
from tenure.node.metrics import LeastSlack, Metrics, of_node


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(metrics.text().decode())
    series = [s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    assert series, name
    return sum(s.value for s in series)


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


async def in_a_call(turn: Any) -> None:
    await call(turn, "deploy", work=for_ever())


async def killed_in_a_call(cluster: Cluster) -> None:
    """A first owner that has begun a turn, and a call in it, and is no more."""
    a = await cluster.add(agent=Agent(on_turn=in_a_call))
    await cluster.say(via=a)
    await until(lambda: cluster.events("call_started"))
    a.kill()


async def heir(cluster: Cluster, agent: Agent | None = None) -> tuple[Member, Metrics]:
    member = await cluster.add(agent=agent, capacity=10)
    return member, of_node(member.node)


@in_virtual_time
async def test_a_call_that_a_dead_owner_began_is_counted_and_its_time_is_not_made_up(cluster: Cluster):
    await killed_in_a_call(cluster)
    _, metrics = await heir(cluster)
    await until(lambda: cluster.events("turn_completed"))
    assert len(cluster.events("call_interrupted")) == 1
    assert counted(metrics, "tenure_calls_total", outcome="interrupted") == 1
    assert counted(metrics, "tenure_call_seconds_count") == 0, "nobody here knows when it began"
    assert counted(metrics, "tenure_turns_total", outcome="completed") == 1
    assert counted(metrics, "tenure_turn_seconds_count", outcome="completed") == 1, "since it was taken up again"


@in_virtual_time
async def test_a_turn_that_the_heir_ends_without_taking_it_up_is_counted(cluster: Cluster):
    await killed_in_a_call(cluster)
    await cluster.command("interrupt")
    _, metrics = await heir(cluster)
    await until(lambda: cluster.events("turn_interrupted"))
    await until(lambda: counted(metrics, "tenure_turns_total", outcome="interrupted") == 1)
    assert counted(metrics, "tenure_turn_seconds_count") == 0
    assert counted(metrics, "tenure_calls_total", outcome="interrupted") == 1


@in_virtual_time
async def test_wanted_is_what_a_sweep_left_and_not_what_it_claimed(cluster: Cluster):
    for n in range(5):
        await cluster.say(conversation=f"c{n}")
    node = await cluster.add(agent=Agent(on_turn=for_ever), capacity=3, sweep_s=10, ttl_s=60)
    node.rig.deaf = True  # or its own claims would hint at a second sweep
    metrics, swept = of_node(node.node), list[facts.Fact]()
    node.node.facts.listen(lambda fact: swept.append(fact) if isinstance(fact, facts.Swept) else None)
    await until(lambda: node.node.present is not None and node.node.present.swept_s > 0)
    assert swept == [facts.Swept(wanted=5, begun=3)]
    assert counted(metrics, "tenure_wanted") == 2, "it had room for three, and took them"
    assert [cluster.owner(f"c{n}") for n in range(5)].count("n1") == 3


@in_virtual_time
async def test_the_slack_of_a_renewal_that_came_late_is_seen_by_who_looks_seldom(cluster: Cluster):
    node = await cluster.add(ttl_s=60, sweep_s=10)
    metrics = of_node(node.node)
    heard = await node.node.facts.until(facts.Renewed)
    assert isinstance(heard, facts.Renewed)
    at_best = 60 - node.node.config.timing.margin_s
    assert counted(metrics, "tenure_heartbeat_slack_seconds") == heard.slack_s < at_best - 1
    window = node.node.present.heartbeat.window  # type: ignore[union-attr]
    assert window is not None
    assert window.trusted_until - cluster.clock.boottime() > at_best - 1, "it has just been renewed"


@in_virtual_time
async def test_the_least_slack_is_forgotten_within_a_minute(cluster: Cluster):
    least = LeastSlack(cluster.clock)
    least.hear(facts.Renewed("i", 0.1, 0.4))
    least.hear(facts.Renewed("i", 0.1, 2.0))
    await asyncio.sleep(29)
    assert least.with_present(2.7) == 0.4
    assert least.with_present(0.2) == 0.2
    await asyncio.sleep(32)
    least.hear(facts.Renewed("i", 0.1, 2.1))
    assert least.with_present(2.7) == 2.1
    assert least.with_present(2.7) == 2.1, "a look takes nothing from the next one"
