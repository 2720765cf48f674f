"""How an exchange ended, as far as its target is concerned (sans-I/O)."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """OK: the target did its part. FAILURE: it did not. NEUTRAL: the client left, or the gateway ended it; never counts."""

    OK = "ok"
    FAILURE = "failure"
    NEUTRAL = "neutral"
