"""Who is next, by each rule: in proportion, evenly, and the same for the same key."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.proxy.balancing import (
    EXACT,
    MAX_POINTS,
    POINTS,
    Balancer,
    Group,
    Hash,
    LeastOutstanding,
    Level,
    Random,
    Ring,
    RoundRobin,
)
from gateway.proxy.target import Endpoint, Target


def targets_of(*weights: int) -> list[Target]:
    return [Target(Endpoint(f"10.0.{number // 250}.{number % 250}:80", weight)) for number, weight in enumerate(weights)]


def group_of(
    members: Sequence[Target], available: Iterable[Target] | None = None, weights: Iterable[float] | None = None
) -> Group:
    targets = list(members if available is None else available)
    return Group(Level(0, members), targets, [float(target.weight) for target in targets] if weights is None else list(weights))


def never() -> float:
    raise AssertionError("drew a number")


def keys(count: int) -> list[bytes]:
    return [b"user-%d" % number for number in range(count)]


def owners(group: Group, count: int = 2_000) -> dict[bytes, Target]:
    return {key: Hash().choose(group, key, never) for key in keys(count)}


class TestRoundRobin:
    def test_smoothly(self) -> None:
        """Weights 5, 1, 1 give nginx's own example: a a b a c a a."""
        a, b, c = targets = targets_of(5, 1, 1)
        group, rule = group_of(targets), RoundRobin()
        assert [rule.choose(group, None, never) for _ in range(14)] == [a, a, b, a, c, a, a] * 2

    def test_equal_weights_take_turns(self) -> None:
        """One after the other, from the first."""
        targets = targets_of(3, 3, 3)
        group, rule = group_of(targets), RoundRobin()
        assert [rule.choose(group, None, never) for _ in range(6)] == targets * 2

    @given(st.lists(st.integers(1, 1_000), min_size=1, max_size=6))
    def test_in_proportion(self, weights: list[int]) -> None:
        """At no time is anybody as many turns ahead of its share, or behind it, as there are targets."""
        targets = targets_of(*weights)
        group, rule, counts = group_of(targets), RoundRobin(), Counter[Target]()
        for turn in range(1, 200):
            counts[rule.choose(group, None, never)] += 1
            for target in targets:
                assert abs(counts[target] - turn * target.weight / sum(weights)) < len(weights)

    def test_who_was_away_is_owed_nothing(self) -> None:
        """A target that comes back does not make up for the turns that it missed."""
        a, b = targets = targets_of(1, 1)
        rule = RoundRobin()
        for _ in range(100):
            rule.choose(group_of(targets, [a]), None, never)
        group = group_of(targets)
        assert Counter(rule.choose(group, None, never) for _ in range(10)) == {a: 5, b: 5}


class TestLeastOutstanding:
    def test_the_least_loaded(self) -> None:
        """Working exchanges count, held ones a sixteenth."""
        a, b, c = targets = targets_of(1, 1, 1)
        a.working, b.held, c.working = 1, 15, 2
        assert LeastOutstanding().choose(group_of(targets), None, never) is b
        b.held = 17
        assert LeastOutstanding().choose(group_of(targets), None, never) is a

    def test_the_only_one(self) -> None:
        """Its load does not matter."""
        targets = targets_of(1)
        targets[0].working = 9
        assert LeastOutstanding().choose(group_of(targets), None, never) is targets[0]

    def test_for_its_weight(self) -> None:
        """Twice the weight bears twice the load."""
        a, b = targets = targets_of(1, 2)
        a.working, b.working = 2, 3
        assert LeastOutstanding().choose(group_of(targets), None, never) is b
        b.working = 5
        assert LeastOutstanding().choose(group_of(targets), None, never) is a

    @pytest.mark.parametrize(("weights", "expected"), [((1, 1, 1), (1_000,) * 3), ((1, 2, 3), (500, 1_000, 1_500))])
    def test_equals_are_drawn_by_weight(self, weights: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """Requests one at a time do not all go to the first."""
        targets, rand = targets_of(*weights), random.Random(5).random
        group = group_of(targets)
        counts = Counter(LeastOutstanding().choose(group, None, rand) for _ in range(3_000))
        assert [counts[target] for target in targets] == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("size", [3, EXACT, EXACT + 1, 16])
    def test_a_thousand_held_polls_each(self, size: int, seed: int) -> None:
        """They come out within two in a hundred of even (20 polls), by looking at all and by two random choices."""
        targets, rand = targets_of(*[1] * size), random.Random(seed).random
        group, rule = group_of(targets), LeastOutstanding()
        for _ in range(1_000 * size):
            rule.choose(group, None, rand).held += 1
        assert max(abs(target.held - 1_000) for target in targets) <= 20

    @pytest.mark.parametrize("seed", range(10))
    def test_two_choices_of_three(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three thousand held polls over three targets come out as even if only two of them are looked at each time."""
        monkeypatch.setattr("gateway.proxy.balancing.EXACT", 0)
        targets, rand = targets_of(1, 1, 1), random.Random(seed).random
        group, rule = group_of(targets), LeastOutstanding()
        for _ in range(3_000):
            rule.choose(group, None, rand).held += 1
        assert max(abs(target.held - 1_000) for target in targets) <= 20

    def test_two_choices_by_weight(self) -> None:
        """Among many, too, load goes by weight."""
        targets, rand = targets_of(*[1] * 10, *[3] * 10), random.Random(7).random
        group, rule = group_of(targets), LeastOutstanding()
        for _ in range(4_000):
            rule.choose(group, None, rand).working += 1
        assert [target.working for target in targets] == pytest.approx([100] * 10 + [300] * 10, rel=0.05)

    def test_the_worst_is_never_one_of_two(self) -> None:
        """The two draws are different targets, so a stuck one gets nothing."""
        targets, rand = targets_of(*[1] * 20), random.Random(7).random
        targets[7].working = 1_000
        group, rule = group_of(targets), LeastOutstanding()
        assert targets[7] not in {rule.choose(group, None, rand) for _ in range(2_000)}


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4)])
@pytest.mark.parametrize("rule", [Random(), Hash()])
def test_at_random(rule: Balancer, weights: tuple[int, ...]) -> None:
    """In proportion to the weights; so is a hash without a key."""
    targets, rand = targets_of(*weights), random.Random(3).random
    group = group_of(targets)
    counts = Counter(rule.choose(group, None, rand) for _ in range(10_000))
    assert [counts[target] / 10_000 for target in targets] == pytest.approx(
        [weight / sum(weights) for weight in weights], abs=0.02
    )


class TestHash:
    def test_equal_keys_go_to_equal_targets(self) -> None:
        """Also in another process, which has the targets in another order."""
        targets = targets_of(1, 2, 3)
        again = targets_of(1, 2, 3)[::-1]
        here = {key: target.address for key, target in owners(group_of(targets)).items()}
        assert here == {key: target.address for key, target in owners(group_of(again)).items()}

    @pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4), (1_000, 500), (100,) * 20])
    def test_in_proportion(self, weights: tuple[int, ...]) -> None:
        """Shares are those of the weights within a quarter, in the long run of many keys."""
        targets = targets_of(*weights)
        counts = Counter(owners(group_of(targets), 20_000).values())
        for target in targets:
            assert counts[target] / 20_000 == pytest.approx(target.weight / sum(weights), rel=0.25)

    @given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.integers(0, 7))
    @settings(max_examples=30)
    def test_who_goes_moves_only_its_share(self, weights: list[int], gone: int) -> None:
        """Keys of the others stay where they are, whether it is unavailable or not there at all; and they come back."""
        targets = targets_of(*weights)
        lost = targets[gone % len(targets)]
        rest = [target for target in targets if target is not lost]
        before, without = owners(group_of(targets), 300), owners(group_of(targets, rest), 300)
        assert all(without[key] is owner for key, owner in before.items() if owner is not lost)
        assert lost not in without.values()
        assert owners(group_of(rest), 300) == without

    def test_the_share_of_who_goes_is_spread(self) -> None:
        """All others take over some of it."""
        targets = targets_of(*[1] * 5)
        lost = targets[0]
        before, after = owners(group_of(targets)), owners(group_of(targets, targets[1:]))
        assert {after[key] for key, owner in before.items() if owner is lost} == set(targets[1:])

    def test_slow_start_moves_each_key_once(self) -> None:
        """The one that comes back gets a growing part of its share, keys that it has it keeps, and nobody else's move."""
        targets = targets_of(1, 1, 1)
        a = targets[0]
        whole = owners(group_of(targets))
        share = sum(owner is a for owner in whole.values())
        had: set[bytes] = set()
        for grown in (0.1, 0.3, 0.5, 0.9, 1.0):
            now = owners(group_of(targets, weights=(grown, 1.0, 1.0)))
            has = {key for key, owner in now.items() if owner is a}
            assert had <= has
            assert len(has) == pytest.approx(share * grown, rel=0.2)
            assert all(now[key] is owner for key, owner in whole.items() if owner is not a)
            had = has
        assert had == {key for key, owner in whole.items() if owner is a}

    def test_when_all_start_slowly_nobody_does(self) -> None:
        """Shares are against the one that has grown most, so there is somebody for each key."""
        targets = targets_of(1, 1)
        assert owners(group_of(targets, weights=(0.1, 0.1))) == owners(group_of(targets))

    def test_all_who_are_there_and_whole(self) -> None:
        """A single target gets every key."""
        (only,) = targets = targets_of(7)
        assert set(owners(group_of(targets), 50).values()) == {only}


class TestRing:
    def test_points_go_by_weight(self) -> None:
        """160 for each unit, as in ketama."""
        assert len(Ring(targets_of(1, 2))) == 3 * POINTS

    def test_it_is_bounded(self) -> None:
        """Many targets or large weights get fewer points each, everybody at least one."""
        assert MAX_POINTS / 2 < len(Ring(targets_of(1_000, 1_000))) <= MAX_POINTS
        assert len(Ring(targets_of(*[1] * MAX_POINTS, 1_000))) == MAX_POINTS + 1

    def test_it_is_made_once(self) -> None:
        """A level keeps its ring."""
        level = Level(0, targets_of(1))
        assert level.ring is level.ring

    def test_its_first_point_follows_its_last(self) -> None:
        """Keys beyond the last point belong to the owner of the first."""
        targets = targets_of(1, 1, 1)
        ring, group = Ring(targets), group_of(targets, targets[:2])
        ring._points = ring._points[:1]
        assert {ring.find(key, group_of(targets)) for key in keys(50)} == {targets[ring._points[0] & 0xFFFF]}
        ring._members = [targets[2]] * 3
        with pytest.raises(AssertionError, match="at least one"):
            ring.find(b"x", group)
