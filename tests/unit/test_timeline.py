"""Who owned a conversation, and why it moved: folded from journals and refusals."""

import pytest
from journals import AT, Journal
from node_support import C, Cluster, in_virtual_time, until

from tenure.abc import Append, Death
from tenure.clock import Instant
from tenure.conversation import Ended, RefusedWrite, TenureSpan, timeline
from tenure.journal import Claimed, Draft, LoopStarted, Released, StartFailed

LATE = Instant(9.0)


def claimed(by: str, why: str = "takeover", **rest) -> Claimed:
    return Claimed(by, f"node {by}", f"http://{by}", why, **rest)


def owners(*bodies, refused=()) -> list[TenureSpan]:
    journal = Journal(claimed=False)
    for body in bodies:
        journal.epoch += isinstance(body, Claimed)
        journal.write(body)
    return list(timeline(journal.events, refused))


def test_nobody_has_owned_it():
    assert owners() == []


def test_from_claim_to_release():
    journal = Journal(claimed=False)
    journal.epoch = 1
    journal.write(claimed("a", "start"), LoopStarted("agent"), Released("a", "drained"))
    [one] = timeline(journal.events)
    assert one == TenureSpan(1, 2, "node a", "a", "http://a", "start", AT, AT, AT, Ended.DRAINED)


def test_the_last_one_holds_it_still():
    [one] = owners(claimed("a", "wanted"), LoopStarted("agent"))
    assert (one.until, one.ended) == (None, None)


@pytest.mark.parametrize("reason", ["idle", "drained", "stopped", "failed", "forced"])
def test_why_it_was_released(reason: str):
    [one] = owners(claimed("a"), Released("a", reason))
    assert one.ended == reason


def test_a_reason_of_a_newer_version_is_still_a_release():
    [one] = owners(claimed("a"), Released("a", "full_moon"))
    assert one.ended is Ended.RELEASED


@pytest.mark.parametrize(
    ("next_claim", "ended"),
    [
        (claimed("b", previous="a", death="exited"), Ended.DIED),
        (claimed("b", previous="a", death="expired"), Ended.EXPIRED),
        (claimed("b", previous="a", death="retired"), Ended.GAVE_UP),
        (claimed("b", "forced", forced=True, previous="a"), Ended.FORCED),
        (claimed("a", previous="a"), Ended.RECLAIMED),
        (claimed("b", previous="a"), Ended.LOST),
    ],
)
def test_why_it_moved_without_a_release(next_claim: Claimed, ended: Ended):
    first, second = owners(claimed("a"), next_claim)
    assert (first.ended, first.until, second.ended) == (ended, second.since, None)


def test_who_writes_after_its_lease_ran_out_had_been_frozen():
    late = [(LATE, "a", 1, "append"), (AT, "a", 1, "release"), (LATE, "a", 7, "append"), (LATE, "z", 1, "append")]
    first, second = owners(claimed("a"), claimed("b", previous="a", death="expired"), refused=late)
    assert first.ended is Ended.FROZEN
    assert first.refused == (RefusedWrite(AT, "release"), RefusedWrite(LATE, "append"))
    assert second.refused == ()


def test_a_start_that_failed_says_why():
    [one] = owners(claimed("a"), StartFailed("provision", "no such image"), Released("a", "failed"))
    assert (one.ended, one.failure, one.live_at) == (Ended.FAILED, "provision: no such image", None)


def test_what_began_before_the_events_is_left_out():
    journal = Journal(claimed=False)
    journal.epoch = 4
    journal.write(LoopStarted("agent"), Released("a", "idle"))
    assert timeline(journal.events) == ()


def test_its_json_reads_back():
    late = [(LATE, "a", 1, "append")]
    told = owners(claimed("a"), LoopStarted("x"), claimed("b", previous="a", death="exited"), refused=late)
    assert [TenureSpan.from_json(one.as_json()) for one in told] == told
    strange = {**told[0].as_json(), "ended": "abducted"}
    assert TenureSpan.from_json(strange).ended is Ended.LOST


# --- on nodes: the claim that follows knows how the owner before ended


@in_virtual_time
async def test_a_killed_and_a_frozen_owner(cluster: Cluster):
    a = await cluster.add()
    await a.start()
    lease = a.tenure().lease
    a.kill()
    b = await cluster.add()
    await cluster.say()
    await until(lambda: cluster.owner() == "n2")
    await cluster.store.append(Append(lease, 9, 1, (Draft("late"),)))
    [refusal] = await cluster.store.refusals(C)
    late = [(refusal.at, refusal.lease.incarnation, refusal.lease.epoch, refusal.operation)]
    first, second = timeline(cluster.journal(), late)
    assert (first.ended, second.node) == (Ended.FROZEN, "n2"), "it wrote: it was not dead"
    assert timeline(cluster.journal())[0].ended is Ended.EXPIRED
    await cluster.store.bury(b.incarnation, Death.EXITED)  # the witness
    await cluster.add()
    await cluster.say()
    await until(lambda: cluster.owner() == "n3")
    assert [one.ended for one in timeline(cluster.journal())][:2] == [Ended.EXPIRED, Ended.DIED]


@in_virtual_time
async def test_a_start_that_buries_says_how_it_ended_too(cluster: Cluster):
    a = await cluster.add()
    await a.start()
    a.kill()
    b = await cluster.add()
    b.rig.deaf = True
    await until(lambda: cluster.dead(a.incarnation))
    await b.start()
    assert timeline(cluster.journal())[0].ended is Ended.EXPIRED
