"""One handle on a Kafka broker, whichever it is: the dev broker in this process, or Apache Kafka in its own.

A case that takes the fixture `broker` runs against both. Whatever a Kafka client can do itself is done here by aiokafka in the same
way for both; the rest (administration, faults) is each broker's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from waiting import eventually

if TYPE_CHECKING:
    from integration.apache_kafka import ApacheKafka

# The key of the record that `compact` appends to each partition.
FILLER = b"\x00filler"

# Configuration of a topic that `compact` works on: every record starts a segment, and only the newest segment is spared.
COMPACTED = {"cleanup.policy": "compact", "segment.ms": "1", "min.cleanable.dirty.ratio": "0.001"}


@dataclass(frozen=True, slots=True)
class Message:
    """What to produce; `partition` None leaves the choice to Kafka's default partitioner."""

    value: bytes | None = b""
    key: bytes | None = None
    partition: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record was written."""

    partition: int
    offset: int
    timestamp_ms: int | None


class Transaction:
    """An open transaction; left open it is aborted at the end of its `async with`."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._open = True

    async def send(self, topic: str, *messages: Message | bytes) -> list[Place]:
        """Write into the transaction; the records are in the log when this returns, and not yet visible."""
        return await _send(self._producer, topic, messages)

    async def commit(self) -> None:
        """End the transaction; its records are visible."""
        self._open = False
        await self._producer.commit_transaction()

    async def abort(self) -> None:
        """End the transaction; its records are never visible."""
        if self._open:
            self._open = False
            await self._producer.abort_transaction()


async def _send(producer: AIOKafkaProducer, topic: str, messages: Iterable[Message | bytes]) -> list[Place]:
    pending = []
    for given in messages:
        message = Message(given) if isinstance(given, bytes) else given
        sent = await producer.send(
            topic,
            message.value,
            message.key,
            message.partition,
            message.timestamp_ms,
            headers=list(message.headers),
        )
        pending.append(sent)
    await producer.flush()
    written = [await sent for sent in pending]
    return [Place(each.partition, each.offset, each.timestamp) for each in written]


class BrokerHandle(ABC):
    """A running broker. Used as an async context manager within one test; topics that it made are gone afterwards."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        self._topics: list[str] = []
        self._producer: AIOKafkaProducer | None = None

    @property
    @abstractmethod
    def address(self) -> str:
        """Bootstrap servers, "host:port", the same over restarts."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._forget_producer()

    async def _forget_producer(self) -> None:
        # It trusts what it knows of a topic for minutes: after a change of topics a new one is needed.
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    # Topics

    async def create_topic(self, name: str | None = None, partitions: int = 1, configs: Mapping[str, str] | None = None) -> str:
        """Make a topic and return its name (one that no other test has, unless given), once clients can use it."""
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        await self._create(name, partitions, dict(configs or {}))
        self._topics.append(name)
        await eventually(lambda: self._usable(name, partitions))
        return name

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the broker no longer knows it."""
        await self._forget_producer()
        await self._delete(name)
        self._topics.remove(name)
        await eventually(lambda: self._gone(name))

    async def add_partitions(self, name: str, total: int) -> None:
        """Grow a topic to `total` partitions and wait until clients can use them."""
        await self._forget_producer()
        await self._grow(name, total)
        await eventually(lambda: self._usable(name, total))

    async def topic_id(self, name: str) -> bytes | None:
        """Return the 16 bytes that tell this topic from a former one of the same name; None where there is no such topic."""
        found = await asyncio.to_thread(_describe, self.address, name)
        return None if found is None else found[0]

    async def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Move the log start of partitions up: `before` has each partition's first offset that stays."""
        await self._trim(topic, before)

    async def compact(self, topic: str) -> None:
        """Compact a topic made with COMPACTED: of each key's visible records only the newest stays.

        Appends one record with the key FILLER to every partition, since the newest segment is never compacted.
        """
        for partition in range(await self._width(topic)):
            # A timestamp in the future makes the record start a segment without having to wait until it is due.
            ahead = int(time.time() * 1000) + 60_000
            await self.produce(topic, Message(b"", FILLER, partition, timestamp_ms=ahead))
        await self._compact(topic)

        async def is_compact() -> bool:
            seen = [(each.partition, each.key) for each in await self.consume(topic) if each.key != FILLER]
            return len(seen) == len(set(seen))

        await eventually(is_compact, timeout=30, interval=0.1)

    # Records

    async def produce(self, topic: str, *messages: Message | bytes) -> list[Place]:
        """Write messages (bytes: a value without a key) with acks=all and return where each one is."""
        if self._producer is None:
            self._producer = AIOKafkaProducer(bootstrap_servers=self.address, acks="all", enable_idempotence=True)
            await self._producer.start()
        return await _send(self._producer, topic, messages)

    @contextlib.asynccontextmanager
    async def transaction(self, transactional_id: str | None = None) -> AsyncIterator[Transaction]:
        """Open a transaction with a producer of its own; it is aborted unless it was committed."""
        name = transactional_id or f"tx-{uuid.uuid4().hex[:12]}"
        producer = AIOKafkaProducer(bootstrap_servers=self.address, transactional_id=name)
        await producer.start()
        try:
            await producer.begin_transaction()
            transaction = Transaction(producer)
            try:
                yield transaction
            finally:
                await transaction.abort()
        finally:
            await producer.stop()

    async def consume(self, topic: str, isolation: str = "read_committed") -> list[ConsumerRecord]:
        """Read a topic from its log start to its end, as aiokafka's own consumer sees it."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address, isolation_level=isolation, auto_offset_reset="earliest", fetch_max_wait_ms=50
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(await self._width(topic))]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            records: list[ConsumerRecord] = []
            # The position goes over markers and aborted records as well, which are never returned.
            while [each for each in partitions if await consumer.position(each) < ends[each]]:
                for found in (await consumer.getmany(timeout_ms=50)).values():
                    records += found
        finally:
            await consumer.stop()
        return sorted(records, key=lambda each: (each.partition, each.offset))

    async def offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return each partition's log start and its last stable offset."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.address, isolation_level="read_committed")
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(await self._width(topic))]
            starts = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
        finally:
            await consumer.stop()
        return {each.partition: (starts[each], ends[each]) for each in partitions}

    # Faults

    @abstractmethod
    async def kill(self) -> None:
        """End the broker at once; clients find the port closed."""

    @abstractmethod
    async def restart(self) -> None:
        """Start a killed broker on the same port with its data, and wait until it answers."""

    # Each broker's own

    @abstractmethod
    async def _create(self, name: str, partitions: int, configs: dict[str, str]) -> None: ...

    @abstractmethod
    async def _delete(self, name: str) -> None: ...

    @abstractmethod
    async def _grow(self, name: str, total: int) -> None: ...

    @abstractmethod
    async def _trim(self, topic: str, before: Mapping[int, int]) -> None: ...

    @abstractmethod
    async def _compact(self, topic: str) -> None: ...

    async def _width(self, topic: str) -> int:
        found = await asyncio.to_thread(_describe, self.address, topic)
        if found is None:
            raise LookupError(topic)
        return found[1]

    async def _usable(self, name: str, partitions: int) -> bool:
        found = await asyncio.to_thread(_describe, self.address, name)
        return found is not None and found[1] == found[2] == partitions

    async def _gone(self, name: str) -> bool:
        return await asyncio.to_thread(_describe, self.address, name) is None


def _describe(address: str, topic: str) -> tuple[bytes, int, int] | None:
    """Ask librdkafka for a topic's id, number of partitions and number of partitions that have a leader. Blocks."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    try:
        described = admin.describe_topics(TopicCollection([topic]), request_timeout=5)[topic].result()
    except KafkaException:
        return None
    high = described.topic_id.get_most_significant_bits()
    low = described.topic_id.get_least_significant_bits()
    identity = b"".join((half % 2**64).to_bytes(8, "big") for half in (high, low))
    led = sum(each.leader is not None and not each.leader.id < 0 for each in described.partitions)
    return identity, len(described.partitions), led


class ApacheHandle(BrokerHandle):
    """Apache Kafka, shared by all tests of a session."""

    kind = "apache"

    def __init__(self, kafka: ApacheKafka) -> None:
        super().__init__()
        self.kafka = kafka
        self._client: AIOKafkaAdminClient | None = None

    @property
    def address(self) -> str:
        """Bootstrap servers of the PLAINTEXT listener."""
        return self.kafka.address

    async def __aexit__(self, *exc: object) -> None:
        try:
            # The next test finds the broker as this one did.
            await self.restart()
            if self._topics:
                await (await self._admin()).delete_topics(self._topics)
        finally:
            if self._client is not None:
                await self._client.close()
            await super().__aexit__(*exc)

    async def kill(self) -> None:
        """End the broker with SIGKILL."""
        await self._forget_admin()
        await asyncio.to_thread(self.kafka.kill)

    async def restart(self) -> None:
        """Start the broker again, about 5 s after a kill: its old session with the controller has to end first."""
        await asyncio.to_thread(self.kafka.restart)

    async def _admin(self) -> AIOKafkaAdminClient:
        if self._client is None:
            self._client = AIOKafkaAdminClient(bootstrap_servers=self.address)
            await self._client.start()
        return self._client

    async def _forget_admin(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _create(self, name: str, partitions: int, configs: dict[str, str]) -> None:
        topic = NewTopic(name, partitions, replication_factor=min(3, len(self.kafka.nodes)), topic_configs=configs)
        _check(await (await self._admin()).create_topics([topic]), "topic_errors")

    async def _delete(self, name: str) -> None:
        _check(await (await self._admin()).delete_topics([name]), "topic_error_codes")

    async def _grow(self, name: str, total: int) -> None:
        _check(await (await self._admin()).create_partitions({name: NewPartitions(total)}), "topic_errors")

    async def _trim(self, topic: str, before: Mapping[int, int]) -> None:
        wanted = {TopicPartition(topic, number): RecordsToDelete(offset) for number, offset in before.items()}
        await (await self._admin()).delete_records(wanted)

    async def _compact(self, topic: str) -> None:
        """Nothing to do: the log cleaner looks every 100 ms."""


def _check(response: Any, field: str) -> None:
    for topic, code, *rest in getattr(response, field):
        if code != 0:
            raise AssertionError(f"Kafka refused {topic}: error {code} {rest}")
