"""A source is looked at when due, ahead of that for a new key, and never as often as strangers would like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.refresh import MAX_UNKNOWN, Pace, Refresh

PACE = Pace(max_age=600.0, cooldown=10.0, stale=3600.0)


def looked(plan: Refresh, now: float) -> Refresh:
    plan.begin(now)
    plan.succeed(now, 0.0)
    return plan


@pytest.mark.parametrize(
    "change",
    [{"max_age": 0.0}, {"cooldown": -1.0}, {"max_retry": 0.0}, {"unknown_ttl": 0.0}, {"stale": 600.0}, {"cooldown": 601.0}],
)
def test_a_pace_has_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Pace(**{"max_age": 600.0, "cooldown": 10.0, "stale": 3600.0} | change)


def test_the_first_look_is_due_at_once_and_may_be_waited_for() -> None:
    plan = Refresh(PACE, 0.0)
    assert plan.due == 0.0
    assert plan.stale_at == float("inf")
    assert plan.ask("a", 0.0)


@pytest.mark.parametrize(
    ("max_age", "jitter", "due"),
    [(None, 0.0, 600.0), (None, 1.0, 540.0), (60.0, 0.0, 60.0), (86_400.0, 0.0, 600.0), (0.0, 0.0, 10.0)],
)
def test_an_answer_is_good_for_its_own_max_age_within_ours(max_age: float | None, jitter: float, due: float) -> None:
    plan = Refresh(PACE, 0.0)
    plan.begin(0.0)
    plan.succeed(0.0, jitter, max_age)
    assert plan.due == due
    assert plan.stale_at == 3600.0


def test_an_unknown_key_hastens_the_look_but_not_within_the_cooldown() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    assert not plan.ask("a", 9.9)
    assert plan.due == 600.0
    assert plan.ask("a", 10.0)
    assert plan.due == 10.0
    assert plan.ask("b", 10.0)


def test_a_look_under_way_is_joined() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    plan.begin(20.0)
    assert plan.ask("a", 20.0)
    assert plan.due == 600.0
    assert repr(plan) == "<Refresh looking failures 0 unknown 0>"


def test_a_key_that_a_look_did_not_bring_is_not_asked_for_again_for_a_while() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    plan.miss("a", 0.0)
    plan.miss(None, 0.0)
    assert not plan.ask("a", 59.9)
    assert not plan.ask(None, 59.9)
    assert plan.ask("b", 59.9)
    assert plan.ask("a", 60.0)
    plan.begin(61.0)
    plan.miss("a", 61.0)
    assert not plan.ask("a", 62.0)


def test_the_missing_are_remembered_within_bounds() -> None:
    plan = Refresh(PACE, 0.0)
    for number in range(MAX_UNKNOWN + 5):
        plan.miss(str(number), 0.0)
    assert repr(plan) == f"<Refresh due 0 failures 0 unknown {MAX_UNKNOWN}>"
    assert plan.ask("0", 0.0)
    assert not plan.ask(str(MAX_UNKNOWN + 4), 0.0)


def test_failures_back_off_with_jitter_up_to_a_bound() -> None:
    delays = {0.0: [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0], 1.0: [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]}
    for jitter, expected in delays.items():
        plan, now, seen = Refresh(PACE, 0.0), 0.0, []
        for _ in expected:
            plan.begin(now)
            plan.fail(now, jitter)
            seen.append(plan.due - now)
            now = plan.due
        assert seen == expected
    for _ in range(3000):
        plan.fail(0.0, 1.0)
    assert plan.due == 60.0


def test_nobody_hastens_a_look_that_backs_off() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    plan.begin(600.0)
    plan.fail(600.0, 1.0)
    assert not plan.ask("a", 600.5)
    assert plan.doubt("a", 600.5) == 0.5
    assert plan.ask("a", 601.0)
    assert plan.doubt("a", 602.0) == 0.0
    assert plan.stale_at == 3600.0


def test_there_is_no_doubt_while_looks_succeed_or_about_keys_known_to_be_missing() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    assert plan.doubt("a", 1.0) is None
    plan.miss("a", 1.0)
    plan.fail(1.0, 0.0)
    assert plan.doubt("a", 1.0) is None
    assert plan.doubt("b", 1.0) == 0.5


def test_keys_given_up_are_stale_no_more() -> None:
    plan = looked(Refresh(PACE, 0.0), 0.0)
    plan.drop()
    assert plan.stale_at == float("inf")


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3), st.booleans(), st.floats(0, 1)), max_size=200))
def test_looks_never_come_faster_than_the_cooldown_or_the_back_off(steps: list[tuple[float, int, bool, float]]) -> None:
    """Whatever is asked for and however looks end, their number is bounded by time alone."""
    plan, now, looks = Refresh(PACE, 0.0), 0.0, []
    for elapsed, kid, good, jitter in steps:
        now += elapsed
        plan.ask(str(kid), now)
        if plan.due <= now:
            if looks:
                before, was_good = looks[-1]
                assert now - before >= (PACE.cooldown if was_good else 0.5)
            plan.begin(now)
            plan.succeed(now, jitter) if good else plan.fail(now, jitter)
            if good:
                plan.miss(str(kid), now)
            looks.append((now, good))
