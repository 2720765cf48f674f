"""How much a caller may do: token buckets, concurrency slots, refused tokens, RateLimit fields (sans-I/O).

Theory of operation. A bucket holds `quota` tokens and refills evenly, `quota` in `window` seconds; a fresh one is full, so
at most twice the quota passes in any one window. It is kept as a single number (the generic cell rate algorithm, ITU-T
I.371): the instant at which it will be full again. An instant that has passed is a full bucket, and a full bucket is the
same as none, so forgetting it costs nothing.

The table of buckets is bounded. Every new key drops what is full again among the two entries next in turn. Where all room
is taken by buckets in use, the fullest of the eight next in turn gives way, and the table remembers how empty the emptiest
of all that gave way was: from then on an unknown key starts no fuller than that, until refilling has made up for it. So
nobody resets his bucket by pushing it out of the table. An unknown key always gets its first token, for a table full of
somebody's addresses must not lock out the rest; pushing a bucket out takes a new key, which pays for itself, so what an
attacker can win is one token for each key that he spends: nothing that the new key would not have had anyway.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from gateway.errors import GatewayError, Overloaded, RateLimited, TooManyPolls

R = TypeVar("R")


class Decision(NamedTuple):
    """What a bucket said. `reset`: seconds until it is full again; `retry_after`: seconds until `cost` is there, else 0."""

    allowed: bool
    remaining: int
    reset: float
    retry_after: float


class TokenBuckets:
    """One bucket for each key, all with the same policy; at most `bound` of them are remembered.

    `policy` is the name shown in the RateLimit fields; `quota` tokens (at least 1) refill in `window` seconds. `now` is
    monotonic and must not go back. `evicted` counts the buckets in use that had to give way.
    """

    __slots__ = ("_bound", "_floor", "_full_at", "_interval", "_reach", "evicted", "policy", "quota", "window")

    def __init__(self, policy: str, *, quota: int, window: float, bound: int = 65_536) -> None:
        if quota < 1 or not 0 < window < math.inf or bound < 1:
            raise ValueError(f"bucket {policy}: quota and bound are at least 1, window is positive")
        self.policy = policy
        self.quota = quota
        self.window = window
        self.evicted = 0
        self._bound = bound
        self._interval = window / quota
        # A thousandth of a token of good will, else rounding of sums keeps the last token of a bucket back.
        self._reach = window + self._interval / 1000
        self._floor = -math.inf
        # Ordered, because taking the first key of a plain dict over and over is quadratic.
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def __repr__(self) -> str:
        keys = f"{len(self._full_at)} of {self._bound} keys"
        return f"TokenBuckets({self.policy}: {self.quota} in {self.window:g} s, {keys})"

    def take(self, key: Hashable, now: float, cost: int = 1) -> Decision:
        """Take `cost` tokens from the key's bucket, or none of them.

        A cost above the quota passes when the bucket is full, and puts it in debt: so the average holds, and nobody is
        locked out for ever.
        """
        room = self._charge(key, now, cost)
        if room >= 0:
            reset = self._reach - room if cost <= self.quota else self._full_at[key] - now
            return Decision(True, int(room / self._interval), reset, 0.0)
        missing = self._level(key, now) - now
        remaining = max(int((self._reach - missing) / self._interval), 0)
        return Decision(False, remaining, missing, self._wait(room))

    def check(self, key: Hashable, now: float, cost: int = 1) -> None:
        """Take `cost` tokens, or raise RateLimited; for callers that need no figures."""
        room = self._charge(key, now, cost)
        if room < 0:
            raise self._rate_limited(self._wait(room))

    def refusal(self, decision: Decision) -> RateLimited:
        """Return the error to raise for a decision of `take` that is not allowed."""
        return self._rate_limited(decision.retry_after)

    def _rate_limited(self, retry_after: float) -> RateLimited:
        return RateLimited(policy=self.policy, quota=self.quota, window=self.window, retry_after=retry_after)

    def _charge(self, key: Hashable, now: float, cost: int) -> float:
        """Take the tokens and return the room left, or leave the bucket alone and return a negative number.

        Both in seconds of refilling.
        """
        table = self._full_at
        full_at = table.get(key)
        level = self._level_of_unknown(now) if full_at is None else max(full_at, now)
        after = level + cost * self._interval
        room = self._reach + now - (after if cost <= self.quota else level + self.window)
        if room >= 0:
            if full_at is None:
                self._make_room(now)
            table[key] = after
        return room

    def _wait(self, room: float) -> float:
        return self._reach - self.window - room

    def _level(self, key: Hashable, now: float) -> float:
        full_at = self._full_at.get(key)
        return self._level_of_unknown(now) if full_at is None else max(full_at, now)

    def _level_of_unknown(self, now: float) -> float:
        if self._floor <= now:
            return now
        return min(self._floor, now + self.window - self._interval)

    def _make_room(self, now: float) -> None:
        table = self._full_at
        for key in list(islice(table, 2)):
            if table[key] <= now:
                del table[key]
            else:
                table.move_to_end(key)
        if len(table) >= self._bound:
            self._evict()

    def _evict(self) -> None:
        table = self._full_at
        fullest = min(islice(table, 8), key=table.__getitem__)
        self._floor = max(self._floor, table.pop(fullest))
        self.evicted += 1


class Slots:
    """Polls held at once: at most `quota` by one principal, at most `total` by all.

    The table needs no bound of its own: a principal is in it only while it holds something.
    """

    __slots__ = ("_held", "held", "quota", "total")

    def __init__(self, *, quota: int, total: int) -> None:
        self.quota = quota
        self.total = total
        self.held = 0
        self._held: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        return f"Slots({self.held} of {self.total} held by {len(self._held)}, {self.quota} each)"

    def of(self, principal: Hashable) -> int:
        """Return how many slots the principal holds."""
        return self._held.get(principal, 0)

    def acquire(self, principal: Hashable) -> None:
        """Take a slot. Raises TooManyPolls (the principal's own doing, so asked first) or Overloaded."""
        held = self._held.get(principal, 0)
        if held >= self.quota:
            raise TooManyPolls(quota=self.quota)
        if self.held >= self.total:
            raise Overloaded
        self._held[principal] = held + 1
        self.held += 1

    def release(self, principal: Hashable) -> None:
        """Give a slot back; each acquire has exactly one release."""
        held = self._held.get(principal, 0)
        if held == 0:
            # A second release would quietly hand out more than `total` slots for the rest of the process's life.
            raise AssertionError("released a slot that was not held")
        self.held -= 1
        if held == 1:
            del self._held[principal]
        else:
            self._held[principal] = held - 1


class NegativeCache(Generic[R]):
    """Refusals of tokens by digest, so that a client that repeats a bad token costs no signature check.

    `ttl` seconds at most, `bound` entries at most (the oldest give way). A refusal belongs to the generation of keys under
    which verification *began*: the first question under another generation empties the cache, and a refusal that was on
    its way while the keys changed is not kept. `R` is what to answer with; store facts, not an exception instance, which
    would gather a traceback each time it is raised.
    """

    __slots__ = ("_bound", "_entries", "_generation", "_ttl")

    def __init__(self, *, ttl: float = 10.0, bound: int = 16_384) -> None:
        self._ttl = ttl
        self._bound = bound
        self._generation = 0
        self._entries: OrderedDict[bytes, tuple[float, R]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, digest: bytes, now: float, generation: int = 0) -> R | None:
        """Return what was remembered for the digest, or None."""
        if generation != self._generation:
            self.clear()
            self._generation = generation
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._entries[digest]
            return None
        return entry[1]

    def remember(self, digest: bytes, refusal: R, now: float, generation: int = 0, *, lifetime: float = math.inf) -> None:
        """Keep a refusal for `ttl` seconds, or `lifetime` if that is shorter (a token not valid yet: until its `nbf`)."""
        seconds = min(self._ttl, lifetime)
        if generation != self._generation or seconds <= 0:
            return
        self._entries.pop(digest, None)
        if len(self._entries) >= self._bound:
            self._entries.popitem(last=False)
        self._entries[digest] = (now + seconds, refusal)

    def clear(self) -> None:
        """Forget all refusals: the keys have changed."""
        self._entries.clear()


class Policy(NamedTuple):
    """A quota policy as RateLimit-Policy shows it. `window` in seconds, None for policies without time; `unit`: of `quota`."""

    name: str
    quota: int
    window: float | None = None
    unit: str | None = None


CONCURRENT = "concurrent-requests"
"""The quota unit of parked polls (draft-ietf-httpapi-ratelimit-headers, registry of quota units)."""


def policy_field(policies: Iterable[Policy]) -> str:
    """Format RateLimit-Policy: a list of strings with parameters q, qu, w (RFC 9651). Windows are rounded up to seconds."""
    return ", ".join(_policy_item(policy) for policy in policies)


def limit_field(name: str, remaining: int, reset: float | None = None) -> str:
    """Format RateLimit: what is left of the named policy, and the seconds (rounded up) until it is whole again."""
    seconds = "" if reset is None else f";t={math.ceil(max(reset, 0.0))}"
    return f"{_string(name)};r={max(remaining, 0)}{seconds}"


def bucket_fields(buckets: TokenBuckets, decision: Decision) -> tuple[tuple[str, str], ...]:
    """Return RateLimit-Policy and RateLimit for a decision. A refusal's `t` is its Retry-After, as the draft asks."""
    reset = decision.reset if decision.allowed else decision.retry_after
    policy = Policy(buckets.policy, buckets.quota, buckets.window)
    return _fields(policy, decision.remaining, reset)


def refusal_fields(error: GatewayError) -> tuple[tuple[str, str], ...]:
    """Return RateLimit-Policy and RateLimit for RateLimited and TooManyPolls, nothing for other errors."""
    if isinstance(error, RateLimited):
        return _fields(Policy(error.policy, error.quota, error.window), 0, error.retry_after)
    if isinstance(error, TooManyPolls):
        return _fields(Policy("parked", error.quota, unit=CONCURRENT), 0, None)
    return ()


def _fields(policy: Policy, remaining: int, reset: float | None) -> tuple[tuple[str, str], ...]:
    return (("RateLimit-Policy", policy_field([policy])), ("RateLimit", limit_field(policy.name, remaining, reset)))


def _policy_item(policy: Policy) -> str:
    unit = "" if policy.unit is None else f";qu={_string(policy.unit)}"
    window = "" if policy.window is None else f";w={math.ceil(policy.window)}"
    return f"{_string(policy.name)};q={policy.quota}{unit}{window}"


def _string(text: str) -> str:
    """Return a structured field string (RFC 9651, section 3.3.3): printable ASCII, quote and backslash escaped."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError("the name of a policy is printable ASCII")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
