"""Compression of answers: what the client takes, what is worth it, what the head says then."""

from __future__ import annotations

import zlib

import pytest
from multidict import CIMultiDict

from gateway.proxy.compression import Compressor, coding_for, mark, pays


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("br, zstd", None),
        ("GZIP ; Q=1", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=nonsense", None),
        ("gzip;q=7", None),
        ("gzip;level=9", "gzip"),
        ("identity;q=0", None),
    ],
)
def test_the_client_chooses(accepted: str | None, coding: str | None) -> None:
    """RFC 9110 §12.5.3: by weight, `*` for what is not named, and nothing that is weighted 0."""
    assert coding_for(accepted) == coding


@pytest.mark.parametrize(
    ("status", "fields", "size", "worth"),
    [
        (200, {"Content-Type": "text/plain; charset=utf-8"}, 2000, True),
        (200, {"Content-Type": "application/problem+json"}, None, True),
        (200, {"Content-Type": "Application/JSON"}, 1024, True),
        (404, {"Content-Type": "text/html"}, 2000, True),
        (200, {"Content-Type": "text/plain"}, 1023, False),
        (200, {"Content-Type": "image/png"}, 2000, False),
        (200, {"Content-Type": "text/event-stream"}, None, False),
        (200, {}, 2000, False),
        (200, {"Content-Type": "text/plain", "Content-Encoding": "br"}, 2000, False),
        (200, {"Content-Type": "text/plain", "Cache-Control": "max-age=1, No-Transform"}, 2000, False),
        (206, {"Content-Type": "text/plain"}, 2000, False),
        (416, {"Content-Type": "text/plain", "Content-Range": "bytes */9"}, 2000, False),
        (204, {"Content-Type": "text/plain"}, None, False),
        (304, {"Content-Type": "text/plain"}, None, False),
        (103, {"Content-Type": "text/plain"}, None, False),
    ],
)
def test_what_is_worth_it(status: int, fields: dict[str, str], size: int | None, worth: bool) -> None:
    """Text of some length that is not coded, not in part, and that nobody forbids to change."""
    assert pays(status, CIMultiDict(fields), size) is worth


def test_the_head_of_a_coded_answer() -> None:
    """RFC 9110 §8.8.1 and §12.5.5: a weak validator, no length of other bytes, and Vary."""
    headers = CIMultiDict({"Content-Length": "2000", "ETag": '"a"', "Accept-Ranges": "bytes", "Vary": "Cookie"})
    mark(headers, "gzip")
    assert list(headers.items()) == [
        ("ETag", 'W/"a"'),
        ("Vary", "Cookie"),
        ("Vary", "Accept-Encoding"),
        ("Content-Encoding", "gzip"),
    ]


@pytest.mark.parametrize("vary", ["accept-encoding", "*", "Cookie, Accept-Encoding"])
def test_vary_is_said_once_and_also_where_nothing_was_coded(vary: str) -> None:
    """A cache must know that the next client may get other bytes."""
    headers = CIMultiDict({"Vary": vary, "ETag": 'W/"a"'})
    mark(headers, None)
    assert headers == CIMultiDict({"Vary": vary, "ETag": 'W/"a"'})
    mark(headers, "deflate")
    assert headers["ETag"] == 'W/"a"'


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_each_part_can_be_unpacked_when_it_comes(coding: str) -> None:
    """What the backend has sent is not kept back until more comes."""
    packer = Compressor(coding)  # type: ignore[arg-type]
    unpacker = zlib.decompressobj(47)
    for part in (b"one", b"two" * 1000):
        assert unpacker.decompress(packer.feed(part)) == part
    assert unpacker.decompress(packer.end(b"three")) == b"three"
    assert unpacker.eof
