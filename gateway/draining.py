"""Many ends at once, spread over a window: those who are sent away shall not come back in one storm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

STEP = 0.1
T = TypeVar("T")


async def spread(
    left: Callable[[], Sequence[T]], end: Callable[[Sequence[T]], object], window: float, *, clock: Callable[[], float]
) -> None:
    """End all who are `left`, about equally many each STEP for `window` seconds, the first of them first.

    Those who were ended are left no more. `clock` is monotonic.
    """
    until = clock() + window
    while remaining := left():
        time = until - clock()
        steps = max(1, int(time / STEP))
        end(remaining[: -(-len(remaining) // steps)])
        await asyncio.sleep(min(STEP, max(time, 0.0)))
