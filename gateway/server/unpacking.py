"""Bodies that come compressed (RFC 9110 §8.4): unpacked as far as the bound of bodies allows (sans-I/O)."""

from __future__ import annotations

import zlib

from gateway.errors import BodyTooLarge, RequestMalformed

_GZIP = 16 + zlib.MAX_WBITS


def unpacked(body: bytes, coding: str, *, limit: int) -> bytes:
    """Return a body without its coding: gzip, deflate, or none of them; RequestMalformed, BodyTooLarge beyond `limit` bytes."""
    coding = coding.lower()
    if coding not in ("gzip", "x-gzip", "deflate") or not body:
        return body
    # RFC 9110 §8.4.1.2: some send deflate without the zlib format around it.
    wrapped = coding != "deflate" or body[0] & 0x0F == zlib.DEFLATED
    stream = zlib.decompressobj((_GZIP if coding != "deflate" else zlib.MAX_WBITS) if wrapped else -zlib.MAX_WBITS)
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestMalformed("The body is not framed or coded as its head says.") from error
    if len(whole) > limit:
        raise BodyTooLarge(limit)
    if not stream.eof:
        raise RequestMalformed("The body is not framed or coded as its head says.")
    return whole
