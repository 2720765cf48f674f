"""One connection to a target: a request goes out, an answer comes in, one at a time.

aiohttp's response parser reads the answers; what is here is the state around it. A connection has no timer of its own: `bound`
says by when an answer has to begin or to go on, and whoever keeps the connection (`pool`) calls `tick` several times a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HeadersParser, HttpParser, HttpResponseParser, RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDict

from gateway.proxy.headers import well_formed

READ_BYTES = 2**16
"""Bytes of a body that are read ahead of the client, about; twice as many stop the reading."""

MAX_FIELD = 2**15
"""Longest header field of an answer, in bytes."""

MAX_TRAILERS = 2**13
"""Bytes of trailer fields that are found, at most."""

MAX_INFORMATIONAL = 32
"""1xx answers before the one, at most: each goes to the client at once, whether it reads or not."""

_VERSION, _HEAD_END = b"HTTP/1.", b"\r\n\r\n"
_SWITCHING_PROTOCOLS = 101
_OK = 200
_BODILESS = (204, 304)
# Heads of answers that came lately, by their bytes, and the lengths of the bodies behind them: a target sends the same one
# again and again. For all connections, since nothing but the bytes decides.
_LENGTHS: Final[dict[bytes, int]] = {}
_MAX_LENGTHS = 512
_MAX_KNOWN_HEAD = 2**11
_LAST_CHUNK = re.compile(rb"0+[ \t]*(;.*)?")


class TargetFailed(Exception):  # a fact about a target, which may be the last attempt's or not
    """A target did not do its part. `sent`: the request had begun to go out; `began`: the answer had begun to come in."""

    def __init__(self, reason: str, *, sent: bool = True, began: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.began = began


class TargetTimedOut(TargetFailed):
    """A target took too long."""


class Answer(NamedTuple):
    """The head of an answer, and its body, which may still be on its way; reading it may raise TargetFailed."""

    message: RawResponseMessage
    body: StreamReader


class Listener(Protocol):
    """Who is told of an answer at once, without a future and the turn of the loop that it takes. One of both is called."""

    def answered(self, answer: Answer) -> None:
        """Take the answer; its body may be there already."""
        ...

    def failed(self, failure: TargetFailed) -> None:
        """Take that none comes."""
        ...


class Connection(BaseProtocol):
    """A connection to a target. `on_lost` is called once, when it is gone."""

    __slots__ = (
        "_answer",
        "_body",
        "_chunked",
        "_come",
        "_due",
        "_failure",
        "_heard",
        "_hints",
        "_idle",
        "_idle_due",
        "_informational",
        "_listener",
        "_on_lost",
        "_tail",
        "began",
        "idle_since",
        "reusable",
        "used",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[Connection], None]) -> None:
        super().__init__(loop)
        self._on_lost = on_lost
        self._answer: asyncio.Future[Answer] | None = None
        self._listener: Listener | None = None
        self._come: Answer | None = None
        self._body: StreamReader | None = None
        self._informational: Callable[[RawResponseMessage], None] | None = None
        self._due = self._idle = self._idle_due = 0.0
        self._heard = False
        self._failure: TargetFailed | None = None
        # The end of a chunked body that announced trailer fields: the parser drops them.
        self._tail: bytes | None = None
        # aiohttp's parser keeps the last trailer field and gives it to the next head: it must not see one.
        self._chunked = False
        self._hints = 0
        self.began = False
        self.reusable = True
        self.used = 0
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "lost" if self.transport is None else "busy" if self.busy else "idle"
        return f"<Connection {state}, {self.used} requests{'' if self.reusable else ', not again'}>"

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited or not read to its end."""
        if self._answer is not None or self._listener is not None:
            return True
        return self._body is not None and not self._body.is_eof()

    @property
    def throttled(self) -> bool:
        """Whether the answer comes faster than it is read, so that the target has to wait."""
        return self._reading_paused

    # --- one exchange ---

    def begin(
        self, *, bodiless: bool, due: float, informational: Callable[[RawResponseMessage], None] | None = None
    ) -> asyncio.Future[Answer]:
        """Expect the answer to a request that is about to be written, by `due` (the loop's time; 0: at any time).

        `bodiless`: there is no body whatever the head says (RFC 9110 §9.3.2, HEAD); such an answer is the last on its
        connection. `informational` is called with each 1xx answer. The future ends with TargetFailed if none comes.
        """
        self._expect(due, informational, bodiless=bodiless)
        future = self._answer = self._loop.create_future()
        return future

    def listen(self, listener: Listener, *, due: float, informational: Callable[[RawResponseMessage], None]) -> None:
        """Expect an answer with a body as `begin` does, which a listener is told of."""
        self._expect(due, informational)
        self._listener = listener

    def _expect(
        self, due: float, informational: Callable[[RawResponseMessage], None] | None, *, bodiless: bool = False
    ) -> None:
        if self._parser is None or bodiless or self._chunked:
            self._parser = HttpResponseParser(
                self,
                self._loop,
                READ_BYTES,
                max_line_size=MAX_FIELD,
                max_field_size=MAX_FIELD,
                response_with_body=not bodiless,
                read_until_eof=True,
                auto_decompress=False,
            )
        self._chunked = False
        self._hints = 0
        if bodiless:
            self.reusable = False
        self._informational = informational
        self._body = self._tail = None
        self.began = False
        self.used += 1
        self.bound(due)

    def write(self, data: bytes) -> None:
        """Send a part of the request; TargetFailed if the connection is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise self._failure or TargetFailed("the connection was closed", began=self.began)
        transport.write(data)

    async def drain(self) -> None:
        """Wait until the target takes more of the request; TargetFailed if the connection is gone."""
        try:
            await self._drain_helper()
        except ConnectionError as error:
            raise self._failure or TargetFailed("the connection was closed", began=self.began) from error

    def bound(self, due: float, idle: float = 0.0) -> None:
        """Say by when the answer has to begin or to end, and how many seconds it may pause; 0: no bound."""
        self._due = due
        self._idle = idle
        self._heard = True

    def tick(self, now: float) -> None:
        """End an exchange that is overdue."""
        if not self.busy:
            return
        if self._heard or self._reading_paused:  # while nobody reads, it cannot go on
            self._heard = False
            self._idle_due = now + self._idle
        if (self._due and now > self._due) or (self._idle and now > self._idle_due):
            self._fail(TargetTimedOut("no answer in time", began=self.began))

    def trailers(self) -> CIMultiDict[str] | None:
        """Return the fields behind a chunked body that announced them (RFC 9112 §7.1.2); None without any."""
        if not self._tail:
            return None
        # From the end backwards: no field looks like the last chunk.
        fields: list[bytes] = []
        for line in reversed(self._tail.split(b"\r\n")[:-2]):
            if _LAST_CHUNK.fullmatch(line):
                break
            fields.insert(0, line)
        if not fields:
            return None
        return CIMultiDict(HeadersParser(max_field_size=MAX_FIELD).parse_headers([*fields, b""])[0])

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()

    def leave(self) -> asyncio.Transport:
        """Give the transport away, after 101 (RFC 9110 §7.8); TargetFailed if it is gone."""
        transport, self.transport = self.transport, None
        if transport is None:
            raise TargetFailed("the connection was closed", began=True)
        self.reusable = False
        self._body = None
        self._on_lost(self)
        return transport

    # --- what the loop calls ---

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._heard = True
        parser = self._parser
        if parser is None or not self.busy:
            if data:
                self.abort()  # nobody has asked for anything
            return
        began, self.began = self.began, True
        listener = self._listener
        if not data:
            self._feed(parser, data, b"")  # the parser was paused, and has something left: the end, or what stands before it
        elif began or listener is None or not self._is_known(data):
            self._read(parser, data)
        else:
            self._feed(parser, data, b"", known=True)
        answer, self._come = self._come, None
        if listener is not None and answer is not None:
            listener.answered(answer)

    def _is_known(self, data: bytes) -> bool:
        """Tell whether this is a head that was found to be good before, with exactly its body behind."""
        end = data.find(_HEAD_END) + len(_HEAD_END)
        return _LENGTHS.get(data[:end]) == len(data) - end

    def _read(self, parser: HttpParser[Any], data: bytes) -> None:
        # Head by head: what stands behind one may be no part of the answer, and must not spoil it.
        while data:
            expected = self._answer is not None or self._listener is not None
            end = data.find(_HEAD_END) + len(_HEAD_END) if expected else 0
            piece, data = (data[:end], data[end:]) if len(_HEAD_END) <= end < len(data) else (data, b"")
            if not self._feed(parser, piece, data):
                return
            if data and not self.busy:
                self.abort()  # RFC 9112 §9.2: it belongs to no request
                return

    def _feed(self, parser: HttpParser[Any], data: bytes, following: bytes, *, known: bool = False) -> bool:
        """Parse a piece; tell whether to go on with what follows. `known`: see `_is_known`."""
        if self._tail is not None:
            self._tail = (self._tail + data)[-MAX_TRAILERS:]
        try:
            messages, upgraded, rest = parser.feed_data(data)
        except HttpProcessingError as error:
            self._fail(TargetFailed(f"the answer cannot be parsed: {type(error).__name__}", began=True))
            return False
        for message, body in messages:
            self._come = self._take(message, body, data, known=known) or self._come
        if upgraded:
            # llhttp stops behind a 101: what follows is of the other protocol.
            self._upgraded = True
            self.reusable = False
            self._tail = rest + following
            self._pause_transport_reading()
            return False
        return self._failure is None

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on if it was paused: streams say so at each read, and the parser would be fed nothing each time."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def rest(self) -> bytes:
        """Return what came behind a 101 in the same segment."""
        return self._tail or b""

    def eof_received(self) -> None:
        """Let the transport close."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is under way: with what came, where that is all of it."""
        parser, body = self._parser, self._body
        if parser is not None and body is not None and not body.is_eof() and self._failure is None:
            try:
                parser.feed_eof()
            except HttpProcessingError:
                self._failure = TargetFailed("the answer broke off", began=True)
            else:
                if not body.is_eof():
                    self._failure = TargetFailed("the answer broke off", began=True)
        if self._failure is None:
            self._failure = TargetFailed("the connection was closed", began=self.began)
        self._end(self._failure)
        self.reusable = False
        # They refer to this connection, and to the request: a long poll's circle would outlive every young collection.
        self._parser = self._informational = None
        if body is not None and body.is_eof():
            self._body = None
        super().connection_lost(exc)
        self._on_lost(self)

    # --- inside ---

    def _take(self, message: RawResponseMessage, body: StreamReader, data: bytes, *, known: bool) -> Answer | None:
        """Take a head; return it if it is the answer that was expected."""
        if not known and not well_formed(message):
            self._fail(TargetFailed("the answer is not well-formed", began=True))
            return None
        if message.code < _OK and message.code != _SWITCHING_PROTOCOLS:
            self._hints += 1
            if self._hints > MAX_INFORMATIONAL:
                self._fail(TargetFailed("informational answers without an end", began=True))
            elif self._informational is not None:
                self._informational(message)
            return None
        if self._answer is None and self._listener is None:
            self.abort()  # a second answer to one request
            return None
        if not known and self._listener is not None:
            _know(message, data)
        future = self._answer
        self._answer = self._listener = self._informational = None
        self._body = body
        if message.should_close:
            self.reusable = False
        self._chunked = bool(message.chunked)
        if message.chunked and "Trailer" in message.headers:
            self._tail = data[-MAX_TRAILERS:]
        answer = Answer(message, body)
        if future is not None and not future.done():
            future.set_result(answer)
        return answer

    def _fail(self, failure: TargetFailed) -> None:
        self._failure = failure
        self.reusable = False
        self._end(failure)
        if self.transport is not None:
            self.transport.abort()

    def _end(self, failure: TargetFailed) -> None:
        """Tell whoever waits."""
        future, self._answer = self._answer, None
        listener, self._listener = self._listener, None
        if future is not None and not future.done():
            future.set_exception(failure)
        if listener is not None:
            listener.failed(failure)
        body = self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(failure)


def _know(message: RawResponseMessage, head: bytes) -> None:
    """Remember a good head, unless it is one without a body of known length."""
    length = message.headers.get("Content-Length")
    if length is None or message.chunked or message.code < _OK or message.code in _BODILESS or message.should_close:
        return
    if not (head.startswith(_VERSION) and head.endswith(_HEAD_END) and len(head) <= _MAX_KNOWN_HEAD):
        return  # its beginning came before
    if len(_LENGTHS) >= _MAX_LENGTHS:
        _LENGTHS.clear()
    _LENGTHS[head] = int(length)
