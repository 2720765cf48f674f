"""What an exchange with an upstream is made of: its terms, the request, the answer that has begun, and what that tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp.http_parser import RawResponseMessage
from multidict import CIMultiDict

from gateway.auth.templates import Template
from gateway.proxy.body import Body
from gateway.proxy.connection import Answer, Connection, TargetFailed, TargetTimedOut
from gateway.proxy.events import Event
from gateway.proxy.headers import head_bytes, returned_trailers
from gateway.proxy.pool import Pool
from gateway.proxy.retry import Budget
from gateway.proxy.target import Target
from gateway.proxy.turnstile import Turnstile
from gateway.proxy.upstream import Upstream
from gateway.proxy.verdict import Verdict

# What tells that a target is not well; 501 and 505 tell of the request, and 500 of either.
_VERDICTS = {500: Verdict.ERROR, 502: Verdict.FAILURE, 503: Verdict.FAILURE, 504: Verdict.FAILURE}


class Observer(Protocol):
    """Who counts what happens to upstreams."""

    def attempted(self, upstream: str, outcome: str, seconds: float | None) -> None:
        """Note the end of an attempt: `ok`, `status`, `connect`, `timeout`, `broken` or `client`.

        `seconds`: to the first byte, of a working exchange that came so far.
        """
        ...

    def retried(self, upstream: str) -> None:
        """Note that a request goes out once more."""
        ...

    def changed(self, upstream: str, event: Event) -> None:
        """Note what became of a target."""
        ...


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and when a request is repeated; seconds and numbers as in `retry`."""

    attempts: int = 3
    statuses: frozenset[int] = frozenset({502, 503, 504})
    backoff: float = 0.025
    max_backoff: float = 0.25


NEVER = Retries(attempts=1)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a route allows an exchange, in seconds. `held`: it is a long poll, held on purpose."""

    connect: float = 2.0
    first_byte: float = 30.0
    idle: float = 30.0
    total: float = 120.0
    held: bool = False
    retries: bool = True


@dataclass(slots=True)
class Backend:
    """An upstream with what it takes to talk to it."""

    upstream: Upstream
    pool: Pool
    turnstile: Turnstile
    retries: Retries
    budget: Budget
    key: Template | None = None
    """What its `hash` balancing goes by."""

    @property
    def name(self) -> str:
        """The upstream's name."""
        return self.upstream.name


@dataclass(slots=True)
class Outgoing:
    """A request as a target shall get it. `target` is in origin form; `body` None: there is none."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: Body | None = None
    expects: bool = False
    """The client waits for 100 Continue."""
    on_informational: Callable[[RawResponseMessage], None] | None = None
    """Called with each 1xx answer but 101."""
    on_continue: Callable[[], None] | None = None
    """Called when the body is wanted, if the client waits for that."""

    def head(self) -> bytes:
        """Return the head; ValueError if a field cannot be one."""
        return head_bytes(f"{self.method} {self.target} HTTP/1.1", self.headers.items())


@dataclass(slots=True)
class Exchange:
    """An answer that has begun; `close` comes last, whatever happens."""

    backend: Backend
    target: Target
    connection: Connection
    answer: Answer
    terms: Terms
    held: bool
    observer: Observer
    clock: Callable[[], float]
    pump: asyncio.Task[None] | None = None
    body: Body | None = None
    attempts: int = 1
    period: int = 0
    latency: float | None = None
    received: int = 0
    _verdict: Verdict | None = field(default=None, init=False)
    _outcome: str = field(default="client", init=False)
    _closed: bool = field(default=False, init=False)
    switched: bool = field(default=False, init=False)
    """Its connection was given away; `close` is called when that ends."""

    @property
    def message(self) -> RawResponseMessage:
        """The head."""
        return self.answer.message

    def whole(self) -> bytes | None:
        """Return the body if all of it has come in and none was read."""
        body = self.answer.body
        if not body.is_eof() or body.exception() is not None:
            return None
        data = body.read_nowait()
        self.received += len(data)
        return data

    async def read(self) -> bytes:
        """Return the next of the body, empty at the end; TargetFailed if it breaks off."""
        try:
            data = await self.answer.body.readany()
        except TargetFailed as failure:
            if not self._client_was_slow(failure):
                self._verdict, self._outcome = Verdict.FAILURE, outcome_of(failure)
            raise
        self.received += len(data)
        return data

    def _client_was_slow(self, failure: TargetFailed) -> bool:
        """Tell whether the target had to wait: the client took too little of the answer, or did not go on with its body."""
        if not isinstance(failure, TargetTimedOut):
            return False
        unsent = self.pump is not None and self.pump.done() and not sent(self.pump)
        return self.connection.throttled or unsent or (self.body is not None and self.body.awaited)

    def trailers(self) -> CIMultiDict[str] | None:
        """Return the fields behind the body, once that has been read; None without any."""
        return returned_trailers(self.connection.trailers())

    def hold(self) -> None:
        """Count it as held from now on, without any bound of time: a stream of events, or another protocol; Overloaded."""
        self.connection.bound(0.0)
        if not self.held:
            self.backend.turnstile.hold()
            self.backend.upstream.hold(self.target, now=self.clock(), period=self.period)
            self.held = True

    def detach(self) -> asyncio.Transport:
        """Give the connection away, after 101; the exchange goes on until `close`."""
        transport = self.connection.leave()
        self.switched = True
        return transport

    def close(self) -> None:
        """Say what the exchange tells about its target, and free its place."""
        if self._closed:
            return
        self._closed = True
        if self.pump is not None and not sent(self.pump):
            # What follows would be taken for the rest of the body.
            self.pump.cancel()
            self.connection.reusable = False
        verdict, outcome = self._verdict, self._outcome
        if verdict is None:
            verdict = Verdict.NEUTRAL
            if not self.connection.busy:
                verdict = verdict_of(self.message.code)
                outcome = "ok" if verdict is Verdict.OK else "status"
        backend = self.backend
        backend.pool.give_back(self.connection)
        backend.turnstile.leave(held=self.held)
        self.observer.attempted(backend.name, outcome, self.latency)
        for event in backend.upstream.end(
            self.target,
            held=self.held,
            verdict=verdict,
            now=self.clock(),
            latency=self.latency,
            period=self.period,
        ):
            self.observer.changed(backend.name, event)


def sent(pump: asyncio.Task[None]) -> bool:
    """Tell whether a body has gone out to its end."""
    return pump.done() and not pump.cancelled() and pump.exception() is None


def outcome_of(failure: TargetFailed) -> str:
    """Return a failure as metrics name it."""
    if isinstance(failure, TargetTimedOut):
        return "timeout"
    return "broken" if failure.sent else "connect"


def verdict_of(status: int) -> Verdict:
    """Return what an answer's status tells of its target."""
    return _VERDICTS.get(status, Verdict.OK)
