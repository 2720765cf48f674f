"""A gateway with lanes and one without, on one broker: whatever a connection carries, in whatever pieces, both say the same."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from livegateway import TOPICS, configuration, parked, token
from rawhttp import comparable
from waiting import eventually

from gateway.app import serving
from gateway.devbroker.server import Broker
from gateway.fanout.cursor import encode

TOKENS = {
    "ann": token("ann", rooms=["lobby"], scope="news:read"),
    "bob": token("bob", other=True),
    "renewed": token("ann", rooms=["lobby"], scope="news:read", jti="2"),
    "expired": token("ann", lifetime=-10),
    "broken": "xyzzy",
}
# Never reached here, but there: their fields are what only aiohttp's good answers have.
LIMITS = {name: {"rate": 1_000_000, "burst": 1_000_000} for name in ("address", "polls", "publishes")}
SECTIONS: dict[str, Any] = {
    "limits": LIMITS,
    "server": {"max_target_bytes": 2_500, "max_head_bytes": 3_000},
    "cors": {"origins": ["https://a.test", "https://b.test"]},
}
LAST = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


# --- what is sent ---


@dataclass(frozen=True)
class Request:
    """One request. As it stands it is a poll that a lane can get again and again."""

    method: str = "GET"
    path: str = "/v1/subscribe"
    channels: str = "channel=news"
    wait: str = "wait=0"
    cursor: str = "last"
    place: str = "query"
    token: str = "ann"
    origin: str = ""
    version: str = "1.1"
    fields: tuple[str, ...] = ()
    body: str = ""

    def data(self, cursors: dict[str, str]) -> bytes:
        """Return its bytes."""
        cursor = cursors[self.cursor]
        query = [self.channels, self.wait, *([f"cursor={cursor}"] if self.place == "query" else [])]
        if self.place == "first":
            query.insert(0, f"cursor={cursor}")
        elif self.place == "encoded":
            query.append(f"%63ursor={cursor}")
        elif self.place == "twice":
            query += [f"cursor={cursor}"] * 2
        lines = [f"{self.method} {self.path}?{'&'.join(query)} HTTP/{self.version}", "Host: a"]
        lines += [f"Authorization: Bearer {TOKENS[self.token]}", *([f"Origin: {self.origin}"] if self.origin else [])]
        lines += {
            "header": [f"Cursor: {cursor}"],
            "lower": [f"cursor:{cursor}"],
            "spaced": [f"Cursor: \t{cursor} "],
            "both": [f"Cursor: {cursor}", f"Cursor: {cursor}"],
        }.get(self.place, [])
        lines += self.fields
        body = self.body.encode()
        if self.body == "chunked":
            lines.append("Transfer-Encoding: chunked")
            body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        elif self.body:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


PUBLISH = {"method": "POST", "path": "/v1/publish", "channels": "channel=blobs", "wait": "key=k", "place": "none"}
GARBAGE = [
    b"xyzzy\r\n\r\n",
    b"GET /v1/subscribe\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/subscribe HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"\x16\x03\x01\r\n\r\n",
    b"GET http://a/livez HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"a" * 2_600 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 3_100 + b"\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 2_500 + b"\r\n",
]


# What a lane takes; from poll to poll most of it stays.
GOOD: dict[str, Sequence[Any]] = {
    "channels": ["channel=news", "channel=news&channel=notes", "channel=news&view=value", "channel=news&limit=1", "channel=chat/lobby"],
    "wait": ["wait=0", "wait=0.0"],
    "cursor": ["last", "first"],
    "place": ["query", "header", "first", "lower", "spaced"],
    "token": ["ann", "renewed", "bob"],
    "origin": ["", "https://a.test", "https://b.test", "https://c.test"],
    "fields": [
        (), ("X-Request-Id: one",), ("X-Request-Id: two",), ("x-request-id: three", "Traceparent: 00-1"), ("X-A: b",), ("X-A: b\xe9",),
    ],
}  # fmt: skip
# What it does not, one at a time.
ODD: dict[str, Sequence[Any]] = {
    "method": ["HEAD", "POST", "OPTIONS", "get"],
    "path": ["/v1/%73ubscribe", "http://a/v1/subscribe", "/v1/nothing", "/V1/subscribe", "//v1/subscribe"],
    "channels": ["channel=%6eews", "channel=inbox", "channel=nothing", "channel=news&limit=0", "channel=news&channel=news"],
    "wait": ["from=earliest&wait=0", "wait=0&linger=1", "wait=0#", "wait=-1", "wait=%30"],
    "cursor": ["other", "broken", "none", "long", "padded"],
    "place": ["both", "encoded", "twice", "none"],
    "token": ["expired", "broken"],
    "version": ["1.0", "2.0"],
    "fields": [
        ("Accept: text/html",), ("Accept: application/json",), ("Prefer: wait=0",), ("Connection: close",), ("Connection: keep-alive",),
        ("Connection: upgrade", "Upgrade: websocket"), ("Expect: 100-continue",), ("Content-Length: 0",), ("Host: b",),
        ("Transfer-Encoding: x",), ("Authorization: Bearer xyzzy",), ("X-Request-Id: one", "X-Request-Id: two"), ("X-A: b", "X-A: b"),
    ],
    "body": ["x", "chunked"],
}  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, bases: st.SearchStrategy[Request], *changes: dict[str, Sequence[Any]]) -> Request:
    """Draw a poll that differs from a base in one respect for each of `changes`."""
    request = draw(bases)
    for values in changes:
        name = draw(st.sampled_from(sorted(values)))
        request = replace(request, **{name: draw(st.sampled_from(values[name]))})
    return request


publishes = st.sampled_from(
    [Request(**PUBLISH, cursor="none", token=token, fields=fields, body=body)
     for token, fields, body in (("ann", (), "abc"), ("ann", ("Expect: 100-continue",), "abc"), ("ann", (), "chunked"), ("ann", (), ""),
                                 ("broken", (), "abc"), ("ann", ("Content-Type: text/plain",), "abc"))]
)  # fmt: skip


@dataclass(frozen=True)
class Send:
    """Some requests at once, cut into pieces (at places modulo their length), and once more when they have been answered."""

    requests: tuple[Request | bytes, ...]
    cuts: tuple[int, ...]
    times: int = 1


@dataclass(frozen=True)
class Hold:
    """A poll that parks, what is sent behind it (`later`: once it is parked), and records that end it.

    `company`: the same poll has been parked on another connection.
    """

    request: Request
    behind: tuple[Request, ...]
    cuts: tuple[int, ...]
    later: bool
    company: bool


@dataclass(frozen=True)
class Append:
    """Records, seen by both gateways before anything else is sent."""

    topic: str
    count: int


cuts = st.one_of(st.just(()), st.lists(st.integers(0, 4_000), max_size=4).map(tuple))
held = st.builds(
    Request,
    cursor=st.just("end"),
    wait=st.sampled_from(["wait=20", "wait=20&limit=1"]),
    place=st.sampled_from(["query", "header"]),
    token=st.sampled_from(["ann", "renewed"]),
    fields=st.sampled_from(GOOD["fields"]),
)


@st.composite
def scripts(draw: st.DrawFn) -> list[Send | Hold | Append]:
    """Draw steps of a few clients whose polls are mostly alike."""
    fields = {"fields": GOOD["fields"]}
    bases = draw(
        st.lists(
            st.one_of(changed(st.just(Request()), fields), changed(st.just(Request()), GOOD, GOOD)), min_size=1, max_size=2
        )
    )
    usual = st.sampled_from(bases)
    others = {name: [*GOOD[name], *ODD.get(name, ())] for name in ("token", "origin")}
    cursors = {"cursor": ODD["cursor"]}
    polls = st.one_of(
        usual, usual, changed(usual, others), changed(usual, fields, cursors), changed(usual, GOOD), changed(usual, ODD, fields)
    )
    alone = st.tuples(polls)
    anything = st.one_of(polls, polls, publishes, st.sampled_from(GARBAGE))
    steps = st.one_of(
        *[st.builds(Send, alone, cuts, st.integers(1, 3))] * 3,
        st.builds(Send, st.tuples(anything), cuts),
        st.builds(Send, st.lists(anything, min_size=2, max_size=3).map(tuple), cuts),
        st.builds(Hold, held, st.one_of(st.just(()), alone), cuts, st.booleans(), st.booleans()),
        st.builds(Hold, held, st.just(()), st.just(()), st.just(value=False), st.booleans()),
        st.builds(Append, st.sampled_from(["news", "notes"]), st.integers(1, 3)),
    )
    return draw(st.lists(steps, min_size=2, max_size=12))


# --- what comes back ---


@dataclass
class Side:
    """A connection to one of the gateways."""

    connection: socket.socket
    rest: bytes = b""

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Send pieces; each is read before the next one is sent."""
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(self.connection, piece)
            for _ in range(3):  # the gateway runs on this loop: what it can read, it reads in the next turn
                await asyncio.sleep(0)

    async def receive(self, requests: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Read an answer for each request; fewer if the connection is closed before."""
        found = []
        for request in requests:
            head = await self._take(lambda: self.rest.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in self.rest else 0)
            while head.startswith(b"HTTP/1.1 100"):
                found.append((head, b""))
                head = await self._take(lambda: self.rest.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in self.rest else 0)
            if not head:
                break
            length = re.search(rb"(?i)\r\nContent-Length: (\d+)", head)
            size = int(length[1]) if length and not request.startswith(b"HEAD ") else 0
            found.append((head, await self._take(lambda size=size: size if len(self.rest) >= size else 0) if size else b""))
        return [_published(*comparable(*answer)) for answer in found]

    async def _take(self, ready: Any) -> bytes:
        async with asyncio.timeout(3):
            while not (size := ready()):
                try:
                    more = await asyncio.get_running_loop().sock_recv(self.connection, 65_536)
                except ConnectionError:
                    more = b""
                if not more:
                    return b""
                self.rest += more
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


def _published(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Leave out where a record was stored: each gateway stores its own."""
    if not body.startswith(b'{"partition":'):
        return head, body
    return re.sub(rb"(?i)(Content-Length: )\d+", rb"\1(size)", head), re.sub(rb'"offset":.*', b"(place)", body)


class World:
    """The two gateways and their broker, on one loop that runs while an example does: nothing happens in between."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        self.broker = await self.stack.enter_async_context(Broker())
        for name, partitions in TOPICS.items():
            self.broker.create_topic(name, partitions)
        self.broker.append("news", 0, [b'{"n":1}', b'{"n":2}'])
        configurations = [
            configuration(self.broker.address, lane={"enabled": enabled}, **SECTIONS) for enabled in (True, False)
        ]
        self.gateways = [await self.stack.enter_async_context(serving(one)) for one in configurations]

    async def in_step(self) -> None:
        """Wait until both gateways have seen all records."""
        ends = self.broker.end_offset

        def seen() -> bool:
            tails = [
                (name, p, tail)
                for gateway in self.gateways
                for name, t in gateway.hub.topics.items()
                for p, tail in t.tails.items()
            ]
            return all(tail.end == ends(name, partition) for name, partition, tail in tails)

        await eventually(seen, interval=0.001)

    async def play(self, script: Sequence[Send | Hold | Append]) -> None:
        """Take the steps with both; AssertionError where they differ."""
        cursors = {"first": "", "none": "", "broken": "AAAA", "long": "A" * 2_100, "padded": "AAA%3D"}
        talk = Talk(self, cursors)
        try:
            for name, query in (
                ("other", "channel=notes&wait=0"),
                ("first", "channel=news&channel=notes&wait=0&from=earliest&limit=1"),
                ("last", "channel=news&channel=notes&wait=0"),
            ):
                head = f"GET /v1/subscribe?{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKENS['ann']}\r\n\r\n"
                await talk.exchange([head.encode()], [head.encode()], name)
            for step in script:
                if isinstance(step, Append):
                    self.broker.append(step.topic, 0, [b'{"n":3}'] * step.count)
                for _ in range(getattr(step, "times", 1)):
                    if not isinstance(step, Append):
                        await talk.take(step)
                    await self.in_step()
            await talk.end()
        finally:
            talk.drop()
        await eventually(lambda: not any(parked(gateway) or gateway.slots.held for gateway in self.gateways), interval=0.001)


class Talk:
    """A connection to each gateway, and others once these are closed. `cursors` are those that requests name."""

    def __init__(self, world: World, cursors: dict[str, str]) -> None:
        self._world = world
        self._cursors = cursors
        self._sides: list[Side] = []

    def drop(self) -> None:
        """Close both connections."""
        for side in self._sides:
            side.connection.close()
        self._sides = []

    async def take(self, step: Send | Hold) -> None:
        """Take a step."""
        sent = step.requests if isinstance(step, Send) else (step.request, *step.behind)
        self._cursors["end"] = encode({"news": self._world.gateways[0].hub.topics["news"].position})
        data = [one if isinstance(one, bytes) else one.data(self._cursors) for one in sent]
        if isinstance(step, Hold):
            await self._hold(step, data)
        else:
            await self.exchange(list(_cut(b"".join(data), step.cuts)), data)
        if len(data) > 1:
            await self.end()  # requests behind others: there is no lane any more

    async def exchange(self, pieces: Sequence[bytes], requests: Sequence[bytes], name: str = "last") -> None:
        """Send, and compare what comes back, and what becomes of the connections. The answer's cursor gets the name."""
        self._connect()
        found = []
        for side in self._sides:
            await side.send(pieces)
            found.append(await side.receive(requests))
        assert found[0] == found[1]
        for head, _ in found[0]:
            if (cursor := re.search(rb"\r\nNext-Cursor: ([^\r]+)", head)) is not None:
                self._cursors[name] = cursor[1].decode()
        if len(found[0]) < len(requests) or b"\r\nConnection: close\r\n" in found[0][-1][0] or b" HTTP/1.0\r\n" in requests[-1]:
            assert [await side.receive([LAST]) for side in self._sides] == [[], []]
            # The body of an answer to what began like HEAD, perhaps.
            rests = [comparable(b"", side.rest) for side in self._sides]
            assert rests[0] == rests[1]
            self.drop()

    async def end(self) -> None:
        """Have both connections closed, unless they are already: nothing is left to be told."""
        if self._sides:
            await self.exchange([LAST], [LAST])

    async def _hold(self, step: Hold, data: Sequence[bytes]) -> None:
        company = Talk(self._world, self._cursors)
        try:
            if step.company:
                await company.park([data[0]], 1)
            first = data[:1] if step.later else data
            await self.park(list(_cut(b"".join(first), step.cuts)), 1 + step.company)
            if len(first) < len(data):
                await self.park(list(_cut(b"".join(data[1:]), step.cuts)), 1 + step.company)
            self._world.broker.append("news", 0, [b'{"n":4}'])
            await self.exchange([], data)
            if step.company:
                await company.exchange([], data[:1])
        finally:
            company.drop()

    async def park(self, pieces: Sequence[bytes], count: int) -> None:
        """Send a poll, and wait until it is one of `count` that are parked, at each gateway."""
        self._connect()
        for side in self._sides:
            await side.send(pieces)

        def rests() -> bool:
            # What is broken behind it, in one piece with it, is answered at once.
            answered = select.select([side.connection for side in self._sides], [], [], 0)[0]
            asleep = all(parked(gateway) == count for gateway in self._world.gateways)
            return len(answered) == len(self._sides) or (not answered and asleep)

        await eventually(rests, interval=0.001)

    def _connect(self) -> None:
        for gateway in self._world.gateways[len(self._sides) :]:
            connection = socket.create_connection(("127.0.0.1", gateway.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sides.append(Side(connection))


def _cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    ends = sorted({place % len(data) for place in places} - {0})
    for begin, end in zip([0, *ends], [*ends, len(data)], strict=True):
        yield data[begin:end]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        one = World(runner)
        try:
            runner.run(one.start())
            yield one
        finally:
            runner.run(one.stack.aclose())


@given(script=scripts())
def test_a_connection_cannot_tell_whether_there_are_lanes(world: World, script: list[Send | Hold | Append]) -> None:
    """Answers, byte by byte, and the moment of closing are the same."""
    world.runner.run(world.play(script))
