"""A run: step after step, each grown, settled, held and judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.loadtest.crowd import Crowd
from gateway.loadtest.ladder import Bounds, Ladder, Step, judged

_PROBE_SECONDS = 1.0
_LAST_SECONDS = 2.0
"""How long after the last probe deliveries are waited for, beyond the bound."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`ramp`: new clients a second; `hold`: seconds for which a step is held; `publish`: with probes."""

    ramp: float
    hold: float
    publish: bool
    bounds: Bounds


async def climb(crowd: Crowd, ladder: Ladder, plan: Plan, on_step: Callable[[Step], None]) -> None:
    """Take all steps. NotAllowed where the gateway refuses the caller."""
    while (count := ladder.next()) is not None:
        if ladder.steps and not ladder.steps[-1].held:
            await crowd.shrink(0)  # those that were refused wait for a while, and would be taken for too many
        step = await _step(crowd, count, plan)
        ladder.add(step)
        on_step(step)


async def _step(crowd: Crowd, count: int, plan: Plan) -> Step:
    await crowd.shrink(min(count, len(crowd)))
    tally = crowd.fresh()
    began, used = time.monotonic(), time.process_time()
    await crowd.grow(count, plan.ramp)
    settled_in = await crowd.settle(plan.bounds.settle)
    tally.settled = crowd.settled
    if settled_in is not None:
        await _hold(crowd, plan)
    seconds = time.monotonic() - began
    own = (time.process_time() - used) / seconds
    return judged(count, tally, settled_in, seconds, own, plan.bounds)


async def _hold(crowd: Crowd, plan: Plan) -> None:
    until = time.monotonic() + plan.hold
    while (left := until - time.monotonic()) > 0:
        if plan.publish:
            await crowd.probe()
        await asyncio.sleep(min(_PROBE_SECONDS, left))
        crowd.check()
    overdue = time.monotonic() + plan.bounds.latency + _LAST_SECONDS
    await crowd.delivered(overdue - time.monotonic())
