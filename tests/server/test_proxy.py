"""Requests for backends, over real sockets: what each passes, and what comes back."""

from __future__ import annotations

import asyncio

import pytest
from livegateway import Live, live, token
from proxy.backend import Visit, answering, backend, ok
from server.throughroute import behind, raw
from waiting import eventually


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
