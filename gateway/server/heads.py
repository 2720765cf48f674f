"""Heads of requests that aiohttp's parser lets through, and that two readers could take for different ones (sans-I/O)."""

from __future__ import annotations

import re

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11

from gateway.errors import NotFound, RequestMalformed

# RFC 9110 §7.2, with the names that DNS can have: commas and the like only serve to deceive whoever looks at lists of hosts.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(?::[0-9]{0,5})?", re.ASCII)


def check_head(message: RawRequestMessage) -> None:
    """Raise RequestMalformed, or NotFound for CONNECT, for a head that no server of ours may act upon.

    That is one of another version (RFC 9110 §15.6.6), CONNECT (§9.3.6), a target with user information (§4.2.4) or a fragment
    (RFC 9112 §3.2), a Host that is none (§3.2), and a transfer coding that is not chunked alone, or comes with HTTP/1.0 (§6.1).
    """
    headers, target = message.headers, message.path
    if message.version not in (HttpVersion10, HttpVersion11):
        raise RequestMalformed
    if hdrs.TRANSFER_ENCODING in headers:
        codings = headers.getall(hdrs.TRANSFER_ENCODING)
        if message.version == HttpVersion10 or len(codings) != 1 or codings[0].lower() != "chunked":
            raise RequestMalformed("The only transfer coding that is known is chunked, of HTTP/1.1.")
    if not _HOST.fullmatch(headers.get(hdrs.HOST, "")) or "#" in target:
        raise RequestMalformed
    if message.method == hdrs.METH_CONNECT:
        raise NotFound
    if target[:1] != "/" and target != "*":
        _check_absolute(target)


def _check_absolute(target: str) -> None:
    authority = re.split("[/?]", target.partition("://")[2], maxsplit=1)[0]
    if not (authority and _HOST.fullmatch(authority)):
        raise RequestMalformed
