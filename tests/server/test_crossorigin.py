"""Cross-origin requests for backends, over real sockets: what a page may ask for and see."""

from __future__ import annotations

from livegateway import live
from proxy.backend import answering, backend, ok
from server.throughroute import behind


async def test_cross_origin() -> None:
    """Preflights are answered here, and the backend's own fields for this replaced."""
    route = {"cors": {"origins": ["https://app.test"]}, "methods": ["PUT", "GET"], "headers": {}}
    wire = ok(b"", b"Access-Control-Allow-Origin: *", b"X-Total: 5")
    async with backend(answering(wire)) as here, live(**behind(here, **route)) as gateway:
        asked = {
            "Origin": "https://app.test",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "x-own",
        }
        reply = await gateway.ask("OPTIONS", "/x", headers=asked)
        assert reply.status == 204
        assert reply.headers["Access-Control-Allow-Methods"] == "PUT"
        assert reply.headers["Access-Control-Allow-Headers"] == "x-own"
        assert here.heads == []
        reply = await gateway.ask("GET", "/x", headers={"Origin": "https://app.test"})
        assert reply.headers.getall("Access-Control-Allow-Origin") == ["https://app.test"]
        assert "X-Total" in reply.headers["Access-Control-Expose-Headers"]
        assert reply.headers["Vary"] == "Origin"
        reply = await gateway.ask("GET", "/x", headers={"Origin": "https://evil.test"})
        assert "Access-Control-Allow-Origin" not in reply.headers
        reply = await gateway.ask("OPTIONS", "/x", headers=asked | {"Origin": "https://evil.test"})
        assert "Access-Control-Allow-Origin" not in reply.headers
