"""Function agents on real nodes, in virtual time: owners are killed, cut off, drained and told to stop in mid-turn."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from node_support import C, Cluster, in_virtual_time, until

from tenure.abc import AgentLoop, Creation
from tenure.conversation import past_of, read_events
from tenure.errors import CallInterrupted
from tenure.loops import function_loop, load_loop
from tenure.loops.function.turn import FunctionTurn
from tenure.node import Copy


class Shop:
    """An agent with calls of 100 ms, one of them idempotent, two at once, and what it did outside."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()

    def loop(self) -> AgentLoop:
        return function_loop(self.agent)

    async def _act(self, what: str, idempotency_key: str) -> str:
        await asyncio.sleep(0.05)
        self.effects[f"{what} {idempotency_key}"] += 1
        await asyncio.sleep(0.05)
        return what

    async def agent(self, turn: FunctionTurn) -> None:
        told: list[Any] = []
        for name, idempotent in (("pay", False), ("put", True)):
            told.append(await self._call(turn, name, idempotent))
            await turn.emit("note", {"done": name})
        told += await asyncio.gather(*(self._call(turn, name, False) for name in ("left", "right")))
        await turn.emit("reply", {"told": told})

    async def _call(self, turn: FunctionTurn, name: str, idempotent: bool) -> str:
        try:
            return await turn.call(name, self._act, name, idempotent=idempotent)
        except CallInterrupted:
            return f"{name}?"

    def happened(self) -> dict[str, int]:
        """How often each thing happened outside."""
        return {name.split()[0]: count for name, count in self.effects.items()}


def told_once(cluster: Cluster, shop: Shop) -> list[str]:
    """What the reply says, after the turn was checked."""
    cluster.fold()
    kinds = Counter(cluster.kinds())
    assert (kinds["turn_completed"], kinds["turn_failed"], kinds["note"], kinds["reply"]) == (1, 0, 2, 1), kinds
    assert kinds["call_started"] == 4 == kinds["call_finished"] + kinds["call_interrupted"]
    told: Any = cluster.events("reply")[0].body["told"]
    happened = shop.happened()
    for name in ("pay", "left", "right"):
        assert happened.get(name, 0) <= 1, f"{name} happened {happened[name]} times"
        assert told.count(name) + told.count(f"{name}?") == 1
        assert happened.get(name) == 1 or f"{name}?" in told, "what was told to be done was done"
    assert "put" in told and happened["put"] >= 1
    assert len({name for name in shop.effects if name.startswith("put")}) == 1, "one key"
    return told


async def ended(cluster: Cluster) -> None:
    await until(lambda: cluster.journal() and cluster.record().unsettled == 0, 60)


@pytest.mark.parametrize("at_ms", range(5, 380, 15))
@in_virtual_time
async def test_the_owner_is_killed(cluster: Cluster, at_ms: int):
    shop = Shop()
    owner = await cluster.add(agents={"echo": shop.loop()})
    await cluster.say(via=owner)
    await until(lambda: "turn_started" in cluster.kinds())
    await cluster.add(agents={"echo": shop.loop()})
    await asyncio.sleep(at_ms / 1000)
    owner.kill()
    await ended(cluster)
    told_once(cluster, shop)


@pytest.mark.parametrize("at_ms", [0, 60, 140, 230, 290])
@in_virtual_time
async def test_the_owner_is_drained_without_time_for_the_turn(cluster: Cluster, at_ms: int):
    """Handed over at a step boundary: nothing is interrupted."""
    shop = Shop()
    owner = await cluster.add(agents={"echo": shop.loop()})
    await cluster.say(via=owner)
    await cluster.add(agents={"echo": shop.loop()})
    await until(lambda: "turn_started" in cluster.kinds())
    await asyncio.sleep(at_ms / 1000)
    await owner.leave(0)
    await ended(cluster)
    assert told_once(cluster, shop) == ["pay", "put", "left", "right"]
    assert set(shop.happened().values()) == {1}
    assert cluster.record().epoch == 2


@pytest.mark.parametrize("at_ms", [20, 70, 130, 280])
@in_virtual_time
async def test_the_owner_is_cut_off_from_the_store(cluster: Cluster, at_ms: int):
    """It gives up by itself; nothing of its agent runs on beside the successor's."""
    shop = Shop()
    owner = await cluster.add(agents={"echo": shop.loop()})
    await cluster.say(via=owner)
    await until(lambda: "turn_started" in cluster.kinds())
    await cluster.add(agents={"echo": shop.loop()})
    await asyncio.sleep(at_ms / 1000)
    owner.rig.down = owner.beats.down = True
    await ended(cluster)
    told_once(cluster, shop)


@pytest.mark.parametrize("kind", ["interrupt", "stop"])
@pytest.mark.parametrize("at_ms", [0, 30, 100, 105, 250])
@in_virtual_time
async def test_a_person_ends_the_turn(cluster: Cluster, at_ms: int, kind: str):
    shop = Shop()
    owner = await cluster.add(agents={"echo": shop.loop()})
    await cluster.say(via=owner)
    await until(lambda: "turn_started" in cluster.kinds())
    await asyncio.sleep(at_ms / 1000)
    await cluster.command(kind, via=owner)
    await ended(cluster)
    fold = cluster.fold()
    assert fold.turn is None and "turn_interrupted" in cluster.kinds()
    happened = dict(shop.effects)
    await asyncio.sleep(5)
    assert dict(shop.effects) == happened, "the call that ran was cancelled"
    if kind == "stop":
        await cluster.command("start", via=owner)
    await cluster.say("again", via=owner)
    await until(lambda: cluster.events("reply"))


@in_virtual_time
async def test_an_answer_finds_another_owner(cluster: Cluster):
    seen: list[Any] = []

    async def agent(turn: FunctionTurn) -> None:
        await turn.call("think", asyncio.sleep, 0.01)
        answer = await turn.ask({"question": "colour?"})
        seen.append((turn.epoch, turn.attempt, answer))
        await turn.emit("reply", {"answer": answer})

    owner = await cluster.add(agents={"echo": function_loop(agent)}, idle_s=1)
    await cluster.say(via=owner)
    await until(lambda: cluster.record().owner is None and "turn_waiting" in cluster.kinds(), 60)
    owner.kill()
    other = await cluster.add(agents={"echo": function_loop(agent)})
    await cluster.command("answer", via=other, answer="red")
    await ended(cluster)
    assert seen == [(2, 2, "red")]
    assert cluster.kinds().count("turn_waiting") == 1
    assert cluster.events("reply")[0].body == {"answer": "red"}


@in_virtual_time
async def test_scripted_agents_take_each_others_work_over(cluster: Cluster):
    script = [{"run": "a"}, {"sleep_s": 0.2}, {"run": "b"}, {"reply": "done {text}"}]
    await cluster.create(settings={"script": script})
    owner = await cluster.add(agents={"echo": load_loop("scripted")})
    await cluster.say("one", via=owner)
    await cluster.say("two", via=owner)
    await until(lambda: "call_finished" in cluster.kinds())
    await cluster.add(agents={"echo": load_loop("scripted")})
    owner.kill()
    await ended(cluster)
    assert [e.body for e in cluster.events("reply")] == [{"text": "done one"}, {"text": "done two"}]
    assert cluster.kinds(C).count("call_started") == 4


@pytest.mark.parametrize("after_s", [0.06, 0.15, 0.27])
@in_virtual_time
async def test_a_conversation_with_a_takeover_and_cut_calls_is_copied_and_goes_on(cluster: Cluster, after_s: float):
    shop = Shop()
    first = await cluster.add(agent=shop.loop(), idle_s=1.0)
    second = await cluster.add(agent=shop.loop(), idle_s=1.0)
    seq = await cluster.say("order")
    await until(lambda: cluster.events("call_started"))
    owner, other = (first, second) if cluster.owner() == "n1" else (second, first)
    await asyncio.sleep(after_s)
    owner.kill()
    await until(lambda: cluster.settled(seq), 60)
    await until(lambda: cluster.owner() is None)
    happened, original = shop.happened(), past_of(cluster.journal())
    recording = read_events([e.as_json() for e in cluster.journal()], {}, event_bytes=1 << 20)
    await other.ask(other.node.rehydrate(Copy("copy", recording, Creation("echo"))))
    assert past_of(cluster.journal("copy")) == original
    assert cluster.fold("copy").pending == cluster.fold().pending == {}
    again = await cluster.say("order once more", "copy", via=other)
    assert shop.happened() == happened, "nothing of the past ran again"
    await until(lambda: cluster.settled(again, "copy"), 60)
    assert len(cluster.events("reply", "copy")) == 2
    keys = [e.body["key"] for e in cluster.events("call_started", "copy")]
    assert len(set(keys)) == len(keys), "the copy's calls have keys of their own"
    recording = read_events([e.as_json() for e in cluster.journal("copy")], {}, event_bytes=1 << 20)
    await other.ask(other.node.rehydrate(Copy("third", recording, Creation("echo"))))
    assert past_of(cluster.journal("third")) == past_of(cluster.journal("copy"))
