"""The provider's part of the matrix of ``tests/simulation/test_start_matrix.py``, in real time on every store: a start that
fails, hangs, lies or loses its caller ends with one runtime or none, a claim that is free, and a reason in the journal."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from test_stores import every_store

from tenure.abc import AgentLoop, Creation, Deleted, Limits, Reading, Store, Submit
from tenure.clock import SystemClock
from tenure.config import Config
from tenure.conversation import Fold, fold
from tenure.errors import ProvisioningError
from tenure.journal import Command, Delivery, Draft
from tenure.node import Node, sealing
from tenure.testing.provider import Fail, Fault, FaultyProvider, Hang, Lie, Machine
from tenure.testing.store_suite import Factory
from tenure.vault import Keys, Secret

PATIENCE_S = 30.0


class Echo(AgentLoop):
    def check(self, settings):
        return settings

    @asynccontextmanager
    async def open(self, place):
        yield self

    async def turn(self, turn):
        await turn.journal([Draft("reply", {"text": turn.messages[-1].text})])

    async def now(self, command):
        raise NotImplementedError


def node(store: Store, machine: Machine, name: str, keys: Sequence[str] | None = None) -> tuple[Node, FaultyProvider]:
    provider = FaultyProvider(machine, outlives_node=True)
    config = Config(
        node=name, ttl_s=5, sweep_s=0.1, reap_s=0.3, start_timeout_s=1, backoff_s=0.05, drain_s=1, witness=False
    )  # fmt: skip
    sealed = None if keys is None else Keys(keys)
    return Node(store, {"agent": Echo()}, provider=provider, config=config, keys=sealed), provider


async def meaning(store: Store) -> Fold:
    answer = await store.read("c")
    assert isinstance(answer, Reading) and not isinstance(answer, Deleted)
    return fold(Fold(), answer.events)


async def kinds(store: Store) -> list[str]:
    answer = await store.read("c")
    assert isinstance(answer, Reading)
    return [e.kind for e in answer.events]


async def eventually(look: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await look():  # type: ignore[misc]
            await asyncio.sleep(0.02)


@every_store
@pytest.mark.parametrize(
    ("step", "fault", "says"),
    [
        ("provision", Fail("no room on host 7"), "no room on host 7"),
        ("ready", Hang(), "no answer within 1 s"),
        ("configure", Fail("timed out", after=True), "timed out"),
        ("provision", Lie(), None),
        ("provision", Hang(), "gone"),
    ],
    ids=["fails", "hangs", "loses-its-reply", "lies", "caller-gone"],
)
async def test_a_start(store: Callable[[Path], Factory], tmp_path: Path, step: str, fault: Fault, says: str | None):
    factory, machine = store(tmp_path), Machine()
    ours, theirs = (factory(SystemClock(), Limits()) for _ in range(2))
    one, provider = node(ours, machine, "one")
    peer, _ = node(theirs, machine, "peer")
    async with one:
        provider.will(step, fault)
        await one.store.submit(Submit("c", None, Creation(default_agent="agent")))
        starting = asyncio.ensure_future(one.maybe_start_agent_loop("c"))
        await provider.reached(step)
        if says == "gone":
            starting.cancel()
            provider.let_go()
        elif says is not None:
            with pytest.raises(ProvisioningError, match=says):
                await starting
        async with peer:
            said = await peer.submit(Submit("c", Command("message", {"text": "hi"}, "k", Delivery.TURN)))

            async def served() -> bool:
                return "turn_completed" in await kinds(peer.store)

            async def clean() -> bool:
                return set(machine.standing) <= {(await meaning(peer.store)).runtime}

            await eventually(served)
            await eventually(clean)
            state = await meaning(peer.store)
            assert {n for done, n in machine.log if done == "discard"} <= set(state.retired)
            info = await peer.start_info("c")
            assert info.error is None and said is not None
            assert ("start_failed" in await kinds(peer.store)) is (says not in (None, "gone"))


@every_store
async def test_takeovers_with_a_rotated_key(store: Callable[[Path], Factory], tmp_path: Path):
    """The key rotates between one owner and the next, and the old one is taken away before the third: each configures
    the runtime that it took over with the secret."""
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    factory, machine = store(tmp_path), Machine()
    nodes = [
        node(factory(SystemClock(), Limits()), machine, name, keys)[0]
        for name, keys in (("one", [old]), ("two", [new, old]), ("three", [new]))
    ]
    async with nodes[0] as one, nodes[1] as two, nodes[2] as three:
        wants = {"credentials": {"TOKEN": "vault:token"}}
        await one.store.submit(Submit("c", None, Creation(default_agent="agent", settings=wants)))
        await sealing.put(one.store, one.keys, "c", "token", Secret("of the vault"))
        info = await one.maybe_start_agent_loop("c")
        for owner in (two, three):
            name = (await meaning(owner.store)).runtime
            assert name is not None and machine.credentials.pop(name) == {"TOKEN": "of the vault"}
            if owner is two:
                assert (await sealing.rotate(two.store, two.keys, None, 100)).rewritten == 1
            info = await owner.take_over("c", info.epoch)
            assert info.here and machine.credentials[name] == {"TOKEN": "of the vault"}
    assert [b for b in machine.log if b[0] == "provision"] == [("provision", name)], "one runtime, reattached twice"
