"""Cases: the vault, the papers, and the log of refused writes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tenure.abc import Deleted, Fenced, Limits, Paper, Sealed, Stale, Unknown
from tenure.lease import Epoch, new_token
from tenure.testing.store_suite.stage import expect, note, only
from tenure.testing.store_suite.submitting import AWKWARD

if TYPE_CHECKING:
    from tenure.testing.store_suite.stage import Stage

EVERY_BYTE = bytes(range(256))


# the vault


async def a_ciphertext_is_kept_as_it_is(stage: Stage) -> None:
    conversation = await stage.conversation()
    for name, ciphertext in (("A_KEY", EVERY_BYTE), ("é 名", b""), ("large", EVERY_BYTE * 256)):
        sealed = expect(Sealed, await stage.store.seal(conversation, name, ciphertext, 0))
        assert sealed == Sealed(name, ciphertext, 1)
        assert await (await stage.another()).unseal(conversation, name) == sealed
    assert await stage.store.unseal(conversation, "none") is None
    assert await stage.store.unseal("nobody's", "A_KEY") is None


async def a_secret_is_replaced_by_compare_and_swap(stage: Stage) -> None:
    conversation = await stage.conversation()
    expect(Sealed, await stage.store.seal(conversation, "name", b"one", 0))
    for version in (0, 2):
        assert isinstance(await stage.store.seal(conversation, "name", b"late", version), Stale)
    assert isinstance(await stage.store.seal(conversation, "new", b"late", 1), Stale)
    assert await stage.store.seal(conversation, "name", b"two", 1) == Sealed("name", b"two", 2)
    assert await stage.store.unseal(conversation, "name") == Sealed("name", b"two", 2)


async def a_vault_is_listed_by_name(stage: Stage) -> None:
    conversation, other = await stage.conversation(), await stage.conversation()
    for name in ("b", "c", "a"):
        await stage.store.seal(conversation, name, name.encode(), 0)
    await stage.store.seal(other, "d", b"d", 0)
    assert list(await stage.store.names(conversation)) == [Sealed(n, n.encode(), 1) for n in "abc"]
    assert list(await stage.store.names("nobody's")) == []


async def a_secret_is_forgotten_by_its_version(stage: Stage) -> None:
    conversation = await stage.conversation()
    await stage.store.seal(conversation, "name", b"one", 0)
    assert not await stage.store.forget(conversation, "name", 7)
    assert await stage.store.unseal(conversation, "name") is not None
    assert await stage.store.forget(conversation, "name", 1)
    assert await stage.store.unseal(conversation, "name") is None
    assert await stage.store.forget(conversation, "name", 1), "gone is gone"
    assert await stage.store.forget("nobody's", "name", 1)
    assert await stage.store.seal(conversation, "name", b"anew", 0) == Sealed("name", b"anew", 1)


async def a_vault_belongs_to_a_conversation(stage: Stage) -> None:
    assert await stage.store.seal("nobody's", "name", b"x", 0) == Unknown()
    conversation = await stage.conversation()
    before = await stage.record(conversation)
    await stage.store.seal(conversation, "name", b"x", 0)
    assert await stage.unchanged(conversation, before), "neither the journal nor the record says anything of it"
    await stage.store.delete(conversation, Epoch(0), "user")
    assert await stage.store.seal(conversation, "name", b"x", 1) == Deleted(Epoch(1))


async def of_many_that_seal_one_version_one_does(stage: Stage) -> None:
    conversation, stores = await stage.conversation(), await stage.several(4)
    answers = await asyncio.gather(*(s.seal(conversation, "n", bytes([i]), 0) for i, s in enumerate(stores)))
    sealed = only(answer for answer in answers if isinstance(answer, Sealed))
    assert await stage.store.unseal(conversation, "n") == sealed


# papers


async def a_paper_is_written_by_compare_and_swap(stage: Stage) -> None:
    put, get = stage.store.put_paper, stage.store.get_paper
    assert await get("kind", "id") is None
    assert await put("kind", "id", AWKWARD, 1) is None, "none is there"
    assert await put("kind", "id", AWKWARD, 0) == Paper("kind", "id", AWKWARD, 1)
    assert await put("kind", "id", {}, 0) is None, "one is there"
    assert await (await stage.another()).get_paper("kind", "id") == Paper("kind", "id", AWKWARD, 1)
    assert await put("kind", "id", {"a": 1}, 1) == Paper("kind", "id", {"a": 1}, 2)
    assert await get("another kind", "id") is None
    assert await put("another kind", "id", {}, 0) == Paper("another kind", "id", {}, 1)


async def papers_are_listed_by_id_and_prefix(stage: Stage) -> None:
    ids = ["a/1", "a/2", "a_1", "a%1", "ab", "A/1", "b", "名/1", "名/2", "\\x", "*", "["]
    for id in reversed(ids):
        await stage.store.put_paper("kind", id, {"id": id}, 0)
    await stage.store.put_paper("another kind", "a/3", {}, 0)

    async def listed(prefix: str, limit: int = 1000) -> list[str]:
        return [paper.id for paper in await stage.store.list_papers("kind", prefix, limit)]

    assert await listed("") == sorted(ids)
    for prefix in ("a", "a/", "a_", "a%", "A", "名", "名/2", "\\", "*", "[", "none", "%", "_"):
        assert await listed(prefix) == sorted(id for id in ids if id.startswith(prefix)), prefix
    assert await listed("", 3) == sorted(ids)[:3]
    assert (await stage.store.list_papers("kind", "a/1"))[0] == Paper("kind", "a/1", {"id": "a/1"}, 1)
    assert list(await stage.store.list_papers("no kind")) == []


async def a_paper_is_removed_by_its_version(stage: Stage) -> None:
    await stage.store.put_paper("kind", "id", {"a": 1}, 0)
    assert not await stage.store.remove_paper("kind", "id", 2)
    assert await stage.store.get_paper("kind", "id") == Paper("kind", "id", {"a": 1}, 1)
    assert await stage.store.remove_paper("kind", "id", 1)
    assert await stage.store.get_paper("kind", "id") is None
    assert await stage.store.remove_paper("kind", "id", 1), "gone is gone"
    assert await stage.store.put_paper("kind", "id", {}, 0) == Paper("kind", "id", {}, 1)


async def of_many_that_write_one_paper_one_does(stage: Stage) -> None:
    stores = await stage.several(6)
    for version in (0, 1):
        answers = await asyncio.gather(*(s.put_paper("k", "id", {"by": i}, version) for i, s in enumerate(stores)))
        paper = only(answer for answer in answers if answer is not None)
        assert await stage.store.get_paper("k", "id") == paper


# refusals


async def refused_writes_are_kept_newest_first(stage: Stage) -> None:
    writer = await stage.owned()
    conversation = writer.lease.conversation
    assert list(await stage.store.refusals(conversation)) == []
    late = writer.batch(note())
    zombie = replace(writer.lease, token=new_token())
    journal = await stage.journal(conversation)
    stage.clock.advance(1)
    first = stage.clock.now()
    await stage.store.append(replace(late, lease=zombie))
    stage.clock.advance(1)
    await stage.store.release(replace(writer.farewell(), batch=replace(late, number=7)))
    await stage.store.publish(zombie, {})
    found = await (await stage.another()).refusals(conversation)
    assert [(r.operation, r.lease) for r in found] == [
        ("publish", zombie),
        ("release", writer.lease),
        ("append", zombie),
    ]
    assert [r.at for r in found] == [stage.clock.now(), stage.clock.now(), first]
    assert await stage.journal(conversation) == journal, "never in the journal"
    assert [r.operation for r in await stage.store.refusals(conversation, 1)] == ["publish"]
    assert list(await stage.store.refusals("nobody's")) == []


async def what_was_taken_or_repeated_is_no_refusal(stage: Stage) -> None:
    writer = await stage.owned()
    batch = writer.batch(note())
    for _ in range(2):
        await stage.store.append(batch)
    writer.number += 1
    farewell = writer.farewell()
    for _ in range(2):
        await stage.store.release(farewell)
    assert list(await stage.store.refusals(writer.lease.conversation)) == []


async def the_log_of_refusals_is_bounded(stage: Stage) -> None:
    stage.store = await stage.another(Limits(refusals=5))
    writer, other = await stage.owned(), await stage.owned()
    leases = [replace(writer.lease, token=new_token()) for _ in range(12)]
    assert isinstance(await stage.store.append(replace(other.batch(), number=9)), Fenced)
    for lease in leases:
        assert isinstance(await stage.store.append(replace(writer.batch(), lease=lease)), Fenced)
    kept = await stage.store.refusals(writer.lease.conversation)
    assert [r.lease for r in kept] == leases[:-6:-1]
    assert len(await stage.store.refusals(other.lease.conversation)) == 1, "each conversation has its own"
