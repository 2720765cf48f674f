"""aiohttp's connection protocol, with this gateway's errors: what the parser refuses is a problem document too.

Also the time limit of a request head: aiohttp bounds the idle time of a connection, but not how slowly a head may drip in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway import errors, wire
from gateway.limits import refusal_fields
from gateway.server.arming import HEAD_END, MAX_HEAD
from gateway.server.departure import Departure

_log = logging.getLogger(__name__)
SERVER = "longpoll-gateway"


class InternalError(errors.GatewayError):
    """Something that should not happen did; the log has the details."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("Something went wrong. The log of the server knows more under this request id.")


def problem_response(error: errors.GatewayError, request_id: str) -> web.Response:
    """Return the problem document of an error, with the fields that tell of a limit."""
    problem = wire.problem(error, request_id)
    headers = {**problem.headers, "Server": SERVER, **dict(refusal_fields(error))}
    return web.Response(status=problem.status, body=problem.body, headers=headers)


def from_http(error: web.HTTPException, limit: int) -> errors.GatewayError:
    """Map aiohttp's own exceptions to ours. `limit`: the bound of bodies, in bytes."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        return errors.MethodNotAllowed(tuple(sorted(error.allowed_methods)))
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return errors.BodyTooLarge(limit)
    if error.status == web.HTTPNotFound.status_code:
        return errors.NotFound()
    if error.status == web.HTTPExpectationFailed.status_code:
        return errors.RequestMalformed("The only expectation that is known is 100-continue.")
    return errors.RequestMalformed()


def from_parser(error: BaseException | None, *, line_limit: int, field_limit: int) -> errors.GatewayError:
    """Map what aiohttp's parser raises. Its limits differ (see `Server`), so they tell a target from a header field."""
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(line_limit):
            return errors.TargetTooLong(line_limit)
        return errors.HeadTooLarge(field_limit)
    if isinstance(error, BadHttpMessage) and "Too many headers" in error.message:
        return errors.HeadTooLarge(field_limit)
    return errors.RequestMalformed()


class Relayed(web.StreamResponse):
    """An answer that has been sent already, past aiohttp; shared by all that end alike."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:  # aiohttp's signature
        """Do nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing."""


class Connection(RequestHandler):
    """One connection of a client, as long as aiohttp has it. `on_refused` is told the status of what no handler saw."""

    __slots__ = ("_body", "_head", "_head_handle", "_head_timeout", "_on_refused", "_received")

    def __init__(
        self, *args: Any, head_timeout: float = 10.0, on_refused: Callable[[int], None] = lambda _: None, **kwargs: Any
    ) -> None:
        # Bodies for backends go on as they come; who wants one unpacked does that.
        super().__init__(*args, auto_decompress=False, **kwargs)
        self._on_refused = on_refused
        self._head_timeout = head_timeout
        self._head_handle: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        # What came in since the last answer: its beginning, or None where one request's bytes could not be told from the next
        # one's; and the number of bytes.
        self._head: bytes | None = b""
        self._received = 0

    def data_received(self, data: bytes) -> None:
        """Feed the parser; begin to count the time of a head that is not complete."""
        if self._head is not None:
            self._received += len(data)
            if len(self._head) < MAX_HEAD:
                self._head += data
        super().data_received(data)
        self._watch_body()
        # A connection that has just been made does not wait for anything yet, but the first bytes may be there already.
        idle = self._request_count == 0 if self._waiter is None else not self._waiter.done()
        waiting = idle and not self._messages
        if not waiting:
            self._stop_counting()
        elif self._head_handle is None:
            self._head_handle = self._loop.call_later(self._head_timeout, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._stop_counting()
        self._body = None
        super().connection_lost(exc)

    # --- giving the connection away ---

    def sole_head(self) -> bytes | None:
        """Return the head of the request under way, of at most MAX_HEAD bytes.

        None if anything else came in since the last answer, or that is not out.
        """
        head, transport = self._head, self.transport
        if head is None or transport is None or self._messages or self._force_close or self._close:
            return None
        if self._received > MAX_HEAD or head.find(HEAD_END) != self._received - len(HEAD_END):
            return None
        if transport.get_write_buffer_size():
            return None
        return head

    def leave(self) -> asyncio.Transport:
        """Give the transport to another protocol, and end: the task that calls this is cancelled at its next await."""
        transport = self.transport
        if transport is None:
            raise AssertionError("a request that is under way has a transport")
        self.transport = None  # or aiohttp would close it
        self.connection_lost(None)
        return transport

    def message_tail(self) -> bytes:
        """Return what came in behind a request to switch protocols, which the parser leaves alone."""
        tail, self._message_tail = self._message_tail, b""
        return tail

    def maker(self) -> Callable[[], RequestHandler]:
        """Return what makes connections of the same server."""
        if self._manager is None:
            raise AssertionError("a request that is under way has a server")
        return self._manager

    def _answered(self, request: web.BaseRequest) -> None:
        """Begin to note the next request, unless it is not sure where it begins."""
        head = self._head
        if head is None:
            return
        end = head.find(HEAD_END) + len(HEAD_END)
        body = 0 if not request.body_exists else request.content_length
        whole = end >= len(HEAD_END) and body is not None and self._received == end + body and not self._messages
        self._head = b"" if whole else None
        self._received = 0

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log, but not at a client's will: whoever reads a broken body has answered it."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def _watch_body(self) -> None:
        """End the read of a body whose framing breaks in the middle.

        aiohttp queues the error behind the request, which goes on to wait for a body that cannot come any more.
        """
        if not self._messages:
            return
        message, body = self._messages[-1]
        if not isinstance(message, _ErrInfo):
            self._body = body
        elif self._body is not None and not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("the body is not framed as its head says"))

    def _stop_counting(self) -> None:
        if self._head_handle is not None:
            self._head_handle.cancel()
            self._head_handle = None

    def _head_is_late(self) -> None:
        self._head_handle = None
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # aiohttp's signature
    ) -> web.StreamResponse:
        """Answer what no handler saw: a head that cannot be parsed, or an error outside the middleware.

        ConnectionError where there is nobody to be answered: aiohttp then closes.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        request_id = secrets.token_hex(8)
        if status == web.HTTPBadRequest.status_code:
            error = from_parser(exc, line_limit=self.max_line_size, field_limit=self.max_field_size)
            _log.debug("refused a head: %s", error.code)
        else:
            error = InternalError()
            _log.error("error outside the middleware, request id %s", request_id, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has already begun")
        response = problem_response(error, request_id)
        # By the header as well: what could not be parsed counts as HTTP/1.0 here, where aiohttp leaves it out.
        response.headers.update({"Connection": "close", "X-Request-Id": request_id})
        self._on_refused(response.status)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; aiohttp's own error pages, raised outside the middleware (Expect), become problem documents."""
        if isinstance(resp, Departure):
            resp.take(self)
            return resp, False
        self._answered(request)
        if isinstance(resp, web.HTTPException):
            request_id = secrets.token_hex(8)
            resp = problem_response(from_http(resp, 0), request_id)
            resp.headers["X-Request-Id"] = request_id
        return await super().finish_response(request, resp, start_time)


class Server(web.Server):
    """aiohttp's server, making our connections.

    `max_target_bytes` and `max_field_bytes` must differ for errors to tell which was passed; equal ones are moved apart.
    """

    def __init__(
        self,
        handler: Any,
        *,
        max_target_bytes: int,
        max_field_bytes: int,
        head_timeout: float,
        on_refused: Callable[[int], None] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        if max_field_bytes == max_target_bytes:
            max_field_bytes += 1
        # handler_cancellation: without it a handler goes on waiting after its client has left.
        super().__init__(handler, handler_cancellation=True, **kwargs)
        self._connection_args = {
            "max_line_size": max_target_bytes,
            "max_field_size": max_field_bytes,
            "head_timeout": head_timeout,
            "on_refused": on_refused,
            **self._kwargs,
        }

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=self._loop, **self._connection_args)


class Runner(web.AppRunner):
    """aiohttp's application runner with our server, which gets the further arguments.

    `door` makes the handler of all requests from the application's.
    """

    def __init__(
        self, app: web.Application, *, shutdown_timeout: float, door: Callable[[Any], Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=shutdown_timeout)
        self._door = door
        self._server_args = kwargs

    async def _make_server(self) -> web.Server:
        loop = asyncio.get_running_loop()
        self._app._set_loop(loop)  # noqa: SLF001  # what AppRunner does; there is no public way to give another Server
        self._app.on_startup.freeze()
        await self._app.startup()
        self._app.freeze()
        inside = self._app._handle  # noqa: SLF001
        return Server(
            inside if self._door is None else self._door(inside),
            request_factory=self._app._make_request,  # noqa: SLF001
            loop=loop,
            access_log=None,
            **self._server_args,
        )
