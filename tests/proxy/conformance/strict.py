"""Reading messages as RFC 9112 has them, and nothing else: what a gateway sends has to be beyond doubt (sans-I/O)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+) HTTP/1\.1")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) ([\t -~\x80-\xff]*)")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True)
class Message:
    """A message. `line` is its first line, `trailers` the fields behind a chunked body; `whole`: all of it as it came."""

    line: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    whole: bytes = b""

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int(self.line.split(" ", 2)[1])

    def all(self, name: str) -> list[str]:
        """Return the values of a field in their order."""
        return values(self.fields, name)

    @property
    def chunked(self) -> bool:
        """Whether its body came in chunks."""
        return bool(self.all("Transfer-Encoding"))


def values(fields: list[tuple[str, str]], name: str) -> list[str]:
    """Return the values of a field in their order."""
    return [value for key, value in fields if key.lower() == name.lower()]


def request(data: bytes | bytearray) -> tuple[Message, bytes | bytearray] | None:
    """Read a request and return it with what follows; None if it is not all there. AssertionError for what is none."""
    found = _head(data, _REQUEST)
    if found is None:
        return None
    line, fields, at = found
    assert len(values(fields, "Host")) == 1, f"not one Host: {data[:at]!r}"
    return _with_body(data, line, fields, at, eof=False, until_eof=False)


def answer(data: bytes | bytearray, *, bodiless: bool = False, eof: bool = False) -> tuple[Message, bytes | bytearray] | None:
    """Read an answer, like `request`. `bodiless`: to HEAD; `eof`: nothing follows any more."""
    found = _head(data, _STATUS)
    if found is None:
        return None
    line, fields, at = found
    status = int(line.split(" ", 2)[1])
    if status < 200 or status in _BODILESS or bodiless:
        if status < 200 or status == 204:
            # RFC 9112 §6.1, RFC 9110 §8.6
            assert not values(fields, "Transfer-Encoding"), f"Transfer-Encoding in {status}"
            assert not values(fields, "Content-Length"), f"Content-Length in {status}"
        return Message(line, fields, whole=data[:at]), data[at:]
    return _with_body(data, line, fields, at, eof=eof, until_eof=True)


def _head(data: bytes | bytearray, first: re.Pattern[bytes]) -> tuple[str, list[tuple[str, str]], int] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        assert not re.search(rb"(?<!\r)\n|\r(?!\n|\Z)", data[:20000]), f"a bare line break: {data[:500]!r}"
        return None
    lines = data[:end].split(b"\r\n")
    assert first.fullmatch(lines[0]), f"first line: {lines[0]!r}"
    return lines[0].decode("latin-1"), list(_fields(lines[1:])), end + 4


def _fields(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    for line in lines:
        found = _FIELD.fullmatch(line)
        assert found, f"field: {line!r}"
        yield found[1].decode("latin-1"), (found[2] or b"").decode("latin-1")


def _with_body(
    data: bytes | bytearray, line: str, fields: list[tuple[str, str]], at: int, *, eof: bool, until_eof: bool
) -> tuple[Message, bytes | bytearray] | None:
    coding, length = values(fields, "Transfer-Encoding"), values(fields, "Content-Length")
    assert not (coding and length), f"two framings: {data[:at]!r}"
    if coding:
        assert coding == ["chunked"], coding
        return _chunked(data, line, fields, at)
    if length:
        assert len(length) == 1, length
        assert re.fullmatch("[0-9]+", length[0]), length
        end = at + int(length[0])
        return (Message(line, fields, data[at:end], whole=data[:end]), data[end:]) if len(data) >= end else None
    if until_eof:
        return (Message(line, fields, data[at:], whole=data), b"") if eof else None
    return Message(line, fields, whole=data[:at]), data[at:]


def _chunked(
    data: bytes | bytearray, line: str, fields: list[tuple[str, str]], at: int
) -> tuple[Message, bytes | bytearray] | None:
    body = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        assert _SIZE.fullmatch(data[at:end]), f"chunk size: {data[at:end][:50]!r}"
        size, at = int(data[at:end], 16), end + 2
        if size == 0:
            break
        if len(data) < at + size + 2:
            return None
        assert data[at + size : at + size + 2] == b"\r\n", "the end of a chunk"
        body.append(data[at : at + size])
        at += size + 2
    trailers: list[bytes] = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        trailer, at = data[at:end], end + 2
        if not trailer:
            return Message(line, fields, b"".join(body), list(_fields(trailers)), data[:at]), data[at:]
        trailers.append(trailer)
