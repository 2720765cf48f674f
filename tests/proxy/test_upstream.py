"""One decision each: who is next, who is out and who is back, by examples and against a model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.proxy.balancing import Balancer, Hash, LeastOutstanding, Random, RoundRobin
from gateway.proxy.breaker import Breaker, State
from gateway.proxy.events import (
    Closed,
    Ejected,
    Event,
    HalfOpened,
    Healthy,
    Joined,
    Left,
    Opened,
    Returned,
    Spared,
    Unhealthy,
)
from gateway.proxy.healthiness import Healthiness
from gateway.proxy.outliers import Outliers
from gateway.proxy.target import Endpoint, Target
from gateway.proxy.upstream import Upstream
from gateway.proxy.verdict import Verdict

OK, _, FAILURE, NEUTRAL = Verdict

BREAKER = partial(Breaker, consecutive=3, open=5.0, max_open=20.0, trials=1)
OUTLIERS = partial(Outliers, consecutive=3, rate=0.5, least_requests=20, window=10.0, ejection=10.0, max_ejection=60.0)
HEALTHINESS = partial(Healthiness, rise=1, fall=2)


def first() -> float:
    """Stand for a random number: the lowest."""
    return 0.0


def endpoints(count: int, **same: Any) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{number}:80", **same) for number in range(count)]


def upstream_of(*listed: Endpoint, balancer: Balancer | None = None, **options: Any) -> Upstream:
    return Upstream("shop", listed, balancer or RoundRobin(), **options)


def exchange(upstream: Upstream, target: Target, verdict: Verdict, now: float, *, held: bool = False) -> list[Event]:
    """Begin and end."""
    period = upstream.begin(target, held=held, now=now)
    return upstream.end(target, held=held, verdict=verdict, now=now, period=period)


def fail(upstream: Upstream, target: Target, now: float, times: int = 3) -> list[Event]:
    """Let exchanges begin and fail, one after the other."""
    return [event for _ in range(times) for event in exchange(upstream, target, FAILURE, now)]


class TestChoice:
    def test_nobody(self) -> None:
        """An upstream without targets has none to choose."""
        upstream = upstream_of()
        assert upstream.choose(0.0, rand=first) is None
        assert upstream.retry_after(0.0) == 5.0
        assert repr(upstream) == "<Upstream shop: no targets>"

    def test_the_lowest_priority_first(self) -> None:
        """Spares get nothing while anybody before them is available, and no longer than that."""
        upstream = upstream_of(*endpoints(1, priority=1), Endpoint("a:80"), breaker=BREAKER)
        spare, usual = upstream.targets
        assert upstream.choose(0.0, rand=first) is usual
        fail(upstream, usual, 0.0)
        assert upstream.choose(0.0, rand=first) is spare
        assert upstream.choose(5.0, rand=first) is usual

    def test_tried_ones_come_last(self) -> None:
        """A retry goes elsewhere, to spares as well, and comes back if there is nowhere else."""
        upstream = upstream_of(*endpoints(2), Endpoint("spare:80", priority=1))
        one, other, spare = upstream.targets
        assert upstream.choose(0.0, tried=[one], rand=first) is other
        assert upstream.choose(0.0, tried=[one, other], rand=first) is spare
        assert upstream.choose(0.0, tried=[one, other, spare], rand=first) in (one, other)

    def test_a_key_has_its_target(self) -> None:
        """The key goes to the balancer."""
        upstream = upstream_of(*endpoints(8), balancer=Hash())
        assert len({upstream.choose(0.0, key=b"alice", rand=first) for _ in range(20)}) == 1

    def test_the_first_of_two_listings_counts(self) -> None:
        """Two names may resolve to one address."""
        upstream = upstream_of(Endpoint("a:80", weight=3), Endpoint("a:80"))
        assert [target.weight for target in upstream.targets] == [3]

    @pytest.mark.parametrize("options", [{"max_share": 1.1}, {"max_share": -0.1}, {"slow_start": -1.0}])
    def test_bounds(self, options: dict[str, float]) -> None:
        """Figures that make no sense are refused."""
        with pytest.raises(ValueError, match="expected"):
            upstream_of(**options)

    @given(
        st.lists(st.integers(1, 5), min_size=2, max_size=6), st.lists(st.sampled_from(["", "sick", "out", "open"]), min_size=6)
    )
    @settings(max_examples=50)
    @pytest.mark.parametrize("balancer", [RoundRobin, Hash])
    def test_whoever_is_well_gets_his_share(self, balancer: type[Balancer], weights: list[int], ills: list[str]) -> None:
        """In the long run traffic goes by weight among those who are available, by turns exactly, by hash nearly."""
        listed = [Endpoint(f"10.0.0.{number}:80", weight) for number, weight in enumerate(weights)]
        upstream = upstream_of(
            *listed, balancer=balancer(), breaker=BREAKER, outliers=OUTLIERS, healthiness=HEALTHINESS, max_share=1.0
        )
        for target, ill in zip(upstream.targets, ills, strict=False):
            if ill == "sick":
                upstream.checked(target, False, 0.0)
                upstream.checked(target, False, 0.0)
            elif ill == "out":
                assert target.outliers
                target.outliers.eject(0.0)
            elif ill == "open":
                assert target.breaker
                for _ in range(3):
                    target.breaker.record(FAILURE, 0.0)
        well = [target for target, ill in zip(upstream.targets, ills, strict=False) if not ill]
        counts = Counter(upstream.choose(1.0, key=b"%d" % number, rand=first) for number in range(2_000))
        assert set(counts) == set(well or [None])
        whole = sum(target.weight for target in well)
        for target in well:
            expected = 2_000 * target.weight / whole
            # A neighbour on the ring may have the shares of several who are away.
            tolerance = len(well) if balancer is RoundRobin else 0.6 * expected
            assert counts[target] == pytest.approx(expected, abs=tolerance)


class TestCounts:
    def test_working_and_held(self) -> None:
        """Begun working, turned into held, ended; latency is remembered."""
        upstream = upstream_of(*endpoints(2))
        one, other = upstream.targets
        first_period = upstream.begin(one, held=False, now=0.0)
        other_period = upstream.begin(other, held=True, now=0.0)
        assert (upstream.working, upstream.held) == (1, 1)
        upstream.hold(one, now=0.0, period=first_period)
        assert (upstream.working, upstream.held) == (0, 2)
        upstream.end(one, held=True, verdict=OK, now=1.0, latency=0.5, period=first_period)
        upstream.end(other, held=True, verdict=OK, now=1.0, period=other_period)
        assert (upstream.working, upstream.held) == (0, 0)
        assert (one.latency, other.latency) == (0.5, None)

    def test_what_did_not_begin_does_not_end(self) -> None:
        """A second end, or one of the wrong kind, is a mistake of the caller."""
        upstream = upstream_of(*endpoints(1))
        (target,) = upstream.targets
        for held in (False, True):
            with pytest.raises(AssertionError, match="had not begun"):
                upstream.end(target, held=held, verdict=OK, now=0.0, period=0)
        with pytest.raises(AssertionError, match="not working"):
            upstream.hold(target, now=0.0, period=0)


class TestBreaker:
    def test_it_opens_is_tried_and_closes(self) -> None:
        """Each step is told once, with what the next call returns."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        assert fail(upstream, target, 100.0) == [Opened(target, 5.0)]
        assert upstream.choose(104.9, rand=first) is None
        assert upstream.retry_after(102.0) == 3.0
        assert upstream.choose(105.0, rand=first) is target
        assert upstream.choose(105.0, rand=first) is target
        period = upstream.begin(target, held=False, now=105.0)
        assert upstream.choose(105.0, rand=first) is None
        assert upstream.retry_after(105.0) == 1.0
        ended = upstream.end(target, held=False, verdict=OK, now=106.0, period=period)
        assert ended == [HalfOpened(target), Closed(target)]
        assert upstream.choose(106.0, rand=first) is target

    def test_a_failed_trial_opens_it_for_longer(self) -> None:
        """And the fact says for how long."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        fail(upstream, target, 100.0)
        assert upstream.choose(105.0, rand=first) is target
        assert fail(upstream, target, 105.0, times=1) == [HalfOpened(target), Opened(target, 10.0)]

    def test_a_client_that_leaves_frees_its_trial(self) -> None:
        """The next one may try, and nothing is held against the target."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        fail(upstream, target, 100.0)
        assert upstream.choose(105.0, rand=first) is target
        period = upstream.begin(target, held=False, now=105.0)
        assert upstream.choose(105.0, rand=first) is None
        upstream.end(target, held=False, verdict=NEUTRAL, now=106.0, period=period)
        assert upstream.choose(106.0, rand=first) is target

    def test_ends_of_before_count_for_nothing(self) -> None:
        """Time-outs of exchanges that began before the breaker opened neither open it again nor give back a trial."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        old = [upstream.begin(target, held=False, now=100.0) for _ in range(20)]
        fail(upstream, target, 100.0)
        assert upstream.choose(105.0, rand=first) is target
        trial = upstream.begin(target, held=False, now=105.0)
        for period in old[:10]:
            upstream.end(target, held=False, verdict=FAILURE, now=106.0, period=period)
        assert upstream.choose(106.0, rand=first) is None
        upstream.end(target, held=False, verdict=OK, now=107.0, period=trial)
        for period in old[10:]:
            assert upstream.end(target, held=False, verdict=FAILURE, now=108.0, period=period) == []
        assert upstream.choose(108.0, rand=first) is target

    def test_held_trials_close_it_by_silence(self) -> None:
        """A backend of nothing but long polls is back after the base open time, not after the first poll."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        fail(upstream, target, 100.0)
        assert upstream.choose(105.0, rand=first) is target
        period = upstream.begin(target, held=True, now=105.0)
        assert upstream.choose(109.9, rand=first) is None
        assert upstream.choose(110.0, rand=first) is target
        ended = upstream.end(target, held=True, verdict=FAILURE, now=180.0, period=period)
        assert ended == [HalfOpened(target), Closed(target)]
        assert upstream.choose(180.0, rand=first) is target

    def test_a_trial_that_becomes_a_stream_closes_it_by_silence(self) -> None:
        """Else one client's stream of events would keep all others out for as long as it lasts; one of before decides nothing."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        old = upstream.begin(target, held=False, now=100.0)
        fail(upstream, target, 100.0)
        assert upstream.choose(105.0, rand=first) is target
        period = upstream.begin(target, held=False, now=105.0)
        upstream.hold(target, now=106.0, period=old)
        assert upstream.choose(111.0, rand=first) is None
        upstream.hold(target, now=112.0, period=period)
        assert upstream.choose(116.9, rand=first) is None
        assert upstream.choose(117.0, rand=first) is target

    def test_whoever_begins_unasked_meets_the_time_too(self) -> None:
        """Begin looks at the clock itself."""
        upstream = upstream_of(*endpoints(1), breaker=BREAKER)
        (target,) = upstream.targets
        fail(upstream, target, 100.0)
        assert exchange(upstream, target, OK, 105.0) == [HalfOpened(target), Closed(target)]


class TestEjection:
    def test_out_and_back(self) -> None:
        """For its time, then again for longer."""
        upstream = upstream_of(*endpoints(2), outliers=OUTLIERS)
        one, other = upstream.targets
        assert fail(upstream, one, 100.0) == [Ejected(one, 10.0)]
        assert {upstream.choose(109.9, rand=first) for _ in range(4)} == {other}
        assert {upstream.choose(110.0, rand=first) for _ in range(4)} == {one, other}
        assert fail(upstream, one, 110.0) == [Returned(one), Ejected(one, 20.0)]

    def test_never_more_than_the_share(self) -> None:
        """Half of four are two; the third is spared, and so is a single target."""
        upstream = upstream_of(*endpoints(4), outliers=OUTLIERS)
        events = [fail(upstream, target, 100.0) for target in upstream.targets[:3]]
        assert [type(event) for (event,) in events] == [Ejected, Ejected, Spared]
        alone = upstream_of(*endpoints(1), outliers=OUTLIERS)
        assert fail(alone, alone.targets[0], 100.0) == [Spared(alone.targets[0])]

    def test_a_share_in_floating_point(self) -> None:
        """0.29 of a hundred are twenty-nine."""
        upstream = upstream_of(*endpoints(100), outliers=OUTLIERS, max_share=0.29)
        for target in upstream.targets:
            fail(upstream, target, 100.0)
        assert upstream.states(100.0) == {"available": 71, "unhealthy": 0, "ejected": 29, "open": 0}

    def test_whose_time_is_over_takes_no_place(self) -> None:
        """Nobody asked since, yet the ejected one is back before the next is judged."""
        upstream = upstream_of(*endpoints(2), outliers=OUTLIERS)
        one, other = upstream.targets
        fail(upstream, one, 100.0)
        assert fail(upstream, other, 110.0) == [Returned(one), Ejected(other, 10.0)]

    def test_fewer_targets_bear_fewer_ejections(self) -> None:
        """When the healthy ones leave, those who would be back first are back at once."""
        upstream = upstream_of(*endpoints(4), outliers=OUTLIERS)
        one, other = upstream.targets[:2]
        fail(upstream, other, 100.0)
        fail(upstream, one, 101.0)
        events = upstream.update(endpoints(2), 102.0)
        assert [type(event) for event in events] == [Left, Left, Returned]
        assert events[-1] == Returned(other)
        assert upstream.choose(102.0, rand=first) is other

    def test_breaker_and_ejection_together(self) -> None:
        """The breaker's rest may be over sooner; the target is still out."""
        upstream = upstream_of(*endpoints(2), outliers=OUTLIERS, breaker=BREAKER)
        one, other = upstream.targets
        assert fail(upstream, one, 100.0) == [Opened(one, 5.0), Ejected(one, 10.0)]
        assert upstream.choose(106.0, rand=first) is other
        assert upstream.choose(110.0, rand=first) in (one, other)
        assert exchange(upstream, one, OK, 110.0) == [HalfOpened(one), Returned(one), Closed(one)]

    def test_who_fails_elsewhere_than_in_his_period_is_not_ejected(self) -> None:
        """Ends of exchanges that began before the ejection do not eject again."""
        upstream = upstream_of(*endpoints(2), outliers=OUTLIERS)
        one, _ = upstream.targets
        old = [upstream.begin(one, held=False, now=100.0) for _ in range(9)]
        fail(upstream, one, 100.0)
        upstream.choose(110.0, rand=first)
        for period in old:
            upstream.end(one, held=False, verdict=FAILURE, now=111.0, period=period)
        assert one.available(111.0)


class TestChecks:
    def test_down_and_up(self) -> None:
        """By as many checks as it takes; told when it changes."""
        upstream = upstream_of(*endpoints(1), healthiness=HEALTHINESS)
        (target,) = upstream.targets
        assert upstream.checked(target, False, 0.0) == []
        assert upstream.checked(target, False, 1.0) == [Unhealthy(target)]
        assert upstream.choose(1.0, rand=first) is None
        assert upstream.retry_after(1.0) == 5.0
        assert upstream.checked(target, True, 2.0) == [Healthy(target)]
        assert upstream.choose(2.0, rand=first) is target

    def test_checks_of_who_has_none_or_has_left(self) -> None:
        """A check may end after its target has left."""
        upstream = upstream_of(*endpoints(1))
        (target,) = upstream.targets
        assert upstream.checked(target, False, 0.0) == []
        upstream.update([], 0.0)
        assert upstream.checked(target, False, 0.0) == []

    def test_states(self) -> None:
        """Each target is counted once, by the first that objects."""
        upstream = upstream_of(*endpoints(4), healthiness=HEALTHINESS, breaker=BREAKER, outliers=OUTLIERS, max_share=0.25)
        sick, out, opened, _ = upstream.targets
        for target in (out, opened):
            fail(upstream, target, 0.0)
        for _ in range(2):
            upstream.checked(sick, False, 0.0)
        assert upstream.states(1.0) == {"available": 1, "unhealthy": 1, "ejected": 1, "open": 1}
        assert upstream.states(50.0) == {"available": 1, "unhealthy": 1, "ejected": 0, "open": 2}


class TestSlowStart:
    def shares(self, upstream: Upstream, now: float, count: int = 2_200) -> list[float]:
        rand = random.Random(1).random
        counts = Counter(upstream.choose(now, rand=rand) for _ in range(count))
        return [counts[target] / count for target in upstream.targets]

    def test_who_comes_back_gets_little_at_first(self) -> None:
        """A tenth of its weight, growing evenly to the whole."""
        upstream = upstream_of(*endpoints(2), healthiness=HEALTHINESS, slow_start=30.0)
        one, _ = upstream.targets
        for ok in (False, False, True):
            upstream.checked(one, ok, 100.0)
        assert self.shares(upstream, 100.0) == pytest.approx([1 / 11, 10 / 11], abs=0.01)
        assert self.shares(upstream, 115.0) == pytest.approx([0.55 / 1.55, 1 / 1.55], abs=0.01)
        assert self.shares(upstream, 130.0) == pytest.approx([0.5, 0.5], abs=0.01)
        assert one.back_at is None

    @pytest.mark.parametrize("way", ["ejection", "breaker", "listing"])
    def test_ways_to_come_back(self, way: str) -> None:
        """From ejection, from an open breaker, and as a new address."""
        options = {"ejection": {"outliers": OUTLIERS}, "breaker": {"breaker": BREAKER}, "listing": {}}[way]
        upstream = upstream_of(*endpoints(2), slow_start=30.0, **options)
        one = upstream.targets[0]
        if way == "listing":
            upstream.update(endpoints(2)[1:], 90.0)
            upstream.update(endpoints(2), 105.0)
        else:
            fail(upstream, one, 95.0)
            assert upstream.choose(105.0, rand=first) is not None
        if way == "breaker":
            exchange(upstream, one, OK, 105.0)
        assert self.shares(upstream, 105.0)[0] == pytest.approx(1 / 11, abs=0.01)

    def test_a_new_upstream_starts_at_once(self) -> None:
        """Where there was no address before, nobody is colder than the others."""
        upstream = upstream_of(slow_start=30.0)
        upstream.update(endpoints(2), 100.0)
        assert [target.back_at for target in upstream.targets] == [None, None]


class TestUpdate:
    def test_who_stays_keeps_what_it_has(self) -> None:
        """Counts and judges are untouched, weight and priority are the new ones."""
        upstream = upstream_of(*endpoints(2), breaker=BREAKER)
        one, other = upstream.targets
        fail(upstream, one, 0.0)
        events = upstream.update([Endpoint(one.address, weight=7, priority=2), Endpoint("new:80")], 1.0)
        assert [type(event) for event in events] == [Joined, Left]
        assert events[1].target is other
        assert upstream.targets[0] is one
        assert (one.weight, one.priority, one.state) == (7, 2, "open")

    def test_who_goes_finishes_what_it_has(self) -> None:
        """It is not chosen, its exchanges are counted until they end, its verdicts say nothing, then it is forgotten."""
        upstream = upstream_of(*endpoints(2), outliers=OUTLIERS)
        one, other = upstream.targets
        periods = [upstream.begin(one, held=True, now=0.0) for _ in range(3)]
        upstream.update(endpoints(2)[1:], 1.0)
        assert {upstream.choose(1.0, rand=first) for _ in range(3)} == {other}
        assert upstream.held == 3
        assert "3 held" in repr(upstream)
        assert [upstream.end(one, held=True, verdict=FAILURE, now=2.0, period=period) for period in periods] == [[], [], []]
        assert upstream.held == 0
        assert one.address not in repr(upstream)

    def test_who_returns_is_the_same_and_begins_anew(self) -> None:
        """Its exchanges are still counted; what was held against it is not, nor what they say now."""
        upstream = upstream_of(*endpoints(2), breaker=BREAKER)
        one, _ = upstream.targets
        periods = [upstream.begin(one, held=False, now=0.0) for _ in range(6)]
        for period in periods[:2]:
            upstream.end(one, held=False, verdict=FAILURE, now=0.0, period=period)
        upstream.update(endpoints(2)[1:], 1.0)
        assert upstream.update(endpoints(2), 2.0) == [Joined(one)]
        assert one.working == 4
        for period in periods[2:]:
            upstream.end(one, held=False, verdict=FAILURE, now=3.0, period=period)
        assert (one.working, one.state) == (0, "available")
        assert fail(upstream, one, 4.0) == [Opened(one, 5.0)]

    def test_nothing_new_costs_nothing(self) -> None:
        """The usual answer of DNS leaves the ring as it is."""
        upstream = upstream_of(*endpoints(2), balancer=Hash())
        before = upstream._levels
        assert upstream.update(endpoints(2), 1.0) == []
        assert upstream._levels is before


class UpstreamModel(RuleBasedStateMachine):
    """An upstream of up to five targets against a list of its exchanges and what its events say."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.random = random.Random(0)
        self.exchanges: list[tuple[Target, bool, int]] = []
        self.said: dict[Target, dict[str, str]] = {}

    @initialize(
        balancer=st.sampled_from([RoundRobin, LeastOutstanding, Hash, Random]),
        max_share=st.sampled_from([0.0, 0.34, 0.5, 1.0]),
        slow_start=st.sampled_from([0.0, 8.0]),
        trials=st.integers(1, 3),
    )
    def make(self, balancer: type[Balancer], max_share: float, slow_start: float, trials: int) -> None:
        self.upstream = upstream_of(
            *endpoints(3),
            Endpoint("spare:80", priority=1),
            balancer=balancer(),
            breaker=partial(Breaker, consecutive=2, open=4.0, max_open=16.0, trials=trials),
            outliers=partial(Outliers, consecutive=3, rate=0.5, least_requests=4, window=10.0, ejection=6.0, max_ejection=18.0),
            healthiness=HEALTHINESS,
            max_share=max_share,
            slow_start=slow_start,
        )

    def hear(self, events: Collection[Event]) -> None:
        """Each event is one that may follow what was said of its target before."""
        for event in events:
            said = self.said.setdefault(event.target, {"breaker": "closed", "ejected": "no", "healthy": "yes"})
            match event:
                case Opened(_, seconds):
                    assert said["breaker"] in ("closed", "half-open")
                    assert 4.0 <= seconds <= 16.0
                    said["breaker"] = "open"
                case HalfOpened():
                    assert said["breaker"] == "open"
                    said["breaker"] = "half-open"
                case Closed():
                    assert said["breaker"] == "half-open"
                    said["breaker"] = "closed"
                case Ejected(_, seconds):
                    assert said["ejected"] == "no"
                    assert 6.0 <= seconds <= 18.0
                    said["ejected"] = "yes"
                case Returned():
                    assert said["ejected"] == "yes"
                    said["ejected"] = "no"
                case Unhealthy():
                    assert said["healthy"] == "yes"
                    said["healthy"] = "no"
                case Healthy():
                    assert said["healthy"] == "no"
                    said["healthy"] = "yes"
                case Joined():
                    del self.said[event.target]
                case Left():
                    assert not event.target.listed

    @rule(held=st.booleans(), key=st.none() | st.binary(max_size=3), tried=st.sets(st.integers(0, 4)))
    def begin(self, held: bool, key: bytes | None, tried: set[int]) -> None:
        before = [target for number, target in enumerate(self.upstream.targets) if number in tried]
        allowed = {target for target in self.upstream.targets if target.available(self.now)}
        target = self.upstream.choose(self.now, key=key, tried=before, rand=self.random.random)
        fresh = allowed - set(before) or allowed
        if target is None:
            assert not allowed
            return
        assert target in fresh
        assert target.priority == min(other.priority for other in fresh)
        self.exchanges.append((target, held, self.upstream.begin(target, held=held, now=self.now)))

    @precondition(lambda self: self.exchanges)
    @rule(index=st.integers(0, 100), verdict=st.sampled_from(Verdict), latency=st.none() | st.floats(0, 9))
    def end(self, index: int, verdict: Verdict, latency: float | None) -> None:
        target, held, period = self.exchanges.pop(index % len(self.exchanges))
        before, current = self.judged(target), target.period
        events = self.upstream.end(target, held=held, verdict=verdict, now=self.now, latency=latency, period=period)
        if verdict is NEUTRAL or period != current:
            assert self.judged(target) == before
        self.hear(events)

    @precondition(lambda self: self.exchanges)
    @rule(verdict=st.sampled_from(Verdict))
    def end_all(self, verdict: Verdict) -> None:
        while self.exchanges:
            self.end(0, verdict, None)

    @staticmethod
    def judged(target: Target) -> object:
        assert target.breaker
        assert target.outliers
        return target.breaker.state, target.breaker._failures, target.breaker.rest, repr(target.outliers)

    @precondition(lambda self: any(not held for _, held, _ in self.exchanges))
    @rule(index=st.integers(0, 100))
    def hold(self, index: int) -> None:
        working = [number for number, (_, held, _) in enumerate(self.exchanges) if not held]
        number = working[index % len(working)]
        target, _, period = self.exchanges[number]
        self.upstream.hold(target, now=self.now, period=period)
        self.exchanges[number] = (target, True, period)

    @rule(seconds=st.sampled_from([0.5, 4.0, 6.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.upstream.targets)
    @rule(index=st.integers(0, 4), ok=st.booleans())
    def check(self, index: int, ok: bool) -> None:
        target = self.upstream.targets[index % len(self.upstream.targets)]
        self.hear(self.upstream.checked(target, ok, self.now))

    @rule(numbers=st.sets(st.integers(0, 4)), weight=st.integers(1, 3))
    def update(self, numbers: set[int], weight: int) -> None:
        listed = [Endpoint(f"10.0.0.{number}:80", weight, priority=number // 4) for number in sorted(numbers)]
        self.hear(self.upstream.update(listed, self.now))

    @invariant()
    def counts_are_those_of_the_exchanges(self) -> None:
        for target in {*self.upstream.targets, *(target for target, _, _ in self.exchanges)}:
            kinds = [held for other, held, _ in self.exchanges if other is target]
            assert (target.working, target.held) == (kinds.count(False), kinds.count(True))
        assert self.upstream.working + self.upstream.held == len(self.exchanges)

    @invariant()
    def ejections_heed_the_share(self) -> None:
        targets = self.upstream.targets
        ejected = sum(target.outliers is not None and target.outliers.until is not None for target in targets)
        assert ejected <= self.upstream.max_share * len(targets) + 1e-9

    @invariant()
    def trials_are_those_under_way(self) -> None:
        for target in self.upstream.targets:
            assert target.breaker
            if target.breaker.state is State.HALF_OPEN:
                trials = [period for other, _, period in self.exchanges if other is target and period == target.period]
                assert target.breaker.taken == len(trials) <= target.breaker.trials

    @invariant()
    def somebody_unavailable_is_waited_for(self) -> None:
        wait = self.upstream.retry_after(self.now)
        assert 1.0 <= wait <= 18.0

    @rule()
    def count_states(self) -> None:
        assert sum(self.upstream.states(self.now).values()) == len(self.upstream.targets)


TestUpstreamModel = UpstreamModel.TestCase
TestUpstreamModel.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
