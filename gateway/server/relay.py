"""Sending a backend's answer to the client: head, body and trailers as they come, straight to the connection.

The framing is the connection's own (RFC 9112 §6): a length where there is one, else chunks, else, for HTTP/1.0, the end of the
connection. aiohttp is left with `Relayed`, which it has nothing to do for.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict

from gateway.proxy.headers import head_bytes
from gateway.server.protocol import Connection, Relayed

_NO_BODY = frozenset({204, 304})
_KEPT = Relayed(keep_alive=True)
_CLOSED = Relayed(keep_alive=False)


class Relay:
    """One answer to one request; begun once, with `send` or with `begin`."""

    def __init__(self, request: web.BaseRequest) -> None:
        protocol = request.protocol
        if not isinstance(protocol, Connection):
            raise AssertionError("our server makes only our connections")  # noqa: TRY004  # it cannot happen
        self._protocol = protocol
        self._modern = request.version >= HttpVersion11
        self._bodiless = request.method == hdrs.METH_HEAD
        self._keep_alive = request.keep_alive and not protocol._close  # noqa: SLF001  # nothing more will be read
        self._chunked = False
        self._ended = False
        self.began = False
        self.status = 0
        self.sent = 0

    def __repr__(self) -> str:
        return f"<Relay {self.status or 'not begun'}, {self.sent} bytes>"

    @property
    def result(self) -> Relayed:
        """What the handler returns to aiohttp."""
        return _KEPT if self._keep_alive and self._ended else _CLOSED

    async def ready(self) -> None:
        """Wait until the client has taken enough of the answers before this one; ConnectionError if it has left."""
        if self._protocol.writing_paused:
            await self._protocol._drain_helper()  # noqa: SLF001  # what aiohttp's own writer calls

    def close(self) -> None:
        """Have the connection end with this answer."""
        self._keep_alive = False

    def informational(self, status: int, reason: str, headers: CIMultiDict[str]) -> None:
        """Send a 1xx answer, if the client may get one (RFC 9110 §15.2: not with HTTP/1.0) and nothing else has begun.

        Nothing happens where the client has left: others may wait for what follows.
        """
        transport = self._protocol.transport
        if self._modern and not self.began and transport is not None and not transport.is_closing():
            transport.write(head_bytes(status_line(status, reason), headers.items()))

    def send(self, status: int, reason: str, headers: CIMultiDict[str], body: bytes) -> None:
        """Send an answer whose body is all there."""
        if self._bodiless or not complete(status, headers, len(body)):
            body = b""
        self._head(status, headers)
        self._transport().write(head_bytes(status_line(status, reason), headers.items()) + body)
        self.sent = len(body)
        self._ended = True

    def begin(self, status: int, reason: str, headers: CIMultiDict[str]) -> None:
        """Send the head; the body's length is in it, or is not known."""
        if status in _NO_BODY or self._bodiless:
            self._bodiless = True
        elif hdrs.CONTENT_LENGTH not in headers:
            if self._modern:
                self._chunked = True
                headers[hdrs.TRANSFER_ENCODING] = "chunked"
            else:
                self._keep_alive = False
        self._head(status, headers)
        self._transport().write(head_bytes(status_line(status, reason), headers.items()))

    async def write(self, data: bytes) -> None:
        """Send a part of the body, and wait until the client takes more."""
        if self._bodiless or not data:
            return
        self.sent += len(data)
        self._transport().write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        await self._protocol._drain_helper()  # noqa: SLF001  # what aiohttp's own writer calls

    def end(self, trailers: CIMultiDict[str] | None = None) -> None:
        """End the body."""
        self._ended = True
        if self._chunked:
            fields = b"" if trailers is None else head_bytes("", trailers.items())[2:-2]
            self._transport().write(b"0\r\n" + fields + b"\r\n")

    def switch(self, reason: str, headers: CIMultiDict[str]) -> None:
        """Send 101; the connection is another protocol's from then on."""
        self.began = True
        self.status = 101
        self._transport().write(head_bytes(status_line(101, reason), headers.items()))

    def abort(self) -> None:
        """Cut the connection: the client must not take what it has for the whole."""
        self._keep_alive = False
        transport = self._protocol.transport
        if transport is not None:
            transport.abort()

    def _head(self, status: int, headers: CIMultiDict[str]) -> None:
        self.began = True
        self.status = status
        if status == HTTPStatus.NO_CONTENT:
            headers.popall(hdrs.CONTENT_LENGTH, None)
        if not self._keep_alive:
            headers[hdrs.CONNECTION] = "close"
        elif not self._modern:
            headers[hdrs.CONNECTION] = "keep-alive"

    def _transport(self) -> asyncio.Transport:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        return transport


def complete(status: int, headers: CIMultiDict[str], size: int) -> bool:
    """Give a head the length of a body that is all there; False if the status has no body (RFC 9110 §8.6)."""
    if status in _NO_BODY:
        if status == HTTPStatus.NO_CONTENT:
            headers.popall(hdrs.CONTENT_LENGTH, None)
        return False
    headers[hdrs.CONTENT_LENGTH] = str(size)
    headers.popall(hdrs.TRAILER, None)
    return True


def status_line(status: int, reason: str) -> str:
    """Return the first line of an answer."""
    return f"HTTP/1.1 {status} {reason or _phrase(status)}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
