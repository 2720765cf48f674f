"""Time that stands still until a test lets it pass."""

from __future__ import annotations

import asyncio

from waiting import eventually


class Time:
    """A clock (call it) and the pauses that end by it; `delays` has all that were asked for."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.delays: list[float] = []
        self._pauses: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.delays.append(seconds)
        future = asyncio.get_running_loop().create_future()
        self._pauses.append((self.now + seconds, future))
        try:
            await future
        finally:
            self._pauses = [pause for pause in self._pauses if pause[1] is not future]

    @property
    def pausing(self) -> int:
        return sum(not future.done() for _, future in self._pauses)

    async def pass_time(self, seconds: float, *, pausing: int) -> None:
        """Let time pass, and wait until so many pauses are under way again."""
        self.now += seconds
        for due, future in self._pauses:
            if due <= self.now and not future.done():
                future.set_result(None)
        await eventually(lambda: self.pausing == pausing)
