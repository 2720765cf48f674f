"""When to look at a source of keys again (sans-I/O).

A source is looked at when its last answer has aged, and ahead of that when a token names a key that nobody knows. The second
is in the hands of strangers, so it is bounded twice: no look within `cooldown` of the last one, whatever is asked, and a
name that a look did not bring is not asked for again within `unknown_ttl`. While looks fail they come at growing intervals
and nobody can hasten them. Old keys go on serving until `stale` after the last good look. Times are monotonic seconds;
`jitter` is a random number in [0, 1), so that instances do not move in step.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

MAX_UNKNOWN = 1024
_FIRST_RETRY = 1.0


@final
@dataclass(frozen=True, slots=True)
class Pace:
    """How often a source is looked at, all in seconds.

    Raise ValueError unless each is positive, and `cooldown` <= `max_age` < `stale`.
    """

    max_age: float
    cooldown: float
    stale: float
    max_retry: float = 60.0
    unknown_ttl: float = 60.0

    def __post_init__(self) -> None:
        if min(self.max_age, self.cooldown, self.max_retry, self.unknown_ttl) <= 0:
            raise ValueError("expected durations above 0 seconds")
        if not self.cooldown <= self.max_age < self.stale:
            raise ValueError("expected times in the order cooldown, time between two looks, stale")


@final
class Refresh:
    """The plan of one source. The first look is due at once."""

    def __init__(self, pace: Pace, now: float) -> None:
        self.pace = pace
        self.due = now
        self.failures = 0
        self.good_at: float | None = None
        self.looking = False
        self._looked_at = float("-inf")
        self._unknown: OrderedDict[str | None, float] = OrderedDict()

    def __repr__(self) -> str:
        state = "looking" if self.looking else f"due {self.due:g}"
        return f"<Refresh {state} failures {self.failures} unknown {len(self._unknown)}>"

    def ask(self, kid: str | None, now: float) -> bool:
        """Tell whether a key named `kid` is worth waiting for: a look is under way, or is now due."""
        if self._unknown.get(kid, 0.0) > now:
            return False
        if self.looking:
            return True
        if self.failures:
            return self.due <= now
        if now - self._looked_at < self.pace.cooldown:
            return False
        self.due = min(self.due, now)
        return True

    def doubt(self, kid: str | None, now: float) -> float | None:
        """Return the seconds to the next look while looks fail, so that a key named `kid` may exist unseen; else None."""
        if not self.failures or self._unknown.get(kid, 0.0) > now:
            return None
        return max(0.0, self.due - now)

    def miss(self, kid: str | None, now: float) -> None:
        """Remember that a look did not bring the key named `kid`."""
        self._unknown[kid] = now + self.pace.unknown_ttl
        self._unknown.move_to_end(kid)
        if len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    def begin(self, now: float) -> None:
        """Note that a look begins."""
        self.looking = True
        self._looked_at = now

    def succeed(self, now: float, jitter: float, max_age: float | None = None) -> None:
        """Note a good answer, which may itself say for how long (`max_age`) it is good."""
        age = self.pace.max_age if max_age is None else min(self.pace.max_age, max_age)
        self.looking = False
        self.failures = 0
        self.good_at = now
        self.due = now + max(self.pace.cooldown, age * (1 - jitter / 10))

    def fail(self, now: float, jitter: float) -> None:
        """Note a look that brought nothing; the next one comes after a back-off that doubles up to `max_retry`."""
        self.looking = False
        self.failures += 1
        # The exponent is bounded because an outage may last: 2.0**1024 overflows.
        delay = min(self.pace.max_retry, _FIRST_RETRY * 2.0 ** min(self.failures - 1, 32))
        self.due = now + delay * (1 + jitter) / 2

    @property
    def stale_at(self) -> float:
        """Return when the present keys are too old to serve; infinity while there are none."""
        return float("inf") if self.good_at is None else self.good_at + self.pace.stale

    def drop(self) -> None:
        """Note that the keys were given up as stale."""
        self.good_at = None
