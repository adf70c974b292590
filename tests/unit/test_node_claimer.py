"""The sweep: whatever is wanted is found, hint or no hint, up to the node's capacity, and claimed once."""

import asyncio
import logging
from typing import Any

import pytest
from node_support import (
    Agent,
    Cluster,
    answered_after,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    until,
)

from tenure.abc import About, Buried, Death
from tenure.clock import Instant
from tenure.lease import IncarnationId
from tenure.node.claimer import BATCH
from tenure.node.incarnation import DEATHS, Incarnation

ABOUT = About("other", "test://other", 10, ("echo",), Instant(0.0))


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


@in_virtual_time
async def test_a_lost_hint_costs_a_period_and_no_more(cluster: Cluster):
    node = await cluster.add(sweep_s=0.5)
    node.rig.deaf = True
    before = asyncio.get_running_loop().time()
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    assert asyncio.get_running_loop().time() - before < 1.0


@in_virtual_time
async def test_a_hint_makes_it_immediate(cluster: Cluster):
    await cluster.add(sweep_s=10, ttl_s=60)
    await asyncio.sleep(1)
    before = asyncio.get_running_loop().time()
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    assert asyncio.get_running_loop().time() - before < 0.2


@in_virtual_time
async def test_a_dead_owners_work_goes_on_with_nobody_asking(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=for_ever))
    names = [f"c{n}" for n in range(5)]
    said = [await cluster.say(conversation=name, via=a) for name in names]
    await until(lambda: len(a.agent.turns) == 5)
    b = await cluster.add()
    b.rig.deaf = True
    a.kill()
    before = asyncio.get_running_loop().time()
    await until(lambda: all(cluster.settled(s, c) for s, c in zip(said, names, strict=True)))
    assert asyncio.get_running_loop().time() - before < 2.0  # ttl 1 s, and a sweep
    assert {e.body["why"] for c in names for e in cluster.events("claimed", c)[1:]} == {"takeover"}


@in_virtual_time
async def test_c7_a_conversation_that_was_idle_when_its_owner_died_is_found_by_its_next_message(cluster: Cluster):
    a = await cluster.add()
    await a.start()
    b = await cluster.add()
    b.rig.deaf = True
    old = a.incarnation
    a.kill()
    await until(lambda: cluster.dead(old))
    await asyncio.sleep(5)
    assert cluster.kinds().count("claimed") == 1  # free; nobody needs it
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    assert cluster.owner() == "n2"


@in_virtual_time
async def test_c5_c7_a_claim_of_the_buried_that_executes_late_takes_nothing(cluster: Cluster):
    a, b = await cluster.add(agent=Agent(on_turn=for_ever)), await cluster.add()
    late = asyncio.Event()
    a.rig.always("claim_all", held_until(late))
    b.rig.always("claim_all", lose_the_request)
    said = await cluster.say(via=a)
    await until(lambda: a.rig.count("claim_all"))
    old = a.incarnation
    assert isinstance(await cluster.store.bury(old, Death.EXITED), Buried)
    late.set()
    a.kill()
    b.rig.heal()
    await until(lambda: cluster.settled(said))
    assert cluster.record().epoch == 1
    assert a.agent.turns == []


@in_virtual_time
async def test_only_the_expired_are_buried(cluster: Cluster):
    a, b = await cluster.add(), await cluster.add()
    await cluster.store.register(IncarnationId("silent"), ABOUT, 2.0)
    await asyncio.sleep(1.9)
    assert not cluster.dead(IncarnationId("silent"))
    await until(lambda: cluster.dead(IncarnationId("silent")), 0.5)
    await asyncio.sleep(10)
    assert not cluster.dead(a.incarnation)
    assert not cluster.dead(b.incarnation)


def test_what_is_remembered_of_the_dead_does_not_grow_for_ever():
    incarnation = Incarnation(IncarnationId("heir"))
    for number in range(DEATHS + 2):
        incarnation.learn(IncarnationId(f"dead{number}"), Death.EXITED)
    assert len(incarnation.deaths) == DEATHS
    assert "dead1" not in incarnation.deaths and f"dead{DEATHS + 1}" in incarnation.deaths


@in_virtual_time
async def test_c23_a_lease_that_a_step_of_the_stores_clock_made_long_is_clamped(cluster: Cluster):
    await cluster.add()
    await cluster.store.register(IncarnationId("silent"), ABOUT, 1.0)
    cluster.disk.nodes[IncarnationId("silent")].expires += 3600  # its clock went back by an hour
    await until(lambda: cluster.dead(IncarnationId("silent")), 5)


# --- capacity -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_node_claims_up_to_its_capacity_and_its_places_come_back(cluster: Cluster):
    go = asyncio.Event()

    async def work(turn: Any) -> None:
        await go.wait()

    node = await cluster.add(agent=Agent(on_turn=work), capacity=3, idle_s=1)
    names = [f"c{n}" for n in range(8)]
    said = {name: await cluster.say(conversation=name) for name in names}
    await asyncio.sleep(3)
    assert node.node.owned == 3
    assert len([c for c in names if cluster.owner(c)]) == 3
    go.set()
    await until(lambda: all(cluster.settled(s, c) for c, s in said.items()))
    await until(lambda: node.node.owned == 0)
    assert max(len(cluster.journal(c)) for c in names) < 15


@in_virtual_time
async def test_what_one_node_has_no_place_for_another_takes(cluster: Cluster):
    nodes = [await cluster.add(agent=Agent(on_turn=for_ever), capacity=4) for _ in range(3)]
    names = [f"c{n}" for n in range(12)]
    for name in names:
        await cluster.say(conversation=name)
    await until(lambda: all(cluster.owner(c) for c in names))
    assert [n.node.owned for n in nodes] == [4, 4, 4]


@in_virtual_time
async def test_more_than_a_batch_is_claimed_in_one_sweep(cluster: Cluster):
    names = [f"c{n:03}" for n in range(BATCH + 50)]
    for name in names:
        await cluster.say(conversation=name)
    node = await cluster.add(capacity=BATCH + 40)
    await until(lambda: sum(cluster.owner(c) is not None for c in names) == BATCH + 40, 5)
    sizes = [len(args[0]) for name, args in node.rig.calls if name == "claim_all"]
    assert sizes == [BATCH, 40]


@in_virtual_time
async def test_the_next_page_is_looked_up_while_one_is_claimed(cluster: Cluster):
    names = [f"c{n:03}" for n in range(2 * BATCH)]
    for name in names:
        await cluster.say(conversation=name)
    node = await cluster.add(capacity=2 * BATCH)
    answer = asyncio.Event()
    node.rig.always("claim_all", answered_after(answer))
    await until(lambda: len([args for name, args in node.rig.calls if name == "wanted" and args[2]]) == 1)
    await asyncio.sleep(0.5)
    assert node.rig.count("claim_all") == 1, "one batch is under way; others get their share of what is left"
    answer.set()
    await until(lambda: all(cluster.owner(c) for c in names))


@in_virtual_time
async def test_a_page_that_cannot_be_looked_up_loses_no_claim(cluster: Cluster):
    names = [f"c{n:03}" for n in range(BATCH + 50)]
    for name in names:
        await cluster.say(conversation=name)
    node = await cluster.add(capacity=2 * BATCH)
    answer = asyncio.Event()
    node.rig.once("claim_all", answered_after(answer))
    node.rig.once("wanted", lose_the_request, lambda *args: args[2] is not None)
    await until(lambda: node.rig.count("wanted") >= 4)  # it sweeps again
    answer.set()
    await until(lambda: all(cluster.owner(c) for c in names))
    sizes = sorted(len(args[0]) for name, args in node.rig.calls if name == "claim_all")
    assert sizes == [50, BATCH], "none of them was claimed twice"


@in_virtual_time
async def test_starts_under_way_take_their_places(cluster: Cluster):
    node = await cluster.add(capacity=2)
    under_way = asyncio.Event()
    node.rig.always("claim_all", answered_after(under_way))
    starts = [node.starting(f"c{n}") for n in range(2)]
    await until(lambda: cluster.owner("c0") and cluster.owner("c1"))
    await cluster.say(conversation="c2")
    await asyncio.sleep(2)
    assert cluster.owner("c2") is None
    under_way.set()
    assert [(await s).here for s in starts] == [True, True]
    assert node.node.owned == 2


# --- faults ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_c2_a_batch_of_claims_whose_answer_is_lost_is_repeated_unchanged(cluster: Cluster):
    node = await cluster.add()
    for fault in (lose_the_reply, lose_the_request, lose_the_reply):
        node.rig.once("claim_all", fault)
    said = await cluster.say()
    await until(lambda: cluster.settled(said))
    tokens = [args[0][0].token for name, args in node.rig.calls if name == "claim_all"]
    assert len(tokens) == 4
    assert len(set(tokens)) == 1
    assert cluster.record().epoch == 1


@pytest.mark.parametrize("operation", ["wanted", "nodes", "list_papers", "bury"])
@in_virtual_time
async def test_a_sweep_that_fails_is_made_again(cluster: Cluster, operation: str):
    async def fail(proceed: Any) -> Any:
        raise RuntimeError("a bug")

    node = await cluster.add()
    await cluster.store.register(IncarnationId("silent"), ABOUT, 0.5)
    node.rig.deaf = True
    for fault in (fail, lose_the_request, fail):
        node.rig.once(operation, fault)
    await asyncio.sleep(0.6)
    said = await cluster.say()
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_hints_that_break_off_are_taken_up_again(cluster: Cluster):
    node = await cluster.add(sweep_s=10, ttl_s=60)
    broken = 0
    follow = type(node.node.store).follow

    def breaking(self: Any, topics: Any) -> Any:
        nonlocal broken
        broken += 1
        if broken < 3:
            raise RuntimeError("the connection fell")
        return follow(self, topics)

    type(node.node.store).follow = breaking  # type: ignore[method-assign]
    try:
        other = await cluster.add(sweep_s=10, ttl_s=60, capacity=0)
        await until(lambda: broken >= 3)
    finally:
        type(node.node.store).follow = follow  # type: ignore[method-assign]
    assert other.node.readiness() == []


@in_virtual_time
async def test_an_outage_is_told_in_lines_not_in_tracebacks(cluster: Cluster):
    node = await cluster.add(ttl_s=3)
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    logging.getLogger("tenure").addHandler(keep)
    try:
        node.rig.down = True
        await asyncio.sleep(2)
    finally:
        logging.getLogger("tenure").removeHandler(keep)
    node.rig.heal()
    assert records
    assert [r for r in records if r.exc_info] == []
    assert len(records) < 30


@in_virtual_time
async def test_a_conversation_whose_claim_is_refused_does_not_hold_up_the_others(cluster: Cluster):
    """One of a batch was deleted, one taken meanwhile: the rest is claimed (a result per item)."""
    node = await cluster.add()
    await cluster.store.register(IncarnationId("other"), ABOUT, 60.0)

    async def meanwhile(proceed: Any) -> Any:
        await cluster.claim_as("other", "c0")
        await cluster.store.delete("c1", cluster.record("c1").epoch, "test")
        return await proceed()

    node.rig.once("claim_all", meanwhile, lambda claims: len(claims) == 3)
    stop = asyncio.Event()
    node.rig.once("wanted", held_until(stop))
    await until(lambda: node.rig.count("wanted"))
    for n in range(3):
        await cluster.say(conversation=f"c{n}")
    stop.set()
    await until(lambda: cluster.owner("c2") == "n1")
    assert cluster.owner("c0") == "other"
    assert node.agent.opened[0][0] == "c2"


@in_virtual_time
async def test_what_nobody_wants_costs_nothing(cluster: Cluster):
    node = await cluster.add(idle_s=1)
    for n in range(20):
        await node.start(f"c{n}")
    await until(lambda: node.node.owned == 0)
    node.rig.calls.clear()
    await asyncio.sleep(10)
    assert {name for name, _ in node.rig.calls} <= {"wanted", "nodes", "list_papers"}
