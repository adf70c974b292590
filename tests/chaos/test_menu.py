"""Each fault alone, in the middle of a turn of the node that it hits: who owns the conversation afterwards, and why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from backings import CHOSEN, LONG
from menu import MENU, Fault
from world import World, world

from tenure.journal import Event
from tenure.testing.history import History
from tenure.testing.processes import NodeProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

TTL_S = 3.0
"""So long that a noisy machine does not cost a lease by itself."""
OPTIONS = ("--sweep-s", "0.3", "--backoff-s", "0.1")
BEYOND_S, SHORT_S = 1.5 * TTL_S, 0.3 * TTL_S


NOT_ACCEPTED = {0, 503}
"""No answer, or the one that tells a client to try again: what a node may say whose store is away."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What becomes of the turn's owner: it ``keeps`` the conversation, ``loses`` it, ``releases`` it, or (``any``) that
    depends on the instant. `writes`: whether the cluster may take commands while the fault holds."""

    owner: str
    hold_s: float = SHORT_S
    writes: bool = True
    bites: tuple[str, ...] = ()
    """The stores on which, for all that was taken before it was felt, writes are refused in the end."""


EXPECTED: dict[str, Expected] = {
    "kill": Expected("loses", 0.1),
    "kill-both": Expected("loses", 0.1),
    "kill-witness": Expected("keeps", 0.1),
    "freeze": Expected("loses", BEYOND_S),
    "drain": Expected("releases", 0.1),
    "no-descriptors": Expected("keeps"),
    "no-memory": Expected("any"),
    "blocked-loop": Expected("keeps", BEYOND_S),
    "blocked-interpreter": Expected("loses", BEYOND_S),
    "wall-clock": Expected("keeps", TTL_S),
    "boot-clock": Expected("loses", TTL_S),
    **{f"front-{how}": Expected("keeps") for how in ("refused", "torn", "there", "back", "parted", "slow")},
    **{f"way-{how}": Expected("loses", BEYOND_S) for how in ("refused", "there", "back", "parted")},
    "way-torn": Expected("keeps", 0.1),
    "way-slow": Expected("keeps"),
    "store-killed": Expected("any", writes=False),
    "store-restarted": Expected("any", writes=False),
    "store-frozen": Expected("any", writes=False),
    "store-full": Expected("any", writes=False),
    "store-unreachable": Expected("any", BEYOND_S, writes=False),
    # What has room where it is goes on: a page that is half full, a log that is written over.
    "disk-full": Expected("any", BEYOND_S, bites=("redis",)),
    "disk-full-unsynced": Expected("any", BEYOND_S, bites=("redis",)),
    "writer-frozen": Expected("any", writes=False),
}


BRIEF = {
    *("kill-witness", "no-descriptors", "no-memory", "boot-clock", "front-torn", "way-there"),
    *("store-restarted", "store-full", "disk-full-unsynced"),
}
"""One of a kind, of those that no other test of this suite brings about: `make test` has these, each on one store."""
OWN = {"disk-full"}
"""What each store meets in its own way: `make test` has these on all."""


def _shared() -> list[tuple[str, Fault]]:
    """Each fault on each store in `make chaos`; in `make test` the stores share a few that they have in common."""
    pairs: list[tuple[str, Fault]] = []
    for number, one in enumerate(fault for fault in MENU.values() if LONG or fault.name in BRIEF | OWN):
        stores = [store for store in CHOSEN if store in one.stores]
        share = stores if LONG or one.name in OWN else stores[number % max(1, len(stores)) :][:1]
        pairs += [(store, one) for store in share]
    return sorted(pairs, key=lambda pair: pair[0])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        pairs = _shared()
        metafunc.parametrize(("store", "fault"), pairs, ids=[f"{store}-{one.name}" for store, one in pairs])


type Clusters = Callable[[str], Awaitable[World]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clusters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clusters]:
    """One cluster for each store, for all of its faults."""
    made: dict[str, World] = {}
    async with AsyncExitStack() as stack:

        async def cluster(store: str) -> World:
            if store not in made:
                folder = Path(tmp_path_factory.mktemp(store))
                how = {"small_disk": True, "ttl_s": TTL_S, "drain_s": 0.5, "options": OPTIONS}
                made[store] = await stack.enter_async_context(world(folder, store, **how))
                made[store].http.timeout = httpx.Timeout(2.0)
                for name in ("hit", "other"):
                    await made[store].parted_node(name)
            await made[store].nodes.start()
            return made[store]

        yield cluster


async def test_a_fault_alone(clusters: Clusters, store: str, fault: Fault):
    one = await clusters(store)
    one.history = History()
    hit, other = one.nodes["hit"], one.nodes["other"]
    expected = EXPECTED[fault.name]
    conversation = f"alone-{fault.name}"
    witness = hit.witness
    before = await _in_mid_turn(one, conversation, hit, 0.5 + expected.hold_s)
    async with fault.inject(one, hit, expected.hold_s):
        if fault.name == "no-memory":
            one.ask(one.send(conversation, "too much", hit, hog_mib=512))
        elif fault.name == "no-descriptors":
            one.ask(_knocked(hit))
        elif fault.target == "front":
            one.ask(one.send(conversation, "through a bad network", hit))
        told = await _tried(one, other if fault.target != "front" else hit, expected.hold_s)
        if fault.name == "no-descriptors":
            await one.until(lambda: _told(hit, "no connection can be accepted"), "what the server says of its door")
        if fault.name == "no-memory":
            await one.event(conversation, "turn_failed")  # it comes after the turn before it, however long that takes
        if fault.target == "store":
            assert told, "somebody was asked"
            assert set(told) <= {*NOT_ACCEPTED, *([202] if expected.writes else [])}, told
            if store in expected.bites:
                assert told[-1] in NOT_ACCEPTED, told
        elif fault.target != "front":
            assert told[-1] == 202, "the other node serves all the time"
    if fault.ends:
        assert await hit.ended(30) == (0 if fault.name == "drain" else -9)
        await hit.start()
    after = await one.send(conversation, "after", hit, other)
    await one.answered(conversation, before)
    await one.answered(conversation, after)
    await one.answers()
    await one.quiescent({conversation})
    events = await one.events(conversation)
    _owned(expected, events)
    if fault.name == "kill-witness":

        async def another() -> bool:
            return hit.witness not in (0, witness)

        await one.until(another, "another witness")
    if fault.name == "no-descriptors":
        assert "out of system resource" not in hit.log, "a traceback for each place of the socket's queue"
    if fault.name == "no-memory":
        assert [e for e in events if e.kind == "turn_failed" and "MemoryError" in str(e.body)], "the turn failed alone"
    assert (await one.get(f"/conversations/{conversation}/events", hit))["events"], "whoever was hit serves again"
    tried = sorted(one.conversations)
    records = zip(tried, await one.records(tried), strict=True)
    one.conversations = {name for name, record in records if record is not None}  # some were never created
    await one.quiescent()
    await one.judge()


async def test_every_fault_has_its_expected_outcome():
    assert EXPECTED.keys() == MENU.keys()


async def _in_mid_turn(one: World, conversation: str, owner: NodeProcess, pause_s: float) -> dict[str, object]:
    """A turn of this node that has done its work and pauses, between two calls."""
    await one.create(conversation, owner)
    path = f"{owner.url}/conversations/{conversation}/start"
    await one.until(lambda: _here(one, path), f"a start of {conversation} on {owner.name}")
    sent = await one.send(conversation, "before", owner, between_s=pause_s)
    await one.event(conversation, "call_started", count=2)
    return sent


async def _told(node: NodeProcess, what: str) -> bool:
    return what in node.log


async def _knocked(node: NodeProcess) -> None:
    """A connection of its own."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        with contextlib.suppress(httpx.TransportError):
            await http.get(f"{node.url}/")


async def _here(one: World, path: str) -> bool:
    return (await one.http.post(path, params={"here": "true"}, json={})).status_code in (200, 202)


async def _tried(one: World, node: NodeProcess, hold_s: float) -> list[int]:
    """What a node says to a new conversation, while the fault holds; 0 for no answer."""
    told: list[int] = []
    deadline = asyncio.get_running_loop().time() + hold_s
    while not told or asyncio.get_running_loop().time() < deadline:
        name = one.fresh("try")
        try:
            reply = await one.http.post(f"{one.url_of(node)}/conversations", json={"id": name, "message": "hey"})
        except httpx.TransportError:
            told.append(0)
        else:
            told.append(202 if reply.status_code in (201, 202) else reply.status_code)
        one.conversations.add(name)
        await asyncio.sleep(0.1)
    return told


def _owned(expected: Expected, events: list[Event]) -> None:
    claims = [e for e in events if e.kind == "claimed"]
    lost = [e for e in claims if e.body["previous"]]
    drained = [e for e in events if e.kind == "released" and e.body["reason"] == "drained"]
    shown = [(e.seq, e.kind, e.epoch, dict(e.body)) for e in events if e.kind in ("claimed", "released")]
    match expected.owner:
        case "keeps":
            assert len(claims) == 1, shown
        case "loses":
            assert lost, shown
        case "releases":
            assert drained and not lost, shown
        case _:
            assert claims, shown
    assert [e for e in events if e.kind == "turn_completed"], shown
