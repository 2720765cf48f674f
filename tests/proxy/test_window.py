"""A sliding sum against a list of what was added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.window import Window


def test_what_is_older_than_the_window_is_gone() -> None:
    """It counts for nine tenths of the window at least and for the whole of it at most."""
    window = Window(10.0)
    window.add(2.0, 100.0)
    window.add(3.0, 104.0)
    assert window.total(109.0) == 5.0
    assert window.total(110.0) == 3.0
    assert window.total(114.0) == 0.0


def test_it_can_be_emptied() -> None:
    """Nothing is left of what was added before."""
    window = Window(10.0)
    window.add(2.0, 5.0)
    window.clear()
    assert window.total(5.0) == 0.0
    assert repr(window) == "<Window 0 in 10 s>"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-5, 5))))
def test_it_is_the_sum_of_the_last_tenths(steps: list[tuple[int, int]]) -> None:
    """Whatever comes when: the sum of the present tenth of the window and the nine before it."""
    window, now, added = Window(10.0), 0, []
    for passed, amount in steps:
        now += passed
        window.add(amount, float(now))
        added.append((now, amount))
        assert window.total(float(now)) == pytest.approx(sum(amount for at, amount in added if at > now - 10))
