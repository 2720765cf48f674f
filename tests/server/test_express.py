"""Requests that are answered without a task: the same bytes and accounts as with one, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livegateway import Live, live, token
from proxy.backend import Visit, answering, backend, ok
from server.throughroute import behind
from waiting import eventually

from gateway.proxying import Proxied
from gateway.server import express
from gateway.server.protocol import Connection

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
_IDS = re.compile(
    rb"(?<=X-Request-Id: )[0-9a-f]{16}|(?<=traceparent: 00-)[0-9a-f]{32}-[0-9a-f]{16}|(?<=\"request_id\":\")[^\"]+"
)
_DATE = re.compile(rb"Date: [^\r]+")
_PORT = re.compile(rb"127\.0\.0\.1:[0-9]+")


class Counted:
    """How many requests went express, and how many of them were handed over."""

    def __init__(self) -> None:
        self.begun = self.resumed = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Count."""
    counts = Counted()
    start, resume = express._Run.start, express._Run.resume

    def counted_start(run: express._Run) -> None:
        counts.begun += 1
        start(run)

    async def counted_resume(run: express._Run, request: Any) -> Any:
        counts.resumed += 1
        return await resume(run, request)

    monkeypatch.setattr(express._Run, "start", counted_start)
    monkeypatch.setattr(express._Run, "resume", counted_resume)
    return counts


class Client:
    """One connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes = GET) -> bytes:
        """Send a request and return the answer as it came; all there is where the connection ends."""
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> bytes:
        """Return the next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 1"):
            return head + await self.answer()
        if (length := re.search(rb"(?i)\r\nContent-Length: ([0-9]+)", head)) and not head.startswith(b"HTTP/1.1 304"):
            return head + await self.reader.readexactly(int(length[1]))
        if re.search(rb"(?i)\r\nTransfer-Encoding: chunked", head):
            return head + await self.reader.readuntil(b"0\r\n\r\n")
        return head


@asynccontextmanager
async def client(gateway: Live) -> AsyncIterator[Client]:
    """Connect, and ask once with a task: the first request of a connection always has one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def _anonymous(wire: bytes) -> bytes:
    return _DATE.sub(b"Date: NOW", _PORT.sub(b"BACKEND", _IDS.sub(b"ID", wire)))


def _request(*fields: bytes, line: bytes = b"GET /x?a=%41 HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: api.test:81", *fields)) + b"\r\n\r\n"


BEARER = b"Authorization: Bearer " + token("ann", scope="orders:read").encode()
EDITED = {"request_headers": {"set": {"X-Of": "{headers.Host}"}}, "response_headers": {"set": {"X-Frame-Options": "DENY"}}}
CLAIMS = {"public": False, "allow": {"scope": "orders:read", "issuers": ["test"]}, "claims": {"X-User": "{claims.sub}"}}
CASES: dict[str, tuple[dict[str, Any], bytes, bytes, bool]] = {
    "plain": ({}, _request(b"Accept: */*"), ok(b"hello", b"Server: shop", b"X: 1", b"X: 2"), True),
    "own id": ({}, _request(b"X-Request-Id: abc-1"), ok(b"hello", b"X-Request-Id: other"), True),
    "a bad id": ({}, _request(b"X-Request-Id: a b"), ok(), True),
    "own trace": ({}, _request(b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01", b"tracestate: a=1"), ok(), True),
    "percent": ({}, _request(b"X-Per: 100%(id)b %", line=b"GET /%25/x?%(id)b HTTP/1.1"), ok(b"%d", b"X-Per: %(id)b%"), True),
    "eight bits": ({}, _request(b"X-Eight: \xe9\xff"), ok(b"\xff", b"X-Eight: \xe9\xff"), True),
    "connection options": ({}, _request(b"Connection: keep-alive, X-Gone", b"X-Gone: 1", b"TE: trailers"), ok(), True),
    "no body": ({}, _request(line=b"DELETE /x HTTP/1.1"), b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", True),
    "not modified": ({}, _request(b"If-None-Match: x"), b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", True),
    "own reason": ({}, _request(), ok(b"", status=b"404 Nowhere To Be Found"), True),
    "chunks": ({}, _request(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
    "a hint first": ({}, _request(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(), True),
    "a post without a body": ({}, _request(b"Content-Length: 0", line=b"POST /x HTTP/1.1"), ok(), True),
    "edits": (EDITED, _request(), ok(), True),
    "a rewritten path": ({"prefix": "/x", "rewrite": {"prefix": "/v2", "host": "b.test"}}, _request(), ok(), True),
    "origins": ({"cors": {"origins": ["https://a.test"]}}, _request(b"Origin: https://a.test"), ok(), True),
    "deprecated": ({"deprecated": "2025-01-01"}, _request(), ok(), True),
    "identity": (CLAIMS, _request(BEARER, b"X-User: root"), ok(), True),
    "limits": ({"limits": {"concurrent": 1, "requests": {"rate": 1000, "burst": 1000}}}, _request(), ok(), True),
    "a failing backend": ({}, _request(), ok(status=b"500 Oops"), True),
    "events": ({}, _request(), ok(b"data: 1\n\n", b"Content-Type: text/event-stream"), True),
    "a body": ({}, _request(b"Content-Length: 2", line=b"POST /x HTTP/1.1") + b"ab", ok(), False),
    "head": ({}, _request(line=b"HEAD /x HTTP/1.1"), b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "compressed": ({"compress": True}, _request(), ok(), False),
    "stored": ({"cache": {}}, _request(), ok(b"ok", b"Date: Thu, 01 Jan 2026 00:00:00 GMT"), False),
    "refused": ({"public": False}, _request(b"Authorization: Bearer x"), ok(), False),
    "nowhere": ({"prefix": "/y"}, _request(), ok(), False),
}


async def _transcript(route: dict[str, Any], request: bytes, answer: bytes, times: int) -> tuple[list[bytes], list[bytes], Any]:
    async def script(visit: Visit) -> None:
        while head := await visit.head():
            if b"Content-Length: 2" in head:
                await visit.body(2)
            await visit.say(answer)

    async with backend(script) as here, live(**behind(here, **route)) as gateway, client(gateway) as one:
        answers = [await one.ask(request) for _ in range(times)]
        metrics = await gateway.metrics()
    counts = {name: value for name, value in metrics.items() if "proxy" in name or "upstream" in name or "refus" in name}
    kept = {name: value for name, value in counts.items() if "seconds_sum" not in name and "seconds_bucket" not in name}
    return list(map(_anonymous, answers)), list(map(_anonymous, here.heads)), kept


@pytest.mark.parametrize("case", CASES)
async def test_the_same_with_a_task(case: str, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and backend get byte for byte what they get otherwise, and as much is counted."""
    route, request, answer, goes = CASES[case]
    without = await _transcript(route, request, answer, 4)
    assert counted.begun == (3 if goes else 0)
    monkeypatch.setattr(Proxied, "express", None)
    assert await _transcript(route, request, answer, 4) == without
    assert counted.begun == (3 if goes else 0)


async def test_ids_differ(counted: Counted) -> None:
    """Each request has an id and a trace of its own, which answer and backend tell alike."""
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway, client(gateway) as one:
        answers = [await one.ask() for _ in range(300)]
        ids = [re.search(rb"X-Request-Id: ([0-9a-f]{16})\r\n", answer)[1] for answer in answers]  # type: ignore[index]
        assert len(set(ids)) == 300
        assert [re.search(rb"X-Request-Id: ([0-9a-f]{16})\r\n", head)[1] for head in here.heads] == ids  # type: ignore[index]
        traces = {re.search(rb"traceparent: 00-([0-9a-f]{32}-[0-9a-f]{16})-01\r\n", head)[1] for head in here.heads}  # type: ignore[index]
        assert len(traces) == 300
        assert (counted.begun, counted.resumed) == (299, 0)


async def test_one_client_is_not_another(counted: Counted) -> None:
    """What was made of one client's head is not sent for another's, on the same connection or elsewhere."""
    route = {"public": False, "allow": {"issuers": ["test"]}, "claims": {"X-User": "{claims.sub}"}, "limits": {"concurrent": 1}}
    async with backend(answering(ok())) as here, live(**behind(here, **route)) as gateway, client(gateway) as one:
        bearers = [b"Authorization: Bearer " + token(name).encode() for name in ("ann", "bob")]
        for _ in range(3):
            for bearer in bearers:
                await one.ask(_request(bearer))
        users = [re.search(rb"X-User: (\w+)\r\n", head)[1] for head in here.heads]  # type: ignore[index]
        assert users == [b"ann", b"bob"] * 3
        assert counted.begun == 4  # those with tokens that were verified before


async def test_a_pipelined_request_waits_its_turn(counted: Counted) -> None:
    """Answers come in the order of the requests, however many of them come at once."""
    answers = [ok(b"%d" % number) for number in range(6)]
    async with backend(answering(*answers)) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        one.writer.write(GET)
        await eventually(lambda: counted.begun == 1)
        one.writer.write(GET + GET + GET)
        got = [(await one.answer())[-1:] for _ in range(4)]
        assert got == [b"1", b"2", b"3", b"4"]
        assert (await one.ask())[-1:] == b"5"


async def test_a_client_that_leaves(counted: Counted) -> None:
    """499, nothing against the target, no place kept."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.head()
        await visit.reader.read()

    async with backend(script) as here, live(**behind(here, limits={"concurrent": 1})) as gateway:
        async with client(gateway) as one:
            await one.ask()
            one.writer.write(GET)
            await eventually(lambda: len(here.heads) == 2)
            assert counted.begun == 1
        name = "gateway_upstream_attempts_total{client,shop}"

        async def left() -> bool:
            return (await gateway.metrics()).get(name) == 1

        await eventually(left)
        metrics = await gateway.metrics()
        assert metrics["gateway_proxy_requests_total{shop,4xx}"] == 1
        assert metrics["gateway_upstream_outstanding{working,shop}"] == 0
        assert (await gateway.ask("GET", "/x")).status == 200


async def test_a_kept_connection_that_was_closed(counted: Counted) -> None:
    """RFC 9112 §9.3.1: the request goes out once more, with the same ids."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        if len(here.visits) == 1:
            await visit.head()
            visit.cut()
        await visit.head()

    async with backend(script) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        assert (await one.ask()).startswith(b"HTTP/1.1 200 ")
        assert (counted.begun, counted.resumed) == (1, 1)
        assert len(here.heads) == 3
        assert here.heads[1] == here.heads[2]
        assert (await gateway.metrics())["gateway_upstream_attempts_total{ok,shop}"] == 2


async def test_a_status_that_is_tried_again(counted: Counted) -> None:
    """The second attempt is the handler's."""
    upstream = {"retries": {"attempts": 2, "backoff": 0.001, "max_backoff": 0.001}}
    answers = answering(ok(), ok(status=b"503 No"), ok(b"again"))
    async with backend(answers) as here, live(**behind(here, upstream)) as gateway, client(gateway) as one:
        await one.ask()
        assert (await one.ask()).endswith(b"again")
        assert (counted.begun, counted.resumed) == (1, 1)
        assert (await gateway.metrics())["gateway_upstream_retries_total{shop}"] == 1


async def test_an_answer_that_comes_in_pieces(counted: Counted) -> None:
    """It is passed on as it comes."""
    gate = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        while await visit.head():
            await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await gate.wait()
            await visit.say(b"cd")

    async with backend(script) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        one.writer.write(GET)
        assert (await one.reader.readuntil(b"\r\n\r\nab")).startswith(b"HTTP/1.1 200 ")
        gate.set()
        assert await one.reader.readexactly(2) == b"cd"
        assert (counted.begun, counted.resumed) == (1, 1)
        assert (await one.ask()).endswith(b"abcd")


async def test_a_target_that_does_not_answer_in_time(counted: Counted) -> None:
    """504."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.reader.read()

    route = {"timeouts": {"first_byte": 0.2}}
    async with backend(script) as here, live(**behind(here, **route)) as gateway, client(gateway) as one:
        await one.ask()
        assert (await one.ask()).startswith(b"HTTP/1.1 504 ")
        assert (counted.begun, counted.resumed) == (1, 1)


async def test_a_limit(counted: Counted) -> None:
    """What a limit refuses is told by the handler, and is charged once."""
    route = {"limits": {"requests": {"rate": 0.001, "burst": 2}}}
    async with backend(answering(ok())) as here, live(**behind(here, **route)) as gateway, client(gateway) as one:
        statuses = [(await one.ask())[9:12] for _ in range(4)]
        assert statuses == [b"200", b"200", b"429", b"429"]
        assert (counted.begun, counted.resumed) == (3, 2)
        assert len(here.heads) == 2


async def test_no_connection_is_idle(counted: Counted) -> None:
    """The handler makes one to the target that was chosen."""

    async def script(visit: Visit) -> None:
        while await visit.head():
            await visit.say(ok(b"", b"Connection: close"))

    async with backend(script) as here, live(**behind(here)) as gateway, client(gateway) as one:
        for _ in range(3):
            assert (await one.ask()).startswith(b"HTTP/1.1 200 ")
        assert (counted.begun, counted.resumed) == (2, 2)
        assert (await gateway.metrics())["gateway_upstream_attempts_total{ok,shop}"] == 3


async def test_an_idle_connection_is_closed(counted: Counted) -> None:
    """server.keepalive holds after an answer without a task as after any other."""
    async with (
        backend(answering(ok())) as here,
        live(**behind(here), server={"keepalive": 0.3}) as gateway,
        client(gateway) as one,
    ):
        for _ in range(3):
            await one.ask()
        assert counted.begun == 2
        assert await asyncio.wait_for(one.reader.read(), 10) == b""


async def test_a_slow_answer_is_longer_than_keepalive(counted: Counted) -> None:
    """A connection whose request is under way is not idle."""

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.head()
        await asyncio.sleep(0.6)  # what passes here is the time that is being tested
        await visit.say(ok(b"late"))
        await visit.head()

    async with backend(script) as here, live(**behind(here), server={"keepalive": 0.2}) as gateway, client(gateway) as one:
        await one.ask()
        assert (await one.ask()).endswith(b"late")
        assert counted.begun == 1
        assert await asyncio.wait_for(one.reader.read(), 10) == b""


async def test_shutdown_waits_for_the_answer(counted: Counted) -> None:
    """What is under way is answered, with the connection's end."""
    gate = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.head()
        await visit.say(ok())
        await visit.head()
        await gate.wait()
        await visit.say(ok(b"last"))
        await visit.head()

    async with backend(script) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        one.writer.write(GET)
        await eventually(lambda: len(here.heads) == 2)
        draining = asyncio.ensure_future(gateway.gateway.drain())
        await draining
        stopping = asyncio.ensure_future(gateway.gateway._listeners[0].stop())
        await asyncio.sleep(0)
        gate.set()
        answer = await one.answer()
        assert answer.endswith(b"last")
        assert b"\r\nConnection: close\r\n" in answer
        assert await one.reader.read() == b""
        await stopping
        assert (counted.begun, counted.resumed) == (1, 0)


@pytest.mark.parametrize("broken", ["proxy.Proxy.charge", "express.dress"])
async def test_what_should_not_happen(
    broken: str, counted: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 and a trace in the log, and no place is kept."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    answers = answering(ok(), ok(b"other"))
    async with backend(answers) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        monkeypatch.setattr(f"gateway.server.{broken}", fail)
        assert (await one.ask()).startswith(b"HTTP/1.1 500 ")
        assert (counted.begun, counted.resumed) == (1, 1)
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert (await gateway.metrics())["gateway_upstream_outstanding{working,shop}"] == 0


async def test_what_makes_no_head(counted: Counted) -> None:
    """The handler tells what is wrong; nothing was charged before."""
    route = {"public": False, "allow": {"issuers": ["test"]}, "claims": {"X-User": "{claims.absent}"}}
    async with backend(answering(ok())) as here, live(**behind(here, **route)) as gateway, client(gateway) as one:
        for _ in range(2):
            assert (await one.ask(_request(BEARER))).startswith(b"HTTP/1.1 403 ")
        assert counted.begun == 0


def test_what_is_kept_is_bounded() -> None:
    """When it is full, it begins anew."""
    kept = express.Kept[int](2)
    for number in range(3):
        kept.keep(number, number)
    assert (kept.get(0), kept.get(2), repr(kept)) == (None, 2, "<Kept 1 of 2>")


async def test_a_long_head_has_a_task(counted: Counted) -> None:
    """Long heads are not kept."""
    request = _request(b"X-Long: " + b"a" * express.MAX_KEPT)
    async with backend(answering(ok())) as here, live(**behind(here)) as gateway, client(gateway) as one:
        for _ in range(2):
            assert (await one.ask(request)).startswith(b"HTTP/1.1 200 ")
        assert counted.begun == 0


async def test_a_client_that_is_quick(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes in before the connection's task waits again, as quick clients have it, goes express all the same."""
    begun: list[int] = []
    handle = Connection._handle_request

    async def handled(connection: Connection, *given: Any) -> Any:
        answer = await handle(connection, *given)
        # The answer is out, and the task that waits for this one has not gone on yet.
        asyncio.get_running_loop().call_soon(connection.data_received, GET[:9])
        asyncio.get_running_loop().call_soon(connection.data_received, GET[9:])
        begun.append(counted.begun)
        return answer

    monkeypatch.setattr(Connection, "_handle_request", handled)
    async with backend(answering(ok(b"hello"))) as here, live(**behind(here)) as gateway, client(gateway) as one:
        first, second = await one.ask(), await one.answer()
        assert _anonymous(first) == _anonymous(second)
        assert (begun, counted.begun, counted.resumed) == ([0], 1, 0)


async def test_a_quick_client_that_leaves(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sent last is nobody's any more."""
    handle = Connection._handle_request

    async def handled(connection: Connection, *given: Any) -> Any:
        answer = await handle(connection, *given)
        asyncio.get_running_loop().call_soon(connection.data_received, GET)
        asyncio.get_running_loop().call_soon(connection.abort)
        return answer

    monkeypatch.setattr(Connection, "_handle_request", handled)
    monkeypatch.setattr(Connection, "abort", lambda self: self.connection_lost(None), raising=False)
    async with backend(answering(ok(b"hello"))) as here, live(**behind(here)) as gateway, client(gateway) as one:
        await one.ask()
        await gateway.metrics()
        assert (counted.begun, len(here.heads)) == (0, 1)


LOGGED = {
    "public": ({}, _request(line=b"GET /a%20b?channel=x&cursor=secret&from=%41 HTTP/1.1")),
    "somebody": (CLAIMS, _request(BEARER)),
    "own id": ({}, _request(b"X-Request-Id: abc-1")),
    "percent": ({}, _request(line=b"GET /%25s?from=%25b HTTP/1.1")),
}


@pytest.mark.parametrize("case", LOGGED)
async def test_the_access_log_is_the_same(
    case: str, counted: Counted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Line for line, but for the time, the id and the duration, also where the line is kept."""
    route, request = LOGGED[case]

    async def lines() -> list[dict[str, Any]]:
        async with (
            backend(answering(ok(b"hello"))) as here,
            live(**behind(here, **route), log={"level": "warning", "access": True}) as gateway,
            client(gateway) as one,
        ):
            for _ in range(5):
                await one.ask(request)
        told = [json.loads(line) for line in capfd.readouterr().out.splitlines() if '"proxy"' in line]
        for line in told:
            assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", line.pop("time"))
            assert 0 < line.pop("duration") < 5
        return told

    without = await lines()
    assert counted.begun == 4
    monkeypatch.setattr(Proxied, "express", None)
    others = await lines()
    own_id = [[line.pop("request_id") for line in told] for told in (without, others)]
    assert len(set(own_id[0])) == (1 if case == "own id" else 5)
    assert without == others
    assert len(without) == 5
    assert "secret" not in str(without)
