"""A new connection until its first bytes, which tell whose it becomes.

After a storm each client comes back over a new connection with the head that it had before. What is armed (see `arming`) needs
no framework: the connection begins as a lane. Any other is aiohttp's, as if it had been from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.server.departure import hand_on

Maker = Callable[[], asyncio.Protocol]
Take = Callable[[asyncio.Transport, bytes, Maker], bool]
"""Make a lane of a connection that sent this, and tell whether it did; what makes aiohttp's protocols is for later replays."""


class Arrivals:
    """Makes the protocols of a listener. Who sends nothing for `patience` seconds is dropped."""

    def __init__(self, make: Maker, take: Take, *, patience: float) -> None:
        self.make = make
        self.take = take
        self.patience = patience
        self.waiting: set[asyncio.Transport] = set()

    def __repr__(self) -> str:
        return f"<Arrivals, {len(self.waiting)} without a byte>"

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return _Arrival(self)

    def close(self) -> None:
        """Drop those that have not sent anything: nobody else knows them."""
        for transport in list(self.waiting):
            transport.abort()


class _Arrival(asyncio.Protocol):
    __slots__ = ("_arrivals", "_timer", "_transport")

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._arrivals.waiting.add(self._transport)
        self._timer = asyncio.get_running_loop().call_later(self._arrivals.patience, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._stop_waiting()
        arrivals, transport = self._arrivals, self._transport
        if not arrivals.take(transport, data, arrivals.make):
            hand_on(transport, arrivals.make(), data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self._arrivals.waiting.discard(self._transport)
        self._timer.cancel()
