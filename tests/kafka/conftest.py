"""What the tests of gateway/kafka share: an observer that remembers, logs on the dev broker and on Apache Kafka."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from integration.brokers import BrokerHandle
from integration.dev_broker import DevHandle
from waiting import eventually

from gateway.devbroker.server import Broker
from gateway.fanout.hub import Hub
from gateway.kafka.connect import KafkaSettings
from gateway.kafka.log import KafkaLog
from gateway.records import Record


class Watch:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.fetches: list[tuple] = []
        self.cold: list[tuple] = []
        self.hits = 0
        self.skips: list[tuple] = []
        self.ups: list[bool] = []
        self.stored: list[tuple] = []

    def kafka_error(self, name: str) -> None:
        self.errors[name] += 1

    def fetched(self, topic: str, partition: int, *, records: int, size: int, lag: int, unstable: int) -> None:
        self.fetches.append((topic, partition, records, size, lag, unstable))

    def cold_read(self, topic: str, *, records: int, size: int) -> None:
        self.cold.append((topic, records, size))

    def cold_hit(self, topic: str) -> None:
        self.hits += 1

    def skipped(self, topic: str, partition: int, start: int, end: int) -> None:
        self.skips.append((topic, partition, start, end))

    def connected(self, up: bool) -> None:
        self.ups.append(up)

    def produced(self, topic: str, *, records: int, size: int) -> None:
        self.stored.append((topic, records, size))


class Rig:
    """A hub, a KafkaLog that feeds it, and its observer."""

    def __init__(self, address: str, **options) -> None:
        settings = {"request_timeout": 3.0, "metadata_max_age": 0.3} | {
            name: options.pop(name) for name in KafkaSettings.__dataclass_fields__ if name in options
        }
        self.hub = Hub(budget=1 << 28, tail_budget=1 << 26)
        self.watch = Watch()
        self.log = KafkaLog(KafkaSettings((address,), **settings), self.hub, observer=self.watch, **options)

    async def follow(self, topic: str):
        return await self.log.follow(topic, time.monotonic())

    def held(self, topic: str, partition: int = 0) -> list[Record]:
        """Return the records of a tail."""
        tail = self.hub.topics[topic].tails.get(partition)
        return list(tail.since(0, None, 1 << 30)) if tail is not None else []

    def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.held(topic, partition)]

    async def has(self, topic: str, count: int, partition: int = 0, **options) -> list[bytes | None]:
        """Wait until a tail holds `count` records and return their values."""
        await eventually(lambda: len(self.held(topic, partition)) >= count, **options)
        return self.values(topic, partition)

    async def cold(self, topic: str, partition: int, start: int, until: int) -> list[Record]:
        """Read [start, until) through the archive as a reader does."""
        found, at = [], start
        while at < until:
            block = await self.log.read(topic, partition, at, until)
            assert block.start <= at < block.end, (block.start, at, block.end)
            found += [record for record in block.records if at <= record.offset < until]
            at = block.end
        return found


@pytest.fixture
async def rig() -> AsyncIterator[Callable[..., Rig]]:
    """Start a KafkaLog: `rig(address, **options)`; options of KafkaSettings and of KafkaLog."""
    rigs: list[Rig] = []

    async def start(address: str, **options) -> Rig:
        one = Rig(address, **options)
        await one.log.start()
        rigs.append(one)
        return one

    yield start
    for one in rigs:
        await one.log.stop()


@pytest.fixture
async def dev() -> AsyncIterator[Broker]:
    """One dev broker with the topic `t` of three partitions."""
    async with Broker() as broker:
        broker.create_topic("t", 3)
        yield broker
        broker.faults.clear()


@pytest.fixture
async def dev_handle() -> AsyncIterator[DevHandle]:
    async with DevHandle() as handle:
        yield handle


@pytest.fixture(params=["dev_handle", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> BrokerHandle:
    """Run the test against the dev broker and again against Apache Kafka."""
    return request.getfixturevalue(request.param)


@contextlib.asynccontextmanager
async def counting(log: KafkaLog) -> AsyncIterator[Counter[str]]:
    """Count the requests that a log sends, by the name of their class."""
    sent: Counter[str] = Counter()
    connections = log.cluster.connections
    plain = connections.send

    async def send(address, request, **options):
        sent[type(request).__name__] += 1
        return await plain(address, request, **options)

    connections.send = send
    try:
        yield sent
    finally:
        connections.send = plain


@pytest.fixture
def count_requests() -> Callable[[KafkaLog], contextlib.AbstractAsyncContextManager[Counter[str]]]:
    return counting


async def _settled(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.fixture
def pass_time() -> Callable:
    """Let time pass where the test is that nothing happens in it."""
    return _settled
