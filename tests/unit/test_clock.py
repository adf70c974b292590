"""Two kinds of time, and the clock that a test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.clock import Clock, Deadline, Instant, SystemClock
from tenure.testing.clock import A_NEW_YEAR, ManualClock

MILLISECONDS = st.integers(0, 4_000_000_000_000)


@given(MILLISECONDS)
def test_an_instant_of_milliseconds_survives_its_text(ms: int):
    instant = Instant(ms / 1000)
    assert Instant.parse(instant.isoformat()) == instant


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (A_NEW_YEAR, "2026-01-01T00:00:00.000Z"),
        (1_769_851_800.25, "2026-01-31T09:30:00.250Z"),
    ],
)
def test_an_instant_is_told_in_utc(unix_s: float, text: str):
    assert Instant(unix_s).isoformat() == text
    assert Instant.parse(text) == Instant(unix_s)


def test_other_zones_are_read():
    assert Instant.parse("2026-01-31T10:30:00.25+01:00") == Instant.parse("2026-01-31T09:30:00.250Z")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(ValueError):
        Instant.parse(text)


def test_instants_are_ordered_and_no_deadlines():
    assert Instant(1.0) < Instant(2.0)
    assert Instant(1.0) != Deadline(1.0)
    with pytest.raises(TypeError):
        assert Instant(1.0) < Deadline(2.0)  # type: ignore[operator]


@given(st.floats(0, 1e9), st.floats(-1e6, 1e6))
def test_a_deadline_is_moved_by_seconds(boot_s: float, seconds: float):
    assert (Deadline(boot_s) + seconds).boot_s == boot_s + seconds
    assert Deadline(boot_s + seconds) - Deadline(boot_s) == pytest.approx(seconds, abs=1e-6)


def test_the_system_clock_is_as_fine_as_its_text_and_goes_on():
    clock: Clock = SystemClock()
    now = clock.now()
    assert Instant.parse(now.isoformat()) == now
    assert now > Instant(A_NEW_YEAR - 10 * 365 * 86400)
    first, second = clock.boottime(), clock.boottime()
    assert second >= first


# the clock of tests


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock: Clock = ManualClock()
    assert (clock.now(), clock.boottime()) == (clock.now(), clock.boottime())


def test_time_passes_on_both_clocks():
    clock = ManualClock(100.0, 10.0)
    clock.advance(2.5)
    assert (clock.now(), clock.boottime()) == (Instant(102.5), Deadline(12.5))
    with pytest.raises(ValueError, match="use step"):
        clock.advance(-1.0)
    assert clock.boottime() == Deadline(12.5)


def test_a_clock_jumps_alone():
    clock = ManualClock(100.0, 10.0)
    clock.step(wall_s=-50.0)
    assert (clock.now(), clock.boottime()) == (Instant(50.0), Deadline(10.0))
    clock.step(boot_s=-5.0)
    assert (clock.now(), clock.boottime()) == (Instant(50.0), Deadline(5.0))


def test_its_wall_time_is_as_fine_as_its_text():
    clock = ManualClock(0.0)
    clock.advance(1.23456)
    assert clock.now() == Instant(1.235)
    assert Instant.parse(clock.now().isoformat()) == clock.now()
