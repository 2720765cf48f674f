"""Every client gets exactly its records, in partition order, none twice: with many clients that come and go, and over instances."""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import defaultdict

from integration.brokers import BrokerHandle, Message
from integration.clients import Client, by_partition
from integration.gateways import Instance, running
from waiting import eventually

log = logging.getLogger(__name__)

ROOMS = 50
PARTITIONS = 6
# The dev broker shares its loop with the gateway and the clients.
SIZES = {"dev": (200, 4_000), "apache": (1_000, 20_000)}

CHANNELS = {
    "chat/{room}": {"topic": "", "key": "{room}"},
    "direct/{room}": {"topic": "", "key": "{room}", "partitioner": "murmur2"},
}


def channels(topic: str) -> dict[str, dict[str, object]]:
    return {pattern: {**channel, "topic": topic} for pattern, channel in CHANNELS.items()}


def channel(room: int) -> str:
    """Half of the rooms read one partition only, the other half all of them."""
    return f"direct/{room}" if room % 2 else f"chat/{room}"


def messages(count: int, rng: random.Random) -> list[Message]:
    """Spread records over rooms, and those of the rooms that read every partition over the partitions."""
    found = []
    for number in range(count):
        room = rng.randrange(ROOMS)
        partition = None if room % 2 else rng.randrange(PARTITIONS)
        found.append(Message(json.dumps(number).encode(), str(room).encode(), partition))
    return found


async def produce_in_bursts(
    broker: BrokerHandle, topic: str, given: list[Message], rng: random.Random
) -> dict[int, dict[int, list[int]]]:
    """Write records in bursts, and return the offsets of each room's records by partition."""
    written: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    at = 0
    while at < len(given):
        burst = given[at : at + rng.randrange(1, 1_600)]
        at += len(burst)
        for message, place in zip(burst, await broker.produce(topic, *burst), strict=True):
            written[int(message.key or b"")][place.partition].append(place.offset)
        await asyncio.sleep(rng.random() * 0.2)
    return {room: dict(partitions) for room, partitions in written.items()}


class Visitor:
    """A client that leaves one poll in ten at a moment of its choice, stays away, and comes back with the cursor that it has."""

    def __init__(self, client: Client, room: int, seed: int) -> None:
        self.client = client
        self.room = room
        self.left = 0
        self._rng = random.Random(seed)

    async def read(self) -> None:
        """Poll for ever."""
        while True:
            if self._rng.random() < 0.1:
                await self._leave()
            else:
                Client.check(await self.client.poll(wait=20, limit=1000))

    def has(self, count: int) -> bool:
        """Tell whether so many messages have come."""
        return len(self.client.chain) >= count

    async def _leave(self) -> None:
        self.left += 1
        try:
            async with asyncio.timeout(self._rng.random() * 0.3):
                await self.client.poll(wait=20, limit=1000)
        except TimeoutError:
            self.client.drop()
        await asyncio.sleep(self._rng.random() * 0.3)


async def test_a_thousand_clients_get_exactly_their_records(broker: BrokerHandle):
    """Clients of keyed channels that come and go: all records of the room, in partition order, none twice."""
    clients, records = SIZES[broker.kind]
    rng = random.Random(7)
    topic = await broker.create_topic(partitions=PARTITIONS)
    began = time.monotonic()
    async with running(broker.address, channels(topic)) as instance, asyncio.timeout(100):
        visitors = [
            Visitor(instance.client(channel(n % ROOMS), subject=f"s{n}", start="earliest"), n % ROOMS, seed=n)
            for n in range(clients)
        ]
        reading = asyncio.gather(*(visitor.read() for visitor in visitors))
        written = await produce_in_bursts(broker, topic, messages(records, rng), rng)
        produced = time.monotonic()
        counts = {room: sum(map(len, partitions.values())) for room, partitions in written.items()}
        await eventually(lambda: reading.done() or all(v.has(counts[v.room]) for v in visitors), timeout=60, interval=0.02)
        ended = time.monotonic()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        for visitor in visitors:
            assert by_partition(visitor.client.chain.spots) == written[visitor.room]
            assert not visitor.client.chain.lost
            visitor.client.drop()
        for visitor in rng.sample(visitors, 50):
            assert (await visitor.client.poll(wait=0)).status == 204
        assert (await instance.metrics())["gateway_lost_records_total"] == 0
    log.info(
        "%s: %.1f s, %.1f s after the last record; %d polls were left, %d answered",
        broker.kind,
        ended - began,
        ended - produced,
        sum(visitor.left for visitor in visitors),
        sum(visitor.client.answers for visitor in visitors),
    )


async def test_a_cursor_goes_on_at_another_instance(broker: BrokerHandle):
    """Clients that change the instance at every poll, while records flow, get each record once."""
    rng = random.Random(11)
    topic = await broker.create_topic(partitions=PARTITIONS)
    every = {"all": {"topic": topic}, **channels(topic)}
    async with running(broker.address, every) as one, running(broker.address, every) as other, asyncio.timeout(60):
        rooms = list(range(20)) * 2
        clients = [one.client(channel(room), start="earliest") for room in rooms]
        clients += [one.client("all", start="earliest", limit=limit) for limit in (1, 7, 1000)]
        for client in clients:
            await client.begin()

        async def hop(client: Client, seed: int, done: asyncio.Event) -> None:
            own = random.Random(seed)
            while True:
                last = done.is_set()
                client.turn_to(own.choice((one.port, other.port)))
                answer = client.check(await client.poll(wait=0.2 if not last else 0))
                if last and answer.status == 204:
                    return

        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for seed, client in enumerate(clients):
                group.create_task(hop(client, seed, done))
            written = await produce_in_bursts(broker, topic, messages(1_500, rng), rng)
            # What one instance has shown, the other may have yet to read.
            await asyncio.gather(*(caught_up(instance, broker, topic) for instance in (one, other)))
            done.set()
        for room, client in zip(rooms, clients, strict=False):
            assert by_partition(client.chain.spots) == written.get(room, {})
        whole: dict[int, list[int]] = defaultdict(list)
        for partitions in written.values():
            for partition, offsets in partitions.items():
                whole[partition] = sorted([*whole[partition], *offsets])
        for client in clients[len(rooms) :]:
            assert by_partition(client.chain.spots) == whole
        assert not any(client.chain.lost for client in clients)


async def caught_up(instance: Instance, broker: BrokerHandle, topic: str) -> None:
    """Wait until an instance has read all of a topic."""
    ends = {partition: end for partition, (_, end) in (await broker.offsets(topic)).items()}
    await eventually(lambda: instance.gateway.hub.topic(topic).position.offsets == ends)


async def test_a_cursor_ahead_of_an_instance_waits_for_it(dev):
    """A cursor that an instance has not caught up with yet is not answered with an error: the poll parks, and goes on from there."""
    topic = await dev.create_topic(partitions=2)
    every = {"all": {"topic": topic}}
    async with running(dev.address, every) as one, running(dev.address, every) as other:
        client = one.client("all", start="earliest")
        await client.begin()
        await other.client("all").begin()
        # The feed of the second instance is late, while the leader answers its questions as ever.
        lanes = list(other.gateway.kafka.feed._lanes.values())
        held_up = [(lane, live) for lane in lanes for live in lane.members.values()]
        for lane, live in held_up:
            lane.remove(live)
        await dev.produce(topic, Message(b"1", partition=0), Message(b"2", partition=1))
        await client.read(2)
        client.turn_to(other.port)
        parked = other.park(client)
        await eventually(lambda: other.parked == 1)
        for lane, live in held_up:
            lane.add(live)
        await dev.produce(topic, Message(b"3", partition=1))
        assert (await asyncio.wait_for(parked, 5)).messages[0]["value"] == 3
        assert client.chain.values == [1, 2, 3]
