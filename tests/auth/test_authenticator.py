"""From the Authorization header to a principal, while keys come, rotate, fail and go."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from auth.identities import NOW, Clock, IdentityProvider, Pauses, claims_for, until

from gateway.auth import apikeys
from gateway.auth.apikeys import ApiKey, hashed
from gateway.auth.authenticator import Authenticator, SourceStatus
from gateway.auth.jwks import Inline, KeyFile, KeyUrl, Source
from gateway.auth.keyfile import write_entries
from gateway.auth.keys import ALGORITHMS
from gateway.auth.mint import DevIssuer, generate, mint
from gateway.auth.principal import KeyRef
from gateway.auth.tokens import Issuer
from gateway.errors import TokenExpired, TokenInvalid, TokenMissing, TokenRevoked, UpstreamFailed

ONE = generate("corp", kid="one")
TWO = generate("corp", kid="two")
FOREIGN = generate("corp", kid="foreign")


def header(dev: DevIssuer, subject: str = "alice") -> str:
    return f"Bearer {dev.token(subject, now=NOW)}"


class Bench:
    """An authenticator whose time and randomness are the test's."""

    def __init__(self, sources: Sequence[Source], issuer: Issuer = ONE.issuer) -> None:
        self.clock = Clock()
        self.pauses = Pauses(self.clock)
        self.gone: list[KeyRef] = []
        self.auth = Authenticator({issuer: sources}, clock=self.clock, pause=self.pauses, jitter=lambda: 0.0, max_cached=100)
        self.auth.on_withdrawn(self.gone.append)

    async def subject(self, dev: DevIssuer, subject: str = "alice") -> str:
        return (await self.auth.authenticate(header(dev, subject), NOW)).subject

    async def refused(self, dev: DevIssuer) -> None:
        with pytest.raises(TokenInvalid):
            await self.auth.authenticate(header(dev), NOW)

    def error(self) -> str | None:
        return self.auth.status()[0].error

    def keys(self) -> int:
        return self.auth.status()[0].keys


@asynccontextmanager
async def running(*sources: Source) -> AsyncIterator[Bench]:
    bench = Bench(sources)
    await bench.auth.start()
    try:
        yield bench
    finally:
        await bench.auth.stop()


@asynccontextmanager
async def served(provider: IdentityProvider, *devs: DevIssuer, **options: float) -> AsyncIterator[Bench]:
    """Run with a JWKS URL that has been read once."""
    provider.keys = [dev.jwk for dev in devs]
    async with running(KeyUrl(provider.url, **options)) as bench:  # type: ignore[arg-type]
        await until(lambda: bench.keys() == len(devs) and not bench.error())
        yield bench


def finishes_without_yielding(auth: Authenticator, authorization: str) -> bool:
    call = auth.authenticate(authorization, NOW)
    try:
        call.send(None)
    except StopIteration:
        return True
    call.close()
    return False


async def test_inline_keys_need_no_start() -> None:
    auth = Bench([ONE.source]).auth
    principal = await auth.authenticate(header(ONE), NOW)
    assert principal.id == ("corp", "alice")
    assert await auth.authenticate(header(ONE).replace("Bearer", "bEARER  "), NOW) is principal
    assert repr(auth) == "<Authenticator <Verifier keys {corp: 1} cached 1 generation 1>>"
    assert auth.status() == []
    await auth.stop()


async def test_a_verified_token_costs_no_turn_of_the_loop() -> None:
    auth = Bench([ONE.source]).auth
    assert finishes_without_yielding(auth, header(ONE))
    assert finishes_without_yielding(auth, header(ONE))


async def test_who_is_known_at_once() -> None:
    auth = Bench([ONE.source]).auth
    assert auth.known(header(ONE), NOW) is None
    principal = await auth.authenticate(header(ONE), NOW)
    assert auth.known(header(ONE), NOW) is principal
    for other in (
        header(ONE).replace("Bearer", "bearer"),
        "Basic YTpi",
        "Bearer gwk_x",
        "Bearer \xe9",
        "Bearer " + "a" * 100_000,
    ):
        assert auth.known(other, NOW) is None
    assert auth.known(header(ONE), NOW + 10**9) is None


async def test_the_documented_errors() -> None:
    auth = Bench([ONE.source]).auth
    for authorization in (None, "", "Basic x", "Bearer\tx"):
        with pytest.raises(TokenMissing):
            await auth.authenticate(authorization, NOW)
    for authorization in ("Bearer ", "Bearer x", "Bearer a b", "Bearer é", "Bearer " + "a" * 9000, "Bearer \udc80"):
        with pytest.raises(TokenInvalid):
            await auth.authenticate(authorization, NOW)
    for _ in range(2):
        with pytest.raises(TokenExpired):
            await auth.authenticate(header(ONE), NOW + 3630)
    await auth.authenticate(header(ONE), NOW + 3629.9)
    with pytest.raises(TokenExpired):
        await auth.authenticate(header(ONE), NOW + 3630)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Inline("secret", b"short"), "at least 32 bytes"),
        (Inline("pem", b"x"), "public key in PEM"),
        (Inline("jwks", b'{"keys":[{"kty":"RSA"}]}'), r"expected a usable key: keys\[0\]"),
        (Inline("pem", ONE.public, algorithm="RS256"), "exactly one algorithm of EdDSA"),
    ],
)
def test_unusable_inline_keys_are_refused_at_once(source: Inline, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bench([source], Issuer("corp", "https://issuer.invalid/", (), ALGORITHMS))


async def test_an_issuer_with_several_sources_has_all_their_keys(tmp_path: Path) -> None:
    (tmp_path / "two.pem").write_bytes(TWO.public)
    async with running(ONE.source, KeyFile(tmp_path / "two.pem", "pem", kid="two")) as bench:
        assert await bench.subject(ONE) == await bench.subject(TWO) == "alice"
        await bench.refused(FOREIGN)
        assert bench.auth.status() == [SourceStatus("corp", str(tmp_path / "two.pem"), 1, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"x", r"keys: expected a public key in PEM"),
        (ONE.private, "private one"),
        (b"x" * 300_000, "longer than"),
    ],
)
async def test_a_broken_key_file_is_told_of_at_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        await Bench([KeyFile(tmp_path / "keys", "pem")]).auth.start()


async def test_a_jwks_file_without_a_usable_key_is_told_of_at_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text('{"keys":[{"kty":"RSA"}]}')
    with pytest.raises(ValueError, match=r"keys: expected a usable key: keys\[0\]"):
        await Bench([KeyFile(tmp_path / "keys", "jwks")]).auth.load_files()


async def test_a_file_is_read_again_and_its_old_key_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(ONE.jwks)
    async with running(KeyFile(path, "jwks")) as bench:
        assert await bench.subject(ONE) == "alice"
        old = (await bench.auth.authenticate(header(ONE), NOW)).key
        generation = bench.auth.generation
        path.write_bytes(TWO.jwks)
        bench.pauses.pass_time(5)
        await until(lambda: bench.gone)
        assert bench.gone == [old]
        assert bench.auth.generation == generation + 1
        await bench.refused(ONE)
        assert await bench.subject(TWO) == "alice"


async def test_an_unknown_key_makes_a_file_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(ONE.jwks)
    async with running(KeyFile(path, "jwks")) as bench:
        path.write_text(json.dumps({"keys": [ONE.jwk, TWO.jwk]}))
        bench.clock.now += 1  # the cooldown, but not the interval
        assert await bench.subject(TWO) == "alice"
        assert not bench.gone


async def test_a_half_written_file_leaves_the_old_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(ONE.jwks)
    async with running(KeyFile(path, "jwks")) as bench:
        path.write_bytes(ONE.jwks[:20])
        bench.pauses.pass_time(5)
        await until(bench.error)
        assert await bench.subject(ONE) == "alice"
        path.write_bytes(ONE.jwks)
        bench.pauses.pass_time(5)
        await until(lambda: not bench.error())
        assert not bench.gone


async def test_the_first_request_waits_for_the_first_keys(provider: IdentityProvider) -> None:
    provider.keys = [ONE.jwk]
    async with running(KeyUrl(provider.url)) as bench:
        assert await asyncio.gather(*[bench.subject(ONE, f"s{number}") for number in range(20)])
        assert provider.requests == 1


async def test_rotation_is_seen_by_the_first_token_of_the_new_key(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        provider.keys = [ONE.jwk, TWO.jwk]
        bench.clock.now += 10
        assert await bench.subject(TWO) == "alice"
        assert await bench.subject(ONE) == "alice"
        assert provider.requests == 2
        assert not bench.gone


async def test_a_key_that_the_set_lists_no_more_is_withdrawn(provider: IdentityProvider) -> None:
    async with served(provider, ONE, TWO) as bench:
        ref = (await bench.auth.authenticate(header(ONE), NOW)).key
        generation = bench.auth.generation
        provider.keys = [TWO.jwk]
        bench.pauses.pass_time(600)
        await until(lambda: bench.gone)
        assert bench.gone == [ref]
        assert bench.auth.generation == generation + 1
        await bench.refused(ONE)
        assert await bench.subject(TWO) == "alice"


async def test_an_empty_set_withdraws_all(provider: IdentityProvider) -> None:
    async with served(provider, ONE, TWO) as bench:
        provider.keys = []
        bench.pauses.pass_time(600)
        await until(lambda: len(bench.gone) == 2)
        await bench.refused(ONE)


async def test_one_callback_that_fails_does_not_keep_the_others_from_knowing(
    provider: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(provider, ONE) as bench:
        later: list[KeyRef] = []

        def fail(key: KeyRef) -> None:
            raise RuntimeError

        bench.auth.on_withdrawn(fail)
        bench.auth.on_withdrawn(later.append)
        provider.keys = []
        bench.pauses.pass_time(600)
        await until(lambda: later)
        assert later == bench.gone
        assert "a callback for withdrawn keys failed" in caplog.text


async def test_a_storm_of_unknown_kids_is_a_trickle_to_the_issuer(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        for second in range(60):
            storm = [mint(ONE.private, "EdDSA", claims_for(ONE), f"kid-{second}-{n}") for n in range(20)]
            calls = [bench.auth.authenticate(f"Bearer {token}", NOW) for token in storm]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, TokenInvalid) for result in results)
            bench.clock.now += 1
        assert provider.requests <= 1 + 6  # the first, then one for each cooldown of 10 s
        assert await bench.subject(ONE) == "alice"


async def test_one_bad_client_makes_one_request_a_minute(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        for _ in range(290):
            bench.clock.now += 1
            await bench.refused(FOREIGN)
        assert provider.requests == 1 + 5


async def test_bad_signatures_and_wrong_algorithms_send_nobody_for_keys(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        bench.clock.now += 100
        await bench.refused(generate("corp", kid="one"))
        token = mint("x" * 32, "HS256", claims_for(ONE), "new")
        with pytest.raises(TokenInvalid):
            await bench.auth.authenticate(f"Bearer {token}", NOW)
        assert provider.requests == 1


def stall(provider: IdentityProvider) -> asyncio.Event:
    """Make the provider hang until the event is set, then fail."""
    released = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response(status=500)

    provider.answer = answer
    return released


@pytest.mark.parametrize(
    "broken",
    [
        lambda provider: provider.fail(503),
        lambda provider: provider.say(b"<html>"),
        lambda provider: provider.say(b'{"keys":5}'),
        lambda provider: provider.say(b"[]", content_type="text/html"),
        lambda provider: provider.say(b" " * 300_000),
        lambda provider: stall(provider).set(),
    ],
)
async def test_an_outage_backs_off_while_the_old_keys_serve(
    provider: IdentityProvider, broken: Callable[[IdentityProvider], None]
) -> None:
    async with served(provider, ONE, max_age=600.0, stale=3600.0) as bench:
        ref = (await bench.auth.authenticate(header(ONE), NOW)).key
        broken(provider)
        bench.pauses.pass_time(600)
        await until(bench.error)
        tried = provider.requests
        for _ in range(20):
            with pytest.raises(UpstreamFailed) as caught:  # nobody can tell whether this key is good
                await bench.auth.authenticate(header(TWO), NOW)
            assert caught.value.retry_after == 1.0
        assert provider.requests == tried
        for attempt in range(1, 6):
            bench.pauses.pass_time(30)
            await until(lambda attempt=attempt: provider.requests == tried + attempt)
            await until(lambda attempt=attempt: bench.auth._urls["corp"][0].plan.failures == attempt + 1)
        assert await bench.subject(ONE) == "alice"
        assert not bench.gone
        bench.pauses.pass_time(3600)
        await until(lambda: bench.gone)
        assert bench.gone == [ref]
        with pytest.raises(UpstreamFailed):
            await bench.auth.authenticate(header(ONE), NOW)


async def test_after_an_outage_the_keys_come_back(provider: IdentityProvider) -> None:
    provider.keys = [ONE.jwk]
    provider.fail()
    async with running(KeyUrl(provider.url)) as bench:
        with pytest.raises(UpstreamFailed):
            await bench.subject(ONE)
        provider.answer = None
        bench.clock.now += 1
        assert await bench.subject(ONE) == "alice"
        assert bench.error() is None


async def test_a_token_that_expires_while_its_key_is_fetched_is_expired(provider: IdentityProvider) -> None:
    provider.keys = [ONE.jwk]
    async with running(KeyUrl(provider.url)) as bench:

        async def slow(_: web.Request) -> web.Response:
            bench.clock.now += 5
            return web.json_response({"keys": provider.keys})

        provider.answer = slow
        with pytest.raises(TokenExpired):
            await bench.auth.authenticate(header(ONE), NOW + 3628)


async def test_a_symmetric_key_from_a_url_is_never_taken(provider: IdentityProvider) -> None:
    dev = generate("corp", algorithm="HS256", kid="s")
    provider.keys = [{"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "alg": "HS256", "kid": "s"}]
    bench = Bench([KeyUrl(provider.url)], Issuer("corp", dev.issuer.iss, ("gateway",), ALGORITHMS))
    await bench.auth.start()
    token = mint("0123456789abcdef0123456789abcdef", "HS256", claims_for(dev), "s")
    with pytest.raises(TokenInvalid):
        await bench.auth.authenticate(f"Bearer {token}", NOW)
    assert bench.keys() == 0
    await bench.auth.stop()


async def test_a_compressed_set_is_not_unpacked(provider: IdentityProvider) -> None:
    provider.say(gzip.compress(ONE.jwks), headers={"Content-Encoding": "gzip"})
    async with running(KeyUrl(provider.url)) as bench:
        with pytest.raises(UpstreamFailed):
            await bench.subject(ONE)
        assert "expected a JWK Set in JSON" in (bench.error() or "")


async def test_issuers_do_not_share_keys(provider: IdentityProvider) -> None:
    partner = generate("partner", iss="https://partner.test/", kid="one")
    auth = Authenticator({ONE.issuer: [ONE.source], partner.issuer: [partner.source]})
    assert (await auth.authenticate(header(ONE), NOW)).id == ("corp", "alice")
    assert (await auth.authenticate(header(partner), NOW)).id == ("partner", "alice")
    crossed = mint(partner.private, "EdDSA", claims_for(ONE), "one")
    with pytest.raises(TokenInvalid):
        await auth.authenticate(f"Bearer {crossed}", NOW)


async def test_a_client_that_leaves_while_keys_are_fetched_disturbs_nobody(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        released = stall(provider)
        bench.clock.now += 20
        calls = [asyncio.ensure_future(bench.auth.authenticate(header(TWO, f"s{n}"), NOW)) for n in range(3)]
        await until(lambda: provider.requests == 2)
        calls[0].cancel()
        provider.answer = None
        released.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(result, UpstreamFailed) for result in results[1:])
        assert "waiting 0" in repr(bench.auth._urls["corp"][0])


async def test_stop_ends_everything_and_may_be_repeated(provider: IdentityProvider) -> None:
    async with served(provider, ONE) as bench:
        released = stall(provider)
        bench.clock.now += 20
        call = asyncio.ensure_future(bench.auth.authenticate(header(TWO), NOW))
        await until(lambda: provider.requests == 2)
        await bench.auth.stop()
        await bench.auth.stop()
        released.set()
        with pytest.raises(TokenInvalid):
            await call
        assert await bench.subject(ONE) == "alice"


async def test_stop_before_the_first_look_releases_who_waits(provider: IdentityProvider) -> None:
    bench = Bench([KeyUrl(provider.url)])
    await bench.auth.start()
    call = asyncio.ensure_future(bench.auth.authenticate(header(ONE), NOW))
    await bench.auth.stop()
    with pytest.raises(TokenInvalid):
        async with asyncio.timeout(5):
            await call
    await bench.refused(ONE)


async def test_what_ends_the_looks_is_not_lost(provider: IdentityProvider) -> None:
    async def broken(event: asyncio.Event, seconds: float) -> None:
        raise RuntimeError

    auth = Authenticator({ONE.issuer: [KeyUrl(provider.url)]}, pause=broken)
    await auth.start()
    with pytest.raises(TokenInvalid):  # released, not left waiting
        await auth.authenticate(header(ONE), NOW)
    with pytest.raises(ExceptionGroup):
        await auth.stop()


async def test_production_defaults_work(provider: IdentityProvider) -> None:
    provider.keys = [ONE.jwk]
    auth = Authenticator({ONE.issuer: [KeyUrl(provider.url)]})
    await auth.start()
    try:
        assert (await auth.authenticate(header(ONE), NOW)).subject == "alice"
    finally:
        await auth.stop()


# --- API keys ---

CI, CD = apikeys.make("ci", b"1" * 32), apikeys.make("cd", b"2" * 32)


def listed(*texts: str, **members: object) -> bytes:
    """Return a file with these keys in it."""
    return write_entries({text.split("_")[1]: {"hash": hashed(text), "subject": "robot", **members} for text in texts})


@asynccontextmanager
async def with_keys(path: Path) -> AsyncIterator[Bench]:
    bench = Bench([ONE.source])
    bench.auth = Authenticator(
        {ONE.issuer: [ONE.source]}, api_key_file=path, clock=bench.clock, pause=bench.pauses, jitter=lambda: 0.0
    )
    bench.auth.on_withdrawn(bench.gone.append)
    await bench.auth.start()
    try:
        yield bench
    finally:
        await bench.auth.stop()


async def test_an_api_key_is_a_bearer_token_beside_tokens(tmp_path: Path) -> None:
    """In any spelling of the scheme, with no turn of the loop; tokens go on as ever."""
    (tmp_path / "keys.yaml").write_bytes(listed(CI))
    async with with_keys(tmp_path / "keys.yaml") as bench:
        assert finishes_without_yielding(bench.auth, f"Bearer {CI}")
        for scheme in ("Bearer", "bearer ", "BEARER"):
            assert (await bench.auth.authenticate(f"{scheme} {CI}", NOW)).id == ("apikeys", "robot")
        assert await bench.subject(ONE) == "alice"
        assert bench.auth.takes_api_keys
        assert bench.auth.status() == [SourceStatus("apikeys", str(tmp_path / "keys.yaml"), 1, None)]
        with pytest.raises(TokenInvalid):
            await bench.auth.authenticate(f"Bearer {CI[:-1]}_", NOW)


async def test_keys_of_the_configuration_need_no_file() -> None:
    auth = Authenticator({}, api_keys=[ApiKey("ci", hashed(CI), "robot")])
    assert (await auth.authenticate(f"Bearer {CI}", NOW)).subject == "robot"
    assert auth.takes_api_keys
    with pytest.raises(TokenInvalid):
        await auth.authenticate(f"Bearer {CD}", NOW)
    none = Authenticator({})
    assert not none.takes_api_keys
    with pytest.raises(TokenInvalid):
        await none.authenticate(f"Bearer {CI}", NOW)


async def test_an_api_key_that_goes_is_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(listed(CI, CD))
    async with with_keys(path) as bench:
        key = (await bench.auth.authenticate(f"Bearer {CI}", NOW)).key
        generation = bench.auth.generation
        path.write_bytes(listed(CD))
        bench.pauses.pass_time(5)
        await until(lambda: bench.gone)
        assert bench.gone == [key]
        assert bench.auth.generation > generation
        with pytest.raises(TokenInvalid):
            await bench.auth.authenticate(f"Bearer {CI}", NOW)
        path.write_bytes(listed(CD, revoked="2026-01-01"))
        bench.pauses.pass_time(5)
        await until(lambda: len(bench.gone) == 2)
        with pytest.raises(TokenRevoked):
            await bench.auth.authenticate(f"Bearer {CD}", NOW)


async def test_a_new_api_key_is_looked_for_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(b"")
    async with with_keys(path) as bench:
        path.write_bytes(listed(CI))
        bench.clock.now += 1  # the cooldown, but not the interval
        assert (await bench.auth.authenticate(f"Bearer {CI}", NOW)).subject == "robot"


async def test_a_broken_file_of_api_keys_leaves_the_old_ones(tmp_path: Path) -> None:
    """A typo in one entry costs this one only."""
    path = tmp_path / "keys.yaml"
    path.write_bytes(listed(CI, CD))
    async with with_keys(path) as bench:
        path.write_bytes(b"ci: {")
        bench.pauses.pass_time(5)
        await until(bench.error)
        assert (await bench.auth.authenticate(f"Bearer {CI}", NOW)).subject == "robot"
        assert not bench.gone
        path.write_bytes(listed(CI) + b"cd: {hash: x}\n")
        bench.pauses.pass_time(5)
        await until(lambda: bench.gone)
        assert [key.kid for key in bench.gone] == ["cd"]


async def test_a_broken_file_of_api_keys_is_told_of_at_start(tmp_path: Path) -> None:
    for content in (b"- a", b"x" * 2_000_000):
        (tmp_path / "keys.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"keys\.yaml: "):
            await Authenticator({}, api_key_file=tmp_path / "keys.yaml").start()
