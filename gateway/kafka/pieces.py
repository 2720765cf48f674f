"""The reading side of a connection to a broker: answers of megabytes come in pieces, and are put together once.

Theory of operation. asyncio's stream reader appends each piece to a buffer, which is moved as it grows, and copies it at
last: for answers of megabytes that is a tenth of all the work that history takes. Here pieces are kept as they come, and
joined when the last one is there. aiokafka's connection asks for exact amounts only: a length, and so many bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection

# So much may wait for somebody who asks for it; an answer that is asked for may be longer.
_MOST_HELD: Final = 2**18


class Pieces(asyncio.Protocol):
    """Reads exact amounts from a transport. One reader at a time. `closed` gets its result when the connection is lost."""

    def __init__(self, transport: asyncio.Transport, closed: asyncio.Future[None]) -> None:
        self._transport = transport
        self._closed = closed
        self._pieces: deque[memoryview] = deque()
        self._held = 0
        self._wanted = 0
        self._paused = False
        self._eof = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Pieces {self._held} of {self._wanted} bytes{', closed' * self._eof}>"

    def at_eof(self) -> bool:
        """Tell whether nothing comes any more."""
        return self._eof

    async def readexactly(self, n: int) -> bytes:
        """Return the next `n` bytes; IncompleteReadError if the peer closes before, or what the connection broke of."""
        self._wanted = n
        while self._held < n and not self._eof:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._wanted = 0
        if self._held < n:
            raise self._error or asyncio.IncompleteReadError(self._take(self._held), n)
        return self._take(n)

    def data_received(self, data: bytes) -> None:
        """Keep a piece."""
        self._pieces.append(memoryview(data))
        self._held += len(data)
        if self._held >= self._wanted:
            self._wake()
            if self._held - self._wanted > _MOST_HELD and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def eof_received(self) -> None:
        """Note the end; the transport closes itself."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, and tell that the socket is closed."""
        self._end(exc)
        if not self._closed.done():
            self._closed.set_result(None)

    def _end(self, error: Exception | None) -> None:
        self._eof = True
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, n: int) -> bytes:
        self._held -= n
        taken: list[memoryview] = []
        while n:
            piece = self._pieces.popleft()
            if len(piece) > n:
                self._pieces.appendleft(piece[n:])
                piece = piece[:n]
            taken.append(piece)
            n -= len(piece)
        return b"".join(taken)


class PiecewiseConnection(AIOKafkaConnection):
    """aiokafka's connection, read through `Pieces`."""

    def _create_reader_task(self) -> asyncio.Task[None]:
        # Between the opening of the connection and the first request: nothing can have come yet. The writer keeps the protocol
        # that it knows, since it only writes.
        writer: Any = self._writer
        closed: Any = self._closed_fut
        pieces: Any = Pieces(writer.transport, closed)
        self._reader = self._protocol = pieces
        writer.transport.set_protocol(pieces)
        task: asyncio.Task[None] = super()._create_reader_task()
        return task
