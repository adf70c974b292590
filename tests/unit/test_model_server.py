"""The scripted model: what it says follows from the conversation alone, in every form that a client may ask for."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenure.errors import InvalidInputError
from tenure.testing.model_server import ModelServer, check_scripts, choose

SCRIPTS: dict[str, Any] = {
    "default": [{"text": "Hello there."}],
    "work": [
        {"calls": [{"name": "terminal", "arguments": {"command": "ls"}}, {"name": "think", "arguments": "not json"}]},
        {"text": "Done.", "error": {"status": 429, "times": 2, "retry_after_s": 0.05}},
    ],
    "cut": [{"text": "one two three four", "cut": True}],
}
WORK = {"role": "user", "content": [{"type": "text", "text": "please [script:work]"}]}
SAID = {"role": "assistant", "content": "…"}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "hi"}], "Hello there."),
        ([{"role": "user", "content": "hi"}, SAID, {"role": "user", "content": "more"}], "(the script has ended)"),
        ([{"role": "user", "content": "hi"}, SAID, WORK, SAID], "Done."),
        ([WORK, SAID, SAID, {"role": "user", "content": "[script:default]"}], "Hello there."),
        ([{"role": "user", "content": "[script:nope]"}], "(there is no script nope)"),
    ],
)
def test_the_reply_follows_from_the_conversation(messages: Any, text: str):
    assert choose(SCRIPTS, messages)["text"] == text


ERRORS: list[Any] = [{}, {"status": "429"}, {"status": 200}, {"status": 429, "times": 0}, "429"]
BAD: list[Any] = [
    [],
    {"a": {}},
    {"a": [{}]},
    {"a": [{"txt": "x"}]},
    {"a": ["x"]},
    *({"a": [{"error": e}]} for e in ERRORS),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_script_that_is_none_is_refused(bad: Any):
    with pytest.raises(InvalidInputError, match="script"):
        check_scripts(bad)


async def test_the_server():
    async with ModelServer(SCRIPTS) as model, httpx.AsyncClient(base_url=model.url, trust_env=False) as http:
        assert (await http.get("/models")).json()["data"][0]["id"] == "scripted"

        answer = (await http.post("/chat/completions", json={"messages": [WORK]})).json()
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "tool_calls" and answer["usage"]["total_tokens"] > 0
        names = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]]
        assert names == [("call_1_0", "terminal", '{"command": "ls"}'), ("call_1_1", "think", "not json")]

        asked = {"messages": [WORK, SAID]}
        limited = [await http.post("/chat/completions", json=asked) for _ in range(3)]
        assert [r.status_code for r in limited] == [429, 429, 200]
        assert limited[0].headers["retry-after"] == "0.05"
        assert limited[2].json()["choices"][0]["message"]["content"] == "Done."
        assert [len(r["messages"]) for r in model.requests] == [1, 2, 2, 2]
        assert (await http.get(model.url.removesuffix("/v1") + "/requests")).json() == list(model.requests)


async def test_an_answer_in_pieces():
    async with ModelServer(SCRIPTS) as model, httpx.AsyncClient(base_url=model.url, trust_env=False) as http:
        asked = {"messages": [WORK], "stream": True, "stream_options": {"include_usage": True}}
        lines = [line[6:] for line in (await http.post("/chat/completions", json=asked)).text.split("\n") if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert chunks[-1]["usage"]["total_tokens"] > 0
        calls = [c for chunk in chunks[:-1] for c in chunk["choices"][0]["delta"].get("tool_calls", ())]
        written = "".join(c["function"]["arguments"] for c in calls if c["index"] == 0)
        assert json.loads(written) == {"command": "ls"}

        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(
                "/chat/completions",
                json={"messages": [{"role": "user", "content": "[script:cut]"}], "stream": True},
            )


async def test_an_answer_that_is_cut_or_late():
    async with ModelServer(SCRIPTS) as model, httpx.AsyncClient(base_url=model.url, trust_env=False) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post("/chat/completions", json={"messages": [{"role": "user", "content": "[script:cut]"}]})
        model.scripts = {"default": [{"text": "late", "latency_s": 30}]}
        late = asyncio.create_task(http.post("/chat/completions", json={"messages": []}))
        async with asyncio.timeout(20):
            while len(model.requests) < 2:
                await asyncio.sleep(0.01)
        assert not late.done(), "it was heard, and is not answered yet"
        late.cancel()


@pytest.mark.blocking_ok
def test_as_a_process_it_says_its_address_first(tmp_path: Path):
    (tmp_path / "replies.json").write_text(json.dumps({"default": [{"text": "Hello from afar."}]}))
    words = [sys.executable, "-m", "tenure.testing.model_server", "--script", str(tmp_path / "replies.json")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            answer = httpx.post(f"{url}/chat/completions", json={"messages": []}, trust_env=False, timeout=30).json()
            assert answer["choices"][0]["message"]["content"] == "Hello from afar."
        finally:
            process.terminate()
