"""A bad network on purpose: what a client asks goes to one of several instances over connections that drop, stall and are cut.

`Path` is one client's way, with the instances behind it taken in turn as a load balancer does. `Mischief` keeps one fault after
the other on it, chosen by seeded random numbers, so that a run can be repeated as far as time allows.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from tcpproxy import TcpProxy

PAUSE_SECONDS = 0.2, 1.5
"""The least and the most between two faults."""

FAULT_SECONDS = 0.1, 2.0
LONG_STALL_SECONDS = 7.0
"""Longer than a client waits for the rest of an answer; now and then."""

MOST_BYTES = 4_000
"""A cut comes at the latest after so many."""


class Path(TcpProxy):
    """A way to several instances: each connection goes to the next one that takes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__("127.0.0.1", ports[0])
        self._ports = list(ports)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the next instance; OSError if none is there."""
        for _ in self._ports[1:]:
            self._ports.append(self._ports.pop(0))
            try:
                return await asyncio.open_connection("127.0.0.1", self._ports[0])
            except OSError:
                continue
        self._ports.append(self._ports.pop(0))
        return await asyncio.open_connection("127.0.0.1", self._ports[0])


class Mischief:
    """Paths with faults, on a thread of their own; a context manager. `faults`: how many there were, by kind."""

    def __init__(self, ports: Sequence[int], names: Sequence[str], seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self._paths = {name: Path(ports) for name in names}
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mischief")
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def port(self, name: str) -> int:
        """Return the port of the path with this name."""
        return self._paths[name].port

    def begin(self) -> None:
        """Begin with the faults."""
        self._do(self._begin)

    def end(self) -> None:
        """Heal all paths."""
        self._do(self._end)

    def _do(self, what: Callable[[], object]) -> None:
        async def call() -> None:
            done = what()
            if asyncio.iscoroutine(done):
                await done

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    async def _open(self) -> None:
        for path in self._paths.values():
            await path.open()

    def _begin(self) -> None:
        self._tasks = [self._loop.create_task(self._trouble(path)) for path in self._paths.values()]

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for path in self._paths.values():
            path.heal()

    async def _close(self) -> None:
        await self._end()
        for path in self._paths.values():
            await path.close()

    async def _trouble(self, path: Path) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))
            fault = self._random.choice((self._reset, self._drop, self._stall, self._cut_down, self._cut_up))
            self.faults[fault.__name__.strip("_")] += 1
            await fault(path)

    async def _reset(self, path: Path) -> None:
        path.reset()

    async def _drop(self, path: Path) -> None:
        path.drop()
        await self._last(path)

    async def _stall(self, path: Path) -> None:
        path.stall()
        await self._last(path, LONG_STALL_SECONDS if self._random.random() < 0.1 else 0.0)

    async def _cut_down(self, path: Path) -> None:
        path.cut_after(self._random.randint(1, MOST_BYTES), "down")
        await self._last(path)

    async def _cut_up(self, path: Path) -> None:
        path.cut_after(self._random.randint(1, MOST_BYTES), "up")
        await self._last(path)

    async def _last(self, path: Path, seconds: float = 0.0) -> None:
        await asyncio.sleep(seconds or self._random.uniform(*FAULT_SECONDS))
        path.heal()
