"""How late the event loop runs what is due: the first sign of a process that has too much to do.

A probe sleeps and looks at the clock. It uses a clock of its own, for uvloop's `loop.time()` stands still within one turn of
the loop and counts whole milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class LoopLag:
    """The probe; run it as a task. `observe` gets the lag in seconds, every `interval` seconds (plus the lag)."""

    def __init__(
        self,
        observe: Callable[[float], None],
        *,
        interval: float = 0.25,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._observe = observe
        self._interval = interval
        self._clock = clock

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._clock() + self._interval
            await asyncio.sleep(self._interval)
            self._observe(max(self._clock() - due, 0.0))
