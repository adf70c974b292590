"""One door to the journal: batches in order, unknown outcomes repeated unchanged, and after a loss nothing at all."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Member,
    call,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    reply,
    until,
    writes,
)

from tenure.abc import Append, Turn
from tenure.conversation import Fold, Status, fold
from tenure.errors import InvalidInputError, JournalError, OwnershipLostError
from tenure.journal import CallFinished, Draft, draft
from tenure.lease import Epoch, TenureState


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


def sent(node: Member, operation: str = "append_all") -> list[Append]:
    return [args[0][0] for name, args in node.rig.calls if name == operation]


# --- the door -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_c4_an_unknown_outcome_is_repeated_unchanged_until_it_is_answered(cluster: Cluster):
    node = await cluster.add()
    for fault in (lose_the_request, lose_the_reply, lose_the_reply):
        node.rig.once("append_all", fault, writes("reply"))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    replies = [a for a in sent(node) if any(d.kind == "reply" for d in a.drafts)]
    assert len(replies) == 4
    assert len({(a.number, a.digest(), a.seen) for a in replies}) == 1
    assert cluster.kinds().count("reply") == 1
    assert sorted({a.number for a in sent(node)}) == list(range(1, max(a.number for a in sent(node)) + 1))


@in_virtual_time
async def test_one_batch_is_under_way_at_a_time(cluster: Cluster):
    together = 0
    most = 0

    async def count(proceed: Any) -> Any:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.05)
        answer = await proceed()
        together -= 1
        return answer

    async def pour(turn: Turn) -> None:
        await asyncio.gather(*(turn.journal([Draft("drop", {"n": n})]) for n in range(10)))

    node = await cluster.add(agent=Agent(on_turn=pour))
    node.rig.always("append_all", count)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert most == 1
    assert [e.body["n"] for e in cluster.events("drop")] == list(range(10))


@in_virtual_time
async def test_an_append_is_not_undone_by_the_cancellation_of_its_caller(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    tenure = node.tenure()
    assert node.process is not None
    under_way = asyncio.Event()
    node.rig.once("append_all", held_until(under_way))
    caller = node.process.spawn(tenure.append([Draft("note", {})]))
    await asyncio.sleep(0.1)
    caller.cancel()
    under_way.set()
    await until(lambda: cluster.events("note"))
    said = await cluster.say(via=node)  # and the next number is the next one
    await until(lambda: cluster.settled(said))
    assert node.agent.opened == [(C, 1)]


@in_virtual_time
async def test_a_batch_that_breaks_the_rules_is_never_sent(cluster: Cluster):
    errors: list[str] = []

    async def muddle(turn: Turn) -> None:
        try:
            await turn.journal([draft(CallFinished("never-started"))])
        except JournalError as error:
            errors.append(str(error))

    node = await cluster.add(agent=Agent(on_turn=muddle))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert len(errors) == 1
    assert "one outcome per call" in errors[0]
    assert not any(d.kind == "call_finished" for a in sent(node) for d in a.drafts)
    assert cluster.kinds()[-1] == "turn_completed"


@in_virtual_time
async def test_an_event_that_is_too_large_names_the_remedy_and_costs_nothing(cluster: Cluster):
    errors: list[str] = []

    async def pour(turn: Turn) -> None:
        try:
            await turn.journal([Draft("big", {"text": "x" * (2 << 20)})])
        except InvalidInputError as error:
            errors.append(error.remedy)
        await reply(turn)

    node = await cluster.add(agent=Agent(on_turn=pour))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert "workspace" in errors[0]
    assert cluster.kinds()[-2:] == ["reply", "turn_completed"]


@in_virtual_time
async def test_what_clients_write_in_between_is_folded_and_heard(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=lambda turn: call(turn, "a")))
    node.rig.deaf = True

    async def with_a_message_first(proceed: Any) -> Any:
        await cluster.say("meanwhile")
        return await proceed()

    node.rig.once("append_all", with_a_message_first, writes("call_started"))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said) and len(cluster.events("turn_completed")) == 2)
    assert node.tenure().fold == cluster.fold()


# --- loss -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_forced_takeover_ends_the_loop_of_a_live_owner(cluster: Cluster):
    """Also of one that sits in a long call and writes nothing: it is told. What it writes later is refused."""
    cancelled: list[str] = []
    late: list[str] = []

    async def work(turn: Turn) -> None:
        try:
            await call(turn, "a", work=for_ever())
        except asyncio.CancelledError:
            cancelled.append(turn.conversation_id)
            try:
                await turn.journal([Draft("late", {})])
            except OwnershipLostError as error:
                late.append(error.why)
            raise

    a = await cluster.add(agent=Agent(on_turn=work))
    await a.start()
    b = await cluster.add()
    said = await cluster.say(via=a)
    await until(lambda: cluster.events("call_started"))
    tenure = a.tenure()
    info = await b.ask(b.node.take_over(C, Epoch(1)))
    assert info.here
    await until(lambda: cancelled and a.live == [], 2)
    assert len(late) == 1
    assert tenure.lost
    assert tenure.state is TenureState.LOST
    await until(lambda: cluster.settled(said))
    assert cluster.events("late") == []
    assert cluster.events("claimed")[1].body["forced"] is True
    assert a.tenure() is None
    assert a.node.owned == 0


@in_virtual_time
async def test_a_loop_and_its_successor_on_one_node_do_not_run_side_by_side(cluster: Cluster):
    """Taken over by force from itself, the node waits until the loop that it cancels has ended."""
    together: list[int] = []

    async def opening(place: Any) -> None:
        together.append(len(node.agent.alive))

    async def slow_to_end(turn: Turn) -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            raise

    node = await cluster.add(agent=Agent(on_turn=slow_to_end, on_open=opening))
    said = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    node.agent.on_turn = reply
    for epoch in (1, 2):
        await node.ask(node.node.take_over(C, Epoch(epoch)))
    await until(lambda: cluster.settled(said))
    assert together == [0, 0, 0]


@in_virtual_time
async def test_c1_the_late_write_of_a_loser_is_refused_by_the_store(cluster: Cluster):
    """The notice does not arrive: the fence alone ends the old loop, at its next write."""
    go = asyncio.Event()

    async def work(turn: Turn) -> None:
        await go.wait()
        await turn.journal([Draft("late", {})])

    a, b = await cluster.add(agent=Agent(on_turn=work)), await cluster.add()
    b.rig.always("put_paper", lose_the_request)
    await a.start()
    said = await cluster.say(via=a)
    await until(lambda: a.agent.turns)
    await b.ask(b.node.take_over(C, Epoch(1)))
    await until(lambda: cluster.settled(said))
    assert a.live == [C]
    go.set()
    await until(lambda: a.live == [])
    assert cluster.events("late") == []
    refused = await cluster.store.refusals(C)
    assert [(r.operation, r.lease.epoch) for r in refused] == [("append", 1)]
    assert b.live == [C]


@in_virtual_time
async def test_c1_nothing_is_accepted_after_the_release(cluster: Cluster):
    node = await cluster.add(idle_s=1)
    await node.start()
    tenure = node.tenure()
    await until(lambda: cluster.owner() is None)
    with pytest.raises(OwnershipLostError, match="released"):
        await node.ask(tenure.append([Draft("late", {})]))
    with pytest.raises(OwnershipLostError):
        await node.ask(tenure.release("idle"))
    assert not any(d.kind == "late" for a in sent(node) for d in a.drafts)


@in_virtual_time
async def test_a_deleted_conversation_ends_its_loop(cluster: Cluster):
    async def work(turn: Turn) -> None:
        while True:
            await turn.journal([Draft("tick", {})])
            await asyncio.sleep(0.2)

    node = await cluster.add(agent=Agent(on_turn=work))
    await cluster.say(via=node)
    await until(lambda: cluster.events("tick"))
    await cluster.store.delete(C, Epoch(1), "test")
    await until(lambda: node.live == [] and node.node.owned == 0)
    assert cluster.journal() == []


@in_virtual_time
async def test_c8_a_release_is_the_last_append_repeated_unchanged(cluster: Cluster):
    node = await cluster.add(idle_s=1)
    node.rig.once("release_all", lose_the_reply)
    node.rig.once("release_all", lose_the_request)
    await node.start()
    await until(lambda: cluster.owner() is None)
    await until(lambda: node.node.owned == 0)
    releases = sent(node, "release_all")
    assert len(releases) == 3
    assert len({r.digest() for r in releases}) == 1  # type: ignore[attr-defined]
    assert cluster.kinds().count("released") == 1
    assert await cluster.store.refusals(C) == []


def rewind(cluster: Cluster, before: str) -> None:
    """A fail-over to an older copy: the batch that begins with this event is lost, and what came after it."""
    found = cluster.disk.conversations[C]
    cut = next(i for i, e in enumerate(found.events) if e.kind == before)
    del found.events[cut:]
    was = cluster.fold()
    record = replace(
        found.row.record, head=cut, wanted=True, unsettled=len(was.pending), turn=was.turn_state, last_command=cut
    )
    found.row = replace(found.row, record=record, number=found.row.number - 1, digest=None, result=None)


@in_virtual_time
async def test_c8_an_owner_that_reads_a_rewound_journal_begins_anew(cluster: Cluster):
    """It has seen more than there is: whatever comes now would be missed, and its work is done again."""
    node = await cluster.add()
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    rewind(cluster, "turn_completed")
    await until(lambda: cluster.settled(said))
    assert cluster.record().epoch == 2
    after = await cluster.say(via=node)
    await until(lambda: cluster.settled(after))
    cluster.fold()


@in_virtual_time
async def test_c8_a_release_in_a_rewound_store_is_refused(cluster: Cluster):
    """Its owner, epoch and token still match: the number and what it had seen do not."""
    node = await cluster.add(idle_s=1)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))

    async def after_a_fail_over(proceed: Any) -> Any:
        rewind(cluster, "turn_completed")
        return await proceed()

    node.rig.once("release_all", after_a_fail_over)
    await until(lambda: [r.operation for r in cluster.disk.conversations[C].refusals] == ["release"])
    await until(lambda: cluster.settled(said))
    assert cluster.record().epoch == 2


# --- outages --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_outage_shorter_than_the_trust_window_costs_nothing(cluster: Cluster):
    node = await cluster.add(ttl_s=3)

    async def work(turn: Turn) -> None:
        for name in "abcdef":
            await call(turn, name, work=asyncio.sleep(0.3))

    node.agent.on_turn = work
    said = await cluster.say(via=node)
    await until(lambda: cluster.events("call_finished"))
    old = node.incarnation
    node.rig.down = node.beats.down = True
    await asyncio.sleep(1.0)
    node.rig.down = node.beats.down = False
    await until(lambda: cluster.settled(said))
    assert node.incarnation == old
    assert cluster.record().epoch == 1
    assert len(node.agent.turns) == 1
    assert cluster.kinds().count("call_started") == 6


@in_virtual_time
async def test_rule_11_who_wakes_from_a_pause_does_nothing_before_its_heartbeat_has_had_a_word(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    tenure = node.tenure()
    tenure.insist()
    cluster.clock.step_boot(3600)
    with pytest.raises(OwnershipLostError, match="no longer trusted"):
        tenure.insist()


@in_virtual_time
async def test_an_outage_longer_than_the_trust_window_costs_the_incarnation_and_no_work(cluster: Cluster):
    node = await cluster.add(ttl_s=3)

    async def work(turn: Turn) -> None:
        for name in "abcdef":
            await call(turn, name, idempotent=True, work=asyncio.sleep(0.3))

    async def again(turn: Turn) -> None:
        open_calls = [e.body["call"] for e in turn.past if e.kind == "call_started"]
        closed = [e.body["call"] for e in turn.past if e.kind == "call_finished"]
        for name in open_calls:
            if name not in closed:
                await turn.journal([draft(CallFinished(str(name)))])

    node.agent.on_turn = work
    said = await cluster.say(via=node)
    await until(lambda: cluster.events("call_finished") and cluster.answered(node))
    old = node.incarnation
    node.agent.on_turn = again
    node.rig.down = node.beats.down = True
    await until(lambda: node.live == [], 3)  # it stops by itself, within its window
    await asyncio.sleep(5)
    node.rig.down = node.beats.down = False
    await until(lambda: cluster.settled(said))
    assert node.incarnation != old
    assert cluster.dead(old)
    assert cluster.record().epoch == 2
    assert node.agent.turns[-1].attempt == 2


@in_virtual_time
async def test_a_store_that_is_slow_but_answers_costs_nothing(cluster: Cluster):
    node = await cluster.add(ttl_s=3)
    node.rig.slow = dict.fromkeys(["append_all", "read", "release_all", "claim_all"], 1.0)
    said = [await cluster.say(via=node) for _ in range(3)]
    await until(lambda: all(cluster.settled(s) for s in said), 60)
    assert cluster.record().epoch == 1


@pytest.mark.parametrize("executed", [False, True])
@in_virtual_time
async def test_an_error_that_nobody_foresaw_releases_the_conversation_and_it_is_tried_again(
    cluster: Cluster, executed: bool
):
    async def fail(proceed: Any) -> Any:
        if executed:
            await proceed()
        raise RuntimeError("a bug of the store's client")

    node = await cluster.add(backoff_s=0.5)
    node.rig.once("append_all", fail, writes("turn_completed"))
    first = await cluster.say(via=node)
    second = await cluster.say(via=node)
    await until(lambda: cluster.settled(first) and cluster.settled(second))
    assert cluster.record().epoch == 2
    assert len(cluster.events("turn_completed")) == 2
    assert len(cluster.events("start_failed")) == (0 if executed else 1)
    cluster.fold()


# --- snapshots ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_takeover_from_the_snapshot_equals_the_full_fold(cluster: Cluster):
    async def pour(turn: Turn) -> None:
        for n in range(150):
            await turn.journal([Draft("drop", {"n": n})], state={"poured": n})

    a = await cluster.add(agent=Agent(on_turn=pour))
    for _ in range(4):
        said = await cluster.say(via=a)
        await until(lambda said=said: cluster.settled(said))
    a.agent.on_turn = for_ever
    await cluster.say(via=a)
    await cluster.say(via=a)
    await until(lambda: cluster.record().turn.value == "open")
    snapshot = cluster.disk.conversations[C].snapshot
    assert snapshot is not None
    assert snapshot.fold is not None
    assert cluster.record().head - snapshot.seq <= 210
    assert snapshot.loop == {"poured": 149}
    at_snapshot = fold(Fold(), cluster.journal()[: snapshot.seq])
    assert Fold.from_json(snapshot.fold) == at_snapshot
    a.kill()
    b = await cluster.add(agent=Agent(on_turn=for_ever))
    await until(lambda: b.agent.turns)
    assert b.tenure().fold == cluster.fold()
    assert b.tenure().loop_state == {"poured": 149}
    first_read = next(args for name, args in b.rig.calls if name == "read")
    assert len(first_read) >= 2
    assert b.agent.turns[0].attempt == 2


@in_virtual_time
async def test_a_takeover_of_a_long_journal_without_a_snapshot_reads_all_of_its_pages(cluster: Cluster):
    """More than a page, with earlier owners in it: what an earlier page says of its owner is no loss of ours."""

    async def pour(turn: Turn) -> None:
        await turn.journal([Draft("drop", {"n": n}) for n in range(900)])

    a = await cluster.add(agent=Agent(on_turn=pour))
    for _ in range(3):
        said = await cluster.say(via=a)
        await until(lambda said=said: cluster.settled(said))
    a.kill()
    cluster.disk.conversations[C].snapshot = None
    b = await cluster.add()
    said = await cluster.say(via=b)
    await until(lambda: cluster.settled(said))
    assert cluster.record().epoch == 2
    await until(lambda: cluster.answered(b))
    assert b.tenure().fold == cluster.fold()


@in_virtual_time
async def test_a_turn_reads_the_history_before_it(cluster: Cluster):
    seen: list[list[str]] = []

    async def look(turn: Turn) -> None:
        seen.append([e.kind for e in await turn.history()])
        seen.append([e.kind for e in await turn.history(after=3)])

    node = await cluster.add(agent=Agent(on_turn=look))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert seen[0] == ["created", "message", "claimed", "runtime_requested", "runtime_ready", "loop_started"]
    assert seen[1] == seen[0][3:]


# --- threads --------------------------------------------------------------------------------------------------------


async def test_an_agent_in_a_thread_journals_through_the_same_door():
    def in_thread(turn: Turn) -> None:
        for n in range(3):
            turn.journal_blocking([Draft("step", {"n": n})], 10)

    async def work(turn: Turn) -> None:
        await asyncio.to_thread(in_thread, turn)

    async with Cluster() as cluster:
        node = await cluster.add(agent=Agent(on_turn=work), ttl_s=5, threaded=False)
        said = await cluster.say(via=node)
        await until(lambda: cluster.settled(said))
        assert [e.body["n"] for e in cluster.events("step")] == [0, 1, 2]
        assert cluster.status() is Status.IDLE


async def test_an_append_from_a_thread_that_is_not_answered_in_time_ends_the_tenure():
    raised: list[str] = []

    def in_thread(turn: Turn) -> None:
        try:
            turn.journal_blocking([Draft("step", {})], 0.1)
        except TimeoutError:
            raised.append("timeout")

    async def work(turn: Turn) -> None:
        await asyncio.to_thread(in_thread, turn)

    async with Cluster() as cluster:
        node = await cluster.add(agent=Agent(on_turn=work), ttl_s=5, threaded=False)
        never = asyncio.Event()
        node.rig.once("append_all", held_until(never), writes("step"))
        said = await cluster.say(via=node)
        await until(lambda: raised)
        node.agent.on_turn = reply
        never.set()
        await until(lambda: cluster.settled(said))
        assert cluster.record().epoch == 2
