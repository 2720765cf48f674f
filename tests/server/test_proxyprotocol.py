"""PROXY headers: decoding in all pieces, and connections over real sockets on both event loops."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.server.address import TrustedProxies
from gateway.server.proxyprotocol import (
    MAX_HEADER_BYTES,
    SIGNATURE,
    Header,
    HeaderMalformed,
    HeaderReader,
    Peername,
    ProxiedTransport,
    ProxyProtocol,
    Refusal,
)

LOOPBACK = TrustedProxies(["127.0.0.0/8"])
REQUEST = b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n"


def header(data: bytes, *, command: int = 1, family: int = 0x11, version: int = 2) -> bytes:
    """Build a header by hand, as the specification's section 2.2 draws it."""
    return SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(data)) + data


V4 = bytes([192, 0, 2, 1, 10, 0, 0, 1]) + struct.pack("!HH", 4711, 443)
V6 = bytes.fromhex("20010db8000000000000000000000001" * 2) + struct.pack("!HH", 4711, 443)
TLV = b"\x05\x00\x03abc"
# Made by another implementation: HAProxy 2.6 with proxy-v2-options crc32c,unique-id, from 127.0.0.1:55856.
CHECKED = bytes.fromhex(
    "0d0a0d0a000d0a515549540a 21110022 7f0000017f000001da3088d5 030004cd8a574a 05000c69642d3132372e302e302e31"
)

GOOD: list[tuple[str, bytes, Peername | None]] = [
    ("IPv4", header(V4), ("192.0.2.1", 4711)),
    ("IPv4 with TLVs", header(V4 + TLV), ("192.0.2.1", 4711)),
    ("IPv4 with a checksum", CHECKED, ("127.0.0.1", 55856)),
    ("IPv6", header(V6, family=0x21), ("2001:db8::1", 4711, 0, 0)),
    ("536 bytes and more", header(V4 + b"\x04\x03\xe8" + bytes(1000)), ("192.0.2.1", 4711)),
    ("LOCAL", header(b"", command=0, family=0), None),
    ("LOCAL with an address", header(V4, command=0), None),
    ("UNSPEC", header(b"", family=0), None),
    ("UNSPEC with data", header(b"whatever", family=0), None),
    ("Unix", header(b"/a".ljust(108, b"\x00") + b"/b".ljust(108, b"\x00"), family=0x31), None),
]

BAD: list[tuple[str, bytes]] = [
    ("HTTP", REQUEST),
    ("version 1", b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00"),
    ("version 3", header(V4, version=3)),
    ("unknown command", header(V4, command=7)),
    ("unassigned family", header(V4, family=0x51)),
    ("address cut off", header(V4[:5])),
    ("IPv4 length for IPv6", header(V4, family=0x21)),
    ("not ASCII", header(b"\xff".ljust(216, b"\x00"), family=0x31)),
    ("wrong checksum", CHECKED[:-1] + bytes([CHECKED[-1] ^ 1])),
    ("a checksum of two bytes", header(V4 + b"\x03\x00\x02ab")),
    ("a TLV without length", header(V4 + TLV + b"\x05\x00")),
    ("a TLV that is cut off", header(V4 + TLV[:-1])),
    ("over the bound", header(bytes(MAX_HEADER_BYTES))),
]


class TestHeaderReader:
    @pytest.mark.parametrize(("data", "peername"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
    def test_whole_in_bytes_and_with_trailing_data(self, data: bytes, peername: Peername | None) -> None:
        """The same header comes out however it was cut, and what follows is kept."""
        assert HeaderReader().feed(data) == Header(peername, b"")
        assert HeaderReader().feed(data + REQUEST) == Header(peername, REQUEST)
        reader = HeaderReader()
        assert all(reader.feed(data[index : index + 1]) is None for index in range(len(data) - 1))
        assert reader.feed(data[-1:]) == Header(peername, b"")

    @pytest.mark.parametrize("data", [case[1] for case in BAD], ids=[case[0] for case in BAD])
    def test_malformed(self, data: bytes) -> None:
        """What is no header is refused, whole and in bytes."""
        with pytest.raises(HeaderMalformed):
            HeaderReader().feed(data)
        reader = HeaderReader()
        with pytest.raises(HeaderMalformed):  # noqa: PT012  whichever byte it is
            for index in range(len(data)):
                reader.feed(data[index : index + 1])

    def test_refused_at_the_first_wrong_byte(self) -> None:
        """A client that speaks HTTP learns it at once, not after five seconds."""
        with pytest.raises(HeaderMalformed):
            HeaderReader().feed(b"G")

    @given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 255))
    def test_any_bytes(self, data: bytes, command: int, family: int) -> None:
        """Any bytes give a header or HeaderMalformed."""
        head = SIGNATURE + struct.pack("!BBH", command, family, len(data)) + data
        for attempt in (data, head):
            try:
                found = HeaderReader().feed(attempt)
            except HeaderMalformed:
                continue
            assert found is None or found.rest == b""


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on each of the two event loops."""

    def runner(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(main)

    return runner


class Listener:
    """A real aiohttp server behind PROXY headers on a loopback port."""

    port: int
    factory: ProxyProtocol

    def __init__(self) -> None:
        self.refused: list[Refusal] = []

    async def connect(self, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and send the pieces, each in a segment of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return reader, writer

    async def ask(self, *pieces: bytes) -> str:
        """Send the pieces; return the body of the answer, or "" if the connection ends without one."""
        reader, writer = await self.connect(*pieces)
        try:
            return await body_of(reader)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return ""
        finally:
            writer.close()


async def body_of(reader: asyncio.StreamReader) -> str:
    """Read one answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return (await reader.readexactly(length)).decode()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def who(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with the peer as the request shows it, and as its transport does."""
    if request.path == "/large":
        return web.Response(body=b"x" * 3_000_000)
    if request.path == "/echo":
        return web.Response(body=await request.read())
    assert request.transport is not None
    return web.Response(text=f"{request.remote} {request.transport.get_extra_info('peername')[1]}")


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[Listener]:
    """Serve `who` behind PROXY headers."""
    listener = Listener()
    runner = web.ServerRunner(web.Server(who), handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    options.setdefault("trusted", LOOPBACK)
    listener.factory = ProxyProtocol(runner.server, on_refused=listener.refused.append, **options)
    server = await asyncio.get_running_loop().create_server(listener.factory, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        listener.factory.close()
        await runner.cleanup()
        await server.wait_closed()


def serving(**options: Any) -> Callable[[Callable[[Listener], Awaitable[None]]], Callable[..., None]]:
    """Make a test of a coroutine that gets a listener."""

    def decorate(body: Callable[[Listener], Awaitable[None]]) -> Callable[..., None]:
        async def main() -> None:
            async with listening(**options) as listener:
                await body(listener)

        def test(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
            run(main())

        test.__doc__ = body.__doc__
        return test

    return decorate


@serving()
async def test_request_sees_the_real_peer(listener: Listener) -> None:
    """The request's `remote` and its transport show the client of the header."""
    assert await listener.ask(header(V4) + REQUEST) == "192.0.2.1 4711"
    assert await listener.ask(header(V6, family=0x21), REQUEST) == "2001:db8::1 4711"
    assert listener.refused == []


@serving()
async def test_pieces(listener: Listener) -> None:
    """Header and request may come cut anywhere."""
    stream = header(V4 + TLV) + REQUEST
    assert await listener.ask(*(stream[index : index + 1] for index in range(len(stream)))) == "192.0.2.1 4711"
    assert await listener.ask(stream[:20], stream[20:40], stream[40:]) == "192.0.2.1 4711"


@serving()
async def test_local_keeps_the_peer(listener: Listener) -> None:
    """A proxy's own health check comes from the proxy."""
    assert (await listener.ask(header(b"", command=0, family=0) + REQUEST)).startswith("127.0.0.1 ")


@serving()
async def test_connection_goes_on(listener: Listener) -> None:
    """Keep-alive, large answers with flow control, and bodies work through the wrapper."""
    reader, writer = await listener.connect(header(V4), REQUEST)
    assert await body_of(reader) == "192.0.2.1 4711"
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(await body_of(reader)) == 3_000_000
    body = b"y" * 500_000
    writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + body)
    assert await body_of(reader) == body.decode()
    writer.close()


@serving()
async def test_without_a_header(listener: Listener) -> None:
    """A trusted peer that sends no header is closed, without an answer."""
    assert await listener.ask(REQUEST) == ""
    await eventually(lambda: listener.refused == ["malformed"])


@serving(trusted=TrustedProxies(["192.0.2.0/24"]))
async def test_untrusted_peer(listener: Listener) -> None:
    """Nobody else may say who he is, nor come at all where a header is required."""
    assert await listener.ask(header(V4) + REQUEST) == ""
    assert await listener.ask(REQUEST) == ""
    assert listener.refused == ["untrusted", "untrusted"]


@serving(trusted=TrustedProxies(["192.0.2.0/24"]), required=False)
async def test_untrusted_peer_where_optional(listener: Listener) -> None:
    """Where headers are optional, others are served as themselves, and a header from them is just bad HTTP."""
    assert (await listener.ask(REQUEST)).startswith("127.0.0.1 ")
    assert "192.0.2.1" not in await listener.ask(header(V4) + REQUEST)
    assert listener.refused == []


def test_bytes_after_a_refusal() -> None:
    """What an event loop still delivers after the connection was given up is not looked at."""
    refused: list[Refusal] = []
    greeting = ProxyProtocol(asyncio.Protocol, trusted=TrustedProxies(), on_refused=refused.append)()
    greeting.connection_made(Recorder())
    greeting.data_received(header(V4))
    assert refused == ["untrusted"]


@serving(seconds=0.05)
async def test_time_limit(listener: Listener) -> None:
    """A peer that holds its header back is closed."""
    reader, writer = await listener.connect(header(V4)[:20])
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert listener.refused == ["timeout"]
    assert repr(listener.factory) == "ProxyProtocol(0 waiting for their header)"
    writer.close()


@serving(seconds=0.05)
async def test_no_time_limit_after_the_header(listener: Listener) -> None:
    """The clock stops with the header."""
    reader, writer = await listener.connect(header(V4))
    await eventually(lambda: not listener.factory.waiting)
    deadline = asyncio.get_running_loop().time() + 0.1
    await eventually(lambda: asyncio.get_running_loop().time() > deadline)
    writer.write(REQUEST)
    assert await body_of(reader) == "192.0.2.1 4711"
    writer.close()


@serving()
async def test_peer_leaves_early(listener: Listener) -> None:
    """A TCP health check connects and goes."""
    _reader, writer = await listener.connect(header(V4)[:20])
    await eventually(lambda: len(listener.factory.waiting) == 1)
    writer.close()
    await eventually(lambda: listener.refused == ["closed"])
    assert not listener.factory.waiting


@serving()
async def test_close_drops_who_waits(listener: Listener) -> None:
    """At shutdown the connections without a header end as well."""
    reader, writer = await listener.connect(b"\r\n")
    await eventually(lambda: repr(listener.factory) == "ProxyProtocol(1 waiting for their header)")
    listener.factory.close()
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    await eventually(lambda: listener.refused == ["closed"])
    writer.close()


class Recorder(asyncio.Transport):
    """A transport that notes what is called on it."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 5)})
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in WRAPPED:
            object.__getattribute__(self, "calls").append(name)
            return lambda *_args: name
        return object.__getattribute__(self, name)


WRAPPED = {
    "abort": (),
    "can_write_eof": (),
    "close": (),
    "get_protocol": (),
    "get_write_buffer_limits": (),
    "get_write_buffer_size": (),
    "is_closing": (),
    "is_reading": (),
    "pause_reading": (),
    "resume_reading": (),
    "set_protocol": (asyncio.Protocol(),),
    "set_write_buffer_limits": (1, 2),
    "write": (b"x",),
    "write_eof": (),
    "writelines": ([b"x"],),
}


class TestProxiedTransport:
    def test_every_method_of_a_transport_is_passed_on(self) -> None:
        """Nothing is inherited from asyncio's abstract base, which would raise NotImplementedError."""
        public = {name for name in dir(asyncio.Transport) if not name.startswith("_")}
        assert public == {*WRAPPED, "get_extra_info"}
        raw = Recorder()
        proxied = ProxiedTransport(raw, ("192.0.2.1", 4711))
        for name, arguments in WRAPPED.items():
            getattr(proxied, name)(*arguments)
        assert raw.calls == list(WRAPPED)

    def test_extra_info(self) -> None:
        """Only the peer differs."""
        proxied = ProxiedTransport(Recorder(), ("192.0.2.1", 4711))
        assert proxied.get_extra_info("peername") == ("192.0.2.1", 4711)
        assert proxied.get_extra_info("sockname") == ("127.0.0.1", 80)
        assert proxied.get_extra_info("cipher", "none") == "none"
        assert repr(proxied).startswith("<ProxiedTransport for 192.0.2.1 over <")
        assert not hasattr(proxied, "__dict__")


@pytest.mark.skipif(not shutil.which("haproxy") and not os.environ.get("CI"), reason="haproxy is not installed")
def test_haproxy(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    """HAProxy's own send-proxy-v2, with unique ids in TLVs, tells the address and port of its client."""

    async def main() -> None:
        async with listening() as listener:
            port = free_port()
            config = tmp_path / "haproxy.cfg"
            config.write_text(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n"
                f"listen l\n bind 127.0.0.1:{port}\n"
                f" server s 127.0.0.1:{listener.port} send-proxy-v2 proxy-v2-options crc32c\n"
            )
            process = await asyncio.create_subprocess_exec("haproxy", "-f", str(config), "-db", "-q")
            try:
                reader, writer = await connected(port)
                writer.write(REQUEST)
                assert await body_of(reader) == "127.0.0.1 {}".format(writer.get_extra_info("sockname")[1])
                writer.close()
            finally:
                process.kill()
                await process.wait()

    run(main())


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)


def test_peername_forms() -> None:
    """The wrapper's peernames have the shapes of sockets' own."""
    found = HeaderReader().feed(header(V6, family=0x21))
    assert found is not None
    assert found.peername == (str(IPv6Address("2001:db8::1")), 4711, 0, 0)
