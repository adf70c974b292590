"""Hints between processes: what is told to whom, how much is kept, and when nobody looks."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlite_support import AGENT, accept, append, batch, hold, look, message, node, store_in, threads_of_stores, until

from tenure.abc import Buried, Death, Fenced, Hint, Reason, Release, ReleasedNow, Sent, Store, Topic
from tenure.conversation import Settle
from tenure.lease import Lease, Token
from tenure.stores.sqlite import hints as hinting
from tenure.stores.sqlite import transaction

C1 = Topic(Topic.CONVERSATION, "c1")
WANTED = Topic(Topic.WANTED)


async def take(hints: AsyncIterator[Hint], count: int) -> list[Hint]:
    found: list[Hint] = []
    async with asyncio.timeout(20):
        async for hint in hints:
            found.append(hint)
            if len(found) == count:
                break
    return found


async def release(store: Store, lease: Lease, number: int) -> None:
    idle = Settle(runnable=False, started=True)
    last = batch(lease, number)
    done = await store.release(Release(type(last)(lease, number, last.seen, (), idle), Reason.IDLE))
    assert isinstance(done, ReleasedNow)


async def test_another_process_hears_of_a_command_an_event_and_a_delta_in_order(tmp_path: Path):
    async with store_in(tmp_path) as writer, store_in(tmp_path) as reader:
        lease = await hold(writer, await node(writer))
        async with reader.follow([C1]) as hints:
            await writer.publish(lease, {"text": "he"})
            await writer.publish(lease, {"text": "llo"})
            await append(writer, batch(lease, 1))
            assert await take(hints, 3) == [
                Hint(C1, "c1", delta={"text": "he"}),
                Hint(C1, "c1", delta={"text": "llo"}),
                Hint(C1, "c1", 3),
            ]
            await accept(writer, message("c1", "k"))
            assert await take(hints, 1) == [Hint(C1, "c1", 4)]


async def test_what_becomes_wanted_is_told_to_its_owner_or_to_everybody(tmp_path: Path):
    async with store_in(tmp_path) as writer, store_in(tmp_path) as reader:
        incarnation = await node(writer)
        mine = Topic(Topic.NODE, incarnation)
        lease = await hold(writer, incarnation)
        async with reader.follow([WANTED, mine]) as hints:
            await accept(writer, message("c1", "k"))
            assert await take(hints, 1) == [Hint(mine, "c1", 3)]
            await accept(writer, message("c2", "k"))
            assert await take(hints, 1) == [Hint(WANTED, "c2", 2)]
            await append(writer, batch(lease, 1))
            assert await take(hints, 1) == [Hint(mine, "c1", 4)], "it is still wanted"
            await release(writer, lease, 2)  # the command came after what the owner had read
            assert await take(hints, 1) == [Hint(WANTED, "c1", 5)]
            await writer.put_paper("request", f"{incarnation}/drain", {}, 0)
            assert await take(hints, 1) == [Hint(mine)]
            await writer.put_paper("other", f"{incarnation}/drain", {}, 0)
            assert isinstance(await writer.bury(incarnation, Death.RETIRED), Buried)
            assert await take(hints, 2) == [Hint(WANTED), Hint(mine)]


async def test_a_follower_hears_of_its_own_process_without_waiting_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hinting, "BRISK_S", 600.0)
    monkeypatch.setattr(hinting, "QUIET_S", 600.0)
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        async with store.follow([C1]) as hints:
            await store.publish(lease, {"text": "now"})
            assert await take(hints, 1) == [Hint(C1, "c1", delta={"text": "now"})]


async def test_nobody_looks_while_nobody_follows(tmp_path: Path):
    async with store_in(tmp_path) as store:
        poller = "tenure-sqlite-poll"
        assert poller not in threads_of_stores()
        async with store.follow([C1]):
            assert threads_of_stores().count(poller) == 1
            async with store.follow([WANTED]):
                assert threads_of_stores().count(poller) == 1
        assert poller not in threads_of_stores()
        async with store.follow([C1]) as hints:
            await accept(store, message("c1", "k"))
            assert await take(hints, 1) == [Hint(C1, "c1", 2)]


async def test_a_slow_follower_loses_the_oldest_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hinting, "QUEUE", 3)
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        async with store.follow([C1]) as hints, store.follow([C1]) as brisk:
            for number in range(5):
                await store.publish(lease, {"n": number})
                await take(brisk, 1)
            told = await take(hints, 3)
            assert [hint.delta for hint in told] == [{"n": 2}, {"n": 3}, {"n": 4}]
            assert [hint.lapsed for hint in told] == [True, False, False]
            await store.publish(lease, {"n": 5})
            assert await take(hints, 1) == [Hint(C1, "c1", delta={"n": 5})]


async def test_signals_are_kept_for_a_while_only_and_who_is_further_behind_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transaction, "SIGNALS_KEPT", 5)
    monkeypatch.setattr(hinting, "SIGNALS_KEPT", 5)
    async with store_in(tmp_path) as writer, store_in(tmp_path) as reader:
        lease = await hold(writer, await node(writer))
        async with reader.follow([C1]) as hints:
            await asyncio.gather(*(writer.publish(lease, {"n": number}) for number in range(50)))
            told = await take(hints, 1)
            while not told[-1].lapsed:
                told += await take(hints, 1)
            assert told[-1] == Hint(C1, "c1", lapsed=True)
            await writer.publish(lease, {"n": 50})
            assert (await take(hints, 1))[0].delta == {"n": 50}
    assert len(look(tmp_path / "t.db", "SELECT * FROM signals")) == 5


async def test_deltas_are_fenced_bounded_and_erased_with_the_conversation(tmp_path: Path):
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        stranger = Lease(lease.conversation, lease.incarnation, lease.epoch, Token("another"))
        assert isinstance(await store.publish(stranger, {"text": "zombie"}), Fenced)
        assert [refusal.operation for refusal in await store.refusals("c1")] == ["publish"]
        assert isinstance(await store.publish(lease, {"text": "x" * transaction.DELTA_BYTES}), Sent)
        assert isinstance(await store.publish(lease, {"text": "secret"}), Sent)
        (signal,) = await asyncio.to_thread(look, store.path, "SELECT delta FROM signals")
        assert signal == ('{"text":"secret"}',)
        await store.delete("c1", lease.epoch, "me")
        assert await asyncio.to_thread(look, store.path, "SELECT * FROM signals") == []


async def test_a_stream_ends_with_the_store(tmp_path: Path):
    store = await store_in(tmp_path).__aenter__()
    async with store.follow([C1]) as hints:
        await store.submit(message("c1", "k"))
        assert await take(hints, 1) == [Hint(C1, "c1", 2)]
        more = asyncio.create_task(take(hints, 1))
        await asyncio.sleep(0)
        await store.__aexit__(None, None, None)
        assert await more == []
    assert threads_of_stores() == []


async def test_a_stream_goes_on_after_a_reader_that_gave_up_waiting(tmp_path: Path):
    async with store_in(tmp_path) as store, store.follow([C1]) as hints:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(hints), 0.001)
        await accept(store, message("c1", "k"))
        assert await take(hints, 1) == [Hint(C1, "c1", 2)]


async def test_when_the_file_is_moved_away_followers_are_told_to_look(tmp_path: Path):
    async with store_in(tmp_path) as store:
        async with store.follow([WANTED]) as hints:
            await asyncio.to_thread((tmp_path / "t.db").rename, tmp_path / "old.db")
            assert await take(hints, 1) == [Hint(WANTED, lapsed=True)]


async def test_a_follower_that_comes_later_hears_too(tmp_path: Path):
    async with store_in(tmp_path) as writer, store_in(tmp_path) as reader:
        async with reader.follow([C1]):
            for key in itertools.islice(itertools.count(), 3):
                async with reader.follow([WANTED]) as hints:
                    await accept(writer, message(f"w{key}", "k"))
                    assert Hint(WANTED, f"w{key}", 2) in await take(hints, 1)
                    assert await writer.wanted(None, [AGENT], None, 10)
        await until(lambda: "tenure-sqlite-poll" not in threads_of_stores())
