"""Misbehaviour on demand: which request is dropped, stalled, refused or slowed (shared by all nodes).

A fault matches by api, topic and partition; None matches everything. A fault with a topic matches a request that names that
topic, one with a partition a request that names that partition of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Literal, Self

from gateway.devbroker.schemas import Api

Kind = Literal["drop", "lose", "stall", "error", "slow"]
Place = tuple[str | None, int | None]


class Fault:
    """One fault that is on. `hits` counts what it has met; also a context manager that removes it at the end."""

    def __init__(
        self,
        faults: Faults,
        kind: Kind,
        *,
        api: Api | None,
        topic: str | None,
        partition: int | None,
        node: int | None,
        times: int | None,
        code: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.kind = kind
        self.api = api
        self.topic = topic
        self.partition = partition
        self.node = node
        self.left = times
        self.code = code
        self.seconds = seconds
        self.hits = 0
        self._faults = faults
        self._released = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        api = "any" if self.api is None else self.api.name
        return f"<Fault {self.kind} {api} {self.topic}/{self.partition} {self.hits} hits>"

    def remove(self) -> None:
        """Switch the fault off; what it stalls goes on. Also when it is off already."""
        self._released.set()
        self._faults.discard(self)

    release = remove

    def matches(self, kind: Kind, api: Api, node: int, places: Collection[Place]) -> bool:
        """Tell whether a request at a node that names these places meets the fault."""
        if self.kind != kind or self.api not in (None, api) or self.node not in (None, node):
            return False
        if self.topic is None and self.partition is None:
            return True
        return any(self.topic in (None, topic) and self.partition in (None, index) for topic, index in places)

    def count(self) -> None:
        """Note a hit; the last of `times` switches the fault off."""
        self.hits += 1
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self._faults.discard(self)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def hit(self, times: int = 1) -> None:
        """Wait until the fault has met so many requests."""
        while self.hits < times:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    async def wait_released(self) -> None:
        """Wait until the fault is removed."""
        await self._released.wait()


class Faults:
    """The faults of a broker. `changed` is called when one is added or removed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._faults: list[Fault] = []

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        self._changed()
        return fault

    def drop(
        self,
        api: Api | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
        node: int | None = None,
        times: int | None = 1,
        processed: bool = False,
    ) -> Fault:
        """Close the connection instead of answering; `processed`: after the request took effect (a lost answer)."""
        kind: Kind = "lose" if processed else "drop"
        return self._add(Fault(self, kind, api=api, topic=topic, partition=partition, node=node, times=times))

    def stall(
        self,
        api: Api | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
        node: int | None = None,
    ) -> Fault:
        """Do not answer until the fault is removed, nor whatever follows on the same connection."""
        return self._add(Fault(self, "stall", api=api, topic=topic, partition=partition, node=node, times=None))

    def error(
        self,
        code: int,
        api: Api | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
        node: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Answer with an error code, and without effect, for what matches, `times` times or until removed."""
        return self._add(Fault(self, "error", api=api, topic=topic, partition=partition, node=node, times=times, code=code))

    def slow(
        self,
        seconds: float,
        api: Api | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
        node: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Wait before a request is processed."""
        return self._add(
            Fault(self, "slow", api=api, topic=topic, partition=partition, node=node, times=times, seconds=seconds)
        )

    def clear(self) -> None:
        """Remove all faults."""
        for fault in list(self._faults):
            fault.remove()

    def discard(self, fault: Fault) -> None:
        """Forget one fault."""
        if fault in self._faults:
            self._faults.remove(fault)
            self._changed()

    def find(self, kind: Kind, api: Api, node: int, places: Collection[Place] = ()) -> Fault | None:
        """Return the oldest fault that matches, without counting a hit."""
        return next((fault for fault in self._faults if fault.matches(kind, api, node, places)), None)

    def code(self, api: Api, node: int, topic: str | None, partition: int | None) -> int:
        """Return the error code that is due here, 0 for none, and count the hit."""
        fault = self.find("error", api, node, [(topic, partition)])
        if fault is None:
            return 0
        fault.count()
        return fault.code
