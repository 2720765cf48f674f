"""Who may ask: addresses, identity, quotas, and how long a poll may be held."""

import asyncio
import socket
import time
from types import SimpleNamespace

import pytest
from aiohttp.test_utils import make_mocked_request
from livegateway import ISSUER, SECRET, Live, live, token
from rawhttp import receive
from waiting import eventually

from gateway.auth.apikeys import ApiKey, hashed, make
from gateway.auth.authenticator import Authenticator
from gateway.auth.jwks import Inline
from gateway.auth.mint import mint
from gateway.auth.principal import Principal
from gateway.auth.tokens import Issuer, UnknownKey
from gateway.errors import RateLimited, TokenExpired, TokenInvalid
from gateway.limits import NegativeCache, Slots, TokenBuckets
from gateway.server.admission import Admission
from gateway.server.exchange import EXCHANGE, Exchange

SLOW = {"rate": 0.01, "burst": 3}


# --- the rules by themselves ---


class Counting:
    """An authenticator that counts what it is asked."""

    def __init__(self) -> None:
        issuer = Issuer("test", ISSUER, ("gateway",), frozenset({"HS256"}), 0.0)
        self.real = Authenticator({issuer: [Inline("secret", SECRET.encode(), "HS256")]})
        self.asked = 0
        self.takes_api_keys = True
        self.generation = 1

    async def authenticate(self, authorization, now):
        self.asked += 1
        return await self.real.authenticate(authorization, now)


def admission(authenticator, **given) -> Admission:
    whole = {
        "addresses": None,
        "polls": None,
        "publishes": None,
        "slots": Slots(quota=1, total=1),
        "refused": NegativeCache(ttl=60, bound=10),
    }
    return Admission(authenticator, **(whole | given))


def request(*authorization: str, address: str = "192.0.2.1", keys: tuple[str, ...] = ()):
    fields = [("Authorization", value) for value in authorization] + [("x-api-key", value) for value in keys]
    made = make_mocked_request("GET", "/v1/subscribe", headers=fields)
    made[EXCHANGE] = Exchange("id", address, 0.0)
    return made


async def refusal(admitting: Admission, *authorization: str) -> type[Exception]:
    with pytest.raises((TokenInvalid, TokenExpired)) as refused:
        await admitting.identify(request(*authorization))
    return refused.type


async def test_a_refused_token_costs_one_verification():
    """Invalid ones and expired ones, each remembered as what it is."""
    authenticator = Counting()
    admitting = admission(authenticator)
    forged, expired = f"Bearer {token()[:-4]}AAAA", f"Bearer {token(lifetime=-5)}"
    assert [await refusal(admitting, forged) for _ in range(3)] == [TokenInvalid] * 3
    assert [await refusal(admitting, expired) for _ in range(3)] == [TokenExpired] * 3
    assert authenticator.asked == 2


async def test_new_keys_give_a_refused_token_another_chance():
    """A refusal belongs to the keys it was made under."""
    authenticator = Counting()
    admitting = admission(authenticator)
    forged = f"Bearer {token()[:-4]}AAAA"
    await refusal(admitting, forged)
    authenticator.generation += 1
    await refusal(admitting, forged)
    assert authenticator.asked == 2


async def test_a_token_that_will_be_good_is_not_remembered_as_bad():
    """It is refused until its time has come, and not a second longer."""
    now = 1_000.0
    authenticator = Counting()
    admitting = admission(authenticator, unix_clock=lambda: now)
    soon = mint(SECRET, "HS256", {"iss": ISSUER, "aud": "gateway", "sub": "ann", "nbf": 1_010, "exp": 2_000})
    assert issubclass(await refusal(admitting, f"Bearer {soon}"), TokenInvalid)
    now = 1_010.0
    assert (await admitting.identify(request(f"Bearer {soon}"))).subject == "ann"


async def test_a_token_of_an_unknown_key_is_asked_for_again():
    """Its issuer may publish the key at any moment."""
    authenticator = Counting()
    admitting = admission(authenticator)
    named = mint(SECRET, "HS256", {"iss": ISSUER, "aud": "gateway", "sub": "ann", "exp": time.time() + 60}, kid="new")
    authenticator.real = Authenticator(
        {Issuer("test", ISSUER, ("gateway",), frozenset({"HS256"}), 0.0): [Inline("secret", SECRET.encode(), "HS256", "old")]}
    )
    assert [await refusal(admitting, f"Bearer {named}") for _ in range(2)] == [UnknownKey] * 2
    assert authenticator.asked == 2


async def test_two_authorization_fields_are_no_identity():
    """Whichever of them a proxy in front believed, nobody can tell."""
    authenticator = Counting()
    good = f"Bearer {token()}"
    assert await refusal(admission(authenticator), good, good) is TokenInvalid
    assert authenticator.asked == 0


KEY = make("ci", b"k" * 32)


async def test_an_api_key_has_a_header_of_its_own():
    """It counts as a bearer token does; another scheme beside it may be meant for a backend."""
    authenticator = Counting()
    authenticator.real = Authenticator({}, api_keys=[ApiKey("ci", hashed(KEY), "robot")])
    admitting = admission(authenticator)
    for given in (request(keys=(KEY,)), request(f"Bearer {KEY}"), request("Basic YTpi", keys=(KEY,))):
        assert (await admitting.identify(given)).id == ("apikeys", "robot")


@pytest.mark.parametrize(
    ("authorization", "keys"),
    [
        ((), ("",)),
        ((), (token(),)),
        ((), (KEY, KEY)),
        ((f"Bearer {KEY}",), (KEY,)),
        (("bearer x",), (KEY,)),
        (("Basic x", "Basic x"), (KEY,)),
    ],
)
async def test_one_credential_is_enough(authorization: tuple[str, ...], keys: tuple[str, ...]):
    """Of two, nobody knows which one somebody in front looked at; and a token is no API key."""
    authenticator = Counting()
    with pytest.raises(TokenInvalid):
        await admission(authenticator).identify(request(*authorization, keys=keys))
    assert authenticator.asked == 0


async def test_without_api_keys_the_header_is_somebody_elses():
    """Clients that send one to a backend of theirs are not disturbed."""
    authenticator = Counting()
    authenticator.takes_api_keys = False
    assert (await admission(authenticator).identify(request(f"Bearer {token()}", keys=("x",)))).subject == "ann"


async def test_the_address_is_asked_before_the_token():
    """What is over the limit costs no verification, whoever signs; an IPv6 network is one address."""
    authenticator = Counting()
    admitting = admission(authenticator, addresses=TokenBuckets("address", quota=1, window=100))
    good = f"Bearer {token()}"
    assert (await admitting.identify(request(good, address="2001:db8::1"))).subject == "ann"
    with pytest.raises(RateLimited) as refused:
        await admitting.identify(request(good, address="2001:db8::2"))
    assert refused.value.policy == "address"
    assert (await admitting.identify(request(good, address="2001:db8:0:1::1"))).subject == "ann"
    assert authenticator.asked == 2


def test_a_poll_is_held_for_its_wait_or_for_the_life_of_its_token():
    """Whichever is shorter; a token that never expires holds nothing up."""
    admitting = admission(None, clock=lambda: 50.0, unix_clock=lambda: 1_000.0)

    def holder(expires_at):
        return Principal("test", "ann", {}, frozenset(), expires_at, None)

    assert admitting.hold_until(holder(None), 30.0) == (80.0, False)
    assert admitting.hold_until(holder(1_040.0), 30.0) == (80.0, False)
    assert admitting.hold_until(holder(1_010.0), 30.0) == (60.0, True)
    assert admitting.hold_until(holder(1_001.0), 30.0) == (51.0, True)
    assert admitting.hold_until(holder(1_000.5), 0.0) == (50.0, False)
    assert admitting.hold_until(holder(1_000.5), 0.5) == (50.5, False)
    for left, wait in ((0.9, 30.0), (0.4, 0.5), (-0.1, 0.0)):
        with pytest.raises(TokenExpired):
            admitting.hold_until(holder(1_000.0 + left), wait)


def test_quotas_are_per_principal_and_kind():
    """The same subject of another issuer is somebody else; polls and publishes are counted apart."""
    buckets = {name: TokenBuckets(name, quota=1, window=100) for name in ("polls", "publishes")}
    admitting = admission(None, **buckets)
    mine = request()
    admitting.charge(mine, SimpleNamespace(id=("test", "ann")), "poll")
    assert mine[EXCHANGE].headers == {"RateLimit-Policy": '"polls";q=1;w=100', "RateLimit": '"polls";r=0;t=100'}
    with pytest.raises(RateLimited):
        admitting.charge(request(), SimpleNamespace(id=("test", "ann")), "poll")
    admitting.charge(request(), SimpleNamespace(id=("other", "ann")), "poll")
    admitting.charge(request(), SimpleNamespace(id=("test", "ann")), "publish")
    with pytest.raises(RateLimited):
        admitting.charge(request(), SimpleNamespace(id=("test", "ann")), "publish", 5)


# --- end to end ---


async def test_a_client_address_over_its_limit():
    """429 before anybody looks at the token, with the fields that say when to come back."""
    async with live(limits={"address": SLOW}) as gateway:
        for _ in range(3):
            assert (await gateway.poll("news", token="bad")).status == 401
        reply = await gateway.poll("news")
        assert (reply.status, reply.code) == (429, "rate_limited")
        assert reply.headers["RateLimit-Policy"] == '"address";q=3;w=300'
        assert reply.headers["RateLimit"].startswith('"address";r=0;t=')
        assert 90 <= int(reply.headers["Retry-After"]) <= 100
        assert reply.headers["Cache-Control"] == "no-store"
        assert (await gateway.publish("news")).status == 429
        metrics = await gateway.metrics()
        assert metrics["gateway_limit_refusals_total{rate_limited,address}"] == 2
        assert metrics["gateway_auth_refusals_total{token_invalid}"] == 3


async def test_the_address_behind_trusted_proxies():
    """Read from the right, through our own proxies only: what a client writes himself gets him nothing."""
    async with live(limits={"address": SLOW}, server={"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}) as gateway:

        async def status(forwarded: str) -> int:
            return (await gateway.poll("news", headers={"X-Forwarded-For": forwarded})).status

        assert [await status("192.0.2.1") for _ in range(4)] == [204, 204, 204, 429]
        assert await status("192.0.2.2") == 204
        assert await status("192.0.2.2, 192.0.2.1") == 429
        assert await status("192.0.2.2, 192.0.2.1, 10.1.1.1") == 429
        assert [await status(f"2001:db8::{n}") for n in range(4)] == [204, 204, 204, 429]
        assert await status("2001:db8:0:1::1") == 204


async def test_the_address_of_strangers_is_their_own():
    """Without trusted proxies X-Forwarded-For is not looked at."""
    async with live(limits={"address": SLOW}) as gateway:
        replies = [await gateway.poll("news", headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(4)]
        assert [reply.status for reply in replies] == [204, 204, 204, 429]


def proxied(source: str, port: int = 4000) -> bytes:
    """Return a PROXY header of version 2 for a TCP connection over IPv4."""
    addresses = socket.inet_aton(source) + socket.inet_aton("192.0.2.99") + port.to_bytes(2, "big") + (80).to_bytes(2, "big")
    return b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + len(addresses).to_bytes(2, "big") + addresses


async def test_the_address_in_a_proxy_header():
    """The PROXY protocol in front of the listener: limits count by the client it names; without it there is no HTTP."""
    server = {"trusted_proxies": ["127.0.0.1/32"], "proxy_protocol": True}
    async with live(limits={"address": {"rate": 0.01, "burst": 1}}, server=server) as gateway:
        head = f"GET /v1/subscribe?channel=news&wait=0 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nConnection: close\r\n\r\n"

        def ask(first: bytes) -> int:
            with socket.create_connection(("127.0.0.1", gateway.gateway.port), timeout=10) as connection:
                connection.sendall(first + head.encode())
                return receive(connection).status

        assert await asyncio.to_thread(ask, proxied("192.0.2.1")) == 204
        assert await asyncio.to_thread(ask, proxied("192.0.2.1", 4001)) == 429
        assert await asyncio.to_thread(ask, proxied("192.0.2.2")) == 204
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(ask, b"")
        assert (await gateway.metrics())["gateway_proxy_header_refusals_total{malformed}"] == 1


async def test_polls_and_publishes_of_one_principal():
    """Each has its bucket, told of on every answer; nobody pays for another."""
    async with live(limits={"polls": SLOW, "publishes": SLOW}) as gateway:
        left = [(await gateway.poll("news")).headers["RateLimit"][:11] for _ in range(3)]
        assert left == ['"polls";r=2', '"polls";r=1', '"polls";r=0']
        refused = await gateway.poll("news")
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert refused.headers["RateLimit-Policy"] == '"polls";q=3;w=300'
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await gateway.poll("news", token=token("bob"))).status == 204
        assert (await gateway.poll("news", token=token(other=True))).status == 204
        assert [(await gateway.publish("news")).status for _ in range(4)] == [201, 201, 201, 429]
        metrics = await gateway.metrics()
        assert metrics["gateway_limit_refusals_total{rate_limited,polls}"] == 1
        assert metrics["gateway_limit_refusals_total{rate_limited,publishes}"] == 1


async def test_polls_at_once_of_one_principal():
    """429 for one too many; a poll that ends makes room again."""
    async with live(limits={"concurrent_polls": 2}) as gateway:
        held = [gateway.parking("news") for _ in range(2)]
        await gateway.parked(2)
        refused = await gateway.poll("news")
        assert (refused.status, refused.code) == (429, "too_many_polls")
        assert refused.headers["RateLimit-Policy"] == '"parked";q=2;qu="concurrent-requests"'
        assert refused.headers["RateLimit"] == '"parked";r=0'
        assert refused.headers["Retry-After"] == "1"
        assert (await gateway.poll("news", token=token("bob"))).status == 204
        held.pop().cancel()
        await gateway.parked(1)
        await eventually(lambda: gateway.gateway.slots.held == 1)
        assert (await gateway.poll("news")).status == 204
        gateway.broker.append("news", 0, [b"1"])
        assert (await held.pop()).values == [1]
        assert gateway.gateway.slots.held == 0


async def test_polls_at_once_of_all():
    """503 for one too many, whoever it is."""
    async with live(limits={"parked_polls": 1}) as gateway:
        held = gateway.parking("news")
        await gateway.parked()
        refused = await gateway.poll("news", token=token("bob"))
        assert (refused.status, refused.code) == (503, "overloaded")
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await gateway.metrics())["gateway_limit_refusals_total{overloaded,parked}"] == 1
        gateway.broker.append("news", 0, [b"1"])
        assert (await held).status == 200


async def test_limits_that_are_switched_off():
    """No bucket, no fields."""
    async with live(limits={"address": None, "polls": None, "publishes": None}) as gateway:
        began = time.monotonic()
        for _ in range(5):
            assert "RateLimit" not in (await gateway.poll("news")).headers
        assert "RateLimit" not in (await gateway.publish("news")).headers
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("size", [0, 1])
async def test_the_memory_of_refused_tokens_may_be_tiny(gateway: Live, size: int):
    """One entry at least; `keep` 0 remembers nothing."""
    async with live(limits={"refused_tokens": {"size": size, "keep": size}}) as tiny:
        assert [(await tiny.poll("news", token=name)).status for name in ("bad", "worse", "bad")] == [401] * 3
