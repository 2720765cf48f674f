"""The body of a request on its way from the client to a target."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway import errors
from gateway.proxy.connection import Connection


class Reader(Protocol):
    """Where a body comes from; aiohttp's StreamReader is one."""

    def is_eof(self) -> bool:
        """Tell whether all of it has come in, though perhaps not been read."""
        ...

    def read_nowait(self, n: int = -1) -> bytes:
        """Return what has come in."""
        ...

    async def readany(self) -> bytes:
        """Return what has come in, or the next of it; empty at the end."""
        ...


class Body:
    """A request's body, of `length` bytes, None: chunked. At most `limit` bytes may come, with pauses of `idle` seconds."""

    def __init__(self, reader: Reader, *, length: int | None, limit: int, idle: float) -> None:
        if length is not None and length > limit:
            raise errors.BodyTooLarge(limit)
        self._reader = reader
        self._limit = limit
        self._idle = idle
        self.length = length
        self.received = 0
        self.awaited = False
        """Whether it is the client that is waited for."""
        self._whole: bytes | None = None
        self._begun = False

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent from the beginning (again)."""
        return self._whole is not None or not self._begun

    def whole(self) -> bytes | None:
        """Return all of it, framed, if that has come in, as far as is read ahead; it can then be sent any number of times."""
        if self._whole is None and not self._begun and self._reader.is_eof():
            data = self._reader.read_nowait()
            self.received = len(data)
            if self.received > self._limit:
                raise errors.BodyTooLarge(self._limit)
            self._begun = True
            self._whole = self._framed(data) + (b"" if self.length is not None else b"0\r\n\r\n")
        return self._whole

    async def pump(self, connection: Connection) -> None:
        """Send it as it comes; GatewayError for what is the client's fault, TargetFailed for what is the target's."""
        self._begun = True
        while True:
            data = await self._read()
            if not data:
                break
            self.received += len(data)
            if self.received > self._limit:
                raise errors.BodyTooLarge(self._limit)
            connection.write(self._framed(data))
            await connection.drain()
        if self.length is None:
            connection.write(b"0\r\n\r\n")

    async def _read(self) -> bytes:
        self.awaited = True
        try:
            async with asyncio.timeout(self._idle):
                return await self._reader.readany()
        except TimeoutError as error:
            raise errors.RequestTimedOut from error
        except (errors.GatewayError, ConnectionError):
            raise
        except Exception as error:  # aiohttp's, by its framing and coding
            raise errors.RequestMalformed("The body is not framed as its head says.") from error
        finally:
            self.awaited = False

    def _framed(self, data: bytes) -> bytes:
        if self.length is not None or not data:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)
