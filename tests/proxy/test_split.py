"""A split gives each caller the same upstream again and keeps its shares."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.split import Split

KEYS = [f"caller-{number}".encode() for number in range(20_000)]


def shares(weights: list[tuple[str, int]]) -> list[str]:
    split = Split(weights)
    return [split.choose(key) for key in KEYS]


@pytest.mark.parametrize(
    "weights",
    [[("a", 95), ("b", 5)], [("a", 1), ("b", 1)], [("a", 50), ("b", 30), ("c", 20)], [("a", 999), ("b", 1)], [("a", 3), ("b", 0), ("c", 1)]],
)  # fmt: skip
def test_shares_are_as_the_weights_say(weights):
    """Within five standard deviations of a binomial distribution."""
    chosen, total = shares(weights), sum(weight for _, weight in weights)
    for name, weight in weights:
        share = weight / total
        deviation = math.sqrt(len(KEYS) * share * (1 - share))
        assert abs(chosen.count(name) - len(KEYS) * share) <= 5 * deviation


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ([("a", 95), ("b", 5)], [("a", 95), ("b", 10)], "b"),
        ([("a", 50), ("b", 30), ("c", 20)], [("a", 60), ("b", 30), ("c", 20)], "a"),
        ([("a", 50), ("b", 30), ("c", 20)], [("a", 50), ("b", 3), ("c", 20)], "b"),
        ([("a", 50), ("b", 30)], [("a", 50), ("b", 30), ("new", 20)], "new"),
        ([("a", 50), ("b", 30), ("c", 20)], [("a", 50), ("b", 30), ("c", 0)], "c"),
    ],
)
def test_a_changed_weight_moves_only_the_share_it_must(before, after, changed):
    """All that moves comes to the changed name or leaves it, so it is no more than the difference of its shares."""
    moved = [(old, new) for old, new in zip(shares(before), shares(after), strict=True) if old != new]
    grows = dict(after)[changed] > dict(before).get(changed, 0)
    assert {new if grows else old for old, new in moved} == {changed}
    must = abs(dict(after)[changed] / sum(dict(after).values()) - dict(before).get(changed, 0) / sum(dict(before).values()))
    assert abs(len(moved) - must * len(KEYS)) <= 5 * math.sqrt(len(KEYS) * must)


@given(
    st.lists(
        st.tuples(st.text("abc", min_size=1), st.integers(1, 1_000)), min_size=1, max_size=5, unique_by=lambda pair: pair[0]
    ),
    st.binary(),
    st.data(),
)
def test_neither_order_nor_scale_of_the_weights_matters(weights, key, data):
    shuffled = data.draw(st.permutations(weights))
    chosen = Split(weights).choose(key)
    assert chosen in dict(weights)
    assert Split(shuffled).choose(key) == chosen
    assert Split([(name, 2 * weight) for name, weight in weights]).choose(key) == chosen


def test_the_choice_is_the_same_in_every_process_and_version():
    """A changed hash would move callers in the middle of a roll-out."""
    split = Split([("shop", 95), ("shop-next", 5)])
    assert [number for number in range(100) if split.choose(b"%d" % number) == "shop-next"] == [14, 69, 87]


def test_a_split_shows_its_weights():
    assert repr(Split([("a", 95), ("b", 0)])) == "Split(a 95, b 0)"


@pytest.mark.parametrize("weights", [[], [("a", 0)], [("a", 1), ("a", 2)], [("a", -1), ("b", 2)]])
def test_what_is_no_split(weights):
    with pytest.raises(ValueError, match="expected"):
        Split(weights)
