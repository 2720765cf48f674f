"""How an exchange ended, as far as its target is concerned (sans-I/O)."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """OK: the target did its part. FAILURE: it did not. NEUTRAL: the client left, or the gateway ended it; never counts.

    ERROR: it answered 500, which may tell of itself or of the request. Among its like it counts as a failure. It opens no
    breaker, or one request that a backend stumbles over, sent again and again, would keep everybody else from it.
    """

    OK = "ok"
    ERROR = "error"
    FAILURE = "failure"
    NEUTRAL = "neutral"
