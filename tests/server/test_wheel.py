"""The wheel: alarms of cohorts and early ends of lanes, with numbers for time."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fanout.hub import TICK
from gateway.server.wheel import Wheel


@dataclass(eq=False)
class Cohort:
    """A cohort, as far as it matters here."""

    alarm: int = 0


@dataclass(eq=False)
class Lane:
    """A lane in a cohort, by what ends at `expires`."""

    cohort: Cohort
    expires: float
    armed: Any = field(init=False)

    def __post_init__(self) -> None:
        self.armed = SimpleNamespace(expires=self.expires)


@pytest.fixture
def wheel() -> Wheel:
    return Wheel(1_000.0)


def test_an_alarm_comes_once_and_at_its_time(wheel: Wheel) -> None:
    """From then on the cohort has none."""
    cohort: Any = Cohort()
    wheel.watch(cohort, 1_030.0)
    assert repr(wheel) == "<Wheel, 1 alarms, 0 early ends>"
    assert wheel.turn(1_029.9) == ([], [])
    assert wheel.turn(1_030.15) == ([], [cohort])
    assert cohort.alarm == 0
    assert wheel.turn(1_100.0) == ([], [])
    assert repr(wheel) == "<Wheel, 0 alarms, 0 early ends>"


def test_the_first_alarm_counts(wheel: Wheel) -> None:
    """A later one is not kept, an earlier one takes its place."""
    cohort: Any = Cohort()
    for at in (1_020.0, 1_030.0, 1_010.0):
        wheel.watch(cohort, at)
    assert wheel.turn(1_010.15) == ([], [cohort])
    assert wheel.turn(1_040.0) == ([], [])


def test_an_alarm_that_took_the_place_of_another_is_the_only_one(wheel: Wheel) -> None:
    """Also where both are due in one turn, or where the cohort is watched again meanwhile."""
    cohort: Any = Cohort()
    wheel.watch(cohort, 1_020.0)
    wheel.watch(cohort, 1_010.0)
    assert wheel.turn(1_025.0) == ([], [cohort])
    wheel.watch(cohort, 1_030.0)
    wheel.watch(cohort, 1_026.0)
    assert wheel.turn(1_026.15) == ([], [cohort])
    wheel.watch(cohort, 1_050.0)
    assert wheel.turn(1_031.0) == ([], [])
    assert wheel.turn(1_050.15) == ([], [cohort])


def test_an_alarm_in_the_past_comes_at_the_next_tick(wheel: Wheel) -> None:
    """Not in one that has been turned to already."""
    cohort: Any = Cohort()
    wheel.watch(cohort, 1.0)
    assert wheel.turn(1_000.0) == ([], [])
    assert wheel.turn(1_000.15) == ([], [cohort])


def test_a_lane_ends_with_what_it_polls_by(wheel: Wheel) -> None:
    """Within a tick, and once, however often it was noted."""
    cohort: Any = Cohort()
    lane: Any = Lane(cohort, 1_005.0)
    other: Any = Lane(cohort, 1_009.0)
    for each in (lane, lane, other):
        wheel.note(each, cohort)
    assert repr(wheel) == "<Wheel, 0 alarms, 3 early ends>"
    assert wheel.turn(1_004.9) == ([], [])
    assert wheel.turn(1_005.15) == ([lane], [])
    assert wheel.turn(1_009.15) == ([other], [])


def test_a_lane_that_sleeps_elsewhere_or_by_another_token_does_not_end(wheel: Wheel) -> None:
    """It was noted for what it waited in then."""
    cohort: Any = Cohort()
    moved: Any = Lane(cohort, 1_005.0)
    renewed: Any = Lane(cohort, 1_005.0)
    for each in (moved, renewed):
        wheel.note(each, cohort)
    moved.cohort = Cohort()
    renewed.armed = SimpleNamespace(expires=1_500.0)
    assert wheel.turn(1_006.0) == ([], [])
    assert repr(wheel) == "<Wheel, 0 alarms, 0 early ends>"


@given(
    st.lists(st.floats(0.0, 50.0), min_size=1, max_size=20),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30),
)
def test_nothing_is_early_and_nothing_is_late(waits: list[float], steps: list[float]) -> None:
    """An alarm comes in the first turn a tick after its time, at the latest, and never before it."""
    now = 1_000.0
    wheel = Wheel(now)
    cohorts: list[Any] = [Cohort() for _ in waits]
    ends = {cohort: now + wait for cohort, wait in zip(cohorts, waits, strict=True)}
    for cohort, at in ends.items():
        wheel.watch(cohort, at)
    for step in steps:
        now += step
        for cohort in wheel.turn(now)[1]:
            assert ends.pop(cohort) <= now
        assert all(at > now - 2 * TICK for at in ends.values())
