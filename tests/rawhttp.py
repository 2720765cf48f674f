"""HTTP over a bare socket, for requests that no client library would send, and what two answers must have in common."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawReply:
    """One answer. `headers` in order, names as sent; `closed`: the server closed the connection after it.

    `head` is status line and fields as they came.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    closed: bool
    head: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the value of a header field, the values of several joined by commas."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def exchange(port: int, data: bytes, *, head: bool = False, timeout: float = 10.0) -> RawReply:
    """Send bytes on a new connection and return the first final answer; `head`: an answer to HEAD has no body."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        return receive(connection, head=head)


def receive(connection: socket.socket, *, head: bool = False) -> RawReply:
    """Read one final answer; where it says that the connection closes, wait for that."""
    connection.setblocking(True)
    with connection.makefile("rb") as stream:
        status = 100
        while status == 100:
            line = stream.readline()
            if not line:
                raise ConnectionResetError("closed without an answer")
            status = int(line.split(b" ", 2)[1])
            headers, whole = [], line
            while (line := stream.readline()).rstrip(b"\r\n") != b"":
                name, _, value = line.decode("latin-1").partition(":")
                headers.append((name, value.strip()))
                whole += line
        lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
        body = stream.read(lengths[0]) if lengths and not head else b""
        says = any(name.lower() == "connection" and value.lower() == "close" for name, value in headers)
        closed = False
        if says:
            try:
                closed = stream.read(1) == b""
            except ConnectionResetError:
                closed = True
    return RawReply(status, headers, body, closed, whole)


_OWN_ID = re.compile(rb'(?i:(X-Request-Id: |"request_id":"))[0-9a-f]{16}(?=["\r])')
_DATE = re.compile(rb"(?im:^Date: )[^\r]*")
_PER_CLIENT = re.compile(rb"(?im:^(?:RateLimit|RateLimit-Policy|X-Request-Id): [^\r]*\r\n)")
_GOOD = re.compile(rb"HTTP/1\.[01] 20[04] ")


def comparable(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return an answer without what may differ where it comes from a lane.

    That is the time and, in a 200 or 204, the fields that are each client's own. An id that the server
    gave a request differs too; one that came with the request does not.
    """
    head = _DATE.sub(b"Date: (now)", _OWN_ID.sub(rb"\1(id)", head))
    if _GOOD.match(head):
        head = _PER_CLIENT.sub(b"", head)
    return head, _OWN_ID.sub(rb"\1(id)", body)
