"""What a store takes in one step: an agent is told by name, and what the core itself writes comes through all the same."""

import asyncio

from node_support import Agent, C, Cluster, call, in_virtual_time, until

from tenure.abc import Limits, Turn
from tenure.errors import InvalidInputError
from tenure.journal import Draft
from tenure.node.tenure import SNAPSHOT_AT_REST, SNAPSHOT_EVERY


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


@in_virtual_time
async def test_an_agent_hears_which_limit_it_has_met_and_goes_on(cluster: Cluster):
    told: list[str] = []

    async def pour(turn: Turn) -> None:
        for events, state in ((4, None), (1, {"large": "x" * 200})):
            try:
                await turn.journal([Draft("drop", {"n": n}) for n in range(events)], state)
            except InvalidInputError as error:
                told.append(f"{error.field} {error}")
        await turn.journal([Draft("kept", {"n": n}) for n in range(3)], {"small": "x"})

    node = await cluster.add(agent=Agent(on_turn=pour))
    node.node.store.limits = Limits(batch_events=3, snapshot_bytes=100)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert [words.split()[0] for words in told] == ["events", "state"]
    assert "limit of 3" in told[0] and "limit of 100" in told[1]
    assert (cluster.events("drop"), len(cluster.events("kept"))) == ([], 3)
    assert cluster.kinds()[-1] == "turn_completed"


@in_virtual_time
async def test_a_turn_with_more_open_calls_than_a_batch_takes_is_repaired_and_ends(cluster: Cluster):
    """Each was opened by an append of its own; their outcomes are the core's to write, at a takeover and at an interrupt."""

    async def many(turn: Turn) -> None:
        if turn.attempt == 1:
            await asyncio.gather(*(call(turn, f"c{n}", work=for_ever()) for n in range(12)))

    a = await cluster.add(agent=Agent(on_turn=many))
    said = await cluster.say(via=a)
    await until(lambda: len(cluster.events("call_started")) == 12 and cluster.answered(a))
    a.kill()
    b = await cluster.add(agent=Agent(on_turn=many))
    b.node.store.limits = Limits(batch_events=5)
    await until(lambda: cluster.settled(said))
    assert len(cluster.events("call_interrupted")) == 12
    again = await cluster.say(via=b)
    await until(lambda: len(cluster.events("call_started")) == 24)
    await cluster.command("interrupt", via=b)
    await until(lambda: cluster.settled(again))
    assert len(cluster.events("call_interrupted")) == 24
    most = max(len(args[0][0].drafts) for name, args in b.rig.calls if name == "append_all")
    assert most == 5
    cluster.fold()


@in_virtual_time
async def test_a_fold_that_is_larger_than_a_snapshot_may_be_is_read_from_the_journal(cluster: Cluster):
    """The commands that wait are part of it; the loop's own state is kept, and the conversation goes on."""

    async def pour(turn: Turn) -> None:
        for n in range(SNAPSHOT_EVERY + 50):
            await turn.journal([Draft("drop", {"n": n})], {"poured": n})

    a = await cluster.add(agent=Agent(on_turn=pour))
    a.node.store.limits = Limits(snapshot_bytes=2000)
    await cluster.say("x" * 2000, via=a)
    second = await cluster.say("y" * 2000, via=a)
    await until(lambda: cluster.settled(second))
    snapshot = cluster.disk.conversations[C].snapshot
    assert snapshot is not None and snapshot.fold is None
    a.kill()
    b = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=b)
    await until(lambda: b.agent.turns)
    assert b.tenure().fold == cluster.fold()
    assert b.tenure().loop_state == {"poured": SNAPSHOT_EVERY + 49}


@in_virtual_time
async def test_what_rests_leaves_a_snapshot_so_that_it_wakes_without_its_past(cluster: Cluster):
    """Whoever sends the next message waits for the reading; of a few events no snapshot is made."""

    async def pour(turn: Turn) -> None:
        for n in range(SNAPSHOT_AT_REST):
            await turn.journal([Draft("drop", {"n": n})])

    async def once(agent: Agent) -> int:
        """How far the next owner's first reading reaches back, when this one has let go."""
        node = await cluster.add(agent=agent)
        said = await cluster.say(via=node)
        await until(lambda: cluster.settled(said))
        await node.node.drain()
        snapshot = cluster.disk.conversations[C].snapshot
        return 0 if snapshot is None or snapshot.fold is None else snapshot.seq

    assert await once(Agent()) == 0
    before = len(cluster.events("released"))
    assert await once(Agent(on_turn=pour)) >= SNAPSHOT_AT_REST
    assert len(cluster.events("released")) == before + 1
    b = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=b)
    await until(lambda: b.agent.turns)
    assert b.tenure().fold == cluster.fold()
