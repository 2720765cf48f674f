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

Who asks for one key again and again keeps what the table has for it (`Bucket`, `Holder`) and is spared the look-up. The table
may drop that at any time; then it says no to everything, and its keeper asks the table again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from gateway.errors import GatewayError, Overloaded, RateLimited, TooManyPolls

R = TypeVar("R")

_DROPPED = math.inf
_SWEEP_AT = 1_024


class Decision(NamedTuple):
    """What a bucket said. `reset`: seconds until it is full again; `retry_after`: seconds until `cost` is there, else 0."""

    allowed: bool
    remaining: int
    reset: float
    retry_after: float


class Bucket:
    """One bucket of a table: the instant (monotonic) at which it is full again, infinite once the table has dropped it.

    `kept`: somebody keeps it, so it stays in the table while there is room, full or not.
    """

    __slots__ = ("full_at", "kept")

    def __init__(self, full_at: float) -> None:
        self.full_at = full_at
        self.kept = False

    def __repr__(self) -> str:
        return f"Bucket(full at {self.full_at:g})"

    @property
    def dropped(self) -> bool:
        """Whether the table knows it no more."""
        return self.full_at == _DROPPED


class TokenBuckets:
    """One bucket for each key, all with the same policy; at most `bound` of them are remembered.

    `policy` is the name shown in the RateLimit fields; `quota` tokens (at least 1) refill in `window` seconds. `now` is
    monotonic and must not go back. `evicted` counts the buckets in use that had to give way. `interval`: seconds in which one
    token refills; `reach`: how far ahead of now a bucket may be full again.
    """

    __slots__ = ("_bound", "_buckets", "_floor", "evicted", "interval", "policy", "quota", "reach", "window")

    def __init__(self, policy: str, *, quota: int, window: float, bound: int = 65_536) -> None:
        if quota < 1 or not 0 < window < math.inf or bound < 1:
            raise ValueError(f"bucket {policy}: quota and bound are at least 1, window is positive")
        self.policy = policy
        self.quota = quota
        self.window = window
        self.evicted = 0
        self._bound = bound
        self.interval = window / quota
        # A thousandth of a token of good will, else rounding of sums keeps the last token of a bucket back.
        self.reach = window + self.interval / 1000
        self._floor = -math.inf
        # Ordered, because taking the first key of a plain dict over and over is quadratic.
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def __repr__(self) -> str:
        keys = f"{len(self._buckets)} of {self._bound} keys"
        return f"TokenBuckets({self.policy}: {self.quota} in {self.window:g} s, {keys})"

    def take(self, key: Hashable, now: float, cost: int = 1) -> Decision:
        """Take `cost` tokens from the key's bucket, or none of them.

        A cost above the quota passes when the bucket is full, and puts it in debt: so the average holds, and nobody is
        locked out for ever.
        """
        room = self._charge(key, now, cost)
        if room >= 0:
            reset = self.reach - room if cost <= self.quota else self._buckets[key].full_at - now
            return Decision(True, int(room / self.interval), reset, 0.0)
        missing = self._level(key, now) - now
        remaining = max(int((self.reach - missing) / self.interval), 0)
        return Decision(False, remaining, missing, self._wait(room))

    def check(self, key: Hashable, now: float, cost: int = 1) -> None:
        """Take `cost` tokens, or raise RateLimited; for callers that need no figures."""
        room = self._charge(key, now, cost)
        if room < 0:
            raise self._rate_limited(self._wait(room))

    def bucket(self, key: Hashable, now: float) -> Bucket:
        """Return the key's bucket, to be kept and given to `take_one`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = Bucket(self._level_of_unknown(now))
            self._make_room(now)
            self._buckets[key] = bucket
        bucket.kept = True
        return bucket

    def take_one(self, bucket: Bucket, now: float) -> bool:
        """Take one token from a bucket of this table; False if there is none, or if the bucket was dropped (ask again)."""
        after = max(bucket.full_at, now) + self.interval
        if after > now + self.reach:
            return False
        bucket.full_at = after
        return True

    def give_back(self, bucket: Bucket) -> None:
        """Put the token back that `take_one` has just taken."""
        bucket.full_at -= self.interval

    def refusal(self, decision: Decision) -> RateLimited:
        """Return the error to raise for a decision of `take` that is not allowed."""
        return self._rate_limited(decision.retry_after)

    def _rate_limited(self, retry_after: float) -> RateLimited:
        return RateLimited(policy=self.policy, quota=self.quota, window=self.window, retry_after=retry_after)

    def _charge(self, key: Hashable, now: float, cost: int) -> float:
        """Take the tokens and return the room left, or leave the bucket alone and return a negative number.

        Both in seconds of refilling.
        """
        bucket = self._buckets.get(key)
        level = self._level_of_unknown(now) if bucket is None else max(bucket.full_at, now)
        after = level + cost * self.interval
        room = self.reach + now - (after if cost <= self.quota else level + self.window)
        if room >= 0:
            if bucket is None:
                self._make_room(now)
                self._buckets[key] = Bucket(after)
            else:
                bucket.full_at = after
        return room

    def _wait(self, room: float) -> float:
        return self.reach - self.window - room

    def _level(self, key: Hashable, now: float) -> float:
        bucket = self._buckets.get(key)
        return self._level_of_unknown(now) if bucket is None else max(bucket.full_at, now)

    def _level_of_unknown(self, now: float) -> float:
        if self._floor <= now:
            return now
        return min(self._floor, now + self.window - self.interval)

    def _make_room(self, now: float) -> None:
        table = self._buckets
        for key in list(islice(table, 2)):
            bucket = table[key]
            if bucket.full_at <= now and not bucket.kept:
                del table[key]
            else:
                table.move_to_end(key)
        if len(table) >= self._bound:
            self._evict()

    def _evict(self) -> None:
        table = self._buckets
        fullest = min(islice(table, 8), key=lambda key: table[key].full_at)
        evicted = table.pop(fullest)
        self._floor = max(self._floor, evicted.full_at)
        evicted.full_at = _DROPPED
        self.evicted += 1


class _Unlimited(TokenBuckets):
    """Stands where no limit is set: everybody has the same bucket, and it is always full."""

    __slots__ = ("_bucket",)

    def __init__(self) -> None:
        super().__init__("none", quota=1, window=1.0)
        self.interval, self.reach = 0.0, math.inf
        self._bucket = Bucket(0.0)

    def bucket(self, key: Hashable, now: float) -> Bucket:  # noqa: ARG002  # as a table of buckets has it
        """Return the one bucket."""
        return self._bucket


UNLIMITED = _Unlimited()


class Holder:
    """How many polls one principal holds, beyond every quota once the table has dropped it."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: float = 0

    @property
    def dropped(self) -> bool:
        """Whether the table knows it no more."""
        return self.held == _DROPPED


class Slots:
    """Polls held at once: at most `quota` by one principal, at most `total` by all.

    The table needs no bound of its own: who holds nothing is dropped from it now and then.
    """

    __slots__ = ("_holders", "_sweep_at", "held", "quota", "total")

    def __init__(self, *, quota: int, total: int) -> None:
        self.quota = quota
        self.total = total
        self.held = 0
        self._holders: dict[Hashable, Holder] = {}
        self._sweep_at = _SWEEP_AT

    def __repr__(self) -> str:
        holders = sum(holder.held > 0 for holder in self._holders.values())
        return f"Slots({self.held} of {self.total} held by {holders}, {self.quota} each)"

    def __len__(self) -> int:
        return len(self._holders)

    def of(self, principal: Hashable) -> int:
        """Return how many slots the principal holds."""
        holder = self._holders.get(principal)
        return 0 if holder is None else int(holder.held)

    def holder(self, principal: Hashable) -> Holder:
        """Return the principal's count, to be kept: who keeps it and finds room may add to it, and to `held`, by himself."""
        holder = self._holders.get(principal)
        if holder is None:
            if len(self._holders) >= self._sweep_at:
                self._sweep()
            holder = self._holders[principal] = Holder()
        return holder

    def acquire(self, principal: Hashable) -> None:
        """Take a slot. Raises TooManyPolls (the principal's own doing, so asked first) or Overloaded."""
        holder = self.holder(principal)
        if holder.held >= self.quota:
            raise TooManyPolls(quota=self.quota)
        if self.held >= self.total:
            raise Overloaded
        holder.held += 1
        self.held += 1

    def release(self, principal: Hashable) -> None:
        """Give a slot back; each acquire has exactly one release."""
        self.release_of(self.holder(principal))

    def release_of(self, holder: Holder) -> None:
        """Give back a slot of a holder."""
        if holder.held < 1 or holder.dropped:
            # A second release would quietly hand out more than `total` slots for the rest of the process's life.
            raise AssertionError("released a slot that was not held")
        holder.held -= 1
        self.held -= 1

    def _sweep(self) -> None:
        """Drop who holds nothing; the next time when as many again have come, so that it costs each of them little."""
        for principal in [principal for principal, holder in self._holders.items() if not holder.held]:
            self._holders.pop(principal).held = _DROPPED
        self._sweep_at = 2 * len(self._holders) + _SWEEP_AT


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
    seconds = "" if reset is None else f";t={math.ceil(round(max(reset, 0.0), 6))}"
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
