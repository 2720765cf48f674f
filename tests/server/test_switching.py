"""Upgrades, over real sockets: what becomes a tunnel, what does not, and what it counts as."""

from __future__ import annotations

import asyncio

from livegateway import live
from proxy.backend import Visit, answering, backend, ok
from server.throughroute import behind, held_at_shop, raw
from waiting import eventually

UPGRADE = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def test_an_upgrade() -> None:
    """RFC 6455: after 101 the bytes go both ways, unread; both ends are counted when it is over."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while data := await visit.reader.read(100):
            await visit.say(data.upper())

    ask = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\nearly"
    async with backend(script) as here, live(**behind(here)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(ask)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert b"Upgrade: websocket\r\n" in head
        assert await reader.readexactly(10) == b"helloEARLY"
        writer.write(b"late")
        assert await reader.readexactly(4) == b"LATE"
        assert b"Upgrade: websocket\r\n" in here.heads[0]
        assert (await gateway.metrics())["gateway_upstream_outstanding{held,shop}"] == 1
        writer.close()
        await eventually(lambda: held_at_shop(gateway, 0))
        assert (await gateway.metrics())["gateway_proxy_requests_total{shop,1xx}"] == 1


async def test_an_upgrade_that_is_declined() -> None:
    """The connection stays HTTP, and the next request on it is answered."""
    ask = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    last = b"GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway:
        assert (await raw(gateway, ask + last)).count(b"HTTP/1.1 200") == 2


async def test_an_upgrade_for_which_there_is_no_room() -> None:
    """503, and neither its place nor its connection to the backend is lost for good."""
    ended = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(SWITCHED)
        await visit.reader.read()
        ended.set()

    upstream = {"limits": {"held": 1, "concurrent": 1, "queue": 0}}
    async with backend(script) as here, live(**behind(here, upstream)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        for _ in range(3):
            answer = await raw(gateway, UPGRADE, until=b"}")
            assert b'"code":"overloaded"' in answer
        async with asyncio.timeout(5):
            await ended.wait()
        samples = await gateway.metrics()
        assert samples["gateway_upstream_outstanding{working,shop}"] == 0
        assert samples["gateway_upstream_connections{busy,shop}"] == 0
        writer.close()
        await eventually(lambda: held_at_shop(gateway, 0))


async def test_what_has_switched_protocols_is_one_of_those_at_once() -> None:
    """The route's bound of each principal holds for as long as the connection does."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(SWITCHED)
        await visit.reader.read()

    async with backend(script) as here, live(**behind(here, limits={"concurrent": 1})) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert b'"code":"too_many_polls"' in await raw(gateway, UPGRADE, until=b"}")
        writer.close()
        await eventually(lambda: held_at_shop(gateway, 0))
        assert (await raw(gateway, UPGRADE, until=b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
