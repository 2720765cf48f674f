"""GET /v1/client.js: the JavaScript client comes with the gateway that it belongs to."""

from __future__ import annotations

from importlib import resources

from livegateway import live
from proxy.backend import answering, backend, ok
from server.throughroute import behind


async def test_the_module() -> None:
    """It is public, for pages of any origin, and what is in the package."""
    async with live() as gateway:
        reply = await gateway.ask("GET", "/v1/client.js", headers={"Origin": "https://page.test"})
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert reply.headers["Cache-Control"] == "public, max-age=3600"
        assert reply.body == (resources.files("gateway") / "javascript" / "longpoll.js").read_bytes()


async def test_it_is_not_sent_twice() -> None:
    """RFC 9110 §13.1.2: who has it is told so."""
    async with live() as gateway:
        etag = (await gateway.ask("GET", "/v1/client.js")).headers["ETag"]
        known = await gateway.ask("GET", "/v1/client.js", headers={"If-None-Match": etag})
        assert (known.status, known.body, known.headers["ETag"]) == (304, b"", etag)
        assert (await gateway.ask("GET", "/v1/client.js", headers={"If-None-Match": '"other"'})).status == 200
        head = await gateway.ask("HEAD", "/v1/client.js")
        assert (head.status, head.body) == (200, b"")


async def test_a_route_does_not_take_it() -> None:
    """The path is the gateway's own."""
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway:
        assert (await gateway.ask("GET", "/v1/client.js")).status == 200
        assert not here.heads
