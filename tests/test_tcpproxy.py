"""The TCP proxy breaks connections as it is told, and only then."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from waiting import eventually


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """Answer every connection with what it sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def dialled(proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_forwards_both_ways_and_ends_with_either_side(echo, tcp_proxy):
    """Bytes and the end of the stream pass; nothing of a finished connection remains."""
    proxy = await tcp_proxy("127.0.0.1", echo)
    async with dialled(proxy) as (reader, writer):
        writer.write(b"ping" * 50_000)
        writer.write_eof()
        assert await reader.read() == b"ping" * 50_000
    await eventually(lambda: proxy.connections == 0)
    assert (proxy.accepted, proxy.forwarded) == (1, {"up": 200_000, "down": 200_000})


async def test_drop_resets_old_and_new_connections_until_healed(echo, tcp_proxy):
    """A dropped client reads a reset, so does who dials again; after healing bytes pass."""
    proxy = await tcp_proxy("127.0.0.1", echo)
    async with dialled(proxy) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        proxy.drop()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
    async with dialled(proxy) as (reader, _):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    proxy.heal()
    async with dialled(proxy) as (reader, writer):
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"


async def test_stall_holds_bytes_until_healed(echo, tcp_proxy):
    """A stalled connection stays open and silent, and loses nothing."""
    proxy = await tcp_proxy("127.0.0.1", echo)
    async with dialled(proxy) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        proxy.stall()
        writer.write(b"b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        assert "stalled, 1 open" in repr(proxy)
        proxy.heal()
        assert await reader.readexactly(1) == b"b"


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_cut_after_lets_exactly_so_many_bytes_through(echo, tcp_proxy, direction):
    """The last byte before the cut arrives, the first one after it does not."""
    proxy = await tcp_proxy("127.0.0.1", echo)
    async with dialled(proxy) as (reader, writer):
        proxy.cut_after(3, direction)
        writer.write(b"abcdef")
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(10):
                got += data
    # What was cut on its way up may be lost on its way back, too.
    assert got == b"abc" if direction == "down" else b"abc".startswith(got)
    assert proxy.forwarded[direction] == 3


async def test_closed_it_refuses_and_a_proxy_before_it_hangs_up(tcp_proxy, echo):
    """Nobody listens on a closed proxy's port until it is opened again, on the same one."""
    target = await tcp_proxy("127.0.0.1", echo)
    proxy = await tcp_proxy("127.0.0.1", target.port)
    await target.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(target.host, target.port)
    async with dialled(proxy) as (reader, _):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    await target.open()
    async with dialled(proxy) as (reader, writer):
        writer.write(b"z")
        assert await reader.readexactly(1) == b"z"
