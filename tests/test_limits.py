"""Buckets, slots, refused tokens and RateLimit fields, with numbers for time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import Forbidden, Overloaded, RateLimited, TooManyPolls
from gateway.limits import (
    _SWEEP_AT,
    CONCURRENT,
    UNLIMITED,
    Decision,
    Holder,
    NegativeCache,
    Policy,
    Slots,
    TokenBuckets,
    bucket_fields,
    limit_field,
    policy_field,
    refusal_fields,
)


def drained(buckets: TokenBuckets, key: object, now: float) -> int:
    """Take single tokens until one is refused; returns how many there were."""
    taken = 0
    while buckets.take(key, now).allowed:
        taken += 1
    return taken


class TestTokenBuckets:
    def test_a_fresh_bucket_is_full(self) -> None:
        """A key that was never seen may spend the whole quota at once, and not one more."""
        buckets = TokenBuckets("polls", quota=10, window=60)
        assert drained(buckets, "a", 1_000.0) == 10

    def test_figures_of_a_decision(self) -> None:
        """Remaining, reset and Retry-After are those of a bucket that refills evenly."""
        buckets = TokenBuckets("polls", quota=4, window=8)
        assert buckets.take("a", 0) == Decision(True, 3, pytest.approx(2, abs=0.01), 0.0)
        assert buckets.take("a", 0, 3) == Decision(True, 0, pytest.approx(8, abs=0.01), 0.0)
        assert buckets.take("a", 1) == Decision(False, 0, pytest.approx(7), pytest.approx(1))
        assert buckets.take("a", 1, 2) == Decision(False, 0, pytest.approx(7), pytest.approx(3))
        assert buckets.take("a", 2).allowed

    def test_retry_after_is_when_it_works(self) -> None:
        """Coming back after retry_after seconds succeeds; a hundredth of a token earlier does not."""
        buckets = TokenBuckets("polls", quota=3, window=7)
        assert drained(buckets, "a", 50.0) == 3
        wait = buckets.take("a", 50.5).retry_after
        assert not buckets.take("a", 50.5 + wait - 7 / 3 / 100).allowed
        assert buckets.take("a", 50.5 + wait).allowed

    def test_refused_takes_cost_nothing(self) -> None:
        """A refused take leaves the bucket as it was."""
        buckets = TokenBuckets("polls", quota=2, window=2)
        buckets.take("a", 0, 2)
        for _ in range(100):
            assert not buckets.take("a", 0.5).allowed
        assert buckets.take("a", 1.0).allowed

    def test_partial_remaining_of_a_refusal(self) -> None:
        """A take of more than is there tells what is there."""
        buckets = TokenBuckets("publishes", quota=10, window=10)
        buckets.take("a", 0, 6)
        assert buckets.take("a", 0, 5).remaining == 4

    def test_a_cost_above_the_quota_needs_a_full_bucket_and_leaves_a_debt(self) -> None:
        """A batch larger than the quota passes when the bucket is full; the average holds all the same."""
        buckets = TokenBuckets("publishes", quota=10, window=10)
        assert buckets.take("a", 0, 25) == Decision(True, 0, 25.0, 0.0)
        assert buckets.take("a", 0).retry_after == pytest.approx(16, abs=0.01)
        assert buckets.take("a", 24, 25).retry_after == pytest.approx(1, abs=0.01)
        assert buckets.take("a", 25, 25).allowed

    def test_check_raises_with_the_policy(self) -> None:
        """RateLimited carries the facts that the answer needs."""
        buckets = TokenBuckets("polls", quota=1, window=30)
        buckets.check("a", 5.0)
        with pytest.raises(RateLimited) as caught:
            buckets.check("a", 5.0)
        assert (caught.value.policy, caught.value.quota, caught.value.window) == ("polls", 1, 30)
        assert caught.value.retry_after == pytest.approx(30)
        error = buckets.refusal(buckets.take("a", 10.0))
        assert (error.policy, error.quota, error.window, error.retry_after) == ("polls", 1, 30, pytest.approx(25))

    def test_keys_do_not_share(self) -> None:
        """One key's emptiness is not another's."""
        buckets = TokenBuckets("polls", quota=1, window=30)
        buckets.check(("issuer", "a"), 0.0)
        buckets.check(("issuer", "b"), 0.0)
        assert repr(buckets) == "TokenBuckets(polls: 1 in 30 s, 2 of 65536 keys)"

    def test_rounding_keeps_no_token_back(self) -> None:
        """Late in a process's life, with a window that binary fractions cannot hold, the last token is there."""
        buckets = TokenBuckets("polls", quota=1_000, window=0.7)
        assert drained(buckets, "a", 9_876_543.21) == 1_000

    @pytest.mark.parametrize(
        ("quota", "window", "bound"), [(0, 1, 1), (1, 0, 1), (1, -1, 1), (1, math.inf, 1), (1, math.nan, 1), (1, 1, 0)]
    )
    def test_impossible_policies(self, quota: int, window: float, bound: int) -> None:
        """A policy without tokens, time or room is a programming error."""
        with pytest.raises(ValueError, match="bucket x"):
            TokenBuckets("x", quota=quota, window=window, bound=bound)


class TestBoundedTable:
    def test_full_buckets_are_forgotten_as_new_keys_come(self) -> None:
        """What has refilled is dropped, two looked at for each new key, so idle keys do not pile up."""
        buckets = TokenBuckets("address", quota=5, window=1)
        for key in range(100):
            buckets.check(key, 0.0)
        for key in range(100, 150):
            buckets.check(key, 0.21)
        assert len(buckets) == 50
        assert buckets.evicted == 0

    def test_buckets_in_use_do_not_shield_idle_ones(self) -> None:
        """Keys that are looked at and kept go to the end of the turn."""
        buckets = TokenBuckets("address", quota=5, window=60)
        for key in range(2):
            buckets.take(key, 0.0, 5)
        for key in range(2, 22):
            buckets.check(key, 0.0)
        for key in range(22, 52):
            buckets.check(key, 20.0)
        assert set(buckets._buckets) == {0, 1, *range(22, 52)}

    def test_the_bound_holds(self) -> None:
        """No number of keys makes the table larger than its bound."""
        buckets = TokenBuckets("address", quota=5, window=60, bound=16)
        for key in range(1_000):
            buckets.check(key, key / 1_000)
        assert len(buckets) == 16
        assert buckets.evicted == 984

    def test_pushing_an_empty_bucket_out_does_not_fill_it(self) -> None:
        """An attacker who floods the table to get his bucket forgotten gets one token for it, not the quota."""
        buckets = TokenBuckets("address", quota=100, window=60, bound=8)
        for key in range(8):
            assert drained(buckets, key, 0.0) == 100
        buckets.check("flood", 0.0)
        gone = next(key for key in range(8) if buckets.take(key, 0.0, 2).retry_after < 1)
        assert drained(buckets, gone, 0.0) == 1

    def test_newcomers_get_a_first_token_and_recover(self) -> None:
        """While the table is full of empty buckets an unknown key gets one token; a window later it is whole."""
        buckets = TokenBuckets("address", quota=60, window=60, bound=4)
        for key in range(5):
            drained(buckets, key, 0.0)
        assert drained(buckets, "new", 0.0) == 1
        assert drained(buckets, "later", 30.0) == 30
        assert drained(buckets, "much later", 120.0) == 60

    def test_a_refused_unknown_key_knows_when_to_come_back(self) -> None:
        """The figures of an unknown key are those of the level that it starts with."""
        buckets = TokenBuckets("publishes", quota=10, window=10, bound=1)
        buckets.take("a", 0.0, 10)
        buckets.take("b", 0.0)
        decision = buckets.take("c", 0.0, 3)
        assert decision == Decision(False, 1, pytest.approx(9), pytest.approx(2, abs=0.01))
        assert "c" not in buckets._buckets

    def test_the_fullest_of_eight_gives_way(self) -> None:
        """Light users lose their entry, which costs them little; heavy ones stay known."""
        buckets = TokenBuckets("address", quota=100, window=100, bound=8)
        for key in range(7):
            buckets.take(key, 0.0, 90)
        buckets.take("light", 0.0, 1)
        buckets.take("new", 0.0, 1)
        assert set(buckets._buckets) == {*range(7), "new"}
        assert buckets._floor == pytest.approx(1.0)


class TestKeptBuckets:
    def test_a_kept_bucket_is_the_one_of_the_table(self) -> None:
        """Who keeps it and who asks by key take from the same tokens."""
        buckets = TokenBuckets("polls", quota=3, window=30)
        buckets.check("a", 0.0)
        kept = buckets.bucket("a", 0.0)
        assert buckets.bucket("a", 0.0) is kept
        assert repr(kept) == "Bucket(full at 10)"
        assert buckets.take_one(kept, 0.0)
        assert drained(buckets, "a", 0.0) == 1
        assert not buckets.take_one(kept, 0.0)

    def test_a_fresh_one_is_full(self) -> None:
        """And it refills like all others."""
        buckets = TokenBuckets("polls", quota=2, window=20)
        kept = buckets.bucket("a", 0.0)
        assert [buckets.take_one(kept, now) for now in (0.0, 0.0, 9.0, 10.0, 10.0)] == [True, True, False, True, False]

    def test_what_is_given_back_was_never_taken(self) -> None:
        """As where a second limit refuses what the first one let pass."""
        buckets = TokenBuckets("polls", quota=1, window=30)
        kept = buckets.bucket("a", 0.0)
        for _ in range(3):
            assert buckets.take_one(kept, 5.0)
            buckets.give_back(kept)
        assert drained(buckets, "a", 5.0) == 1

    def test_a_kept_bucket_stays_though_it_is_full(self) -> None:
        """One that nobody keeps goes as soon as it is full again; this one would have to be asked for again."""
        buckets = TokenBuckets("polls", quota=2, window=2)
        kept = buckets.bucket("kept", 0.0)
        buckets.check("idle", 0.0)
        for key in range(4):
            buckets.check(key, 5.0)
        assert set(buckets._buckets) == {"kept", 0, 1, 2, 3}
        assert not kept.dropped

    def test_a_kept_bucket_that_had_to_give_way_says_no(self) -> None:
        """Its keeper asks the table again, and gets what the table has for the key now."""
        buckets = TokenBuckets("polls", quota=10, window=10, bound=1)
        kept = buckets.bucket("a", 0.0)
        buckets.check("b", 0.0)
        assert kept.dropped
        assert not buckets.take_one(kept, 1_000.0)
        buckets.give_back(kept)
        assert kept.dropped
        again = buckets.bucket("a", 0.0)
        assert again is not kept
        assert buckets.take_one(again, 0.0)

    def test_asking_for_a_bucket_heeds_the_bound(self) -> None:
        """Also where all are kept: the fullest gives way."""
        buckets = TokenBuckets("polls", quota=10, window=10, bound=4)
        kept = [buckets.bucket(key, 0.0) for key in range(5)]
        assert len(buckets) == 4
        assert [bucket.dropped for bucket in kept].count(True) == 1

    def test_an_emptied_key_does_not_come_back_full(self) -> None:
        """Pushing a kept bucket out of the table fills it no more than pushing out another."""
        buckets = TokenBuckets("polls", quota=100, window=100, bound=1)
        kept = buckets.bucket("a", 0.0)
        for _ in range(100):
            assert buckets.take_one(kept, 0.0)
        buckets.check("flood", 0.0)
        again = buckets.bucket("a", 0.0)
        assert buckets.take_one(again, 0.0)
        assert not buckets.take_one(again, 0.0)

    def test_without_a_limit_everybody_has_one_bucket_that_is_always_full(self) -> None:
        """However often and when it is asked; nothing is remembered of anybody."""
        bucket = UNLIMITED.bucket("a", 5.0)
        assert UNLIMITED.bucket("b", 1.0) is bucket
        assert all(UNLIMITED.take_one(bucket, now) for now in (5.0, 5.0, 1e9, 1.0))
        UNLIMITED.give_back(bucket)
        assert (len(UNLIMITED), UNLIMITED.interval, UNLIMITED.reach) == (0, 0.0, math.inf)


@dataclass
class Bucket:
    """The naive reference: tokens as an exact fraction, refilled at each look."""

    quota: int
    window: Fraction
    tokens: Fraction
    at: Fraction

    def take(self, now: Fraction, cost: int) -> bool:
        """Take `cost` tokens or none; more than the quota needs a full bucket and leaves a debt."""
        self.tokens = min(Fraction(self.quota), self.tokens + (now - self.at) * self.quota / self.window)
        self.at = now
        if self.tokens < min(cost, self.quota):
            return False
        self.tokens -= cost
        return True


class BucketModel(RuleBasedStateMachine):
    """Against the reference; times and rates are binary fractions, so floats are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Fraction(1_000)
        self.quota = 8
        self.window = Fraction(16)
        self.buckets = TokenBuckets("model", quota=self.quota, window=16.0, bound=64)
        self.naive: dict[int, Bucket] = {}

    @rule(ticks=st.integers(0, 200))
    def wait(self, ticks: int) -> None:
        self.now += Fraction(ticks, 16)

    @rule(key=st.integers(0, 20), cost=st.integers(1, 12))
    def take(self, key: int, cost: int) -> None:
        bucket = self.naive.setdefault(key, Bucket(self.quota, self.window, Fraction(self.quota), self.now))
        decision = self.buckets.take(key, float(self.now), cost)
        assert decision.allowed == bucket.take(self.now, cost)
        assert decision.remaining == max(int(bucket.tokens), 0)
        assert decision.reset == pytest.approx(float((self.quota - bucket.tokens) * 2), abs=0.01)
        missing = (min(cost, self.quota) - bucket.tokens) * 2
        assert decision.retry_after == (0 if decision.allowed else pytest.approx(float(missing), abs=0.01))

    @rule(key=st.integers(0, 20), back=st.booleans())
    def take_one(self, key: int, back: bool) -> None:
        bucket = self.naive.setdefault(key, Bucket(self.quota, self.window, Fraction(self.quota), self.now))
        kept = self.buckets.bucket(key, float(self.now))
        allowed = self.buckets.take_one(kept, float(self.now))
        assert allowed == bucket.take(self.now, 1)
        if allowed and back:
            self.buckets.give_back(kept)
            bucket.tokens += 1

    @invariant()
    def nothing_was_evicted(self) -> None:
        assert self.buckets.evicted == 0


TestBucketModel = BucketModel.TestCase
TestBucketModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 11), st.floats(0, 5, allow_nan=False)), max_size=150),
)
def test_no_key_gains_more_than_its_evictions(bound: int, quota: int, steps: list[tuple[int, float]]) -> None:
    """In a table too small, all keys together pass at most what their own buckets allow, and one for each eviction."""
    buckets = TokenBuckets("x", quota=quota, window=3.0, bound=bound)
    now = 0.0
    passed: dict[int, int] = {}
    for key, seconds in steps:
        now += seconds
        passed[key] = passed.get(key, 0) + buckets.take(key, now).allowed
        assert len(buckets) <= bound
    allowance = quota + now * quota / 3.0 + 0.01
    assert all(count <= allowance + buckets.evicted for count in passed.values())


class TestSlots:
    def test_quota_of_one_principal(self) -> None:
        """The principal's own bound is 429, with the quota."""
        slots = Slots(quota=2, total=10)
        slots.acquire("a")
        slots.acquire("a")
        with pytest.raises(TooManyPolls) as caught:
            slots.acquire("a")
        assert caught.value.quota == 2
        slots.acquire("b")
        assert (slots.held, slots.of("a"), slots.of("c")) == (3, 2, 0)
        assert repr(slots) == "Slots(3 of 10 held by 2, 2 each)"

    def test_total(self) -> None:
        """The bound of all is 503, except for one who is at his own bound."""
        slots = Slots(quota=2, total=2)
        slots.acquire("a")
        slots.acquire("a")
        with pytest.raises(Overloaded):
            slots.acquire("b")
        with pytest.raises(TooManyPolls):
            slots.acquire("a")

    def test_release_makes_room(self) -> None:
        """What is given back can be taken again, and nothing is left of a principal that holds nothing."""
        slots = Slots(quota=2, total=2)
        slots.acquire("a")
        slots.acquire("a")
        slots.release("a")
        slots.acquire("b")
        slots.release("b")
        slots.release("a")
        assert repr(slots) == "Slots(0 of 2 held by 0, 2 each)"

    def test_release_without_acquire(self) -> None:
        """A second release is an error, not a gift."""
        with pytest.raises(AssertionError, match="not held"):
            Slots(quota=1, total=1).release("a")

    def test_a_kept_holder_is_the_one_of_the_table(self) -> None:
        """Who keeps it counts in it, and others see that."""
        slots = Slots(quota=2, total=10)
        holder = slots.holder("a")
        assert (len(slots), holder.held, holder.dropped) == (1, 0, False)
        slots.acquire("a")
        assert slots.holder("a") is holder
        holder.held += 1
        slots.held += 1
        with pytest.raises(TooManyPolls):
            slots.acquire("a")
        slots.release_of(holder)
        slots.release("a")
        assert (slots.held, slots.of("a")) == (0, 0)
        with pytest.raises(AssertionError, match="not held"):
            slots.release_of(holder)

    def test_who_holds_nothing_is_dropped_now_and_then(self) -> None:
        """Once a thousand have come, and again when there are a thousand more than twice those who were left."""
        slots = Slots(quota=1, total=5_000)
        idle = slots.holder("idle")
        for principal in range(_SWEEP_AT - 1):
            slots.acquire(principal)
        assert (len(slots), idle.dropped) == (_SWEEP_AT, False)
        slots.acquire("one more")
        assert (len(slots), idle.dropped) == (_SWEEP_AT, True)
        assert slots.of("idle") == 0
        for number in range(2 * (_SWEEP_AT - 1)):
            slots.holder(("idle", number))
        assert len(slots) == _SWEEP_AT + 2 * (_SWEEP_AT - 1)
        slots.holder("another")
        assert len(slots) == _SWEEP_AT + 1
        assert slots.held == _SWEEP_AT

    def test_a_dropped_holder_is_beyond_every_quota(self) -> None:
        """Its keeper asks the table again; it can neither be taken from nor given to."""
        slots = Slots(quota=10, total=10)
        holder = slots.holder("a")
        slots._sweep()
        assert holder.dropped
        assert holder.held > slots.quota
        with pytest.raises(AssertionError, match="not held"):
            slots.release_of(holder)
        assert slots.holder("a") is not holder


class SlotsModel(RuleBasedStateMachine):
    """Slots against a plain list of holders."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(quota=3, total=7)
        self.holders: list[str] = []
        self.kept: dict[str, Holder] = {}

    @rule(who=st.sampled_from("abcd"))
    def acquire(self, who: str) -> None:
        try:
            self.slots.acquire(who)
        except TooManyPolls:
            assert self.holders.count(who) == 3
        except Overloaded:
            assert len(self.holders) == 7
        else:
            self.holders.append(who)
            assert self.holders.count(who) <= 3

    @rule(who=st.sampled_from("abcd"))
    def acquire_by_holder(self, who: str) -> None:
        holder = self.kept.get(who)
        if holder is None or holder.dropped:
            holder = self.kept[who] = self.slots.holder(who)
        if holder.held < self.slots.quota and self.slots.held < self.slots.total:
            holder.held += 1
            self.slots.held += 1
            self.holders.append(who)
            assert self.holders.count(who) <= 3

    @rule()
    def sweep(self) -> None:
        self.slots._sweep()
        assert len(self.slots) == len(set(self.holders))

    @precondition(lambda self: self.holders)
    @rule(index=st.integers(0, 6))
    def release(self, index: int) -> None:
        self.slots.release(self.holders.pop(index % len(self.holders)))

    @invariant()
    def counts_agree(self) -> None:
        assert self.slots.held == len(self.holders) <= 7
        assert all(self.slots.of(who) == self.holders.count(who) for who in "abcd")


TestSlotsModel = SlotsModel.TestCase
TestSlotsModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class TestNegativeCache:
    def test_remembers_for_ttl(self) -> None:
        """A refusal is found until its time is over."""
        cache: NegativeCache[str] = NegativeCache(ttl=10)
        cache.remember(b"d", "bad signature", 100.0)
        assert cache.find(b"d", 109.9) == "bad signature"
        assert cache.find(b"other", 109.9) is None
        assert cache.find(b"d", 110.0) is None
        assert len(cache) == 0

    def test_lifetime_shortens_but_never_lengthens(self) -> None:
        """A token that becomes valid in 3 s is refused from memory for 3 s; one already valid is not remembered."""
        cache: NegativeCache[str] = NegativeCache(ttl=10)
        cache.remember(b"soon", "not yet", 0.0, lifetime=3)
        cache.remember(b"late", "not yet", 0.0, lifetime=300)
        cache.remember(b"now", "not yet", 0.0, lifetime=0)
        assert [cache.find(name, 2.9) for name in (b"soon", b"late", b"now")] == ["not yet", "not yet", None]
        assert [cache.find(name, 3.0) for name in (b"soon", b"late")] == [None, "not yet"]
        assert cache.find(b"late", 10.0) is None

    def test_new_keys_empty_it(self) -> None:
        """A refusal under old keys says nothing about new ones."""
        cache: NegativeCache[str] = NegativeCache()
        assert cache.find(b"d", 0.0, generation=4) is None
        cache.remember(b"d", "unknown key", 0.0, generation=4)
        assert cache.find(b"d", 0.0, generation=4) == "unknown key"
        assert cache.find(b"d", 0.0, generation=5) is None
        assert len(cache) == 0

    def test_a_refusal_that_began_under_old_keys_is_not_kept(self) -> None:
        """Verification began, the keys changed, the refusal arrives: it is out of date."""
        cache: NegativeCache[str] = NegativeCache()
        cache.find(b"d", 0.0, generation=1)
        cache.find(b"e", 0.0, generation=2)
        cache.remember(b"d", "unknown key", 0.0, generation=1)
        assert cache.find(b"d", 0.0, generation=2) is None

    def test_clear(self) -> None:
        """Everything can be forgotten at once."""
        cache: NegativeCache[str] = NegativeCache()
        cache.remember(b"d", "x", 0.0)
        cache.clear()
        assert cache.find(b"d", 0.0) is None

    def test_remembering_again_costs_no_other_its_place(self) -> None:
        """A digest that is there already needs no room."""
        cache: NegativeCache[int] = NegativeCache(bound=2)
        for number in (1, 2, 2):
            cache.remember(bytes([number]), number, 0.0)
        assert len(cache) == 2

    def test_bound(self) -> None:
        """The oldest gives way; remembering again makes young."""
        cache: NegativeCache[int] = NegativeCache(bound=3)
        for number in (1, 2, 3, 1, 4):
            cache.remember(bytes([number]), number, 0.0)
        assert len(cache) == 3
        assert [cache.find(bytes([number]), 0.0) for number in (1, 2, 3, 4)] == [1, None, 3, 4]


class TestFields:
    def test_policy(self) -> None:
        """Names are strings, figures integers, windows whole seconds."""
        policies = [Policy("polls", 100, 60), Policy("parked", 5, unit=CONCURRENT), Policy("short", 3, 0.5)]
        assert policy_field(policies) == '"polls";q=100;w=60, "parked";q=5;qu="concurrent-requests", "short";q=3;w=1'

    def test_limit(self) -> None:
        """Seconds are rounded up, so that coming back then is not too early; nothing is ever negative."""
        assert limit_field("polls", 50, 29.2) == '"polls";r=50;t=30'
        assert limit_field("polls", -1, -0.5) == '"polls";r=0;t=0'
        assert limit_field("parked", 4) == '"parked";r=4'

    def test_strings_are_escaped(self) -> None:
        """RFC 9651, section 4.1.6: quote and backslash are escaped, other than printable ASCII fails."""
        assert limit_field('a"b\\c', 1) == '"a\\"b\\\\c";r=1'
        for bad in ("é", "a\nb", "\x7f"):
            with pytest.raises(ValueError, match="printable ASCII"):
                limit_field(bad, 1)

    def test_of_a_decision(self) -> None:
        """An allowed request tells the time until the bucket is whole, a refused one its Retry-After."""
        buckets = TokenBuckets("polls", quota=2, window=10)
        fields = bucket_fields(buckets, buckets.take("a", 0.0))
        assert fields == (("RateLimit-Policy", '"polls";q=2;w=10'), ("RateLimit", '"polls";r=1;t=5'))
        buckets.take("a", 0.0)
        refused = buckets.take("a", 1.0)
        assert dict(bucket_fields(buckets, refused))["RateLimit"] == '"polls";r=0;t=4'

    def test_of_refusals(self) -> None:
        """Rate and concurrency refusals have fields, other errors none."""
        rate = RateLimited(policy="address", quota=20, window=1.0, retry_after=0.3)
        assert refusal_fields(rate) == (
            ("RateLimit-Policy", '"address";q=20;w=1'),
            ("RateLimit", '"address";r=0;t=1'),
        )
        assert refusal_fields(TooManyPolls(quota=8)) == (
            ("RateLimit-Policy", '"parked";q=8;qu="concurrent-requests"'),
            ("RateLimit", '"parked";r=0'),
        )
        assert refusal_fields(Forbidden()) == ()
