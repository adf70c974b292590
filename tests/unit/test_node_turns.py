"""What a live loop does: commands in order, one turn at a time, each settled once, whatever the agent does."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from node_support import (
    Agent,
    C,
    Cluster,
    Member,
    answered_after,
    call,
    held_until,
    in_virtual_time,
    lose_the_reply,
    lose_the_request,
    of,
    reply,
    until,
    writes,
)

from tenure.abc import Hint, Submit, TooLarge, Topic, Turn
from tenure.conversation import Status, TurnState
from tenure.errors import InvalidInputError, OwnershipLostError
from tenure.journal import (
    CallFinished,
    CallRestarted,
    CallStarted,
    Command,
    Delivery,
    Draft,
    Event,
    Json,
    Policy,
    draft,
)
from tenure.lease import Epoch


async def for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


async def ask_first(turn: Turn) -> None:
    """An agent that asks before it replies, and finds the answer again when it is resumed."""
    answers = [e.body["answer"] for e in turn.past if e.kind == "turn_resumed" and e.body.get("ask") == "ok?"]
    answer = answers[-1] if answers else await turn.ask("ok?", {"about": "it"})
    await turn.journal([Draft("reply", {"answer": answer})])


# --- commands in order ----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_messages_are_taken_in_order_one_turn_each(cluster: Cluster):
    node = await cluster.add()
    said = [await cluster.say(str(n), via=node) for n in range(5)]
    await until(lambda: cluster.settled(said[-1]))
    assert of(cluster.events("turn_started"), "commands") == [[seq] for seq in said]
    assert of(cluster.events("turn_completed"), "commands") == [[seq] for seq in said]
    assert of(cluster.events("reply"), "to") == [[seq] for seq in said]
    assert cluster.record().unsettled == 0
    assert not cluster.record().wanted


@in_virtual_time
async def test_events_of_a_turn_carry_its_name(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=lambda turn: call(turn, "a")))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert {e.turn for e in cluster.journal() if e.kind in ("turn_started", "call_started", "turn_completed")} == {
        f"t{said}"
    }
    started, finished = cluster.events("call_started")[0], cluster.events("call_finished")[0]
    assert started.opens == finished.closes == (f"t{said}.a",)


@in_virtual_time
async def test_a_message_that_comes_while_a_turn_ends_is_not_lost(cluster: Cluster):
    """C7, M8: the append of turn_completed clears `wanted`, but not over a command that it had not seen."""
    node = await cluster.add()
    node.rig.deaf = True
    under_way = asyncio.Event()
    node.rig.once("append_all", held_until(under_way), writes("turn_completed"))
    first = await cluster.say(via=node)
    await until(lambda: cluster.events("reply"))
    await asyncio.sleep(0.01)
    second = await cluster.say()
    under_way.set()
    await until(lambda: cluster.settled(first) and cluster.settled(second))


@in_virtual_time
async def test_c7_message_to_a_live_idle_owner_with_the_hint_lost(cluster: Cluster):
    node = await cluster.add()
    await node.start()
    node.rig.deaf = True
    said = await cluster.say()
    await until(lambda: cluster.settled(said), 1.0)
    assert cluster.record().epoch == 1


@in_virtual_time
async def test_c9_a_stop_settles_what_it_settles_and_no_more(cluster: Cluster):
    """m1 runs, m2 waits, a stop comes: m1 is interrupted by it, m2 stays and is taken after the next start."""
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    first, second = await cluster.say(via=node), await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    stop = await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(stop) and cluster.owner() is None)
    assert cluster.settled(first)
    assert not cluster.settled(second)
    assert cluster.events("turn_interrupted")[0].body == {"commands": [first], "by": stop, "reason": "stopped"}
    assert cluster.status() is Status.STOPPED
    assert cluster.record().unsettled == 1
    node.agent.on_turn = reply
    await asyncio.sleep(5)
    assert cluster.owner() is None
    await cluster.command("start", via=node)
    await until(lambda: cluster.settled(second))


@in_virtual_time
async def test_a_stop_may_take_the_queue_with_it(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    said = [await cluster.say(via=node) for _ in range(3)]
    await until(lambda: node.agent.turns)
    await cluster.command("stop", via=node, queue=True)
    await until(lambda: all(cluster.settled(s) for s in said))
    refused = [e.body["command"] for e in cluster.events("command_settled") if e.body["outcome"] == "refused"]
    assert refused == said[1:]


@in_virtual_time
async def test_a_stop_that_comes_while_the_turn_is_being_started(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    under_way = asyncio.Event()
    node.rig.once("append_all", answered_after(under_way), writes("turn_started"))
    said = await cluster.say(via=node)
    await until(lambda: cluster.events("turn_started"))
    stop = await cluster.command("stop", via=node)
    under_way.set()
    await until(lambda: cluster.settled(stop) and cluster.settled(said))
    assert cluster.kinds().count("turn_interrupted") == 1
    await until(lambda: node.live == [])


@pytest.mark.parametrize("what", ["call_started", "call_finished"])
@pytest.mark.parametrize("by", ["stop", "interrupt", "message"])
@in_virtual_time
async def test_a_turn_is_ended_over_an_append_that_is_under_way(cluster: Cluster, what: str, by: str):
    """Cancelled in mid-append, the agent is gone and its batch is not: the end counts the call that it opens."""
    agent = Agent(on_turn=lambda turn: call(turn, "a"))
    node = await cluster.add(agent=agent)
    await cluster.create(policy=Policy.INTERRUPT)
    under_way = asyncio.Event()
    node.rig.once("append_all", held_until(under_way), writes(what))
    said = await cluster.say(via=node)
    await until(lambda: any(writes(what)(args[0]) for name, args in node.rig.calls if name == "append_all"))
    agent.on_turn = reply
    after = await cluster.command(by, via=node, text="now")
    await asyncio.sleep(0.2)
    under_way.set()
    await until(lambda: cluster.settled(said) and cluster.settled(after))
    assert cluster.events("start_failed") == []
    assert cluster.kinds().count("turn_interrupted") == (1 if what == "call_started" else 0)
    cluster.fold()


@in_virtual_time
async def test_a_start_after_a_stop_wins_over_it_in_record_and_journal(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    under_way = asyncio.Event()
    node.rig.once("read", held_until(under_way))
    stop = await cluster.command("stop", via=node)
    start = await cluster.command("start", via=node)
    under_way.set()
    await until(lambda: cluster.settled(stop) and cluster.settled(start))
    assert not cluster.fold().stopped
    assert not cluster.record().stopped
    node.agent.on_turn = reply
    after = await cluster.say(via=node)
    await until(lambda: cluster.settled(after))


# --- every command in every state -----------------------------------------------------------------------------------


async def bring(cluster: Cluster, state: str) -> Member:
    """A node, and the conversation in this state."""
    boot = asyncio.Event()
    agent = Agent(on_turn={"running": for_ever, "waiting": ask_first, "let go waiting": ask_first}.get(state, reply))
    node = await cluster.add(agent=agent, idle_s=0.5 if state in ("let go waiting", "idle") else 300)
    match state:
        case "new":
            await cluster.create()
        case "idle":
            await node.start()
            await until(lambda: cluster.owner() is None)
        case "live":
            await node.start()
        case "starting":

            async def wait(name: str) -> None:
                await boot.wait()

            node.provider.at["provision"] = wait
            node.starting()
            await until(lambda: node.provider.did("provision"))
            assert node.process is not None
            node.process.loop.call_later(0.3, boot.set)
        case "running":
            await cluster.say(via=node)
            await until(lambda: node.agent.turns)
        case "waiting":
            await cluster.say(via=node)
            await until(lambda: cluster.status() is Status.WAITING)
        case "let go waiting":
            await cluster.say(via=node)
            await until(lambda: cluster.status() is Status.WAITING and cluster.owner() is None)
        case "stopped":
            await node.start()
            await cluster.command("stop", via=node)
            await until(lambda: cluster.status() is Status.STOPPED and cluster.owner() is None)
    return node


STATES = ["new", "idle", "live", "starting", "running", "waiting", "let go waiting", "stopped"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["stop", "interrupt", "answer", "start", "pause"])
@in_virtual_time
async def test_every_command_is_settled_in_every_state(cluster: Cluster, kind: str, state: str):
    node = await bring(cluster, state)
    seq = await cluster.command(kind, via=node, answer="yes")
    await until(lambda: cluster.settled(seq))
    outcome = next((e.body["outcome"] for e in cluster.events("command_settled") if e.body["command"] == seq), None)
    waits = "waiting" in state
    match kind:
        case "answer":
            assert outcome == ("done" if waits else "refused")
        case "pause":
            assert outcome == "refused"  # this agent has no use for it, and a stopped one is not there
        case _:
            assert outcome == "done"
    if kind == "stop" or (state == "stopped" and kind != "start"):
        await until(lambda: cluster.status() is Status.STOPPED and cluster.owner() is None)
        assert node.live == []
    if kind in ("stop", "interrupt") and (waits or state == "running"):
        assert cluster.kinds().count("turn_interrupted") == 1
    if kind == "start":
        await until(lambda: node.live == [C])
        assert not cluster.record().stopped
    await asyncio.sleep(30)  # nothing spins, whatever came of it
    assert cluster.kinds().count("claimed") <= 6
    assert cluster.events("start_failed") == []
    cluster.fold()


@pytest.mark.parametrize("state", [s for s in STATES if s != "stopped"])
@in_virtual_time
async def test_a_message_is_answered_in_every_state(cluster: Cluster, state: str):
    node = await bring(cluster, state)
    node.agent.on_turn = reply
    seq = await cluster.say(via=node)
    if state == "running":
        await cluster.command("interrupt", via=node)
    if "waiting" in state:
        await asyncio.sleep(1)
        assert not cluster.settled(seq)
        await cluster.command("answer", via=node, answer="yes")
    await until(lambda: cluster.settled(seq))
    assert cluster.events("turn_failed") == []


@in_virtual_time
async def test_an_interrupt_ends_the_turn_that_was_open_when_it_came_and_no_other(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    first = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    interrupt = await cluster.command("interrupt", via=node)
    second = await cluster.say(via=node)
    await until(lambda: cluster.settled(interrupt) and len(node.agent.turns) == 2)
    await asyncio.sleep(5)
    assert cluster.settled(first)
    assert not cluster.settled(second)
    assert len(node.agent.turns) == 2


@in_virtual_time
async def test_an_interrupt_with_no_turn_open_settles_and_leaves_the_next_message_alone(cluster: Cluster):
    node = await cluster.add()
    await cluster.create()
    interrupt = await cluster.command("interrupt")
    said = await cluster.say()
    await until(lambda: cluster.settled(interrupt) and cluster.settled(said))
    assert cluster.kinds().count("turn_completed") == 1
    assert node.agent.turns


# --- waiting --------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_c10_a_waiting_turn_does_not_spin_the_cluster(cluster: Cluster):
    """A turn waits for a person, a message waits behind it: nobody claims, for days."""
    nodes = [await cluster.add(agent=Agent(on_turn=ask_first), idle_s=1, sweep_s=1) for _ in range(3)]
    first, second = await cluster.say(via=nodes[0]), await cluster.say(via=nodes[1])
    await until(lambda: cluster.status() is Status.WAITING and cluster.owner() is None)
    head = cluster.record().head
    await asyncio.sleep(120)
    assert cluster.record().head == head
    assert not cluster.record().wanted
    await cluster.command("answer", via=nodes[2], ask="ok?", answer="yes")
    await until(lambda: cluster.settled(first))
    assert of(cluster.events("reply"), "answer") == ["yes"]
    await until(lambda: cluster.status() is Status.WAITING)
    await cluster.command("answer", answer="no")
    await until(lambda: cluster.settled(second))


@in_virtual_time
async def test_c10_what_only_a_loop_can_settle_does_not_spin_a_stopped_conversation(cluster: Cluster):
    node = await bring(cluster, "stopped")
    pause = await cluster.command("pause", via=node)
    await until(lambda: cluster.settled(pause))
    await asyncio.sleep(60)
    assert cluster.kinds().count("claimed") == 2
    assert cluster.status() is Status.STOPPED


@in_virtual_time
async def test_a_stop_answers_what_the_loop_was_asked_and_has_not_answered(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_now=for_ever))  # type: ignore[arg-type]
    await node.start()
    pause = await cluster.command("pause", via=node)
    await until(lambda: node.agent.heard)
    stop = await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(pause) and cluster.settled(stop) and cluster.owner() is None)
    assert not cluster.record().wanted
    assert cluster.record().epoch == 1


@in_virtual_time
async def test_an_answer_reaches_the_loop_that_waits_for_it_here(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=ask_first))
    said = await cluster.say(via=node)
    await until(lambda: cluster.status() is Status.WAITING)
    wrong = await cluster.command("answer", via=node, ask="something else", answer="no")
    await until(lambda: cluster.settled(wrong))
    assert cluster.status() is Status.WAITING
    await cluster.command("answer", via=node, ask="ok?", answer={"yes": True})
    await until(lambda: cluster.settled(said))
    assert of(cluster.events("reply"), "answer") == [{"yes": True}]
    assert len(node.agent.turns) == 1
    assert cluster.events("turn_completed")[0].turn == f"t{said}"


@in_virtual_time
async def test_a_waiting_turn_goes_on_after_a_takeover(cluster: Cluster):
    a = await cluster.add(agent=Agent(on_turn=ask_first))
    said = await cluster.say(via=a)
    await until(lambda: cluster.status() is Status.WAITING)
    a.kill()
    b = await cluster.add(agent=Agent(on_turn=ask_first))
    await asyncio.sleep(3)
    assert cluster.kinds().count("claimed") == 1
    assert cluster.status() is Status.WAITING
    await cluster.command("answer", answer="yes")
    await until(lambda: cluster.settled(said))
    assert of(cluster.events("reply"), "answer") == ["yes"]
    assert b.agent.turns[0].attempt == 2
    assert cluster.record().lost == 0


@in_virtual_time
async def test_an_answer_as_large_as_a_command_may_be(cluster: Cluster):
    """Resuming repeats the answer in an event of its own, which must not be too large where the answer was not."""
    node = await cluster.add(agent=Agent(on_turn=ask_first))
    said = await cluster.say(via=node)
    await until(lambda: cluster.status() is Status.WAITING)
    asked = Command("answer", {"answer": "x" * (1 << 20)}, "too-large", Delivery.NOW)
    refused = await node.ask(node.node.submit(Submit(C, asked)))
    assert isinstance(refused, TooLarge)
    await cluster.command("answer", via=node, answer="x" * (refused.limit - len('{"answer":""}')))
    await until(lambda: cluster.settled(said))
    assert cluster.events("start_failed") == []


@in_virtual_time
async def test_a_turns_time_limit_does_not_run_while_it_waits_for_a_person(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=ask_first, turn_timeout_s=5))
    said = await cluster.say(via=node)
    await until(lambda: cluster.status() is Status.WAITING)
    await asyncio.sleep(60)
    await cluster.command("answer", via=node, answer="at last")
    await until(lambda: cluster.settled(said))
    assert of(cluster.events("reply"), "answer") == ["at last"]


# --- policies -------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_policy_interrupt_ends_the_turn_for_the_newcomer(cluster: Cluster):
    await cluster.create(policy=Policy.INTERRUPT)
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    first = await cluster.say("first", via=node)
    await until(lambda: node.agent.turns)
    node.agent.on_turn = reply
    second = await cluster.say("second", via=node)
    await until(lambda: cluster.settled(second))
    assert cluster.events("turn_interrupted")[0].body == {
        "commands": [first],
        "by": second,
        "reason": "overtaken by a message",
    }
    assert of(cluster.events("reply"), "to") == [[second]]


@in_virtual_time
async def test_policy_reject_refuses_during_a_turn_and_takes_afterwards(cluster: Cluster):
    await cluster.create(policy=Policy.REJECT)
    node = await cluster.add(agent=Agent(on_turn=for_ever))
    await cluster.say("first", via=node)
    await until(lambda: node.agent.turns)
    with pytest.raises(AttributeError):  # refused: no seq
        await cluster.say("second", via=node)
    node.agent.on_turn = reply
    await cluster.command("interrupt", via=node)
    await until(lambda: cluster.record().turn is TurnState.NONE)
    third = await cluster.say("third", via=node)
    await until(lambda: cluster.settled(third))
    assert "second" not in of(cluster.events("message"), "text")


@in_virtual_time
async def test_policy_steer_hands_the_message_to_the_running_turn(cluster: Cluster):
    heard = asyncio.Event()

    async def take(command: Event) -> Json:
        heard.set()
        return {"took": command.seq}

    async def work(turn: Turn) -> None:
        await heard.wait()

    await cluster.create(policy=Policy.STEER)
    node = await cluster.add(agent=Agent(on_turn=work, on_now=take))
    first = await cluster.say("first", via=node)
    await until(lambda: node.agent.turns)
    second = await cluster.say("second", via=node)
    await until(lambda: cluster.settled(first) and cluster.settled(second))
    assert len(node.agent.turns) == 1
    assert cluster.events("command_settled")[0].body == {
        "command": second,
        "outcome": "answered",
        "body": {"took": second},
    }


@in_virtual_time
async def test_a_loop_that_cannot_be_steered_takes_the_message_after_its_turn_and_passivates(cluster: Cluster):
    go = asyncio.Event()

    async def work(turn: Turn) -> None:
        await go.wait()

    await cluster.create(policy=Policy.STEER)
    node = await cluster.add(agent=Agent(on_turn=work), idle_s=2)
    await cluster.say("first", via=node)
    await until(lambda: node.agent.turns)
    second = await cluster.say("second", via=node)
    await until(lambda: node.agent.heard)
    go.set()
    await until(lambda: cluster.settled(second))
    assert len(node.agent.turns) == 2
    await until(lambda: cluster.owner() is None)


@in_virtual_time
async def test_a_steered_message_is_not_taken_twice_when_its_turn_ends_meanwhile(cluster: Cluster):
    """The loop is still taking it when the turn ends: it is settled once, by whoever has it."""
    turn_may_end, taken = asyncio.Event(), asyncio.Event()

    async def work(turn: Turn) -> None:
        await turn_may_end.wait()

    async def take(command: Event) -> Json:
        await taken.wait()
        return None

    await cluster.create(policy=Policy.STEER)
    node = await cluster.add(agent=Agent(on_turn=work, on_now=take))
    first = await cluster.say("first", via=node)
    await until(lambda: node.agent.turns)
    second = await cluster.say("second", via=node)
    await until(lambda: node.agent.heard)
    turn_may_end.set()
    await until(lambda: cluster.settled(first))
    await asyncio.sleep(0.5)
    taken.set()
    await until(lambda: cluster.settled(second))
    assert len(node.agent.turns) == 1
    assert cluster.events("start_failed") == []
    cluster.fold()


@in_virtual_time
async def test_a_message_that_steers_a_waiting_turn_does_not_spin(cluster: Cluster):
    await cluster.create(policy=Policy.STEER)
    nodes = [await cluster.add(agent=Agent(on_turn=ask_first), idle_s=1, ttl_s=30, sweep_s=5) for _ in range(2)]
    await cluster.say("first", via=nodes[0])
    await until(lambda: cluster.status() is Status.WAITING)
    second = await cluster.say("second", via=nodes[0])
    await asyncio.sleep(60)
    assert cluster.kinds().count("claimed") <= 2
    await cluster.command("answer", answer="yes")
    await until(lambda: cluster.record().turn is TurnState.WAITING and len(cluster.events("turn_started")) == 2)
    await cluster.command("answer", answer="yes")
    await until(lambda: cluster.settled(second))


# --- what agents do -------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), Unspeakable(), ValueError("\ud800"), MemoryError("x" * (3 << 20)), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
@in_virtual_time
async def test_an_agent_that_raises_fails_its_turn_and_takes_the_next_message(cluster: Cluster, error: BaseException):
    async def fail(turn: Turn) -> None:
        raise error

    node = await cluster.add(agent=Agent(on_turn=fail))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    failed = cluster.events("turn_failed")[0]
    assert failed.body["reason"] == "error"
    assert failed.body["error"]["type"] == type(error).__name__
    node.agent.on_turn = reply
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert node.agent.opened == [(C, 1)]
    assert cluster.record().failures == 0


@in_virtual_time
async def test_an_agent_that_takes_too_long_is_cut(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever, turn_timeout_s=7))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert cluster.events("turn_failed")[0].body["reason"] == "timeout"


@in_virtual_time
async def test_a_timeout_of_the_agents_own_is_an_error_like_any_other(cluster: Cluster):
    async def fail(turn: Turn) -> None:
        raise TimeoutError("the model does not answer")

    node = await cluster.add(agent=Agent(on_turn=fail))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert cluster.events("turn_failed")[0].body["reason"] == "error"


@in_virtual_time
async def test_an_agent_that_ignores_cancellation_is_shut_out_of_its_turn(cluster: Cluster):
    late: list[str] = []

    async def stubborn(turn: Turn) -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        try:
            await turn.journal([Draft("late", {})])
        except OwnershipLostError:
            late.append("refused")
        assert turn.lost

    node = await cluster.add(agent=Agent(on_turn=stubborn))
    first = await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    node.agent.on_turn = reply
    await cluster.command("interrupt", via=node)
    second = await cluster.say(via=node)
    await until(lambda: cluster.settled(first) and cluster.settled(second))
    await until(lambda: late)
    assert late == ["refused"]
    assert cluster.events("late") == []


@in_virtual_time
async def test_an_agent_that_journals_while_it_is_cut_breaks_nothing(cluster: Cluster):
    async def busy(turn: Turn) -> None:
        number = 0
        while True:
            number += 1
            try:
                await call(turn, str(number))
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue

    node = await cluster.add(agent=Agent(on_turn=busy))
    said = await cluster.say(via=node)
    await until(lambda: len(cluster.events("call_finished")) > 3)
    await cluster.command("stop", via=node)
    await until(lambda: cluster.settled(said) and cluster.owner() is None)
    assert cluster.events("start_failed") == []
    cluster.fold()


@in_virtual_time
async def test_appends_that_an_agent_leaves_behind_when_it_returns_break_nothing(cluster: Cluster):
    async def careless(turn: Turn) -> None:
        for n in range(3):
            left = asyncio.ensure_future(turn.journal([draft(CallStarted(f"{turn.id}.{n}", "left"))]))
            left.add_done_callback(lambda task: task.exception())
            await asyncio.sleep(0)

    node = await cluster.add(agent=Agent(on_turn=careless))
    for _ in range(3):
        said = await cluster.say(via=node)
        await until(lambda said=said: cluster.settled(said))
    assert cluster.events("start_failed") == []
    assert len(cluster.events("call_started")) == len(cluster.events("call_interrupted"))
    cluster.fold()


@in_virtual_time
async def test_an_agent_may_write_no_kind_of_the_core(cluster: Cluster):
    refused: list[str] = []

    async def forge(turn: Turn) -> None:
        for kind in ("turn_completed", "claimed", "message", "stopped", "runtime_discarded"):
            try:
                await turn.journal([Draft(kind, {})])
            except InvalidInputError:
                refused.append(kind)

    node = await cluster.add(agent=Agent(on_turn=forge))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert len(refused) == 5


@pytest.mark.parametrize(
    "answer", [object(), float("nan"), "\ud800", "x" * (3 << 20), None, {"a": 1}], ids=lambda a: type(a).__name__
)
@in_virtual_time
async def test_whatever_a_loop_answers_settles_the_command(cluster: Cluster, answer: Json):
    async def say(command: Event) -> Json:
        return answer

    node = await cluster.add(agent=Agent(on_now=say), idle_s=2)
    await node.start()
    pause = await cluster.command("pause", via=node)
    await until(lambda: cluster.settled(pause))
    assert len(cluster.events("command_settled")) == 1
    await until(lambda: cluster.owner() is None)  # and it passivates


@in_virtual_time
async def test_a_loop_that_takes_too_long_to_answer_has_refused(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_now=for_ever), call_timeout_s=4)  # type: ignore[arg-type]
    await node.start()
    pause = await cluster.command("pause", via=node)
    await until(lambda: cluster.settled(pause))
    assert cluster.events("command_settled")[0].body["outcome"] == "refused"


@in_virtual_time
async def test_a_word_for_its_state_that_no_journal_takes_is_refused_at_once(cluster: Cluster):
    refused: list[str] = []

    async def report(place) -> None:
        for word in ("\ud800", "x" * 1000):
            try:
                place.report_status(word)
            except InvalidInputError as error:
                refused.append(error.field)
        place.report_status("ready")

    node = await cluster.add(agent=Agent(on_open=report))
    await node.start()
    assert refused == ["agent_status", "agent_status"]
    assert cluster.record().agent_status == "ready"


# --- takeover in a turn ---------------------------------------------------------------------------------------------


async def in_mid_call(cluster: Cluster, *, idempotent: bool) -> tuple[Member, int]:
    agent = Agent(on_turn=lambda turn: call(turn, "a", idempotent=idempotent, work=for_ever()))
    node = await cluster.add(agent=agent)
    said = await cluster.say(via=node)
    await until(lambda: cluster.events("call_started"))
    return node, said


@in_virtual_time
async def test_c16_a_call_cut_by_a_loss_has_one_outcome_and_runs_again_only_if_it_may(cluster: Cluster):
    a, said = await in_mid_call(cluster, idempotent=False)
    a.kill()
    pasts: list[list[str]] = []

    async def look(turn: Turn) -> None:
        pasts.append([e.kind for e in turn.past])

    b = await cluster.add(agent=Agent(on_turn=look))
    await until(lambda: cluster.settled(said))
    assert pasts == [["turn_started", "call_started", "call_interrupted", "turn_resumed"]] or pasts == [
        ["call_started", "call_interrupted", "turn_resumed"]
    ]
    assert b.agent.turns[0].attempt == 2
    assert b.agent.turns[0].resumed


@in_virtual_time
async def test_c16_an_idempotent_call_is_not_interrupted_first(cluster: Cluster):
    a, said = await in_mid_call(cluster, idempotent=True)
    a.kill()

    async def again(turn: Turn) -> None:
        name = str(next(e.body["call"] for e in turn.past if e.kind == "call_started"))
        await turn.journal([draft(CallRestarted(name, 2))])
        await turn.journal([draft(CallFinished(name, "once"))])

    await cluster.add(agent=Agent(on_turn=again))
    await until(lambda: cluster.settled(said))
    assert cluster.events("call_interrupted") == []
    assert [k for k in cluster.kinds() if k.startswith("call_")] == ["call_started", "call_restarted", "call_finished"]


@in_virtual_time
async def test_c16_no_turn_ends_over_an_open_call(cluster: Cluster):
    async def forget(turn: Turn) -> None:
        await turn.journal([draft(CallStarted("x", "x", idempotent=True))])

    node = await cluster.add(agent=Agent(on_turn=forget))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert cluster.kinds()[-2:] == ["call_interrupted", "turn_completed"]


@in_virtual_time
async def test_a_turn_that_costs_its_owners_their_lives_is_abandoned(cluster: Cluster):
    said = await cluster.say()
    after = await cluster.say("next")
    for _ in range(4):
        node = await cluster.add(agent=Agent(on_turn=for_ever))
        await until(lambda node=node: node.agent.turns)
        node.kill()
    node = await cluster.add()
    await until(lambda: cluster.settled(said) and cluster.settled(after))
    failed = cluster.events("turn_failed")[0]
    assert failed.body["reason"] == "abandoned"
    assert failed.body["commands"] == [said]
    assert [t.id for t in node.agent.turns] == [f"t{after}"]
    assert cluster.record().lost == 0


@in_virtual_time
async def test_drains_and_takeovers_of_idle_conversations_count_no_owner_as_lost(cluster: Cluster):
    a = await cluster.add()
    said = await cluster.say(via=a)
    await until(lambda: cluster.settled(said))
    a.kill()
    b = await cluster.add(agent=Agent(on_turn=for_ever))
    await asyncio.sleep(1.2)
    said = await cluster.say(via=b)
    await until(lambda: b.agent.turns)
    await b.leave(0)
    await cluster.add()
    await until(lambda: cluster.settled(said))
    assert [e.kind for e in cluster.journal() if e.kind in ("turn_failed", "start_failed")] == []
    assert cluster.record().lost == 0


@in_virtual_time
async def test_a_late_copy_of_an_append_writes_nothing_twice(cluster: Cluster):
    """C4: the copy of turn_started is executed once more, later: refused, whatever has come since."""
    node = await cluster.add(agent=Agent(on_turn=lambda turn: call(turn, "a")))
    late = asyncio.Event()
    copies: list[asyncio.Future[None]] = []

    async def twice(proceed: Callable[[], Awaitable[object]]) -> object:
        async def copy() -> None:
            await late.wait()
            await proceed()

        copies.append(asyncio.ensure_future(copy()))
        return await proceed()

    node.rig.always("append_all", twice)
    node.rig.once("append_all", lose_the_reply, writes("call_started"))
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    before = cluster.journal()
    late.set()
    await asyncio.wait(copies)
    assert cluster.journal() == before
    assert node.live == [C]


# --- idle -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_idle_conversation_is_let_go_and_the_next_message_wakes_it(cluster: Cluster):
    node = await cluster.add(idle_s=300)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    await asyncio.sleep(298)
    assert cluster.owner() == "n1"
    await asyncio.sleep(5)
    assert cluster.owner() is None
    assert cluster.kinds()[-2:] == ["runtime_discarded", "released"]
    assert cluster.events("released")[0].body["reason"] == "idle"
    assert node.provider.standing == {}
    assert (node.live, node.node.owned) == ([], 0)
    again = await cluster.say(via=node)
    await until(lambda: cluster.settled(again))
    assert cluster.record().epoch == 2


@in_virtual_time
async def test_a_message_that_comes_while_it_is_let_go_is_not_lost(cluster: Cluster):
    node = await cluster.add(idle_s=1)
    node.rig.deaf = True
    await node.start()
    under_way = asyncio.Event()
    node.rig.once("release_all", held_until(under_way))
    await until(lambda: node.rig.count("release_all"))
    said = await cluster.say()
    under_way.set()
    await until(lambda: cluster.settled(said))


@in_virtual_time
async def test_a_long_turn_is_not_idle(cluster: Cluster):
    node = await cluster.add(agent=Agent(on_turn=for_ever), idle_s=1)
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    await asyncio.sleep(30)
    assert cluster.status() is Status.RUNNING
    assert node.live == [C]


@in_virtual_time
async def test_a_loop_that_does_not_close_well_is_let_go_all_the_same(cluster: Cluster):
    async def fail() -> None:
        raise RuntimeError("no")

    for name, close in (("c1", fail), ("c2", for_ever)):
        node = await cluster.add(agent=Agent(on_close=close), idle_s=1)
        await node.start(name)
        await until(lambda name=name: cluster.owner(name) is None)
        assert cluster.events("released", name)[0].body["reason"] == "idle"
        assert cluster.events("start_failed", name) == []


# --- deltas ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_deltas_reach_whoever_follows_and_leave_no_trace(cluster: Cluster):
    async def stream(turn: Turn) -> None:
        for word in ("one ", "two ", "three"):
            turn.delta({"text": word})
        turn.delta({"progress": 1})
        await asyncio.sleep(0.5)

    node = await cluster.add(agent=Agent(on_turn=stream))
    await cluster.create()
    hints: list[Hint] = []

    async def follow() -> None:
        async with cluster.store.follow([Topic(Topic.CONVERSATION, C)]) as stream:
            while True:
                hints.append(await anext(stream))

    following = asyncio.ensure_future(follow())
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    following.cancel()
    assert [h.delta for h in hints if h.delta is not None] == [{"text": "one two three"}, {"progress": 1}]
    assert "delta" not in "".join(cluster.kinds())


@in_virtual_time
async def test_a_delta_that_cannot_be_sent_does_not_keep_the_next_one(cluster: Cluster):
    async def stream(turn: Turn) -> None:
        for n in range(3):
            turn.delta({"progress": n})
            await asyncio.sleep(0.1)

    async def refuse(proceed: Callable[[], Awaitable[object]]) -> object:
        raise TypeError("is no JSON")

    node = await cluster.add(agent=Agent(on_turn=stream))
    node.rig.once("publish", refuse)
    node.rig.once("publish", lose_the_request)
    said = await cluster.say(via=node)
    await until(lambda: cluster.settled(said))
    assert node.rig.count("publish") == 3


@in_virtual_time
async def test_deltas_are_bounded_when_nobody_takes_them(cluster: Cluster):
    async def pour(turn: Turn) -> None:
        for _ in range(1000):
            turn.delta({"text": "x" * 10_000})
        await asyncio.sleep(1)

    node = await cluster.add(agent=Agent(on_turn=pour))
    stuck = asyncio.Event()
    node.rig.always("publish", held_until(stuck))
    said = await cluster.say(via=node)
    await until(lambda: node.rig.count("publish") and cluster.settled(said))
    largest = max(len(str(args[1])) for name, args in node.rig.calls if name == "publish")
    stuck.set()
    assert largest <= 100_000


@in_virtual_time
async def test_a_delta_of_a_loser_is_refused_and_ends_its_loop(cluster: Cluster):
    raised: list[str] = []

    async def stream(turn: Turn) -> None:
        while True:
            try:
                turn.delta({"text": "x"})
            except OwnershipLostError as error:
                raised.append(error.why)
                raise
            await asyncio.sleep(0.1)

    node = await cluster.add(agent=Agent(on_turn=stream))
    await cluster.say(via=node)
    await until(lambda: node.agent.turns)
    turn = node.agent.turns[0]
    await cluster.store.register("x", node.node._about(), 60.0)  # type: ignore[arg-type]
    await cluster.claim_as("x", forced=True, epoch=Epoch(1))
    await until(lambda: node.live == [])
    with pytest.raises(OwnershipLostError):
        turn.delta({"text": "late"})
    assert turn.lost
