"""Leaving: no new work, turns finish or are handed over at a step boundary, everything is released, then retired."""

import asyncio

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Provider,
    answered_after,
    call,
    held_until,
    in_virtual_time,
    lose_the_request,
    reply,
    until,
    writes,
)

from tenure.abc import Turn
from tenure.conversation import Status
from tenure.errors import NodeUnavailableError
from tenure.journal import Draft


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


@in_virtual_time
async def test_a_running_turn_finishes_within_the_deadline(cluster: Cluster):
    done = asyncio.Event()

    async def work(turn: Turn) -> None:
        await done.wait()
        await reply(turn)

    node = await cluster.add(agent=Agent(on_turn=work))
    said, behind = await cluster.say(via=node), await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    leaving = asyncio.ensure_future(node.leave(20))
    await asyncio.sleep(5)
    assert not leaving.done()
    done.set()
    await leaving
    assert cluster.settled(said)
    assert not cluster.settled(behind)
    assert cluster.kinds()[-3:] == ["turn_completed", "runtime_discarded", "released"]
    assert cluster.events("released")[0].body["reason"] == "drained"
    assert cluster.dead(node.node._incarnation.id)  # type: ignore[union-attr]
    assert cluster.record().wanted


@in_virtual_time
async def test_past_the_deadline_a_turn_is_handed_over_at_a_step_boundary(cluster: Cluster):
    """The call that was open finishes and its result is kept: it runs once, over both owners."""
    ran: list[str] = []

    async def slow(name: str) -> str:
        ran.append(name)
        await asyncio.sleep(2)
        return name.upper()

    async def work(turn: Turn) -> None:
        results = [await call(turn, name, work=slow(name)) for name in ("a", "b", "c")]
        await turn.journal([Draft("reply", {"results": results})])

    a = await cluster.add(agent=Agent(on_turn=work))
    b = await cluster.add(agent=Agent(on_turn=work), capacity=0)
    said = await cluster.say(via=a)
    await until(lambda: ran == ["a"])
    await a.leave(1)
    assert ran == ["a"]
    assert [k for k in cluster.kinds() if k.startswith("call_")] == ["call_started", "call_finished"]
    assert cluster.status() is Status.QUEUED
    c = await cluster.add(agent=Agent(on_turn=work))
    await until(lambda: cluster.settled(said))
    assert ran == ["a", "b", "c"]
    assert cluster.events("reply")[0].body == {"results": ["A", "B", "C"]}
    assert c.agent.turns[0].attempt == 2
    assert cluster.record().lost == 0
    assert cluster.events("call_interrupted") == []
    assert b.agent.turns == []


@in_virtual_time
async def test_a_call_that_does_not_end_is_handed_over_with_its_fate_unknown(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=lambda turn: call(turn, "a", work=for_ever())))
    said = await cluster.say(via=a)
    await until(lambda: cluster.events("call_started"))
    before = asyncio.get_running_loop().time()
    await a.leave(1)
    assert asyncio.get_running_loop().time() - before < 10
    assert cluster.owner() is None
    await cluster.add()
    await until(lambda: cluster.settled(said))
    assert len(cluster.events("call_interrupted")) == 1


@in_virtual_time
async def test_a_blocking_append_at_a_boundary_is_let_go_when_the_turn_is_handed_over(cluster: Cluster):
    """A loop in a thread waits at the boundary for an append: it must not wait for ever."""
    parked: list[asyncio.Future[object]] = []

    async def work(turn: Turn) -> None:
        async def in_a_thread() -> None:
            await asyncio.sleep(1)
            await turn.journal([Draft("next", {})])

        parked.append(asyncio.ensure_future(in_a_thread()))
        await call(turn, "a", work=asyncio.sleep(2))

    node = await cluster.add(agent=Agent(on_turn=work))
    await cluster.say(via=node)
    await until(lambda: cluster.events("call_started"))
    await node.leave(0)
    await until(lambda: parked and parked[0].done())
    assert cluster.events("next") == []


@pytest.mark.parametrize("state", ["live", "starting", "waiting", "stopped", "let go"])
@in_virtual_time
async def test_whatever_is_not_running_is_handed_over_at_once(cluster: Cluster, state: str):
    async def ask(turn: Turn) -> None:
        await turn.ask("ok?", None)

    node = await cluster.add(agent=Agent(on_turn=ask), provider=Provider(standing=cluster.standing))
    start = None
    match state:
        case "live":
            await node.start()
        case "starting":
            node.provider.at["provision"] = for_ever
            start = node.starting()
            await until(lambda: node.provider.did("provision"))
        case "waiting":
            await cluster.say(via=node)
            await until(lambda: cluster.status() is Status.WAITING)
        case "stopped":
            await node.start()
            await cluster.command("stop", via=node)
            await until(lambda: cluster.status() is Status.STOPPED)
        case _:
            await cluster.create()
    await node.leave(5)
    assert cluster.owner() is None
    assert node.live == []
    assert cluster.standing == {}
    assert cluster.record().failures == 0
    assert cluster.record().lost == 0
    assert cluster.events("start_failed") == []
    if start is not None:
        with pytest.raises(NodeUnavailableError, match="draining"):
            await start
    status = {"waiting": Status.WAITING, "stopped": Status.STOPPED}.get(state, Status.IDLE)
    assert cluster.status() is status
    assert node.node.drained.is_set()


@in_virtual_time
async def test_a_start_whose_runtime_is_just_being_named_is_handed_over(cluster: Cluster):
    """Cancelled in mid-append: the discarded name is the one that the batch under way brings."""
    node = await cluster.add()
    under_way = asyncio.Event()
    node.rig.once("append_all", held_until(under_way), writes("runtime_requested"))
    node.starting()
    await until(lambda: node.rig.count("append_all"))
    leaving = asyncio.ensure_future(node.leave(0))
    await asyncio.sleep(0.5)
    under_way.set()
    await leaving
    assert cluster.owner() is None
    assert cluster.kinds()[-3:] == ["runtime_requested", "runtime_discarded", "released"]


@in_virtual_time
async def test_a_release_that_is_under_way_is_left_to_itself(cluster: Cluster):
    node = await cluster.add(idle_s=1)
    await node.start()
    tenure = node.tenure()
    under_way = asyncio.Event()
    node.rig.once("release_all", answered_after(under_way))
    await until(lambda: cluster.owner() is None)
    leaving = asyncio.ensure_future(node.leave(0))
    await asyncio.sleep(0.5)
    under_way.set()
    await leaving
    assert tenure._loss is None
    assert len(node.provider.did("discard")) == 1
    assert await cluster.store.refusals(C) == []


@pytest.mark.parametrize("where", ["before", "after"])
@in_virtual_time
async def test_a_claim_that_is_under_way_when_the_drain_begins_is_given_back(cluster: Cluster, where: str):
    node = await cluster.add()
    under_way = asyncio.Event()
    node.rig.once("claim_all", (held_until if where == "before" else answered_after)(under_way))
    said = await cluster.say()  # the sweep claims it
    await until(lambda: node.rig.count("claim_all"))
    leaving = asyncio.ensure_future(node.leave(5))
    await asyncio.sleep(0.5)
    assert not leaving.done()
    under_way.set()
    await leaving
    assert cluster.owner() is None
    assert cluster.record().lost == 0
    assert node.agent.opened == []
    await cluster.add()
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_a_start_that_is_under_way_when_the_drain_begins_is_given_back(cluster: Cluster):
    node = await cluster.add()
    under_way = asyncio.Event()
    node.rig.once("claim_all", answered_after(under_way))
    start = node.starting()
    await until(lambda: cluster.owner() == "n1")
    leaving = asyncio.ensure_future(node.leave(5))
    await asyncio.sleep(0.5)
    under_way.set()
    await leaving
    with pytest.raises(NodeUnavailableError):
        await start
    assert cluster.owner() is None
    assert cluster.record().lost == 0


@pytest.mark.parametrize("kind", ["stop", "interrupt"])
@in_virtual_time
async def test_what_a_user_asks_while_the_node_leaves_stays(cluster: Cluster, kind: str):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    leaving = asyncio.ensure_future(node.leave(5))
    await asyncio.sleep(1)
    seq = await cluster.command(kind, via=node)
    await leaving
    await cluster.add()
    await until(lambda: cluster.settled(seq))
    assert cluster.settled(said)
    assert cluster.kinds().count("turn_interrupted") == 1
    assert cluster.record().stopped is (kind == "stop")


@in_virtual_time
async def test_a_message_is_accepted_while_the_node_leaves_and_answered_elsewhere(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    leaving = asyncio.ensure_future(a.leave(3))
    await asyncio.sleep(1)
    late = await cluster.say(via=a)
    await leaving
    await cluster.add()
    await until(lambda: cluster.settled(late))


@in_virtual_time
async def test_a_draining_node_claims_nothing_and_says_where_else(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(conversation="c9", via=a)
    await until(lambda: a.agent.turns)
    b = await cluster.add(capacity=0)
    c = await cluster.add()
    leaving = asyncio.ensure_future(a.leave(5))
    await asyncio.sleep(0.1)
    assert a.node.draining
    assert "draining" in a.node.readiness()
    with pytest.raises(NodeUnavailableError, match="draining") as caught:
        await a.start("c2")
    assert caught.value.elsewhere == ("test://n3",)  # n2 has no room
    assert cluster.disk.conversations.get("c2") is None
    before = a.rig.count("claim_all")
    said = await cluster.say(conversation="c3", via=a)
    await until(lambda: cluster.settled(said, "c3"))
    assert a.rig.count("claim_all") == before
    assert c.live == ["c3"] or cluster.owner("c3") == "n3"
    await leaving
    assert [n.load.draining for n in await cluster.store.nodes() if n.about.node == "n1" and not n.dead] == []
    assert b.agent.opened == []


@in_virtual_time
async def test_other_nodes_are_told_that_a_node_leaves(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    leaving = asyncio.ensure_future(a.leave(3))
    await asyncio.sleep(0.5)
    assert [n.load.draining for n in await cluster.store.nodes()] == [True]
    await leaving


@in_virtual_time
async def test_a_second_drain_joins_the_first_and_a_cancelled_one_goes_on(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    assert node.process is not None
    first = node.process.spawn(node.node.drain(3))
    await asyncio.sleep(0.5)
    second = node.process.spawn(node.node.drain(1000))
    await asyncio.sleep(0.5)
    first.cancel()
    before = asyncio.get_running_loop().time()
    await second
    assert asyncio.get_running_loop().time() - before < 15
    assert cluster.owner() is None
    await node.leave()  # once more, afterwards: nothing
    with pytest.raises(NodeUnavailableError):
        await node.start("c2")


@in_virtual_time
async def test_the_order_of_an_exit_is_loops_releases_retirement(cluster: Cluster):
    """Rule 16: who is buried before it has released leaves a takeover, and a lost owner, behind."""
    seen: list[str] = []

    async def closing() -> None:
        seen.append("closed")

    node = await cluster.add(agent=Agent(on_close=closing))
    await node.start()

    async def note_release(proceed):
        seen.append("released")
        return await proceed()

    async def note_bury(proceed):
        seen.append("retired")
        return await proceed()

    node.rig.always("release_all", note_release)
    node.beats.always("bury", note_bury)
    await node.leave()
    assert seen == ["closed", "released", "retired"]


@in_virtual_time
async def test_a_drain_while_the_store_is_down_ends_all_the_same(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever), ttl_s=3)
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    node.rig.down = node.beats.down = True
    before = asyncio.get_running_loop().time()
    await node.leave(1)
    assert asyncio.get_running_loop().time() - before < 20
    assert node.live == []
    await cluster.add()
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_a_drain_while_the_node_registers_anew_leaves_no_incarnation_behind(cluster: Cluster):
    node = await cluster.add()
    under_way = asyncio.Event()
    node.beats.down = True
    node.beats.always("register", held_until(under_way))
    await until(lambda: node.node._incarnation.given_up)  # type: ignore[union-attr]
    node.beats.down = False
    await until(lambda: node.beats.count("register") >= 1)
    leaving = asyncio.ensure_future(node.leave(5))
    await asyncio.sleep(0.1)
    under_way.set()
    await leaving
    await asyncio.sleep(3)
    assert [n for n in await cluster.store.nodes() if not n.dead and n.expires_in_s > 0] == []
    said = await cluster.say()
    await asyncio.sleep(3)
    assert not cluster.settled(said)


@in_virtual_time
async def test_an_agent_that_ignores_its_end_does_not_hold_up_the_exit(cluster: Cluster):
    async def stubborn(turn: Turn) -> None:
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue

    node = await cluster.add(agent=Agent(on_turn=stubborn))
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    before = asyncio.get_running_loop().time()
    await node.leave(1)
    assert asyncio.get_running_loop().time() - before < 20
    assert cluster.dead(node.node._incarnation.id)  # type: ignore[union-attr]
    assert node.agent.turns[0].lost
    await cluster.add()
    await until(lambda: cluster.settled(said))


# --- asked from elsewhere -------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_node_drains_when_another_asks_it_to(cluster: Cluster):
    a, b = await cluster.add("a"), await cluster.add("b")
    await a.start()
    assert await b.ask(b.node.request_drain("a")) == 1
    await until(lambda: a.node.drained.is_set())
    assert cluster.owner() is None
    assert await b.ask(b.node.request_drain("nobody")) == 0
    assert not b.node.draining


@in_virtual_time
async def test_asking_twice_drains_once_and_asks_every_incarnation_of_the_name(cluster: Cluster):
    twins = [await cluster.add("twin"), await cluster.add("twin")]
    asker = await cluster.add("asker")
    for twin in twins:
        twin.rig.always("list_papers", lose_the_request)
    assert await asker.ask(asker.node.request_drain("twin")) == 2
    assert await asker.ask(asker.node.request_drain("twin")) == 2
    for twin in twins:
        twin.rig.heal()
    await until(lambda: all(t.node.drained.is_set() for t in twins))
    assert await cluster.store.list_papers("request") == []
    assert await asker.ask(asker.node.request_drain("twin")) == 0


@in_virtual_time
async def test_a_request_that_this_version_does_not_know_harms_nobody(cluster: Cluster):
    node = await cluster.add()
    await cluster.store.put_paper("request", f"{node.incarnation}/x", {"what": "sing"}, 0)
    await until(lambda: not cluster.disk.papers.get(("request", f"{node.incarnation}/x")))
    assert (await node.start()).here


@in_virtual_time
async def test_a_drained_conversation_goes_on_elsewhere_without_waiting_for_a_ttl(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=for_ever), ttl_s=30)
    b = await cluster.add(agent=Agent(on_turn=for_ever), ttl_s=30)
    said = await cluster.say(via=a)
    await until(lambda: a.agent.turns or b.agent.turns)
    first, second = (a, b) if a.agent.turns else (b, a)
    second.agent.on_turn = reply
    await first.leave(0)
    await until(lambda: cluster.settled(said), 2)
