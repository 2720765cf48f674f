"""Exchanges: what is tried again, whose fault it was, what is kept and counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from multidict import CIMultiDict
from proxy.backend import Visit, answering, backend, ok
from waiting import eventually

from gateway import errors
from gateway.proxy.balancing import RoundRobin
from gateway.proxy.body import Body
from gateway.proxy.breaker import Breaker
from gateway.proxy.connection import TargetFailed
from gateway.proxy.events import Event, Opened
from gateway.proxy.exchange import Backend as Behind
from gateway.proxy.exchange import Exchange, Outgoing, Retries, Terms
from gateway.proxy.forward import Forwarder
from gateway.proxy.pool import Pool
from gateway.proxy.retry import Budget
from gateway.proxy.target import Endpoint
from gateway.proxy.turnstile import Turnstile
from gateway.proxy.upstream import Upstream

QUICK = Retries(attempts=3, backoff=0.001, max_backoff=0.001)


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.retries = 0
        self.events: list[Event] = []

    def attempted(self, upstream: str, outcome: str, seconds: float | None) -> None:
        assert upstream == "shop"
        assert seconds is None or 0 <= seconds < 10
        self.attempts[outcome] += 1

    def retried(self, upstream: str) -> None:
        assert upstream == "shop"
        self.retries += 1

    def changed(self, upstream: str, event: Event) -> None:
        assert upstream == "shop"
        self.events.append(event)


class World:
    """A forwarder in front of some targets."""

    def __init__(self, addresses: Sequence[str], **given: Any) -> None:
        self.seen = Seen()
        breaker = given.pop("breaker", None)
        self.upstream = Upstream("shop", [Endpoint(address) for address in addresses], RoundRobin(), breaker=breaker)
        turnstile = given.pop("turnstile", None) or Turnstile("shop", concurrent=100, held=100, queue=10, queue_timeout=1.0)
        self.backend = Behind(
            upstream=self.upstream,
            pool=Pool(idle=8, keepalive=60.0),
            turnstile=turnstile,
            retries=given.pop("retries", QUICK),
            budget=given.pop("budget", None) or Budget(1.0, 100.0),
        )
        self.forwarder = Forwarder(self.seen)
        self.terms = Terms(**given)

    async def ask(self, method: str = "GET", body: Body | None = None, **fields: str) -> Exchange:
        """Send a request."""
        headers = CIMultiDict({"Host": "shop.test"} | {name.replace("_", "-"): value for name, value in fields.items()})
        return await self.forwarder.ask(self.backend, self.terms, Outgoing(method, "/x", headers, body))

    async def get(self, method: str = "GET", body: Body | None = None, **fields: str) -> tuple[int, bytes]:
        """Send a request and read the answer."""
        exchange = await self.ask(method, body, **fields)
        try:
            data = b""
            while part := await exchange.read():
                data += part
            return exchange.message.code, data
        finally:
            exchange.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is counted as under way."""
        return self.upstream.working == self.upstream.held == 0 and self.backend.turnstile.queued == 0


@asynccontextmanager
async def world(*addresses: str, **given: Any) -> AsyncIterator[World]:
    """Make a world; whatever happened in it, nothing may be under way at its end."""
    made = World(addresses, **given)
    ticking = asyncio.ensure_future(made.backend.pool.run())
    try:
        yield made
        assert made.idle, repr(made.upstream)
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        made.backend.pool.close()
        await eventually(lambda: len(made.backend.pool) == 0)


class Feed:
    """A body that comes when a test says so; with parts given, those and its end."""

    def __init__(self, *parts: bytes, whole: bool = False) -> None:
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self._whole = whole
        for part in (*parts, b"") if parts else ():
            self.parts.put_nowait(part)

    def is_eof(self) -> bool:
        return self._whole

    def read_nowait(self, n: int = -1) -> bytes:
        return b"".join(self.parts.get_nowait() for _ in range(self.parts.qsize()))

    async def readany(self) -> bytes:
        return await self.parts.get()


def body(*parts: bytes, chunked: bool = False, whole: bool = False, limit: int = 10**6, idle: float = 5.0) -> Body:
    """Make a body of a request."""
    return Body(Feed(*parts, whole=whole), length=None if chunked else sum(map(len, parts)), limit=limit, idle=idle)


async def closing(visit: Visit) -> None:
    """Take a request and close without an answer."""
    await visit.head()


def failing(*first: bytes, status: bytes = b"503 Service Unavailable") -> Any:
    """Return a script that answers with a failure."""
    return answering(*first, ok(b"no", status=status))


async def test_an_answer_and_the_connection_kept() -> None:
    """One request, one answer, and the next on the same connection."""
    async with backend(answering(ok(b"hello", b"X-A: b"))) as here, world(here.address) as made:
        for _ in range(2):
            exchange = await made.ask()
            assert (exchange.message.code, exchange.message.headers["X-A"]) == (200, "b")
            assert exchange.whole() == b"hello"
            exchange.close()
            exchange.close()
        assert len(here.visits) == 1
        assert here.heads[0] == b"GET /x HTTP/1.1\r\nHost: shop.test\r\n\r\n"
        assert made.seen.attempts == {"ok": 2}


async def test_a_target_that_cannot_be_reached_is_passed_over() -> None:
    """Whatever the method: nothing was sent to it."""
    async with backend(answering(ok())) as here, world("127.0.0.1:1", here.address) as made:
        for _ in range(2):
            assert await made.get("POST") == (200, b"ok")
        assert made.seen.attempts["ok"] == 2
        assert made.seen.attempts["connect"] == made.seen.retries >= 1


async def test_nobody_can_be_reached() -> None:
    """All attempts are made, then 502."""
    async with world("127.0.0.1:1") as made:
        with pytest.raises(errors.UpstreamFailed):
            await made.get()
        assert made.seen.attempts == {"connect": 3}


async def test_what_may_have_been_done_is_not_done_again() -> None:
    """RFC 9110 §9.2.2: POST is not repeated once it was sent."""
    async with backend(closing) as here, world(here.address) as made:
        with pytest.raises(errors.UpstreamFailed):
            await made.get("POST")
        assert len(here.visits) == 1
        assert made.seen.attempts == {"broken": 1}


@pytest.mark.parametrize(("method", "fields"), [("GET", {}), ("PUT", {}), ("POST", {"Idempotency_Key": "k"})])
async def test_what_can_be_done_twice_is_tried_again(method: str, fields: dict[str, str]) -> None:
    """Idempotent methods, and what the client has given a key."""
    visits = 0

    async def script(visit: Visit) -> None:
        nonlocal visits
        visits += 1
        await visit.head()
        if visits == 3:
            await visit.say(ok())

    async with backend(script) as here, world(here.address) as made:
        assert await made.get(method, **fields) == (200, b"ok")
        assert made.seen.attempts == {"broken": 2, "ok": 1}


async def test_a_kept_connection_that_is_closed_meanwhile() -> None:
    """A race nobody can win: once more on a new connection, and nothing is held against anybody."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.head()  # reads the next one, and closes

    async with backend(script) as here, world(here.address) as made:
        assert await made.get() == (200, b"ok")
        assert await made.get() == (200, b"ok")
        assert made.seen.attempts == {"ok": 2}
        assert made.seen.retries == 0
        with pytest.raises(errors.UpstreamFailed):
            await made.get("POST")


async def test_a_status_that_is_worth_another_attempt() -> None:
    """503 of one target, 200 of the other."""
    async with backend(failing()) as bad, backend(answering(ok())) as good, world(bad.address, good.address) as made:
        for _ in range(4):
            assert await made.get() == (200, b"ok")
        assert made.seen.attempts["status"] == made.seen.retries >= 1


async def test_the_last_answer_is_the_clients() -> None:
    """When all say 503, so does the gateway, with their own answer."""
    async with backend(failing()) as here, world(here.address) as made:
        assert await made.get() == (503, b"no")
        assert made.seen.attempts == {"status": 3}
        assert await made.get("POST") == (503, b"no")
        assert made.seen.attempts == {"status": 4}


async def test_a_large_refusal_is_cut_short() -> None:
    """Nobody reads the body of an answer that is not used."""
    large = b"HTTP/1.1 503 No\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000
    async with backend(answering(large)) as bad, backend(answering(ok())) as good, world(bad.address, good.address) as made:
        for _ in range(2):
            assert await made.get() == (200, b"ok")


async def test_no_budget_no_retry() -> None:
    """Retries must not add to an overload."""
    async with backend(failing()) as here, world(here.address, budget=Budget(0.0, 0.0)) as made:
        assert await made.get() == (503, b"no")
        assert made.seen.attempts == {"status": 1}


async def test_a_held_request_may_go_elsewhere_without_a_budget() -> None:
    """When a target dies with a thousand long polls, no other is overloaded by taking them."""
    async with (
        backend(failing()) as bad,
        backend(answering(ok())) as good,
        world(bad.address, good.address, budget=Budget(0.0, 0.0), held=True) as made,
    ):
        assert {(await made.get())[0] for _ in range(4)} == {200}


async def test_a_route_without_retries() -> None:
    """`retries: false`."""
    async with backend(failing()) as here, world(here.address, retries=QUICK, first_byte=5.0) as made:
        made.terms = replace(made.terms, retries=False)
        assert await made.get() == (503, b"no")
        assert made.seen.attempts == {"status": 1}


async def test_no_answer_in_time() -> None:
    """504, and the connection is not used again."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, world(here.address, first_byte=0.1) as made:
        with pytest.raises(errors.UpstreamTimeout):
            await made.get("POST")
        assert made.seen.attempts == {"timeout": 1}
        assert made.backend.pool.idle == 0


async def test_the_breaker_opens() -> None:
    """After failures in a row nobody is asked, and the client is told when to come back."""

    def breaker() -> Breaker:
        return Breaker(consecutive=2, open=30.0, max_open=60.0, trials=1)

    async with world("127.0.0.1:1", breaker=breaker) as made:
        with pytest.raises(errors.UpstreamFailed):
            await made.get()
        with pytest.raises(errors.CircuitOpen) as refused:
            await made.get()
        assert refused.value.retry_after is not None
        assert 25 < refused.value.retry_after <= 30
        assert [type(event) for event in made.seen.events] == [Opened]


async def test_a_client_that_leaves_counts_against_nobody() -> None:
    """Neither while it waits for the answer nor while it reads."""
    waiting = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        waiting.set()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf" if b"half" in visit.heads[0] else b"")
        await visit.reader.read()

    async with backend(script) as here, world(here.address) as made:
        asking = asyncio.ensure_future(made.ask())
        await waiting.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        exchange = await made.ask(X="half")
        assert await exchange.read() == b"half"
        exchange.close()
        assert made.seen.attempts == {"client": 2}
        assert made.backend.pool.idle == 0


async def test_an_answer_that_breaks_off_is_the_targets_fault() -> None:
    """It is too late for another attempt: the reader is told."""
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(wire)

    async with backend(script) as here, world(here.address) as made:
        exchange = await made.ask()
        assert await exchange.read() == b"half"
        with pytest.raises(TargetFailed):
            await exchange.read()
        assert exchange.whole() is None
        exchange.close()
        assert made.seen.attempts == {"broken": 1}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_is_sent_as_it_comes(chunked: bool, whole: bool) -> None:
    """With a length or in chunks, small ones together with the head."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok(await (visit.chunks() if chunked else visit.body(6))))

    async with backend(script) as here, world(here.address) as made:
        status, data = await made.get("POST", body(b"one", b"two", chunked=chunked, whole=whole))
        framed = b"6\r\nonetwo\r\n0\r\n\r\n" if whole else b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert (status, data) == (200, framed if chunked else b"onetwo")


@pytest.mark.parametrize("whole", [True, False])
async def test_a_body_that_is_still_there_can_be_sent_again(whole: bool) -> None:
    """A small one is; one that came in parts is gone, so the request is not repeated."""
    visits = 0

    async def script(visit: Visit) -> None:
        nonlocal visits
        visits += 1
        await visit.head()
        await visit.body(3)
        if visits > 1:
            await visit.say(ok())

    async with backend(script) as here, world(here.address) as made:
        if whole:
            assert await made.get("PUT", body(b"one", whole=True)) == (200, b"ok")
        else:
            with pytest.raises(errors.UpstreamFailed):
                await made.get("PUT", body(b"one"))
        assert visits == 1 + whole


async def test_a_body_over_its_bound() -> None:
    """Known from its length, or found out on the way: 413 both times, and not the target's fault."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, world(here.address) as made:
        with pytest.raises(errors.BodyTooLarge):
            body(b"too long", limit=4)
        for whole in (True, False):
            with pytest.raises(errors.BodyTooLarge):
                await made.get("POST", body(b"too", b"long", chunked=True, limit=4, whole=whole))
        assert set(made.seen.attempts) == {"client"}


async def test_a_client_that_does_not_go_on_with_its_body() -> None:
    """408, and not the target's fault."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, world(here.address) as made:
        with pytest.raises(errors.RequestTimedOut):
            await made.get("POST", Body(Feed(), length=5, limit=100, idle=0.1))
        assert made.seen.attempts == {"client": 1}


async def test_an_answer_may_come_before_the_bodys_end() -> None:
    """It is the client's; the rest of the body is not sent, and the connection not used again."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok(b"enough", status=b"413 Content Too Large"))
        await visit.reader.read()

    async with backend(script) as here, world(here.address) as made:
        assert await made.get("POST", Body(Feed(), length=5, limit=100, idle=5)) == (413, b"enough")
        assert made.backend.pool.idle == 0


async def test_both_directions_at_once() -> None:
    """A target may answer while the body is still coming, and both go on."""
    feed = Feed()

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await visit.say(b"3\r\n%b\r\n" % await visit.body(3))
        await visit.say(b"3\r\n%b\r\n0\r\n\r\n" % await visit.body(3))

    async with backend(script) as here, world(here.address) as made:
        exchange = await made.ask("POST", Body(feed, length=6, limit=100, idle=5))
        feed.parts.put_nowait(b"one")
        assert await exchange.read() == b"one"
        feed.parts.put_nowait(b"two")
        assert await exchange.read() == b"two"
        assert await exchange.read() == b""
        exchange.close()
        await eventually(lambda: made.idle)


async def test_100_continue_is_asked_for_and_told() -> None:
    """RFC 9110 §10.1.1: the body waits until the target wants it."""
    told: list[str] = []

    async def script(visit: Visit) -> None:
        await visit.head()
        told.append("asked")
        await visit.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        await visit.say(ok(await visit.body(3)))

    async with backend(script) as here, world(here.address) as made:
        request = Outgoing(
            "PUT",
            "/x",
            CIMultiDict({"Host": "a", "Expect": "100-continue"}),
            body(b"one"),
            expects=True,
            on_continue=lambda: told.append("wanted"),
        )
        exchange = await made.forwarder.ask(made.backend, made.terms, request)
        assert exchange.whole() == b"one"
        exchange.close()
        assert told == ["asked", "wanted"]


async def test_100_continue_refused() -> None:
    """A final answer instead: the body is never sent."""
    async with backend(answering(ok(b"no", status=b"417 Expectation Failed"))) as here, world(here.address) as made:
        feed = Feed()
        request = Outgoing("PUT", "/x", CIMultiDict({"Host": "a"}), Body(feed, length=3, limit=9, idle=5), expects=True)
        exchange = await made.forwarder.ask(made.backend, made.terms, request)
        assert exchange.message.code == 417
        exchange.close()


async def test_informational_answers_are_told() -> None:
    """RFC 8297: early hints come before the answer."""
    hints: list[int] = []
    wire = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + ok()
    async with backend(answering(wire)) as here, world(here.address) as made:
        request = Outgoing("GET", "/x", CIMultiDict({"Host": "a"}), on_informational=lambda message: hints.append(message.code))
        exchange = await made.forwarder.ask(made.backend, made.terms, request)
        exchange.close()
        assert hints == [103]


async def test_a_held_exchange_is_counted_apart() -> None:
    """A long poll is no load; a stream of events becomes one."""
    release = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await release.wait()
        await visit.say(ok())

    async with backend(script) as here, world(here.address, held=True) as made:
        asking = asyncio.ensure_future(made.ask())
        await eventually(lambda: made.upstream.held == 1)
        assert made.upstream.working == 0
        release.set()
        (await asking).close()
        made.terms = replace(made.terms, held=False)
        exchange = await made.ask()
        assert (made.upstream.working, made.upstream.held) == (1, 0)
        exchange.hold()
        assert (made.upstream.working, made.upstream.held) == (0, 1)
        exchange.hold()
        exchange.close()


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\0b"])
async def test_a_field_cannot_become_two(value: str) -> None:
    """Whoever wrote it."""
    async with backend(answering(ok())) as here, world(here.address) as made:
        with pytest.raises(ValueError, match="line break"):
            await made.ask(X=value)


async def test_a_connection_with_half_a_request_on_it_is_not_kept() -> None:
    """A body that its client does not go on with: the next request would be taken for the rest of it."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok(b"early"))
        await visit.reader.read()

    async with backend(script) as here, world(here.address) as made:
        feed = Feed()
        exchange = await made.ask("POST", Body(feed, length=100, limit=10**6, idle=0.05))
        assert exchange.pump is not None
        await asyncio.wait([exchange.pump])
        assert exchange.whole() == b"early"
        exchange.close()
        assert made.backend.pool.idle == 0


async def large(visit: Visit) -> None:
    """Answer with more than is read ahead."""
    await visit.head()
    await visit.say(ok(b"x" * 10**7))
    await visit.reader.read()


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    """The target cannot go on meanwhile: its pause is none of its own."""
    async with backend(large) as here, world(here.address, idle=5.0) as made:
        exchange = await made.ask()
        await eventually(lambda: exchange.connection.throttled)
        now = asyncio.get_running_loop().time()
        for later in range(1, 60):
            exchange.connection.tick(now + later)
        size = 0
        while part := await exchange.read():
            size += len(part)
        exchange.close()
        assert size == 10**7
        assert made.seen.attempts == {"ok": 1}


async def test_a_client_that_reads_too_slowly_counts_against_nobody() -> None:
    """`total` ends the exchange all the same."""
    async with backend(large) as here, world(here.address, total=0.3) as made:
        exchange = await made.ask()
        await eventually(lambda: exchange.connection.transport is None)
        with pytest.raises(TargetFailed):
            await exchange.read()
        exchange.close()
        assert made.seen.attempts == {"client": 1}


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nearly"])
async def test_a_client_that_sends_too_slowly_counts_against_nobody(early: bytes) -> None:
    """Its body comes without a pause that is too long, but not within `total`; the target may have begun to answer."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(early)
        await visit.reader.read()

    async with backend(script) as here, world(here.address, total=0.3) as made:
        with pytest.raises(TargetFailed if early else errors.RequestTimedOut):
            await made.get("POST", Body(Feed(), length=5, limit=100, idle=5.0))
        assert made.seen.attempts == {"client": 1}


async def test_a_client_that_has_given_up_on_its_body_counts_against_nobody() -> None:
    """The target has begun to answer, and waits in vain for the rest before it goes on."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nearly")
        await visit.reader.read()

    async with backend(script) as here, world(here.address, total=0.5) as made:
        with pytest.raises(TargetFailed):
            await made.get("POST", Body(Feed(), length=5, limit=100, idle=0.1))
        assert made.seen.attempts == {"client": 1}


async def test_a_target_that_does_not_take_the_body_is_to_blame() -> None:
    """The client has done its part."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await asyncio.Event().wait()

    async with backend(script) as here, world(here.address, total=0.3) as made:
        parts = [b"x" * 10**6] * 20
        with pytest.raises(errors.UpstreamTimeout):
            await made.get("POST", body(*parts, limit=10**8))
        assert made.seen.attempts == {"timeout": 1}


async def _whatever(made: World, kind: str) -> None:
    if kind == "queued":
        async with asyncio.timeout(5):
            first = await made.ask()
            second = asyncio.ensure_future(made.get())
            try:
                await asyncio.sleep(0)
                first.close()
                await second
            finally:
                first.close()
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)
    elif kind == "sent":
        feed = Feed()
        for part in (b"ab", b"cd", b"e", b""):
            feed.parts.put_nowait(part)
        await made.get("PUT", Body(feed, length=5, limit=100, idle=5), Content_Length="5")
    elif kind == "event":
        exchange = await made.ask()
        try:
            exchange.hold()
            await exchange.read()
        finally:
            exchange.close()
    else:
        await made.get()


@pytest.mark.parametrize("kind", ["plain", "queued", "sent", "event", "retried", "refused", "held"])
async def test_whenever_a_client_leaves_all_is_given_back(kind: str) -> None:
    """Cancelled at each turn of the loop: no place, count, trial or connection stays behind, and it counts against nobody."""

    async def script(visit: Visit) -> None:
        while head := await visit.head():
            if b"Content-Length" in head:
                await visit.body(5)
            await visit.say(ok(b"x" * 10, status=b"503 No" if kind == "retried" else b"200 OK"))

    def breaker() -> Breaker:
        return Breaker(consecutive=1000, open=5.0, max_open=5.0, trials=1)

    turnstile = Turnstile("shop", concurrent=1, held=1, queue=1, queue_timeout=1.0)
    given = {"turnstile": turnstile, "held": kind == "held", "breaker": breaker}
    async with backend(script) as here, world("127.0.0.1:1" if kind == "refused" else here.address, **given) as made:
        for turns in range(60):
            asking = asyncio.ensure_future(_whatever(made, kind))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert made.idle, (turns, made.upstream)
            assert (turnstile.working, turnstile.held, turnstile.queued) == (0, 0, 0), turns
            await eventually(lambda: len(made.backend.pool) == made.backend.pool.idle)
        assert not made.seen.attempts.keys() & {"timeout", "broken"}


async def test_a_request_that_a_target_stumbles_over_opens_no_breaker() -> None:
    """500 may tell of the request alone: nobody can take a backend away from the others by sending it again and again."""

    def breaker() -> Breaker:
        return Breaker(consecutive=2, open=30.0, max_open=60.0, trials=1)

    async with (
        backend(answering(ok(b"no", status=b"500 No"))) as here,
        world(here.address, retries=Retries(attempts=1), breaker=breaker) as made,
    ):
        for _ in range(5):
            assert await made.get() == (500, b"no")
        assert made.seen.attempts == {"status": 5}
        assert made.seen.events == []
