"""Parked polls of this process: waking them in slices, at their time, and when the process ends.

The hub decides who wakes; here is what needs a loop. A slice wakes a bounded number of waiters and lets the loop turn, so that
a broadcast to many thousands delays nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.auth.principal import KeyRef, Principal
from gateway.draining import spread
from gateway.fanout.hub import TICK, Hub, Interest, Waiter, Why

SLICE = 200
REVOKED: Why = "revoked"
DRAINED: Why = "drained"
EXPIRED: Why = "expired"


class Poll(Waiter):
    """A poll that waits on a future."""

    __slots__ = ("future", "principal")

    def __init__(
        self,
        interests: tuple[Interest, ...],
        labels: tuple[str, ...],
        principal: Principal,
        future: asyncio.Future[None],
    ) -> None:
        super().__init__(interests, labels)
        self.principal = principal
        self.future = future

    def wake(self) -> None:
        """Let the handler go on; a handler that was cancelled meanwhile is left alone."""
        if not self.future.done():
            self.future.set_result(None)


class Parking:
    """Wakes what the hub collects; `run` is its clock and has to run while polls are parked."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hub: Hub | None = None
        self._scheduled = False
        self.draining = False
        self.withdrawals = 0
        self._withdrawn: set[KeyRef] = set()

    def __repr__(self) -> str:
        return f"<Parking of {self._hub!r}{' draining' if self.draining else ''}>"

    def attach(self, hub: Hub) -> None:
        """Take the hub whose `on_woken` is `woken`."""
        self._hub = hub

    @property
    def hub(self) -> Hub:
        """The hub."""
        if self._hub is None:
            raise AssertionError("attach comes first")
        return self._hub

    def woken(self) -> None:
        """Schedule a slice; called by the hub when its queue of woken waiters begins to fill."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        self._scheduled = False
        waiters = self.hub.take(SLICE)
        if len(waiters) == SLICE:
            self.woken()
        for waiter in waiters:
            waiter.wake()

    async def run(self) -> None:
        """End the polls whose time is over, once a tick, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.hub.expire(self._clock())

    def withdraw(self, key: KeyRef) -> None:
        """End the polls of tokens that a withdrawn key has signed."""
        self.withdrawals += 1
        self._withdrawn.add(key)
        self.hub.end(
            [w for w in self.hub.waiters() if isinstance(w, Poll) and w.principal.key == key],
            REVOKED,
        )

    def is_withdrawn(self, principal: Principal, since: int) -> bool:
        """Tell whether a principal's key may have been withdrawn since `withdrawals` was `since`.

        A poll that was identified before a withdrawal and parks after it would be overlooked by `withdraw`.
        """
        return self.withdrawals != since and principal.key in self._withdrawn

    async def drain(self, window: float) -> None:
        """End all parked polls, spread evenly over `window` seconds, so that their clients do not return in one storm.

        From now on nothing parks any more (`draining`).
        """
        self.draining = True
        await spread(self.hub.waiters, lambda waiters: self.hub.end(waiters, DRAINED), window, clock=self._clock)
        await asyncio.sleep(0)
