"""Waiting ends with the condition, or says at the deadline what did not happen."""

import asyncio

import pytest
from waiting import eventually, eventually_blocking


async def test_gives_what_the_predicate_gave_last():
    """A plain predicate and an async one both end the wait with their first true value."""
    plain = iter([0, "", "yes"])
    assert await eventually(lambda: next(plain)) == "yes"
    later = iter([None, 7])

    async def predicate() -> int | None:
        await asyncio.sleep(0)
        return next(later)

    assert await eventually(predicate) == 7
    assert eventually_blocking(lambda: "now") == "now"


async def test_fails_at_the_deadline_with_source_and_last_value():
    """The failure names the condition and the last value."""
    with pytest.raises(AssertionError, match=r"not so within 0\.02 s \(last: 0\).*lambda"):
        await eventually(lambda: 0, timeout=0.02)
    with pytest.raises(AssertionError, match=r"last: 0"):
        eventually_blocking(lambda: 0, timeout=0.02)


async def test_what_the_predicate_raises_passes_through():
    """A broken predicate is no time-out."""
    with pytest.raises(ZeroDivisionError):
        await eventually(lambda: 1 // 0)
