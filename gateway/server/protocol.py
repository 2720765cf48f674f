"""aiohttp's connection protocol, with this gateway's errors: what the parser refuses is a problem document too.

Also the time limit of a request head: aiohttp bounds the idle time of a connection, but not how slowly a head may drip in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway import errors, wire
from gateway.limits import refusal_fields
from gateway.server.address import peer_address
from gateway.server.arming import HEAD_END, MAX_HEAD
from gateway.server.departure import Departure
from gateway.server.heads import check_head

_log = logging.getLogger(__name__)
_UNKNOWN = b"?"
"""In the place of a body's last bytes, where those do not tell that nothing came behind it."""
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


def checked(handler: Callable[[Any], Any]) -> Callable[[web.BaseRequest], Any]:
    """Return a handler that sees no head but good ones; `Connection.handle_error` answers the others."""

    async def check(request: web.BaseRequest) -> web.StreamResponse:
        check_head(request._message)  # noqa: SLF001  # there is no public way to what the parser gave
        answer: web.StreamResponse = await handler(request)
        return answer

    return check


class Relayed(web.StreamResponse):
    """An answer that has been sent already, past aiohttp; shared by all that end alike."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:  # aiohttp's signature
        """Do nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing."""


class Run(Protocol):
    """A request that is answered without a task, until its connection is told `express_done`, `express_handed_over`."""

    def start(self) -> None:
        """Begin, and do one of both now or later."""
        ...

    def client_left(self) -> None:
        """End: the client has left, or its connection is closed."""
        ...


Express = Callable[["Connection", RawRequestMessage], Run | None]
"""Asked of each request without a body that comes alone: who answers it without a task; None: nobody, and nothing was done."""


class Connection(RequestHandler):
    """One connection of a client, as long as aiohttp has it. `on_refused` is told the status of what no handler saw.

    Theory of operation of `express`. aiohttp's task of a connection waits for `_waiter` between two requests. A request that
    goes express stays in `_messages`, and the task goes on to wait: so whatever comes in meanwhile is queued behind it. When
    it is answered it is taken from the queue; when it is handed over, the task is woken and finds it there, and the handler
    asks for the run (`taken`) to go on with it.

    When a handler has answered, the task needs a turn of the loop to begin to wait, and a quick client's next request comes in
    before. It is kept back for that turn (`_early`): else a connection that needed its task once would need it for ever.
    """

    __slots__ = (
        "_body", "_chunks", "_early", "_end", "_express", "_head", "_head_handle", "_head_timeout", "_on_refused", "_peer",
        "_received", "_run",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        head_timeout: float = 10.0,
        on_refused: Callable[[int], None] = lambda _: None,
        express: Express | None = None,
        **kwargs: Any,
    ) -> None:
        # Bodies for backends go on as they come; who wants one unpacked does that.
        super().__init__(*args, auto_decompress=False, **kwargs)
        self._on_refused = on_refused
        self._express = express
        self._run: Run | None = None
        self._peer: str | None = None
        self._head_timeout = head_timeout
        self._head_handle: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        # A body behind which the parser must not go on, and the last bytes that came of it.
        self._chunks: StreamReader | None = None
        self._end = b""
        # What came in since the last answer: its beginning, or None where one request's bytes could not be told from the next
        # one's; and the number of bytes.
        self._head: bytes | None = b""
        self._received = 0
        self._early = b""

    def data_received(self, data: bytes) -> None:
        """Feed the parser; begin to count the time of a head that is not complete."""
        if self._early:
            self._early += data
        elif data and self._is_between():
            self._early = data
            self._loop.call_soon(self._receive_early)
        else:
            self._receive(data)

    def _is_between(self) -> bool:
        """Tell whether the last request is answered, and aiohttp's task on its way to wait for the next one."""
        return (
            self._waiter is None
            and self._express is not None
            and self._request_count > 0
            and self._current_request is None
            and not (self._messages or self._upgraded or self._close or self._force_close)
        )

    def _receive_early(self) -> None:
        data, self._early = self._early, b""
        if self.transport is not None:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._head is not None:
            self._received += len(data)
            if len(self._head) < MAX_HEAD:
                self._head += data
        count, express, waiter = self._request_count, self._express, self._waiter
        if express is None or waiter is None or waiter.done():
            super().data_received(data)
        else:
            # Without its waiter aiohttp queues what it parses and wakes nobody.
            self._waiter = None
            try:
                super().data_received(data)
            finally:
                self._waiter = waiter
            if self._messages and self._run is None:
                if self._go_express(express):
                    self._stop_counting()
                    return
                waiter.set_result(None)
        self._watch_body()
        if self._chunks is not None or count != self._request_count:
            self._watch_ends(data, self._request_count - count)
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
        if (run := self.taken()) is not None:
            run.client_left()
        super().connection_lost(exc)

    def close(self) -> None:
        """Close when the request under way is answered."""
        if self._run is None:
            super().close()
        else:
            self._close = True  # without cancelling the waiter

    # --- requests without a task ---

    @property
    def peer(self) -> str:
        """The canonical address of the other end."""
        if self._peer is None:
            self._peer = peer_address(None if self.transport is None else self.transport.get_extra_info("peername"))
        return self._peer

    def taken(self) -> Run | None:
        """Return the run that was handed over with the request under way; once."""
        run, self._run = self._run, None
        return run

    def express_done(self, *, keep_alive: bool) -> None:
        """Go on after the run has sent its answer, or close."""
        self._run = None
        self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._manager is not None:
            self._manager.requests_count += 1
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        self._note_next(0)
        waiter = self._waiter
        if not keep_alive or self._close or self._force_close or waiter is None:
            self.force_close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if self._messages:
            waiter.set_result(None)

    def express_handed_over(self) -> None:
        """Have aiohttp's task take the request, whose handler asks for the run."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _go_express(self, express: Express) -> bool:
        if len(self._messages) > 1 or self._upgraded or self._buffer_paused or self._close or self._force_close:
            return False
        if self._chunks is not None or self._paused:
            return False
        message, payload = self._messages[0]
        if payload is not EMPTY_PAYLOAD or isinstance(message, _ErrInfo):
            return False
        run = express(self, message)
        if run is None:
            return False
        self._run = run
        self._request_in_progress = True
        run.start()
        return True

    def _process_keepalive(self) -> None:
        if self._run is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = None  # the answer's end sets the next one

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
        self._note_next(0 if not request.body_exists else request.content_length)

    def _note_next(self, body: int | None) -> None:
        """Begin to note the next request; `body` is the length of the last one's, None: not known."""
        head = self._head
        if head is None:
            return
        end = head.find(HEAD_END) + len(HEAD_END)
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

    def _watch_ends(self, data: bytes, count: int) -> None:
        """Read nothing behind a message of which the parser does not know the end well.

        It loses what came in one piece with a request to switch to a protocol that it does not know: were the connection to go
        on, answers would be taken for those to other requests. `count`: how many requests have come in with `data`.
        """
        self._watch_chunks(data, count)
        if count == 0 or self._upgraded or not self._messages:
            return
        message, body = self._messages[-1]
        if isinstance(message, _ErrInfo) or not message.upgrade:
            return
        # Behind a body nothing tells; without one, the head has to be all that came.
        alone = count == 1 and (data.find(HEAD_END) == len(data) - len(HEAD_END) or HEAD_END.endswith(data))
        if not body.is_eof():
            self._chunks, self._end = body, _UNKNOWN
        elif not alone:
            self.close()

    def _watch_chunks(self, data: bytes, count: int) -> None:
        """Take a fresh parser behind a body in chunks; what came in together with its end is not read (RFC 9112 §9.3.2).

        aiohttp's parser keeps the last trailer field of such a body and gives it to the head of the next request, which may be
        somebody else's where a proxy shares its connections. `count`: how many requests have come in with `data`.
        """
        for left in range(count, 0, -1):
            message, body = self._messages[-left]
            if isinstance(message, _ErrInfo):
                continue
            if self._chunks is not None:
                for _ in range(left):
                    self._messages.pop()
                self.close()
                return
            if message.chunked:
                self._chunks, self._end = body, b""
        if self._chunks is None:
            return
        if self._end != _UNKNOWN:
            self._end = (self._end + data[-len(HEAD_END) :])[-len(HEAD_END) :]
        if not self._chunks.is_eof():
            return
        self._chunks = None
        if self._end != HEAD_END or len(self._messages) >= self._max_msg_queue_size:
            self.close()
            return
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

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
        error: errors.GatewayError
        if isinstance(exc, errors.GatewayError):
            error = exc
        elif status == web.HTTPBadRequest.status_code:
            error = from_parser(exc, line_limit=self.max_line_size, field_limit=self.max_field_size)
            _log.debug("refused a head: %s", error.code)
        else:
            error = InternalError()
            _log.error("error outside the middleware, request id %s", request_id, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has already begun")
        response = problem_response(error, request_id)
        # RFC 9112 §2.3 has a server tell its own version; aiohttp counts what could not be parsed as HTTP/1.0, and answers so.
        request._version = HttpVersion11  # noqa: SLF001
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
        express: Express | None = None,
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
            "express": express,
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
            checked(inside if self._door is None else self._door(inside)),
            request_factory=self._app._make_request,  # noqa: SLF001
            loop=loop,
            access_log=None,
            **self._server_args,
        )
