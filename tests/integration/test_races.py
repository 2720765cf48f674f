"""A race hunt: polls timed against appends. A wake-up that is missed shows as a poll that sleeps over its record."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from integration.brokers import BrokerHandle
from integration.clients import Client
from integration.gateways import Instance, running

log = logging.getLogger(__name__)

POLLS = 10_000
CLIENTS = 16
# A poll may sleep over a record for so long, in seconds, not counting times in which the loop itself stood still.
MOST = 0.1
# A missed wake-up would last until here.
WAIT = 5


class Stalls:
    """Times in which the loop, which the gateway shares with the clients and the test, did not turn: a busy machine, not a race."""

    TICK = 0.005

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(self.TICK)
            ended = time.monotonic()
            if ended - began > 2 * self.TICK:
                self._found.append((began + self.TICK, ended))

    def within(self, start: float, end: float) -> float:
        """Return the seconds of stalls between two moments."""
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in self._found)

    @property
    def longest(self) -> float:
        """The longest one, in seconds."""
        return max((until - since for since, until in self._found), default=0.0)


class Hunt:
    """Runs polls against appends and keeps how long each one slept over its record."""

    def __init__(self, instance: Instance, producer: AIOKafkaProducer, topic: str) -> None:
        self.waited: list[tuple[float, float]] = []
        self.after_ack: list[float] = []
        self.stalls = Stalls()
        self._producer = producer
        self._topic = topic
        self._readable: dict[int, float] = {}
        hub = instance.gateway.hub
        append = hub.append

        def spy(name, partition, records, **bounds):
            now = time.monotonic()
            for record in records:
                self._readable[orjson.loads(record.value)] = now
            return append(name, partition, records, **bounds)

        hub.append = spy

    @property
    def slept(self) -> list[float]:
        """How long each poll slept over its record, in seconds: from when the gateway had it to the answer."""
        return [max(0.0, end - start - self.stalls.within(start, end)) for start, end in self.waited]

    async def run(self, client: Client, key: bytes, numbers: range, seed: int) -> None:
        """Let one client poll for one record at a time."""
        rng = random.Random(seed)
        for number in numbers:
            await self._race(client, key, number, rng.uniform(-0.003, 0.005))

    async def _race(self, client: Client, key: bytes, number: int, delay: float) -> None:
        """Append a record `delay` seconds after (negative: before) a poll is sent, and wait for its answer."""

        async def produce() -> float:
            await asyncio.sleep(max(0.0, delay))
            await self._producer.send_and_wait(self._topic, b"%d" % number, key)
            return time.monotonic()

        producing = asyncio.ensure_future(produce())
        await asyncio.sleep(max(0.0, -delay))
        sent = time.monotonic()
        answer = Client.check(await client.poll(wait=WAIT))
        answered = time.monotonic()
        acked = await producing
        assert answer.status == 200, f"poll {number} slept over its record"
        assert [message["value"] for message in answer.messages] == [number]
        known = max(sent, acked, self._readable.pop(number))
        self.waited.append((known, answered))
        self.after_ack.append(answered - max(sent, acked))


@asynccontextmanager
async def producing(broker: BrokerHandle) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=broker.address, acks="all")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@pytest.mark.timeout(300)  # a quarter of a minute, but for a machine that is busy with other tests
async def test_ten_thousand_polls_miss_no_wake_up(broker: BrokerHandle):
    """Records appended just before, while and just after a poll arrives: none is slept over."""
    topic = await broker.create_topic(partitions=3)
    channels = {
        "spread/{key}": {"topic": topic, "key": "{key}"},
        "own/{key}": {"topic": topic, "key": "{key}", "partitioner": "murmur2"},
    }
    async with running(broker.address, channels) as instance, producing(broker) as producer, asyncio.timeout(280):
        hunt = Hunt(instance, producer, topic)
        clients = [instance.client(f"{('spread', 'own')[n % 2]}/{n}", start="earliest") for n in range(CLIENTS)]
        for client in clients:
            await client.begin()
        watching = asyncio.ensure_future(hunt.stalls.watch())
        began = time.monotonic()
        each = POLLS // CLIENTS
        async with asyncio.TaskGroup() as group:
            for n, client in enumerate(clients):
                group.create_task(hunt.run(client, b"%d" % n, range(n * each, (n + 1) * each), seed=n))
        watching.cancel()
        slept = hunt.slept
        log.info(
            "%s: %d polls in %.1f s slept at most %.1f ms over a record (%d over 10 ms); from the ack at most %.1f ms, stalls %.0f ms",
            broker.kind,
            len(slept),
            time.monotonic() - began,
            max(slept) * 1000,
            sum(seconds > 0.01 for seconds in slept),
            max(hunt.after_ack) * 1000,
            hunt.stalls.longest * 1000,
        )
        assert len(slept) == POLLS
        late = [round(seconds, 3) for seconds in slept if seconds > MOST]
        assert not late


async def test_one_channel_is_read_by_many_at_each_moment(broker: BrokerHandle):
    """A stream of records to clients that all poll the same channel at moments of their own: each one's chain is complete."""
    topic = await broker.create_topic(partitions=1)
    async with (
        running(broker.address, {"all": {"topic": topic}}) as instance,
        producing(broker) as producer,
        asyncio.timeout(60),
    ):
        clients = [instance.client("all", start="earliest", limit=1 + n % 5) for n in range(20)]
        for client in clients:
            await client.begin()
        reading = [asyncio.ensure_future(client.read(500, timeout=50, wait=WAIT)) for client in clients]
        rng = random.Random(3)
        for number in range(500):
            await producer.send_and_wait(topic, b"%d" % number)
            await asyncio.sleep(rng.random() * 0.004)
        for chain in await asyncio.gather(*reading):
            assert chain.values == list(range(500))
