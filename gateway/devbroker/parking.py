"""Where fetches wait for data: by topic and partition, woken by whatever changes one of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection

Place = tuple[str, int]


class Parking:
    """Parked fetches. A wake-up carries nothing: whoever is woken reads again."""

    def __init__(self) -> None:
        self._parked: defaultdict[Place, set[asyncio.Future[None]]] = defaultdict(set)
        self._noticed: set[asyncio.Future[None]] = set()

    def wake(self, topic: str, partition: int) -> None:
        """Wake the fetches that wait for a partition."""
        for waiter in self._parked.get((topic, partition), ()):
            _resolve(waiter)

    def wake_all(self) -> None:
        """Wake every fetch."""
        for waiters in list(self._parked.values()):
            for waiter in waiters:
                _resolve(waiter)

    def count(self, topic: str, partition: int) -> int:
        """Return how many fetches are parked on a partition."""
        return sum(not waiter.done() for waiter in self._parked.get((topic, partition), ()))

    async def wait(self, places: Collection[Place], seconds: float, gone: asyncio.Future[None]) -> None:
        """Park until one of the places changes, the time is over, or the peer is `gone`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for place in places:
            self._parked[place].add(waiter)
        for observer in self._noticed:
            _resolve(observer)
        try:
            await asyncio.wait([waiter, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            for place in places:
                self._leave(place, waiter)

    def _leave(self, place: Place, waiter: asyncio.Future[None]) -> None:
        self._parked[place].discard(waiter)
        if not self._parked[place]:
            del self._parked[place]

    async def until_parked(self, topic: str, partition: int, count: int = 1) -> None:
        """Wait until so many fetches are parked on a partition."""
        while self.count(topic, partition) < count:
            observer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._noticed.add(observer)
            try:
                await observer
            finally:
                self._noticed.discard(observer)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
