"""Requests for backends on routes with a cache: what one asks of it, and how it asks the backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from urllib.parse import quote

from aiohttp import hdrs
from multidict import CIMultiDict

from gateway import errors
from gateway.proxy.cache import Cache
from gateway.proxy.caching import CacheAnswer, CacheRequest, Fetched
from gateway.proxy.exchange import Backend, Exchange, Outgoing
from gateway.proxy.forward import Forwarder
from gateway.proxy.forwarding import Hop
from gateway.server.passage import Passage
from gateway.server.returning import is_stream, returned

_STORED = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})


def is_cacheable(request: Outgoing) -> bool:
    """Tell whether a request may go through a cache: what its body asks for is not in the key (RFC 9110 §9.3.1)."""
    return hdrs.UPGRADE not in request.headers and (request.body is None or request.method not in _STORED)


async def ask(
    cache: Cache, forwarder: Forwarder, passage: Passage, backend: Backend, outgoing: Outgoing, key: bytes | None
) -> CacheAnswer:
    """Return what is stored, or what the backend says, which may be stored then."""
    route = passage.route

    async def fetch(headers: CIMultiDict[str]) -> Fetched:
        asked = replace(outgoing, headers=headers)
        return await _fetched(await forwarder.ask(backend, route.terms, asked, key))

    asked = CacheRequest(
        outgoing.method,
        *_origin(outgoing.headers, passage.hop),
        passage.target(passage.path),
        outgoing.headers,
        authenticated=not route.public,
        anonymous=route.public and not route.claims,
        held=route.terms.held,
    )
    return await cache.fetch(asked, fetch)


async def _fetched(exchange: Exchange) -> Fetched:
    """Return a backend's answer as a cache takes it."""
    message = exchange.message
    headers = returned(message)
    if is_stream(message.headers):
        try:
            exchange.hold()
        except errors.Overloaded:
            exchange.close()
            raise
    whole = exchange.whole()
    if whole is None:
        return Fetched(message.code, headers, _Pouring(exchange))
    exchange.close()
    return Fetched(message.code, headers, whole)


class _Pouring(AsyncIterator[bytes]):
    """The body of an exchange, which ends with it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __anext__(self) -> bytes:
        """Return the next of it; TargetFailed if it breaks off."""
        data = await self._exchange.read()
        if not data:
            self._exchange.close()
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Give up the rest."""
        self._exchange.close()


def _origin(headers: Mapping[str, str], hop: Hop) -> tuple[str, str]:
    """Return the scheme and authority of the target URI: those that the backend is told, which may write them into answers."""
    said = headers.get(hdrs.X_FORWARDED_HOST, hop.host)
    named = hop.host if said == hop.host else quote(f"{said},{hop.host}", safe=":")
    return quote(headers.get(hdrs.X_FORWARDED_PROTO, hop.scheme), safe=""), named
