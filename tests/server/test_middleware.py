"""What every exchange passes: ids, problems, counts, the access log, CORS."""

import json
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web
from livegateway import Live, live, token
from waiting import eventually

PAGE, OTHER = "https://app.test", "https://evil.test"
CORS = {"cors": {"origins": [PAGE]}}
EXPOSED = "Next-Cursor, Link, Retry-After, RateLimit, RateLimit-Policy, Preference-Applied, Backoff, Deprecation, Sunset"


def replace_channels_handler(gateway: Live, answer) -> None:
    """Have `answer` answer GET /v1/channels."""
    for route in gateway.gateway._listeners[0]._runner._app.router.routes():
        if getattr(route.handler, "__self__", None).__class__.__name__ == "ListChannels":
            route._handler = answer


# --- problems ---


async def test_an_unforeseen_error_is_logged_and_not_told(gateway: Live, caplog):
    """500 with the request id under which the log has the trace."""

    async def broken(request):
        raise ZeroDivisionError("secret detail")

    replace_channels_handler(gateway, broken)
    reply = await gateway.ask("GET", "/v1/channels", headers={"X-Request-Id": "find-me"})
    assert (reply.status, reply.code) == (500, "internal_error")
    assert reply.json["request_id"] == "find-me"
    assert reply.headers["Cache-Control"] == "no-store"
    assert b"secret" not in reply.body
    assert "secret detail" in caplog.text
    assert (await gateway.poll("news")).status == 204


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (web.HTTPForbidden(), 400, "request_malformed"),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413, "body_too_large"),
    ],
)
async def test_aiohttps_own_errors_become_ours(gateway: Live, error, status: int, code: str):
    """Whatever it raises has a code."""

    async def raising(request):
        raise error

    replace_channels_handler(gateway, raising)
    reply = await gateway.ask("GET", "/v1/channels")
    assert (reply.status, reply.code) == (status, code)


async def test_a_connection_that_breaks_is_no_error(gateway: Live, caplog):
    """The client has left: nothing to answer, nothing to log but the access line."""

    async def breaking(request):
        raise ConnectionResetError

    replace_channels_handler(gateway, breaking)
    with pytest.raises(aiohttp.ClientError):
        await gateway.ask("GET", "/v1/channels")
    assert caplog.text == ""
    assert (await gateway.metrics())["gateway_responses_total{/v1/channels,499}"] >= 1


async def test_a_response_that_is_already_on_its_way(gateway: Live):
    """Its size is what was sent."""

    async def streaming(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"12345")
        await response.write_eof()
        return response

    replace_channels_handler(gateway, streaming)
    assert (await gateway.ask("GET", "/v1/channels")).body == b"12345"


# --- counts ---


async def test_what_is_counted(gateway: Live):
    """Responses by route and status, answers by outcome, refusals by code; never by what came from outside."""
    await gateway.poll("news")
    await gateway.ask("GET", "/v1/subscribe?channel=news&wait=0")
    await gateway.poll("secret-channel")
    await gateway.ask("GET", "/no/such/path")
    await gateway.poll("news", limit=0)
    metrics = await gateway.metrics()
    assert metrics["gateway_responses_total{/v1/subscribe,204}"] == 1
    assert metrics["gateway_responses_total{/v1/subscribe,401}"] == 1
    assert metrics["gateway_responses_total{/v1/subscribe,403}"] == 1
    assert metrics["gateway_responses_total{none,404}"] == 1
    assert metrics["gateway_answers_total{empty,poll}"] == 1
    assert metrics["gateway_answers_total{token_missing,poll}"] == 1
    assert metrics["gateway_answers_total{parameter_invalid,poll}"] == 1
    assert metrics["gateway_auth_refusals_total{token_missing}"] == 1
    assert metrics["gateway_auth_refusals_total{forbidden}"] == 1
    assert not any("secret-channel" in name or "no/such" in name for name in metrics)


async def test_a_client_that_leaves_is_counted(gateway: Live):
    """As an answer of its own kind."""
    polling = gateway.parking("news")
    await gateway.parked()
    polling.cancel()
    await gateway.parked(0)

    async def counted():
        return (await gateway.metrics()).get("gateway_answers_total{closed_by_client,poll}") == 1

    await eventually(counted)


# --- the access log ---


@pytest.fixture
def written(capfd) -> Callable[[], list[dict]]:
    """Return all lines that were written to standard output."""
    seen: list[str] = []

    def lines() -> list[dict]:
        seen.append(capfd.readouterr().out)
        return [json.loads(line) for line in "".join(seen).splitlines()]

    return lines


async def test_access_lines_tell_who_asked_what_and_no_secret(written):
    """One JSON object for each request; no token, no cursor, no key of idempotency."""
    async with live(log={"access": True, "sample": 1}, server={"trusted_proxies": ["127.0.0.1"]}) as gateway:
        first = await gateway.poll("news", token=token("ann"))
        proxied = {"X-Forwarded-For": "192.0.2.7", "X-Request-Id": "abc"}
        await gateway.poll("news", token=token("ann"), cursor=first.cursor, headers=proxied)
        await gateway.poll("news", token="not-a-token")
        await gateway.publish("news", b"1", headers={"Idempotency-Key": "hidden-key"})
        await gateway.ask("GET", "/livez?token=eyJhbGciOi.secret")
        await eventually(lambda: len(written()) == 5)
    lines = written()
    assert [(line["method"], line["path"], line["status"], line.get("code")) for line in lines] == [
        ("GET", "/v1/subscribe", 204, "empty"),
        ("GET", "/v1/subscribe", 204, "empty"),
        ("GET", "/v1/subscribe", 401, "token_invalid"),
        ("POST", "/v1/publish", 201, "ok"),
        ("GET", "/livez", 200, "ok"),
    ]
    second = lines[1]
    assert (second["client"], second["request_id"]) == ("192.0.2.7", "abc")
    assert (second["issuer"], second["subject"], second["transport"]) == ("test", "ann", "poll")
    assert second["query"] == [["channel", "news"], ["wait", "0"]]
    assert second["duration"] >= 0
    for secret in (token("ann")[-20:], first.cursor, "not-a-token", "hidden-key", "secret"):
        assert secret not in json.dumps(lines)


async def test_a_share_of_the_good_polls_is_written(written):
    """And everything that was refused."""
    async with live(log={"access": True, "sample": 0}) as gateway:
        await gateway.poll("news")
        await gateway.poll("news", limit=0)
        await eventually(written)
    assert [line["status"] for line in written()] == [400]


# --- CORS ---


async def preflight(gateway: Live, target: str, origin: str | None, **headers: str):
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,cursor", **headers}
    return await gateway.ask("OPTIONS", target, headers=asked | ({"Origin": origin} if origin else {}))


async def test_no_page_may_call_unless_it_is_configured(gateway: Live):
    """CORS is off by default: no fields, and a preflight is a wrong method."""
    reply = await gateway.poll("news", headers={"Origin": PAGE})
    assert not any(name.lower().startswith("access-control") for name in reply.headers)
    assert "Vary" not in reply.headers
    assert (await preflight(gateway, "/v1/subscribe?channel=news", PAGE)).status == 405


async def test_a_preflight_is_answered_without_a_token():
    """Methods, headers, and two hours of rest."""
    async with live(**CORS) as gateway:
        reply = await preflight(gateway, "/v1/subscribe?channel=news", PAGE)
        assert reply.status == 204
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert reply.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
        assert reply.headers["Access-Control-Allow-Headers"] == (
            "Authorization, Cursor, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-API-Key"
        )
        assert reply.headers["Access-Control-Max-Age"] == "7200"
        assert reply.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in reply.headers


async def test_other_pages_get_nothing():
    """No permission, and no hint of who has one; caches keep the answers apart."""
    async with live(**CORS) as gateway:
        for origin in (OTHER, "null", PAGE + ".evil.test", PAGE.upper(), None):
            reply = await preflight(gateway, "/v1/subscribe?channel=news", origin)
            assert reply.status == 204
            assert not any(name.lower().startswith("access-control") for name in reply.headers)
            assert reply.headers["Vary"] == "Origin"
        plain = await gateway.poll("news", headers={"Origin": OTHER})
        assert plain.status == 204
        assert "Access-Control-Allow-Origin" not in plain.headers
        # An OPTIONS that is no preflight is a method that the path does not take.
        assert (await gateway.ask("OPTIONS", "/v1/subscribe", headers={"Origin": PAGE})).status == 405


@pytest.mark.parametrize(
    ("status", "query", "bearer"),
    [(204, {}, None), (200, {"from_": "earliest"}, None), (400, {"limit": 0}, None), (401, {}, "bad"), (403, {}, "other")],
)
async def test_pages_may_read_answers_and_errors_alike(status: int, query: dict, bearer: str | None):
    """Else a browser would report a network error where the server said what is wrong."""
    channels = {"scoped": {"topic": "news", "allow": {"scope": "x"}}}
    async with live(**CORS, channels=channels) as gateway:
        gateway.broker.append("news", 0, [b"1"])
        name = "scoped" if bearer == "other" else "news"
        reply = await gateway.poll(name, token="bad" if bearer == "bad" else None, headers={"Origin": PAGE}, **query)
        assert reply.status == status
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert reply.headers["Access-Control-Expose-Headers"] == EXPOSED
        assert reply.headers["Vary"] == "Origin"


async def test_pages_may_read_404_405_429_and_500():
    """The errors that no handler of ours raised too."""
    async with live(**CORS, limits={"address": {"rate": 0.01, "burst": 1}}) as gateway:
        page = {"Origin": PAGE}
        replies = [
            await gateway.ask("GET", "/no/such/path", headers=page),
            await gateway.ask("DELETE", "/v1/subscribe", headers=page),
            await gateway.poll("news", headers=page),
            await gateway.poll("news", headers=page),
        ]
        assert [reply.status for reply in replies] == [404, 405, 204, 429]

        async def broken(request):
            raise ZeroDivisionError

        replace_channels_handler(gateway, broken)
        replies.append(await gateway.ask("GET", "/v1/channels", headers=page))
        assert replies[-1].status == 500
        assert [reply.headers.get("Access-Control-Allow-Origin") for reply in replies] == [PAGE] * 5


async def test_everybody_is_everybody():
    """`*` needs no Vary, and does not name the page."""
    async with live(cors={"origins": "*"}) as gateway:
        reply = await gateway.poll("news", headers={"Origin": OTHER})
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in reply.headers
        without = await gateway.poll("news")
        assert "Access-Control-Allow-Origin" not in without.headers
        assert (await preflight(gateway, "/v1/subscribe", OTHER)).headers["Access-Control-Allow-Origin"] == "*"


async def test_a_channel_may_have_pages_of_its_own():
    """They take the place of the general ones; of several channels all have to agree."""
    channels = {
        "open": {"topic": "news", "cors": {"origins": ["*"]}},
        "closed": {"topic": "news", "cors": {"origins": []}},
        "partner": {"topic": "news", "cors": {"origins": [OTHER]}},
    }
    async with live(**CORS, channels=channels) as gateway:

        async def allowed(origin: str, *names: str) -> str | None:
            polled = await gateway.poll(*names, headers={"Origin": origin})
            asked = await preflight(gateway, "/v1/subscribe?" + "&".join(f"channel={name}" for name in names), origin)
            found = {reply.headers.get("Access-Control-Allow-Origin") for reply in (polled, asked)}
            assert len(found) == 1
            return found.pop()

        assert await allowed(PAGE, "news") == PAGE
        assert await allowed(OTHER, "news") is None
        assert await allowed(OTHER, "partner") == OTHER
        assert await allowed(PAGE, "partner") is None
        assert await allowed(PAGE, "open") == "*"
        assert await allowed(PAGE, "closed") is None
        assert await allowed(PAGE, "open", "news") == PAGE
        assert await allowed(OTHER, "open", "partner") == OTHER
        assert await allowed(PAGE, "news", "partner") is None
        assert await allowed(PAGE, "unknown") == PAGE


async def test_a_channels_pages_alone_switch_it_on():
    """Without general origins only that channel is shared."""
    async with live(channels={"open": {"topic": "news", "cors": {"origins": [PAGE]}}}) as gateway:
        assert (await gateway.poll("open", headers={"Origin": PAGE})).headers["Access-Control-Allow-Origin"] == PAGE
        assert "Access-Control-Allow-Origin" not in (await gateway.poll("news", headers={"Origin": PAGE})).headers
