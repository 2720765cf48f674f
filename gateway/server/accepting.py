"""Accepting connections, and giving them to the loop, a few in each turn.

An event loop that does all it can get at once is deaf meanwhile: fifteen thousand clients that reconnect, each with a request
right behind its handshake, would hold up everybody else for seconds. So the listening sockets are read here. Accepting costs
little and is done soon, for the system's queue (`server.backlog`) has an end, and whom it turns away comes again a second later
or three. What costs is the first request: connections wait in silence (`silence`) until theirs has come, and at most
GREETINGS_PER_TURN of those are let in.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from gateway.server.silence import Silence

_log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 64
GREETINGS_PER_TURN = 16
_PAUSE = 1.0
# While a poll is parked nothing is in flight that could fail: probes after 30 s without a segment, every 10 s, find out. A
# client that takes nothing of its answer for 60 s counts as gone too. Connections inherit what their listening socket has.
_PEER_OPTIONS = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_USER_TIMEOUT", 60_000))
    if hasattr(socket, name)  # the names are Linux's
}
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
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _PEER_OPTIONS.items():
                listening.setsockopt(socket.IPPROTO_TCP, option, value)
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
    """Accepts on some listening sockets until it is closed; each connection gets a protocol of `factory`.

    One that says nothing for `patience` seconds is closed.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        tls: ssl.SSLContext | None = None,
        patience: float = 75.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._factory = factory
        self._tls = tls
        self._patience = patience
        self._clock = clock
        self._silence = Silence()
        self._loop.add_reader(self._silence.fileno(), self._greet_some)
        self._dismissal: asyncio.TimerHandle | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._watch()

    def __repr__(self) -> str:
        return f"<Acceptor on {len(self._sockets)} sockets, {self._silence!r}{' paused' if self._pause is not None else ''}>"

    @property
    def silent(self) -> int:
        """Number of connections of which nothing has come yet."""
        return len(self._silence)

    def close(self) -> None:
        """Accept no more; connections that are there already go on."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()

    async def abort(self) -> None:
        """End the handshakes that are under way, and the connections of which nothing has come."""
        if self._dismissal is not None:
            self._dismissal.cancel()
        if not self._silence.closed:
            self._loop.remove_reader(self._silence.fileno())
            self._silence.close()
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
            self._silence.add(accepted, self._clock())
            if self._dismissal is None:
                self._dismissal = self._loop.call_later(_PAUSE, self._dismiss)

    def _dismiss(self) -> None:
        """Close who has been silent for too long; look again while there is anybody."""
        self._silence.dismiss(self._clock() - self._patience)
        self._dismissal = self._loop.call_later(_PAUSE, self._dismiss) if self.silent else None

    def _greet_some(self) -> None:
        for accepted in self._silence.heard(GREETINGS_PER_TURN):
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
