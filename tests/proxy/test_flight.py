"""A flight lands however it ends; a tee gives each byte once and no more than its reader wants beyond the limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from proxy.caches import Body
from waiting import eventually

from gateway.errors import UpstreamFailed
from gateway.proxy.flight import Flight, Tee


async def test_only_the_first_landing_counts() -> None:
    """Those who wait are told once."""
    flight: Flight[str, str] = Flight()
    assert repr(flight) == "<Flight under way, of interest to 0>"
    flight.show("head")
    assert repr(flight) == "<Flight shown, of interest to 0>"
    flight.bring("one")
    flight.bring("two")
    await flight.land()
    await flight.head()
    assert (flight.answer, flight.landed) == ("one", True)
    assert repr(Flight(detached=True)) == "<Flight under way, of interest to 0, detached>"
    assert repr(flight) == "<Flight landed, of interest to 0>"


async def test_leaving_without_a_task() -> None:
    """A flight whose task has not begun has nothing to cancel."""
    flight: Flight[str, str] = Flight()
    flight.enter()
    assert not flight.leave()


async def test_a_tee_that_is_cancelled() -> None:
    """The body is closed, and the reader is told that it was cut short."""
    body = Body(b"a", asyncio.Event())
    tee = Tee(body, 10)
    task = asyncio.ensure_future(tee.record())
    assert await anext(tee) == b"a"
    assert repr(tee) == "<Tee recording, 1 of 1 chunks read>"
    task.cancel()
    with pytest.raises(UpstreamFailed):
        await anext(tee)
    assert body.closed
    assert repr(tee) == "<Tee broken, 1 of 1 chunks read>"


@pytest.mark.parametrize("limit", [0, 3, 6, 7, 100])
async def test_a_tee_gives_all_bytes_once(limit: int) -> None:
    """Whatever the limit, the reader has every byte, and the record is whole or none."""
    tee = Tee(Body(b"abc", b"", b"def"), limit)
    recorded = await tee.record()
    assert recorded == (b"abcdef" if limit >= 6 else None)
    assert repr(tee).startswith("<Tee whole" if recorded else "<Tee over its limit")
    assert b"".join([chunk async for chunk in tee]) == b"abcdef"


async def test_a_reader_that_is_cancelled_may_go_on() -> None:
    """Cancelling a wait for a chunk loses none."""
    more = asyncio.Event()
    tee = Tee(Body(more, b"a"), 10)
    recording = asyncio.ensure_future(tee.record())
    waiting: asyncio.Future[Any] = asyncio.ensure_future(tee.__anext__())
    await eventually(lambda: not more.is_set())
    waiting.cancel()
    await asyncio.wait([waiting])
    more.set()
    assert await anext(tee) == b"a"
    assert await recording == b"a"
