"""Hand-made tokens, an identity provider that misbehaves on demand, and a clock that only tests move."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from gateway.auth.keys import parse_keys
from gateway.auth.mint import DevIssuer
from gateway.auth.tokens import Verifier

NOW = 1_795_334_400.0


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """Build a compact JWS from any JSON (or bytes, as they are), signed by whatever the attacker has."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(map(b64, parts))
    return f"{signed}.{b64(sign(signed.encode()))}"


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.new(secret, signed, hashlib.sha256).digest()


def verifier_for(*issuers: DevIssuer, **bounds: int) -> Verifier:
    verifier = Verifier([dev.issuer for dev in issuers], secret=b"s" * 32, **bounds)
    for dev in issuers:
        source = dev.source
        verifier.replace(
            dev.issuer.alias,
            parse_keys(dev.issuer.alias, source.kind, source.data, algorithms=dev.issuer.algorithms, kid=dev.kid).keys,
        )
    return verifier


def claims_for(dev: DevIssuer, **claims: Any) -> dict[str, Any]:
    return {"iss": dev.issuer.iss, "aud": "gateway", "sub": "alice", "exp": NOW + 60} | claims


class Clock:
    """Monotonic time that stands still until told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Pauses:
    """Stands in for waiting: a source pauses until asked for a key, or until the test lets the time pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._moved = asyncio.Event()
        self.delays: list[float] = []

    async def __call__(self, event: asyncio.Event, seconds: float) -> None:
        self.delays.append(seconds)
        until = self._clock.now + seconds
        while self._clock.now < until and not event.is_set():
            both = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._moved.wait())]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()

    def pass_time(self, seconds: float) -> None:
        self._clock.now += seconds
        self._moved.set()
        self._moved = asyncio.Event()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, at most 5 s."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class IdentityProvider:
    """A JWKS endpoint that counts requests and answers as it is told."""

    def __init__(self) -> None:
        self.requests = 0
        self.keys: list[object] = []
        self.headers: dict[str, str] = {}
        self.answer: Answer | None = None
        self.url = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"keys": self.keys}, headers=self.headers)

    def fail(self, status: int = 503) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, text="{}")

        self.answer = answer

    def say(self, body: bytes, **options: Any) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=body, **options)

        self.answer = answer
