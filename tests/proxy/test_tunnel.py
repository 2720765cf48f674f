"""Tunnels: bytes both ways, back-pressure, half-closed ends, ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from waiting import eventually

from gateway.proxy.tunnel import Tunnel

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def transport_of(connection: socket.socket) -> asyncio.Transport:
    """Make a transport that nobody reads yet."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=connection)
    transport.pause_reading()
    return transport


@asynccontextmanager
async def joined(*, up: bytes = b"", down: bytes = b"") -> AsyncIterator[tuple[Streams, Streams, Tunnel, list[Tunnel]]]:
    """Make a tunnel between a client and a target."""
    ended: list[Tunnel] = []
    outer, inner = socket.socketpair()
    near, far = socket.socketpair()
    tunnel = Tunnel(ended.append)
    tunnel.join(await transport_of(inner), await transport_of(near), up=up, down=down)
    client = await asyncio.open_connection(sock=outer)
    target = await asyncio.open_connection(sock=far)
    try:
        yield client, target, tunnel, ended
    finally:
        tunnel.abort()
        for _, writer in (client, target):
            writer.transport.abort()
        await eventually(lambda: ended)


async def test_bytes_go_both_ways() -> None:
    """Those that came early go first."""
    async with joined(up=b"early ", down=b"soon ") as (client, target, tunnel, _):
        client[1].write(b"up")
        target[1].write(b"down")
        assert await target[0].readexactly(8) == b"early up"
        assert await client[0].readexactly(9) == b"soon down"
        assert repr(tunnel) == "<Tunnel 2 ends, 8 bytes up, 9 down>"


async def test_one_direction_may_end_before_the_other() -> None:
    """A half-closed client still gets its answer; when both have ended, the connections are closed."""
    async with joined() as (client, target, _, ended):
        client[1].write(b"question")
        client[1].write_eof()
        assert await target[0].read() == b"question"
        target[1].write(b"answer")
        assert await client[0].readexactly(6) == b"answer"
        target[1].write_eof()
        assert await client[0].read() == b""
        await eventually(lambda: ended)


async def test_a_lost_end_closes_the_other_once_all_is_written() -> None:
    """What the target said last still arrives."""
    async with joined() as (client, target, _, ended):
        target[1].write(b"bye")
        await target[1].drain()
        target[1].close()
        assert await client[0].read() == b"bye"
        client[1].close()
        await eventually(lambda: ended)


async def test_a_client_that_does_not_read_stops_the_target() -> None:
    """Nothing piles up: a writer who is not read waits, and goes on when he is."""
    async with joined() as (client, target, tunnel, _):
        size = 2**23
        writing = asyncio.ensure_future(_write(target[1], size))
        await eventually(lambda: not tunnel.target.transport.is_reading())
        assert tunnel.target.received < size
        assert len(await client[0].readexactly(size)) == size
        await writing


async def _write(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size // 2**16):
        writer.write(b"x" * 2**16)
        await writer.drain()


async def test_a_tunnel_to_a_connection_that_is_closing_ends() -> None:
    """The target may have left between its 101 and now."""
    ended: list[Tunnel] = []
    outer, inner = socket.socketpair()
    near, far = socket.socketpair()
    client, target = await transport_of(inner), await transport_of(near)
    target.close()
    Tunnel(ended.append).join(client, target, up=b"lost")
    await eventually(lambda: ended)
    outer.close()
    far.close()
