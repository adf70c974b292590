"""The last hour: what is kept, how parts of several incarnations become one, and that a paper is left behind."""

import asyncio

import pytest

from tenure import facts
from tenure.clock import Instant, SystemClock
from tenure.node.activity import EDGES_S, KIND, MINUTES, MOST_TAKEOVERS, Activity, Minute, Publisher, last_hour
from tenure.stores.memory import Disk, MemoryStore

NOON = Instant(1_800_000_000.0)


def later(seconds: float) -> Instant:
    return Instant(NOON.unix_s + seconds)


def taken_over(at: Instant, *, conversation: str = "c1", epoch: int = 2) -> facts.TakenOver:
    return facts.TakenOver(conversation, epoch, "n2", "i-old", at.unix_s, forced=False)


def answered(took_s: float, at: Instant, outcome: str = "completed") -> facts.Answered:
    return facts.Answered("c1", 2, "t1", outcome, took_s, at.unix_s)


def turns(*took_s: float, at: Instant = NOON) -> Activity:
    activity = Activity()
    for took in took_s:
        activity.hear(answered(took, at))
    return activity


# --- one incarnation's part -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("took_s", [0.0, 0.004, 0.1, 1.0, 60.0, 20_000.0])
def test_a_quantile_is_as_fine_as_the_buckets_and_never_above_the_longest(took_s: float):
    minute = Minute()
    minute.add_turn("completed", took_s)
    found = minute.quantile_s(0.5)
    assert found == took_s  # a single one is also the longest


def test_quantiles_are_those_of_the_turns_within_a_bucket():
    minute = Minute()
    times = [0.01 * (1 + i) for i in range(100)]
    for took in times:
        minute.add_turn("completed", took)
    ratio = EDGES_S[1] / EDGES_S[0]
    for part in (0.5, 0.95, 1.0):
        found, exact = minute.quantile_s(part), times[int(part * 100) - 1]
        assert found is not None
        assert exact - 1e-9 <= found <= exact * ratio + 1e-9
    assert Minute().quantile_s(0.5) is None


def test_it_hears_takeovers_and_answers_and_nothing_else():
    activity = Activity()
    activity.hear(facts.Claimed("c1", 2, "takeover"))
    activity.hear(facts.TurnEnded("c1", 2, "t1", "completed", 1.0))
    assert (list(activity.takeovers), activity.minutes) == ([], {})
    assert not activity.stirred.is_set()
    activity.hear(taken_over(NOON))
    assert [one["conversation_id"] for one in activity.takeovers] == ["c1"]
    assert activity.stirred.is_set()
    activity.hear(answered(1.0, NOON, "failed"))
    [minute] = activity.minutes.values()
    assert (minute.takeovers, minute.ends) == (1, {"failed": 1})


def test_what_is_kept_is_bounded_in_number_and_in_time():
    activity = Activity()
    for second in range(3 * MOST_TAKEOVERS):
        activity.hear(taken_over(later(second / 100), epoch=second))
    assert len(activity.takeovers) == MOST_TAKEOVERS
    assert sum(minute.takeovers for minute in activity.minutes.values()) == 3 * MOST_TAKEOVERS
    for minute in range(2 * MINUTES):
        activity.hear(answered(1.0, later(60 * minute + 1), "failed"))
    assert len(activity.minutes) <= MINUTES + 1
    assert not activity.takeovers


# --- all of them ----------------------------------------------------------------------------------------------------


def test_parts_merge_without_loss():
    parts = [turns(0.1, 0.2), turns(0.3), turns(5.0, at=later(120))]
    parts[1].hear(taken_over(later(61), conversation="c9"))
    whole = Activity.merged([part.as_json() for part in parts], later(130))
    assert [sum(m.ends.values()) for _, m in sorted(whole.minutes.items())] == [3, 0, 1]
    assert [one["conversation_id"] for one in whole.takeovers] == ["c9"]
    alone = turns(0.1, 0.2, 0.3)
    number = int(NOON.unix_s // 60)
    assert whole.minutes[number] == alone.minutes[number]


def test_what_is_older_than_the_hour_or_unreadable_is_left_out():
    old = turns(1.0)
    old.hear(taken_over(NOON))
    papers = [old.as_json(), {"of": "a newer version"}, {"takeovers": [], "minutes": {"x": {}}}]
    whole = Activity.merged(papers, later(3600 + 60))
    assert (list(whole.takeovers), whole.minutes) == ([], {})


# --- the papers -----------------------------------------------------------------------------------------------------


async def test_a_publisher_leaves_its_part_for_every_node_and_says_it_again_when_it_grows():
    disk = Disk()
    async with MemoryStore(disk) as store:
        activity = turns(0.1, at=SystemClock().now())
        publisher = Publisher(activity, store, "i-1", SystemClock())
        await publisher.publish()
        activity.hear(answered(0.1, SystemClock().now(), "failed"))
        await publisher.publish()
        told = await last_hour(store, None, SystemClock().now())
        assert sum(sum(m.ends.values()) for m in told.minutes.values()) == 2
        mine = await last_hour(store, ("i-1", activity), SystemClock().now())
        assert mine.minutes == told.minutes, "its own part is not counted twice"


async def test_an_answer_that_was_lost_costs_another_writing():
    async with MemoryStore(Disk()) as store:
        activity = turns(0.1, at=SystemClock().now())
        await store.put_paper(KIND, "i-1", {"takeovers": [], "minutes": {}}, 0)  # it had been written after all
        await Publisher(activity, store, "i-1", SystemClock()).publish()
        paper = await store.get_paper(KIND, "i-1")
        assert paper is not None
        assert paper.document == activity.as_json()


async def test_what_came_last_is_published_at_the_end():
    async with MemoryStore(Disk()) as store:
        activity = Activity()
        publishing = asyncio.create_task(Publisher(activity, store, "i-1", SystemClock()).run())
        activity.hear(answered(0.1, SystemClock().now(), "completed"))
        while await store.get_paper(KIND, "i-1") is None:
            await asyncio.sleep(0)
        activity.hear(answered(0.1, SystemClock().now(), "completed"))
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled()
        paper = await store.get_paper(KIND, "i-1")
        assert paper is not None
        assert paper.document == activity.as_json()


async def test_papers_older_than_the_hour_are_removed():
    async with MemoryStore(Disk()) as store:
        now = SystemClock().now()
        for name, age_s in {"i-old": 2 * 3600, "i-young": 60}.items():
            await store.put_paper(KIND, name, turns(1.0, at=Instant(now.unix_s - age_s)).as_json(), 0)
        activity = turns(0.1, at=now)
        publishing = asyncio.create_task(Publisher(activity, store, "i-1", SystemClock()).run())
        while await store.get_paper(KIND, "i-old") is not None:
            await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
        assert [paper.id for paper in await store.list_papers(KIND)] == ["i-1", "i-young"]
