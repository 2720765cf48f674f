"""Requests for backends: everything that one passes between the client and an upstream.

In order: route, preflight, sunset, address limit, identity, rule, limits; then the head is rewritten and sent, and the answer
comes back as it comes. Nothing of aiohttp's application is on the way: with it a proxied request would cost twice as much.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import quote

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage, RawResponseMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict

from gateway import errors
from gateway.auth.policy import Rule
from gateway.auth.principal import Principal
from gateway.auth.templates import Template
from gateway.lifecycle import ENDLESS, Lifecycle
from gateway.limits import Holder, Slots, TokenBuckets
from gateway.proxy.body import Body
from gateway.proxy.cache import Cache
from gateway.proxy.caching import CacheRequest, Fetched
from gateway.proxy.compression import Compressor, coding_for, mark, pays
from gateway.proxy.connection import TargetFailed
from gateway.proxy.forward import Backend, Begun, Exchange, Forwarder, Outgoing, Terms
from gateway.proxy.forwarding import Hop
from gateway.proxy.headers import STRIPPED, ends_here, forwarded_head, returned_head
from gateway.proxy.rewriting import HeaderEdits, PathRewrite, Values
from gateway.proxy.routes import Found, Routes, WrongMethod
from gateway.proxy.split import Split
from gateway.proxy.tunnel import Tunnel
from gateway.server.accesslog import AccessLog
from gateway.server.address import TrustedProxies, bucket_key
from gateway.server.admission import Admission
from gateway.server.departure import Departure
from gateway.server.exchange import Exchange as Facts
from gateway.server.exchange import attach, begin
from gateway.server.middleware import CLOSED_BY_CLIENT, PREFLIGHT_MAX_AGE
from gateway.server.protocol import Connection, InternalError, Run, problem_response
from gateway.server.proxymetrics import ProxyMetrics
from gateway.server.relay import Relay
from gateway.server.tenures import Tenure, Tenures

_log = logging.getLogger(__name__)
TRANSPORT = "proxy"
EVENT_STREAM = "text/event-stream"
BROKEN = "upstream_broken"
"""The outcome of an answer that broke off: its connection is cut."""

_SWITCHING_PROTOCOLS = 101
_GRACE = 1.5
"""Seconds in which every connection to a target is looked at, and a little more."""

_STORED = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
Handler = Callable[[Any], Awaitable[web.StreamResponse]]
_WITH_BODY = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})
_METHODS = (*sorted(_WITH_BODY | {hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_DELETE}), hdrs.METH_OPTIONS)
NO_EDITS = HeaderEdits()


@dataclass(frozen=True, slots=True)
class Route:
    """One route with all that its requests pass.

    `backends` by upstream name; with more than one, `split` chooses by `split_on`, None: the client's address. `origins` None:
    cross-origin requests are the backend's business. `allow` does not matter where it is `public`.
    """

    name: str
    backends: Mapping[str, Backend]
    terms: Terms
    allow: Rule
    max_body: int
    split: Split | None = None
    split_on: Template | None = None
    public: bool = False
    rewrite: PathRewrite | None = None
    host: str | None = None
    request_edits: HeaderEdits = NO_EDITS
    response_edits: HeaderEdits = NO_EDITS
    claims: tuple[tuple[str, Template], ...] = ()
    stripped: frozenset[bytes] = STRIPPED
    bucket: TokenBuckets | None = None
    slots: Slots | None = None
    origins: frozenset[str] | None = None
    lifecycle: Lifecycle = ENDLESS
    compress: bool = False
    cache: Cache | None = None
    plain: bool = field(init=False)
    """Whether a request without a body needs nothing but what can be done at once."""
    alike: bool = field(init=False)
    """Whether the heads of its answers do not depend on the request."""

    def __post_init__(self) -> None:
        plain = self.cache is None and not self.compress and not self.terms.held and self.lifecycle.sunset is None
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "alike", self.response_edits == NO_EDITS and not self.origins)

    def backend(self, values: Values, address: str) -> Backend:
        """Return the backend for a request."""
        if self.split is None:
            return next(iter(self.backends.values()))
        key = address if self.split_on is None else values.text(self.split_on)
        return self.backends[self.split.choose(key.encode("utf-8", "surrogateescape"))]


@dataclass(slots=True)
class Passage:
    """One request on its way: what is known of it. `request` and `relay` are there once a task has it."""

    message: RawRequestMessage
    route: Route
    found: Found[Route]
    facts: Facts
    hop: Hop
    path: str
    query: str
    values: Values
    origin: str | None = None
    """The Access-Control-Allow-Origin to answer with, None: none."""
    upstream: str | None = None
    body: Body | None = None
    held: bool = False
    expects: bool = False
    """The client waits for 100 Continue."""
    holder: Holder | None = None
    """Who has a slot of the route for it."""
    switched: bool = False
    """It goes on in a tunnel, which ends it."""
    since: int = 0
    """How many keys had been withdrawn when the token was found good."""
    tenure: Tenure | None = None
    """What ends the tunnel with the token."""

    request: web.BaseRequest = field(init=False)
    relay: Relay = field(init=False)

    def release(self) -> None:
        """Give its slot back, and forget whom it is held for."""
        if self.tenure is not None:
            self.tenure.close()
        if self.holder is not None and self.route.slots is not None:
            self.route.slots.release_of(self.holder)

    def target(self, path: str) -> str:
        """Return a target with this path and the query as sent."""
        return f"{path}?{self.query}" if "?" in self.message.path else path


class Ongoing(Run, Protocol):
    """A request that was begun without a task, and that a task is to go on with."""

    async def resume(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer the request."""
        ...


class Proxy:
    """Answers requests for backends. `own` are the gateway's own paths, which no route can take.

    `closing` tells whether each answer ends its connection. `scheme`: of the public listener.
    """

    def __init__(
        self,
        *,
        routes: Routes[Route],
        own: frozenset[str],
        forwarder: Forwarder,
        admission: Admission,
        trusted: TrustedProxies,
        metrics: ProxyMetrics,
        access_log: AccessLog | None,
        closing: Callable[[], bool],
        tenures: Tenures,
        scheme: str = "http",
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self.routes = routes
        self.own = own
        self.forwarder = forwarder
        self.admission = admission
        self.trusted = trusted
        self.metrics = metrics
        self.access_log = access_log
        self.closing = closing
        self.tenures = tenures
        self._scheme = scheme
        self._clock = clock
        self._unix_clock = unix_clock
        self._tunnels: set[Tunnel] = set()

    def __repr__(self) -> str:
        return f"<Proxy {self.routes!r}, {len(self._tunnels)} tunnels>"

    # --- the door ---

    def door(self, application: Handler) -> Handler:
        """Return the handler of all requests: those that no route takes go to the application's."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            ongoing = cast("Connection", request.protocol).taken()
            if ongoing is not None:
                return await cast("Ongoing", ongoing).resume(request)
            target = request._message.path  # noqa: SLF001  # as sent; the public property is the same text from a URL object
            path, _, query = target.partition("?")
            host, path = _authority(request, path)
            if path in self.own:
                return await application(request)
            found = self._find(request, host, path, query)
            if found is None:
                return await application(request)
            return await self._answer(request, found, host, path, query)

        return handle

    def _find(self, request: web.BaseRequest, host: str, path: str, query: str) -> Found[Route] | WrongMethod | None:
        return self.routes.find(host, request.method, path, query, request.headers)

    async def _answer(
        self, request: web.BaseRequest, found: Found[Route] | WrongMethod, host: str, path: str, query: str
    ) -> web.StreamResponse:
        relay = Relay(request)
        await relay.ready()
        facts = begin(request, self.trusted, self._clock(), TRANSPORT)
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            preflight = self._preflight(request, found, host, path, query)
            if preflight is not None:
                preflight["X-Request-Id"] = facts.request_id
                relay.send(204, "", preflight, b"")
                self._done(request, None, facts, relay)
                return relay.result
        if isinstance(found, WrongMethod):
            return self._refuse(request, None, facts, relay, errors.MethodNotAllowed(found.allowed), None)
        passage = self.passage(request._message, found, facts, host, path, query)  # noqa: SLF001
        passage.request, passage.relay = request, relay
        return await self._guarded(passage, self._pass(passage))

    async def resume(
        self,
        request: web.BaseRequest,
        passage: Passage,
        *,
        begun: Begun | None,
        holder: Holder | None,
        random: Callable[[int], bytes],
        error: errors.GatewayError | None,
    ) -> web.StreamResponse:
        """Go on with a request that was admitted: with its first attempt `begun`, or to tell of an `error`."""
        passage.request, passage.relay = request, Relay(request)
        attach(request, passage.facts)
        return await self._guarded(passage, self._resume(passage, begun, holder, random, error))

    async def _resume(
        self,
        passage: Passage,
        begun: Begun | None,
        holder: Holder | None,
        random: Callable[[int], bytes],
        error: errors.GatewayError | None,
    ) -> web.StreamResponse:
        passage.holder = holder
        try:
            if error is not None:
                raise error
            return await self._forward(passage, begun, random)
        finally:
            passage.release()

    async def _guarded(self, passage: Passage, answered: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        request, facts, relay = passage.request, passage.facts, passage.relay
        try:
            return await answered
        except (asyncio.CancelledError, ConnectionError):
            facts.code = CLOSED_BY_CLIENT
            self._done(request, passage, facts, relay, status=499)
            raise
        except errors.GatewayError as error:
            return self._refuse(request, passage, facts, relay, error, passage.origin)
        except Exception:  # noqa: BLE001  # the last line of defence: logged with its trace, told without it
            _log.exception("a proxied request failed")
            return self._refuse(request, passage, facts, relay, InternalError(), passage.origin)

    def passage(
        self, message: RawRequestMessage, found: Found[Route], facts: Facts, host: str, path: str, query: str
    ) -> Passage:
        """Return what is known of a request whose route was found, before anybody is asked who sent it."""
        version = message.version
        hop = Hop(facts.peer, facts.peer in self.trusted, self._scheme, host, f"{version.major}.{version.minor}")
        values = Values(found.parameters, None, message.headers)
        origin = self._allowed_origin(message.headers, found.route)
        return Passage(message, found.route, found, facts, hop, path, query, values, origin)

    # --- what it passes ---

    async def _pass(self, passage: Passage) -> web.StreamResponse:
        route, request = passage.route, passage.request
        route.lifecycle.check(self._unix_clock())
        principal = await self._identify(passage)
        passage.values = Values(passage.found.parameters, principal, request.headers)
        if ends_here(request.method, passage.message.raw_headers):
            return self._end_here(passage)
        passage.holder = self.charge(route, passage.facts.address, principal)
        try:
            with self._held_for(passage, route.terms.total) if route.terms.held else nullcontext():
                return await self._forward(passage)
        finally:
            if not passage.switched:
                passage.release()

    def _end_here(self, passage: Passage) -> web.StreamResponse:
        """Answer as the last one that a request may reach (RFC 9110 §7.6.2); TRACE could tell secrets (§9.3.8)."""
        request, hop, relay = passage.request, passage.hop, passage.relay
        taken = [method for method in _METHODS if self._takes(method, hop.host, passage)]
        if request.method != hdrs.METH_OPTIONS:
            raise errors.MethodNotAllowed(tuple(taken))
        headers = CIMultiDict({hdrs.ALLOW: ", ".join(taken)})
        self.dress(passage, headers)
        relay.send(204, "", headers, b"")
        self._done(request, passage, passage.facts, relay)
        return relay.result

    def _takes(self, method: str, host: str, passage: Passage) -> bool:
        return isinstance(self.routes.find(host, method, passage.path, passage.query, passage.request.headers), Found)

    async def _identify(self, passage: Passage) -> Principal | None:
        if passage.route.public:
            self.admission.charge_address(passage.facts.address)
            return None
        passage.since = self.tenures.withdrawals
        principal = await self.admission.identify(passage.request)
        if not passage.route.allow.allows(principal, passage.found.parameters):
            raise errors.Forbidden
        return principal

    def charge(self, route: Route, address: str, principal: Principal | None) -> Holder | None:
        """Take from the route's limits; return who holds a slot then."""
        if route.bucket is None and route.slots is None:
            return None
        who: Any = bucket_key(address) if principal is None else principal.id
        if route.bucket is not None:
            route.bucket.check(who, self._clock())
        if route.slots is None:
            return None
        route.slots.acquire(who)
        return route.slots.holder(who)

    def _held_for(self, passage: Passage, within: float = math.inf) -> AbstractContextManager[None]:
        """Return what ends the task with the token that it is held for; it ends by itself `within` so many seconds."""
        return self.tenures.bounding(passage.values.principal, passage.since, within=within)

    async def _forward(
        self, passage: Passage, begun: Begun | None = None, random: Callable[[int], bytes] = os.urandom
    ) -> web.StreamResponse:
        route = passage.route
        backend, key = self.backend(passage)
        outgoing = self.outgoing(passage, random)
        passage.held = route.terms.held
        try:
            if route.cache is not None and _is_cacheable(outgoing):
                await self._from_cache(passage, route.cache, backend, outgoing, key)
            else:
                exchange = await self.forwarder.ask(backend, route.terms, outgoing, key, begun)
                try:
                    if exchange.message.code == _SWITCHING_PROTOCOLS:
                        return self._switch(passage, exchange)
                    await self._return(passage, exchange)
                finally:
                    if not exchange.switched:
                        exchange.close()
        except TargetFailed:
            # The client must not take what it has for the whole.
            passage.relay.abort()
            passage.facts.code = BROKEN
        self._done(passage.request, passage, passage.facts, passage.relay)
        return passage.relay.result

    async def _return(self, passage: Passage, exchange: Exchange) -> None:
        """Send a backend's answer."""
        message = exchange.message
        headers = returned(message, trailers=message.chunked)
        if _is_stream(message.headers):
            exchange.hold()
            passage.held = True
            with _ended(passage), self._held_for(passage):
                await self._send(passage, message.code, message.reason, headers, None, exchange.read)
        else:
            await self._send(passage, message.code, message.reason, headers, exchange.whole(), exchange.read, exchange.trailers)

    async def _from_cache(
        self, passage: Passage, cache: Cache, backend: Backend, outgoing: Outgoing, key: bytes | None
    ) -> None:
        """Send what is stored, or what the backend says, which may be stored then."""
        route = passage.route

        async def fetch(headers: CIMultiDict[str]) -> Fetched:
            asked = replace(outgoing, headers=headers)
            return await fetched(await self.forwarder.ask(backend, route.terms, asked, key))

        asked = CacheRequest(
            outgoing.method,
            *_origin(outgoing.headers, passage.hop),
            passage.target(passage.path),
            outgoing.headers,
            authenticated=not route.public,
            anonymous=route.public and not route.claims,
            held=route.terms.held,
        )
        answer = await cache.fetch(asked, fetch)
        self.metrics.cached(route.name, answer.result)
        try:
            whole = answer.body if isinstance(answer.body, bytes) else None
            if not _is_stream(answer.headers):
                await self._send(passage, answer.status, "", answer.headers, whole, partial(_next, answer.body))
                return
            passage.held = True
            with _ended(passage), self._held_for(passage):
                await self._send(passage, answer.status, "", answer.headers, whole, partial(_next, answer.body))
        finally:
            await answer.close()

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
        if self.closing() or (passage.expects and not passage.request.content.is_eof()):
            # RFC 9110 §10.1.1: whether the body that was not asked for will come all the same, nobody knows.
            relay.close()
        coding = None
        # RFC 9110 §9.3.2: an answer to HEAD has the head of that to GET.
        size = _size(headers, None if passage.request.method == hdrs.METH_HEAD else whole)
        if route.compress and pays(status, headers, size):
            coding = coding_for(passage.request.headers.get(hdrs.ACCEPT_ENCODING))
            mark(headers, coding)
        self.dress(passage, headers)
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

    def dress(self, passage: Passage, headers: CIMultiDict[str]) -> None:
        """Put in what the route has to say."""
        route = passage.route
        if route.lifecycle.fields:
            headers.extend(route.lifecycle.fields)
        route.response_edits.apply(headers, passage.values)
        headers["X-Request-Id"] = passage.facts.request_id
        self._mark(headers, passage.origin, route)

    def backend(self, passage: Passage) -> tuple[Backend, bytes | None]:
        """Return the backend of a request, and what its `hash` balancing goes by; Forbidden where that cannot be had."""
        backend = passage.route.backend(passage.values, passage.facts.address)
        passage.upstream = backend.name
        if backend.key is None:
            return backend, None
        return backend, passage.values.text(backend.key).encode("utf-8", "surrogateescape")

    def outgoing(self, passage: Passage, random: Callable[[int], bytes]) -> Outgoing:
        """Return the request as the backend gets it; Forbidden where a claim for it cannot be had."""
        route, message = passage.route, passage.message
        fields = message.headers
        body = passage.body = self._body(passage)
        headers = forwarded_head(
            message.raw_headers,
            passage.hop,
            method=message.method,
            random=random,
            host=route.host,
            stripped=route.stripped,
            vouched=[(name, passage.values.text(template)) for name, template in route.claims],
            upgrade=body is None and _wants_websocket(message),
            trailers=False,
        )
        if body is None and message.method in _WITH_BODY:
            headers[hdrs.CONTENT_LENGTH] = "0"  # RFC 9110 §8.6: some wait for a body otherwise, or answer 411
        if body is not None:
            headers.popall(hdrs.CONTENT_LENGTH, None)
            if body.length is None:
                headers[hdrs.TRANSFER_ENCODING] = "chunked"
            else:
                headers[hdrs.CONTENT_LENGTH] = str(body.length)
        headers["X-Request-Id"] = passage.facts.request_id
        route.request_edits.apply(headers, passage.values)
        path = passage.path if route.rewrite is None else route.rewrite.apply(passage.found)
        # RFC 9110 §10.1.1: in HTTP/1.0 it means nothing.
        expects = (
            body is not None and message.version >= HttpVersion11 and fields.get(hdrs.EXPECT, "").lower() == "100-continue"
        )
        passage.expects = expects
        if expects:
            headers[hdrs.EXPECT] = "100-continue"
        return Outgoing(
            message.method,
            passage.target(path),
            headers,
            body,
            expects=expects,
            on_informational=lambda answer: passage.relay.informational(answer.code, answer.reason, returned(answer)),
            on_continue=lambda: passage.relay.informational(100, "Continue", CIMultiDict()),
        )

    def _body(self, passage: Passage) -> Body | None:
        message = passage.message
        length = int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
        if not message.chunked and not length:
            return None
        request = passage.request
        return Body(
            request.content,
            length=None if message.chunked else length,
            limit=passage.route.max_body,
            idle=passage.route.terms.idle,
        )

    # --- cross-origin requests (Fetch standard) ---

    def _allowed_origin(self, fields: Mapping[str, str], route: Route) -> str | None:
        if not route.origins:
            return None
        origin = fields.get(hdrs.ORIGIN)
        if origin is None or not ("*" in route.origins or origin in route.origins):
            return None
        return "*" if "*" in route.origins else origin

    def _mark(self, headers: CIMultiDict[str], allowed: str | None, route: Route) -> None:
        if not route.origins:
            return
        for name in [name for name in headers if name.lower().startswith("access-control-")]:
            headers.popall(name, None)
        if "*" not in route.origins:
            headers.add(hdrs.VARY, "Origin")
        if allowed is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(
                sorted({name for name in headers if name.lower() not in _SAFELISTED})
            )

    def _preflight(
        self, request: web.BaseRequest, found: Found[Route] | WrongMethod, host: str, path: str, query: str
    ) -> CIMultiDict[str] | None:
        """Return the head of the answer to a preflight; None where the backend is to answer it."""
        method = request.headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD]
        meant = self.routes.find(host, method, path, query, _Meant(request.headers))
        if not isinstance(meant, Found) or meant.route.origins is None:
            return None if isinstance(found, Found) else CIMultiDict()
        headers: CIMultiDict[str] = CIMultiDict()
        allowed = self._allowed_origin(request.headers, meant.route)
        self._mark(headers, allowed, meant.route)
        if allowed is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = method
            asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
            if asked is not None:
                headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_MAX_AGE
            headers.popall(hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, None)
        return headers

    # --- other protocols ---

    def _switch(self, passage: Passage, exchange: Exchange) -> Departure:
        """Join the client and the target, after 101."""
        headers = returned_head(exchange.message.raw_headers, version=_version(exchange.message), upgrade=True)
        passage.route.response_edits.apply(headers, passage.values)
        headers["X-Request-Id"] = passage.facts.request_id
        # What may fail comes first: whoever has given the connection away has to see to it that all is counted to its end.
        principal = passage.values.principal
        self.tenures.check(principal, passage.since)
        exchange.hold()
        passage.held = True
        passage.relay.switch(exchange.message.reason, headers)
        rest = exchange.connection.rest()
        target = exchange.detach()
        passage.switched = True

        def ended(tunnel: Tunnel) -> None:
            self._tunnels.discard(tunnel)
            exchange.received = tunnel.target.received
            passage.relay.sent = tunnel.target.received
            exchange.close()
            passage.release()
            self._done(passage.request, passage, passage.facts, passage.relay)

        tunnel = Tunnel(ended)
        self._tunnels.add(tunnel)

        def end(error: errors.GatewayError) -> None:
            passage.facts.code = error.code
            tunnel.abort()

        passage.tenure = self.tenures.begin(principal, end)
        return _Switch(tunnel, target, rest)

    # --- ends ---

    def _refuse(
        self,
        request: web.BaseRequest,
        passage: Passage | None,
        facts: Facts,
        relay: Relay,
        error: errors.GatewayError,
        origin: str | None,
    ) -> web.StreamResponse:
        facts.code = error.code
        self.metrics.refused(error)
        if relay.began:
            relay.abort()
            self._done(request, passage, facts, relay)
            return relay.result
        response = problem_response(error, facts.request_id)
        response.headers["X-Request-Id"] = facts.request_id
        if passage is not None:
            self._mark(response.headers, origin, passage.route)
            response.headers.extend(passage.route.lifecycle.fields)
        if self.closing() or not request.content.is_eof():
            # Where the next request begins is not known, or only after a body that nobody wants.
            relay.close()
        body = response.body if isinstance(response.body, bytes) else b""
        relay.send(response.status, response.reason or "", response.headers, body)
        self._done(request, passage, facts, relay)
        return relay.result

    def _done(
        self, request: web.BaseRequest, passage: Passage | None, facts: Facts, relay: Relay, *, status: int | None = None
    ) -> None:
        self.account(
            request._message,  # noqa: SLF001
            facts,
            relay.status if status is None else status,
            relay.sent,
            route="none" if passage is None else passage.route.name,
            upstream=None if passage is None else passage.upstream,
            held=passage is not None and passage.held,
            received=0 if passage is None or passage.body is None else passage.body.received,
        )

    def account(
        self,
        message: RawRequestMessage,
        facts: Facts,
        status: int,
        sent: int,
        *,
        route: str,
        upstream: str | None,
        held: bool = False,
        received: int = 0,
    ) -> None:
        """Count and log a request that has ended; sizes of the bodies in bytes."""
        duration = self._clock() - facts.began
        self.metrics.done(route, status, duration, held=held, received=received, sent=sent)
        if self.access_log is not None:
            told = logged(message, facts, status, route, upstream)
            self.access_log.write(request_id=facts.request_id, sent=sent, duration=duration, **told)

    def close(self) -> None:
        """Cut what has switched protocols: nobody else can end it."""
        for tunnel in list(self._tunnels):
            tunnel.abort()


def logged(message: RawRequestMessage, facts: Facts, status: int, route: str, upstream: str | None) -> dict[str, Any]:
    """Return what the access log tells of a request, but for its id, size and duration."""
    principal = facts.principal
    return {
        "client": facts.address,
        "method": message.method,
        "target": message.path,
        "status": status,
        "code": facts.code or "ok",
        "transport": TRANSPORT,
        "issuer": None if principal is None else principal.issuer,
        "subject": None if principal is None else principal.subject,
        "route": route,
        "upstream": upstream,
    }


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


class _Switch(Departure):
    """Takes a connection into a tunnel."""

    def __init__(self, tunnel: Tunnel, target: asyncio.Transport, rest: bytes) -> None:
        super().__init__()
        self._tunnel = tunnel
        self._target = target
        self._rest = rest

    def take(self, connection: Any) -> None:
        """Join both ends."""
        early = connection.message_tail()
        client = connection.leave()
        self._tunnel.join(client, self._target, up=early, down=self._rest)


class _Wanted(str):
    """The value of a field that a preflight names: whatever a route asks for."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class _Meant(Mapping[str, str]):
    """The fields of the request that a preflight is for: it tells their names, not their values."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        names = headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")
        self._named = {name.strip().lower(): _Wanted(name) for name in names}

    def __getitem__(self, name: str) -> str:
        named = self._named.get(name.lower())
        return self._headers[name] if named is None else named

    def __iter__(self) -> Iterator[str]:
        return iter({**self._headers, **self._named})

    def __len__(self) -> int:
        return len({**self._headers, **self._named})


# Fetch standard, "CORS-safelisted response-header name", and those that are for the browser alone.
_SAFELISTED = frozenset((
    "cache-control", "connection", "content-language", "content-length", "content-type", "date", "expires", "keep-alive",
    "last-modified", "pragma", "server", "set-cookie", "transfer-encoding", "vary", "via",
))  # fmt: skip


def _authority(request: web.BaseRequest, path: str) -> tuple[str, str]:
    """Return the host and path that a request is for; a target in absolute form has both (RFC 9112 §3.2.2)."""
    if path.startswith("/"):
        return request.headers.get(hdrs.HOST, ""), path
    scheme, _, rest = path.partition("://")
    if scheme.lower() in ("http", "https"):
        host, slash, rest = rest.partition("/")
        return host, slash + rest or "/"
    return request.headers.get(hdrs.HOST, ""), path


def _wants_websocket(message: RawRequestMessage) -> bool:
    # RFC 9110 §7.8: in HTTP/1.0 it means nothing.
    return message.upgrade and message.version >= HttpVersion11 and message.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def fetched(exchange: Exchange) -> Fetched:
    """Return a backend's answer as a cache takes it."""
    message = exchange.message
    headers = returned(message)
    if _is_stream(message.headers):
        try:
            exchange.hold()
        except errors.Overloaded:
            exchange.close()
            raise
    whole = exchange.whole()
    if whole is None:
        return Fetched(message.code, headers, Pouring(exchange))
    exchange.close()
    return Fetched(message.code, headers, whole)


class Pouring(AsyncIterator[bytes]):
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


async def _next(body: bytes | AsyncIterator[bytes]) -> bytes:
    return b"" if isinstance(body, bytes) else await anext(body, b"")


def _origin(headers: Mapping[str, str], hop: Hop) -> tuple[str, str]:
    """Return the scheme and authority of the target URI: those that the backend is told, which may write them into answers."""
    said = headers.get(hdrs.X_FORWARDED_HOST, hop.host)
    named = hop.host if said == hop.host else quote(f"{said},{hop.host}", safe=":")
    return quote(headers.get(hdrs.X_FORWARDED_PROTO, hop.scheme), safe=""), named


def _is_cacheable(request: Outgoing) -> bool:
    """Tell whether a request may go through a cache: what its body asks for is not in the key (RFC 9110 §9.3.1)."""
    return hdrs.UPGRADE not in request.headers and (request.body is None or request.method not in _STORED)


def _is_stream(headers: Mapping[str, str]) -> bool:
    return headers.get(hdrs.CONTENT_TYPE, "").lower().startswith(EVENT_STREAM)


def _size(headers: Mapping[str, str], whole: bytes | None) -> int | None:
    if whole is not None:
        return len(whole)
    length = headers.get(hdrs.CONTENT_LENGTH, "")
    return int(length) if length.isdigit() else None


def returned(message: RawResponseMessage, *, trailers: bool = False) -> CIMultiDict[str]:
    """Return the head of a backend's answer as clients get it, but for what the route has to say."""
    return returned_head(message.raw_headers, version=_version(message), trailers=trailers)


def _version(message: RawResponseMessage) -> str:
    return f"{message.version.major}.{message.version.minor}"
