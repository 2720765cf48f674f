"""How a backend's answer gets to the client, over real sockets: packed, as it comes, broken off, or not taken."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from livegateway import Live, live
from proxy.backend import Visit, answering, backend, ok
from server.throughroute import behind, raw
from waiting import eventually


async def test_compressed() -> None:
    """What the client takes, where the route asks for it."""
    text = b"hello " * 1000
    async with (
        backend(answering(ok(text, b"Content-Type: text/plain", b'ETag: "a"'))) as here,
        live(**behind(here, compress=True)) as gateway,
    ):
        reply = await gateway.ask("GET", "/x", headers={"Accept-Encoding": "gzip"})
        assert (reply.headers["Content-Encoding"], reply.headers["ETag"]) == ("gzip", 'W/"a"')
        assert gzip.decompress(reply.body) == text
        reply = await gateway.ask("GET", "/x", headers={"Accept-Encoding": "identity"})
        assert reply.body == text
        assert reply.headers["Vary"] == "Accept-Encoding"


async def test_a_stream_of_events_comes_as_it_comes() -> None:
    """Nothing is kept back, and it counts as held."""
    more = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        await visit.say(b"data: 2\n\n")

    async with backend(script) as here, live(**behind(here)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"data: 1\n\n\r\n")).startswith(b"HTTP/1.1 200")
        assert (await gateway.metrics())["gateway_upstream_outstanding{held,shop}"] == 1
        more.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        writer.close()


async def test_an_answer_that_breaks_off_is_cut() -> None:
    """A client never takes half an answer for a whole one."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")

    async with backend(script) as here, live(**behind(here)) as gateway:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await raw(gateway, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", until=b"0\r\n\r\n")


async def test_an_early_hint_for_a_client_that_has_left() -> None:
    """It does no harm to the one who waits for the same answer."""
    go = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await go.wait()
        await visit.say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"all", b"Cache-Control: max-age=60"))
        await visit.head()

    async with backend(script) as here, live(**behind(here, cache={})) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: here.heads)
        following = asyncio.ensure_future(raw(gateway, b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
        await eventually(lambda: _interest(gateway, 2))
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: _interest(gateway, 1))
        go.set()
        assert (await following).endswith(b"all")
        assert len(here.heads) == 1


def _interest(gateway: Live, count: int) -> bool:
    (cache,) = gateway.gateway.proxied._caches
    return [flight.interest for kinds in cache._flights.values() for flight in kinds.values()] == [count]


async def test_a_client_that_asks_and_does_not_read_is_not_answered() -> None:
    """It has to take what it asked for before: else its answers would pile up here without an end."""
    async with backend(answering(ok(b"x" * 100_000))) as here, live(**behind(here)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port, limit=2**10)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 300)
        for _ in range(100):
            await gateway.ask("GET", "/other")
        unread = [head for head in here.heads if head.startswith(b"GET /x ")]
        assert len(unread) < 100
        size = 0
        while size < 3 * 10**7:
            data = await reader.read(2**20)
            assert data
            size += len(data)
        writer.close()


async def test_a_client_that_does_not_take_its_answer_in_time() -> None:
    """`total` is for all of an exchange: then its connection is cut, and its place is somebody else's."""
    timeouts = {"first_byte": 0.5, "idle": 0.5, "connect": 0.5, "total": 0.5}
    async with backend(answering(ok(b"x" * 10**7))) as here, live(**behind(here, timeouts=timeouts)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port, limit=2**10)
        writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        turnstile = gateway.gateway.proxied._backends["shop"].turnstile
        await eventually(lambda: turnstile.working == 1)
        await eventually(lambda: turnstile.working == 0)
        samples = await gateway.metrics()
        assert samples["gateway_upstream_attempts_total{client,shop}"] == 1
        assert samples["gateway_proxy_requests_total{shop,4xx}"] == 1
        assert len(await taken(reader)) < 10**7
        writer.close()


async def taken(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection ends, in whatever way."""
    data = b""
    try:
        while part := await reader.read(2**20):
            data += part
    except ConnectionError:
        pass
    return data
