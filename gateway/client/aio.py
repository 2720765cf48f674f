"""The client for asyncio: carries out what a session asks for. `sync` is the same for threads; change both together."""

from __future__ import annotations

import logging
import random
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from gateway.client import publishing, transport
from gateway.client.asking import Asker, Query
from gateway.client.backoff import Retry
from gateway.client.breaker import Breaker, BreakerSettings
from gateway.client.counters import Counters
from gateway.client.effects import STOPPED, Answer, Deliver, Effect, Failure, Load, Renew, Save, Send, Sleep, Tell
from gateway.client.messages import Lost, Message, Reset
from gateway.client.publishing import BatchResult, Format, Published
from gateway.client.running import Run
from gateway.client.session import Acks, Session, Subscribe
from gateway.client.stores import AsyncCursorStore, CursorStore
from gateway.client.tokens import AsyncProvider, Credentials, Token
from gateway.client.transport import settled
from gateway.client.waking import AsyncInterrupt

_log = logging.getLogger("gateway.client")
T = TypeVar("T")
OnLost = Callable[[Lost], Awaitable[None] | None]
OnReset = Callable[[Reset], Awaitable[str | None] | str | None]


class AsyncClient:
    """A client of one gateway; an async context manager. One may have any number of subscriptions at the same time.

    `url`: the gateway's, as `https://gateway.example`. `token`: a token, or what returns one as string or `Token`: called
    before the first request, `renew_before` seconds before the token's end, and after a 401. `retry`, `breaker`: how
    failures are met. `connect_timeout`, `read_timeout`: seconds for a connection, and between two pieces of an answer's
    body. `headers` go with every request. `verify`: False, or an SSLContext in place of the usual one. `prefix`: the
    gateway's own. `transport`: httpx's, in place of connections of our own, which use no
    proxy; the program closes it. ValueError for what
    cannot be.
    """

    def __init__(
        self,
        url: str,
        token: str | Token | AsyncProvider | None = None,
        *,
        retry: Retry | None = None,
        breaker: BreakerSettings | None = None,
        renew_before: float = 30.0,
        connect_timeout: float = 10.0,
        read_timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        prefix: str = "/v1",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._provider = token if callable(token) else None
        fixed = None if callable(token) else token
        self.breaker = Breaker(breaker or BreakerSettings(), random.random)
        self._asker = Asker(
            url,
            credentials=Credentials(fixed, provided=callable(token), renew_before=renew_before),
            breaker=self.breaker,
            retry=retry or Retry(),
            headers=headers or {},
            clock=time.monotonic,
            unix_clock=time.time,
            random=random.random,
        )
        self._times = connect_timeout, read_timeout
        self._verify = verify
        self._prefix = prefix
        self._transport = transport
        self._context: ssl.SSLContext | None = None
        self._http: httpx.AsyncClient | None = None
        self._interrupt = AsyncInterrupt()
        self._subscriptions: set[AsyncSubscription] = set()
        self._counters = Counters()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._asker.url}, {len(self._subscriptions)} subscriptions, {self.breaker!r}>"

    @property
    def counters(self) -> Counters:
        """What it has done, with all subscriptions that are open."""
        return sum((each.counters for each in list(self._subscriptions)), self._counters)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all subscriptions, which store where they are, and close all connections."""
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()
        self._interrupt.close()

    # --- subscribing ---

    def subscribe(
        self,
        *channels: str,
        start: str | None = None,
        cursor: str | None = None,
        store: CursorStore | AsyncCursorStore | None = None,
        wait: float = 30.0,
        limit: int | None = None,
        max_bytes: int | None = None,
        linger: int | None = None,
        acks: str = "auto",
        on_lost: OnLost | None = None,
        on_reset: OnReset | None = None,
        poll_every: float | None = None,
        follow: bool = True,
        margin: float = 5.0,
    ) -> AsyncSubscription:
        """Return a subscription to 1 to 32 channels: iterate over it, best as `async with … as subscription`.

        Without a `cursor`, and with nothing in the `store`, it begins at `start`: `latest` (the default), `earliest`, an RFC
        3339 time, or `-N`. `wait`: seconds that a poll is held, 0 to 55; `margin`: seconds more until it counts as failed.
        `limit`, `max_bytes`: most messages, and bytes of values, of one answer; `linger`: milliseconds to go on collecting.
        `acks`: a message is processed when the program asks for the next (`auto`), or says so (`manual`: see `ack`).
        `on_lost` is told what retention took, else the log is; `on_reset` returns the cursor to go on from, or None for the one
        that the gateway gives, else CursorReset is raised. `poll_every`: short polls at this pace, in seconds, to
        compare. Without `follow` the iteration ends where it is up to date. ValueError for what cannot be.
        """
        wanted = Subscribe(
            channels, start, cursor, wait, limit, max_bytes, linger, Acks(acks), poll_every, margin,
            resets=on_reset is not None, stored=store is not None, follow=follow, prefix=self._prefix,
        )  # fmt: skip
        subscription = AsyncSubscription(self, wanted, store, on_lost, on_reset)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: AsyncSubscription) -> None:
        """Take leave of a subscription that has ended; it calls this."""
        if subscription in self._subscriptions:
            self._subscriptions.discard(subscription)
            self._counters += subscription.counters

    # --- publishing and asking ---

    async def publish(
        self,
        channel: str,
        value: Any,
        *,
        key: str | None = None,
        tombstone: bool = False,
        form: str = "json",
        idempotency_key: str | None = None,
    ) -> Published:
        """Publish one value and return where it was stored, after all in-sync replicas have it.

        `form`: what the channel's values are, `json`, `text` or `binary`; bytes are sent as they are. A `tombstone` has a key
        and no value. The same `idempotency_key`, by default one of its own, has repeats within ten minutes stored once. Raises
        Refused and its kind, GaveUp, CircuitOpen, and ValueError for what cannot be sent.
        """
        name = idempotency_key or str(uuid.uuid4())
        query = publishing.one(
            self._prefix, channel, value, form=Format(form), key=key, tombstone=tombstone, idempotency_key=name
        )
        published = await self._ask(query, publishing.read_one)
        self._counters.published += 1
        return published

    async def publish_batch(
        self,
        channel: str,
        values: Sequence[Any],
        *,
        key: str | None = None,
        form: str = "json",
        idempotency_key: str | None = None,
    ) -> BatchResult:
        """Publish several values in one request; return what became of each. Otherwise as `publish`."""
        name = idempotency_key or str(uuid.uuid4())
        query = publishing.batch(self._prefix, channel, values, form=Format(form), key=key, idempotency_key=name)
        result = await self._ask(query, lambda answer: publishing.read_batch(answer, len(values)))
        self._counters.published += len(result.results) - len(result.refused)
        return result

    async def channels(self) -> dict[str, Any]:
        """Return what the token may use, as `GET /v1/channels` tells it."""
        return await self._ask(publishing.channels(self._prefix), publishing.read_document)

    async def cursor(self, cursor: str, *channels: str) -> dict[str, Any]:
        """Return what a cursor of these channels says, as `GET /v1/cursors/{cursor}` tells it."""
        return await self._ask(publishing.cursor(self._prefix, cursor, channels), publishing.read_document)

    async def _ask(self, query: Query, read: Callable[[Answer], T]) -> T:
        retry = self._asker.retry
        attempts = retry.attempts or publishing.ATTEMPTS
        run = Run(self._asker.ask(query, read, self._counters, attempts=attempts, deadline=retry.deadline))
        if self._http is None:
            self._http = self.http(self._interrupt)
        while (effect := run.effect) is not None:
            run.advance(await self.carry_out(effect, self._http, self._interrupt))
        return run.result()

    # --- what sessions ask for ---

    def http(self, interrupt: AsyncInterrupt) -> httpx.AsyncClient:
        """Return connections that a stop breaks off."""
        if self._transport is not None:
            return httpx.AsyncClient(transport=transport.Kept(self._transport), headers=transport.HEADERS)
        if self._context is None:
            self._context = transport.context(self._asker.url, self._verify)
        return httpx.AsyncClient(transport=interrupt.transport(self._context), headers=transport.HEADERS)

    async def carry_out(self, effect: Effect, http: httpx.AsyncClient, interrupt: AsyncInterrupt) -> Any:
        """Do what requests of all kinds ask for, and return the result; STOPPED where it was broken off."""
        result: Any = STOPPED
        async with interrupt:
            if isinstance(effect, Send):
                result = await self._send(effect, http)
            elif isinstance(effect, Sleep):
                await interrupt.sleep(effect.seconds)
                result = None
            elif isinstance(effect, Renew):
                result = await self._renew()
        return STOPPED if interrupt.stopping else result

    async def _send(self, effect: Send, http: httpx.AsyncClient) -> Answer | Failure:
        began = time.monotonic()
        times = transport.times(effect, *self._times)
        try:
            request = transport.request(http, effect, times)
            response = await http.send(request, stream=True)
            try:
                times["read"] = self._times[1]
                body = transport.Body()
                async for part in response.aiter_bytes():
                    body.add(part)
            finally:
                await response.aclose()
        except transport.ERRORS as error:
            return transport.failure(error)
        return transport.answer(response, body, time.monotonic() - began)

    async def _renew(self) -> Any:
        if self._provider is None:
            raise AssertionError("a session asks only for what there is")
        try:
            return await settled(self._provider())
        except Exception as error:  # noqa: BLE001  # whatever a program's own code raises: it is tried again
            _log.warning("the token provider failed: %r", error)
            return Failure(f"the token provider failed: {error!r}")


class AsyncSubscription:
    """Messages of some channels, in the order of each partition; made by `AsyncClient.subscribe`.

    It is its own iterator and an async context manager, which stores where it is and closes its connection at the end. May be
    cancelled anywhere: what was going on is done again by the next `anext`.
    """

    def __init__(
        self,
        client: AsyncClient,
        wanted: Subscribe,
        store: CursorStore | AsyncCursorStore | None,
        on_lost: OnLost | None,
        on_reset: OnReset | None,
    ) -> None:
        self.counters = Counters()
        self._client = client
        self._session = Session(client._asker, wanted, self.counters)  # noqa: SLF001  # the other half of one thing
        self._run: Run[None] | None = None
        self._store = store
        self._on_lost = on_lost
        self._on_reset = on_reset
        self._interrupt = AsyncInterrupt()
        self._http: httpx.AsyncClient | None = None
        self._asked = self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncSubscription {self._session!r}{', ended' if self._closed else ''}>"

    @property
    def cursor(self) -> str | None:
        """The cursor behind the last answer that was processed as a whole; None before the first."""
        position = self._session.position
        return None if position is None else position.cursor

    def ack(self, message: Message) -> None:
        """Say that a message, and everything delivered before it, is processed."""
        self._session.acknowledge(message)

    def stop(self) -> None:
        """End it: the iteration ends instead of giving another message. From any thread, or a signal handler."""
        self._interrupt.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Return the next message, as soon as there is one. Raises Refused and its kind, GaveUp, and what the store raises."""
        if self._asked:
            raise RuntimeError("one at a time: somebody else waits for the next message of this subscription")
        if self._closed:
            raise StopAsyncIteration
        self._asked = True
        try:
            if self._run is None:
                self._run = Run(self._session.run())
            elif isinstance(self._run.effect, Deliver):
                self._run.advance(STOPPED if self._interrupt.stopping else None)
            while (effect := self._run.effect) is not None:
                if isinstance(effect, Deliver):
                    return effect.message
                self._run.advance(await self._carry_out(effect))
        except BaseException:
            if self._run is not None and self._run.effect is None:  # otherwise what was broken off is carried out again
                await self.aclose()
            raise
        finally:
            self._asked = False
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it where it is, store that, and close its connection. The message in hand counts as not processed."""
        if self._closed:
            return
        self._closed = True
        self._client.forget(self)
        try:
            if self._store is not None and (position := self._session.unsaved) is not None:
                await settled(self._store.save(position))
        finally:
            if self._http is not None:
                await self._http.aclose()
            self._interrupt.close()

    async def _carry_out(self, effect: Effect) -> Any:
        if isinstance(effect, Save | Load):
            if self._store is None:
                raise AssertionError("a session asks only for what there is")
            if isinstance(effect, Save):
                return await settled(self._store.save(effect.position))
            return await settled(self._store.load())
        if self._interrupt.stopping:
            return STOPPED
        if isinstance(effect, Send | Sleep | Renew):
            if self._http is None:
                self._http = self._client.http(self._interrupt)
            return await self._client.carry_out(effect, self._http, self._interrupt)
        if not isinstance(effect, Tell):
            raise AssertionError("messages go to the program")  # noqa: TRY004  # it cannot happen
        return await self._tell(effect.what)

    async def _tell(self, what: Lost | Reset) -> Any:
        if isinstance(what, Reset):
            return None if self._on_reset is None else await settled(self._on_reset(what))
        if self._on_lost is not None:
            return await settled(self._on_lost(what))
        _log.warning("%d records of %s are lost to retention: %r", what.end - what.first, what.channel, what)
        return None
