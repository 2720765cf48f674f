"""PROXY protocol version 2 in front of the HTTP protocol: who is really at the other end.

A proxy that works on TCP (HAProxy, a cloud's network load balancer) cannot add X-Forwarded-For, so it sends a binary header
before the client's first byte (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). `HeaderReader` collects it
(sans-I/O; proxyprotocol.v2 decodes the addresses). `ProxyProtocol` is the protocol factory of the listener: each connection
begins as a `_Greeting` that reads the header, then sets the HTTP protocol on the transport and is gone. HTTP gets the
transport in a thin wrapper that answers get_extra_info("peername") with the address from the header; neither asyncio nor
uvloop lets the peer of a connection be set otherwise. Everything else goes straight to the real transport.

The specification forbids guessing whether a header is there: a peer in `trusted` must send one, from others none is taken
(they would choose their own address), and where the header is `required` others are closed at once. TLS on such a listener
is not offered: the header comes before the handshake, and asyncio can start TLS on a transport only while nothing of
the handshake has been read. Let the proxy terminate TLS.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, cast

from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultType
from proxyprotocol.v2 import ProxyProtocolV2, ProxyProtocolV2Header

from gateway.server.address import TrustedProxies, peer_address
from gateway.server.departure import hand_on

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FIXED_BYTES = 16
MAX_HEADER_BYTES = 4096
"""Section 2.2 wants 536 bytes to be taken at least; certificates and unique ids in TLVs need more."""

ADDRESS_BYTES = {ProxyResultType.IPv4: 12, ProxyResultType.IPv6: 36, ProxyResultType.UNIX: 216}
PP2_TYPE_CRC32C = 3

HEADER_SECONDS = 5.0
"""A proxy sends the header in its first segment; a peer that has not by then is not one."""

Peername = tuple[str, int] | tuple[str, int, int, int]
Refusal = Literal["untrusted", "malformed", "timeout", "closed"]
REFUSALS: tuple[Refusal, ...] = ("untrusted", "malformed", "timeout", "closed")
"""Why a connection ended before HTTP began; "closed": by the peer (a TCP health check, mostly)."""


class HeaderMalformed(ValueError):
    """The bytes are not a PROXY header of version 2, or one beyond the bound."""


class Header(NamedTuple):
    """A decoded header. `peername` as sockets have it; None: the connection's own peer counts. `rest`: bytes after it."""

    peername: Peername | None
    rest: bytes


class HeaderReader:
    """Collects the bytes of one header, in whatever pieces they come (sans-I/O)."""

    __slots__ = ("_buffer",)

    _codec = ProxyProtocolV2()

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Header | None:
        """Take bytes; return the header once it is whole. Raises HeaderMalformed as early as that is certain."""
        buffer = self._buffer
        buffer += data
        if not buffer.startswith(SIGNATURE[: len(buffer)]):
            raise HeaderMalformed("no signature")
        if len(buffer) < FIXED_BYTES:
            return None
        fixed = bytes(buffer[:FIXED_BYTES])
        try:
            header = self._codec.unpack_header(fixed)
        except ValueError as error:
            raise HeaderMalformed("not version 2") from error
        size = FIXED_BYTES + header.data_len
        if size > MAX_HEADER_BYTES:
            raise HeaderMalformed("too long")
        if len(buffer) < size:
            return None
        peername = self._decode(header, bytes(buffer[:size]))
        return Header(peername, bytes(buffer[size:]))

    def _decode(self, header: ProxyProtocolV2Header, whole: bytes) -> Peername | None:
        if header.type is None:
            raise HeaderMalformed("unassigned address family")
        # Only as far as the addresses: given TLVs, the codec computes their checksum (where an optional package is there)
        # over its own rendering of them, and so refuses headers whose TLVs come in another order than it writes.
        begin_of_tlvs = FIXED_BYTES + ADDRESS_BYTES.get(header.type, 0)
        try:
            result = self._codec.unpack_data(header, whole[:FIXED_BYTES], whole[FIXED_BYTES:begin_of_tlvs])
        except (ValueError, struct.error) as error:
            raise HeaderMalformed("undecodable") from error
        # LOCAL (the proxy's own health check), UNSPEC and Unix: section 2.2 says to use the real connection's endpoints.
        if isinstance(result, ProxyResultIPv4):
            _check_tlvs(whole, begin_of_tlvs)
            return str(result.source[0]), result.source[1]
        if isinstance(result, ProxyResultIPv6):
            _check_tlvs(whole, begin_of_tlvs)
            return str(result.source[0]), result.source[1], 0, 0
        return None


def _check_tlvs(whole: bytes, begin: int) -> None:
    """Walk the TLVs; check the one that is a checksum. Raises HeaderMalformed.

    Section 2.2.3: "If the checksum is provided as part of the PROXY header and the checksum functionality is supported by
    the receiver, the receiver MUST [...] compare the two values, and fail the connection if they do not match" (in short).
    """
    at = begin
    while at < len(whole):
        if len(whole) < at + 3:
            raise HeaderMalformed("a TLV is cut off")
        kind, length = struct.unpack_from("!BH", whole, at)
        at += 3 + length
        if at > len(whole):
            raise HeaderMalformed("a TLV is cut off")
        if kind == PP2_TYPE_CRC32C and not _checksum_fits(whole, at - length, at):
            raise HeaderMalformed("wrong checksum")


def _checksum_fits(whole: bytes, begin: int, end: int) -> bool:
    zeroed = whole[:begin] + bytes(end - begin) + whole[end:]
    return whole[begin:end] == _crc32c(zeroed).to_bytes(4, "big")


def _crc32c(data: bytes) -> int:
    """Compute the Castagnoli checksum (RFC 9260, appendix A); 0.1 µs a byte will do for some fifty once a connection."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_OF_BYTE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc32c_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C_OF_BYTE = tuple(_crc32c_of_byte(byte) for byte in range(256))


class ProxiedTransport(asyncio.Transport):
    """A transport with another peer. `raw` is the real one, for callers that want to save the step in between."""

    __slots__ = ("_peername", "raw")

    def __init__(self, raw: asyncio.Transport, peername: Peername) -> None:
        # Not super().__init__(): it makes a dictionary for each connection, and every question goes to `raw` anyway.
        self.raw = raw
        self._peername = peername

    def __repr__(self) -> str:
        return f"<ProxiedTransport for {self._peername[0]} over {self.raw!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the proxied peer for "peername", else what the real transport says."""
        return self._peername if name == "peername" else self.raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Pass on."""
        self.raw.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Pass on."""
        self.raw.writelines(list_of_data)

    def write_eof(self) -> None:
        """Pass on."""
        self.raw.write_eof()

    def can_write_eof(self) -> bool:
        """Pass on."""
        return self.raw.can_write_eof()

    def close(self) -> None:
        """Pass on."""
        self.raw.close()

    def abort(self) -> None:
        """Pass on."""
        self.raw.abort()

    def is_closing(self) -> bool:
        """Pass on."""
        return self.raw.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass on."""
        self.raw.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Pass on."""
        return self.raw.get_protocol()

    def is_reading(self) -> bool:
        """Pass on."""
        return self.raw.is_reading()

    def pause_reading(self) -> None:
        """Pass on."""
        self.raw.pause_reading()

    def resume_reading(self) -> None:
        """Pass on."""
        self.raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Pass on."""
        self.raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Pass on."""
        return self.raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Pass on."""
        return self.raw.get_write_buffer_limits()


class ProxyProtocol:
    """The protocol factory of a listener behind a proxy: give it to `loop.create_server`.

    `http` makes the protocol that gets the connection. `required`: peers outside `trusted` are closed; else they are
    served as themselves, without a header. `on_refused` is told why a connection ended before HTTP began.
    """

    def __init__(
        self,
        http: Callable[[], asyncio.BaseProtocol],
        *,
        trusted: TrustedProxies,
        required: bool = True,
        seconds: float = HEADER_SECONDS,
        on_refused: Callable[[Refusal], None] = lambda _reason: None,
    ) -> None:
        self.http = http
        self.trusted = trusted
        self.required = required
        self.seconds = seconds
        self.on_refused = on_refused
        self.waiting: set[asyncio.Transport] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return _Greeting(self)

    def __repr__(self) -> str:
        return f"ProxyProtocol({len(self.waiting)} waiting for their header)"

    def close(self) -> None:
        """Drop the connections whose header has not come yet: the HTTP server does not know them."""
        for transport in list(self.waiting):
            transport.abort()

    def hand_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Let HTTP have the connection from here on."""
        hand_on(transport, cast("asyncio.Protocol", self.http()), rest)


class _Greeting(asyncio.Protocol):
    """A connection until its header is read."""

    __slots__ = ("_listener", "_reader", "_refused", "_timer", "_transport")

    def __init__(self, listener: ProxyProtocol) -> None:
        self._listener = listener
        self._reader = HeaderReader()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listener = self._listener
        self._transport = cast("asyncio.Transport", transport)
        if peer_address(transport.get_extra_info("peername")) in listener.trusted:
            listener.waiting.add(self._transport)
            self._timer = asyncio.get_running_loop().call_later(listener.seconds, self._refuse, "timeout")
        elif listener.required:
            self._refuse("untrusted")
        else:
            listener.hand_over(self._transport, b"")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            header = self._reader.feed(data)
        except HeaderMalformed:
            self._refuse("malformed")
            return
        if header is not None:
            self._stop_waiting()
            raw = self._transport
            self._listener.hand_over(raw if header.peername is None else ProxiedTransport(raw, header.peername), header.rest)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._stop_waiting()
        if not self._refused:
            self._listener.on_refused("closed")

    def _refuse(self, reason: Refusal) -> None:
        self._refused = True
        self._stop_waiting()
        self._transport.abort()
        self._listener.on_refused(reason)

    def _stop_waiting(self) -> None:
        self._listener.waiting.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()
