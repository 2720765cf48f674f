"""Two connections joined after 101 Switching Protocols: what comes in on one goes out on the other, unread.

Each end stops reading while the other cannot write, and half-closes with it (RFC 9110 §7.8, RFC 6455 §1.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Tunnel:
    """The pair; `on_end` is called once, when both connections are gone."""

    def __init__(self, on_end: Callable[[Tunnel], None]) -> None:
        self._on_end = on_end
        self._open = 2
        self.client = End(self)
        self.target = End(self)
        self.client.other, self.target.other = self.target, self.client

    def __repr__(self) -> str:
        return f"<Tunnel {self._open} ends, {self.client.received} bytes up, {self.target.received} down>"

    def join(self, client: asyncio.Transport, target: asyncio.Transport, *, up: bytes = b"", down: bytes = b"") -> None:
        """Begin. `up` and `down` are bytes that had been received before, from the client and from the target."""
        for end, transport in ((self.client, client), (self.target, target)):
            end.transport = transport
            transport.set_protocol(end)
        if up:
            self.client.data_received(up)
        if down:
            self.target.data_received(down)
        for transport in (client, target):
            if transport.is_closing():
                self.abort()
                return
            if not transport.is_reading():
                transport.resume_reading()

    def abort(self) -> None:
        """Close both ends at once."""
        for end in (self.client, self.target):
            if end.transport is not None:
                end.transport.abort()

    def lost(self) -> None:
        """Count an end that is gone."""
        self._open -= 1
        if self._open == 0:
            self._on_end(self)


class End(asyncio.Protocol):
    """One end; `received` counts its bytes."""

    other: End

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self._ended = False

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self.received += len(data)
        transport = self.other.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def eof_received(self) -> bool:
        """Pass on, and keep the other direction open as long as it is in use."""
        self._ended = True
        transport = self.other.transport
        if self.other._ended or transport is None or transport.is_closing() or not transport.can_write_eof():  # noqa: SLF001
            return False
        transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """Have the other end read no more."""
        transport = self.other.transport
        if transport is not None and not transport.is_closing() and transport.is_reading():
            transport.pause_reading()

    def resume_writing(self) -> None:
        """Have the other end read on."""
        transport = self.other.transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002  # the base class has it
        """Close the other end, once all is written."""
        self.transport = None
        if self.other.transport is not None:
            self.other.transport.close()
        self._tunnel.lost()
