"""Everything at once, by chance: what clients get is compared with what is in the log.

A seed decides what happens to a cluster of three dev brokers (batches of all codecs, transactions, new leaders, lost connections,
stopped nodes, errors, stalls, new partitions, retention) and what clients do meanwhile (leave, rest, change the instance). In the
end each chain must hold every record of its channel once, in the order of its partition, or have been told that it is lost.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable

import pytest
from integration.clients import Client, by_partition
from integration.gateways import Instance, running

from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker, OpenTransaction
from gateway.fanout.cursor import partition_for

NODES, TOPIC = 3, "t"
SECONDS = 3.0
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# NOT_LEADER_OR_FOLLOWER, KAFKA_STORAGE_ERROR, OFFSET_NOT_AVAILABLE, UNKNOWN_LEADER_EPOCH, LEADER_NOT_AVAILABLE.
CODES = (6, 56, 78, 75, 5)
CHANNELS = {
    "all": {"topic": TOPIC, "format": "text"},
    "key/{key}": {"topic": TOPIC, "key": "{key}", "format": "text"},
    "own/{key}": {"topic": TOPIC, "key": "{key}", "format": "text", "partitioner": "murmur2"},
}
# The least memory that can be configured, so that slow clients find their records in the archive.
MEMORY = {"tail_bytes": "64KiB", "tails_bytes": "1MiB", "cold_cache_bytes": "1MiB", "metadata_max_age": 1, "request_timeout": 1}


class Cluster:
    """The brokers, what befalls them, and the visible records: `visible[partition][offset]` is (key, value)."""

    def __init__(self, broker: Broker, rng: random.Random, *, retention: bool) -> None:
        self.broker = broker
        self.visible: dict[int, dict[int, tuple[bytes, str]]] = defaultdict(dict)
        self.partitions = 3
        self._rng = rng
        self._number = 0
        self._open: list[tuple[OpenTransaction, list[tuple[int, int, list[tuple[bytes, bytes]]]]]] = []
        self._healing: list[tuple[float, Callable[[], None]]] = []
        self._down: set[int] = set()
        self._happenings = [self.append] * 12 + [self.begin] * 2 + [self.end] * 3 + [self.lead, self.disconnect, self.stop]
        self._happenings += [self.err, self.err, self.stall, self.drop, self.slow]
        # Not both: a partition that a cursor does not name is read from its log start, and nothing before that is told as lost.
        self._happenings += [self.trim] * 2 if retention else [self.grow]

    async def run(self) -> None:
        """Let things happen for some seconds, then make everything well."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            happening = self._rng.choice(self._happenings)
            done = happening()
            if asyncio.iscoroutine(done):
                await done
            for due, heal in list(self._healing):
                if due < time.monotonic():
                    self._healing.remove((due, heal))
                    heal()
            await asyncio.sleep(self._rng.random() * 0.02)
        self.broker.faults.clear()
        for node in list(self._down):
            await self._start(node)
        while self._open:
            self.end()

    # What happens

    def _batch(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Choose a partition and records for it; keys "o…" keep to the partition of the default partitioner."""
        partition = self._rng.randrange(self.partitions)
        own = [b"o%d" % n for n in range(8) if partition_for(b"o%d" % n, self.partitions) == partition]
        records = []
        for _ in range(self._rng.choice((1, 1, 2, 10, 40))):
            self._number += 1
            key = self._rng.choice([b"k0", b"k1", b"k2", b"k3", *own])
            records.append((key, b"%d " % self._number + b"x" * self._rng.choice((0, 10, 300, 2000))))
        return partition, records

    def _show(self, partition: int, first: int, records: list[tuple[bytes, bytes]]) -> None:
        for offset, (key, value) in enumerate(records, first):
            self.visible[partition][offset] = (key, value.decode())

    def append(self) -> None:
        partition, records = self._batch()
        first = self.broker.append(TOPIC, partition, records, codec=self._rng.choice(CODECS))
        self._show(partition, first, records)

    def begin(self) -> None:
        if len(self._open) < 3:
            self._number += 1
            self._open.append((self.broker.transaction(f"x{self._number}"), []))
            self._within(self._open[-1])

    def _within(self, opened: tuple[OpenTransaction, list[tuple[int, int, list[tuple[bytes, bytes]]]]]) -> None:
        for _ in range(self._rng.randrange(1, 4)):
            partition, records = self._batch()
            opened[1].append((partition, opened[0].append(TOPIC, partition, records), records))

    def end(self) -> None:
        if not self._open:
            return
        opened = self._open.pop(self._rng.randrange(len(self._open)))
        self._within(opened)
        if self._rng.random() < 0.5:
            opened[0].abort()
            return
        opened[0].commit()
        for written in opened[1]:
            self._show(*written)

    def lead(self) -> None:
        up = [node for node in range(1, NODES + 1) if node not in self._down]
        self.broker.move_leader(TOPIC, self._rng.randrange(self.partitions), self._rng.choice(up))

    async def disconnect(self) -> None:
        await self.broker.disconnect()

    async def stop(self) -> None:
        if len(self._down) < NODES - 1:
            node = self._rng.randrange(1, NODES + 1)
            if node not in self._down:
                self._down.add(node)
                await self.broker.stop_node(node)
        else:
            await self._start(min(self._down))

    async def _start(self, node: int) -> None:
        self._down.discard(node)
        await self.broker.start_node(node)

    def _later(self, heal: Callable[[], None], most: float) -> None:
        self._healing.append((time.monotonic() + self._rng.random() * most, heal))

    def err(self) -> None:
        api = self._rng.choice((Api.FETCH, Api.FETCH, Api.LIST_OFFSETS, Api.METADATA))
        fault = self.broker.faults.error(
            self._rng.choice(CODES),
            api,
            topic=TOPIC,
            partition=None if api is Api.METADATA else self._rng.randrange(self.partitions),
        )
        self._later(fault.remove, 0.5)

    def stall(self) -> None:
        self._later(self.broker.faults.stall(node=self._rng.randrange(1, NODES + 1)).remove, 0.4)

    def drop(self) -> None:
        self.broker.faults.drop(Api.FETCH, processed=self._rng.random() < 0.5)

    def slow(self) -> None:
        self._later(self.broker.faults.slow(0.1, Api.FETCH, node=self._rng.randrange(1, NODES + 1)).remove, 0.5)

    def grow(self) -> None:
        if self.partitions < 6 and self._rng.random() < 0.5:
            self.partitions += 1
            self.broker.add_partitions(TOPIC, self.partitions)

    def trim(self) -> None:
        partition = self._rng.randrange(self.partitions)
        end = self.broker.end_offset(TOPIC, partition)
        start = self.broker.start_offset(TOPIC, partition)
        if end > start + 20:
            self.broker.delete_records(TOPIC, partition, self._rng.randrange(start, end - 10))


class Visitor:
    """A client that does as its seed says."""

    def __init__(self, client: Client, channel: str, ports: list[int], seed: int) -> None:
        self.client = client
        self.channel = channel
        self._ports = ports
        self._rng = random.Random(seed)

    async def poll(self, **parameters: float) -> int:
        """Poll once; a broker that is away is not the client's problem, everything else but an answer is a mistake."""
        answer = await self.client.poll(**parameters)
        if answer.status == 503:
            assert answer.document["code"] == "broker_unavailable"
            await asyncio.sleep(0.05)
        else:
            assert answer.status in (200, 204), answer.body
        return answer.status

    async def stray(self) -> None:
        """Poll for ever in all sorts of ways."""
        rng = self._rng
        while True:
            if rng.random() < 0.2:
                self.client.turn_to(rng.choice(self._ports))
            how = {
                "wait": rng.choice((0, 0.05, 0.5, 5)),
                "limit": rng.choice((1, 3, 20, 1000)),
                "max_bytes": rng.choice((1024, 2**20)),
            }
            if rng.random() < 0.15:
                try:
                    async with asyncio.timeout(rng.random() * 0.1):
                        await self.poll(**how)
                except TimeoutError:
                    self.client.drop()
            else:
                await self.poll(**how)
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.5)

    async def finish(self, enough: Callable[[], bool]) -> None:
        """Poll until all that was to come has come, and then see that there is nothing more."""
        while not enough():
            await self.poll(wait=1, limit=1000)
        while await self.poll(wait=0, limit=1000) != 204:
            pass


def wanted(cluster: Cluster, channel: str) -> dict[int, dict[int, str]]:
    """Return the visible values of a channel by partition and offset."""
    key = channel.partition("/")[2].encode()
    found = {
        partition: {offset: value for offset, (own, value) in sorted(records.items()) if not key or own == key}
        for partition, records in cluster.visible.items()
    }
    return {partition: records for partition, records in found.items() if records}


def lost(client: Client) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for entry in client.chain.lost:
        found[entry["partition"]] |= set(range(entry["from"], entry["to"]))
    return found


def check(cluster: Cluster, visitor: Visitor) -> None:
    """Compare a chain with the log."""
    chain, expected, gone = visitor.client.chain, wanted(cluster, visitor.channel), lost(visitor.client)
    came = by_partition(chain.spots)
    for partition in {*came, *expected}:
        offsets = came.get(partition, [])
        assert offsets == sorted(set(offsets)), f"{visitor.channel}: order of partition {partition}"
        missing = {*expected.get(partition, {})} - {*offsets}
        assert missing <= gone[partition], f"{visitor.channel}: partition {partition} lacks {sorted(missing - gone[partition])}"
        assert not {*offsets} & gone[partition], f"{visitor.channel}: lost, and yet delivered"
        assert all(offset < cluster.broker.start_offset(TOPIC, partition) for offset in gone[partition])
    for (partition, offset), value in zip(chain.spots, chain.values, strict=True):
        assert expected[partition][offset] == value


def complete(cluster: Cluster, visitor: Visitor) -> bool:
    gone = lost(visitor.client)
    came = set(visitor.client.chain.spots)
    return all(
        (partition, offset) in came or offset in gone[partition]
        for partition, records in wanted(cluster, visitor.channel).items()
        for offset in records
    )


@pytest.mark.parametrize("retention", [False, True], ids=["all kept", "retention"])
@pytest.mark.parametrize("seed", range(6))
async def test_chains_are_complete_whatever_happens(seed: int, retention: bool):
    """No loss, no double, order within a partition; and nobody is left parked or sick in the end."""
    async with Broker(nodes=NODES) as broker:
        broker.create_topic(TOPIC, 3)
        kafka = {"bootstrap_servers": ",".join(broker.addresses), **MEMORY}
        cluster = Cluster(broker, random.Random(seed), retention=retention)
        async with running(kafka, CHANNELS) as one, running(kafka, CHANNELS) as other, asyncio.timeout(90):
            names = ["all", "all", "all", "all", *(f"key/k{n}" for n in range(4)), *(f"own/o{n}" for n in range(8))]
            visitors = [
                Visitor(one.client(name, start="earliest"), name, [one.port, other.port], seed * 100 + n)
                for n, name in enumerate(names)
            ]
            for visitor in visitors:
                await visitor.poll(wait=0)
            straying = [asyncio.ensure_future(visitor.stray()) for visitor in visitors]
            await cluster.run()
            for task in straying:
                task.cancel()
            for task in straying:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            for visitor in visitors:
                visitor.client.drop()
            try:
                async with asyncio.timeout(45):
                    await asyncio.gather(*(v.finish(lambda v=v: complete(cluster, v)) for v in visitors))
            except TimeoutError:
                for visitor in visitors:
                    check(cluster, visitor)
                raise AssertionError([instance.gateway.kafka for instance in (one, other)]) from None
            for visitor in visitors:
                check(cluster, visitor)
            for instance in (one, other):
                await well(instance)


async def well(instance: Instance) -> None:
    async with asyncio.timeout(15):
        while instance.gateway.kafka.status().sick or instance.parked:
            await asyncio.sleep(0.01)
