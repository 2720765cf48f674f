"""Heads of answers: Age, Date, Cache-Status (sans-I/O)."""

from __future__ import annotations

from email.utils import formatdate
from typing import Final

from multidict import CIMultiDict

from gateway.proxy.caching import CacheAnswer, CacheRequest, Result
from gateway.proxy.directives import http_date
from gateway.proxy.stored import Stored
from gateway.proxy.validation import not_modified, not_modified_head

NAME: Final = "longpoll-gateway"


def dated(headers: CIMultiDict[str], now: float) -> CIMultiDict[str]:
    """Return a head with a valid Date: where the backend sent none, the time at which it came (RFC 9110, section 6.6.1)."""
    dates = headers.getall("Date", ())
    if len(dates) != 1 or http_date(dates[0]) is None:
        headers = headers.copy()
        headers.popall("Date", None)
        headers["Date"] = formatdate(int(now), usegmt=True)
    return headers


def from_store(request: CacheRequest, stored: Stored, now: float, result: Result, how: str) -> CacheAnswer:
    """Return the answer to a request from a stored one. `how`: the parameters of Cache-Status (RFC 9211, section 2)."""
    headers = stored.headers
    if result is not Result.REVALIDATED:
        # Section 4: whatever is used without validation has its age. A validated answer is the backend's own (5.1).
        headers["Age"] = str(stored.freshness.age(now))
    noted(headers, f"{how}; ttl={stored.freshness.left(now)}")
    if not_modified(request, stored):
        return CacheAnswer(304, not_modified_head(headers), b"", result)
    return CacheAnswer(stored.status, headers, b"" if request.method == "HEAD" else stored.body, result)


def noted(headers: CIMultiDict[str], how: str) -> CIMultiDict[str]:
    """Add to a head what this cache did; caches nearer to the backend come first."""
    headers.add("Cache-Status", f"{NAME}; {how}")
    return headers
