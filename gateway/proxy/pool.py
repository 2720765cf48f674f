"""Connections to the targets of all upstreams, kept open between exchanges.

The newest idle connection is taken first, so that a burst's others grow old and are closed. A kept connection may be closed by
its target at the moment when it is taken: whoever sends on it has to be ready to try again on a new one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable

from gateway.errors import Overloaded
from gateway.proxy.connection import Connection, TargetFailed, TargetTimedOut

TICK = 0.1
"""Seconds between two looks at the clocks of connections."""

_FEW = 256
_LOOKS = 10
# The process or the system has no room for another connection, whoever it is to.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# While a stream of events or a tunnel is silent nothing is in flight that could fail: probes find out.
_PROBES = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # the names are Linux's
}


class Pool:
    """Connections to one upstream's targets, by address (`host:port`).

    At most `idle` unused ones are kept for each target, for `keepalive` seconds. `tls` None: plain TCP.
    """

    def __init__(
        self,
        *,
        idle: int,
        keepalive: float,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._most = idle
        self._keepalive = keepalive
        self._tls = tls
        self._server_name = server_name
        self._idle: dict[str, list[Connection]] = {}
        self._open: dict[Connection, str] = {}
        self._unseen: list[Connection] = []

    def __repr__(self) -> str:
        idle = self.idle
        return f"<Pool {idle} idle, {len(self._open) - idle} busy>"

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """How many connections are kept without a use."""
        return sum(map(len, self._idle.values()))

    def take(self, address: str) -> Connection | None:
        """Return a kept connection, the newest; None if there is none."""
        kept = self._idle.get(address)
        while kept:
            connection = kept.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, address: str, within: float) -> Connection:
        """Open a connection within so many seconds; TargetFailed, TargetTimedOut; Overloaded where this process has no room."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            async with asyncio.timeout(within):
                transport, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self._lost),
                    host,
                    int(port),
                    ssl=self._tls,
                    server_hostname=(self._server_name or host) if self._tls is not None else None,
                )
        except TimeoutError as error:
            raise TargetTimedOut("no connection in time", sent=False) from error
        except OSError as error:  # also TLS's
            if error.errno in _NO_ROOM:
                raise Overloaded(bound="sockets") from error
            raise TargetFailed(f"no connection: {error.strerror or type(error).__name__}", sent=False) from error
        _watch(transport.get_extra_info("socket"))
        self._open[connection] = address
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next exchange, or close it if it is not good for one or too many are kept."""
        address = self._open.get(connection)
        if address is None or connection.transport is None:
            return
        kept = self._idle.setdefault(address, [])
        if connection.busy or not connection.reusable or len(kept) >= self._most:
            connection.abort() if connection.busy else connection.transport.close()
            return
        connection.idle_since = self._clock()
        kept.append(connection)

    def forget(self, address: str) -> None:
        """Close what is kept for a target that is gone or sick."""
        for connection in self._idle.pop(address, ()):
            connection.abort()

    async def run(self) -> None:
        """Watch the clocks, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.tick()

    def tick(self) -> None:
        """End what is overdue, and close what nobody has used for long."""
        now = self._clock()
        for connection in self._some():
            connection.tick(now)
        for address, kept in list(self._idle.items()):
            old = now - self._keepalive
            stale = [connection for connection in kept if connection.idle_since < old]
            for connection in stale:
                kept.remove(connection)
                connection.abort()
            if not kept:
                del self._idle[address]

    def _some(self) -> list[Connection]:
        """Return the connections that are looked at now: all, or of many a tenth, each once a second."""
        if len(self._open) <= _FEW:
            return list(self._open)
        if not self._unseen:
            self._unseen = list(self._open)
        share = len(self._open) // _LOOKS + 1
        some = self._unseen[-share:]
        del self._unseen[-share:]
        return some

    def close(self) -> None:
        """Close all connections."""
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()

    def _lost(self, connection: Connection) -> None:
        address = self._open.pop(connection, None)
        kept = self._idle.get(address) if address is not None else None
        if kept and connection in kept:
            kept.remove(connection)


def _watch(connected: socket.socket) -> None:
    """Have the system find out if the other end vanishes."""
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES.items():
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # it is closed already, which whoever uses it will see
