"""Heads that the parser lets through."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from gateway.errors import NotFound, RequestMalformed
from gateway.server.heads import check_head


async def parsed(head: str) -> RawRequestMessage:
    """Have aiohttp parse a head."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
    messages, _, _ = parser.feed_data(head.replace("\n", "\r\n").encode("latin-1"))
    return messages[0][0]


@pytest.mark.parametrize(
    "head",
    [
        "GET /x HTTP/1.1\nHost: a\n\n",
        "GET /x HTTP/1.1\nHost: A.b-c_d:8080\n\n",
        "GET /x HTTP/1.1\nHost: [2001:db8::1]:80\n\n",
        "GET /x HTTP/1.1\nHost:\n\n",
        "GET /x HTTP/1.0\n\n",
        "POST /x HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n\n",
        "OPTIONS * HTTP/1.1\nHost: a\n\n",
        "GET http://a:80/x?y HTTP/1.1\nHost: b\n\n",
        "GET http://a?y HTTP/1.1\nHost: a\n\n",
    ],
)
async def test_good_ones(head: str) -> None:
    """Nothing is raised for a head as the RFCs have it."""
    check_head(await parsed(head))


@pytest.mark.parametrize(
    "head",
    [
        "GET /x HTTP/2.0\nHost: a\n\n",
        "GET /x\nHost: a\n\n",
        "POST /x HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n\n",
        "POST /x HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\n\n",
        "GET /x HTTP/1.1\nHost: a b\n\n",
        "GET /x HTTP/1.1\nHost: a, b\n\n",
        "GET /x HTTP/1.1\nHost: a@b\n\n",
        "GET /x HTTP/1.1\nHost: [::1\n\n",
        "GET /x#y HTTP/1.1\nHost: a\n\n",
        "GET http://me@a/x HTTP/1.1\nHost: a\n\n",
    ],
)
async def test_bad_ones(head: str) -> None:
    """No server acts upon a head that another could take for another."""
    with pytest.raises(RequestMalformed):
        check_head(await parsed(head))


@pytest.mark.parametrize("target", ["a:443", "/x"])
async def test_no_tunnels(target: str) -> None:
    """RFC 9110 §9.3.6: CONNECT leads nowhere, in any form."""
    head = f"CONNECT {target} HTTP/1.1\nHost: a\n\n"
    if target == "/x":
        message = (await parsed("GET /x HTTP/1.1\nHost: a\n\n"))._replace(method="CONNECT")
    else:
        message = await parsed(head)
    with pytest.raises(NotFound):
        check_head(message)
