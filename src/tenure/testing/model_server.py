"""A language model that says what a script says: an OpenAI-compatible server for tests and the demo.

``python -m tenure.testing.model_server --script replies.json --port 8401`` serves ``/v1/chat/completions`` (streamed or
not, with tool calls) and ``/v1/models`` without any key. A script is a JSON object of lists of replies, by name::

    {"default": [{"text": "Hello."}],
     "edit": [{"calls": [{"name": "terminal", "arguments": {"command": "ls"}}], "latency_s": 0.2},
              {"error": {"status": 429, "times": 2, "retry_after_s": 0.05}, "text": "Done."}]}

A message of the user that contains ``[script:edit]`` chooses the script; the reply is the one at the place that follows
from the number of the model's own messages since then. So the choice depends on nothing but the conversation that comes
with the request: the answer is the same whoever asks, before and after a takeover. Behind the end of a script the
model says ``(the script has ended)``.

=========================================  ==========================================================================
``"text": "…"``                            what the model says
``"calls": [{"name", "arguments"}, …]``    tools that it calls, all at once; arguments are JSON, or text as it is
``"latency_s": 0.5``                       before anything is answered
``"error": {"status", "times"?, …}``       so many times (default: always) this status instead, for this very request;
                                           ``retry_after_s`` is its header, ``message`` its text
``"cut": true``                            the connection ends in the middle of the answer
=========================================  ==========================================================================

What was asked is kept, the last :data:`KEPT` of it: :attr:`ModelServer.requests`, and ``GET /requests`` for other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast, final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tenure.errors import InvalidInputError
from tenure.journal import digest

MODEL: Final = "scripted"
KEPT: Final = 1000
CHOICE = re.compile(r"\[script:([A-Za-z0-9._-]+)\]")
ENDED: Mapping[str, Any] = {"text": "(the script has ended)"}
_PARTS = {"text", "calls", "latency_s", "error", "cut"}

type Scripts = Mapping[str, Sequence[Mapping[str, Any]]]


def check_scripts(scripts: object) -> Scripts:
    """The scripts, if they are what this module says.

    :raises InvalidInputError: names the place.
    """
    if not isinstance(scripts, Mapping):
        raise InvalidInputError("script", "must be an object of lists of replies", 'write {"default": [{"text": "…"}]}')
    for name, replies in cast("Mapping[str, Any]", scripts).items():
        if not isinstance(replies, list):
            raise InvalidInputError(f"script.{name}", "must be a list of replies", 'write [{"text": "…"}]')
        for number, reply in enumerate(cast("list[Any]", replies)):
            if not isinstance(reply, dict) or not reply or not cast("dict[str, Any]", reply).keys() <= _PARTS:
                parts = ", ".join(sorted(_PARTS))
                raise InvalidInputError(f"script.{name}[{number}]", "is no reply", f"write an object of {parts}")
            _check_error(f"script.{name}[{number}].error", cast("dict[str, Any]", reply).get("error"))
    return cast("Scripts", scripts)


def _check_error(where: str, error: Any) -> None:
    if error is None:
        return
    parts = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    status, times = parts.get("status"), parts.get("times", 1)
    if not isinstance(status, int) or not 400 <= status <= 599:
        raise InvalidInputError(f"{where}.status", "must be 400 to 599", 'write {"error": {"status": 429}}')
    if not isinstance(times, int) or times < 1:
        raise InvalidInputError(f"{where}.times", "must be a number of times", "leave it out for always")


def choose(scripts: Scripts, messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The reply to a conversation, from the conversation alone."""
    name, said = "default", 0
    for message in messages:
        if message.get("role") == "user" and (chosen := CHOICE.findall(_text(message.get("content")))):
            name, said = chosen[-1], 0
        elif message.get("role") == "assistant":
            said += 1
    replies = scripts.get(name)
    if replies is None:
        return {"text": f"(there is no script {name})"}
    return replies[said] if said < len(replies) else ENDED


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[dict[str, Any]]", content) if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts)


@final
class ModelServer:
    """The server, in this event loop: ``async with ModelServer(scripts) as model: … model.url``."""

    def __init__(self, scripts: object, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.scripts = check_scripts(scripts)
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT)
        """The bodies of what was asked, oldest first."""
        self._failed: Counter[str] = Counter()
        self._bound = (host, port)
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.app = FastAPI(openapi_url=None)
        self.app.post("/v1/chat/completions")(self.complete)
        self.app.get("/v1/models")(self.models)
        self.app.get("/requests")(self.asked)

    @property
    def url(self) -> str:
        """What a client takes as base URL."""
        assert self._socket is not None, "serving"
        host, port = self._socket.getsockname()[:2]
        return f"http://{host}:{port}/v1"

    async def __aenter__(self) -> Self:
        self._socket = socket.create_server(self._bound)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="model server")
        return self  # the socket listens already: who connects now is answered a moment later

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None and self._serving is not None, "serving"
        self._server.should_exit = self._server.force_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving

    # --- routes -----------------------------------------------------------------------------------------------------

    async def models(self) -> Any:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tenure"}]}

    async def asked(self) -> Any:
        return list(self.requests)

    async def complete(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        self.requests.append(body)
        reply = choose(self.scripts, body.get("messages", []))
        await asyncio.sleep(float(reply.get("latency_s", 0.0)))
        if (failure := self._failure(reply, body)) is not None:
            return failure
        turn = len(body.get("messages", []))
        if body.get("stream"):
            options: dict[str, Any] = body.get("stream_options") or {}
            usage = bool(options.get("include_usage"))
            return StreamingResponse(_stream(reply, turn, usage), media_type="text/event-stream")
        if reply.get("cut"):
            return StreamingResponse(_cut_short(), media_type="application/json", headers={"content-length": "1000"})
        finish = "tool_calls" if reply.get("calls") else "stop"
        choice = {"index": 0, "message": _message(reply, turn), "finish_reason": finish}
        return JSONResponse({**_head(turn, "chat.completion"), "choices": [choice], "usage": _usage(reply, turn)})

    def _failure(self, reply: Mapping[str, Any], body: Mapping[str, Any]) -> Response | None:
        error = reply.get("error")
        if error is None:
            return None
        same = digest({"messages": body.get("messages", [])})
        if self._failed[same] >= error.get("times", sys.maxsize):
            return None
        self._failed[same] += 1
        headers = {"retry-after": f"{error['retry_after_s']:g}"} if "retry_after_s" in error else {}
        told = {"message": error.get("message", "as the script says"), "type": "scripted", "code": None, "param": None}
        return JSONResponse({"error": told}, error["status"], headers)


# --- replies as OpenAI's API shapes them ----------------------------------------------------------------------------


def _head(turn: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{turn}", "object": kind, "created": 0, "model": MODEL}


def _usage(reply: Mapping[str, Any], turn: int) -> dict[str, int]:
    """No tokens are counted here: the numbers are the same each time, and nothing more."""
    said = len(json.dumps(dict(reply))) // 4
    return {"prompt_tokens": 100 * turn, "completion_tokens": said, "total_tokens": 100 * turn + said}


def _calls(reply: Mapping[str, Any], turn: int) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for number, call in enumerate(reply.get("calls", ())):
        arguments = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        function = {"name": call["name"], "arguments": text}
        calls.append({"id": f"call_{turn}_{number}", "type": "function", "function": function})
    return calls


def _message(reply: Mapping[str, Any], turn: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.get("text")}
    if calls := _calls(reply, turn):
        message["tool_calls"] = calls
    return message


def _pieces(reply: Mapping[str, Any], turn: int) -> list[dict[str, Any]]:
    """The deltas of a streamed answer: word by word, and a call's arguments in two parts."""
    pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    pieces += [{"content": word} for word in re.findall(r"\S+\s*", reply.get("text") or "")]
    for index, call in enumerate(_calls(reply, turn)):
        text = call["function"]["arguments"]
        half = len(text) // 2
        begun = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": text[:half]}}
        pieces += [
            {"tool_calls": [begun]},
            {"tool_calls": [{"index": index, "function": {"arguments": text[half:]}}]},
        ]
    return pieces


async def _stream(reply: Mapping[str, Any], turn: int, usage: bool) -> AsyncIterator[str]:
    pieces = _pieces(reply, turn)
    for number, delta in enumerate(pieces):
        if reply.get("cut") and number >= len(pieces) // 2:
            raise ConnectionResetError("as the script says")
        yield _data({**_head(turn, "chat.completion.chunk"), "choices": [_chunk(delta, None)]})
    finish = "tool_calls" if reply.get("calls") else "stop"
    yield _data({**_head(turn, "chat.completion.chunk"), "choices": [_chunk({}, finish)]})
    if usage:
        yield _data({**_head(turn, "chat.completion.chunk"), "choices": [], "usage": _usage(reply, turn)})
    yield "data: [DONE]\n\n"


def _chunk(delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _data(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _cut_short() -> AsyncIterator[str]:
    yield '{"id": "chatcmpl'
    raise ConnectionResetError("as the script says")


# --- as a process ---------------------------------------------------------------------------------------------------


async def _serve(scripts: object, host: str, port: int) -> None:
    async with ModelServer(scripts, host=host, port=port) as server:
        print(server.url, flush=True)  # noqa: T201 - whoever started it reads the address here
        assert server._serving is not None, "serving"  # pyright: ignore[reportPrivateUsage]
        await asyncio.shield(server._serving)  # pyright: ignore[reportPrivateUsage]


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the first line of the output is the base URL."""
    parser = argparse.ArgumentParser(prog="python -m tenure.testing.model_server", description="A scripted model.")
    parser.add_argument("--script", type=Path, required=True, help="a JSON file of replies, by name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    given = parser.parse_args(argv)
    asyncio.run(_serve(json.loads(given.script.read_text(encoding="utf-8")), given.host, given.port))


if __name__ == "__main__":
    main()
