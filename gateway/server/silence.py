"""Connections that have been accepted and of which nothing has come yet.

An event loop reads from all its connections that have something, in one turn, and in the next one it runs all that came of
that: fifteen thousand requests at once are five seconds in one piece, however slowly their connections were accepted. So a
connection is given to the loop only once there is something to read, and only some in each turn. The others cost a file each:
they wait in an epoll of their own, which the loop watches as one file.
"""

from __future__ import annotations

import select
import socket

_HEARD = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLERR | select.EPOLLHUP


class Silence:
    """Sockets that wait for their first bytes, in the order in which they came."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, float]] = {}

    def __repr__(self) -> str:
        return f"<Silence of {len(self)} connections>"

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def closed(self) -> bool:
        """Whether it was closed: nobody can be added any more."""
        return self._poll.closed

    def fileno(self) -> int:
        """Return the file that is readable while anybody has been heard."""
        return self._poll.fileno()

    def add(self, connection: socket.socket, now: float) -> None:
        """Wait for what a connection sends."""
        number = connection.fileno()
        self._poll.register(number, _HEARD)
        self._sockets[number] = connection, now

    def heard(self, most: int) -> list[socket.socket]:
        """Return up to `most` connections with something to read, which wait here no more; those that broke are closed."""
        found = []
        for number, events in self._poll.poll(0, most):
            connection, _ = self._sockets.pop(number)
            self._poll.unregister(number)
            if events & _GONE:
                connection.close()
            else:
                found.append(connection)
        return found

    def dismiss(self, until: float) -> None:
        """Close those that came before `until` and have said nothing since."""
        while self._sockets:
            number, (connection, since) = next(iter(self._sockets.items()))
            if since > until:
                return
            del self._sockets[number]
            connection.close()

    def close(self) -> None:
        """Close all."""
        for connection, _ in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._poll.close()
