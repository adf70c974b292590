"""What the suite of the store cannot reach through the port: rows that only a damaged or restored store has."""

import dataclasses
from dataclasses import replace

import pytest

from tenure.abc import (
    Append,
    Claim,
    Creation,
    Deleted,
    Fenced,
    Filters,
    Held,
    Limits,
    Release,
    ReleasedNow,
    Stale,
    Submit,
)
from tenure.abc import Reason as Why
from tenure.clock import Instant
from tenure.conversation import Settle
from tenure.journal import Command, Delivery, Draft
from tenure.lease import Epoch, IncarnationId, Lease, Token
from tenure.stores import rules
from tenure.stores.rules import Row

NOW = Instant(1.0)
LIMITS = Limits()
ME = IncarnationId("me")
CREATION = Creation(default_agent="agent")


def created() -> Row:
    return rules.create("c", CREATION, NOW)[0]


def claim(
    row: Row | None, *, token: str = "t", expected: int = 0, journal_epoch: int = 0, **parts: object
) -> rules.Step:
    request = Claim("c", ME, Token(token), Epoch(expected), "n", "", "why", create=CREATION)
    request = replace(request, **parts)
    return rules.claim(
        row,
        request,
        claimant_dead=False,
        owner_dead=False,
        journal_epoch=journal_epoch,
        now=NOW,
        store_now=0.0,
        limits=LIMITS,
    )


def held(step: rules.Step) -> tuple[Row, Lease]:
    assert isinstance(step.result, Held)
    assert step.row is not None
    return step.row, step.result.lease


@pytest.mark.parametrize(
    ("record", "in_journal", "floor", "granted"),
    [(0, 0, 0, 1), (3, 0, 0, 4), (3, 8, 0, 9), (8, 3, 0, 9), (3, 8, 20, 21), (30, 8, 20, 31), (8, 8, 8, 9)],
)
def test_rule_04_the_epoch_is_above_record_journal_and_floor(record: int, in_journal: int, floor: int, granted: int):
    """A record that was lost and came back lower than its journal must not grant an epoch again."""
    row = created()
    row = replace(row, record=replace(row.record, epoch=Epoch(record)))
    _, lease = held(claim(row, expected=record, journal_epoch=in_journal, floor=floor))
    assert lease.epoch == granted


def test_a_refused_step_writes_nothing_and_names_whom_it_refused():
    row, lease = held(claim(created()))
    refused = replace(lease, token=Token("another"))
    for step in (
        rules.append(row, Append(refused, 1, 0, (Draft("x"),)), now=NOW, store_now=0.0, limits=LIMITS),
        rules.release(row, Release(Append(refused, 1, 0, ()), Why.IDLE), now=NOW, store_now=0.0, limits=LIMITS),
    ):
        assert isinstance(step.result, Fenced)
        assert (step.row, step.events, step.refused) == (None, (), refused)


def test_what_is_missing_is_fenced_and_not_created():
    lease = Lease("c", ME, Epoch(1), Token("t"))  # a lease of a store that was wiped since
    step = rules.append(None, Append(lease, 1, 0, (Draft("x"),)), now=NOW, store_now=0.0, limits=LIMITS)
    assert (step.result, step.row, step.refused) == (Fenced(None), None, lease)


def test_a_claim_that_expects_a_lost_conversation_is_stale_and_creates_nothing():
    step = claim(None, expected=3)
    assert isinstance(step.result, Stale)
    assert (step.row, step.events, step.result.record.epoch) == (None, (), 0)


def test_a_tombstone_keeps_nothing_that_recognises_a_release():
    row, lease = held(claim(created()))
    farewell = Release(Append(lease, 1, 2, (), Settle(runnable=False)), Why.IDLE)
    step = rules.release(row, farewell, now=NOW, store_now=0.0, limits=LIMITS)
    assert isinstance(step.result, ReleasedNow)
    assert step.row is not None
    tombstone = rules.delete(step.row, Epoch(1), now=NOW, store_now=0.0).row
    assert tombstone is not None
    assert (tombstone.number, tombstone.digest, tombstone.released_token, tombstone.open_start) == (0, None, None, None)
    again = rules.release(tombstone, farewell, now=NOW, store_now=0.0, limits=LIMITS)
    assert isinstance(again.result, Fenced)
    submitted = rules.submit(
        tombstone,
        Submit("c", Command("message", {}, "k", Delivery.TURN), CREATION),
        None,
        now=NOW,
        store_now=0.0,
        limits=LIMITS,
    )
    assert submitted.result == Deleted(Epoch(2))


@pytest.mark.parametrize(("store_now", "left"), [(0.0, 10.0), (9.5, 0.5), (10.0, None), (11.0, None)])
def test_a_record_shows_what_is_left_of_its_back_off(store_now: float, left: float | None):
    row = replace(created(), not_before=10.0)
    assert rules.shown(row, store_now).retry_in_s == left


def test_sizes_are_counted_in_bytes_of_canonical_json():
    limits = Limits(event_bytes=len('{"text":"é"}'.encode()))
    assert rules.oversize((Draft("x", {"text": "é"}),), limits) is None
    over = rules.oversize((Draft("x"), Draft("x", {"text": "éé"})), limits)
    assert over is not None
    assert (over.index, over.bytes, over.limit) == (1, limits.event_bytes + 2, limits.event_bytes)


def test_who_owns_nothing_is_in_no_owners_list():
    row, _ = held(claim(created()))
    assert rules.listed(row.record, Filters(owner="n"))
    assert rules.listed(row.record, Filters(owner=ME))
    assert not rules.listed(created().record, Filters(owner="n"))
    assert not rules.listed(replace(row.record, deleted=True), Filters())


def test_a_record_is_changed_as_dataclasses_would_change_it():
    row = created()
    for one, changes in ((row, {"number": 3, "digest": "d"}), (row.record, {"head": 4, "wanted": True})):
        assert rules.replace(one, **changes) == dataclasses.replace(one, **changes) != one
    assert row == created(), "the one before stays as it was"
    with pytest.raises(KeyError):
        rules.replace(row, nmber=3)
