"""Who is an outlier, and for how long he is out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.proxy.outliers import Outliers
from gateway.proxy.verdict import Verdict

OK, ERROR, FAILURE, NEUTRAL = Verdict


def outliers(**options: Any) -> Outliers:
    usual = {"consecutive": 5, "rate": 0.5, "least_requests": 20, "window": 10.0, "ejection": 10.0, "max_ejection": 35.0}
    return Outliers(**(usual | options))


def test_failures_in_a_row() -> None:
    """The fifth in a row is one too many; a success starts the count anew, a client that leaves changes nothing."""
    judge = outliers()
    for verdict in (FAILURE, FAILURE, FAILURE, FAILURE, OK, FAILURE, FAILURE, FAILURE, NEUTRAL, FAILURE):
        assert not judge.record(verdict, 100.0)
    assert repr(judge) == "<Outliers in, 0 times, 4 failures in a row>"
    assert judge.record(FAILURE, 100.0)


def test_errors_count_among_ones_like() -> None:
    """A target that answers 500 to what others answer well is ejected."""
    judge = outliers()
    for _ in range(4):
        assert not judge.record(ERROR, 100.0)
    assert judge.record(ERROR, 100.0)


def test_share_of_failures() -> None:
    """Half of at least twenty verdicts within the window are too many, though never five in a row failed."""
    judge = outliers()
    for _ in range(9):
        assert not judge.record(OK, 100.0)
        assert not judge.record(FAILURE, 100.0)
    assert not judge.record(OK, 100.0)
    assert judge.record(FAILURE, 100.0)


def test_less_than_the_share() -> None:
    """Nine of twenty-one are not half."""
    judge = outliers()
    for _ in range(3):
        judge.record(OK, 100.0)
    for _ in range(9):
        judge.record(OK, 100.0)
        assert not judge.record(FAILURE, 100.0)


def test_what_is_old_does_not_count() -> None:
    """Verdicts of more than a window ago are neither failures nor requests."""
    judge = outliers()
    for _ in range(9):
        judge.record(OK, 100.0)
        judge.record(FAILURE, 100.0)
    judge.record(OK, 111.0)
    assert not judge.record(FAILURE, 111.0)


def test_neutral_ends_are_no_requests() -> None:
    """A thousand clients that left make no failure and no request."""
    judge = outliers()
    for _ in range(1_000):
        judge.record(NEUTRAL, 100.0)
    for _ in range(4):
        assert not judge.record(FAILURE, 100.0)


def test_after_a_judgement_the_count_begins_anew() -> None:
    """Whether it was ejected or not."""
    judge = outliers()
    assert [judge.record(FAILURE, 100.0) for _ in range(10)] == [False] * 4 + [True] + [False] * 4 + [True]


def test_ejections_in_a_row_grow() -> None:
    """Ten seconds, twice, three times as many, at most the bound."""
    judge, now, durations = outliers(), 100.0, []
    for _ in range(5):
        durations.append(judge.eject(now))
        now += durations[-1]
        assert judge.until == now
        judge.come_back(now)
        assert judge.until is None
    assert durations == [10.0, 20.0, 30.0, 35.0, 35.0]


def test_good_time_is_remembered() -> None:
    """Each window of good time takes one ejection off, down to none."""
    judge, now = outliers(), 100.0
    for _ in range(3):
        now += judge.eject(now)
        judge.come_back(now)
    assert judge.eject(now + 9.9) == 35.0  # the fourth
    judge.come_back(200.0)
    assert judge.eject(220.0) == 30.0  # two windows of good time: the third again
    assert repr(judge) == "<Outliers out until 250, 3 times, 0 failures in a row>"
    judge.come_back(250.0)
    assert judge.eject(1_000.0) == 10.0


@pytest.mark.parametrize(
    "options",
    [
        {"consecutive": 0},
        {"least_requests": 0},
        {"rate": 0.0},
        {"rate": 1.1},
        {"window": 0.0},
        {"ejection": 0.0},
        {"ejection": 40.0},
    ],
)
def test_bounds(options: dict[str, Any]) -> None:
    """Figures that make no sense are refused."""
    with pytest.raises(ValueError, match="expected"):
        outliers(**options)
