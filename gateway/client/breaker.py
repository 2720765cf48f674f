"""The circuit breaker of a client (sans-I/O): a gateway that fails again and again is left alone for a while.

Theory of operation. Closed: requests go out, failures in a row are counted, a good answer forgets them. Open: nothing goes out
until the open time is over. Half-open: one request goes out as a probe; its success closes, its failure opens for twice as
long, up to the cap. All subscriptions and publishes of a client share one, so that one of them finds out for all (M. Nygard,
"Release It!").
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What the breaker does with a request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """`failures` in a row open it, for `seconds`, twice as long each time the probe fails, at most `cap` seconds."""

    failures: int = 5
    seconds: float = 1.0
    cap: float = 30.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.seconds <= self.cap:
            raise ValueError("expected failures >= 1 and 0 < seconds <= cap")


class Breaker:
    """One breaker; may be used by several threads. `random` draws from [0, 1)."""

    def __init__(self, settings: BreakerSettings, random: Callable[[], float]) -> None:
        self.opened = 0
        self._settings = settings
        self._random = random
        self._lock = threading.Lock()
        self._failures = 0
        self._opens = 0
        self._until: float | None = None
        self._probe_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self._failures} failures, {'closed' if self._until is None else f'opened {self._opens} times'}>"

    def state(self, now: float) -> State:
        """Return what it is in now."""
        if self._until is None:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    def enter(self, now: float, patience: float) -> float:
        """Return 0 where a request may go out now, else the seconds after which to ask again.

        `patience`: how long the request may take at most: for so long it is the only probe.
        """
        with self._lock:
            if self._until is None:
                return 0.0
            if now < self._until:
                return self._until - now
            if now < self._probe_until:
                return min(self._settings.seconds, self._probe_until - now)
            self._probe_until = now + patience
            return 0.0

    def succeeded(self) -> None:
        """Note a good answer, or one that says what is wrong with the request: the gateway is well."""
        with self._lock:
            self._failures = self._opens = 0
            self._until = None
            self._probe_until = 0.0

    def failed(self, now: float) -> None:
        """Note a failure."""
        with self._lock:
            self._failures += 1
            if self._until is not None and now < self._until:
                return  # one that was under way when it opened
            if self._until is None and self._failures < self._settings.failures:
                return
            bound = min(self._settings.cap, self._settings.seconds * 2.0 ** min(self._opens, 32))
            # Between half and all of it, so that clients do not come back together.
            self._until = now + bound * (1 + self._random()) / 2
            self._probe_until = 0.0
            self._opens += 1
            self.opened += 1

    def left(self) -> None:
        """Note that a request ended without an outcome: its client left. Another one may be the probe."""
        with self._lock:
            self._probe_until = 0.0
