"""``node.hold``: a conversation for somebody's own loop, and the fence for somebody's own tables."""

import asyncio
from typing import Any

import pytest
from node_support import Agent, C, Cluster, Member, in_virtual_time, until, writes

from tenure.abc import About, Creation, Death, FenceQuery
from tenure.config import Config
from tenure.conversation import Status, read_events
from tenure.errors import (
    CommandRefusedError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    OwnershipLostError,
    ProvisioningError,
)
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.node import Copy


class Body:
    """What goes on inside of a hold, in a node's process: until it is told to end, or is cut."""

    def __init__(self, one: Member, *, agent: str = "mine", stubborn_s: float = 0, **how: Any) -> None:
        self.inside, self.end = asyncio.Event(), asyncio.Event()
        self.lease: Any = None
        self.cancelled = False
        self._stubborn_s = stubborn_s
        assert one.process is not None
        self.task = one.process.spawn(self._run(one.node.hold(C, agent=agent, **how)))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _run(self, hold: Any) -> None:
        async with hold as self.lease:
            self.inside.set()
            try:
                await self.end.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                await asyncio.sleep(self._stubborn_s)
                raise

    async def held(self) -> "Body":
        inside = asyncio.ensure_future(self.inside.wait())
        await asyncio.wait([inside, self.task], return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        return self


@in_virtual_time
async def test_it_claims_holds_for_longer_than_any_ttl_and_releases(cluster: Cluster):
    one, _ = await cluster.add(), await cluster.add()
    body = await Body(one, settings={"model": "m"}).held()
    await asyncio.sleep(300)
    assert (cluster.owner(), cluster.status(), body.lease.epoch, body.lease.lost) == ("n1", Status.IDLE, 1, False)
    body.end.set()
    await body.task
    assert cluster.kinds() == ["created", "claimed", "loop_started", "released"]
    assert (cluster.owner(), cluster.record().agent, cluster.record().settings) == (None, "mine", {"model": "m"})
    with pytest.raises(OwnershipLostError, match="it was released"):
        body.lease.insist()
    cluster.fold()


@in_virtual_time
async def test_nobody_else_gets_it_meanwhile(cluster: Cluster):
    one, two = await cluster.add(), await cluster.add()
    body = await Body(one).held()
    with pytest.raises(ConversationOwnedElsewhereError) as elsewhere:
        await Body(two).held()
    assert elsewhere.value.owner.node == "n1"
    with pytest.raises(ConversationOwnedElsewhereError):
        await two.start()
    for second in (Body(one).held(), one.start()):
        with pytest.raises(CommandRefusedError, match="held on this node") as refused:
            await second
        assert refused.value.reason == "held-here"
    waits = await cluster.say(via=two)
    await asyncio.sleep(60)
    assert (body.lease.lost, cluster.owner(), cluster.settled(waits)) == (False, "n1", False)
    assert one.agent.turns == two.agent.turns == [], "no loop of a node takes its messages"


@in_virtual_time
async def test_an_unfinished_copy_is_not_held(cluster: Cluster):
    one, two = await cluster.add(), await cluster.add()
    await cluster.create("original")
    await cluster.say("hello", "original")
    await until(lambda: cluster.record("original").unsettled == 0)
    shapes = [e.as_json() for e in cluster.journal("original")]
    recording = read_events(shapes, {}, event_bytes=1 << 20)
    reached = asyncio.Event()

    async def die_here(proceed: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    one.rig.once("append_all", die_here, writes("rehydrated"))
    under_way = asyncio.ensure_future(one.ask(one.node.rehydrate(Copy(C, recording, Creation("echo")))))
    under_way.add_done_callback(lambda task: task.cancelled() or task.exception())
    await reached.wait()
    one.kill()
    await until(lambda: cluster.record().owner is None, 60)
    with pytest.raises(ProvisioningError, match="not whole") as refused:
        await Body(two).held()
    assert refused.value.step == "rehydrate"
    assert "loop_started" not in cluster.kinds() and cluster.owner() is None
    done = await two.ask(two.node.rehydrate(Copy(C, recording, Creation("echo"))))
    assert done.record.conversation == C
    await Body(two).held()


@in_virtual_time
async def test_what_too_many_owners_were_lost_over_is_not_held_until_it_is_asked_for_again(cluster: Cluster):
    await cluster.say()
    for epoch in range(Config().lost_limit + 2):
        about = About(f"x{epoch}", "test://x", 0, (), cluster.clock.now())
        await cluster.store.register(IncarnationId(f"x{epoch}"), about, 60)
        await cluster.claim_as(f"x{epoch}", forced=True, epoch=epoch)
        await cluster.store.bury(IncarnationId(f"x{epoch}"), Death.RETIRED)
    one = await cluster.add(agents={"other": Agent()})  # no sweep takes it
    with pytest.raises(ProvisioningError, match="owners were lost") as refused:
        await Body(one).held()
    assert refused.value.permanent and cluster.owner() is None and cluster.record().failed
    body = await Body(one).held()
    assert cluster.owner() == "n1" and not cluster.record().failed
    body.end.set()
    await body.task
    cluster.fold()


@in_virtual_time
async def test_what_runs_here_is_not_held(cluster: Cluster):
    one = await cluster.add()
    await one.start()
    with pytest.raises(CommandRefusedError, match="held on this node"):
        await Body(one).held()
    assert one.live == [C]


@in_virtual_time
async def test_many_at_once_one_holds(cluster: Cluster):
    members = [await cluster.add() for _ in range(3)]
    bodies = [Body(member) for member in members for _ in range(3)]
    await asyncio.sleep(5)
    inside = [body for body in bodies if body.inside.is_set()]
    refused = [body.task.exception() for body in bodies if body.task.done()]
    assert len(inside) == 1 and len(refused) == 8
    assert {type(error) for error in refused} == {ConversationOwnedElsewhereError, CommandRefusedError}


@in_virtual_time
async def test_a_body_that_fails_releases_as_well(cluster: Cluster):
    one = await cluster.add()

    async def fail() -> None:
        async with one.node.hold(C, agent="mine"):
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await one.ask(fail())
    assert cluster.kinds()[-1] == "released"


@in_virtual_time
async def test_a_caller_that_is_cancelled_leaves_nothing_held(cluster: Cluster):
    one = await cluster.add()
    for wait_s in (0.0, 0.001, 0.002, 0.004, 1.0):
        body = Body(one)
        await asyncio.sleep(wait_s)
        body.task.cancel()
        await asyncio.wait([body.task])
        assert body.task.cancelled(), "a cancellation from outside stays one"
        await asyncio.sleep(5)
        assert cluster.owner() is None and one.tenure() is None


@in_virtual_time
async def test_a_forced_takeover_cuts_the_body(cluster: Cluster):
    one, two = await cluster.add(agents={"mine": Agent()}), await cluster.add(agents={"mine": Agent()})
    body = await Body(one).held()
    await two.ask(two.node.take_over(C, body.lease.epoch))
    with pytest.raises(OwnershipLostError, match="records another lease"):
        await body.task
    assert body.cancelled and body.lease.lost and cluster.owner() == "n2"


@in_virtual_time
async def test_a_node_that_loses_its_lease_cuts_the_body_and_waits_for_its_end(cluster: Cluster):
    one = await cluster.add()
    body = await Body(one, stubborn_s=30).held()
    before = one.incarnation
    one.rig.down = one.beats.down = True
    await asyncio.sleep(5)
    one.rig.heal()
    one.beats.heal()
    await asyncio.sleep(5)
    assert body.cancelled and not body.task.done() and body.lease.lost
    assert one.node._incarnation.id == before, "no node registers anew while an old loop runs"
    await asyncio.sleep(40)
    with pytest.raises(OwnershipLostError, match="no renewal"):
        body.task.result()
    assert one.incarnation != before


@in_virtual_time
async def test_a_frozen_holder_finds_itself_fenced(cluster: Cluster):
    one, two = await cluster.add(), await cluster.add()
    body = await Body(one).held()
    assert one.process is not None
    one.process.pause()
    await asyncio.sleep(5)
    taken = await Body(two).held()
    assert taken.lease.epoch == body.lease.epoch + 1
    one.process.resume()
    await asyncio.sleep(5)
    with pytest.raises(OwnershipLostError):
        await body.task


@in_virtual_time
async def test_a_drain_says_so_and_takes_it_away_in_order(cluster: Cluster):
    one = await cluster.add()
    polite = await Body(one).held()
    leaving = asyncio.ensure_future(one.leave(10))
    await asyncio.sleep(1)
    assert polite.lease.leaving.is_set() and not polite.cancelled
    polite.end.set()
    await asyncio.gather(leaving, polite.task)
    assert cluster.events("released")[0].body["reason"] == "idle"

    two = await cluster.add()
    slow = await Body(two).held()
    await two.leave(10)
    with pytest.raises(OwnershipLostError, match="the node is leaving"):
        await slow.task
    assert cluster.events("released")[1].body["reason"] == "drained" and cluster.owner() is None
    with pytest.raises(NodeUnavailableError):
        await Body(two).held()


@in_virtual_time
async def test_a_stop_ends_it(cluster: Cluster):
    one = await cluster.add()
    body = await Body(one).held()
    stop = await cluster.command("stop", via=one)
    with pytest.raises(OwnershipLostError, match="it was stopped"):
        await body.task
    assert cluster.settled(stop) and cluster.status() is Status.STOPPED
    with pytest.raises(CommandRefusedError, match="stopped") as refused:
        await Body(one).held()
    assert refused.value.reason == "conversation-stopped" and cluster.owner() is None


@in_virtual_time
async def test_a_store_without_tables_has_no_fence_to_lend(cluster: Cluster):
    body = await Body(await cluster.add()).held()
    with pytest.raises(InvalidInputError, match="no tables"):
        body.lease.fence()


def test_a_fence_without_a_row_is_a_loss():
    query = FenceQuery(Lease("c", IncarnationId("i"), Epoch(3), Token("t")), "SELECT 1", ())
    query.insist((1,))
    with pytest.raises(OwnershipLostError, match="epoch 3"):
        query.insist(None)


@pytest.mark.parametrize("sql", ["id = ? AND owner = ?", "id = %s AND owner = %s"])
def test_a_fence_is_for_every_driver(sql: str):
    query = FenceQuery(Lease("c", IncarnationId("i"), Epoch(3), Token("t")), sql, ("c", "i"))
    assert query.numbered == "id = $1 AND owner = $2"
