"""The probe of the event loop."""

from __future__ import annotations

import asyncio
import time
from itertools import count

import pytest
import uvloop

from gateway.server.looplag import LoopLag


async def probing(probe: LoopLag, seen: list[float], enough: int) -> None:
    """Run the probe until it has observed `enough` values; block the loop once in between."""
    task = asyncio.ensure_future(probe.run())
    async with asyncio.timeout(10):
        while len(seen) < 1:
            await asyncio.sleep(0)
        until = time.perf_counter() + 0.06
        while time.perf_counter() < until:
            pass
        while len(seen) < enough:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_blocked_loop_is_seen(factory: object) -> None:
    """Code that keeps the loop for 60 ms makes a timer of 10 ms at least 40 ms late."""
    seen: list[float] = []
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(probing(LoopLag(seen.append, interval=0.01), seen, 3))
    assert max(seen) > 0.04
    assert min(seen) >= 0.0


async def test_lag_is_the_time_beyond_the_interval() -> None:
    """The interval itself is no lag, and a timer that runs early is none either."""
    seen: list[float] = []
    ticks = count()
    times = [0.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    probe = LoopLag(seen.append, interval=0.0, clock=lambda: times[min(next(ticks), 5)])
    task = asyncio.ensure_future(probe.run())
    async with asyncio.timeout(10):
        while len(seen) < 4:
            await asyncio.sleep(0)
    task.cancel()
    assert seen[:4] == [1.5, 0.5, 1.0, 0.0]
