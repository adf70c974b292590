"""The errand of the OpenHands demo: what is said of it, and what a run that went wrong would be found by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenure.cli.demo.errand import SCRIPT, STEPS, flaws, lines, replies
from tenure.cli.demo.openhands import plays
from tenure.clock import Instant
from tenure.journal import Claimed, Core, Event, TurnCompleted, draft
from tenure.lease import Epoch
from tenure.loops.openhands.live import INTERRUPTED
from tenure.testing.model_server import check_scripts

FOLDER = Path("/nowhere")


class Story:
    """A journal, event by event, as the demo would read it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.epoch = 0

    def core(self, body: Core) -> None:
        self.epoch += isinstance(body, Claimed)
        drafted = draft(body, "t1" if isinstance(body, TurnCompleted) else None)
        self.events.append(drafted.stored(len(self.events) + 1, Epoch(self.epoch), Instant(0)))

    def sdk(self, kind: str, **body: Any) -> None:
        seq = len(self.events) + 1
        told = {"kind": kind, "id": f"e{seq}", **body}
        self.events.append(Event(seq, Epoch(self.epoch), "openhands.event", Instant(0), told))  # type: ignore[arg-type]

    def action(self, call: str, tool: str, thought: str = "", **action: Any) -> None:
        said = [{"type": "text", "text": thought}] if thought else []
        self.sdk("ActionEvent", tool_call_id=call, tool_name=tool, action=action, thought=said)

    def result(self, call: str, tool: str, text: str) -> None:
        content = {"content": [{"type": "text", "text": text}]}
        self.sdk("ObservationEvent", tool_call_id=call, tool_name=tool, observation=content)


def a_run(*, without: str = "") -> Story:
    """A run whose owner was killed in its only command; or what is left of one without an event of this name."""
    story = Story()
    story.core(Claimed("i-1", "n1", "http://n1", "wanted"))
    story.action("c1", "terminal", "Now I run it.", command="sh steps.sh")
    if without != "claim":
        story.core(Claimed("i-2", "n2", "http://n2", "wanted", previous="i-1"))
    if without != "outcome":
        story.sdk("AgentErrorEvent", tool_call_id="c1", tool_name="terminal", error=INTERRUPTED)
    story.action("c2", "terminal", command="sh steps.sh")
    story.result("c2", "terminal", "\x1b[?2004ldone\x1b[?2004h")
    if without != "end":
        story.core(TurnCompleted((1,)))
    return story


def a_workspace(folder: Path, *, runs: int = 2, steps: int = STEPS) -> Path:
    (folder / "runs.txt").write_text("begun\n" * runs)
    (folder / "steps.txt").write_text("".join(f"{number}\n" for number in range(1, steps + 1)))
    (folder / "NOTES.md").write_text("So it was.")
    return folder


def test_a_sound_run_is_sound(tmp_path: Path):
    assert list(flaws(a_run().events, a_workspace(tmp_path))) == []
    assert list(flaws(a_run().events, None)) == []


@pytest.mark.parametrize(
    ("without", "found"),
    [
        ("claim", "the agent was never taken over"),
        ("outcome", "$ sh steps.sh: 0 outcomes"),
        ("end", "the agent's run did not end as one run that was completed"),
    ],
)
def test_what_is_missing_is_found(without: str, found: str):
    assert found in list(flaws(a_run(without=without).events, None))


def test_what_stands_twice_is_found():
    story = a_run()
    story.events.append(story.events[1])
    story.result("c2", "terminal", "done again")
    found = list(flaws(story.events, None))
    assert "event e2 stands 2 times" in found and "$ sh steps.sh: 2 outcomes" in found


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (lambda folder: a_workspace(folder, runs=3), "the script ran 3 times, and 2 calls of it are in the journal"),
        (lambda folder: a_workspace(folder, steps=2), "steps.txt holds 1 2"),
        (lambda folder: folder, "there is no NOTES.md"),
    ],
)
def test_what_tools_have_left_is_counted(tmp_path: Path, left: Callable[[Path], Path], found: str):
    assert found in list(flaws(a_run().events, left(tmp_path)))


def test_the_story_is_told_in_words_of_a_person():
    story = a_run()
    story.action("c3", "file_editor", command="create", path="/w/NOTES.md", file_text="…")
    story.sdk("MessageEvent", source="agent", llm_message={"content": [{"type": "text", "text": "That is all. " * 20}]})
    told = [line for event in story.events for line, _ in lines(event)]
    assert told[:6] == [
        "“Now I run it.”",
        "$ sh steps.sh",
        "    interrupted; its outcome is unknown, and so the agent is told",
        "$ sh steps.sh",
        "    done",
        "create NOTES.md",
    ]
    assert told[6].startswith("“That is all.") and told[6].endswith("…”") and len(told[6]) < 110


def test_the_scripted_model_does_the_errand():
    script = replies(FOLDER)
    check_scripts({"default": script})
    arguments = [call["arguments"] for reply in script for call in reply["calls"]]
    assert next(a for a in arguments if a.get("file_text") == SCRIPT)["path"] == "/nowhere/steps.sh"
    assert sum("sh steps.sh" in a.get("command", "") for a in arguments) == 2


def test_it_is_played_for_openhands_alone():
    assert plays(["openhands"]) and plays(["openhands:my_tools"])
    assert not plays(["scripted"]) and not plays(["openhands", "scripted"]) and not plays(["bots:openhands"])
