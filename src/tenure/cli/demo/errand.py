"""An errand for an OpenHands agent: what it is asked, what a scripted model says to it, how it is told, how it is judged."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from tenure.journal import Claimed, read_body
from tenure.loops.openhands.live import INTERRUPTED
from tenure.loops.openhands.store import EVENT, WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tenure.journal import Event

STEPS: Final = 10
TASK: Final = (
    f"Write a shell script steps.sh in your working directory. It first adds the line `begun` to runs.txt; then, for each "
    f"number from 1 to {STEPS}, it sleeps half a second and adds the number to steps.txt, but skips numbers that stand there "
    "already. Run it, and check steps.txt. If a tool was interrupted, look at how far it came, and run the script again. "
    "Then write NOTES.md: what you did, and what was interrupted."
)
SCRIPT: Final = f"""\
echo begun >> runs.txt
touch steps.txt
for number in $(seq 1 {STEPS}); do
    grep -qx "$number" steps.txt && continue
    sleep 0.5
    echo "$number" >> steps.txt
done
"""
NOTES: Final = """\
# What I did

I wrote steps.sh and ran it. The server was lost in the middle: the call was reported as interrupted, its outcome as
unknown. steps.txt showed how far it had come; I ran the script once more, and it did the rest.
"""
RUN: Final = "sh steps.sh"
LINE: Final = 100
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_OUTCOMES = ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation")


def replies(workspace: Path) -> list[dict[str, Any]]:
    """What the scripted model says, if the first run of the script is cut."""

    def edit(name: str, text: str) -> dict[str, Any]:
        return {
            "name": "file_editor",
            "arguments": {"command": "create", "path": str(workspace / name), "file_text": text},
        }

    def run(command: str) -> dict[str, Any]:
        return {"name": "terminal", "arguments": {"command": command}}

    return [
        {"text": "I write the script.", "calls": [edit("steps.sh", SCRIPT)]},
        {"text": "Now I run it.", "calls": [run(RUN)]},
        {"text": "The call was cut, and nobody knows how far it came. I look.", "calls": [run("tail -n 1 steps.txt")]},
        {"text": "I run it again; it skips what is done.", "calls": [run(f"{RUN} && wc -l < steps.txt")]},
        {"text": "I write it down.", "calls": [edit("NOTES.md", NOTES)]},
        {"calls": [{"name": "finish", "arguments": {"message": f"Done: steps.txt has the numbers 1 to {STEPS}."}}]},
    ]


# --- how it is told -------------------------------------------------------------------------------------------------


def lines(event: Event) -> Iterator[tuple[str, str]]:
    """What an event of the journal says to a person: (line, style)."""
    body = cast("dict[str, Any]", event.body)
    if event.kind == WORKSPACE and body["lost"]:
        yield "the workspace is lost; the agent is told", "red"
    if event.kind != EVENT:
        return
    match body["kind"]:
        case "ActionEvent":
            if thought := _text(body.get("thought")):
                yield f"“{thought}”", "italic"
            yield _action(body), "bold"
        case "ObservationEvent" if body["tool_name"] != "finish":
            yield f"    {_text(body['observation'].get('content')) or 'done'}", "dim"
        case "AgentErrorEvent":
            cut = body["error"] == INTERRUPTED
            yield "    interrupted; its outcome is unknown, and so the agent is told" if cut else body["error"], "red"
        case "MessageEvent" if body["source"] == "agent":
            yield f"“{_text(body['llm_message']['content'])}”", "italic"
        case "ConversationErrorEvent":
            yield f"{body['code']}: {body['detail']}"[:LINE], "red"
        case _:
            pass


def _action(body: Mapping[str, Any]) -> str:
    action: Mapping[str, Any] = body.get("action") or {}
    match body["tool_name"]:
        case "terminal":
            return _short(f"$ {action.get('command', '')}")
        case "file_editor":
            return _short(f"{action.get('command')} {str(action.get('path')).rpartition('/')[2]}")
        case "finish":
            return _short(f"finish: {action.get('message', '')}")
        case tool:
            return str(tool)


def _text(content: Any) -> str:
    parts = cast("list[dict[str, Any]]", content or [])
    return _short(" ".join(str(part.get("text", "")) for part in parts))


def _short(text: str) -> str:
    text = " ".join(_ESCAPES.sub("", text).split())
    return text if len(text) <= LINE else f"{text[: LINE - 1]}…"


# --- how it is judged -----------------------------------------------------------------------------------------------


def flaws(events: Sequence[Event], workspace: Path | None) -> Iterator[str]:
    """What an agent's journal must show after its owner was lost, and, if `workspace` is that of the scripted model, what
    its tools must have left there. Nothing, if all is well."""
    told = [cast("dict[str, Any]", e.body) for e in events if e.kind == EVENT]
    actions = [e for e in told if e["kind"] == "ActionEvent"]
    outcomes = Counter(e["tool_call_id"] for e in told if e["kind"] in _OUTCOMES)
    yield from (
        f"event {name} stands {times} times" for name, times in Counter(e["id"] for e in told).items() if times > 1
    )
    for action in actions:
        if (times := outcomes[action["tool_call_id"]]) != 1:
            yield f"{_action(action)}: {times} outcomes"
    cut = [e for e in told if e["kind"] == "AgentErrorEvent" and e["error"] == INTERRUPTED]
    if not cut:
        yield "no tool was cut: the agent was not told of what happened"
    epochs = {e.epoch for e in events if e.kind == EVENT}
    if len(epochs) < 2 or sum(isinstance(read_body(e), Claimed) for e in events) < 2:
        yield "the agent was never taken over"
    if [e.kind for e in events if e.kind in ("turn_completed", "turn_failed")] != ["turn_completed"]:
        yield "the agent's run did not end as one run that was completed"
    if workspace is not None:
        yield from _left(workspace, sum(f"$ {RUN}" in _action(action) for action in actions))


def _left(workspace: Path, runs: int) -> Iterator[str]:
    def read(name: str) -> list[str]:
        file = workspace / name
        return file.read_text().split() if file.exists() else []

    if read("steps.txt") != [str(number) for number in range(1, STEPS + 1)]:
        yield f"steps.txt holds {' '.join(read('steps.txt')) or 'nothing'}"
    if len(read("runs.txt")) != runs:
        yield f"the script ran {len(read('runs.txt'))} times, and {runs} calls of it are in the journal"
    if not (workspace / "NOTES.md").exists():
        yield "there is no NOTES.md"
