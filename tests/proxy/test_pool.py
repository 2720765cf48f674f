"""The pool: what is kept, how long, and what is closed."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from proxy.backend import Visit, answering, backend, ok
from waiting import eventually

from gateway.errors import Overloaded
from gateway.proxy.connection import TargetFailed, TargetTimedOut
from gateway.proxy.pool import Pool

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Clock:
    """A clock that stands."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pooled(
    *, idle: int = 2, keepalive: float = 60.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Pool, Clock]]:
    """Make a pool and close it."""
    clock = Clock()
    pool = Pool(idle=idle, keepalive=keepalive, tls=tls, server_name="shop.test" if tls else None, clock=clock)
    try:
        yield pool, clock
    finally:
        pool.close()
        await eventually(lambda: len(pool) == 0)


async def exchange(pool: Pool, address: str) -> bytes:
    """Send one request over a kept or a new connection, and keep it."""
    connection = pool.take(address) or await pool.connect(address, 5.0)
    answered = connection.begin(bodiless=False, due=1e9)
    connection.write(REQUEST)
    answer = await answered
    data = await answer.body.readany()
    pool.give_back(connection)
    return data


async def test_a_connection_is_used_again() -> None:
    """One connection serves one exchange after the other."""
    async with backend(answering(ok())) as here, pooled() as (pool, _):
        for _ in range(3):
            assert await exchange(pool, here.address) == b"ok"
        assert len(here.visits) == 1
        assert repr(pool) == "<Pool 1 idle, 0 busy>"


async def test_the_newest_is_taken_and_the_oldest_closed() -> None:
    """At most `idle` are kept, for `keepalive` seconds; a burst's others grow old."""
    async with backend(answering(ok())) as here, pooled(idle=2, keepalive=10) as (pool, clock):
        opened = [await pool.connect(here.address, 5.0) for _ in range(3)]
        assert repr(pool) == "<Pool 0 idle, 3 busy>"
        for connection in opened:
            pool.give_back(connection)
            clock.now += 1
        await eventually(lambda: len(pool) == 2)
        assert pool.take(here.address) is opened[1]
        pool.give_back(opened[1])
        clock.now += 9.5
        pool.tick()
        await eventually(lambda: len(pool) == 1)
        assert pool.take(here.address) is opened[1]
        assert pool.take(here.address) is None
        pool.give_back(opened[1])
        clock.now += 11
        pool.tick()
        await eventually(lambda: len(pool) == 0)
        pool.give_back(opened[1])
        assert pool.idle == 0


async def test_one_that_its_target_closes_is_not_taken() -> None:
    """A kept connection that ends is gone."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())

    async with backend(script) as here, pooled() as (pool, _):
        await exchange(pool, here.address)
        await eventually(lambda: len(pool) == 0)
        assert pool.take(here.address) is None


async def test_one_that_is_closing_is_passed_over() -> None:
    """Also in the moment before the loop tells that it is lost."""
    async with backend(answering(ok())) as here, pooled() as (pool, _):
        connection = await pool.connect(here.address, 5.0)
        pool.give_back(connection)
        connection.transport.close()
        assert pool.take(here.address) is None


@pytest.mark.parametrize("answer", [ok(b"ok", b"Connection: close"), b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"])
async def test_one_that_its_target_will_close_is_not_kept(answer: bytes) -> None:
    """RFC 9112 §9.6 and §9.3."""
    async with backend(answering(answer)) as here, pooled() as (pool, _):
        assert await exchange(pool, here.address) == b"ok"
        assert pool.idle == 0


async def test_one_with_half_an_answer_is_cut() -> None:
    """What is left of an answer must not become the next one's."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await visit.reader.read()

    async with backend(script) as here, pooled() as (pool, _):
        assert await exchange(pool, here.address) == b"half"
        assert pool.idle == 0
        await eventually(lambda: len(pool) == 0)


async def test_a_target_that_is_forgotten() -> None:
    """Its kept connections are closed, those in use go on."""
    async with backend(answering(ok())) as here, pooled() as (pool, _):
        busy = await pool.connect(here.address, 5.0)
        await exchange(pool, here.address)
        pool.forget(here.address)
        pool.forget(here.address)
        await eventually(lambda: len(pool) == 1)
        assert busy.transport is not None


async def test_no_connection() -> None:
    """A port where nobody listens, and a name that is none."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with pooled() as (pool, _):
        for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
            with pytest.raises(TargetFailed) as failed:
                await pool.connect(address, 5.0)
            assert not failed.value.sent


async def test_a_connection_takes_too_long() -> None:
    """A listener whose queue is full does not answer."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(deaf.getsockname())
        async with pooled() as (pool, _):
            with pytest.raises(TargetTimedOut) as failed:
                await pool.connect(f"127.0.0.1:{deaf.getsockname()[1]}", 0.2)
            assert not failed.value.sent
        for other in others:
            other.close()


async def test_its_clock_looks_at_all_connections() -> None:
    """`run` ends what is overdue."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, pooled() as (pool, clock):
        connection = await pool.connect(here.address, 5.0)
        answered = connection.begin(bodiless=False, due=clock.now + 5)
        connection.write(REQUEST)
        running = asyncio.ensure_future(pool.run())
        clock.now += 6
        with pytest.raises(TargetTimedOut):
            await answered
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_many_connections_are_looked_at_in_turn() -> None:
    """Thousands of long polls must not cost anything ten times a second: each is seen once in ten looks."""
    clock = Clock()
    pool = Pool(idle=1, keepalive=60, clock=clock)
    seen: Counter[int] = Counter()

    class Still:
        def __init__(self, number: int) -> None:
            self.number = number

        def tick(self, now: float) -> None:
            assert now == clock.now
            seen[self.number] += 1

    pool._open = {Still(number): "a:1" for number in range(1_000)}  # type: ignore[dict-item,misc]
    for _ in range(10):
        pool.tick()
    assert set(seen.values()) == {1}
    assert len(seen) == 1_000


async def test_tls() -> None:
    """The target's certificate is compared with its name."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("shop.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(b"secret"))
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening, pooled(tls=client) as (pool, _):
        assert await exchange(pool, address) == b"secret"
        stranger = Pool(idle=1, keepalive=1, tls=client, server_name="other.test")
        with pytest.raises(TargetFailed):
            await stranger.connect(address, 5.0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_want_of_room_here_is_no_targets_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """When this process has no descriptor left, that says nothing of any target: no breaker opens."""

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no room")

    async with pooled() as (pool, _):
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refuse)
        with pytest.raises(Overloaded) as refused:
            await pool.connect("127.0.0.1:1", 5.0)
        assert refused.value.bound == "sockets"


async def test_a_target_that_has_vanished_is_found_out() -> None:
    """While a stream or a tunnel is silent nothing is in flight that could fail."""
    async with backend(answering(ok())) as here, pooled() as (pool, _):
        connection = await pool.connect(here.address, 5.0)
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
