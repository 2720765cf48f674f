"""Requests for backends, over real sockets: what each passes, and what comes back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any

import pytest
from livegateway import Live, live, token
from proxy.backend import Backend, Visit, answering, backend, ok
from waiting import eventually


def behind(here: Backend, /, upstream: Mapping[str, Any] | None = None, **route: Any) -> dict[str, Any]:
    """Return the sections for one route to one backend; by default it is public and takes everything."""
    return {
        "upstreams": {"shop": {"targets": [here.address], "retries": None} | dict(upstream or {})},
        "routes": {"shop": {"prefix": "/", "upstream": "shop", "public": True} | route},
    }


async def test_a_request_and_its_answer() -> None:
    """Path, query and fields go on as they came; the answer comes back with its own."""
    async with backend(answering(ok(b"hello", b"X-A: b", b"Server: shop"))) as here, live(**behind(here)) as gateway:
        reply = await gateway.ask("GET", "/a%20b/%7Ec?x=%41&y", headers={"X-Own": "1", "Cookie": "a=b"})
        assert (reply.status, reply.body, reply.headers["X-A"]) == (200, b"hello", "b")
        assert reply.headers["Server"] == "shop"
        assert reply.headers["Via"] == "1.1 longpoll-gateway"
        assert reply.headers["X-Request-Id"]
        head = here.heads[0].decode()
        assert head.startswith("GET /a%20b/%7Ec?x=%41&y HTTP/1.1\r\n")
        assert "\r\nX-Own: 1\r\n" in head
        assert "\r\nCookie: a=b\r\n" in head
        assert f"\r\nX-Request-Id: {reply.headers['X-Request-Id']}\r\n" in head
        assert "\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
        assert "\r\ntraceparent: 00-" in head


async def test_its_own_paths_stay_its_own() -> None:
    """A route for everything takes nothing of the gateway's."""
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway:
        assert (await gateway.poll("news")).status == 204
        assert (await gateway.ask("GET", "/livez")).status == 200
        assert (await gateway.ask("GET", "/v1/channels", headers=gateway.bearer())).json["channels"]
        assert (await gateway.ask("GET", "/v1/other")).body == b"ok"


async def test_identity_rule_and_claims() -> None:
    """The same tokens and rules as for channels; backends are told claims, and never what a client says of itself."""
    route = {"public": False, "allow": {"scope": "orders:read", "issuers": ["test"]}, "claims": {"X-User": "{claims.sub}"}}
    async with backend(answering(ok())) as here, live(**behind(here, **route)) as gateway:
        assert (await gateway.ask("GET", "/x")).code == "token_missing"
        assert (await gateway.ask("GET", "/x", headers=gateway.bearer())).code == "forbidden"
        bearer = gateway.bearer(token("ann", scope="orders:read"), {"X-User": "root", "x_user": "root"})
        assert (await gateway.ask("GET", "/x", headers=bearer)).status == 200
        head = here.heads[0].decode()
        assert "X-User: ann\r\n" in head
        assert "root" not in head
        assert "Authorization" not in head
        assert len(here.heads) == 1


async def test_rewritten() -> None:
    """Path, host and fields, as the route has it."""
    route = {
        "prefix": None,
        "path": "/orders/{id}",
        "rewrite": {"path": "/v2/{id}/items", "host": "shop.internal"},
        "request_headers": {"set": {"X-Id": "{id}"}, "remove": ["Cookie"]},
        "response_headers": {"set": {"X-Frame-Options": "DENY"}, "remove": ["Server"]},
    }
    async with backend(answering(ok(b"", b"Server: shop"))) as here, live(**behind(here, **route)) as gateway:
        reply = await gateway.ask("GET", "/orders/a%2Fb?x=1", headers={"Cookie": "a=b"})
        assert reply.status == 200
        assert "Server" not in reply.headers
        assert reply.headers["X-Frame-Options"] == "DENY"
        head = here.heads[0].decode()
        assert head.startswith("GET /v2/a%2Fb/items?x=1 HTTP/1.1\r\nHost: shop.internal\r\n")
        assert "X-Id: a/b\r\n" in head
        assert "Cookie" not in head
        assert (await gateway.ask("GET", "/orders")).code == "not_found"


async def test_methods() -> None:
    """RFC 9110 §15.5.6: 405 with Allow where only the method does not fit."""
    async with backend(answering(ok())) as here, live(**behind(here, methods=["GET"])) as gateway:
        reply = await gateway.ask("POST", "/x", data=b"1")
        assert (reply.code, reply.headers["Allow"]) == ("method_not_allowed", "GET, HEAD")
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    async with backend(answering(wire)) as here, live(**behind(here, methods=["GET"])) as gateway:
        reply = await gateway.ask("HEAD", "/x")
        assert (reply.status, reply.headers["Content-Length"]) == (200, "2")


@pytest.mark.parametrize("size", [3, 100_000])
async def test_bodies_both_ways(size: int) -> None:
    """Small and large, with a length."""
    sent = bytes(range(256)) * (size // 256) + b"end"

    async def script(visit: Visit) -> None:
        while await visit.head():
            await visit.say(ok(await visit.body(len(sent))))

    async with backend(script) as here, live(**behind(here)) as gateway:
        for _ in range(2):
            reply = await gateway.ask("POST", "/x", data=sent, headers={"Content-Encoding": "gzip"})
            assert (reply.status, reply.body) == (200, sent)
        assert b"Content-Encoding: gzip" in here.heads[0]


async def test_no_backend() -> None:
    """502 as a problem document, with the origin's right to read it."""
    async with backend(answering(ok())) as here:
        sections = behind(here, cors={"origins": ["https://app.test"]})
    async with live(**sections) as gateway:
        reply = await gateway.ask("GET", "/x", headers={"Origin": "https://app.test"})
        assert reply.code == "upstream_failed"
        assert reply.headers["Access-Control-Allow-Origin"] == "https://app.test"
        samples = await gateway.metrics()
        assert samples["gateway_proxy_requests_total{shop,5xx}"] == 1
        assert samples["gateway_upstream_attempts_total{connect,shop}"] == 1


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


async def test_limits() -> None:
    """Per route: requests in time, and requests at once."""
    release = asyncio.Event()

    async def script(visit: Visit) -> None:
        while await visit.head():
            await release.wait()
            await visit.say(ok())

    route = {"limits": {"requests": {"rate": 0.01, "burst": 3}, "concurrent": 1}}
    async with backend(script) as here, live(**behind(here, **route)) as gateway:
        held = asyncio.ensure_future(gateway.ask("GET", "/x"))
        await eventually(lambda: here.heads)
        assert (await gateway.ask("GET", "/x")).code == "too_many_polls"
        release.set()
        assert (await held).status == 200
        assert (await gateway.ask("GET", "/x")).status == 200
        assert (await gateway.ask("GET", "/x")).code == "rate_limited"


async def test_a_route_past_its_sunset() -> None:
    """RFC 8594, RFC 9745: announced before, 410 after."""
    route = {"deprecated": "2020-01-01", "sunset": "2021-01-01", "successor": "/v2/x"}
    async with backend(answering(ok())) as here, live(**behind(here, **route)) as gateway:
        reply = await gateway.ask("GET", "/x")
        assert (reply.code, reply.json["successor"]) == ("gone", "/v2/x")
        assert reply.headers["Sunset"] == "Fri, 01 Jan 2021 00:00:00 GMT"
        assert 'rel="successor-version"' in reply.headers["Link"]
    async with backend(answering(ok())) as here, live(**behind(here, **route | {"sunset": "2099-01-01"})) as gateway:
        reply = await gateway.ask("GET", "/x")
        assert (reply.status, reply.headers["Deprecation"]) == (200, "@1577836800")


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


async def raw(gateway: Live, *parts: bytes, until: bytes = b"") -> bytes:
    """Send bytes and return what comes back, up to `until` or the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


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
        await eventually(lambda: _outstanding(gateway, 0))
        assert (await gateway.metrics())["gateway_proxy_requests_total{shop,1xx}"] == 1


async def _outstanding(gateway: Live, count: int) -> bool:
    return (await gateway.metrics())["gateway_upstream_outstanding{held,shop}"] == count


async def test_an_upgrade_that_is_declined() -> None:
    """The connection stays HTTP, and the next request on it is answered."""
    ask = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    last = b"GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway:
        assert (await raw(gateway, ask + last)).count(b"HTTP/1.1 200") == 2


async def test_an_answer_that_breaks_off_is_cut() -> None:
    """A client never takes half an answer for a whole one."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")

    async with backend(script) as here, live(**behind(here)) as gateway:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await raw(gateway, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", until=b"0\r\n\r\n")


async def test_drain_ends_long_polls() -> None:
    """503 `draining`: the client asks another instance."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, live(**behind(here, hold={})) as gateway:
        held = [asyncio.ensure_future(gateway.ask("GET", "/x")) for _ in range(5)]
        await eventually(lambda: len(here.heads) == 5)
        await gateway.gateway.drain()
        for reply in await asyncio.gather(*held):
            assert reply.code == "draining"
            assert reply.headers["Connection"] == "close"


async def test_a_body_that_does_not_come() -> None:
    """408, and the backend is not to blame."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"
    timeouts = {"idle": 0.2, "first_byte": 5, "total": 10}
    async with backend(script) as here, live(**behind(here, timeouts=timeouts)) as gateway:
        answer = await raw(gateway, head, until=b"}")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        assert b"Connection: close" in answer
        assert (await gateway.metrics())["gateway_upstream_attempts_total{client,shop}"] == 1


async def test_a_backend_that_does_not_answer_in_time() -> None:
    """504, and the client can tell it from a failure."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, live(**behind(here, timeouts={"first_byte": 0.2})) as gateway:
        assert (await gateway.ask("POST", "/x")).code == "upstream_timeout"


async def test_a_backend_that_is_given_rest() -> None:
    """503 with Retry-After, without a connection to it; the state is in the metrics."""
    async with backend(answering(ok())) as here:
        sections = behind(here, {"breaker": {"consecutive": 2, "open": 30}})
    async with live(**sections) as gateway:
        for code in ("upstream_failed", "upstream_failed", "circuit_open"):
            reply = await gateway.ask("GET", "/x")
            assert reply.code == code
        assert 25 <= int(reply.headers["Retry-After"]) <= 30
        assert (await gateway.metrics())["gateway_upstream_targets{open,shop}"] == 1


async def test_checks_find_a_target_unhealthy_and_well_again() -> None:
    """Its share goes to the others meanwhile."""
    well = True

    async def script(visit: Visit) -> None:
        while head := await visit.head():
            await visit.say(ok(b"first") if well or not head.startswith(b"GET /healthz") else ok(status=b"500 No"))

    async with backend(script) as first, backend(answering(ok(b"second"))) as second:
        upstream = {"targets": [first.address, second.address], "balance": "round_robin"}
        checks = {"health": {"path": "/healthz", "interval": 0.1, "timeout": 0.1, "rise": 1, "fall": 1}}
        async with live(**behind(first, upstream | checks)) as gateway:
            assert {(await gateway.ask("GET", "/x")).body for _ in range(4)} == {b"first", b"second"}
            well = False
            await eventually(lambda: _state(gateway, "unhealthy", 1))
            assert {(await gateway.ask("GET", "/x")).body for _ in range(4)} == {b"second"}
            well = True
            await eventually(lambda: _state(gateway, "available", 2))
            assert {(await gateway.ask("GET", "/x")).body for _ in range(4)} == {b"first", b"second"}


async def _state(gateway: Live, state: str, count: int) -> bool:
    return (await gateway.metrics())[f"gateway_upstream_targets{{{state},shop}}"] == count


async def test_targets_of_a_name() -> None:
    """Each of its addresses is one."""
    async with backend(answering(ok())) as here:
        upstream = {"targets": [{"dns": f"localhost:{here.port}"}]}
        async with live(**behind(here, upstream)) as gateway:
            assert (await gateway.ask("GET", "/x")).body == b"ok"


async def test_a_share_for_the_next_version() -> None:
    """Weighted, and always the same one for a subject."""
    async with backend(answering(ok(b"old"))) as old, backend(answering(ok(b"new"))) as new:
        shares = [{"upstream": "shop", "weight": 50}, {"upstream": "next", "weight": 50}]
        sections = behind(old, public=False, split={"to": shares, "on": "{claims.sub}"}, allow={"issuers": ["test"]})
        del sections["routes"]["shop"]["upstream"]
        sections["upstreams"]["next"] = {"targets": [new.address]}
        async with live(**sections) as gateway:
            seen = {}
            for name in map(str, range(20)):
                bodies = {(await gateway.ask("GET", "/x", headers=gateway.bearer(token(name)))).body for _ in range(2)}
                assert len(bodies) == 1
                seen[name] = bodies.pop()
            assert set(seen.values()) == {b"old", b"new"}


async def test_a_request_that_is_tried_again() -> None:
    """One of two targets is gone, and no client notices."""
    async with backend(answering(ok())) as gone:
        pass
    async with backend(answering(ok())) as here:
        upstream = {"targets": [gone.address, here.address], "retries": {}}
        async with live(**behind(here, upstream)) as gateway:
            assert {(await gateway.ask("POST", "/x")).status for _ in range(6)} == {200}
            assert (await gateway.metrics())["gateway_upstream_retries_total{shop}"] >= 1


UPGRADE = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


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
        await eventually(lambda: _outstanding(gateway, 0))


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
        await eventually(lambda: _outstanding(gateway, 0))
        assert (await raw(gateway, UPGRADE, until=b"\r\n\r\n")).startswith(b"HTTP/1.1 101")


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
