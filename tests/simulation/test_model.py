"""Every interleaving within small bounds, on the memory store's real operations; and each rule is there for a reason.

The breakers below take one rule out of the store's code or of the nodes' conduct; the exploration must then print a
shortest way to what breaks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tenure.abc import Append
from tenure.stores import rules
from tenure.testing.checker import Guarantee
from tenure.testing.model.__main__ import main
from tenure.testing.model.explore import explore
from tenure.testing.model.protocol import Conduct, Scenario
from tenure.testing.model.scenarios import LARGE, SMALL

type Breaker = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("name", SMALL)
def test_every_state_keeps_the_guarantees_and_leads_to_rest(name: str):
    found = explore(SMALL[name])
    assert found.broken is None, f"\n{name}: {found.report()}"
    assert found.closed


def test_the_store_that_is_explored_is_the_real_one():
    found = explore(SMALL["crash, restart"])
    assert found.operations > 200  # each once: the states share them
    assert found.states > 2000


def test_states_that_differ_in_names_alone_count_once_and_nothing_is_lost_by_it():
    one, all_of_them = (explore(SMALL["nothing goes wrong"], reduce=reduce) for reduce in (True, False))
    assert one.closed
    assert all_of_them.closed
    assert one.states < all_of_them.states
    assert one.broken is all_of_them.broken is None


def test_a_limit_says_that_the_space_was_not_closed():
    found = explore(SMALL["pause, resume"], limit=200)
    assert not found.closed
    assert "not closed" in found.report()


# --- each rule is there for a reason --------------------------------------------------------------------------------


def the_epoch_may_be_newer(patch: pytest.MonkeyPatch) -> None:
    """The fence is ``>=`` on the epoch, and looks at nothing else."""
    patch.setattr(rules, "holds", lambda row, lease: not row.record.deleted and lease.epoch >= row.record.epoch)


def the_token_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Owner and epoch are enough to hold a lease."""

    def holds(row: Any, lease: Any) -> bool:
        record = row.record
        owner = record.owner.incarnation if record.owner else None
        return not record.deleted and (owner, record.epoch) == (lease.incarnation, lease.epoch)

    patch.setattr(rules, "holds", holds)


def any_epoch_may_be_claimed(patch: pytest.MonkeyPatch) -> None:
    """A claim is no compare-and-swap, and one's own is simply claimed again."""
    real = rules.claim

    def claim(row: Any, request: Any, **more: Any) -> Any:
        return real(row, replace(request, expected_epoch=row.record.epoch), **more)

    patch.setattr(rules, "claim", claim)


def the_living_are_robbed(patch: pytest.MonkeyPatch) -> None:
    """A claim does not ask whether the owner lives."""
    real = rules.claim
    patch.setattr(rules, "claim", lambda row, request, **more: real(row, request, **{**more, "owner_dead": True}))


def batches_are_not_numbered(patch: pytest.MonkeyPatch) -> None:
    """Every batch is taken for the next one."""
    real = rules.append

    def append(row: Any, request: Any, **more: Any) -> Any:
        return real(row, replace(request, number=row.number + 1), **more)

    patch.setattr(rules, "append", append)


def a_release_is_not_numbered(patch: pytest.MonkeyPatch) -> None:
    """A release is taken whatever was appended since it was sent, or since its sender last read."""
    real = rules.release

    def release(row: Any, request: Any, **more: Any) -> Any:
        batch = replace(request.batch, number=row.number + 1, seen=min(request.batch.seen, row.record.head))
        return real(row, replace(request, batch=batch), **more)

    patch.setattr(rules, "release", release)


def what_was_seen_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    """A settlement clears ``wanted`` whatever commands came after what its writer had read."""
    real = rules._settle

    def settle(record: Any, settled: Any, seen: int) -> Any:
        return real(record, settled, record.head)

    patch.setattr(rules, "_settle", settle)


def a_key_may_stand_twice(patch: pytest.MonkeyPatch) -> None:
    """A command is journaled as often as it comes."""
    real = rules.submit
    patch.setattr(rules, "submit", lambda row, request, known, **more: real(row, request, None, **more))


def the_deleted_begin_anew(patch: pytest.MonkeyPatch) -> None:
    """A deletion leaves no tombstone with its epoch."""
    real = rules.delete

    def delete(row: Any, *arguments: Any, **more: Any) -> Any:
        step = real(row, *arguments, **more)
        if step.row is None:
            return step
        return replace(step, row=replace(step.row, record=replace(step.row.record, epoch=0, deleted=False, head=0)))

    patch.setattr(rules, "delete", delete)


def every_batch_looks_alike(patch: pytest.MonkeyPatch) -> None:
    """A batch is recognised as a repeat by its number alone, not by what it says."""
    real = Append.written
    patch.setattr(Append, "written", lambda batch: replace(real(batch), digest="the same"))


def nothing(patch: pytest.MonkeyPatch) -> None:
    """The store is whole; the nodes' conduct is not."""


def faulty(
    *commands: str, passivates: bool = True, apart: bool = False, conduct: Conduct | None = None, **budgets: int
):
    return Scenario(
        commands=commands or ("message",),
        budgets=budgets,
        passivates=passivates,
        apart=apart,
        conduct=conduct or Conduct(),
    )


BROKEN: list[tuple[Breaker, Scenario, Guarantee | str]] = [
    (the_epoch_may_be_newer, faulty(fail_over=1, start=2, passivates=False), Guarantee.ONE_WRITER),
    (the_token_is_not_compared, faulty(fail_over=1, give_up=1, start=2), Guarantee.ONE_WRITER),
    (any_epoch_may_be_claimed, faulty(apart=True, crash=1, start=0), Guarantee.ONE_OWNER),
    (the_living_are_robbed, faulty(start=2), Guarantee.ONE_OWNER),
    (batches_are_not_numbered, faulty(copy=1), Guarantee.JOURNAL),
    (every_batch_looks_alike, faulty("message", "stop", give_up=1, conduct=Conduct(repeat_unchanged=False)), ""),
    (a_release_is_not_numbered, faulty(fail_over=1), Guarantee.WANTED),
    (what_was_seen_is_not_compared, faulty("message", "message"), Guarantee.WANTED),
    (a_key_may_stand_twice, faulty(copy=1), Guarantee.ACCEPTED_IS_KEPT),
    (the_deleted_begin_anew, faulty(delete=1), Guarantee.ONE_OWNER),
    (nothing, faulty(pause=1, conduct=Conduct(fold_after_claim=False)), Guarantee.JOURNAL),
    (nothing, faulty(give_up=1, conduct=Conduct(sweeps_its_own=False)), "LIVENESS"),
    (nothing, faulty(distrust=1, conduct=Conduct(gives_up_for_good=False, sweeps_its_own=False)), "LIVENESS"),
    (nothing, faulty(conduct=Conduct(journals_calls=False)), Guarantee.KNOWN_FATE),
]


@pytest.mark.parametrize(("breaker", "scenario", "guarantee"), BROKEN)
def test_without_the_rule_a_shortest_trace_shows_what_breaks(
    monkeypatch: pytest.MonkeyPatch, breaker: Breaker, scenario: Scenario, guarantee: Guarantee | str
):
    breaker(monkeypatch)
    found = explore(scenario, limit=20_000)
    assert found.broken is not None, found.report()
    assert found.broken.startswith(str(guarantee)), found.report()
    assert found.trace[-1] == f"=> {found.broken}"
    monkeypatch.undo()
    if breaker is not nothing:
        assert explore(replace(scenario, conduct=Conduct()), limit=2_000).broken is None


def test_the_shortest_trace_of_the_shortest_story(monkeypatch: pytest.MonkeyPatch):
    the_living_are_robbed(monkeypatch)
    found = explore(faulty(start=2))
    assert found.trace == (
        "n0 is asked to start, claims",
        "the store executes claim of incarnation 1 with token 1 on epoch 0 -> Held",
        "n1 is asked to start, claims",
        "=> G1 one owner: epoch 2 was granted over a live owner",
    )


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_scenario(capsys: pytest.CaptureFixture[str]):
    assert main(["nothing goes", "crash, restart", "--limit", "3000"]) == 0
    printed = capsys.readouterr().out
    assert "nothing goes wrong" in printed
    assert "134 states" in printed
    assert "no violation, no stuck state" in printed


def test_a_name_that_no_scenario_has_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["no such thing"]) == 2
    assert "there are: " in capsys.readouterr().err


def test_large_bounds_have_names_of_their_own():
    assert not SMALL.keys() & LARGE.keys()
