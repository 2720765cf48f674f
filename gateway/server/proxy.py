"""Requests for backends: everything that one passes between the client and an upstream.

In order: route, preflight, sunset, address limit, identity, rule, limits; then the head is rewritten and sent, and the answer
comes back as it comes. Nothing of aiohttp's application is on the way: with it a proxied request would cost twice as much.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import nullcontext
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict

from gateway import errors
from gateway.auth.principal import Principal
from gateway.limits import Holder
from gateway.proxy.cache import Cache
from gateway.proxy.connection import TargetFailed
from gateway.proxy.exchange import Backend, Outgoing
from gateway.proxy.forward import Begun, Forwarder
from gateway.proxy.forwarding import Hop
from gateway.proxy.headers import ends_here
from gateway.proxy.rewriting import Values
from gateway.proxy.routes import Found, Routes, WrongMethod
from gateway.server import cached, crossorigin
from gateway.server.accesslog import AccessLog
from gateway.server.address import TrustedProxies, bucket_key
from gateway.server.admission import Admission
from gateway.server.exchange import Exchange as Facts
from gateway.server.exchange import attach, begin
from gateway.server.middleware import CLOSED_BY_CLIENT
from gateway.server.outgoing import WITH_BODY, outgoing
from gateway.server.passage import Passage, Route
from gateway.server.protocol import Connection, InternalError, Run, problem_response
from gateway.server.proxymetrics import ProxyMetrics
from gateway.server.relay import Relay
from gateway.server.returning import Returning, dress
from gateway.server.switching import SWITCHING_PROTOCOLS, Switching
from gateway.server.tenures import Tenures

_log = logging.getLogger(__name__)
TRANSPORT = "proxy"
BROKEN = "upstream_broken"
"""The outcome of an answer that broke off: its connection is cut."""

Handler = Callable[[Any], Awaitable[web.StreamResponse]]
_METHODS = (*sorted(WITH_BODY | {hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_DELETE}), hdrs.METH_OPTIONS)


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
        own: Container[str],
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
        self._returning = Returning(tenures, closing=closing, clock=clock)
        self._switching = Switching(tenures, self._finish)

    def __repr__(self) -> str:
        return f"<Proxy {self.routes!r}, {len(self._switching)} tunnels>"

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
        if crossorigin.is_preflight(request.method, request.headers):
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
        origin = crossorigin.allowed_origin(message.headers, found.route.origins)
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
            with self._returning.held_for(passage, route.terms.total) if route.terms.held else nullcontext():
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
        dress(passage, headers)
        relay.send(204, "", headers, b"")
        self._finish(passage)
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

    async def _forward(
        self, passage: Passage, begun: Begun | None = None, random: Callable[[int], bytes] = os.urandom
    ) -> web.StreamResponse:
        route = passage.route
        backend, key = passage.backend()
        request = outgoing(passage, random)
        passage.held = route.terms.held
        try:
            if route.cache is not None and cached.is_cacheable(request):
                await self._from_cache(passage, route.cache, backend, request, key)
            else:
                exchange = await self.forwarder.ask(backend, route.terms, request, key, begun)
                try:
                    if exchange.message.code == SWITCHING_PROTOCOLS:
                        return self._switching.join(passage, exchange)
                    await self._returning.fresh(passage, exchange)
                finally:
                    if not exchange.switched:
                        exchange.close()
        except TargetFailed:
            # The client must not take what it has for the whole.
            passage.relay.abort()
            passage.facts.code = BROKEN
        self._finish(passage)
        return passage.relay.result

    async def _from_cache(self, passage: Passage, cache: Cache, backend: Backend, request: Outgoing, key: bytes | None) -> None:
        answer = await cached.ask(cache, self.forwarder, passage, backend, request, key)
        self.metrics.cached(passage.route.name, answer.result)
        try:
            await self._returning.cached(passage, answer)
        finally:
            await answer.close()

    def _preflight(
        self, request: web.BaseRequest, found: Found[Route] | WrongMethod, host: str, path: str, query: str
    ) -> CIMultiDict[str] | None:
        """Return the head of the answer to a preflight; None where the backend is to answer it."""
        method = request.headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD]
        meant = self.routes.find(host, method, path, query, crossorigin.Meant(request.headers))
        if not isinstance(meant, Found) or meant.route.origins is None:
            return None if isinstance(found, Found) else CIMultiDict()
        return crossorigin.permission(request.headers, meant.route.origins)

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
            crossorigin.mark(response.headers, origin, passage.route.origins)
            response.headers.extend(passage.route.lifecycle.fields)
        if self.closing() or not request.content.is_eof():
            # Where the next request begins is not known, or only after a body that nobody wants.
            relay.close()
        body = response.body if isinstance(response.body, bytes) else b""
        relay.send(response.status, response.reason or "", response.headers, body)
        self._done(request, passage, facts, relay)
        return relay.result

    def _finish(self, passage: Passage) -> None:
        self._done(passage.request, passage, passage.facts, passage.relay)

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
        self._switching.close()


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


def _authority(request: web.BaseRequest, path: str) -> tuple[str, str]:
    """Return the host and path that a request is for; a target in absolute form has both (RFC 9112 §3.2.2)."""
    if path.startswith("/"):
        return request.headers.get(hdrs.HOST, ""), path
    scheme, _, rest = path.partition("://")
    if scheme.lower() in ("http", "https"):
        host, slash, rest = rest.partition("/")
        return host, slash + rest or "/"
    return request.headers.get(hdrs.HOST, ""), path
