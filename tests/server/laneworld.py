"""Lanes without sockets: transports and an HTTP framework that only take notes, a Kafka of lists, clocks set by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fanout.fakekafka import FakeKafka
from multidict import CIMultiDict

from gateway.auth.principal import KeyRef, Principal
from gateway.fanout.cursor import encode
from gateway.fanout.hub import Hub
from gateway.fanout.reader import Reader
from gateway.fanout.subscription import Selection, Subscription
from gateway.lifecycle import Lifecycle
from gateway.limits import Slots, TokenBuckets
from gateway.metrics import CounterFamily, Metrics
from gateway.server.accesslog import AccessLog
from gateway.server.arming import Arming, cut
from gateway.server.crowd import CURSOR
from gateway.server.lane import Lane
from gateway.server.lanes import Facts, Lanes
from gateway.server.parking import Parking

UNIX = 1_795_334_400.0
PEER, ADDRESS = "192.0.2.1", "198.51.100.7"


class Clock:
    """A clock that is set by hand; each look at it moves it on by `step`."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Transport(asyncio.Transport):
    """Notes what is done to it. While `full`, the socket leaves `unsent` bytes over; `failing` is what a write raises."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = b""
        self.ended = ""
        self.full = False
        self.unsent = 0
        self.failing: Exception | None = None
        self.high_water: int | None = None

    def write(self, data: bytes) -> None:
        if self.failing is not None:
            raise self.failing
        self.written += data
        if self.full:
            self.unsent += len(data)
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent if self.full else 0

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_water = high


class Http(asyncio.Protocol):
    """Stands for the framework's connection: what it gets was replayed."""

    def __init__(self) -> None:
        self.received = b""
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.received += data


class Connection:
    """The connection that a handler gives away."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def maker(self) -> Callable[[], Http]:
        return Http

    def leave(self) -> Transport:
        return self.transport


class Answer:
    """One answer as it was written."""

    def __init__(self, line: str, fields: list[str], body: bytes) -> None:
        self.status = int(line.split()[1])
        self.fields = dict(field.split(": ", 1) for field in fields)
        self.body: Any = json.loads(body) if body else None

    @property
    def cursor(self) -> str:
        return self.fields["Next-Cursor"]

    @property
    def offsets(self) -> list[int]:
        return [message["offset"] for message in self.body["messages"]] if self.body else []

    @property
    def closes(self) -> bool:
        return self.fields.get("Connection") == "close"


def answers(written: bytes) -> list[Answer]:
    """Take apart what was written to a transport."""
    found = []
    while written:
        head, _, written = written.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        length = next((int(field[16:]) for field in fields if field.startswith("Content-Length: ")), 0)
        found.append(Answer(line, fields, written[:length]))
        written = written[length:]
    return found


class Client:
    """One connection and what its client sends; `head` has the cursor's place in it."""

    def __init__(self, world: World, head: bytes) -> None:
        self.world = world
        self.head = head
        self.transport = Transport()
        self.facts: Facts | None = None
        self.seen = 0  # answers that a model has looked at

    def __repr__(self) -> str:
        return repr(self.transport.protocol)

    @property
    def lane(self) -> Lane:
        assert isinstance(self.transport.protocol, Lane), "it was replayed"
        return self.transport.protocol

    @property
    def parked(self) -> bool:
        return isinstance(self.transport.protocol, Lane) and self.lane.cohort is not None

    @property
    def replayed(self) -> bytes | None:
        protocol = self.transport.protocol
        return protocol.received if isinstance(protocol, Http) else None

    @property
    def answers(self) -> list[Answer]:
        return answers(self.transport.written)

    @property
    def answer(self) -> Answer:
        [*_, last] = self.answers
        return last

    @property
    def outcomes(self) -> list[int]:
        return [answer.status for answer in self.answers]

    def request(self, cursor: str | None = None) -> bytes:
        """Return a poll with a cursor: the given one, that of the last answer, or the end of the tails."""
        if cursor is None:
            cursor = self.answer.cursor if self.transport.written else self.world.end(*self.world.topics_of(self.head))
        return self.head.replace(b"%", cursor.encode())

    def poll(self, cursor: str | None = None) -> Client:
        self.send(self.request(cursor))
        return self

    def send(self, data: bytes) -> None:
        self.transport.protocol.data_received(data)

    def lose(self) -> None:
        self.transport.protocol.connection_lost(None)

    def drained(self) -> None:
        """Let the socket take all."""
        self.transport.full = False
        self.transport.protocol.resume_writing()


class Log:
    """Keeps access lines."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def add(self, line: bytes) -> None:
        self.raw.append(line)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]


class World:
    """Everything that lanes need. Topics a (two partitions) and b, each with a channel of its name."""

    def __init__(
        self,
        *,
        polls: TokenBuckets | None = None,
        addresses: TokenBuckets | None = None,
        quota: int = 1_000,
        total: int = 10_000,
        sample: float | None = None,
        armed: int = 100,
        keepalive: float = 75.0,
        tail_budget: int = 2**20,
    ) -> None:
        self.clock, self.unix = Clock(1_000.0), Clock(UNIX)
        self.parking = Parking(clock=self.clock)
        self.hub = Hub(budget=2**20, tail_budget=tail_budget, on_woken=self.parking.woken)
        self.parking.attach(self.hub)
        self.kafka = FakeKafka(self.hub)
        self.reader = Reader(self.hub, self.kafka)
        self.slots = Slots(quota=quota, total=total)
        self.metrics = Metrics(version="1")
        self.log = Log()
        self.lanes = Lanes(
            hub=self.hub,
            reader=self.reader,
            arming=Arming(bound=armed, ignored=("X-Request-Id",), secret=b"s"),
            polls=polls,
            addresses=addresses,
            slots=self.slots,
            metrics=self.metrics,
            access_log=None if sample is None else AccessLog(self.log, sample=sample, clock=self.unix),
            route="/v1/subscribe",
            keepalive=keepalive,
            head_timeout=10.0,
            clock=self.clock,
            unix_clock=self.unix,
        )
        self._principals: dict[Principal, Principal] = {}
        for name, partitions in (("a", 2), ("b", 1)):
            self.kafka.create(name, partitions)

    def end(self, *topics: str) -> str:
        """Return the cursor at the end of the tails."""
        return encode({name: self.hub.topics[name].position for name in topics or ("a",)})

    def at(self, topic: str, *offsets: int) -> str:
        """Return the cursor of these offsets."""
        return encode({topic: self.hub.topics[topic].position._replace(offsets=dict(enumerate(offsets)))})

    def topics_of(self, head: bytes) -> list[str]:
        query = head.split(b" ")[1].partition(b"?")[2].decode()
        return [value for name, _, value in (field.partition("=") for field in query.split("&")) if name == "channel"]

    def client(
        self,
        *topics: str,
        wait: float = 30.0,
        subject: str = "ann",
        expires: float | None = None,
        signed_by: KeyRef | None = None,
        key: bytes | None = None,
        cursor: str | None = None,
        more: str = "",
        limit: int = 100,
        or_none: bool = False,
        sunset: float | None = None,
    ) -> Client:
        """Let a client's poll be handed over; `expires` and `sunset` are seconds from now.

        `or_none`: or stay with the framework.
        """
        topics = topics or ("a",)
        channels = "".join(f"channel={topic}&" for topic in topics)
        target = f"/v1/subscribe?{channels}wait={wait:g}&key={(key or b'').decode()}&limit={limit}&cursor=%"
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {subject}\r\n{more}\r\n".encode()
        client = Client(self, head)
        expires_at = None if expires is None else self.unix.now + expires
        # One token is one principal, as with the authenticator's cache.
        given = Principal("test", subject, {}, frozenset(), expires_at, signed_by)
        principal = self._principals.setdefault(given, given)
        successor = None if sunset is None else "/v2"
        lifecycle = Lifecycle(sunset=None if sunset is None else self.unix.now + sunset, successor=successor)
        selections = tuple(Selection(topic, topic, topic, key, lifecycle=lifecycle) for topic in topics)
        facts = Facts(Subscription(selections, limit), wait, principal, ADDRESS, PEER)
        link = f'<{target.replace("%", CURSOR)}>; rel="next"'
        fields = CIMultiDict(
            {
                "Content-Type": "application/json",
                "Next-Cursor": CURSOR,
                "Link": link,
                "X-Request-Id": "1",
                "RateLimit": "x",
            }
        )
        fields.extend(facts.subscription.announcement.fields)
        parts = cut(client.request(cursor))
        assert parts is not None
        handover = self.lanes.offer(parts, facts, fields)
        client.facts = facts
        if handover is not None:
            handover.take(Connection(client.transport))
        else:
            assert or_none, "the tails cannot tell"
        return client

    def say(self, topic: str = "a", *keys: bytes | None, partition: int = 0, at: int | None = None) -> None:
        """Append a record for each key (one without, if none is given)."""
        self.kafka.say(topic, partition, *(keys or (None,)), at=int(self.unix.now * 1_000) if at is None else at)

    async def turn(self, most: int = 10_000) -> int:
        """Let the loop turn until nothing is under way; return how often it did."""
        for turns in range(most):
            if not self.parking._scheduled and not len(self.lanes._deliveries):
                return turns
            await asyncio.sleep(0)
        return most

    def pass_(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        for _ in range(round(seconds * 10)):
            self.clock.now = round(self.clock.now + 0.1, 6)
            self.unix.now = round(self.unix.now + 0.1, 6)
            self.lanes.tick()

    async def after(self, seconds: float) -> None:
        """Let time pass, and what that brings."""
        self.pass_(seconds)
        await self.turn()

    def counted(self, family: CounterFamily) -> dict[str, float]:
        """Return what was counted, by the last label."""
        return {labels[-1]: series.value for labels, series in family._series.items() if series.value}


def held(world: World) -> tuple[int, int]:
    """Return the slots that are taken, and the lanes that are parked: always the same."""
    parked = sum(lane.cohort is not None for lane in world.lanes._lanes)
    assert world.slots.held == parked
    assert sum(holder.held for holder in world.slots._holders.values()) == parked
    return world.slots.held, parked
