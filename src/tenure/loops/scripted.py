"""The agent ``scripted``: deterministic, works in its runtime, answers any message. For demos and tests.

Without a script it notes each message in a file of its workspace, counts the notes and replies. A script is a list of
steps, in the conversation's settings (``script``) or in a message's content (the list, or ``{"script": [...]}``):

===================================================  ================================================================
``{"run": "ls", "stdin"?, "timeout_s"?}``            a command in the runtime; ``stdin`` is the message's text by itself
``{"write": {"path", "text"}}``, ``{"read": path}``  a file of the workspace
``{"once": path, "line"?}``                          a line at the end of a file, exactly once: idempotent by its key
``{"emit": {"kind", "body"?}}``                      an event of this kind
``{"reply": text}``                                  an event ``reply``; ``{text}`` and ``{output}`` are filled in
``{"delta": text}``                                  something ephemeral to whoever watches
``{"ask": question}``                                wait for a person's answer; it is the next ``{output}``
``{"sleep_s": 0.2}``                                 wait
``{"block_s": 0.2}``                                 block the whole event loop, as bad code does
``{"fail": reason}``                                 raise
===================================================  ================================================================

A script that does not reply itself is followed by a ``reply`` with the last output. A run whose outcome was lost with
its owner is not repeated; the script goes on.

The setting ``effects`` is a file of the node's machine to which every ``run`` adds one line of JSON before it runs: what
a test counts to find doubles. A scripted agent runs what its users write, as the node's user: offer it to nobody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from tenure.errors import CallInterrupted, InvalidInputError, LoopError

if TYPE_CHECKING:
    from tenure.abc import Message, Runtime
    from tenure.journal import Json, JsonObject

STEPS_LIMIT = 1000
OUTPUT_CHARS = 2000
UNKNOWN_OUTCOME = "(interrupted: the outcome is unknown)"

DEFAULT_SCRIPT: Sequence[JsonObject] = (
    {"run": "cat >> notes.txt; echo >> notes.txt"},
    {"run": "wc -l < notes.txt"},
    {"reply": "Noted: {text} (notes.txt has {output} lines)"},
)


class ScriptTurn(Protocol):
    """What a script needs of a function agent's turn."""

    @property
    def id(self) -> str: ...
    @property
    def conversation_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def settings(self) -> JsonObject: ...
    @property
    def runtime(self) -> Runtime: ...
    async def call(self, name: str, fn: Callable[..., Any], *args: Any, idempotent: bool = False) -> Any: ...
    async def emit(self, kind: str, body: JsonObject | None = None) -> None: ...
    async def ask(self, question: Json) -> Json: ...
    def delta(self, text: str) -> None: ...


class ScriptFailedError(LoopError):
    """A step ``fail``, with its reason."""


async def agent(turn: ScriptTurn) -> None:
    """Do the script of each message, and reply."""
    for message in turn.messages:
        await _Run(turn, message).do(_script_of(message, turn.settings))


def check(settings: JsonObject) -> JsonObject:
    """The settings, if ``script`` and ``effects`` are what this module says.

    :raises InvalidInputError: names the field of the step.
    """
    if settings.get("script") is not None:
        _check_script(settings["script"], "settings.script")
    effects = settings.get("effects")
    if effects is not None and not (isinstance(effects, str) and os.path.isabs(effects) and "\0" not in effects):
        raise InvalidInputError("settings.effects", "must be an absolute path", "name a file of the node's machine")
    return settings


# --- reading a script -----------------------------------------------------------------------------------------------


def _script_of(message: Message, settings: JsonObject) -> Sequence[JsonObject]:
    """The steps of the message if it has any, else those of the settings, else the default ones."""
    content = message.content
    if isinstance(content, Mapping) and "script" in content:
        return _check_script(content["script"], "content.script")
    if isinstance(content, Sequence) and not isinstance(content, str) and any(map(_is_step, content)):
        return _check_script(content, "content")
    script = settings.get("script")
    return DEFAULT_SCRIPT if script is None else _check_script(script, "settings.script")


def _is_step(item: Json) -> bool:
    """Other structured content (parts of text, images) is a message like any other."""
    return isinstance(item, Mapping) and any(key in _CHECKS for key in item)


def _check_script(script: Json, field: str) -> Sequence[JsonObject]:
    if not isinstance(script, Sequence) or isinstance(script, str) or len(script) > STEPS_LIMIT:
        raise InvalidInputError(field, f"must be a list of at most {STEPS_LIMIT} steps", 'write [{"run": "ls"}, …]')
    for number, step in enumerate(script):
        place = f"{field}[{number}]"
        if not isinstance(step, Mapping) or len(kinds := [key for key in step if key in _CHECKS]) != 1:
            raise InvalidInputError(
                place, "must be an object with exactly one step", f"use one of {', '.join(_CHECKS)}"
            )
        known = {kinds[0], *_EXTRAS.get(kinds[0], {})}
        if unknown := sorted(set(step) - known):
            raise InvalidInputError(
                f"{place}.{unknown[0][:80]}", "is not known here", f"use {', '.join(sorted(known))}"
            )
        for part, (what, fits) in {kinds[0]: _CHECKS[kinds[0]], **_EXTRAS.get(kinds[0], {})}.items():
            if part in step and not fits(step[part]):
                raise InvalidInputError(f"{place}.{part}", f"must be {what}", "correct the step")
    return cast("Sequence[JsonObject]", script)


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_seconds(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 3600


def _is_file(value: Json) -> bool:
    return isinstance(value, Mapping) and set(value) == {"path", "text"} and all(map(_is_text, value.values()))


def _is_event(value: Json) -> bool:
    if not isinstance(value, Mapping) or not _is_text(value.get("kind")) or set(value) - {"kind", "body"}:
        return False
    return isinstance(value.get("body", {}), Mapping)


type _Check = tuple[str, Callable[[Json], bool]]

_TEXT: _Check = ("text", _is_text)
_SECONDS: _Check = ("0 to 3600 seconds", _is_seconds)
_CHECKS: Mapping[str, _Check] = {
    "run": _TEXT,
    "write": ('{"path": text, "text": text}', _is_file),
    "read": _TEXT,
    "once": _TEXT,
    "emit": ('{"kind": text, "body": object}', _is_event),
    "reply": _TEXT,
    "delta": _TEXT,
    "ask": _TEXT,
    "sleep_s": _SECONDS,
    "block_s": _SECONDS,
    "fail": _TEXT,
}
_EXTRAS: Mapping[str, Mapping[str, _Check]] = {
    "run": {"stdin": _TEXT, "timeout_s": _SECONDS},
    "once": {"line": _TEXT},
}


# --- doing it -------------------------------------------------------------------------------------------------------


class _Run:
    """One message's script, step by step."""

    def __init__(self, turn: ScriptTurn, message: Message) -> None:
        self._turn = turn
        self._message = message
        self._output = ""
        self._replied = False

    async def do(self, script: Sequence[JsonObject]) -> None:
        for step in script:
            await self._do(cast("Mapping[str, Any]", step))
        if not self._replied:
            await self._reply(self._output or "done")

    async def _do(self, step: Mapping[str, Any]) -> None:
        turn, runtime = self._turn, self._turn.runtime
        match step:
            case {"run": command}:
                await self._run(command, step.get("stdin", self._message.text), step.get("timeout_s"))
            case {"write": {"path": path, "text": text}}:
                await turn.call("write", runtime.write, path, text, idempotent=True)
            case {"read": path}:
                self._output = await turn.call("read", self._read, path, idempotent=True)
            case {"once": path}:
                await turn.call("once", self._once, path, step.get("line"), idempotent=True)
            case {"emit": {"kind": kind, **rest}}:
                await turn.emit(kind, rest.get("body", {}))
                self._replied = self._replied or kind == "reply"
            case {"reply": text}:
                await self._reply(text.replace("{text}", self._message.text).replace("{output}", self._output))
            case {"delta": text}:
                turn.delta(text)
            case {"ask": question}:
                self._output = str(await turn.ask(question))
            case {"sleep_s": seconds}:
                await asyncio.sleep(seconds)
            case {"block_s": seconds}:
                time.sleep(seconds)  # noqa: ASYNC251 - it is what was asked for
            case {"fail": reason}:
                raise ScriptFailedError(reason)
            case _:
                raise AssertionError(f"a step that was not checked: {step}")

    async def _reply(self, text: str) -> None:
        self._replied = True
        await self._turn.emit("reply", {"text": text})

    async def _run(self, command: str, stdin: str, timeout_s: float | None) -> None:
        turn, message = self._turn, self._message
        effects = turn.settings.get("effects")

        async def run(command: str, idempotency_key: str) -> JsonObject:
            if isinstance(effects, str):
                line = {
                    "key": idempotency_key,
                    "conversation": turn.conversation_id,
                    "turn": turn.id,
                    "message": message.key,
                    "epoch": turn.epoch,
                }
                await asyncio.to_thread(_add_line, effects, json.dumps(line))
            ran = await turn.runtime.run(command, stdin=stdin, timeout_s=timeout_s)
            return ran.as_json()

        try:
            ran = await turn.call("run", run, command)
        except CallInterrupted:
            self._output = UNKNOWN_OUTCOME
        else:
            self._output = str(ran["stdout"]).strip()[-OUTPUT_CHARS:]

    async def _read(self, path: str) -> str:
        content = await self._turn.runtime.read(path)
        return content.decode(errors="replace").strip()[-OUTPUT_CHARS:]

    async def _once(self, path: str, line: str | None, idempotency_key: str) -> None:
        """The line carries its key, so that a second attempt finds it: how a tool becomes idempotent."""
        text = f"{idempotency_key} {line or self._message.text}".replace("\n", " ")
        try:
            before = (await self._turn.runtime.read(path)).decode(errors="replace")
        except FileNotFoundError:
            before = ""
        if not any(there.startswith(f"{idempotency_key} ") for there in before.splitlines()):
            await self._turn.runtime.write(path, f"{before}{text}\n")


def _add_line(file: str, line: str) -> None:
    """One write to the end of the file, so that lines of several processes never mix."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
