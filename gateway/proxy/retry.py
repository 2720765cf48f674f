"""What may be sent again, when, and how often in all (sans-I/O).

Whose fault an error was and how far the request got decide. A target that was never connected to has seen nothing, so any
request may go elsewhere. Once a byte may have been sent, only a request whose repetition changes nothing may be: RFC 9110,
section 9.2.2, "A proxy MUST NOT automatically retry non-idempotent requests"; an Idempotency-Key is the client's word
that its request is safe to repeat.

Retries make an overload worse: three attempts for each request are three times the load, just when the backend cannot bear
it. So they are a share of the requests, and a few per second so that a quiet upstream is retried too (Finagle's
RetryBudget, finagle.github.io, "Retry Budgets", 2016). Between attempts there is a pause of random length, "full jitter"
(M. Brooker, AWS Architecture Blog, "Exponential Backoff And Jitter", 2015), so that those that failed together do not come
back together.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, final

from gateway.proxy.window import Window

IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
"""Methods that may be repeated (RFC 9110, section 9.2.2)."""


class Attempted(Enum):
    """How far an attempt got.

    NOT_CONNECTED: no connection, so no byte was sent. NOT_SENT: a kept connection was closed before a byte of the answer,
    most likely while the request was on its way. SENT: it failed later. STATUS: an answer came whose status is to be retried.
    """

    NOT_CONNECTED = "not connected"
    NOT_SENT = "not sent"
    SENT = "sent"
    STATUS = "status"


def may_retry(
    attempted: Attempted,
    method: str,
    *,
    has_idempotency_key: bool,
    body_replayable: bool,
    attempts_done: int,
    limit: int,
) -> bool:
    """Tell whether a request may be attempted again; `limit` is the number of attempts in all, the first included.

    `body_replayable`: the body, if there is one, can be sent again from its first byte. It does not matter when there was no
    connection: then no attempt has touched the body, or an earlier one was retried because it can be replayed.
    """
    if attempts_done >= limit:
        return False
    if attempted is Attempted.NOT_CONNECTED:
        return True
    return body_replayable and (has_idempotency_key or method in IDEMPOTENT)


def backoff(attempt: int, base: float, cap: float, rand: Callable[[], float]) -> float:
    """Return the seconds to wait after the `attempt`th attempt (from 1): random, up to `base` doubled each time, or `cap`."""
    # The exponent is bounded: 2.0**1024 overflows.
    return rand() * min(cap, base * 2.0 ** min(attempt - 1, 32))


@final
class Budget:
    """Retries that are left: `share` of one for each request of the last `window` seconds, and `least` for each second."""

    __slots__ = ("_balance", "_reserve", "_share")

    def __init__(self, share: float, least: float, window: float = 10.0) -> None:
        if share < 0 or least < 0 or window <= 0:
            raise ValueError("expected a share and a least number of at least 0, and a window above 0 seconds")
        self._share = share
        self._reserve = least * window
        self._balance = Window(window)

    def __repr__(self) -> str:
        return f"<Budget {self._share:g} of requests, reserve {self._reserve:g}, {self._balance!r}>"

    def note_request(self, now: float) -> None:
        """Note a request, not a retry."""
        self._balance.add(self._share, now)

    def take(self, now: float) -> bool:
        """Take a retry, if one is left."""
        # A hair above: ten requests at a tenth each must be worth one retry in floating point as well.
        if self._balance.total(now) + self._reserve + 1e-9 < 1.0:
            return False
        self._balance.add(-1.0, now)
        return True
