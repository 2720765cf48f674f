"""How a stop gets through to a subscription that waits: from another thread, from a signal handler, in the midst of a read.

An event loop can break off whatever it waits for. A thread cannot be interrupted in a socket's `recv`, so the sync client waits
for two things at once: its socket, and a pipe that `set` writes to. httpcore lets one say how bytes are read: `_WakingStream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

KEEP_ALIVE_SECONDS = 60.0
"""An idle connection is used again for so long: the gateway keeps it for 75."""


class AsyncInterrupt:
    """The stop of one async subscription; a context manager around what a stop is to break off."""

    def __init__(self) -> None:
        self.stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: asyncio.Timeout | None = None

    def set(self) -> None:
        """Stop; from any thread, or a signal handler."""
        self.stopping = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits there any more
                self._loop.call_soon_threadsafe(self._fire)

    def _fire(self) -> None:
        if self._scope is not None and self._loop is not None:
            self._scope.reschedule(self._loop.time())

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)
        await scope.__aenter__()
        self._scope = scope
        if self.stopping:
            self._fire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        scope, self._scope = self._scope, None
        if scope is None:
            raise AssertionError("it was entered")
        try:
            await scope.__aexit__(kind, error, trace)
        except TimeoutError:
            if not scope.expired() or not self.stopping:
                raise
            return True
        return None

    async def sleep(self, seconds: float) -> None:
        """Wait, and no longer than that."""
        await asyncio.sleep(seconds)

    def transport(self, context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
        """Return what requests go over."""
        return httpx.AsyncHTTPTransport(verify=context, limits=_limits())

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class Interrupt:
    """The stop of one sync subscription; a context manager around what a stop is to break off."""

    def __init__(self) -> None:
        self.stopping = False
        self._lock = threading.Lock()
        self._hears, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._closed = False

    def set(self) -> None:
        """Stop; from any thread, or a signal handler."""
        self.stopping = True
        with contextlib.suppress(OSError):  # full, or closed: whoever waits is awake
            self._wakes.send(b"\0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def sleep(self, seconds: float) -> None:
        """Wait until then, or until it is set."""
        if not self.stopping:
            _ready({self._hears: selectors.EVENT_READ}, seconds)

    def wait(self, connection: socket.socket, seconds: float | None, *, to_write: bool) -> bool:
        """Wait until a socket can be read from, or written to; False after so many seconds. Stops with InterruptedError."""
        if self.stopping:
            raise InterruptedError("stopped")
        wanted = {self._hears: selectors.EVENT_READ, connection: selectors.EVENT_WRITE if to_write else selectors.EVENT_READ}
        ready = _ready(wanted, seconds)
        if self._hears in ready:
            raise InterruptedError("stopped")
        return bool(ready)

    def transport(self, context: ssl.SSLContext) -> httpx.BaseTransport:
        """Return what requests go over."""
        return _WakingTransport(context, self)

    def close(self) -> None:
        """Give back the pipe."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._hears.close()
                self._wakes.close()


# select() knows no descriptor beyond 1,023; poll() is not everywhere.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


def _ready(wanted: Mapping[socket.socket, int], seconds: float | None) -> list[object]:
    """Wait until one of some sockets is ready for what is wanted of it; return those that are, empty after so many seconds."""
    with _Selector() as selector:
        for each, events in wanted.items():
            selector.register(each, events)
        return [key.fileobj for key, _ in selector.select(seconds)]


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE_SECONDS)


class _WakingTransport(httpx.HTTPTransport):
    """httpx's transport over sockets that `interrupt` wakes."""

    def __init__(self, context: ssl.SSLContext, interrupt: Interrupt) -> None:
        super().__init__(verify=context, limits=_limits())
        self._pool.close()
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_keepalive_connections=1,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
            network_backend=_WakingBackend(interrupt),
        )


class _WakingBackend(httpcore.NetworkBackend):
    """Connects, and can be woken meanwhile; only the resolver of names cannot."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002  # httpcore's signature
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Return a connection to the first address that takes it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        failure: Exception = httpcore.ConnectError(f"no address of {host}")
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        for family, kind, protocol, _, address in addresses:
            connection = socket.socket(family, kind, protocol)
            try:
                self._connect(connection, address, deadline)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _WakingStream(connection, self._interrupt)
            except (OSError, httpcore.ConnectTimeout) as error:
                connection.close()
                failure = error if isinstance(error, httpcore.ConnectTimeout) else httpcore.ConnectError(str(error))
        raise failure

    def _connect(self, connection: socket.socket, address: Any, deadline: float | None) -> None:
        connection.setblocking(False)
        try:
            connection.connect(address)
        except BlockingIOError:
            if not self._interrupt.wait(connection, _left(deadline), to_write=True):
                raise httpcore.ConnectTimeout("no connection in time") from None
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "the connection was refused or broke off")

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._interrupt.sleep(seconds)


class _WakingStream(httpcore.NetworkStream):
    """A connection, plain or TLS, that does not block but waits where it can be woken."""

    def __init__(self, connection: socket.socket, interrupt: Interrupt) -> None:
        self._socket = connection
        self._interrupt = interrupt

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, of at most so many bytes; empty at the end."""
        received: bytes = self._tried(lambda: self._socket.recv(max_bytes), timeout, httpcore.ReadTimeout, httpcore.ReadError)
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        rest = memoryview(buffer)
        while rest:
            sent = self._tried(
                lambda part=rest: self._socket.send(part), timeout, httpcore.WriteTimeout, httpcore.WriteError, to_write=True
            )
            rest = rest[sent:]

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the same connection with TLS on it."""
        try:
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname, do_handshake_on_connect=False)
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        stream = _WakingStream(secured, self._interrupt)
        try:
            stream._tried(secured.do_handshake, timeout, httpcore.ConnectTimeout, httpcore.ConnectError)  # its own kind
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Tell what httpcore asks for."""
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        if info == "socket":
            return self._socket
        if info == "is_readable":
            return bool(_ready({self._socket: selectors.EVENT_READ}, 0))
        return {"client_addr": self._socket.getsockname, "server_addr": self._socket.getpeername}.get(info, lambda: None)()

    def _tried(
        self,
        attempt: Any,
        timeout: float | None,
        late: type[Exception],
        broken: type[Exception],
        *,
        to_write: bool = False,
    ) -> Any:
        """Return what an attempt that would not block gives, as soon as there is something."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                try:
                    return attempt()
                except ssl.SSLWantWriteError:
                    waits_to_write = True
                except (BlockingIOError, ssl.SSLWantReadError) as error:
                    waits_to_write = to_write and not isinstance(error, ssl.SSLWantReadError)
                if not self._interrupt.wait(self._socket, _left(deadline), to_write=waits_to_write):
                    raise late("not in time")
        except OSError as error:  # what ssl raises, and a stop, are such errors
            raise broken(str(error)) from error


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
