"""A backend that does what a test says, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Visit"], Awaitable[None]]


@dataclass(slots=True)
class Visit:
    """One connection that the gateway has made, and what came over it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heads: list[bytes] = field(default_factory=list)

    async def head(self) -> bytes:
        """Return the next request's head; empty at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        self.heads.append(head)
        return head

    async def body(self, size: int) -> bytes:
        """Return `size` bytes of a body."""
        return await self.reader.readexactly(size)

    async def chunks(self) -> bytes:
        """Return a chunked body as it came, up to its last chunk and trailer section."""
        return await self.reader.readuntil(b"0\r\n\r\n")

    async def say(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


@dataclass(slots=True)
class Backend:
    """A server on loopback; `visits` are its connections, in order."""

    port: int = 0
    visits: list[Visit] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where it listens, as configuration has it."""
        return f"127.0.0.1:{self.port}"

    @property
    def heads(self) -> list[bytes]:
        """The heads of all requests, connection by connection."""
        return [head for visit in self.visits for head in visit.heads]


@asynccontextmanager
async def backend(script: Script) -> AsyncIterator[Backend]:
    """Run a backend that follows a script on each connection, and closes it afterwards."""
    here = Backend()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        visit = Visit(reader, writer)
        here.visits.append(visit)
        try:
            await script(visit)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for visit in here.visits:
            visit.writer.close()
        await asyncio.sleep(0)


def answering(*answers: bytes) -> Script:
    """Return a script that gives one answer after the other to requests without bodies, the last one for ever."""

    async def script(visit: Visit) -> None:
        told = 0
        while await visit.head():
            await visit.say(answers[min(told, len(answers) - 1)])
            told += 1

    return script


def ok(body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """Return an answer with a length."""
    lines = [b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
