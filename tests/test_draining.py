"""Ends that are spread over a window."""

from __future__ import annotations

import itertools

import pytest

from gateway import draining
from gateway.draining import spread


class Time:
    """A clock that sleeping moves on; each turn adds `late` seconds to it."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 1_000.0
        self.late = late
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.late


async def spread_over(monkeypatch: pytest.MonkeyPatch, count: int, window: float, time: Time) -> list[list[int]]:
    """Return who was ended each time."""
    ended: list[list[int]] = []
    monkeypatch.setattr(draining, "asyncio", time)
    await spread(lambda: list(range(sum(map(len, ended)), count)), lambda some: ended.append(list(some)), window, clock=time)
    assert list(itertools.chain(*ended)) == list(range(count))
    return ended


async def test_about_equally_many_are_ended_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them first, nobody twice, and all within the window."""
    time = Time()
    ended = await spread_over(monkeypatch, 95, 1.0, time)
    assert {len(some) for some in ended} <= set(range(9, 14))
    assert time.now <= 1_001.0 + 1e-9


async def test_without_a_window_all_are_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loop turns once."""
    time = Time()
    assert await spread_over(monkeypatch, 40, 0.0, time) == [list(range(40))]
    assert time.slept == [0.0]


async def test_where_the_loop_is_late_the_rest_is_ended_at_the_windows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are."""
    time = Time(late=0.7)
    ended = await spread_over(monkeypatch, 100, 1.0, time)
    assert [len(some) for some in ended] == [10, 45, 45]
    assert min(time.slept) == 0.0


async def test_where_nobody_is_left_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the window."""
    time = Time()
    assert await spread_over(monkeypatch, 0, 60.0, time) == []
    assert time.slept == []
