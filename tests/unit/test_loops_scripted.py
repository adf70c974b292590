"""The agent ``scripted``: what its steps do, and what it says of a script that is none."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from loops_support import C, Conversation, Fuse, outcomes

from tenure.errors import InvalidInputError
from tenure.journal import Json
from tenure.loops import load_loop
from tenure.loops.scripted import DEFAULT_SCRIPT, STEPS_LIMIT


async def scripted(script: Json = None, *, content: Json = None, text: str = "hi", **settings: Json) -> Conversation:
    """One message to one owner."""
    conversation = Conversation(settings=settings if script is None else {**settings, "script": script})
    conversation.answers = ["blue"]
    conversation.message(text, content, key="k1")
    loop = load_loop("scripted")
    loop.check(conversation.settings)
    assert await conversation.owner(loop)
    return conversation


def replies(conversation: Conversation) -> list[Json]:
    return [body["text"] for body in conversation.emitted("reply")]


async def test_any_message_is_answered_with_work_in_the_runtime():
    conversation = Conversation()
    conversation.runtime.says["wc -l < notes.txt"] = "1\n"
    conversation.message("hello")
    assert await conversation.owner(load_loop("scripted"))
    assert conversation.kinds() == ["call_started", "call_finished"] * 2 + ["reply"]
    assert conversation.runtime.ran == [step["run"] for step in DEFAULT_SCRIPT[:2]]
    assert replies(conversation) == ["Noted: hello (notes.txt has 1 lines)"]


async def test_each_step_does_what_it_says():
    conversation = await scripted(
        [
            {"write": {"path": "a.txt", "text": "from a"}},
            {"read": "a.txt"},
            {"reply": "read {output} for {text}"},
            {"run": "ls"},
            {"emit": {"kind": "progress", "body": {"n": 1}}},
            {"emit": {"kind": "bare"}},
            {"delta": "…"},
            {"ask": "colour?"},
            {"once": "log.txt", "line": "x"},
            {"sleep_s": 0.001},
            {"reply": "{output}"},
        ]
    )
    assert replies(conversation) == ["read from a for hi", "blue"]
    assert conversation.emitted("progress") == [{"n": 1}] and conversation.emitted("bare") == [{}]
    assert conversation.deltas == [{"text": "…"}]
    turn = conversation.end.turn
    assert conversation.runtime.files == {"a.txt": b"from a", "log.txt": f"{C}/{turn}.c4 x\n".encode()}
    assert conversation.end.kind == "turn_completed"


@pytest.mark.blocking_ok  # it is what the step is for
async def test_a_script_may_block_the_event_loop():
    assert (await scripted([{"block_s": 0.001}])).end.kind == "turn_completed"


async def test_a_script_may_fail():
    conversation = await scripted([{"fail": "no luck"}])
    assert conversation.end.body["error"] == {"type": "ScriptFailedError", "message": "no luck"}


async def test_a_script_that_does_not_reply_is_followed_by_its_last_output():
    assert replies(await scripted([{"run": "ls"}])) == ["did ls"]
    assert replies(await scripted([])) == ["done"]
    assert replies(await scripted([{"emit": {"kind": "reply", "body": {"text": "mine"}}}])) == ["mine"]


@pytest.mark.parametrize("content", [[{"run": "mine"}], {"script": [{"run": "mine"}]}], ids=["list", "object"])
async def test_a_message_may_carry_its_own_script(content: Json):
    conversation = await scripted([{"run": "theirs"}], content=content)
    assert conversation.runtime.ran == ["mine"]


@pytest.mark.parametrize("content", [[{"type": "text", "text": "x"}], {"parts": [1]}, "text", 3, []], ids=str)
async def test_other_content_is_a_message_like_any_other(content: Json):
    conversation = await scripted([{"run": "theirs"}], content=content)
    assert conversation.runtime.ran == ["theirs"]


@pytest.mark.parametrize(
    ("script", "field"),
    [
        ("ls", "settings.script"),
        ({"run": "ls"}, "settings.script"),
        ([{"run": "ls"}] * (STEPS_LIMIT + 1), "settings.script"),
        ([{"run": "ls"}, "ls"], "settings.script[1]"),
        ([{}], "settings.script[0]"),
        ([{"walk": 1}], "settings.script[0]"),
        ([{"run": "ls", "read": "a"}], "settings.script[0]"),
        ([{"run": 3}], "settings.script[0].run"),
        ([{"run": "ls", "timeout_s": "1"}], "settings.script[0].timeout_s"),
        ([{"run": "ls", "lines": 1}], "settings.script[0].lines"),
        ([{"write": {"path": "a"}}], "settings.script[0].write"),
        ([{"write": {"path": "a", "text": 1}}], "settings.script[0].write"),
        ([{"emit": {"body": {}}}], "settings.script[0].emit"),
        ([{"emit": {"kind": "a", "body": []}}], "settings.script[0].emit"),
        ([{"sleep_s": -1}], "settings.script[0].sleep_s"),
        ([{"sleep_s": True}], "settings.script[0].sleep_s"),
        ([{"block_s": 1e9}], "settings.script[0].block_s"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_script_is_refused_at_creation_with_its_place(script: Json, field: str):
    with pytest.raises(InvalidInputError) as refused:
        load_loop("scripted").check({"script": script})
    assert refused.value.field == field


@pytest.mark.parametrize("effects", ["relative", 3, "/a\0b"])
def test_effects_must_be_a_path(effects: Json):
    with pytest.raises(InvalidInputError) as refused:
        load_loop("scripted").check({"effects": effects})
    assert refused.value.field == "settings.effects"


async def test_a_bad_script_in_a_message_fails_its_turn_with_the_place():
    conversation = await scripted(content=[{"run": "a"}, {"sleep_s": "long"}])
    error: Any = conversation.end.body["error"]
    assert error["type"] == "InvalidInputError" and "content[1].sleep_s" in error["message"]


async def test_unknown_settings_pass():
    settings = {"script": None, "model": "m"}
    assert load_loop("scripted").check(settings) == settings


# --- losses ---------------------------------------------------------------------------------------------------------


async def test_each_run_leaves_one_line_outside_wherever_its_owner_is_lost(tmp_path: Path):
    """How the chaos suite finds doubles: a line per run, with the key of the call."""
    whole = await scripted([{"run": "a"}, {"once": "log.txt"}, {"run": "b"}], effects=str(tmp_path / "whole"))
    for cut in range(len(whole.kinds())):
        for written in (False, True):
            effects = tmp_path / f"{cut}-{written}"
            script = [{"run": "a"}, {"once": "log.txt"}, {"run": "b"}]
            conversation = Conversation(settings={"script": script, "effects": str(effects)})
            conversation.message("hi", key="k1")
            assert not await conversation.owner(load_loop("scripted"), Fuse(cut, written))
            assert await conversation.owner(load_loop("scripted"))
            assert conversation.end.kind == "turn_completed"
            assert len(replies(conversation)) == 1
            lines = [json.loads(line) for line in effects.read_text().splitlines()] if effects.exists() else []
            assert len({line["key"] for line in lines}) == len(lines) <= 2, lines
            assert len(conversation.runtime.ran) == len(lines)
            assert conversation.runtime.files["log.txt"].count(b"\n") == 1
            interrupted = "call_interrupted" in outcomes(conversation).values()
            assert interrupted or len(lines) == 2


async def test_the_line_outside_says_whose_it_is(tmp_path: Path):
    conversation = await scripted([{"run": "a"}], effects=str(tmp_path / "effects"))
    turn = conversation.end.turn
    assert json.loads((tmp_path / "effects").read_text()) == {
        "key": f"{C}/{turn}.c1",
        "conversation": C,
        "turn": turn,
        "message": "k1",
        "epoch": 1,
    }


async def test_a_run_whose_outcome_is_unknown_is_said_to_be():
    conversation = Conversation(settings={"script": [{"run": "a"}]})
    conversation.message("hi")
    assert not await conversation.owner(load_loop("scripted"), Fuse(1))
    assert await conversation.owner(load_loop("scripted"))
    assert replies(conversation) == ["(interrupted: the outcome is unknown)"]


async def test_many_messages_are_many_replies():
    conversation = Conversation()
    for n in range(20):
        conversation.message(f"m{n}")
    assert await asyncio.wait_for(conversation.owner(load_loop("scripted"), turns=20), 60)
    assert [str(text).split()[1] for text in replies(conversation)] == [f"m{n}" for n in range(20)]
