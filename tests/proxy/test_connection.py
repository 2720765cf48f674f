"""Connections to targets: answers in every framing and cut, limits in time, trailers, what comes unasked."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from proxy.backend import Visit, answering, backend, ok
from waiting import eventually

from gateway.proxy.connection import _LENGTHS, _MAX_LENGTHS, Answer, Connection, TargetFailed, TargetTimedOut

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[list[Connection]]:
    """Close what `connected` has opened."""
    connections: list[Connection] = []
    yield connections
    for connection in connections:
        connection.abort()
    await eventually(lambda: all(connection.transport is None for connection in connections))


async def connected(port: int, opened: list[Connection]) -> Connection:
    """Open a connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(loop, lambda _: None), "127.0.0.1", port)
    opened.append(connection)
    return connection


def ask(connection: Connection, *, bodiless: bool = False, due: float = 10.0) -> asyncio.Future[Answer]:
    """Send a request."""
    answered = connection.begin(bodiless=bodiless, due=time.monotonic() + due)
    connection.write(REQUEST)
    return answered


async def read(answer: Answer) -> bytes:
    """Read a body to its end."""
    data = b""
    while part := await answer.body.readany():
        data += part
    return data


FRAMINGS = {
    "length": (ok(b"hello"), b"hello"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", b"hello"),
    "empty": (ok(b""), b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    "hints first": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"hello"), b"hello"),
}


@pytest.mark.parametrize("cut", ["whole", "by byte"])
@pytest.mark.parametrize("name", FRAMINGS)
async def test_an_answer_is_read_in_every_framing_and_the_connection_kept(
    name: str, cut: str, opened: list[Connection]
) -> None:
    """RFC 9112 §6: however it is framed and segmented, the body is what was sent, and the next answer begins behind it."""
    wire, body = FRAMINGS[name]

    async def script(visit: Visit) -> None:
        while await visit.head():
            for part in [wire] if cut == "whole" else [wire[at : at + 1] for at in range(len(wire))]:
                await visit.say(part)
                await asyncio.sleep(0)

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        for _ in range(2):
            answer = await ask(connection)
            assert await read(answer) == body
            assert not connection.busy
            assert connection.reusable
        assert connection.used == 2
        assert repr(connection) == "<Connection idle, 2 requests>"


async def test_a_body_without_a_length_ends_with_the_connection(opened: list[Connection]) -> None:
    """RFC 9112 §6.3, rule 8; such a connection is not used again."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await visit.say(b"lo")

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        assert await read(await ask(connection)) == b"hello"
        assert not connection.reusable


async def test_the_answer_to_head_has_no_body(opened: list[Connection]) -> None:
    """RFC 9110 §9.3.2: its Content-Length tells of the body that GET would have."""
    async with backend(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as here:
        connection = await connected(here.port, opened)
        answer = await ask(connection, bodiless=True)
        assert answer.message.headers["Content-Length"] == "5"
        assert await read(answer) == b""


BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a long field": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_head_is_a_failure(name: str, opened: list[Connection]) -> None:
    """No answer is made up; the connection is not used again."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(BROKEN[name])

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        with pytest.raises(TargetFailed) as failed:
            await ask(connection)
        assert failed.value.sent
        assert failed.value.began == (name != "nothing")
        assert not connection.reusable
        await eventually(lambda: connection.transport is None)
        with pytest.raises(TargetFailed):
            connection.write(REQUEST)
        with pytest.raises(TargetFailed):
            await connection.drain()


BROKEN_BODIES = {
    "short of its length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    "without a last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "with a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhel\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_breaks_off_is_a_failure(name: str, opened: list[Connection]) -> None:
    """RFC 9112 §8: an incomplete answer is never taken for a complete one."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(BROKEN_BODIES[name])

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        with pytest.raises(TargetFailed) as failed:
            await read(await ask(connection))
        assert failed.value.began


async def test_no_answer_in_time(opened: list[Connection]) -> None:
    """Whoever waits gets a time-out when the clock is looked at, and the connection is cut."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        answered = ask(connection, due=5.0)
        connection.tick(time.monotonic())
        assert not answered.done()
        connection.tick(time.monotonic() + 6)
        with pytest.raises(TargetTimedOut):
            await answered
        connection.tick(time.monotonic() + 7)


async def test_a_pause_in_a_body_is_bounded(opened: list[Connection]) -> None:
    """The idle bound counts from the last byte, the other one from the beginning."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await visit.reader.read()

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        answer = await ask(connection)
        now = time.monotonic()
        connection.bound(now + 100, 5.0)
        connection.tick(now)
        connection.tick(now + 4)
        assert await answer.body.readany() == b"hel"
        connection.tick(now + 6)  # has heard of it
        connection.tick(now + 10)
        assert connection.busy
        connection.tick(now + 12)
        with pytest.raises(TargetTimedOut):
            await answer.body.readany()


TRAILERS = {
    "one": (b"0\r\nX-Sum: 1\r\n\r\n", [("X-Sum", "1")]),
    "two, behind an extension": (b"000;a=b\r\nX-Sum: 1\r\nX-More: 0\r\n\r\n", [("X-Sum", "1"), ("X-More", "0")]),
    "announced, not sent": (b"0\r\n\r\n", None),
}


@pytest.mark.parametrize("name", TRAILERS)
async def test_trailers_that_were_announced_are_found(name: str, opened: list[Connection]) -> None:
    """RFC 9112 §7.1.2, also where the body looks like them."""
    end, fields = TRAILERS[name]
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    wire = start + b"9\r\n0\r\nA: b\r\n\r\n" + end

    async def script(visit: Visit) -> None:
        while await visit.head():
            await visit.say(wire[:60])
            await asyncio.sleep(0)
            await visit.say(wire[60:])

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        for _ in range(2):
            assert await read(await ask(connection)) == b"0\r\nA: b\r\n"
            found = connection.trailers()
            assert (None if found is None else list(found.items())) == fields


async def test_no_trailers_where_none_were_announced(opened: list[Connection]) -> None:
    """RFC 9110 §6.5.1: a recipient may discard them."""
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"
    async with backend(answering(wire)) as here:
        connection = await connected(here.port, opened)
        assert await read(await ask(connection)) == b""
        assert connection.trailers() is None


async def test_bytes_that_nobody_asked_for_close_the_connection(opened: list[Connection]) -> None:
    """RFC 9112 §9.2: an answer without a request must not be taken for the next one's."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.say(ok(b"unasked"))
        await visit.reader.read()

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        assert await read(await ask(connection)) == b"ok"
        await eventually(lambda: connection.transport is None)


async def test_a_second_answer_in_one_segment_closes_the_connection(opened: list[Connection]) -> None:
    """Likewise where both come together."""
    async with backend(answering(ok() + ok(b"unasked"))) as here:
        connection = await connected(here.port, opened)
        await ask(connection)
        await eventually(lambda: connection.transport is None)


async def test_switching_protocols_gives_the_connection_away(opened: list[Connection]) -> None:
    """RFC 9110 §7.8: what follows 101 is not parsed."""
    wire = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x02hi"
    async with backend(answering(wire)) as here:
        connection = await connected(here.port, opened)
        answer = await ask(connection)
        assert answer.message.code == 101
        assert not connection.reusable
        assert connection.rest() == b"\x81\x02hi"
        transport = connection.leave()
        assert connection.transport is None
        transport.abort()
        with pytest.raises(TargetFailed):
            connection.leave()


async def test_a_slow_reader_stops_the_target(opened: list[Connection]) -> None:
    """At most a few hundred kilobytes are read ahead of the client, whatever the target has."""
    size = 2**24
    sent = 0

    async def script(visit: Visit) -> None:
        nonlocal sent
        await visit.head()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            await visit.say(b"x" * 2**16)
            sent += 2**16

    async with backend(script) as here:
        connection = await connected(here.port, opened)
        answer = await ask(connection)
        await eventually(lambda: connection._reading_paused)
        before = answer.body.total_bytes
        assert before < 2**20
        got = 0
        while part := await answer.body.readany():
            got += len(part)
        assert got == size


async def test_a_connection_leaves_nothing_to_the_collector() -> None:
    """What was told of a request is let go of with its answer, and the connection with its end: long polls would pile up else."""

    class Told:
        def __call__(self, _: object) -> None:
            """Take no notice."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok(b"hello"))
        await visit.head()

    loop = asyncio.get_running_loop()
    told, lost = Told(), Told()
    gone_with_the_answer, gone_with_the_connection = weakref.ref(told), weakref.ref(lost)
    async with backend(script) as target:
        # The connection cannot be asked itself: what it refers to lives as long as it does.
        _, connection = await loop.create_connection(lambda on_lost=lost: Connection(loop, on_lost), "127.0.0.1", target.port)
        gc.disable()
        try:
            answered = connection.begin(bodiless=False, due=0.0, informational=told)
            connection.write(REQUEST)
            assert await read(await answered) == b"hello"
            del told
            assert gone_with_the_answer() is None
            connection.abort()
            await eventually(lambda transport=connection: transport.transport is None)
            del lost, connection, answered
            await eventually(lambda: gone_with_the_connection() is None)
        finally:
            gc.enable()


async def test_a_trailer_stays_with_its_answer(opened: list[Connection]) -> None:
    """RFC 9110 §6.5.1: the parser would give it to the head of the next answer."""
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nSet-Cookie: a=b\r\n\r\n"
    async with backend(answering(chunks, ok(b"b"))) as here:
        connection = await connected(here.port, opened)
        assert await read(await ask(connection)) == b"a"
        answer = await ask(connection)
        assert "Set-Cookie" not in answer.message.headers
        assert await read(answer) == b"b"


@pytest.mark.parametrize("behind", [b"hello", ok(b"another's"), b"\0"])
@pytest.mark.parametrize("bodiless", [True, False])
async def test_what_stands_behind_an_answer_does_not_spoil_it(bodiless: bool, behind: bytes, opened: list[Connection]) -> None:
    """RFC 9112 §6.3, §9.2: the end of the head ends it, and what follows belongs to no request."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" if bodiless else b"HTTP/1.1 204 No Content\r\n\r\n"
    async with backend(answering(head + behind)) as here:
        connection = await connected(here.port, opened)
        answer = await ask(connection, bodiless=bodiless)
        assert answer.message.code == (200 if bodiless else 204)
        assert not connection.busy
        assert not connection.reusable


async def test_hints_come_to_an_end(opened: list[Connection]) -> None:
    """RFC 9110 §15.2: a server may send several 1xx answers, but not for ever."""
    async with backend(answering(b"HTTP/1.1 102 Processing\r\n\r\n" * 33)) as here:
        connection = await connected(here.port, opened)
        with pytest.raises(TargetFailed, match="without an end"):
            await ask(connection)


async def test_an_answer_that_is_not_well_formed(opened: list[Connection]) -> None:
    """RFC 9112 §6.1: a coding that is not known leaves open where the body ends."""
    async with backend(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok")) as here:
        connection = await connected(here.port, opened)
        with pytest.raises(TargetFailed, match="well-formed"):
            await ask(connection)


class Wire(asyncio.Transport):
    """A transport without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Forget it."""

    def is_closing(self) -> bool:
        return self.gone

    def abort(self) -> None:
        self.gone = True

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class Heard:
    """A listener."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.failures: list[TargetFailed] = []

    def answered(self, answer: Answer) -> None:
        self.answers.append(answer)

    def failed(self, failure: TargetFailed) -> None:
        self.failures.append(failure)


def wired() -> Connection:
    """Return a connection that what a test says comes in on."""
    connection = Connection(asyncio.get_running_loop(), lambda _: None)
    connection.connection_made(Wire())
    return connection


def say(connection: Connection, *parts: bytes) -> Heard:
    """Ask, let this come in, and return what was heard."""
    heard = Heard()
    connection.listen(heard, due=0.0, informational=lambda _: None)
    for part in parts:
        connection.data_received(part)
    return heard


@pytest.mark.parametrize("end", [0, 1, 5], ids=["all", "all but a byte", "some"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_an_answer_whose_end_came_in_while_nobody_read_comes_to_its_end(end: int, *, chunked: bool) -> None:
    """The last segment fills the reader: what is behind the pause is found when somebody reads on, with nothing coming in."""
    size = 300_000
    body = b"x" * size
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    connection = wired()
    heard = say(
        connection, b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", framed[: len(framed) - end], framed[len(framed) - end :]
    )
    async with asyncio.timeout(5):
        assert await read(heard.answers[0]) == body
    assert not connection.busy
    assert connection.reusable


class TestKnownHeads:
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Of: known-heads\r\n\r\n"

    async def test_the_same_again(self) -> None:
        """A head that came before is read as it was then, whatever the body."""
        connection = wired()
        for body in (b"hello", b"other", b"HTTP/"):
            heard = say(connection, self.HEAD + body)
            assert heard.answers[0].message.headers["X-Of"] == "known-heads"
            assert heard.answers[0].body.read_nowait() == body
            assert (connection.busy, connection.reusable) == (False, True)

    @pytest.mark.parametrize("cut", range(1, 60))
    async def test_in_pieces(self, cut: int) -> None:
        """Cut anywhere it is the same answer."""
        connection = wired()
        say(connection, self.HEAD + b"hello")
        wire = self.HEAD + b"hello"
        heard = say(connection, wire[:cut], wire[cut:])
        assert heard.answers[0].body.read_nowait() == b"hello"
        assert (connection.busy, connection.reusable) == (False, True)

    async def test_something_behind_it(self) -> None:
        """RFC 9112 §9.2: what follows an answer belongs to no request, and ends the connection."""
        connection = wired()
        say(connection, self.HEAD + b"hello")
        heard = say(connection, self.HEAD + b"hello" + b"HTTP/1.1 200 OK\r\n\r\n")
        assert heard.answers[0].body.read_nowait() == b"hello"
        assert not connection.reusable

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX : blank\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: \x01\r\n\r\n",
        ],
    )
    async def test_a_bad_one_stays_bad(self, head: bytes) -> None:
        """What was refused once is refused again."""
        for _ in range(2):
            heard = say(wired(), head + b"hello")
            assert heard.failures
            assert not heard.answers

    async def test_a_known_head_behind_the_beginning_of_another(self) -> None:
        """Only at the beginning of an answer it is one."""
        say(wired(), self.HEAD + b"hello")
        heard = say(wired(), b"HTTP/1.1 200 OK\r\nX: a\r\n", self.HEAD + b"hello")
        assert heard.failures
        assert not heard.answers

    async def test_closing_chunked_and_empty_ones(self) -> None:
        """Where the length of the body is not all there is to know, each is looked at."""
        for wire in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
        ):
            for _ in range(2):
                connection = wired()
                heard = say(connection, wire)
                assert heard.answers
                assert not connection.busy
                assert connection.reusable is (b"close" not in wire)

    async def test_there_is_a_bound(self) -> None:
        """A target that never says the same does not fill the memory."""
        connection = wired()
        for number in range(_MAX_LENGTHS + 10):
            say(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: %d\r\n\r\nok" % number)
        assert len(_LENGTHS) <= _MAX_LENGTHS
