"""Export → replay → export is the identity over the past, for legal journals by chance, on every store."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from legal import journals
from test_stores import STORES

from tenure.abc import Creation, Limits, Reading, RuntimeFailure, RuntimeProvider
from tenure.clock import SystemClock
from tenure.config import Config
from tenure.conversation import Export, Fold, TurnState, fold, meaning_of, past_of, read_events, read_export
from tenure.journal import Delivery, Event
from tenure.node import Copy, Node
from tenure.testing.store_suite import Factory

pytestmark = pytest.mark.blocking_ok


class NoAgent:
    turn_timeout_s = None
    commands: Mapping[str, Delivery] = {"run": Delivery.TURN}

    async def ready(self) -> None: ...


class Nowhere(RuntimeProvider):
    """No runtimes: a copy is written without any."""

    kind = "nowhere"

    async def provision(self, spec, progress) -> Any:
        raise RuntimeFailure("there are none here")

    async def configure(self, runtime, credentials) -> None: ...

    async def attach(self, spec) -> None: ...

    async def discard(self, name, workspace=None) -> None: ...

    async def list(self) -> list:
        return []


class Copier:
    """A node on the store that a test is about, in an event loop of its own."""

    def __init__(self, factory: Factory) -> None:
        self.names = (f"c{number}" for number in itertools.count(1))
        self.runner = asyncio.Runner()
        config = Config(node="n", address="test://n", ttl_s=60, sweep_s=30, witness=False)
        store = factory(SystemClock(), Limits())
        self.node = Node(store, {"agent": cast("Any", NoAgent())}, provider=Nowhere(), config=config)
        self.runner.run(self.node.__aenter__())

    def close(self) -> None:
        self.runner.run(self.node.__aexit__())
        self.runner.close()

    async def copied(self, recording) -> list[Event]:
        name = next(self.names)
        creation = Creation(recording.agent, settings=recording.settings, policy=recording.policy)
        done = await self.node.rehydrate(Copy(name, recording, creation))
        fine = (done.record.owner, done.record.wanted, done.record.unsettled, done.record.turn)
        assert fine == (None, False, 0, TurnState.NONE)
        return await self.events(name)

    async def events(self, name: str) -> list[Event]:
        found: list[Event] = []
        while True:
            reading = await self.node.store.read(name, len(found))
            assert isinstance(reading, Reading)
            if not reading.events:
                self.record = reading.record
                return found
            found += reading.events

    def lines(self, events: list[Event]) -> list[bytes]:
        export = Export(self.record)
        return [line.encode() for line in (export.first(), *map(export.event, events), export.last())]


@pytest.fixture(params=STORES)
def copier(request: pytest.FixtureRequest, tmp_path: Path):
    make: Callable[[Path], Factory] = request.param
    one = Copier(make(tmp_path))
    yield one
    one.close()


def test_the_past_is_the_same(copier: Copier, request: pytest.FixtureRequest):
    examples = 20 if request.node.callspec.id == "memory" else 5

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(journals())
    def check(original: list[Event]) -> None:
        recording = read_events([e.as_json() for e in original], {}, event_bytes=1 << 20)
        copy = copier.runner.run(copier.copied(recording))
        cut = next(e.seq for e in copy if e.kind == "rehydrated")
        assert past_of(copy[:cut]) == past_of(original)
        as_copied = copy[: cut - 1]
        assert meaning_of(fold(Fold(), as_copied), as_copied) == meaning_of(recording.fold, original)
        fold(Fold(), copy)
        again = read_export(copier.lines(copy), event_bytes=1 << 20)
        assert past_of(copier.runner.run(copier.copied(again))) == past_of(copy)

    check()
