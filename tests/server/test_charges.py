"""What a poll takes from limits."""

from __future__ import annotations

from typing import Any

from gateway.auth.principal import Principal
from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Selection, Subscription
from gateway.limits import Slots, TokenBuckets
from gateway.server.arming import Armed, Cut
from gateway.server.charges import Charges
from gateway.server.crowd import Shape
from gateway.server.crowds import Crowds

ANN = Principal("test", "ann", {}, frozenset(), None, None)
ADDRESS = "2001:db8::1"
SUBNET = "2001:db8::/64"


def charges(
    polls: TokenBuckets | None = None, addresses: TokenBuckets | None = None, quota: int = 9, total: int = 9
) -> Charges:
    return Charges(polls, addresses, Slots(quota=quota, total=total))


def armed(given: Charges, principal: Principal = ANN) -> Armed:
    nobody: Any = None
    hub = Hub(budget=1, tail_budget=1)
    crowd = Crowds(hub, Reader(hub, nobody), lambda: 0.0).crowd(Shape(Subscription((Selection("a", "a", "a"),)), 30.0, ()))
    bucket, address_bucket, holder = given.of(principal, ADDRESS, 0.0)
    return Armed(
        Cut(b"", b"", b""),
        crowd,
        principal=principal,
        peer="192.0.2.1",
        address=ADDRESS,
        bucket=bucket,
        address_bucket=address_bucket,
        holder=holder,
    )


def table(quota: int, bound: int = 100) -> TokenBuckets:
    return TokenBuckets("test", quota=quota, window=60, bound=bound)


def test_a_poll_takes_one_token_from_each() -> None:
    """From the same buckets as by any other way; and they can be put back."""
    polls, addresses = table(5), table(9)
    given = charges(polls, addresses)
    one = armed(given)
    assert given.take(one, 0.0)
    assert (polls.take(ANN.id, 0.0).remaining, addresses.take(SUBNET, 0.0).remaining) == (3, 7)
    given.give_back(one)
    assert (polls.take(ANN.id, 0.0).remaining, addresses.take(SUBNET, 0.0).remaining) == (3, 7)
    assert repr(given).startswith("<Charges TokenBuckets(test: 5 in 60 s, ")


def test_of_two_limits_none_is_charged_where_one_is_reached() -> None:
    """Whichever it is."""
    for polls, addresses in ((table(1), table(3)), (table(3), table(1))):
        given = charges(polls, addresses)
        one = armed(given)
        assert given.take(one, 0.0)
        levels = one.bucket.full_at, one.address_bucket.full_at
        assert not given.take(one, 0.0)
        assert (one.bucket.full_at, one.address_bucket.full_at) == levels
        assert given.take(one, 61.0)


def test_without_limits_everybody_may() -> None:
    """As often as he likes."""
    given = charges()
    one = armed(given)
    assert all(given.take(one, 0.0) for _ in range(1_000))


def test_buckets_that_were_dropped_are_asked_for_again() -> None:
    """A table that is full drops some, also such as an armed head keeps."""
    polls, addresses = table(9, bound=1), table(9, bound=1)
    given = charges(polls, addresses)
    one = armed(given)
    polls.check("flood", 0.0)
    addresses.check("flood", 0.0)
    assert one.bucket.dropped
    assert one.address_bucket.dropped
    assert given.take(one, 0.0)
    assert (one.bucket.dropped, one.address_bucket.dropped) == (False, False)
    assert set(polls._buckets) == {ANN.id}
    assert set(addresses._buckets) == {SUBNET}


def test_slots_end_at_the_quota_and_at_the_total() -> None:
    """Of one principal, or of all."""
    given = charges(quota=2, total=3)
    ann, bob = armed(given), armed(given, Principal("test", "bob", {}, frozenset(), None, None))
    for _ in range(2):
        assert given.has_slot(ann)
        given.slots.acquire(ANN.id)
    assert not given.has_slot(ann)
    assert given.has_slot(bob)
    given.slots.acquire(bob.principal.id)
    assert not given.has_slot(bob)


def test_a_holder_that_was_dropped_is_asked_for_again() -> None:
    """It held nothing when the table was swept."""
    given = charges()
    one = armed(given)
    given.slots._sweep()
    assert one.holder.dropped
    assert given.has_slot(one)
    assert not one.holder.dropped
    given.slots.acquire(ANN.id)
    assert one.holder.held == 1
