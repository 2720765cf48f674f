"""One exchange with an upstream: which target, how often, and whose fault it was.

Theory of operation. `Forwarder.ask` ends with an `Exchange`: the head of an answer that will be the client's, and its body on
the way. Until then all may be tried again, under the rules of `retry`; from then on nothing is, and the exchange's end says
what it tells about the target. What a client does (leaving, sending nonsense, sending slowly) never counts against one.

A kept connection that is closed by its target as we write to it is a race that nobody can win: the request goes out once
more, on a new connection to the same target, if it may be repeated, and nothing is held against anybody (RFC 9112 §9.3.1).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp.http_parser import RawResponseMessage

from gateway import errors
from gateway.draining import spread
from gateway.proxy.body import Body
from gateway.proxy.connection import Answer, Connection, TargetFailed, TargetTimedOut
from gateway.proxy.exchange import NEVER, Backend, Exchange, Observer, Outgoing, Retries, Terms, outcome_of, verdict_of
from gateway.proxy.retry import Attempted, backoff, may_retry
from gateway.proxy.target import Target
from gateway.proxy.verdict import Verdict

IDEMPOTENCY_KEY = "Idempotency-Key"
CONTINUE_SECONDS = 1.0
"""Time that a target gets to say 100 Continue before the body is sent all the same (RFC 9110 §10.1.1)."""

_CONTINUE = 100
_SWITCHING_PROTOCOLS = 101


@dataclass(slots=True)
class Begun:
    """A working exchange's first attempt, begun with a connection that was kept; None: there was none, nothing was sent.

    In the end there is an exchange or a failure.
    """

    target: Target
    connection: Connection | None
    period: int
    now: float
    until: float
    exchange: Exchange | None = None
    failure: TargetFailed | None = None


class Forwarder:
    """Sends requests to upstreams. `rand` gives numbers in [0, 1)."""

    def __init__(
        self,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._rand = rand
        self._loop = asyncio.get_running_loop()
        # Answers that held requests wait for.
        self._held: dict[asyncio.Future[Answer], None] = {}

    def __repr__(self) -> str:
        return f"<Forwarder, {len(self._held)} held>"

    async def drain(self, window: float) -> None:
        """End the held requests with Draining, spread evenly over `window` seconds; each client may come back elsewhere."""

        def waiting() -> list[asyncio.Future[Answer]]:
            return [answered for answered in self._held if not answered.done()]

        def end(some: Sequence[asyncio.Future[Answer]]) -> None:
            for answered in some:
                answered.set_exception(errors.Draining())

        await spread(waiting, end, window, clock=self._clock)

    # --- a first attempt without a task, by whoever hears the connection ---

    def begin(self, backend: Backend, terms: Terms, key: bytes | None) -> Begun | None:
        """Begin a working exchange, if there is a place for it and a target; `ask` goes on with it, or it is ended here."""
        if not backend.turnstile.enter_at_once():
            return None
        now = self._clock()
        upstream = backend.upstream
        target = upstream.choose(now, key=key, rand=self._rand)
        if target is None:
            backend.turnstile.leave(held=False)
            return None
        backend.budget.note_request(now)
        period = upstream.begin(target, held=False, now=now)
        return Begun(target, backend.pool.take(target.address), period, now, now + terms.total)

    def answered(self, backend: Backend, terms: Terms, begun: Begun, answer: Answer) -> Exchange:
        """Return the exchange of an attempt whose answer has begun."""
        if begun.connection is None:
            raise AssertionError("an answer without a connection")
        observer, clock = self._observer, self._clock
        exchange = Exchange(backend, begun.target, begun.connection, answer, terms, False, observer, clock, period=begun.period)
        exchange.latency = self._clock() - begun.now
        begun.exchange = exchange
        return exchange

    def abandon(self, backend: Backend, terms: Terms, begun: Begun) -> None:
        """End an attempt whose client has left."""
        if begun.exchange is not None:
            begun.exchange.close()
            return
        if begun.connection is not None:
            begun.connection.abort()
        backend.turnstile.leave(held=False)
        self._ended(backend, begun.target, terms, begun.period, Verdict.NEUTRAL, "client")

    # --- whole exchanges ---

    async def ask(
        self, backend: Backend, terms: Terms, request: Outgoing, key: bytes | None = None, begun: Begun | None = None
    ) -> Exchange:
        """Return an exchange whose answer has begun; `key` is what a `hash` balancing goes by. `begun`: go on with that.

        Raises Overloaded, CircuitOpen, UpstreamFailed, UpstreamTimeout, and for what the client did BodyTooLarge,
        RequestMalformed, RequestTimedOut.
        """
        held = terms.held
        if begun is None:
            await backend.turnstile.enter(held=held)
        try:
            return await self._attempts(backend, terms, request, key, begun)
        except BaseException:
            backend.turnstile.leave(held=held)
            raise

    async def _attempts(
        self, backend: Backend, terms: Terms, request: Outgoing, key: bytes | None, begun: Begun | None
    ) -> Exchange:
        upstream, retries = backend.upstream, backend.retries if terms.retries else NEVER
        until = self._clock() + terms.total if begun is None else begun.until
        tried: list[Target] = []
        failure: TargetFailed | None = None
        attempts = 0
        if begun is None:
            backend.budget.note_request(self._clock())
        while True:
            if begun is None:
                now = self._clock()
                target = upstream.choose(now, key=key, tried=tried, rand=self._rand)
                if target is None:
                    raise _given_up(failure) if failure is not None else errors.CircuitOpen(upstream.retry_after(now))
                period = upstream.begin(target, held=terms.held, now=now)
            else:
                now, target, period = begun.now, begun.target, begun.period
            attempts += 1
            attempt, begun = begun, None
            try:
                exchange = await self._attempt(backend, target, terms, request, until, attempt)
            except TargetFailed as failed:
                self._ended(backend, target, terms, period, Verdict.FAILURE, outcome_of(failed))
                if not self._again(_attempted(failed), backend, terms, request, attempts, until):
                    raise _given_up(failed) from failed
                failure = failed
            except BaseException:
                self._ended(backend, target, terms, period, Verdict.NEUTRAL, "client")
                raise
            else:
                exchange.attempts, exchange.period = attempts, period
                if self._is_last(exchange, backend, retries, request, until):
                    exchange.latency = None if terms.held else self._clock() - now
                    return exchange
                self._reject(exchange)
            tried.append(target)
            self._observer.retried(backend.name)
            await asyncio.sleep(backoff(attempts, retries.backoff, retries.max_backoff, self._rand))

    def _is_last(self, exchange: Exchange, backend: Backend, retries: Retries, request: Outgoing, until: float) -> bool:
        return exchange.message.code not in retries.statuses or not self._again(
            Attempted.STATUS, backend, exchange.terms, request, exchange.attempts, until
        )

    def _again(
        self,
        attempted: Attempted,
        backend: Backend,
        terms: Terms,
        request: Outgoing,
        attempts: int,
        until: float,
    ) -> bool:
        now, retries = self._clock(), backend.retries if terms.retries else NEVER
        return (
            now < until
            and may_retry(
                attempted,
                request.method,
                has_idempotency_key=IDEMPOTENCY_KEY in request.headers,
                body_replayable=request.body is None or request.body.repeatable,
                attempts_done=attempts,
                limit=retries.attempts,
            )
            # A held request costs a target next to nothing: when one dies with a thousand of them, all may go elsewhere.
            and (terms.held or backend.budget.take(now))
        )

    def _ended(self, backend: Backend, target: Target, terms: Terms, period: int, verdict: Verdict, outcome: str) -> None:
        self._observer.attempted(backend.name, outcome, None)
        for event in backend.upstream.end(target, held=terms.held, verdict=verdict, now=self._clock(), period=period):
            self._observer.changed(backend.name, event)

    def _reject(self, exchange: Exchange) -> None:
        """Drop an answer whose status has the request repeated."""
        backend, verdict = exchange.backend, verdict_of(exchange.message.code)
        self._ended(backend, exchange.target, exchange.terms, exchange.period, verdict, "status")
        exchange.whole()
        if exchange.pump is not None:
            exchange.pump.cancel()
            exchange.connection.reusable = False
        backend.pool.give_back(exchange.connection)

    async def _attempt(
        self, backend: Backend, target: Target, terms: Terms, request: Outgoing, until: float, begun: Begun | None
    ) -> Exchange:
        pool = backend.pool
        sent = begun is not None and begun.connection is not None
        connection = None if sent else pool.take(target.address)
        if sent or connection is not None:
            try:
                if connection is None:
                    return _result(begun, terms, request)
                return await self._send(backend, target, connection, terms, request, until)
            except TargetFailed as failure:
                stale = not failure.began and not isinstance(failure, TargetTimedOut)
                if not stale or not _repeatable(request):
                    raise
        connection = await pool.connect(target.address, min(terms.connect, max(until - self._clock(), 0.001)))
        return await self._send(backend, target, connection, terms, request, until)

    async def _send(
        self,
        backend: Backend,
        target: Target,
        connection: Connection,
        terms: Terms,
        request: Outgoing,
        until: float,
    ) -> Exchange:
        body = request.body
        whole = None if body is None or request.expects else body.whole()
        due = min(self._clock() + terms.first_byte, until)
        invited = asyncio.Event() if request.expects else None
        pump: asyncio.Task[None] | None = None
        answered = connection.begin(bodiless=request.method == "HEAD", due=due, informational=_informed(request, invited))
        try:
            connection.write(request.head() if whole is None else request.head() + whole)
            if body is not None and whole is None:
                pump = self._loop.create_task(self._pump(request, body, connection, invited, due, until))
                pump.add_done_callback(_looked_at)
                await asyncio.wait((answered, pump), return_when=asyncio.FIRST_COMPLETED)
                if not answered.done():
                    await pump  # raises what was wrong with it
                    connection.bound(min(self._clock() + terms.first_byte, until))
            if terms.held:
                self._held[answered] = None
            answer = await answered
            _check_switch(request, answer)
        except BaseException as error:
            if not answered.cancel() and not answered.cancelled():
                answered.exception()  # nobody else looks at it
            connection.abort()
            if pump is not None:
                pump.cancel()
            if isinstance(error, TargetTimedOut) and body is not None and body.awaited:
                raise errors.RequestTimedOut from error
            raise
        finally:
            self._held.pop(answered, None)
        held = terms.held
        connection.bound(until, terms.idle)
        return Exchange(backend, target, connection, answer, terms, held, self._observer, self._clock, pump, body)

    async def _pump(
        self,
        request: Outgoing,
        body: Body,
        connection: Connection,
        invited: asyncio.Event | None,
        due: float,
        until: float,
    ) -> None:
        """Send a body, once it is wanted; the target's time to answer begins when it has all of it."""
        if invited is not None:
            try:
                async with asyncio.timeout(min(CONTINUE_SECONDS, max(due - self._clock(), 0.0))):
                    await invited.wait()
            except TimeoutError:
                pass  # some never say so
            if request.on_continue is not None:
                request.on_continue()
        connection.bound(until)
        await body.pump(connection)


def _informed(request: Outgoing, invited: asyncio.Event | None) -> Callable[[RawResponseMessage], None] | None:
    if invited is None:
        return request.on_informational

    def informed(message: RawResponseMessage) -> None:
        if message.code == _CONTINUE:
            invited.set()
        elif request.on_informational is not None:
            request.on_informational(message)

    return informed


def _check_switch(request: Outgoing, answer: Answer) -> None:
    # RFC 9110 §7.8: never to a protocol that was not asked for.
    if answer.message.code == _SWITCHING_PROTOCOLS and "Upgrade" not in request.headers:
        raise TargetFailed("switched protocols unasked", began=True)


def _result(begun: Begun | None, terms: Terms, request: Outgoing) -> Exchange:
    """Return the exchange of an attempt that was made, or raise its failure."""
    if begun is None or begun.exchange is None:
        raise (None if begun is None else begun.failure) or AssertionError("the attempt is still under way")
    exchange = begun.exchange
    try:
        _check_switch(request, exchange.answer)
    except TargetFailed:
        exchange.connection.abort()
        raise
    exchange.connection.bound(begun.until, terms.idle)
    return exchange


def _looked_at(pump: asyncio.Task[None]) -> None:
    """Take notice of a failure that matters no more, the answer having come before the body's end."""
    if not pump.cancelled():
        pump.exception()


def _repeatable(request: Outgoing) -> bool:
    return may_retry(
        Attempted.SENT,
        request.method,
        has_idempotency_key=IDEMPOTENCY_KEY in request.headers,
        body_replayable=request.body is None or request.body.repeatable,
        attempts_done=1,
        limit=2,
    )


def _attempted(failure: TargetFailed) -> Attempted:
    return Attempted.SENT if failure.sent else Attempted.NOT_CONNECTED


def _given_up(failure: TargetFailed) -> errors.GatewayError:
    if isinstance(failure, TargetTimedOut):
        return errors.UpstreamTimeout("The backend did not answer in time.")
    return errors.UpstreamFailed("The backend did not answer properly.")
