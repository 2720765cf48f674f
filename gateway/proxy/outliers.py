"""Ejection of targets that fail where others do not (sans-I/O).

Theory of operation, after Envoy's outlier detection (envoyproxy.io, "Outlier detection"). Verdicts of real traffic tell
more than checks do, and cost nothing. A target is ejected after `consecutive` failures in a row, which finds the dead one
quickly, or when the share of failures among at least `least_requests` verdicts of the last `window` seconds reaches `rate`,
which finds the one that answers every other time and so never fails often in a row.

It comes back by time alone, after `ejection` seconds times the number of ejections in a row, at most `max_ejection`: a target
that is ill for long is asked less and less. Each `window` of good time since it came back takes one off that number, as
Envoy does at each interval.

A breaker looks at one target alone and opens even if it is the last one. Ejection compares: if half of all targets
fail, the fault is likely elsewhere (a shared database, a bad request) and sending everything to the other half would
bring that down as well. So the upstream ejects at most a share of its targets, none of a single one.
"""

from __future__ import annotations

from typing import final

from gateway.proxy.verdict import Verdict
from gateway.proxy.window import Window


@final
class Outliers:
    """Judges one target by its verdicts. Durations in seconds; `until`: when its ejection ends, None: it is not ejected."""

    __slots__ = (
        "_failed",
        "_in_a_row",
        "_judged",
        "_returned",
        "consecutive",
        "ejection",
        "least_requests",
        "max_ejection",
        "rate",
        "times",
        "until",
        "window",
    )

    def __init__(
        self,
        *,
        consecutive: int,
        rate: float,
        least_requests: int,
        window: float,
        ejection: float,
        max_ejection: float,
    ) -> None:
        if consecutive < 1 or least_requests < 1 or not 0 < rate <= 1 or window <= 0 or not 0 < ejection <= max_ejection:
            raise ValueError("expected counts of at least one, 0 < rate <= 1, and 0 < ejection <= max_ejection")
        self.consecutive = consecutive
        self.rate = rate
        self.least_requests = least_requests
        self.window = window
        self.ejection = ejection
        self.max_ejection = max_ejection
        self.times = 0
        self.until: float | None = None
        self._returned = 0.0
        self._in_a_row = 0
        self._judged = Window(window)
        self._failed = Window(window)

    def __repr__(self) -> str:
        state = "in" if self.until is None else f"out until {self.until:g}"
        return f"<Outliers {state}, {self.times} times, {self._in_a_row} failures in a row>"

    def record(self, verdict: Verdict, now: float) -> bool:
        """Note a verdict; tell whether the target ought to be ejected now."""
        if verdict is Verdict.NEUTRAL:
            return False
        self._judged.add(1.0, now)
        if verdict is Verdict.OK:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        self._failed.add(1.0, now)
        if self._in_a_row < self.consecutive and not self._fails_too_often(now):
            return False
        self.forget()
        return True

    def eject(self, now: float) -> float:
        """Eject the target; return the seconds for which."""
        self.times = 1 + max(0, self.times - int((now - self._returned) / self.window))
        seconds = min(self.max_ejection, self.ejection * self.times)
        self.until = now + seconds
        return seconds

    def come_back(self, now: float) -> None:
        """End the ejection."""
        self.until = None
        self._returned = now
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self._in_a_row = 0
        self._judged.clear()
        self._failed.clear()

    def _fails_too_often(self, now: float) -> bool:
        judged = self._judged.total(now)
        return judged >= self.least_requests and self._failed.total(now) >= self.rate * judged
