"""The Kafka log as readers use it, against the dev broker and Apache Kafka."""

import asyncio
import time

import pytest
from confluent_kafka import Producer
from integration.brokers import COMPACTED, Message
from waiting import eventually

from gateway.errors import BrokerUnavailable
from gateway.kafka.log import Flights
from gateway.kafka.requests import EARLIEST, LATEST


async def test_records_that_are_produced_after_follow_come_live(broker, rig):
    topic = await broker.create_topic(partitions=3)
    await broker.produce(topic, Message(b"before", partition=0))
    one = await rig(broker.address)
    found = await one.follow(topic)
    assert found.partition_count == 3
    assert found.topic_id == await broker.topic_id(topic)
    assert {p: (tail.start, tail.log_start) for p, tail in found.tails.items()} == {0: (1, 0), 1: (0, 0), 2: (0, 0)}
    await broker.produce(
        topic, Message(b"v", b"k", 0, headers=[("a", b"1"), ("a", b"2")], timestamp_ms=1700), Message(None, b"dead", 1)
    )
    await one.has(topic, 1, 0)
    await one.has(topic, 1, 1)
    record = one.held(topic, 0)[0]
    assert (record.offset, record.key, record.value, record.timestamp_ms) == (1, b"k", b"v", 1700)
    assert record.headers == (("a", b"1"), ("a", b"2"))
    assert (one.held(topic, 1)[0].key, one.held(topic, 1)[0].value) == (b"dead", None)
    status = one.log.status()
    assert (status.connected, status.reason, status.topic_ids, status.sick, status.skipped) == (True, "", True, [], [])
    assert one.watch.ups == [True]


async def test_following_a_live_topic_again_does_not_yield(broker, rig):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    await one.follow(topic)
    again = one.log.follow(topic, 12345.0)
    with pytest.raises(StopIteration) as stop:
        again.send(None)
    assert stop.value.value is one.hub.topics[topic]
    assert stop.value.value.last_polled == 12345.0


async def test_an_open_transaction_neither_shows_nor_spins(broker, rig, count_requests, pass_time):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    await one.follow(topic)
    async with broker.transaction() as transaction:
        await transaction.send(topic, b"a", b"b")
        await broker.produce(topic, b"outside")
        async with count_requests(one.log) as sent:
            await pass_time(1.5)
        assert sent["Fetch"] <= 5, sent
        assert one.values(topic) == []
        assert one.hub.topics[topic].tails[0].end == 0
        assert await one.log.end(topic, 0) == 0
        assert await one.log.offsets(topic, LATEST) == {0: 0}
        await eventually(lambda: one.watch.fetches and one.watch.fetches[-1][-1] == 3)
        await transaction.commit()
    assert await one.has(topic, 3) == [b"a", b"b", b"outside"]
    # The commit marker has an offset too, and the tail ends behind it.
    await eventually(lambda: one.hub.topics[topic].tails[0].end == 4)
    assert one.watch.fetches[-1][-1] == 0


async def test_aborted_records_are_never_seen(broker, rig):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    await one.follow(topic)
    async with broker.transaction() as transaction:
        await transaction.send(topic, b"gone")
        await broker.produce(topic, b"stays")
    async with broker.transaction() as transaction:
        await transaction.send(topic, b"committed")
        await transaction.commit()
    assert await one.has(topic, 2) == [b"stays", b"committed"]
    cold = await one.cold(topic, 0, 0, await one.log.end(topic, 0))
    assert [(record.offset, record.value) for record in cold] == [(1, b"stays"), (3, b"committed")]


async def test_a_compacted_topic_is_read_whole_without_its_holes(broker, rig):
    topic = await broker.create_topic(configs=COMPACTED)
    for i in range(12):
        await broker.produce(topic, Message(b"%d" % i, b"k%d" % (i % 3), timestamp_ms=1000 + i))
    await broker.compact(topic)
    one = await rig(broker.address)
    await one.follow(topic)
    end = await one.log.end(topic, 0)
    cold = await one.cold(topic, 0, 0, end)
    assert [record.value for record in cold][:3] == [b"9", b"10", b"11"]
    assert one.hub.topics[topic].tails[0].log_start == 0


async def test_a_partition_that_is_added_is_read_from_its_log_start(broker, rig):
    topic = await broker.create_topic()
    one = await rig(broker.address, metadata_max_age=60.0)
    await one.follow(topic)
    await broker.add_partitions(topic, 2)
    await broker.produce(topic, Message(b"early", partition=1))
    one.log.feed.urge()
    assert await one.has(topic, 1, 1) == [b"early"]
    assert one.hub.topics[topic].tails[1].start == 0
    assert one.hub.topics[topic].partition_count == 2


async def test_partitions_and_topics_appear_by_themselves(broker, rig):
    one = await rig(broker.address)
    name = f"late-{time.time_ns()}"
    assert (await one.follow(name)).partition_count == 0
    assert (await one.follow(name)).partition_count == 0
    await broker.create_topic(name)
    await eventually(lambda: one.hub.topics[name].partition_count == 1)
    await broker.add_partitions(name, 2)
    await eventually(lambda: sorted(one.hub.topics[name].tails) == [0, 1])
    await broker.produce(name, Message(b"x", partition=1))
    assert await one.has(name, 1, 1) == [b"x"]


async def test_a_deleted_and_recreated_topic_has_another_id(broker, rig):
    topic = await broker.create_topic(partitions=2)
    one = await rig(broker.address)
    before = (await one.follow(topic)).topic_id
    await broker.produce(topic, Message(b"old", partition=0))
    await one.has(topic, 1)
    await one.cold(topic, 0, 0, 1)
    await broker.delete_topic(topic)
    await eventually(lambda: one.hub.topics[topic].partition_count == 0)
    assert one.hub.topics[topic].tails == {}
    await broker.create_topic(topic)
    await eventually(lambda: one.hub.topics[topic].partition_count == 1 and one.hub.topics[topic].tails)
    assert one.hub.topics[topic].topic_id not in (None, before)
    await broker.produce(topic, b"new")
    assert await one.has(topic, 1) == [b"new"]
    assert [record.value for record in await one.cold(topic, 0, 0, 1)] == [b"new"]
    assert one.log.status().sick == []


async def test_a_topic_recreated_at_once_is_noticed(broker, rig):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    before = (await one.follow(topic)).topic_id
    await broker.produce(topic, b"old", b"old")
    await one.has(topic, 2)
    await broker.delete_topic(topic)
    await broker.create_topic(topic)
    await eventually(lambda: one.hub.topics[topic].topic_id != before and one.hub.topics[topic].tails)
    await broker.produce(topic, b"new")
    assert (await one.has(topic, 1))[-1:] == [b"new"]


async def test_deleted_records_move_the_log_start(broker, rig):
    topic = await broker.create_topic()
    await broker.produce(topic, *[b"%d" % i for i in range(10)])
    one = await rig(broker.address)
    await one.follow(topic)
    await broker.delete_records(topic, {0: 7})
    await eventually(lambda: one.hub.topics[topic].tails[0].log_start == 7)
    block = await one.log.read(topic, 0, 2, 10)
    assert (block.start, block.log_start, [record.offset for record in block.records]) == (7, 7, [7, 8, 9])
    assert await one.log.offsets(topic, EARLIEST) == {0: 7}


async def test_a_killed_broker_comes_back_and_nothing_is_lost(broker, rig):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    found = await one.follow(topic)
    await broker.produce(topic, b"a")
    await one.has(topic, 1)
    await broker.kill()
    await eventually(lambda: not one.log.status().connected)
    assert one.log.status().reason
    assert (topic, 0) in [sick[:2] for sick in one.log.status().sick]
    assert await one.follow(topic) is found
    assert found.tails[0].end == 1
    with pytest.raises(BrokerUnavailable):
        await one.log.end(topic, 0)
    await broker.restart()
    await broker.produce(topic, b"b")
    assert await one.has(topic, 2) == [b"a", b"b"]
    await eventually(lambda: one.log.status().connected and one.log.status().sick == [])
    assert one.watch.ups == [True, False, True]


async def test_offsets_by_time(broker, rig):
    topic = await broker.create_topic(partitions=2)
    now = int(time.time() * 1000)
    for i in range(4):
        await broker.produce(topic, Message(b"x", partition=0, timestamp_ms=now + i * 1000))
    one = await rig(broker.address)
    await one.follow(topic)
    assert await one.log.offsets(topic, EARLIEST) == {0: 0, 1: 0}
    assert await one.log.offsets(topic, LATEST) == {0: 4, 1: 0}
    assert await one.log.offsets(topic, now + 1500) == {0: 2, 1: 0}
    assert await one.log.offsets(topic, now + 9000) == {0: 4, 1: 0}


async def test_what_the_producer_sent_is_read_back(broker, rig):
    topic = await broker.create_topic(partitions=3)
    one = await rig(broker.address)
    await one.follow(topic)
    stored = await one.log.producer.send(topic, b"key", b"value", (("h", b"x"),), timeout=5)
    await one.has(topic, 1, stored.partition)
    record = one.held(topic, stored.partition)[0]
    assert (record.offset, record.key, record.value, record.headers) == (0, b"key", b"value", (("h", b"x"),))
    assert stored.timestamp_ms == record.timestamp_ms or stored.timestamp_ms is None
    tomb = await one.log.producer.send(topic, b"key", None, partition=2, timeout=5)
    assert tomb.partition == 2


async def test_a_batch_larger_than_any_bound_comes_whole(broker, rig):
    """Brokers send the first batch whole, however little was asked for (KIP-74)."""
    topic = await broker.create_topic(partitions=2)
    one = await rig(broker.address)
    one.log.feed._max_bytes = one.log.feed._partition_max_bytes = one.log.archive._block_bytes = 1000
    await one.follow(topic)
    large = bytes(range(256)) * 2000
    await broker.produce(topic, *[Message(large, partition=p) for p in (0, 1, 0)])
    assert await one.has(topic, 2, 0) == [large, large]
    assert await one.has(topic, 1, 1) == [large]
    assert [record.value for record in await one.cold(topic, 0, 0, 2)] == [large, large]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_codecs_of_other_producers(broker, rig, codec):
    topic = await broker.create_topic()
    one = await rig(broker.address)
    await one.follow(topic)
    await asyncio.to_thread(_produce_with_librdkafka, broker.address, topic, codec)
    assert await one.has(topic, 100) == [b"%d" % i * 50 for i in range(100)]


def _produce_with_librdkafka(address: str, topic: str, codec: str) -> None:
    producer = Producer({"bootstrap.servers": address, "compression.type": codec, "linger.ms": 50, "log_level": 0})
    for i in range(100):
        producer.produce(topic, b"%d" % i * 50)
    assert producer.flush(10) == 0


async def test_without_a_broker_starting_works_and_following_says_so(rig, unused_tcp_port):
    one = await rig(f"127.0.0.1:{unused_tcp_port}", patience=0.2)
    with pytest.raises(BrokerUnavailable) as refused:
        await one.follow("t")
    assert refused.value.retry_after
    assert await one.log.offsets("t", LATEST) == {}
    with pytest.raises(BrokerUnavailable):
        await one.log.end("t", 0)
    status = one.log.status()
    assert not status.connected
    assert "127.0.0.1" in status.reason
    assert repr(one.log).startswith("<KafkaLog <Cluster 0 brokers")


async def test_an_answer_under_way_is_not_given_to_those_who_ask_later():
    """Askers share questions, but none gets an answer that was given before he asked."""
    asked, gates = [], [asyncio.Event(), asyncio.Event()]

    async def ask(key: str) -> int:
        asked.append(key)
        await gates[len(asked) - 1].wait()
        return len(asked)

    flights: Flights[str, int] = Flights(ask)
    first = asyncio.ensure_future(flights.get("k"))
    await eventually(lambda: asked == ["k"])
    second, third = asyncio.ensure_future(flights.get("k")), asyncio.ensure_future(flights.get("k"))
    left = asyncio.ensure_future(flights.get("k"))
    await asyncio.sleep(0)
    left.cancel()
    gates[0].set()
    assert await first == 1
    gates[1].set()
    assert await second == await third == 2
    assert asked == ["k", "k"]
    await flights.close()


async def test_closing_ends_questions_with_an_error():
    flights: Flights[str, int] = Flights(lambda _key: asyncio.Event().wait())
    asking = [asyncio.ensure_future(flights.get("k")) for _ in range(3)]
    await asyncio.sleep(0.01)
    await flights.close()
    for one in asking:
        with pytest.raises(BrokerUnavailable):
            await one
