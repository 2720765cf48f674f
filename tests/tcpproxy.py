"""A TCP proxy that breaks connections on demand: it drops, stalls, heals, and cuts after a number of bytes.

It stands between two parties of a test, for example between the gateway and an upstream. A Kafka client leaves
it at once for the address in the broker's metadata: give the broker the proxy's address to advertise.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Self

CHUNK = 65_536


class TcpProxy:
    """Forwards what comes to `address` to `host:port`, as long as nobody told it otherwise.

    `accepted` counts the connections ever taken, `forwarded` the bytes by direction ("up" to the target, "down" to the client).
    """

    def __init__(self, host: str, port: int, *, listen_port: int = 0) -> None:
        self.target = (host, port)
        self.accepted = 0
        self.forwarded = {"up": 0, "down": 0}
        self._listen_port = listen_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._budget: dict[str, int] = {}

    @property
    def host(self) -> str:
        """The loopback address that the proxy listens on."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The port that the proxy listens on; known once it was open."""
        return self._listen_port

    @property
    def address(self) -> str:
        """host:port of the proxy."""
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._pumps)

    def __repr__(self) -> str:
        state = "drops" if self._refusing else "flows" if self._flowing.is_set() else "stalled"
        return f"<TcpProxy {self.address} → {self.target[0]}:{self.target[1]} {state}, {self.connections} open>"

    # Faults

    def drop(self) -> None:
        """Reset every connection, and every new one, until `heal`."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset the connections that are open now; new ones are forwarded."""
        for writer in list(self._writers):
            _reset(writer)

    def stall(self) -> None:
        """Forward nothing in either direction until `heal`; connections stay open and new ones are taken."""
        self._flowing.clear()

    def cut_after(self, count: int, direction: str = "down") -> None:
        """Reset the connection that carries byte number `count` from now on in `direction`, after that byte."""
        self._budget[direction] = count

    def heal(self) -> None:
        """Forward everything again."""
        self._refusing = False
        self._budget.clear()
        self._flowing.set()

    # Life

    async def open(self) -> None:
        """Listen; after `close` on the same port again."""
        self._server = await asyncio.start_server(self._accept, self.host, self._listen_port)
        self._listen_port = self._server.sockets[0].getsockname()[1]
        self.heal()

    async def close(self) -> None:
        """Reset every connection and refuse new ones; `port` is free. Also where that is so already."""
        if self._server is None:
            return
        self._server.close()
        self.drop()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the target; OSError if that is not there."""
        return await asyncio.open_connection(*self.target)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("asyncio runs this in a task")
        self.accepted += 1
        self._pumps.add(task)
        self._writers.add(writer)
        try:
            # Cancelled by __aexit__ only; asyncio's streams would log a cancelled handler as an error.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._join(reader, writer)
        finally:
            self._pumps.discard(task)
            self._writers.discard(writer)
            _reset(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            return
        onward, back = await self.connect()
        self._writers.add(back)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, "up"))
                group.create_task(self._pump(onward, writer, "down"))
        except* (OSError, _CutError):
            pass  # one side is gone: so is the other, below
        finally:
            self._writers.discard(back)
            _reset(back)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
        while data := await source.read(CHUNK):
            await self._flowing.wait()
            left = self._budget.get(direction)
            if left is not None:
                data = data[:left]
                self._budget[direction] = left - len(data)
            sink.write(data)
            await sink.drain()
            self.forwarded[direction] += len(data)
            if self._budget.get(direction) == 0:
                del self._budget[direction]
                # An orderly end lets the bytes before the cut arrive; a reset could take them back.
                sink.close()
                await sink.wait_closed()
                raise _CutError
        await self._flowing.wait()
        if sink.can_write_eof():
            sink.write_eof()


class _CutError(Exception):
    """The connection has carried all it may."""


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, whatever is still unsent."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
