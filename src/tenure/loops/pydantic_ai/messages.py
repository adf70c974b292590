"""What the model was told and said, from the journal: a pure fold of ``pydantic_ai.messages`` and of calls' outcomes."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast, final

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolReturn,
    ToolReturnContent,
    ToolReturnPart,
    UserContent,
)
from pydantic_core import to_jsonable_python

from tenure.errors import LoopError
from tenure.journal import CallFinished, CallInterrupted, Event, Json, JsonObject, read_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tenure.abc import Message

MESSAGES: Final = "pydantic_ai.messages"
"""``{"from": n, "messages": […]}``: the first n messages stay, these follow."""
REPLY: Final = "reply"
INTERRUPTED: Final = (
    "This tool call was interrupted: the server that ran it was lost, or the turn was ended. Its outcome is unknown; it "
    "was not run again. Look at the state of things before you repeat it."
)
NOT_RUN: Final = "This tool call did not begin: the turn was ended before."

_PLACE = re.compile(r"\.(\d+)\+*\Z")
"""At the end of a call's name: the place in its reply."""
_RETURN: TypeAdapter[Any] = TypeAdapter(ToolReturn)
_CONTENT: TypeAdapter[Any] = TypeAdapter(ToolReturnContent)
_PARTS: TypeAdapter[list[UserContent]] = TypeAdapter(list[UserContent])
_ENDS = {"turn_completed", "turn_failed", "turn_interrupted"}


# --- messages -------------------------------------------------------------------------------------------------------


@final
class History:
    """The messages so far, and what came of the calls of the last reply."""

    def __init__(self) -> None:
        self.messages: list[ModelMessage] = []
        self._outcomes: dict[int, Event] = {}
        self._seen = 0

    def take(self, events: Iterable[Event]) -> None:
        """Fold further events, in order; those that were taken are passed over."""
        for event in events:
            if event.seq > self._seen:
                self._seen = event.seq
                self._take(event)

    def _take(self, event: Event) -> None:
        if event.kind == MESSAGES:
            body = cast("dict[str, Any]", event.body)
            self.messages[body["from"] :] = ModelMessagesTypeAdapter.validate_python(body["messages"])
            self._outcomes = {}
        elif event.kind in (CallFinished.kind, CallInterrupted.kind) and event.closes:
            if place := _PLACE.search(event.closes[0]):
                self._outcomes[int(place[1])] = event
        elif event.kind in _ENDS:
            self._mend(event)

    def _mend(self, end: Event) -> None:
        """A turn that was cut behind a reply that calls tools: each call gets its result, or words that say it has none."""
        last = self.messages[-1] if self.messages else None
        if not isinstance(last, ModelResponse) or not last.tool_calls:
            return
        at = datetime.fromisoformat(end.at.isoformat())
        returns = [
            ToolReturnPart(call.tool_name, self._told(place), call.tool_call_id, timestamp=at)
            for place, call in enumerate(last.tool_calls, 1)
        ]
        self.messages.append(ModelRequest(parts=returns, timestamp=at))
        self._outcomes = {}

    def _told(self, place: int) -> Any:
        outcome = self._outcomes.get(place)
        if outcome is None:
            return NOT_RUN
        body = read_body(outcome)
        if not isinstance(body, CallFinished):
            return INTERRUPTED
        if body.error is not None:
            return f"The tool failed: {_message(body.error)}"
        result = result_from_json(body.result)
        return result.return_value if isinstance(result, ToolReturn) else result


def as_json(messages: Sequence[ModelMessage]) -> list[Json]:
    return ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")


def replies(past: Sequence[Event]) -> list[ModelResponse]:
    """What the model has said in earlier attempts of a turn, in order."""
    said = [cast("dict[str, Any]", e.body)["messages"] for e in past if e.kind == MESSAGES]
    messages = [message for part in said for message in ModelMessagesTypeAdapter.validate_python(part)]
    return [message for message in messages if isinstance(message, ModelResponse)]


def prompt_of(messages: Sequence[Message]) -> str | list[UserContent]:
    """What a turn's messages ask of the model: text, or parts in the library's own shapes.

    :raises LoopError: there is content that is neither.
    """
    parts: list[UserContent] = []
    for message in messages:
        content = message.content if message.content is not None else message.text
        if isinstance(content, str):
            parts.append(content)
            continue
        try:
            parts += _PARTS.validate_python([_plain(part) for part in cast("list[Any]", content)])
        except (ValidationError, TypeError):
            raise LoopError(
                "the message's content is no list of texts and parts as Pydantic AI has them: send text"
            ) from None
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _plain(part: Any) -> Any:
    """``{"type": "text", "text": …}``, as other clients write it, is a text."""
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"kind": "image-url", "url": url}
        case _:
            return part


# --- results of tools -----------------------------------------------------------------------------------------------


def result_as_json(result: Any) -> Json:
    """What a later attempt reads of it.

    :raises PydanticSerializationError: it is no JSON, whatever is tried.
    """
    if isinstance(result, ToolReturn):
        return _RETURN.dump_python(result, mode="json")
    return to_jsonable_python(result, by_alias=True, bytes_mode="base64")


def result_from_json(result: Json) -> Any:
    if isinstance(result, dict) and result.get("kind") == "tool-return" and "return_value" in result:
        return _RETURN.validate_python(result)
    return _CONTENT.validate_python(result)


def output_as_json(output: Any, usage: Any) -> JsonObject:
    """The body of a ``reply``."""
    tokens = {"requests": usage.requests, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    if isinstance(output, str):
        return {"text": output, "usage": tokens}
    shaped = to_jsonable_python(output, serialize_unknown=True)
    return {"text": str(output), "output": shaped, "usage": tokens}


def _message(error: Json) -> str:
    return str(error.get("message", "")) if isinstance(error, dict) else str(error)
