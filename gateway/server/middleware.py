"""What every exchange passes, from outside in: request id, outcome and access log; CORS; problem documents."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from aiohttp import hdrs, web

from gateway import errors
from gateway.channels import Channels
from gateway.metrics import Metrics
from gateway.server.accesslog import AccessLog
from gateway.server.address import TrustedProxies
from gateway.server.departure import Departure
from gateway.server.exchange import EXCHANGE, Exchange, begin
from gateway.server.protocol import SERVER, InternalError, from_http, problem_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)
CLOSED_BY_CLIENT = "closed_by_client"

_AUTH = (errors.TokenMissing, errors.TokenInvalid, errors.TokenExpired, errors.TokenRevoked, errors.Forbidden)

ALLOWED_HEADERS = "Authorization, Cursor, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-API-Key"
EXPOSED_HEADERS = (
    "Next-Cursor, Link, Retry-After, RateLimit, RateLimit-Policy, Preference-Applied, Backoff, Deprecation, Sunset"
)
ALLOWED_METHODS = "GET, HEAD, POST"
PREFLIGHT_MAX_AGE = "7200"


class Exchanges:
    """The outermost middleware: the request's id, its address, and what is noted when it is done.

    While `closing` says so, each answer ends its connection: the client's next one goes to another instance.
    """

    def __init__(
        self, *, trusted: TrustedProxies, metrics: Metrics, access_log: AccessLog | None, closing: Callable[[], bool]
    ) -> None:
        self._closing = closing
        self._trusted = trusted
        self._metrics = metrics
        self._access_log = access_log

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """Return it as aiohttp wants it."""

        @web.middleware
        async def exchanges(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._exchange(request, handler)

        return exchanges

    async def _exchange(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = begin(request, self._trusted, time.monotonic())
        try:
            response = await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self._done(request, exchange, 499, 0, CLOSED_BY_CLIENT)
            raise
        response.headers["X-Request-Id"] = exchange.request_id
        response.headers["Server"] = SERVER
        if isinstance(response, Departure):
            return response  # what becomes of it is the lane's to note
        if self._closing():
            response.force_close()
        size = response.body_length if response.prepared else len(getattr(response, "body", None) or b"")
        self._done(request, exchange, response.status, size, exchange.code or exchange.outcome or "ok")
        return response

    def _done(self, request: web.Request, exchange: Exchange, status: int, size: int, outcome: str) -> None:
        route = request.match_info.route.resource
        self._metrics.responses.add(route.canonical if route is not None else "none", str(status))
        if exchange.transport == "poll":
            self._metrics.answers.add("poll", outcome)
            self._metrics.sent_bytes.add("poll", amount=size)
        log = self._access_log
        if log is not None and (exchange.transport != "poll" or log.sampled(status)):
            principal = exchange.principal
            log.write(
                request_id=exchange.request_id,
                client=exchange.address,
                method=request.method,
                target=request.raw_path,
                status=status,
                sent=size,
                duration=time.monotonic() - exchange.began,
                code=outcome,
                transport=exchange.transport,
                issuer=None if principal is None else principal.issuer,
                subject=None if principal is None else principal.subject,
            )


def count_refusal(metrics: Metrics, error: errors.GatewayError) -> None:
    """Count an error that is a limit's, or the want of identity or of a right."""
    if isinstance(error, errors.RateLimited):
        metrics.limit_refusals.add(error.policy, error.code)
    elif isinstance(error, errors.TooManyPolls):
        metrics.limit_refusals.add("parked", error.code)
    elif isinstance(error, errors.Overloaded):
        metrics.limit_refusals.add(error.bound, error.code)
    elif isinstance(error, _AUTH):
        metrics.auth_refusals.add(error.code)


class Problems:
    """The innermost middleware: errors become problem documents. `max_body` is the bound of bodies, which one error names."""

    def __init__(self, metrics: Metrics, *, max_body: int) -> None:
        self._metrics = metrics
        self._max_body = max_body

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """Return it as aiohttp wants it."""

        @web.middleware
        async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return problems

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except errors.GatewayError as error:
            return self._problem(error, request[EXCHANGE])
        except web.HTTPException as error:
            return self._problem(from_http(error, self._max_body), request[EXCHANGE])
        except web.RequestPayloadError:
            response = self._problem(
                errors.RequestMalformed("The body is not framed or coded as its head says."), request[EXCHANGE]
            )
            response.force_close()  # where the next request begins cannot be known
            return response
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001  # the last line of defence: logged with its trace, told without it
            _log.exception("a handler failed")
            return self._problem(InternalError(), request[EXCHANGE])

    def _problem(self, error: errors.GatewayError, exchange: Exchange) -> web.Response:
        exchange.code = error.code
        count_refusal(self._metrics, error)
        response = problem_response(error, exchange.request_id)
        response.headers.extend(exchange.announced)
        return response


class Cors:
    """Cross-origin requests (Fetch standard). A channel's own `origins` take the place of the general ones.

    A request for several channels is shared with an origin that all of them allow.
    """

    def __init__(self, origins: Sequence[str], channels: Channels) -> None:
        self._origins = frozenset(origins)
        self._channels = channels
        self._any = bool(self._origins) or any(channel.origins for channel in channels)

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """Return it as aiohttp wants it."""

        @web.middleware
        async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self._any:
                return await handler(request)
            allowed = self._allowed(request)
            if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                response: web.StreamResponse = _preflight(allowed)
            else:
                response = await handler(request)
            self._mark(request, response, allowed)
            return response

        return cors

    def _allowed(self, request: web.Request) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin is not None and all("*" in origins or origin in origins for origins in self._of(request))

    def _of(self, request: web.Request) -> Iterable[frozenset[str]]:
        names = request.query.getall("channel", [])
        found = [match[0].origins if (match := self._channels.match(name)) else None for name in names]
        return [self._origins if own is None else frozenset(own) for own in found] or [self._origins]

    def _mark(self, request: web.Request, response: web.StreamResponse, allowed: bool) -> None:
        public = all("*" in origins for origins in self._of(request))
        if not public:
            response.headers.add(hdrs.VARY, "Origin")
        if allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if public else request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS


def _preflight(allowed: bool) -> web.Response:
    if not allowed:
        return web.Response(status=204)
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ALLOWED_METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_MAX_AGE,
        },
    )
