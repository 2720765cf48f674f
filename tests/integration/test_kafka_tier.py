"""The handle on a broker does what the other integration tests build on: the same with the dev broker and Apache Kafka."""

import asyncio
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.helpers import create_ssl_context
from integration.apache_kafka import PASSWORD, USERNAME
from integration.brokers import COMPACTED, FILLER, ApacheHandle, BrokerHandle, Message
from waiting import eventually


def contents(records) -> list[tuple[int, int, bytes | None]]:
    return [(each.partition, each.offset, each.value) for each in records]


async def test_what_is_produced_is_consumed(broker: BrokerHandle):
    """Keys, values, headers, timestamps and null values come back as they were written, at the offsets that were told."""
    topic = await broker.create_topic(partitions=2)
    written = await broker.produce(
        topic,
        Message(b"one", b"k", 0, [("h", b"v"), ("h", b"w")], timestamp_ms=1_700_000_000_000),
        Message(None, b"k", 0),
        Message(b"two", None, 1),
    )
    assert [(place.partition, place.offset) for place in written] == [(0, 0), (0, 1), (1, 0)]
    records = await broker.consume(topic)
    assert contents(records) == [(0, 0, b"one"), (0, 1, None), (1, 0, b"two")]
    assert [record.key for record in records] == [b"k", b"k", None]
    assert records[0].headers == (("h", b"v"), ("h", b"w"))
    assert records[0].timestamp == 1_700_000_000_000


async def test_unknown_topics_are_not_created(broker: BrokerHandle):
    """A topic exists only after somebody created it."""
    topic = await broker.create_topic()
    await broker.delete_topic(topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address)
    await consumer.start()
    try:
        assert topic not in await consumer.topics()
    finally:
        await consumer.stop()
    assert await broker.topic_id(topic) is None


async def test_a_parked_consumer_gets_a_record_at_once(broker: BrokerHandle):
    """A long poll ends with the first record, not with its time."""
    topic = await broker.create_topic()
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, fetch_max_wait_ms=20_000, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        parked = asyncio.ensure_future(consumer.getone())
        assert not (await asyncio.wait({parked}, timeout=0.3))[0]
        await broker.produce(topic, b"now")
        record = await asyncio.wait_for(parked, 5)
    finally:
        await consumer.stop()
    assert record.value == b"now"


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_an_open_transaction_holds_back_what_follows(broker: BrokerHandle, end: str):
    """Readers of committed records stop at the first open transaction; its end shows or hides its own records only."""
    topic = await broker.create_topic()
    await broker.produce(topic, b"before")
    async with broker.transaction() as transaction:
        await transaction.send(topic, Message(b"within", None, 0))
        await broker.produce(topic, b"after")
        assert await broker.offsets(topic) == {0: (0, 1)}
        assert contents(await broker.consume(topic)) == [(0, 0, b"before")]
        assert len(await broker.consume(topic, "read_uncommitted")) == 3
        await getattr(transaction, end)()
    within = [(0, 1, b"within")] if end == "commit" else []
    await eventually(lambda: stable_end(broker, topic, 4))
    assert contents(await broker.consume(topic)) == [(0, 0, b"before"), *within, (0, 2, b"after")]


async def stable_end(broker: BrokerHandle, topic: str, expected: int) -> bool:
    """Tell whether the marker is written: the coordinator answers before that."""
    return (await broker.offsets(topic))[0][1] == expected


async def test_deleted_records_are_gone(broker: BrokerHandle):
    """Trimming moves the log start and leaves the rest where it was."""
    topic = await broker.create_topic(partitions=2)
    await broker.produce(topic, *[Message(b"%d" % number, None, number % 2) for number in range(6)])
    await broker.delete_records(topic, {0: 2})
    assert await broker.offsets(topic) == {0: (2, 3), 1: (0, 3)}
    assert contents(await broker.consume(topic)) == [(0, 2, b"4"), (1, 0, b"1"), (1, 1, b"3"), (1, 2, b"5")]


async def test_retention_trims_by_age(broker: BrokerHandle):
    """Records older than retention.ms go within a test's patience."""
    topic = await broker.create_topic(configs={"retention.ms": "60000"})
    old = int(time.time() * 1000) - 3_600_000
    await broker.produce(topic, Message(b"old", timestamp_ms=old), Message(b"older", timestamp_ms=old - 1))
    await eventually(lambda: log_start(broker, topic, 2))
    assert await broker.consume(topic) == []


async def log_start(broker: BrokerHandle, topic: str, expected: int) -> bool:
    return (await broker.offsets(topic))[0][0] == expected


async def test_compaction_keeps_the_newest_of_each_key(broker: BrokerHandle):
    """What stays keeps its offset; the log start stays too."""
    topic = await broker.create_topic(configs=COMPACTED)
    for number in range(6):
        await broker.produce(topic, Message(b"%d" % number, b"k%d" % (number % 2)))
    await broker.compact(topic)
    left = [record for record in await broker.consume(topic) if record.key != FILLER]
    assert contents(left) == [(0, 4, b"4"), (0, 5, b"5")]
    assert (await broker.offsets(topic))[0][0] == 0


async def test_partitions_are_added(broker: BrokerHandle):
    """A topic grows, and keeps its id and its records."""
    topic = await broker.create_topic()
    before = await broker.topic_id(topic)
    await broker.produce(topic, b"old")
    await broker.add_partitions(topic, 3)
    await broker.produce(topic, Message(b"new", None, 2))
    assert await broker.topic_id(topic) == before
    assert contents(await broker.consume(topic)) == [(0, 0, b"old"), (2, 0, b"new")]


async def test_a_recreated_topic_has_another_id(broker: BrokerHandle):
    """The same name does not mean the same topic."""
    topic = await broker.create_topic()
    await broker.produce(topic, b"old")
    before = await broker.topic_id(topic)
    await broker.delete_topic(topic)
    await broker.create_topic(topic)
    after = await broker.topic_id(topic)
    assert before
    assert after
    assert before != after
    assert await broker.consume(topic) == []


async def test_a_killed_broker_comes_back_with_its_data(broker: BrokerHandle):
    """After a kill the address is dead; after the restart it has what was acknowledged, and goes on."""
    topic = await broker.create_topic()
    host, _, port = broker.address.rpartition(":")
    await broker.produce(topic, b"before")
    identity = await broker.topic_id(topic)
    await broker.kill()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(host, int(port))
    await broker.restart()
    await broker.produce(topic, b"after")
    assert await broker.topic_id(topic) == identity
    assert contents(await broker.consume(topic)) == [(0, 0, b"before"), (0, 1, b"after")]


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", [None, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("tls", [False, True])
async def test_every_listener_takes_its_clients(apache: ApacheHandle, tls: bool, mechanism: str | None, caplog):
    """Plain and TLS, without a password and with each mechanism."""
    caplog.set_level("CRITICAL", "aiokafka")
    listener = {(False, False): "PLAINTEXT", (True, False): "SSL", (False, True): "SASL_PLAINTEXT", (True, True): "SASL_SSL"}
    protocol = listener[tls, mechanism is not None]
    credentials = {"sasl_mechanism": mechanism, "sasl_plain_username": USERNAME, "sasl_plain_password": PASSWORD}
    topic = await apache.create_topic()
    producer = AIOKafkaProducer(
        bootstrap_servers=apache.kafka.bootstrap(protocol),
        security_protocol=protocol,
        ssl_context=create_ssl_context(cafile=str(apache.kafka.cafile)) if tls else None,
        **(credentials if mechanism else {}),
    )
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"in")
    finally:
        await producer.stop()
    assert contents(await apache.consume(topic)) == [(0, 0, b"in")]


@pytest.mark.kafka
async def test_a_proxy_may_stand_before_a_listener(apache: ApacheHandle, tcp_proxy):
    """Clients of PROXIED stay behind the proxy, also after they have seen the metadata."""
    topic = await apache.create_topic()
    listen, target = apache.kafka.proxied()
    proxy = await tcp_proxy("127.0.0.1", target, listen_port=listen)
    producer = AIOKafkaProducer(bootstrap_servers=apache.kafka.bootstrap("PROXIED"))
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"first")
        proxy.stall()
        stalled = asyncio.ensure_future(producer.send_and_wait(topic, b"second"))
        assert not (await asyncio.wait({stalled}, timeout=0.3))[0]
        proxy.heal()
        await asyncio.wait_for(stalled, 10)
    finally:
        proxy.heal()
        await producer.stop()
    assert contents(await apache.consume(topic)) == [(0, 0, b"first"), (0, 1, b"second")]
