"""What httpx is asked and what it gives, for both clients: the one module that knows its requests, answers and errors."""

from __future__ import annotations

import inspect
import logging
import ssl
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import httpx

from gateway.client.effects import Answer, Failure, Send

_log = logging.getLogger("gateway.client")
T = TypeVar("T")
MOST_BODY_BYTES = 64 << 20
"""Several times the most that a poll may ask for: an answer beyond that is none of the gateway's."""

HEADERS = {"User-Agent": "longpoll-gateway-client", "Accept": "application/json"}


class BodyTooLong(Exception):
    """An answer does not come to its end."""


ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, BodyTooLong)


class Body:
    """The body of an answer as it comes in."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def add(self, part: bytes) -> None:
        """Take a piece; BodyTooLong beyond MOST_BODY_BYTES."""
        self._parts += part
        if len(self._parts) > MOST_BODY_BYTES:
            raise BodyTooLong(f"more than {MOST_BODY_BYTES} bytes")

    def whole(self) -> bytes:
        """Return all of it."""
        return bytes(self._parts)


class Kept(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport of the program's own, which it closes itself."""

    def __init__(self, inner: httpx.BaseTransport | httpx.AsyncBaseTransport) -> None:
        self._inner: Any = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        return cast("httpx.Response", self._inner.handle_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        return cast("httpx.Response", await self._inner.handle_async_request(request))


def context(url: str, verify: ssl.SSLContext | bool) -> ssl.SSLContext:
    """Return what TLS goes by. Reading all authorities takes tens of milliseconds, which plain HTTP need not pay."""
    if not url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify)


def times(effect: Send, connect: float, between: float) -> dict[str, float | None]:
    """Return the time-outs of a request in seconds, until its answer begins; then `read` is to be changed."""
    return {"connect": connect, "read": effect.patience, "write": between, "pool": None}


def request(http: httpx.Client | httpx.AsyncClient, effect: Send, times: dict[str, float | None]) -> httpx.Request:
    """Return httpx's request; it looks at `times` again and again, so that they can change under way."""
    content = None if effect.method == "GET" else effect.body
    return http.build_request(
        effect.method, effect.target, headers=dict(effect.headers), content=content, extensions={"timeout": times}
    )


def answer(response: httpx.Response, body: Body, seconds: float) -> Answer:
    """Return a whole answer."""
    return Answer(response.status_code, dict(response.headers), body.whole(), seconds)


def failure(error: Exception) -> Failure:
    """Return why there is no answer."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _log.debug("a request failed: %s", reason)
    return Failure(reason)


async def settled(value: Awaitable[T] | T) -> T:
    """Return what a function of the program's gave, awaited where it has to be."""
    if inspect.isawaitable(value):
        return cast("T", await value)
    return value
