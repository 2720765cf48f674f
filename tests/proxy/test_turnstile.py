"""Places, the queue before them, and who gives up waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import eventually

from gateway.errors import Overloaded
from gateway.proxy.turnstile import Turnstile


def turnstile(**options: Any) -> Turnstile:
    return Turnstile("shop", **({"concurrent": 2, "held": 3, "queue": 2, "queue_timeout": 60.0} | options))


async def queued(stile: Turnstile, count: int) -> list[asyncio.Task[None]]:
    """Take all places and let so many more wait."""
    while stile.working < 2:
        await stile.enter(held=False)
    tasks = [asyncio.ensure_future(stile.enter(held=False)) for _ in range(count)]
    await eventually(lambda: stile.queued == count)
    return tasks


async def test_places() -> None:
    """Working and held ones are bounded apart."""
    stile = turnstile(queue=0)
    for held in (False, False, True, True, True):
        await stile.enter(held)
    assert repr(stile) == "<Turnstile shop 2 working, 3 held, 0 queued>"
    for held in (False, True):
        with pytest.raises(Overloaded) as refused:
            await stile.enter(held)
        assert (refused.value.bound, refused.value.retry_after) == ("upstream:shop", 1.0)
        stile.leave(held)
        await stile.enter(held)


async def test_first_come_first_served() -> None:
    """A place that is left goes to the one who waits longest; nobody who comes then is faster."""
    stile = turnstile()
    first, second = await queued(stile, 2)
    stile.leave(held=False)
    with pytest.raises(Overloaded):
        await turnstile_is_full(stile)
    await first
    assert (stile.working, stile.queued, second.done()) == (2, 1, False)
    stile.leave(held=False)
    await second
    for _ in range(2):
        stile.leave(held=False)
    assert (stile.working, stile.queued) == (0, 0)


async def turnstile_is_full(stile: Turnstile) -> None:
    """Fill the queue again, then ask for more."""
    waiting = asyncio.ensure_future(stile.enter(held=False))
    try:
        await eventually(lambda: stile.queued == 2)
        await stile.enter(held=False)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_waiting_has_an_end() -> None:
    """Who waits for too long is refused and leaves the queue."""
    stile = turnstile(queue_timeout=0.01)
    (waiting,) = await queued(stile, 1)
    with pytest.raises(Overloaded):
        await waiting
    assert (stile.working, stile.queued) == (2, 0)


async def test_who_leaves_the_queue_costs_nobody_a_place() -> None:
    """A client that is gone while it waits is passed over."""
    stile = turnstile()
    first, second = await queued(stile, 2)
    first.cancel()
    stile.leave(held=False)  # before the cancelled one has had its turn
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (stile.working, stile.queued) == (2, 0)


async def test_a_place_given_to_one_who_has_left_is_handed_on() -> None:
    """Granted and cancelled within one turn of the loop: the next in the queue gets it, or nobody."""
    stile = turnstile()
    first, second = await queued(stile, 2)
    stile.leave(held=False)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    (third,) = await queued(stile, 1)
    stile.leave(held=False)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert (stile.working, stile.queued) == (1, 0)


async def test_cancelled_while_it_waits() -> None:
    """The queue is as it was before."""
    stile = turnstile()
    before = repr(stile)
    (waiting,) = await queued(stile, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for _ in range(2):
        stile.leave(held=False)
    assert repr(stile) == before


async def test_from_working_to_held() -> None:
    """The working place is free for the next; where too many are held it stays working."""
    stile = turnstile(held=1)
    (waiting,) = await queued(stile, 1)
    stile.hold()
    await waiting
    assert (stile.working, stile.held) == (2, 1)
    with pytest.raises(Overloaded):
        stile.hold()
    assert (stile.working, stile.held) == (2, 1)


@pytest.mark.parametrize("held", [False, True])
def test_nobody_leaves_twice(held: bool) -> None:
    """To give back what was not taken is a mistake of the caller."""
    with pytest.raises(AssertionError, match="not taken"):
        turnstile().leave(held)


@pytest.mark.parametrize("options", [{"concurrent": 0}, {"held": -1}, {"queue": -1}, {"queue_timeout": 0.0}])
def test_bounds(options: dict[str, Any]) -> None:
    """Figures that make no sense are refused."""
    with pytest.raises(ValueError, match="expected"):
        turnstile(**options)
