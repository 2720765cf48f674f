"""The sweep: who has been idle or stuck for too long, with numbers for time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.server.sweep import STUCK_SECONDS, Sweep


@dataclass(eq=False)
class Lane:
    """A lane, as far as it matters here. `moving`: each time that it is looked at, it has got rid of some bytes."""

    since: float
    cohort: Any = None
    stuck: bool = False
    holds: bool = False
    moving: bool = False

    def has_sent(self, now: float) -> bool:
        if self.moving:
            self.since = now
        return self.moving


def round_of(sweep: Sweep, lanes: dict[Any, None], now: float) -> list[Any]:
    """Look at all lanes at least once; return each that is over."""
    return list(dict.fromkeys(lane for _ in range(10) for lane in sweep.over(lanes, now)))


def test_each_lane_is_looked_at_once_a_round() -> None:
    """A tenth of them at a time."""
    sweep = Sweep(keepalive=75.0, head_timeout=10.0)
    lanes: dict[Any, None] = dict.fromkeys(Lane(0.0) for _ in range(95))
    shares = [sweep.over(lanes, 100.0) for _ in range(10)]
    assert [len(share) for share in shares] == [10] * 9 + [5]
    assert {lane for share in shares for lane in share} == lanes.keys()
    assert len(sweep.over(lanes, 100.0)) == 10
    assert repr(sweep) == "<Sweep, 85 lanes ahead>"


def test_without_lanes_nobody_is_over() -> None:
    """And nothing is ahead."""
    sweep = Sweep(keepalive=75.0, head_timeout=10.0)
    assert sweep.over({}, 100.0) == []


def test_an_idle_lane_has_the_keepalive_and_half_a_head_its_own_time() -> None:
    """One that is parked is not idle."""
    sweep = Sweep(keepalive=75.0, head_timeout=10.0)
    idle: Any = Lane(0.0)
    half: Any = Lane(0.0, holds=True)
    parked: Any = Lane(0.0, cohort=object())
    lanes = dict.fromkeys((idle, half, parked))
    assert round_of(sweep, lanes, 9.9) == []
    assert round_of(sweep, lanes, 10.0) == [half]
    del lanes[half]
    assert round_of(sweep, lanes, 74.9) == []
    assert round_of(sweep, lanes, 75.0) == [idle]


def test_a_stuck_lane_is_over_after_its_time_without_progress() -> None:
    """Whatever the keepalive, and what it holds."""
    sweep = Sweep(keepalive=5.0, head_timeout=10.0)
    lane: Any = Lane(0.0, stuck=True, holds=True)
    assert round_of(sweep, {lane: None}, STUCK_SECONDS - 0.1) == []
    assert round_of(sweep, {lane: None}, STUCK_SECONDS) == [lane]
    lane.moving = True
    assert round_of(sweep, {lane: None}, 40.0) == []
    lane.moving = False
    assert round_of(sweep, {lane: None}, 40.0 + STUCK_SECONDS - 0.1) == []
    assert round_of(sweep, {lane: None}, 40.0 + STUCK_SECONDS) == [lane]


def test_lanes_that_went_during_a_round_are_left_out() -> None:
    """And those that came wait for the next one."""
    sweep = Sweep(keepalive=75.0, head_timeout=10.0)
    lanes: dict[Any, None] = dict.fromkeys(Lane(0.0) for _ in range(30))
    seen = set(sweep.over(lanes, 100.0))
    gone = [lane for lane in lanes if lane not in seen][:20]
    for lane in gone:
        del lanes[lane]
    come: Any = Lane(0.0)
    lanes[come] = None
    seen = {lane for _ in range(40) for lane in sweep.over(lanes, 100.0)}
    assert not seen & set(gone)
    assert come in seen
