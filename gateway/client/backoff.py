"""How long to wait after a failure (sans-I/O): exponential back-off with full jitter, and what the server asks for.

Full jitter, a time drawn evenly from nothing to the bound, spreads the clients of a server that comes back better than a fixed
share of the bound does (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

MOST_ASKED_SECONDS = 300.0
"""A server that asks for more patience than this gets so much."""

MOST_PACE_SECONDS = 60.0
_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Retry:
    """How to go on after failures. `base`, `cap`: seconds; the bound is `base` for the first wait, doubles, and stays at `cap`.

    `attempts`: failures in a row after which to give up, None: never (subscriptions), or five (publishing). `deadline`: seconds
    that a publish may take with all its attempts.
    """

    base: float = 0.5
    cap: float = 30.0
    attempts: int | None = None
    deadline: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.base <= self.cap:
            raise ValueError("expected 0 <= base <= cap")
        if self.attempts is not None and self.attempts < 1:
            raise ValueError("expected attempts >= 1")
        if self.deadline <= 0:
            raise ValueError("expected deadline > 0")

    def wait(self, failures: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait after so many failures in a row; `random` draws from [0, 1)."""
        doublings = min(failures - 1, _MOST_DOUBLINGS)
        return random() * min(self.cap, self.base * 2.0**doublings)


def retry_after(headers: Mapping[str, str], unix_now: float) -> float:
    """Return the seconds that Retry-After asks for (RFC 9110 §10.2.3: seconds or a date); 0 without a good one."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), MOST_ASKED_SECONDS)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max(0.0, when.timestamp() - unix_now), MOST_ASKED_SECONDS)


def pace(headers: Mapping[str, str]) -> float:
    """Return the seconds that `Backoff` asks for before the next poll; 0 without a good one."""
    value = headers.get("backoff", "").strip()
    if not value.isascii() or not value.replace(".", "", 1).isdigit():
        return 0.0
    return min(float(value), MOST_PACE_SECONDS)
