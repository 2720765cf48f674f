"""Looks at files and URLs are bounded in size and time, and whatever they bring, the source goes on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from auth.identities import Clock, IdentityProvider, Pauses, until

from gateway.auth import jwks
from gateway.auth.jwks import MAX_BYTES, Found, Inline, KeyFile, KeySource, KeyUrl, Unusable, fetch, pause, read
from gateway.auth.keys import Parsed, parse_keys
from gateway.auth.mint import DevIssuer
from gateway.auth.refresh import Pace
from gateway.errors import Overloaded


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.mark.parametrize("url", ["", "x", "/jwks", "file:///etc/passwd", "ftp://a/b", "https://"])
def test_a_url_is_absolute_http(url: str) -> None:
    with pytest.raises(ValueError, match="absolute http"):
        KeyUrl(url)


@pytest.mark.parametrize("options", [{"max_age": 0.0}, {"stale": 10.0}, {"cooldown": 0.0}, {"timeout": 0.0}])
def test_a_url_has_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        KeyUrl("https://a.test/", **options)


def test_a_file_has_bounds() -> None:
    with pytest.raises(ValueError, match="expected"):
        KeyFile(Path("x"), "pem", interval=5.0, stale=5.0)


def test_credentials_in_a_url_and_inline_secrets_are_not_shown() -> None:
    assert KeyUrl("https://user:pass@a.test/jwks?token=x").place == "https://a.test/jwks"
    assert "topsecret" not in repr(Inline("secret", b"topsecret"))


async def test_a_file_is_read_within_its_bound(tmp_path: Path) -> None:
    spec = KeyFile(tmp_path / "keys", "jwks")
    spec.path.write_bytes(b"x" * MAX_BYTES)
    assert len((await read(spec.path)).data) == MAX_BYTES
    spec.path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(Unusable, match=r"keys: longer than 262144 bytes"):
        await read(spec.path)


async def test_a_file_that_is_not_there_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="No such file"):
        await read(tmp_path / "none")
    with pytest.raises(Unusable, match="directory"):
        await read(tmp_path)


async def test_a_good_answer_is_found(provider: IdentityProvider, session: aiohttp.ClientSession) -> None:
    assert await fetch(session, KeyUrl(provider.url)) == Found(b'{"keys": []}', None)


@pytest.mark.parametrize(
    ("cache_control", "max_age"),
    [
        ("max-age=60", 60.0),
        ("public, MAX-AGE = 60, must-revalidate", 60.0),
        ('max-age="60"', 60.0),
        ("s-maxage=60", None),
        ("max-age=x", None),
        ("max-age=-1", None),
        ("max-age=99999999999", None),
        ("no-cache", None),
        ("", None),
    ],
)
async def test_the_answers_max_age_is_read(
    provider: IdentityProvider, session: aiohttp.ClientSession, cache_control: str, max_age: float | None
) -> None:
    provider.headers = {"Cache-Control": cache_control}
    assert (await fetch(session, KeyUrl(provider.url))).max_age == max_age


async def test_anything_but_200_is_unusable(provider: IdentityProvider, session: aiohttp.ClientSession) -> None:
    for status in (204, 404, 500):
        provider.fail(status)
        with pytest.raises(Unusable, match=rf"/jwks: status {status}"):
            await fetch(session, KeyUrl(provider.url))


async def test_redirects_are_not_followed(provider: IdentityProvider, session: aiohttp.ClientSession) -> None:
    provider.say(b"", status=302, headers={"Location": provider.url})
    with pytest.raises(Unusable, match="status 302"):
        await fetch(session, KeyUrl(provider.url))
    assert provider.requests == 1


async def test_an_oversized_answer_is_unusable(provider: IdentityProvider, session: aiohttp.ClientSession) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 50 * MAX_BYTES:
            await response.write(b" " * 65_536)
            sent += 65_536
        return response

    provider.answer = endless
    with pytest.raises(Unusable, match="longer than 262144 bytes"):
        await fetch(session, KeyUrl(provider.url))
    assert sent < 50 * MAX_BYTES


async def test_a_compressed_answer_is_not_unpacked(provider: IdentityProvider, session: aiohttp.ClientSession) -> None:
    async def bomb(_: web.Request) -> web.Response:
        response = web.Response(body=b'{"keys": []}')
        response.enable_compression(web.ContentCoding.gzip)
        return response

    provider.answer = bomb
    assert (await fetch(session, KeyUrl(provider.url))).data.startswith(b"\x1f\x8b")


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_stalled_answer_ends_in_time(provider: IdentityProvider, session: aiohttp.ClientSession, part: str) -> None:
    released = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if part == "body":
            await response.prepare(request)
        await released.wait()
        return response

    provider.answer = stall
    with pytest.raises(Unusable, match=r"no answer within 0.05 s"):
        await fetch(session, KeyUrl(provider.url, timeout=0.05))
    released.set()


async def test_nobody_there_is_unusable(unused_tcp_port: int, session: aiohttp.ClientSession) -> None:
    with pytest.raises(Unusable, match="ClientConnectorError"):
        await fetch(session, KeyUrl(f"http://127.0.0.1:{unused_tcp_port}/"))


async def test_certificates_are_checked_against_the_file_given(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    app = web.Application()
    app.router.add_get("/jwks", IdentityProvider().serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/jwks"
    try:
        assert (await fetch(session, KeyUrl(url, ca_file=tmp_path / "ca.pem"))).data
        with pytest.raises(Unusable, match="Certificate"):
            await fetch(session, KeyUrl(url))
        with pytest.raises(Unusable, match="FileNotFoundError"):
            await fetch(session, KeyUrl(url, ca_file=tmp_path / "none.pem"))
    finally:
        await runner.cleanup()


async def test_pause_ends_at_the_event_or_in_time() -> None:
    event = asyncio.Event()
    await pause(event, -5.0)
    await pause(event, 0.001)
    event.set()
    async with asyncio.timeout(5):
        await pause(event, 3600.0)


class Log:
    """A source of keys that tests tell what to find."""

    def __init__(self, clock: Clock, pauses: Pauses) -> None:
        self.looks = 0
        self.changes = 0
        self.found: Found | BaseException = Found(b"")
        self.parsed: Parsed | BaseException = Parsed(())
        self.gate = asyncio.Event()
        self.gate.set()
        pace = Pace(max_age=600.0, cooldown=10.0, stale=3600.0)
        self.source = KeySource(
            "a place",
            pace,
            look=self.look,
            parse=self.parse,
            changed=self.changed,
            clock=clock,
            pause=pauses,
            jitter=lambda: 0.0,
        )

    async def look(self) -> Found:
        self.looks += 1
        await self.gate.wait()
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found

    def parse(self, data: bytes) -> Parsed:
        if isinstance(self.parsed, BaseException):
            raise self.parsed
        return self.parsed

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def log(clock: Clock, pauses: Pauses) -> AsyncIterator[Log]:
    log = Log(clock, pauses)
    log.source.open()
    task = asyncio.ensure_future(log.source.run())
    await until(lambda: log.looks and not log.source.plan.looking)
    yield log
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
def keys(ed: DevIssuer) -> Parsed:
    return parse_keys("corp", "jwks", ed.jwks, algorithms=["EdDSA"])


async def test_a_source_is_looked_at_whenever_due(log: Log, pauses: Pauses, keys: Parsed) -> None:
    assert (log.looks, log.changes) == (1, 1)
    log.parsed = keys
    pauses.pass_time(599)
    pauses.pass_time(1)
    await until(lambda: log.looks == 2)
    assert log.source.keys == keys.keys
    assert pauses.delays[:2] == [0.0, 600.0]
    assert repr(log.source).startswith("<KeySource a place keys 1 waiting 0 <Refresh due")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Unusable("it is away"), "it is away"),
        (ValueError("expected a JWK Set"), "a place: expected a JWK Set"),
        (KeyError("surprise"), "a place: unexpected failure"),
    ],
)
async def test_a_failed_look_keeps_the_keys_until_they_are_stale(
    log: Log, pauses: Pauses, keys: Parsed, caplog: pytest.LogCaptureFixture, wrong: BaseException, error: str
) -> None:
    log.parsed = keys
    pauses.pass_time(600)
    await until(lambda: log.source.keys)
    log.found = wrong
    pauses.pass_time(600)
    for looks in (3, 4, 5):
        await until(lambda looks=looks: log.looks == looks)
        assert log.source.error == error
        assert log.source.keys
        pauses.pass_time(60)
    assert caplog.text.count("keys cannot be read, the old ones stay") == 1  # not at every retry
    pauses.pass_time(3600 - 600 - 180)
    await until(lambda: not log.source.keys)
    assert "too old to trust" in caplog.text
    assert log.changes == 3
    log.found = Found(b"")
    pauses.pass_time(60)
    await until(lambda: log.source.keys)
    assert log.source.error is None


async def test_waiting_for_a_key_joins_the_one_look(log: Log, pauses: Pauses) -> None:
    log.gate.clear()
    pauses.pass_time(60)
    waiting = [asyncio.ensure_future(log.source.ask(f"kid-{number}")) for number in range(50)]
    await until(lambda: log.looks == 2)
    waiting[0].cancel()
    late = asyncio.ensure_future(log.source.ask("late"))
    await asyncio.wait([waiting[0]])
    assert not any(task.done() for task in (*waiting[1:], late))
    log.gate.set()
    assert all(await asyncio.gather(*waiting[1:], late))
    assert log.looks == 2
    assert not await log.source.ask("within the cooldown")
    assert "waiting 0" in repr(log.source)


async def test_too_many_that_wait_are_turned_away(log: Log, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "_MAX_WAITING", 2)
    log.gate.clear()
    pauses.pass_time(60)
    waiting = [asyncio.ensure_future(log.source.ask("a")) for _ in range(2)]
    await until(lambda: log.looks == 2)
    with pytest.raises(Overloaded):
        await log.source.ask("a")
    log.gate.set()
    await asyncio.gather(*waiting)


async def test_a_key_that_a_failed_look_did_not_bring_may_exist(log: Log, pauses: Pauses) -> None:
    log.source.missed("a")
    assert not await log.source.ask("a")
    log.found = Unusable("away")
    pauses.pass_time(600)
    await until(lambda: log.source.error)
    log.source.missed("b")
    assert log.source.doubt("b") == 0.5


async def test_a_source_that_does_not_run_is_not_waited_for(clock: Clock, pauses: Pauses) -> None:
    assert not await Log(clock, pauses).source.ask("a")


async def test_who_waits_is_released_when_the_source_ends(clock: Clock, pauses: Pauses) -> None:
    log = Log(clock, pauses)
    log.gate.clear()
    log.source.open()
    task = asyncio.ensure_future(log.source.run())
    await until(lambda: log.looks)
    waiting = asyncio.ensure_future(log.source.ask("a"))
    await until(lambda: "waiting 1" in repr(log.source))
    task.cancel()
    async with asyncio.timeout(5):
        assert await waiting
    await asyncio.wait([task])
    assert task.cancelled()


async def test_skipped_keys_are_logged_when_they_change(log: Log, pauses: Pauses, caplog: pytest.LogCaptureFixture) -> None:
    for number, skipped in enumerate([("keys[0]: weak",), ("keys[0]: weak",), ()]):
        log.parsed = Parsed((), skipped)
        pauses.pass_time(600)
        await until(lambda number=number: log.looks == number + 2)
    assert caplog.text.count("keys[0]: weak") == 1
    assert "none any more" in caplog.text
