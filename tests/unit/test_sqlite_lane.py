"""Group commit: what travels together, what each one hears, and how it ends."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_support import (
    accept,
    append,
    batch,
    hold,
    journal,
    message,
    node,
    store_in,
    threads_of_stores,
    until,
    write_lock_held,
)

from tenure.abc import (
    Accepted,
    Amended,
    Append,
    Appended,
    Creation,
    Fenced,
    Limits,
    Reading,
    Repeated,
    Sent,
    Stale,
    Submit,
    Topic,
)
from tenure.errors import StoreUnavailableError
from tenure.journal import Draft
from tenure.lease import Lease
from tenure.stores.sqlite import lane as lanes
from tenure.stores.sqlite.file import StoreFile
from tenure.stores.sqlite.transaction import PAGES_BETWEEN_CHECKPOINTS, ROWS_IN_MEMORY, Transaction
from tenure.testing.clock import ManualClock


async def test_what_comes_together_travels_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commits: list[int] = []
    commit = Transaction.commit
    monkeypatch.setattr(Transaction, "commit", lambda tx: (commits.append(1), commit(tx))[1])
    async with store_in(tmp_path) as store:
        incarnation = await node(store)
        leases = [await hold(store, incarnation, f"c{i}") for i in range(50)]
        commits.clear()
        answers = await asyncio.gather(*(store.append(batch(lease, 1)) for lease in leases))
    assert all(isinstance(answer, Appended) for answer in answers)
    assert len(commits) <= 3, "the first goes alone, the rest follow it together"


async def test_each_has_its_own_answer(tmp_path: Path):
    """A refused item, a repeated one and one that is no JSON at all never fail the others (rule 17)."""
    async with store_in(tmp_path) as store:
        incarnation = await node(store)
        leases = [await hold(store, incarnation, f"c{i}") for i in range(4)]
        await append(store, batch(leases[1], 1))
        nan = Append(leases[2], 1, 1, (Draft("note", {"text": float("nan")}),))
        surrogate = Append(leases[2], 1, 1, (Draft("note", {}, turn="\ud800"),))
        huge = Append(leases[2], 2**70, 1, (Draft("note", {}),))
        stranger = Lease("c0", incarnation, leases[0].epoch, leases[1].token)
        answers = await asyncio.gather(
            store.append(batch(leases[0], 1)),
            store.append(batch(leases[1], 1)),
            store.append(nan),
            store.append(surrogate),
            store.append(huge),
            store.append(batch(stranger, 2)),
            store.append(batch(leases[3], 1)),
            return_exceptions=True,
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [Appended, Repeated, ValueError, UnicodeEncodeError, Fenced, Fenced, Appended]
        assert [len(await journal(store, f"c{i}")) for i in range(4)] == [3, 3, 2, 3]
        await append(store, batch(leases[2], 1))


async def test_a_value_that_only_the_database_refuses_harms_its_own_request_alone(tmp_path: Path):
    """Such a value is met when all is written at the end, and belongs to nobody there."""
    async with store_in(tmp_path) as store:
        bad = Submit("bad", None, Creation(default_agent="agent", title="\ud800"))
        answers = await asyncio.gather(
            *(store.submit(message(f"c{i}", "k")) for i in range(10)),
            store.submit(bad),
            store.submit(message("new", "\ud800")),
            *(store.submit(message(f"c{i}", "k")) for i in range(10, 20)),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers] == [
            *["Accepted"] * 10,
            "UnicodeEncodeError",
            "UnicodeEncodeError",
            *["Accepted"] * 10,
        ]
        assert (await store.records(["bad", "new", "c5"]))[:2] == [None, None]


async def test_requests_for_one_conversation_see_each_other(tmp_path: Path):
    """Also within one transaction, where nothing is written yet."""
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        answers = await asyncio.gather(
            *(store.append(batch(lease, number)) for number in (1, 2, 2, 4)),
            *(store.submit(message("c1", key)) for key in ("a", "b", "a")),
        )
        kinds = [type(answer).__name__ for answer in answers]
        assert kinds == ["Appended", "Appended", "Repeated", "Fenced", "Accepted", "Accepted", "Duplicate"]
        assert type(await store.submit(message("c1", "b"))).__name__ == "Duplicate"
        assert await journal(store) == ["created", "claimed", "hello", "hello", "hi", "hi"]


async def test_a_long_list_takes_several_transactions_and_answers_in_order(tmp_path: Path):
    async with store_in(tmp_path) as store:
        answers = await store.submit_all([message(f"c{i}", "k") for i in range(lanes.GROUP * 2 + 7)])
        assert [type(answer) for answer in answers] == [Accepted] * len(answers)
        assert [answer.record.conversation for answer in answers if isinstance(answer, Accepted)] == [
            f"c{i}" for i in range(len(answers))
        ]
        assert await store.submit_all([]) == []


async def test_another_writer_is_noticed(tmp_path: Path):
    """Rows stay in memory between transactions, but only until somebody else writes."""
    async with store_in(tmp_path) as mine, store_in(tmp_path) as other:
        first = await hold(mine, await node(mine))
        await append(mine, batch(first, 1))
        await accept(other, message("c1", "k"))
        assert isinstance(await other.amend("c1", 1, {"title": "theirs"}), Amended)
        assert isinstance(await mine.amend("c1", 1, {"title": "mine"}), Stale)
        assert (await append(mine, batch(first, 2))).first == 5
        await accept(other, message("c2", "k"))
        assert (await accept(mine, message("c3", "k"))).seq == 2
        assert [record and record.head for record in await mine.records(["c1", "c2", "c3"])] == [5, 2, 2]


def test_rows_in_memory_are_bounded(tmp_path: Path):
    write = Transaction(StoreFile(tmp_path / "t.db"), ManualClock(), Limits(), checkpoints=True, on_commit=lambda: None)
    with closing(write):
        for first in range(0, ROWS_IN_MEMORY + 300, 100):
            write.begin(durable=False)
            for number in range(first, first + 100):
                write.submit(message(f"c{number}", "k"))
            write.commit()
        write.begin(durable=False)
        assert len(write._rows) <= ROWS_IN_MEMORY  # pyright: ignore[reportPrivateUsage]
        write.rollback()


async def test_the_log_does_not_grow_without_end(tmp_path: Path):
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        await append(store, batch(lease, 1, "x" * 400_000))
        before = await asyncio.to_thread(lambda: (tmp_path / "t.db-wal").stat().st_size)
        for number in range(2, 2 + 3 * PAGES_BETWEEN_CHECKPOINTS // 100):
            await append(store, batch(lease, number, "x" * 400_000))
        after = await asyncio.to_thread(lambda: (tmp_path / "t.db-wal").stat().st_size)
        assert before < after < 2.5 * 4096 * PAGES_BETWEEN_CHECKPOINTS


# --- callers that go away ---------------------------------------------------------------------------------------------


async def test_who_goes_away_before_it_began_has_done_nothing(tmp_path: Path):
    async with store_in(tmp_path) as store:
        lease = await hold(store, await node(store))
        with write_lock_held(store.path):
            late = asyncio.create_task(store.append(batch(lease, 1, "late")))
            await asyncio.sleep(0)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            after = asyncio.create_task(store.append(batch(lease, 1, "after")))
            await asyncio.sleep(0)
        assert isinstance(await after, Appended)
        assert await journal(store) == ["created", "claimed", "after"]


async def test_the_queue_is_bounded_and_who_waits_before_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "QUEUE", 3)
    async with store_in(tmp_path) as store:
        leases = [await hold(store, incarnation := await node(store), "c0")]
        leases += [await hold(store, incarnation, f"c{i}") for i in range(1, 20)]
        queue = store._parts.writes._queue  # pyright: ignore[reportPrivateUsage]
        with write_lock_held(store.path):
            tasks = [asyncio.create_task(store.append(batch(lease, 1))) for lease in leases]
            for _ in range(5):
                await asyncio.sleep(0)
            assert queue.qsize() <= 3
        assert [type(answer) for answer in await asyncio.gather(*tasks)] == [Appended] * 20


async def test_a_locked_store_is_unavailable_to_all_who_wait_at_about_the_same_time(tmp_path: Path):
    async with store_in(tmp_path, timeout_s=0.1) as store:
        leases = [await hold(store, incarnation := await node(store), "c0")]
        leases += [await hold(store, incarnation, f"c{i}") for i in range(1, 4)]
        with write_lock_held(store.path):
            started = asyncio.get_running_loop().time()
            answers = await asyncio.gather(*(store.append(batch(lease, 1)) for lease in leases), return_exceptions=True)
            took = asyncio.get_running_loop().time() - started
        assert [type(answer) for answer in answers] == [StoreUnavailableError] * 4
        assert took < 5.0, "one after the other they would wait for one another"
        assert [type(answer) for answer in await store.append_all([batch(lease, 1) for lease in leases])] == [
            Appended
        ] * 4


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_was_asked_and_leaves_no_thread(tmp_path: Path):
    before = threads_of_stores()
    store = await store_in(tmp_path).__aenter__()
    lease = await hold(store, await node(store))
    with write_lock_held(store.path):
        asked = [asyncio.create_task(store.append(batch(lease, number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        closing_ = asyncio.create_task(store.__aexit__(None, None, None))
        await asyncio.sleep(0)
    await closing_
    assert [type(answer) for answer in await asyncio.gather(*asked)] == [Appended] * 3
    await store.__aexit__(None, None, None)
    assert threads_of_stores() == before
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.append(batch(lease, 4))
    async with store:
        assert len(await journal(store)) == 5


async def test_a_store_that_was_refused_leaves_no_thread(tmp_path: Path):
    (tmp_path / "t.db").mkdir()
    for _ in range(2):
        with pytest.raises(Exception, match="is a folder"):
            await store_in(tmp_path).__aenter__()
    assert threads_of_stores() == []


async def test_a_store_is_opened_once(tmp_path: Path):
    async with store_in(tmp_path) as store:
        with pytest.raises(RuntimeError, match="sibling"):
            await store.__aenter__()
        async with store.sibling() as other:
            await accept(other, message("c1", "k"))
        assert await journal(store) == ["created", "hi"]


@pytest.mark.blocking_ok  # loops are run and closed by hand
def test_a_loop_that_is_closed_under_way_harms_nobody(tmp_path: Path):
    """The write takes place, its answer reaches nobody, and the thread does not die of it."""

    store = store_in(tmp_path)

    async def begin(job: Callable[[Transaction], object]) -> asyncio.Task[object]:
        await store.__aenter__()
        asked = asyncio.create_task(store._write(job))  # pyright: ignore[reportPrivateUsage]
        await until(started.is_set)
        return asked

    def slow(tx: Transaction) -> None:
        started.set()
        assert go_on.wait(20)
        tx.submit(message("c1", "k"))

    started, go_on = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    asked = loop.run_until_complete(begin(slow))
    asked._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue] - it is never finished
    loop.close()
    go_on.set()

    async def see() -> None:
        async with store_in(tmp_path) as other:
            async with asyncio.timeout(20), other.follow([Topic(Topic.CONVERSATION, "c1")]) as hints:
                while not isinstance(await other.read("c1"), Reading):
                    async for _ in hints:
                        break

    asyncio.run(see())
    assert "tenure-sqlite-write" in threads_of_stores(), "it waits for more"
    for lane in (store._parts.writes, store._parts.views):  # pyright: ignore[reportPrivateUsage]
        lane._queue.put(None)  # pyright: ignore[reportPrivateUsage]
    for thread in threading.enumerate():
        if thread.name.startswith("tenure-sqlite"):
            thread.join(20)
    assert threads_of_stores() == []


async def test_the_heartbeats_way_is_its_own(tmp_path: Path):
    """Nothing is shared with a sibling: it renews while the store's own queue is full of work."""
    async with store_in(tmp_path) as store, store.sibling() as other:
        lease = await hold(store, await node(store))
        work = [asyncio.create_task(store.append(batch(lease, number + 1))) for number in range(300)]
        assert isinstance(await other.publish(lease, {"text": "…"}), Sent)
        await asyncio.gather(*work)
        assert threads_of_stores().count("tenure-sqlite-write") == 2
