"""Issuers with their keys, a JWKS endpoint, and time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from auth.identities import Clock, IdentityProvider, Pauses

from gateway.auth.keys import ALGORITHMS
from gateway.auth.mint import DevIssuer, generate


@pytest.fixture(scope="session")
def devs() -> dict[str, DevIssuer]:
    """One issuer per algorithm; RSA keys are slow to make."""
    return {name: generate(name.lower(), iss=f"https://{name.lower()}.test/", algorithm=name) for name in sorted(ALGORITHMS)}


@pytest.fixture(scope="session")
def ed(devs: dict[str, DevIssuer]) -> DevIssuer:
    return devs["EdDSA"]


@pytest.fixture
async def provider() -> AsyncIterator[IdentityProvider]:
    provider = IdentityProvider()
    app = web.Application()
    app.router.add_get("/jwks", provider.serve)
    async with TestServer(app, host="127.0.0.1") as server:
        provider.url = str(server.make_url("/jwks"))
        yield provider


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pauses(clock: Clock) -> Pauses:
    return Pauses(clock)
