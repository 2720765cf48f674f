"""The broker under librdkafka (confluent-kafka), which negotiates other versions than aiokafka does."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

from gateway.devbroker.schemas import Api

SECONDS = 10.0
QUIET = {"log_level": 0}


async def apart(work: Callable[[], Any]) -> Any:
    """Run blocking work in a thread, for the broker lives on this loop."""
    return await asyncio.to_thread(work)


def take(consumer: Consumer, count: int) -> list[Any]:
    found: list[Any] = []
    end = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < end:
        found += consumer.consume(count - len(found), 0.5)
    assert [one.error() for one in found] == [None] * count
    return found


@pytest.fixture
def config(broker) -> dict[str, Any]:
    return {"bootstrap.servers": broker.address, **QUIET}


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_produce_and_consume(broker, config, codec):
    broker.create_topic("t")

    def work():
        producer = Producer(config | {"compression.codec": codec, "linger.ms": 20, "enable.idempotence": True})
        for n in range(200):
            producer.produce("t", b"v%d" % n * 20, key=b"k", headers=[("h", b"%d" % n)], timestamp=1000 + n)
        assert producer.flush(SECONDS) == 0
        consumer = Consumer(config | {"group.id": "g"})
        consumer.assign([TopicPartition("t", 0, OFFSET_BEGINNING)])
        try:
            return [(one.offset(), one.value(), one.headers(), one.timestamp()[1]) for one in take(consumer, 200)]
        finally:
            consumer.close()

    found = await apart(work)
    assert found == [(n, b"v%d" % n * 20, [("h", b"%d" % n)], 1000 + n) for n in range(200)]
    assert [one.value for one in broker.records("t", 0)] == [one[1] for one in found]


async def test_transactions(broker, config):
    broker.create_topic("t")

    def work():
        producer = Producer(config | {"transactional.id": "x"})
        producer.init_transactions(SECONDS)
        for value, commit in ((b"aborted", False), (b"committed", True)):
            producer.begin_transaction()
            producer.produce("t", value, partition=0)
            producer.flush(SECONDS)
            (producer.commit_transaction if commit else producer.abort_transaction)(SECONDS)
        consumer = Consumer(config | {"group.id": "g"})
        consumer.assign([TopicPartition("t", 0, OFFSET_BEGINNING)])
        try:
            return [one.value() for one in take(consumer, 1)], consumer.get_watermark_offsets(
                TopicPartition("t", 0), timeout=SECONDS
            )
        finally:
            consumer.close()

    assert await apart(work) == ([b"committed"], (0, 4))
    assert len(broker.cluster.partition("t", 0).log.aborted(0, 4)) == 1


async def test_a_fenced_producer_is_told(broker, config):
    broker.create_topic("t")

    def work():
        old = Producer(config | {"transactional.id": "x"})
        old.init_transactions(SECONDS)
        old.begin_transaction()
        old.produce("t", b"old")
        old.flush(SECONDS)
        new = Producer(config | {"transactional.id": "x"})
        new.init_transactions(SECONDS)
        with pytest.raises(KafkaException):
            old.commit_transaction(SECONDS)

    await apart(work)
    assert (broker.end_offset("t", 0), len(broker.cluster.partition("t", 0).log.aborted(0, 4))) == (2, 1)


async def test_offsets_for_times_and_watermarks(broker, config):
    broker.create_topic("t")
    for ts in (1000, 2000, 3000):
        broker.append("t", 0, [b"x"], timestamp_ms=ts)
    broker.delete_records("t", 0, 1)

    def work():
        consumer = Consumer(config | {"group.id": "g"})
        try:
            asked = [TopicPartition("t", 0, ts) for ts in (0, 2500, 3001)]
            offsets = [consumer.offsets_for_times([one], timeout=SECONDS)[0].offset for one in asked]
            return offsets, consumer.get_watermark_offsets(TopicPartition("t", 0), timeout=SECONDS)
        finally:
            consumer.close()

    offsets, watermarks = await apart(work)
    assert offsets == [1, 2, -1]
    assert watermarks == (1, 3)


async def test_committed_offsets(broker, config):
    broker.create_topic("t", 2)

    def work():
        consumer = Consumer(config | {"group.id": "g", "enable.auto.commit": False})
        admin = AdminClient(config)
        try:
            consumer.commit(offsets=[TopicPartition("t", 1, 42)], asynchronous=False)
            places = [TopicPartition("t", index) for index in (0, 1)]
            found = [one.offset for one in consumer.committed(places, timeout=SECONDS)]
            listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("g")])["g"].result(SECONDS)
            return found, [(one.partition, one.offset) for one in listed.topic_partitions]
        finally:
            consumer.close()

    assert await apart(work) == ([-1001, 42], [(1, 42)])


async def test_a_group_with_subscriptions(broker, config):
    broker.create_topic("t", 3)
    for index in range(3):
        broker.append("t", index, [b"%d" % index])

    def work():
        consumer = Consumer(config | {"group.id": "g", "auto.offset.reset": "earliest"})
        admin = AdminClient(config)
        consumer.subscribe(["t"])
        try:
            values = sorted(one.value() for one in take(consumer, 3))
            state = admin.describe_consumer_groups(["g"])["g"].result(SECONDS)
            return values, state.state.name, [one.group_id for one in admin.list_consumer_groups().result(SECONDS).valid]
        finally:
            consumer.close()

    assert await apart(work) == ([b"0", b"1", b"2"], "STABLE", ["g"])


async def test_administration(broker, config):
    # One client for all: a fresh one may sit out its own retry timer of 3 s before it knows a topic's leaders.
    admin = AdminClient(config)

    def create():
        created = admin.create_topics([NewTopic("t", 2, 1, config={"retention.ms": "5000"})])
        assert created["t"].result(SECONDS) is None
        assert admin.create_partitions([NewPartitions("t", 3)])["t"].result(SECONDS) is None
        resource = ConfigResource(ConfigResource.Type.TOPIC, "t")
        configs = admin.describe_configs([resource])[resource].result(SECONDS)
        return admin.describe_topics(TopicCollection(["t"]))["t"].result(SECONDS), configs["retention.ms"].value

    def remove():
        place = TopicPartition("t", 0, 1)
        low = admin.delete_records([place])[place].result(SECONDS).low_watermark
        return low, admin.delete_topics(["t"])["t"].result(SECONDS)

    described, retention = await apart(create)
    assert (len(described.partitions), retention) == (3, "5000")
    ours = broker.topic_id("t")
    halves = (described.topic_id.get_most_significant_bits(), described.topic_id.get_least_significant_bits())
    assert [half % 2**64 for half in halves] == [int.from_bytes(ours[:8], "big"), int.from_bytes(ours[8:], "big")]
    broker.append("t", 0, [b"a", b"b"])
    assert await apart(remove) == (1, None)
    assert not broker.cluster.topics


async def test_it_negotiates_the_newest_versions(broker, config):
    await apart(lambda: AdminClient(config).list_topics(timeout=SECONDS))
    assert broker.requests[Api.API_VERSIONS]
    assert broker.requests[Api.METADATA]
