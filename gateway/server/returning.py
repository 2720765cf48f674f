"""A backend's answer on its way to the client: what the route makes of it, and how it is sent, at once or as it comes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from aiohttp import hdrs
from aiohttp.http_parser import RawResponseMessage
from multidict import CIMultiDict

from gateway import errors
from gateway.proxy.caching import CacheAnswer
from gateway.proxy.compression import Compressor, coding_for, mark, pays
from gateway.proxy.exchange import Exchange
from gateway.proxy.headers import returned_head
from gateway.server import crossorigin
from gateway.server.passage import Passage
from gateway.server.tenures import Tenures

_EVENT_STREAM = "text/event-stream"
_GRACE = 1.5
"""Seconds in which every connection to a target is looked at, and a little more."""


class Returning:
    """Sends answers. `closing` tells whether each one ends its connection."""

    def __init__(self, tenures: Tenures, *, closing: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._tenures = tenures
        self._closing = closing
        self._clock = clock

    async def fresh(self, passage: Passage, exchange: Exchange) -> None:
        """Send a backend's answer."""
        message = exchange.message
        headers = returned(message, trailers=message.chunked)
        if is_stream(message.headers):
            exchange.hold()
            passage.held = True
            with _ended(passage), self.held_for(passage):
                await self._send(passage, message.code, message.reason, headers, None, exchange.read)
        else:
            await self._send(passage, message.code, message.reason, headers, exchange.whole(), exchange.read, exchange.trailers)

    async def cached(self, passage: Passage, answer: CacheAnswer) -> None:
        """Send what a cache gave."""
        whole = answer.body if isinstance(answer.body, bytes) else None
        if not is_stream(answer.headers):
            await self._send(passage, answer.status, "", answer.headers, whole, partial(_next, answer.body))
            return
        passage.held = True
        with _ended(passage), self.held_for(passage):
            await self._send(passage, answer.status, "", answer.headers, whole, partial(_next, answer.body))

    def held_for(self, passage: Passage, within: float = math.inf) -> AbstractContextManager[None]:
        """Return what ends the task with the token that it is held for; it ends by itself `within` so many seconds."""
        return self._tenures.bounding(passage.values.principal, passage.since, within=within)

    async def _send(
        self,
        passage: Passage,
        status: int,
        reason: str,
        headers: CIMultiDict[str],
        whole: bytes | None,
        read: Callable[[], Awaitable[bytes]],
        trailers: Callable[[], CIMultiDict[str] | None] = lambda: None,
    ) -> None:
        """Send an answer: all at once if its body is there, else as it comes."""
        route, relay = passage.route, passage.relay
        if self._closing() or (passage.expects and not passage.request.content.is_eof()):
            # RFC 9110 §10.1.1: whether the body that was not asked for will come all the same, nobody knows.
            relay.close()
        coding = None
        # RFC 9110 §9.3.2: an answer to HEAD has the head of that to GET.
        size = _size(headers, None if passage.request.method == hdrs.METH_HEAD else whole)
        if route.compress and pays(status, headers, size):
            coding = coding_for(passage.request.headers.get(hdrs.ACCEPT_ENCODING))
            mark(headers, coding)
        dress(passage, headers)
        after = None if whole is None else trailers()
        if whole is not None and after is None:
            relay.send(status, reason, headers, whole if coding is None else Compressor(coding).end(whole))
            return
        relay.begin(status, reason, headers)
        compressor = None if coding is None else Compressor(coding)
        data = whole or b""
        try:
            async with asyncio.timeout(None if passage.held else self._left(passage)):
                if whole is None:
                    data = await read()
                while data:
                    await relay.write(data if compressor is None else compressor.feed(data))
                    data = b"" if whole is not None else await read()
                if compressor is not None:
                    await relay.write(compressor.end())
        except TimeoutError as error:
            relay.abort()
            raise ConnectionResetError("the client did not take its answer in time") from error
        relay.end(trailers())

    def _left(self, passage: Passage) -> float:
        """Return how many seconds an answer may still take; where it is the backend that is slow, that is found out before."""
        return max(0.0, passage.facts.began + passage.route.terms.total - self._clock()) + _GRACE


def dress(passage: Passage, headers: CIMultiDict[str]) -> None:
    """Put in what the route has to say."""
    route = passage.route
    if route.lifecycle.fields:
        headers.extend(route.lifecycle.fields)
    route.response_edits.apply(headers, passage.values)
    headers["X-Request-Id"] = passage.facts.request_id
    crossorigin.mark(headers, passage.origin, route.origins)


def returned(message: RawResponseMessage, *, trailers: bool = False, upgrade: bool = False) -> CIMultiDict[str]:
    """Return the head of a backend's answer as clients get it, but for what the route has to say."""
    version = f"{message.version.major}.{message.version.minor}"
    return returned_head(message.raw_headers, version=version, trailers=trailers, upgrade=upgrade)


def is_stream(headers: Mapping[str, str]) -> bool:
    """Tell whether an answer is a stream of events, which lasts as long as somebody listens."""
    return headers.get(hdrs.CONTENT_TYPE, "").lower().startswith(_EVENT_STREAM)


@contextmanager
def _ended(passage: Passage) -> Iterator[None]:
    """End a stream of events in order where the gateway ends it; who asks for it again is told why."""
    try:
        yield
    except (errors.TokenExpired, errors.TokenRevoked, errors.Draining) as error:
        if not passage.relay.began:
            raise
        passage.facts.code = error.code
        passage.relay.close()
        passage.relay.end()


async def _next(body: bytes | AsyncIterator[bytes]) -> bytes:
    return b"" if isinstance(body, bytes) else await anext(body, b"")


def _size(headers: Mapping[str, str], whole: bytes | None) -> int | None:
    if whole is not None:
        return len(whole)
    length = headers.get(hdrs.CONTENT_LENGTH, "")
    return int(length) if length.isdigit() else None
