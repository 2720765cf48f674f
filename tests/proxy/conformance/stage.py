"""Two ends of a gateway in one thread: a client of it, and the backend behind it. Both are bare sockets.

Nobody waits for anything but what a case expects: each wait ends with a condition, and all sockets are served meanwhile, so
that bodies of any size flow through. `paused` ends do not read.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from livegateway import Background

DEADLINE = 20.0
_AT_ONCE = 2**18
_RELUCTANT = 0.5
_CONNECTIONS = Path("/proc/net/tcp")
_RESET = struct.pack("ii", 1, 0)


class End:
    """One end of a connection; `ended`: the other side has ended it, `cut` if by a reset."""

    def __init__(self, connection: socket.socket) -> None:
        # Small, so that a side that does not read is soon noticed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self.socket = connection
        self.received: bytes | bytearray = bytearray()
        self.sent = 0
        self.unsent = b""
        self.ended = self.cut = self.paused = self.closed = False
        self._new = True
        self._seen_from_there = tuple(_in_table(address) for address in (connection.getpeername(), connection.getsockname()))

    def read(self) -> None:
        """Take what has come."""
        try:
            data = self.socket.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except ConnectionError:
            self.ended = self.cut = True
            return
        self.ended = not data
        self.received += data

    def write(self) -> None:
        """Send what can be sent."""
        try:
            count = self.socket.send(self.unsent[:_AT_ONCE])
        except BlockingIOError:
            return
        except ConnectionError:
            self.ended = self.cut = True
            self.unsent = b""
            return
        self.sent += count
        self.unsent = self.unsent[count:]

    def untaken(self) -> bool:
        """Tell whether the other side has not read anything yet, where the system tells (Linux)."""
        if not self._new or not _CONNECTIONS.exists():
            return False
        for line in _CONNECTIONS.read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if (local, remote) == self._seen_from_there:
                self._new = int(queues.partition(":")[2], 16) > 0
                return self._new
        self._new = False
        return False

    def close(self, *, reset: bool = False) -> None:
        """Close it."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.closed = True
        self.socket.close()


def _in_table(address: tuple[str, int]) -> str:
    """Write an IPv4 address as the system's table of connections does."""
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


class Stage:
    """A client's connection to a gateway and the connections that the gateway makes to `listener`; a context manager."""

    def __init__(self, gateway: Background, listener: socket.socket) -> None:
        self._gateway = gateway
        self._listener = listener
        self.client = self._connected()
        self.clients = [self.client]
        self.backends: list[End] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.clients, *self.backends):
            end.close()

    def again(self) -> None:
        """Come as another client."""
        self.client = self._connected()
        self.clients.append(self.client)

    def _connected(self) -> End:
        return End(socket.create_connection(("127.0.0.1", self._gateway.port), timeout=DEADLINE))

    # --- waiting ---

    def until(self, condition: Callable[[], object], what: str, *, deadline: float = DEADLINE) -> None:
        """Serve all ends until a condition holds."""
        overdue = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < overdue, f"not so in time: {what}"
            self._serve(0.005)

    def settle(self) -> None:
        """Have the gateway take all that was sent: once around its loop, and once more for what that began.

        A new connection waits until it is let in: so first until nothing is left to read of what came over it, if it is read.
        """
        overdue = time.monotonic() + _RELUCTANT
        while self.client.untaken() and time.monotonic() < overdue:
            time.sleep(0.001)
        for _ in range(2):
            turned = threading.Event()
            self._gateway._loop.call_soon_threadsafe(turned.set)
            turned.wait(DEADLINE)

    def flow(self, seconds: float) -> None:
        """Serve all ends until nothing has moved for so long; 0: once."""
        self._serve(0)
        moved, since = -1, time.monotonic()
        while time.monotonic() - since < seconds:
            self._serve(0.02)
            now = sum(end.sent + len(end.received) for end in (*self.clients, *self.backends))
            if now != moved:
                moved, since = now, time.monotonic()

    def _serve(self, timeout: float) -> None:
        ends = [end for end in (*self.clients, *self.backends) if not end.closed]
        reading = {end.socket: end for end in ends if not end.ended and not end.paused}
        writing = {end.socket: end for end in ends if end.unsent}
        readable, writable, _ = select.select([self._listener, *reading], list(writing), [], timeout)
        for one in readable:
            if one is self._listener:
                with contextlib.suppress(BlockingIOError):
                    self.backends.append(End(self._listener.accept()[0]))
            else:
                reading[one].read()
        for one in writable:
            writing[one].write()

    # --- sending ---

    def send(self, end: End, data: bytes, *, cut: int | None = None, wait: bool = True) -> None:
        """Send bytes, `cut` into pieces of this size that come in one by one."""
        if cut is None:
            end.unsent += data
            if wait:
                self.until(lambda: not end.unsent, "all is sent")
            return
        size = max(cut, len(data) // 100)
        for start in range(0, len(data), size):
            if end.ended or end.closed:
                return
            end.unsent += data[start : start + size]
            self.until(lambda: not end.unsent, "a piece is sent")
            self.settle()
            self._serve(0)
