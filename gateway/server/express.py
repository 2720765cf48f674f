"""Requests for backends without a task: the usual ones go through in callbacks.

Theory of operation. A task of its own, a request object and a future for each await cost a proxied request twice what
everything else does. The usual request needs none: it has no body, its route is plain, its caller is known, a connection to
a target is idle, and the answer comes in one piece. Such a request *goes express*: when its connection (`protocol`) has
parsed it, `Express` looks whether all of that holds, without having changed anything. If so a `_Run` admits it, writes to the
target, hears the answer, and writes that to the client, each step called by what the loop has read.

Whatever turns out otherwise is handed over to the handler (`Proxy.resume`) in the state it is in: admitted, sent, answered in
part. So nothing is decided here that is not decided there, and the bytes are the same: the heads are made by the
functions of `proxy`, and kept. A client sends the same fields again and again, and so does a target within a second; what is
then made of them differs only in the ids of the request and its trace. What is kept belongs to exactly what it was made from:
the fields as they came, the peer, the method, the route, its parameters and the principal.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage, RawResponseMessage
from aiohttp.http_writer import HttpVersion11

from gateway import errors
from gateway.auth.principal import Principal
from gateway.limits import Holder
from gateway.proxy.connection import Answer, TargetFailed
from gateway.proxy.exchange import Backend
from gateway.proxy.forward import Begun
from gateway.proxy.headers import head_bytes
from gateway.proxy.rewriting import Values
from gateway.proxy.routes import Found
from gateway.server.address import client_address
from gateway.server.exchange import Exchange as Facts
from gateway.server.exchange import given_request_id
from gateway.server.heads import check_head
from gateway.server.middleware import CLOSED_BY_CLIENT
from gateway.server.outgoing import outgoing
from gateway.server.passage import Passage, Route
from gateway.server.protocol import Connection, InternalError
from gateway.server.proxy import TRANSPORT, Proxy, logged
from gateway.server.relay import complete, status_line
from gateway.server.returning import dress, is_stream, returned

_log = logging.getLogger(__name__)
V = TypeVar("V")

KEPT = 2048
"""Heads of each kind that are kept."""

MAX_KEPT = 4096
"""Longest head that is kept, in bytes; a longer one is the handler's, or is made anew each time."""

MAX_KEPT_TARGET = 512
"""Longest target whose line in the access log is kept, in characters."""

_DRAWN = 8192
_OK = 200
_GONE = 499
# HEAD's answers end their connection, OPTIONS may be a preflight, OPTIONS and TRACE may end here.
_PLAIN_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_ID, _TRACE = b"%(id)b", b"%(trace)b"


def _size(raw: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in raw)


class Kept(Generic[V]):
    """What was made of something, for the next time; when there is too much of it, it begins anew."""

    __slots__ = ("_bound", "_entries", "get")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entries: dict[Hashable, V] = {}
        self.get = self._entries.get

    def __repr__(self) -> str:
        return f"<Kept {len(self._entries)} of {self._bound}>"

    def keep(self, key: Hashable, value: V) -> None:
        """Keep a value."""
        if len(self._entries) >= self._bound:
            self._entries.clear()
        self._entries[key] = value


class Drawn:
    """Random hexadecimal digits, drawn in advance: a system call for each request would cost more than all of its ids."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def take(self, count: int) -> str:
        """Return the next digits."""
        at = self._at
        if at + count > len(self._digits):
            self._digits, at = os.urandom(_DRAWN).hex(), 0
        self._at = at + count
        return self._digits[at : at + count]


class _Client(NamedTuple):
    """What the fields of a request say, whatever it asks for. `request_id`: as given, empty: it gets one."""

    host: str
    address: str
    credential: str | None
    request_id: str


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A client's requests on a route: all that their heads alone decide. `head`: what is sent behind the first line."""

    parameters: Mapping[str, str]
    principal: Principal | None
    backend: Backend
    key: bytes | None
    head: bytes


@dataclass(slots=True, eq=False)
class _Asked:
    """What is the same for all requests of a client for one target. `line`: the first one, as it is sent."""

    client: _Client
    found: Found[Route]
    path: str
    query: str
    line: bytes
    way: _Way | None = None
    forms: dict[int, bytes | None] = field(default_factory=dict)
    """Lines for the access log, by status."""


class Express:
    """Asked by connections for each request that comes alone; returns who answers it, or None."""

    def __init__(self, proxy: Proxy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.proxy = proxy
        self.clock = clock
        self.drawn = Drawn()
        self.answers: Kept[tuple[bytes, bool]] = Kept(KEPT)
        self._clients: Kept[_Client] = Kept(KEPT)
        self._ways: Kept[_Way] = Kept(KEPT)
        self._asked: Kept[_Asked] = Kept(KEPT)

    def __call__(self, connection: Connection, message: RawRequestMessage) -> _Run | None:
        """Return the run of a plain request."""
        if message.version != HttpVersion11:
            return None
        key = (message.raw_headers, connection.peer, message.method, message.path)
        asked = self._asked.get(key) or self._look(message, connection.peer)
        if asked is None:
            return None
        principal: Principal | None = None
        if not asked.found.route.public:
            principal = self._known(asked)
            if principal is None:
                return None
        run = _Run(self, connection, message, asked, principal)
        way = asked.way
        if way is None or way.principal is not principal:
            if not self._finds_way(run):
                return None
            if len(message.path) <= MAX_KEPT_TARGET:
                self._asked.keep(key, asked)
        return run

    def _look(self, message: RawRequestMessage, peer: str) -> _Asked | None:
        """Return what is asked for; None unless it is plain."""
        if not _is_plain(message):
            return None
        client = self._client(message, peer)
        path, mark, query = message.path.partition("?")
        proxy = self.proxy
        if client is None or path in proxy.own:
            return None
        found = proxy.routes.find(client.host, message.method, path, query, message.headers)
        if not isinstance(found, Found) or not found.route.plain:
            return None
        rewrite = found.route.rewrite
        target = (path if rewrite is None else rewrite.apply(found)) + mark + query
        line = f"{message.method} {target} HTTP/1.1".encode("utf-8", "surrogateescape")
        return _Asked(client, found, path, query, line)

    def _known(self, asked: _Asked) -> Principal | None:
        """Return who it is, if that is known at once and the route is for him."""
        credential = asked.client.credential
        principal = None if credential is None else self.proxy.admission.known(credential)
        if principal is None or (asked.way is not None and asked.way.principal is principal):
            return principal
        return principal if asked.found.route.allow.allows(principal, asked.found.parameters) else None

    def _finds_way(self, run: _Run) -> bool:
        """Give a request what its head decides; False where that is an error, which is the handler's to tell."""
        asked, message = run.asked, run.message
        kept_as = (message.raw_headers, run.peer, message.method, asked.found.route.name)
        way = self._ways.get(kept_as)
        if way is None or way.principal is not run.principal or way.parameters != asked.found.parameters:
            passage = run.passage()
            try:
                backend, key = passage.backend()
                head = head_bytes("", outgoing(passage, run.random).headers.items())
            except (errors.GatewayError, ValueError):
                return False
            way = _Way(asked.found.parameters, run.principal, backend, key, run.template(head))
            if len(way.head) <= MAX_KEPT:
                self._ways.keep(kept_as, way)
        asked.way = run.way = way
        asked.forms.clear()
        return True

    def _client(self, message: RawRequestMessage, peer: str) -> _Client | None:
        fields = (message.raw_headers, peer)
        client = self._clients.get(fields)
        if client is None:
            if _size(message.raw_headers) > MAX_KEPT:
                return None
            headers = message.headers
            try:
                check_head(message)
                credential = self.proxy.admission.credential(headers)
            except errors.GatewayError:
                return None
            address = client_address(peer, headers.getall(hdrs.X_FORWARDED_FOR, []), self.proxy.trusted)
            client = _Client(headers.get(hdrs.HOST, ""), address, credential, given_request_id(headers))
            self._clients.keep(fields, client)
        return client


def _is_plain(message: RawRequestMessage) -> bool:
    """Tell whether the first line is a usual one, and its connection goes on; what `check_head` finds there, it has not."""
    target = message.path
    return (
        message.method in _PLAIN_METHODS
        and not message.should_close
        and not message.upgrade
        and target[:1] == "/"
        and "#" not in target
        and message.version == HttpVersion11
    )


class _Run:
    """One request on its way, from `start` until its connection is told that it is done or handed over."""

    __slots__ = (
        "_begun", "_connection", "_error", "_express", "_facts", "_holder", "_over", "_passage", "_since", "_trace", "asked",
        "message", "principal", "way",
    )  # fmt: skip

    def __init__(
        self, express: Express, connection: Connection, message: RawRequestMessage, asked: _Asked, principal: Principal | None
    ) -> None:
        self._express = express
        self._since = express.proxy.tenures.withdrawals
        self._connection = connection
        self.message = message
        self.asked = asked
        self.principal = principal
        client = asked.client
        self._facts = Facts(
            client.request_id or express.drawn.take(16), client.address, express.clock(), connection.peer, principal
        )
        self._facts.transport = TRANSPORT
        self._trace = express.drawn.take(48)
        self._begun: Begun | None = None
        self._holder: Holder | None = None
        self._error: errors.GatewayError | None = None
        self._passage: Passage | None = None
        self._over = False
        self.way: _Way
        if asked.way is not None:
            self.way = asked.way

    def __repr__(self) -> str:
        return f"<_Run {self.message.method} {self.asked.found.route.name}{', over' if self._over else ''}>"

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return self._connection.peer

    def passage(self) -> Passage:
        """Return what is known of the request, as the handler has it."""
        passage = self._passage
        if passage is None:
            proxy, message = self._express.proxy, self.message
            passage = proxy.passage(
                message, self.asked.found, self._facts, self.asked.client.host, self.asked.path, self.asked.query
            )
            passage.values = Values(self.asked.found.parameters, self.principal, message.headers)
            passage.since = self._since
            self._passage = passage
        return passage

    def random(self, size: int) -> bytes:
        """Return the random bytes of this request's trace, the same ones at each attempt."""
        return bytes.fromhex(self._trace)[:size]

    def template(self, head: bytes) -> bytes:
        """Return a head with gaps for what is of this request alone, the ids that were made for it."""
        head = head.replace(b"%", b"%%").replace(self._ids()[b"trace"], _TRACE)
        return head if self.asked.client.request_id else head.replace(self._ids()[b"id"], _ID)

    def _ids(self) -> dict[bytes, bytes]:
        trace = self._trace
        return {b"id": self._facts.request_id.encode(), b"trace": f"{trace[:32]}-{trace[32:]}".encode()}

    # --- from the client to the target ---

    def start(self) -> None:
        """Admit the request, and send it; hand it over where that is not possible at once."""
        try:
            self._start()
        except Exception:  # noqa: BLE001  # the last line of defence, as the handler's: nobody above could answer
            self._broke()

    def _start(self) -> None:
        way, route, proxy = self.way, self.asked.found.route, self._express.proxy
        try:
            proxy.admission.charge_address(self.asked.client.address)
            self._holder = proxy.charge(route, self.asked.client.address, self.principal)
        except errors.GatewayError as error:
            self._hand_over(error)
            return
        terms = route.terms
        begun = self._begun = proxy.forwarder.begin(way.backend, terms, way.key)
        if begun is None or begun.connection is None:
            self._connection.express_handed_over()
            return
        due = min(begun.now + terms.first_byte, begun.until)
        begun.connection.listen(self, due=due, informational=self._informational)
        try:
            begun.connection.write(self.asked.line + way.head % self._ids())
        except TargetFailed as failure:
            self.failed(failure)
            begun.connection.abort()

    # --- from the target to the client ---

    def answered(self, answer: Answer) -> None:
        """Send the answer, if it is all there and the client's in any case; hand it over else."""
        if self._over or self._begun is None:
            return
        try:
            self._answer(answer, self._begun)
        except Exception:  # noqa: BLE001  # as above
            self._broke()

    def _answer(self, answer: Answer, begun: Begun) -> None:
        exchange = self._express.proxy.forwarder.answered(self.way.backend, self.asked.found.route.terms, begun, answer)
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            self.client_left()
            return
        message = answer.message
        if not self._is_last(message) or exchange.trailers() is not None:
            self._connection.express_handed_over()
            return
        whole = exchange.whole()
        if whole is None:
            self._connection.express_handed_over()
            return
        keep_alive = not self._express.proxy.closing()
        head, has_body = self._head(message, len(whole), keep_alive=keep_alive)
        if not has_body:
            whole = b""
        transport.write(head + whole)
        exchange.close()
        self._end(message.code, len(whole))
        self._connection.express_done(keep_alive=keep_alive)

    def failed(self, failure: TargetFailed) -> None:
        """Have the handler decide whether to try again."""
        if not self._over and self._begun is not None and self._begun.failure is None and self._begun.exchange is None:
            self._begun.failure = failure
            self._connection.express_handed_over()

    def _is_last(self, message: RawResponseMessage) -> bool:
        """Tell whether an answer is the client's, and comes to an end by itself."""
        return message.code >= _OK and message.code not in self.way.backend.retries.statuses and not is_stream(message.headers)

    def _head(self, message: RawResponseMessage, size: int, *, keep_alive: bool) -> tuple[bytes, bool]:
        """Return the head of an answer with a body of `size` bytes, and whether that follows it."""
        answers, route, way = self._express.answers, self.asked.found.route, self.way
        # What is the route's alone is the same for all of its clients.
        owner = route.name if route.alike and not self.asked.client.request_id else way
        key = (owner, message.raw_headers, message.code, message.reason, message.version, size, keep_alive)
        made = answers.get(key)
        if made is None:
            headers = returned(message, trailers=message.chunked)
            dress(self.passage(), headers)
            has_body = complete(message.code, headers, size)
            if not keep_alive:
                headers[hdrs.CONNECTION] = "close"
            made = self.template(head_bytes(status_line(message.code, message.reason), headers.items())), has_body
            if _size(message.raw_headers) <= MAX_KEPT and len(made[0]) <= MAX_KEPT:
                answers.keep(key, made)
        return made[0] % {b"id": self._facts.request_id.encode()}, made[1]

    def _informational(self, message: RawResponseMessage) -> None:
        transport = self._connection.transport
        if transport is not None and not transport.is_closing():
            transport.write(head_bytes(status_line(message.code, message.reason), returned(message).items()))

    # --- ends ---

    def client_left(self) -> None:
        """Give up what is under way; it tells nothing about the target."""
        if self._over:
            return
        if self._begun is not None:
            self._express.proxy.forwarder.abandon(self.way.backend, self.asked.found.route.terms, self._begun)
        self._facts.code = CLOSED_BY_CLIENT
        self._end(_GONE, 0)

    def _end(self, status: int, sent: int) -> None:
        self._over = True
        route = self.asked.found.route
        if self._holder is not None and route.slots is not None:
            route.slots.release_of(self._holder)
        self._account(status, sent)

    def _account(self, status: int, sent: int) -> None:
        """Count and log, as the handler does; the line of a request that is asked for again and again is kept."""
        express, facts, asked = self._express, self._facts, self.asked
        route, upstream, log = asked.found.route.name, self.way.backend.name, express.proxy.access_log
        form = asked.forms.get(status)
        if form is not None and log is not None and facts.code is None:
            duration = express.clock() - facts.began
            express.proxy.metrics.done(route, status, duration, sent=sent)
            log.fill(form, request_id=facts.request_id, sent=sent, duration=duration)
            return
        express.proxy.account(self.message, facts, status, sent, route=route, upstream=upstream)
        if log is None or facts.code is not None or asked.client.request_id:
            return
        again = status in asked.forms
        asked.forms[status] = log.form(**logged(self.message, facts, status, route, upstream)) if again else None

    def _broke(self) -> None:
        _log.exception("a proxied request failed")
        begun, self._begun = self._begun, None
        if begun is not None:
            self._express.proxy.forwarder.abandon(self.way.backend, self.asked.found.route.terms, begun)
        self._hand_over(InternalError())

    def _hand_over(self, error: errors.GatewayError) -> None:
        self._error = error
        self._connection.express_handed_over()

    async def resume(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have the handler go on, with all that was taken so far."""
        self._over = True
        return await self._express.proxy.resume(
            request, self.passage(), begun=self._begun, holder=self._holder, random=self.random, error=self._error
        )
