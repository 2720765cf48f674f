"""What is held ends with the token of whom it is held for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import MappingProxyType

import pytest
from waiting import eventually

from gateway.auth.principal import KeyRef, Principal
from gateway.errors import Draining, GatewayError, TokenExpired, TokenRevoked
from gateway.server.tenures import SLICE, Tenures

KEY = KeyRef("main", "a", "RS256", "1")
OTHER = KeyRef("main", "b", "RS256", "2")


def principal(*, key: KeyRef = KEY, expires_at: float | None = None) -> Principal:
    """Make somebody."""
    return Principal("main", "ann", MappingProxyType({}), frozenset(), expires_at, key)


def remembering(errors: list[GatewayError]) -> Callable[[GatewayError], None]:
    """Return an end that is remembered."""
    return errors.append


async def test_a_withdrawn_key_ends_what_it_vouches_for() -> None:
    """All of it, some in each turn of the loop, and nothing else."""
    tenures, ended, others = Tenures(), list[GatewayError](), list[GatewayError]()
    for _ in range(SLICE + 1):
        tenures.begin(principal(), remembering(ended))
    kept = tenures.begin(principal(key=OTHER), remembering(others))
    tenures.withdraw(KEY)
    assert len(ended) == SLICE
    tenures.withdraw(KEY)
    await eventually(lambda: len(ended) == SLICE + 1)
    assert {type(error) for error in ended} == {TokenRevoked}
    assert (others, len(tenures)) == ([], 1)
    kept.close()
    kept.close()
    assert repr(tenures) == "<Tenures of 0>"


async def test_expiry() -> None:
    """At its time; what ends before by itself needs no clock."""
    ended: list[GatewayError] = []
    tenures = Tenures(unix_clock=lambda: 1000.0)
    tenures.begin(principal(expires_at=1000.01), remembering(ended))
    bounded = tenures.begin(principal(expires_at=1010.0), remembering(ended), within=5.0)
    assert bounded.timer is None
    far = tenures.begin(principal(expires_at=1010.0), remembering(ended))
    await eventually(lambda: len(ended) == 1)
    assert isinstance(ended[0], TokenExpired)
    far.close()
    far.end(TokenExpired())
    bounded.close()
    assert len(ended) == 1
    assert len(tenures) == 0


async def test_what_comes_too_late() -> None:
    """A token that has expired, or whose key was withdrawn since it was found good, holds nothing; one that came back does."""
    tenures = Tenures(unix_clock=lambda: 1000.0)
    since = tenures.withdrawals
    tenures.withdraw(KEY)
    with pytest.raises(TokenRevoked):
        tenures.check(principal(), since)
    tenures.check(principal(), tenures.withdrawals)
    tenures.check(principal(key=OTHER), since)
    with pytest.raises(TokenExpired):
        tenures.check(principal(expires_at=1000.0), tenures.withdrawals)


async def test_a_task_is_ended() -> None:
    """With the reason in place of the cancellation."""
    tenures = Tenures()

    async def hold() -> None:
        with tenures.bounding(principal(), 0), tenures.bounding(principal(), 0):
            await asyncio.Event().wait()

    holding = asyncio.ensure_future(hold())
    await eventually(lambda: len(tenures) == 2)
    tenures.withdraw(KEY)
    with pytest.raises(TokenRevoked):
        await holding
    assert holding.cancelling() == 0
    assert len(tenures) == 0


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    """Also if its token ends in the same turn."""
    tenures = Tenures()

    async def hold() -> None:
        with tenures.bounding(principal(), tenures.withdrawals):
            await asyncio.Event().wait()

    for withdrawn in (False, True):
        holding = asyncio.ensure_future(hold())
        await eventually(lambda: len(tenures) == 1)
        holding.cancel()
        if withdrawn:
            tenures.withdraw(KEY)
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert len(tenures) == 0


async def test_a_process_that_goes_ends_what_would_not_end() -> None:
    """One after the other in the time given, whoever it is for; what ends by itself has its end awaited elsewhere."""
    tenures, ended, others = Tenures(), list[GatewayError](), list[GatewayError]()
    for _ in range(4):
        tenures.begin(principal(), remembering(ended))
        tenures.begin(None, remembering(ended))
    short = tenures.begin(principal(), remembering(others), within=5.0)
    tenures.check(None, 0)
    draining = asyncio.ensure_future(tenures.drain(0.3))
    await eventually(lambda: ended)
    assert len(ended) < 8
    await draining
    assert {type(error) for error in ended} == {Draining}
    assert (len(ended), others, len(tenures)) == (8, [], 1)
    short.close()
