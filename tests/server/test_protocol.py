"""Connections: slow heads, dead peers, pipelines, and errors outside of everything."""

import asyncio
import contextlib
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from livegateway import Live, live, token
from multidict import CIMultiDict
from waiting import eventually

from gateway import errors
from gateway.server.arming import MAX_HEAD, Cut
from gateway.server.lane import Handover
from gateway.server.protocol import Connection, InternalError, Server, from_http, from_parser


@contextlib.asynccontextmanager
async def connected(gateway: Live) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(lines[0].split()[1]), headers, body


def poll(query: str = "channel=news&wait=0", *more: str) -> bytes:
    return "\r\n".join(
        [f"GET /v1/subscribe?{query} HTTP/1.1", "Host: a", f"Authorization: Bearer {token()}", *more, "", ""]
    ).encode()


# --- slow and dead peers ---


async def test_a_head_that_drips_in_is_given_up(gateway: Live):
    """The whole head has `head_timeout`, here a second, from its first byte."""
    async with connected(gateway) as (reader, writer):
        began = time.monotonic()
        writer.write(b"GET /livez HTTP/1.1\r\nX-A: a")
        for n in range(4):
            asyncio.get_running_loop().call_later(0.2 * n, writer.write, b"a")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert 0.7 < time.monotonic() - began < 3


async def test_a_head_in_pieces_is_in_time(gateway: Live):
    """Whichever request of a connection it is; after it the clock stands."""
    async with connected(gateway) as (reader, writer):
        server = gateway.gateway._listeners[0]._runner.server
        writer.write(poll())
        await answer(reader)
        [connection] = server.connections
        assert isinstance(connection, Connection)
        for _ in range(2):
            writer.write(poll()[:30])
            await eventually(lambda: connection._head_handle is not None)
            counting = connection._head_handle
            writer.write(poll()[30:60])
            writer.write(poll()[60:])
            assert (await answer(reader))[0] == 204
            assert connection._head_handle is None
            assert counting.cancelled()


async def test_a_client_that_leaves_in_the_middle_of_its_head(gateway: Live):
    """Nothing is counted any more."""
    async with connected(gateway) as (_, writer):
        writer.write(b"GET /li")
        await eventually(lambda: any(c._head_handle for c in gateway.gateway._listeners[0]._runner.server.connections))
    await eventually(lambda: not gateway.gateway._listeners[0].connections)


async def test_peers_on_a_unix_socket_are_looked_after_by_the_system(gateway: Live, tmp_path):
    """TCP's options are for TCP."""
    path = str(tmp_path / "socket")
    server = await asyncio.get_running_loop().create_unix_server(gateway.gateway._listeners[0]._runner.server, path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(poll())
    assert (await answer(reader))[0] == 204
    writer.close()
    await writer.wait_closed()
    server.close()
    await eventually(lambda: not gateway.gateway._listeners[0].connections)


async def test_a_head_that_begins_while_a_poll_is_held(gateway: Live):
    """The piece waits for its turn, and the poll is not disturbed."""
    async with connected(gateway) as (reader, writer):
        writer.write(poll("channel=news&wait=20") + poll()[:20])
        await gateway.parked()
        gateway.broker.append("news", 0, [b"1"])
        assert json.loads((await answer(reader))[2])["messages"][0]["value"] == 1
        writer.write(poll()[20:])
        assert (await answer(reader))[0] == 204


async def test_requests_in_a_pipeline_are_answered_in_order(gateway: Live):
    """One after the other."""
    async with connected(gateway) as (reader, writer):
        writer.write(poll() + poll("channel=news&limit=0") + poll("channel=notes&wait=0"))
        assert [(await answer(reader))[0] for _ in range(3)] == [204, 400, 204]


async def test_an_idle_connection_is_closed_after_keepalive():
    """Before the first request as well as after one."""
    async with live(server={"keepalive": 0.3}) as gateway, connected(gateway) as used, connected(gateway) as silent:
        used[1].write(poll())
        assert (await answer(used[0]))[0] == 204
        assert await asyncio.wait_for(used[0].read(), 5) == b""
        assert await asyncio.wait_for(silent[0].read(), 5) == b""


async def test_the_system_looks_after_peers_that_say_nothing(gateway: Live):
    """Keep-alive probes after 30 s, and a minute for what is not taken."""
    async with connected(gateway) as (reader, writer):
        writer.write(poll())
        await answer(reader)
        [connection] = gateway.gateway._listeners[0]._runner.server.connections
        peer = connection.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


async def test_connections_are_counted(gateway: Live):
    """Until they are closed."""

    async def count():
        return (await gateway.metrics())["gateway_open_connections{http}"]

    before = await count()
    async with connected(gateway) as (reader, writer):
        writer.write(poll())
        await answer(reader)
        await eventually(lambda: _is(count(), before + 1))
    await eventually(lambda: _is(count(), before))


async def _is(coroutine, value) -> bool:
    return (await coroutine) == value


# --- clients that leave ---


async def test_a_client_that_leaves_in_the_middle_of_its_body(gateway: Live, caplog):
    """Nothing is stored, and nothing is an error."""
    async with connected(gateway) as (_, writer):
        head = f"POST /v1/publish?channel=news HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b"{")
        await writer.drain()
        await eventually(lambda: _has_request(gateway))
    await eventually(lambda: not gateway.gateway._listeners[0]._runner.server.connections)
    assert caplog.text == ""
    assert gateway.broker.end_offset("news", 0) + gateway.broker.end_offset("news", 1) == 0


def _has_request(gateway: Live) -> bool:
    return any(c._current_request is not None for c in gateway.gateway._listeners[0]._runner.server.connections)


async def test_a_body_that_is_too_large_is_not_read_to_its_end(gateway: Live):
    """The answer comes before the body is through, and the connection does not go on with the rest as a request."""
    async with live(server={"max_body_bytes": 2048}) as small, connected(small) as (reader, writer):
        head = f"POST /v1/publish?channel=news HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head.encode() + b"x" * 4096)
        status, headers, body = await answer(reader)
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
        assert headers["content-type"] == "application/problem+json"


async def test_a_small_body_that_unpacks_into_a_large_one(gateway: Live):
    """The bound is on what comes out."""
    packed = zlib.compress(b'"' + b"x" * 5_000_000 + b'"', 9)
    assert len(packed) < 10_000
    reply = await gateway.publish("news", packed, headers={"Content-Encoding": "deflate"})
    assert (reply.status, reply.code) == (413, "body_too_large")


def publishing(*head: str) -> bytes:
    return "\r\n".join(
        ["POST /v1/publish?channel=news HTTP/1.1", "Host: a", f"Authorization: Bearer {token()}", *head, "", ""]
    ).encode()


async def test_a_body_whose_framing_breaks_in_the_middle(gateway: Live, caplog):
    """The handler that waits for the rest hears of it at once, and the log is not the client's to fill."""
    async with connected(gateway) as (reader, writer):
        writer.write(publishing("Transfer-Encoding: chunked") + b"1\r\n{\r\n")
        await eventually(lambda: _has_request(gateway))
        writer.write(b"zz\r\n")
        status, headers, body = await answer(reader)
        assert (status, json.loads(body)["code"]) == (400, "request_malformed")
        assert headers["connection"] == "close"
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert caplog.text == ""


async def test_a_body_that_breaks_after_its_refusal(gateway: Live, caplog):
    """Nobody needs to be told any more: the connection closes."""
    async with connected(gateway) as (reader, writer):
        writer.write(b"POST /v1/publish?channel=news HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        status, _, _ = await answer(reader)
        assert status == 401
        writer.write(b"zz\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert caplog.text == ""


async def test_a_packed_body_that_cannot_be_unpacked(gateway: Live, caplog):
    """Its sender's mistake; where the body ends is clear, so the connection goes on."""
    async with connected(gateway) as (reader, writer):
        for _ in range(2):
            writer.write(publishing("Content-Length: 4", "Content-Encoding: gzip") + b"1234")
            status, headers, _ = await answer(reader)
            assert status == 400
            assert "connection" not in headers
    assert caplog.text == ""


# --- errors outside of everything ---


async def test_an_error_outside_the_middleware(gateway: Live, caplog):
    """500 as a problem document, and the connection closes."""

    async def broken(request):
        raise ZeroDivisionError("secret detail")

    gateway.gateway._listeners[0]._runner.server.request_handler = broken
    async with connected(gateway) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, body = await answer(reader)
        assert await reader.read() == b""
    problem = json.loads(body)
    assert (status, problem["code"]) == (500, "internal_error")
    assert headers["x-request-id"] == problem["request_id"]
    assert headers["connection"] == "close"
    assert b"secret" not in body
    assert problem["request_id"] in caplog.text


async def test_an_error_after_the_answer_has_begun_closes_the_connection(gateway: Live, caplog):
    """A second head in the middle of a body would be worse."""

    async def broken(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        raise ZeroDivisionError

    gateway.gateway._listeners[0]._runner.server.request_handler = broken
    async with connected(gateway) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 10)
    assert got.count(b"HTTP/1.1") == 1
    assert got.startswith(b"HTTP/1.1 200")
    assert "error outside the middleware" in caplog.text


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (LineTooLong(b"x", 8_192), "target_too_long"),
        (LineTooLong(b"x", 16_384), "head_too_large"),
        (BadHttpMessage("Too many headers received"), "head_too_large"),
        (BadHttpMessage("anything else"), "request_malformed"),
        (None, "request_malformed"),
    ],
)
def test_what_the_parser_refuses_has_a_code(raised: Exception | None, code: str):
    """Its limits differ, so they tell a target from a header field."""
    assert from_parser(raised, line_limit=8_192, field_limit=16_384).code == code


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (web.HTTPMethodNotAllowed("POST", {"HEAD", "GET"}), "method_not_allowed"),
        (web.HTTPNotFound(), "not_found"),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), "body_too_large"),
        (web.HTTPExpectationFailed(), "request_malformed"),
        (web.HTTPConflict(), "request_malformed"),
    ],
)
def test_what_aiohttp_raises_has_a_code(raised: web.HTTPException, code: str):
    """And the facts that it holds."""
    error = from_http(raised, 99)
    assert error.code == code
    if isinstance(error, errors.MethodNotAllowed):
        assert error.allowed == ("GET", "HEAD")
    if isinstance(error, errors.BodyTooLarge):
        assert error.extra == {"limit": 99}


def test_an_internal_error_names_nothing():
    """But where to look."""
    assert "request id" in InternalError().detail


async def test_equal_bounds_of_target_and_fields_are_told_apart():
    """Both limits at 8 KiB: 414 for the one, 431 for the other."""
    async with live(server={"max_head_bytes": 4096, "max_target_bytes": 4096}) as gateway:
        assert (await gateway.poll("x" * 5000)).code == "target_too_long"
        assert (await gateway.poll("news", headers={"X-Long": "x" * 5000})).code == "head_too_large"


async def test_what_no_handler_saw_is_counted(gateway: Live):
    """A head that cannot be parsed shows in the metrics, under no route."""
    async with connected(gateway) as (reader, writer):
        writer.write(b"this is no HTTP\r\n\r\n")
        assert b"request_malformed" in await asyncio.wait_for(reader.read(), 10)
    assert (await gateway.metrics())["gateway_responses_total{none,400}"] == 1


# --- giving the connection away: what of the bytes is the one request ---


class Unplugged(asyncio.Transport):
    """A transport without a socket; `waiting` bytes of answers are not out yet."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.waiting = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.waiting


class Taken:
    """A server, one connection of it, and the sole head of each request as its handler saw it."""

    def __init__(self) -> None:
        self.heads: list[bytes | None] = []
        self.reads = True
        self.gives: Handover | None = None
        self.transport = Unplugged()
        self.server = Server(self.handle, max_target_bytes=8_192, max_field_bytes=32_768, head_timeout=10.0, access_log=None)
        self.connection = self.server()
        assert isinstance(self.connection, Connection)
        self.connection.connection_made(self.transport)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.reads:
            await request.read()
        self.heads.append(self.connection.sole_head())
        return self.gives or web.Response(text="ok")

    async def send(self, *pieces: bytes) -> None:
        """Deliver bytes, and let what is answered be answered."""
        for piece in pieces:
            self.connection.data_received(piece)
            for _ in range(20):
                await asyncio.sleep(0)

    @property
    def answered(self) -> int:
        return self.transport.written.count(b"HTTP/1.1 200 OK")


@pytest.fixture
async def taken() -> AsyncIterator[Taken]:
    one = Taken()
    await asyncio.sleep(0)
    yield one
    one.connection.connection_lost(None)
    await asyncio.sleep(0)


def get(target: bytes = b"/") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
SIZED = POST + b"Content-Length: 5\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_the_sole_head_is_all_that_came_since_the_last_answer(taken: Taken):
    """To the byte, in one piece or in several, for each request of the connection."""
    await taken.send(get(b"/1"))
    await taken.send(get(b"/2")[:1], get(b"/2")[1:20], get(b"/2")[20:])
    await taken.send(get(b"/3"))
    assert taken.heads == [get(b"/1"), get(b"/2"), get(b"/3")]
    assert taken.answered == 3


@pytest.mark.parametrize("more", [get(b"/2"), get(b"/2")[:5], b"\r\n"])
async def test_what_came_behind_a_head_makes_it_not_the_sole_one(taken: Taken, more: bytes):
    """Nor is any later one: where one request's bytes end and the next one's begin is not known any more."""
    await taken.send(get(b"/1") + more)
    await taken.send((get(b"/2") if b"G" in more else more + get(b"/2"))[len(more) :], get(b"/3"))
    assert set(taken.heads) == {None}
    assert len(taken.heads) == taken.answered == 3


async def test_a_line_end_before_a_head_counts_as_part_of_it(taken: Taken):
    """RFC 9112, section 2.2 has servers ignore one; the next one that comes so is the same."""
    await taken.send(b"\r\n" + get())
    assert taken.heads == [b"\r\n" + get()]
    await taken.send(b"\r\n\r\n" + get())
    assert taken.heads[1:] == [None]


@pytest.mark.parametrize("pieces", [(SIZED + b"12345",), (SIZED, b"12345"), (SIZED + b"1", b"23", b"45")])
async def test_a_request_with_a_body_is_no_sole_head_but_the_next_one_is(taken: Taken, pieces: tuple[bytes, ...]):
    """Its length says where it ends."""
    await taken.send(*pieces)
    await taken.send(get())
    assert taken.heads == [None, get()]


async def test_a_long_body_is_counted_and_not_kept(taken: Taken):
    """Only as much as a head may have."""
    size = 4 * MAX_HEAD
    await taken.send(POST + b"Content-Length: %d\r\n\r\n" % size, *[b"x" * MAX_HEAD] * 3)
    assert len(taken.connection._head) < 3 * MAX_HEAD
    await taken.send(b"x" * MAX_HEAD)
    await taken.send(get())
    assert taken.heads == [None, get()]


async def test_a_body_of_length_zero_is_none(taken: Taken):
    """Its request's bytes are its head."""
    head = POST + b"Content-Length: 0\r\n\r\n"
    await taken.send(head)
    await taken.send(get())
    assert taken.heads == [head, get()]


async def test_a_body_without_a_length_hides_where_the_next_request_begins(taken: Taken):
    """What comes after chunks is never a sole head."""
    await taken.send(CHUNKED + b"1\r\nx\r\n0\r\n\r\n")
    await taken.send(get(), get())
    assert taken.heads == [None, None, None]
    assert taken.answered == 3


async def test_an_answer_before_the_body_has_come_hides_it_too(taken: Taken):
    """The rest of the body belongs to a request that was answered."""
    taken.reads = False
    await taken.send(SIZED + b"12")
    await taken.send(b"345" + get())
    assert taken.heads == [None, None]


def padded(size: int) -> bytes:
    return get().replace(b"Host: a", b"Host: a\r\nX: " + b"x" * (size - len(get()) - 5))


async def test_a_head_that_is_too_long_to_be_armed_is_no_sole_head(taken: Taken):
    """What is kept of armed heads is bounded."""
    await taken.send(padded(MAX_HEAD))
    await taken.send(padded(MAX_HEAD + 1))
    await taken.send(get())
    assert taken.heads == [padded(MAX_HEAD), None, get()]


async def test_a_head_of_which_only_the_beginning_was_kept_is_no_sole_head(taken: Taken):
    """Nor is any later one: its end was not seen."""
    head = padded(MAX_HEAD + 2_000)
    await taken.send(*(head[at : at + 1_000] for at in range(0, len(head), 1_000)))
    await taken.send(get())
    assert taken.heads == [None, None]


async def test_while_an_answer_is_not_out_there_is_no_sole_head(taken: Taken):
    """Flow control expects an empty write buffer."""
    taken.transport.waiting = 1
    await taken.send(get())
    taken.transport.waiting = 0
    await taken.send(get())
    assert taken.heads == [None, get()]


async def test_a_connection_that_is_about_to_close_has_no_sole_head(taken: Taken):
    """It is not to be kept by anybody."""
    await taken.send(get()[:9])
    taken.connection.close()
    assert taken.connection.sole_head() is None
    taken.connection.force_close()
    assert taken.connection.sole_head() is None
    taken.connection.connection_lost(None)
    assert taken.connection.sole_head() is None


async def test_a_handler_may_give_its_connection_away(taken: Taken):
    """In place of an answer: nothing is written or closed, the transport is another's, and the task that ran the handler ends."""
    given: list[tuple[Handover, asyncio.Transport, object]] = []

    def take(handover: Handover, connection: Connection) -> None:
        make = connection.maker()
        given.append((handover, connection.leave(), make))

    taken.gives = Handover(Cut(b"", b"", b""), CIMultiDict({"Next-Cursor": "x"}), take)
    assert taken.server.connections == [taken.connection]
    task = taken.connection._task_handler
    await taken.send(get())
    assert given == [(taken.gives, taken.transport, taken.server)]
    assert taken.gives.headers["Next-Cursor"] == "x"
    assert (taken.transport.written, taken.transport.closing) == (b"", False)
    assert (taken.connection.transport, taken.server.connections) == (None, [])
    assert task is not None
    assert task.done()
    another = taken.server()
    assert isinstance(another, Connection)
    assert another is not taken.connection


async def test_a_connection_can_be_given_away_once(taken: Taken):
    """Then it has none."""
    taken.connection.leave()
    with pytest.raises(AssertionError, match="has a transport"):
        taken.connection.leave()
    with pytest.raises(AssertionError, match="has a server"):
        taken.connection.maker()
