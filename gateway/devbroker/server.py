"""The dev broker: its listeners, and the verbs by which tests and `gateway dev` use it in process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from gateway.devbroker import batches
from gateway.devbroker.cluster import Cluster, Node
from gateway.devbroker.connection import Connection
from gateway.devbroker.faults import Faults
from gateway.devbroker.groupanswers import place
from gateway.devbroker.parking import Parking
from gateway.devbroker.protocol import EVERYTHING
from gateway.devbroker.schemas import Api
from gateway.records import Record

# A value, a key and a value, or a whole record (whose offset is not looked at).
Produced = bytes | None | tuple[bytes | None, bytes | None] | Record
UPKEEP_SECONDS = 1.0
# Free ports are sought below those that Linux gives to clients: a port from there could be taken by any client while the
# broker is stopped, even by one that tries to reach it (TCP connects to itself if source and target port are equal).
FIRST_PORT, PORTS = 20_000, 12_000


class Listener:
    """One node's port and its connections. Stopping it closes both; starting it again takes the same port."""

    def __init__(self, node: Node, serve: Callable[[Node, asyncio.StreamReader, asyncio.StreamWriter], Connection]) -> None:
        self.node = node
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None) -> None:
        """Listen; the port is chosen on the first start and kept. OSError when a given one is taken."""
        # Before the port is open: the first connection may come while start_server still waits.
        self.node.up = True
        try:
            self._server = await self._listen(tls)
        except OSError:
            self.node.up = False
            raise

    async def _listen(self, tls: ssl.SSLContext | None) -> asyncio.Server:
        while not self.node.port:
            port = FIRST_PORT + secrets.randbelow(PORTS)
            with contextlib.suppress(OSError):
                server = await asyncio.start_server(self._accept, self.node.host, port, ssl=tls)
                self.node.port = port
                return server
        return await asyncio.start_server(self._accept, self.node.host, self.node.port, ssl=tls)

    async def stop(self) -> None:
        """Close the port and all connections, as a killed broker does."""
        self.node.up = False
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close all connections; the port stays open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("streams call this in a task")
        if not self.node.up:
            # Accepted in the moment in which the node was stopped.
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await self._serve(self.node, reader, writer).serve()
        except asyncio.CancelledError:
            # Only stop() and disconnect() cancel, and streams would log it as an error.
            return
        finally:
            self._tasks.discard(task)


class Broker:
    """A Kafka broker, or several nodes of one, in this process.

    `port` 0 takes a free one; with several nodes only the first has a fixed port. `retention_ms` and `retention_bytes` are
    defaults for new topics, None for no limit. `newest` makes it an older broker: {Api.METADATA: 9} has no topic ids.
    `clock` gives Unix time in seconds. `tls` makes it listen with TLS.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        nodes: int = 1,
        auto_create: bool = False,
        default_partitions: int = 1,
        retention_ms: int | None = None,
        retention_bytes: int | None = None,
        newest: Mapping[Api, int] = EVERYTHING,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = {"retention.ms": retention_ms, "retention.bytes": retention_bytes}
        self.cluster = Cluster(
            new_id=lambda: uuid.uuid4().bytes,
            auto_create=auto_create,
            default_partitions=default_partitions,
            configs={name: str(value) for name, value in limits.items() if value is not None},
            newest=newest,
        )
        self.requests: Counter[Api] = Counter()
        self._parking = Parking()
        self.faults = Faults(self._parking.wake_all)
        self._tls = tls
        self._clock = clock
        self._upkeep: asyncio.Task[None] | None = None
        self.cluster.changed = self._parking.wake
        self.cluster.groups.changed = lambda group: self._parking.wake(*place(group))
        self._listeners: dict[int, Listener] = {}
        for node_id in range(1, nodes + 1):
            node = Node(node_id, host, port if node_id == 1 else 0, up=False)
            self.cluster.nodes[node_id] = node
            self._listeners[node_id] = Listener(node, self._connection)

    def _connection(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Connection:
        return Connection(
            reader,
            writer,
            node_id=node.node_id,
            cluster=self.cluster,
            faults=self.faults,
            parking=self._parking,
            counts=self.requests,
            clock=self._clock,
        )

    @property
    def address(self) -> str:
        """The first node's host:port; known after the first start."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """The host:port of each node."""
        return [f"{node.host}:{node.port}" for node in self.cluster.nodes.values()]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all nodes that are not running; data of an earlier run is still there. OSError if a given port is taken."""
        try:
            for listener in self._listeners.values():
                if not listener.node.up:
                    await listener.start(self._tls)
        except OSError:
            await self.stop()
            raise
        if self._upkeep is None:
            self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())

    async def stop(self) -> None:
        """Stop all nodes and drop their connections; the data stays. Faults that stall are left on."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
            self._upkeep = None
        for listener in self._listeners.values():
            await listener.stop()

    async def start_node(self, node_id: int) -> None:
        """Start one node on its old port."""
        await self._listeners[node_id].start(self._tls)

    async def stop_node(self, node_id: int) -> None:
        """Stop one node: its partitions have no leader until it is back or `move_leader` gives them one."""
        await self._listeners[node_id].stop()

    async def disconnect(self) -> None:
        """Close all connections now; clients may connect again at once."""
        for listener in self._listeners.values():
            await listener.disconnect()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.cluster.upkeep(self._clock())

    def create_topic(self, name: str, partitions: int = 1, **configs: str) -> bytes:
        """Create a topic and return its id. Configs by Kafka's names, with _ for each dot: retention_ms="1000"."""
        return self.cluster.create(name, partitions, _dotted(configs)).topic_id

    def configure(self, name: str, **configs: str) -> None:
        """Change a topic's configs."""
        self.cluster.configure(name, _dotted(configs))

    def delete_topic(self, name: str) -> None:
        """Delete a topic; created again it has another id and begins at offset 0."""
        self.cluster.delete(name)

    def add_partitions(self, name: str, count: int) -> None:
        """Raise a topic's number of partitions to `count`."""
        self.cluster.grow(name, count)

    def append(
        self,
        topic: str,
        partition: int,
        records: Iterable[Produced],
        *,
        timestamp_ms: int | None = None,
        codec: str = "none",
    ) -> int:
        """Append records as one batch and return the first one's offset.

        `timestamp_ms` is for those that are not whole records; default now. `codec`: none, gzip, snappy, lz4 or zstd.
        """
        stamp = int(self._clock() * 1000) if timestamp_ms is None else timestamp_ms
        batch = batches.build([_record(one, stamp) for one in records], codec=codec)
        return self.cluster.append(topic, partition, [batch], self._clock())[0]

    def append_raw(self, topic: str, partition: int, data: bytes) -> int:
        """Append encoded batches or message sets of any format and return the first offset."""
        return self.cluster.append(topic, partition, batches.parse(data), self._clock())[0]

    def transaction(self, transactional_id: str = "in-process", *, seconds: float = 60.0) -> OpenTransaction:
        """Begin a transaction in process."""
        return OpenTransaction(self.cluster, transactional_id, seconds, self._clock)

    def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Delete the records below an offset (-1: all) and return the log start."""
        return self.cluster.delete_before(topic, partition, before_offset)

    def compact(self, topic: str, partition: int, keep: Callable[[Record], bool] | None = None) -> int:
        """Compact one partition now and return how many records went; `keep` in place of "newest of each key"."""
        return self.cluster.partition(topic, partition).log.compact(keep)

    def expire(self, now: float | None = None) -> None:
        """Apply retention and transaction time-outs now, or as of a Unix time."""
        self.cluster.upkeep(self._clock() if now is None else now)

    def move_leader(self, topic: str, partition: int, node_id: int) -> None:
        """Make another node the leader of a partition; its leader epoch rises."""
        self.cluster.lead(topic, partition, node_id)

    def leader(self, topic: str, partition: int) -> int:
        """Return the id of the node that leads a partition."""
        return self.cluster.partition(topic, partition).leader

    def topic_id(self, topic: str) -> bytes:
        """Return a topic's id, 16 bytes."""
        return self.cluster.topic(topic).topic_id

    def start_offset(self, topic: str, partition: int) -> int:
        """Return the log start offset."""
        return self.cluster.partition(topic, partition).log.start

    def end_offset(self, topic: str, partition: int, *, committed: bool = True) -> int:
        """Return the last stable offset, or without `committed` the high watermark (both exclusive)."""
        return self.cluster.partition(topic, partition).log.bound(committed=committed)

    def records(self, topic: str, partition: int) -> list[Record]:
        """Decode all that a partition holds, whatever its transactions became."""
        return self.cluster.partition(topic, partition).log.records()

    def parked(self, topic: str, partition: int) -> int:
        """Return how many fetches wait for a partition."""
        return self._parking.count(topic, partition)

    async def until_parked(self, topic: str, partition: int, count: int = 1) -> None:
        """Wait until so many fetches wait for a partition."""
        await self._parking.until_parked(topic, partition, count)


class OpenTransaction:
    """A transaction of an in-process producer: append, then commit or abort."""

    def __init__(self, cluster: Cluster, transactional_id: str, seconds: float, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._name = transactional_id
        self.producer_id, self._epoch, ending = cluster.transactions.register(transactional_id, seconds)
        if ending is not None:
            cluster.finish(ending, clock())
        self._sequences: Counter[tuple[str, int]] = Counter()

    def append(self, topic: str, partition: int, records: Iterable[Produced], *, codec: str = "none") -> int:
        """Append records as one transactional batch and return the first one's offset."""
        now = self._clock()
        place = (topic, partition)
        self._cluster.transactions.add(self._name, self.producer_id, self._epoch, {place}, now)
        whole = [_record(one, int(now * 1000)) for one in records]
        producer = (self.producer_id, self._epoch, self._sequences[place])
        batch = batches.build(whole, codec=codec, producer=producer, transactional=True)
        self._sequences[place] += len(whole)
        return self._cluster.append(topic, partition, [batch], now)[0]

    def commit(self) -> None:
        """Make the records visible at read_committed."""
        self._end(commit=True)

    def abort(self) -> None:
        """Make the records vanish at read_committed."""
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        ending = self._cluster.transactions.end(self._name, self.producer_id, self._epoch, commit=commit)
        self._cluster.finish(ending, self._clock())


def _dotted(configs: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): str(value) for name, value in configs.items()}


def _record(one: Produced, timestamp_ms: int) -> Record:
    if isinstance(one, Record):
        return one
    key, value = one if isinstance(one, tuple) else (None, one)
    return Record(0, timestamp_ms, key, value)
