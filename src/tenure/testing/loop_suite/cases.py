"""Cases: what every agent loop keeps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tenure.errors import InvalidInputError
from tenure.testing.loop_suite.stage import PATIENCE_S, Fuse, StagePlace, ended
from tenure.testing.loop_suite.trial import SECRET, written

if TYPE_CHECKING:
    from tenure.testing.loop_suite.stage import Conversation
    from tenure.testing.loop_suite.trial import Steps, Trying

ONE: Final[Steps] = [["a"]]
SOME: Final[Steps] = [["a"], ["b", "c"]]
SLOW: Final[Steps] = [["slow"]]
QUIET_S: Final = 0.05
"""How long something that must not happen is given to happen, after all that must has ended."""


# --- settings -------------------------------------------------------------------------------------------------------


async def settings_are_judged_at_creation(trying: Trying) -> None:
    """What is no JSON object, or names a credential that is no reference, is refused with the field's name."""
    wrong: list[Any] = [["no object"], {"credentials": {"TOKEN": "a value, not a reference"}}]
    for settings in wrong:
        try:
            trying.trial.loop.check(settings)
        except InvalidInputError as refused:
            assert refused.field.startswith("settings"), refused.field
        else:
            raise AssertionError(f"settings {settings!r} were not refused")


# --- the fence ------------------------------------------------------------------------------------------------------


async def a_call_stands_in_the_journal_before_its_tool_runs(trying: Trying) -> None:
    conversation = trying.conversation()
    trying.say(conversation, SOME)
    assert await conversation.owner(trying.trial.loop)
    trying.judge(conversation, 1)
    assert sorted(trying.bench.happened) == ["a", "b", "c"]


async def an_outcome_stands_in_the_journal_before_what_follows_from_it(trying: Trying) -> None:
    """When the turn ends, no call is left for the core to close."""
    conversation = trying.conversation()
    trying.say(conversation, SOME)
    conversation.claim()
    async with trying.trial.loop.open(StagePlace(conversation)) as live:
        turn = conversation.begin()
        await live.turn(turn)
        turn.lost = True
    opened = [call for event in conversation.events for call in event.opens]
    closed = [call for event in conversation.events for call in event.closes]
    assert len(opened) == 3, "each call of a tool is one call in the journal"
    assert sorted(opened) == sorted(closed), "each call has one outcome, written by the loop"


async def after_a_refused_append_nothing_more_starts(trying: Trying) -> None:
    """Fenced means stopped, whichever append it is."""
    appends, _ = await trying.undisturbed(SOME)
    for at in range(0, appends, trying.trial.each):
        conversation = trying.conversation()
        trying.say(conversation, SOME)
        conversation.claim()
        async with trying.trial.loop.open(StagePlace(conversation)) as live:
            turn = conversation.begin(Fuse(at, refused=True))
            work = asyncio.ensure_future(live.turn(turn))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await turn.burnt.wait()
                happened = list(trying.bench.happened)
                _, running = await asyncio.wait([work], timeout=PATIENCE_S)
                assert not running, f"a refused append ends the turn; append {at} did not"
                assert work.cancelled() or work.exception() is not None, "a refused turn is not completed"
                await asyncio.sleep(QUIET_S)
                assert trying.bench.happened == happened, f"append {at} was refused, and {trying.bench.happened} began"
            finally:
                await ended(turn, work)
        assert not trying.bench.wrong, trying.bench.wrong


# --- takeover -------------------------------------------------------------------------------------------------------


async def an_owner_may_be_lost_at_any_append(trying: Trying) -> None:
    """Whether the last append was written or not: nothing runs twice, and the next owner's agent knows as much."""
    appends, expected = await trying.undisturbed(SOME)
    for at in range(0, appends, trying.trial.each):
        for stands in (False, True):
            conversation = trying.conversation()
            trying.say(conversation, SOME)
            assert not await conversation.owner(trying.trial.loop, Fuse(at, written=stands))
            cut = _open_calls(conversation)
            await trying.until_done(conversation)
            trying.judge(conversation, 1)
            trying.once()
            trying.alike(expected, trying.trial.context(), cut)
            known = "".join(trying.trial.context())
            lost = [line for line in "abc" if line not in trying.bench.happened]
            assert all(f"did {line}" not in known for line in lost), f"{lost} never happened, and are told as done"


async def owners_may_be_lost_one_after_the_other(trying: Trying) -> None:
    """An owner for each append: each brings the turn on."""
    appends, expected = await trying.undisturbed(SOME)
    conversation = trying.conversation()
    trying.say(conversation, SOME)
    cut = 0
    for _ in range(3 * appends + 3):
        if await conversation.owner(trying.trial.loop, Fuse(max(trying.trial.each, 1), written=True)):
            break
        cut += _open_calls(conversation)
    else:
        raise AssertionError("a turn whose owners write one event each never ends")
    trying.judge(conversation, 1)
    trying.once()
    trying.alike(expected, trying.trial.context(), cut)


async def a_new_owner_knows_the_turns_before(trying: Trying) -> None:
    """History comes from the journal, not from the memory of who was there."""
    conversation = trying.conversation()
    for steps in (ONE, [["b"]]):
        trying.say(conversation, steps)
    assert await conversation.owner(trying.trial.loop, turns=2)
    trying.judge(conversation, 2)
    expected = trying.trial.context()
    assert any("did a" in one for one in expected), f"an agent knows the turn before: {expected}"

    conversation = trying.conversation()
    for answers, steps in enumerate((ONE, [["b"]]), 1):
        trying.say(conversation, steps)
        assert await conversation.owner(trying.trial.loop)
        trying.judge(conversation, answers)
    assert trying.trial.context() == expected


# --- ends of a turn -------------------------------------------------------------------------------------------------


async def an_interrupt_ends_the_turn_at_once(trying: Trying) -> None:
    """Also when a tool blocks; what was cut is not run again by the turn after it."""
    conversation = trying.conversation()
    trying.say(conversation, SLOW)
    conversation.claim()
    async with trying.trial.loop.open(StagePlace(conversation)) as live:
        await conversation.interrupted(live, trying.bench.slow_began)
        trying.bench.go()
        trying.say(conversation, ONE)
        assert await conversation.turn(live)
    trying.judge(conversation, 1)
    assert trying.bench.happened == ["slow", "a"]
    assert any("did a" in one for one in trying.trial.context())


async def a_turn_is_handed_over_at_a_step(trying: Trying) -> None:
    """At a drain an open call is waited for; its outcome stands, and the next owner goes on behind it."""
    steps: Steps = [["slow"], ["b"]]
    conversation = trying.conversation()
    trying.bench.go()
    trying.say(conversation, steps)
    assert await conversation.owner(trying.trial.loop)
    trying.judge(conversation, 1)
    expected = trying.trial.context()

    conversation = trying.conversation()
    trying.say(conversation, steps)
    await conversation.handed_over(trying.trial.loop, trying.bench.slow_began, trying.bench.go)
    assert conversation.state.turn is not None, "a turn that is handed over is not ended"
    assert trying.bench.happened == ["slow"], "a turn that is handed over goes no further than its open calls"
    await trying.until_done(conversation)
    trying.judge(conversation, 1)
    assert trying.bench.happened == ["slow", "b"]
    assert trying.trial.context() == expected, "nothing was cut"


# --- secrets --------------------------------------------------------------------------------------------------------


async def no_value_of_a_credential_is_written(trying: Trying) -> None:
    """Not with the events, not in the snapshot, not to whoever watches. (What a tool prints, the node masks.)"""
    conversation = trying.conversation()
    trying.say(conversation, SOME)
    assert not await conversation.owner(trying.trial.loop, Fuse(2, written=True))
    await trying.until_done(conversation)
    assert SECRET not in written(conversation)


def _open_calls(conversation: Conversation) -> int:
    turn = conversation.state.turn
    return 0 if turn is None else len(turn.calls)
