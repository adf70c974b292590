"""A copied database has the same conversations, and must not touch the runtimes of the original."""

import asyncio
import shutil
from pathlib import Path

import pytest

import tenure
from tenure.config import Config
from tenure.stores.sqlite import SqliteStore
from tenure.testing.provider import FaultyProvider, Machine

pytestmark = pytest.mark.blocking_ok  # a node reads its key file, once; the tests copy files themselves


async def echo(turn):
    await turn.emit("reply", {"text": turn.messages[-1].text})


def node(path: Path, machine: Machine) -> tenure.Node:
    config = Config(node=path.stem, witness=False, sweep_s=0.1, reap_s=0.1, drain_s=1)
    provider = FaultyProvider(machine, outlives_node=True)
    return tenure.Node(store=f"sqlite:///{path}", agents={"echo": echo}, provider=provider, config=config)


async def ask(one: tenure.Node, text: str) -> list[str]:
    seq = await one.send("c", text, key=text)
    found = one.events("c", after=seq, until="turn_completed")
    return [str(event.body["name"]) async for event in found if event.kind.startswith("runtime_")]


async def test_a_copy_gets_runtimes_of_its_own(tmp_path: Path):
    machine = Machine()
    async with node(tmp_path / "a.db", machine) as original:
        (first,) = set(await ask(original, "one"))
    shutil.copyfile(tmp_path / "a.db", tmp_path / "b.db")
    async with node(tmp_path / "b.db", machine) as copy:
        used = await ask(copy, "two")
        await asyncio.sleep(0.5)  # several periods of the copy's reaper
        assert used[0] == first, "the journal says that it goes on without it"
        assert len({used[-1].split(".")[0], first.split(".")[0]}) == 2
        assert machine.standing.keys() == {first, used[-1]}
    async with node(tmp_path / "a.db", machine) as original:
        assert await ask(original, "three") == [first], "reattached, untouched"
    assert ("discard", first) not in machine.log


async def test_a_new_boot_or_a_new_name_makes_no_copy(tmp_path: Path):
    async with SqliteStore(f"sqlite:///{tmp_path}/a.db", boot="one") as store:
        place = store.place
        assert store.lies_at(place)
        other_device = "/".join((place.split("/")[0], "0", place.split("/")[2]))
        assert not store.lies_at(other_device)
    (tmp_path / "a.db").rename(tmp_path / "b.db")
    async with SqliteStore(f"sqlite:///{tmp_path}/b.db", boot="one") as store:
        assert store.lies_at(place)
    async with SqliteStore(f"sqlite:///{tmp_path}/b.db", boot="two") as store:
        assert store.lies_at(place) and store.lies_at(other_device), "devices may be numbered anew"
    shutil.copyfile(tmp_path / "b.db", tmp_path / "c.db")
    async with SqliteStore(f"sqlite:///{tmp_path}/c.db", boot="two") as store:
        assert not store.lies_at(place)
