"""Any function agent, its owners lost after any event: what it does outside happens once, and the journal is well formed."""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops_support import CORE_OF_TURNS, Conversation, Fuse, outcomes

from tenure.errors import CallFailed, CallInterrupted
from tenure.journal import CallStarted, read_body
from tenure.loops.function import FunctionLoop
from tenure.loops.function.turn import FunctionTurn
from tenure.testing.simloop import SimLoop, simulate

type Op = tuple[Any, ...]


def ops(depth: int = 2) -> st.SearchStrategy[list[Op]]:
    """Programs: calls that take some time (0 to 30 ms), may fail or be cut short by the agent; emits, waits, questions;
    branches at once."""
    time_s = st.integers(0, 3).map(lambda n: n / 100)
    one: st.SearchStrategy[Op] = st.one_of(
        st.tuples(st.just("call"), time_s, st.booleans(), st.sampled_from(["ok", "ok", "ok", "fails", "late"])),
        st.tuples(st.just("emit")),
        st.tuples(st.just("sleep"), time_s),
        st.tuples(st.just("ask")),
    )
    if depth > 1:
        one = st.one_of(
            one,
            st.tuples(st.just("gather"), st.lists(ops(depth - 1), min_size=2, max_size=3)),
            st.tuples(st.just("cut"), time_s, st.booleans()),  # an agent's own timers and branches do not mix
        )
    return st.lists(one, min_size=1, max_size=5)


class Program:
    """An agent that does these operations, and counts what its calls do outside."""

    def __init__(self, program: list[Op]) -> None:
        self._program = program
        self.effects: Counter[str] = Counter()
        self.idempotent: dict[str, bool] = {}

    async def __call__(self, turn: FunctionTurn) -> None:
        await self._do(turn, self._program, "p")
        await turn.emit("end", {})

    async def _do(self, turn: FunctionTurn, program: list[Op], place: str) -> None:
        for number, op in enumerate(program):
            here = f"{place}.{number}"
            match op:
                case ("call", time_s, idempotent, fate):
                    await self._call(turn, here, time_s, idempotent, fate)
                case ("emit",):
                    await turn.emit("note", {"at": here})
                case ("sleep", time_s):
                    await asyncio.sleep(time_s)
                case ("ask",):
                    answer = await turn.ask(here)
                    await turn.emit("heard", {"at": here, "answer": answer})
                case ("cut", time_s, idempotent):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(time_s):
                            await self._call(turn, here, 0.02, idempotent, "ok")
                    await turn.emit("went_on", {"at": here})
                case ("gather", branches):
                    await asyncio.gather(
                        *(self._do(turn, branch, f"{here}.{which}") for which, branch in enumerate(branches))
                    )
                case _:
                    raise AssertionError(op)

    async def _call(self, turn: FunctionTurn, here: str, time_s: float, idempotent: bool, fate: str) -> None:
        async def effect(place: str, idempotency_key: str) -> str:
            self.effects[idempotency_key] += 1
            self.idempotent[idempotency_key] = idempotent
            await asyncio.sleep(time_s)
            if fate == "fails":
                raise ValueError(place)
            if fate == "late":
                await asyncio.sleep(60)
            return place

        try:
            got = await turn.call("effect", effect, here, idempotent=idempotent, timeout_s=0.025)
            assert got == here, "the result of another call"
        except CallFailed as error:
            assert error.error["type"] in ("ValueError", "TimeoutError")
            if error.error["type"] == "ValueError":
                assert error.error["message"] == here, "the error of another call"
        except CallInterrupted:
            assert not idempotent
            await turn.emit("unknown", {"at": here})


def told_once(conversation: Conversation) -> None:
    """The turn is complete; each call has one outcome, each event of the agent stands once."""
    assert conversation.end.kind == "turn_completed", conversation.end.body
    assert conversation.state.turn is None
    started = [b for e in conversation.events if isinstance(b := read_body(e), CallStarted)]
    assert set(outcomes(conversation)) == {b.call for b in started}
    assert len({str(b.arguments) for b in started}) == len(started), "a call was started twice under two names"
    mine = [e for e in conversation.of_turn() if e.kind not in CORE_OF_TURNS and not e.opens and not e.closes]
    told = Counter((e.kind, str(e.body)) for e in mine if e.kind != "call_restarted")
    assert max(told.values()) == 1, told


def effects_are_right(program: Program) -> None:
    for key, count in program.effects.items():
        assert program.idempotent[key] or count == 1, f"{key} took effect {count} times"


def run(program: list[Op], fuses: list[Fuse]) -> tuple[Conversation, Program]:
    """A turn through the loss of as many owners as there are fuses, in virtual time."""
    agent = Program(program)
    conversation = Conversation()
    conversation.answers = list(range(1000))
    conversation.message("go")

    async def main(loop: SimLoop) -> None:
        for fuse in [*fuses, None]:
            ended = await conversation.owner(FunctionLoop(agent), fuse)
            effects_are_right(agent)
            if ended:
                return

    simulate(main)
    return conversation, agent


@given(ops(), st.lists(st.builds(Fuse, st.integers(0, 12), st.booleans()), max_size=4))
@settings(max_examples=200)
def test_any_program_survives_any_losses(program: list[Op], fuses: list[Fuse]):
    conversation, _ = run(program, fuses)
    told_once(conversation)


PROGRAM: list[Op] = [
    ("call", 0.0, False, "ok"),
    ("emit",),
    ("call", 0.01, True, "ok"),
    ("gather", [[("call", 0.02, False, "ok"), ("emit",)], [("call", 0.01, True, "fails"), ("call", 0.0, False, "ok")]]),
    ("ask",),
    ("call", 0.0, False, "late"),
    ("cut", 0.01, False),
    ("emit",),
]


def test_the_owner_lost_after_each_event_in_turn():
    """Each cut of one program, before and after the append was written; each twice in a row."""
    whole, _ = run(PROGRAM, [])
    appends = len(whole.kinds())
    expected = emitted(whole)
    for written in (False, True):
        for first in range(appends):
            for second in (None, 0, 1):
                fuses = [Fuse(first, written)] + ([] if second is None else [Fuse(second, not written)])
                conversation, agent = run(PROGRAM, fuses)
                told_once(conversation)
                effects_are_right(agent)
                assert emitted(conversation) >= expected, "nothing that was to be told is missing"


def emitted(conversation: Conversation) -> set[tuple[str, str]]:
    return {(e.kind, str(e.body)) for e in conversation.of_turn() if e.kind in ("note", "heard", "went_on", "end")}


def test_without_losses_everything_happens_once():
    conversation, agent = run(PROGRAM, [])
    assert set(agent.effects.values()) == {1}
    assert len(agent.effects) == 7
    told_once(conversation)


@pytest.mark.parametrize("broken", ["replay", "interrupted"])
def test_the_property_is_no_decoration(broken: str, monkeypatch: pytest.MonkeyPatch):
    """With the replay, or the rule for open calls, taken out, it goes red."""
    if broken == "replay":

        async def nothing(self: Any, step: Any) -> None:
            return None

        monkeypatch.setattr("tenure.loops.function.replay.Replay.step", nothing)
        monkeypatch.setattr("tenure.loops.function.replay.Replay.finish", lambda self: None)
    else:
        monkeypatch.setattr(
            "tenure.testing.loop_suite.stage.plan", lambda state: type("P", (), {"repairs": (), "then": None})()
        )

        async def runs_again(self: Any, call: str, name: str, idempotent: bool) -> None:
            self._running[call] = None

        monkeypatch.setattr("tenure.loops.function.turn.FunctionTurn._reopen", runs_again)
    with pytest.raises(AssertionError):
        for cut in range(8):
            conversation, agent = run(PROGRAM, [Fuse(cut)])
            told_once(conversation)
            effects_are_right(agent)
