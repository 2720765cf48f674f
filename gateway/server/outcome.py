"""What a poll comes to, as bytes that everybody of a crowd gets (sans-I/O)."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

from gateway.fanout.cursor import Position
from gateway.fanout.responses import Answer

_BYTES = 1_000
_OK, _NO_CONTENT = 200, 204


class Heads(Protocol):
    """A crowd, as far as it matters here."""

    dates: Dates

    def head(self, status: int, cursor: bytes) -> bytes:
        """Return the head of an answer, up to what depends on its body and the time."""
        ...


class Dates:
    """The Date field of the present second (RFC 9110, section 6.6.1); asked for often, formatted once a second."""

    def __init__(self, unix_clock: Callable[[], float] = time.time) -> None:
        self._unix_clock = unix_clock
        self._second = -1
        self._line = b""

    def line(self) -> tuple[int, bytes]:
        """Return the present second and its field, with the empty line that ends a head."""
        second = int(self._unix_clock())
        if second != self._second:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return self._second, self._line


class Outcome:
    """What a poll comes to: an answer with a body, or (204) an empty one. `at_tail` as in `fanout.reading.Reading`."""

    __slots__ = ("_crowd", "_data", "_second", "answer", "at_tail", "cursor", "position")

    def __init__(self, answer: Answer, cursor: bytes, position: Position, *, at_tail: bool) -> None:
        self.answer = answer
        self.cursor = cursor
        self.position = position
        self.at_tail = at_tail
        self._data = b""
        self._second = -1
        self._crowd: Heads | None = None

    @property
    def cost(self) -> int:
        """Bytes charged to the memory bound of what crowds keep: the body is there alone, and behind its head."""
        return _BYTES + self.answer.cost + len(self.answer.body)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return _OK if self.answer.body else _NO_CONTENT

    def data(self, crowd: Heads) -> bytes:
        """Return the answer as it goes to everybody of the crowd in this second."""
        second, date = crowd.dates.line()
        if second != self._second or crowd is not self._crowd:
            self._second, self._crowd = second, crowd
            body = self.answer.body
            length = b"Content-Length: %d\r\n" % len(body) if body else b""
            self._data = b"".join((crowd.head(self.status, self.cursor), length, date, body))
        return self._data
