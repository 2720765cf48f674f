"""The bound on what one upstream is given at a time, with a short queue before it.

Working exchanges beyond `concurrent` wait in the order in which they came, at most `queue` of them and `queue_timeout`
seconds each: a burst of a second is smoothed, a longer overload is refused, for work that waits longer is work whose client
may have left. Held exchanges do not wait, since places among them become free in minutes. A place that is left goes to the
first in the queue directly, so nobody who comes then is faster.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import final

from gateway.errors import Overloaded


@final
class Turnstile:
    """Counts working and held exchanges of the upstream `name`. Each `enter` that returns has exactly one `leave`."""

    def __init__(self, name: str, *, concurrent: int, held: int, queue: int, queue_timeout: float) -> None:
        if concurrent < 1 or held < 0 or queue < 0 or queue_timeout <= 0:
            raise ValueError("expected at least one concurrent exchange and a queue_timeout above 0 seconds")
        self.working = 0
        self.held = 0
        self._name = name
        self._concurrent = concurrent
        self._most_held = held
        self._queue = queue
        self._queue_timeout = queue_timeout
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Turnstile {self._name} {self.working} working, {self.held} held, {self.queued} queued>"

    @property
    def queued(self) -> int:
        """Exchanges that wait."""
        return len(self._waiting)

    def enter_at_once(self) -> bool:
        """Take a place of a working exchange if that needs no waiting; tell whether it did."""
        if self.working >= self._concurrent:
            return False
        self.working += 1
        return True

    async def enter(self, held: bool) -> None:
        """Take a place, after waiting for it if need be; raise Overloaded where there is none."""
        if held:
            self._take_held()
        elif not self.enter_at_once():
            await self._wait()

    def hold(self) -> None:
        """Turn a working exchange into a held one; raise Overloaded, and it is still working, where too many are held."""
        self._take_held()
        self.leave(held=False)

    def leave(self, held: bool) -> None:
        """Give a place back."""
        if (self.held if held else self.working) < 1:
            raise AssertionError("left a place that was not taken")
        if held:
            self.held -= 1
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else its waiter was cancelled, and has not had its turn of the loop since
                place.set_result(None)
                return
        self.working -= 1

    def _take_held(self) -> None:
        if self.held >= self._most_held:
            raise self._overloaded()
        self.held += 1

    async def _wait(self) -> None:
        if len(self._waiting) >= self._queue:
            raise self._overloaded()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._queue_timeout):
                await self._granted(place)
        except TimeoutError as error:
            raise self._overloaded() from error

    async def _granted(self, place: asyncio.Future[None]) -> None:
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.leave(held=False)  # it was granted in the same turn of the loop in which its waiter gave up
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _overloaded(self) -> Overloaded:
        return Overloaded(retry_after=1.0, bound=f"upstream:{self._name}")
