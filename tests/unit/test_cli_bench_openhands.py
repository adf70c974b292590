"""The row of OpenHands agents, with servers that only ask the model: what is measured of whom, and what is said to be missing."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx
import pytest

from tenure.cli.bench.results import Row
from tenure.cli.bench.rows import openhands
from tenure.cli.bench.sampling import MeasureFailedError
from tenure.cli.bench.stage import TINY, Stage
from tenure.cli.bench.stock import STOCK
from tenure.errors import InvalidInputError
from tenure.testing.model_server import ModelServer


class Fake:
    """A server whose agents ask the model, once, and again when they are resumed."""

    born: ClassVar[list[str]] = []

    def __init__(self, name: str, model: ModelServer, http: httpx.AsyncClient) -> None:
        self.name, self.model, self.http, self.pid = name, model, http, os.getpid()
        Fake.born.append(name)

    async def up(self) -> float:
        return 1.0

    async def say(self, conversation: str, text: str, agent: Mapping[str, Any]) -> None:
        messages = [{"role": "system", "content": "You are one."}, {"role": "user", "content": text}]
        body = {"messages": messages, "tools": agent["tools"]}
        (await self.http.post(f"{self.model.url}/chat/completions", json=body)).raise_for_status()

    async def idle(self, conversation: str) -> bool:
        return True

    async def resume(self, conversation: str) -> bool:
        if self.name == "two":
            return False
        await self.say(conversation, f"{conversation}, go on", {"tools": [{"name": "terminal"}]})
        return True

    def kill(self) -> float:
        return 0.0


@pytest.mark.blocking_ok  # it measures, and serves nobody
async def test_each_kind_is_measured_and_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openhands, "ALONE_S", 0.05)
    monkeypatch.setattr(openhands, "IN_THE_TOOL_S", 0.0)
    row = Row("openhands")
    async with ModelServer(openhands.SCRIPTS) as model, httpx.AsyncClient(trust_env=False) as http:
        bench = openhands._Bench(model, TINY, row)
        await bench.on(STOCK, "peer", lambda name: Fake(name, model, http))
    found = {figure.name.removeprefix(f"{STOCK}: "): figure for figure in row.figures}
    assert list(found) == [
        "start of a server, two at once",
        "memory of a server",
        "memory per resident conversation, 3 of them, idle",
        "message to the first call of the model",
        "takeover, a server started anew, and asked by a client",
    ]
    assert found["message to the first call of the model"].samples == 3
    assert Fake.born == ["one", "two", "three"]
    assert sorted(row.missing) == [
        f"{STOCK}: takeover after kill -9 in a tool, nobody asking",
        f"{STOCK}: takeover, asked of the other server",
    ]
    openhands._compare(row)
    assert [bound.met for bound in row.bounds] == [False], "without ours nothing is met"


async def test_without_the_sdk_nothing_is_measured_and_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise InvalidInputError("agent", "the OpenHands SDK is not installed here", "pip install 'tenure[openhands]'")

    monkeypatch.setattr(openhands, "insist_on_extra", missing)
    with pytest.raises(MeasureFailedError, match=r"pip install 'tenure\[openhands\]'"):
        await openhands.measure(Stage({}, TINY), Row("openhands"))
