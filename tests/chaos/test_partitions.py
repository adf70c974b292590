"""Networks that fail in the kernel, a network namespace of its own for the node: one-way partitions between it and its
store, packets that are late, packets that are lost.

Where the rights for namespaces are missing, the proxy of the fault menu (`way-there`, `way-back`, `way-parted`, `way-slow`)
stands for them alone; the test's record says so, and the last line of `make test` with it.
"""

from __future__ import annotations

from backings import CHOSEN
from world import World, world

from tenure.testing import netns
from tenure.testing.netns import Namespace, Way
from tenure.testing.processes import NodeProcess

TTL_S = 1.5
LONG_TTL_S = 3.0
"""So long that a noisy machine and some late packets do not cost a lease."""
OPTIONS = ("--sweep-s", "0.3")


async def _in_mid_turn(one: World, conversation: str, hit: NodeProcess, other: NodeProcess) -> None:
    await one.create(conversation, other)

    async def here() -> bool:
        reply = await one.http.post(f"{hit.url}/conversations/{conversation}/start", params={"here": "true"}, json={})
        return reply.status_code in (200, 202)

    await one.until(here, "a start on the node that will be cut off")
    await one.send(conversation, "before", other, between_s=2 * TTL_S)
    await one.event(conversation, "call_started", count=2)


async def test_a_node_that_is_cut_off_one_way_is_succeeded(tmp_path, record_property):
    """Whether its renewals do not arrive, or their answers: it stops by itself, and its turn goes on elsewhere."""
    if "redis" not in CHOSEN:
        return  # named others only
    if not netns.possible():
        record_property("left-out", "no network namespaces here, so partitions are those of the proxy alone")
        return
    with Namespace() as place:
        async with world(tmp_path, "redis", host=place.host, ttl_s=TTL_S, options=OPTIONS) as one:
            hit, other = one.node("hit", place=place), one.node("other")
            await one.nodes.start()
            for number, ways in enumerate(((Way.OUT,), (Way.IN,), (Way.OUT, Way.IN))):
                conversation = f"cut-{number}"
                await _in_mid_turn(one, conversation, hit, other)
                with place.partition(*ways):
                    taken = await one.event(conversation, "claimed", count=2)
                    during = await one.send(conversation, "during", other)
                    await one.answered(conversation, during)
                assert taken.body["node"] == "other" and taken.body["previous"], taken
                await hit.ready()
                after = await one.send(conversation, "after", hit)
                await one.answered(conversation, after)
            assert hit.log.count("incarnation given up") >= 3, "it stopped by itself each time"
            await one.quiescent()
            await one.judge()


async def test_a_node_at_the_end_of_a_long_cable_keeps_its_turns_until_its_store_is_a_ttl_away(
    tmp_path, record_property
):
    """Each packet is late, or some are lost, and the kernel's TCP sends them again: the owner lives with it. If a renewal
    takes longer than the ttl, it does not."""
    if "redis" not in CHOSEN:
        return  # named others only
    if not netns.possible(long=True):
        record_property("left-out", "no TUN devices in namespaces here, so packets are late in the proxy alone")
        return
    with Namespace(long=True) as place:
        async with world(tmp_path, "redis", host=place.host, ttl_s=LONG_TTL_S, options=OPTIONS) as one:
            hit, other = one.node("hit", place=place), one.node("other")
            await one.nodes.start()

            await _in_mid_turn(one, "late", hit, other)
            with place.wire.late(LONG_TTL_S / 30):
                during = await one.send("late", "during", other)
                await one.answered("late", during)
            assert [e.body["node"] for e in await one.events("late") if e.kind == "claimed"] == ["hit"]

            await _in_mid_turn(one, "lossy", hit, other)
            lost = place.wire.lost
            with place.wire.lossy(0.1):
                for number in range(3):
                    during = await one.send("lossy", f"during {number}", hit, other)
                    await one.answered("lossy", during)
            assert place.wire.lost > lost, "packets were lost"

            await _in_mid_turn(one, "too-late", hit, other)
            with place.wire.late(LONG_TTL_S):
                taken = await one.event("too-late", "claimed", count=2)
                during = await one.send("too-late", "during", other)
                await one.answered("too-late", during)
            assert taken.body["node"] == "other" and taken.body["previous"], taken
            assert "incarnation given up" in hit.log, "it stopped by itself"
            await hit.ready()
            after = await one.send("too-late", "after", hit)
            await one.answered("too-late", after)
            await one.quiescent()
            await one.judge()
