"""Bodies that come compressed."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.errors import BodyTooLarge, RequestMalformed
from gateway.server.unpacking import unpacked

VALUE = b'{"text":"hi"}' * 10


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", VALUE),
        ("identity", VALUE),
        ("gzip", gzip.compress(VALUE, mtime=0)),
        ("GZIP", gzip.compress(VALUE, mtime=0)),
        ("x-gzip", gzip.compress(VALUE, mtime=0)),
        ("deflate", zlib.compress(VALUE)),
        ("deflate", zlib.compress(VALUE)[2:-4]),
    ],
)
def test_a_body_is_unpacked(coding: str, packed: bytes) -> None:
    """RFC 9110 §8.4.1, deflate also without the zlib format, as some send it."""
    assert unpacked(packed, coding, limit=1000) == VALUE


def test_nothing_is_nothing() -> None:
    """An empty body has no coding."""
    assert unpacked(b"", "gzip", limit=10) == b""


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_not_unpacked(coding: str) -> None:
    """The bound holds for what comes out, and no more than that is made."""
    bomb = (gzip.compress if coding == "gzip" else zlib.compress)(b"0" * 10_000_000)
    with pytest.raises(BodyTooLarge):
        unpacked(bomb, coding, limit=1000)


@pytest.mark.parametrize("packed", [b"no gzip", gzip.compress(VALUE, mtime=0)[:-9]])
def test_what_cannot_be_unpacked_is_refused(packed: bytes) -> None:
    """Garbage, and what breaks off."""
    with pytest.raises(RequestMalformed):
        unpacked(packed, "gzip", limit=1000)
