"""SIGSTOP past the ttl, then SIGCONT: the zombie's late writes are refused, and the journal does not know it."""

from __future__ import annotations

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families
from world import World, world

from tenure.testing.processes import NodeProcess


async def test_a_frozen_owner_is_succeeded_and_its_late_writes_are_refused(tmp_path, store):
    async with world(tmp_path, store, ttl_s=2.0) as one:
        first, second = one.node("first"), one.node("second")
        await first.start()
        await one.create("c", first)
        await one.http.post(f"{first.url}/conversations/c/start", params={"here": "true"}, json={})
        await one.send("c", "hello", first, between_s=1.5)
        await one.event("c", "call_finished")  # the call `pause` is next: frozen between two appends
        await one.freeze(first)
        await second.start()
        taken = await one.event("c", "claimed", count=2)
        await one.event("c", "turn_completed", after=taken.seq)
        before = [e.as_json() for e in await one.events("c")]

        first.thaw()

        async def given_up() -> bool:
            return "incarnation given up" in first.log

        await one.until(given_up, "the zombie to find out")
        await one.quiescent()
        after = [e.as_json() for e in await one.events("c")]
        assert after == before, "the journal is identical with and without the zombie"
        assert [e["epoch"] for e in before if e["kind"] == "claimed"] == [1, 2]
        [node] = [n for n in await one.get("/nodes", second) if n["node"] == "second"]
        assert node["owned"] >= 0
        again = await one.send("c", "again", first)  # the thawed process is a new incarnation, and serves anybody
        await one.answered("c", again)
        await one.quiescent()
        for node in (first, second):
            counted = await metrics_of(one, node)
            received, accepted = counted["tenure_commands_received_total"], counted["tenure_commands_accepted_total"]
            assert received == accepted + counted["tenure_commands_refused_total"], (node.name, counted)
        assert (await metrics_of(one, first))["tenure_commands_received_total"] >= 2, (
            "those before its freeze, and the one after"
        )
        assert (await metrics_of(one, first))["tenure_leases_lost_total"] == 1
        await one.judge()


async def metrics_of(one: World, node: NodeProcess) -> Counter[str]:
    """What the node counts, by series, over all labels."""
    found = Counter[str]()
    for family in text_string_to_metric_families((await one.http.get(f"{node.url}/metrics")).text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


async def test_a_frozen_zombie_is_refused_by_the_store_itself(tmp_path, store):
    """With trust taken out of the game (an hour's ttl on the zombie's side would hold it), the fence alone refuses:
    a forced takeover deposes a frozen owner whose lease has long to live."""
    async with world(tmp_path, store, ttl_s=60.0) as one:
        first, second = one.node("first"), one.node("second")
        await first.start()
        await second.start()
        await one.create("c", first)
        await one.http.post(f"{first.url}/conversations/c/start", params={"here": "true"}, json={})
        await one.send("c", "hello", first, between_s=1.0)
        await one.event("c", "call_finished")
        await one.freeze(first)
        await one.post("/conversations/c/takeover", {}, second)
        await one.event("c", "turn_completed")
        before = [e.as_json() for e in await one.events("c")]
        first.thaw()

        async def refused():
            return [r for r in await one.store.refusals("c") if r.lease.epoch == 1]

        refusals = await one.until(refused, "the refusal of the zombie's write")
        assert refusals[0].operation == "append"
        assert [e.as_json() for e in await one.events("c")] == before
        await one.judge()
