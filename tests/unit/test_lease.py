"""The relations between times, the trust window, and the names of a tenure's states."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tenure.clock import Deadline
from tenure.lease import (
    Epoch,
    Lease,
    TenureState,
    Timing,
    TrustWindow,
    new_incarnation,
    new_token,
)

TTLS = st.floats(0.2, 3600)
MOMENTS = st.floats(0, 1e6)
timings = TTLS.map(Timing.of_ttl)


# timing


@given(TTLS)
def test_the_usual_relations_hold_for_every_ttl(ttl_s: float):
    timing = Timing.of_ttl(ttl_s)
    assert timing.ttl_s == ttl_s
    assert timing.margin_s + timing.stop_budget_s + 2 * timing.beat_s <= ttl_s, "one lost renewal stops nothing"
    assert 0 < timing.call_timeout_s <= (ttl_s - timing.margin_s) / 4, "rule 17"


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 0.19, 3601.0, float("inf"), float("nan")])
def test_a_ttl_out_of_reach_is_refused(ttl_s: float):
    with pytest.raises(ValueError, match=r"ttl_s is .*, must lie in 0\.2 to 3600 seconds: set TENURE_TTL_S"):
        Timing(ttl_s=ttl_s)


@pytest.mark.parametrize("part", ["margin_s", "stop_budget_s", "beat_s"])
@pytest.mark.parametrize("seconds", [0.0, -0.1])
def test_no_part_may_be_nothing(part: str, seconds: float):
    with pytest.raises(ValueError, match="must be above 0"):
        Timing(**{part: seconds})


@given(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_ttl_that_one_lost_renewal_would_use_up_is_refused(margin_s: float, stop_budget_s: float, beat_s: float):
    parts = {"margin_s": margin_s, "stop_budget_s": stop_budget_s, "beat_s": beat_s}
    if margin_s + stop_budget_s + 2 * beat_s <= 5:
        assert Timing(5, **parts).beat_s == beat_s
        return
    with pytest.raises(ValueError, match="raise ttl_s or lower the others"):
        Timing(5, **parts)


# the trust window


@given(timings, MOMENTS)
def test_trust_is_counted_from_the_start_of_the_attempt(timing: Timing, start: float):
    window = TrustWindow(timing, Deadline(start))
    assert window.trusted_until == Deadline(start) + (timing.ttl_s - timing.margin_s)
    assert window.stop_at == window.trusted_until + -timing.stop_budget_s
    assert window.trusts(Deadline(start))
    assert not window.must_stop(Deadline(start))
    assert not window.trusts(window.trusted_until), "at the very moment it is over"
    assert window.must_stop(window.stop_at)


@given(timings, MOMENTS, st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=8))
def test_no_reply_ever_extends_trust(timing: Timing, start: float, attempts: list[tuple[float, float]]):
    """Rule 11: whatever the delay of the replies, trust ends before the lease does by the store's clock.

    The store grants at some moment between transmission and reply; its expiry is that moment + ttl. The window must
    end at least a margin before the earliest moment at which the store can have granted what was confirmed last.
    """
    window = TrustWindow(timing, Deadline(start))
    now, latest = start, start
    for pause, delay in attempts:
        sent = now + pause
        window = window.renewed(Deadline(sent))  # confirmed at sent + delay
        now, latest = sent + delay, sent
        earliest_expiry = Deadline(latest) + timing.ttl_s
        assert earliest_expiry - window.trusted_until == pytest.approx(timing.margin_s)


@given(timings, MOMENTS, MOMENTS)
def test_an_older_attempt_that_is_confirmed_late_shortens_nothing(timing: Timing, one: float, other: float):
    first, second = TrustWindow(timing, Deadline(one)), TrustWindow(timing, Deadline(one)).renewed(Deadline(other))
    assert second.confirmed == max(first.confirmed, Deadline(other))
    assert second.trusted_until >= first.trusted_until
    assert second.renewed(Deadline(other)) == second


@given(timings, MOMENTS, st.floats(0, 7200))
def test_it_stops_before_trust_ends(timing: Timing, start: float, later: float):
    window, now = TrustWindow(timing, Deadline(start)), Deadline(start + later)
    assert window.stop_at < window.trusted_until
    assert window.must_stop(now) or window.trusts(now)


@given(timings, MOMENTS)
def test_one_failed_renewal_with_time_left_stops_nothing(timing: Timing, start: float):
    """The next beat is due before `stop_at` even if one attempt was lost whole."""
    window = TrustWindow(timing, Deadline(start))
    assume(timing.ttl_s - timing.margin_s - timing.stop_budget_s - 2 * timing.beat_s > 1e-6)
    assert not window.must_stop(Deadline(start) + 2 * timing.beat_s)


def test_windows_and_leases_do_not_change():
    lease = Lease("c", new_incarnation(), Epoch(1), new_token())
    for frozen in (TrustWindow(Timing(), Deadline(0.0)), Timing(), lease):
        name = dataclasses.fields(frozen)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, None)


# identities and states


def test_identities_are_fresh_and_fit_anywhere():
    made = [make() for _ in range(200) for make in (new_incarnation, new_token)]
    assert len(set(made)) == len(made)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in made)


def test_leases_are_equal_in_all_of_their_parts_or_not_at_all():
    lease = Lease("c", new_incarnation(), Epoch(1), new_token())
    assert lease == dataclasses.replace(lease)
    for other in ({"epoch": 2}, {"token": "t"}, {"incarnation": "i"}, {"conversation": "d"}):
        assert dataclasses.replace(lease, **other) != lease  # type: ignore[arg-type]


def test_a_tenure_ends_twice():
    assert {state for state in TenureState if state.ended} == {TenureState.RELEASED, TenureState.LOST}
