"""The broker under aiokafka: codecs, transactions, long polls, faults, groups, administration."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import CorruptRecordException, MessageSizeTooLargeError, NotLeaderForPartitionError
from aiokafka.structs import OffsetAndMetadata
from waiting import eventually

from gateway.devbroker.codes import Code
from gateway.devbroker.schemas import Api
from gateway.devbroker.server import Broker

T0 = TopicPartition("t", 0)
# Far beyond any test: who waits for this has lost a wake-up.
LONG_MS = 30_000


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def producer(stack) -> Callable:
    async def start(broker: Broker, **kwargs) -> AIOKafkaProducer:
        return await stack.enter_async_context(
            AIOKafkaProducer(bootstrap_servers=broker.addresses, retry_backoff_ms=5, **kwargs)
        )

    return start


@pytest.fixture
def consumer(stack) -> Callable:
    async def start(broker: Broker, *places: TopicPartition, beginning: bool = True, **kwargs) -> AIOKafkaConsumer:
        kwargs = {"fetch_max_wait_ms": LONG_MS, "isolation_level": "read_committed", "retry_backoff_ms": 5} | kwargs
        made = await stack.enter_async_context(AIOKafkaConsumer(bootstrap_servers=broker.addresses, **kwargs))
        made.assign(places or [T0])
        if beginning:
            await made.seek_to_beginning()
        return made

    return start


async def take(consumer: AIOKafkaConsumer, count: int) -> list[ConsumerRecord]:
    async with asyncio.timeout(10):
        return [await consumer.getone() for _ in range(count)]


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_passes_through(broker, producer, consumer, codec):
    broker.create_topic("t")
    sender = await producer(broker, compression_type=codec, linger_ms=20)
    values = [b"%d" % n * 50 for n in range(100)]
    async with asyncio.TaskGroup() as group:
        for n, value in enumerate(values):
            headers = [("n", b"%d" % n)]
            group.create_task(sender.send_and_wait("t", value, key=b"k", headers=headers, timestamp_ms=1000 + n))
    found = await take(await consumer(broker), 100)
    assert [one.offset for one in found] == list(range(100))
    assert sorted(one.value for one in found) == sorted(values)
    assert {one.headers[0][1] for one in found} == {b"%d" % n for n in range(100)}


async def test_a_consumers_long_poll_is_woken_by_a_producer(broker, producer, consumer):
    broker.create_topic("t")
    sender, receiver = await producer(broker), await consumer(broker)
    waits = []
    for n in range(20):
        async with asyncio.TaskGroup() as group:
            received = group.create_task(receiver.getone())
            await broker.until_parked("t", 0)
            begin = time.monotonic()
            await sender.send_and_wait("t", b"%d" % n)
            assert (await received).value == b"%d" % n
        waits.append(time.monotonic() - begin)
    assert sorted(waits)[10] < 0.1


async def test_a_transaction_is_seen_when_it_commits_and_never_if_it_aborts(broker, producer, consumer):
    broker.create_topic("t")
    sender = await producer(broker, transactional_id="x")
    committed = await consumer(broker)
    uncommitted = await consumer(broker, isolation_level="read_uncommitted")
    await sender.begin_transaction()
    await sender.send_and_wait("t", b"aborted")
    await sender.abort_transaction()
    await sender.begin_transaction()
    await sender.send_and_wait("t", b"committed")
    assert [one.value for one in await take(uncommitted, 2)] == [b"aborted", b"committed"]
    assert await committed.end_offsets([T0]) == {T0: 2}
    assert await uncommitted.end_offsets([T0]) == {T0: 3}
    await sender.commit_transaction()
    (found,) = await take(committed, 1)
    assert (found.value, found.offset) == (b"committed", 2)
    assert await committed.end_offsets([T0]) == {T0: 4}


async def test_offsets_sent_to_a_transaction(broker, producer, consumer):
    broker.create_topic("t")
    sender = await producer(broker, transactional_id="x")
    async with sender.transaction():
        await sender.send_and_wait("t", b"x")
        await sender.send_offsets_to_transaction({T0: OffsetAndMetadata(7, "")}, "g")
    receiver = await consumer(broker, group_id="g", enable_auto_commit=False)
    assert await receiver.committed(T0) == 7


async def test_a_lost_answer_does_not_double_what_an_idempotent_producer_sends(broker, producer):
    broker.create_topic("t")
    sender = await producer(broker, enable_idempotence=True)
    fault = broker.faults.drop(Api.PRODUCE, processed=True, times=2)
    assert (await sender.send_and_wait("t", b"once")).offset == 0
    assert fault.hits == 2
    assert broker.end_offset("t", 0) == 1


async def test_offsets_by_time(broker, consumer):
    broker.create_topic("t")
    for ts in (1000, 2000, 3000):
        broker.append("t", 0, [b"x"], timestamp_ms=ts)
    receiver = await consumer(broker)
    assert (await receiver.offsets_for_times({T0: 1500}))[T0].offset == 1
    assert (await receiver.offsets_for_times({T0: 3001}))[T0] is None
    broker.delete_records("t", 0, 2)
    assert await receiver.beginning_offsets([T0]) == {T0: 2}


async def test_offsets_are_committed_and_fetched_without_membership(broker, consumer):
    broker.create_topic("t")
    receiver = await consumer(broker, group_id="g", enable_auto_commit=False)
    assert await receiver.committed(T0) is None
    await receiver.commit({T0: OffsetAndMetadata(5, "note")})
    assert await receiver.committed(T0) == 5
    assert broker.cluster.groups.committed("g")["t", 0].metadata == "note"


async def test_two_members_share_a_topic(broker, stack):
    broker.create_topic("t", 4)

    async def member() -> AIOKafkaConsumer:
        return await stack.enter_async_context(
            AIOKafkaConsumer("t", bootstrap_servers=broker.address, group_id="g", heartbeat_interval_ms=50)
        )

    first = await member()
    assert len(first.assignment()) == 4
    second = await member()
    await eventually(lambda: len(first.assignment()) == len(second.assignment()) == 2)
    assert first.assignment().isdisjoint(second.assignment())


async def test_a_consumer_lives_through_a_restart(broker, consumer):
    broker.create_topic("t")
    broker.append("t", 0, [b"before"])
    receiver = await consumer(broker)
    await take(receiver, 1)
    async with asyncio.TaskGroup() as group:
        received = group.create_task(take(receiver, 1))
        await broker.until_parked("t", 0)
        await broker.stop()
        await broker.start()
        broker.append("t", 0, [b"after"])
    assert [one.value for one in received.result()] == [b"after"]


async def test_clients_follow_a_leader(producer, consumer):
    async with Broker(nodes=3) as broker:
        broker.create_topic("t")
        sender, receiver = await producer(broker), await consumer(broker)
        for node in (1, 2, 3, 1):
            broker.move_leader("t", 0, node)
            await sender.send_and_wait("t", b"at %d" % node)
        assert [one.value for one in await take(receiver, 4)] == [b"at 1", b"at 2", b"at 3", b"at 1"]
        await sender.stop()
        await receiver.stop()


async def test_a_failed_node_is_replaced(producer, consumer):
    async with Broker(nodes=2) as broker:
        broker.create_topic("t")
        sender = await producer(broker)
        await sender.send_and_wait("t", b"1")
        leader = broker.leader("t", 0)
        await broker.stop_node(leader)
        broker.move_leader("t", 0, 3 - leader)
        await sender.send_and_wait("t", b"2")
        receiver = await consumer(broker)
        assert [one.value for one in await take(receiver, 2)] == [b"1", b"2"]
        await sender.stop()
        await receiver.stop()


@pytest.mark.parametrize(
    ("code", "error"),
    [(Code.CORRUPT_MESSAGE, CorruptRecordException), (Code.MESSAGE_TOO_LARGE, MessageSizeTooLargeError)],
)
async def test_injected_errors_reach_the_client(broker, producer, code, error):
    broker.create_topic("t")
    sender = await producer(broker)
    broker.faults.error(code, Api.PRODUCE, topic="t", times=1)
    with pytest.raises(error):
        await (await sender.send("t", b"x"))
    assert (await sender.send_and_wait("t", b"x")).offset == 0


async def test_a_retriable_error_is_retried(broker, producer):
    broker.create_topic("t")
    sender = await producer(broker)
    fault = broker.faults.error(NotLeaderForPartitionError.errno, Api.PRODUCE, times=2)
    assert (await sender.send_and_wait("t", b"x")).offset == 0
    assert fault.hits == 2


async def test_administration(broker):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("t", 2, 1, topic_configs={"retention.ms": "5000"})])
        await admin.create_partitions({"t": NewPartitions(3)})
        (found,) = await admin.describe_topics(["t"])
        assert len(found["partitions"]) == 3
        broker.append("t", 1, [b"a", b"b"])
        assert await admin.list_consumer_groups() == []
        await admin.delete_topics(["t"])
        assert await admin.list_topics() == []
    finally:
        await admin.close()
