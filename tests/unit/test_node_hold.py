"""``node.hold``: a conversation for somebody's own loop, and the fence for somebody's own tables."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from node_support import Agent, C, Cluster, Member, Provider, in_virtual_time

from tenure.abc import FenceQuery
from tenure.config import Config
from tenure.conversation import Status
from tenure.errors import (
    CommandRefusedError,
    ConversationOwnedElsewhereError,
    InvalidInputError,
    NodeUnavailableError,
    OwnershipLostError,
)
from tenure.node import Node
from tenure.stores import open_store


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
    await asyncio.sleep(3600)
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
    from tenure.lease import Epoch, IncarnationId, Lease, Token

    query = FenceQuery(Lease("c", IncarnationId("i"), Epoch(3), Token("t")), "SELECT 1", ())
    query.insist((1,))
    with pytest.raises(OwnershipLostError, match="epoch 3"):
        query.insist(None)


# --- the fence, in the same SQLite file -----------------------------------------------------------------------------


@asynccontextmanager
async def node_on(file: Path, name: str) -> AsyncIterator[Node]:
    store = open_store(f"sqlite:///{file}")
    config = Config(node=name, address=f"http://{name}", ttl_s=10, sweep_s=0.1, drain_s=1, witness=False)
    async with Node(store, {"echo": Agent()}, provider=Provider(), config=config) as node:
        yield node


def write(file: Path, fence: FenceQuery, text: str, begin: str = "BEGIN IMMEDIATE") -> None:
    """What a program with its own table does."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as mine:
        mine.execute(begin)
        try:
            fence.insist(mine.execute(fence.sql, fence.parameters).fetchone())
            mine.execute("INSERT INTO mine VALUES (?)", (text,))
        except BaseException:
            mine.execute("ROLLBACK")
            raise
        mine.execute("COMMIT")


def written(file: Path) -> list[str]:
    with closing(sqlite3.connect(file, timeout=10)) as mine:
        return [text for (text,) in mine.execute("SELECT text FROM mine ORDER BY rowid")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "both.db"


@pytest.mark.blocking_ok  # the program's own database calls are its own business
async def test_a_zombies_transaction_writes_nothing(file: Path):
    async with node_on(file, "n1") as one, node_on(file, "n2") as two:
        with closing(sqlite3.connect(file, timeout=10)) as mine:
            mine.execute("CREATE TABLE mine (text TEXT)")
            mine.commit()
        with pytest.raises(OwnershipLostError):
            async with one.hold("c", agent="mine") as lease:
                fence = lease.fence()
                write(file, fence, "as the owner")
                [record] = await two.store.records(["c"])
                assert record is not None
                with pytest.raises(NodeUnavailableError):
                    await two.take_over("c", record.epoch)  # it has no such agent; the claim has moved all the same
                for begin in ("BEGIN IMMEDIATE", "BEGIN"):
                    with pytest.raises(OwnershipLostError, match="records another lease"):
                        write(file, fence, "as a zombie", begin)
                await asyncio.Event().wait()
        async with two.hold("c") as newer:
            assert newer.epoch > lease.epoch
            last = newer.fence()
            write(file, last, "as the next owner")
        with pytest.raises(OwnershipLostError):
            write(file, last, "after it")
    assert written(file) == ["as the owner", "as the next owner"]


@pytest.mark.blocking_ok
async def test_a_takeover_waits_for_the_transaction_that_was_fenced(file: Path):
    """Whoever passed the fence commits before the next claim, however slow it is: nothing falls in between."""
    async with node_on(file, "n1") as one, node_on(file, "n2") as two:
        with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as mine:
            mine.execute("CREATE TABLE mine (text TEXT)")
            with pytest.raises(OwnershipLostError):
                async with one.hold("c", agent="mine") as lease:
                    fence = lease.fence()
                    mine.execute("BEGIN IMMEDIATE")
                    fence.insist(mine.execute(fence.sql, fence.parameters).fetchone())
                    taking = asyncio.ensure_future(two.take_over("c", lease.epoch))
                    done, _ = await asyncio.wait([taking], timeout=0.5)
                    assert not done, "the write lock keeps the claim out"
                    mine.execute("INSERT INTO mine VALUES ('in time')")
                    mine.execute("COMMIT")
                    with pytest.raises(NodeUnavailableError):
                        await taking
                    await asyncio.Event().wait()
    assert written(file) == ["in time"]


@pytest.mark.blocking_ok
async def test_under_takeovers_each_line_is_of_the_owner_of_its_epoch(file: Path):
    """Real threads write as fast as they can while the ownership moves: epochs in the table never fall."""
    async with node_on(file, "n1") as one, node_on(file, "n2") as two:
        with closing(sqlite3.connect(file, timeout=10)) as mine:
            mine.execute("CREATE TABLE mine (text TEXT)")
            mine.commit()
        zombies = []

        def hammer(fence: FenceQuery) -> int:
            wrote = 0
            while True:
                try:
                    write(file, fence, str(fence.lease.epoch))
                except OwnershipLostError:
                    return wrote
                wrote += 1

        for turn in range(6):
            node = (one, two)[turn % 2]
            async with node.hold("c", agent="mine") as lease:
                zombies.append(asyncio.ensure_future(asyncio.to_thread(hammer, lease.fence())))
                while not written(file) or written(file)[-1] != str(lease.epoch):
                    await asyncio.sleep(0.01)
        counts = await asyncio.gather(*zombies)
    epochs = [int(text) for text in written(file)]
    assert epochs == sorted(epochs) and len(set(epochs)) == 6 and sum(counts) == len(epochs)
