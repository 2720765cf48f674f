"""Accepting connections, a few in each turn of the loop.

An event loop that accepts all it can get is deaf meanwhile: fifteen thousand clients that reconnect at once, each with a
request right behind its handshake, would hold up everybody else for seconds. So the listening sockets are read here, at most
ACCEPTS_PER_TURN in a turn; the others wait in the system's queue, which is what it is for (`server.backlog`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 16
_PAUSE = 1.0
# The process or the system has no room for another connection: it goes away by itself when others close.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen(host: str, port: int, *, backlog: int, reuse_port: bool = False) -> list[socket.socket]:
    """Return listening sockets for every address of `host` (empty: all); OSError if one is taken.

    `port` 0 takes a free one, the same for all. With `reuse_port` other processes of the same user may listen there as well.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # Else it would take IPv4 as well, and the socket for that could not be bound.
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            listening.bind((address[0], chosen, *address[2:]))
            listening.listen(backlog)
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise OSError(error.errno, f"cannot listen on {host or '*'}:{port}: {(error.strerror or '').lower()}") from error
    return sockets


def listen_at(path: str, *, backlog: int) -> socket.socket:
    """Return a listening Unix socket; OSError if there is something at `path` already."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind(path)
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


class Acceptor:
    """Accepts on some listening sockets until it is closed; each connection gets a protocol of `factory`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._factory = factory
        self._tls = tls
        self._greeting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._watch()

    def __repr__(self) -> str:
        return f"<Acceptor on {len(self._sockets)} sockets{' paused' if self._pause is not None else ''}>"

    def close(self) -> None:
        """Accept no more; handshakes under way go on."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()

    async def abort(self) -> None:
        """End the handshakes that are under way."""
        for task in self._greeting:
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)

    def _watch(self) -> None:
        self._pause = None
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.error("no room for another connection: %s", error.strerror)  # its trace says nothing
                for each in self._sockets:
                    self._loop.remove_reader(each)
                self._pause = self._loop.call_later(_PAUSE, self._watch)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._greet(accepted))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, accepted, ssl=self._tls)
        except (OSError, asyncio.CancelledError) as error:
            # A TLS handshake that fails is the peer's business.
            accepted.close()
            if isinstance(error, asyncio.CancelledError):
                raise
