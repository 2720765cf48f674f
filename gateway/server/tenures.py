"""What is held open for somebody, and ends with his token: at its expiry, or when its key is withdrawn; or with this process.

Authentication does not end at the door. A request that is answered at once needs nothing of this; a long poll, a stream of
events and a connection that has switched protocols would else go on for as long as both ends like.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from gateway.auth.principal import KeyRef, Principal
from gateway.draining import spread
from gateway.errors import Draining, GatewayError, TokenExpired, TokenRevoked

SLICE = 200
"""How many end in one turn of the loop."""

End = Callable[[GatewayError], None]


@final
class Tenure:
    """One thing that is held; `close` it when it has ended by itself."""

    __slots__ = ("_close", "_end", "endless", "timer")

    def __init__(self, end: End, close: Callable[[Tenure], None], *, endless: bool) -> None:
        self.endless = endless
        self._end: End | None = end
        self._close = close
        self.timer: asyncio.TimerHandle | None = None

    def end(self, error: GatewayError) -> None:
        """End it; nothing happens if it has ended."""
        end = self._end
        self.close()
        if end is not None:
            end(error)

    def close(self) -> None:
        """Forget it; may be repeated."""
        self._end = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._close(self)


@final
class Tenures:
    """All that is held, by the keys that vouch for it. `unix_clock` gives Unix seconds.

    `withdrawals` counts; whoever identified somebody when it was `since` may have been overtaken by a withdrawal.
    """

    def __init__(self, *, unix_clock: Callable[[], float] = time.time) -> None:
        self._unix_clock = unix_clock
        self._held: dict[KeyRef | None, set[Tenure]] = {}
        self._withdrawn: dict[KeyRef, int] = {}
        self._ending: deque[Tenure] = deque()
        self.withdrawals = 0

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __repr__(self) -> str:
        return f"<Tenures of {len(self)}>"

    def check(self, principal: Principal | None, since: int) -> None:
        """Raise TokenRevoked or TokenExpired for a principal whose token is good no more; None: nobody known."""
        if principal is None:
            return
        if principal.key is not None and self._withdrawn.get(principal.key, 0) > since:
            raise TokenRevoked
        if principal.expires_at is not None and principal.expires_at <= self._unix_clock():
            raise TokenExpired

    def begin(self, principal: Principal | None, end: End, *, within: float = math.inf) -> Tenure:
        """Note what is held, `check` having passed; `end` is called at most once. By itself it ends `within` seconds."""
        key = None if principal is None else principal.key
        held = self._held.setdefault(key, set())

        def close(tenure: Tenure) -> None:
            held.discard(tenure)
            if not held and self._held.get(key) is held:
                del self._held[key]

        tenure = Tenure(end, close, endless=within == math.inf)
        held.add(tenure)
        left = math.inf if principal is None or principal.expires_at is None else principal.expires_at - self._unix_clock()
        if left < within:
            tenure.timer = asyncio.get_running_loop().call_later(max(left, 0.0), tenure.end, TokenExpired())
        return tenure

    @contextmanager
    def bounding(self, principal: Principal | None, since: int, *, within: float = math.inf) -> Iterator[None]:
        """End what the current task does in here with TokenRevoked, TokenExpired or Draining when it is time."""
        self.check(principal, since)
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("only a task can be ended")
        before = task.cancelling()
        told: list[GatewayError] = []

        def end(error: GatewayError) -> None:
            told.append(error)
            task.cancel()

        tenure = self.begin(principal, end, within=within)
        try:
            yield
        except asyncio.CancelledError as cancelled:
            if told and task.uncancel() <= before:
                raise told[0] from cancelled
            raise
        finally:
            tenure.close()

    def withdraw(self, key: KeyRef) -> None:
        """End all that a key has vouched for, some in each turn of the loop."""
        self.withdrawals += 1
        self._withdrawn[key] = self.withdrawals
        waiting = bool(self._ending)
        self._ending.extend(self._held.get(key, ()))
        if self._ending and not waiting:
            self._end_some()

    async def drain(self, window: float) -> None:
        """End what would not end by itself with Draining, spread evenly over `window` seconds."""

        def endless() -> list[Tenure]:
            return [tenure for tenures in self._held.values() for tenure in tenures if tenure.endless]

        def end(some: Sequence[Tenure]) -> None:
            for tenure in some:
                tenure.end(Draining())

        await spread(endless, end, window, clock=asyncio.get_running_loop().time)

    def _end_some(self) -> None:
        for _ in range(min(SLICE, len(self._ending))):
            self._ending.popleft().end(TokenRevoked())
        if self._ending:
            asyncio.get_running_loop().call_soon(self._end_some)
