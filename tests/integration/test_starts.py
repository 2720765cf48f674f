"""Where a first poll begins, and what records look like, with the brokers' own clients as producers."""

import asyncio
import base64
import datetime as dt
import time

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from integration.brokers import BrokerHandle, Message
from integration.gateways import running

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
# A record's age must not look like a mistake to the broker: within the last hours.
EPOCH_MS = int(time.time() * 1000) - 3_600_000


def at(milliseconds: int) -> str:
    """Return RFC 3339 text of a time in ms."""
    moment = dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def first(instance, channel: str, start: str, **given) -> list[object]:
    """Return the values that a client reads who begins at `start`."""
    client = instance.client(channel, start=start, **given)
    return sorted((await client.catch_up()).values)


async def test_each_start(broker: BrokerHandle):
    """earliest, latest, a time, and the newest N, of a channel with all keys and of one with a single key."""
    topic = await broker.create_topic(partitions=3)
    # Records 0 to 29, one a second, in turn over partitions and over two keys.
    written = [Message(b"%d" % n, b"k%d" % (n % 2), n % 3, timestamp_ms=EPOCH_MS + n * 1000) for n in range(30)]
    await broker.produce(topic, *written)
    channels = {"all": {"topic": topic}, "one/{key}": {"topic": topic, "key": "{key}"}}
    for fresh in (True, False):
        async with running(broker.address, channels) as instance:
            if not fresh:
                # The same once the tail holds the newest records.
                await instance.client("all").begin()
                await broker.produce(topic, Message(b"30", b"k0", 0, timestamp_ms=EPOCH_MS + 30_000))
                written.append(Message(b"30", b"k0", 0))
                await instance.client("all", start="earliest").read(31)
            end = len(written)
            every = list(range(end))
            assert await first(instance, "all", "earliest") == every
            assert await first(instance, "one/k1", "earliest") == every[1::2]
            assert await first(instance, "all", "latest") == []
            assert await first(instance, "all", at(EPOCH_MS + 12_000)) == every[12:]
            assert await first(instance, "all", at(EPOCH_MS + 11_001)) == every[12:]
            assert await first(instance, "one/k1", at(EPOCH_MS + 12_000)) == every[13::2]
            assert await first(instance, "all", at(EPOCH_MS - 1_000_000)) == every
            assert await first(instance, "all", at(EPOCH_MS + 3_000_000)) == []
            assert await first(instance, "all", "-1") == every[-1:]
            assert await first(instance, "all", "-7") == every[-7:]
            assert await first(instance, "one/k1", "-4") == every[1::2][-4:]
            assert await first(instance, "all", "-1000") == every
            assert await first(instance, "one/nobody", "-5") == []


async def test_latest_holds_for_the_moment_of_the_first_poll(broker: BrokerHandle):
    """What is produced after the first cursor was taken comes, what was there before does not."""
    topic = await broker.create_topic(partitions=2)
    await broker.produce(topic, Message(b"1", partition=0), Message(b"2", partition=1))
    async with running(broker.address, {"all": {"topic": topic}}) as instance:
        client = instance.client("all")
        assert (await client.begin()).status == 204
        await broker.produce(topic, Message(b"3", partition=1))
        assert (await client.read(1)).values == [3]


@pytest.mark.parametrize("library", ["aiokafka", "librdkafka"])
async def test_every_codec_arrives(broker: BrokerHandle, library: str):
    """In batches of many records, live and from the archive, unchanged and in order."""
    topic = await broker.create_topic()
    async with running(broker.address, {"all": {"topic": topic, "format": "text"}}) as instance:
        live = instance.client("all", start="earliest")
        await live.begin()
        values = []
        for codec in CODECS:
            some = [f"{codec} {n} " + "ä" * (n % 200) for n in range(300)]
            values += some
            await (with_aiokafka if library == "aiokafka" else with_librdkafka)(broker.address, topic, codec, some)
        await live.read(len(values))
        assert live.chain.values == values
    async with running(broker.address, {"all": {"topic": topic, "format": "text"}}) as instance:
        cold = instance.client("all", start="earliest")
        await cold.read(len(values))
        assert cold.chain.values == values


async def with_aiokafka(address: str, topic: str, codec: str, values: list[str]) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=address, compression_type=None if codec == "none" else codec, linger_ms=20, max_batch_size=20_000
    )
    await producer.start()
    try:
        sent = [await producer.send(topic, value.encode()) for value in values]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def with_librdkafka(address: str, topic: str, codec: str, values: list[str]) -> None:
    def produce() -> None:
        producer = Producer({"bootstrap.servers": address, "compression.type": codec, "linger.ms": 20, "log_level": 0})
        for value in values:
            producer.produce(topic, value.encode())
        assert producer.flush(10) == 0

    await asyncio.to_thread(produce)


async def test_records_look_as_they_were_written(broker: BrokerHandle):
    """Headers that the channel lists, keys that are text, bytes or null, tombstones, timestamps; values that are not their format."""
    topic = await broker.create_topic()
    headers = [("trace", b"t1"), ("secret", b"no"), ("trace", b"t2"), ("raw", b"\xff")]
    stamp = EPOCH_MS
    places = await broker.produce(
        topic,
        Message(b'{"a" : [1, 2]}', b"k", headers=headers, timestamp_ms=stamp),
        Message(b"2", None, timestamp_ms=stamp + 1),
        Message(None, b"k", timestamp_ms=stamp + 2),
        Message(b"no json", b"\xfe", timestamp_ms=stamp + 3),
    )
    assert [place.offset for place in places] == [0, 1, 2, 3]
    channels = {"all": {"topic": topic, "headers": ["trace", "raw"]}}
    plain = {"channel": "all", "partition": 0, "headers": []}
    expected = [
        {
            **plain,
            "offset": 0,
            "timestamp": stamp,
            "key": "k",
            "headers": [["trace", "t1"], ["trace", "t2"], ["raw", {"base64": base64.b64encode(b"\xff").decode()}]],
            "value": {"a": [1, 2]},
        },
        {**plain, "offset": 1, "timestamp": stamp + 1, "key": None, "value": 2},
        {**plain, "offset": 2, "timestamp": stamp + 2, "key": "k", "value": None, "tombstone": True},
        {
            **plain,
            "offset": 3,
            "timestamp": stamp + 3,
            "key": {"base64": base64.b64encode(b"\xfe").decode()},
            "value": base64.b64encode(b"no json").decode(),
            "encoding": "base64",
        },
    ]
    async with running(broker.address, channels) as instance:
        answer = await instance.client("all", start="earliest").poll(wait=5)
        assert answer.messages == expected
        assert answer.document["up_to_date"] is True
