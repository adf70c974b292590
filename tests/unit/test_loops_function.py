"""The loop ``function``: what an agent is given, and what it is told again when its turn is resumed."""

import asyncio
import contextlib
import contextvars
import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from loops_support import C, Conversation, FakePlace, Fuse, bodies, outcomes

from tenure.abc import Ran
from tenure.errors import (
    CallFailed,
    CallInterrupted,
    InvalidInputError,
    LoopError,
    OwnershipLostError,
)
from tenure.journal import CallFinished, CallRestarted, CallStarted
from tenure.loops.function import HISTORY_KEPT_S, FunctionLoop
from tenure.loops.function.turn import ARGUMENTS_LIMIT, ERROR_CHARS, FunctionTurn
from tenure.testing.simloop import SimLoop, simulate

Agent = Callable[[FunctionTurn], Any]


async def once(agent: Agent, conversation: Conversation | None = None, **options: Any) -> Conversation:
    """One message, one owner, one turn."""
    conversation = conversation or Conversation()
    conversation.message("hello")
    assert await conversation.owner(FunctionLoop(agent, **options))
    return conversation


async def after_a_loss(agent: Agent, fuse: Fuse, again: Agent | None = None) -> Conversation:
    """One message; the first owner is lost, the second one ends the turn."""
    conversation = Conversation()
    conversation.message("hello")
    assert not await conversation.owner(FunctionLoop(agent), fuse)
    assert await conversation.owner(FunctionLoop(again or agent))
    return conversation


def reason(conversation: Conversation) -> str:
    """What ended the turn, for one that failed."""
    assert conversation.end.kind == "turn_failed"
    error: Any = conversation.end.body["error"]
    return f"{error['type']}: {error['message']}"


# --- what an agent is given -----------------------------------------------------------------------------------------


async def test_a_turn_shows_what_came_and_where_it_stands():
    seen: dict[str, Any] = {}

    async def agent(turn: FunctionTurn) -> None:
        seen.update(
            text=turn.messages[0].text,
            content=turn.messages[0].content,
            key=turn.messages[0].key,
            seq=turn.messages[0].seq,
            settings=turn.settings,
            epoch=turn.epoch,
            attempt=turn.attempt,
            resumed=turn.resumed,
            conversation=turn.conversation_id,
            id=turn.id,
            lost=turn.lost,
            runtime=turn.runtime.name,
            history=len(turn.history),
        )

    conversation = Conversation(settings={"a": 1})
    message = conversation.message("hi", {"parts": []}, key="k")
    assert await conversation.owner(FunctionLoop(agent))
    assert seen == {
        "text": "hi",
        "content": {"parts": []},
        "key": "k",
        "seq": message.seq,
        "settings": {"a": 1},
        "epoch": 1,
        "attempt": 1,
        "resumed": False,
        "conversation": C,
        "id": f"t{message.seq}",
        "lost": False,
        "runtime": "memory",
        "history": 4,
    }


async def test_history_is_the_journal_before_this_turn_and_is_read_once():
    seen: list[list[int]] = []
    kept: list[Any] = []

    async def agent(turn: FunctionTurn) -> None:
        await turn.emit("note", {})
        seen.append([e.seq for e in turn.history])
        kept.append(turn.history)

    conversation = Conversation()
    first = conversation.message("1")
    second = conversation.message("2")
    assert await conversation.owner(FunctionLoop(agent), turns=2)
    starts = [e.seq for e in conversation.events if e.kind == "turn_started"]
    assert seen == [list(range(1, start)) for start in starts]
    assert first.seq in seen[0] and second.seq in seen[0]
    assert conversation.reads == [0, starts[0] - 1]  # the second time only what is new
    assert len(kept[0]) == starts[0] - 1, "an earlier turn's history does not grow"
    assert kept[1][-1].seq == starts[1] - 1 and [e.seq for e in kept[1][1:3]] == [2, 3]
    with pytest.raises(IndexError):
        kept[0][starts[0]]


def test_a_slow_talk_keeps_no_history_and_reads_it_anew():
    seen: list[list[int]] = []

    async def agent(turn: FunctionTurn) -> None:
        seen.append([e.seq for e in turn.history])

    async def talk(_: SimLoop) -> None:
        conversation = Conversation()
        for n in range(3):
            conversation.message(str(n))
        conversation.claim()
        async with FunctionLoop(agent).open(FakePlace(conversation)) as live:
            await conversation.turn(live)
            await asyncio.sleep(HISTORY_KEPT_S - 1)
            await conversation.turn(live)  # somebody was quick: it counts anew from here
            await asyncio.sleep(HISTORY_KEPT_S + 1)
            await conversation.turn(live)
        starts = [e.seq for e in conversation.events if e.kind == "turn_started"]
        assert seen == [list(range(1, start)) for start in starts]
        assert conversation.reads == [0, starts[0] - 1, 0]

    simulate(talk, 600.0)


async def test_a_call_is_journaled_before_it_runs_and_after():
    conversation = Conversation()
    during: list[list[str]] = []

    async def look(x: int) -> dict[str, Any]:
        during.append(conversation.kinds())
        return {"twice": 2 * x, "pair": (1, 2)}

    async def agent(turn: FunctionTurn) -> None:
        assert await turn.call("look", look, 21) == {"twice": 42, "pair": [1, 2]}
        await turn.emit("reply", {"text": "done"})

    await once(agent, conversation)
    turn = conversation.end.turn
    assert during == [["call_started"]]
    assert conversation.kinds() == ["call_started", "call_finished", "reply"]
    assert bodies(conversation, "call_started") == [
        CallStarted(f"{turn}.c1", "look", False, f"{C}/{turn}.c1", [21]),
    ]
    assert bodies(conversation, "call_finished") == [CallFinished(f"{turn}.c1", {"twice": 42, "pair": [1, 2]})]
    assert conversation.emitted("reply") == [{"text": "done"}]
    assert conversation.end.kind == "turn_completed"


async def test_the_first_attempt_sees_what_a_later_one_would_read():
    class Odd:
        def as_json(self) -> dict[str, Any]:
            return {"odd": True}

    async def agent(turn: FunctionTurn) -> None:
        assert await turn.call("tuple", lambda: (1, 2)) == [1, 2]
        assert await turn.call("keys", lambda: {1: "a"}) == {"1": "a"}
        assert await turn.call("ran", lambda: Ran(0, "out", "")) == Ran(0, "out", "").as_json()
        assert await turn.call("odd", Odd) == {"odd": True}
        assert await turn.call("none", lambda: None) is None

    assert (await once(agent)).end.kind == "turn_completed"


async def test_an_idempotency_key_is_given_to_those_who_ask():
    keys: list[str] = []

    async def asks(x: int, *, idempotency_key: str) -> None:
        keys.append(idempotency_key)

    def blocking(idempotency_key: str = "") -> None:
        keys.append(idempotency_key)

    async def agent(turn: FunctionTurn) -> None:
        await turn.call("asks", asks, 1, idempotent=True)
        await turn.call("blocking", blocking)
        await turn.call("partial", functools.partial(asks, 1))
        await turn.call("built-in", max, 1, 2)
        keys.append(turn.id)

    await once(agent)
    turn = keys.pop()
    assert keys == [f"{C}/{turn}.c{n}" for n in (1, 2, 3)]


async def test_blocking_functions_run_in_a_thread_with_the_context():
    here = threading.get_ident()
    flag: contextvars.ContextVar[str] = contextvars.ContextVar("flag", default="")
    ticked = threading.Event()
    seen: list[Any] = []

    def blocking() -> str:
        seen.append((threading.get_ident() != here, threading.current_thread().daemon, flag.get()))
        assert ticked.wait(20), "the event loop stands still"
        return "done"

    async def agent(turn: FunctionTurn) -> None:
        flag.set("mine")

        async def tick() -> None:
            await asyncio.sleep(0)
            ticked.set()

        assert (await asyncio.gather(turn.call("blocking", blocking), tick()))[0] == "done"

    assert (await once(agent)).end.kind == "turn_completed"
    assert seen == [(True, True, "mine")]


async def test_what_a_thread_raises_reaches_the_agent():
    def stops() -> None:
        raise StopIteration("no more")

    def interrupts() -> None:
        raise KeyboardInterrupt

    def exits() -> None:
        raise SystemExit(3)

    async def agent(turn: FunctionTurn) -> None:
        for fn in (stops, interrupts, exits):
            with pytest.raises(CallFailed):
                await turn.call(fn.__name__, fn)

    assert (await once(agent)).end.kind == "turn_completed"


async def test_many_blocking_calls_at_once_each_have_a_thread():
    """The executor of the loop has few threads, and others need them."""
    barrier = threading.Barrier(40)

    async def agent(turn: FunctionTurn) -> None:
        await asyncio.gather(*(turn.call("wait", lambda: barrier.wait(20)) for _ in range(40)))

    assert (await once(agent)).end.kind == "turn_completed"


async def test_a_call_that_raises_is_the_same_error_in_every_attempt():
    def boom() -> None:
        raise ValueError("no \udcff luck")

    caught: list[CallFailed] = []

    async def agent(turn: FunctionTurn) -> None:
        try:
            await turn.call("boom", boom)
        except CallFailed as error:
            caught.append(error)
        await turn.emit("after", {})
        await turn.emit("later", {})

    conversation = await after_a_loss(agent, Fuse(3))
    assert conversation.end.kind == "turn_completed"
    assert isinstance(caught[0].__cause__, ValueError)
    assert caught[1].__cause__ is None
    assert caught[0].error == caught[1].error == {"type": "ValueError", "message": "no ? luck"}
    assert caught[0].call == caught[1].call and "ValueError: no ? luck" in str(caught[1])


async def test_a_call_that_takes_too_long_has_failed():
    released = threading.Event()

    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(CallFailed, match=r"slow .*TimeoutError: no result within 0.01 s"):
            await turn.call("slow", asyncio.sleep, 60)
        with pytest.raises(CallFailed, match="TimeoutError"):
            await turn.call("blocks", lambda: released.wait(60), timeout_s=0.02)
        released.set()
        assert await turn.call("has time", asyncio.sleep, 0.03, "x", timeout_s=30) == "x"

    conversation = await once(agent, call_timeout_s=0.01)
    assert conversation.end.kind == "turn_completed"
    assert [f.error is None for f in bodies(conversation, "call_finished")] == [False, False, True]  # type: ignore[attr-defined]


async def test_a_time_out_of_the_calls_own_is_its_error():
    async def own() -> None:
        raise TimeoutError("mine")

    async def agent(turn: FunctionTurn) -> None:
        await turn.call("own", own)

    assert "TimeoutError: mine" in reason(await once(agent))


@pytest.mark.parametrize("result", [object(), float("nan"), "\udcff", {1, 2}, b"x"], ids=lambda r: type(r).__name__)
async def test_a_result_that_is_no_json_names_the_call(result: object):
    async def agent(turn: FunctionTurn) -> None:
        await turn.call("odd", lambda: result)

    conversation = await once(agent)
    assert "result of call 'odd'" in reason(conversation) and "return plain JSON" in reason(conversation)
    assert outcomes(conversation) == {f"{conversation.end.turn}.c1": "call_finished"}


async def test_a_result_too_large_for_the_journal_fails_the_call_alone():
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(CallFailed, match="too large"):
            await turn.call("large", lambda: "x" * 200_000)
        await turn.emit("reply", {"text": "still here"})

    assert (await once(agent)).kinds() == ["call_started", "call_finished", "reply"]


async def test_arguments_are_journaled_if_they_are_json_and_short():
    async def agent(turn: FunctionTurn) -> None:
        await turn.call("short", lambda *_: None, 1, {"a": (2,)})
        await turn.call("long", lambda _: None, "x" * (ARGUMENTS_LIMIT + 1))
        await turn.call("odd", lambda _: None, object())
        await turn.call("none", lambda: None)

    short, long, odd, none = [b.arguments for b in bodies(await once(agent), "call_started")]  # type: ignore[attr-defined]
    assert short == [1, {"a": [2]}]
    assert set(long) == {"digest"}
    assert odd is None
    assert none == []


@pytest.mark.parametrize(
    "kind", ["message", "turn_started", "call_finished", "created", "Reply", "a b", "", "1a", "x" * 65, "ä", None]
)
async def test_emit_refuses_kinds_that_are_not_the_agents(kind: Any):
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(InvalidInputError) as refused:
            await turn.emit(kind, {})
        assert refused.value.field == "kind"

    conversation = await once(agent)
    assert conversation.end.kind == "turn_completed" and conversation.kinds() == []


@pytest.mark.parametrize("body", [[1], "text", {"a": object()}, {"a": float("inf")}, {"a": "\udcff"}])
async def test_emit_refuses_bodies_that_are_no_json_objects(body: Any):
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(InvalidInputError) as refused:
            await turn.emit("note", body)
        assert refused.value.field == "body"

    assert (await once(agent)).kinds() == []


async def test_what_is_emitted_later_changed_stands_as_it_was():
    async def agent(turn: FunctionTurn) -> None:
        body: dict[str, Any] = {"list": [1]}
        await turn.emit("note.more_2", body)
        body["list"].append(2)
        await turn.emit("note.more_2", body)
        await turn.emit("empty")

    conversation = await once(agent)
    assert conversation.emitted("note.more_2") == [{"list": [1]}, {"list": [1, 2]}]
    assert conversation.emitted("empty") == [{}]


@pytest.mark.parametrize("name", ["", "x" * 201, None, 3])
async def test_a_call_needs_a_name_and_a_function(name: Any):
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(InvalidInputError) as refused:
            await turn.call(name, lambda: None)
        assert refused.value.field == "name"
        with pytest.raises(InvalidInputError, match="cannot be called"):
            await turn.call("ok", asyncio.sleep(0) if False else 3)  # type: ignore[arg-type]

    assert (await once(agent)).kinds() == []


async def test_deltas_go_out_also_from_threads_and_not_again():
    async def agent(turn: FunctionTurn) -> None:
        turn.delta("a")
        await turn.call("thread", lambda: turn.delta("b"))
        await asyncio.sleep(0)
        await turn.emit("note", {})
        turn.delta("c")
        await turn.emit("last", {})

    conversation = await after_a_loss(agent, Fuse(3))
    assert conversation.deltas == [{"text": t} for t in ("a", "b", "c", "c")]


async def test_what_a_call_raises_is_masked_before_it_is_cut():
    def leak() -> None:
        raise ValueError("x" * (ERROR_CHARS - 5) + "hunter2-hunter2")

    async def agent(turn: FunctionTurn) -> None:
        with contextlib.suppress(CallFailed):
            await turn.call("leak", leak)

    conversation = Conversation()
    conversation.credentials = {"TOKEN": "hunter2-hunter2"}
    conversation.message("go")
    assert await conversation.owner(FunctionLoop(agent))
    [finished] = [e for e in conversation.events if e.kind == "call_finished"]
    assert str(finished.body["error"]).count("x") == ERROR_CHARS - 5 and "hunt" not in str(finished.body)


async def test_an_agent_that_raises_fails_its_turn_and_the_next_message_is_taken():
    async def agent(turn: FunctionTurn) -> None:
        if turn.messages[0].text == "bad":
            raise RuntimeError("boom")
        await turn.emit("reply", {})

    conversation = Conversation()
    conversation.message("bad")
    conversation.message("good")
    assert await conversation.owner(FunctionLoop(agent), turns=2)
    ends = [e.kind for e in conversation.events if e.kind.startswith("turn_") and e.kind != "turn_started"]
    assert ends == ["turn_failed", "turn_completed"]


async def test_an_agent_cannot_end_the_node_or_feign_a_cancellation():
    async def exits(turn: FunctionTurn) -> None:
        raise SystemExit(1)

    async def feigns(turn: FunctionTurn) -> None:
        raise asyncio.CancelledError

    async def call_feigns(turn: FunctionTurn) -> None:
        async def feign() -> None:
            raise asyncio.CancelledError

        await turn.call("feign", feign)

    assert "LoopError: the agent raised SystemExit(1)" in reason(await once(exits))
    assert "LoopError: the agent awaited something that was cancelled" in reason(await once(feigns))
    assert "CallFailed" in reason(await once(call_feigns))


async def test_steps_inside_of_a_call_are_refused():
    async def agent(turn: FunctionTurn) -> None:
        async def inner() -> None:
            await turn.emit("note", {})

        def inner_in_thread() -> None:
            asyncio.run(turn.call("x", lambda: None))

        with pytest.raises(CallFailed, match="made inside of call"):
            await turn.call("outer", inner)
        with pytest.raises(CallFailed, match="made inside of call"):
            await turn.call("outer", inner_in_thread)
        await turn.emit("after", {})  # outside again

    assert (await once(agent)).end.kind == "turn_completed"


async def test_loss_inside_a_call_is_heard_before_the_result_is_used():
    conversation = Conversation()
    used: list[str] = []

    async def agent(turn: FunctionTurn) -> None:
        used.append(await turn.call("work", lambda: "result"))

    conversation.message("hello")
    assert not await conversation.owner(FunctionLoop(agent), Fuse(1))
    assert used == []


async def test_after_the_loss_every_step_is_refused():
    errors: list[str] = []
    turns: list[FunctionTurn] = []

    async def agent(turn: FunctionTurn) -> None:
        turns.append(turn)
        try:
            await turn.emit("note", {})
        finally:
            for step in (
                lambda: turn.emit("more", {}),
                lambda: turn.call("more", lambda: errors.append("ran")),
                lambda: turn.ask("more"),
            ):
                try:
                    await step()
                except OwnershipLostError as error:
                    errors.append(type(error).__name__)

    conversation = Conversation()
    conversation.message("hello")
    assert not await conversation.owner(FunctionLoop(agent), Fuse(0))
    assert errors == ["OwnershipLostError"] * 3
    with pytest.raises(LoopError, match="has ended"):
        await turns[0].emit("late", {})


# --- resumption -----------------------------------------------------------------------------------------------------


async def test_finished_calls_and_emits_are_not_done_again():
    effects: list[str] = []

    async def agent(turn: FunctionTurn) -> None:
        a = await turn.call("a", lambda: effects.append("a") or 1)
        await turn.emit("note", {"a": a})
        b = await turn.call("b", lambda: effects.append("b") or 2)
        await turn.emit("sum", {"sum": a + b, "resumed": 0})

    conversation = await after_a_loss(agent, Fuse(5))
    assert effects == ["a", "b"]
    assert conversation.emitted("note") == [{"a": 1}]
    assert conversation.emitted("sum") == [{"sum": 3, "resumed": 0}]
    assert conversation.state.epoch == 2 and conversation.end.kind == "turn_completed"


async def test_an_open_call_is_interrupted_and_never_runs_again():
    effects: list[str] = []
    seen: list[CallInterrupted] = []

    async def agent(turn: FunctionTurn) -> None:
        try:
            await turn.call("pay", lambda: effects.append("paid"))
        except CallInterrupted as error:
            seen.append(error)
            await turn.emit("reply", {"text": "I do not know whether it was paid"})

    conversation = await after_a_loss(agent, Fuse(1))
    assert effects == ["paid"]  # it ran, its outcome was not recorded
    assert [(e.name, e.call) for e in seen] == [("pay", f"{conversation.end.turn}.c1")]
    assert outcomes(conversation) == {f"{conversation.end.turn}.c1": "call_interrupted"}
    assert conversation.kinds() == ["call_started", "call_interrupted", "reply"]


async def test_an_interrupted_call_stays_interrupted_in_the_third_attempt():
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(CallInterrupted):
            await turn.call("pay", lambda: 1)
        await turn.emit("one", {})
        await turn.emit("two", {})

    async def pays(turn: FunctionTurn) -> None:
        await turn.call("pay", lambda: 1)

    conversation = Conversation()
    conversation.message("hello")
    assert not await conversation.owner(FunctionLoop(pays), Fuse(1))
    assert not await conversation.owner(FunctionLoop(agent), Fuse(1))
    assert await conversation.owner(FunctionLoop(agent))
    assert conversation.kinds() == ["call_started", "call_interrupted", "one", "two"]
    assert conversation.end.kind == "turn_completed"


async def test_an_idempotent_open_call_is_restarted_with_the_same_key():
    keys: list[str] = []

    async def put(idempotency_key: str) -> int:
        keys.append(idempotency_key)
        return len(keys)

    async def agent(turn: FunctionTurn) -> None:
        assert await turn.call("put", put, idempotent=True) == len(keys)

    conversation = Conversation()
    conversation.message("hello")
    for _ in range(2):
        assert not await conversation.owner(FunctionLoop(agent), Fuse(1))
    assert await conversation.owner(FunctionLoop(agent))
    call = f"{conversation.end.turn}.c1"
    assert keys == [f"{C}/{call}"] * 3
    assert bodies(conversation, "call_restarted") == [CallRestarted(call, 2), CallRestarted(call, 3)]
    assert bodies(conversation, "call_finished") == [CallFinished(call, 3)]
    assert conversation.end.kind == "turn_completed"


async def test_an_open_call_that_no_plan_has_closed_is_closed_before_the_agent_hears_of_it():
    """By rule the new owner's plan closes it; a journal of another hand may have it open."""
    conversation = Conversation()
    conversation.message("hello")
    conversation.claim()

    async def pays(turn: FunctionTurn) -> None:
        await turn.call("pay", lambda: 1)

    async with FunctionLoop(pays).open(FakePlace(conversation)) as live:
        assert not await conversation.turn(live, Fuse(1))
        assert await conversation.turn(live)  # by the same owner, without a plan
    assert outcomes(conversation) == {f"{conversation.end.turn}.c1": "call_interrupted"}
    assert "CallInterrupted" in reason(conversation)


async def test_the_number_of_a_new_call_follows_the_recorded_ones():
    async def agent(turn: FunctionTurn) -> None:
        for name in "abc":
            await turn.call(name, lambda: None)

    conversation = await after_a_loss(agent, Fuse(4))
    turn = conversation.end.turn
    assert [b.call for b in bodies(conversation, "call_started")] == [f"{turn}.c{n}" for n in (1, 2, 3)]  # type: ignore[attr-defined]


def diverging(again: Agent) -> Callable[[], Any]:
    async def agent(turn: FunctionTurn) -> None:
        await turn.call("a", lambda x: None, 1)
        await turn.emit("note", {"n": 1})
        await turn.call("b", lambda: None, idempotent=True)
        await turn.emit("end", {})

    return lambda: after_a_loss(agent, Fuse(5), again)


async def other_name(turn: FunctionTurn) -> None:
    await turn.call("z", lambda x: None, 1)


async def other_arguments(turn: FunctionTurn) -> None:
    await turn.call("a", lambda x: None, 2)


async def other_flag(turn: FunctionTurn) -> None:
    await turn.call("a", lambda x: None, 1, idempotent=True)


async def emit_instead(turn: FunctionTurn) -> None:
    await turn.emit("note", {"n": 1})


async def ask_instead(turn: FunctionTurn) -> None:
    await turn.ask("who?")


async def other_body(turn: FunctionTurn) -> None:
    await turn.call("a", lambda x: None, 1)
    await turn.emit("note", {"n": 2})


async def call_for_emit(turn: FunctionTurn) -> None:
    await turn.call("a", lambda x: None, 1)
    await turn.call("b", lambda: None, idempotent=True)


async def too_few(turn: FunctionTurn) -> None:
    await turn.call("a", lambda x: None, 1)


@pytest.mark.parametrize(
    ("again", "expected", "got"),
    [
        (other_name, "call 'a' [1]", "call 'z' [1]"),
        (other_arguments, "call 'a' [1]", "call 'a' [2]"),
        (other_flag, "call 'a' [1]", "idempotent call 'a' [1]"),
        (emit_instead, "call 'a' [1]", "emit 'note' {'n': 1}"),
        (ask_instead, "call 'a' [1]", "ask 'who?'"),
        (other_body, "emit 'note' {'n': 1}", "emit 'note' {'n': 2}"),
        (call_for_emit, "emit 'note' {'n': 1}", "idempotent call 'b' []"),
        (too_few, "emit 'note' {'n': 1}", "nothing more"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_agent_that_does_something_else_is_told(again: Agent, expected: str, got: str):
    conversation = await diverging(again)()
    assert "TurnDivergedError" in reason(conversation)
    assert f"the agent did {got} where the journal has {expected};" in reason(conversation)
    assert outcomes(conversation) == {f"{conversation.end.turn}.c{n}": "call_finished" for n in (1, 2)}


async def test_arguments_that_are_no_json_are_not_compared():
    async def agent(turn: FunctionTurn) -> None:
        await turn.call("a", lambda _: None, object())
        await turn.emit("end", {})

    assert (await after_a_loss(agent, Fuse(2))).end.kind == "turn_completed"


async def test_what_was_masked_in_the_journal_is_no_divergence():
    """The node masks secrets before it journals, and they may have been rotated meanwhile."""

    def agent_with(secret: str) -> Agent:
        async def agent(turn: FunctionTurn) -> None:
            await turn.call("fetch", lambda *_: None, f"https://x?token={secret}&a=1")
            await turn.emit("note", {"curl": f"-H 'Bearer {secret}'"})
            await turn.emit("end", {})

        return agent

    conversation = await after_a_loss(agent_with("<secret>"), Fuse(3), agent_with("s3cr3t-2"))
    assert conversation.end.kind == "turn_completed"


# --- asking ---------------------------------------------------------------------------------------------------------


async def test_an_answer_is_given_again():
    got: list[Any] = []

    async def agent(turn: FunctionTurn) -> None:
        got.append(await turn.ask({"q": "colour?"}))
        await turn.call("paint", lambda _: None, got[-1])
        got.append(await turn.ask("sure?"))

    conversation = Conversation()
    conversation.answers = ["red"]
    conversation.message("hello")
    work = asyncio.ensure_future(conversation.owner(FunctionLoop(agent)))
    while conversation.state.turn is None or conversation.state.turn.ask is None or not got:
        await asyncio.sleep(0)
    work.cancel()  # passivated while it waits for the second answer
    await asyncio.gather(work, return_exceptions=True)
    turn = conversation.state.turn
    assert conversation.state.turn_state.value == "waiting" and turn.ask == f"{turn.id}.a2"
    conversation.answers = ["yes"]
    assert await conversation.owner(FunctionLoop(agent))
    assert got == ["red", "red", "yes"]
    assert conversation.end.kind == "turn_completed"


async def test_questions_are_asked_one_after_the_other():
    async def agent(turn: FunctionTurn) -> None:
        answers = await asyncio.gather(turn.ask("a?"), turn.ask("b?"))
        await turn.emit("answers", {"answers": answers})

    conversation = Conversation()
    conversation.answers = ["A", "B"]
    await once(agent, conversation)
    assert conversation.emitted("answers") == [{"answers": ["A", "B"]}]
    assert [b.body for b in bodies(conversation, "turn_waiting")] == ["a?", "b?"]  # type: ignore[attr-defined]


# --- branches and cancellation --------------------------------------------------------------------------------------


async def test_branches_interleave_on_replay_as_they_did_the_first_time():
    """The second branch was faster: its second call has the lower number."""
    gate = asyncio.Event()
    effects: list[str] = []

    async def slow(name: str) -> str:
        await gate.wait()
        effects.append(name)
        return name

    async def fast(name: str) -> str:
        effects.append(name)
        return name

    async def agent(turn: FunctionTurn) -> None:
        async def left() -> list[Any]:
            return [await turn.call("work", slow, "l1"), await turn.call("work", fast, "l2")]

        async def right() -> list[Any]:
            found = [await turn.call("work", fast, "r1"), await turn.call("work", fast, "r2")]
            gate.set()
            return found

        both = await asyncio.gather(left(), right())
        await turn.emit("both", {"both": both})
        await turn.emit("end", {})

    conversation = await after_a_loss(agent, Fuse(9))
    started = [b.arguments for b in bodies(conversation, "call_started")]  # type: ignore[attr-defined]
    assert started == [["l1"], ["r1"], ["r2"], ["l2"]]
    assert effects == ["r1", "r2", "l1", "l2"]
    assert conversation.emitted("both") == [{"both": [["l1", "l2"], ["r1", "r2"]]}]
    assert conversation.end.kind == "turn_completed"


async def test_a_branch_that_no_longer_comes_is_told_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tenure.loops.function.replay.PATIENCE_S", 0.05)

    async def two(turn: FunctionTurn) -> None:
        await asyncio.gather(turn.call("a", asyncio.sleep, 0), turn.call("b", asyncio.sleep, 0))
        await turn.emit("end", {})

    async def one(turn: FunctionTurn) -> None:
        await turn.call("a", asyncio.sleep, 0)

    async def neither(turn: FunctionTurn) -> None:
        await asyncio.gather(turn.call("a", asyncio.sleep, 0), turn.call("c", asyncio.sleep, 0))

    for again in (one, neither):
        conversation = await after_a_loss(two, Fuse(4), again)
        assert "TurnDivergedError" in reason(conversation)
        assert "where the journal has call 'b' [0]" in reason(conversation)


async def test_a_branch_waits_for_the_one_whose_step_comes_first():
    """What was recorded as A then B is not taken for a divergence when B is quicker this time."""
    quick = False

    async def agent(turn: FunctionTurn) -> None:
        async def left() -> None:
            await turn.call("l1", asyncio.sleep, 0)
            await asyncio.sleep(0.02 if quick else 0)
            await turn.emit("left", {})

        async def right() -> None:
            await turn.call("r1", asyncio.sleep, 0)
            await asyncio.sleep(0 if quick else 0.02)
            await turn.emit("right", {})

        await asyncio.gather(left(), right())
        await turn.emit("end", {})

    conversation = Conversation()
    conversation.message("hello")
    assert not await conversation.owner(FunctionLoop(agent), Fuse(6))
    quick = True
    assert await conversation.owner(FunctionLoop(agent))
    assert conversation.end.kind == "turn_completed"
    assert [k for k in conversation.kinds() if not k.startswith("call_")] == ["left", "right", "end"]


async def test_a_call_that_the_agent_cancels_has_an_outcome_before_its_next_step():
    async def agent(turn: FunctionTurn) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await turn.call("slow", asyncio.sleep, 60)
        await turn.emit("note", {})
        await turn.emit("end", {})

    conversation = await after_a_loss(agent, Fuse(3))
    assert conversation.kinds() == ["call_started", "call_finished", "note", "end"]
    assert bodies(conversation, "call_finished")[0].error["type"] == "CancelledError"  # type: ignore[attr-defined]
    assert conversation.end.kind == "turn_completed"


async def test_a_call_that_is_cancelled_while_it_is_being_opened_is_closed():
    async def agent(turn: FunctionTurn) -> None:
        call = asyncio.ensure_future(turn.call("never", lambda: None))
        await asyncio.sleep(0)  # it stands before the append
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await turn.emit("note", {})

    conversation = await once(agent)
    assert conversation.kinds() == ["call_started", "call_finished", "note"]
    assert conversation.end.kind == "turn_completed"


async def test_calls_left_behind_are_cancelled_and_end_with_the_turn():
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    left: list[asyncio.Task[None]] = []

    async def agent(turn: FunctionTurn) -> None:
        left.append(asyncio.ensure_future(turn.call("forever", forever)))
        while not turn._running:  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0)
        await turn.emit("reply", {})

    conversation = await once(agent)
    await asyncio.wait_for(cancelled.wait(), 20)
    await asyncio.gather(*left, return_exceptions=True)
    assert left[0].cancelled()
    assert outcomes(conversation) == {f"{conversation.end.turn}.c1": "call_interrupted"}
    assert conversation.end.kind == "turn_completed"


async def test_an_interrupt_cancels_the_call_that_runs():
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        running.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async def agent(turn: FunctionTurn) -> None:
        await turn.call("forever", forever)

    conversation = Conversation()
    conversation.message("hello")
    conversation.claim()
    async with FunctionLoop(agent).open(FakePlace(conversation)) as live:
        await conversation.interrupted(live, running)
    assert cancelled.is_set()
    assert outcomes(conversation) == {f"{conversation.end.turn}.c1": "call_interrupted"}


async def test_commands_that_do_not_wait_are_not_for_a_function():
    async def agent(turn: FunctionTurn) -> None: ...

    conversation = Conversation()
    async with FunctionLoop(agent).open(FakePlace(conversation)) as live:
        with pytest.raises(NotImplementedError):
            await live.now(conversation.message("steered"))


# --- settings -------------------------------------------------------------------------------------------------------


async def an_agent(turn: FunctionTurn) -> None: ...


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ([], "settings"),
        ("x", "settings"),
        ({"a": object()}, "settings"),
        ({"a": "x" * 300_000}, "settings"),
        ({"credentials": {"TOKEN": "ghp_abcdef"}}, "settings.credentials.TOKEN"),
        ({"credentials": ["env:X"]}, "settings.credentials"),
        ({"credentials": {"NO SPACE": "env:X"}}, "settings.credentials"),
    ],
    ids=["list", "text", "no json", "large", "a secret", "a list", "a bad name"],
)
def test_settings_are_judged_at_creation(settings: Any, field: str):
    with pytest.raises(InvalidInputError) as refused:
        FunctionLoop(an_agent).check(settings)
    assert refused.value.field == field
    assert "ghp_" not in str(refused.value)


def test_settings_pass_as_they_are_and_may_be_judged_further():
    settings = {"model": "m", "credentials": {"TOKEN": "env:TOKEN"}, "unknown": [1]}
    assert FunctionLoop(an_agent).check(settings) is settings
    assert FunctionLoop(an_agent, check=lambda s: {**s, "more": 1}).check({}) == {"more": 1}


@pytest.mark.parametrize("seed", range(3))
async def test_the_order_of_threads_does_not_matter_to_a_replay(seed: int):
    rng = random.Random(seed)
    pauses = [rng.uniform(0, 0.01) for _ in range(6)]

    async def agent(turn: FunctionTurn) -> None:
        async def branch(name: str) -> list[Any]:
            return [await turn.call(name, lambda p=p: time.sleep(p) or p) for p in pauses[:3]]

        found = await asyncio.gather(*(branch(name) for name in "abc"))
        await turn.emit("found", {"found": found})
        await turn.emit("end", {})

    conversation = await after_a_loss(agent, Fuse(19))
    assert conversation.end.kind == "turn_completed"
    assert len(outcomes(conversation)) == 9
