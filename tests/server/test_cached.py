"""Routes with a cache, over real sockets: what is stored, what goes past it, and what the key is made of."""

from __future__ import annotations

from livegateway import live
from proxy.backend import Visit, answering, backend, ok
from server.throughroute import behind


async def test_stored_answers() -> None:
    """The second one comes from the cache."""
    async with (
        backend(answering(ok(b"hello", b"Cache-Control: max-age=60"))) as here,
        live(**behind(here, cache={})) as gateway,
    ):
        for _ in range(2):
            assert (await gateway.ask("GET", "/x")).body == b"hello"
        assert len(here.heads) == 1
        assert (await gateway.metrics())["gateway_proxy_cache_total{hit,shop}"] == 1


async def test_a_get_with_a_body_goes_past_the_cache() -> None:
    """RFC 9110 §9.3.1: its answer may depend on the body, which is not in the cache's key."""

    async def script(visit: Visit) -> None:
        while head := await visit.head():
            poisoned = await visit.body(4) if b"Content-Length: 4" in head else b"good"
            await visit.say(ok(poisoned, b"Cache-Control: max-age=60"))

    async with backend(script) as here, live(**behind(here, cache={})) as gateway:
        assert (await gateway.ask("GET", "/x", data=b"evil")).body == b"evil"
        assert (await gateway.ask("GET", "/x")).body == b"good"
        assert (await gateway.ask("GET", "/x", data=b"evil")).body == b"evil"
        assert (await gateway.ask("GET", "/x")).body == b"good"
        assert len(here.heads) == 3


async def test_what_a_backend_is_told_of_the_clients_host_and_scheme_is_in_the_caches_key() -> None:
    """Proxies in front pass on what clients say there: nobody gets an answer with links to a host that somebody else named."""

    async def script(visit: Visit) -> None:
        while head := await visit.head():
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
            said = f"{fields['X-Forwarded-Proto']}://{fields['X-Forwarded-Host']}"
            await visit.say(ok(said.encode(), b"Cache-Control: max-age=60"))

    behind_proxy = {"server": {"trusted_proxies": ["127.0.0.1"]}}
    async with backend(script) as here, live(**behind(here, cache={}), **behind_proxy) as gateway:
        for fields in (
            {"X-Forwarded-Host": "evil.test"},
            {"X-Forwarded-Proto": "https"},
            {"X-Forwarded-Host": "[", "Host": "a"},
        ):
            other = (await gateway.ask("GET", "/x", headers=fields)).body
            own = (await gateway.ask("GET", "/x")).body
            assert own == f"http://127.0.0.1:{gateway.gateway.port}".encode() != other
        assert len(here.heads) == 4
